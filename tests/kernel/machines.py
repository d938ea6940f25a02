"""Small machines for the tests of the kernel's own memory."""

from __future__ import annotations

from mmsim.constants import MIGRATE_MOVABLE, ZONE_NORMAL
from mmsim.kernel.slab import KmemCache
from mmsim.kernel.slub import Slub
from mmsim.physical.free import free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.trace import Trace


def memory(pages: int = 1024, nodes: int = 1, cpus: int = 1) -> PhysicalMemory:
    """Nodes of ``pages`` frames each, one zone Normal; the CPUs spread over them."""
    ram = PhysicalMemory(pages * nodes, nr_cpus=cpus, trace=Trace())
    ram.frames.pageblock_mt[:] = bytes((MIGRATE_MOVABLE,)) * len(ram.frames.pageblock_mt)
    ram.cpu_to_node = [cpu * nodes // cpus for cpu in range(cpus)]
    zones = []
    for nid in range(nodes):
        node = ram.add_node(nid, nid * pages, pages, pages)
        zone = node.zones[ZONE_NORMAL]
        zone.start_pfn, zone.spanned_pages, zone.present_pages = nid * pages, pages, pages
        ram.frames.assign_zone(zone, nid * pages, (nid + 1) * pages)
        zones.append(zone)
        for pfn in range(nid * pages, (nid + 1) * pages, 512):
            free_pages_core(ram, pfn, 9)
    for nid, node in ram.nodes.items():
        node.zonelist = zones[nid:] + zones[:nid]
        node.zonelist_thisnode = [zones[nid]]
    return ram


def slub(pages: int = 1024, nodes: int = 1, cpus: int = 1, **options) -> Slub:
    ram = memory(pages, nodes, cpus)
    return Slub(ram, PageAllocator(ram), **options)


def free_frames(ram: PhysicalMemory) -> int:
    """Frames that nobody has: in free lists and in per-CPU lists."""
    return ram.nr_free_pages + sum(pcp.count for zone in ram.zones() for pcp in zone.pageset)


def moved(s: KmemCache, before: dict[str, int]) -> dict[str, int]:
    """What the cache counted since ``before``."""
    return {name: count - before[name] for name, count in s.stats().items() if count != before[name]}
