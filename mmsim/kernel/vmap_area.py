"""Address ranges for vmalloc: which are taken, which are free, and which are only waiting to be free.

    busy    somebody has the range
    lazy    nobody has it, its entries are gone, but a TLB may still know them: it must not be used again yet
    free    the rest; the lowest range that fits is used

Telling every CPU to forget a translation is expensive. So ranges are collected, and one flush serves for all of them: the
*purge*, once more than 32 MiB for each doubling of the CPUs have come together.

5.17: mm/vmalloc.c, "Global kva allocator". The kernel has trees where the model has sorted lists: the free one is augmented
by the largest free range below each node. Left out: blocks of vm_map_ram(), and the one case in which the kernel's search is
not exact: for an alignment above a page it may pass over a range that would just fit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from enum import Enum

from mmsim.errors import InvariantError, KernelBug
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, align_up, fls

__all__ = ["Fit", "VmapAreas"]


class Fit(Enum):
    """How a new area lies in the free range that it is cut from (5.17: enum fit_type)."""

    FL_FIT_TYPE = "full"            # the whole range
    LE_FIT_TYPE = "left edge"
    RE_FIT_TYPE = "right edge"
    NE_FIT_TYPE = "no edge"         # in the middle: one free range becomes two


def classify_va_fit_type(start: int, end: int, addr: int, size: int) -> Fit:
    """5.17: classify_va_fit_type()."""
    if addr == start:
        return Fit.FL_FIT_TYPE if addr + size == end else Fit.LE_FIT_TYPE
    return Fit.RE_FIT_TYPE if addr + size == end else Fit.NE_FIT_TYPE


class _Ranges:
    """Disjoint ranges in order; neighbours are merged if asked for."""

    __slots__ = ("starts", "ends")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int, merge: bool = False) -> None:
        index = bisect_left(self.starts, start)
        if index and self.ends[index - 1] > start or index < len(self.starts) and self.starts[index] < end:
            raise KernelBug(f"kernel BUG at mm/vmalloc.c: [{start:#x}, {end:#x}) overlaps another vmap area")
        if merge and index < len(self.starts) and self.starts[index] == end:
            end = self.ends[index]
            del self.starts[index], self.ends[index]
        if merge and index and self.ends[index - 1] == start:
            self.ends[index - 1] = end
            return
        self.starts.insert(index, start)
        self.ends.insert(index, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.ends)

    def __len__(self) -> int:
        return len(self.starts)


class VmapAreas:
    """The ranges between ``start`` and ``end``.

    >>> areas = VmapAreas(0xffffc90000000000, 0xffffe90000000000, nr_cpus=8)
    >>> areas.lazy_max_pages() == 4 * 8192                  # 128 MiB
    True
    >>> hex(areas.alloc(8192)), hex(areas.alloc(8192))
    ('0xffffc90000000000', '0xffffc90000002000')
    """

    __slots__ = ("start", "end", "nr_cpus", "free", "busy", "lazy", "lazy_nr", "last_fit")

    def __init__(self, start: int, end: int, nr_cpus: int):
        self.start, self.end, self.nr_cpus = start, end, nr_cpus
        self.free, self.busy, self.lazy = _Ranges(), _Ranges(), _Ranges()
        self.free.add(start, end)
        #: Pages of address space that wait for a purge.
        self.lazy_nr = 0
        self.last_fit: Fit | None = None

    def lazy_max_pages(self) -> int:
        """How many pages may wait before a purge is due (5.17: lazy_max_pages())."""
        return fls(self.nr_cpus) * (32 * MIB >> PAGE_SHIFT)

    def alloc(self, size: int, align: int = 1, vstart: int | None = None, vend: int | None = None) -> int | None:
        """Take the lowest free range of ``size`` bytes; return its start, or None. Cost: the free ranges below it.

        Raise KernelBug for a size that is 0 or no multiple of a page, or an alignment that is no power of two.
        5.17: alloc_vmap_area(), __alloc_vmap_area(), adjust_va_to_fit_type().
        """
        if size <= 0 or size % PAGE_SIZE or align <= 0 or align & align - 1:
            raise KernelBug("kernel BUG at mm/vmalloc.c: alloc_vmap_area(): BUG_ON(!size), BUG_ON(offset_in_page(size)) or "
                            f"BUG_ON(!is_power_of_2(align)): size {size}, align {align}")
        vstart = self.start if vstart is None else vstart
        vend = self.end if vend is None else vend
        free = self.free
        for index, (start, end) in enumerate(free):
            addr = align_up(max(start, vstart), align)
            if addr + size > end:
                continue
            if addr + size > vend:
                return None
            fit = self.last_fit = classify_va_fit_type(start, end, addr, size)
            if fit is Fit.FL_FIT_TYPE:
                del free.starts[index], free.ends[index]
            elif fit is Fit.LE_FIT_TYPE:
                free.starts[index] = addr + size
            elif fit is Fit.RE_FIT_TYPE:
                free.ends[index] = addr
            else:
                free.ends[index] = addr
                free.starts.insert(index + 1, addr + size)
                free.ends.insert(index + 1, end)
            self.busy.add(addr, addr + size)
            return addr
        return None

    def alloc_highest(self, size: int, align: int) -> int | None:
        """Take the highest range of ``size`` bytes: :meth:`alloc_areas` of one."""
        return self.alloc_areas(((0, size),), align)

    def alloc_areas(self, areas: Sequence[tuple[int, int]], align: int) -> int | None:
        """Take several ranges at fixed distances, (offset, size), as high up as they all fit; return the base, or None.

        So chunks of per-CPU memory lie: from the region's end downwards, the units of each node as far from one another as in the
        first chunk. 5.17: mm/vmalloc.c, pcpu_get_vm_areas().
        """
        free = self.free
        base = self.end - max(offset + size for offset, size in areas) & -align
        while base >= self.start:
            for offset, size in areas:
                index = bisect_right(free.starts, base + offset) - 1
                if index < 0:
                    return None
                if base + offset + size > free.ends[index]:
                    # Down to the end of this free range, or of the next one below.
                    base = min(base - align, free.ends[index] - size - offset & -align)
                    break
            else:
                for offset, size in areas:
                    self._carve(base + offset, size)
                return base
        return None

    def _carve(self, addr: int, size: int) -> None:
        """Take a range out of the free one around it."""
        index = bisect_right(self.free.starts, addr) - 1
        start, end = self.free.starts[index], self.free.ends[index]
        del self.free.starts[index], self.free.ends[index]
        for low, high in ((start, addr), (addr + size, end)):
            if low < high:
                self.free.add(low, high)
        self.busy.add(addr, addr + size)

    def find(self, addr: int) -> tuple[int, int] | None:
        """The busy range that an address lies in (5.17: find_vmap_area())."""
        index = bisect_right(self.busy.starts, addr) - 1
        if index >= 0 and addr < self.busy.ends[index]:
            return self.busy.starts[index], self.busy.ends[index]
        return None

    def free_lazily(self, start: int) -> bool:
        """Give a busy range up; it waits for the next purge. Return whether a purge is due now.

        5.17: free_vmap_area_noflush().
        """
        index = bisect_left(self.busy.starts, start)
        end = self.busy.ends[index]
        del self.busy.starts[index], self.busy.ends[index]
        self.lazy_nr += end - start >> PAGE_SHIFT
        self.lazy.add(start, end, merge=True)
        return self.lazy_nr > self.lazy_max_pages()

    def purge(self) -> tuple[int, int] | None:
        """Make all waiting ranges free again. Return the range whose translations every CPU must forget first, or None if
        none waits. 5.17: __purge_vmap_area_lazy().
        """
        if not self.lazy:
            return None
        flush = self.lazy.starts[0], self.lazy.ends[-1]
        for start, end in self.lazy:
            self.free.add(start, end, merge=True)
        self.lazy, self.lazy_nr = _Ranges(), 0
        return flush

    def check(self) -> None:
        """Verify that busy, lazy and free ranges tile the region. Raise InvariantError."""
        pieces = sorted((start, end, name) for name, ranges in (("busy", self.busy), ("lazy", self.lazy), ("free", self.free))
                        for start, end in ranges)
        at, before = self.start, ""
        for start, end, name in pieces:
            if start != at or end <= start:
                raise InvariantError(f"{name} range [{start:#x}, {end:#x}) does not begin at {at:#x}, where the last one ends")
            if name == before != "busy":
                raise InvariantError(f"two {name} ranges meet at {start:#x} and are not merged")
            at, before = end, name
        if at != self.end:
            raise InvariantError(f"the ranges end at {at:#x}, the region at {self.end:#x}")
        if self.lazy_nr != sum(end - start for start, end in self.lazy) >> PAGE_SHIFT:
            raise InvariantError(f"{self.lazy_nr} pages are said to wait")
