"""The whole machine: boot it, allocate from it, read its /proc.

    >>> from mmsim.reference import ref256
    >>> machine = ref256()
    >>> print(machine.proc("buddyinfo").splitlines()[0].rstrip())
    Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3
    >>> [line for line in machine.dmesg_lines() if line.startswith("Memory:")][0][:46]
    'Memory: 234932K/261588K available (8197K kerne'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from mmsim.boot.crashkernel import CrashKernel
from mmsim.boot.e820 import E820Entry, E820Table, type_string
from mmsim.boot.image import KernelImage, Platform
from mmsim.boot.memblock import Memblock
from mmsim.boot.provenance import Provenance
from mmsim.boot.setup import Boot, Phase
from mmsim.boot.start import StartKernel
from mmsim.clock import Clock
from mmsim.config import Config
from mmsim.constants import GFP_KERNEL
from mmsim.counters import Counters
from mmsim.errors import InputError, InvariantError
from mmsim.kernel.ioremap import IoRemap
from mmsim.kernel.layout import Layout
from mmsim.kernel.percpu import PerCpu
from mmsim.kernel.resource import IomemTree, from_firmware
from mmsim.kernel.slub import Slub
from mmsim.kernel.stacks import ThreadStacks
from mmsim.kernel.vmalloc import Vmalloc
from mmsim.kernel.vmap_block import VmapBlocks
from mmsim.klog import KernelLog
from mmsim.paging.contents import FrameContents
from mmsim.paging.init_mm import InitMm, init_mm_tables
from mmsim.paging.tables import TableMemory
from mmsim.physical.buddy import check_zone
from mmsim.physical.frames import PG, Frames
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.node import Node
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.tunables import VmTunables
from mmsim.physical.watermark import Reserves
from mmsim.physical.zone import Zone
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.task import Process, ProcessTable
from mmsim.process.user_memory import UserMemory
from mmsim.procfs.buddyinfo import buddyinfo, extfrag_index, pagetypeinfo, unusable_index
from mmsim.procfs.meminfo import format_meminfo, format_vmstat, meminfo_values, vmstat_values
from mmsim.procfs.nodestats import fold_node_stats, meminfo_of_stats
from mmsim.procfs.process import process_file
from mmsim.procfs.slabinfo import slabinfo
from mmsim.procfs.vmallocinfo import vmalloc_meminfo, vmallocinfo
from mmsim.procfs.zoneinfo import zoneinfo
from mmsim.rules import Rules
from mmsim.trace import Trace
from mmsim.units import PAGE_SIZE, align_up

__all__ = ["Machine", "FrameCensus"]


@dataclass(frozen=True, slots=True)
class FrameCensus:
    """Where the present frames of a zone are; the parts add up to ``present``."""

    present: int
    free: int
    per_cpu: int
    allocated: int
    reserved: int


class Machine:
    """A booted machine. Make one with :meth:`boot`, or take a reference machine from :mod:`mmsim.reference`.

    ``e820``, ``memblock``, ``provenance`` and ``phases`` tell how it came up; ``memory`` (nodes, zones, frames) is what
    it has now. Simulated time is ``clock``, events are ``trace``, counts ``counters``, the kernel's messages ``klog``.

    What takes frames of its own after the boot (``slub``, ``vmalloc``, ``percpu``, ``stacks``) comes into being when it is
    first asked for: until then the machine is as the boot left it, and only its physical memory is there.
    """

    def __init__(self, boot: Boot, start: StartKernel):
        self.rules: Rules = boot.rules
        self.config: Config = boot.config
        self.clock: Clock = boot.clock
        self.trace: Trace = boot.trace
        self.klog: KernelLog = boot.klog
        self.counters: Counters = boot.counters
        self.image: KernelImage = boot.image
        self.platform: Platform = boot.platform
        self.command_line = boot.command_line
        self.e820: E820Table = boot.e820
        self.memblock: Memblock = boot.memblock
        self.provenance: Provenance = boot.provenance
        self.phases: list[Phase] = boot.phases
        self.memory: PhysicalMemory = start.memory
        self.frames: Frames = start.memory.frames
        self.allocator: PageAllocator = start.allocator
        self.reserves: Reserves = start.reserves
        #: /proc/sys/vm, as far as it moves watermarks.
        self.tunables: VmTunables = start.tunables
        self.crashkernel: CrashKernel | None = boot.crashkernel
        #: The two halves of the boot, with all that they decided.
        self.setup, self.start = boot, start
        #: The map of the kernel's half of the address space.
        self.layout = Layout(self.frames.max_pfn, seed=self.config.kaslr)
        #: What stands in the frames: page tables, slabs, the data of processes. One for the machine.
        self.contents = FrameContents(self.frames.max_pfn)
        #: Where page tables come from. One for the machine.
        self.tables = TableMemory(self.allocator, self.contents)
        #: What all processes together were promised.
        self.overcommit = Overcommit.at_boot(sum(zone.managed_pages for zone in self.memory.zones()),
                                             self.memory.nr_free_pages)
        self._proc: dict[str, Callable[[], str]] = {
            "buddyinfo": lambda: buddyinfo(self.memory), "pagetypeinfo": lambda: pagetypeinfo(self.memory),
            "zoneinfo": self._zoneinfo, "meminfo": self._meminfo, "vmstat": self._vmstat, "iomem": lambda: self.iomem.text(),
            "cmdline": lambda: self.command_line + "\n",
            "extfrag_index": lambda: extfrag_index(self.memory), "unusable_index": lambda: unusable_index(self.memory),
            "slabinfo": lambda: slabinfo(self.slub), "vmallocinfo": lambda: vmallocinfo(self.vmalloc),
        }

    @classmethod
    def boot(cls, firmware_map: Iterable[E820Entry] | E820Table | str, command_line: str = "", *,
             image: KernelImage | None = None, platform: Platform | None = None, rules: Rules | None = None,
             config: Config | None = None, trace: Trace | None = None, klog: KernelLog | None = None,
             deferred: bool = False) -> "Machine":
        """Boot from a firmware map down to a buddy allocator that serves.

        ``firmware_map`` is a table, its entries, or the text of a kernel log with BIOS-e820 lines. ``deferred``
        finishes struct pages late, node by node, as CONFIG_DEFERRED_STRUCT_PAGE_INIT does. Raise InputError for a map
        that makes no sense, KernelPanic (with the kernel's text) for a machine on which a kernel could not boot. Cost:
        a few milliseconds and 15 bytes a frame.
        """
        if isinstance(firmware_map, str):
            firmware_map = E820Table.from_dmesg(firmware_map)
        clock = klog.clock if klog is not None else trace.clock if trace is not None else Clock()
        boot = Boot(firmware_map, command_line, image=image, platform=platform, rules=rules, config=config, clock=clock,
                    klog=klog or KernelLog(clock), trace=trace or Trace(clock), deferred=deferred)
        boot.setup_arch()
        start = StartKernel(boot)
        start.run()
        return cls(boot, start)

    # -- the kernel's own memory ---------------------------------------------------------------------------

    @cached_property
    def init_mm(self) -> InitMm:
        """The kernel's page tables, whose upper half every process shares. Raise InputError for a machine whose boot built
        no direct map.
        """
        return init_mm_tables(self.tables, self.setup, self.start, self.layout)

    @cached_property
    def slub(self) -> Slub:
        """The slab allocator: kmalloc() and the caches. Its first caches take their frames now."""
        return Slub(self.memory, self.allocator, layout=self.layout, contents=self.contents)

    @cached_property
    def vmalloc(self) -> Vmalloc:
        """The vmalloc region."""
        region, first = Vmalloc(self.slub, self.init_mm), self.start.percpu
        if first is not None and first.pages:
            region.register_early(len(first.pages) * PAGE_SIZE, "pcpu_page_first_chunk")
        return region

    @cached_property
    def vmap_blocks(self) -> VmapBlocks:
        """The blocks of vm_map_ram()."""
        return VmapBlocks(self.vmalloc)

    @cached_property
    def ioremap(self) -> IoRemap:
        """Mappings of devices."""
        return IoRemap(self.vmalloc, gbpages=self.platform.gbpages)

    @cached_property
    def iomem(self) -> IomemTree:
        """Who has which physical addresses: the firmware, the kernel's sections, the crash kernel, and the platform's devices."""
        sections = [(*self.image.text, "Kernel code"), (*self.image.rodata, "Kernel rodata"), (*self.image.data, "Kernel data"),
                    (*self.image.bss, "Kernel bss")]
        if self.crashkernel:
            sections.append((self.crashkernel.base, self.crashkernel.base + self.crashkernel.size, "Crash kernel"))
            if self.crashkernel.low_size:
                sections.append((self.crashkernel.low_base, self.crashkernel.low_base + self.crashkernel.low_size, "Crash kernel"))
        firmware = [(entry.addr, entry.end, type_string(entry.type)) for entry in self.e820]
        return from_firmware(firmware, sections, self.platform.resources, self.start.ram_buffers)

    @cached_property
    def stacks(self) -> ThreadStacks:
        """The kernel stacks of tasks."""
        return ThreadStacks(self.vmalloc)

    @cached_property
    def percpu(self) -> PerCpu:
        """Per-CPU memory, beginning with the chunk that the boot set up."""
        first = self.start.percpu
        if first is None:
            raise InputError("this machine's boot made no per-CPU areas")
        low = min(group.base for group in first.groups)
        offsets = [0] * self.memory.nr_cpus
        for group in first.groups:
            for number, cpu in enumerate(group.units):
                if cpu is not None and cpu < len(offsets):
                    offsets[cpu] = group.base - low + number * first.unit_size
        areas = [(group.base - low, align_up(len(group.units) * first.unit_size, first.atom_size)) for group in first.groups]
        return PerCpu(self.vmalloc, static_size=first.static_size, reserved_size=first.reserved_size,
                      dynamic_size=first.dynamic_size, unit_size=first.unit_size,
                      base=self.layout.vmalloc_start if first.pages else self.layout.va(low), unit_offsets=offsets, areas=areas)

    @cached_property
    def process_table(self) -> ProcessTable:
        """The processes and what they share: owners of pages, LRU batches, TLBs."""
        return ProcessTable(UserMemory(self))

    @property
    def user(self) -> UserMemory:
        """The user pages of all processes."""
        return self.process_table.user

    @property
    def processes(self) -> dict[int, Process]:
        """The processes by pid, those too that have ended and whose parent has not asked."""
        return self.process_table.processes

    def spawn(self, name: str = "a.out", mm: Mm | None = None) -> Process:
        """A new process with an empty address space, or with the areas of ``mm``."""
        return self.process_table.spawn(name, mm)

    # -- memory --------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> dict[int, Node]:
        """The nodes by id."""
        return self.memory.nodes

    @property
    def zones(self) -> list[Zone]:
        """The populated zones, node by node, lowest first."""
        return list(self.memory.zones())

    def zone(self, name: str, nid: int = 0) -> Zone:
        """A populated zone by name. Raise InputError if the node has none of that name."""
        for zone in self.memory.zones():
            if zone.nid == nid and zone.name == name:
                return zone
        raise InputError(f"node {nid} has no zone {name}; there are {', '.join(f'{z.nid}/{z.name}' for z in self.zones)}")

    def alloc_pages(self, gfp_mask: int = GFP_KERNEL, order: int = 0, nid: int | None = None) -> int | None:
        """Allocate a block of 2^order frames; return its first PFN, or None (5.17: mm/page_alloc.c, alloc_pages())."""
        return self.allocator.alloc_pages(gfp_mask, order, nid)

    def free_pages(self, pfn: int, order: int = 0) -> None:
        """Give a block back (5.17: mm/page_alloc.c, __free_pages())."""
        self.allocator.free_pages(pfn, order)

    def alloc_pages_bulk(self, gfp_mask: int, nr_pages: int, nid: int | None = None) -> list[int]:
        """Allocate single frames in one go; return the PFNs that came (5.17: mm/page_alloc.c,
        alloc_pages_bulk_list()).
        """
        return self.allocator.alloc_pages_bulk(gfp_mask, nr_pages, nid)

    # -- text ----------------------------------------------------------------------------------------------

    def proc(self, name: str) -> str:
        """The text of a file of /proc (``buddyinfo``, ``zoneinfo``, ``1/smaps``…) as the kernel writes it. Raise InputError for
        an unknown one.
        """
        pid, slash, file = name.partition("/")
        if slash and pid.isdecimal():
            if int(pid) not in self.processes or not self.processes[int(pid)].alive:
                raise InputError(f"no process {pid}; there are {', '.join(map(str, self.processes)) or 'none'}")
            return process_file(self.processes[int(pid)], file)
        if name not in self._proc:
            raise InputError(f"no file {name}; there are {', '.join(sorted(self._proc))}")
        return self._proc[name]()

    def dmesg(self) -> str:
        """The kernel log, with times. The model's time stands still within a step of the boot."""
        return self.klog.text()

    def dmesg_lines(self) -> list[str]:
        """The messages without their times."""
        return self.klog.lines()

    def _meminfo(self) -> str:
        """What is there of /proc/meminfo: each mechanism adds its lines when it has begun to work."""
        self._fold()
        made = self.__dict__
        values = meminfo_values(self.memory) | meminfo_of_stats(self.memory)
        values |= vmalloc_meminfo(made.get("vmalloc"), self.layout)
        values["CommitLimit"] = self.overcommit.commit_limit() << 2
        values["Committed_AS"] = max(self.overcommit.committed, 0) << 2
        first = self.start.percpu
        if first is not None:
            units = sum(len(group.units) for group in first.groups)
            later = made["percpu"].nr_populated if "percpu" in made else 0
            values["Percpu"] = (first.size_sum // PAGE_SIZE * units + later) << 2
        if self.setup.direct_map is not None:
            for line in self.setup.direct_map.meminfo():
                name, _, value = line.partition(":")
                values[name] = int(value.split()[0])
        return format_meminfo(values)

    def _fold(self) -> None:
        """Bring the counters of nodes and zones up to date."""
        table = self.__dict__.get("process_table")
        fold_node_stats(self.memory, self.tables, table.user if table is not None else None)

    def _vmstat(self) -> str:
        self._fold()
        return format_vmstat(vmstat_values(self.memory))

    def _zoneinfo(self) -> str:
        self._fold()
        return zoneinfo(self.memory)

    # -- checking ------------------------------------------------------------------------------------------

    def census(self, zone: Zone) -> FrameCensus:
        """Count the frames of a zone by where they are. Cost: every frame of the zone."""
        per_cpu = sum(pageset.count for pageset in zone.pageset)
        reserved_bit = PG["reserved"]
        # The span of a zone may hold frames of other nodes, when nodes lie one inside another.
        span = slice(zone.start_pfn, zone.end_pfn)
        reserved = sum(1 for word, serial in zip(self.frames.flags[span], self.frames.zone_of[span])
                       if word & reserved_bit and serial == zone.serial)
        allocated = zone.managed_pages - zone.nr_free_pages - per_cpu
        return FrameCensus(zone.present_pages, zone.nr_free_pages, per_cpu, allocated, reserved)

    def check(self) -> None:
        """Verify everything: no frame lost, none in two places, lists equal to flags. Raise InvariantError. Cost: every
        frame.
        """
        self.memblock.check()
        self.provenance.check()
        self.frames.check()
        for zone in self.memory.zones():
            check_zone(zone)
            for pageset in zone.pageset:
                pageset.check()
            census = self.census(zone)
            waiting = sum(work.pages for work in self.start.deferred if work.nid == zone.nid)
            counted = census.free + census.per_cpu + census.allocated + census.reserved
            if census.allocated < 0 or not counted <= census.present <= counted + waiting:
                raise InvariantError(f"zone {zone.name} of node {zone.nid}: {census} does not add up")
        # What nobody has asked for yet is not made for a check.
        for name in ("slub", "vmalloc", "percpu", "stacks", "init_mm", "process_table", "vmap_blocks", "iomem"):
            if name in self.__dict__:
                self.__dict__[name].check()

    def __repr__(self) -> str:
        zones = ", ".join(f"{zone.nid}/{zone.name} {zone.managed_pages}" for zone in self.zones)
        return f"<Machine: Linux {self.rules.release}, {len(self.nodes)} nodes, managed pages {zones}>"
