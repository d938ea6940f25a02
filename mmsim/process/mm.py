"""The address space of a process: its areas, their sums, and the operations from which all system calls are built.

``vma_adjust`` moves borders, ``split_vma`` cuts an area in two, ``vma_merge`` joins; each keeps the reverse map's
``anon_vma`` right. System calls are in the modules beside this one and raise :class:`~mmsim.errors.Errno`;
:mod:`mmsim.process.syscalls` turns that into the kernel's return values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsim.constants import (
    DEFAULT_MAX_MAP_COUNT,
    RLIM_INFINITY,
    VM_ACCOUNT,
    VM_LOCKED,
)
from mmsim.errors import Errno, InvariantError
from mmsim.process.layout import STACK_GUARD_GAP, Layout, fixed_layout
from mmsim.process.merge import Merge, MergeRequest, decide_merge
from mmsim.process.overcommit import Overcommit
from mmsim.process.rmap import anon_vma_clone, anon_vma_prepare, unlink_anon_vmas
from mmsim.process.vma import Vma, is_data_mapping, is_exec_mapping, is_stack_mapping
from mmsim.process.vma_tree import VmaTree
from mmsim.rules import Rules
from mmsim.trace import Trace
from mmsim.units import MIB, PAGE_SHIFT

if TYPE_CHECKING:
    from mmsim.process.address_space import AddressSpace

__all__ = ["Limits", "Mm"]


@dataclass(slots=True)
class Limits:
    """Resource limits in bytes, as ``ulimit`` and ``setrlimit`` set them."""

    address_space: int = RLIM_INFINITY          # RLIMIT_AS
    data: int = RLIM_INFINITY                   # RLIMIT_DATA, soft
    data_max: int = RLIM_INFINITY               # RLIMIT_DATA, hard
    stack: int = 8 * MIB                        # RLIMIT_STACK
    memlock: int = 8 * MIB                      # RLIMIT_MEMLOCK (5.16; 64 KiB before)


class Mm:
    """One address space. Sums (``total_vm`` …) in pages, addresses in bytes.

    ``privileged`` stands for CAP_IPC_LOCK, CAP_SYS_ADMIN and CAP_SYS_RAWIO together: root or not. ``overcommit`` is
    the machine's promise account, which processes share.

    5.17: include/linux/mm_types.h, struct mm_struct. Left out: locks (the mmap_lock is always ours).
    """

    def __init__(self, layout: Layout | None = None, *, rules: Rules | None = None, limits: Limits | None = None,
                 overcommit: Overcommit | None = None, trace: Trace | None = None, privileged: bool = False,
                 max_map_count: int = DEFAULT_MAX_MAP_COUNT, mmap_min_addr: int = 1 << 16,
                 stack_guard_gap: int = STACK_GUARD_GAP, soft_dirty: bool = False):
        self.rules = rules or Rules()
        self.layout = layout or fixed_layout()
        self.limits = limits or Limits()
        self.overcommit = overcommit if overcommit is not None else Overcommit()
        self.trace = trace or Trace()
        self.privileged = privileged
        self.max_map_count = max_map_count
        self.mmap_min_addr = mmap_min_addr
        self.stack_guard_gap = stack_guard_gap
        #: CONFIG_MEM_SOFT_DIRTY: new and grown areas carry the soft-dirty flag.
        self.soft_dirty = soft_dirty
        self.tree = VmaTree(stack_guard_gap=stack_guard_gap)
        self.map_count = 0
        self.total_vm = self.data_vm = self.exec_vm = self.stack_vm = self.locked_vm = 0
        #: Pages that locked_vm counts although no area is locked any more: 5.17's error with MREMAP_DONTUNMAP.
        self.locked_vm_lost = 0
        #: Flags that every new area gets: mlockall(MCL_FUTURE) sets VM_LOCKED here.
        self.def_flags = 0
        self.start_code = self.end_code = self.start_data = self.end_data = 0
        #: The most that total_vm and the resident pages were before something was unmapped (VmPeak, VmHWM).
        self.hiwater_vm = self.hiwater_rss = 0
        self.start_brk = self.brk = 0
        self.start_stack = 0
        #: Pages by kind (MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES) that are mapped.
        self.rss = [0, 0, 0, 0]
        #: The page tables and what is mapped there; None: areas only.
        self.pages: AddressSpace | None = None
        #: Called with (vma, start, end) for page-table entries that go, move or change, for those who keep pages themselves.
        self.on_unmap: Callable[[Vma, int, int], None] | None = None
        self.on_move: Callable[[Vma, int, Vma, int, int], None] | None = None
        self.on_protect: Callable[[Vma, int, int], None] | None = None
        #: Called with (vma, start, end, advice) for advice on pages.
        self.on_advice: Callable[[Vma, int, int, int], None] | None = None

    def __iter__(self) -> Iterator[Vma]:
        return iter(self.tree)

    def __repr__(self) -> str:
        return f"<Mm: {self.map_count} areas, {self.total_vm} pages>"

    @property
    def pgtables_bytes(self) -> int:
        """VmPTE: the bytes of all tables but the PGD."""
        return self.pages.tables.pgtables_bytes if self.pages is not None else 0

    def update_hiwater(self) -> None:
        """Remember how large the address space is, before it shrinks (5.17: include/linux/mm.h, update_hiwater_vm(),
        update_hiwater_rss())."""
        self.hiwater_vm = max(self.hiwater_vm, self.total_vm)
        self.hiwater_rss = max(self.hiwater_rss, self.rss[0] + self.rss[1] + self.rss[3])

    # -- limits and sums -----------------------------------------------------------------------------------

    def may_expand_vm(self, vm_flags: int, pages: int) -> bool:
        """Do RLIMIT_AS and RLIMIT_DATA allow ``pages`` more? 5.17: mm/mmap.c, may_expand_vm()."""
        if self.total_vm + pages > self.limits.address_space >> PAGE_SHIFT:
            return False
        if is_data_mapping(vm_flags) and self.data_vm + pages > self.limits.data >> PAGE_SHIFT:
            # A soft limit of 0 counts as none, as long as the hard one is kept: Valgrind sets it so.
            return self.limits.data == 0 and self.data_vm + pages <= self.limits.data_max >> PAGE_SHIFT
        return True

    def vm_stat_account(self, vm_flags: int, pages: int) -> None:
        """Count pages of an area as total and as code, stack or data (5.17: mm/mmap.c, vm_stat_account())."""
        self.total_vm += pages
        if is_exec_mapping(vm_flags):
            self.exec_vm += pages
        elif is_stack_mapping(vm_flags):
            self.stack_vm += pages
        elif is_data_mapping(vm_flags):
            self.data_vm += pages

    def charge(self, pages: int) -> None:
        """Promise memory to this process, or raise ENOMEM (5.17: security/security.c, security_vm_enough_memory_mm())."""
        self.overcommit.charge(pages, self.total_vm, self.privileged)

    def mlock_future_check(self, vm_flags: int, size: int) -> None:
        """Raise EAGAIN if a locked area of ``size`` bytes would exceed RLIMIT_MEMLOCK (5.17: mm/mmap.c, mlock_future_check())."""
        if vm_flags & VM_LOCKED and not self.privileged:
            if (size >> PAGE_SHIFT) + self.locked_vm > self.limits.memlock >> PAGE_SHIFT:
                raise Errno("EAGAIN", "more locked memory than RLIMIT_MEMLOCK")

    def can_do_mlock(self) -> bool:
        """May this process lock memory at all? 5.17: mm/mlock.c, can_do_mlock()."""
        return self.limits.memlock != 0 or self.privileged

    # -- files and the reverse map -------------------------------------------------------------------------

    def get_file(self, vma: Vma) -> None:
        """A new area refers to its file, and the file's reverse map to the area."""
        if vma.vm_file is not None:
            vma.vm_file.mappings += 1
            vma.vm_file.i_mmap[vma] = None

    def put_file(self, vma: Vma) -> None:
        """An area is gone; the last one of a nameless shared object gives its promise back (shmem_evict_inode())."""
        file = vma.vm_file
        if file is not None:
            file.mappings -= 1
            file.i_mmap.pop(vma, None)
            if file.mappings == 0 and file.shmem_zero:
                if self.pages is not None:
                    self.pages.user.truncate(file)
                self.overcommit.uncharge(file.charged)
                file.charged = 0

    def anon_vma_prepare(self, vma: Vma) -> None:
        """Give an area its anon_vma before its first anonymous page (:func:`mmsim.process.rmap.anon_vma_prepare`)."""
        anon_vma_prepare(vma)

    @staticmethod
    def anon_vma_clone(vma: Vma, source: Vma) -> None:
        """Link an area to all anon_vmas of another (:func:`mmsim.process.rmap.anon_vma_clone`)."""
        anon_vma_clone(vma, source)

    @staticmethod
    def unlink_anon_vmas(vma: Vma) -> None:
        """The area has no anonymous pages any more (:func:`mmsim.process.rmap.unlink_anon_vmas`)."""
        unlink_anon_vmas(vma)

    # -- areas ---------------------------------------------------------------------------------------------

    def link(self, vma: Vma) -> None:
        """Put a new area in (5.17: mm/mmap.c, vma_link()); sums are the caller's business."""
        self.insert_vm_struct(vma)

    def insert_vm_struct(self, vma: Vma) -> None:
        """Put an area into the tree, as a split does with its other half (5.17: mm/mmap.c, __insert_vm_struct())."""
        vma.vm_mm = self
        self.tree.insert(vma)
        self.map_count += 1

    def _discard(self, vma: Vma) -> None:
        """An area was taken in by its neighbour."""
        self.tree.remove(vma)
        self.map_count -= 1
        self.put_file(vma)
        self.unlink_anon_vmas(vma)

    def vma_adjust(self, vma: Vma, start: int, end: int, pgoff: int, insert: Vma | None = None,
                   expand: Vma | None = None) -> None:
        """Give ``vma`` the range [start, end) and let the neighbours yield, vanish or take over what it leaves.

        With ``insert`` an area is put in where ``vma`` withdraws (a split). Else ``expand`` says which one grows; if
        that one has no anonymous pages yet and the other does, it is linked to their anon_vma.
        5.17: mm/mmap.c, __vma_adjust().
        """
        next_ = vma.vm_next
        remove: list[Vma] = []
        adjust_next = 0
        exporter = importer = None
        if next_ is not None and insert is None:
            if end >= next_.vm_end:
                if expand is next_:                     # case 8: the upper area grows downwards, this one goes
                    remove, exporter, vma = [vma], vma, next_
                else:                                   # cases 1, 6, 7
                    remove, exporter = [next_], next_
                    if end > next_.vm_end and next_.vm_next is not None:
                        remove.append(next_.vm_next)    # case 6
                        if next_.anon_vma is None:
                            exporter = next_.vm_next
                importer = vma
            elif end > next_.vm_start:                  # case 5
                adjust_next, exporter, importer = end - next_.vm_start, next_, vma
            elif end < vma.vm_end:                      # case 4
                adjust_next, exporter, importer = end - vma.vm_end, vma, next_
            if exporter is not None and importer is not None and exporter.anon_vma is not None and importer.anon_vma is None:
                importer.anon_vma = exporter.anon_vma
                self.anon_vma_clone(importer, exporter)
        for gone in remove:
            self._discard(gone)
        self.tree.resize(vma, start, end)
        vma.vm_pgoff = pgoff
        if adjust_next and next_ is not None:
            self.tree.resize(next_, next_.vm_start + adjust_next, next_.vm_end)
            next_.vm_pgoff += adjust_next >> PAGE_SHIFT
        if insert is not None:
            self.insert_vm_struct(insert)

    def vma_merge(self, prev: Vma | None, request: MergeRequest) -> Vma | None:
        """Join a range with its neighbours if they allow it; return the area that then covers it, or None.

        ``prev`` is the area that begins before the range, or None. 5.17: mm/mmap.c, vma_merge().
        """
        return self.merge_between(prev, prev.vm_next if prev is not None else self.tree.first, request)

    def merge_between(self, prev: Vma | None, area: Vma | None, request: MergeRequest) -> Vma | None:
        """:meth:`vma_merge`, for a caller who says himself which area follows ``prev``."""
        merge = decide_merge(prev, area, request)
        if merge is None:
            return None
        merged = self.apply_merge(merge)
        if merged.anon_vma is None and request.anon_vma is not None and request.source is not None:
            # Only under merge_into_untouched: pages are about to be moved here.
            merged.anon_vma = request.anon_vma
            self.anon_vma_clone(merged, request.source)
        return merged

    def apply_merge(self, merge: Merge) -> Vma:
        """Carry out a decision of :func:`~mmsim.process.merge.decide_merge`."""
        if self.trace.enabled:
            self.trace.emit("mmsim:vma_merge", case=merge.case, start=merge.start, end=merge.end)
        self.vma_adjust(merge.vma, merge.start, merge.end, merge.pgoff, expand=merge.expand)
        return merge.expand

    def split_vma(self, vma: Vma, address: int, new_below: bool) -> Vma:
        """Cut an area at ``address``; return the new part, which lies below or above. Raise ENOMEM at max_map_count.

        5.17: mm/mmap.c, split_vma().
        """
        if self.map_count >= self.max_map_count:
            raise Errno("ENOMEM", f"the split would make more than {self.max_map_count} areas")
        return self.split_vma_unchecked(vma, address, new_below)

    def split_vma_unchecked(self, vma: Vma, address: int, new_below: bool) -> Vma:
        """Cut an area without a look at max_map_count (5.17: mm/mmap.c, __split_vma())."""
        if vma.special:
            raise Errno("EINVAL", f"{vma.special} must stay in one piece")
        new = vma.duplicate()
        if new_below:
            new.vm_end = address
        else:
            new.vm_start = address
            new.vm_pgoff = vma.pgoff_at(address)
        self.anon_vma_clone(new, vma)
        self.get_file(new)
        if new_below:
            self.vma_adjust(vma, address, vma.vm_end, vma.pgoff_at(address), insert=new)
        else:
            self.vma_adjust(vma, vma.vm_start, address, vma.vm_pgoff, insert=new)
        return new

    def request(self, vma: Vma, start: int, end: int, vm_flags: int, anon_name: str | None = None) -> MergeRequest:
        """The question to :meth:`vma_merge` when part of an area gets other flags."""
        return MergeRequest(start, end, vm_flags, vma.pgoff_at(start), vma.vm_file, vma.anon_vma, vma.policy, vma.uffd,
                            anon_name if anon_name is not None else vma.anon_name, vma, self.rules.merge_into_untouched)

    # -- consistency ---------------------------------------------------------------------------------------

    def accounted_pages(self) -> int:
        """What the areas' VM_ACCOUNT flags say was promised, shared objects apart."""
        return sum(vma.pages for vma in self.tree if vma.vm_flags & VM_ACCOUNT)

    def check(self) -> None:
        """The tree is sound, and every sum is that of the areas. Raise InvariantError otherwise."""
        self.tree.check()
        sums = {"map_count": 0, "total_vm": 0, "exec_vm": 0, "stack_vm": 0, "data_vm": 0, "locked_vm": 0}
        for vma in self.tree:
            sums["map_count"] += 1
            sums["total_vm"] += vma.pages
            for name, counted in (("exec_vm", is_exec_mapping), ("stack_vm", is_stack_mapping), ("data_vm", is_data_mapping)):
                sums[name] += vma.pages * counted(vma.vm_flags)
            sums["locked_vm"] += vma.pages * bool(vma.vm_flags & VM_LOCKED)
            if (vma.anon_vma is None) != (not vma.anon_vma_chain):
                raise InvariantError(f"{vma}: anon_vma and its chain disagree")
            if vma.anon_vma is not None and vma.anon_vma not in vma.anon_vma_chain:
                raise InvariantError(f"{vma}: its anon_vma is not in its chain")
            if vma.vm_mm is not self or any(vma not in anon_vma.areas for anon_vma in vma.anon_vma_chain):
                raise InvariantError(f"{vma}: the reverse map does not lead back to it")
            if vma.is_anonymous and vma.anon_vma is None and vma.vm_pgoff != vma.vm_start >> PAGE_SHIFT:
                if not self.rules.mremap_dontunmap_keeps_pgoff:
                    raise InvariantError(f"{vma}: untouched, but its page offset {vma.vm_pgoff:#x} is not its address")
        sums["locked_vm"] += self.locked_vm_lost
        for name, value in sums.items():
            if getattr(self, name) != value:
                raise InvariantError(f"{name} is {getattr(self, name)}, the areas add up to {value}")
