"""Watermarks and reserves: how much free memory a zone must keep, and for whom.

Every zone has three marks. At *high* kswapd goes back to sleep; below *low* it is woken; below *min* only those who
may dip into the reserve get a page. A boost added to the marks for a while makes kswapd free more than usual; the
lowmem reserve is what a zone keeps from requests that could have used a higher zone.

All of this is integer arithmetic on page counts. The functions take zones by shape: any object with the attributes
named in :class:`WatermarkZone` will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Protocol

from mmsim.constants import (
    _GFP_ATOMIC,
    ALLOC_CMA,
    ALLOC_HARDER,
    ALLOC_HIGH,
    ALLOC_OOM,
    ALLOC_WMARK_MASK,
    MAX_ORDER,
    MIGRATE_HIGHATOMIC,
    MIGRATE_PCPTYPES,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    ZONE_NORMAL,
)
from mmsim.units import int_sqrt, pages_to_kib, rounddown_pow_of_two

__all__ = [
    "wmark_pages", "min_wmark_pages", "low_wmark_pages", "high_wmark_pages",
    "zone_watermark_unusable_free", "zone_watermark_ok", "zone_watermark_fast",
    "nr_free_zone_pages", "calculate_min_free_kbytes", "recommended_min_free_kbytes",
    "setup_per_zone_wmarks", "setup_per_zone_lowmem_reserve", "calculate_totalreserve_pages",
    "zone_batchsize", "zone_highsize", "si_mem_available", "Reserves",
]

# Only kernels with CONFIG_CMA have this type, and only they set ALLOC_CMA.
_MIGRATE_CMA = 4


class FreeArea(Protocol):
    """The free blocks of one order: how many, and the list of each migratetype."""

    @property
    def nr_free(self) -> int: ...
    @property
    def free_list(self) -> Sequence[Sized]: ...


class WatermarkZone(Protocol):
    """What a watermark check reads of a zone. ``watermark`` is without the boost; ``lowmem_reserve`` is indexed by
    zone type."""

    @property
    def watermark(self) -> Sequence[int]: ...
    @property
    def watermark_boost(self) -> int: ...
    @property
    def lowmem_reserve(self) -> Sequence[int]: ...
    @property
    def nr_reserved_highatomic(self) -> int: ...
    @property
    def nr_free_pages(self) -> int: ...
    @property
    def nr_free_cma_pages(self) -> int: ...
    @property
    def free_area(self) -> Sequence[FreeArea]: ...


class MarkedZone(Protocol):
    """A zone whose marks and reserves are computed. A machine of several nodes has several of one ``index`` (zone
    type)."""

    @property
    def index(self) -> int: ...
    @property
    def present_pages(self) -> int: ...
    @property
    def managed_pages(self) -> int: ...
    watermark: list[int]
    watermark_boost: int
    lowmem_reserve: list[int]


# -- reading the marks -------------------------------------------------------------------------------------

def wmark_pages(zone: WatermarkZone | MarkedZone, mark: int) -> int:
    """A watermark with the boost, in pages (5.17: include/linux/mmzone.h, wmark_pages())."""
    return zone.watermark[mark] + zone.watermark_boost


def min_wmark_pages(zone: WatermarkZone | MarkedZone) -> int:
    """The mark below which only reserves serve (5.17: include/linux/mmzone.h, min_wmark_pages())."""
    return zone.watermark[WMARK_MIN] + zone.watermark_boost


def low_wmark_pages(zone: WatermarkZone | MarkedZone) -> int:
    """The mark below which kswapd is woken (5.17: include/linux/mmzone.h, low_wmark_pages())."""
    return zone.watermark[WMARK_LOW] + zone.watermark_boost


def high_wmark_pages(zone: WatermarkZone | MarkedZone) -> int:
    """The mark at which kswapd stops (5.17: include/linux/mmzone.h, high_wmark_pages())."""
    return zone.watermark[WMARK_HIGH] + zone.watermark_boost


# -- checking them -----------------------------------------------------------------------------------------

def zone_watermark_unusable_free(zone: WatermarkZone, order: int, alloc_flags: int) -> int:
    """Free pages that do not count for this request: the rest of its own block, and the HIGHATOMIC reserve unless it
    may use it.

    The reserve counts in full even where part of it is in use: an overestimate that saves a search.
    Free CMA pages count only for those who may use them.
    5.17: mm/page_alloc.c, __zone_watermark_unusable_free().
    """
    unusable = (1 << order) - 1
    if not alloc_flags & (ALLOC_HARDER | ALLOC_OOM):
        unusable += zone.nr_reserved_highatomic
    if not alloc_flags & ALLOC_CMA:
        unusable += zone.nr_free_cma_pages
    return unusable


def zone_watermark_ok(zone: WatermarkZone, order: int, mark: int, highest_zoneidx: int, alloc_flags: int,
                      free_pages: int | None = None) -> bool:
    """Tell whether ``zone`` may give a block of ``order``: enough free pages above ``mark``, and a block of that size.

    ``mark`` is in pages (:func:`wmark_pages`); ALLOC_HIGH, ALLOC_HARDER and ALLOC_OOM in ``alloc_flags`` lower it.
    ``highest_zoneidx`` is the zone that the request could have used, which selects the lowmem reserve. ``free_pages``
    replaces the zone's own count. Cost: O(1) for order 0, else O(orders).
    5.17: mm/page_alloc.c, __zone_watermark_ok().
    """
    if free_pages is None:
        free_pages = zone.nr_free_pages
    free_pages -= zone_watermark_unusable_free(zone, order, alloc_flags)
    minimum = mark
    if alloc_flags & ALLOC_HIGH:
        minimum -= minimum // 2
    harder = alloc_flags & (ALLOC_HARDER | ALLOC_OOM)
    if harder:
        # A victim of the OOM killer will exit and free soon: it may go further than one that just can't sleep.
        minimum -= minimum // 2 if alloc_flags & ALLOC_OOM else minimum // 4
    if free_pages <= minimum + zone.lowmem_reserve[highest_zoneidx]:
        return False
    if order == 0:
        return True
    for area in zone.free_area[order:MAX_ORDER]:
        if not area.nr_free:
            continue
        if any(area.free_list[migratetype] for migratetype in range(MIGRATE_PCPTYPES)):
            return True
        if alloc_flags & ALLOC_CMA and area.free_list[_MIGRATE_CMA]:
            return True
        if harder and area.free_list[MIGRATE_HIGHATOMIC]:
            return True
    return False


def zone_watermark_fast(zone: WatermarkZone, order: int, mark: int, highest_zoneidx: int, alloc_flags: int, gfp_mask: int) -> bool:
    """:func:`zone_watermark_ok` as the allocator asks it: order 0 by a single comparison where that suffices.

    An atomic order-0 request that fails at the min mark is tried again without the boost. 5.17 has a slip here: with
    fewer pages free than unusable the difference is negative, C compares it as unsigned, and the check passes
    (mended in later releases).
    5.17: mm/page_alloc.c, zone_watermark_fast().
    """
    free_pages = zone.nr_free_pages
    if order == 0:
        fast_free = free_pages - zone_watermark_unusable_free(zone, 0, alloc_flags)
        if fast_free < 0 or fast_free > mark + zone.lowmem_reserve[highest_zoneidx]:
            return True
    if zone_watermark_ok(zone, order, mark, highest_zoneidx, alloc_flags, free_pages):
        return True
    if (order == 0 and gfp_mask & _GFP_ATOMIC and zone.watermark_boost
            and alloc_flags & ALLOC_WMARK_MASK == WMARK_MIN):
        return zone_watermark_ok(zone, order, zone.watermark[WMARK_MIN], highest_zoneidx, alloc_flags, free_pages)
    return False


# -- computing them ----------------------------------------------------------------------------------------

def nr_free_zone_pages(zones: Iterable[MarkedZone], highest_zoneidx: int = ZONE_NORMAL) -> int:
    """Pages that lie beyond the high marks, in zones up to ``highest_zoneidx``: what user allocations can ever get.

    5.17: mm/page_alloc.c, nr_free_zone_pages(); with ZONE_NORMAL it is nr_free_buffer_pages().
    """
    return sum(max(0, zone.managed_pages - high_wmark_pages(zone)) for zone in zones if zone.index <= highest_zoneidx)


def calculate_min_free_kbytes(zones: Iterable[MarkedZone]) -> int:
    """The min_free_kbytes of a booting kernel: four times the square root of its low memory in KiB, 128 KiB to 256 MiB.

    Larger machines keep more, but not in proportion: network bandwidth does not grow with memory.
    5.17: mm/page_alloc.c, calculate_min_free_kbytes(). A value set by the user stays if it is at least as large
    (:class:`Reserves`).
    """
    return min(max(_square_root_kbytes(zones), 128), 262144)


def _square_root_kbytes(zones: Iterable[MarkedZone]) -> int:
    return int_sqrt(16 * pages_to_kib(nr_free_zone_pages(zones)))


def recommended_min_free_kbytes(zones: Iterable[MarkedZone], pageblock_nr_pages: int = 512) -> int:
    """The min_free_kbytes that khugepaged wants, so that pageblocks stay of one kind and huge pages can be made.

    Per populated zone (Movable aside): two pageblocks free, and enough that each of the three mobility types finds
    blocks to fall back to; never more than 5 % of low memory.
    5.17: mm/khugepaged.c, set_recommended_min_free_kbytes().
    """
    zones = list(zones)
    nr_zones = sum(zone.present_pages > 0 for zone in zones if zone.index <= ZONE_NORMAL)
    recommended = pageblock_nr_pages * nr_zones * (2 + MIGRATE_PCPTYPES * MIGRATE_PCPTYPES)
    return pages_to_kib(min(recommended, nr_free_zone_pages(zones) // 20))


def setup_per_zone_wmarks(zones: Iterable[MarkedZone], min_free_kbytes: int, watermark_scale_factor: int = 10) -> None:
    """Set the three marks of every zone, and end every boost.

    A zone's *min* is its share of min_free_kbytes by managed pages. The distance to *low* and on to *high* is a
    quarter of that, or ``watermark_scale_factor`` ten-thousandths of the zone if that is more.
    5.17: mm/page_alloc.c, __setup_per_zone_wmarks(). Left out: high-memory zones (32-bit).
    """
    zones = list(zones)
    pages_min = min_free_kbytes >> 2
    lowmem_pages = sum(zone.managed_pages for zone in zones)
    for zone in zones:
        share = pages_min * zone.managed_pages // lowmem_pages if lowmem_pages else 0
        distance = max(share >> 2, zone.managed_pages * watermark_scale_factor // 10000)
        zone.watermark_boost = 0
        zone.watermark[:] = [share, share + distance, share + 2 * distance]


def setup_per_zone_lowmem_reserve(zones: Sequence[MarkedZone], ratio: Sequence[int] = (256, 256, 32, 0)) -> None:
    """Set the lowmem reserves of one node's zones, which are given in the order of their types.

    ``zone.lowmem_reserve[j]`` is what the zone keeps from requests that could use zone ``j``: the managed pages of the
    zones above it, up to ``j``, divided by the zone's ratio. Zero if the ratio is zero or the zone is empty.
    5.17: mm/page_alloc.c, setup_per_zone_lowmem_reserve().
    """
    for i, zone in enumerate(zones[:-1]):
        above = 0
        for j in range(i + 1, len(zones)):
            above += zones[j].managed_pages
            zone.lowmem_reserve[j] = above // ratio[i] if ratio[i] and zone.managed_pages else 0


def calculate_totalreserve_pages(zones: Iterable[MarkedZone]) -> int:
    """Pages that user space can never have: each zone's largest lowmem reserve and its high mark, at most the zone
    itself.

    5.17: mm/page_alloc.c, calculate_totalreserve_pages().
    """
    return sum(min(max(0, *zone.lowmem_reserve[zone.index:]) + high_wmark_pages(zone), zone.managed_pages) for zone in zones)


# -- what follows from them --------------------------------------------------------------------------------

def zone_batchsize(managed_pages: int) -> int:
    """How many pages a per-CPU list moves at a time: about 1/4096 of the zone, at most 63, one less than a power of
    two.

    A power of two itself would give alternating users the same cache colours. 0 stands for 1 (``max(1, batch)`` at
    the caller, as in the kernel). 5.17: mm/page_alloc.c, zone_batchsize().

    >>> zone_batchsize(3840), zone_batchsize(54893), zone_batchsize(1212416)
    (0, 15, 63)
    """
    batch = max(1, min(managed_pages >> 10, 256) // 4)
    return rounddown_pow_of_two(batch + batch // 2) - 1


def zone_highsize(low_wmark: int, managed_pages: int, batch: int, local_cpus: int, online_cpus: int,
                  high_fraction: int = 0) -> int:
    """How many pages a per-CPU list may hold: the zone's low watermark shared among the CPUs of its node, at least
    four batches.

    So all lists full together do not yet hide more than reclaim would start for. A node without CPUs shares among all
    ``online_cpus``. ``high_fraction`` (vm.percpu_pagelist_high_fraction) takes that part of the zone instead.
    5.17: mm/page_alloc.c, zone_highsize().

    >>> zone_highsize(565, 54893, 15, 1, 1)
    565
    """
    total = managed_pages // high_fraction if high_fraction else low_wmark
    return max(total // (local_cpus or online_cpus), batch << 2)


def si_mem_available(free: int, totalreserve_pages: int, wmark_low: int, file_pages: int, reclaimable: int) -> int:
    """MemAvailable in pages: what new programs could get without swapping.

    Free memory without the reserves, and of the page cache (``file_pages``, both LRU lists) and of reclaimable kernel
    memory what is left when half of it, at most ``wmark_low`` (the sum of the zones' low marks), stays.
    5.17: mm/page_alloc.c, si_mem_available().
    """
    available = free - totalreserve_pages
    available += file_pages - min(file_pages // 2, wmark_low)
    available += reclaimable - min(reclaimable // 2, wmark_low)
    return max(available, 0)


class Reserves:
    """The machine's memory reserves and the settings behind them; each method is an occasion on which they are
    computed anew.

    ``nodes`` is one sequence of zones a node, in the order of zone types, empty zones included.
    """

    def __init__(self, nodes: Sequence[Sequence[MarkedZone]], *, watermark_scale_factor: int = 10,
                 lowmem_reserve_ratio: Sequence[int] = (256, 256, 32, 0)):
        self.nodes = nodes
        self.watermark_scale_factor = watermark_scale_factor
        self.lowmem_reserve_ratio = tuple(lowmem_reserve_ratio)
        self.min_free_kbytes = 1024
        #: What was written to vm.min_free_kbytes; -1 while nobody wrote.
        self.user_min_free_kbytes = -1
        self.totalreserve_pages = 0

    @property
    def zones(self) -> list[MarkedZone]:
        """All zones of all nodes."""
        return [zone for node in self.nodes for zone in node]

    def _setup_wmarks(self) -> None:
        setup_per_zone_wmarks(self.zones, self.min_free_kbytes, self.watermark_scale_factor)
        self.totalreserve_pages = calculate_totalreserve_pages(self.zones)

    def _calculate_min_free_kbytes(self) -> None:
        if _square_root_kbytes(self.zones) > self.user_min_free_kbytes:
            self.min_free_kbytes = calculate_min_free_kbytes(self.zones)

    def init_per_zone_wmark_min(self) -> None:
        """At boot, when the buddy allocator has all memory: min_free_kbytes, marks, lowmem reserves.

        5.17: mm/page_alloc.c, init_per_zone_wmark_min().
        """
        self._calculate_min_free_kbytes()
        self._setup_wmarks()
        self.setup_lowmem_reserve()

    def setup_lowmem_reserve(self) -> None:
        """The lowmem reserves of every node (boot, or a write to vm.lowmem_reserve_ratio)."""
        for zones in self.nodes:
            setup_per_zone_lowmem_reserve(zones, self.lowmem_reserve_ratio)
        self.totalreserve_pages = calculate_totalreserve_pages(self.zones)

    def write_min_free_kbytes(self, kbytes: int) -> None:
        """A write to vm.min_free_kbytes (5.17: mm/page_alloc.c, min_free_kbytes_sysctl_handler())."""
        self.min_free_kbytes = self.user_min_free_kbytes = kbytes
        self._setup_wmarks()

    def write_watermark_scale_factor(self, factor: int) -> None:
        """A write to vm.watermark_scale_factor (5.17: mm/page_alloc.c, watermark_scale_factor_sysctl_handler())."""
        self.watermark_scale_factor = factor
        self._setup_wmarks()

    def set_recommended_min_free_kbytes(self, hugepages_enabled: bool = True) -> None:
        """khugepaged starts or stops: raise min_free_kbytes to what huge pages need, or go back to the boot value.

        5.17: mm/khugepaged.c, set_recommended_min_free_kbytes().
        """
        if hugepages_enabled:
            self.min_free_kbytes = max(self.min_free_kbytes, recommended_min_free_kbytes(self.zones))
        else:
            self._calculate_min_free_kbytes()
        self._setup_wmarks()
