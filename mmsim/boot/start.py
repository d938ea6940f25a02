"""The generic kernel's start: per-CPU areas, zonelists, hash tables, the hand-over to the buddy allocator, and the late
frees.

5.17: init/main.c, start_kernel(), mm_init(), kernel_init(). Left out: everything that has nothing to do with memory.
"""

from __future__ import annotations

from mmsim.boot.handover import DeferredInit, free_reserved_area, memblock_discard, memblock_free_all
from mmsim.boot.hash import EARLY_HASHES, LargeHash, hash_line, large_system_hash
from mmsim.boot.percpu import PerCpuLayout, build_alloc_info, embed_first_chunk, page_first_chunk
from mmsim.boot.setup import Boot
from mmsim.constants import (
    _GFP_ZERO,
    GFP_KERNEL,
    MAX_DMA32_PFN,
    MIGRATE_TYPES,
    PAGEBLOCK_NR_PAGES,
    WMARK_LOW,
    ZONE_MOVABLE,
    ZONE_NAMES,
)
from mmsim.errors import Errno, KernelPanic
from mmsim.physical.frames import PG
from mmsim.physical.free import init_cma_reserved_pageblock
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.tunables import VmTunables
from mmsim.physical.vmstat import calculate_normal_threshold, percpu_drift_mark
from mmsim.physical.watermark import Reserves, calculate_totalreserve_pages, zone_batchsize, zone_highsize
from mmsim.physical.zone import Zone
from mmsim.physical.zonelist import build_node_orders, build_zonelists, fallback_order_line
from mmsim.units import KIB, MIB, PAGE_SIZE, align_up, pages_to_kib, pfn_down, roundup_pow_of_two

__all__ = ["StartKernel"]

IO_TLB_DEFAULT_SIZE = 64 * MIB
IO_TLB_SIZE = 2 * KIB
SIZEOF_IO_TLB_SLOT = 24
SIZEOF_IO_TLB_AREA = 16                 # one area a CPU since 6.0, each with a lock of its own


