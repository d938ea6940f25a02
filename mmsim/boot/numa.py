"""Which memory is near which processors: nodes from the firmware's tables, one dummy node, or nodes invented with numa=fake=.

The kernel gathers ranges (``struct numa_memblk``), trims them to the memory there is and joins neighbours, writes the node of
every range into memblock, and then gives each node its ``struct pglist_data``, from its own memory if possible.
5.17: arch/x86/mm/numa.c, arch/x86/mm/numa_emulation.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mmsim.boot.image import Platform, SratMemory
from mmsim.boot.memblock import Memblock
from mmsim.constants import MAX_DMA32_PFN, MAX_NUMNODES, NUMA_NO_NODE
from mmsim.errors import KernelPanic
from mmsim.units import MIB, PAGE_SIZE, U64_MAX, align_down, align_up, format_mem_range, memparse, pfn_to_phys

__all__ = ["NumaBlock", "NumaInfo", "numa_init", "cleanup_meminfo", "emulate"]

LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20
NODE_MIN_SIZE = 4 * MIB
FAKE_NODE_MIN_SIZE = 32 * MIB


@dataclass(slots=True)
class NumaBlock:
    """A range of addresses of one node (5.17: struct numa_memblk)."""

    start: int
    end: int
    nid: int


@dataclass(slots=True)
class NumaInfo:
    """What the kernel knows after numa_init(): ranges, node ids, the node of each CPU, distances, where NODE_DATA lies."""

    blocks: list[NumaBlock] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    cpu_to_node: list[int] = field(default_factory=list)
    #: All nodes whose CPU mask holds the CPU: with fake nodes, all those on its physical node.
    cpu_masks: dict[int, list[int]] = field(default_factory=dict)
    distance: list[list[int]] = field(default_factory=list)
    node_data: dict[int, int] = field(default_factory=dict)
    #: Where the distance table lies, and its size in bytes; (0, 0) if no table said anything.
    table: tuple[int, int] = (0, 0)

    def node_distance(self, a: int, b: int) -> int:
        """The distance between two nodes; 10 at home and 20 elsewhere where no table says more."""
        if a < len(self.distance) and b < len(self.distance):
            return self.distance[a][b]
        return LOCAL_DISTANCE if a == b else REMOTE_DISTANCE


Printk = Callable[[str], None]


def cleanup_meminfo(blocks: list[NumaBlock], memblock: Memblock, max_pfn: int, printk: Printk) -> bool:
    """Trim the ranges to the memory there is and join those of one node. Return False if nodes overlap.

    5.17: arch/x86/mm/numa.c, numa_cleanup_meminfo(). Left out: the reserved ranges kept for memory hotplug.
    """
    high = pfn_to_phys(max_pfn)
    kept = []
    for block in blocks:
        if not memblock.overlaps_memory(block.start, block.end - block.start):
            continue
        block.end = min(block.end, high)
        if block.start < block.end:
            kept.append(block)
    blocks[:] = kept
    first = 0
    while first < len(blocks):
        block, second = blocks[first], first + 1
        while second < len(blocks):
            other = blocks[second]
            if block.end > other.start and block.start < other.end:
                if block.nid != other.nid:
                    printk(f"NUMA: node {block.nid} {_range(block)} overlaps with node {other.nid} {_range(other)}")
                    return False
                printk(f"NUMA: Warning: node {block.nid} {_range(block)} overlaps with itself {_range(other)}")
            start, end = min(block.start, other.start), max(block.end, other.end)
            if block.nid == other.nid and not any(
                    third.nid != block.nid and start < third.end and end > third.start for third in blocks):
                printk(f"NUMA: Node {block.nid} {_range(block)} + {_range(other)} -> "
                       f"{format_mem_range(start, end, 8)}")
                block.start, block.end = start, end
                del blocks[second]
            else:
                second += 1
        first += 1
    return True


def _range(block: NumaBlock) -> str:
    return format_mem_range(block.start, block.end, 8)


# -- numa=fake= ----------------------------------------------------------------------------------------------

class _Emulation:
    """Cuts physical nodes into fake ones. Sizes in bytes; ``physical`` is eaten up from the front."""

    def __init__(self, blocks: Iterable[NumaBlock], memblock: Memblock, printk: Printk):
        self.physical = [NumaBlock(b.start, b.end, b.nid) for b in blocks]
        self.fake: list[NumaBlock] = []
        self.fake_to_physical: dict[int, int] = {}
        self.memblock = memblock
        self.printk = printk

    def hole_size(self, start: int, end: int) -> int:
        """Bytes of whole frames in the range that are no memory (5.17: mem_hole_size())."""
        first, last = -(-start // PAGE_SIZE), end // PAGE_SIZE
        if first >= last:
            return 0
        present = sum(max(0, min(high, last) - max(low, first)) for low, high, _ in self.memblock.for_each_mem_pfn_range())
        return (last - first - present) * PAGE_SIZE

    def take(self, nid: int, block: NumaBlock, size: int) -> None:
        """Make the first ``size`` bytes of a physical block the fake node ``nid`` (5.17: emu_setup_memblk())."""
        self.fake.append(NumaBlock(block.start, block.start + size, nid))
        self.fake_to_physical.setdefault(nid, block.nid)
        self.printk(f"Faking node {nid} at {format_mem_range(block.start, block.start + size)} ({size >> 20}MB)")
        block.start += size
        if block.start >= block.end:
            self.physical.remove(block)

    def _first(self, nid: int) -> NumaBlock | None:
        return next((block for block in self.physical if block.nid == nid), None)

    def _round(self, nodes: list[int], cut: Callable[[NumaBlock, int], int], modulo: int, nid: int) -> int:
        """Go over the physical nodes again and again, a piece of each, until nothing is left. Return the next node id."""
        nodes = list(nodes)
        while nodes:
            for node in list(nodes):
                block = self._first(node)
                if block is None:
                    nodes.remove(node)
                    continue
                end = cut(block, nid)
                self.take(nid % modulo, block, min(end, block.end) - block.start)
                nid += 1
        return nid

    def _dma32(self, end: int) -> int:
        """Extend to 4 GiB if what is left below is too little for a node."""
        dma32_end = pfn_to_phys(MAX_DMA32_PFN)
        if end < dma32_end and dma32_end - end - self.hole_size(end, dma32_end) < FAKE_NODE_MIN_SIZE:
            return dma32_end
        return end

    def _grow(self, start: int, end: int, limit: int, size: int) -> int:
        """Extend a node until it holds ``size`` bytes of memory, holes not counted."""
        while end - start - self.hole_size(start, end) < size:
            end += FAKE_NODE_MIN_SIZE
            if end > limit:
                return limit
        return end

    def interleave(self, nodes: list[int], max_addr: int, count: int) -> bool:
        """``numa=fake=N``: N nodes of about one size (5.17: split_nodes_interleave())."""
        if count <= 0:
            return False
        if count > MAX_NUMNODES:
            self.printk(f"numa=fake={count} too large, reducing to {MAX_NUMNODES}")
            count = MAX_NUMNODES
        size = max_addr - self.hole_size(0, max_addr)
        size = (size // PAGE_SIZE // count) * PAGE_SIZE
        big = (size & (FAKE_NODE_MIN_SIZE - 1)) * count // FAKE_NODE_MIN_SIZE
        size = align_down(size, FAKE_NODE_MIN_SIZE)
        if not size:
            self.printk("Not enough memory for each node.  NUMA emulation disabled.")
            return False

        def cut(block: NumaBlock, nid: int) -> int:
            end = block.start + size + (FAKE_NODE_MIN_SIZE if nid < big else 0)
            end = self._dma32(self._grow(block.start, end, block.end, size))
            return block.end if block.end - end - self.hole_size(end, block.end) < size else end

        self._round(nodes, cut, count, 0)
        return True

    def by_size(self, nodes: list[int], start: int, end: int, size: int, count: int, nid: int) -> int:
        """Nodes of a size, or a physical node in ``count`` equal parts; return the next node id, or -1.

        5.17: split_nodes_size_interleave_uniform().
        """
        if not size and not count:
            return -1
        uniform = count > 0
        if uniform:
            minimum = size = (end // PAGE_SIZE - start // PAGE_SIZE) // count * PAGE_SIZE
        else:
            minimum = (end // PAGE_SIZE - start // PAGE_SIZE - self.hole_size(start, end) // PAGE_SIZE) // MAX_NUMNODES * PAGE_SIZE
        minimum = align_up(max(minimum, FAKE_NODE_MIN_SIZE), FAKE_NODE_MIN_SIZE)
        if size < minimum:
            self.printk(f"Fake node size {size >> 20}MB too small, increasing to {minimum >> 20}MB")
            size = minimum
        size = align_down(size, FAKE_NODE_MIN_SIZE)

        def cut(block: NumaBlock, _: int) -> int:
            stop = block.start + size
            if not uniform:
                stop = self._grow(block.start, stop, block.end, size)
            stop = self._dma32(stop)
            if not uniform and block.end - stop - self.hole_size(stop, block.end) < size:
                stop = block.end
            return stop

        return self._round(nodes, cut, MAX_NUMNODES, nid)


def emulate(option: str, blocks: Sequence[NumaBlock], memblock: Memblock, max_pfn: int,
            printk: Printk) -> tuple[list[NumaBlock], dict[int, int], str] | None:
    """Cut nodes as ``numa=fake=`` says: ``N``, ``NU`` (each physical node in N equal parts) or a size with M or G.

    Return the ranges, the physical node of each fake node, and the rest of the option (distances after a colon); None if it
    cannot be done. 5.17: arch/x86/mm/numa_emulation.c, numa_emulation().
    """
    work = _Emulation(blocks, memblock, printk)
    nodes = sorted({block.nid for block in blocks})
    digits = re.match(r"\d+", option)
    count, rest = (int(digits[0]), option[digits.end():]) if digits else (0, option)
    ok = True
    if "U" in option:
        nid = 0
        for node in nodes:
            block = work.physical[0]
            following = work.by_size([block.nid], block.start, block.end, 0, count, nid)
            if following < 0:
                ok = False
                break
            if following - nid < count and following != nid:
                printk(f"numa_emulation: phys: {node} only got {following - nid} of {count} nodes, failing")
                ok = False
                break
            nid = following
    elif "M" in option or "G" in option:
        size, rest = memparse(option)
        ok = work.by_size(nodes, 0, pfn_to_phys(max_pfn), size, 0, 0) >= 0
    else:
        ok = work.interleave(nodes, pfn_to_phys(max_pfn), count)
    if not ok or not cleanup_meminfo(work.fake, memblock, max_pfn, printk):
        return None
    return work.fake, work.fake_to_physical, rest.lstrip("U").removeprefix(":")


# -- the whole -----------------------------------------------------------------------------------------------

def _distance_table(memblock: Memblock, count: int, limit: int, printk: Printk) -> tuple[int, int]:
    """Take memory for a table of ``count`` times ``count`` bytes; return where and how much (5.17: numa_alloc_distance())."""
    address = memblock.phys_alloc_range(count * count, PAGE_SIZE, 0, limit, caller="numa_set_distance")
    if not address:
        printk("NUMA: Warning: can't allocate distance table!")
        return 0, 0
    printk(f"NUMA: Initialized distance table, cnt={count}")
    return address, count * count


def _covers_memory(blocks: Sequence[NumaBlock], memblock: Memblock, max_pfn: int, printk: Printk) -> bool:
    """Whether the ranges leave less than 1 MiB of memory without a node (5.17: numa_meminfo_cover_memory())."""
    in_nodes = 0
    for block in blocks:
        first, last = -(-block.start // PAGE_SIZE), block.end // PAGE_SIZE
        in_nodes += sum(max(0, min(high, last) - max(low, first)) for low, high, _ in memblock.for_each_mem_pfn_range())
    in_memory = sum(max(0, min(high, max_pfn) - low) for low, high, _ in memblock.for_each_mem_pfn_range())
    if in_memory - in_nodes >= MIB // PAGE_SIZE:
        printk(f"NUMA: nodes only cover {in_nodes * PAGE_SIZE >> 20}MB of your {in_memory * PAGE_SIZE >> 20}MB e820 RAM. Not used.")
        return False
    return True


def numa_init(memblock: Memblock, platform: Platform, max_pfn: int, limit: int, option: str, node_data_size: int,
              printk: Printk) -> NumaInfo:
    """Find the nodes and give memory to them. ``option`` is the text after ``numa=``, ``limit`` the end of the direct map.

    Lines and allocations come in the kernel's order. Raise KernelPanic if a node gets no memory for its NODE_DATA.
    5.17: arch/x86/mm/numa.c, x86_numa_init(), numa_init(), numa_register_memblks(), alloc_node_data().
    """
    fake = option.removeprefix("fake=") if option.startswith("fake=") else ""
    use_srat = bool(platform.srat) and not option.startswith(("off", "noacpi"))
    for dummy in (False, True):
        if not dummy and not use_srat:
            continue
        for regions in (memblock.memory, memblock.reserved):
            memblock.set_node(0, U64_MAX, NUMA_NO_NODE, regions)
        info = NumaInfo()
        rows = 0
        if dummy:
            printk("NUMA turned off" if option.startswith("off") else "No NUMA configuration found")
            printk(f"Faking a node at {format_mem_range(0, pfn_to_phys(max_pfn))}")
            info.blocks = [NumaBlock(0, pfn_to_phys(max_pfn), 0)]
            info.cpu_to_node = [0] * platform.nr_cpus
        else:
            for cpu, nid in enumerate(platform.cpu_to_node):
                printk(f"SRAT: PXM {nid} -> APIC 0x{cpu:02x} -> Node {nid}")
            for area in platform.srat:
                printk(_srat_line(area))
            info.blocks = [NumaBlock(area.start, area.end, area.nid) for area in platform.srat]
            info.cpu_to_node = list(platform.cpu_to_node) or [0] * platform.nr_cpus
            if platform.distances:
                rows = max([block.nid for block in info.blocks] + info.cpu_to_node) + 1
                info.table = _distance_table(memblock, rows, limit, printk)
                info.distance = [list(row) for row in platform.distances]
        if not cleanup_meminfo(info.blocks, memblock, max_pfn, printk):
            memblock.free(*info.table)
            continue
        info.cpu_masks = _cpu_masks(info.cpu_to_node, {block.nid: block.nid for block in info.blocks})
        if fake:
            _emulate_into(info, fake, rows, memblock, max_pfn, limit, printk)
        if not _register(info, memblock, max_pfn, node_data_size, printk):
            memblock.free(*info.table)
            continue
        info.cpu_to_node = [nid if nid in info.nodes else info.nodes[cpu % len(info.nodes)]
                            for cpu, nid in enumerate(info.cpu_to_node)]
        if not info.distance:
            size = max(info.nodes) + 1
            info.distance = [[info.node_distance(a, b) for b in range(size)] for a in range(size)]
        return info
    raise KernelPanic("numa_init: no usable node")


def _srat_line(area: SratMemory) -> str:
    hotplug = " hotplug" if area.hotplug else ""
    return f"ACPI: SRAT: Node {area.nid} PXM {area.pxm} {format_mem_range(area.start, area.end, 8)}{hotplug}"


def _cpu_masks(cpu_to_node: Sequence[int], fake_to_physical: dict[int, int]) -> dict[int, list[int]]:
    """The CPUs of each node: a CPU is in the mask of every fake node that lies on its physical node (numa_add_cpu())."""
    return {nid: [cpu for cpu, node in enumerate(cpu_to_node) if fake_to_physical.get(node, node) == physical]
            for nid, physical in fake_to_physical.items()}


def _emulate_into(info: NumaInfo, fake: str, rows: int, memblock: Memblock, max_pfn: int, limit: int, printk: Printk) -> None:
    made = emulate(fake, info.blocks, memblock, max_pfn, printk)
    if made is None:
        return
    blocks, fake_to_physical, rest = made
    copy = memblock.phys_alloc_range(rows * rows, PAGE_SIZE, 0, limit, caller="numa_emulation") if rows else 0
    first_fake = {physical: nid for nid, physical in sorted(fake_to_physical.items(), reverse=True)}
    info.cpu_to_node = [first_fake.get(node, 0) for node in info.cpu_to_node]
    count = max(fake_to_physical) + 1
    given = iter([int(text) for text in rest.split(",") if text.strip().isdigit()])
    physical = [fake_to_physical.get(nid, next(iter(fake_to_physical.values()))) for nid in range(count)]
    table = [[next(given, None) or info.node_distance(physical[a], physical[b]) for b in range(count)] for a in range(count)]
    memblock.free(*info.table)
    info.table = _distance_table(memblock, count, limit, printk)
    memblock.free(copy, rows * rows)
    info.blocks, info.distance = blocks, table
    info.cpu_masks = _cpu_masks(info.cpu_to_node, fake_to_physical)


def _register(info: NumaInfo, memblock: Memblock, max_pfn: int, node_data_size: int, printk: Printk) -> bool:
    for block in info.blocks:
        memblock.set_node(block.start, block.end - block.start, block.nid, memblock.memory)
    for block in info.blocks:
        memblock.set_node(block.start, block.end - block.start, block.nid, memblock.reserved)
    if not _covers_memory(info.blocks, memblock, max_pfn, printk):
        return False
    for nid in sorted({block.nid for block in info.blocks} | set(info.cpu_to_node)):
        mine = [block for block in info.blocks if block.nid == nid]
        if not mine or max(b.end for b in mine) - min(b.start for b in mine) < NODE_MIN_SIZE:
            continue
        address = memblock.phys_alloc_try_nid(node_data_size, 64, nid, caller="alloc_node_data")
        if not address:
            raise KernelPanic(f"Cannot find {node_data_size} bytes in any node (initial node: {nid})")
        printk(f"NODE_DATA({nid}) allocated {format_mem_range(address, address + node_data_size, 8)}")
        found = memblock.search_pfn_nid(address // PAGE_SIZE)
        if found and found[0] != nid:
            printk(f"    NODE_DATA({nid}) on node {found[0]}")
        info.node_data[nid] = address
        info.nodes.append(nid)
    memblock.dump_all()
    return bool(info.nodes)
