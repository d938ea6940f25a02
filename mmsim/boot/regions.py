"""A sorted list of address ranges, as memblock keeps two of: add, cut out, split, merge.

This file is ``struct memblock_type`` and the operations on one list. What the two lists mean together (free memory is
memory that is not reserved) is in :mod:`mmsim.boot.memblock`.

    before   AAAA    BBBB        a new range may overlap what is there: the old regions keep their
    add          CCCCCC          flags and node, only the parts in between are inserted, and
    after    AAAACCCCBBBB        neighbours merge if both flags and node are equal
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmsim.constants import INIT_MEMBLOCK_REGIONS, NUMA_NO_NODE
from mmsim.errors import InvariantError, KernelBug
from mmsim.rules import Rules
from mmsim.units import U64_MAX

__all__ = ["ENOMEM", "Region", "RegionList", "cap_size"]

ENOMEM = 12
PHYS_ADDR_MAX = U64_MAX


def cap_size(base: int, size: int) -> int:
    """``size`` cut so that ``base + size`` does not pass the last address.

    5.17: mm/memblock.c, memblock_cap_size().

    >>> cap_size(0xffff_ffff_ffff_f000, 0x2000) == 0xfff
    True
    """
    return min(size, PHYS_ADDR_MAX - base)


class Region(NamedTuple):
    """One range of a list: start and size in bytes, node (-1: none set) and MEMBLOCK_* flags.

    5.17: include/linux/memblock.h, struct memblock_region. The kernel writes "no node" as MAX_NUMNODES there.
    """

    base: int
    size: int
    nid: int = NUMA_NO_NODE
    flags: int = 0

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.base + self.size


class RegionList:
    """Disjoint regions in ascending order, in four columns; finding one takes O(log n), inserting one an O(n) memory
    move.

    ``max`` is the room in the array, which doubles through the ``grow`` callback (memblock finds the space) when it is
    full. ``total_size`` is kept as the kernel keeps it: :meth:`trim` forgets to lower it, and so do we.

    >>> regions = RegionList("memory")
    >>> regions.add_range(0x1000, 0x1000), regions.add_range(0x3000, 0x1000), regions.add_range(0, 0x4000)
    (0, 0, 0)
    >>> list(regions)
    [Region(base=0, size=16384, nid=-1, flags=0)]

    5.17: mm/memblock.c, struct memblock_type. Left out: the empty dummy entry that stands for an empty list before 6.12
    (it shows in the debug dump only).
    """

    def __init__(self, name: str, rules: Rules | None = None):
        self.name = name
        self.rules = rules or Rules()
        self.bases: list[int] = []
        self.ends: list[int] = []
        self.nids: list[int] = []
        self.flags: list[int] = []
        self.max = INIT_MEMBLOCK_REGIONS
        self.total_size = 0
        #: Called with the range about to be added; doubles ``max`` and returns True, or returns False.
        self.grow: Callable[[int, int], bool] = lambda base, size: False
        #: Called with the text of a WARN.
        self.warn: Callable[[str], None] = lambda text: None
        #: How often the list was walked to add a range: twice a call in 5.17, once where 6.1 knows that there is room.
        self.walks = 0
        #: A split that the kernel leaves unmerged until the next change (only after a capped NOMAP region).
        self.left_split = False

    # -- reading -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.bases)

    def __getitem__(self, index: int) -> Region:
        base = self.bases[index]
        return Region(base, self.ends[index] - base, self.nids[index], self.flags[index])

    def __iter__(self) -> Iterator[Region]:
        for base, end, nid, flags in zip(self.bases, self.ends, self.nids, self.flags, strict=True):
            yield Region(base, end - base, nid, flags)

    def search(self, addr: int) -> int:
        """The index of the region that holds ``addr``, or -1. O(log n). 5.17: mm/memblock.c, memblock_search()."""
        index = bisect_right(self.bases, addr) - 1
        return index if index >= 0 and addr < self.ends[index] else -1

    def first_ending_above(self, addr: int) -> int:
        """The index of the first region whose end lies above ``addr``; ``len(self)`` if there is none. O(log n)."""
        return bisect_right(self.ends, addr)

    def overlaps(self, base: int, size: int) -> bool:
        """Tell whether any region shares a byte with the range.

        5.17: mm/memblock.c, memblock_overlaps_region().
        """
        end = base + cap_size(base, size)
        index = self.first_ending_above(base)
        return index < len(self.bases) and self.bases[index] < end

    # -- adding --------------------------------------------------------------------------------------------

    def add_range(self, base: int, size: int, nid: int = NUMA_NO_NODE, flags: int = 0) -> int:
        """Insert the parts of a range that no region covers yet, then merge. Return 0, or -ENOMEM if the array is full.

        The kernel walks the list twice: it counts the pieces first, so that the array can grow, and then inserts them.
        Growing may itself reserve memory and so change the list; that is why the pieces are looked for again.
        5.17: mm/memblock.c, memblock_add_range().
        """
        size = cap_size(base, size)
        if not size:
            return 0
        if not self.bases:
            self._insert(0, base, base + size, nid, flags)
            self.total_size = size
            return 0
        # The range may fall apart into one piece more than there are regions. If the array surely has room, 6.1 need not count.
        if not (self.rules.memblock_single_pass and 2 * len(self.bases) + 1 < self.max):
            nr_new = len(self._gaps(base, base + size))
            if not nr_new:
                return 0
            while len(self.bases) + nr_new > self.max:
                if not self.grow(base, size):
                    return -ENOMEM
        gaps = self._gaps(base, base + size)
        for done, (index, low, high) in enumerate(gaps):
            if high < base + size:      # it ends where an older region begins
                self._warn_mixed(index + done, nid, flags)
            self._insert(index + done, low, high, nid, flags)
        if gaps:
            self._merge(gaps[0][0], gaps[-1][0] + len(gaps))
        return 0

    def _gaps(self, base: int, end: int) -> list[tuple[int, int, int]]:
        """The parts of ``[base, end)`` in no region: (index of the region behind the part, start, end)."""
        gaps = []
        self.walks += 1
        index = self.first_ending_above(base)
        while index < len(self.bases) and self.bases[index] < end:
            if self.bases[index] > base:
                gaps.append((index, base, self.bases[index]))
            base = min(self.ends[index], end)
            index += 1
        if base < end:
            gaps.append((index, base, end))
        return gaps

    def _warn_mixed(self, index: int, nid: int, flags: int) -> None:
        """The WARN for a new range that runs into a region of another node or with other flags."""
        if nid != self.nids[index]:
            self.warn("WARNING: memblock_add_range: nid != memblock_get_region_node(rgn)")
        if flags != self.flags[index]:
            self.warn("WARNING: memblock_add_range: flags != rgn->flags")

    def _insert(self, index: int, base: int, end: int, nid: int, flags: int) -> None:
        """Make room at ``index`` and put a region there (5.17: mm/memblock.c, memblock_insert_region())."""
        if len(self.bases) >= self.max:
            raise KernelBug(f"memblock_insert_region: the {self.name} array has no room beyond {self.max} regions")
        self.bases.insert(index, base)
        self.ends.insert(index, end)
        self.nids.insert(index, nid)
        self.flags.insert(index, flags)
        self.total_size += end - base

    def _merge(self, start: int, end: int) -> None:
        """Merge equal neighbours from the region before ``start`` to the one at ``end``.

        5.17 scans the whole list each time; the result is the same, as all other neighbours are merged already. The one
        exception (``left_split``) is repaired by the next scan in 5.17, but stays in 6.12, which scans only here.
        5.17: mm/memblock.c, memblock_merge_regions().
        """
        if self.left_split and not self.rules.memblock_merges_locally:
            start, end, self.left_split = 0, len(self.bases), False
        index = max(start - 1, 0)
        end = min(end, len(self.bases) - 1)
        bases, ends, nids, flags = self.bases, self.ends, self.nids, self.flags
        while index < end:
            following = index + 1
            if ends[index] != bases[following] or nids[index] != nids[following] or flags[index] != flags[following]:
                index += 1
                continue
            ends[index] = ends[following]
            del bases[following], ends[following], nids[following], flags[following]
            end -= 1

    # -- cutting -------------------------------------------------------------------------------------------

    def isolate_range(self, base: int, size: int) -> tuple[int, int] | None:
        """Split regions at both ends of a range; return the indices [start, end) of those now inside it.

        None means that the array could not grow (-ENOMEM). A range that holds no region gives (0, 0).
        5.17: mm/memblock.c, memblock_isolate_range().
        """
        size = cap_size(base, size)
        if not size:
            return 0, 0
        while len(self.bases) + 2 > self.max:
            if not self.grow(base, size):
                return None
        end = base + size
        start_index = self._split(base)
        end_index = self._split(end)
        return (start_index, end_index) if start_index < end_index else (0, 0)

    def _split(self, addr: int) -> int:
        """Cut the region that ``addr`` lies in; return the index of the first region at or above ``addr``."""
        index = self.first_ending_above(addr)
        if index < len(self.bases) and self.bases[index] < addr:
            base, self.bases[index] = self.bases[index], addr
            self.total_size -= addr - base
            self._insert(index, base, addr, self.nids[index], self.flags[index])
            index += 1
        return index

    def remove_range(self, base: int, size: int) -> int:
        """Cut a range out. Return 0 or -ENOMEM: to cut a hole takes one more entry.

        5.17: mm/memblock.c, memblock_remove_range().
        """
        span = self.isolate_range(base, size)
        if span is None:
            return -ENOMEM
        self.delete(*span)
        return 0

    def delete(self, start: int, end: int) -> None:
        """Drop the regions with indices [start, end) (5.17: mm/memblock.c, memblock_remove_region())."""
        if start >= end:
            return
        self.total_size -= sum(self.ends[start:end]) - sum(self.bases[start:end])
        del self.bases[start:end], self.ends[start:end], self.nids[start:end], self.flags[start:end]
        if not self.bases and self.total_size:
            self.warn("WARNING: memblock_remove_region: type->total_size != 0")

    def set_flags(self, base: int, size: int, flag: int, on: bool) -> int:
        """Set or clear one flag on a range, splitting at its ends (5.17: mm/memblock.c, memblock_setclr_flag())."""
        span = self.isolate_range(base, size)
        if span is None:
            return -ENOMEM
        for index in range(*span):
            self.flags[index] = self.flags[index] | flag if on else self.flags[index] & ~flag
        self._merge(*span)
        return 0

    def set_node(self, base: int, size: int, nid: int) -> int:
        """Put a range on a node, splitting at its ends (5.17: mm/memblock.c, memblock_set_node())."""
        span = self.isolate_range(base, size)
        if span is None:
            return -ENOMEM
        self.nids[span[0]:span[1]] = [nid] * (span[1] - span[0])
        self._merge(*span)
        return 0

    def trim(self, align: int) -> None:
        """Shrink every region to multiples of ``align``; drop those with nothing left.

        ``total_size`` stays as it was (unless a region goes): the recorded boot prints ``memory size = 0x…c00`` for
        whole pages. 5.17: mm/memblock.c, memblock_trim_memory().
        """
        mask = align - 1
        index = 0
        while index < len(self.bases):
            low = (((self.bases[index] - 1) | mask) + 1) & U64_MAX
            high = self.ends[index] & ~mask
            if low < high:
                self.bases[index], self.ends[index] = low, high
                index += 1
            else:
                self.delete(index, index + 1)

    # -- invariants ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantError unless the regions are sorted, disjoint, not empty, merged, and fit in the array."""
        if not len(self.bases) == len(self.ends) == len(self.nids) == len(self.flags):
            raise InvariantError(f"{self.name}: columns of different length")
        if len(self.bases) > self.max:
            raise InvariantError(f"{self.name}: {len(self.bases)} regions in an array of {self.max}")
        for index, region in enumerate(self):
            where = f"{self.name}[{index:#x}] [{region.base:#x}-{region.end:#x})"
            if region.size <= 0 or region.base < 0 or region.end > PHYS_ADDR_MAX:
                raise InvariantError(f"{where}: empty or outside the address space")
            if not index:
                continue
            before = self[index - 1]
            if before.end > region.base:
                raise InvariantError(f"{where}: overlaps or precedes the region before it, which ends at {before.end:#x}")
            if before.end == region.base and before[2:] == region[2:] and not self.left_split:
                raise InvariantError(f"{where}: not merged with its equal neighbour")
        size = sum(self.ends) - sum(self.bases)
        if self.total_size < size:
            raise InvariantError(f"{self.name}: total_size {self.total_size:#x} below the regions' {size:#x}")
