"""/proc/buddyinfo, /proc/pagetypeinfo, and the two files of /sys/kernel/debug/extfrag: what is free, in blocks of
which size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmsim.constants import MAX_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, SUBSECTION_SHIFT
from mmsim.physical.fragmentation import format_index, fragmentation_index, unusable_free_index
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.zone import Zone
from mmsim.units import PAGE_SHIFT

__all__ = ["buddyinfo", "pagetypeinfo", "extfrag_index", "unusable_index", "pageblock_counts"]

PAGES_PER_SUBSECTION = 1 << SUBSECTION_SHIFT - PAGE_SHIFT
#: pagetypeinfo walks the lists with interrupts off, so it stops counting a list here (5.17: mm/vmstat.c).
FREE_COUNT_LIMIT = 100_000


def _zone_label(zone: Zone) -> str:
    return f"Node {zone.nid}, zone {zone.name:>8} "


def buddyinfo(memory: PhysicalMemory) -> str:
    """One line a populated zone: its free blocks of each order (5.17: mm/vmstat.c, frag_show_print())."""
    return "".join(_zone_label(zone) + "".join(f"{area.nr_free:6d} " for area in zone.free_area) + "\n"
                   for zone in memory.zones())


def pageblock_counts(zone: Zone) -> list[int]:
    """How many pageblocks of the zone have each migratetype: the block of every 512th frame from the zone's first on.

    A frame in a hole counts too if its subsection (2 MiB) has any memory: it has a struct page, which says that it is
    the zone's. Cost: the pageblocks of the zone. 5.17: mm/vmstat.c, pagetypeinfo_showblockcount_print().
    """
    frames = zone.frames
    counts = [0] * zone.memory.config.migrate_types
    for pfn in range(zone.start_pfn, zone.end_pfn, PAGEBLOCK_NR_PAGES):
        serial = frames.zone_of[pfn]
        if serial == 0:
            subsection = pfn & -PAGES_PER_SUBSECTION
            if not any(frames.zone_of[subsection:subsection + PAGES_PER_SUBSECTION]):
                continue
        elif serial != zone.serial:
            continue
        counts[frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]] += 1
    return counts


def pagetypeinfo(memory: PhysicalMemory) -> str:
    """Free blocks by migratetype and order, and the pageblocks of each type; a part with its own heading for every
    node.

    5.17: mm/vmstat.c, pagetypeinfo_show(). Left out: the count of mixed blocks (CONFIG_PAGE_OWNER).
    """
    names = memory.config.migratetype_names
    text = []
    for node in memory.nodes.values():
        zones = node.populated_zones
        if not zones:
            continue
        text.append(f"Page block order: {PAGEBLOCK_ORDER}\nPages per block:  {PAGEBLOCK_NR_PAGES}\n\n")
        text.append(f"{'Free pages count per migrate type at order':<43} "
                    + "".join(f"{order:6d} " for order in range(MAX_ORDER)) + "\n")
        for zone in zones:
            for migratetype, name in enumerate(names):
                counts = [len(area.free_list[migratetype]) for area in zone.free_area]
                text.append(f"Node {zone.nid:4d}, zone {zone.name:>8}, type {name:>12} "
                            + "".join(f"{'>' if count >= FREE_COUNT_LIMIT else ''}{min(count, FREE_COUNT_LIMIT):6d} "
                                      for count in counts) + "\n")
        text.append(f"\n{'Number of blocks type ':<23}" + "".join(f"{name:>12} " for name in names) + "\n")
        text += [_zone_label(zone) + "".join(f"{count:12d} " for count in pageblock_counts(zone)) + "\n" for zone in zones]
    return "".join(text)


def _per_order(memory: PhysicalMemory, index: Callable[[Sequence[int], int], int]) -> str:
    return "".join(_zone_label(zone) + "".join(f"{format_index(index(zone.buddyinfo(), order))} " for order in range(MAX_ORDER))
                   + "\n" for zone in memory.zones())


def extfrag_index(memory: PhysicalMemory) -> str:
    """/sys/kernel/debug/extfrag/extfrag_index: why an allocation of each order would fail (5.17: mm/vmstat.c,
    extfrag_show())."""
    return _per_order(memory, fragmentation_index)


def unusable_index(memory: PhysicalMemory) -> str:
    """/sys/kernel/debug/extfrag/unusable_index: the part of free memory that each order can't use.

    5.17: mm/vmstat.c, unusable_show().
    """
    return _per_order(memory, unusable_free_index)
