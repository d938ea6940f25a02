"""One walk along a zonelist: the first zone that may give a block does so.

This is the part that the fast path and every step of the slow path share; they differ in the watermark and in how
far below it the request may go (the allocation flags).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mmsim.constants import (
    _GFP_COMP,
    _GFP_KSWAPD_RECLAIM,
    _GFP_THISNODE,
    _GFP_WRITE,
    ALLOC_HARDER,
    ALLOC_NO_WATERMARKS,
    ALLOC_NOFRAGMENT,
    ALLOC_WMARK_LOW,
    ALLOC_WMARK_MASK,
    ZONE_DMA32,
    ZONE_NORMAL,
)
from mmsim.errors import InputError
from mmsim.physical.fallback import reserve_highatomic_pageblock
from mmsim.physical.gfp import gfp_migratetype, gfp_to_alloc_flags_cma, gfp_zone
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page import prep_new_page
from mmsim.physical.rmqueue import rmqueue
from mmsim.physical.watermark import zone_watermark_fast
from mmsim.physical.zone import Zone

__all__ = ["AllocContext", "alloc_flags_nofragment", "get_page_from_freelist", "prepare_alloc_pages"]


@dataclass(slots=True)
class AllocContext:
    """What stays the same during one request: where it may look, and for what (5.17: mm/internal.h, struct
    alloc_context).

    ``preferred_zone`` is the first zone that the request may use: its home, for the statistics too; None if there is
    none.
    """

    zonelist: list[Zone]
    nodemask: Collection[int] | None
    migratetype: int
    highest_zoneidx: int
    spread_dirty_pages: bool = False
    preferred_zone: Zone | None = None

    def zones(self) -> Iterator[Zone]:
        """The zones that the request may use, in order (5.17: for_each_zone_zonelist_nodemask())."""
        for zone in self.zonelist:
            if zone.index <= self.highest_zoneidx and (self.nodemask is None or zone.nid in self.nodemask):
                yield zone

    def reset_preferred_zone(self) -> None:
        """Find the first allowed zone anew (5.17: first_zones_zonelist())."""
        self.preferred_zone = next(self.zones(), None)


def prepare_alloc_pages(memory: PhysicalMemory, gfp_mask: int, preferred_nid: int,
                        nodemask: Collection[int] | None = None) -> tuple[AllocContext, int]:
    """The context of a request, and the allocation flags of its first attempt.

    Raise KernelBug for zone bits that contradict each other, InputError for a node that the machine doesn't have.
    5.17: mm/page_alloc.c, prepare_alloc_pages(). Left out: cpusets.
    """
    highest_zoneidx = gfp_zone(gfp_mask)
    node = memory.nodes.get(preferred_nid)
    if node is None:
        raise InputError(f"there is no node {preferred_nid}; the machine has {sorted(memory.nodes)}")
    context = AllocContext(node.zonelist_thisnode if gfp_mask & _GFP_THISNODE else node.zonelist, nodemask,
                           gfp_migratetype(gfp_mask), highest_zoneidx, bool(gfp_mask & _GFP_WRITE))
    context.reset_preferred_zone()
    return context, gfp_to_alloc_flags_cma(gfp_mask, ALLOC_WMARK_LOW, cma=memory.config.cma)


def alloc_flags_nofragment(memory: PhysicalMemory, zone: Zone | None, gfp_mask: int) -> int:
    """Flags that forbid the first attempt to mix pageblock types, where another zone can serve instead.

    That is so if the preferred zone is Normal: DMA32 lies below it, large enough to be worth looking (on a machine of
    several nodes only if the node has memory there). DMA is too small to spread to, so DMA32 requests get no such flag.
    5.17: mm/page_alloc.c, alloc_flags_nofragment().
    """
    alloc_flags = gfp_mask & _GFP_KSWAPD_RECLAIM
    if zone is None or zone.index != ZONE_NORMAL:
        return alloc_flags
    if len(memory.nodes) > 1 and not memory.nodes[zone.nid].zones[ZONE_DMA32].populated:
        return alloc_flags
    return alloc_flags | ALLOC_NOFRAGMENT


def get_page_from_freelist(memory: PhysicalMemory, gfp_mask: int, order: int, alloc_flags: int,
                           context: AllocContext) -> int | None:
    """Walk the zonelist once: take a block from the first zone whose watermark allows it. Return its PFN, or None.

    With ALLOC_NOFRAGMENT the walk ends at the border of the node and starts again without the flag: memory nearby is
    worth more than unmixed pageblocks; so it does after the last zone. An urgent high-order request reserves the
    pageblock it was served from.

    5.17: mm/page_alloc.c, get_page_from_freelist(). Left out: cpusets, node_reclaim(), and the dirty
    limit of a node (``spread_dirty_pages``), which comes with writeback.
    """
    highest_zoneidx, nodemask = context.highest_zoneidx, context.nodemask
    while True:
        no_fallback = alloc_flags & ALLOC_NOFRAGMENT
        preferred = context.preferred_zone
        if preferred is None:
            return None
        # context.zones(), written out: this loop is the fast path.
        for zone in context.zonelist:
            if zone.index > highest_zoneidx or nodemask is not None and zone.nid not in nodemask:
                continue
            if no_fallback and zone.nid != preferred.nid:
                break
            if not alloc_flags & ALLOC_NO_WATERMARKS:
                mark = zone.watermark[alloc_flags & ALLOC_WMARK_MASK] + zone.watermark_boost
                if not zone_watermark_fast(zone, order, mark, highest_zoneidx, alloc_flags, gfp_mask):
                    # While the machine boots, the zone may have memory that nobody has looked at yet.
                    if memory.deferred_grow_zone is None or not memory.deferred_grow_zone(zone, order):
                        continue
            pfn = rmqueue(preferred, zone, order, gfp_mask, alloc_flags, context.migratetype)
            while pfn is None and memory.deferred_grow_zone is not None and memory.deferred_grow_zone(zone, order):
                pfn = rmqueue(preferred, zone, order, gfp_mask, alloc_flags, context.migratetype)
            if pfn is None:
                continue
            prep_new_page(memory.frames, pfn, order, bool(gfp_mask & _GFP_COMP))
            if order and alloc_flags & ALLOC_HARDER:
                reserve_highatomic_pageblock(zone, pfn)
            return pfn
        if not no_fallback:
            return None
        alloc_flags &= ~ALLOC_NOFRAGMENT
