"""recordings/linux-5.17-userland/ch07_steps: one call each of everything that a kernel refuses, and what it answers.

The steps that count faults are those of :mod:`mmsim.replay.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mmsim.constants import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_SYNC,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MS_ASYNC,
    MS_SYNC,
    PROT_GROWSDOWN,
    TASK_SIZE,
)
from mmsim.errors import InputError, errno_name
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import MappedFile
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.replay.steps import Note, Step, StepProgram
from mmsim.replay.usage import maps_of, smaps_sums
from mmsim.units import MIB, PAGE_SIZE

__all__ = ["steps"]

P = PAGE_SIZE
RW = 3
ANON = MAP_PRIVATE | MAP_ANONYMOUS
_HOLE, _PLACE = 0x3999_0000, 0x3000_0000
#: A flag of MAP_HUGE_SHIFT's field, which MAP_SHARED_VALIDATE accepts.
_HUGE_BIT = 0x8000000


class _Calls:
    """The program's calls by name, in a process with four files and a read-only shared mapping ``w``."""

    def __init__(self) -> None:
        # 512 MiB of RAM: the largest NORESERVE request is refused for want of a place, not of memory.
        self.calls = SystemCalls(Mm(privileged=True, overcommit=Overcommit(totalram_pages=131072)))
        self.calls.mm.start_brk = self.calls.mm.brk = 0x0C00_0000
        self.exe = MappedFile("exe", 100, writable=False)
        self.wo, self.ro = MappedFile("wo", 1, readable=False), MappedFile("wo", 1, writable=False)
        self.pipe = MappedFile("pipe", can_mmap=False)
        self.w = self.calls.mmap(0, P, 1, MAP_SHARED, self.ro)
        self.table = {**self._mmap(), **self._other()}

    def _mmap(self) -> dict[str, Callable[[], int]]:
        mmap = self.calls.mmap

        def occupied() -> int:
            mmap(0, P, RW, ANON | MAP_FIXED)
            result = mmap(0, P, RW, ANON | MAP_FIXED_NOREPLACE)
            self.calls.munmap(0, P)
            return result
        return {
            "len 0": lambda: mmap(0, 0, RW, ANON), "len -4096": lambda: mmap(0, -4096, RW, ANON),
            "len 2^47": lambda: mmap(0, 1 << 47, RW, ANON),
            "len 2^47-4096 NORESERVE": lambda: mmap(0, (1 << 47) - 4096, RW, ANON | MAP_NORESERVE),
            "no SHARED/PRIVATE": lambda: mmap(0, P, RW, MAP_ANONYMOUS),
            "SHARED_VALIDATE bad flag": lambda: mmap(0, P, RW, MAP_SHARED_VALIDATE | _HUGE_BIT, self.exe),
            "SHARED_VALIDATE MAP_SYNC": lambda: mmap(0, P, 1, MAP_SHARED_VALIDATE | MAP_SYNC, self.exe),
            "fixed unaligned": lambda: mmap(_PLACE + 16, P, RW, ANON | MAP_FIXED),
            "fixed above TASK_SIZE": lambda: mmap(TASK_SIZE, P, RW, ANON | MAP_FIXED),
            "fixed 0 (root)": lambda: mmap(0, P, RW, ANON | MAP_FIXED), "noreplace occupied": occupied,
            "file offset unaligned": lambda: mmap(0, P, 1, MAP_PRIVATE, self.exe, 100),
            "pgoff overflow": lambda: mmap(0, 2 * P, 1, MAP_PRIVATE, self.exe, -4096), "bad fd": lambda: mmap(0, P, 1, MAP_PRIVATE),
            "wronly file PRIVATE": lambda: mmap(0, P, 1, MAP_PRIVATE, self.wo),
            "wronly file SHARED W": lambda: mmap(0, P, 2, MAP_SHARED, self.wo),
            "rdonly file SHARED W": lambda: mmap(0, P, RW, MAP_SHARED, self.ro),
            "rdonly file SHARED R": lambda: mmap(0, P, 1, MAP_SHARED, self.ro),
            "rdonly file PRIVATE W": lambda: mmap(0, P, RW, MAP_PRIVATE, self.ro),
            "pipe": lambda: mmap(0, P, 1, MAP_PRIVATE, self.pipe),
            "HUGETLB none free": lambda: mmap(0, 2 * MIB, RW, ANON | MAP_HUGETLB),
            "GROWSDOWN|SHARED anon": lambda: mmap(0, P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN),
            "GROWSDOWN file": lambda: mmap(0, P, RW, MAP_PRIVATE | MAP_GROWSDOWN, self.ro),
        }

    def _other(self) -> dict[str, Callable[[], int]]:
        c, w = self.calls, self.w

        def across() -> int:
            c.mmap(_HOLE, 2 * P, RW, ANON | MAP_FIXED)
            c.mprotect(_HOLE, P, 1)
            result = c.mremap(_HOLE, 2 * P, 4 * P, MREMAP_MAYMOVE)
            c.munmap(_HOLE, 2 * P)
            return result

        def brk_below_start() -> int:
            # The C library's brk() succeeds where the heap's end is at or above what was asked.
            return 0 if c.brk(0x1000) >= 0x1000 else -12
        return {
            "mprotect W of rdonly SHARED": lambda: c.mprotect(w, P, RW), "mprotect unaligned": lambda: c.mprotect(w + 1, P, 1),
            "mprotect hole": lambda: c.mprotect(_HOLE, P, 1), "mprotect len 0": lambda: c.mprotect(w, 0, 1),
            "mprotect GROWSDOWN on non-grow": lambda: c.mprotect(w, P, 1 | PROT_GROWSDOWN),
            "mprotect bad prot": lambda: c.mprotect(w, P, 0x10), "munmap unaligned": lambda: c.munmap(w + 1, P),
            "munmap len 0": lambda: c.munmap(w, 0), "munmap hole": lambda: c.munmap(_HOLE, P),
            "munmap above": lambda: c.munmap(TASK_SIZE, P), "madvise hole": lambda: c.madvise(_HOLE, P, MADV_DONTNEED),
            "madvise bad advice": lambda: c.madvise(w, P, 77), "madvise unaligned": lambda: c.madvise(w + 1, P, MADV_DONTNEED),
            "madvise len 0": lambda: c.madvise(w, 0, MADV_DONTNEED), "madvise FREE on file": lambda: c.madvise(w, P, MADV_FREE),
            "madvise REMOVE on ro shared": lambda: c.madvise(w, P, MADV_REMOVE),
            "mremap unaligned": lambda: c.mremap(w + 1, P, P, MREMAP_MAYMOVE),
            "mremap newlen 0": lambda: c.mremap(w, P, 0, MREMAP_MAYMOVE), "mremap bad flags": lambda: c.mremap(w, P, P, 16),
            "mremap FIXED without MAYMOVE": lambda: c.mremap(w, P, P, MREMAP_FIXED, _PLACE),
            "mremap unmapped source, raw return": lambda: c.mremap(_HOLE, P, 2 * P, MREMAP_MAYMOVE),
            "mremap FIXED unmapped source, raw return":
                lambda: c.mremap(_HOLE, P, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED, 0x3900_0000),
            "mremap across two VMAs, raw return": across, "mremap private old 0": lambda: c.mremap(w, 0, P, MREMAP_MAYMOVE),
            "brk below start": brk_below_start, "msync unaligned": lambda: c.msync(w + 1, P, MS_SYNC),
            "msync hole": lambda: c.msync(_HOLE, P, MS_SYNC), "msync ASYNC|SYNC": lambda: c.msync(w, P, MS_ASYNC | MS_SYNC),
            "mincore hole": lambda: c.mincore(_HOLE, P, bytearray()),
        }

    def run(self, name: str) -> tuple[int, str] | None:
        """The result as the program prints it (-1, 0, 1 for a positive one, or raw) and the errno; None if not modelled."""
        call = self.table.get(name.removeprefix("mmap "))
        if call is None:
            return None
        result = call()
        if result < 0:
            return -1, errno_name(result)
        return (result if name.endswith("raw return") else int(result > 0)), "0"


