"""Isolating pageblocks: nobody may allocate from them while somebody empties them.

Memory hotplug and contiguous areas (CMA) first isolate a range, then move what is used out of it. Free blocks of an
isolated pageblock stand in the lists of type Isolate, which no request looks at, and do not count as free.
5.17: mm/page_isolation.c.
"""

from __future__ import annotations

from mmsim.constants import MAX_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from mmsim.errors import Errno
from mmsim.physical.buddy import (
    _free_one_page,
    del_page_from_free_list,
    mod_zone_freepage_state,
    move_freepages_block,
    set_pageblock_migratetype,
)
from mmsim.physical.frames import PG
from mmsim.physical.zone import Zone

__all__ = ["has_unmovable_pages", "set_migratetype_isolate", "unset_migratetype_isolate"]


def has_unmovable_pages(zone: Zone, pfn: int) -> int | None:
    """The first frame of a pageblock that can neither be allocated from nor be moved away; None if there is none.

    Free frames, those on per-CPU lists and pages on an LRU list are no obstacle. 5.17: has_unmovable_pages(). Left out: huge
    pages, movable pages of drivers, hardware poison.
    """
    frames = zone.frames
    start_pfn = max(pfn & ~(PAGEBLOCK_NR_PAGES - 1), zone.start_pfn)
    page, end_pfn = start_pfn, min((pfn | PAGEBLOCK_NR_PAGES - 1) + 1, zone.end_pfn)
    while page < end_pfn:
        if frames.flags[page] & PG["reserved"]:
            return page
        if frames.free_block[page]:
            page += 1 << frames.buddy_order(page)
            continue
        if frames.refcount[page] and not frames.flags[page] & PG["lru"]:
            return page
        page += 1
    return None


def set_migratetype_isolate(zone: Zone, pfn: int) -> None:
    """Isolate a pageblock: its free blocks stop counting as free.

    Raise Errno EBUSY if it is isolated already or holds a frame that cannot be moved. 5.17: set_migratetype_isolate().
    """
    old_type = zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
    if old_type == zone.migrate_isolate:
        raise Errno("EBUSY", f"the pageblock of frame {pfn:#x} is isolated already")
    unmovable = has_unmovable_pages(zone, pfn)
    if unmovable is not None:
        raise Errno("EBUSY", f"frame {unmovable:#x} cannot be moved")
    set_pageblock_migratetype(zone, pfn, zone.migrate_isolate)
    zone.nr_isolate_pageblock += 1
    moved, _ = move_freepages_block(zone, pfn, zone.migrate_isolate)
    mod_zone_freepage_state(zone, -moved, old_type)


def unset_migratetype_isolate(zone: Zone, pfn: int, migratetype: int) -> None:
    """End the isolation of a pageblock, which becomes ``migratetype``; its free blocks count again.

    A free block of the pageblock's size was kept from merging with its buddy outside; it is freed anew, and so merges.
    5.17: unset_migratetype_isolate().
    """
    frames = zone.frames
    pfn &= ~(PAGEBLOCK_NR_PAGES - 1)
    if frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER] != zone.migrate_isolate:
        return
    order = frames.buddy_order(pfn)
    merges = PAGEBLOCK_ORDER <= order < MAX_ORDER - 1 and \
        frames.pageblock_mt[(pfn ^ 1 << order) >> PAGEBLOCK_ORDER] != zone.migrate_isolate
    if merges:
        del_page_from_free_list(zone, pfn, order)
    else:
        moved, _ = move_freepages_block(zone, pfn, migratetype)
        mod_zone_freepage_state(zone, moved, migratetype)
    set_pageblock_migratetype(zone, pfn, migratetype)
    if merges:
        _free_one_page(zone, pfn, order, migratetype, to_tail=True)
    zone.nr_isolate_pageblock -= 1
