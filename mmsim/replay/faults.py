"""recordings/*/progs*.out/faults-*, linux-6.18-live/faults-*, golden/live-5.17/faults-*: the scripted program's faults and smaps.

The program works on 32 pages of memory and on a file of 256, which lies on tmpfs (``faults-tmpfs``) or on a disk. What needs more than
faults is listed by name as not yet covered: reclaim (MADV_PAGEOUT), reading from a disk (the *cold* steps), and the program's own stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsim.constants import (
    MADV_COLD,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_MAYMOVE,
    MS_SYNC,
)
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.paging.pagemap import pagemap_entry
from mmsim.paging.pte import pte_pfn
from mmsim.physical.frames import PG
from mmsim.process.mm import Mm
from mmsim.process.msync import writeback
from mmsim.process.populate import Access
from mmsim.process.shmem import memfd_create, newseg, truncate_setsize
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile
from mmsim.reference import REF256_COMMAND_LINE, REF256_MAP
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.replay.usage import smaps_sums
from mmsim.rules import Rules, rules_for
from mmsim.units import PAGE_SIZE, align_up

__all__ = ["FaultStep", "FaultsProgram", "faults"]

P = PAGE_SIZE
RW = 3
ANON = MAP_PRIVATE | MAP_ANONYMOUS
N, FILE_PAGES = 32, 256
_OWN, _HEAP = 0x0060_0000, 0x0C00_0123
#: Pages of vvar and vdso, which lie at the top of the recorded programs' mmap area.
_SPECIAL_PAGES = {"5.17": 5, "6.1": 6, "6.12": 6, "6.18": 8}
_RECLAIM, _COLD, _STACK = "reclaim (MADV_PAGEOUT)", "reading a file from its disk", "the program's own stack"


@dataclass(slots=True)
class FaultStep:
    """One line: a step with its body and the range that it shows, or a note with its values. ``missing`` says what the model lacks
    for it; the step is carried out nevertheless, as far as that goes."""

    name: str
    process: Process
    body: Callable[[], int | None] = lambda: None
    start: Callable[[], int] = lambda: 0
    pages: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    #: The field that says that the step ended in a signal.
    signal: str = ""


class FaultsProgram:
    """The program. ``disk`` says whether its file is on a disk; then its pages are clean, and first stores are noticed."""

    def __init__(self, rules: Rules, soft_dirty: bool, disk: bool):
        self.machine = Machine.boot(REF256_MAP, REF256_COMMAND_LINE, rules=rules)
        user = self.machine.user
        user.soft_dirty = soft_dirty
        mm = Mm(rules=rules, overcommit=self.machine.overcommit, trace=self.machine.trace, privileged=True, soft_dirty=soft_dirty)
        self.p = self.machine.spawn("faults", mm)
        self.disk = disk
        special = _SPECIAL_PAGES[rules.release] * P
        self.p.mmap(mm.layout.mmap_base - special, special, 1, ANON | MAP_FIXED)
        # Where the program counts; it writes there within each step, so that a fork shows in the next one.
        self.p.mmap(_OWN, P, RW, ANON | MAP_FIXED)
        self.p.write(_OWN, b"\1")
        mm.start_brk = mm.brk = _HEAP
        self.p.brk(_HEAP + 33 * P)
        self.p.touch_range(align_up(_HEAP, P), 32)

    # -- what the lines are made of ------------------------------------------------------------------------------

    def anon(self, pages: int, flags: int = 0) -> int:
        return self.p.mmap(0, pages * P, RW, ANON | flags)

    @staticmethod
    def reads(process: Process, start: int, pages: int) -> int:
        return 0 if process.touch_range(start, pages, write=False) == pages else -1

    @staticmethod
    def writes(process: Process, start: int, pages: int) -> int:
        return 0 if process.touch_range(start, pages) == pages else -1

    def step(self, name: str, start: int | Callable[[], int], pages: int, body: Callable[[], int | None], missing: str = "") -> FaultStep:
        return FaultStep(name, self.p, body, start if callable(start) else (lambda: start), pages, missing=missing)

    def note(self, name: str, missing: str = "", **values: object) -> FaultStep:
        return FaultStep(name, self.p, values=values, missing=missing)

    def fork(self) -> Process:
        return self.machine.processes[self.p.fork()]

    def end(self, child: Process) -> None:
        child.exit()
        self.p.wait()

    def kpageflags(self, pfn: int) -> str:
        """The flags of a user page as the program names them (5.17: fs/proc/page.c, stable_page_flags())."""
        user = self.machine.user
        flags, names = user.frames.flags[pfn], []
        for name, shown in (("locked", "LOCKED"), ("error", "ERROR"), ("referenced", "REFERENCED"), ("uptodate", "UPTODATE"),
                            ("dirty", "DIRTY"), ("lru", "LRU"), ("active", "ACTIVE")):
            if flags & PG[name]:
                names.append(shown)
        if user.frames.mapcount[pfn]:
            names.append("MMAP")
        if user.page_anon(pfn):
            names.append("ANON")
        if flags & PG["swapbacked"]:
            names.append("SWAPBACKED")
        return "|".join([*names, *(["UNEVICTABLE"] if flags & PG["unevictable"] else [])])

    def _page_note(self, name: str, address: int, with_bits: bool = False) -> FaultStep:
        pfn = pte_pfn(self.p.space.pte(address))
        mapcount = self.machine.frames.mapcount[pfn]
        values: dict[str, object] = {"flags": self.kpageflags(pfn), "mapcount": mapcount}
        if with_bits:
            word = pagemap_entry(self.p.page_tables.lookup(address), address, mapcount=mapcount)
            values["pm_bits"] = f"{word >> 55:x}"
        return FaultStep(name, self.p, values=values)

    def resident(self, start: int) -> list[int]:
        """The pages of the file that mincore() says are in memory."""
        vec = bytearray()
        self.p.mincore(start, FILE_PAGES * P, vec)
        return [page for page, found in enumerate(vec) if found & 1]

    # -- the program -----------------------------------------------------------------------------------------------

    def run(self) -> Iterator[FaultStep]:
        """All lines in order."""
        self.anon(1)
        yield self.note("warm")
        for _ in range(2):
            yield self.step("noop", 0, 0, lambda: 0)
        for part in (self._anonymous, self._populated, self._heap, self._forks, self._file, self._shared, self._memfd):
            yield from part()

    def _anonymous(self) -> Iterator[FaultStep]:
        p, place = self.p, [0]

        def mapped() -> None:
            place[0] = self.anon(N)
        yield self.step("anon_mmap", 0, 0, mapped)
        a = place[0]

        def reads() -> int:
            return self.reads(p, a, N)

        def writes() -> int:
            return self.writes(p, a, N)

        def at(name: str, body: Callable[[], int | None], missing: str = "") -> FaultStep:
            return self.step(name, a, N, body, missing)

        def advise(advice: int) -> Callable[[], int]:
            return lambda: p.madvise(a, N * P, advice)

        def protect(prot: int, first: int = 0, pages: int = N) -> Callable[[], int]:
            return lambda: p.mprotect(a + first * P, pages * P, prot)
        yield at("anon_read_zero_page", reads)
        zero = {pte_pfn(p.space.pte(a + page * P)) for page in (0, 1)}
        yield self.note("zero page kpageflags", flags="ZERO_PAGE" if zero == {self.machine.user.zero_pfn} else "",
                        mapcount=self.machine.frames.mapcount[min(zero)], all_same_pfn=int(len(zero) == 1))
        yield at("anon_write_after_zero_page", writes)
        yield at("anon_rewrite", writes)
        yield self._page_note("anon page kpageflags", a, with_bits=True)
        yield at("madv_dontneed", advise(MADV_DONTNEED))
        yield at("write_after_dontneed", writes)
        yield at("madv_free", advise(MADV_FREE))
        yield at("read_after_free", reads)
        yield at("write_after_free", writes)
        yield at("madv_cold", advise(MADV_COLD))
        yield at("read_after_cold", reads)
        yield at("madv_pageout_anon", advise(MADV_PAGEOUT), _RECLAIM)
        yield at("read_after_pageout_anon", reads)
        yield at("write_after_pageout_anon", writes)
        yield at("mprotect_ro", protect(1))
        yield at("read_in_ro", reads)
        yield at("mprotect_rw_again", protect(RW))
        yield at("write_after_mprotect_rw", writes)
        yield at("mprotect_none", protect(0))
        yield FaultStep("read_in_none_SIGSEGV", p, lambda: self.reads(p, a, 1), signal="segv")
        yield at("mprotect_none_to_rw", protect(RW))
        yield at("write_after_none_rw", writes)
        yield at("mprotect_middle_ro_split", protect(1, 8, 8))
        yield at("mprotect_middle_rw_merge", protect(RW, 8, 8))
        yield from self._moved(a)

    def _moved(self, a: int) -> Iterator[FaultStep]:
        p, place = self.p, [0]

        def move() -> None:
            place[0] = p.mremap(a, N * P, 2 * N * P, MREMAP_MAYMOVE)
        yield self.step("mremap_move_grow", 0, 0, move)
        q = place[0]
        yield self.step("read_after_mremap", q, 2 * N, lambda: self.reads(p, q, N))
        yield self.step("write_tail_after_mremap", q, 2 * N, lambda: self.writes(p, q + N * P, N))
        yield self.step("mremap_shrink", q, 2 * N, lambda: p.mremap(q, 2 * N * P, N * P))
        yield self.step("munmap", 0, 0, lambda: p.munmap(q, N * P))

    def _populated(self) -> Iterator[FaultStep]:
        p, place = self.p, [0]

        def populate() -> None:
            place[0] = self.anon(N, MAP_POPULATE)
        yield self.step("populate_mmap", 0, 0, populate)
        a = place[0]
        yield self.step("write_after_populate", a, N, lambda: self.writes(p, a, N))
        p.munmap(a, N * P)
        b = self.anon(N)
        yield self.step("madv_populate_read", b, N, lambda: p.madvise(b, N * P, MADV_POPULATE_READ))
        yield self.step("read_after_populate_read", b, N, lambda: self.reads(p, b, N))
        yield self.step("madv_populate_write", b, N, lambda: p.madvise(b, N * P, MADV_POPULATE_WRITE))
        yield self.step("write_after_populate_write", b, N, lambda: self.writes(p, b, N))
        p.munmap(b, N * P)
        c = self.anon(N)
        yield self.step("mlock", c, N, lambda: p.mlock(c, N * P))
        yield self.step("write_after_mlock", c, N, lambda: self.writes(p, c, N))
        yield self.step("munlock", c, N, lambda: p.munlock(c, N * P))
        p.munmap(c, N * P)
        d = self.anon(N)
        yield self.step("mlock2_onfault", d, N, lambda: p.mlock2(d, N * P, MLOCK_ONFAULT))
        yield self.step("write_half_after_onfault", d, N, lambda: self.writes(p, d, N // 2))
        p.munmap(d, N * P)

    def _heap(self) -> Iterator[FaultStep]:
        p, end = self.p, self.p.mm.brk
        yield self.step("brk_grow", 0, 0, lambda: p.brk(end + N * P))
        yield self.step("brk_touch", 0, 0, lambda: self.writes(p, align_up(end, P), N - 1))
        yield self.step("brk_shrink", 0, 0, lambda: p.brk(end))
        yield self.step("stack_grow_64_pages", 0, 0, lambda: 0, _STACK)
        yield self.step("stack_again", 0, 0, lambda: 0)

    def _forks(self) -> Iterator[FaultStep]:
        p, a = self.p, self.anon(N)
        self.writes(p, a, N)
        child = self.fork()

        def of(process: Process, name: str, body: Callable[[], int | None]) -> FaultStep:
            return FaultStep(name, process, body, lambda: a, N)
        yield of(child, "fork_child_nothing", lambda: 0)
        yield of(child, "fork_child_read", lambda: self.reads(child, a, N))
        yield of(child, "fork_child_write", lambda: self.writes(child, a, N))
        yield of(p, "fork_parent_read_child_has_own_copy", lambda: self.reads(p, a, N))
        yield of(p, "fork_parent_write_last_owner_reuse", lambda: self.writes(p, a, N))
        self.end(child)
        self.writes(p, a, N)
        self.end(self.fork())
        yield of(p, "write_after_child_exited", lambda: self.writes(p, a, N))
        sleeping = self.fork()
        yield of(p, "smaps_shared_with_sleeping_child", lambda: 0)
        yield self._page_note("after fork kpageflags", a)
        yield of(p, "write_parent_first_child_sleeping", lambda: self.writes(p, a, N))
        self.end(sleeping)
        p.munmap(a, N * P)

    def _written_file(self) -> MappedFile:
        """A file whose pages write() has just put into the page cache; on a disk fsync() has written them."""
        user = self.machine.user
        file = MappedFile("/mnt/flt.dat", FILE_PAGES, page_mkwrite=True) if self.disk else memfd_create(self.p.mm, "flt", FILE_PAGES)
        for index in range(FILE_PAGES):
            pfn = user.add_to_page_cache(file, index, self.p.mm)
            assert pfn is not None
            user.mark_page_accessed(pfn)
            if not self.disk:
                user.set_page_dirty(pfn)
        return file

    def _file(self) -> Iterator[FaultStep]:
        p, file, size = self.p, self._written_file(), FILE_PAGES * P

        def on(a: int, name: str, body: Callable[[], int | None], missing: str = "") -> FaultStep:
            return self.step(name, a, FILE_PAGES, body, missing)
        a = p.mmap(0, size, RW, MAP_PRIVATE, file)
        yield on(a, "file_private_read_warm_1page", lambda: self.reads(p, a, 1))
        yield on(a, "file_private_read_warm_256(fault_around)", lambda: self.reads(p, a, FILE_PAGES))
        yield on(a, "file_private_write_32(cow)", lambda: self.writes(p, a, 32))
        p.munmap(a, size)
        b = p.mmap(0, size, RW, MAP_PRIVATE, file)
        yield on(b, "file_private_write_first_32", lambda: self.writes(p, b, 32))
        p.munmap(b, size)
        c = p.mmap(0, size, RW, MAP_SHARED, file)
        yield on(c, "file_shared_write_32", lambda: self.writes(p, c, 32))
        yield on(c, "file_shared_read_256", lambda: self.reads(p, c, FILE_PAGES))
        yield on(c, "file_shared_msync", lambda: p.msync(c, size, MS_SYNC))
        yield on(c, "file_shared_rewrite_after_msync", lambda: self.writes(p, c, 32))
        yield on(c, "file_shared_dontneed", lambda: p.madvise(c, size, MADV_DONTNEED))
        yield on(c, "file_shared_read_after_dontneed", lambda: self.reads(p, c, FILE_PAGES))
        p.munmap(c, size)
        d = p.mmap(0, size, 1, MAP_SHARED, file)
        p.madvise(d, size, MADV_RANDOM)
        yield on(d, "file_shared_read_MADV_RANDOM_256", lambda: self.reads(p, d, FILE_PAGES))
        p.munmap(d, size)
        e = p.mmap(0, size, 1, MAP_SHARED | MAP_POPULATE, file)
        yield on(e, "file_populate_then_read", lambda: self.reads(p, e, FILE_PAGES))
        p.munmap(e, size)
        yield from self._cold_file(file)
        truncate_setsize(self.machine.user, file, 0)

    def _cold_file(self, file: MappedFile) -> Iterator[FaultStep]:
        """After fsync() and POSIX_FADV_DONTNEED, which takes nothing from tmpfs."""
        p, user, size = self.p, self.machine.user, FILE_PAGES * P
        writeback(user, file, 0, FILE_PAGES - 1)
        if self.disk:
            user.truncate(file)
        missing = _COLD if self.disk else ""

        def first_last(a: int) -> dict[str, int]:
            found = self.resident(a)
            return {"first": found[0], "last": found[-1]} if found else {}

        def on(a: int, name: str, pages: int, first: int = 0) -> FaultStep:
            return self.step(name, a, FILE_PAGES, lambda: self.reads(p, a + first * P, pages), missing)
        a = p.mmap(0, size, 1, MAP_SHARED, file)
        yield self.note("mincore after FADV_DONTNEED", resident=len(self.resident(a)))
        yield on(a, "file_cold_read_page0", 1)
        yield self.note("mincore after cold mmap fault at 0", missing, **first_last(a))
        yield on(a, "file_cold_read_rest_seq", FILE_PAGES)
        p.munmap(a, size)
        b = p.mmap(0, size, 1, MAP_SHARED, file)
        yield on(b, "file_cold_read_page128", 1, 128)
        yield self.note("mincore after cold mmap fault at 128", missing, **first_last(b))
        p.munmap(b, size)
        c = p.mmap(0, size, 1, MAP_SHARED, file)
        p.madvise(c, size, MADV_RANDOM)
        yield on(c, "file_cold_MADV_RANDOM_read32", 32)
        p.munmap(c, size)
        d = p.mmap(0, size, 1, MAP_SHARED, file)
        self.reads(p, d, 64)
        yield self.step("file_madv_pageout", d, FILE_PAGES, lambda: p.madvise(d, size, MADV_PAGEOUT), _RECLAIM)
        yield self.step("file_read_after_pageout", d, FILE_PAGES, lambda: self.reads(p, d, 64), _RECLAIM)
        p.munmap(d, size)

    def _shared(self) -> Iterator[FaultStep]:
        p = self.p
        a = p.mmap(0, N * P, RW, MAP_SHARED | MAP_ANONYMOUS)

        def of(process: Process, name: str, body: Callable[[], int | None]) -> FaultStep:
            return FaultStep(name, process, body, lambda: a, N)
        yield of(p, "shanon_read_first", lambda: self.reads(p, a, N))
        yield of(p, "shanon_write", lambda: self.writes(p, a, N))
        child = self.fork()
        yield of(child, "shanon_child_fresh", lambda: 0)
        yield of(child, "shanon_child_read", lambda: self.reads(child, a, N))
        yield of(child, "shanon_child_write", lambda: self.writes(child, a, N))
        self.end(child)
        yield of(p, "shanon_parent_write_after_child", lambda: self.writes(p, a, N))
        yield of(p, "shanon_dontneed", lambda: p.madvise(a, N * P, MADV_DONTNEED))
        yield of(p, "shanon_read_after_dontneed", lambda: self.reads(p, a, N))
        yield of(p, "shanon_madv_remove", lambda: p.madvise(a, N * P, MADV_REMOVE))
        yield of(p, "shanon_write_after_remove", lambda: self.writes(p, a, N))
        p.munmap(a, N * P)

    def _memfd(self) -> Iterator[FaultStep]:
        p, mm = self.p, self.p.mm
        file = memfd_create(mm, "x", N)
        a, b = p.mmap(0, N * P, RW, MAP_SHARED, file), p.mmap(0, N * P, RW, MAP_SHARED, file)
        c = p.mmap(0, N * P, RW, MAP_PRIVATE, file)
        yield self.step("memfd_write", a, N, lambda: self.writes(p, a, N))
        yield self.step("memfd_second_mapping_read", b, N, lambda: self.reads(p, b, N))
        yield self.step("memfd_second_mapping_write", b, N, lambda: self.writes(p, b, N))
        yield self.step("memfd_private_read", c, N, lambda: self.reads(p, c, N))
        yield self.step("memfd_private_write", c, N, lambda: self.writes(p, c, N))
        truncate_setsize(self.machine.user, file, 8)
        yield FaultStep("memfd_truncate_then_read_beyond_SIGBUS", p, lambda: self.reads(p, a + 16 * P, 1), lambda: a, N,
                        signal="sigbus")
        segment = newseg(mm, N)
        d = p.mmap(0, N * P, RW, MAP_SHARED, segment)
        yield self.step("sysv_write", d, N, lambda: self.writes(p, d, N))
        e = p.mmap(0, N * P, 1, MAP_SHARED, segment.reopen(writable=False))
        yield self.step("sysv_second_attach_read", e, N, lambda: self.reads(p, e, N))


def _compare(record: Record, line: FaultStep, where: str, soft_dirty: bool) -> Iterator[Check]:
    """Carry out one line and compare it."""
    process = line.process
    if "note" in record or line.name == "warm":
        for name, value in line.values.items():
            if line.missing:
                continue
            yield same(f"{where}: {name}", record[name], value)
        if line.missing:
            yield Check(where, False, known=f"not yet covered: {line.name}: {line.missing}")
        return
    minor, major = process.minflt, process.majflt
    result = line.body()
    process.touch(_OWN, Access.WRITE)
    got: tuple[object, ...] = (process.minflt - minor, process.majflt - major)
    start = line.start()
    sums = None
    if start:
        sums = smaps_sums(process, start, line.pages, size=False)
        # These programs leave the blank after the last letter.
        sums["VmFlags"] = "; ".join(part + " " for part in sums["VmFlags"].split("; "))
    if line.missing:
        yield Check(where, False, known=f"not yet covered: {line.name}: {line.missing}")
        return
    expected: tuple[object, ...] = (record["minflt"], record["majflt"])
    if line.signal:
        expected, got = (*expected, record[line.signal]), (*got, int(bool(result)))
    yield same(f"{where}: minor and major faults", expected, got)
    if "smaps" in record or start:
        yield same(f"{where}: smaps", record["smaps"], sums)


def _kernel(path: Path) -> tuple[Rules, bool]:
    """The rules of the kernel that was recorded, from the folder's name, and whether it tracked soft-dirty."""
    for part in reversed(path.absolute().parts[:-1]):
        if part.startswith("live-"):
            return rules_for(part.removeprefix("live-")), False
        if part.startswith("linux-"):
            release = part.removeprefix("linux-").removesuffix("-live")
            return rules_for(release), not part.endswith("-live")
    raise InputError("the folder does not say which kernel was recorded (linux-RELEASE, live-RELEASE)")


@replays("progs*.out/faults*.jsonl*", "linux-*-live/faults*.jsonl*", "live-*/faults*.jsonl*")
def faults(path: Path) -> Iterator[Check]:
    """Fault counts and smaps after each step of the scripted program: zero page, copy-on-write, advice, protection, mremap, populate,
    mlock, fork, files (on tmpfs or a disk), shared memory; and flags and mappings of single pages."""
    rules, soft_dirty = _kernel(path)
    program = FaultsProgram(rules, soft_dirty, disk="tmpfs" not in path.name)
    lines = program.run()
    for record in read_jsonl(path):
        where = f"line {record.line}: {record.get('step', record.get('note'))}"
        line = next(lines, None)
        if line is None or line.name != record.get("step", record.get("note")):
            raise InputError(f"{where}: the program has {line.name if line else 'no line'!r} here")
        yield from _compare(record, line, where, soft_dirty)
    yield same("lines after the last record", 0, sum(1 for _ in lines))
    program.machine.process_table.check()


