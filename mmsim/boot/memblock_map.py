"""memblock's map: where RAM is, and what of the address space is taken.

Two lists of ranges, and nothing else: free is what is in the first but not in the second, found out anew by whoever
asks. There is no list of free ranges, no header, no bookkeeping in the memory itself, so the map works before a single
page is mapped.

    memory      ----  --------------------   two regions
    reserved      ##      ####    ##         may lie outside memory, too
    picture()   --##  ----####----##------   what is left for an allocation

How allocations are made from it, and how the lists grow, is in :mod:`mmsim.boot.memblock`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Protocol

from mmsim.boot.regions import PHYS_ADDR_MAX, Region, RegionList, cap_size
from mmsim.constants import (
    MEMBLOCK_DRIVER_MANAGED,
    MEMBLOCK_HOTPLUG,
    MEMBLOCK_MIRROR,
    MEMBLOCK_NOMAP,
    MEMBLOCK_NONE,
    NUMA_NO_NODE,
)
from mmsim.errors import InputError
from mmsim.klog import KernelLog
from mmsim.rules import Rules
from mmsim.trace import Trace
from mmsim.units import U64_MAX, format_bytes, pfn_down, pfn_up, u64

__all__ = ["MemblockMap", "Owners", "check_address"]


class Owners(Protocol):
    """Who wants to know what was taken, and by whom: :class:`mmsim.boot.provenance.Provenance`."""

    def take(self, base: int, size: int, who: str) -> None:
        """``who`` reserved the range."""

    def release(self, base: int, size: int) -> None:
        """The range is free again."""


def check_address(value: int, what: str) -> int:
    """Refuse what does not fit in a phys_addr_t: C could not even be handed it."""
    if not 0 <= value <= U64_MAX:
        raise InputError(f"memblock: {what} {value} is not a 64-bit address")
    return value


class MemblockMap:
    """The two region lists with all that only reads or edits them; :class:`mmsim.boot.memblock.Memblock` allocates from
    them.

    Changes return 0, or ``-ENOMEM`` if an array is full and may not grow. ``caller`` names the caller in the log and,
    for a reservation, in the provenance map.

    >>> ram = MemblockMap()
    >>> ram.add(0, 0x10000), ram.reserve(0xc000, 0x4000), ram.phys_free(0xe000, 0x1000)
    (0, 0, 0)
    >>> ram.picture(0, 0x10000, cells=16)
    '------------##-#'

    5.17: mm/memblock.c, struct memblock. Left out: the ``physmem`` list (s390 only).
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
            regions.warn = self._warn
        #: ``movable_node`` on the command line: hotpluggable memory is not allocated from.
        self.movable_node = False
        #: ``kernelcore=mirror`` on the command line: mirrored memory is preferred.
        self.mirrored_kernelcore = False
        self.has_mirror = False
        #: ``memblock=debug`` on the command line: log every call.
        self.debug = False

    # -- building the map ----------------------------------------------------------------------------------

    def add(self, base: int, size: int, caller: str = "") -> int:
        """Declare a range to be RAM. What is known already stays as it is. 5.17: mm/memblock.c, memblock_add()."""
        self._log_range("memblock_add", base, size, caller)
        return self.memory.add_range(base, size)

    def add_node(self, base: int, size: int, nid: int, flags: int = MEMBLOCK_NONE, caller: str = "") -> int:
        """Declare a range to be RAM of a node. 5.17: mm/memblock.c, memblock_add_node()."""
        self._log_range("memblock_add_node", base, size, caller, f"nid={nid} flags={flags:x} ")
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
        return self.memory.set_flags(check_address(base, "base"), check_address(size, "size"), flag, on)

    def set_node(self, base: int, size: int, nid: int, regions: RegionList | None = None) -> int:
        """Put the memory regions (or those of another list) of a range on a node.

        5.17: mm/memblock.c, memblock_set_node().
        """
        return (regions or self.memory).set_node(check_address(base, "base"), check_address(size, "size"), nid)

    def trim_memory(self, align: int) -> None:
        """Drop the RAM at both ends of each region that fills no whole ``align``.

        5.17: mm/memblock.c, memblock_trim_memory().
        """
        self.memory.trim(align)

    # -- limits --------------------------------------------------------------------------------------------

    def enforce_memory_limit(self, limit: int) -> None:
        """Keep the first ``limit`` bytes of RAM; forget all RAM and reservations behind.

        5.17: mm/memblock.c, memblock_enforce_memory_limit().
        """
        max_addr = self._find_max_addr(limit)
        if limit and max_addr != PHYS_ADDR_MAX:
            self.memory.remove_range(max_addr, PHYS_ADDR_MAX)
            self.reserved.remove_range(max_addr, PHYS_ADDR_MAX)

    def cap_memory_range(self, base: int, size: int) -> None:
        """Keep RAM within a range only, and NOMAP regions wherever they are.

        5.17: mm/memblock.c, memblock_cap_memory_range().
        """
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
        """Like :meth:`enforce_memory_limit`, but NOMAP regions stay.

        5.17: mm/memblock.c, memblock_mem_limit_remove_map().
        """
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
        """Whether a walk for ``nid`` and ``flags`` passes over a memory region.

        5.17: mm/memblock.c, should_skip_region().
        """
        has = self.memory.flags[index]
        return (
            (nid != NUMA_NO_NODE and nid != self.memory.nids[index])
            or (self.movable_node and bool(has & MEMBLOCK_HOTPLUG) and not flags & MEMBLOCK_HOTPLUG)
            or (bool(flags & MEMBLOCK_MIRROR) and not has & MEMBLOCK_MIRROR)
            or (bool(has & MEMBLOCK_NOMAP) and not flags & MEMBLOCK_NOMAP)
            or (bool(has & MEMBLOCK_DRIVER_MANAGED) and not flags & MEMBLOCK_DRIVER_MANAGED)
        )

    def for_each_free_mem_range(self, nid: int = NUMA_NO_NODE, flags: int = MEMBLOCK_NONE, above: int = 0,
                                at_least: int = 0) -> Iterator[tuple[int, int, int]]:
        """Memory minus reserved, upwards: (start, end, nid). O(memory + reserved).

        Two indices run in lockstep: one over memory regions, one over the gaps before each reserved region. Ranges that
        end at or below ``above`` are left out, and so are gaps of fewer than ``at_least`` bytes. The lists may change
        under the walk; it goes on with its indices as the kernel's does. 5.17: mm/memblock.c, __next_mem_range().
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
                if start < gap_end and gap_end - gap_start >= at_least:
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
                                        below: int | None = None, at_least: int = 0) -> Iterator[tuple[int, int, int]]:
        """The same downwards; ranges that start at or above ``below`` are left out.

        5.17: mm/memblock.c, __next_mem_range_rev().
        """
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
                if end > gap_start and gap_end - gap_start >= at_least:
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
        """Whether there is RAM at ``addr`` that may be mapped.

        O(log n). 5.17: mm/memblock.c, memblock_is_map_memory().
        """
        index = self.memory.search(addr)
        return index != -1 and not self.memory.flags[index] & MEMBLOCK_NOMAP

    def is_reserved(self, addr: int) -> bool:
        """Whether ``addr`` is taken. O(log n). 5.17: mm/memblock.c, memblock_is_reserved()."""
        return self.reserved.search(addr) != -1

    def is_region_memory(self, base: int, size: int) -> bool:
        """Whether one memory region holds the whole range.

        O(log n). 5.17: mm/memblock.c, memblock_is_region_memory().
        """
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
        """The address range in ``cells`` characters: ``-`` free RAM, ``#`` reserved, a space for neither, ``+`` for a
        mixture.

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

    def _log_range(self, name: str, base: int, size: int, caller: str, note: str = "") -> None:
        """One range call: check its arguments, trace it, and log it as ``memblock=debug`` does."""
        check_address(base, "base")
        check_address(size, "size")
        if self.trace.enabled:
            self.trace.emit(f"boot:{name}", base=base, size=size, caller=caller)
        if self.debug:
            self._printk(f"{name}: [0x{base:016x}-0x{u64(base + size - 1):016x}] {note}{caller}")

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
        """Raise InvariantError if either list is broken; the text says where."""
        self.memory.check()
        self.reserved.check()
