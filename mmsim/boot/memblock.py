"""memblock, the allocator of early boot: two lists of ranges, and free is what is in the first but not in the second.

``memory`` says where RAM is, ``reserved`` what of the address space is taken. Nothing else is kept: there is no list of
free ranges, no size header, no bookkeeping in the memory itself, so memblock works before a single page is mapped.

    memory      ----  --------------------   two regions
    reserved      ##      ####    ##         may lie outside memory, too
    picture()   --#   ----####----##------   what is left for an allocation

An allocation walks the gaps between reserved regions from the top of memory down and takes the first that is large
enough; what it takes becomes a reserved region.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Protocol

from mmsim.boot.regions import PHYS_ADDR_MAX, Region, RegionList, cap_size
from mmsim.constants import (
    ARCH_LOW_ADDRESS_LIMIT,
    MEMBLOCK_ALLOC_ACCESSIBLE,
    MEMBLOCK_ALLOC_ANYWHERE,
    MEMBLOCK_ALLOC_NOLEAKTRACE,
    MEMBLOCK_DRIVER_MANAGED,
    MEMBLOCK_HOTPLUG,
    MEMBLOCK_MIRROR,
    MEMBLOCK_NOMAP,
    MEMBLOCK_NONE,
    NUMA_NO_NODE,
    SIZEOF_MEMBLOCK_REGION,
    SMP_CACHE_BYTES,
)
from mmsim.errors import InputError, InvariantError, KernelBug, KernelPanic
from mmsim.klog import KernelLog
from mmsim.rules import Rules
from mmsim.trace import Trace
from mmsim.units import PAGE_SIZE, U64_MAX, align_up, format_bytes, pfn_down, pfn_up, u64

__all__ = ["Memblock", "Owners"]


class Owners(Protocol):
    """Who wants to know what was taken, and by whom: :class:`mmsim.boot.provenance.Provenance`."""

    def take(self, base: int, size: int, who: str) -> None:
        """``who`` reserved the range."""

    def release(self, base: int, size: int) -> None:
        """The range is free again."""


def _address(value: int, what: str) -> int:
    """Refuse what does not fit in a phys_addr_t: C could not even be handed it."""
    if not 0 <= value <= U64_MAX:
        raise InputError(f"memblock: {what} {value} is not a 64-bit address")
    return value


class Memblock:
    """The boot memory allocator.

    Addresses and sizes are in bytes and physical; where the kernel's ``memblock_alloc*()`` return a pointer into the direct map,
    the physical address behind it is returned. A failed allocation gives 0. Changes return 0 or ``-ENOMEM``.
    ``caller`` names the caller in the log (``memblock=debug``) and in the provenance map.

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
        self.rules = rules or Rules()
        self.klog = klog
        self.trace = trace or Trace()
        self.owners = owners
        self.memory = RegionList("memory", self.rules)
        self.reserved = RegionList("reserved", self.rules)
        for regions in (self.memory, self.reserved):
            regions.grow = self._grower(regions)
            regions.warn = self._warn
        #: False: allocate from the top of memory down. True with ``movable_node``, to stay near the kernel image.
        self.bottom_up = False
        #: No allocation ends above this address, unless the caller names a higher ``max_addr`` itself.
        self.current_limit = MEMBLOCK_ALLOC_ANYWHERE
        #: ``movable_node`` on the command line: hotpluggable memory is not allocated from.
        self.movable_node = False
        #: ``kernelcore=mirror`` on the command line: mirrored memory is preferred.
        self.mirrored_kernelcore = False
        self.has_mirror = False
        #: ``memblock=debug`` on the command line: log every call.
        self.debug = False
        self.can_resize = False
        #: Set when SLUB is up: ``kmalloc(size, nid)`` gives a physical address. From then on allocating here is a WARN.
        self.kmalloc: Callable[[int, int], int] | None = None
        #: Where each region array lies: None while it is the static one in the kernel image.
        self.array_at: dict[str, int | None] = {"memory": None, "reserved": None}

    # -- building the map ----------------------------------------------------------------------------------

    def add(self, base: int, size: int, caller: str = "") -> int:
        """Declare a range to be RAM. What is known already stays as it is. 5.17: mm/memblock.c, memblock_add()."""
        self._log_range("memblock_add", base, size, caller)
        return self.memory.add_range(base, size)

    def add_node(self, base: int, size: int, nid: int, flags: int = MEMBLOCK_NONE, caller: str = "") -> int:
        """Declare a range to be RAM of a node. 5.17: mm/memblock.c, memblock_add_node()."""
        self._log_range("memblock_add_node", base, size, f"nid={nid} flags={flags:x} {caller}")
        return self.memory.add_range(base, size, nid, flags)

    def remove(self, base: int, size: int, caller: str = "") -> int:
        """Declare a range not to be RAM. Reservations in it stay. 5.17: mm/memblock.c, memblock_remove()."""
        self._log_range("memblock_remove", base, size, caller)
        return self.memory.remove_range(base, size)

    def reserve(self, base: int, size: int, caller: str = "", who: str = "") -> int:
        """Take a range, be it RAM or not. To reserve twice is no error. 5.17: mm/memblock.c, memblock_reserve().

        ``who`` is the owner for the provenance map where that is not the caller.
        """
        self._log_range("memblock_reserve", base, size, caller)
        result = self.reserved.add_range(base, size)
        if not result and self.owners is not None:
            self.owners.take(base, cap_size(base, size), who or caller)
        return result

    def phys_free(self, base: int, size: int, caller: str = "") -> int:
        """Give a range back, whoever reserved it. 5.17: mm/memblock.c, memblock_phys_free()."""
        self._log_range("memblock_phys_free", base, size, caller)
        result = self.reserved.remove_range(base, size)
        if not result and self.owners is not None:
            self.owners.release(base, cap_size(base, size))
        return result

    def free(self, base: int, size: int) -> None:
        """Give an allocation back; address 0 (NULL) is ignored. 5.17: mm/memblock.c, memblock_free()."""
        if base:
            self.phys_free(base, size, "memblock_free")

    def mark_hotplug(self, base: int, size: int) -> int:
        """This RAM may be unplugged (5.17: mm/memblock.c, memblock_mark_hotplug())."""
        return self._set_flags(base, size, MEMBLOCK_HOTPLUG, True)

    def clear_hotplug(self, base: int, size: int) -> int:
        """This RAM stays (5.17: mm/memblock.c, memblock_clear_hotplug())."""
        return self._set_flags(base, size, MEMBLOCK_HOTPLUG, False)

    def mark_mirror(self, base: int, size: int) -> int:
        """This RAM is mirrored; ignored without ``kernelcore=mirror`` (5.17: mm/memblock.c, memblock_mark_mirror())."""
        if not self.mirrored_kernelcore:
            return 0
        self.has_mirror = True
        return self._set_flags(base, size, MEMBLOCK_MIRROR, True)

    def mark_nomap(self, base: int, size: int) -> int:
        """This RAM is never mapped nor allocated (5.17: mm/memblock.c, memblock_mark_nomap())."""
        return self._set_flags(base, size, MEMBLOCK_NOMAP, True)

    def clear_nomap(self, base: int, size: int) -> int:
        """This RAM may be mapped again (5.17: mm/memblock.c, memblock_clear_nomap())."""
        return self._set_flags(base, size, MEMBLOCK_NOMAP, False)

    def _set_flags(self, base: int, size: int, flag: int, on: bool) -> int:
        return self.memory.set_flags(_address(base, "base"), _address(size, "size"), flag, on)

    def set_node(self, base: int, size: int, nid: int, regions: RegionList | None = None) -> int:
        """Put the memory regions (or those of another list) of a range on a node. 5.17: mm/memblock.c, memblock_set_node()."""
        return (regions or self.memory).set_node(_address(base, "base"), _address(size, "size"), nid)

    def trim_memory(self, align: int) -> None:
        """Drop the RAM at both ends of each region that fills no whole ``align``. 5.17: mm/memblock.c, memblock_trim_memory()."""
        self.memory.trim(align)

    # -- limits --------------------------------------------------------------------------------------------

    def set_current_limit(self, limit: int) -> None:
        """Allocate below ``limit`` from now on: above it nothing is mapped. 5.17: mm/memblock.c, memblock_set_current_limit()."""
        self.current_limit = _address(limit, "limit")

    def enforce_memory_limit(self, limit: int) -> None:
        """Keep the first ``limit`` bytes of RAM; forget all RAM and reservations behind. 5.17: mm/memblock.c, memblock_enforce_memory_limit()."""
        max_addr = self._find_max_addr(limit)
        if limit and max_addr != PHYS_ADDR_MAX:
            self.memory.remove_range(max_addr, PHYS_ADDR_MAX)
            self.reserved.remove_range(max_addr, PHYS_ADDR_MAX)

    def cap_memory_range(self, base: int, size: int) -> None:
        """Keep RAM within a range only, and NOMAP regions wherever they are. 5.17: mm/memblock.c, memblock_cap_memory_range()."""
        if not size:
            return
        if not self.memory.total_size:
            self._printk("memblock_cap_memory_range: No memory registered yet")
            return
        span = self.memory.isolate_range(base, size)
        if span is None:
            return
        for index in (*range(len(self.memory) - 1, span[1] - 1, -1), *range(span[0] - 1, -1, -1)):
            if self.memory.flags[index] & MEMBLOCK_NOMAP:
                self.memory.left_split = True
            else:
                self.memory.delete(index, index + 1)
        self.reserved.remove_range(0, base)
        self.reserved.remove_range(u64(base + size), PHYS_ADDR_MAX)

    def mem_limit_remove_map(self, limit: int) -> None:
        """Like :meth:`enforce_memory_limit`, but NOMAP regions stay. 5.17: mm/memblock.c, memblock_mem_limit_remove_map()."""
        max_addr = self._find_max_addr(limit)
        if limit and max_addr != PHYS_ADDR_MAX:
            self.cap_memory_range(0, max_addr)

    def _find_max_addr(self, limit: int) -> int:
        """The address below which ``limit`` bytes of RAM lie (5.17: mm/memblock.c, __find_max_addr())."""
        for region in self.memory:
            if limit <= region.size:
                return region.base + limit
            limit -= region.size
        return PHYS_ADDR_MAX

    # -- walking -------------------------------------------------------------------------------------------

    def _skips(self, index: int, nid: int, flags: int) -> bool:
        """Whether a walk for ``nid`` and ``flags`` passes over a memory region (5.17: mm/memblock.c, should_skip_region())."""
        has = self.memory.flags[index]
        return (
            (nid != NUMA_NO_NODE and nid != self.memory.nids[index])
            or (self.movable_node and bool(has & MEMBLOCK_HOTPLUG) and not flags & MEMBLOCK_HOTPLUG)
            or (bool(flags & MEMBLOCK_MIRROR) and not has & MEMBLOCK_MIRROR)
            or (bool(has & MEMBLOCK_NOMAP) and not flags & MEMBLOCK_NOMAP)
            or (bool(has & MEMBLOCK_DRIVER_MANAGED) and not flags & MEMBLOCK_DRIVER_MANAGED)
        )

    def for_each_free_mem_range(self, nid: int = NUMA_NO_NODE, flags: int = MEMBLOCK_NONE,
                                above: int = 0) -> Iterator[tuple[int, int, int]]:
        """Memory minus reserved, upwards: (start, end, nid). O(memory + reserved).

        Two indices run in lockstep: one over memory regions, one over the gaps before each reserved region. Ranges that
        end at or below ``above`` are left out. The lists may change under the walk; it goes on with its indices as the kernel's does.
        5.17: mm/memblock.c, __next_mem_range().
        """
        memory, reserved = self.memory, self.reserved
        index, gap = memory.first_ending_above(above), bisect_right(reserved.bases, above)
        while index < len(memory):
            if self._skips(index, nid, flags):
                index += 1
                continue
            start, end = memory.bases[index], memory.ends[index]
            while gap <= len(reserved):
                gap_start = reserved.ends[gap - 1] if gap else 0
                gap_end = reserved.bases[gap] if gap < len(reserved) else PHYS_ADDR_MAX
                if gap_start >= end:
                    index += 1
                    break
                if start < gap_end:
                    found = max(start, gap_start), min(end, gap_end), memory.nids[index]
                    if end <= gap_end:      # what ends first is done with
                        index += 1
                    else:
                        gap += 1
                    yield found
                    break
                gap += 1
            else:
                index += 1

    def for_each_free_mem_range_reverse(self, nid: int = NUMA_NO_NODE, flags: int = MEMBLOCK_NONE,
                                        below: int | None = None) -> Iterator[tuple[int, int, int]]:
        """The same downwards; ranges that start at or above ``below`` are left out. 5.17: mm/memblock.c, __next_mem_range_rev()."""
        memory, reserved = self.memory, self.reserved
        index, gap = len(memory) - 1, len(reserved)
        if below is not None:
            index, gap = bisect_left(memory.bases, below) - 1, bisect_left(reserved.ends, below)
        while index >= 0:
            if self._skips(index, nid, flags):
                index -= 1
                continue
            start, end = memory.bases[index], memory.ends[index]
            while gap >= 0:
                gap_start = reserved.ends[gap - 1] if gap else 0
                gap_end = reserved.bases[gap] if gap < len(reserved) else PHYS_ADDR_MAX
                if gap_end <= start:
                    index -= 1
                    break
                if end > gap_start:
                    found = max(start, gap_start), min(end, gap_end), memory.nids[index]
                    if start >= gap_start:
                        index -= 1
                    else:
                        gap -= 1
                    yield found
                    break
                gap -= 1
            else:
                index -= 1

    def for_each_mem_range(self, nid: int = NUMA_NO_NODE,
                           flags: int = MEMBLOCK_HOTPLUG | MEMBLOCK_DRIVER_MANAGED) -> Iterator[tuple[int, int, int]]:
        """RAM upwards, without NOMAP: (start, end, nid). 5.17: include/linux/memblock.h, for_each_mem_range()."""
        for index, region in enumerate(self.memory):
            if not self._skips(index, nid, flags):
                yield region.base, region.end, region.nid

    def for_each_mem_region(self) -> Iterator[Region]:
        """Every memory region, whatever its flags. 5.17: include/linux/memblock.h, for_each_mem_region()."""
        return iter(self.memory)

    def for_each_reserved_mem_range(self) -> Iterator[tuple[int, int]]:
        """What is taken, upwards: (start, end). 5.17: include/linux/memblock.h, for_each_reserved_mem_range()."""
        for region in self.reserved:
            yield region.base, region.end

    def for_each_mem_pfn_range(self, nid: int = NUMA_NO_NODE) -> Iterator[tuple[int, int, int]]:
        """The whole frames of each memory region: (first PFN, PFN behind the last, nid).

        Every flag counts. 5.17 says "all nodes" with MAX_NUMNODES here. 5.17: mm/memblock.c, __next_mem_pfn_range().
        """
        for region in self.memory:
            start, end = pfn_up(region.base), pfn_down(region.end)
            if start < end and nid in (NUMA_NO_NODE, region.nid):
                yield start, end, region.nid

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
        for low, high, _ in self.for_each_free_mem_range(nid, flags, above=start):
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
        for low, high, _ in self.for_each_free_mem_range_reverse(nid, flags, below=end if size else None):
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
        """Find and reserve. Fall back to any node unless ``exact_nid``, then to unmirrored memory. Return the address, or 0.

        5.17: mm/memblock.c, memblock_alloc_range_nid().
        """
        for value, what in ((size, "size"), (align, "alignment"), (start, "lower limit"), (end, "upper limit")):
            _address(value, what)
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
        """Allocate on a node, or else anywhere; silent in the debug log. 5.17: mm/memblock.c, memblock_phys_alloc_try_nid()."""
        return self.alloc_range_nid(size, align, nid=nid, caller=caller)

    def _alloc_internal(self, name: str, size: int, align: int, min_addr: int, max_addr: int, nid: int,
                        exact_nid: bool, caller: str) -> int:
        """Allocate within the current limit; drop ``min_addr`` if there is no other way. 5.17: mm/memblock.c, memblock_alloc_internal()."""
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
        """The arrays may grow from now on: all that must not be overwritten is reserved. 5.17: mm/memblock.c, memblock_allow_resize()."""
        self.can_resize = True

    def _grower(self, regions: RegionList) -> Callable[[int, int], bool]:
        return lambda base, size: self._double_array(regions, base, size)

    def _double_array(self, regions: RegionList, new_area_start: int, new_area_size: int) -> bool:
        """Move a full region array to one of twice the size, which memblock itself has to find and reserve.

        If it is ``reserved`` that is full, the new array must not lie in the range that is just being reserved: look above it
        first, then below. Return False if growing is not allowed yet or no space is free.
        5.17: mm/memblock.c, memblock_double_array().
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

    def _find_in_range(self, start: int, end: int, size: int, align: int) -> int:
        """A free range on any node, mirrored if possible (5.17: mm/memblock.c, memblock_find_in_range())."""
        flags = MEMBLOCK_MIRROR if self.has_mirror else MEMBLOCK_NONE
        found = self.find_in_range_node(size, align, start, end, NUMA_NO_NODE, flags)
        if not found and flags:
            self._printk(f"Could not allocate 0x{size:016x} bytes of mirrored memory")
            found = self.find_in_range_node(size, align, start, end, NUMA_NO_NODE, MEMBLOCK_NONE)
        return found

    # -- asking --------------------------------------------------------------------------------------------

    def phys_mem_size(self) -> int:
        """Bytes of RAM, as memblock counts them (5.17: mm/memblock.c, memblock_phys_mem_size())."""
        return self.memory.total_size

    def reserved_size(self) -> int:
        """Bytes reserved, RAM or not (5.17: mm/memblock.c, memblock_reserved_size())."""
        return self.reserved.total_size

    def start_of_DRAM(self) -> int:
        """The first address of RAM, 0 if there is none (5.17: mm/memblock.c, memblock_start_of_DRAM())."""
        return self.memory.bases[0] if self.memory.bases else 0

    def end_of_DRAM(self) -> int:
        """The address behind RAM, 0 if there is none (5.17: mm/memblock.c, memblock_end_of_DRAM())."""
        return self.memory.ends[-1] if self.memory.ends else 0

    def is_memory(self, addr: int) -> bool:
        """Whether there is RAM at ``addr``. O(log n). 5.17: mm/memblock.c, memblock_is_memory()."""
        return self.memory.search(addr) != -1

    def is_map_memory(self, addr: int) -> bool:
        """Whether there is RAM at ``addr`` that may be mapped. O(log n). 5.17: mm/memblock.c, memblock_is_map_memory()."""
        index = self.memory.search(addr)
        return index != -1 and not self.memory.flags[index] & MEMBLOCK_NOMAP

    def is_reserved(self, addr: int) -> bool:
        """Whether ``addr`` is taken. O(log n). 5.17: mm/memblock.c, memblock_is_reserved()."""
        return self.reserved.search(addr) != -1

    def is_region_memory(self, base: int, size: int) -> bool:
        """Whether one memory region holds the whole range. O(log n). 5.17: mm/memblock.c, memblock_is_region_memory()."""
        index = self.memory.search(base)
        return index != -1 and self.memory.ends[index] >= base + cap_size(base, size)

    def is_region_reserved(self, base: int, size: int) -> bool:
        """Whether any byte of the range is taken. O(log n). 5.17: mm/memblock.c, memblock_is_region_reserved()."""
        return self.reserved.overlaps(base, size)

    def overlaps_memory(self, base: int, size: int) -> bool:
        """Whether any byte of the range is RAM. O(log n). 5.17: mm/memblock.c, memblock_overlaps_region()."""
        return self.memory.overlaps(base, size)

    def search_pfn_nid(self, pfn: int) -> tuple[int, int, int] | None:
        """Node and frames of the memory region that holds a frame: (nid, first PFN, PFN behind), or None.

        O(log n). 5.17: mm/memblock.c, memblock_search_pfn_nid(), which says -1 for None.
        """
        index = self.memory.search(pfn << 12)
        if index == -1:
            return None
        return self.memory.nids[index], pfn_down(self.memory.bases[index]), pfn_down(self.memory.ends[index])

    # -- text ----------------------------------------------------------------------------------------------

    def dump_text(self) -> str:
        """Both lists as ``memblock=debug`` prints them. 5.17: mm/memblock.c, __memblock_dump_all().

        An empty list shows the dummy entry that stands for it before 6.12.
        """
        lines = ["MEMBLOCK configuration:",
                 f" memory size = 0x{self.memory.total_size:016x} reserved size = 0x{self.reserved.total_size:016x}"]
        for regions in (self.memory, self.reserved):
            shown = list(regions)
            if not shown and not self.rules.memblock_merges_locally:
                shown = [Region(0, 0)]
            lines.append(f" {regions.name}.cnt  = {len(shown):#x}")
            for index, region in enumerate(shown):
                node = f" on node {region.nid}" if region.nid != NUMA_NO_NODE else ""
                lines.append(f" {regions.name}[{index:#x}]\t[0x{region.base:016x}-0x{u64(region.end - 1):016x}], "
                             f"0x{region.size:016x} bytes{node} flags: {region.flags:#x}")
        return "\n".join(lines)

    def dump_all(self) -> None:
        """Log :meth:`dump_text` if ``memblock=debug`` is on. 5.17: mm/memblock.c, memblock_dump_all()."""
        if self.debug:
            self._printk(self.dump_text())

    def picture(self, start: int = 0, end: int | None = None, cells: int = 64) -> str:
        """The address range in ``cells`` characters: ``-`` free RAM, ``#`` reserved, a space for neither, ``+`` for a mixture.

        ``end`` defaults to the end of RAM. Cost: O(memory + reserved).
        """
        end = max(end if end is not None else self.end_of_DRAM(), start + 1)
        marks = [""] * cells
        spans = [(base, stop, "#") for base, stop in self.for_each_reserved_mem_range()]
        spans += [(base, stop, "-") for base, stop, _ in self._unreserved()]
        for cell in range(cells):
            low, high = start + (end - start) * cell // cells, start + (end - start) * (cell + 1) // cells
            covered = {mark: sum(max(0, min(stop, high) - max(base, low)) for base, stop, m in spans if m == mark)
                       for mark in "#-"}
            marks[cell] = " " if not any(covered.values()) else next(
                (mark for mark, size in covered.items() if size == high - low), "+")
        return "".join(marks)

    def _unreserved(self) -> Iterator[tuple[int, int, int]]:
        """All RAM that is not reserved, whatever its flags."""
        every = MEMBLOCK_HOTPLUG | MEMBLOCK_NOMAP | MEMBLOCK_DRIVER_MANAGED
        return self.for_each_free_mem_range(flags=every)

    def __repr__(self) -> str:
        def describe(regions: RegionList) -> str:
            size = format_bytes(sum(regions.ends) - sum(regions.bases))
            return f"{regions.name} {size} in {len(regions)} region{'' if len(regions) == 1 else 's'}"
        return f"<Memblock: {describe(self.memory)}, {describe(self.reserved)}>"

    def _log_range(self, name: str, base: int, size: int, caller: str) -> None:
        """One range call: check its arguments, trace it, and log it as ``memblock=debug`` does."""
        _address(base, "base")
        _address(size, "size")
        if self.trace.enabled:
            self.trace.emit(f"boot:{name}", base=base, size=size, caller=caller)
        if self.debug:
            self._printk(f"{name}: [0x{base:016x}-0x{u64(base + size - 1):016x}] {caller}")

    def _log(self, text: str) -> None:
        if self.debug:
            self._printk(text)

    def _printk(self, text: str) -> None:
        if self.klog is not None:
            self.klog.printk(text)

    def _warn(self, text: str) -> None:
        if self.klog is not None:
            self.klog.warn(text)

    def check(self) -> None:
        """Raise InvariantError if either list is broken, or an array that grew is not reserved any more."""
        self.memory.check()
        self.reserved.check()
        for regions in (self.memory, self.reserved):
            array = self.array_at[regions.name]
            if array is not None and self.kmalloc is None and not self.is_reserved(array):
                raise InvariantError(f"the array of memblock.{regions.name} at {array:#x} is not reserved")


