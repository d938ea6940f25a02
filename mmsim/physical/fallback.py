"""Grouping by mobility: what happens when the lists of the wanted migratetype are empty.

Frames that never move (kernel memory) must not be strewn over memory, or no large block would ever become free again. So
each pageblock of 2 MiB has one type, and a request takes from blocks of its own type. If there is none it *falls back*: it
steals from another type, in a way that spoils as few pageblocks as possible. 5.17: mm/page_alloc.c.
"""

from __future__ import annotations

from mmsim.constants import (
    ALLOC_CMA,
    ALLOC_KSWAPD,
    ALLOC_NOFRAGMENT,
    MAX_ORDER,
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from mmsim.errors import KernelBug
from mmsim.physical.buddy import (
    _rmqueue_smallest,
    get_page_from_free_area,
    move_freepages_block,
    move_to_free_list,
    set_pageblock_migratetype,
)
from mmsim.physical.zone import FreeArea, Zone

__all__ = [
    "FALLBACKS", "_rmqueue", "_rmqueue_fallback", "boost_watermark", "can_steal_fallback", "find_suitable_fallback",
    "reserve_highatomic_pageblock", "steal_suitable_fallback", "unreserve_highatomic_pageblock",
]

# Where a type looks next when it has run dry (5.17: fallbacks[]).
FALLBACKS: dict[int, tuple[int, ...]] = {
    MIGRATE_UNMOVABLE: (MIGRATE_RECLAIMABLE, MIGRATE_MOVABLE),
    MIGRATE_MOVABLE: (MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE),
    MIGRATE_RECLAIMABLE: (MIGRATE_UNMOVABLE, MIGRATE_MOVABLE),
}


def can_steal_fallback(order: int, start_type: int, grouping_disabled: bool = False) -> bool:
    """Tell whether a request may take over more than the one block it needs.

    Yes for a free block of half a pageblock's order or more, and for every request that is not movable: its frames would pin
    the pageblock, so it had better be used up by its like. 5.17: can_steal_fallback().
    """
    if order >= PAGEBLOCK_ORDER // 2:
        return True
    return start_type in (MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE) or grouping_disabled


def find_suitable_fallback(area: FreeArea, order: int, migratetype: int, only_stealable: bool = False,
                           grouping_disabled: bool = False) -> tuple[int, bool]:
    """The first other type with a free block in ``area``, and whether its pageblock may be taken over; (-1, False) if none.

    5.17: find_suitable_fallback().
    """
    if area.nr_free:
        for fallback_type in FALLBACKS.get(migratetype, ()):
            if area.free_list[fallback_type]:
                can_steal = can_steal_fallback(order, migratetype, grouping_disabled)
                if can_steal or not only_stealable:
                    return fallback_type, can_steal
    return -1, False


def boost_watermark(zone: Zone) -> bool:
    """Raise the zone's marks by a pageblock, up to 1.5 times its high mark, because a request has just mixed types.

    kswapd then frees more and so makes further mixing less likely. Return False if nothing is boosted: in a zone of less
    than four pageblocks, or before the marks are set. 5.17: boost_watermark().
    """
    factor = zone.memory.watermark_boost_factor
    if not factor or zone.managed_pages < PAGEBLOCK_NR_PAGES * 4:
        return False
    max_boost = zone.watermark[2] * factor // 10000
    if not max_boost:
        return False
    zone.watermark_boost = min(zone.watermark_boost + PAGEBLOCK_NR_PAGES, max(PAGEBLOCK_NR_PAGES, max_boost))
    return True


def steal_suitable_fallback(zone: Zone, pfn: int, alloc_flags: int, start_type: int, whole_block: bool) -> None:
    """Move a free block of another type, and perhaps all of its pageblock, to the lists of ``start_type``.

    A block as large as a pageblock takes its pageblocks along. Otherwise the marks are boosted, and if ``whole_block``, all
    free blocks of the pageblock move; the pageblock itself changes its type when half of it is free or alike.

    5.17: steal_suitable_fallback().
    """
    current_order = zone.frames.buddy_order(pfn)
    old_block_type = zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
    if old_block_type == MIGRATE_HIGHATOMIC:
        return move_to_free_list(zone, pfn, current_order, start_type)
    if current_order >= PAGEBLOCK_ORDER:
        for block_pfn in range(pfn, pfn + (1 << current_order), PAGEBLOCK_NR_PAGES):
            set_pageblock_migratetype(zone, block_pfn, start_type)
        return move_to_free_list(zone, pfn, current_order, start_type)
    if boost_watermark(zone) and alloc_flags & ALLOC_KSWAPD:
        zone.boosted_watermark = True
    if not whole_block:
        return move_to_free_list(zone, pfn, current_order, start_type)

    free_pages, movable_pages = move_freepages_block(zone, pfn, start_type)
    if start_type == MIGRATE_MOVABLE:
        alike_pages = movable_pages
    elif old_block_type == MIGRATE_MOVABLE:
        # Whatever is neither free nor movable in a movable pageblock is of the kind of this request.
        alike_pages = PAGEBLOCK_NR_PAGES - (free_pages + movable_pages)
    else:
        # Unmovable and reclaimable frames in use look the same: count none.
        alike_pages = 0
    if not free_pages:
        return move_to_free_list(zone, pfn, current_order, start_type)
    if free_pages + alike_pages >= 1 << PAGEBLOCK_ORDER - 1 or zone.memory.page_group_by_mobility_disabled:
        set_pageblock_migratetype(zone, pfn, start_type)
    return None


def _rmqueue_fallback(zone: Zone, order: int, start_type: int, alloc_flags: int) -> bool:
    """Steal for a request whose own lists are empty. Return True if they now hold something to take.

    The largest block of another type is the best prey: it comes with the most free memory, so the next request need not
    steal again. A movable request that may not take over the pageblock takes the smallest that fits instead: nothing is
    spoilt by movable frames. With ALLOC_NOFRAGMENT only blocks of at least a pageblock are touched.

    5.17: __rmqueue_fallback(). Its lower limit with ALLOC_NOFRAGMENT is order 9 even for a request of order 10.
    """
    grouping_disabled = zone.memory.page_group_by_mobility_disabled
    min_order = PAGEBLOCK_ORDER if alloc_flags & ALLOC_NOFRAGMENT else order
    for current_order in range(MAX_ORDER - 1, min_order - 1, -1):
        area = zone.free_area[current_order]
        fallback_type, can_steal = find_suitable_fallback(area, current_order, start_type, False, grouping_disabled)
        if fallback_type >= 0:
            break
    else:
        return False

    if not can_steal and start_type == MIGRATE_MOVABLE and current_order > order:
        for current_order in range(order, MAX_ORDER):
            area = zone.free_area[current_order]
            fallback_type, can_steal = find_suitable_fallback(area, current_order, start_type, False, grouping_disabled)
            if fallback_type >= 0:
                break

    pfn = get_page_from_free_area(zone, current_order, fallback_type)
    if pfn is None:
        raise KernelBug(f"the list of order {current_order}, type {fallback_type} was not empty a moment ago")
    steal_suitable_fallback(zone, pfn, alloc_flags, start_type, can_steal)
    trace = zone.memory.trace
    if trace.enabled:
        trace.emit("kmem:mm_page_alloc_extfrag", pfn=pfn, alloc_order=order, fallback_order=current_order,
                   pageblock_order=PAGEBLOCK_ORDER, alloc_migratetype=start_type, fallback_migratetype=fallback_type,
                   fragmenting=int(current_order < PAGEBLOCK_ORDER),
                   change_ownership=int(start_type == zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]))
    return True


