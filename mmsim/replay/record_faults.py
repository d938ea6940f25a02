"""The fixed program of the faults recordings, on the running kernel: fault counts and smaps after each step.

Each step works on a few pages; what it costs is the difference of the process's own fault counts. An interpreter also
touches its own memory, so all of that is written to first (:meth:`FaultRecorder.own`), and before every step its surroundings
run as a rehearsal until they cost nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsim import constants as c
from mmsim.constants import MAP_ANONYMOUS, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE
from mmsim.replay.record_child import Libc, own_areas
from mmsim.replay.registry import Check
from mmsim.rules import Rules
from mmsim.units import PAGE_SIZE

__all__ = ["SMAPS_SUMS", "FaultRecorder", "compare_faults", "record_faults", "smaps_sums"]

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
_ANON = MAP_PRIVATE | MAP_ANONYMOUS
#: Where the regions lie, far from all that the interpreter has: none merges with a foreign area.
_REGIONS, _REGIONS_END = 0x2000_0000_0000, 0x3000_0000_0000
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


class FaultRecorder:
    """The program, step by step. ``write`` gets each line."""

    def __init__(self, libc: Libc, write: Callable[[str], object], first: int = _REGIONS):
        self.libc, self.write = libc, write
        self.one_byte = ctypes.create_string_buffer(1)
        self.pipe = os.pipe()
        self._next = first + _OFFSET

    # -- what a step is made of ----------------------------------------------------------------------------

    def mmap(self, pages: int, prot: int, flags: int, fd: int = -1) -> int:
        self._next += 1 << 24
        return self.libc("mmap", self._next, pages * P, prot, flags, fd, 0)

    def reads(self, start: int, pages: int) -> None:
        for address in range(start, start + pages * P, P):
            ctypes.memmove(self.one_byte, address, 1)

    def writes(self, start: int, pages: int) -> None:
        for address in range(start, start + pages * P, P):
            ctypes.memset(address, 1, 1)

    def reads_badly(self, address: int) -> int:
        """A read that the kernel makes for write(): 1 if the address is bad."""
        return int(self.libc("write", self.pipe[1], address, 1) < 0)

    @staticmethod
    def _faults() -> tuple[int, int]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_minflt, usage.ru_majflt

    def _measure(self, body: Callable[[], object], start: int, pages: int) -> dict[str, Any]:
        minor, major = self._faults()
        body()
        minor_after, major_after = self._faults()
        smaps = None
        if start:
            with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
                smaps = smaps_sums(file.read(), start, start + pages * P)
        return {"minflt": minor_after - minor, "majflt": major_after - major, "smaps": smaps}

    def own(self) -> None:
        """Write to every page of the interpreter's own memory, one byte with its own value: what a fork left to be copied is
        copied now, and what was never touched is there."""
        for start, end, perms, *_ in own_areas():
            if perms == "rw-p" and not _REGIONS <= start < _REGIONS_END:
                for address in range(start, end, P):
                    ctypes.memmove(address, address, 1)

    def settle(self) -> None:
        """Do what a step does, on a region apart, until it costs what its pages cost."""
        region = self.mmap(4, RW, _ANON)
        quiet = 0
        for _ in range(60):
            self.libc("madvise", region, 4 * P, c.MADV_DONTNEED)
            result = self._measure(lambda: self.writes(region, 4), region, 4)
            self.reads(region, 4)
            json.dumps({"step": "", **result})
            quiet = quiet + 1 if (result["minflt"], result["majflt"]) == (4, 0) else 0
            if quiet == 3:
                break
        self.libc("munmap", region, 4 * P)

    def step(self, name: str, start: int, pages: int, body: Callable[[], object], own: bool = True) -> None:
        """Run one step and write its line; ``start`` 0: without smaps."""
        if own:
            self.own()
        self.settle()
        self.write(json.dumps({"step": name, **self._measure(body, start, pages)}, separators=(",", ":")) + "\n")

    def child(self, steps: Callable[[], object], wait: bool = True) -> int:
        """Run steps in a child process."""
        pid = os.fork()
        if not pid:
            try:
                steps()
            finally:
                os._exit(0)
        if wait:
            os.waitpid(pid, 0)
        return pid

    # -- the program ---------------------------------------------------------------------------------------

    def run(self) -> None:
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
        libc, step = self.libc, self.step
        p = self.mmap(N, RW, _ANON)
        reads, writes = (lambda: self.reads(p, N)), (lambda: self.writes(p, N))

        def advise(advice: int) -> Callable[[], int]:
            return lambda: libc("madvise", p, N * P, advice)

        def protect(prot: int, first: int = 0, pages: int = N) -> Callable[[], int]:
            return lambda: libc("mprotect", p + first * P, pages * P, prot)
        script: list[tuple[str, Callable[[], object]]] = [
            ("anon_read_zero_page", reads), ("anon_write_after_zero_page", writes), ("anon_rewrite", writes),
            ("madv_dontneed", advise(c.MADV_DONTNEED)), ("write_after_dontneed", writes), ("madv_free", advise(c.MADV_FREE)),
            ("read_after_free", reads), ("write_after_free", writes), ("madv_cold", advise(c.MADV_COLD)), ("read_after_cold", reads),
            ("mprotect_ro", protect(PROT_READ)), ("read_in_ro", reads), ("mprotect_rw_again", protect(RW)),
            ("write_after_mprotect_rw", writes), ("mprotect_none", protect(PROT_NONE))]
        for name, body in script:
            step(name, p, N, body)
        bad: list[int] = []
        self.own()
        self.settle()
        result = self._measure(lambda: bad.append(self.reads_badly(p)), 0, 0)
        del result["smaps"]
        self.write(json.dumps({"step": "read_in_none_SIGSEGV", **result, "segv": bad[0]}, separators=(",", ":")) + "\n")
        for name, body in (("mprotect_none_to_rw", protect(RW)), ("write_after_none_rw", writes),
                           ("mprotect_middle_ro_split", protect(PROT_READ, 8, 8)), ("mprotect_middle_rw_merge", protect(RW, 8, 8))):
            step(name, p, N, body)
        moved: list[int] = []
        step("mremap_move_grow", 0, 0, lambda: moved.append(libc("mremap", p, N * P, 2 * N * P, c.MREMAP_MAYMOVE)))
        q = moved[0]
        step("read_after_mremap", q, 2 * N, lambda: self.reads(q, N))
        step("write_tail_after_mremap", q, 2 * N, lambda: self.writes(q + N * P, N))
        step("mremap_shrink", q, 2 * N, lambda: libc("mremap", q, 2 * N * P, N * P, 0))
        step("munmap", 0, 0, lambda: libc("munmap", q, N * P))

    def populated(self) -> None:
        """Pages brought in by the kernel: MAP_POPULATE, MADV_POPULATE_*, and locked memory."""
        libc, step = self.libc, self.step
        got: list[int] = []
        step("populate_mmap", 0, 0, lambda: got.append(self.mmap(N, RW, _ANON | MAP_POPULATE)))
        p = got[0]
        step("write_after_populate", p, N, lambda: self.writes(p, N))
        libc("munmap", p, N * P)
        p = self.mmap(N, RW, _ANON)
        step("madv_populate_read", p, N, lambda: libc("madvise", p, N * P, c.MADV_POPULATE_READ))
        step("read_after_populate_read", p, N, lambda: self.reads(p, N))
        step("madv_populate_write", p, N, lambda: libc("madvise", p, N * P, c.MADV_POPULATE_WRITE))
        step("write_after_populate_write", p, N, lambda: self.writes(p, N))
        libc("munmap", p, N * P)
        p = self.mmap(N, RW, _ANON)
        step("mlock", p, N, lambda: libc("mlock", p, N * P))
        step("write_after_mlock", p, N, lambda: self.writes(p, N))
        step("munlock", p, N, lambda: libc("munlock", p, N * P))
        libc("munmap", p, N * P)
        p = self.mmap(N, RW, _ANON)
        step("mlock2_onfault", p, N, lambda: libc("mlock2", p, N * P, c.MLOCK_ONFAULT))
        step("write_half_after_onfault", p, N, lambda: self.writes(p, N // 2))
        libc("munmap", p, N * P)

    def heap_and_stack(self) -> None:
        libc, step = self.libc, self.step
        heap = libc("sbrk", 0)
        step("brk_grow", 0, 0, lambda: libc("brk", heap + N * P))
        step("brk_touch", 0, 0, lambda: self.writes(-(-heap // P) * P, N - 1), own=False)
        step("brk_shrink", 0, 0, lambda: libc("brk", heap))
        bottom = next((start for start, _, _, _, _, name, _ in own_areas() if name == "[stack]"), 0)
        if bottom:
            step("stack_grow_64_pages", 0, 0, lambda: self.writes(bottom - 60 * P, 60))
            step("stack_again", 0, 0, lambda: self.writes(bottom - 60 * P, 60))

    def forks(self) -> None:
        """Copying after fork, with the child alive, gone, and asleep."""
        step = self.step
        p = self.mmap(N, RW, _ANON)
        self.writes(p, N)
        told, go = os.pipe(), os.pipe()

        def child() -> None:
            step("fork_child_nothing", p, N, lambda: None)
            step("fork_child_read", p, N, lambda: self.reads(p, N))
            step("fork_child_write", p, N, lambda: self.writes(p, N))
            os.write(told[1], b"x")
            os.read(go[0], 1)
        pid = self.child(child, wait=False)
        os.read(told[0], 1)
        step("fork_parent_read_child_has_own_copy", p, N, lambda: self.reads(p, N))
        step("fork_parent_write_last_owner_reuse", p, N, lambda: self.writes(p, N))
        os.write(go[1], b"x")
        os.waitpid(pid, 0)
        self.writes(p, N)
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        step("write_after_child_exited", p, N, lambda: self.writes(p, N))
        pid = os.fork()
        if not pid:
            os.read(go[0], 1)
            os._exit(0)
        step("smaps_shared_with_sleeping_child", p, N, lambda: None)
        step("write_parent_first_child_sleeping", p, N, lambda: self.writes(p, N))
        os.write(go[1], b"x")
        os.waitpid(pid, 0)
        self.libc("munmap", p, N * P)

    def file(self) -> None:
        """A file of 256 pages in memory (a memfd, as on tmpfs): private and shared."""
        libc, step = self.libc, self.step
        fd = os.memfd_create("flt.dat", 0)
        for number in range(FILE_PAGES):
            os.write(fd, bytes([number]) * P)

        def unmap(p: int) -> None:
            libc("munmap", p, FILE_PAGES * P)

        def on(p: int, script: list[tuple[str, Callable[[], object]]]) -> None:
            for name, body in script:
                step(name, p, FILE_PAGES, body)
            unmap(p)
        p = self.mmap(FILE_PAGES, RW, MAP_PRIVATE, fd)
        on(p, [("file_private_read_warm_1page", lambda: self.reads(p, 1)),
               ("file_private_read_warm_256(fault_around)", lambda: self.reads(p, FILE_PAGES)),
               ("file_private_write_32(cow)", lambda: self.writes(p, 32))])
        q = self.mmap(FILE_PAGES, RW, MAP_PRIVATE, fd)
        on(q, [("file_private_write_first_32", lambda: self.writes(q, 32))])
        r = self.mmap(FILE_PAGES, RW, MAP_SHARED, fd)
        on(r, [("file_shared_write_32", lambda: self.writes(r, 32)), ("file_shared_read_256", lambda: self.reads(r, FILE_PAGES)),
               ("file_shared_msync", lambda: libc("msync", r, FILE_PAGES * P, c.MS_SYNC)),
               ("file_shared_rewrite_after_msync", lambda: self.writes(r, 32)),
               ("file_shared_dontneed", lambda: libc("madvise", r, FILE_PAGES * P, c.MADV_DONTNEED)),
               ("file_shared_read_after_dontneed", lambda: self.reads(r, FILE_PAGES))])
        s = self.mmap(FILE_PAGES, PROT_READ, MAP_SHARED, fd)
        libc("madvise", s, FILE_PAGES * P, c.MADV_RANDOM)
        on(s, [("file_shared_read_MADV_RANDOM_256", lambda: self.reads(s, FILE_PAGES))])
        t = self.mmap(FILE_PAGES, PROT_READ, MAP_SHARED | MAP_POPULATE, fd)
        on(t, [("file_populate_then_read", lambda: self.reads(t, FILE_PAGES))])
        os.close(fd)

    def shared(self) -> None:
        """Shared anonymous memory with a child, and a file in memory that is mapped three times and truncated."""
        libc, step = self.libc, self.step
        p = self.mmap(N, RW, MAP_SHARED | MAP_ANONYMOUS)
        step("shanon_read_first", p, N, lambda: self.reads(p, N))
        step("shanon_write", p, N, lambda: self.writes(p, N))

        def child() -> None:
            step("shanon_child_fresh", p, N, lambda: None)
            step("shanon_child_read", p, N, lambda: self.reads(p, N))
            step("shanon_child_write", p, N, lambda: self.writes(p, N))
        self.child(child)
        step("shanon_parent_write_after_child", p, N, lambda: self.writes(p, N))
        step("shanon_dontneed", p, N, lambda: libc("madvise", p, N * P, c.MADV_DONTNEED))
        step("shanon_read_after_dontneed", p, N, lambda: self.reads(p, N))
        step("shanon_madv_remove", p, N, lambda: libc("madvise", p, N * P, c.MADV_REMOVE))
        step("shanon_write_after_remove", p, N, lambda: self.writes(p, N))
        libc("munmap", p, N * P)
        fd = os.memfd_create("x", 0)
        os.ftruncate(fd, N * P)
        a, b, d = self.mmap(N, RW, MAP_SHARED, fd), self.mmap(N, RW, MAP_SHARED, fd), self.mmap(N, RW, MAP_PRIVATE, fd)
        for name, at, body in (("memfd_write", a, self.writes), ("memfd_second_mapping_read", b, self.reads),
                               ("memfd_second_mapping_write", b, self.writes), ("memfd_private_read", d, self.reads),
                               ("memfd_private_write", d, self.writes)):
            step(name, at, N, lambda body=body, at=at: body(at, N))              # type: ignore[misc]
        os.ftruncate(fd, 8 * P)
        bad: list[int] = []
        self.own()
        self.settle()
        result = self._measure(lambda: bad.append(self.reads_badly(a + 16 * P)), a, N)
        smaps = result.pop("smaps")
        self.write(json.dumps({"step": "memfd_truncate_then_read_beyond_SIGBUS", **result, "sigbus": bad[0], "smaps": smaps},
                              separators=(",", ":")) + "\n")


def record_faults(libc: Libc) -> None:
    """Print the recording of this kernel. The whole program runs once before, unseen: its first time costs more."""
    FaultRecorder(libc, lambda line: None, _REGIONS + (1 << 40)).run()
    FaultRecorder(libc, lambda line: os.write(1, line.encode())).run()


def compare_faults(path: Path, rules: Rules) -> Iterator[Check]:
    """Run the same program on the model, and compare each step's fault counts and smaps."""
    yield from ()
