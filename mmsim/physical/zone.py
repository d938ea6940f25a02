"""Zones: stretches of one node's memory that serve different callers, each with its free lists and per-CPU lists.

::

    zone.free_area[order].free_list[migratetype]      free blocks of 2^order frames, from head to tail
    zone.free_area[order].nr_free                     how many blocks that order has, all types together
    zone.pageset[cpu].lists[pindex]                   single frames and small blocks that one CPU keeps at hand

spanned_pages counts from the first frame to the last, holes included; present_pages are the frames that exist in between;
managed_pages those that were given to the buddy allocator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmsim.constants import (
    MAX_NR_ZONES,
    MAX_ORDER,
    MIGRATE_PCPTYPES,
    NR_PCP_LISTS,
    PAGE_ALLOC_COSTLY_ORDER,
    PAGEBLOCK_ORDER,
    ZONE_NAMES,
)
from mmsim.errors import InvariantError

if TYPE_CHECKING:
    from mmsim.physical.memory import PhysicalMemory

__all__ = ["FreeList", "FreeArea", "PerCpuPages", "Zone", "order_to_pindex", "pindex_to_order"]


class FreeList:
    """A list of free blocks, named by their first PFN: both ends and removal anywhere cost O(1) (amortised).

    The kernel links the blocks through their struct page. Here two dictionaries meet back to back: the newest key of one is
    the list's head, the newest key of the other its tail. A dictionary finds, adds and removes its newest key fast, its
    oldest not (it would walk over the holes that removed keys left).

    >>> blocks = FreeList()
    >>> blocks.add(16); blocks.add(32); blocks.add_tail(48)
    >>> list(blocks)
    [32, 16, 48]
    >>> blocks.remove(16); blocks.pop(), blocks.pop()
    (32, 48)
    """

    __slots__ = ("front", "back")

    def __init__(self) -> None:
        self.front: dict[int, None] = {}
        self.back: dict[int, None] = {}

    def add(self, pfn: int) -> None:
        """Put a block at the head, from where the next allocation takes it (5.17: list_add())."""
        self.front[pfn] = None

    def add_tail(self, pfn: int) -> None:
        """Put a block at the tail, where it stays longest (5.17: list_add_tail())."""
        self.back[pfn] = None

    def remove(self, pfn: int) -> None:
        """Take a block out, wherever it stands. Raise KeyError if it is not in the list (5.17: list_del())."""
        if pfn in self.front:
            del self.front[pfn]
        else:
            del self.back[pfn]

    def pop(self) -> int:
        """Take the block at the head. Raise KeyError if the list is empty."""
        if not self.front:
            self._turn()
        return self.front.popitem()[0]

    def first(self) -> int:
        """The block at the head, which stays. Raise KeyError if the list is empty."""
        pfn = self.pop()
        # popitem() has forgotten the holes behind the newest key; to look with reversed() would walk over them each time.
        self.front[pfn] = None
        return pfn

    def _turn(self) -> None:
        """Let all blocks of the back come to the front: each block makes this move at most once."""
        self.front, self.back = dict.fromkeys(reversed(self.back)), {}

    def __iter__(self) -> Iterator[int]:
        yield from reversed(self.front)
        yield from self.back

    def __len__(self) -> int:
        return len(self.front) + len(self.back)

    def __bool__(self) -> bool:
        return bool(self.front or self.back)

    def __contains__(self, pfn: int) -> bool:
        return pfn in self.front or pfn in self.back

    def __repr__(self) -> str:
        return f"FreeList({list(self)})"


class FreeArea:
    """The free blocks of one order: ``free_list`` by migratetype, ``nr_free`` of all types together.

    5.17: include/linux/mmzone.h, struct free_area.
    """

    __slots__ = ("nr_free", "free_list")

    def __init__(self, migrate_types: int):
        self.nr_free = 0
        self.free_list = [FreeList() for _ in range(migrate_types)]


# -- per-CPU lists: 15 of them ------------------------------------------------------------------------------
#   pindex   0  1  2   3  4  5   6  7  8   9 10 11  12 13 14
#   order    0  0  0   1  1  1   2  2  2   3  3  3   9  9  9
#   type     U  M  R   U  M  R   U  M  R   U  M  R   U  M  R

def order_to_pindex(migratetype: int, order: int) -> int:
    """The per-CPU list of a type and an order of 0..3 or 9 (5.17: mm/page_alloc.c, order_to_pindex()).

    >>> order_to_pindex(1, 9)
    13
    """
    base = order if order <= PAGE_ALLOC_COSTLY_ORDER else PAGE_ALLOC_COSTLY_ORDER + 1
    return MIGRATE_PCPTYPES * base + migratetype


def pindex_to_order(pindex: int) -> int:
    """The order of the blocks in a per-CPU list (5.17: mm/page_alloc.c, pindex_to_order())."""
    order = pindex // MIGRATE_PCPTYPES
    return order if order <= PAGE_ALLOC_COSTLY_ORDER else PAGEBLOCK_ORDER


class PerCpuPages:
    """The blocks that one CPU keeps of one zone, so that most allocations take no lock.

    ``count`` is in frames, not blocks. Before a zone knows its marks it has the boot page set: ``high`` 0 and ``batch`` 1, so
    that nothing stays in it. The head of a list is its left end. 5.17: include/linux/mmzone.h, struct per_cpu_pages.
    """

    __slots__ = ("count", "high", "batch", "free_factor", "expire", "lists", "other_types")

    def __init__(self, high: int = 0, batch: int = 1):
        self.count = 0
        self.high = high
        self.batch = batch
        self.free_factor = 0
        self.expire = 0
        self.lists: list[deque[int]] = [deque() for _ in range(NR_PCP_LISTS)]
        #: The migratetype of the blocks whose type is not that of their list: HighAtomic and CMA blocks stand among
        #: the movable ones. (The kernel notes the type of every block in page->index.)
        self.other_types: dict[int, int] = {}

    def check(self) -> None:
        """Verify that ``count`` is the sum over the lists. Raise InvariantError."""
        held = sum(len(pages) << pindex_to_order(pindex) for pindex, pages in enumerate(self.lists))
        if held != self.count:
            raise InvariantError(f"per-CPU lists hold {held} frames, their count says {self.count}")


class Zone:
    """One zone of one node. Attributes carry the kernel's names; marks and reserves are in pages.

    ``watermark`` is [min, low, high] without the boost. ``lowmem_reserve[i]`` is what this zone keeps from requests that
    could have been served by zone i. ``nr_free_pages`` counts the frames in the free lists only; frames in per-CPU lists
    count as used. 5.17: include/linux/mmzone.h, struct zone. Left out: locks, the span's seqlock, memory hotplug.
    """

    __slots__ = (
        "memory", "frames", "name", "index", "nid", "serial", "start_pfn", "spanned_pages", "present_pages",
        "managed_pages", "cma_pages", "migrate_cma", "migrate_isolate", "watermark", "watermark_boost", "lowmem_reserve",
        "nr_reserved_highatomic", "free_area", "nr_free_pages", "nr_free_cma_pages", "nr_isolate_pageblock", "pageset",
        "boosted_watermark", "reclaim_active", "initialized", "numa_stat", "stat_threshold", "percpu_drift_mark",
        "pgalloc", "vm_stat",
    )

    def __init__(self, memory: PhysicalMemory, nid: int, index: int, start_pfn: int = 0, spanned_pages: int = 0,
                 present_pages: int = 0, managed_pages: int = 0):
        self.memory = memory
        self.frames = memory.frames
        self.name = ZONE_NAMES[index]
        self.index = index
        self.nid = nid
        self.start_pfn = start_pfn
        self.spanned_pages = spanned_pages
        self.present_pages = present_pages
        self.managed_pages = managed_pages
        self.cma_pages = 0
        self.migrate_cma = memory.config.migrate_cma
        self.migrate_isolate = memory.config.migrate_isolate
        self.watermark = [0, 0, 0]
        self.watermark_boost = 0
        self.lowmem_reserve = [0] * MAX_NR_ZONES
        self.nr_reserved_highatomic = 0
        self.free_area = [FreeArea(memory.config.migrate_types) for _ in range(MAX_ORDER)]
        self.nr_free_pages = 0
        self.nr_free_cma_pages = 0
        self.nr_isolate_pageblock = 0
        self.pageset = [PerCpuPages() for _ in range(memory.nr_cpus)]
        #: ZONE_BOOSTED_WATERMARK: the next allocation wakes kswapd. ZONE_RECLAIM_ACTIVE: per-CPU lists stay short.
        self.boosted_watermark = False
        self.reclaim_active = False
        self.initialized = spanned_pages > 0
        #: Allocations by where they came from, under the names of zoneinfo.
        self.numa_stat = dict.fromkeys(
            ("numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other"), 0)
        #: Other counters of the zone (``nr_mlock``, ``nr_zspages``…), under the names of zoneinfo, filled by later parts.
        self.vm_stat: dict[str, int] = {}
        self.stat_threshold = 0
        self.percpu_drift_mark = 0
        self.pgalloc = f"pgalloc_{self.name.lower()}"
        #: The number of the zone in the frames' column ``zone_of``; 0 until the zone has frames.
        self.serial = 0
        if spanned_pages:
            memory.frames.assign_zone(self, start_pfn, start_pfn + spanned_pages)

    @property
    def end_pfn(self) -> int:
        """The first frame behind the zone (5.17: include/linux/mmzone.h, zone_end_pfn())."""
        return self.start_pfn + self.spanned_pages

    def spans_pfn(self, pfn: int) -> bool:
        """Tell whether a PFN lies in the zone's span, hole or not (5.17: zone_spans_pfn())."""
        return self.start_pfn <= pfn < self.start_pfn + self.spanned_pages

    @property
    def populated(self) -> bool:
        """Tell whether the zone has any frame (5.17: populated_zone()). A zone without *managed* frames may be populated."""
        return self.present_pages > 0

    def free_blocks(self) -> Iterator[tuple[int, int, int]]:
        """All free blocks as (order, migratetype, pfn), each list from head to tail."""
        for order, area in enumerate(self.free_area):
            for migratetype, blocks in enumerate(area.free_list):
                for pfn in blocks:
                    yield order, migratetype, pfn

    def buddyinfo(self) -> list[int]:
        """Free blocks per order: the numbers of one line of /proc/buddyinfo."""
        return [area.nr_free for area in self.free_area]

    def __repr__(self) -> str:
        return (f"<Zone {self.name} of node {self.nid}: [{self.start_pfn:#x}, {self.end_pfn:#x}), {self.managed_pages} managed, "
                f"{self.nr_free_pages} free: {' '.join(map(str, self.buddyinfo()))}>")
