"""Processes: a minor fault against a real one of this host, areas against sortedcontainers, fork, slabs, the kernel's tables."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from sortedcontainers import SortedKeyList

from benchmarks.allocator import host_minor_fault_ns
from benchmarks.measure import Row, median, median_ns
from mmsim.constants import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from mmsim.machine import Machine
from mmsim.process.populate import Access
from mmsim.process.vma import Vma
from mmsim.process.vma_tree import VmaTree
from mmsim.reference import qemu_map, qemu_platform, ref256
from mmsim.units import GIB, MIB, PAGE_SIZE

PAGES = 32768
AREAS = 65_000
OBJECTS = 20_000


def fault_ns(machine: Machine, touch: Callable[[object, int], None]) -> float:
    """CPU time of a first write to a page of fresh anonymous memory, areas and page tables made on the way included."""
    results = []
    for _ in range(5):
        process = machine.spawn("bench")
        at = process.mmap(0, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        begin = time.process_time_ns()
        touch(process, at)
        results.append((time.process_time_ns() - begin) / PAGES)
        assert process.minflt == PAGES
        process.exit()
    return median(results)


def one_by_one(process, at: int) -> None:  # type: ignore[no-untyped-def]
    touch, write = process.touch, Access.WRITE
    for addr in range(at, at + PAGES * PAGE_SIZE, PAGE_SIZE):
        touch(addr, write)


def in_bulk(process, at: int) -> None:  # type: ignore[no-untyped-def]
    process.touch_range(at, PAGES, write=True)


def areas() -> list[Row]:
    dice = random.Random(1)
    starts = [number * 8 * PAGE_SIZE for number in range(AREAS)]
    dice.shuffle(starts)
    wanted = [dice.randrange(AREAS * 8 * PAGE_SIZE) for _ in range(100_000)]
    ours = [Vma(start, start + PAGE_SIZE, 3, 1) for start in starts]
    theirs = SortedKeyList(key=lambda vma: vma.vm_start)

    def insert() -> int:
        tree = VmaTree()
        for vma in ours:
            vma.vm_prev = vma.vm_next = None
            tree.insert(vma)
        return AREAS

    def insert_theirs() -> int:
        theirs.clear()
        for vma in ours:
            theirs.add(vma)
        return AREAS

    inserted, other = median_ns(insert, 3), median_ns(insert_theirs, 3)
    for vma in ours:
        vma.vm_prev = vma.vm_next = None
    tree = VmaTree(ours)

    def find() -> int:
        for addr in wanted:
            tree.find(addr)
        return len(wanted)

    def find_theirs() -> int:
        for addr in wanted:
            at = theirs.bisect_key_right(addr) - 1
            if at < 0 or theirs[at].vm_end <= addr:
                at += 1
        return len(wanted)

    def gap() -> int:
        for number in range(2000):
            tree.unmapped_area(PAGE_SIZE * (1 + number % 5), PAGE_SIZE, AREAS * 9 * PAGE_SIZE)
        return 2000

    against = "sortedcontainers.SortedKeyList"
    rows = [Row("areas", f"insert one of {AREAS}", inserted, other, against, "ns"),
            Row("areas", f"find_vma() among {AREAS}", median_ns(find), median_ns(find_theirs), against, "ns")]
    if hasattr(tree, "unmapped_area"):
        rows.append(Row("areas", f"search for room below {AREAS} areas", median_ns(gap), other, "insert of SortedKeyList", "ns"))
    return rows


def fork() -> tuple[float, float]:
    """Seconds of CPU time to fork a process with 1 GiB of touched memory, and to end the child."""
    machine = Machine.boot(qemu_map(2 * GIB), platform=qemu_platform(2 * GIB))
    parent = machine.spawn("large")
    at = parent.mmap(0, GIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    parent.touch_range(at, GIB // PAGE_SIZE, write=True)
    forks, exits = [], []
    for _ in range(3):
        begin = time.process_time()
        child = machine.processes[parent.fork()]
        middle = time.process_time()
        child.exit()
        forks.append(middle - begin)
        exits.append(time.process_time() - middle)
    return median(forks), median(exits)


def slabs() -> tuple[float, float]:
    """Nanoseconds of a kmalloc() and kfree(), and of the same with a list of free numbers."""
    slub = ref256().slub

    def ours() -> int:
        objects = [slub.kmalloc(64) for _ in range(OBJECTS)]
        for obj in objects:
            slub.kfree(obj)
        return OBJECTS

    free = list(range(OBJECTS))

    def plain() -> int:
        objects = [free.pop() for _ in range(OBJECTS)]
        for obj in objects:
            free.append(obj)
        return OBJECTS

    return median_ns(ours), median_ns(plain)


def run() -> list[Row]:
    machine = Machine.boot(qemu_map(512 * MIB), platform=qemu_platform(512 * MIB))
    real = host_minor_fault_ns()
    single, many = fault_ns(machine, one_by_one), fault_ns(machine, in_bulk)
    forked, ended = fork()
    objects, numbers = slabs()
    pages = GIB // PAGE_SIZE
    begin = time.process_time()
    booted = ref256()
    boot = time.process_time() - begin
    begin = time.process_time()
    assert booted.init_mm is not None
    tables = time.process_time() - begin
    against = "a real minor fault here (CPU)"
    return [
        Row("process", "a minor fault, one access at a time", single, real, against, "ns", "≤ 0.67"),
        Row("process", f"a minor fault, {PAGES} pages in bulk", many, real, against, "ns", "≤ 0.67"),
        Row("process", "fork of 1 GiB of touched memory, a page", forked * 1e9 / pages, real, against, "ns"),
        Row("process", "exit of that child, a page", ended * 1e9 / pages, real, against, "ns"),
        *areas(),
        Row("slab", "`kmalloc` and `kfree` of 64 bytes", objects, numbers, "pop and append of a list", "ns"),
        Row("kernel", "init_mm: all tables of the kernel", tables * 1e3, boot * 1e3, "the boot before (ref256)", "ms"),
    ]
