"""TLB reach: how much memory a CPU can use without walking, and what happens one page beyond."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from mmsim.constants import ZONE_NORMAL
from mmsim.draw import Ask, Choice, Entry, Frame, FrameBoard, Ledger, Legend, Run, Scene, Seed, figure, grouped
from mmsim.figures.ch03.the_walk import PAGE_SIZES, SMALL_SIZES
from mmsim.figures.ch05.machines import small_memory
from mmsim.paging.address import LEVEL_SHIFT
from mmsim.paging.contents import FrameContents
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_SHARED
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.paging.tlb import Tlb
from mmsim.paging.walk_cache import WalkCache
from mmsim.physical.page_alloc import PageAllocator
from mmsim.units import MIB

__all__ = ["SETS", "Reach", "measure_reach", "tlb_reach"]

#: Working sets of the film, in MiB.
SETS: tuple[float, ...] = (0.0625, 0.25, 0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32)
_BASE = 0x7F0000000000


@dataclass(frozen=True, slots=True)
class Reach:
    """What a number of accesses to a working set cost: lookups that hit either level, misses, words read by the walks."""

    accesses: int
    first: int
    second: int
    misses: int
    loads: int
    used: tuple[int, int]               # entries in the first and the second level

    @property
    def hit_rate(self) -> float:
        """Hits of both levels, of all accesses."""
        return (self.first + self.second) / self.accesses

    @property
    def loads_per_access(self) -> float:
        """Words of page tables read for each access."""
        return self.loads / self.accesses


@cache
def _sequence(nr_pages: int, pattern: str, seed: int, count: int) -> tuple[int, ...]:
    if pattern == "loop":
        return tuple(number % nr_pages for number in range(count))
    rng = Random(seed)
    return tuple(rng.randrange(nr_pages) for _ in range(count))


def _space(working_set: float, level: int) -> tuple[Mmu, int]:
    """A CPU that runs an address space with so many MiB mapped, in pages of one size; how many pages."""
    size = 1 << LEVEL_SHIFT[level]
    nr_pages = max(int(working_set * MIB) // size, 1)
    contents = FrameContents(1 << 24)
    tables = PageTables(TableMemory(PageAllocator(small_memory((ZONE_NORMAL, 512))), contents))
    for number in range(nr_pages):
        tables.map_page(_BASE + number * size, number * (size >> 12), PAGE_SHARED, level)
    cpu = Mmu(contents)
    cpu.write_cr3(tables.pgd << 12)
    return cpu, nr_pages


@cache
def measure_reach(working_set: float, level: int, pattern: str = "random", seed: int = 1, accesses: int = 1024,
                  walk_cache: bool = True) -> Reach:
    """Touch 4 KiB pieces of a working set of so many MiB until the TLB is filled, then count ``accesses`` more.

    ``level`` 1 maps it with 4 KiB pages, 2 with 2 MiB pages; ``pattern`` is loop or random. Cost: microseconds an access.
    """
    cpu, _ = _space(working_set, level)
    if not walk_cache:
        cpu.walk_cache = WalkCache({})
    pieces = max(int(working_set * MIB) >> 12, 1)
    # One round fills the TLB; random access then needs some time until what is in it is random as well.
    round_once = range(min(pieces, 2048) if pattern == "random" else pieces)
    mixing = min(pieces, 1024) if pattern == "random" else 0
    sequence = [*round_once, *_sequence(pieces, pattern, seed, mixing + accesses)]
    warm = len(sequence) - accesses
    addrs = [_BASE + (piece << 12) for piece in sequence]
    cpu.run(addrs[:warm])
    tlb = cpu.tlb
    before = (tlb.hits, tlb.second_hits, tlb.misses, cpu.loads)
    cpu.run(addrs[warm:])
    first, second, misses, loads = (now - was for now, was in zip((tlb.hits, tlb.second_hits, tlb.misses, cpu.loads), before, strict=True))
    return Reach(accesses, first, second, misses, loads, (_entries(tlb, level), len(tlb.second[0])))


def _entries(tlb: Tlb, level: int) -> int:
    return len(tlb.data[level - 1])


class _Curve:
    """Hit rate against the working set, for both page sizes; the chosen set is marked."""

    def __init__(self, points: dict[int, list[Reach]], now: int, level: int, shown: int):
        self.points, self.now, self.level, self.shown = points, now, level, shown

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Axes, two lines with different marks, and a line at the current set."""
        left, high, top = x + 44.0, 150.0, y + 6
        room = width - 50
        for part in (0, 25, 50, 75, 100):
            at = top + high * (1 - part / 100)
            scene.line(f"{key}/grid{part}", left, at, left + room, at, "grid")
            scene.text(f"{key}/grid{part}.t", left - 6, at + 4, f"{part} %", "small", "muted", "end")
        step = room / (len(SETS) - 1)
        for number, size in enumerate(SETS):
            if not scene.narrow or number % 2 == 0 or number == len(SETS) - 1 and len(SETS) % 2:
                anchor = "end" if number == len(SETS) - 1 else "middle"
                scene.text(f"{key}/x{number}", left + step * number, top + high + 16, _short(size), "small", "muted", anchor)
        for level, points in self.points.items():
            places = [(left + step * number, top + high * (1 - point.hit_rate)) for number, point in enumerate(points[:self.shown])]
            if places:
                d = "M" + "L".join(f"{px:.5g} {py:.5g}" for px, py in places)
                scene.path(f"{key}/line{level}", d, "wire lit" if level == self.level else "wire accent", bottom=top + high)
            for number, (px, py) in enumerate(places):
                tip = f"{'4 KiB' if level == 1 else '2 MiB'} pages, {_short(SETS[number])}: {points[number].hit_rate * 100:.1f} % hits"
                if level == 1:
                    scene.circle(f"{key}/dot{level}:{number}", px, py, 4.5, "anon", tip)
                else:
                    scene.rect(f"{key}/dot{level}:{number}", px - 4.5, py - 4.5, 9, 9, "huge", tip)
        at = left + step * self.now
        scene.line(f"{key}/now", at, top, at, top + high, "wire lit")
        return high + 26


