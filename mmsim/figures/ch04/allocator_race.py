"""Eight allocators, one trace: what each has in RAM, and how it is divided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Choice,
    Frame,
    Legend,
    Range,
    Region,
    RegionList,
    Scene,
    Seed,
    Span,
    figure,
    grouped,
)
from mmsim.figures.ch04.stage import HEAP_ROLES, Logged, glibc, kib
from mmsim.malloc.allocator import Allocator
from mmsim.malloc.buddy import UserBuddy
from mmsim.malloc.bump import Bump
from mmsim.malloc.fragmentation import Operation, random_trace
from mmsim.malloc.freelist import FreeList
from mmsim.malloc.program import Program
from mmsim.malloc.segregated import SizeClasses
from mmsim.units import KIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["ALLOCATORS", "SIZES", "Lap", "allocator_race", "race"]

ALLOCATORS: dict[str, Callable[[Program], Allocator]] = {
    "bump": Bump,
    "first fit": lambda program: FreeList(program, "first", "address"),
    "next fit": lambda program: FreeList(program, "next", "address"),
    "best fit": lambda program: FreeList(program, "best"),
    "worst fit": lambda program: FreeList(program, "worst"),
    "buddy": lambda program: UserBuddy(program, 64 * KIB),
    "size classes": SizeClasses,
    "glibc": glibc,
}


def _mixed(random: Random) -> int:
    return random.choice((16, 24, 40, 100, 300, 1000, 5000))


def _uniform(random: Random) -> int:
    return random.randint(1, 4000)


def _small(random: Random) -> int:
    return random.randint(1, 200)


def _powers(random: Random) -> int:
    return 1 << random.randint(5, 12)


#: Distributions of request sizes; the last is two, one after the other.
SIZES = {"mixed": "16 to 5000, mostly small", "uniform": "1 to 4000, all alike", "small": "1 to 200", "powers": "powers of two, 32 to 4096",
         "shift": "small first, then large"}
_DRAW: dict[str, Callable[[Random], int]] = {"mixed": _mixed, "uniform": _uniform, "small": _small, "powers": _powers}
OPERATIONS = 1000
EVERY = 200


@dataclass(frozen=True, slots=True)
class Lap:
    """An allocator's memory after some operations, in bytes: in RAM, asked for, in used blocks; and its blocks in RAM."""

    rss: int
    requested: int
    used: int
    spans: tuple[tuple[int, int, str], ...]
    steps: int

    @property
    def share(self) -> float:
        """What was asked for, of what is in RAM."""
        return self.requested / self.rss if self.rss else 1.0

    @property
    def rounding(self) -> float:
        """Headers and rounding, of what is in RAM."""
        return min((self.used - self.requested) / self.rss, 1.0) if self.rss else 0.0

    @property
    def holes(self) -> float:
        """All the rest: free, but in RAM."""
        return max(1 - self.share - self.rounding, 0.0)


