"""memblock, the allocator of early boot: it takes the highest free range that fits, and remembers it as reserved.

An allocation walks the gaps between reserved regions from the top of memory down and takes the first that is large
enough, at its upper end; what it takes becomes a reserved region. Nothing says afterwards who has it: to free is to
name the range again.

    before   ----####----------##----     reserve 5 cells, aligned to 4
    after    ----####---#####--##----
"""

from __future__ import annotations

from collections.abc import Callable

from mmsim.boot.memblock_map import MemblockMap, Owners, check_address
from mmsim.boot.regions import RegionList
from mmsim.constants import (
    ARCH_LOW_ADDRESS_LIMIT,
    MEMBLOCK_ALLOC_ACCESSIBLE,
    MEMBLOCK_ALLOC_ANYWHERE,
    MEMBLOCK_ALLOC_NOLEAKTRACE,
    MEMBLOCK_MIRROR,
    MEMBLOCK_NONE,
    NUMA_NO_NODE,
    SIZEOF_MEMBLOCK_REGION,
    SMP_CACHE_BYTES,
)
from mmsim.errors import InvariantError, KernelBug, KernelPanic
from mmsim.klog import KernelLog
from mmsim.rules import Rules
from mmsim.trace import Trace
from mmsim.units import PAGE_SIZE, align_up, u64

__all__ = ["Memblock", "Owners"]


