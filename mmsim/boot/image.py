"""What a boot starts from besides the firmware map: the kernel image and the platform.

The *image* is what the kernel's build decided: where its sections lie, how large its structures are. The *platform* is
what the firmware and the boot loader hand over: processors, ACPI tables, the initial RAM disk. Neither holds an address
that the kernel chooses while it boots: those are the model's own results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmsim.constants import MAX_PHYSMEM_BITS, SECTION_SIZE_BITS
from mmsim.errors import InputError
from mmsim.units import KIB, MIB, PAGE_SIZE, align_down, align_up

__all__ = ["AcpiTable", "SratMemory", "DriverRequest", "KernelImage", "Platform", "TINY_IMAGE", "IMAGE_5_17"]

#: The first section of the kernel image is loaded here unless KASLR moves it (CONFIG_PHYSICAL_START).
PHYSICAL_START = 16 * MIB


@dataclass(frozen=True, slots=True)
class DriverRequest:
    """An allocation whose size only the driver knows: made after the boot step ``after``, within the given limits."""

    after: str
    size: int
    align: int = 64
    caller: str = "driver"
    min_addr: int = 0
    max_addr: int = 0
    nid: int = -1
    #: The function of memblock: ``alloc_try_nid``, ``alloc_try_nid_raw``, ``alloc_exact_nid_raw`` or
    #: ``phys_alloc_range``.
    function: str = "alloc_try_nid"


@dataclass(frozen=True, slots=True)
class KernelImage:
    """Sections (start, end) in physical bytes, in memory order, and sizes that the build decided.

    ``init`` is [__init_begin, __init_end): thrown away when the kernel has booted. ``smp_locks`` is thrown away when
    the locks of the code were patched for the number of CPUs.
    """

    release: str = "5.17.0"
    text: tuple[int, int] = (0x100_0000, 0x180_1480)
    rodata: tuple[int, int] = (0x1A0_0000, 0x1B5_E000)
    data: tuple[int, int] = (0x1C0_0000, 0x1D1_E100)
    init: tuple[int, int] = (0x1D2_9000, 0x1E1_E000)
    smp_locks: tuple[int, int] = (0x1E1_E000, 0x1E2_4000)
    bss: tuple[int, int] = (0x1E2_4000, 0x200_0000)
    #: Pages that extend_brk() hands out before memblock is up: the first page tables of the direct map…
    pgt_buf_pages: int = 6
    #: …and what else is taken from the .brk section (the DMI table's strings, where they are configured).
    brk_other_bytes: int = 0
    #: Where __end_of_kernel_reserve is, if not at the end of .bss.
    brk_start: int = 0
    #: The trampoline that starts the other CPUs in real mode, in whole pages, below 1 MiB.
    real_mode_size: int = 0x6000
    #: Parts of it: read-only up to here, executable from here to the end of that part; and the interrupt descriptor table,
    #: a page of .bss.
    real_mode_ro_end: int = 0x2000
    real_mode_text: int = 0x1000
    idt_offset: int = 0x1000
    #: struct pglist_data, exact or in whole pages: those of nodes with memory are allocated in whole pages.
    sizeof_pg_data_t: int = 0x5000
    sizeof_mem_section: int = 32
    sizeof_mem_section_usage: int = 40
    sizeof_resource: int = 64
    sizeof_firmware_map_entry: int = 104
    sizeof_pcpu_chunk: int = 152
    nr_cpus: int = 8
    percpu_static_size: int = 170176
    percpu_reserved_size: int = 0
    percpu_dynamic_size: int = 28 * KIB
    #: trap_init() maps the CPU entry areas, 2 MiB of addresses to a page table page, which take these page table pages.
    cpu_entry_area_tables: int = 3
    #: Page tables allocated beforehand: one for each 512 GiB of the 32 TiB vmalloc area.
    vmalloc_tables: int = 64
    #: CONFIG_DEFERRED_STRUCT_PAGE_INIT: on large machines a thread for each node finishes the memory map.
    deferred_struct_page_init: bool = False
    #: CONFIG_HIBERNATION: regions that must not be saved are noted, 32 bytes each.
    hibernation: bool = False
    #: A part of .bss that is shared with the hypervisor when memory is encrypted; freed where it is not (6.1's log says
    #: so).
    decrypted: tuple[int, int] = (0, 0)
    #: CONFIG_KEXEC_CORE, CONFIG_SWIOTLB, CONFIG_DMA_CMA.
    kexec: bool = True
    swiotlb: bool = True
    dma_cma: bool = False
    #: CONFIG_ZONE_DEVICE: the log names the (empty) zone.
    zone_device: bool = True
    #: CONFIG_NUMA_EMU: numa=fake= works.
    numa_emulation: bool = True
    #: CONFIG_TRANSPARENT_HUGEPAGE: khugepaged raises the watermarks on machines of 512 MiB and more.
    transparent_hugepage: bool = True
    #: Options that this kernel does not know: init gets them. None: those that no part of the model knows.
    unknown_options: tuple[str, ...] | None = None
    #: Allocations of single drivers.
    driver_requests: tuple[DriverRequest, ...] = (
        DriverRequest("acpi_boot_init", 73, caller="acpi_parse_hpet"),
        DriverRequest("io_apic_init_mappings", 75, caller="io_apic_init_mappings"),
    )

    @property
    def start(self) -> int:
        """_text: where the image begins."""
        return self.text[0]

    @property
    def end(self) -> int:
        """__end_of_kernel_reserve: up to here setup_arch() reserves, the .brk section follows."""
        return self.brk_start or align_up(self.bss[1], PAGE_SIZE)

    @property
    def symbol_end(self) -> int:
        """_end: behind the whole .brk section, of which most is given back.

        5.17: arch/x86/kernel/vmlinux.lds.S: 64 KiB of slop, the first page tables, and 64 KiB for DMI strings where
        somebody takes them.
        """
        shares = 64 * KIB + self.pgt_buf_pages * PAGE_SIZE + (64 * KIB if self.brk_other_bytes else 0)
        return align_up(self.end + shares, PAGE_SIZE)

    @property
    def idt_table(self) -> int:
        """The interrupt descriptor table's page, which is made read-only."""
        return align_up(self.bss[0], PAGE_SIZE) + self.idt_offset

    @property
    def entry_text(self) -> tuple[int, int]:
        """[__entry_text_start, __entry_text_end): the code by which the kernel is entered and left.

        The linker gives it 2 MiB pages of its own, the last whole one of .text; a kernel too small for that has it in the
        last two pages (a guess). 5.17: arch/x86/kernel/vmlinux.lds.S, ALIGN_ENTRY_TEXT_BEGIN.
        """
        end = align_down(self.text[1], 2 * MIB)
        return (end - 2 * MIB, end) if end - 2 * MIB >= self.text[0] else (self.text[1] - 2 * PAGE_SIZE, self.text[1])

    @property
    def gaps(self) -> tuple[tuple[str, int, int], ...]:
        """The holes between sections that end on different 2 MiB pages, freed at last: (name, start, end)."""
        return (("text/rodata gap", align_up(self.text[1], PAGE_SIZE), align_down(self.rodata[0], PAGE_SIZE)),
                ("rodata/data gap", align_up(self.rodata[1], PAGE_SIZE), align_down(self.data[0], PAGE_SIZE)))

    @property
    def sections_per_root(self) -> int:
        """How many struct mem_section fit in a page."""
        return PAGE_SIZE // self.sizeof_mem_section

    @property
    def section_roots(self) -> int:
        """NR_SECTION_ROOTS: pages of struct mem_section that the whole physical address space would need."""
        sections = 1 << MAX_PHYSMEM_BITS - SECTION_SIZE_BITS
        return -(-sections // self.sections_per_root)

    def replace(self, **changes: object) -> "KernelImage":
        """This image with other values."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise InputError if sections overlap or stand in another order than a linker gives them."""
        previous, before = "the start of memory", 0
        for name in ("text", "rodata", "data", "init", "smp_locks", "bss"):
            start, end = getattr(self, name)
            if not before <= start <= end:
                raise InputError(f"kernel image: section {name} [{start:#x}, {end:#x}) does not follow {previous}")
            previous, before = name, end


@dataclass(frozen=True, slots=True)
class AcpiTable:
    """A table of the firmware in memory. ``reserved``: the kernel keeps its place (all but the root tables)."""

    name: str
    address: int
    length: int

    @property
    def reserved(self) -> bool:
        """Whether acpi_boot_table_init() reserves the table: the pointers to the others are not needed any more."""
        return self.name not in ("RSDP", "RSDT", "XSDT")


@dataclass(frozen=True, slots=True)
class SratMemory:
    """A range of addresses that the firmware's affinity table (SRAT) gives to a node."""

    nid: int
    start: int
    end: int
    pxm: int = 0
    hotplug: bool = False


@dataclass(frozen=True, slots=True)
class Platform:
    """What firmware and boot loader hand over, besides the map and the command line."""

    #: (start, size) of the initial RAM disk in bytes, or None.
    initrd: tuple[int, int] | None = None
    acpi_tables: tuple[AcpiTable, ...] = ()
    #: CPUs that the machine can ever have, and how many of them may be plugged in later.
    nr_cpus: int = 1
    hotplug_cpus: int = 0
    #: CPUs that come up, if that is fewer than those present (maxcpus=).
    online_limit: int = 0
    #: The node of each CPU as the SRAT says (-1: it says nothing); empty: no SRAT.
    cpu_to_node: tuple[int, ...] = ()
    srat: tuple[SratMemory, ...] = ()
    #: The local APIC id of each CPU in the SRAT, if it is not the CPU's number.
    apic_ids: tuple[int, ...] = ()
    #: The SLIT: distances between nodes, or None. The kernel reserves a table for it only if there is one.
    distances: tuple[tuple[int, ...], ...] | None = None
    #: The BIOS data area: memory below 640 KiB in KiB, and the extended BIOS data area.
    bios_low_kib: int = 639
    ebda: int = 0x9FC00
    #: What else is at physical addresses, widest first: (start, end, name) of buses, ROMs, registers.
    resources: tuple[tuple[int, int, str], ...] = ()
    #: 1 GiB pages for the direct map (pdpe1gb in /proc/cpuinfo).
    gbpages: bool = False

    @property
    def online_cpus(self) -> int:
        """CPUs that run when the boot is over."""
        present = max(self.nr_cpus - self.hotplug_cpus, 1)
        return min(present, self.online_limit or present)

    def replace(self, **changes: object) -> "Platform":
        """This platform with other values."""
        return replace(self, **changes)  # type: ignore[arg-type]


#: The recorded 5.17.0: 8197 KiB of code, 1400 KiB of read-only data, 1144 KiB of data, 980 KiB of init, 1904 KiB of
#: bss.
IMAGE_5_17 = KernelImage()

#: A kernel small enough for a machine of 16 MiB on which every page is drawn: 1 MiB in all, at 2 MiB.
TINY_IMAGE = KernelImage(
    text=(0x20_0000, 0x26_0000), rodata=(0x28_0000, 0x29_0000), data=(0x2A_0000, 0x2B_0000),
    init=(0x2B_0000, 0x2D_0000), smp_locks=(0x2D_0000, 0x2D_0000), bss=(0x2D_0000, 0x30_0000),
    nr_cpus=1, percpu_static_size=16 * KIB - 2048, percpu_dynamic_size=8 * KIB, sizeof_pg_data_t=0x2000,
    transparent_hugepage=False, vmalloc_tables=4, driver_requests=())
