"""Nodes: the memory close to one group of CPUs.

A machine without NUMA has one node. Each node has up to one zone of each type and the two zonelists that say where its CPUs
look for memory: everywhere, nearest first, or (``__GFP_THISNODE``) at home only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsim.constants import MAX_NR_ZONES
from mmsim.physical.zone import Zone

if TYPE_CHECKING:
    from mmsim.physical.memory import PhysicalMemory

__all__ = ["Node"]


class Node:
    """One node: ``zones`` by zone type (empty ones have no frames), its span, and its zonelists.

    ``zonelist`` and ``zonelist_thisnode`` hold the populated zones in the order in which allocations of this node try them;
    the zonelist builder fills them. 5.17: include/linux/mmzone.h, struct pglist_data.
    """

    __slots__ = ("memory", "nid", "zones", "start_pfn", "spanned", "present", "zonelist", "zonelist_thisnode", "cpus",
                 "totalreserve_pages", "kswapd_order", "kswapd_highest_zoneidx", "kswapd_failures", "kswapd_awake", "vm_stat", "online")

    def __init__(self, memory: PhysicalMemory, nid: int, start_pfn: int = 0, spanned: int = 0, present: int = 0):
        self.memory = memory
        self.nid = nid
        self.start_pfn = start_pfn
        self.spanned = spanned
        self.present = present
        self.zones: list[Zone] = [Zone(memory, nid, index) for index in range(MAX_NR_ZONES)]
        self.zonelist: list[Zone] = []
        self.zonelist_thisnode: list[Zone] = []
        self.cpus: list[int] = []
        #: Whether the node takes part: one that may be plugged in later has data but is in no list of nodes.
        self.online = True
        #: Pages of the node that are never given to user space: high marks and reserves.
        self.totalreserve_pages = 0
        #: What kswapd was last asked for (5.17: kswapd_order, kswapd_highest_zoneidx); MAX_NR_ZONES: nothing.
        self.kswapd_order = 0
        self.kswapd_highest_zoneidx = MAX_NR_ZONES
        self.kswapd_failures = 0
        self.kswapd_awake = False
        #: Counters of the node (``nr_inactive_anon``…), under the names of zoneinfo, filled by later parts.
        self.vm_stat: dict[str, int] = {}

    @property
    def end_pfn(self) -> int:
        """The first frame behind the node's span (5.17: pgdat_end_pfn())."""
        return self.start_pfn + self.spanned

    @property
    def populated_zones(self) -> list[Zone]:
        """The zones with frames, lowest first."""
        return [zone for zone in self.zones if zone.populated]

    def __repr__(self) -> str:
        return f"<Node {self.nid}: [{self.start_pfn:#x}, {self.end_pfn:#x}), {self.present} present, {self.populated_zones}>"
