"""From memblock to the buddy allocator, and what is freed after that.

memblock knows ranges, the buddy allocator blocks. Each free range goes over as the largest blocks that its alignment
allows; what is reserved is marked PG_reserved and stays with whoever took it. Later, single parts of the reserved
memory follow: the initial RAM disk, the code and data that only the boot needed, gaps in the kernel image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmsim.boot.memblock import Memblock
from mmsim.boot.zones import ZoneLayout
from mmsim.constants import MAX_ORDER, MIGRATE_MOVABLE, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, PAGES_PER_SECTION
from mmsim.physical.frames import PG
from mmsim.physical.free import free_pages, free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.zone import Zone
from mmsim.units import PAGE_SIZE, align_down, align_up, ctz, pfn_down, pfn_up

__all__ = ["DeferredInit", "blocks_of", "first_deferred_pfn", "memblock_free_all", "memblock_discard", "free_reserved_area"]


def blocks_of(start_pfn: int, end_pfn: int) -> Iterator[tuple[int, int]]:
    """Cut a range of frames into the blocks in which it is freed: (pfn, order), the order as large as alignment and end
    allow.

    >>> [order for _, order in blocks_of(1, 160)]
    [0, 1, 2, 3, 4, 5, 6, 5]

    5.17: mm/memblock.c, __free_pages_memory().
    """
    pfn = start_pfn
    while pfn < end_pfn:
        order = min(MAX_ORDER - 1, ctz(pfn)) if pfn else MAX_ORDER - 1
        while pfn + (1 << order) > end_pfn:
            order -= 1
        yield pfn, order
        pfn += 1 << order


def _reserve_all(memory: PhysicalMemory, memblock: Memblock) -> None:
    """Mark the frames of every reserved range that are memory (5.17: mm/memblock.c, memmap_init_reserved_pages())."""
    spans = [(start, end) for start, end, _ in memblock.for_each_mem_pfn_range()]
    for base, end in memblock.for_each_reserved_mem_range():
        for start_pfn, end_pfn in spans:
            first, last = max(pfn_down(base), start_pfn), min(pfn_up(end), end_pfn)
            if first < last:
                memory.frames.reserve(first, last)


@dataclass(slots=True)
class DeferredInit:
    """CONFIG_DEFERRED_STRUCT_PAGE_INIT: what the pgdatinit thread of one node has still to hand over.

    ``ranges`` are free frames (first PFN, PFN behind the last); :meth:`step` does one pageblock of them.
    """

    nid: int
    ranges: list[tuple[int, int]]

    @property
    def pages(self) -> int:
        """Frames not handed over yet."""
        return sum(end - start for start, end in self.ranges)

    def step(self, memory: PhysicalMemory) -> int:
        """Hand over up to the end of one pageblock; return how many frames. 5.17: mm/page_alloc.c,
        deferred_free_range().
        """
        if not self.ranges:
            return 0
        start, end = self.ranges[0]
        stop = min(end, align_down(start, PAGEBLOCK_NR_PAGES) + PAGEBLOCK_NR_PAGES)
        if stop - start == PAGEBLOCK_NR_PAGES:
            memory.frames.pageblock_mt[start >> PAGEBLOCK_ORDER] = MIGRATE_MOVABLE
            free_pages_core(memory, start, PAGEBLOCK_ORDER)
        else:
            for pfn in range(start, stop):
                free_pages_core(memory, pfn, 0)
        self.ranges[:1] = [(stop, end)] if stop < end else []
        return stop - start

    def grow(self, memory: PhysicalMemory, zone: Zone, order: int) -> bool:
        """Hand over a section or two at once, as a request cannot wait for the thread; return whether there was any.

        5.17: mm/page_alloc.c, deferred_grow_zone().
        """
        if zone.end_pfn != memory.nodes[self.nid].end_pfn or not self.ranges:
            return False
        needed, done = align_up(1 << order, PAGES_PER_SECTION), 0
        while self.ranges:
            before = self.ranges[0][0]
            done += self.step(memory)
            after = self.ranges[0][0] if self.ranges else before
            if before // PAGES_PER_SECTION != after // PAGES_PER_SECTION and done >= needed:
                break
        return True

    def run(self, memory: PhysicalMemory) -> int:
        """Hand over all that is left; return how many frames."""
        done = 0
        while pages := self.step(memory):
            done += pages
        return done


def first_deferred_pfn(memory: PhysicalMemory, memblock: Memblock, nid: int) -> int:
    """The first frame of a node whose struct page is left for later; the end of memory if none is.

    Zones below the node's highest are complete, for whoever needs low addresses; the highest gets at least one section
    (128 MiB) of memory, up to the next section's start. 5.17: mm/page_alloc.c, defer_init().
    """
    zones = memory.nodes[nid].populated_zones if nid in memory.nodes else []
    initialised = 0
    for start, end, _ in memblock.for_each_mem_pfn_range(nid) if zones else ():
        start, end = max(start, zones[-1].start_pfn), min(end, zones[-1].end_pfn)
        for pfn in range(align_up(start, PAGES_PER_SECTION), end, PAGES_PER_SECTION):
            if initialised + pfn - start + 1 > PAGES_PER_SECTION:
                return pfn
        initialised += max(0, end - start)
    return memory.frames.max_pfn


def memblock_free_all(memory: PhysicalMemory, memblock: Memblock, layout: ZoneLayout,
                      deferred: bool = False) -> tuple[int, list[DeferredInit]]:
    """Give all free memory to the buddy allocator; return the free frames (those left for later count), and the rest.

    The zones' estimates of managed pages become counts. 5.17: mm/memblock.c, memblock_free_all().
    """
    for zone in memory.zones():
        zone.managed_pages = 0
    _reserve_all(memory, memblock)
    later: dict[int, DeferredInit] = {}
    limits = {nid: first_deferred_pfn(memory, memblock, nid) for nid in memory.nodes} if deferred else {}
    pages = 0
    for base, end, nid in list(memblock.for_each_free_mem_range()):
        start_pfn, end_pfn = pfn_up(base), min(pfn_down(end), memory.frames.max_pfn)
        limit = max(start_pfn, limits.get(nid, end_pfn))
        if limit < end_pfn:
            later.setdefault(nid, DeferredInit(nid, [])).ranges.append((limit, end_pfn))
            pages += end_pfn - limit
            end_pfn = limit
        for pfn, order in blocks_of(start_pfn, end_pfn):
            free_pages_core(memory, pfn, order)
            pages += 1 << order
    memblock.clear_hotplug(0, (1 << 64) - 1)
    return pages, [later[nid] for nid in sorted(later)]


def memblock_discard(memory: PhysicalMemory, memblock: Memblock) -> int:
    """Free the arrays of memblock that had to grow, now that nobody asks it any more; return how many frames.

    5.17: mm/memblock.c, memblock_discard(), memblock_free_late().
    """
    pages = 0
    for base, size in memblock.discard():
        for pfn in range(pfn_up(base), pfn_down(base + size)):
            free_pages_core(memory, pfn, 0)
            pages += 1
    return pages


def free_reserved_area(memory: PhysicalMemory, start: int, end: int, name: str, printk: Callable[[str], None]) -> int:
    """Free reserved frames one by one, through the per-CPU lists; log and return how many.

    ``start`` and ``end`` are bytes; only whole pages count. 5.17: mm/page_alloc.c, free_reserved_area(),
    free_reserved_page().
    """
    frames, pages = memory.frames, 0
    for pfn in range(pfn_up(start), pfn_down(end)):
        if not frames.flags[pfn] & PG["reserved"]:
            continue
        frames.flags[pfn] &= ~PG["reserved"]
        frames.refcount[pfn] = 1
        zone = frames.page_zone(pfn)
        free_pages(memory, pfn, 0)
        zone.managed_pages += 1
        pages += 1
    if pages and name:
        printk(f"Freeing {name} memory: {pages * PAGE_SIZE // 1024}K")
    return pages
