"""The fixed program of the faults recordings: what it does to its memory, step by step, wherever it runs.

It runs on a :class:`Host`: the kernel of this machine (:mod:`mmsim.replay.record_faults`) or a simulated process
(:mod:`mmsim.replay.faults_model`). Each step shows its fault counts and the sums of smaps over a region.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from mmsim import constants as c
from mmsim.constants import MAP_ANONYMOUS, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE
from mmsim.units import PAGE_SIZE

__all__ = ["FILE_PAGES", "REGIONS", "REGIONS_END", "SMAPS_SUMS", "FaultProgram", "Host", "smaps_sums"]

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
_ANON = MAP_PRIVATE | MAP_ANONYMOUS
#: Where the regions lie, far from all that an interpreter has: none merges with a foreign area.
REGIONS, REGIONS_END = 0x2000_0000_0000, 0x3000_0000_0000
#: Regions don't begin at a multiple of 16 pages, so that the windows of fault-around (64 KiB) cut them as they do by chance.
_OFFSET = 9 * P
#: Pages of the regions: of the program's own, and of its file.
N, FILE_PAGES = 32, 256
#: The lines of smaps that a step shows, where they are not 0.
SMAPS_SUMS = ("Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "LazyFree",
              "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked")


def smaps_sums(text: str, start: int, end: int) -> dict[str, Any]:
    """What a step shows of a text of smaps: the sums over the areas that overlap [start, end), as far as they are not 0, how
    many there are, and the flags of each."""
    sums = dict.fromkeys(SMAPS_SUMS, 0)
    flags: list[str] = []
    inside, areas = False, 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in sums:
            sums[name] += int(value.split()[0]) * inside
        elif name == "VmFlags":
            flags += [value.removeprefix(" ")] * inside
        elif "-" in name.split(" ")[0]:
            low, high = (int(number, 16) for number in name.split(" ")[0].split("-"))
            inside = low < end and high > start
            areas += inside
    return {"vmas": areas} | {name: value for name, value in sums.items() if value} | {"VmFlags": "; ".join(flags)}


class Host(Protocol):
    """Where the program runs. Addresses and pages are the program's; results are the kernel's."""

    def call(self, name: str, *arguments: int) -> int:
        """Make a system call (mmap without its file's number is -1)."""

    def reads(self, start: int, pages: int) -> None:
        """Read one byte of each page."""

    def writes(self, start: int, pages: int) -> None:
        """Write one byte of each page."""

    def reads_badly(self, address: int) -> bool:
        """Whether a read fails."""

    def faults(self) -> tuple[int, int]:
        """Minor and major faults so far."""

    def smaps(self) -> str:
        """The text of smaps."""

    def stack_bottom(self) -> int:
        """Where the stack's area begins; 0 if there is none."""

    def memfd(self, name: str, pages: int, written: bool) -> int:
        """A file in memory, all of it written to or never; its number."""

    def truncate(self, fd: int, pages: int) -> None:
        """Cut a file."""

    def fork(self, child: Callable[[], None], parent: Callable[[], None]) -> None:
        """Run ``child`` in a new process to its end; then ``parent`` here, while the child waits; then the child ends."""

    def prepare(self, own: bool) -> None:
        """Called before each step, so that nothing but its pages costs faults. ``own``: the host may touch all its memory."""


class FaultProgram:
    """The program. ``write`` gets each line, a JSON object."""

    def __init__(self, host: Host, write: Callable[[str], object], first: int = REGIONS):
        self.host, self.write = host, write
        self._next = first + _OFFSET

    def mmap(self, pages: int, prot: int, flags: int, fd: int = -1) -> int:
        self._next += 1 << 24
        return self.host.call("mmap", self._next, pages * P, prot, flags, fd, 0)

    def measure(self, body: Callable[[], object], start: int, pages: int) -> dict[str, Any]:
        """What the body costs, and what is in the region afterwards; ``start`` 0: nothing is looked at."""
        minor, major = self.host.faults()
        body()
        minor_after, major_after = self.host.faults()
        smaps = smaps_sums(self.host.smaps(), start, start + pages * P) if start else None
        return {"minflt": minor_after - minor, "majflt": major_after - major, "smaps": smaps}

    def line(self, **values: object) -> None:
        self.write(json.dumps(values, separators=(",", ":")) + "\n")

    def step(self, name: str, start: int, pages: int, body: Callable[[], object], own: bool = True) -> None:
        """Run one step and write its line."""
        self.host.prepare(own)
        self.line(step=name, **self.measure(body, start, pages))

    def bad_read(self, name: str, signal: str, address: int, pages: int, start: int = 0) -> None:
        """A step that ends in a signal."""
        bad: list[bool] = []
        self.host.prepare(True)
        result = self.measure(lambda: bad.append(self.host.reads_badly(address)), start, pages)
        smaps = {"smaps": result.pop("smaps")} if start else {}
        result.pop("smaps", None)
        self.line(step=name, **result, **{signal: int(bad[0])}, **smaps)

    def run(self) -> None:
        """Run it all."""
        for _ in range(2):
            self.step("noop", 0, 0, lambda: None)
        self.anonymous()
        self.populated()
        self.heap_and_stack()
        self.forks()
        self.file()
        self.shared()

    def anonymous(self) -> None:
        """Reads and writes of private memory, advice, protection, and moves."""
        call, step = self.host.call, self.step
        p = self.mmap(N, RW, _ANON)
        reads, writes = (lambda: self.host.reads(p, N)), (lambda: self.host.writes(p, N))

        def advise(advice: int) -> Callable[[], int]:
            return lambda: call("madvise", p, N * P, advice)

        def protect(prot: int, first: int = 0, pages: int = N) -> Callable[[], int]:
            return lambda: call("mprotect", p + first * P, pages * P, prot)
        script: list[tuple[str, Callable[[], object]]] = [
            ("anon_read_zero_page", reads), ("anon_write_after_zero_page", writes), ("anon_rewrite", writes),
            ("madv_dontneed", advise(c.MADV_DONTNEED)), ("write_after_dontneed", writes), ("madv_free", advise(c.MADV_FREE)),
            ("read_after_free", reads), ("write_after_free", writes), ("madv_cold", advise(c.MADV_COLD)), ("read_after_cold", reads),
            ("mprotect_ro", protect(PROT_READ)), ("read_in_ro", reads), ("mprotect_rw_again", protect(RW)),
            ("write_after_mprotect_rw", writes), ("mprotect_none", protect(PROT_NONE))]
        for name, body in script:
            step(name, p, N, body)
        self.bad_read("read_in_none_SIGSEGV", "segv", p, 0)
        for name, body in (("mprotect_none_to_rw", protect(RW)), ("write_after_none_rw", writes),
                           ("mprotect_middle_ro_split", protect(PROT_READ, 8, 8)), ("mprotect_middle_rw_merge", protect(RW, 8, 8))):
            step(name, p, N, body)
        moved: list[int] = []
        step("mremap_move_grow", 0, 0, lambda: moved.append(call("mremap", p, N * P, 2 * N * P, c.MREMAP_MAYMOVE)))
        q = moved[0]
        step("read_after_mremap", q, 2 * N, lambda: self.host.reads(q, N))
        step("write_tail_after_mremap", q, 2 * N, lambda: self.host.writes(q + N * P, N))
        step("mremap_shrink", q, 2 * N, lambda: call("mremap", q, 2 * N * P, N * P, 0))
        step("munmap", 0, 0, lambda: call("munmap", q, N * P))

    def populated(self) -> None:
        """Pages brought in by the kernel: MAP_POPULATE, MADV_POPULATE_*, and locked memory."""
        call, step = self.host.call, self.step
        got: list[int] = []
        step("populate_mmap", 0, 0, lambda: got.append(self.mmap(N, RW, _ANON | MAP_POPULATE)))
        p = got[0]
        step("write_after_populate", p, N, lambda: self.host.writes(p, N))
        call("munmap", p, N * P)
        p = self.mmap(N, RW, _ANON)
        step("madv_populate_read", p, N, lambda: call("madvise", p, N * P, c.MADV_POPULATE_READ))
        step("read_after_populate_read", p, N, lambda: self.host.reads(p, N))
        step("madv_populate_write", p, N, lambda: call("madvise", p, N * P, c.MADV_POPULATE_WRITE))
        step("write_after_populate_write", p, N, lambda: self.host.writes(p, N))
        call("munmap", p, N * P)
        p = self.mmap(N, RW, _ANON)
        step("mlock", p, N, lambda: call("mlock", p, N * P))
        step("write_after_mlock", p, N, lambda: self.host.writes(p, N))
        step("munlock", p, N, lambda: call("munlock", p, N * P))
        call("munmap", p, N * P)
        p = self.mmap(N, RW, _ANON)
        step("mlock2_onfault", p, N, lambda: call("mlock2", p, N * P, c.MLOCK_ONFAULT))
        step("write_half_after_onfault", p, N, lambda: self.host.writes(p, N // 2))
        call("munmap", p, N * P)

    def heap_and_stack(self) -> None:
        call, step = self.host.call, self.step
        heap = call("sbrk", 0)
        step("brk_grow", 0, 0, lambda: call("brk", heap + N * P))
        step("brk_touch", 0, 0, lambda: self.host.writes(-(-heap // P) * P, N - 1), own=False)
        step("brk_shrink", 0, 0, lambda: call("brk", heap))
        bottom = self.host.stack_bottom()
        if bottom:
            step("stack_grow_64_pages", 0, 0, lambda: self.host.writes(bottom - 60 * P, 60))
            step("stack_again", 0, 0, lambda: self.host.writes(bottom - 60 * P, 60))

    def forks(self) -> None:
        """Copying after fork, with the child alive, gone, and asleep."""
        step = self.step
        p = self.mmap(N, RW, _ANON)
        self.host.writes(p, N)

        def child() -> None:
            step("fork_child_nothing", p, N, lambda: None)
            step("fork_child_read", p, N, lambda: self.host.reads(p, N))
            step("fork_child_write", p, N, lambda: self.host.writes(p, N))

        def beside_child() -> None:
            step("fork_parent_read_child_has_own_copy", p, N, lambda: self.host.reads(p, N))
            step("fork_parent_write_last_owner_reuse", p, N, lambda: self.host.writes(p, N))

        def beside_sleeping_child() -> None:
            step("smaps_shared_with_sleeping_child", p, N, lambda: None)
            step("write_parent_first_child_sleeping", p, N, lambda: self.host.writes(p, N))
        self.host.fork(child, beside_child)
        self.host.writes(p, N)
        self.host.fork(lambda: None, lambda: None)
        step("write_after_child_exited", p, N, lambda: self.host.writes(p, N))
        self.host.fork(lambda: None, beside_sleeping_child)
        self.host.call("munmap", p, N * P)

    def file(self) -> None:
        """A file of 256 pages in memory (a memfd, as on tmpfs): private and shared."""
        call, step = self.host.call, self.step
        fd = self.host.memfd("flt.dat", FILE_PAGES, written=True)

        def unmap(p: int) -> None:
            call("munmap", p, FILE_PAGES * P)

        def on(p: int, script: list[tuple[str, Callable[[], object]]]) -> None:
            for name, body in script:
                step(name, p, FILE_PAGES, body)
            unmap(p)
        p = self.mmap(FILE_PAGES, RW, MAP_PRIVATE, fd)
        on(p, [("file_private_read_warm_1page", lambda: self.host.reads(p, 1)),
               ("file_private_read_warm_256(fault_around)", lambda: self.host.reads(p, FILE_PAGES)),
               ("file_private_write_32(cow)", lambda: self.host.writes(p, 32))])
        q = self.mmap(FILE_PAGES, RW, MAP_PRIVATE, fd)
        on(q, [("file_private_write_first_32", lambda: self.host.writes(q, 32))])
        r = self.mmap(FILE_PAGES, RW, MAP_SHARED, fd)
        on(r, [("file_shared_write_32", lambda: self.host.writes(r, 32)), ("file_shared_read_256", lambda: self.host.reads(r, FILE_PAGES)),
               ("file_shared_msync", lambda: call("msync", r, FILE_PAGES * P, c.MS_SYNC)),
               ("file_shared_rewrite_after_msync", lambda: self.host.writes(r, 32)),
               ("file_shared_dontneed", lambda: call("madvise", r, FILE_PAGES * P, c.MADV_DONTNEED)),
               ("file_shared_read_after_dontneed", lambda: self.host.reads(r, FILE_PAGES))])
        s = self.mmap(FILE_PAGES, PROT_READ, MAP_SHARED, fd)
        call("madvise", s, FILE_PAGES * P, c.MADV_RANDOM)
        on(s, [("file_shared_read_MADV_RANDOM_256", lambda: self.host.reads(s, FILE_PAGES))])
        t = self.mmap(FILE_PAGES, PROT_READ, MAP_SHARED | MAP_POPULATE, fd)
        on(t, [("file_populate_then_read", lambda: self.host.reads(t, FILE_PAGES))])

    def shared(self) -> None:
        """Shared anonymous memory with a child, and a file in memory that is mapped three times and truncated."""
        call, step = self.host.call, self.step
        p = self.mmap(N, RW, MAP_SHARED | MAP_ANONYMOUS)
        step("shanon_read_first", p, N, lambda: self.host.reads(p, N))
        step("shanon_write", p, N, lambda: self.host.writes(p, N))

        def child() -> None:
            step("shanon_child_fresh", p, N, lambda: None)
            step("shanon_child_read", p, N, lambda: self.host.reads(p, N))
            step("shanon_child_write", p, N, lambda: self.host.writes(p, N))
        self.host.fork(child, lambda: None)
        step("shanon_parent_write_after_child", p, N, lambda: self.host.writes(p, N))
        step("shanon_dontneed", p, N, lambda: call("madvise", p, N * P, c.MADV_DONTNEED))
        step("shanon_read_after_dontneed", p, N, lambda: self.host.reads(p, N))
        step("shanon_madv_remove", p, N, lambda: call("madvise", p, N * P, c.MADV_REMOVE))
        step("shanon_write_after_remove", p, N, lambda: self.host.writes(p, N))
        call("munmap", p, N * P)
        fd = self.host.memfd("x", N, written=False)
        a, b, d = self.mmap(N, RW, MAP_SHARED, fd), self.mmap(N, RW, MAP_SHARED, fd), self.mmap(N, RW, MAP_PRIVATE, fd)
        for name, at, body in (("memfd_write", a, self.host.writes), ("memfd_second_mapping_read", b, self.host.reads),
                               ("memfd_second_mapping_write", b, self.host.writes), ("memfd_private_read", d, self.host.reads),
                               ("memfd_private_write", d, self.host.writes)):
            step(name, at, N, lambda body=body, at=at: body(at, N))              # type: ignore[misc]
        self.host.truncate(fd, 8)
        self.bad_read("memfd_truncate_then_read_beyond_SIGBUS", "sigbus", a + 16 * P, N, a)
