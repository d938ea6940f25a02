"""Taking a block from one zone: from the CPU's own lists if the order has them, else from the free lists."""

from __future__ import annotations

from mmsim.constants import (
    ALLOC_CMA,
    ALLOC_HARDER,
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    PAGE_ALLOC_COSTLY_ORDER,
    PAGEBLOCK_ORDER,
)
from mmsim.physical.buddy import _rmqueue_smallest, mod_zone_freepage_state
from mmsim.physical.fallback import _rmqueue
from mmsim.physical.pcp import rmqueue_pcplist
from mmsim.physical.zone import Zone

__all__ = ["rmqueue", "rmqueue_buddy", "zone_statistics"]


def zone_statistics(preferred_zone: Zone, zone: Zone, nr_pages: int = 1) -> None:
    """Count where an allocation came from: the wanted node or another, near the CPU or not (5.17: zone_statistics())."""
    memory = zone.memory
    stat = zone.numa_stat
    if zone.nid == preferred_zone.nid:
        stat["numa_hit"] += nr_pages
    else:
        stat["numa_miss"] += nr_pages
        preferred_zone.numa_stat["numa_foreign"] += nr_pages
    stat["numa_local" if zone.nid == memory.cpu_to_node[memory.cpu] else "numa_other"] += nr_pages


def rmqueue_buddy(zone: Zone, order: int, migratetype: int, alloc_flags: int) -> int | None:
    """Take a block from the zone's free lists and count it. Return its PFN or None.

    An urgent request (ALLOC_HARDER) of order 1 or more tries the HighAtomic reserve first.
    5.17: mm/page_alloc.c, the second half of rmqueue() (a function of its own, rmqueue_buddy(), since 6.0).
    """
    pfn = None
    if order and alloc_flags & ALLOC_HARDER:
        pfn = _rmqueue_smallest(zone, order, MIGRATE_HIGHATOMIC)
        trace = zone.memory.trace
        if pfn is not None:
            if trace.enabled:
                trace.emit("kmem:mm_page_alloc_zone_locked", pfn=pfn, order=order, migratetype=migratetype,
                           percpu_refill=int(order == 0))
            zone.nr_free_pages -= 1 << order
            return pfn
    pfn = _rmqueue(zone, order, migratetype, alloc_flags)
    if pfn is not None:
        # Only a CMA pageblock gives a CMA block: its free blocks never change type.
        mod_zone_freepage_state(zone, -(1 << order), zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER])
    return pfn


def rmqueue(preferred_zone: Zone, zone: Zone, order: int, gfp_flags: int, alloc_flags: int,
            migratetype: int) -> int | None:
    """Take a block of ``order`` and ``migratetype`` from ``zone``, without looking at watermarks. Return its PFN or None.

    The frames' fields are not set yet: that is prep_new_page()'s part. If stealing has just boosted the zone's watermark,
    kswapd is woken. Counters: pgalloc_*, where a block from a per-CPU list counts as one page whatever its order (a bug of
    5.17, repaired in 6.1), and the numa_* of the zones.

    5.17: mm/page_alloc.c, rmqueue(). Left out: check_new_pages(), since frames are checked when they are freed.
    """
    memory = zone.memory
    # Movable per-CPU lists may hold CMA frames: a movable request that must not use them goes to the free lists.
    if (order <= PAGE_ALLOC_COSTLY_ORDER or order == PAGEBLOCK_ORDER) and (
            alloc_flags & ALLOC_CMA or migratetype != MIGRATE_MOVABLE or zone.migrate_cma < 0):
        pfn = rmqueue_pcplist(zone, order, migratetype, alloc_flags)
        counted = 1
    else:
        pfn = rmqueue_buddy(zone, order, migratetype, alloc_flags)
        counted = 1 << order
        if pfn is None:
            return None
    if pfn is not None:
        memory.counters[zone.pgalloc] += counted
        if memory.config.numa:
            stat = zone.numa_stat
            if zone.nid == preferred_zone.nid == memory.cpu_to_node[memory.cpu]:
                stat["numa_hit"] += 1
                stat["numa_local"] += 1
            else:
                zone_statistics(preferred_zone, zone)
    if zone.boosted_watermark:
        zone.boosted_watermark = False
        memory.wakeup_kswapd(zone, 0, 0, zone.index)
    return pfn
