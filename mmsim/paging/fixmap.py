"""The fixmap: virtual addresses that are fixed when the kernel is compiled; what stands there is decided at run time.

Code that needs a device before there is an allocator, or at an address that the compiler can put into an instruction, takes
a slot. Slots are numbered and grow down from the top, so slot 0 has the highest address::

    0xffffffffff7ff000   0 FIX_DBGP_BASE
    0xffffffffff7fe000   1 FIX_EARLYCON_MEM_BASE
    0xffffffffff7fd000   2 FIX_APIC_BASE            the local interrupt controller's registers
    0xffffffffff7fc000   3 FIX_IO_APIC_BASE_0 …     one for each of up to 128 I/O APICs
          …                FIX_BTMAP_END … BEGIN    early_ioremap(): eight windows of 64 pages

With the emulated vsyscall page (0xffffffffff600000, slot 511, which distributions keep) the others come behind it.

5.17: arch/x86/include/asm/fixmap.h, enum fixed_addresses; include/asm-generic/fixmap.h. Left out: slots of options that the
recorded kernels do not have.
"""

from __future__ import annotations

from mmsim.errors import InputError
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["FIXADDR_TOP", "FIX_BTMAPS_SLOTS", "Fixmap", "NR_FIX_BTMAPS", "fix_to_virt", "virt_to_fix"]

FIXADDR_TOP = 0xFFFF_FFFF_FF7F_F000
VSYSCALL_ADDR = 0xFFFF_FFFF_FF60_0000
NR_FIX_BTMAPS, FIX_BTMAPS_SLOTS = 64, 8
TOTAL_FIX_BTMAPS = NR_FIX_BTMAPS * FIX_BTMAPS_SLOTS
MAX_IO_APICS = 128
PTRS_PER_PTE = 512


def fix_to_virt(index: int) -> int:
    """The address of a slot (5.17: __fix_to_virt()).

    >>> hex(fix_to_virt(3))
    '0xffffffffff7fc000'
    """
    return FIXADDR_TOP - (index << PAGE_SHIFT)


def virt_to_fix(addr: int) -> int:
    """The slot of an address (5.17: __virt_to_fix()).

    >>> virt_to_fix(0xffffffffff600000)
    511
    """
    return FIXADDR_TOP - (addr & -PAGE_SIZE) >> PAGE_SHIFT


class Fixmap:
    """The numbers of the slots of one kernel configuration. ``vsyscall`` is CONFIG_X86_VSYSCALL_EMULATION.

    >>> hex(Fixmap().virt("FIX_APIC_BASE")), hex(Fixmap(vsyscall=True).virt("FIX_APIC_BASE"))
    ('0xffffffffff7fd000', '0xffffffffff5fd000')
    >>> hex(Fixmap(vsyscall=True).virt("FIX_BTMAP_BEGIN"))     # the first window of early_ioremap()
    '0xffffffffff200000'
    """

    __slots__ = ("index", "end_of_permanent")

    def __init__(self, *, vsyscall: bool = False):
        #: The number of each slot by name; of an array of slots that of the first.
        self.index: dict[str, int] = {}
        at = 0
        if vsyscall:
            self.index["VSYSCALL_PAGE"] = at = virt_to_fix(VSYSCALL_ADDR)
            at += 1
        for name, slots in (("FIX_DBGP_BASE", 1), ("FIX_EARLYCON_MEM_BASE", 1), ("FIX_APIC_BASE", 1),
                            ("FIX_IO_APIC_BASE_0", MAX_IO_APICS)):
            self.index[name] = at
            at += slots
        self.end_of_permanent = at
        # The windows of early_ioremap() must not lie in two page tables.
        if (at ^ at + TOTAL_FIX_BTMAPS - 1) & -PTRS_PER_PTE:
            at += TOTAL_FIX_BTMAPS - (at & TOTAL_FIX_BTMAPS - 1)
        self.index["FIX_BTMAP_END"] = at
        self.index["FIX_BTMAP_BEGIN"] = at + TOTAL_FIX_BTMAPS - 1

    def virt(self, name: str, number: int = 0) -> int:
        """The address of a slot by name, or of the one ``number`` behind it. Raise InputError for an unknown name."""
        if name not in self.index:
            raise InputError(f"the fixmap has no {name}; there are {', '.join(self.index)}")
        return fix_to_virt(self.index[name] + number)

    def name(self, index: int) -> str:
        """The name of a slot by number, with its place in an array; "" for a slot that nobody has."""
        begin, end = self.index["FIX_BTMAP_BEGIN"], self.index["FIX_BTMAP_END"]
        if end <= index <= begin:
            return f"FIX_BTMAP window {(begin - index) // NR_FIX_BTMAPS}, page {(begin - index) % NR_FIX_BTMAPS}"
        found = next((name for name, first in self.index.items() if first == index), "")
        first = self.index["FIX_IO_APIC_BASE_0"]
        return found or (f"FIX_IO_APIC_BASE_{index - first}" if first < index < first + MAX_IO_APICS else "")
