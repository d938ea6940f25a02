"""The buddy allocator: blocks of 2^order frames, split in halves when one is taken and merged when both halves are free.

A block of order k begins at a PFN that is a multiple of 2^k; its buddy is the one block that completes it to order k+1, and
their PFNs differ in bit k only::

    order 3   |........ 0x240 ........|........ 0x248 ........|      0x240 ^ (1 << 3) == 0x248
    order 4   |.................... 0x240 ....................|      0x240 & 0x248    == 0x240

Each free block is in exactly one list, ``zone.free_area[order].free_list[migratetype]``, and the frames' column
``free_block`` says which, at the block's first frame. The functions here neither know per-CPU lists nor watermarks.
5.17: mm/page_alloc.c. Left out: the zone lock, debug_pagealloc's guard pages, shuffling, compaction capture, page reporting.
"""

from __future__ import annotations

from mmsim.constants import MAX_ORDER, MIGRATE_PCPTYPES, MIGRATE_UNMOVABLE, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from mmsim.errors import InvariantError, KernelBug
from mmsim.physical.frames import PG, Frames
from mmsim.physical.zone import Zone, pindex_to_order

__all__ = [
    "_free_one_page", "_rmqueue_smallest", "add_to_free_list", "check_zone", "del_page_from_free_list", "expand",
    "find_buddy_pfn", "free_one_page", "get_page_from_free_area", "get_pageblock_migratetype", "mod_zone_freepage_state",
    "move_freepages", "move_freepages_block", "move_to_free_list", "set_pageblock_migratetype", "take_run",
]


def find_buddy_pfn(pfn: int, order: int) -> int:
    """The PFN of a block's buddy (5.17: mm/internal.h, __find_buddy_pfn()).

    >>> hex(find_buddy_pfn(0x240, 6))
    '0x200'
    """
    return pfn ^ 1 << order


# -- the lists ---------------------------------------------------------------------------------------------

def add_to_free_list(zone: Zone, pfn: int, order: int, migratetype: int, to_tail: bool = False) -> None:
    """Put a block into its list, at the head or the tail, and mark its first frame (5.17: add_to_free_list{,_tail}())."""
    area = zone.free_area[order]
    area.nr_free += 1
    if to_tail:
        area.free_list[migratetype].add_tail(pfn)
    else:
        area.free_list[migratetype].add(pfn)
    zone.frames.free_block[pfn] = order + 1 | migratetype << 4


def del_page_from_free_list(zone: Zone, pfn: int, order: int) -> None:
    """Take a free block out of the list in which it stands (5.17: del_page_from_free_list())."""
    area = zone.free_area[order]
    area.free_list[zone.frames.free_block[pfn] >> 4].remove(pfn)
    area.nr_free -= 1
    zone.frames.free_block[pfn] = 0


def move_to_free_list(zone: Zone, pfn: int, order: int, migratetype: int) -> None:
    """Move a free block to the tail of another type's list (5.17: move_to_free_list())."""
    free_block = zone.frames.free_block
    lists = zone.free_area[order].free_list
    lists[free_block[pfn] >> 4].remove(pfn)
    lists[migratetype].add_tail(pfn)
    free_block[pfn] = order + 1 | migratetype << 4


def get_page_from_free_area(zone: Zone, order: int, migratetype: int) -> int | None:
    """The block at the head of a list, which stays there; None if the list is empty (5.17: get_page_from_free_area())."""
    blocks = zone.free_area[order].free_list[migratetype]
    return blocks.first() if blocks else None


def mod_zone_freepage_state(zone: Zone, nr_pages: int, migratetype: int) -> None:
    """Change the zone's count of free frames (5.17: include/linux/vmstat.h, __mod_zone_freepage_state())."""
    zone.nr_free_pages += nr_pages
    if migratetype == zone.migrate_cma:
        zone.nr_free_cma_pages += nr_pages


# -- freeing -----------------------------------------------------------------------------------------------

