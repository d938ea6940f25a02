"""The first per-CPU chunk: a private copy of the per-CPU variables for each processor.

The image holds one template of all ``DEFINE_PER_CPU`` variables. Each processor gets a *unit*: a copy of it and some
room for variables that come later. Units are cut out of blocks of 2 MiB, so that the direct map's large pages serve
them; what is left of each block goes back to memblock::

    2 MiB block   |static|dynamic|......|static|dynamic|......|   upa = 2 units an allocation
                   unit 0         freed  unit 1         freed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mmsim.boot.image import KernelImage
from mmsim.boot.memblock import Memblock
from mmsim.constants import MAX_DMA_PFN, NUMA_NO_NODE
from mmsim.errors import KernelPanic
from mmsim.units import KIB, MIB, PAGE_SIZE, align_up, fls, pfn_to_phys, rounddown_pow_of_two

__all__ = ["PerCpuLayout", "PerCpuGroup", "build_alloc_info", "embed_first_chunk", "page_first_chunk"]

ATOM_SIZE = 2 * MIB
PCPU_MIN_ALLOC_SIZE = 4
PCPU_SLOT_BASE_SHIFT = 5
SIZEOF_PCPU_ALLOC_INFO = 56
SIZEOF_PCPU_GROUP_INFO = 24
SIZEOF_PCPU_BLOCK_MD = 32
SIZEOF_LIST_HEAD = 16
#: Room for variables that come before the real allocator is up.
PERCPU_DYNAMIC_EARLY_SIZE = 12 * KIB
VMALLOC_START = 0xFFFF_C900_0000_0000


@dataclass(slots=True)
class PerCpuGroup:
    """The processors of one node: ``units`` has the CPU of each unit, or None where the unit stays unused."""

    units: list[int | None]
    base: int = 0


@dataclass(slots=True)
class PerCpuLayout:
    """Sizes in bytes: a unit's static, reserved and dynamic part; ``unit_size`` from one unit to the next; ``upa``
    units an allocation.
    """

    static_size: int
    reserved_size: int
    dynamic_size: int
    unit_size: int
    upa: int
    groups: list[PerCpuGroup]
    atom_size: int = ATOM_SIZE
    #: A chunk of single pages: their addresses, in the order in which they are mapped, and those of its page tables.
    pages: list[int] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)

    @property
    def size_sum(self) -> int:
        """What of each unit is used."""
        return self.static_size + self.reserved_size + self.dynamic_size

    def embedded_line(self) -> str:
        """The line of the kernel log that sums it up."""
        return (f"percpu: Embedded {self.size_sum // PAGE_SIZE} pages/cpu s{self.static_size} r{self.reserved_size} "
                f"d{self.dynamic_size} u{self.unit_size}")

    def alloc_lines(self) -> list[str]:
        """Which CPU sits in which unit, as ``[group] cpu cpu``. 5.17: mm/percpu.c, pcpu_dump_alloc_info()."""
        cpus = sum(unit is not None for group in self.groups for unit in group.units)
        group_width, cpu_width = len(str(len(self.groups))), len(str(cpus))
        width = self.upa * (cpu_width + 1) + group_width + 3
        per_line = rounddown_pow_of_two(max(60 // width, 1))
        lines = [f"pcpu-alloc: s{self.static_size} r{self.reserved_size} d{self.dynamic_size} u{self.unit_size} "
                 f"alloc={self.upa * self.unit_size // self.atom_size}*{self.atom_size}"]
        for at, (number, units) in enumerate(self._allocations()):
            if at % per_line == 0:
                lines.append("pcpu-alloc: ")
            lines[-1] += f"[{number:0{group_width}}] " + "".join(
                f"{'-' * cpu_width} " if cpu is None else f"{cpu:0{cpu_width}} " for cpu in units)
        return lines

    def _allocations(self) -> Iterator[tuple[int, list[int | None]]]:
        for number, group in enumerate(self.groups):
            for at in range(0, len(group.units), self.upa):
                yield number, group.units[at:at + self.upa]


def build_alloc_info(image: KernelImage, cpu_to_node: Sequence[int], atom_size: int = ATOM_SIZE) -> PerCpuLayout:
    """Group the CPUs by node and choose how many units share an allocation: as many as waste little memory.

    x86 counts only the CPUs of one node as near each other, however near other (or fake) nodes are.

    5.17: mm/percpu.c, pcpu_build_alloc_info(), called from arch/x86/kernel/setup_percpu.c.
    """
    static, reserved = image.percpu_static_size, image.percpu_reserved_size
    size_sum = align_up(static + reserved + image.percpu_dynamic_size, PAGE_SIZE)
    min_unit_size = max(size_sum, 32 * 1024)
    alloc_size = -(-min_unit_size // atom_size) * atom_size
    max_upa = alloc_size // min_unit_size

    def fits(upa: int) -> bool:
        return alloc_size % upa == 0 and alloc_size // upa % PAGE_SIZE == 0

    while not fits(max_upa):
        max_upa -= 1
    members: dict[int, list[int]] = {}
    for cpu, nid in enumerate(cpu_to_node):
        members.setdefault(nid, []).append(cpu)
    best_upa, last_allocs = 1, None
    for upa in range(max_upa, 0, -1):
        if not fits(upa):
            continue
        allocs = sum(-(-len(cpus) // upa) for cpus in members.values())
        wasted = allocs * upa - len(cpu_to_node)
        if wasted > len(cpu_to_node) // 3:
            continue
        if last_allocs is not None and allocs > last_allocs:
            break
        best_upa, last_allocs = upa, allocs
    groups = []
    for near in members.values():
        cpus: list[int | None] = list(near)
        groups.append(PerCpuGroup(cpus + [None] * (-len(cpus) % best_upa)))
    return PerCpuLayout(static, reserved, size_sum - static - reserved, alloc_size // best_upa, best_upa, groups, atom_size)


def embed_first_chunk(memblock: Memblock, image: KernelImage, layout: PerCpuLayout, cpu_to_node: Sequence[int],
                      online: Sequence[int], printk: Callable[[str], None] = lambda line: None) -> bool:
    """Allocate the units near their processors, give back what is left over, and set up the chunk's maps.

    Return False if there is no piece large enough. Raise KernelPanic if memory runs out altogether.
    5.17: mm/percpu.c, pcpu_embed_first_chunk(), pcpu_setup_first_chunk(), pcpu_alloc_first_chunk().
    """
    allocate = _Allocate(memblock)
    info, info_size = _alloc_info(layout, allocate)
    areas_size = align_up(8 * len(layout.groups), PAGE_SIZE)
    areas = allocate(areas_size, 64, "pcpu_embed_first_chunk")
    for group in layout.groups:
        cpu = next(unit for unit in group.units if unit is not None)
        group.base = _fc_alloc(memblock, cpu_to_node[cpu], online, len(group.units) * layout.unit_size, layout.atom_size)
        if not group.base:
            for taken in layout.groups:
                if taken.base:
                    memblock.free(taken.base, len(taken.units) * layout.unit_size)
                    taken.base = 0
            memblock.free(info, info_size)
            memblock.free(areas, areas_size)
            return False
    for group in layout.groups:
        for number, unit in enumerate(group.units):
            start = group.base + number * layout.unit_size
            used = layout.size_sum if unit is not None else 0
            if layout.unit_size > used:
                memblock.free(start + used, layout.unit_size - used)
    printk(layout.embedded_line())
    _setup_first_chunk(image, layout, len(cpu_to_node), allocate, printk)
    memblock.free(info, info_size)
    memblock.free(areas, areas_size)
    return True


def page_first_chunk(memblock: Memblock, image: KernelImage, cpu_to_node: Sequence[int], online: Sequence[int],
                     printk: Callable[[str], None] = lambda line: None) -> PerCpuLayout:
    """The way out where memory has no large pieces: single pages, mapped one behind the other in the vmalloc area.

    A group's ``base`` is then an address in that area. Raise KernelPanic if memory runs out.
    5.17: mm/percpu.c, pcpu_page_first_chunk().
    """
    static, reserved = image.percpu_static_size, image.percpu_reserved_size
    unit_size = max(align_up(static + reserved + PERCPU_DYNAMIC_EARLY_SIZE, PAGE_SIZE), 32 * KIB)
    cpus: list[int | None] = [*range(len(cpu_to_node))]
    layout = PerCpuLayout(static, reserved, unit_size - static - reserved, unit_size, 1, [PerCpuGroup(cpus, VMALLOC_START)],
                          PAGE_SIZE)
    allocate = _Allocate(memblock)
    info, info_size = _alloc_info(layout, allocate)
    unit_pages = unit_size // PAGE_SIZE
    pages_size = align_up(8 * unit_pages * len(cpus), PAGE_SIZE)
    pages = allocate(pages_size, 64, "pcpu_page_first_chunk")
    for cpu, node in enumerate(cpu_to_node):
        for _ in range(unit_pages):
            page = _fc_alloc(memblock, node, online, PAGE_SIZE, PAGE_SIZE)
            layout.pages.append(page)
            if not page:
                printk(f"percpu: failed to allocate {PAGE_SIZE // KIB}K page for cpu{cpu}")
                raise KernelPanic("cannot initialize percpu area (err=-12)")
    # Tables of the vmalloc area: a PUD, a PMD, and a PTE table for each 2 MiB of units.
    for _ in range(2 + -(-unit_size * len(cpus) // (2 * MIB))):
        layout.tables.append(allocate(PAGE_SIZE, PAGE_SIZE, "pcpu_populate_pte"))
    printk(f"percpu: {unit_pages} {PAGE_SIZE // KIB}K pages/cpu s{static} r{reserved} d{layout.dynamic_size}")
    _setup_first_chunk(image, layout, len(cpus), allocate, printk)
    memblock.free(pages, pages_size)
    memblock.free(info, info_size)
    return layout


class _Allocate:
    """memblock_alloc() of memory without which the kernel cannot go on."""

    def __init__(self, memblock: Memblock):
        self.memblock = memblock

    def __call__(self, size: int, align: int, caller: str) -> int:
        address = self.memblock.alloc(size, align, caller=caller)
        if not address:
            raise KernelPanic(f"{caller}: Failed to allocate {size} bytes align={align:#x}")
        return address


def _alloc_info(layout: PerCpuLayout, allocate: _Allocate) -> tuple[int, int]:
    """Memory for the description of the units, until all is set up: (address, size) (5.17: pcpu_alloc_alloc_info())."""
    nr_units = sum(len(group.units) for group in layout.groups)
    size = align_up(SIZEOF_PCPU_ALLOC_INFO + SIZEOF_PCPU_GROUP_INFO * len(layout.groups), 8) + 4 * nr_units
    size = align_up(size, PAGE_SIZE)
    return allocate(size, PAGE_SIZE, "pcpu_build_alloc_info"), size


def _fc_alloc(memblock: Memblock, node: int, online: Sequence[int], size: int, align: int) -> int:
    """Memory for units, near their processor if its node has any (5.17: pcpu_fc_alloc())."""
    return memblock.alloc_try_nid(size, align, pfn_to_phys(MAX_DMA_PFN), nid=node if node in online else NUMA_NO_NODE,
                                  caller="pcpu_fc_alloc")


def _setup_first_chunk(image: KernelImage, layout: PerCpuLayout, nr_cpus: int, allocate: _Allocate,
                       printk: Callable[[str], None]) -> None:
    """The tables that find a unit, and the maps of what is free in it (5.17: pcpu_setup_first_chunk(),
    pcpu_alloc_first_chunk()).
    """
    nr_groups = len(layout.groups)
    for size in (8 * nr_groups, 8 * nr_groups, 4 * nr_cpus, 8 * nr_cpus):
        allocate(size, 64, "pcpu_setup_first_chunk")
    for line in layout.alloc_lines():
        printk(line)
    slots = max(fls(layout.unit_size) - PCPU_SLOT_BASE_SHIFT + 2, 1) + 4
    allocate(slots * SIZEOF_LIST_HEAD, 64, "pcpu_setup_first_chunk")
    static = align_up(layout.static_size, PCPU_MIN_ALLOC_SIZE)
    dynamic = layout.dynamic_size - (static - layout.static_size)
    start = layout.groups[0].base + static
    for map_size in ((layout.reserved_size, dynamic) if layout.reserved_size else (dynamic,)):
        region = align_up(start % PAGE_SIZE + map_size, PAGE_SIZE)
        bits = region // PCPU_MIN_ALLOC_SIZE
        longs = -(-(region // PAGE_SIZE) // 64)
        for size in (image.sizeof_pcpu_chunk + 8 * longs, -(-bits // 64) * 8, -(-(bits + 1) // 64) * 8,
                     region // PAGE_SIZE * SIZEOF_PCPU_BLOCK_MD):
            allocate(size, 64, "pcpu_alloc_first_chunk")
        start += map_size
