"""Looking at physical memory before it is mapped: eight windows of 64 pages at fixed virtual addresses.

The direct map does not exist yet, but the kernel must read ACPI tables, the initrd's header, setup data. Each window
is one slot; a mapping takes a slot whole, however small it is, and must be given back with the size it was made with.
"""

from __future__ import annotations

from typing import NamedTuple

from mmsim.errors import InvariantError
from mmsim.klog import KernelLog
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, align_up, u64

__all__ = ["FIX_BTMAPS_SLOTS", "NR_FIX_BTMAPS", "SLOT_BASE", "Mapping", "EarlyIoremap"]

FIX_BTMAPS_SLOTS = 8
NR_FIX_BTMAPS = 64
#: fix_to_virt(FIX_BTMAP_BEGIN): the first window; the others follow upwards.
SLOT_BASE = 0xFFFF_FFFF_FF20_0000


class Mapping(NamedTuple):
    """What a slot shows: the address given to the caller, the size asked for, the first page mapped and the pages."""

    virt: int
    size: int
    phys_page: int
    pages: int


class EarlyIoremap:
    """The early mapping windows.

    >>> early = EarlyIoremap()
    >>> hex(early.ioremap(0xf59c0, 36))
    '0xffffffffff2009c0'
    >>> early
    <EarlyIoremap: slots #.......>

    5.17: mm/early_ioremap.c. Left out: cache types, and that the windows move to the late fixmap after paging_init().
    """

    def __init__(self, klog: KernelLog | None = None):
        self.klog = klog
        self.slots: list[Mapping | None] = [None] * FIX_BTMAPS_SLOTS

    @staticmethod
    def slot_virt(slot: int) -> int:
        """The first virtual address of a window."""
        return SLOT_BASE + slot * (NR_FIX_BTMAPS << PAGE_SHIFT)

    def ioremap(self, phys: int, size: int) -> int:
        """Map a range; return the virtual address of ``phys``, or 0 (NULL) with a WARN.

        NULL for a ninth mapping, for size 0, for a range over 2^64, and for one that touches more than 64 pages.
        5.17: mm/early_ioremap.c, __early_ioremap().
        """
        slot = next((index for index, mapping in enumerate(self.slots) if mapping is None), -1)
        if slot < 0:
            return self._warn(f"__early_ioremap(0x{phys:016x}, {size:08x}) not found slot")
        last = u64(phys + size - 1)
        if not size or last < phys or phys > U64_MAX:
            return self._warn("WARNING: __early_ioremap: !size || last_addr < phys_addr")
        first_page = phys & ~(PAGE_SIZE - 1)
        pages = (align_up(last + 1, PAGE_SIZE) - first_page) >> PAGE_SHIFT
        if pages > NR_FIX_BTMAPS:
            return self._warn("WARNING: __early_ioremap: nrpages > NR_FIX_BTMAPS")
        virt = self.slot_virt(slot) + phys - first_page
        self.slots[slot] = Mapping(virt, size, first_page, pages)
        return virt

    def iounmap(self, virt: int, size: int) -> None:
        """Give a mapping back; a WARN, and nothing done, unless address and size are those of a mapping.

        5.17: mm/early_ioremap.c, early_iounmap().
        """
        for slot, mapping in enumerate(self.slots):
            if mapping and mapping.virt == virt:
                if mapping.size != size:
                    self._warn(f"early_iounmap(0x{virt:016x}, {size:08x}) [{slot}] size not consistent {mapping.size:08x}")
                else:
                    self.slots[slot] = None
                return
        self._warn(f"early_iounmap(0x{virt:016x}, {size:08x}) not found slot")

    def translate(self, virt: int) -> int | None:
        """The physical address that a virtual one shows, or None if nothing is mapped there."""
        for slot, mapping in enumerate(self.slots):
            offset = virt - self.slot_virt(slot)
            if mapping and 0 <= offset < mapping.pages << PAGE_SHIFT:
                return mapping.phys_page + offset
        return None

    def check_leak(self) -> int:
        """At the end of boot: WARN if windows are still in use, return how many.

        5.17: mm/early_ioremap.c, check_early_ioremap_leak().
        """
        count = sum(mapping is not None for mapping in self.slots)
        if count:
            self._warn(f"Debug warning: early ioremap leak of {count} areas detected.\n"
                       "please boot with early_ioremap_debug and report the dmesg.")
        return count

    def _warn(self, text: str) -> int:
        if self.klog is not None:
            self.klog.warn(text)
        return 0

    def check(self) -> None:
        """Raise InvariantError unless every mapping lies within its slot."""
        for slot, mapping in enumerate(self.slots):
            if mapping is None:
                continue
            base = self.slot_virt(slot)
            if not 0 < mapping.pages <= NR_FIX_BTMAPS or not base <= mapping.virt < base + PAGE_SIZE:
                raise InvariantError(f"early_ioremap: slot {slot} holds {mapping}, which is not within it")

    def __repr__(self) -> str:
        return f"<EarlyIoremap: slots {''.join('#' if mapping else '.' for mapping in self.slots)}>"
