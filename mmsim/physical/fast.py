"""The common case of alloc_pages() and free_pages(), without detours: a single page, and the CPU's list has or takes it.

What the kernel decides anew for each request (where to look, for what, down to which watermark) depends on the GFP mask and the
node alone; it is kept here. Everything that is not the common case (the list is empty or full, the watermark is near, somebody
traces, a CMA or HighAtomic page) is left to :mod:`mmsim.physical.freelist` and :mod:`mmsim.physical.free`, which these
functions are held equal to.

5.17: mm/page_alloc.c, __alloc_pages(), get_page_from_freelist(), rmqueue_pcplist(), prep_new_page(); free_unref_page().
"""

from __future__ import annotations

from mmsim.constants import (
    _GFP_WRITE,
    ALLOC_CMA,
    MIGRATE_MOVABLE,
    MIGRATE_PCPTYPES,
    PAGEBLOCK_ORDER,
    WMARK_LOW,
)
from mmsim.physical.frames import PAGE_FLAGS_CHECK_AT_FREE
from mmsim.physical.freelist import alloc_flags_nofragment, prepare_alloc_pages
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.node import Node
from mmsim.physical.zone import Zone

__all__ = ["RequestPlan", "alloc_more", "alloc_one", "free_one", "plan_request"]


class RequestPlan:
    """What follows from a GFP mask on one CPU. ``zone`` is the preferred one; it is all that the common case looks at."""

    __slots__ = ("zone", "node", "zonelist", "cpu_to_node", "reserve_index", "uses_cma", "pcp", "waiting", "near", "pgalloc",
                 "counters", "numa_stat", "refcount")

    def __init__(self, memory: PhysicalMemory, zone: Zone, node: Node, migratetype: int, reserve_index: int, uses_cma: bool):
        self.zone, self.node = zone, node
        self.reserve_index, self.uses_cma = reserve_index, uses_cma
        self.pcp = zone.pageset[memory.cpu]
        self.waiting = self.pcp.lists[migratetype]
        #: A plan holds as long as these are the same objects.
        self.zonelist, self.cpu_to_node = node.zonelist, memory.cpu_to_node
        self.near = "numa_local" if zone.nid == node.nid else "numa_other"
        self.pgalloc, self.counters, self.numa_stat = zone.pgalloc, memory.counters, zone.numa_stat
        self.refcount = memory.frames.refcount

    def holds(self, memory: PhysicalMemory) -> bool:
        """Whether nodes and CPUs are still what they were."""
        return self.node.zonelist is self.zonelist and self.cpu_to_node is memory.cpu_to_node


def plan_request(memory: PhysicalMemory, gfp_mask: int) -> RequestPlan | None:
    """The plan of a single-page request on the current CPU, or None if it is never a common one."""
    nid = memory.cpu_to_node[memory.cpu]
    if gfp_mask & _GFP_WRITE or not memory.config.numa:
        return None
    context, alloc_flags = prepare_alloc_pages(memory, gfp_mask, nid)
    zone, node = context.preferred_zone, memory.nodes[nid]
    if zone is None or context.zonelist is not node.zonelist:
        return None
    alloc_flags |= alloc_flags_nofragment(memory, zone, gfp_mask)
    if not alloc_flags & ALLOC_CMA and context.migratetype == MIGRATE_MOVABLE and zone.migrate_cma >= 0:
        return None
    return RequestPlan(memory, zone, node, context.migratetype, context.highest_zoneidx, bool(alloc_flags & ALLOC_CMA))


def _gives(memory: PhysicalMemory, plan: RequestPlan) -> bool:
    """Whether a page may be taken from the CPU's list: some wait there, the zone is above its low mark, and nobody listens."""
    zone = plan.zone
    free = zone.nr_free_pages - zone.nr_reserved_highatomic
    if not plan.uses_cma:
        free -= zone.nr_free_cma_pages
    if not plan.waiting or zone.boosted_watermark or memory.trace.enabled or plan.node.zonelist is not plan.zonelist or \
            plan.cpu_to_node is not memory.cpu_to_node:
        return False
    # Below 0 the kernel's comparison of unsigned numbers lets a request pass.
    return free < 0 or free > zone.watermark[WMARK_LOW] + zone.watermark_boost + zone.lowmem_reserve[plan.reserve_index]


def alloc_one(memory: PhysicalMemory, plan: RequestPlan) -> int | None:
    """A single page from the CPU's list; None, and nothing done, if this is not the common case."""
    zone, waiting, refcount = plan.zone, plan.waiting, plan.refcount
    # _gives(), written out.
    free = zone.nr_free_pages - zone.nr_reserved_highatomic
    if not plan.uses_cma:
        free -= zone.nr_free_cma_pages
    if not waiting or zone.boosted_watermark or memory.trace.enabled or plan.node.zonelist is not plan.zonelist or \
            plan.cpu_to_node is not memory.cpu_to_node or refcount[waiting[0]] or \
            0 <= free <= zone.watermark[WMARK_LOW] + zone.watermark_boost + zone.lowmem_reserve[plan.reserve_index]:
        return None
    pfn = waiting.popleft()
    refcount[pfn] = 1
    pcp = plan.pcp
    pcp.free_factor >>= 1
    pcp.count -= 1
    if pcp.other_types:
        pcp.other_types.pop(pfn, None)
    plan.counters[plan.pgalloc] += 1
    stat = plan.numa_stat
    stat["numa_hit"] += 1
    stat[plan.near] += 1
    return pfn


def alloc_more(memory: PhysicalMemory, plan: RequestPlan, count: int) -> list[int]:
    """Up to ``count`` pages that wait on the CPU's list: what so many calls of :func:`alloc_one` give, until the first None."""
    waiting, refcount, pcp = plan.waiting, plan.refcount, plan.pcp
    if pcp.other_types or not _gives(memory, plan):
        return []
    pfns = [waiting.popleft() for _ in range(min(count, len(waiting)))]
    for taken, pfn in enumerate(pfns):
        if refcount[pfn]:
            waiting.extendleft(reversed(pfns[taken:]))
            del pfns[taken:]
            break
        refcount[pfn] = 1
    taken = len(pfns)
    pcp.count -= taken
    pcp.free_factor >>= taken
    plan.counters[plan.pgalloc] += taken
    plan.numa_stat["numa_hit"] += taken
    plan.numa_stat[plan.near] += taken
    return pfns


def free_one(memory: PhysicalMemory, pfn: int) -> bool:
    """Put a single page without references on the CPU's list; False, and nothing done, if this is not the common case."""
    frames = memory.frames
    migratetype = frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
    zone = frames.zones[frames.zone_of[pfn]]
    if migratetype >= MIGRATE_PCPTYPES or zone is None or memory.trace.enabled or frames.flags[pfn] & PAGE_FLAGS_CHECK_AT_FREE \
            or frames.mapcount[pfn] or frames.free_block[pfn] or zone.reclaim_active:
        return False
    pcp = zone.pageset[memory.cpu]
    count = pcp.count + 1
    if count >= pcp.high:
        return False
    frames.flags[pfn] = 0
    memory.counters["pgfree"] += 1
    pcp.lists[migratetype].appendleft(pfn)
    pcp.count = count
    return True
