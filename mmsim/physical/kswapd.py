"""Waking kswapd: the allocator notes what it needs, and wakes the node's reclaim thread if that sleeps.

What kswapd then does is reclaim's part. While nothing runs it, it stays awake, and further wake-ups only note their needs.
"""

from __future__ import annotations

from mmsim.constants import MAX_NR_ZONES, MAX_RECLAIM_RETRIES
from mmsim.physical.gfp import gfp_names
from mmsim.physical.node import Node
from mmsim.physical.watermark import high_wmark_pages, zone_watermark_ok
from mmsim.physical.zone import Zone

__all__ = ["pgdat_balanced", "pgdat_watermark_boosted", "wakeup_kswapd"]


def pgdat_balanced(node: Node, order: int, highest_zoneidx: int) -> bool:
    """Tell whether some zone of the node has a block of ``order`` above its high watermark: nothing to do for kswapd.

    A node without memory in those zones is balanced. 5.17: mm/vmscan.c, pgdat_balanced().
    """
    zones = [zone for zone in node.zones[:highest_zoneidx + 1] if zone.managed_pages]
    return not zones or any(zone_watermark_ok(zone, order, high_wmark_pages(zone), highest_zoneidx, 0) for zone in zones)


def pgdat_watermark_boosted(node: Node, highest_zoneidx: int) -> bool:
    """Tell whether a zone of the node has its marks boosted (5.17: mm/vmscan.c, pgdat_watermark_boosted())."""
    return any(zone.managed_pages and zone.watermark_boost for zone in node.zones[:highest_zoneidx + 1])


def wakeup_kswapd(zone: Zone, gfp_flags: int, order: int, highest_zoneidx: int) -> None:
    """Ask the kswapd of a zone's node for blocks of ``order`` in zones up to ``highest_zoneidx``, and wake it if need be.

    Not if it is awake, if the node is balanced and not boosted, or if kswapd has failed too often there.
    5.17: mm/vmscan.c, wakeup_kswapd(). Left out: kcompactd, which is woken instead where memory is plenty but fragmented.
    """
    if not zone.managed_pages:
        return
    memory = zone.memory
    node = memory.nodes[zone.nid]
    if node.kswapd_highest_zoneidx == MAX_NR_ZONES or node.kswapd_highest_zoneidx < highest_zoneidx:
        node.kswapd_highest_zoneidx = highest_zoneidx
    node.kswapd_order = max(node.kswapd_order, order)
    if node.kswapd_awake or node.kswapd_failures >= MAX_RECLAIM_RETRIES:
        return
    if pgdat_balanced(node, order, highest_zoneidx) and not pgdat_watermark_boosted(node, highest_zoneidx):
        return
    node.kswapd_awake = True
    if memory.trace.enabled:
        memory.trace.emit("vmscan:mm_vmscan_wakeup_kswapd", nid=node.nid, zid=highest_zoneidx, order=order,
                          gfp_flags=gfp_names(gfp_flags))
