"""The kinds of memory that the recorded program ``api`` makes, to call mincore() and madvise() on: each in a process of its own.

Eight pages of private memory, of shared memory, of a file; touched or not, shared with a child, locked, with holes; and
lengths that are none.
"""

from __future__ import annotations

from collections.abc import Callable

from mmsim.constants import (
    MADV_MERGEABLE,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
)
from mmsim.process.mm import Mm
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile, Vma
from mmsim.reference import ref256
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX

__all__ = ["NOT_COVERED", "MemoryKinds"]

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
_ANON = MAP_PRIVATE | MAP_ANONYMOUS
_PAGES = 8
#: Kinds that the model has not yet, and what they need.
NOT_COVERED = {"hugetlb": "huge pages", "thp": "huge pages", "pfnmap_devmem": "/dev/mem", "swapped": "swap"}


class MemoryKinds:
    """A machine, and one process after the other (:meth:`fresh`), each with one kind of memory of ``length`` bytes."""

    def __init__(self) -> None:
        self.machine = ref256()
        self.table = self.machine.process_table
        self.length = 0
        self.process = self.fresh()

    def fresh(self) -> Process:
        """End all processes and start a new one, privileged and with all pagevecs empty."""
        for process in list(self.table.processes.values()):
            if process.alive:
                process.exit()
        self.table.processes.clear()
        self.table.user.lru.lru_add_drain_all()
        mm = Mm(rules=self.machine.rules, overcommit=self.machine.overcommit, trace=self.machine.trace, privileged=True)
        self.process, self.length = self.table.spawn("api", mm), _PAGES * P
        return self.process

    def file(self, shmem: bool = False, cached: range = range(0), written: int = 0, writable: bool = True) -> MappedFile:
        """A file of 16 pages, some of them in the page cache; ``written`` is what somebody wrote to these."""
        file, user = MappedFile("f", 16, shmem=shmem, writable=writable), self.table.user
        for index in cached:
            pfn = user.add_to_page_cache(file, index, self.process.mm)
            if written and pfn is not None:
                user.contents.write(pfn << PAGE_SHIFT, bytes([written]))
                user.set_page_dirty(pfn)
        return file

    def _mapping(self, file: MappedFile | None, flags: int, prot: int = RW, read: bool = False, write: int = 0) -> int:
        p = self.process.mmap(0, self.length, prot, flags, file)
        for page in range(_PAGES):
            if read:
                self.process.read(p + page * P)
            elif write:
                self.process.write(p + page * P, bytes([write]))
        return p

    def _pages(self, then: Callable[[int], object] = lambda p: None, touched: bool = True) -> int:
        """Nine pages, of which the program writes eight, with nothing around them."""
        p = self.process.mmap(0, 12 * P, RW, _ANON) + P
        self.process.munmap(p + 9 * P, 2 * P)
        self.process.munmap(p - P, P)
        for page in range(_PAGES if touched else 0):
            self.process.write(p + page * P, b"\1")
        then(p)
        return p

    def _vdso(self) -> int:
        p, mm = 0x7FFF_F7FC_1000, self.process.mm
        self.length = P
        mm.link(Vma(p, p + P, VM_READ | VM_EXEC | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_DONTEXPAND, p >> PAGE_SHIFT, special="[vdso]"))
        mm.vm_stat_account(VM_READ | VM_EXEC, 1)
        return p

    def kind(self, name: str) -> int | None:
        """Make a kind of memory; its address, None for one that is unknown."""
        process, pages = self.process, self._pages
        kinds: dict[str, Callable[[], int]] = {
            "anon": pages, "anon_untouched": lambda: pages(touched=False), "anon_shared_fork": lambda: pages(lambda _: process.fork()),
            "shmem": lambda: self._mapping(self.file(True), MAP_SHARED, write=1),
            "shmem_private": lambda: self._mapping(self.file(True, range(8), 2), MAP_PRIVATE, read=True),
            "file_private": lambda: self._mapping(self.file(), MAP_PRIVATE, read=True),
            "file_private_cow": lambda: self._mapping(self.file(), MAP_PRIVATE, write=9),
            "file_shared": lambda: self._mapping(self.file(), MAP_SHARED, write=9),
            "file_shared_ro": lambda: self._mapping(self.file(False, range(8), 9, False), MAP_SHARED, PROT_READ, read=True),
            "mlocked": lambda: pages(lambda p: process.mlock(p, 8 * P)),
            "stack_grow": lambda: self._mapping(None, _ANON | MAP_GROWSDOWN, write=1),
            "unmapped": lambda: pages(lambda p: process.munmap(p, 9 * P)),
            "hole_middle": lambda: pages(lambda p: process.munmap(p + 3 * P, P)),
            "hole_start": lambda: pages(lambda p: process.munmap(p, 2 * P)),
            "hole_end": lambda: pages(lambda p: process.munmap(p + 6 * P, 3 * P)),
            "ksm": lambda: pages(lambda p: (process.write(p, b"\x33"), process.madvise(p, 8 * P, MADV_MERGEABLE))),
            "prot_none": lambda: pages(lambda p: process.mprotect(p, 8 * P, PROT_NONE)), "vdso": self._vdso,
            "unaligned": lambda: pages() + 1, "len0": pages, "len1": pages, "len_wrap": pages, "len_round0": pages,
            "file dropped, own": lambda: self._mapping(self.file(), MAP_SHARED, PROT_READ),
            "file page 3 read (FADV_RANDOM)": lambda: self._mapping(self.file(cached=range(3, 4)), MAP_SHARED, PROT_READ)}
        if name in ("anon pages 2 written 4 read", "vec NULL?", "vec=NULL"):
            p = self._mapping(None, _ANON)
            process.write(p + 2 * P, b"\1")
            process.read(p + 4 * P)
        elif name in kinds:
            p = kinds[name]()
        else:
            return None
        self.length = {"len0": 0, "len1": 1, "len_wrap": U64_MAX + 1 - p, "len_round0": U64_MAX}.get(name, self.length)
        return p
