"""The page allocator against a straightforward buddy allocator made of sets, and against what a minor fault costs this host."""

from __future__ import annotations

import mmap
import random
import resource
import time

from benchmarks.measure import Row, median, median_ns
from mmsim.constants import GFP_HIGHUSER_MOVABLE, MAX_ORDER, MIGRATE_MOVABLE
from mmsim.machine import Machine
from mmsim.physical.buddy import _free_one_page, _rmqueue_smallest
from mmsim.reference import qemu_map, qemu_platform
from mmsim.units import GIB

OPERATIONS = 200_000
BULK = 63


class SetBuddy:
    """The textbook's buddy allocator: a set of free blocks for each order."""

    def __init__(self, frames: int):
        self.free: list[set[int]] = [set() for _ in range(MAX_ORDER)]
        self.free[-1].update(range(0, frames, 1 << (MAX_ORDER - 1)))

    def alloc(self, order: int) -> int:
        high = order
        while not self.free[high]:
            high += 1
        pfn = self.free[high].pop()
        while high > order:
            high -= 1
            self.free[high].add(pfn + (1 << high))
        return pfn

    def release(self, pfn: int, order: int) -> None:
        while order < MAX_ORDER - 1 and (pfn ^ (1 << order)) in self.free[order]:
            self.free[order].remove(pfn ^ (1 << order))
            pfn &= ~(1 << order)
            order += 1
        self.free[order].add(pfn)


def script(seed: int) -> list[tuple[int, int]]:
    """(order, which): allocate a block of that order, or free the block that was allocated `which`-th before (order -1)."""
    rng = random.Random(seed)
    steps: list[tuple[int, int]] = []
    live = 0
    for _ in range(OPERATIONS):
        if live < 2000 or rng.random() < 0.5:
            steps.append((rng.choice((0, 0, 0, 0, 1, 2, 3, 9)), 0))
            live += 1
        else:
            steps.append((-1, rng.randrange(live)))
            live -= 1
    return steps


def play(steps: list[tuple[int, int]], alloc, release) -> int:  # type: ignore[no-untyped-def]
    held: list[tuple[int, int]] = []
    for order, which in steps:
        if order >= 0:
            held.append((alloc(order), order))
        else:
            held[which], held[-1] = held[-1], held[which]
            release(*held.pop())
    for pfn, order in held:
        release(pfn, order)
    return len(steps) + len(held)


def host_minor_fault_ns() -> float:
    """CPU time of a real minor fault: first touches of anonymous memory less second touches, each fault counted by the kernel."""
    results = []
    pages = 32768
    for _ in range(5):
        area = mmap.mmap(-1, pages * mmap.PAGESIZE)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            area.madvise(mmap.MADV_NOHUGEPAGE)
        costs = []
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF)
            for offset in range(0, pages * mmap.PAGESIZE, mmap.PAGESIZE):
                area[offset] = 1
            after = resource.getrusage(resource.RUSAGE_SELF)
            costs.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_minflt - before.ru_minflt))
        area.close()
        results.append((costs[0][0] - costs[1][0]) * 1e9 / max(costs[0][1] - costs[1][1], 1))
    return median(results)


def run() -> list[Row]:
    steps = script(1)
    machine = Machine.boot(qemu_map(8 * GIB), platform=qemu_platform(8 * GIB))
    zone = machine.zone("Normal")

    def model() -> int:
        return play(steps, lambda order: _rmqueue_smallest(zone, order, MIGRATE_MOVABLE),
                    lambda pfn, order: _free_one_page(zone, pfn, order, MIGRATE_MOVABLE))

    plain = SetBuddy(zone.managed_pages // 1024 * 1024)
    buddy = median_ns(model)
    sets = median_ns(lambda: play(steps, plain.alloc, plain.release))

    def requests() -> int:
        pages = [machine.alloc_pages(GFP_HIGHUSER_MOVABLE) for _ in range(50_000)]
        for pfn in pages:
            assert pfn is not None
            machine.free_pages(pfn)
        return 100_000

    def bulk() -> float:
        results = []
        for _ in range(5):
            begin = time.process_time_ns()
            pages = [p for _ in range(50_000 // BULK) for p in machine.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, BULK)]
            results.append((time.process_time_ns() - begin) / len(pages))
            for pfn in pages:
                machine.free_pages(pfn)
        return median(results)

    whole = median_ns(requests)
    filled = bulk()
    fault = host_minor_fault_ns()
    size = f"{zone.managed_pages >> 10} Ki frames"
    return [
        Row("buddy", f"`__rmqueue_smallest`, `__free_one_page`, mixed orders, {size}", buddy, sets, "buddy of sets", "ns"),
        Row("buddy", "`alloc_pages` or `free_pages` of order 0, whole path", whole, sets, "buddy of sets, same machine", "ns"),
        Row("buddy", f"`alloc_pages_bulk` of {BULK}, a page", filled, whole, "one `alloc_pages` or `free_pages`", "ns"),
        Row("buddy", f"`alloc_pages_bulk` of {BULK}, a page", filled, sets, "buddy of sets", "ns"),
        Row("buddy", "`alloc_pages` and `free_pages` of order 0", 2 * whole, fault, "a real minor fault here (CPU)", "ns"),
        Row("buddy", "`alloc_pages_bulk`, a page", filled, fault, "a real minor fault here (CPU)", "ns"),
    ]
