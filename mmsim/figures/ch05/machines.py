"""Small machines for the figures of this chapter: a few zones with all their frames free, marks and lists set up as at boot."""

from __future__ import annotations

from mmsim.boot.handover import blocks_of
from mmsim.constants import MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE, WMARK_LOW, ZONE_NORMAL
from mmsim.physical.free import free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.watermark import Reserves, calculate_totalreserve_pages, zone_batchsize, zone_highsize
from mmsim.physical.zone import Zone
from mmsim.physical.zonelist import build_all_zonelists

__all__ = ["ROLE_OF_TYPE", "TYPE_NAMES", "TYPE_NUMBERS", "free_lists", "small_memory"]

#: Names of the three mobility types by number, as the figures' lists and legends show them.
TYPE_NAMES = {MIGRATE_UNMOVABLE: "Unmovable", MIGRATE_MOVABLE: "Movable", MIGRATE_RECLAIMABLE: "Reclaimable"}
TYPE_NUMBERS = {name.lower(): number for number, name in TYPE_NAMES.items()}
ROLE_OF_TYPE = {MIGRATE_UNMOVABLE: "kernel", MIGRATE_MOVABLE: "anon", MIGRATE_RECLAIMABLE: "file"}


def small_memory(*sizes: tuple[int, int], per_cpu_lists: bool = True) -> PhysicalMemory:
    """One node with zones next to each other: ``sizes`` holds (zone type, frames) from the lowest address up.

    All frames are free and all pageblocks Movable. Marks, reserves and per-CPU lists are what a boot gives zones of that
    size; without ``per_cpu_lists`` they hold nothing, so that every free block stands in the free lists.
    """
    total = sum(frames for _, frames in sizes)
    memory = PhysicalMemory(total)
    node = memory.add_node(0, 0, total, total)
    start = 0
    for index, frames in sizes:
        zone = node.zones[index] = Zone(memory, 0, index, start, frames, frames)
        first, last = start >> 9, start + frames - 1 >> 9
        memory.frames.pageblock_mt[first:last + 1] = bytes((MIGRATE_MOVABLE,)) * (last - first + 1)
        start += frames
        for pfn, order in blocks_of(zone.start_pfn, zone.end_pfn):
            free_pages_core(memory, pfn, order)
    build_all_zonelists(memory)
    reserves = Reserves([node.zones])
    reserves.init_per_zone_wmark_min()
    node.totalreserve_pages = calculate_totalreserve_pages(node.zones)
    if per_cpu_lists:
        for zone in memory.zones():
            batch = max(1, zone_batchsize(zone.managed_pages))
            high = zone_highsize(zone.watermark[WMARK_LOW], zone.managed_pages, batch, 1, 1)
            for pageset in zone.pageset:
                pageset.high, pageset.batch = high, batch
    return memory


def free_lists(zone: Zone) -> dict[tuple[int, int], list[int]]:
    """The free lists of a zone as the drawing takes them: PFNs from head to tail by (order, type)."""
    lists: dict[tuple[int, int], list[int]] = {}
    for order, migratetype, pfn in zone.free_blocks():
        lists.setdefault((order, migratetype), []).append(pfn)
    return lists


def normal_zone(memory: PhysicalMemory) -> Zone:
    """The zone Normal of a one-node machine."""
    return memory.nodes[0].zones[ZONE_NORMAL]
