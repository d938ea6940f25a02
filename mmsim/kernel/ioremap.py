"""ioremap(): a device's registers at kernel addresses.

Registers have physical addresses, but no frames: neither the direct map nor struct page knows them. A driver asks for an area
of the vmalloc region that shows them, and says how the CPU may cache what it reads there: not at all, as a rule
(:mod:`mmsim.paging.memtype`). Two mappings of one page that differ in that would corrupt data, so the kernel keeps a list of
what every physical range is mapped as, and refuses a request that does not fit.

5.17: arch/x86/mm/ioremap.c, arch/x86/mm/pat/memtype.c. Left out: MTRRs, encryption, ``ioremap_prot()``.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.constants import PTE_PFN_MASK
from mmsim.errors import Errno
from mmsim.kernel.vmalloc import VM_IOREMAP, Vmalloc
from mmsim.paging.memtype import CacheMode, cachemode2protval, pgprot_4k_2_large
from mmsim.paging.pte import PAGE_KERNEL
from mmsim.physical.frames import PG
from mmsim.units import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, U64_MAX, align_up

__all__ = ["IoRemap", "Memtypes"]


class Memtypes:
    """As what each physical range is mapped. RAM that nobody asked about is write-back and not in the list.

    5.17: arch/x86/mm/pat/memtype_interval.c.
    """

    def __init__(self) -> None:
        #: (start, end, type); one entry a mapping, in order.
        self.entries: list[tuple[int, int, CacheMode]] = []

    def reserve(self, start: int, end: int, mode: CacheMode) -> CacheMode | None:
        """Note a mapping; return the type that it gets: that of a mapping that is there already. None if several mappings
        there differ: -EBUSY. 5.17: memtype_reserve(), memtype_check_conflict().
        """
        found = {known for low, high, known in self.entries if low < end and start < high}
        if len(found) > 1:
            return None
        given = found.pop() if found else mode
        self.entries.append((start, end, given))
        self.entries.sort(key=lambda entry: entry[:2])
        return given

    def free(self, start: int, end: int) -> bool:
        """Forget one mapping of exactly this range; False if there is none (5.17: memtype_free())."""
        for index, (low, high, _) in enumerate(self.entries):
            if (low, high) == (start, end):
                del self.entries[index]
                return True
        return False

    def text(self) -> str:
        """The text of /sys/kernel/debug/x86/pat_memtype_list (5.17: memtype_seq_show())."""
        return "PAT memtype list:\n" + "".join(
            f"PAT: [mem 0x{start:016x}-0x{end:016x}] {mode.words}\n" for start, end, mode in self.entries)


class IoRemap:
    """The mappings of devices in a machine's vmalloc region.

    >>> from mmsim.reference import ref256
    >>> machine = ref256()
    >>> hpet = machine.ioremap.ioremap(0xfed00000, 1024, caller="hpet_enable")
    >>> print(machine.proc("vmallocinfo").splitlines()[0])
    0xffffc90000000000-0xffffc90000002000    8192 hpet_enable phys=0x00000000fed00000 ioremap
    """

    def __init__(self, region: Vmalloc, *, gbpages: bool = False, maxphyaddr: int = 46):
        self.region = region
        self.gbpages = gbpages
        self.maxphyaddr = maxphyaddr
        self.memtypes = Memtypes()

    def _printk(self, text: str) -> None:
        self.region.slub.klog.printk(text)

    def _is_ram(self, start: int, end: int) -> bool:
        """Whether a page of the range is memory that the kernel may hand out (5.17: __ioremap_check_ram())."""
        frames = self.region.memory.frames
        return any(frames.zone_of[pfn] and not frames.flags[pfn] & PG["reserved"]
                   for pfn in range(start >> PAGE_SHIFT, min(end - 1 >> PAGE_SHIFT, frames.max_pfn - 1) + 1))

    def ioremap(self, phys: int, size: int, mode: CacheMode = CacheMode.UC_MINUS, caller: str = "") -> int | None:
        """Map ``size`` bytes at a physical address; return the address of the first, or None with a reason in the log.

        ``mode`` UC_MINUS is ioremap(), UC ioremap_uc(), WC ioremap_wc(), WT ioremap_wt(), WB ioremap_cache(). Refused are size 0, a
        range that wraps, an address that the CPU has no pins for, and the kernel's memory. 5.17: __ioremap_caller().
        """
        last = phys + size - 1
        if size <= 0 or not 0 <= phys <= last <= U64_MAX:
            return None
        if last >> self.maxphyaddr:
            self._printk(f"ioremap: invalid physical address {phys:x}")
            return None
        start, end = phys & -PAGE_SIZE, align_up(last + 1, PAGE_SIZE)
        if self._is_ram(start, end):
            self.region.warn(f"arch/x86/mm/ioremap.c ioremap on RAM at 0x{phys:016x} - 0x{last:016x}")
            return None
        given = self.memtypes.reserve(start, end, mode)
        if given is None:
            self._printk("ioremap memtype_reserve failed -16")
            return None
        if not _is_new_memtype_allowed(mode, given):
            self._printk(f"ioremap error for 0x{start:x}-0x{end:x}, requested 0x{_number(mode):x}, got 0x{_number(given):x}")
            self.memtypes.free(start, end)
            return None
        area = self.region.get_vm_area(end - start, VM_IOREMAP, caller=caller)
        if area is None:
            self.memtypes.free(start, end)
            return None
        area.phys_addr = start
        prot = PAGE_KERNEL | cachemode2protval(given)
        try:
            for offset, level in self._pieces(area.addr, start, end - start):
                pages = self.region.tables
                pages.map_page(area.addr + offset, start + offset >> PAGE_SHIFT, prot if level == 1 else pgprot_4k_2_large(prot), level)
        except Errno:
            self.memtypes.free(start, end)
            self.region.remove_vm_area(area)
            return None
        return area.addr + phys - start

    def _pieces(self, addr: int, phys: int, size: int) -> Iterator[tuple[int, int]]:
        """The pages, as large as both addresses and the rest allow: (offset, level) (5.17: vmap_range_noflush())."""
        offset = 0
        while offset < size:
            for level, large in ((3, GIB), (2, 2 * MIB)):
                aligned = not (addr + offset | phys + offset) & large - 1
                if aligned and size - offset >= large and (level == 2 or self.gbpages):
                    break
            else:
                level, large = 1, PAGE_SIZE
            yield offset, level
            offset += large

    def iounmap(self, addr: int) -> None:
        """Unmap what :meth:`ioremap` gave, by any address in its first page. An address of the direct map is passed over; for
        any other the log says "bad address". 5.17: iounmap().
        """
        layout = self.region.layout
        if addr <= layout.va(self.region.memory.frames.max_pfn << PAGE_SHIFT):
            return
        area = self.region.find_vm_area(addr & -PAGE_SIZE)
        if area is None or not area.flags & VM_IOREMAP:
            self._printk(f"iounmap: bad address {addr:016x}")
            return
        self.memtypes.free(area.phys_addr, area.phys_addr + area.usable)
        self.region.remove_vm_area(area)

    def phys(self, addr: int) -> int | None:
        """The physical address that an address of a device's area shows, or None."""
        leaf = self.region.tables.lookup(addr)
        if leaf is None:
            return None
        size = (PAGE_SIZE, 2 * MIB, GIB)[leaf.level - 1]
        return leaf.word & PTE_PFN_MASK & -size | addr & size - 1


def _number(mode: CacheMode) -> int:
    """The kernel's number of a type (5.17: enum page_cache_mode)."""
    return ("WB", "WC", "UC_MINUS", "UC", "WT", "WP").index(mode.name)


def _is_new_memtype_allowed(asked: CacheMode, given: CacheMode) -> bool:
    """Whether a driver can live with another type than the one it asked for: never with a cache that holds back or reorders
    what it must not (5.17: is_new_memtype_allowed()).
    """
    return not (given is CacheMode.WB and asked in (CacheMode.UC_MINUS, CacheMode.WC, CacheMode.WT)
                or given is CacheMode.WC and asked is CacheMode.WT)
