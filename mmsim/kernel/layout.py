"""Where everything is in the kernel's half of the address space (4-level paging), with and without KASLR.

The kernel sees all of RAM at one place, the *direct map*: physical address plus a constant. It needs other regions for what
a direct map cannot give: contiguous addresses for scattered frames (vmalloc), an array of struct page over all PFNs
(vmemmap), its own image where the compiler wants it (the top 2 GiB), addresses fixed at compile time (fixmap).

    ffff888000000000  direct map     64 TiB, or RAM rounded up where KASLR moves the regions
    ffffc90000000000  vmalloc        32 TiB
    ffffea0000000000  vmemmap        64 bytes a frame
    ffffffff80000000  kernel image

5.17: Documentation/x86/x86_64/mm.rst, arch/x86/include/asm/pgtable_64_types.h, arch/x86/mm/kaslr.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mmsim.constants import MAX_PHYSMEM_BITS, SIZEOF_STRUCT_PAGE
from mmsim.errors import InputError, InvariantError
from mmsim.paging.entry_area import CPU_ENTRY_AREA_BASE
from mmsim.paging.fixmap import FIXADDR_TOP, fix_to_virt
from mmsim.units import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, TIB, U64_MAX, align_up

__all__ = ["CPU_ENTRY_AREA_BASE", "FIXADDR_TOP", "Layout", "PAGE_OFFSET_BASE", "Region", "START_KERNEL_MAP", "VMALLOC_BASE",
           "VMALLOC_SIZE", "VMEMMAP_BASE", "kernel_randomize_memory"]

GUARD_HOLE_BASE = 0xFFFF_8000_0000_0000
LDT_BASE = 0xFFFF_8800_0000_0000
PAGE_OFFSET_BASE = 0xFFFF_8880_0000_0000
VMALLOC_BASE = 0xFFFF_C900_0000_0000
VMALLOC_SIZE = 32 * TIB
VMEMMAP_BASE = 0xFFFF_EA00_0000_0000
ESPFIX_BASE = 0xFFFF_FF00_0000_0000
EFI_VA_END, EFI_VA_START = 0xFFFF_FFEF_0000_0000, 0xFFFF_FFFF_0000_0000
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
MODULES_END = 0xFFFF_FFFF_FF00_0000
VSYSCALL_ADDR = 0xFFFF_FFFF_FF60_0000
FIXADDR_SIZE = 2 * MIB + 512 * KIB
#: Where a bootloader puts the image, and the alignment of every other place that KASLR may choose.
LOAD_PHYSICAL_ADDR, PHYSICAL_ALIGN = 16 * MIB, 2 * MIB
USER_END = 0x0000_8000_0000_0000


@dataclass(frozen=True, slots=True)
class Region:
    """A named range ``start <= address < end``; ``what`` says what a fault there means, for people."""

    name: str
    start: int
    end: int
    what: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    def __contains__(self, addr: int) -> bool:
        return self.start <= addr < self.end

    def __str__(self) -> str:
        return f"{self.start:016x}-{self.end - 1:016x} {self.name}"


def kernel_randomize_memory(seed: int, max_pfn: int, padding_tb: int = 10) -> tuple[int, int, int, int]:
    """Where KASLR puts direct map, vmalloc and vmemmap; and how large it makes the direct map, in bytes.

    The three keep their order. The direct map shrinks to RAM rounded up to TiB, plus ``padding_tb`` for memory that may be
    plugged in later (CONFIG_RANDOMIZE_MEMORY_PHYSICAL_PADDING: 10, or 0 without memory hotplug); what that frees is given
    out as gaps before the regions, in multiples of 1 GiB, each at most its share of what is left.
    ``seed`` stands for the random number of the CPU. 5.17: arch/x86/mm/kaslr.c, kernel_randomize_memory().

    >>> page_offset, vmalloc, vmemmap, size = kernel_randomize_memory(1, 65536)
    >>> page_offset % (1 << 30), page_offset < vmalloc < vmemmap, size >> 40
    (0, True, 11)
    """
    random = Random(seed)
    direct_tb = min(1 << MAX_PHYSMEM_BITS - 40, -(-(max_pfn << PAGE_SHIFT) // TIB) + padding_tb)
    vmemmap_size = (direct_tb << 40 - PAGE_SHIFT) * SIZEOF_STRUCT_PAGE
    sizes = (direct_tb * TIB, VMALLOC_SIZE, align_up(vmemmap_size, TIB))
    vaddr = PAGE_OFFSET_BASE
    remain = CPU_ENTRY_AREA_BASE - vaddr - sum(sizes)
    bases = []
    for index, size in enumerate(sizes):
        entropy = random.getrandbits(64) % (remain // (3 - index) + 1) & -GIB
        vaddr += entropy
        bases.append(vaddr)
        vaddr = align_up(vaddr + size + 1, GIB)
        remain -= entropy
    return bases[0], bases[1], bases[2], sizes[0]


class Layout:
    """One kernel's address space. ``seed`` switches KASLR on; without it every region is where the manual says.

    ``randomize_base`` tells whether KASLR is compiled in (every distribution has it): then 1 GiB is kept for the image even
    when booted with ``nokaslr``, and modules begin at 0xffffffffc0000000.

    >>> layout = Layout(max_pfn=65536)
    >>> hex(layout.va(0x1000)), layout.pa(layout.va(0x1000)), layout.classify(0xffffea0004000000).name
    ('0xffff888000001000', 4096, 'vmemmap')
    """

    __slots__ = ("max_pfn", "page_offset", "vmalloc_start", "vmalloc_end", "vmemmap_start", "direct_map_size", "kernel_offset",
                 "phys_base", "image_window", "module_offset", "seed")

    def __init__(self, max_pfn: int, *, seed: int | None = None, randomize_base: bool = True, image_size: int = 32 * MIB,
                 padding_tb: int = 10):
        if max_pfn < 1:
            raise InputError(f"an address space for {max_pfn} frames maps nothing")
        self.max_pfn = max_pfn
        self.seed = seed
        self.page_offset, self.vmalloc_start, self.vmemmap_start = PAGE_OFFSET_BASE, VMALLOC_BASE, VMEMMAP_BASE
        self.direct_map_size = 1 << MAX_PHYSMEM_BITS
        self.image_window = GIB if randomize_base else 512 * MIB
        #: How far the image's addresses were moved from those it was linked for; what to add to such an address, less the start
        #: of the region, for the physical one. The boot loader's place for the image is kept.
        self.kernel_offset = self.phys_base = self.module_offset = 0
        if seed is not None:
            if not randomize_base:
                raise InputError("a kernel without CONFIG_RANDOMIZE_BASE cannot move itself")
            self.page_offset, self.vmalloc_start, self.vmemmap_start, self.direct_map_size = kernel_randomize_memory(
                seed, max_pfn, padding_tb)
            random = Random(f"image {seed}")
            slots = 1 + (self.image_window - LOAD_PHYSICAL_ADDR - image_size) // PHYSICAL_ALIGN
            self.kernel_offset = random.getrandbits(64) % slots * PHYSICAL_ALIGN
            self.phys_base = -self.kernel_offset
            # Modules move by whole pages, so that their addresses do not give the image away.
            self.module_offset = (random.getrandbits(32) % 1024 + 1) * PAGE_SIZE
        self.vmalloc_end = self.vmalloc_start + VMALLOC_SIZE - 1

    # -- addresses -------------------------------------------------------------------------------------------

    def va(self, phys: int) -> int:
        """The address in the direct map of a physical address: one addition (5.17: __va())."""
        return self.page_offset + phys

    def pa(self, addr: int) -> int:
        """The physical address behind an address of the direct map or the kernel image.

        No check, as in the kernel: for any other address the result means nothing. The image has its own offset, so one
        frame has two addresses. 5.17: arch/x86/include/asm/page_64.h, __phys_addr_nodebug().
        """
        if addr >= START_KERNEL_MAP:
            return addr - START_KERNEL_MAP + self.phys_base
        return addr - self.page_offset & U64_MAX

    def page_address(self, pfn: int) -> int:
        """The direct-map address of a frame (5.17: page_address(); on x86-64 kmap() gives nothing else)."""
        return self.page_offset + (pfn << PAGE_SHIFT)

    def virt_to_pfn(self, addr: int) -> int:
        """The frame of a direct-map address (5.17: virt_to_page(), as a PFN). No check, as in the kernel."""
        return self.pa(addr) >> PAGE_SHIFT

    def page_struct(self, pfn: int) -> int:
        """The address of a frame's struct page: an index into vmemmap (5.17: pfn_to_page())."""
        return self.vmemmap_start + pfn * SIZEOF_STRUCT_PAGE & U64_MAX

    def struct_to_pfn(self, addr: int) -> int:
        """The frame that a struct page belongs to (5.17: page_to_pfn()).

        >>> hex(Layout(1 << 24).struct_to_pfn(0xffffea0004000000))
        '0x100000'
        """
        return (addr - self.vmemmap_start) // SIZEOF_STRUCT_PAGE

    def is_vmalloc_addr(self, addr: int) -> bool:
        """Whether an address lies in the vmalloc region (5.17: is_vmalloc_addr())."""
        return self.vmalloc_start <= addr <= self.vmalloc_end

    # -- the map ---------------------------------------------------------------------------------------------

    def regions(self) -> list[Region]:
        """All regions from 0 to the top, the holes between them included."""
        direct_end = self.page_offset + self.direct_map_size
        vmemmap_end = self.vmemmap_start + align_up((self.direct_map_size >> PAGE_SHIFT) * SIZEOF_STRUCT_PAGE, TIB)
        modules = START_KERNEL_MAP + self.image_window
        fixmap = FIXADDR_TOP - FIXADDR_SIZE
        named = [
            Region("user space", 0, USER_END, "a process; the kernel goes there through copy_from_user() only"),
            Region("non-canonical hole", USER_END, GUARD_HOLE_BASE, "general protection, not a page fault"),
            Region("guard hole", GUARD_HOLE_BASE, LDT_BASE, "reserved for a hypervisor"),
            Region("LDT remap", LDT_BASE, PAGE_OFFSET_BASE, "with page-table isolation"),
            Region("direct map", self.page_offset, direct_end, "all of RAM; a fault: the frame is not there, or read-only"),
            Region("vmalloc", self.vmalloc_start, self.vmalloc_end + 1, "vmalloc, ioremap, stacks; a fault: a guard page"),
            Region("vmemmap", self.vmemmap_start, vmemmap_end, "struct page; a fault: a PFN that no memory has"),
            Region("cpu_entry_area", CPU_ENTRY_AREA_BASE, CPU_ENTRY_AREA_BASE + TIB // 2, "entry stacks, GDT, TSS"),
            Region("espfix", ESPFIX_BASE, ESPFIX_BASE + TIB // 2, "returns to 16-bit stacks"),
            Region("EFI", EFI_VA_END, EFI_VA_START, "runtime services"),
            Region("kernel image", START_KERNEL_MAP, modules, "text, data, bss; a fault: a write to text"),
            Region("modules", modules, MODULES_END, "module code; BPF programs too"),
            Region("fixmap", fixmap, FIXADDR_TOP + PAGE_SIZE, "addresses fixed at compile time, filled from the top"),
        ]
        return self._with_holes(named)

    @staticmethod
    def _with_holes(named: list[Region]) -> list[Region]:
        found: list[Region] = []
        end = 0
        for region in named:
            if region.start > end:
                found.append(Region("unused", end, region.start, "nothing is ever mapped here"))
            found.append(region)
            end = region.end
        return [*found, Region("unused", end, 1 << 64, "error codes (ERR_PTR) look like these addresses")]

    def classify(self, addr: int) -> Region:
        """The region that an address lies in. Raise InputError for a number that is no 64-bit address."""
        if not 0 <= addr <= U64_MAX:
            raise InputError(f"{addr:#x} is no address of 64 bits")
        return next(region for region in self.regions() if addr in region)

    def fix_to_virt(self, index: int) -> int:
        """The address of a fixmap slot: slots are counted downwards (5.17: __fix_to_virt())."""
        if not 0 <= index < FIXADDR_SIZE >> PAGE_SHIFT:
            raise InputError(f"the fixmap has no slot {index}")
        return fix_to_virt(index)

    def check(self) -> None:
        """Verify that the regions tile the address space in order. Raise InvariantError."""
        end = 0
        for region in self.regions():
            if region.start != end or region.end <= region.start:
                raise InvariantError(f"region {region} does not begin where the one before ends, at {end:#x}")
            end = region.end
        if end != 1 << 64:
            raise InvariantError(f"the regions end at {end:#x}")
        if self.direct_map_size < self.max_pfn << PAGE_SHIFT:
            raise InvariantError(f"the direct map of {self.direct_map_size:#x} bytes misses memory")

    def __repr__(self) -> str:
        return (f"<Layout: direct map {self.page_offset:#x}, vmalloc {self.vmalloc_start:#x}, vmemmap {self.vmemmap_start:#x}, "
                f"{'nokaslr' if self.seed is None else f'seed {self.seed}'}>")