#: How many more pages than the step's the program may reuse after a fork, its own.
_OWN_REUSES = 6


def _step(record: Record, step: Step, forked: bool, where: str) -> Iterator[Check]:
    """Carry out a step of the program and compare it."""
    if (record["group"], record["step"]) != (step.group, step.name):
        raise InputError(f"{where}: step {record['step']!r} of {record['group']!r} instead of {step.name!r} of {step.group!r}")
    process, counters = step.process, step.process.user.counters
    minor, major, reuse = process.minflt, process.majflt, counters["pgreuse"]
    result = step.body() or 0
    name = errno_name(result) if -4096 < result < 0 else "0"
    at = f"{where}: {step.group}, {step.name}"
    if step.no_counts:
        yield Check(at, False, known=f"not covered: faults of {step.no_counts}")
        yield same(f"{at}: errno", record["errno"], name)
    else:
        yield same(f"{at}: minor and major faults, errno", (record["minflt"], record["majflt"], record["errno"]),
                   (process.minflt - minor, process.majflt - major, name))
    reuses = counters["pgreuse"] - reuse
    yield Check(f"{at}: pgreuse (after a fork the program's own pages add up to {_OWN_REUSES})",
                0 <= record["pgreuse"] - reuses <= (_OWN_REUSES if forked else 0), record["pgreuse"], reuses)
    start = step.start() if callable(step.start) else step.start
    if not start:
        yield same(f"{at}: no smaps", record["smaps"], None)
        return
    if step.no_sums:
        yield Check(at, False, known=f"not covered: sums of {step.no_sums}")
        yield same(f"{at}: areas, their flags", (record["smaps"]["vmas"], record["smaps"]["VmFlags"]),
                   tuple(smaps_sums(process, start, step.pages)[name] for name in ("vmas", "VmFlags")))
    else:
        yield same(f"{at}: smaps", record["smaps"], smaps_sums(process, start, step.pages))
    yield same(f"{at}: maps", record["maps"], maps_of(process, start, step.pages))