def _free_one_page(zone: Zone, pfn: int, order: int, migratetype: int, to_tail: bool = False) -> None:
    """Give a block back: merge it with its buddy as long as that is free too, then put it into a list.

    The merged block goes to the list's head, where it is taken next (its frames may still be in a CPU's cache); to the
    tail if ``to_tail`` (boot: untouched memory) or if its buddy is in use but the next larger block's buddy is free, so
    that the wait for the missing piece may be worth it. Cost: one step an order.

    5.17: mm/page_alloc.c, __free_one_page() and buddy_merge_likely().
    """
    free_block = zone.frames.free_block
    zone_of = zone.frames.zone_of
    serial = zone.serial
    free_area = zone.free_area
    if migratetype != zone.migrate_isolate:
        zone.nr_free_pages += 1 << order
        if migratetype == zone.migrate_cma:
            zone.nr_free_cma_pages += 1 << order

    while order < MAX_ORDER - 1:
        buddy_pfn = pfn ^ 1 << order
        buddy = free_block[buddy_pfn]
        if buddy & 15 != order + 1 or zone_of[buddy_pfn] != serial:
            break
        if order >= PAGEBLOCK_ORDER and zone.nr_isolate_pageblock and _isolation_differs(zone, buddy_pfn, migratetype):
            break
        area = free_area[order]
        blocks = area.free_list[buddy >> 4]
        if buddy_pfn in blocks.front:
            del blocks.front[buddy_pfn]
        else:
            del blocks.back[buddy_pfn]
        area.nr_free -= 1
        free_block[buddy_pfn] = 0
        pfn &= buddy_pfn
        order += 1

    if not to_tail and order < MAX_ORDER - 2:
        higher_pfn = pfn & ~(1 << order)
        higher_buddy_pfn = higher_pfn ^ 1 << order + 1
        # A block at the zone's start may lack its lower half: then the larger block would begin in no zone, or another's.
        to_tail = free_block[higher_buddy_pfn] & 15 == order + 2 and zone_of[higher_buddy_pfn] == zone_of[higher_pfn]

    free_block[pfn] = order + 1 | migratetype << 4
    area = free_area[order]
    area.nr_free += 1
    blocks = area.free_list[migratetype]
    if to_tail:
        blocks.back[pfn] = None
    else:
        blocks.front[pfn] = None


def _isolation_differs(zone: Zone, buddy_pfn: int, migratetype: int) -> bool:
    """Tell whether merging would mix an isolated pageblock with one that is not."""
    buddy_type = zone.frames.pageblock_mt[buddy_pfn >> PAGEBLOCK_ORDER]
    return migratetype != buddy_type and zone.migrate_isolate in (migratetype, buddy_type)


def free_one_page(zone: Zone, pfn: int, order: int, migratetype: int, to_tail: bool = False) -> None:
    """Give a block back under the type of its pageblock, should that have been isolated since (5.17: free_one_page())."""
    if zone.nr_isolate_pageblock or migratetype == zone.migrate_isolate:
        migratetype = zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
    _free_one_page(zone, pfn, order, migratetype, to_tail)


# -- taking ------------------------------------------------------------------------------------------------

def expand(zone: Zone, pfn: int, low: int, high: int, migratetype: int) -> None:
    """Split a block of order ``high`` down to ``low``: the upper half of each step becomes a free block.

    5.17: mm/page_alloc.c, expand().
    """
    free_block = zone.frames.free_block
    free_area = zone.free_area
    while high > low:
        high -= 1
        half = pfn + (1 << high)
        area = free_area[high]
        area.nr_free += 1
        area.free_list[migratetype].front[half] = None
        free_block[half] = high + 1 | migratetype << 4


def _rmqueue_smallest(zone: Zone, order: int, migratetype: int) -> int | None:
    """Take a block of ``order`` from one type's lists: the head of the smallest order that has one, split as needed.

    Return its PFN or None; the count of free frames is the caller's to correct. 5.17: mm/page_alloc.c, __rmqueue_smallest().
    """
    current_order = order
    for area in zone.free_area[order:] if order else zone.free_area:
        if area.nr_free:
            blocks = area.free_list[migratetype]
            if blocks.front or blocks.back:
                pfn = blocks.front.popitem()[0] if blocks.front else blocks.pop()
                area.nr_free -= 1
                zone.frames.free_block[pfn] = 0
                if current_order > order:
                    expand(zone, pfn, order, current_order, migratetype)
                return pfn
        current_order += 1
    return None