def trace_of(sizes: str, live: int, seed: int) -> list[Operation]:
    """The trace of a run; ``shift`` asks for small objects in its first half and for large ones in the second."""
    if sizes != "shift":
        return random_trace(seed, OPERATIONS, _DRAW[sizes], live)
    first = random_trace(seed, OPERATIONS // 2, _small, live * 4)
    live_names = {name for kind, name, _ in first if kind == "malloc"} - {name for kind, name, _ in first if kind == "free"}
    dying = sorted(live_names)
    Random(seed).shuffle(dying)
    second: list[Operation] = []
    for kind, name, size in random_trace(seed + 1, OPERATIONS // 2, _uniform, live):
        second.append((kind, name + OPERATIONS, size))
        if dying:
            second.append(("free", dying.pop(), 0))
    return [*first, *second][:OPERATIONS]


@lru_cache(maxsize=128)
def race(name: str, sizes: str, live: int, seed: int) -> tuple[Lap, ...]:
    """Run the trace on one allocator, writing to all memory it gives; its laps, one after each 200 operations."""
    program = Logged()
    heap = ALLOCATORS[name](program)
    own = set(program._pages)                       # the library's data, which a program does not have because of its heap
    held: dict[int, tuple[int, int]] = {}
    laps = []
    for number, (kind, key, size) in enumerate(trace_of(sizes, live, seed), 1):
        if kind == "malloc":
            memory = heap.malloc(size)
            program.fill(memory, size, 1)
            held[key] = memory, size
        elif key in held:
            heap.free(held.pop(key)[0])
        if number % EVERY == 0:
            laps.append(_lap(program, heap, held, own))
    heap.check()
    return tuple(laps)


def _lap(program: Logged, heap: Allocator, held: dict[int, tuple[int, int]], own: set[int]) -> Lap:
    pages = {page for page in (*program._pages, *program._guarded) if page not in own}
    library = getattr(heap, "main_arena", None)
    if library is not None:
        pages.discard(library.address >> PAGE_SHIFT)
    requested = sum(size for _, size in held.values())
    used, at = 0, 0
    spans: list[tuple[int, int, str]] = []
    for block in heap.walk():
        if block.state == "used":
            used += block.size
        first, last = block.address >> PAGE_SHIFT, block.end - 1 >> PAGE_SHIFT
        there = [page for page in range(first, last + 1) if page in pages]
        if not there:
            continue
        low, high = max(block.address, there[0] << PAGE_SHIFT), min(block.end, there[-1] + 1 << PAGE_SHIFT)
        role = HEAP_ROLES[block.state]
        if spans and spans[-1][2] == role:
            spans[-1] = (spans[-1][0], at + high - low, role)
        else:
            spans.append((at, at + high - low, role))
        at += high - low
    return Lap(len(pages) * PAGE_SIZE, requested, used, tuple(spans), getattr(heap, "steps", 0))


_WORDS = {"anon": "in use", "free": "free", "hot": "free, in a cache", "kernel": "the allocator's own, or lost"}


def _draw(laps: dict[str, Lap], axis: Axis, width: float, say: str, ask: Ask | None = None) -> Frame:
    scene = Scene(width)
    bars = []
    for name, lap in laps.items():
        spans = [Span(a, b, role, "", f"{name}: {kib(b - a)} {_WORDS[role]}", key=f"{a}") for a, b, role in lap.spans]
        bars.append(Bar(name, spans))
    scene.add(AddressBar(bars, axis, thick=19, gap=5), "heaps", "What each allocator has in RAM", "blocks in the order of their addresses")
    scene.add(Legend(_WORDS), "legend", gap=4)
    rows = []
    least = min(lap.rss for lap in laps.values())
    for name, lap in laps.items():
        cells = [name, grouped(lap.rss >> 10), f"{lap.share:.0%}", f"{lap.rounding:.0%}", f"{lap.holes:.0%}"]
        rows.append(Region(name, cells, "", f"{grouped(lap.steps)} free blocks looked at" if lap.steps else "",
                           "moving" if lap.rss == least else ""))
    scene.add(RegionList(rows, ["allocator", "KiB", "asked", "rounding", "holes"]), "table", "Where the memory in RAM goes")
    return Frame(scene, say, ask=ask)


@figure(
    "Allocator race",
    alt="The heaps of eight allocators as bars of used and free blocks after the same trace, from a bump allocator over free lists and "
        "buddies to glibc, and a table of how much of each is asked for, rounding and holes.",
    params=[
        Choice("sizes", SIZES, "mixed", label="request sizes"),
        Range("live", 10, 120, 50, step=10, label="objects alive", help="about so many objects exist at a time"),
        Seed(),
    ],
)
def allocator_race(sizes: str, live: int, seed: int, width: float) -> Iterator[Frame]:
    """Runs every allocator of :mod:`mmsim.malloc` in a program of its own; all of its memory is written to."""
    runs = {name: race(name, sizes, live, seed) for name in ALLOCATORS}
    longest = max(lap.spans[-1][1] if lap.spans else 1 for name, laps in runs.items() if name != "bump" for lap in laps)
    axis = Axis(0, longest * 9 // 8, show=lambda offset: f"{offset >> 10}K")
    laps = len(runs["bump"])

    def at(lap: int) -> dict[str, Lap]:
        return {name: run[lap] for name, run in runs.items()}

    final = at(laps - 1)
    least, most = min(final, key=lambda n: final[n].rss), max((n for n in final if n != "bump"), key=lambda n: final[n].rss)
    asked = kib(final["bump"].requested)
    yield _draw(final, axis, width, f"The same {grouped(OPERATIONS)} requests, eight allocators; {asked} are asked for in the end. Least "
                f"in RAM: {least}, {kib(final[least].rss)}; most: {most}, {kib(final[most].rss)}; and bump, which reuses nothing, "
                f"{kib(final['bump'].rss)}.")
    for lap in range(laps):
        state = at(lap)
        order = sorted((n for n in state if n != "bump"), key=lambda n: state[n].rss)
        say = (f"After {grouped((lap + 1) * EVERY)} operations {kib(state['bump'].requested)} are asked for. In front: {order[0]} with "
               f"{kib(state[order[0]].rss)} in RAM; last: {order[-1]} with {kib(state[order[-1]].rss)}; bump has {kib(state['bump'].rss)}.")
        ask = None
        if lap == 0:
            rounding = max(("first fit", "buddy", "size classes", "glibc"), key=lambda n: final[n].rounding)
            ask = Ask("Which of these will lose most to rounding in the end?", rounding,
                      f"{rounding.capitalize()}: {final[rounding].rounding:.0%} of its memory in RAM.",
                      ["first fit", "buddy", "size classes", "glibc"])
        yield _draw(state, axis, width, say, ask)