def _note(record: Record, note: Note, bases: dict[str, tuple[int, int]], where: str) -> Iterator[Check]:
    """Compare the values of a note that the model has."""
    for name, value in note.values.items():
        expected = record[name]
        base = note.relative.get(name)
        if base is not None:
            recorded, modelled = bases.setdefault(base, (expected, value))
            expected, value = expected - recorded, value - modelled
        yield same(f"{where}: note, {name}{' (difference)' if base else ''}", expected, value)
    if set(record) - set(note.values) - {"kind"}:
        yield Check(where, False, known=f"not covered: {note.unknown or 'other values of a note'}")


@replays("linux-5.17-userland/ch07_steps*.jsonl*")
def steps(path: Path) -> Iterator[Check]:
    """Step by step: faults, reuses, errno, smaps and maps of mprotect, merging, mremap, mlock, MADV_DONTFORK and WIPEONFORK, vfork,
    copy-on-write of 64 pages, brk after fork; then what mmap, mprotect, munmap, madvise, mremap, msync, mincore and brk answer to
    bad and unusual arguments."""
    records = list(read_jsonl(path))
    calls = _Calls()
    heap = next((-record["maps"][0][0] for record in records if record.get("group") == "sbrk_fork" and record.get("maps")), 1105)
    program = StepProgram(heap)
    lines = program.run()
    bases: dict[str, tuple[int, int]] = {}
    for record in records:
        where = f"line {record.line}"
        if record["kind"] == "errno":
            got = calls.run(record["call"])
            if got is None:
                raise InputError(f"{where}: unknown call {record['call']!r}")
            yield same(f"{where}: {record['call']}: result, errno", (record["ret"], record["errno"]), got)
            continue
        line = next(lines, None)
        if isinstance(line, Step) and record["kind"] == "step":
            yield from _step(record, line, program.forked, where)
        elif isinstance(line, Note) and record["kind"] == "note":
            yield from _note(record, line, bases, where)
        else:
            raise InputError(f"{where}: the program does not print {record['kind']!r} here")
    program.machine.process_table.check()
    left = next(lines, None)
    if left is not None:
        yield same("the program's lines after the last record", "none", type(left).__name__)
