"""Areas of virtual memory: what a process may do where, and what lies behind it.

An area (``struct vm_area_struct``) is a half-open range of whole pages with one set of flags and one origin. Its
``vm_pgoff`` says which page of the origin its first page is: of the file, or, for private anonymous memory, simply
``address >> 12`` at the time it was made. That number is why two neighbours can become one, and how the reverse map
finds an address from a page.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mmsim.constants import (
    SOFTDIRTY_BIT,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SYNC,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WIPEONFORK,
    VM_WRITE,
)
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmsim.process.mm import Mm

__all__ = ["AnonVma", "MappedFile", "Vma", "VM_FLAG_NAMES", "vm_flag_names", "prot_text",
           "is_data_mapping", "is_exec_mapping", "is_stack_mapping"]

#: The two letters of each flag in the VmFlags line of smaps (5.17: fs/proc/task_mmu.c, show_smap_vma_flags()).
VM_FLAG_NAMES: dict[int, str] = {
    VM_READ: "rd", VM_WRITE: "wr", VM_EXEC: "ex", VM_SHARED: "sh", VM_MAYREAD: "mr", VM_MAYWRITE: "mw", VM_MAYEXEC: "me",
    VM_MAYSHARE: "ms", VM_GROWSDOWN: "gd", VM_UFFD_MISSING: "um", VM_PFNMAP: "pf", VM_UFFD_WP: "uw", VM_LOCKED: "lo",
    VM_IO: "io", VM_SEQ_READ: "sr", VM_RAND_READ: "rr", VM_DONTCOPY: "dc", VM_DONTEXPAND: "de", VM_ACCOUNT: "ac",
    VM_NORESERVE: "nr", VM_HUGETLB: "ht", VM_SYNC: "sf", VM_WIPEONFORK: "wf", VM_DONTDUMP: "dd", SOFTDIRTY_BIT: "sd",
    VM_MIXEDMAP: "mm", VM_HUGEPAGE: "hg", VM_NOHUGEPAGE: "nh", VM_MERGEABLE: "mg",
}


def vm_flag_names(vm_flags: int, lockonfault: str = "??") -> str:
    """The VmFlags line of smaps for these flags, lowest bit first.

    5.17: fs/proc/task_mmu.c, show_smap_vma_flags(). A flag that has no letters there, VM_LOCKONFAULT, shows as "??";
    later kernels give it some (``lockonfault``).

    >>> vm_flag_names(0x100073)
    'rd wr mr mw me ac'
    """
    return " ".join(VM_FLAG_NAMES.get(1 << bit, lockonfault) for bit in range(vm_flags.bit_length()) if vm_flags >> bit & 1)


def prot_text(vm_flags: int) -> str:
    """The four letters of /proc/PID/maps. ``s`` is VM_MAYSHARE: also a shared mapping of a file open for reading only.

    >>> prot_text(0x73)
    'rw-p'
    """
    return (("r" if vm_flags & VM_READ else "-") + ("w" if vm_flags & VM_WRITE else "-") +
            ("x" if vm_flags & VM_EXEC else "-") + ("s" if vm_flags & VM_MAYSHARE else "p"))


def is_exec_mapping(vm_flags: int) -> bool:
    """Does it count as code (VmExe, VmLib)? 5.17: mm/internal.h, is_exec_mapping()."""
    return vm_flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC


def is_stack_mapping(vm_flags: int) -> bool:
    """Does it count as stack (VmStk)? 5.17: mm/internal.h, is_stack_mapping()."""
    return bool(vm_flags & VM_GROWSDOWN)


def is_data_mapping(vm_flags: int) -> bool:
    """Does it count as data (VmData, RLIMIT_DATA)? 5.17: mm/internal.h, is_data_mapping()."""
    return vm_flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE


class AnonVma:
    """The meeting point of the areas that may hold the same anonymous pages. Which one it is, is all that merging asks.

    An area gets one with its first anonymous page; splitting and moving hand it on, fork links the child's area to all
    of the parent's and to one of its own, whose ``parent`` is the parent's (:mod:`mmsim.process.rmap`). ``degree`` counts the
    areas that have it as their ``anon_vma``, and its children (a root is its own child): one with less than 2 may be
    used again. ``areas`` are all that are linked to it, in the order in which they came.

    5.17: include/linux/rmap.h, struct anon_vma. Left out: its interval tree is a list that a search filters.
    """

    __slots__ = ("__weakref__", "root", "parent", "degree", "areas")

    def __init__(self, parent: AnonVma | None = None):
        self.root: AnonVma = parent.root if parent is not None else self
        self.parent: AnonVma = parent if parent is not None else self
        self.degree = 1
        self.areas: dict[Vma, None] = {}


@dataclass(eq=False, slots=True)
class MappedFile:
    """What a file mapping shows: an open file with its size in pages, and how it was opened.

    ``shmem_zero`` is the nameless object behind shared anonymous memory; it has charged ``charged`` pages, which go
    back when its last mapping goes (``mappings`` counts them). Two of these are two files, whatever their names.
    """

    path: str
    pages: int = 0
    readable: bool = True
    writable: bool = True
    noexec: bool = False
    append_only: bool = False
    #: False: the file system has no mmap (ENODEV).
    can_mmap: bool = True
    device: tuple[int, int] = (0, 1)
    inode: int = 1
    shmem_zero: bool = False
    charged: int = 0
    mappings: int = 0
    #: Whether vm_ops has a close(): such areas never merge.
    has_close: bool = False
    #: Its pages are shared memory (tmpfs, memfd, System V): they count as MM_SHMEMPAGES and have no disk behind them.
    shmem: bool = False
    #: Shared memory that promises each page when it comes (VM_NORESERVE); ``charged`` counts them too.
    noreserve: bool = False
    #: A fault may map pages around it that are in the page cache (vm_ops->map_pages; System V attaches have none).
    map_pages: bool = True
    #: The file system wants to know of each page's first write (vm_ops->page_mkwrite): pages are mapped read-only until then.
    page_mkwrite: bool = False
    #: The bytes that a page holds before anybody wrote to it; None: zeros.
    content: Callable[[int], bytes] | None = None
    #: The page cache: frames by page of the file.
    cache: dict[int, int] = field(default_factory=dict)
    #: The areas that map it: its reverse map.
    i_mmap: dict[Vma, None] = field(default_factory=dict)

    @property
    def is_shmem(self) -> bool:
        """Shared memory, nameless or with a name (5.17: shmem_mapping())."""
        return self.shmem_zero or self.shmem

    def reopen(self, *, readable: bool = True, writable: bool = True) -> MappedFile:
        """The same file, opened another way: pages and mappings are one."""
        return replace(self, readable=readable, writable=writable, mappings=0, charged=0, shmem_zero=False)

    def __repr__(self) -> str:
        return f"<MappedFile {self.path}, {self.pages} pages>"


@dataclass(eq=False, slots=True)
class Vma:
    """One area. Addresses in bytes, a multiple of the page size; ``vm_pgoff`` in pages.

    ``vm_prev`` and ``vm_next`` are kept by the tree (:class:`mmsim.process.vma_tree.VmaTree`), which also must be told
    of a new ``vm_start``. ``anon_vma_chain`` holds every AnonVma at which a page of this area may be met.

    >>> Vma(0x1000, 0x4000, 0x100073, 1)
    <Vma 1000-4000 rw-p>

    5.17: include/linux/mm_types.h, struct vm_area_struct.
    """

    vm_start: int
    vm_end: int
    vm_flags: int
    vm_pgoff: int
    vm_file: MappedFile | None = None
    anon_vma: AnonVma | None = None
    anon_vma_chain: list[AnonVma] = field(default_factory=list)
    #: A special mapping (vdso, vvar) has a name and may be neither split nor merged.
    special: str = ""
    anon_name: str | None = None
    #: NUMA policy and userfaultfd context: merging asks only whether two are the same.
    policy: Hashable = None
    uffd: Hashable = None
    vm_prev: "Vma | None" = None
    vm_next: "Vma | None" = None
    #: The address space that it is in.
    vm_mm: Mm | None = None

    @property
    def pages(self) -> int:
        """Its size in pages (5.17: include/linux/mm.h, vma_pages())."""
        return (self.vm_end - self.vm_start) >> PAGE_SHIFT

    @property
    def is_anonymous(self) -> bool:
        """Private memory with nothing behind it (5.17: include/linux/mm.h, vma_is_anonymous(): no vm_ops)."""
        return self.vm_file is None and not self.special

    @property
    def is_accessible(self) -> bool:
        """Anything but PROT_NONE (5.17: include/linux/mm.h, vma_is_accessible())."""
        return bool(self.vm_flags & 7)

    @property
    def has_close(self) -> bool:
        """vm_ops->close exists: the driver counts its areas, so that they are never merged."""
        return bool(self.special) or (self.vm_file is not None and self.vm_file.has_close)

    def pgoff_at(self, address: int) -> int:
        """The page of the file that ``address`` shows (5.17: include/linux/pagemap.h, linear_page_index())."""
        return self.vm_pgoff + ((address - self.vm_start) >> PAGE_SHIFT)

    def duplicate(self) -> "Vma":
        """A copy outside the tree, with an empty anon_vma chain (5.17: kernel/fork.c, vm_area_dup())."""
        return Vma(self.vm_start, self.vm_end, self.vm_flags, self.vm_pgoff, self.vm_file, self.anon_vma, [],
                   self.special, self.anon_name, self.policy, self.uffd, vm_mm=self.vm_mm)

    def __repr__(self) -> str:
        name = f" {self.vm_file.path}+{self.vm_pgoff * PAGE_SIZE:#x}" if self.vm_file else ""
        return f"<Vma {self.vm_start:x}-{self.vm_end:x} {prot_text(self.vm_flags)}{name}>"
