"""Which memory is near which processors: nodes from the firmware's tables, one dummy node, or nodes invented with
numa=fake=.

The kernel gathers ranges (``struct numa_memblk``), trims them to the memory there is and joins neighbours, writes the
node of every range into memblock, and then gives each node its ``struct pglist_data``, from its own memory if possible.
5.17: arch/x86/mm/numa.c, arch/x86/mm/numa_emulation.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmsim.boot.image import Platform, SratMemory
from mmsim.boot.memblock import Memblock
from mmsim.boot.numa_emulation import emulate
from mmsim.boot.numa_meminfo import NumaBlock, Printk, cleanup_meminfo, covers_memory
from mmsim.constants import NUMA_NO_NODE
from mmsim.errors import KernelPanic
from mmsim.units import MIB, PAGE_SIZE, U64_MAX, format_mem_range, pfn_to_phys

__all__ = ["NumaInfo", "numa_init", "init_cpu_to_node"]

LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20
NODE_MIN_SIZE = 4 * MIB


@dataclass(slots=True)
class NumaInfo:
    """What the kernel knows after numa_init(): ranges, node ids, the node of each CPU, distances, where NODE_DATA
    lies.
    """

    blocks: list[NumaBlock] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    #: The physical node of each node: itself, unless nodes are faked.
    on_physical: dict[int, int] = field(default_factory=dict)
    cpu_to_node: list[int] = field(default_factory=list)
    #: The node of each CPU as the firmware says (with fake nodes: the first on that node); -1 if it says nothing.
    firmware_cpu_to_node: list[int] = field(default_factory=list)
    #: Nodes that have memory or CPUs, or may get memory later (5.17: node_possible_map).
    possible: list[int] = field(default_factory=list)
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


def _distance_table(memblock: Memblock, count: int, limit: int, printk: Printk) -> tuple[int, int]:
    """Take memory for a table of ``count`` times ``count`` bytes; return where and how much (5.17:
    numa_alloc_distance()).
    """
    address = memblock.phys_alloc_range(count * count, PAGE_SIZE, 0, limit, caller="numa_set_distance")
    if not address:
        printk("NUMA: Warning: can't allocate distance table!")
        return 0, 0
    printk(f"NUMA: Initialized distance table, cnt={count}")
    return address, count * count


def numa_init(memblock: Memblock, platform: Platform, max_pfn: int, limit: int, option: str, node_data_size: int,
              printk: Printk, emulation: bool = True) -> NumaInfo:
    """Find the nodes and give memory to them. ``option`` is the text after ``numa=``, ``limit`` the end of the direct
    map; ``emulation`` says whether the kernel was built to fake nodes.

    Lines and allocations come in the kernel's order. Raise KernelPanic if a node gets no memory for its NODE_DATA.
    5.17: arch/x86/mm/numa.c, x86_numa_init(), numa_init(), numa_register_memblks(), alloc_node_data().
    """
    fake = option.removeprefix("fake=") if option.startswith("fake=") and emulation else ""
    use_srat = bool(platform.srat) and not option.startswith(("off", "noacpi"))
    for dummy in (False, True):
        if not dummy and not use_srat:
            continue
        for regions in (memblock.memory, memblock.reserved):
            memblock.set_node(0, U64_MAX, NUMA_NO_NODE, regions)
        memblock.clear_hotplug(0, U64_MAX)
        info = NumaInfo()
        rows = 0
        if dummy:
            printk("NUMA turned off" if option.startswith("off") else "No NUMA configuration found")
            printk(f"Faking a node at {format_mem_range(0, pfn_to_phys(max_pfn))}")
            info.blocks = [NumaBlock(0, pfn_to_phys(max_pfn), 0)]
            parsed = {0}
            info.firmware_cpu_to_node = [NUMA_NO_NODE] * platform.nr_cpus
        else:
            pxm = {area.nid: area.pxm for area in platform.srat}
            for cpu, nid in enumerate(platform.cpu_to_node):
                apic = platform.apic_ids[cpu] if cpu < len(platform.apic_ids) else cpu
                printk(f"SRAT: PXM {pxm.get(nid, nid)} -> APIC 0x{apic:02x} -> Node {nid}")
            for area in platform.srat:
                printk(_srat_line(area))
                if area.hotplug:
                    memblock.mark_hotplug(area.start, area.end - area.start)
            info.blocks = [NumaBlock(area.start, area.end, area.nid) for area in platform.srat]
            # A processor that may be plugged in later has no APIC id yet, so the table says nothing about it.
            said = list(platform.cpu_to_node)[:max(platform.nr_cpus - platform.hotplug_cpus, 1)]
            parsed = {area.nid for area in platform.srat} | {*platform.cpu_to_node} - {NUMA_NO_NODE}
            info.firmware_cpu_to_node = said + [NUMA_NO_NODE] * (platform.nr_cpus - len(said))
            if platform.distances:
                rows = max([block.nid for block in info.blocks] + info.firmware_cpu_to_node) + 1
                info.table = _distance_table(memblock, rows, limit, printk)
                info.distance = [list(row) for row in platform.distances]
        memblock.bottom_up = False
        if not cleanup_meminfo(info.blocks, memblock, max_pfn, printk):
            memblock.free(*info.table)
            continue
        on_physical = {block.nid: block.nid for block in info.blocks}
        if fake:
            on_physical = _emulate_into(info, fake, rows, memblock, max_pfn, limit, printk) or on_physical
        if not _register(info, memblock, max_pfn, node_data_size, printk):
            memblock.free(*info.table)
            continue
        info.on_physical = on_physical
        info.possible = sorted(parsed | {block.nid for block in info.blocks})
        _init_array(info)
        if not info.distance:
            size = max(info.nodes) + 1
            info.distance = [[info.node_distance(a, b) for b in range(size)] for a in range(size)]
        return info
    raise KernelPanic("numa_init: no usable node")


def _srat_line(area: SratMemory) -> str:
    hotplug = " hotplug" if area.hotplug else ""
    return f"ACPI: SRAT: Node {area.nid} PXM {area.pxm} {format_mem_range(area.start, area.end, 8)}{hotplug}"


def _init_array(info: NumaInfo) -> None:
    """Spread all CPUs over the nodes, then put those right that the firmware knows (5.17: numa_init_array(),
    init_cpu_to_node()).
    """
    info.cpu_to_node = [node if node in info.nodes else info.nodes[cpu % len(info.nodes)]
                        for cpu, node in enumerate(info.firmware_cpu_to_node)]
    info.cpu_masks = _cpu_masks(info.cpu_to_node, info.on_physical)


def init_cpu_to_node(info: NumaInfo, memblock: Memblock, node_data_size: int, printk: Printk) -> list[int]:
    """Bring the nodes to life that have CPUs but no memory; return them. Their data are allocated here unless zones
    were laid out for all possible nodes (since 5.18). 5.17: arch/x86/mm/numa.c, init_cpu_to_node().
    """
    made = []
    for cpu, node in enumerate(info.firmware_cpu_to_node):
        if node == NUMA_NO_NODE:
            continue
        if node not in info.nodes:
            if memblock.rules.memoryless_nodes_early:
                info.nodes.append(node)
            else:
                _alloc_node_data(info, memblock, node, node_data_size, printk)
            info.on_physical.setdefault(node, node)
            info.nodes.sort()
            made.append(node)
        info.cpu_to_node[cpu] = node
    size = max(info.nodes) + 1
    if len(info.distance) < size:
        info.distance = [[info.node_distance(a, b) for b in range(size)] for a in range(size)]
    info.cpu_masks = _cpu_masks(info.cpu_to_node, info.on_physical)
    return made


def _alloc_node_data(info: NumaInfo, memblock: Memblock, nid: int, size: int, printk: Printk) -> None:
    """Take memory for a node's struct pglist_data, on the node if it has any (5.17: alloc_node_data())."""
    address = memblock.phys_alloc_try_nid(size, 64, nid, caller="alloc_node_data")
    if not address:
        raise KernelPanic(f"Cannot find {size} bytes in any node (initial node: {nid})")
    printk(f"NODE_DATA({nid}) allocated {format_mem_range(address, address + size, 8)}")
    found = memblock.search_pfn_nid(address // PAGE_SIZE)
    if found and found[0] != nid:
        printk(f"    NODE_DATA({nid}) on node {found[0]}")
    info.node_data[nid] = address
    info.nodes.append(nid)


def _cpu_masks(cpu_to_node: Sequence[int], fake_to_physical: dict[int, int]) -> dict[int, list[int]]:
    """The CPUs of each node: a CPU is in the mask of every fake node that lies on its physical node
    (numa_add_cpu()).
    """
    return {nid: [cpu for cpu, node in enumerate(cpu_to_node) if fake_to_physical.get(node, node) == physical]
            for nid, physical in fake_to_physical.items()}


def _emulate_into(info: NumaInfo, fake: str, rows: int, memblock: Memblock, max_pfn: int, limit: int,
                  printk: Printk) -> dict[int, int] | None:
    made = emulate(fake, info.blocks, memblock, max_pfn, printk)
    if made is None:
        return None
    blocks, fake_to_physical, rest = made
    copy = memblock.phys_alloc_range(rows * rows, PAGE_SIZE, 0, limit, caller="numa_emulation") if rows else 0
    first_fake = {physical: nid for nid, physical in sorted(fake_to_physical.items(), reverse=True)}
    info.firmware_cpu_to_node = [node if node == NUMA_NO_NODE else first_fake.get(node, 0) for node in info.firmware_cpu_to_node]
    count = max(fake_to_physical) + 1
    # Each distance but the last has a comma behind it, and only those count (get_option() must return 2).
    given = iter([int(text) for text in rest.split(",")[:-1] if text.isdigit()])
    physical = [fake_to_physical.get(nid, next(iter(fake_to_physical.values()))) for nid in range(count)]
    table = [[next(given, None) or info.node_distance(physical[a], physical[b]) for b in range(count)] for a in range(count)]
    memblock.free(*info.table)
    info.table = _distance_table(memblock, count, limit, printk)
    memblock.free(copy, rows * rows)
    info.blocks, info.distance = blocks, table
    return fake_to_physical


def _register(info: NumaInfo, memblock: Memblock, max_pfn: int, node_data_size: int, printk: Printk) -> bool:
    for block in info.blocks:
        memblock.set_node(block.start, block.end - block.start, block.nid, memblock.memory)
    for block in info.blocks:
        memblock.set_node(block.start, block.end - block.start, block.nid, memblock.reserved)
    # Memory that the kernel itself sits in cannot be unplugged, whatever the firmware says.
    kernel_nodes = {region.nid for region in memblock.reserved if region.nid != NUMA_NO_NODE}
    for block in info.blocks:
        if block.nid in kernel_nodes:
            memblock.clear_hotplug(block.start, block.end - block.start)
    if not covers_memory(info.blocks, memblock, max_pfn, printk):
        return False
    for nid in sorted({block.nid for block in info.blocks}):
        mine = [block for block in info.blocks if block.nid == nid]
        span = max(b.end for b in mine) - min(b.start for b in mine)
        if memblock.rules.node_min_size and span < NODE_MIN_SIZE:
            continue
        _alloc_node_data(info, memblock, nid, node_data_size, printk)
    memblock.dump_all()
    return bool(info.nodes)