def _rmqueue(zone: Zone, order: int, migratetype: int, alloc_flags: int) -> int | None:
    """Take a block from the free lists: of the wanted type, or of CMA if allowed, or of a type that is robbed.

    A movable request uses CMA areas first once more than half of the free memory is there, so that both shrink alike.
    Return its PFN or None; the count of free frames is the caller's to correct. 5.17: __rmqueue().
    """
    migrate_cma = zone.migrate_cma
    cma_allowed = alloc_flags & ALLOC_CMA and migrate_cma >= 0
    pfn = None
    if cma_allowed and zone.nr_free_cma_pages > zone.nr_free_pages // 2:
        pfn = _rmqueue_smallest(zone, order, migrate_cma)
    while pfn is None:
        pfn = _rmqueue_smallest(zone, order, migratetype)
        if pfn is None and cma_allowed:
            pfn = _rmqueue_smallest(zone, order, migrate_cma)
        if pfn is None and not _rmqueue_fallback(zone, order, migratetype, alloc_flags):
            return None
    trace = zone.memory.trace
    if trace.enabled:
        # The field is named as if it told refills apart, but the kernel sets it for every request of order 0.
        trace.emit("kmem:mm_page_alloc_zone_locked", pfn=pfn, order=order, migratetype=migratetype,
                   percpu_refill=int(order == 0))
    return pfn


# -- the reserve for urgent requests of high order -----------------------------------------------------------

def reserve_highatomic_pageblock(zone: Zone, pfn: int) -> None:
    """Set the pageblock of ``pfn`` aside for atomic requests of high order, after one of them was served from it.

    At most 1 % of the zone and one pageblock are reserved. 5.17: reserve_highatomic_pageblock().
    """
    if zone.nr_reserved_highatomic >= zone.managed_pages // 100 + PAGEBLOCK_NR_PAGES:
        return
    old_type = zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
    if old_type not in (MIGRATE_HIGHATOMIC, zone.migrate_isolate, zone.migrate_cma):
        zone.nr_reserved_highatomic += PAGEBLOCK_NR_PAGES
        set_pageblock_migratetype(zone, pfn, MIGRATE_HIGHATOMIC)
        move_freepages_block(zone, pfn, MIGRATE_HIGHATOMIC)


def unreserve_highatomic_pageblock(zones: list[Zone], migratetype: int, force: bool = False) -> bool:
    """Give one reserved pageblock with free memory back to ``migratetype``, in the first zone that has one.

    Without ``force`` each zone keeps its last reserved pageblock. Return True if frames were moved.
    ``zones`` is the part of the zonelist that the request may use. 5.17: unreserve_highatomic_pageblock().
    """
    for zone in zones:
        if not force and zone.nr_reserved_highatomic <= PAGEBLOCK_NR_PAGES:
            continue
        for order in range(MAX_ORDER):
            pfn = get_page_from_free_area(zone, order, MIGRATE_HIGHATOMIC)
            if pfn is None:
                continue
            if zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER] == MIGRATE_HIGHATOMIC:
                zone.nr_reserved_highatomic -= min(PAGEBLOCK_NR_PAGES, zone.nr_reserved_highatomic)
            set_pageblock_migratetype(zone, pfn, migratetype)
            moved, _ = move_freepages_block(zone, pfn, migratetype)
            if moved:
                return True
    return False