def take_run(zone: Zone, order: int, migratetype: int, count: int) -> range:
    """Take up to ``count`` neighbouring blocks of ``order`` out of one larger block, as that many calls of
    :func:`_rmqueue_smallest` would, but in one step. Return their PFNs, empty if the type has no block.

    A block is split only when all smaller lists of its type are empty, so the calls that follow take its other parts in
    rising order, and what is left over are single blocks in empty lists. Cost: one step for a whole block.
    """
    for current_order in range(order, MAX_ORDER):
        area = zone.free_area[current_order]
        blocks = area.free_list[migratetype]
        if blocks:
            pfn = blocks.pop()
            area.nr_free -= 1
            zone.frames.free_block[pfn] = 0
            end = pfn + (1 << current_order)
            rest = min(end, pfn + (count << order))
            taken = range(pfn, rest, 1 << order)
            while rest < end:
                # The rest's lowest set bit is the size of the half that was split off there.
                left_order = (rest & -rest).bit_length() - 1
                add_to_free_list(zone, rest, left_order, migratetype)
                rest += 1 << left_order
            return taken
    return range(0)


# -- pageblocks: 2^9 frames that are meant for one migratetype ----------------------------------------------

def get_pageblock_migratetype(frames: Frames, pfn: int) -> int:
    """The type of the pageblock that holds a frame (5.17: include/linux/mmzone.h, get_pageblock_migratetype())."""
    return frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]


def set_pageblock_migratetype(zone: Zone, pfn: int, migratetype: int) -> None:
    """Give a pageblock another type; its free blocks stay in their lists (5.17: mm/page_alloc.c)."""
    if zone.memory.page_group_by_mobility_disabled and migratetype < MIGRATE_PCPTYPES:
        migratetype = MIGRATE_UNMOVABLE
    zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER] = migratetype


def move_freepages(zone: Zone, start_pfn: int, end_pfn: int, migratetype: int) -> tuple[int, int]:
    """Move all free blocks that begin in ``start_pfn <= pfn <= end_pfn`` to the tails of another type's lists.

    Return (frames moved, frames in use that are movable: on an LRU list). 5.17: mm/page_alloc.c, move_freepages().
    Left out: movable pages of drivers (__PageMovable).
    """
    free_block, flags, lru = zone.frames.free_block, zone.frames.flags, PG["lru"]
    pfn, moved, movable = start_pfn, 0, 0
    while pfn <= end_pfn:
        block = free_block[pfn]
        if not block:
            if flags[pfn] & lru:
                movable += 1
            pfn += 1
            continue
        order = (block & 15) - 1
        move_to_free_list(zone, pfn, order, migratetype)
        pfn += 1 << order
        moved += 1 << order
    return moved, movable


def move_freepages_block(zone: Zone, pfn: int, migratetype: int) -> tuple[int, int]:
    """Move the free blocks of the pageblock that holds ``pfn``; (0, 0) if the pageblock reaches beyond the zone's end.

    A pageblock that begins before its zone is moved from ``pfn`` on. 5.17: mm/page_alloc.c, move_freepages_block().
    """
    start_pfn = pfn & ~(PAGEBLOCK_NR_PAGES - 1)
    end_pfn = start_pfn + PAGEBLOCK_NR_PAGES - 1
    if not zone.spans_pfn(start_pfn):
        start_pfn = pfn
    if not zone.spans_pfn(end_pfn):
        return 0, 0
    return move_freepages(zone, start_pfn, end_pfn, migratetype)


# -- invariants --------------------------------------------------------------------------------------------

