"""recordings/linux-5.17-pressure/api/madvise/mincore: what mincore() says about every kind of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

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
    VM_READ,
)
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile, Vma
from mmsim.reference import ref256
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX

__all__ = ["mincore_answers"]

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
_ANON = MAP_PRIVATE | MAP_ANONYMOUS
_PAGES = 8
_UNTOUCHED = 0xEE                   # what the program fills its vector with
_NOT_COVERED = {"hugetlb": "huge pages", "thp": "huge pages", "pfnmap_devmem": "/dev/mem", "swapped": "swap",
                "same mapping as uid 1000 (cannot write the file)": "files of another user"}


class _Memory:
    """The program's kinds of memory, each in a process of its own."""

    def __init__(self) -> None:
        self.machine = ref256()
        self.process: Process = self.machine.spawn("api")
        self.length = _PAGES * P

    def file(self, shmem: bool = False, cached: range = range(0)) -> MappedFile:
        """A file of 16 pages, some of them in the page cache."""
        file = MappedFile("f", 16, shmem=shmem)
        for index in cached:
            self.machine.process_table.user.add_to_page_cache(file, index, self.process.mm)
        return file

    def _mapping(self, file: MappedFile | None, flags: int, prot: int = RW, touch: str = "") -> int:
        p = self.process.mmap(0, self.length, prot, flags, file)
        for page in range(_PAGES if touch else 0):
            if touch == "r":
                self.process.read(p + page * P)
            else:
                self.process.write(p + page * P, b"\1")
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
        mm.link(Vma(p, p + P, VM_READ | VM_EXEC | VM_MAYREAD | VM_MAYEXEC | VM_DONTEXPAND, p >> PAGE_SHIFT, special="[vdso]"))
        mm.vm_stat_account(VM_READ | VM_EXEC, 1)
        return p

    def kind(self, name: str) -> int | None:
        """Make a kind of memory; its address, None for one that is unknown."""
        process, pages = self.process, self._pages
        kinds: dict[str, Callable[[], int]] = {
            "anon": pages, "anon_untouched": lambda: pages(touched=False), "anon_shared_fork": lambda: pages(lambda _: process.fork()),
            "shmem": lambda: self._mapping(self.file(True), MAP_SHARED, touch="w"),
            "shmem_private": lambda: self._mapping(self.file(True, range(8)), MAP_PRIVATE, touch="r"),
            "file_private": lambda: self._mapping(self.file(), MAP_PRIVATE, touch="r"),
            "file_private_cow": lambda: self._mapping(self.file(), MAP_PRIVATE, touch="w"),
            "file_shared": lambda: self._mapping(self.file(), MAP_SHARED, touch="w"),
            "file_shared_ro": lambda: self._mapping(self.file(), MAP_SHARED, PROT_READ, "r"),
            "mlocked": lambda: pages(lambda p: process.mlock(p, 8 * P)),
            "stack_grow": lambda: self._mapping(None, _ANON | MAP_GROWSDOWN, touch="w"),
            "unmapped": lambda: pages(lambda p: process.munmap(p, 9 * P)),
            "hole_middle": lambda: pages(lambda p: process.munmap(p + 3 * P, P)),
            "hole_start": lambda: pages(lambda p: process.munmap(p, 2 * P)),
            "hole_end": lambda: pages(lambda p: process.munmap(p + 6 * P, 3 * P)),
            "ksm": lambda: pages(lambda p: process.madvise(p, 8 * P, MADV_MERGEABLE)),
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


@replays("linux-5.17-pressure/api/madvise/mincore*.jsonl*")
def mincore_answers(path: Path) -> Iterator[Check]:
    """What mincore() answers for each kind of memory: result, errno, and the first eight bytes of its vector."""
    for record in read_jsonl(path):
        name = record["mincore"]
        if name in _NOT_COVERED:
            yield Check(name, False, known=f"not yet covered: {_NOT_COVERED[name]}")
            continue
        memory = _Memory()
        start = memory.kind(name)
        if start is None:
            yield Check(f"line {record.line}: {name}", False, "a kind of memory", "unknown")
            continue
        vector = bytearray()
        if name == "vec=NULL":
            result = memory.process.mincore(start, memory.length, 0)
        else:
            result = memory.process.mincore(start, memory.length, vector)
        shown = (bytes(vector) + bytes([_UNTOUCHED] * _PAGES))[:_PAGES]
        memory.machine.process_table.check()
        yield same(f"line {record.line}: mincore of {name}: result, errno, vector",
                   (record["ret"], record["errno"], record.get("vec", "").strip()),
                   (-1 if result < 0 else result, max(-result, 0), shown.hex(" ") if "vec" in record else ""))
