"""The boot, from the firmware's map to a buddy allocator that serves: the order in which everything happens.

:class:`Boot` runs setup_arch() and the first part of start_kernel() as far as they concern memory. Each step is a
method; what it decides stays in an attribute, and a :class:`Phase` is noted after it, so that a figure can go back and
forth.

    e820        what the firmware says, sanitised and cut by the command line
    memblock    the kernel image, the initial RAM disk and the first MiB are reserved; memory is known
    mapping     the direct map, with tables out of what it maps
    memmap      nodes, sections, a struct page for every frame, zones
    early       allocations that the buddy allocator could not serve: per-CPU areas, hash tables
    buddy       everything that is free is handed over
    freed       what only the boot needed is freed as well

5.17: arch/x86/kernel/setup.c, setup_arch(); init/main.c, start_kernel().
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmsim.boot.brk import BrkArea
from mmsim.boot.crashkernel import CrashKernel, reserve_crashkernel
from mmsim.boot.direct_map import DirectMap
from mmsim.boot.e820 import E820Entry, E820Table
from mmsim.boot.e820_params import finish_early_params, parse_command_line
from mmsim.boot.image import KernelImage, Platform
from mmsim.boot.memblock import Memblock
from mmsim.boot.numa import NumaInfo, init_cpu_to_node, numa_init
from mmsim.boot.options import BootOptions
from mmsim.boot.provenance import Provenance, Run
from mmsim.boot.regions import Region
from mmsim.boot.sparse import SparseMap, sparse_init
from mmsim.boot.zones import ZoneLayout, find_dma_reserve, free_area_init, init_memoryless_node, init_possible_node
from mmsim.clock import Clock
from mmsim.config import Config
from mmsim.constants import ISA_END_ADDRESS, MAX_DMA32_PFN, MAX_ORDER
from mmsim.counters import Counters
from mmsim.errors import KernelPanic
from mmsim.klog import KernelLog
from mmsim.physical.memory import PhysicalMemory
from mmsim.rules import Rules
from mmsim.trace import Trace
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE, align_up, format_mem_range, pfn_down, pfn_to_phys, pfn_up

__all__ = ["Boot", "Phase"]

BIOS_START_MIN, BIOS_START_MAX = 0x20000, 0x9F000
#: A step of the boot takes no time in the model; the log shows this much between two steps, so that it can be read.
STEP_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Phase:
    """The state after a step: which of the seven phases it belongs to, what happened, both memblock lists, and who has
    what.

    ``log`` is the number of lines in the kernel log then; ``free`` the bytes in the buddy allocator's lists, by zone
    name.
    """

    phase: str
    step: str
    say: str
    memory: tuple[Region, ...]
    reserved: tuple[Region, ...]
    owners: tuple[Run, ...]
    log: int
    free: dict[str, int]


class Boot:
    """A machine on its way up. Run the steps with :meth:`setup_arch` (and :class:`mmsim.boot.start.StartKernel`).

    ``firmware_map`` holds what the BIOS says; ``image`` and ``platform`` what else the boot starts from.
    """

    def __init__(self, firmware_map: Iterable[E820Entry], command_line: str = "", *, image: KernelImage | None = None,
                 platform: Platform | None = None, rules: Rules | None = None, config: Config | None = None,
                 clock: Clock | None = None, klog: KernelLog | None = None, trace: Trace | None = None,
                 counters: Counters | None = None, deferred: bool = False):
        self.image = image or KernelImage()
        self.image.check()
        self.platform = platform or Platform()
        self.rules = rules or Rules()
        self.config = config or Config()
        self.clock = clock or Clock()
        self.klog = klog or KernelLog(self.clock)
        self.trace = trace or Trace(self.clock)
        self.counters = counters if counters is not None else Counters()
        self.command_line = command_line
        self.options = BootOptions.parse(command_line, self.image.unknown_options)
        self.deferred = deferred or self.image.deferred_struct_page_init
        self.provenance = Provenance("e820")
        self.memblock = Memblock(self.rules, self.klog, self.trace, self.provenance)
        self.e820, self.e820_source = E820Table.from_firmware(list(firmware_map), self.klog)
        #: The map as the firmware gave it; ``e820`` is the one that the kernel works with.
        self.e820_firmware = self.e820.copy()
        self.brk = BrkArea(self.image.end, self.image.symbol_end)
        self.phases: list[Phase] = []
        self.max_pfn = 0
        self.initrd = self.platform.initrd
        self.numa = NumaInfo()
        self.sparse = SparseMap()
        self.layout = ZoneLayout()
        self.crashkernel: CrashKernel | None = None
        #: The contiguous memory area for devices: (base, size), size 0 if there is none.
        self.cma = (0, 0)
        #: Huge pages too large for the buddy allocator, taken while memblock still serves: (base, size).
        self.gigantic_pages: list[tuple[int, int]] = []
        self.direct_map: DirectMap | None = None
        #: Where the code lies that starts the other CPUs, below 1 MiB.
        self.real_mode = 0
        self.memory: PhysicalMemory | None = None

    # -- helpers -------------------------------------------------------------------------------------------

    def _printk(self, text: str) -> None:
        self.klog.printk(text)

    def note(self, phase: str, step: str, say: str) -> None:
        """Remember the state as it is now, and give what comes next to the phase ``phase``."""
        free = {f"{zone.nid}/{zone.name}": zone.nr_free_pages * PAGE_SIZE for zone in self.memory.zones()} if self.memory else {}
        self.phases.append(Phase(phase, step, say, tuple(self.memblock.memory), tuple(self.memblock.reserved),
                                 tuple(self.provenance.runs()), len(self.klog), free))
        if self.trace.enabled:
            self.trace.emit("boot:phase", phase=phase, step=step)
        self.clock.advance(STEP_NS)

    def driver_requests(self, after: str) -> None:
        """Serve the allocations that single drivers make at this point."""
        for request in self.image.driver_requests:
            if request.after != after:
                continue
            if request.function == "phys_alloc_range":
                found = self.memblock.phys_alloc_range(request.size, request.align, request.min_addr, request.max_addr,
                                                       request.caller)
            else:
                allocate = getattr(self.memblock, request.function)
                found = allocate(request.size, request.align, request.min_addr, request.max_addr, request.nid, request.caller)
            if found and "bootmem_huge_page" in request.caller:
                self.gigantic_pages.append((found, request.size))
            if not found:
                self._printk(f"{request.caller}: Failed to allocate {request.size} bytes align={request.align:#x}")

    # -- setup_arch() --------------------------------------------------------------------------------------

    def setup_arch(self) -> None:
        """Everything that the architecture does before the generic kernel can start. 5.17: setup_arch()."""
        self.early_reserve_memory()
        self.setup_e820()
        self.setup_memblock()
        self.init_mem_mapping()
        self.reserve_initrd()
        self.reserve_acpi_tables()
        self.initmem_init()
        self.reserve_contiguous()
        self.paging_init()
        self.reserve_resources()

    def early_reserve_memory(self) -> None:
        """Reserve what must not be touched, before anybody knows where memory is: image, first 64 KiB, RAM disk, BIOS
        area.
        """
        image, memblock = self.image, self.memblock
        memblock.reserve(image.start, image.end - image.start, "setup_arch", who="kernel image")
        memblock.reserve(0, 64 * KIB, "setup_arch", who="first 64 KiB")
        if self.initrd:
            start, size = self.initrd
            memblock.reserve(start, align_up(start + size, PAGE_SIZE) - start, "setup_arch", who="initrd")
        bios = self.platform.bios_low_kib * KIB
        if not BIOS_START_MIN <= bios <= BIOS_START_MAX:
            bios = BIOS_START_MAX
        if BIOS_START_MIN <= self.platform.ebda < bios:
            bios = self.platform.ebda
        memblock.reserve(bios, MIB - bios, "reserve_bios_regions", who="BIOS")

    def setup_e820(self) -> None:
        """Print the map, cut it as the command line says, take the BIOS area out of RAM, find the end of memory."""
        self._printk(f"Command line: {self.command_line}")
        self._printk(f"{'BIOS-provided' if self.e820_source == 'BIOS-e820' else self.e820_source} physical RAM map:")
        self.e820.print_table(self.e820_source)
        self.note("e820", "firmware map", f"The firmware reports {len(self.e820)} ranges of addresses.")
        parse_command_line(self.e820, self.command_line)
        finish_early_params(self.e820)
        self.memblock.debug = self.options.memblock_debug
        self.memblock.bottom_up = self.memblock.movable_node = self.options.movable_node
        self.e820.add_kernel_range(self.image.start, self.image.symbol_end - self.image.start)
        self.e820.trim_bios_range()
        self.max_pfn = self.e820.end_of_ram_pfn()
        if self.max_pfn > MAX_DMA32_PFN:
            self.e820.end_of_low_ram_pfn()
        if not self.max_pfn:
            raise KernelPanic("no usable memory in the firmware's map")
        self.note("e820", "sanitised map", f"Sanitised and without the BIOS area, RAM ends at frame {self.max_pfn:#x}.")

    def setup_memblock(self) -> None:
        """Close the brk area, tell memblock what is RAM, and keep the first MiB for real mode."""
        self.provenance.phase = "memblock"
        memblock = self.memblock
        self.direct_map = DirectMap(memblock, self.brk, gbpages=self.platform.gbpages, pgt_buf_pages=self.image.pgt_buf_pages)
        if self.image.brk_other_bytes:
            self.brk.extend(self.image.brk_other_bytes, 8, "dmi_alloc")
        self.brk.reserve(memblock)
        memblock.set_current_limit(ISA_END_ADDRESS)
        self.e820.memblock_setup(memblock)
        self.note("memblock", "e820__memblock_setup", "memblock knows what is RAM, and what the image and the boot loader have.")
        self.real_mode = memblock.phys_alloc_range(self.image.real_mode_size, PAGE_SIZE, 0, MIB, "reserve_real_mode")
        memblock.reserve(0, MIB, "reserve_real_mode", who="first MiB")
        self.note("memblock", "reserve_real_mode", "The whole first MiB stays reserved: BIOSes write into it.")

    def init_mem_mapping(self) -> None:
        """Build the direct map; memblock may use all that is mapped from now on."""
        assert self.direct_map is not None
        self.provenance.phase = "mapping"
        self.direct_map.init_mem_mapping(self.max_pfn, self.image.symbol_end)
        self.memblock.set_current_limit(pfn_to_phys(self.direct_map.max_pfn_mapped))
        tables = len(self.direct_map.tables)
        self.note("mapping", "init_mem_mapping", f"All RAM is mapped; that took {tables} page tables.")
        self.driver_requests("init_mem_mapping")

    @property
    def max_possible_pfn(self) -> int:
        """The end of memory, or of what may be plugged in later (5.17: max_possible_pfn)."""
        ends = [pfn_up(area.end) for area in self.platform.srat] if not self.options.numa.startswith(("off", "noacpi")) else []
        return max([self.max_pfn, *ends])

    @property
    def node_data_size(self) -> int:
        """What a node with memory gets for its struct pglist_data: whole pages."""
        return align_up(self.image.sizeof_pg_data_t, PAGE_SIZE)

    @property
    def mapped_end(self) -> int:
        """The end of the direct map in bytes (5.17: get_max_mapped())."""
        return pfn_to_phys(self.direct_map.max_pfn_mapped) if self.direct_map else 0

    def reserve_initrd(self) -> None:
        """Move the initial RAM disk if the boot loader put it where the kernel does not map. 5.17: reserve_initrd()."""
        if not self.initrd or not self.direct_map:
            return
        start, size = self.initrd
        end = align_up(start + size, PAGE_SIZE)
        self._printk(f"RAMDISK: {format_mem_range(start, end, 8)}")
        if self.direct_map.pfn_range_is_mapped(pfn_down(start), pfn_down(end)):
            return
        new = self.memblock.phys_alloc_range(align_up(size, PAGE_SIZE), PAGE_SIZE, 0, self.mapped_end, "relocate_initrd")
        if not new:
            raise KernelPanic(f"Cannot find place for new RAMDISK of size {size}")
        self._printk(f"Allocated new RAMDISK: {format_mem_range(new, new + size, 8)}")
        self._printk(f"Move RAMDISK from {format_mem_range(start, start + size, 8)} to {format_mem_range(new, new + size, 8)}")
        self.memblock.phys_free(start, end - start, "reserve_initrd")
        self.provenance.give(new, align_up(size, PAGE_SIZE), "initrd")
        self.initrd = new, size
        self.note("mapping", "relocate_initrd", "The initial RAM disk lay outside of the map and was copied.")

    def reserve_acpi_tables(self) -> None:
        """Keep the firmware's tables. 5.17: drivers/acpi/tables.c, acpi_reserve_initial_tables()."""
        for table in self.platform.acpi_tables:
            if table.reserved:
                self._printk(f"ACPI: Reserving {table.name} table memory at "
                             f"[mem {table.address:#x}-{table.address + table.length - 1:#x}]")
                self.memblock.reserve(table.address, table.length, "acpi_reserve_initial_tables", who="ACPI tables")
        self.driver_requests("acpi_reserve_initial_tables")

    def initmem_init(self) -> None:
        """Find the nodes. 5.17: arch/x86/mm/numa_64.c, initmem_init()."""
        self.provenance.phase = "memmap"
        self.numa = numa_init(self.memblock, self.platform, self.max_pfn, self.mapped_end, self.options.numa,
                              self.node_data_size, self._printk, self.image.numa_emulation)
        count = len(self.numa.nodes)
        self.note("memmap", "initmem_init", f"{count} node{'s' if count > 1 else ''}, each with its own data in its own memory.")

    def reserve_contiguous(self) -> None:
        """Large areas that must lie in one piece: cma= for devices, crashkernel= for the next kernel."""
        if self.image.dma_cma and self.options.cma[0]:
            self._reserve_cma(*self.options.cma)
        if self.image.kexec:
            self.crashkernel = reserve_crashkernel(self.memblock, self.command_line)
            if self.crashkernel:
                self.note("memmap", "reserve_crashkernel", f"{self.crashkernel.size // MIB} MiB are kept for a crash kernel.")

    def _reserve_cma(self, size: int, base: int, limit: int) -> None:
        """5.17: mm/cma.c, cma_declare_contiguous_nid(), called by dma_contiguous_reserve()."""
        memblock, align = self.memblock, PAGE_SIZE << MAX_ORDER - 1
        size, base = align_up(size, align), align_up(base, align)
        end = min(limit or self.mapped_end, self.mapped_end, memblock.end_of_DRAM())
        found = 0
        if base and not limit:
            if not memblock.is_region_reserved(base, size) and memblock.reserve(base, size, "cma_declare_contiguous_nid") == 0:
                found = base
        else:
            if not memblock.bottom_up and memblock.end_of_DRAM() >= 4 * GIB + size:
                memblock.bottom_up = True
                found = memblock.alloc_range_nid(size, align, 4 * GIB, end, caller="cma_declare_contiguous_nid")
                memblock.bottom_up = False
            found = found or memblock.alloc_range_nid(size, align, base, end, caller="cma_declare_contiguous_nid")
        if not found:
            self._printk(f"cma: Failed to reserve {size // MIB} MiB")
            return
        self._printk(f"cma: Reserved {size // MIB} MiB at 0x{found:016x}")
        self.cma = found, size
        self.note("memmap", "dma_contiguous_reserve", f"{size // MIB} MiB are kept in one piece for devices.")

    def paging_init(self) -> None:
        """The memory map and the zones. 5.17: arch/x86/mm/init_64.c, paging_init(); zone_sizes_init()."""
        for _, _, nid in self.memblock.for_each_mem_pfn_range():
            if nid not in self.numa.node_data:
                # A node of less than 4 MiB is not brought online, but its memory is there: kernels crash on that.
                raise KernelPanic(f"BUG: kernel NULL pointer dereference: node {nid} has memory but no NODE_DATA")
        dma_reserve = find_dma_reserve(self.memblock)
        self.sparse = sparse_init(self.memblock, self.image, self.numa.node_data)
        share = self.sparse.memmap_bytes
        self.note("memmap", "sparse_init", f"{len(self.sparse.memmap)} sections get struct pages: {share // MIB} MiB.")
        self.memory = PhysicalMemory(self.max_pfn, nr_cpus=self.platform.online_cpus, config=self.config, rules=self.rules,
                                     clock=self.clock, trace=self.trace, counters=self.counters, klog=self.klog)
        self.layout = free_area_init(self.memory, self.memblock, self.sparse, self.max_pfn, self.options.core,
                                     self.numa.nodes, dma_reserve, self._printk,
                                     self._memoryless_node if self.rules.memoryless_nodes_early else None, self.numa.possible,
                                     self.image.zone_device)
        self.note("memmap", "free_area_init", "Every frame has its zone, and is in no list yet.")
        self.driver_requests("acpi_boot_init")
        for nid in init_cpu_to_node(self.numa, self.memblock, self.node_data_size, self._printk):
            if nid in self.memory.nodes:
                self.memory.nodes[nid].online = True
            else:
                init_memoryless_node(self.memory, nid, self._printk)
        cpus = self.platform.online_cpus
        self.memory.cpu_to_node = self.numa.cpu_to_node[:cpus]
        for nid, node in self.memory.nodes.items():
            node.cpus = [cpu for cpu in self.numa.cpu_masks.get(nid, ()) if cpu < cpus]
        self.driver_requests("io_apic_init_mappings")

    def _memoryless_node(self, nid: int) -> None:
        assert self.memory is not None
        init_possible_node(self.memory, self.memblock, nid, self.image.sizeof_pg_data_t, self._printk)

    def reserve_resources(self) -> None:
        """Note the map for /proc/iomem and /sys/firmware/memmap, and find the hole for PCI devices."""
        self.provenance.phase = "early"
        image, memblock = self.image, self.memblock
        memblock.alloc(image.sizeof_resource * len(self.e820), caller="e820__reserve_resources")
        for _ in self.e820_firmware:
            memblock.alloc(image.sizeof_firmware_map_entry, caller="firmware_map_add_early")
        if image.hibernation:
            self._register_nosave_regions()
        self.driver_requests("e820__reserve_resources")
        self.e820.pci_gap(self.max_pfn)

    def _register_nosave_regions(self) -> None:
        """Holes that hibernation must not save (5.17: e820__register_nosave_regions(), with the repair of 6.1.140)."""
        holes: list[tuple[int, int]] = []
        last = 0
        for entry in self.e820:
            if entry.type in (1, 128):
                if last < entry.addr:
                    holes.append((pfn_down(last), pfn_up(entry.addr)))
                last = entry.end
        holes.append((pfn_down(last), self.max_pfn))
        end = None
        for start_pfn, end_pfn in holes:
            if start_pfn >= end_pfn:
                continue
            if start_pfn != end:
                self.memblock.alloc(32, caller="register_nosave_region")
            end = end_pfn
            self._printk(f"PM: hibernation: Registered nosave memory: "
                         f"{format_mem_range(pfn_to_phys(start_pfn), pfn_to_phys(end_pfn), 8)}")
