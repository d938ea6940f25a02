"""recordings/linux-5.17-userland, chapter 7: stacks that grow, resource limits, max_map_count, and overcommit.

Each file is the output of one program, step by step; what the program does at a step is written here under the step's
name. What depends on the program's own pages is listed as not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mmsim.constants import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_CURRENT,
    MCL_FUTURE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS,
    VM_MAYREAD,
    VM_READ,
    VM_STACK_FLAGS,
)
from mmsim.errors import InputError, errno_name
from mmsim.machine import Machine
from mmsim.process.layout import fixed_layout
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.populate import Access
from mmsim.process.shmem import memfd_create, newseg, shmem_evict_inode
from mmsim.process.syscalls import SystemCalls
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile, Vma
from mmsim.reference import ref256
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.units import GIB, MIB, PAGE_SIZE

__all__ = ["overcommit", "resource_limits", "stack_growth"]

P = PAGE_SIZE
RW = 3
ANON = MAP_PRIVATE | MAP_ANONYMOUS
A = 0x3000_0000


def _not_covered(where: str, what: str) -> Check:
    return Check(where, False, known=f"not covered: {what}")


def _add(mm: Mm, start: int, pages: int, vm_flags: int) -> None:
    """An area that the program had before the first step."""
    vma = Vma(start, start + pages * P, vm_flags, start // P)
    mm.link(vma)
    mm.vm_stat_account(vm_flags, pages)


# -- stacks --------------------------------------------------------------------------------------------------

def _grow(calls: SystemCalls, below: int, lowest: int) -> tuple[int, int]:
    """Write to one page after the other downwards, until a signal; return the last page that worked and the signal."""
    at = below
    while at - P > lowest:
        signal = calls.touch(at - P, Access.WRITE).outcome.value
        if signal:
            return at, signal
        at -= P
    return at, 0


def _stack(record: Record) -> SystemCalls:
    top, low = int(record["stack_top"], 16), int(record["stack_low_at_start"], 16)
    mm = Mm(replace(fixed_layout(), stack_top=top), privileged=True)
    mm.limits.stack = record["rlimit_stack"]
    _add(mm, low, (top - low) // P, VM_STACK_FLAGS)
    return SystemCalls(mm)


def _growsdown(calls: SystemCalls, record: Record, number: int) -> tuple[int, int]:
    """One of the three growing mappings that the program makes one after the other."""
    if number == 0:
        calls.mmap(A + 0x100000, 4 * P, RW, ANON | MAP_FIXED | MAP_GROWSDOWN)
        start = A + 0x100000
    else:
        calls.munmap(0x2F00_0000, 0x1600000)
        calls.mmap(A + 0x200000 - P, P, 0 if record.get("obstacle") == "PROT_NONE" else RW, ANON | MAP_FIXED)
        calls.mmap(A + 0x400000, 4 * P, RW, ANON | MAP_FIXED | MAP_GROWSDOWN)
        start = A + 0x400000
    lowest, signal = _grow(calls, start, start - 2001 * P)
    return (start - lowest) // P, signal


@replays("linux-5.17-userland/ch07_stack*.jsonl*")
def stack_growth(path: Path) -> Iterator[Check]:
    """How far a stack grows page by page and in one jump, to its limit, to RLIMIT_AS and to an obstacle, and a
    MAP_GROWSDOWN mapping likewise; the signal and VmStk."""
    last: Record | None = None
    growing, mappings = SystemCalls(Mm(privileged=True)), 0
    for record in read_jsonl(path):
        where = f"line {record.line}: {record['kind']}"
        if record["kind"] == "stack":
            last, mappings = record, 0
            calls = _stack(record)
            top, low, obstacle = (int(record[name], 16) for name in ("stack_top", "stack_low_at_start", "obstacle_end"))
            if obstacle:
                calls.mmap(obstacle - P, P, 0 if record["obstacle_prot"] == "none" else RW, ANON | MAP_FIXED)
            if record["test"] == 5:
                calls.mm.limits.address_space = calls.mm.total_vm * P + MIB
            lowest, signal = _grow(calls, low, top - 80 * MIB)
            calls.mm.check()
            gap = (lowest - obstacle) // P if obstacle else -1
            yield same(f"{where} {record['test']}: lowest page, gap to the obstacle, signal, VmStk",
                       (record["lowest_ok"], record["gap_pages_to_obstacle"], record["signal"], record["VmStk_kB"]),
                       (hex(lowest), gap, signal, calls.mm.stack_vm * 4))
        elif record["kind"] == "stackjump":
            if last is None:
                raise InputError(f"line {record.line}: no stack was described before")
            calls = _stack(last)
            calls.mm.limits.stack = 8 * MIB
            place = (int(last["stack_top"], 16) - record["touch_below_top"]) & ~(P - 1)
            signal = calls.touch(place, Access.WRITE).outcome.value
            yield same(f"{where} by {record['touch_below_top']}: signal, VmStk", (record["signal"], record["VmStk_kB"]),
                       (signal, calls.mm.stack_vm * 4))
            yield _not_covered(where, "faults and VmRSS of the program's own pages")
        elif record["kind"] == "growsdown":
            if mappings == 0:
                growing = SystemCalls(Mm(privileged=True))
            grown, signal = _growsdown(growing, record, mappings)
            mappings += 1
            expected = record.get("pages_grown", record.get("pages_grown_free_space"))
            yield same(f"{where} {mappings}: pages, signal", (expected, record["signal"]), (grown, signal))
        else:
            raise InputError(f"line {record.line}: unknown kind {record['kind']!r}")


# -- limits --------------------------------------------------------------------------------------------------

class _Program:
    """The recorded program: so much data, so much else, a stack and a heap; its calls by the recording's names."""

    def __init__(self, size_kb: int, data_kb: int, stack_kb: int, privileged: bool):
        self.mm = Mm(privileged=privileged)
        self.calls = SystemCalls(self.mm)
        top = self.mm.layout.stack_top
        self.mm.start_brk = self.mm.brk = 0x0C00_0000
        _add(self.mm, 0x40_0000, data_kb // 4, VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT)
        _add(self.mm, 0x1000_0000, (size_kb - data_kb - stack_kb) // 4, VM_READ | VM_MAYREAD)
        _add(self.mm, top - stack_kb * 1024, stack_kb // 4, VM_STACK_FLAGS)
        self.file = MappedFile("exe", 1000, writable=False)
        self.process: Process | None = None

    def fork(self) -> int:
        """Fork, whose child ends at once."""
        if self.process is None:
            self.process = ref256().spawn("rlimit", self.mm)
        pid = self.process.fork()
        for child in self.process.children:
            child.exit()
        return pid

    def sbrk(self, pages: int) -> int:
        """What sbrk() of the C library returns: -ENOMEM where the heap did not move."""
        wanted = self.mm.brk + pages * P
        return 0 if self.calls.brk(wanted) == wanted else -12

    def state(self) -> tuple[int, int, int, int]:
        """VmSize, VmData, VmStk, VmLck in KiB."""
        self.mm.check()
        return self.mm.total_vm * 4, self.mm.data_vm * 4, self.mm.stack_vm * 4, self.mm.locked_vm * 4


def _as_calls(p: _Program) -> dict[str, Callable[[], int]]:
    c = p.calls

    def sbrk_after_unmap() -> int:
        c.munmap(A, 32 * P)
        return p.sbrk(33)
    return {
        "mmap 65 pages": lambda: c.mmap(0, 65 * P, RW, ANON),
        "mmap 64 pages PROT_NONE NORESERVE": lambda: c.mmap(A, 64 * P, 0, ANON | MAP_NORESERVE),
        "mmap 1 page": lambda: c.mmap(0, P, RW, ANON),
        "mmap 1 page MAP_FIXED over own page": lambda: c.mmap(A, P, RW, ANON | MAP_FIXED),
        "mremap 64->65": lambda: c.mremap(A, 64 * P, 65 * P, MREMAP_MAYMOVE),
        "sbrk 33 pages": sbrk_after_unmap, "sbrk 20 pages": lambda: p.sbrk(20),
        "mmap file 13 pages": lambda: c.mmap(0, 13 * P, 1, MAP_PRIVATE, p.file),
        "mmap file 12 pages": lambda: c.mmap(0, 12 * P, 1, MAP_PRIVATE, p.file), "fork": p.fork,
    }


def _data_calls(p: _Program) -> dict[str, Callable[[], int]]:
    c = p.calls

    def sbrk_after_unmap() -> int:
        c.munmap(A, 32 * P)
        return p.sbrk(32)
    return {
        "mmap 65 rw private": lambda: c.mmap(0, 65 * P, RW, ANON), "mmap 65 ro private": lambda: c.mmap(A, 65 * P, 1, ANON),
        "mprotect it rw": lambda: c.mprotect(A, 65 * P, RW), "mprotect 64 rw": lambda: c.mprotect(A, 64 * P, RW),
        "mmap 65 shared rw": lambda: c.mmap(0, 65 * P, RW, MAP_SHARED | MAP_ANONYMOUS), "sbrk 1 page": lambda: p.sbrk(1),
        "mmap 1 rw private": lambda: c.mmap(0, P, RW, ANON), "sbrk 32": sbrk_after_unmap, "sbrk 1": lambda: p.sbrk(1),
    }


def _lock_calls(p: _Program) -> dict[str, Callable[[], int]]:
    c = p.calls
    return {
        "mlock 17": lambda: c.mlock(A, 17 * P), "mlock 16": lambda: c.mlock(A, 16 * P), "mlock same 16": lambda: c.mlock(A, 16 * P),
        "mlock 1 more": lambda: c.mlock(A + 16 * P, P), "mlock overlapping 8+16": lambda: c.mlock(A + 8 * P, 16 * P),
        "mmap MAP_LOCKED 1": lambda: c.mmap(0, P, RW, ANON | MAP_LOCKED), "munlock 8": lambda: c.munlock(A, 8 * P),
        "mmap MAP_LOCKED 8": lambda: c.mmap(0, 8 * P, RW, ANON | MAP_LOCKED),
        "mremap grow locked": lambda: c.mremap(A + 8 * P, 8 * P, 9 * P, MREMAP_MAYMOVE),
        "mlockall CURRENT": lambda: c.mlockall(MCL_CURRENT), "mlockall FUTURE": lambda: c.mlockall(MCL_FUTURE),
        "mmap 1 under FUTURE": lambda: c.mmap(0, P, RW, ANON), "sbrk 1 under FUTURE": lambda: p.sbrk(1),
        "munlockall": c.munlockall, "mlock 1": lambda: c.mlock(A, P), "mmap MAP_LOCKED": lambda: c.mmap(0, P, RW, ANON | MAP_LOCKED),
        "mlockall": lambda: c.mlockall(MCL_CURRENT),
    }


_GROUPS = {"AS": _as_calls, "DATA": _data_calls, "MEMLOCK16": _lock_calls, "MEMLOCK0": _lock_calls}
_B, _BIG, _ADJ = 0x1000_0000_0000, 0x2000_0000_0000, 0x2100_0000_0000


class _Counting:
    """The program that makes areas until none is left; the same name may mean another address the next time."""

    def __init__(self, areas: int):
        self.mm = Mm(privileged=True)
        self.calls = SystemCalls(self.mm)
        self.mm.start_brk = self.mm.brk = 0x0C00_0000
        for number in range(areas):
            _add(self.mm, 0x40_0000 + 2 * number * P, 1, VM_READ | VM_MAYREAD)
        self.calls.mmap(_BIG, 300 * P, RW, ANON | MAP_FIXED)
        self.calls.mmap(_ADJ, P, RW, ANON | MAP_FIXED)
        self.freed = self.moves = 0
        self.seen: dict[str, int] = {}

    def fill(self) -> tuple[int, int]:
        """Map every second page until that fails; return how many, and the errno."""
        made = 0
        while (result := self.calls.mmap(_B + made * 2 * P, P, RW, ANON | MAP_FIXED)) > 0:
            made += 1
        return made, result

    def run(self, call: str) -> int:
        """One named call; which page "free one VMA" and its like mean depends on how often they came before."""
        c, times = self.calls, self.seen.get(call, 0)
        self.seen[call] = times + 1
        if call == "free one VMA":
            page = 2 + 2 * times if times < 3 else 200 + 2 * (times - 3)
            return c.munmap(_B + page * P, P)
        if call == "mremap FIXED move":
            return c.mremap(_B + (300 + 2 * times) * P, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, _B - (100 + 2 * times) * P)
        if call == "munmap middle page (split)":
            return c.munmap(_BIG + (120 if times == 3 else 100) * P, P)
        if call == "mmap unmergeable":
            return c.mmap(_B - (200 + 2 * times) * P, P, RW, ANON | MAP_FIXED)
        calls: dict[str, Callable[[], int]] = {
            "mmap merging (adjacent to same kind)": lambda: c.mmap(_ADJ + P, P, RW, ANON | MAP_FIXED),
            "mprotect middle of 300-page VMA (2 splits)": lambda: c.mprotect(_BIG + 100 * P, P, 1),
            "mprotect first page (1 split)": lambda: c.mprotect(_BIG, P, 1),
            "mprotect whole VMA": lambda: c.mprotect(_BIG, 300 * P, 1), "munmap first page (no split)": lambda: c.munmap(_BIG, P),
            "munmap last page": lambda: c.munmap(_BIG + 299 * P, P), "mremap grow in place": lambda: c.mremap(_ADJ, P, 2 * P),
            "mremap move": lambda: c.mremap(_B, P, 2 * P, MREMAP_MAYMOVE),
            "madvise DONTFORK middle": lambda: c.madvise(_BIG + 50 * P, P, 10),
            "madvise DONTNEED middle": lambda: c.madvise(_BIG + 50 * P, P, 4), "mlock middle": lambda: c.mlock(_BIG + 50 * P, P),
            "sbrk 1 page": lambda: 0 if c.brk(self.mm.brk + P) != self.mm.start_brk else -12,
            "shmat": lambda: c.mmap(0, P, RW, MAP_SHARED, MappedFile("SYSV", 1)),
            "mprotect middle": lambda: c.mprotect(_BIG + 50 * P, P, RW),
            "mprotect middle (2 splits)": lambda: c.mprotect(_BIG + 50 * P, P, RW),
            "mremap FIXED move (count 65530)": lambda: c.mremap(_B + 100 * P, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, _B - 100 * P),
            "free it": lambda: c.munmap(_B - 200 * P, P), "free two VMAs": lambda: c.munmap(_B + 8 * P, 4 * P),
        }
        if call not in calls:
            raise InputError(f"unknown call {call!r}")
        return calls[call]()


def _errno(result: int) -> str:
    return errno_name(result) if result < 0 else "0"


@replays("linux-5.17-userland/ch07_rlimit*.jsonl*")
def resource_limits(path: Path) -> Iterator[Check]:
    """Which calls RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK and max_map_count refuse and with which errno, and VmSize, VmData,
    VmStk, VmLck and the number of areas after each."""
    group, start, program, table = "", (0, 0, 0), None, {}
    counting: _Counting | None = None
    for record in read_jsonl(path):
        where = f"line {record.line}"
        if record["kind"] == "note":
            if "default_RLIMIT_MEMLOCK" in record:
                yield same(f"{where}: default RLIMIT_MEMLOCK", record["default_RLIMIT_MEMLOCK"], Mm().limits.memlock)
            elif "maps_lines_at_start" in record:
                counting = _Counting(record["maps_lines_at_start"] - record["vsyscall_line"])
            continue
        if record["kind"] == "mapcount":
            if counting is None:
                raise InputError(f"{where}: how many areas there were was not said before")
            if "made" in record:
                made, result = counting.fill()
                expected: tuple[object, ...] = (record["made"], record["errno"], record["vmas"])
                got: tuple[object, ...] = (made, _errno(result), counting.mm.map_count)
            else:
                result = counting.run(record["call"])
                expected = (record["ok"], record["errno"], record["vmas"])
                got = (int(result >= 0), _errno(result), counting.mm.map_count)
            yield same(f"{where}: {record['call']}: result, errno, areas", expected, got)
            continue
        if record["group"] not in _GROUPS:
            raise InputError(f"{where}: unknown group {record['group']!r}")
        if record["group"] != group:
            group = record["group"]
            if not program:
                # The first call of all is refused, so its record is the program's size before it.
                start = (record["VmSize"], record["VmData"], record["VmStk"])
            if group == "MEMLOCK0" and program:
                program.mm.limits.memlock = 0
            else:
                program = _Program(*start, privileged=not group.startswith("MEMLOCK"))
                if group == "AS":
                    program.mm.limits.address_space = start[0] * 1024 + 64 * P
                elif group == "DATA":
                    program.mm.limits.data = program.mm.limits.data_max = start[1] * 1024 + 64 * P
                else:
                    program.mm.limits.memlock = 16 * P
                    program.calls.mmap(A, 32 * P, RW, ANON | MAP_FIXED)
            table = _GROUPS[group](program)
        if record["call"] == "shm_lock":
            yield _not_covered(where, "shmctl(SHM_LOCK)")
            continue
        if record["call"] not in table or program is None:
            raise InputError(f"{where}: unknown call {record['call']!r}")
        result = table[record["call"]]()
        yield same(f"{where}: {group}, {record['call']}: errno, VmSize, VmData, VmStk, VmLck",
                   (record["errno"], *(record[name] for name in ("VmSize", "VmData", "VmStk", "VmLck"))),
                   (_errno(result), *program.state()))


# -- overcommit ----------------------------------------------------------------------------------------------

_SHARED = MAP_SHARED | MAP_ANONYMOUS
_CHARGED = {
    "private rw": (RW, ANON), "private r": (1, ANON), "private none": (0, ANON), "private rw noreserve": (RW, ANON | MAP_NORESERVE),
    "shared anon rw": (RW, _SHARED), "shared anon r": (1, _SHARED), "shared anon noreserve": (RW, _SHARED | MAP_NORESERVE),
    "private rwx": (7, ANON), "stack growsdown": (RW, ANON | MAP_GROWSDOWN),
}


def _process(machine: Record, mode: int, own: int, host: Machine) -> Process:
    """A process as large as the recorded one, on a machine with as much memory and as many promises; ``own`` KiB of it are
    promises that a fork makes again."""
    account = Overcommit(machine["MemTotal"] // 4, machine["SwapTotal"] // 4, policy=mode, ratio=machine["ratio"],
                         user_reserve_kbytes=machine["user_reserve"], admin_reserve_kbytes=machine["admin_reserve"],
                         committed=machine["Committed_AS"] // 4)
    mm = Mm(overcommit=account, privileged=bool(machine["root"]))
    _add(mm, 0x40_0000, own // 4, VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT)
    _add(mm, 0x1000_0000, (machine["VmSize"] - own) // 4, VM_READ | VM_MAYREAD)
    mm.start_brk = mm.brk = 0x3800_0000
    host.user.overcommit = account
    return host.spawn("over", mm)


def _largest(calls: SystemCalls, flags: int) -> int:
    """The largest mapping in pages, by bisection below 2^34."""
    low, high = 0, 1 << 34
    while high - low > 1:
        middle = (low + high) // 2
        address = calls.mmap(0, middle * P, RW, flags)
        if address < 0:
            high = middle
        else:
            calls.munmap(address, middle * P)
            low = middle
    return low


def _charge(calls: Process, record: Record) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """What making, changing, forking and removing a mapping adds to Committed_AS, in KiB: recorded and modelled."""
    account, at = calls.mm.overcommit, 0x4000_0000
    first = account.committed
    deltas: list[int] = []

    def step(call: Callable[[], int]) -> None:
        before = account.committed
        call()
        deltas.append((account.committed - before) * 4)
    if record["what"].startswith("brk"):
        step(lambda: calls.brk(calls.mm.start_brk + 256 * P))
        calls.brk(calls.mm.start_brk)
        return (record["grow_kB"], record["back_kB"]), (deltas[0], (account.committed - first) * 4)
    prot, flags = _CHARGED[record["what"]]
    size = record["pages"] * P
    step(lambda: calls.mmap(at, size, prot, flags | MAP_FIXED))
    step(lambda: calls.mprotect(at, size // 2, RW))
    step(lambda: calls.mprotect(at, size // 2, 1))
    step(calls.fork)
    calls.children[0].exit()
    calls.munmap(at, size)
    names: tuple[str, ...] = ("mmap_kB", "mprotect_half_rw_kB", "mprotect_half_r_kB", "fork_kB", "munmap_total_kB")
    return tuple(record[name] for name in names), (*deltas, (account.committed - first) * 4)


def _charge_object(process: Process, record: Record) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """The same for shared memory objects that have a name: memfd_create() and System V segments of 1024 pages."""
    mm, size = process.mm, 1024 * P
    account = mm.overcommit
    marks = [account.committed]

    def mark() -> None:
        marks.append(account.committed)
    if record["what"] == "memfd":
        file = memfd_create(mm, "m")
        file.pages = 1024
        mark()
        shared = process.mmap(0, size, RW, MAP_SHARED, file)
        mark()
        for page in range(16):
            process.write(shared + page * P, b"\1")
        mark()
        private = process.mmap(0, size, RW, MAP_PRIVATE, file)
        mark()
        process.munmap(shared, size)
        process.munmap(private, size)
        shmem_evict_inode(mm, file)
        names: tuple[str, ...] = ("ftruncate_kB", "map_shared_kB", "touch16_kB", "map_private_rw_kB", "after_close_kB")
    else:
        file = newseg(mm, 1024)
        mark()
        at = process.mmap(0, size, RW, MAP_SHARED, file)
        mark()
        process.munmap(at, size)
        shmem_evict_inode(mm, file)
        gone = account.committed
        other = newseg(mm, 1024, noreserve=True)
        noreserve = account.committed - gone
        shmem_evict_inode(mm, other)
        names = ("shmget_kB", "shmat_kB", "gone_kB", "shmget_noreserve_kB")
        return (tuple(record[name] for name in names),
                tuple(pages * 4 for pages in (marks[1] - marks[0], marks[2] - marks[1], gone - marks[0], noreserve)))
    steps = [after - before for before, after in zip(marks, marks[1:])]
    return tuple(record[name] for name in names), tuple(pages * 4 for pages in (*steps, account.committed - marks[0]))


def _fat_fork(process: Process, record: Record) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """A process that maps and writes 150 MiB and forks: does it, and Committed_AS meanwhile."""
    at = process.mmap(0, 150 * MIB, RW, ANON)
    if at > 0:
        process.touch_range(at, 150 * MIB // P, write=True)
    pid = process.fork()
    account = process.mm.overcommit
    got = (int(at > 0), int(pid > 0), _errno(pid), account.commit_limit() * 4, account.committed * 4)
    for child in process.children:
        child.exit()
    return tuple(record[name] for name in ("mmap_150MB", "fork_ok", "errno", "CommitLimit", "Committed_AS")), got


@replays("linux-5.17-userland/ch07_over*.jsonl*")
def overcommit(path: Path) -> Iterator[Check]:
    """Under each overcommit mode, as root and not: CommitLimit, the largest single mapping of each kind, how many mappings of
    64 MiB, whether a fork then is refused, what each kind of mapping and shared object is charged and a fork of it again, and what a
    refused MAP_FIXED leaves behind."""
    records = list(read_jsonl(path))
    # What a fork of the program itself is charged: that of one which has a mapping besides that forks nothing.
    own = next((record["fork_kB"] for record in records if record.get("what") == "shared anon rw"), 4200)
    machine: Record | None = None
    host = ref256()
    process: Process | None = None
    for record in records:
        kind, where = record["kind"], f"line {record.line}: {record['kind']}"
        if kind == "overcommit":
            machine = record
            if process is not None:
                process.exit()
            process = _process(record, record["mode"], own, host)
            yield same(f"{where}: CommitLimit", record["CommitLimit"], process.mm.overcommit.commit_limit() * 4)
            continue
        if machine is None or process is None:
            raise InputError(f"line {record.line}: the machine was not described before")
        if kind == "overcommit_max":
            names = ("private", "private_noreserve", "shared", "shared_noreserve")
            flags = (ANON, ANON | MAP_NORESERVE, _SHARED, _SHARED | MAP_NORESERVE)
            yield same(f"{where}, mode {record['mode']}: largest mapping of {', '.join(names)}; Committed_AS after",
                       [*(record[f"max_pages_{name}"] for name in names), record["Committed_AS_after"]],
                       [*(_largest(process, flag) for flag in flags), process.mm.overcommit.committed * 4])
        elif kind == "overcommit_many":
            made = 0
            while made < 200 and process.mmap(0, 64 * MIB, RW, ANON) > 0:
                made += 1
            yield same(f"{where}, mode {record['mode']}: mappings of 64 MiB, Committed_AS",
                       (record["maps_of_64MB"], record["Committed_AS"]), (made, process.mm.overcommit.committed * 4))
        elif kind == "overcommit_fork":
            pid = process.fork()
            yield same(f"{where}, mode {record['mode']}: done, errno", (record["fork_ok"], record["errno"]), (int(pid > 0), _errno(pid)))
            for child in process.children:
                child.exit()
        elif kind in ("charge", "fixed_fail", "fatfork"):
            # The program itself runs on as root in a machine without the earlier children.
            fresh = _process(Record(machine | {"root": 1}), record["mode"], own, host)
            if kind == "fixed_fail":
                fresh.mmap(0x4000_0000, 16 * P, RW, ANON | MAP_FIXED)
                result = fresh.mmap(0x4000_0000, 1024 * GIB, RW, ANON | MAP_FIXED)
                left = list(fresh.mm.tree.overlapping(0x4000_0000, 0x4000_0000 + 16 * P))
                yield same(f"{where}, mode {record['mode']}: errno, what is left", (record["errno"], record["old_mapping_left"]),
                           (_errno(result), left))
            elif kind == "fatfork":
                fresh.mm.overcommit.ratio = 50
                yield same(f"{where}, mode {record['mode']}: mapped, forked, errno, CommitLimit, Committed_AS",
                           *_fat_fork(fresh, record))
            elif record["what"] in ("memfd", "sysv"):
                yield same(f"{where}, mode {record['mode']}: {record['what']}", *_charge_object(fresh, record))
            elif record["what"] in _CHARGED or record["what"].startswith("brk"):
                yield same(f"{where}, mode {record['mode']}: {record['what']}", *_charge(fresh, record))
            else:
                raise InputError(f"line {record.line}: unknown mapping {record['what']!r}")
            fresh.exit()
        else:
            raise InputError(f"line {record.line}: unknown kind {kind!r}")
