"""Nodes and zones: cut the machine's frames by what devices can reach, and count what each zone has.

A zone *spans* from its first to its last frame, holes included; *present* are the frames that are memory; *managed*
those that the buddy allocator has. Until hand-over nobody knows the last number, so the kernel estimates it: present
less the memory map. 5.17: mm/page_alloc.c, free_area_init() and what it calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mmsim.boot.memblock import Memblock
from mmsim.boot.sparse import SparseMap
from mmsim.constants import (
    MAX_DMA32_PFN,
    MAX_DMA_PFN,
    MAX_NR_ZONES,
    MAX_ORDER,
    MEMBLOCK_HOTPLUG,
    MIGRATE_MOVABLE,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
    PAGES_PER_SECTION,
    SIZEOF_STRUCT_PAGE,
    ZONE_DEVICE,
    ZONE_DMA,
    ZONE_MOVABLE,
    ZONE_NAMES,
    ZONE_NORMAL,
)
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.zone import Zone
from mmsim.units import PAGE_SIZE, align_down, align_up, format_mem_range, memparse, pfn_down, pfn_to_phys, pfn_up

__all__ = ["CoreOptions", "ZoneLayout", "find_dma_reserve", "free_area_init", "init_memoryless_node", "init_possible_node"]

MAX_ORDER_NR_PAGES = 1 << MAX_ORDER - 1
Printk = Callable[[str], None]


@dataclass(slots=True)
class CoreOptions:
    """``kernelcore=`` and ``movablecore=``: how many pages must not, or must, be in zone Movable; or percent of all
    pages.
    """

    kernelcore: int = 0
    movablecore: int = 0
    kernelcore_percent: int = 0
    movablecore_percent: int = 0

    @staticmethod
    def _parse(value: str) -> tuple[int, int]:
        """Pages and percent (5.17: cmdline_parse_core())."""
        number = re.match(r"\d+", value)
        if number and value[number.end():].startswith("%"):
            return 0, int(number[0])
        return memparse(value)[0] // PAGE_SIZE, 0

    def set(self, name: str, value: str) -> None:
        """Take one option of the command line. ``kernelcore=mirror`` is left out: no mirrored memory in the model's
        boots.
        """
        pages, percent = self._parse(value)
        if name == "kernelcore" and value != "mirror":
            self.kernelcore, self.kernelcore_percent = pages, percent
        elif name == "movablecore":
            self.movablecore, self.movablecore_percent = pages, percent


@dataclass(slots=True)
class ZoneLayout:
    """What free_area_init() found: limits of each zone type, where Movable starts on each node, and the page counts."""

    lowest: list[int] = field(default_factory=lambda: [0] * (ZONE_DEVICE + 1))
    highest: list[int] = field(default_factory=lambda: [0] * (ZONE_DEVICE + 1))
    movable_pfn: dict[int, int] = field(default_factory=dict)
    #: Memory of each node as (first PFN, PFN behind the last).
    node_ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    dma_reserve: int = 0
    #: Estimates of what will be free, less memory map and DMA reserve; they size the hash tables.
    nr_kernel_pages: int = 0
    nr_all_pages: int = 0
    #: Frames in holes that have a struct page all the same: PG_reserved for good.
    unavailable: list[tuple[int, int]] = field(default_factory=list)


def find_dma_reserve(memblock: Memblock) -> int:
    """Pages of the first 16 MiB that are memory and taken already (5.17: memblock_find_dma_reserve())."""
    pages = sum(min(MAX_DMA_PFN, end) - min(MAX_DMA_PFN, start) for start, end, _ in memblock.for_each_mem_pfn_range())
    free = 0
    for start, end, _ in memblock.for_each_free_mem_range():
        first, last = min(pfn_up(start), MAX_DMA_PFN), min(pfn_down(end), MAX_DMA_PFN)
        free += max(0, last - first)
    return pages - free


def _memory_in(memblock: Memblock, nid: int, start: int, end: int) -> int:
    """Pages of memory of a node in a PFN range."""
    return sum(max(0, min(high, end) - max(low, start)) for low, high, _ in memblock.for_each_mem_pfn_range(nid))


def _zone_limits(layout: ZoneLayout, memblock: Memblock, max_pfn: int) -> None:
    start = memblock.start_of_DRAM() // PAGE_SIZE
    for index, limit in ((ZONE_DMA, MAX_DMA_PFN), (ZONE_DMA + 1, MAX_DMA32_PFN), (ZONE_NORMAL, max_pfn)):
        end = max(min(limit, max_pfn), start)
        layout.lowest[index], layout.highest[index] = start, end
        start = end


def find_zone_movable_pfns(layout: ZoneLayout, memblock: Memblock, options: CoreOptions, within_node: bool = False) -> int:
    """Spread the pages that the kernel may use for itself evenly over the nodes; zone Movable starts behind them.

    Return the index of the zone type that Movable is cut from. ``within_node``: forget a start behind the node's end.
    5.17: mm/page_alloc.c, find_zone_movable_pfns_for_nodes().
    """
    movable_zone = next((i for i in range(ZONE_NORMAL, -1, -1) if layout.highest[i] > layout.lowest[i]), ZONE_DMA)
    nodes = sorted(layout.node_ranges)
    movable = dict.fromkeys(nodes, 0)
    if memblock.movable_node:
        # Then memory that may be unplugged decides, and the sizes on the command line do not count.
        for region in memblock.for_each_mem_region():
            if region.flags & MEMBLOCK_HOTPLUG:
                first = pfn_down(region.base)
                movable[region.nid] = min(first, movable[region.nid]) if movable[region.nid] else first
    else:
        _spread_kernelcore(memblock, options, movable, layout.lowest[movable_zone])
    for nid in nodes:
        pfn = -(-movable[nid] // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES
        if pfn and (pfn < layout.node_ranges[nid][1] or not within_node):
            layout.movable_pfn[nid] = pfn
    return movable_zone


def _spread_kernelcore(memblock: Memblock, options: CoreOptions, movable: dict[int, int], usable_start: int) -> None:
    """Find the frame up to which each node's memory is the kernel's; below ``usable_start`` all of it is."""
    total = sum(end - start for start, end, _ in memblock.for_each_mem_pfn_range())
    nodes = sorted(movable)
    kernelcore, movablecore = options.kernelcore, options.movablecore
    if options.kernelcore_percent:
        kernelcore = total * 100 * options.kernelcore_percent // 10000
    if options.movablecore_percent:
        movablecore = total * 100 * options.movablecore_percent // 10000
    if movablecore:
        movablecore = min(total, -(-movablecore // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES)
        kernelcore = max(kernelcore, total - movablecore)
    if not kernelcore or kernelcore >= total:
        return
    usable_nodes = len(nodes)
    while True:
        share = kernelcore // usable_nodes
        for nid in nodes:
            if kernelcore < share:
                share = kernelcore // usable_nodes
            remaining = share
            for start, end, _ in memblock.for_each_mem_pfn_range(nid):
                start = max(start, movable[nid])
                if start >= end:
                    continue
                if start < usable_start:
                    # Below the lowest frame that Movable may have everything is the kernel's anyway.
                    kernel_pages = min(end, usable_start) - start
                    remaining -= min(kernel_pages, remaining)
                    kernelcore -= min(kernel_pages, kernelcore)
                    if end <= usable_start:
                        movable[nid] = end
                        continue
                    start = usable_start
                size = min(end - start, remaining)
                movable[nid] = start + size
                kernelcore -= min(kernelcore, size)
                remaining -= size
                if not remaining:
                    break
        usable_nodes -= 1
        if not usable_nodes or kernelcore <= usable_nodes:
            break


def _zone_span(layout: ZoneLayout, index: int, nid: int, movable_zone: int) -> tuple[int, int]:
    """The span of a zone on a node (5.17: zone_spanned_pages_in_node(), adjust_zone_range_for_zone_movable())."""
    node_start, node_end = layout.node_ranges[nid]
    low, high = layout.lowest[index], layout.highest[index]
    start, end = min(max(node_start, low), high), min(max(node_end, low), high)
    movable = layout.movable_pfn.get(nid, 0)
    if movable:
        if index == ZONE_MOVABLE:
            start, end = movable, min(node_end, layout.highest[movable_zone])
        elif start < movable < end:
            end = movable
        elif start >= movable:
            start = end
    if end < node_start or start > node_end:
        return 0, 0
    start, end = max(start, node_start), min(end, node_end)
    return (start, end) if start < end else (0, 0)


def _memmap_pages(spanned: int, present: int) -> int:
    """Pages of struct pages for a zone: the holes cost nothing if they are large (5.17: calc_memmap_size())."""
    pages = present if spanned > present + (present >> 4) else spanned
    return align_up(pages * SIZEOF_STRUCT_PAGE, PAGE_SIZE) // PAGE_SIZE


def free_area_init(memory: PhysicalMemory, memblock: Memblock, sparse: SparseMap, max_pfn: int, options: CoreOptions,
                   nodes: list[int], dma_reserve: int, printk: Printk,
                   memoryless: Callable[[int], None] | None = None, possible: Iterable[int] = (),
                   zone_device: bool = True) -> ZoneLayout:
    """Create nodes and zones in ``memory``, mark every frame of the memory map, and log it as the kernel does.

    ``memoryless`` is called, in their turn, for the nodes of ``possible`` that have no memory (since 5.18).

    5.17: mm/page_alloc.c, free_area_init(), free_area_init_node(), memmap_init().
    """
    layout = ZoneLayout(dma_reserve=dma_reserve)
    _zone_limits(layout, memblock, max_pfn)
    for nid in nodes:
        ranges = [(start, end) for start, end, _ in memblock.for_each_mem_pfn_range(nid)]
        if ranges:
            layout.node_ranges[nid] = min(start for start, _ in ranges), max(end for _, end in ranges)
    movable_zone = find_zone_movable_pfns(layout, memblock, options, memory.rules.movable_zone_within_node)
    printk("Zone ranges:")
    for index in (0, 1, 2, ZONE_DEVICE) if zone_device else (0, 1, 2):
        low, high = layout.lowest[index], layout.highest[index]
        printk(f"  {ZONE_NAMES[index]:<8} " + ("empty" if low == high else format_mem_range(pfn_to_phys(low), pfn_to_phys(high))))
    printk("Movable zone start for each node")
    for nid, pfn in sorted(layout.movable_pfn.items()):
        printk(f"  Node {nid}: 0x{pfn_to_phys(pfn):016x}")
    printk("Early memory node ranges")
    for start, end, nid in memblock.for_each_mem_pfn_range():
        printk(f"  node {nid:3}: {format_mem_range(pfn_to_phys(start), pfn_to_phys(end))}")
    for nid in sorted({*nodes, *(possible if memoryless else ())}):
        if nid in layout.node_ranges:
            _init_node(memory, layout, memblock, nid, movable_zone, printk)
        elif memoryless:
            memoryless(nid)
    _memmap_init(memory, layout, memblock, sparse, printk)
    return layout


def init_memoryless_node(memory: PhysicalMemory, nid: int, printk: Printk) -> None:
    """A node that has CPUs only (5.17: arch/x86/mm/numa.c, init_memory_less_node())."""
    printk(f"Initmem setup node {nid} [mem 0x{0:016x}-0x{0:016x}]")
    memory.add_node(nid)
    memory.nodes = dict(sorted(memory.nodes.items()))


def init_possible_node(memory: PhysicalMemory, memblock: Memblock, nid: int, size: int, printk: Printk) -> None:
    """A node without memory, whether or not it has CPUs, since 5.18: its data may lie anywhere (6.1: mm/page_alloc.c,
    free_area_init()).
    """
    printk(f"Initializing node {nid} as memoryless")
    if not memblock.alloc(size, 64, caller="free_area_init"):
        printk(f"Cannot allocate {size}B for node {nid}.")
        return
    printk(f"Initmem setup node {nid} as memoryless")
    memory.add_node(nid).online = False


def _init_node(memory: PhysicalMemory, layout: ZoneLayout, memblock: Memblock, nid: int, movable_zone: int, printk: Printk) -> None:
    start, end = layout.node_ranges[nid]
    printk(f"Initmem setup node {nid} {format_mem_range(pfn_to_phys(start), pfn_to_phys(end))}")
    node = memory.add_node(nid, start, end - start)
    for index in range(MAX_NR_ZONES):
        low, high = _zone_span(layout, index, nid, movable_zone)
        zone = node.zones[index]
        if low < high:
            zone.start_pfn, zone.spanned_pages = low, high - low
            zone.present_pages = _memory_in(memblock, nid, low, high)
            zone.initialized = True
            node.present += zone.present_pages
        free = zone.present_pages
        memmap_pages = _memmap_pages(zone.spanned_pages, zone.present_pages)
        if free >= memmap_pages:
            free -= memmap_pages
        elif memmap_pages:
            printk(f"  {zone.name} zone: {memmap_pages} memmap pages exceeds freesize {free}")
        if index == ZONE_DMA and free > layout.dma_reserve:
            free -= layout.dma_reserve
        layout.nr_kernel_pages += free
        layout.nr_all_pages += free
        zone.managed_pages = free


def _memmap_init(memory: PhysicalMemory, layout: ZoneLayout, memblock: Memblock, sparse: SparseMap, printk: Printk) -> None:
    """Give each frame its zone and each pageblock its type; report frames that are no memory but have a struct page.

    5.17: mm/page_alloc.c, memmap_init(), memmap_init_zone_range(), init_unavailable_range().
    """
    hole, end, nid = 0, 0, 0
    zone: Zone | None = None
    for start, end, nid in memblock.for_each_mem_pfn_range():
        for candidate in memory.nodes[nid].populated_zones:
            first, last = max(start, candidate.start_pfn), min(end, candidate.end_pfn)
            # The kernel's loop remembers the last populated zone of the node, whether or not the range was in it.
            zone = candidate
            if first >= last:
                continue
            memory.frames.assign_zone(candidate, first, last)
            blocks = -(-first // PAGEBLOCK_NR_PAGES), (last - 1 >> PAGEBLOCK_ORDER) + 1
            memory.frames.pageblock_mt[blocks[0]:blocks[1]] = bytes((MIGRATE_MOVABLE,)) * (blocks[1] - blocks[0])
            if hole < first:
                _unavailable(layout, sparse, hole, first, candidate, nid, printk)
            hole = last
    end = align_up(end, PAGES_PER_SECTION)
    if zone is not None and hole < end:
        _unavailable(layout, sparse, hole, end, zone, nid, printk)


def _unavailable(layout: ZoneLayout, sparse: SparseMap, start: int, end: int, zone: Zone, nid: int, printk: Printk) -> None:
    pages, pfn = 0, start
    while pfn < end:
        stop = min(end, align_down(pfn, PAGES_PER_SECTION) + PAGES_PER_SECTION)
        if sparse.pfn_valid(align_down(pfn, PAGEBLOCK_NR_PAGES)):
            layout.unavailable.append((pfn, stop))
            pages += stop - pfn
        pfn = stop
    if pages:
        printk(f"On node {nid}, zone {zone.name}: {pages} pages in unavailable ranges")
