"""Small machines for the allocator's tests."""

from __future__ import annotations

from mmsim.config import Config
from mmsim.constants import MIGRATE_MOVABLE, PAGEBLOCK_ORDER, ZONE_NORMAL
from mmsim.physical.free import free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page import prep_new_page
from mmsim.physical.rmqueue import rmqueue
from mmsim.physical.zone import Zone


def machine(start_pfn: int = 0, pages: int = 4096, *, nr_cpus: int = 1, batch: int = 1, high: int = 0, free: bool = True,
            config: Config | None = None) -> tuple[PhysicalMemory, Zone]:
    """One zone Normal with movable pageblocks, its frames handed over unless ``free`` is false."""
    memory = PhysicalMemory(start_pfn + pages, nr_cpus=nr_cpus, config=config)
    node = memory.add_node(0, start_pfn, pages, pages)
    zone = node.zones[ZONE_NORMAL]
    zone.start_pfn, zone.spanned_pages, zone.present_pages = start_pfn, pages, pages
    memory.frames.assign_zone(zone, start_pfn, start_pfn + pages)
    blocks = memory.frames.pageblock_mt
    blocks[:] = bytes((MIGRATE_MOVABLE,)) * len(blocks)
    if free:
        hand_over(memory, start_pfn, start_pfn + pages)
    for pcp in zone.pageset:
        pcp.batch, pcp.high = batch, high
    return memory, zone


def hand_over(memory: PhysicalMemory, start: int, end: int) -> None:
    """Free a range as memblock does: in the largest aligned blocks."""
    while start < end:
        order = min(10, (start & -start).bit_length() - 1 if start else 10)
        while start + (1 << order) > end:
            order -= 1
        free_pages_core(memory, start, order)
        start += 1 << order


def take(zone: Zone, order: int = 0, migratetype: int = MIGRATE_MOVABLE, alloc_flags: int = 0x80,
         compound: bool = False) -> int:
    """Allocate as get_page_from_freelist() does once a zone is chosen."""
    pfn = rmqueue(zone, zone, order, 0, alloc_flags, migratetype)
    assert pfn is not None
    prep_new_page(zone.frames, pfn, order, compound)
    return pfn


def lists(zone: Zone) -> dict[tuple[int, int], list[int]]:
    """The free lists that are not empty: PFNs from head to tail by (order, migratetype)."""
    found: dict[tuple[int, int], list[int]] = {}
    for order, migratetype, pfn in zone.free_blocks():
        found.setdefault((order, migratetype), []).append(pfn)
    return found


def pageblock_of(pfn: int) -> int:
    return pfn >> PAGEBLOCK_ORDER
