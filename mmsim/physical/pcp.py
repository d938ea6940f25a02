"""Per-CPU lists: small blocks that each CPU keeps of each zone, so that most requests need neither lock nor split.

::

    allocation ◄── head  [ pfn pfn pfn pfn … ]  tail ◄── refill (rmqueue_bulk, in the order taken)
    free       ──► head                         tail ──► drain  (free_pcppages_bulk, round robin over the 15 lists)

The most recently freed frame is the first to be handed out again: its contents may still be in the CPU's cache.
5.17: mm/page_alloc.c. Left out: the local lock, remote draining's work items, prefetch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mmsim.constants import ALLOC_CMA, MIGRATE_MOVABLE, MIGRATE_PCPTYPES, NR_PCP_LISTS, PAGEBLOCK_ORDER
from mmsim.physical.buddy import _free_one_page, take_run
from mmsim.physical.fallback import _rmqueue
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.zone import PerCpuPages, Zone, order_to_pindex, pindex_to_order

__all__ = [
    "drain_all_pages", "drain_pages", "drain_zone_pages", "free_pcppages_bulk", "free_unref_page_commit", "nr_pcp_free",
    "nr_pcp_high", "pcp_allowed_order", "rmqueue_bulk", "rmqueue_pcplist",
]


def pcp_allowed_order(order: int) -> bool:
    """Tell whether blocks of an order are kept per CPU: orders 0..3, and 9 for huge pages (5.17: pcp_allowed_order())."""
    return order <= 3 or order == PAGEBLOCK_ORDER


# -- allocation --------------------------------------------------------------------------------------------

def rmqueue_bulk(zone: Zone, order: int, count: int, pages: deque[int], migratetype: int, alloc_flags: int) -> int:
    """Take up to ``count`` blocks from the free lists and append them to a per-CPU list. Return how many.

    5.17: rmqueue_bulk(). While nobody traces and no CMA area is in play, neighbours out of one large block are taken in one
    step; the result is the same.
    """
    cma = zone.nr_free_cma_pages if alloc_flags & ALLOC_CMA else 0
    whole_runs = not zone.memory.trace.enabled and not cma
    allocated = 0
    while allocated < count:
        if whole_runs:
            run = take_run(zone, order, migratetype, count - allocated)
            if run:
                pages.extend(run)
                allocated += len(run)
                continue
        pfn = _rmqueue(zone, order, migratetype, alloc_flags)
        if pfn is None:
            break
        pages.append(pfn)
        allocated += 1
        if cma and zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER] == zone.migrate_cma:
            zone.pageset[zone.memory.cpu].other_types[pfn] = zone.migrate_cma
            zone.nr_free_cma_pages -= 1 << order
    zone.nr_free_pages -= allocated << order
    return allocated


def rmqueue_pcplist(zone: Zone, order: int, migratetype: int, alloc_flags: int) -> int | None:
    """Take a block from the current CPU's list, which is refilled first if it is empty. Return its PFN or None.

    5.17: rmqueue_pcplist() and __rmqueue_pcplist().
    """
    pcp = zone.pageset[zone.memory.cpu]
    # Allocations mean that frees come in turn with them: drain smaller batches from now on.
    pcp.free_factor >>= 1
    pages = pcp.lists[order_to_pindex(migratetype, order) if order else migratetype]
    if not pages:
        batch = pcp.batch
        if batch > 1:
            batch = max(batch >> order, 2)
        pcp.count += rmqueue_bulk(zone, order, batch, pages, migratetype, alloc_flags) << order
        if not pages:
            return None
    pfn = pages.popleft()
    pcp.count -= 1 << order
    if pcp.other_types:
        pcp.other_types.pop(pfn, None)
    return pfn


# -- freeing -----------------------------------------------------------------------------------------------

def nr_pcp_free(pcp: PerCpuPages, high: int, batch: int) -> int:
    """How many frames to drain from lists that hold ``high`` or more. Changes ``free_factor``.

    The number doubles with each drain that no allocation interrupted, but at least a batch stays on the lists.
    5.17: nr_pcp_free().

    >>> pcp = PerCpuPages(high=535, batch=63)
    >>> [nr_pcp_free(pcp, pcp.high, pcp.batch) for _ in range(5)]
    [63, 126, 252, 472, 472]
    """
    if high < batch:
        return 1
    min_nr_free, max_nr_free = batch, high - batch
    batch <<= pcp.free_factor
    if batch < max_nr_free:
        pcp.free_factor += 1
    # C's clamp(): the upper limit wins where the limits cross.
    return min(max(batch, min_nr_free), max_nr_free)


def nr_pcp_high(pcp: PerCpuPages, zone: Zone) -> int:
    """How many frames the lists may hold: less while the zone is being reclaimed (5.17: nr_pcp_high())."""
    if not pcp.high or not zone.reclaim_active:
        return pcp.high
    return min(pcp.batch << 2, pcp.high)


def free_unref_page_commit(zone: Zone, pfn: int, migratetype: int, order: int) -> None:
    """Put a freed block at the head of its list; drain if the lists are full. ``migratetype`` is that of its pageblock.

    Types without lists of their own (HighAtomic, CMA) stand among the movable ones. 5.17: free_unref_page_commit(), which
    counts a freed block of any order as one page in pgfree.
    """
    memory = zone.memory
    pcp = zone.pageset[memory.cpu]
    memory.counters["pgfree"] += 1
    if migratetype >= MIGRATE_PCPTYPES:
        pcp.other_types[pfn] = migratetype
        migratetype = MIGRATE_MOVABLE
    pcp.lists[order_to_pindex(migratetype, order) if order else migratetype].appendleft(pfn)
    pcp.count += 1 << order
    high = nr_pcp_high(pcp, zone) if zone.reclaim_active else pcp.high
    if pcp.count >= high:
        free_pcppages_bulk(zone, nr_pcp_free(pcp, high, pcp.batch), pcp)


def free_pcppages_bulk(zone: Zone, count: int, pcp: PerCpuPages) -> None:
    """Give at least ``count`` frames from one CPU's lists back to the free lists, oldest first.

    The lists are visited round robin, from list 1 on; each empty one on the way lets the next give one block more, so that
    rarely used lists do not make the drain slow. 5.17: free_pcppages_bulk().
    """
    count = min(pcp.count, count)
    drained: list[tuple[int, int, list[int]]] = []
    pindex = batch_free = 0
    while count > 0:
        while True:
            batch_free += 1
            pindex += 1
            if pindex == NR_PCP_LISTS:
                pindex = 0
            pages = pcp.lists[pindex]
            if pages:
                break
        if batch_free == NR_PCP_LISTS:
            # All others are empty: this list gives the rest.
            batch_free = count
        order = pindex_to_order(pindex)
        blocks = min(batch_free, len(pages), count + (1 << order) - 1 >> order)
        batch_free -= blocks
        count -= blocks << order
        pcp.count -= blocks << order
        drained.append((order, pindex % MIGRATE_PCPTYPES, [pages.pop() for _ in range(blocks)]))
    trace, isolated, other_types = zone.memory.trace, zone.nr_isolate_pageblock, pcp.other_types
    for order, listed_type, pfns in drained:
        for pfn in pfns:
            migratetype = other_types.pop(pfn, listed_type) if other_types else listed_type
            if isolated:
                migratetype = zone.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
            _free_one_page(zone, pfn, order, migratetype)
            if trace.enabled:
                trace.emit("kmem:mm_page_pcpu_drain", pfn=pfn, order=order, migratetype=migratetype)


# -- draining ----------------------------------------------------------------------------------------------

def drain_zone_pages(zone: Zone, pcp: PerCpuPages) -> None:
    """Give one batch back: the tick's work on lists that were idle for a while (5.17: drain_zone_pages())."""
    to_drain = min(pcp.count, pcp.batch)
    if to_drain > 0:
        free_pcppages_bulk(zone, to_drain, pcp)


def drain_pages(zone: Zone, cpu: int) -> None:
    """Empty the lists that one CPU keeps of a zone (5.17: drain_pages_zone())."""
    pcp = zone.pageset[cpu]
    if pcp.count:
        free_pcppages_bulk(zone, pcp.count, pcp)


def drain_all_pages(memory: PhysicalMemory, zones: Iterable[Zone] | None = None) -> None:
    """Empty every CPU's lists, of all zones or of those given (5.17: drain_all_pages())."""
    for cpu in range(memory.nr_cpus):
        for zone in zones if zones is not None else memory.zones():
            drain_pages(zone, cpu)
