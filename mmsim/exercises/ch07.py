"""Chapter 7, Virtual memory in userspace."""

from __future__ import annotations

import math

from mmsim import constants as c
from mmsim.errors import Errno
from mmsim.exercises.answers import Part
from mmsim.exercises.registry import exercise
from mmsim.process.layout import mmap_base
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.syscalls import SystemCalls
from mmsim.process.task import Process
from mmsim.reference import ref256
from mmsim.units import GIB, MIB, PAGE_SHIFT, PAGE_SIZE

_RW, _ANON = c.PROT_READ | c.PROT_WRITE, c.MAP_PRIVATE | c.MAP_ANONYMOUS


@exercise(
    "7.1", "ex07-last", "The last area",
    Part("hole", "areas that a hole would leave", "areas"),
    hints=("Count the areas before and after, for one area with a hole in its middle.", "A hole makes two areas of one."))
def the_last_area() -> int:
    mm = Mm()
    calls = SystemCalls(mm)
    base = calls.mmap(0, 3 * PAGE_SIZE, _RW, _ANON)
    before = mm.map_count
    calls.munmap(base + PAGE_SIZE, PAGE_SIZE)
    return c.DEFAULT_MAX_MAP_COUNT + mm.map_count - before


@exercise(
    "7.5", "ex07-limit", "Sixteen gibibytes",
    Part("limit", "CommitLimit", "GiB"), Part("user", "what can still be promised", "MiB", within=1 / 128),
    Part("root", "the same as root", "MiB", within=1 / 128),
    hints=("The default ratio is a half. 1 GiB is promised already.",
           "From the limit go 8 MiB (not for root) and a thirty-second of the process, which has 1 GiB."))
def sixteen_gibibytes() -> tuple[float, ...]:
    limit = Overcommit(16 * GIB >> PAGE_SHIFT, policy=c.OVERCOMMIT_NEVER).commit_limit()

    def most(privileged: bool) -> int:
        low, high = 0, limit
        while high - low > 1:
            middle = (low + high) // 2
            account = Overcommit(16 * GIB >> PAGE_SHIFT, policy=c.OVERCOMMIT_NEVER, committed=GIB >> PAGE_SHIFT)
            try:
                account.charge(middle, GIB >> PAGE_SHIFT, privileged)
                low = middle
            except Errno:
                high = middle
        return low

    return (limit << PAGE_SHIFT) // GIB, most(False) * PAGE_SIZE / MIB, most(True) * PAGE_SIZE / MIB


@exercise(
    "7.6", "ex07-unlimited", "A stack without limit",
    Part("base", "mmap_base", kind="hex"),
    hints=("The gap is at most five sixths of the user half.",
           "Divide 0x7ffffffff000 by 6 first, and round down; times 5; subtract that from the top, and round up to a page."))
def a_stack_without_limit() -> int:
    return mmap_base(c.RLIM_INFINITY)


@exercise(
    "7.9", "ex07-seed", "Predict with a seed",
    Part("same", "one in how many pairs has the same mmap_base"),
    Part("starts", "starts until two share it, with a probability of one half", within=500),
    Part("stacks", "the same for the top of the stack", within=100),
    hints=("mmap_base has 28 random bits, the top of the stack 22.",
           "About 1.18 times the square root of the number of values; the roots are 2 to the power of 14 and of 11."))
def predict_with_a_seed() -> tuple[float, ...]:
    values, tops = 1 << c.MMAP_RND_BITS, c.STACK_RND_MASK + 1
    return values, round(math.sqrt(2 * math.log(2) * values), -2), round(math.sqrt(2 * math.log(2) * tops), -2)


@exercise(
    "7.12", "ex07-real", "On a real system",
    Part("child", "faults of the child's 64 writes"), Part("parent", "faults of the parent's 64 writes after it"),
    Part("mprotect", "faults of 64 writes after the round trip, on 5.17"),
    hints=("After a fork every page is read-only for both.",
           "On 5.17 mprotect() makes an anonymous page writable at the next fault only."))
def on_a_real_system() -> tuple[int, ...]:
    parent = ref256().spawn("program")
    base = parent.mmap(0, 64 * PAGE_SIZE, _RW, _ANON)

    def faults(process: Process) -> int:
        before = process.minflt
        for addr in range(base, base + 64 * PAGE_SIZE, PAGE_SIZE):
            process.write(addr, b"x")
        return process.minflt - before

    faults(parent)
    found = faults(parent.table.processes[parent.fork()]), faults(parent)
    parent.mprotect(base, 64 * PAGE_SIZE, c.PROT_READ)
    parent.mprotect(base, 64 * PAGE_SIZE, _RW)
    return *found, faults(parent)