class Memblock(MemblockMap):
    """The boot memory allocator.

    Addresses and sizes are in bytes and physical; where the kernel's ``memblock_alloc*()`` return a pointer into the
    direct map, the physical address behind it is returned. A failed allocation gives 0. Changes return 0 or
    ``-ENOMEM``. ``caller`` names the caller in the log (``memblock=debug``) and in the provenance map.

    >>> memblock = Memblock()
    >>> memblock.add(0, 0x10000), memblock.reserve(0xc000, 0x4000)
    (0, 0)
    >>> hex(memblock.phys_alloc_range(0x3000, 0x1000))
    '0x9000'
    >>> memblock
    <Memblock: memory 64 KiB in 1 region, reserved 28 KiB in 1 region>
    >>> memblock.picture(0, 0x10000, cells=16)
    '---------#######'

    5.17: mm/memblock.c, struct memblock. Left out: the ``physmem`` list (s390 only), kmemleak, and the zeroing of what
    ``memblock_alloc()`` returns (frames have no contents before hand-over).
    """

    def __init__(self, rules: Rules | None = None, klog: KernelLog | None = None, trace: Trace | None = None,
                 owners: Owners | None = None):
        super().__init__(rules, klog, trace, owners)
        for regions in (self.memory, self.reserved):
            regions.grow = self._grower(regions)
        #: False: allocate from the top of memory down. True with ``movable_node``, to stay near the kernel image.
        self.bottom_up = False
        #: No allocation ends above this address, unless the caller names a higher ``max_addr`` itself.
        self.current_limit = MEMBLOCK_ALLOC_ANYWHERE
        self.can_resize = False
        #: Set when SLUB is up: ``kmalloc(size, nid)`` gives a physical address. From then on allocating here is a WARN.
        self.kmalloc: Callable[[int, int], int] | None = None
        #: Where each region array lies: None while it is the static one in the kernel image.
        self.array_at: dict[str, int | None] = {"memory": None, "reserved": None}

    def set_current_limit(self, limit: int) -> None:
        """Allocate below ``limit`` from now on: above it nothing is mapped.

        5.17: mm/memblock.c, memblock_set_current_limit().
        """
        self.current_limit = check_address(limit, "limit")

    # -- finding and allocating ----------------------------------------------------------------------------

    def find_in_range_node(self, size: int, align: int, start: int, end: int, nid: int, flags: int) -> int:
        """The address of a free aligned range, or 0; nothing is taken yet. Page 0 is never given.

        Top-down unless :attr:`bottom_up`. O(log n) to get to ``end`` (or ``start``), then O(gaps passed over).
        5.17: mm/memblock.c, memblock_find_in_range_node(). Until 5.10 a bottom-up search began above the kernel image.
        """
        if end in (MEMBLOCK_ALLOC_ACCESSIBLE, MEMBLOCK_ALLOC_NOLEAKTRACE):
            end = self.current_limit
        start = max(start, PAGE_SIZE)
        end = max(start, end)
        if self.bottom_up:
            return self._find_range_bottom_up(start, end, size, align, nid, flags)
        return self._find_range_top_down(start, end, size, align, nid, flags)

    def _find_range_bottom_up(self, start: int, end: int, size: int, align: int, nid: int, flags: int) -> int:
        """The lowest place that fits (5.17: mm/memblock.c, __memblock_find_range_bottom_up())."""
        for low, high, _ in self.for_each_free_mem_range(nid, flags, start, size):
            low, high = min(max(low, start), end), min(max(high, start), end)
            candidate = u64(((low - 1) | (align - 1)) + 1)
            if candidate < high and high - candidate >= size:
                return candidate
            if low >= end:
                break
        return 0

    def _find_range_top_down(self, start: int, end: int, size: int, align: int, nid: int, flags: int) -> int:
        """The highest place that fits (5.17: mm/memblock.c, __memblock_find_range_top_down())."""
        # An empty request "fits" at the very end of any range, so only a real one may skip the ranges above.
        for low, high, _ in self.for_each_free_mem_range_reverse(nid, flags, end if size else None, size):
            low, high = min(max(low, start), end), min(max(high, start), end)
            if high < size:
                continue
            candidate = (high - size) & ~(align - 1)
            if candidate >= low:
                return candidate
            if high <= start and size:
                break
        return 0

    def alloc_range_nid(self, size: int, align: int, start: int = 0, end: int = MEMBLOCK_ALLOC_ACCESSIBLE,
                        nid: int = NUMA_NO_NODE, exact_nid: bool = False, caller: str = "") -> int:
        """Find and reserve. Fall back to any node unless ``exact_nid``, then to unmirrored memory. Return the address,
        or 0.

        5.17: mm/memblock.c, memblock_alloc_range_nid().
        """
        for value, what in ((size, "size"), (align, "alignment"), (start, "lower limit"), (end, "upper limit")):
            check_address(value, what)
        flags = MEMBLOCK_MIRROR if self.has_mirror else MEMBLOCK_NONE
        align = align or SMP_CACHE_BYTES
        nodes = (nid,) if nid == NUMA_NO_NODE or exact_nid else (nid, NUMA_NO_NODE)
        while True:
            for node in nodes:
                found = self.find_in_range_node(size, align, start, end, node, flags)
                if found and not self.reserve(found, size, "memblock_alloc_range_nid", who=caller):
                    return found
            if not flags & MEMBLOCK_MIRROR:
                return 0
            flags &= ~MEMBLOCK_MIRROR
            self._printk(f"Could not allocate 0x{size:016x} bytes of mirrored memory")

    def phys_alloc_range(self, size: int, align: int, start: int = 0, end: int = MEMBLOCK_ALLOC_ACCESSIBLE,
                         caller: str = "") -> int:
        """Allocate within ``start <= address < end``; not zeroed. 5.17: mm/memblock.c, memblock_phys_alloc_range()."""
        self._log(f"memblock_phys_alloc_range: {size} bytes align={align:#x} from=0x{start:016x} max_addr=0x{end:016x} {caller}")
        return self.alloc_range_nid(size, align, start, end, caller=caller)

    def phys_alloc(self, size: int, align: int, caller: str = "") -> int:
        """Allocate anywhere below the limit; not zeroed. 5.17: include/linux/memblock.h, memblock_phys_alloc()."""
        return self.phys_alloc_range(size, align, caller=caller)

    def phys_alloc_try_nid(self, size: int, align: int, nid: int, caller: str = "") -> int:
        """Allocate on a node, or else anywhere; silent in the debug log.

        5.17: mm/memblock.c, memblock_phys_alloc_try_nid().
        """
        return self.alloc_range_nid(size, align, nid=nid, caller=caller)

    def _alloc_internal(self, name: str, size: int, align: int, min_addr: int, max_addr: int, nid: int,
                        exact_nid: bool, caller: str) -> int:
        """Allocate within the current limit; drop ``min_addr`` if there is no other way.

        5.17: mm/memblock.c, memblock_alloc_internal().
        """
        self._log(f"{name}: {size} bytes align={align:#x} nid={nid} from=0x{min_addr:016x} max_addr=0x{max_addr:016x} {caller}")
        if self.kmalloc is not None:
            self._warn(f"WARNING: memblock_alloc_internal: slab_is_available(), called by {caller or 'unknown'}")
            return self.kmalloc(size, nid)
        max_addr = min(max_addr, self.current_limit)
        found = self.alloc_range_nid(size, align, min_addr, max_addr, nid, exact_nid, caller)
        if not found and min_addr:
            found = self.alloc_range_nid(size, align, 0, max_addr, nid, exact_nid, caller)
        return found

    def alloc_try_nid(self, size: int, align: int, min_addr: int = 0, max_addr: int = MEMBLOCK_ALLOC_ACCESSIBLE,
                      nid: int = NUMA_NO_NODE, caller: str = "") -> int:
        """Allocate zeroed memory on a node, or else anywhere. 5.17: mm/memblock.c, memblock_alloc_try_nid()."""
        return self._alloc_internal("memblock_alloc_try_nid", size, align, min_addr, max_addr, nid, False, caller)

    def alloc_try_nid_raw(self, size: int, align: int, min_addr: int = 0, max_addr: int = MEMBLOCK_ALLOC_ACCESSIBLE,
                          nid: int = NUMA_NO_NODE, caller: str = "") -> int:
        """The same, not zeroed. 5.17: mm/memblock.c, memblock_alloc_try_nid_raw()."""
        return self._alloc_internal("memblock_alloc_try_nid_raw", size, align, min_addr, max_addr, nid, False, caller)

    def alloc_exact_nid_raw(self, size: int, align: int, min_addr: int = 0, max_addr: int = MEMBLOCK_ALLOC_ACCESSIBLE,
                            nid: int = NUMA_NO_NODE, caller: str = "") -> int:
        """On this node or not at all; not zeroed. 5.17: mm/memblock.c, memblock_alloc_exact_nid_raw()."""
        return self._alloc_internal("memblock_alloc_exact_nid_raw", size, align, min_addr, max_addr, nid, True, caller)

    def alloc(self, size: int, align: int = SMP_CACHE_BYTES, caller: str = "") -> int:
        """Allocate zeroed memory anywhere. 5.17: include/linux/memblock.h, memblock_alloc()."""
        return self.alloc_try_nid(size, align, caller=caller)

    def alloc_raw(self, size: int, align: int = SMP_CACHE_BYTES, caller: str = "") -> int:
        """Allocate anywhere; not zeroed. 5.17: include/linux/memblock.h, memblock_alloc_raw()."""
        return self.alloc_try_nid_raw(size, align, caller=caller)

    def alloc_from(self, size: int, align: int, min_addr: int, caller: str = "") -> int:
        """Allocate, if possible at or above ``min_addr``. 5.17: include/linux/memblock.h, memblock_alloc_from()."""
        return self.alloc_try_nid(size, align, min_addr, caller=caller)

    def alloc_low(self, size: int, align: int, caller: str = "") -> int:
        """Allocate below 4 GiB. 5.17: include/linux/memblock.h, memblock_alloc_low()."""
        return self.alloc_try_nid(size, align, 0, ARCH_LOW_ADDRESS_LIMIT, caller=caller)

    def alloc_node(self, size: int, align: int, nid: int, caller: str = "") -> int:
        """Allocate zeroed memory, if possible on a node. 5.17: include/linux/memblock.h, memblock_alloc_node()."""
        return self.alloc_try_nid(size, align, nid=nid, caller=caller)

    # -- growing the arrays --------------------------------------------------------------------------------

    def allow_resize(self) -> None:
        """The arrays may grow from now on: all that must not be overwritten is reserved.

        5.17: mm/memblock.c, memblock_allow_resize().
        """
        self.can_resize = True

    def _grower(self, regions: RegionList) -> Callable[[int, int], bool]:
        return lambda base, size: self._double_array(regions, base, size)

    def _double_array(self, regions: RegionList, new_area_start: int, new_area_size: int) -> bool:
        """Move a full region array to one of twice the size, which memblock itself has to find and reserve.

        If it is ``reserved`` that is full, the new array must not lie in the range that is just being reserved: look
        above it first, then below. Return False if growing is not allowed yet or no space is free. 5.17: mm/memblock.c,
        memblock_double_array().
        """
        if not self.can_resize:
            if self.rules.memblock_full_array_panics:
                raise KernelPanic(f"memblock: cannot resize {regions.name} array")
            return False
        old_size = regions.max * SIZEOF_MEMBLOCK_REGION
        old_alloc_size, new_alloc_size = align_up(old_size, PAGE_SIZE), align_up(2 * old_size, PAGE_SIZE)
        if self.kmalloc is not None:
            addr = self.kmalloc(2 * old_size, NUMA_NO_NODE)
        else:
            if regions is not self.reserved:
                new_area_start = new_area_size = 0
            addr = self._find_in_range(new_area_start + new_area_size, self.current_limit, new_alloc_size, PAGE_SIZE)
            if not addr and new_area_size:
                addr = self._find_in_range(0, min(new_area_start, self.current_limit), new_alloc_size, PAGE_SIZE)
        if not addr:
            self._printk(f"memblock: Failed to double {regions.name} array from {regions.max} to {regions.max * 2} entries !")
            return False
        self._log(f"memblock: {regions.name} is doubled to {regions.max * 2} at "
                  f"[0x{addr:016x}-0x{addr + 2 * old_size - 1:016x}]")
        old_array, self.array_at[regions.name] = self.array_at[regions.name], addr
        regions.max *= 2
        if self.kmalloc is None:
            if old_array is not None:
                self.free(old_array, old_alloc_size)
            if self.reserve(addr, new_alloc_size, "memblock_double_array", who=f"memblock.{regions.name}"):
                raise KernelBug("memblock_double_array: no room to reserve the new array")
        return True

    def discard(self) -> list[tuple[int, int]]:
        """Give up the arrays that had to grow: (address, bytes) of each that memblock itself found room for.

        The lists go on to be readable here. 5.17: mm/memblock.c, memblock_discard().
        """
        given = []
        for regions in (self.reserved, self.memory):
            array, self.array_at[regions.name] = self.array_at[regions.name], None
            if array is not None and self.is_reserved(array):
                size = align_up(regions.max * SIZEOF_MEMBLOCK_REGION, PAGE_SIZE)
                self._log_range("memblock_free_late", array, size, "memblock_discard")
                given.append((array, size))
        return given

    def _find_in_range(self, start: int, end: int, size: int, align: int) -> int:
        """A free range on any node, mirrored if possible (5.17: mm/memblock.c, memblock_find_in_range())."""
        flags = MEMBLOCK_MIRROR if self.has_mirror else MEMBLOCK_NONE
        found = self.find_in_range_node(size, align, start, end, NUMA_NO_NODE, flags)
        if not found and flags:
            self._printk(f"Could not allocate 0x{size:016x} bytes of mirrored memory")
            found = self.find_in_range_node(size, align, start, end, NUMA_NO_NODE, MEMBLOCK_NONE)
        return found

    def check(self) -> None:
        """Raise InvariantError if either list is broken, or an array that grew is not reserved any more."""
        super().check()
        for name, array in self.array_at.items():
            if array is not None and self.kmalloc is None and not self.is_reserved(array):
                raise InvariantError(f"the array of memblock.{name} at {array:#x} is not reserved")
