"""What all processes of a machine share: the frames of user pages, who owns each, and the batches before the LRU lists.

A page is a frame number; its flags, references and mappings are columns (:mod:`mmsim.physical.frames`), its owner and its place
there are ``mapping`` and ``index``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from mmsim.constants import (
    _GFP_ZERO,
    GFP_HIGHUSER_MOVABLE,
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
)
from mmsim.counters import Counters
from mmsim.errors import InvariantError, KernelBug
from mmsim.paging.contents import FrameContents
from mmsim.paging.mmu import Mmu
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.paging.tlbflush import TlbFlush
from mmsim.physical.frames import PG, Frames
from mmsim.physical.free import free_unref_page, free_unref_page_list
from mmsim.physical.lru_batch import LruBatches
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.process.overcommit import Overcommit
from mmsim.process.rmap import Visit, rmap_walk
from mmsim.process.vma import AnonVma, MappedFile, Vma
from mmsim.rules import Rules
from mmsim.trace import Trace
from mmsim.units import PAGE_SHIFT, align_up

if TYPE_CHECKING:
    from mmsim.process.mm import Mm
    from mmsim.process.task import Process

__all__ = ["MachineParts", "UserMemory"]

GFP_ZEROED = GFP_HIGHUSER_MOVABLE | _GFP_ZERO
_UPTODATE, _SWAPBACKED, _MLOCKED, _DIRTY = PG["uptodate"], PG["swapbacked"], PG["mlocked"], PG["dirty"]
_REFERENCED, _ACTIVE, _LRU, _UNEVICTABLE = PG["referenced"], PG["active"], PG["lru"], PG["unevictable"]
#: PageAnonExclusive() is this bit of an anonymous page (since 5.19): no fork lies between the page and its only owner.
ANON_EXCLUSIVE = PG["mappedtodisk"]
_AT_RELEASE = ~(_LRU | _ACTIVE | _UNEVICTABLE | _MLOCKED)


class _Image(Protocol):
    @property
    def bss(self) -> tuple[int, int]: ...


class MachineParts(Protocol):
    """What processes need of a machine (:class:`mmsim.machine.Machine` has it)."""

    allocator: PageAllocator
    contents: FrameContents
    tables: TableMemory
    counters: Counters
    trace: Trace
    rules: Rules
    overcommit: Overcommit
    memory: PhysicalMemory
    frames: Frames

    @property
    def init_mm(self) -> PageTables: ...

    @property
    def image(self) -> _Image: ...


class UserMemory:
    """The user pages of a machine. One for the machine; each address space refers to it."""

    def __init__(self, machine: MachineParts):
        self.machine = machine
        self.allocator = machine.allocator
        self.memory = machine.memory
        self.frames = machine.frames
        self.contents = machine.contents
        self.tables = machine.tables
        self.kernel: PageTables = machine.init_mm
        self.counters = machine.counters
        self.trace = machine.trace
        self.rules = machine.rules
        self.overcommit = machine.overcommit
        #: Whether pages know that they are one owner's alone (since 5.19).
        self.anon_exclusive = machine.rules.cow_reuse == "exclusive"
        #: page->mapping: who owns a page, by frame.
        self.mapping: dict[int, AnonVma | MappedFile] = {}
        #: page->index: which page of its owner it is.
        self.index = machine.frames.column("index")
        self.lru = LruBatches(machine.memory, self.put_page, machine.rules.lru_batch)
        #: The page of zeros that reads of untouched memory see: empty_zero_page in the kernel's .bss.
        self.zero_pfn = align_up(machine.image.bss[0], 1 << PAGE_SHIFT) >> PAGE_SHIFT
        #: NR_ANON_MAPPED, NR_FILE_MAPPED, NR_SHMEM, NR_MLOCK, NR_FILE_PAGES (of which NR_SHMEM is part).
        self.nr_anon_mapped = self.nr_file_mapped = self.nr_shmem = self.nr_mlock = self.nr_file_pages = 0
        #: Files with pages in the page cache.
        self.files: dict[MappedFile, None] = {}
        #: The machine's TLBs, if accesses are to go through them.
        self.tlb: TlbFlush | None = None
        #: CONFIG_MEM_SOFT_DIRTY: written entries say so until somebody clears it.
        self.soft_dirty = False
        #: SPLIT_RSS_COUNTING: faults count in the task first, and the mm learns of it after 64 of them.
        self.split_rss = False
        self.current: Process | None = None
        #: All that live.
        self.tasks: list[Process] = []
        #: Promised pages of others than the processes here.
        self.committed_elsewhere = machine.overcommit.committed

    def use_tlbs(self) -> TlbFlush:
        """Give each CPU an MMU with a TLB; processes made from then on can run on one (``process.cpu``)."""
        if self.tlb is None:
            self.tlb = TlbFlush([Mmu(self.contents) for _ in range(self.memory.nr_cpus)], self.kernel, self.trace)
        return self.tlb

    # -- pages -----------------------------------------------------------------------------------------------

    def alloc_zeroed_page(self) -> int | None:
        """A frame of zeros for a user, or None (5.17: alloc_zeroed_user_highpage_movable())."""
        pfn = self.allocator.alloc_pages(GFP_ZEROED)
        if pfn is not None:
            self.contents.drop(pfn)
        return pfn

    def alloc_page(self) -> int | None:
        """A frame for a user who fills it, or None (5.17: mm/mempolicy.c, alloc_pages_vma())."""
        return self.allocator.alloc_pages(GFP_HIGHUSER_MOVABLE)

    def put_page(self, pfn: int) -> None:
        """Drop a reference; free the page if it was the last (5.17: include/linux/mm.h, put_page())."""
        count = self.frames.refcount[pfn] - 1
        if count < 0:
            raise KernelBug(f"VM_BUG_ON_PAGE(page_ref_count(page) == 0): frame {pfn:#x}")
        self.frames.refcount[pfn] = count
        if not count:
            self._put_page(pfn)

    def _put_page(self, pfn: int) -> None:
        """The last reference is gone (5.17: mm/swap.c, __put_page(), __page_cache_release())."""
        self.frames.flags[pfn] &= _AT_RELEASE
        self.mapping.pop(pfn, None)
        free_unref_page(self.memory, pfn)

    def release_pages(self, pfns: Iterable[int]) -> None:
        """Drop a reference to each of many pages; free those without any, the last one first.

        5.17: mm/swap.c, release_pages().
        """
        refcount, flags, mapping = self.frames.refcount, self.frames.flags, self.mapping
        free: list[int] = []
        for pfn in pfns:
            count = refcount[pfn] - 1
            refcount[pfn] = count
            if not count:
                flags[pfn] &= _AT_RELEASE
                mapping.pop(pfn, None)
                free.append(pfn)
        free.reverse()
        free_unref_page_list(self.memory, free)

    def mark_page_accessed(self, pfn: int) -> None:
        """A use of a page: the first sets PG_referenced, the second makes it active (5.17: mm/swap.c, mark_page_accessed())."""
        flags = self.frames.flags[pfn]
        if not flags & _REFERENCED:
            self.frames.flags[pfn] = flags | _REFERENCED
        elif not flags & (_UNEVICTABLE | _ACTIVE):
            self.frames.flags[pfn] = flags & ~_REFERENCED | _ACTIVE

    def set_page_dirty(self, pfn: int) -> bool:
        """The page differs from what is behind it; True if that is new (5.17: mm/page-writeback.c, set_page_dirty())."""
        if self.frames.flags[pfn] & _DIRTY:
            return False
        self.frames.flags[pfn] |= _DIRTY
        return True

    # -- owners ------------------------------------------------------------------------------------------------

    def page_add_new_anon_rmap(self, pfn: int, vma: Vma, address: int) -> None:
        """A new page belongs to an area's anon_vma and is mapped once (5.17: mm/rmap.c, page_add_new_anon_rmap())."""
        anon_vma = vma.anon_vma
        if anon_vma is None:
            raise KernelBug(f"BUG_ON(!anon_vma): {vma}")
        frames = self.frames
        frames.flags[pfn] |= _SWAPBACKED | ANON_EXCLUSIVE if self.anon_exclusive else _SWAPBACKED
        frames.mapcount[pfn] = 1
        self.nr_anon_mapped += 1
        self.mapping[pfn] = anon_vma
        self.index[pfn] = vma.vm_pgoff + (address - vma.vm_start >> PAGE_SHIFT)

    def page_add_file_rmap(self, pfn: int) -> None:
        """A page of a file is mapped once more (5.17: mm/rmap.c, page_add_file_rmap())."""
        self.frames.mapcount[pfn] += 1
        if self.frames.mapcount[pfn] == 1:
            self.nr_file_mapped += 1

    def page_remove_rmap(self, pfn: int) -> None:
        """A page is mapped once less (5.17: mm/rmap.c, page_remove_rmap())."""
        frames = self.frames
        count = frames.mapcount[pfn] - 1
        if count < 0:
            raise KernelBug(f"bad_page: frame {pfn:#x} is unmapped more often than it was mapped")
        frames.mapcount[pfn] = count
        if not count:
            if self.page_anon(pfn):
                self.nr_anon_mapped -= 1
            else:
                self.nr_file_mapped -= 1
            if frames.flags[pfn] & _MLOCKED:
                self.clear_page_mlock(pfn)

    def page_anon(self, pfn: int) -> bool:
        """Whether an anon_vma owns it (5.17: include/linux/page-flags.h, PageAnon())."""
        return isinstance(self.mapping.get(pfn), AnonVma)

    def mm_counter(self, pfn: int) -> int:
        """As what a page counts in RSS (5.17: include/linux/mm.h, mm_counter())."""
        owner = self.mapping.get(pfn)
        if isinstance(owner, AnonVma):
            return MM_ANONPAGES
        return MM_SHMEMPAGES if owner is not None and owner.is_shmem else MM_FILEPAGES

    def rmap_walk(self, pfn: int) -> list[Visit]:
        """Every area in which a page may be mapped, with hit or miss (:func:`mmsim.process.rmap.rmap_walk`)."""
        owner = self.mapping.get(pfn)
        return rmap_walk(pfn, owner, self.index[pfn]) if owner is not None else []

    def mlock_page(self, pfn: int) -> None:
        """A locked area maps the page (5.17: mm/mlock.c, mlock_vma_page())."""
        self.set_mlocked(pfn)

    def set_mlocked(self, pfn: int) -> None:
        """Set PG_mlocked, and count the page if that is new (5.17: TestSetPageMlocked())."""
        if not self.frames.flags[pfn] & _MLOCKED:
            self.frames.flags[pfn] |= _MLOCKED | (_UNEVICTABLE if self.frames.flags[pfn] & _LRU else 0)
            self.nr_mlock += 1

    def clear_page_mlock(self, pfn: int) -> None:
        """No locked area maps the page any more (5.17: mm/mlock.c, clear_page_mlock(), munlock_vma_page())."""
        if self.frames.flags[pfn] & _MLOCKED:
            self.frames.flags[pfn] &= ~(_MLOCKED | _UNEVICTABLE)
            self.nr_mlock -= 1

    # -- pages of files ------------------------------------------------------------------------------------------

    def add_to_page_cache(self, file: MappedFile, index: int, mm: Mm) -> int | None:
        """Make a page of a file, for a process of ``mm``, with what the file holds there; None if there is no frame.

        Raise ENOMEM if it is shared memory whose page cannot be promised.
        """
        return self._shmem_getpage_gfp(file, index, mm) if file.is_shmem else self._filemap_add_folio(file, index)

    def _shmem_getpage_gfp(self, file: MappedFile, index: int, mm: Mm) -> int | None:
        """A missing page of shared memory (5.17: mm/shmem.c, shmem_getpage_gfp(), shmem_acct_block())."""
        if file.noreserve:
            mm.charge(1)
            file.charged += 1
        pfn = self._filemap_add_folio(file, index)
        if pfn is None and file.noreserve:
            self.overcommit.uncharge(1)
            file.charged -= 1
        return pfn

    def _filemap_add_folio(self, file: MappedFile, index: int) -> int | None:
        """A new page with its place in the page cache (mm/filemap.c, filemap_add_folio(); shmem_add_to_page_cache())."""
        pfn = self.allocator.alloc_pages(GFP_HIGHUSER_MOVABLE)
        if pfn is None:
            return None
        self.contents.drop(pfn)
        data = file.content(index) if file.content is not None else b""
        if data:
            self.contents.write(pfn << PAGE_SHIFT, data)
        self.frames.flags[pfn] |= _UPTODATE | _SWAPBACKED if file.is_shmem else _UPTODATE
        file.cache[index] = pfn
        self.files[file] = None
        self.mapping[pfn] = file
        self.index[pfn] = index
        self.nr_file_pages += 1
        self.nr_shmem += file.is_shmem
        self.lru.lru_cache_add(pfn)
        return pfn

    def delete_from_page_cache(self, file: MappedFile, index: int) -> None:
        """Take a page that nobody maps out of the page cache (5.17: mm/filemap.c, delete_from_page_cache())."""
        pfn = file.cache.pop(index)
        if self.frames.mapcount[pfn]:
            raise KernelBug(f"VM_BUG_ON_FOLIO(folio_mapped(folio)): page {index} of {file}")
        self.nr_file_pages -= 1
        self.nr_shmem -= file.is_shmem
        self.frames.flags[pfn] &= ~_DIRTY
        del self.mapping[pfn]
        if file.noreserve:
            self.overcommit.uncharge(1)
            file.charged -= 1
        if not file.cache:
            self.files.pop(file, None)
        self.put_page(pfn)

    def truncate(self, file: MappedFile, first: int = 0) -> None:
        """Drop the pages of a file from one on; they must be unmapped (5.17: mm/truncate.c, truncate_inode_pages_range())."""
        for index in sorted(index for index in file.cache if index >= first):
            self.delete_from_page_cache(file, index)

    # -- checking --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Verify all processes together. Raise InvariantError.

        Every page's mappings are the entries that map it, its references these and the batches' and the page cache's; the
        reverse map of each finds exactly these; promises add up.
        """
        self.lru.check()
        spaces = {id(task.space): task.space for task in self.tasks}
        mapped: dict[int, int] = {}
        locked = shared = 0
        for space in spaces.values():
            space.check()
            for _, pfn in space.mapped_pages():
                mapped[pfn] = mapped.get(pfn, 0) + 1
            locked += space.mm.accounted_pages()
        references = dict(mapped)
        for pfn in self.lru.waiting():
            references[pfn] = references.get(pfn, 0) + 1
        for file in self.files:
            for index, pfn in file.cache.items():
                references[pfn] = references.get(pfn, 0) + 1
                if self.mapping.get(pfn) is not file or self.index[pfn] != index:
                    raise InvariantError(f"page {index} of {file} in frame {pfn:#x} does not know whose it is")
        for pfn, count in references.items():
            if self.frames.refcount[pfn] != count:
                raise InvariantError(f"frame {pfn:#x} has {self.frames.refcount[pfn]} references, {count} are known")
            if self.frames.mapcount[pfn] != mapped.get(pfn, 0):
                raise InvariantError(f"frame {pfn:#x} is mapped {mapped.get(pfn, 0)} times, its count says "
                                     f"{self.frames.mapcount[pfn]}")
            if mapped.get(pfn) and sum(visit.hit for visit in self.rmap_walk(pfn)) != mapped[pfn]:
                raise InvariantError(f"frame {pfn:#x}: the reverse map does not find all of its {mapped[pfn]} mappings")
        lost = [pfn for pfn in self.mapping if pfn not in references]
        if lost:
            raise InvariantError(f"frames that have an owner and no user: {', '.join(f'{pfn:#x}' for pfn in sorted(lost)[:8])}")
        anon = sum(isinstance(self.mapping.get(pfn), AnonVma) for pfn in mapped)
        if (self.nr_anon_mapped, self.nr_file_mapped) != (anon, len(mapped) - anon):
            raise InvariantError(f"{self.nr_anon_mapped} + {self.nr_file_mapped} pages are counted as mapped, "
                                 f"{anon} + {len(mapped) - anon} are")
        files = dict(self.files)
        files |= {file: None for space in spaces.values() for file in (v.vm_file for v in space.mm) if file is not None}
        shared = sum(file.charged for file in files)
        if self.overcommit.committed - self.committed_elsewhere != locked + shared:
            raise InvariantError(f"{self.overcommit.committed} pages are promised; the areas add up to {locked} + {shared}")