def check_zone(zone: Zone) -> None:
    """Verify a zone's free lists against the frames. Raise InvariantError. Cost: every frame of the zone.

    Each listed block is aligned, marked, inside the zone and free in all its frames; no block is missing from the lists; no
    two free buddies of one order are left unmerged; the counts agree; per-CPU pages are in no list and nobody's.
    """
    frames, where = zone.frames, f"zone {zone.name} of node {zone.nid}"
    isolate, cma = zone.migrate_isolate, zone.migrate_cma
    covered = bytearray(zone.spanned_pages)

    def cover(pfn: int, order: int, what: str) -> None:
        size, offset = 1 << order, pfn - zone.start_pfn
        if pfn & size - 1:
            raise InvariantError(f"{where}: {what} {pfn:#x} is not aligned to order {order}")
        if offset < 0 or offset + size > len(covered) or \
                frames.zone_of[pfn:pfn + size] != bytes((zone.serial,)) * size:
            raise InvariantError(f"{where}: {what} {pfn:#x} of order {order} has frames outside of the zone")
        if any(covered[offset:offset + size]):
            raise InvariantError(f"{where}: {what} {pfn:#x} of order {order} overlaps one that is free already")
        covered[offset:offset + size] = b"\1" * size
        if any(frames.refcount[pfn:pfn + size]):
            raise InvariantError(f"{where}: {what} {pfn:#x} of order {order} has a frame with references")
        if any(frames.free_block[pfn + 1:pfn + size]):
            raise InvariantError(f"{where}: a free block is marked inside {what} {pfn:#x} of order {order}")

    free = free_cma = marked = 0
    for order, area in enumerate(zone.free_area):
        if area.nr_free != sum(map(len, area.free_list)):
            raise InvariantError(f"{where}: order {order} lists {sum(map(len, area.free_list))} blocks, "
                                 f"nr_free says {area.nr_free}")
    for order, migratetype, pfn in zone.free_blocks():
        cover(pfn, order, "free block")
        if frames.free_block[pfn] != order + 1 | migratetype << 4:
            raise InvariantError(f"{where}: block {pfn:#x} is listed as order {order} type {migratetype}, its frame says "
                                 f"order {frames.buddy_order(pfn)} type {frames.free_block[pfn] >> 4}")
        buddy_pfn = pfn ^ 1 << order
        if order < MAX_ORDER - 1 and frames.buddy_order(buddy_pfn) == order and \
                frames.zone_of[buddy_pfn] == zone.serial and \
                isolate not in (migratetype, frames.free_block[buddy_pfn] >> 4):
            raise InvariantError(f"{where}: blocks {pfn:#x} and {buddy_pfn:#x} of order {order} are both free but not merged")
        marked += 1
        if migratetype != isolate:
            free += 1 << order
        if migratetype == cma:
            free_cma += 1 << order
    span = slice(zone.start_pfn, zone.end_pfn)
    heads = sum(1 for pfn, block in enumerate(frames.free_block[span], zone.start_pfn)
                if block and frames.zone_of[pfn] == zone.serial)
    if heads != marked:
        raise InvariantError(f"{where}: {heads} frames are marked as free blocks, the lists hold {marked}")
    if (free, free_cma) != (zone.nr_free_pages, zone.nr_free_cma_pages):
        raise InvariantError(f"{where}: the lists hold {free} free frames ({free_cma} CMA), the counts say "
                             f"{zone.nr_free_pages} ({zone.nr_free_cma_pages})")
    for cpu, pcp in enumerate(zone.pageset):
        pcp.check()
        for pindex, pages in enumerate(pcp.lists):
            for pfn in pages:
                cover(pfn, pindex_to_order(pindex), f"block on CPU {cpu}'s list")
                if frames.free_block[pfn]:
                    raise InvariantError(f"{where}: {pfn:#x} is on CPU {cpu}'s list and in a free list")


def check_order(order: int) -> None:
    """BUG for an order that the allocator does not have. Raise KernelBug."""
    if not 0 <= order < MAX_ORDER:
        raise KernelBug(f"order {order} is outside of 0..{MAX_ORDER - 1}")