class StartKernel:
    """The second half of a :class:`~mmsim.boot.setup.Boot`: from one allocator to the other. ``memory`` is ready
    afterwards.
    """

    def __init__(self, boot: Boot):
        if boot.memory is None:
            raise KernelPanic("start_kernel() before setup_arch()")
        self.boot = boot
        self.memory: PhysicalMemory = boot.memory
        self.memblock = boot.memblock
        self.image = boot.image
        self.allocator = PageAllocator(self.memory)
        self.percpu: PerCpuLayout | None = None
        self.hashes: list[LargeHash] = []
        #: Nodes whose struct pages are finished later, by a thread each.
        self.deferred: list[DeferredInit] = []
        self.reserves = Reserves([node.zones for node in self.memory.nodes.values()])
        #: /proc/sys/vm, as far as it moves watermarks.
        self.tunables = VmTunables(self.reserves, self.after_wmarks)
        #: Page tables of the CPU entry areas, and perhaps of what else is mapped then: addresses.
        self.entry_area_tables: list[int] = []
        #: Behind each end of RAM what devices shall not get: (start, end).
        self.ram_buffers: list[tuple[int, int]] = []
        #: Frames of top-level page tables for vmalloc, allocated as soon as the buddy allocator can.
        self.vmalloc_tables: list[int] = []
        self.totalcma_pages = boot.cma[1] // PAGE_SIZE
        #: Frames that were free at hand-over (5.17: totalram_pages() then).
        self.totalram_pages = 0
        #: The software I/O TLB: (address, bytes), or (0, 0).
        self.swiotlb = (0, 0)

    def run(self) -> None:
        """All steps in their order."""
        self.setup_command_line()
        self.setup_per_cpu_areas()
        self.build_all_zonelists()
        self.print_command_line()
        self.early_hashes()
        self.trap_init()
        self.boot.note("early", "vfs_caches_init_early", "All that needs large pieces has taken them from memblock.")
        self.mem_init()
        self.late()

    def _printk(self, text: str) -> None:
        self.boot.klog.printk(text)

    def _alloc(self, size: int, align: int, caller: str) -> int:
        address = self.memblock.alloc(size, align, caller=caller)
        if not address:
            raise KernelPanic(f"{caller}: Failed to allocate {size} bytes align={align:#x}")
        return address

    # -- before the hand-over ------------------------------------------------------------------------------

    def setup_command_line(self) -> None:
        """Two copies of the command line: one to show, one that parsing cuts to pieces."""
        size = len(self.boot.command_line) + 1
        self._alloc(size, 64, "setup_command_line")
        self._alloc(size, 64, "setup_command_line")

    def setup_per_cpu_areas(self) -> None:
        """The per-CPU areas. 5.17: arch/x86/kernel/setup_percpu.c."""
        numa, cpus = self.boot.numa, self.boot.platform.nr_cpus
        bits = self.image.nr_cpus if self.image.nr_cpus <= 64 else cpus
        self._printk(f"setup_percpu: NR_CPUS:{self.image.nr_cpus} nr_cpumask_bits:{bits} nr_cpu_ids:{cpus} "
                     f"nr_node_ids:{max([*numa.nodes, *numa.possible]) + 1}")
        layout = build_alloc_info(self.image, numa.cpu_to_node)
        if not embed_first_chunk(self.memblock, self.image, layout, numa.cpu_to_node, numa.nodes, self._printk):
            self._printk("setup_percpu: auto allocator failed (-12), falling back to page size")
            layout = page_first_chunk(self.memblock, self.image, numa.cpu_to_node, numa.nodes, self._printk)
        self.percpu = layout
        self.boot.note("early", "setup_per_cpu_areas", f"{cpus} CPU{'s' if cpus > 1 else ''}: each has its copy of the per-CPU variables.")
        self.boot.driver_requests("pcpu_alloc_first_chunk")

    def build_all_zonelists(self) -> None:
        """Say in which order each node tries the zones of the machine. 5.17: mm/page_alloc.c, build_all_zonelists()."""
        nodes = self.memory.nodes
        size = max(nodes) + 1
        distance = [[self.boot.numa.node_distance(a, b) for b in range(size)] for a in range(size)]
        has_memory = [int(nid in nodes and nodes[nid].present > 0) for nid in range(size)]
        # The masks of CPUs are empty this early (numa_add_cpu() runs when a CPU comes up), so no node pays for having
        # CPUs.
        orders = build_node_orders(has_memory, [0] * size, distance)
        zones = [nodes[nid].zones if nid in nodes else [] for nid in range(size)]
        policy_zone = 0
        for nid, node in sorted(nodes.items()):
            self._printk(fallback_order_line(nid, orders[nid]))
            node.zonelist, node.zonelist_thisnode = build_zonelists(zones, orders[nid])
            policy_zone = max([policy_zone] + [zone.index for zone in node.zonelist_thisnode if zone.index != ZONE_MOVABLE])
        home = nodes[self.memory.cpu_to_node[0]]
        total = sum(zone.managed_pages for zone in home.zonelist)
        self.memory.page_group_by_mobility_disabled = total < PAGEBLOCK_NR_PAGES * (MIGRATE_TYPES + int(self.memory.config.cma))
        grouping = "off" if self.memory.page_group_by_mobility_disabled else "on"
        online = sum(node.online for node in nodes.values())
        self._printk(f"Built {online} zonelists, mobility grouping {grouping}.  Total pages: {total}")
        self._printk(f"Policy zone: {ZONE_NAMES[policy_zone]}")

    def print_command_line(self) -> None:
        """Show the command line; what the kernel does not know goes to init. 5.17: init/main.c,
        print_unknown_bootoptions().
        """
        self._printk(f"Kernel command line: {self.boot.command_line}")
        unknown = self.boot.options.unknown
        if unknown:
            size = 1 + sum(1 + len(word) for word in unknown)
            text = self._alloc(size, 64, "print_unknown_bootoptions")
            self._printk(f'Unknown kernel command line parameters "{" ".join(unknown)}", will be passed to user space.')
            self.memblock.free(text, size)
        self.boot.driver_requests("print_unknown_bootoptions")

    def early_hashes(self) -> None:
        """The hash tables of directory entries and inodes; on several nodes they wait for vmalloc, to be spread."""
        if sum(node.present > 0 for node in self.memory.nodes.values()) > 1 and self.boot.options.hashdist:
            return
        self._make_hashes("linear")

    def _make_hashes(self, how: str) -> None:
        layout = self.boot.layout
        for name, bucket, scale in EARLY_HASHES:
            def allocate(size: int) -> int:
                return self.memblock.alloc(size, caller="alloc_large_system_hash") if how == "linear" else size
            asked = self.boot.options.hash_entries.get(name, 0)
            table = large_system_hash(name, bucket, scale, layout.nr_kernel_pages, layout.nr_all_pages, allocate, asked)
            if not table.address:
                raise KernelPanic(f"Failed to allocate {name} hash table")
            if how != "linear":
                huge = self.boot.rules.huge_vmalloc and table.size // len(self.memory.nodes) >= 2 * MIB
                table = LargeHash(table.name, table.entries, table.size, 0, "vmalloc hugepage" if huge else how)
            self.hashes.append(table)
            self._printk(hash_line(table))

    def trap_init(self) -> None:
        """Page tables for the CPU entry areas. 5.17: arch/x86/mm/cpu_entry_area.c, setup_cpu_entry_areas()."""
        for _ in range(self.image.cpu_entry_area_tables):
            self.entry_area_tables.append(self._alloc(PAGE_SIZE, PAGE_SIZE, "spp_getpage"))
        self.boot.driver_requests("spp_getpage")

    def swiotlb_init(self) -> None:
        """Bounce buffers below 4 GiB, on machines with memory above. 5.17: kernel/dma/swiotlb.c, swiotlb_init()."""
        options = self.boot.options
        wanted = self.boot.max_possible_pfn > MAX_DMA32_PFN and options.iommu != "off"
        wanted = wanted or options.swiotlb_force == "force" or options.iommu == "soft"
        if not self.image.swiotlb or not wanted or options.swiotlb_force == "noforce":
            return
        size = options.swiotlb_slabs * IO_TLB_SIZE or IO_TLB_DEFAULT_SIZE
        size = align_up(size, 128 * IO_TLB_SIZE)
        address = self.memblock.alloc_low(size, PAGE_SIZE, caller="swiotlb_init")
        if not address:
            self._printk("Cannot allocate buffer")
            return
        self._alloc(align_up(size // IO_TLB_SIZE * SIZEOF_IO_TLB_SLOT, PAGE_SIZE), PAGE_SIZE, "swiotlb_init_with_tbl")
        if self.boot.rules.release != "5.17":
            areas = roundup_pow_of_two(self.boot.platform.nr_cpus)
            self._alloc(SIZEOF_IO_TLB_AREA * areas, 64, "swiotlb_init_remap")
        self.swiotlb = address, size

    # -- the hand-over -------------------------------------------------------------------------------------

    def mem_init(self) -> None:
        """Hand all free memory over, then print the balance. 5.17: arch/x86/mm/init_64.c, mem_init()."""
        self.swiotlb_init()
        self.boot.driver_requests("swiotlb_init")
        self.boot.provenance.phase = "buddy"
        self.totalram_pages, self.deferred = memblock_free_all(self.memory, self.memblock, self.boot.layout, self.boot.deferred)
        if self.deferred:
            self.memory.deferred_grow_zone = self._deferred_grow_zone
        self.boot.note("buddy", "memblock_free_all", f"{self.memory.nr_free_pages} free frames are in the buddy allocator's lists now.")
        self.preallocate_vmalloc_pages()
        self._printk(self.memory_line())
        if not self.hashes:
            self._make_hashes("vmalloc")
        self.setup_per_cpu_pageset()
        self.memblock.kmalloc = self._kmalloc
        self.boot.note("buddy", "mem_init", "The buddy allocator serves; memblock is closed.")

    def _kmalloc(self, size: int, nid: int) -> int:
        """What a memblock allocation gets after hand-over: whole pages (the model's kernel has no slab yet)."""
        order = max(align_up(size, PAGE_SIZE) // PAGE_SIZE - 1, 0).bit_length()
        pfn = self.allocator.alloc_pages(GFP_KERNEL, order, nid if nid in self.memory.nodes else None)
        return 0 if pfn is None else pfn * PAGE_SIZE

    def _deferred_grow_zone(self, zone: Zone, order: int) -> bool:
        return any(work.grow(self.memory, zone, order) for work in self.deferred if work.nid == zone.nid)

    def preallocate_vmalloc_pages(self) -> None:
        """One page table for each top-level entry of the vmalloc area, so that all processes share them from the start.

        5.17: arch/x86/mm/init_64.c, preallocate_vmalloc_pages(). They are why "available" is less than what was handed
        over.
        """
        # Per-CPU areas of single pages lie at the start of the vmalloc area and have brought the first table.
        for _ in range(self.image.vmalloc_tables - int(self.percpu is not None and self.percpu.atom_size == PAGE_SIZE)):
            pfn = self.allocator.alloc_pages(GFP_KERNEL | _GFP_ZERO)
            if pfn is None:
                raise KernelPanic("Failed to pre-allocate pages for vmalloc area")
            self.vmalloc_tables.append(pfn)
            self.boot.provenance.give(pfn * PAGE_SIZE, PAGE_SIZE, "preallocate_vmalloc_pages")

    def memory_line(self) -> str:
        """The balance in the kernel log. 5.17: mm/page_alloc.c, mem_init_print_info()."""
        image = self.image
        physpages = sum(node.present for node in self.memory.nodes.values())

        def kib(section: tuple[int, int]) -> int:
            return section[1] - section[0] >> 10

        return (f"Memory: {pages_to_kib(self.memory.nr_free_pages)}K/{pages_to_kib(physpages)}K available "
                f"({kib(image.text)}K kernel code, {kib(image.data)}K rwdata, {kib(image.rodata)}K rodata, {kib(image.init)}K init, "
                f"{kib(image.bss)}K bss, {pages_to_kib(physpages - self.totalram_pages - self.totalcma_pages)}K reserved, "
                f"{pages_to_kib(self.totalcma_pages)}K cma-reserved)")

    # -- per-CPU lists and reserves ------------------------------------------------------------------------

    def set_pageset(self) -> None:
        """Size all per-CPU lists from their zones. 5.17: mm/page_alloc.c, zone_set_pageset_high_and_batch()."""
        for zone in self.memory.zones():
            batch = max(1, zone_batchsize(zone.managed_pages))
            local = len(self.memory.nodes[zone.nid].cpus)
            high = zone_highsize(zone.watermark[WMARK_LOW], zone.managed_pages, batch, local, self.memory.nr_cpus,
                                 self.tunables.high_fraction)
            for pageset in zone.pageset:
                pageset.high, pageset.batch = high, batch

    def setup_per_cpu_pageset(self) -> None:
        """The real per-CPU lists, instead of the boot ones that hold nothing. 5.17: setup_per_cpu_pageset()."""
        self.set_pageset()

    def init_per_zone_wmark_min(self) -> None:
        """Watermarks and reserves, once the amount of memory is known. 5.17: mm/page_alloc.c,
        init_per_zone_wmark_min().
        """
        self.reserves.init_per_zone_wmark_min()
        self.after_wmarks()
        self.refresh_zone_stat_thresholds()

    def refresh_zone_stat_thresholds(self) -> None:
        """How far the counters of each CPU may lag. 5.17: mm/vmstat.c, refresh_zone_stat_thresholds().

        It is called when a CPU comes up, too: then the zones have no marks yet, so that every zone gets a drift mark, and
        keeps it, for later calls set it only where it is needed.
        """
        cpus = self.memory.nr_cpus
        for zone in self.memory.zones():
            zone.stat_threshold = calculate_normal_threshold(zone.managed_pages, cpus)
            zone.percpu_drift_mark = percpu_drift_mark(
                zone.watermark[0], zone.watermark[1], zone.watermark[2], zone.stat_threshold, cpus) or zone.percpu_drift_mark

    def kswapd_first_sleep(self) -> None:
        """Each kswapd starts, finds nothing to do, and sets the thresholds of zones with a drift mark before it sleeps.

        5.17: mm/vmscan.c, kswapd_try_to_sleep(); mm/vmstat.c, set_pgdat_percpu_threshold().
        """
        for zone in self.memory.zones():
            if zone.percpu_drift_mark:
                zone.stat_threshold = calculate_normal_threshold(zone.managed_pages, self.memory.nr_cpus)

    def sysctl_args(self) -> None:
        """``sysctl.vm.…=`` on the command line. 5.17: fs/proc/proc_sysctl.c, do_sysctl_args()."""
        for name, value in self.boot.options.sysctls:
            if name in VmTunables.NAMES:
                try:
                    self.tunables.write(name, value)
                except Errno:
                    self._printk(f"Failed to set sysctl parameter 'vm.{name}={value}': invalid value")

    def after_wmarks(self) -> None:
        """Whatever hangs on the marks: sizes of the per-CPU lists, reserves of the nodes."""
        self.set_pageset()
        self.memory.watermark_boost_factor = self.tunables.watermark_boost_factor
        for node in self.memory.nodes.values():
            node.totalreserve_pages = calculate_totalreserve_pages(node.zones)

    # -- afterwards ----------------------------------------------------------------------------------------

    def late(self) -> None:
        """What the initcalls and kernel_init() change: watermarks, huge pages, and memory that only the boot needed."""
        boot, image = self.boot, self.image
        boot.provenance.phase = "freed"
        uniprocessor = boot.platform.online_limit == 1 or boot.platform.nr_cpus - boot.platform.hotplug_cpus <= 1
        if not uniprocessor or boot.platform.nr_cpus == 1:
            self._free("SMP alternatives", *image.smp_locks)
        if self.memory.nr_cpus > 1:
            self.refresh_zone_stat_thresholds()
        for work in self.deferred:
            pages = work.run(self.memory)
            self._printk(f"node {work.nid} deferred pages initialised in 0ms")
            boot.note("buddy", "deferred_init_memmap", f"Node {work.nid} gets its other {pages} free frames.")
        self.memory.deferred_grow_zone = None
        memblock_discard(self.memory, self.memblock)
        self.init_cma()
        self.init_per_zone_wmark_min()
        boot.note("buddy", "init_per_zone_wmark_min", "The zones have their watermarks.")
        self.gather_gigantic_pages()
        totalram = sum(zone.managed_pages for zone in self.memory.zones())
        if image.transparent_hugepage and totalram >= 512 * MIB // PAGE_SIZE:
            self.reserves.set_recommended_min_free_kbytes(boot.options.transparent_hugepage != "never")
            self.after_wmarks()
        self.ram_buffers = boot.e820.ram_buffers()
        self.free_boot_memory()
        self.kswapd_first_sleep()
        self.sysctl_args()

    def init_cma(self) -> None:
        """Movable pages may use the contiguous area now. 5.17: mm/cma.c, cma_init_reserved_areas()."""
        base, size = self.boot.cma
        for pfn in range(pfn_down(base), pfn_down(base + size), PAGEBLOCK_NR_PAGES):
            init_cma_reserved_pageblock(self.memory.frames.page_zone(pfn), pfn)

    def gather_gigantic_pages(self) -> None:
        """Huge pages from memblock become managed, in use by hugetlb. 5.17: mm/hugetlb.c, gather_bootmem_prealloc()."""
        frames = self.memory.frames
        for base, size in self.boot.gigantic_pages:
            pfn, pages = pfn_down(base), size // PAGE_SIZE
            for page in range(pfn, pfn + pages):
                frames.flags[page] &= ~PG["reserved"]
                frames.refcount[page] = int(page == pfn)
            frames.page_zone(pfn).managed_pages += pages

    def free_boot_memory(self) -> None:
        """The RAM disk once it is unpacked, init code and data, gaps between sections. 5.17: free_initmem(),
        mark_rodata_ro().
        """
        boot, image = self.boot, self.image
        if boot.initrd:
            start, size = boot.initrd
            self._free("initrd", start, align_up(start + size, PAGE_SIZE))
        if image.decrypted[1] > image.decrypted[0]:
            self._free("unused decrypted", *image.decrypted)
        self._free("unused kernel image (initmem)", *image.init)
        for name, start, end in image.gaps:
            self._free(f"unused kernel image ({name})", start, end)
        boot.note("freed", "free_initmem", "What only the boot needed is free now.")

    def _free(self, name: str, start: int, end: int) -> None:
        pages = free_reserved_area(self.memory, start, end, name, self._printk)
        if pages:
            self.boot.provenance.release(start, end - start)