def _short(size: float) -> str:
    return f"{int(size * 1024)}K" if size < 1 else f"{int(size)}M"


class _Arrays:
    """Both levels of the TLB, an entry a cell."""

    def __init__(self, used: tuple[int, int], level: int):
        self.used, self.first = used, 64 if level == 1 else 32

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """The first level as one row of cells, the second below it."""
        top = y
        for name, used, total, columns in (("first", self.used[0], self.first, 64), ("second", self.used[1], 1536, 128)):
            scene.text(f"{key}/{name}.t", x, top + 12, f"{name} level: {grouped(used)} of {grouped(total)} entries", "small")
            runs = [Run(0, used, "hot", "", f"{used} entries in use")] if used else []
            if used < total:
                runs.append(Run(used, total - used, "free", "", f"{total - used} empty"))
            wide = width * total / 64 if name == "first" else width
            top += 18 + FrameBoard(runs, total, columns=min(columns, total)).draw(scene, f"{key}/{name}", x, top + 18, wide) + 8
        return top - y


@figure(
    "TLB reach",
    alt="Hit rate of a TLB against the working set, for pages of 4 KiB and of 2 MiB: the first falls beyond 6 MiB, the second stays at 100 "
        "per cent; below it both levels of the TLB with their entries in use.",
    params=[
        Choice("pattern", {"random": "random", "loop": "in a loop"}, label="access"),
        Choice("page", SMALL_SIZES, label="page size"),
        Choice("size", {str(size): _short(size) for size in SETS}, default="8", label="working set"),
        Seed(),
    ],
)
def tlb_reach(pattern: str, page: int, size: str, seed: int, width: float) -> Iterator[Frame]:
    """Lets :meth:`mmsim.paging.mmu.Mmu.run` touch working sets of twelve sizes, and counts hits, misses and loads."""
    points = {level: [measure_reach(one, level, pattern, seed, 1024 // level ** 2) for one in SETS] for level in (1, 2)}
    words, how = PAGE_SIZES[page], "in a loop" if pattern == "loop" else "at random"

    def shot(number: int, shown: int, ask: Ask | None = None) -> Frame:
        point = points[page][number]
        scene = Scene(width)
        scene.add(_Curve(points, number, page, shown), "curve", "Accesses that need no walk", f"{pattern} access, by working set")
        scene.add(Legend({"anon": "4 KiB pages", "huge": "2 MiB pages", "hot": "TLB entry in use"}), "legend", gap=6)
        scene.add(_Arrays(point.used, page), "tlb", f"The TLB, {words} pages")
        scene.add(Ledger([Entry("first-level hits", f"{point.first / point.accesses * 100:.1f} %"),
                          Entry("second-level hits", f"{point.second / point.accesses * 100:.1f} %"),
                          Entry("walks", f"{point.misses / point.accesses * 100:.1f} %"),
                          Entry("table words read", f"{point.loads_per_access:.2f} an access")]), "ledger")
        return Frame(scene, f"{_short(SETS[number])} in {words} pages, touched {how}: {point.hit_rate * 100:.1f} % "
                     f"of the accesses hit the TLB, the others cost {_per_walk(point)}.", ask=ask)

    chosen = SETS.index(float(size))
    yield shot(chosen, len(SETS))
    for number in range(len(SETS)):
        ask = None
        if SETS[number] == 6:
            other = points[page][number + 1].hit_rate
            bands = ["all", "about 3 in 4", "about half", "none"]
            right = bands[0] if other > 0.9 else bands[1] if other > 0.62 else bands[2] if other > 0.2 else bands[3]
            ask = Ask("The second level has 1 536 entries, enough for 6 MiB in 4 KiB pages. Next: 8 MiB. How many accesses hit?",
                      right, f"{other * 100:.1f} %. In a loop, the page that is needed next is always the one that was given up; random "
                      "access finds what happens to be there.", choices=bands)
        yield shot(number, number + 1, ask)


def _per_walk(point: Reach) -> str:
    if not point.misses:
        return "nothing: there are none"
    return f"{point.loads / point.misses:.2f} table words each"
