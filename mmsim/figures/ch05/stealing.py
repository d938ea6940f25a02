"""Stealing: what unmovable pages do to the large blocks of a machine, with and without grouping by mobility."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from mmsim.constants import (
    ALLOC_HIGH,
    ALLOC_KSWAPD,
    ALLOC_NOFRAGMENT,
    ALLOC_WMARK_LOW,
    ALLOC_WMARK_MIN,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_MOVABLE_MASK,
    MIGRATE_UNMOVABLE,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
    ZONE_DMA32,
    ZONE_NORMAL,
)
from mmsim.draw import Ask, Entry, Frame, Ledger, Legend, Range, Scene, Seed, Toggle, figure, grouped
from mmsim.figures.ch05.machines import TYPE_NAMES, small_memory
from mmsim.physical.frames import PG
from mmsim.physical.free import free_pages
from mmsim.physical.freelist import get_page_from_freelist, prepare_alloc_pages
from mmsim.physical.pcp import drain_all_pages
from mmsim.physical.watermark import high_wmark_pages
from mmsim.physical.zone import Zone
from mmsim.trace import Event

__all__ = ["Workload", "stealing"]

#: Pageblocks of the two zones; DMA32 is what ALLOC_NOFRAGMENT may turn to.
DMA32_BLOCKS, NORMAL_BLOCKS = 8, 24
BLOCKS = DMA32_BLOCKS + NORMAL_BLOCKS
REQUESTS = 24_000
SNAPSHOTS = 8


@dataclass(frozen=True, slots=True)
class Block:
    """What one pageblock holds at a moment."""

    type: int
    unmovable: int
    movable: int


class Workload:
    """Single pages for a file cache that takes all memory it can get, and among them unmovable ones for the kernel.

    ``pressure`` is the percentage of unmovable requests. At most a tenth of memory is unmovable at a time: beyond that one of
    them, chosen by the seed, is freed first. kswapd, and whoever finds no page, frees the oldest pages of the cache.
    """

    def __init__(self, pressure: float, seed: int, grouping: bool = True, nofragment: bool = True, boost: bool = True):
        self.memory = small_memory((ZONE_DMA32, DMA32_BLOCKS * PAGEBLOCK_NR_PAGES), (ZONE_NORMAL,
            NORMAL_BLOCKS * PAGEBLOCK_NR_PAGES))
        self.pressure, self.dice, self.nofragment = pressure, Random(seed), nofragment
        self.memory.page_group_by_mobility_disabled = not grouping
        if not boost:
            self.memory.watermark_boost_factor = 0
        self.memory.wakeup_kswapd = self._wake
        self.kswapd_awake = False
        self.cache: deque[int] = deque()
        self.kernel: list[int] = []
        self.is_kernel = bytearray(BLOCKS * PAGEBLOCK_NR_PAGES)
        self.requests = self.unmovable_requests = self.mixed = self.claimed = self.boosts = self.reclaimed = 0
        self.memory.trace.subscribe(self._extfrag, "kmem:mm_page_alloc_extfrag")

    def _extfrag(self, event: Event) -> None:
        if event["change_ownership"]:
            self.claimed += 1
        else:
            self.mixed += 1

    def _wake(self, zone: Zone, gfp_flags: int, order: int, highest_zoneidx: int) -> None:
        self.kswapd_awake = True

    def _drop_oldest(self, count: int) -> None:
        for _ in range(min(count, len(self.cache))):
            pfn = self.cache.popleft()
            self.memory.frames.flags[pfn] &= ~PG["lru"]
            free_pages(self.memory, pfn)
            self.reclaimed += 1

    def _kswapd(self) -> None:
        """Free the oldest cache pages until every zone is above its boosted high mark; then the boost is spent."""
        self.kswapd_awake = False
        for zone in self.memory.zones():
            while zone.nr_free_pages <= high_wmark_pages(zone) and self.cache:
                self._drop_oldest(32)
            self.boosts += bool(zone.watermark_boost)
            zone.watermark_boost = 0

    def _page(self, gfp_mask: int) -> int | None:
        """One page as __alloc_pages() gets it: at the low mark first, then with kswapd's help at min."""
        memory = self.memory
        if memory.page_group_by_mobility_disabled:
            # 5.17: gfp_migratetype() says Unmovable for every request then.
            gfp_mask &= ~GFP_MOVABLE_MASK
        context, _ = prepare_alloc_pages(memory, gfp_mask, 0)
        flags = ALLOC_WMARK_LOW | ALLOC_KSWAPD | (ALLOC_NOFRAGMENT if self.nofragment else 0)
        pfn = get_page_from_freelist(memory, gfp_mask, 0, flags, context)
        if pfn is None:
            self._kswapd()
            pfn = get_page_from_freelist(memory, gfp_mask, 0, ALLOC_WMARK_MIN | ALLOC_KSWAPD, context)
        if pfn is None:
            self._drop_oldest(64)
            pfn = get_page_from_freelist(memory, gfp_mask, 0, ALLOC_WMARK_MIN | ALLOC_HIGH | ALLOC_KSWAPD, context)
        return pfn

    def run(self, requests: int) -> None:
        """So many requests more."""
        flags, lru, dice = self.memory.frames.flags, PG["lru"], self.dice
        most = BLOCKS * PAGEBLOCK_NR_PAGES // 10
        for _ in range(requests):
            self.requests += 1
            if dice.random() * 100 < self.pressure:
                self.unmovable_requests += 1
                if len(self.kernel) >= most:
                    place = dice.randrange(len(self.kernel))
                    old, self.kernel[place] = self.kernel[place], self.kernel[-1]
                    self.kernel.pop()
                    self.is_kernel[old] = 0
                    free_pages(self.memory, old)
                pfn = self._page(GFP_KERNEL)
                if pfn is not None:
                    self.kernel.append(pfn)
                    self.is_kernel[pfn] = 1
            else:
                pfn = self._page(GFP_HIGHUSER_MOVABLE)
                if pfn is not None:
                    flags[pfn] |= lru
                    self.cache.append(pfn)
            if self.kswapd_awake:
                self._kswapd()

    def drop_cache(self) -> None:
        """Free the whole cache and empty the per-CPU lists: what stays is the kernel's."""
        self._drop_oldest(len(self.cache))
        drain_all_pages(self.memory)

    def blocks(self) -> list[Block]:
        """Every pageblock: its type, and how many of its pages are unmovable and movable."""
        size, lru, frames = PAGEBLOCK_NR_PAGES, PG["lru"], self.memory.frames
        return [
            Block(frames.pageblock_mt[number], self.is_kernel.count(1, number * size, (number + 1) * size),
                  sum(1 for word in frames.flags[number * size:(number + 1) * size] if word & lru))
            for number in range(BLOCKS)
        ]

    def whole(self) -> int:
        """Blocks of order 9 that there would be if all movable pages went away: pageblocks without an unmovable page."""
        return sum(1 for block in self.blocks() if not block.unmovable)


