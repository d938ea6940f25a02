"""User-space allocators on one trace of malloc and free, against free lists by size that keep no headers and check nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from benchmarks.measure import Row, median_ns
from mmsim.malloc.buddy import UserBuddy
from mmsim.malloc.bump import Bump
from mmsim.malloc.fragmentation import Operation, random_trace
from mmsim.malloc.freelist import FreeList
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.process_program import ProcessProgram
from mmsim.malloc.program import PlainProgram
from mmsim.malloc.segregated import SizeClasses
from mmsim.reference import ref256

OPERATIONS = 20_000
LIVE = 500


class Heap(Protocol):
    def malloc(self, size: int) -> int: ...
    def free(self, memory: int) -> None: ...


class SizeLists:
    """The least that an allocator can be in Python: freed addresses by size, sizes by address."""

    def __init__(self) -> None:
        self.free_lists: defaultdict[int, list[int]] = defaultdict(list)
        self.sizes: dict[int, int] = {}
        self.end = 0

    def malloc(self, size: int) -> int:
        size = size + 15 & ~15
        free = self.free_lists[size]
        if free:
            memory = free.pop()
        else:
            memory, self.end = self.end, self.end + size
        self.sizes[memory] = size
        return memory

    def free(self, memory: int) -> None:
        self.free_lists[self.sizes.pop(memory)].append(memory)


def play(heap: Heap, trace: list[Operation]) -> int:
    held: dict[int, int] = {}
    for kind, name, size in trace:
        if kind == "malloc":
            held[name] = heap.malloc(size)
        else:
            heap.free(held.pop(name))
    return len(trace)


def run() -> list[Row]:
    trace = random_trace(1, OPERATIONS, live=LIVE)
    machine = ref256()

    def cost(make: Callable[[], Heap]) -> float:
        return median_ns(lambda: play(make(), trace), repeats=3)

    def process() -> Heap:
        return Ptmalloc(ProcessProgram(machine.spawn("benchmark")))

    lists = cost(SizeLists)
    plain = cost(lambda: Ptmalloc(PlainProgram()))
    heaps: list[tuple[str, Callable[[], Heap]]] = [
        ("bump", lambda: Bump(PlainProgram())), ("free list, first fit", lambda: FreeList(PlainProgram())),
        ("free list, best fit", lambda: FreeList(PlainProgram(), policy="best")), ("buddies", lambda: UserBuddy(PlainProgram())),
        ("size classes", lambda: SizeClasses(PlainProgram()))]
    return [
        Row("malloc", f"glibc 2.36, a `malloc` or `free` ({1e9 / plain:,.0f}/s)", plain, lists, "lists by size", "ns"),
        Row("malloc", "the same without thread cache", cost(lambda: Ptmalloc(PlainProgram(), tunables={"tcache_count": 0})), plain,
            "with it", "ns"),
        Row("malloc", "the same in a process, with page tables and frames", cost(process), plain, "without", "ns"),
        *(Row("malloc", f"{name}, a `malloc` or `free`", cost(make), lists, "lists by size", "ns") for name, make in heaps),
    ]