class _Map:
    """Pageblocks as cells: the words name type and unmovable pages, the bar shows the shares."""

    def __init__(self, blocks: list[Block], grouping: bool):
        self.blocks, self.grouping = blocks, grouping

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        columns = 4 if scene.narrow else 8
        gap, high = 6.0, 40.0
        wide = (width - gap * (columns - 1)) / columns
        top = y
        for first, name in ((0, "zone DMA32"), (DMA32_BLOCKS, "zone Normal")):
            count = DMA32_BLOCKS if not first else NORMAL_BLOCKS
            scene.text(f"{key}.{name}", x, top + 11, name, "small", "muted")
            top += 17
            for number in range(count):
                row, column = divmod(number, columns)
                self._cell(scene, f"{key}/{first + number}", self.blocks[first + number], first + number,
                           x + column * (wide + gap), top + row * (high + gap), wide, high)
            top += -(-count // columns) * (high + gap) + 4
        return top - y

    def _cell(self, scene: Scene, key: str, block: Block, number: int, x: float, y: float, wide: float, high: float) -> None:
        free = PAGEBLOCK_NR_PAGES - block.unmovable - block.movable
        kind = TYPE_NAMES.get(block.type, "other")
        tip = f"pageblock {number}, {kind}: {block.unmovable} unmovable, {block.movable} movable pages, {free} free"
        words = f"{kind[0]} {block.unmovable}" if block.unmovable else kind[0]
        stray = block.unmovable and block.type != MIGRATE_UNMOVABLE
        scene.text(f"{key}.t", x, y + 12, words, "small", "warn" if stray else "strong" if block.unmovable else "muted", tip=tip)
        left, top, tall = x, y + 17, high - 17
        scene.rect(f"{key}.free", x, top, wide, tall, "free", tip)
        kernel = max(wide * block.unmovable / PAGEBLOCK_NR_PAGES, 4) if block.unmovable else 0
        movable = min(wide * block.movable / PAGEBLOCK_NR_PAGES, wide - kernel)
        if kernel:
            scene.rect(f"{key}.u", left, top, kernel, tall, "kernel", tip)
        if movable:
            scene.rect(f"{key}.m", left + kernel, top, movable, tall, "anon", tip)


@dataclass(frozen=True, slots=True)
class _Shot:
    blocks: list[Block]
    whole: int
    counts: tuple[int, int, int, int, int, int]


def _shot(load: Workload) -> _Shot:
    counts = (load.requests, load.unmovable_requests, load.claimed, load.mixed, load.boosts, load.reclaimed)
    return _Shot(load.blocks(), load.whole(), counts)


def _frame(shot: _Shot, before: _Shot | None, say: str, grouping: bool, width: float, ask: Ask | None = None) -> Frame:
    scene = Scene(width)
    scene.add(_Map(shot.blocks, grouping), "map", "Pageblocks of 2 MiB",
        "letter: its type; number: unmovable pages in it (red: in a Movable one)")
    names = ("requests", "of them unmovable", "pageblocks claimed", "taken without claiming", "boosts spent", "pages reclaimed")
    old = before.counts if before else shot.counts
    entries = [Entry(name, value, value - last) for name, value, last in zip(names, shot.counts, old, strict=True)]
    entries.append(Entry("order-9 blocks possible", f"{shot.whole} of {BLOCKS}", shot.whole - before.whole if before else 0,
                         tip="pageblocks without an unmovable page: what moving or freeing all movable pages could make whole"))
    scene.add(Ledger(entries), "ledger", gap=10)
    scene.add(Legend({"kernel": "unmovable", "anon": "movable", "free": "free"}), "legend", gap=10)
    return Frame(scene, say, ask=ask)


@figure(
    "Stealing",
    alt="A map of 32 pageblocks with the share of unmovable, movable and free pages in each, while a workload of both "
        "kinds runs; counters say how many blocks of order 9 could still be made.",
    params=[
        Range("pressure", 0, 100, default=5, unit="%", label="unmovable requests"),
        Toggle("grouping", True, label="grouping by mobility"),
        Toggle("nofragment", True, label="ALLOC_NOFRAGMENT"),
        Toggle("boost", True, label="watermark boost"),
        Seed(),
    ],
)
def stealing(pressure: int, grouping: bool, nofragment: bool, boost: bool, seed: int, width: float) -> Iterator[Frame]:
    """Runs a workload through :func:`get_page_from_freelist` twice: as asked, and with grouping the other way round."""
    load, other = Workload(pressure, seed, grouping, nofragment, boost), Workload(pressure, seed, not grouping, nofragment, boost)
    start = _shot(load)
    shots = []
    for _ in range(SNAPSHOTS):
        load.run(REQUESTS // SNAPSHOTS)
        shots.append(_shot(load))
    other.run(REQUESTS)
    last, rival = shots[-1], _shot(other)
    on, off = ("with", "without") if grouping else ("without", "with")
    kernel = sum(block.unmovable for block in last.blocks)
    reach = BLOCKS - last.whole
    yield _frame(last, None,
                 f"After {grouped(REQUESTS)} requests {grouped(kernel)} pages are unmovable, "
                 f"{kernel * 100 / (BLOCKS * PAGEBLOCK_NR_PAGES):.1f} % of memory. {on.capitalize()} grouping they lie in "
                 f"{reach} of {BLOCKS} pageblocks. Step on to watch it happen, and then the same requests {off} grouping.",
                 grouping, width)
    counts = "" if grouping else ", but every request counts as Unmovable: nothing is grouped"
    yield _frame(start, None, f"At the start all {BLOCKS} pageblocks are free and Movable{counts}.", grouping, width)
    before = start
    for number, shot in enumerate(shots, 1):
        requests, unmovable, claimed, mixed, boosts, _ = shot.counts
        spoilt = BLOCKS - shot.whole
        ask = None
        if number == 2 and pressure:
            total = sum(block.unmovable for block in rival.blocks)
            ask = Ask(f"At the end {grouped(total)} pages are unmovable in the run {off} grouping, and they would fit "
                      f"into {-(-total // PAGEBLOCK_NR_PAGES)} pageblocks. In how many do they lie?",
                      BLOCKS - rival.whole,
                      f"One unmovable page is enough to spoil a block of order {PAGEBLOCK_ORDER}, wherever it lies in it.",
                      unit="pageblocks")
        yield _frame(shot, before,
                     f"{grouped(requests)} requests, {grouped(unmovable)} of them unmovable: {spoilt} "
                     f"pageblock{'' if spoilt == 1 else 's'} hold{'s' if spoilt == 1 else ''} unmovable pages. Pageblocks "
                     f"claimed so far: {claimed}; thefts without a claim: {mixed}; boosts that made kswapd free more: "
                     f"{boosts}.", grouping, width, ask)
        before = shot
    yield _frame(rival, None,
                 f"For comparison, the same requests {off} grouping: unmovable pages lie in {BLOCKS - rival.whole} of "
                 f"{BLOCKS} pageblocks, so {rival.whole} blocks of order 9 could be made instead of {last.whole}.",
                 not grouping, width)
