"""The areas of a process, sorted by address: found by bisection in two levels, and linked to their neighbours.

The kernel of 5.17 keeps a red-black tree (``mm_rb``), augmented with the largest gap below each subtree, beside a
linked list, and remembers the last four areas that a task found (``vmacache``). Here areas lie in sorted chunks of at
most 512; each chunk remembers how large its gaps can be, and the tree the last area found. The answers are the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from mmsim.constants import VM_GROWSDOWN
from mmsim.errors import InvariantError
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SIZE

__all__ = ["VmaTree"]

_CHUNK = 512
_UNKNOWN = -1


class VmaTree:
    """Sorted, disjoint areas. Find and insert: O(log n) and a move of at most 512 entries.

    >>> tree = VmaTree([Vma(0x1000, 0x2000, 3, 1), Vma(0x5000, 0x8000, 3, 5)])
    >>> tree.find(0x2000), tree.lookup(0x2000)
    (<Vma 5000-8000 rw-p>, None)

    5.17: mm/mmap.c, find_vma(), vma_link(), vma_compute_gap(); mm/vmacache.c.
    """

    def __init__(self, areas: Iterable[Vma] = (), stack_guard_gap: int = 256 * PAGE_SIZE):
        self.stack_guard_gap = stack_guard_gap
        self._firsts: list[int] = []            # vm_start of each chunk's first area
        self._starts: list[list[int]] = []
        self._chunks: list[list[Vma]] = []
        self._gaps: list[int] = []              # no gap below an area of the chunk is larger; or _UNKNOWN
        self._last_hit: Vma | None = None
        self._count = 0
        for vma in areas:
            self.insert(vma)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Vma]:
        for chunk in self._chunks:
            yield from chunk

    @property
    def first(self) -> Vma | None:
        """The lowest area (the kernel's mm->mmap)."""
        return self._chunks[0][0] if self._chunks else None

    @property
    def last(self) -> Vma | None:
        """The highest area."""
        return self._chunks[-1][-1] if self._chunks else None

    # -- finding -------------------------------------------------------------------------------------------

    def find(self, address: int) -> Vma | None:
        """The first area that ends above ``address``: it holds the address, or is the next one."""
        hit = self._last_hit
        if hit is not None and hit.vm_start <= address < hit.vm_end:
            return hit
        number = bisect_right(self._firsts, address) - 1
        if number < 0:
            return self.first
        below = self._chunks[number][bisect_right(self._starts[number], address) - 1]
        if address < below.vm_end:
            self._last_hit = below
            return below
        return below.vm_next

    def find_vma(self, address: int) -> Vma | None:
        """:meth:`find` where the kernel itself calls it: in function graphs (5.17: mm/mmap.c, find_vma())."""
        return self.find(address)

    def lookup(self, address: int) -> Vma | None:
        """The area that holds ``address``, or None (5.17: include/linux/mm.h, vma_lookup())."""
        hit = self._last_hit
        if hit is not None and hit.vm_start <= address < hit.vm_end:
            return hit
        vma = self.find(address)
        return vma if vma is not None and vma.vm_start <= address else None

    def find_prev(self, address: int) -> tuple[Vma | None, Vma | None]:
        """:meth:`find`, and the area below that one (5.17: mm/mmap.c, find_vma_prev())."""
        vma = self.find(address)
        return vma, vma.vm_prev if vma is not None else self.last

    def intersection(self, start: int, end: int) -> Vma | None:
        """The first area that overlaps [start, end) (5.17: include/linux/mm.h, find_vma_intersection())."""
        vma = self.find(start)
        return vma if vma is not None and vma.vm_start < end else None

    def overlapping(self, start: int, end: int) -> Iterator[Vma]:
        """The areas that overlap [start, end), upwards; the tree must not change meanwhile."""
        vma = self.find(start)
        while vma is not None and vma.vm_start < end:
            yield vma
            vma = vma.vm_next

    def find_vma_links(self, address: int) -> Vma | None:
        """The area below a place where a new one is to be put (5.17: mm/mmap.c, find_vma_links())."""
        return self._at_or_below(address)

    def _at_or_below(self, address: int) -> Vma | None:
        number = bisect_right(self._firsts, address) - 1
        if number < 0:
            return None
        return self._chunks[number][bisect_right(self._starts[number], address) - 1]

    # -- changing ------------------------------------------------------------------------------------------

    def insert(self, vma: Vma) -> None:
        """Put an area in; its range must be free."""
        number = bisect_right(self._firsts, vma.vm_start) - 1
        if number < 0:
            if not self._chunks:
                self._chunks.append([])
                self._starts.append([])
                self._firsts.append(vma.vm_start)
                self._gaps.append(_UNKNOWN)
            number, index = 0, 0
        else:
            index = bisect_right(self._starts[number], vma.vm_start)
        chunk, starts = self._chunks[number], self._starts[number]
        below = chunk[index - 1] if index else None
        above = below.vm_next if below is not None else self.first if self._count else None
        chunk.insert(index, vma)
        starts.insert(index, vma.vm_start)
        self._firsts[number] = starts[0]
        vma.vm_prev, vma.vm_next = below, above
        if below is not None:
            below.vm_next = vma
        if above is not None:
            above.vm_prev = vma
        self._count += 1
        self._note_gap(number, vma)
        if len(chunk) > _CHUNK:
            self._split_chunk(number)

    def _split_chunk(self, number: int) -> None:
        half = len(self._chunks[number]) // 2
        self._chunks.insert(number + 1, self._chunks[number][half:])
        self._starts.insert(number + 1, self._starts[number][half:])
        del self._chunks[number][half:], self._starts[number][half:]
        self._firsts.insert(number + 1, self._starts[number + 1][0])
        self._gaps.insert(number + 1, _UNKNOWN)
        self._gaps[number] = _UNKNOWN

    def _note_gap(self, number: int, vma: Vma) -> None:
        """The gap below an area of a chunk may have grown."""
        if self._gaps[number] != _UNKNOWN:
            self._gaps[number] = max(self._gaps[number], self._gap_below(vma))

    def _note_gap_above(self, number: int, index: int) -> None:
        """The same for the area at ``index`` of a chunk, which may be the first one of the next chunk, or none."""
        if number < len(self._chunks) and index >= len(self._chunks[number]):
            number, index = number + 1, 0
        if number < len(self._chunks):
            self._note_gap(number, self._chunks[number][index])

    def _place(self, vma: Vma) -> tuple[int, int]:
        number = bisect_right(self._firsts, vma.vm_start) - 1
        index = bisect_right(self._starts[number], vma.vm_start) - 1 if number >= 0 else -1
        if index < 0 or self._chunks[number][index] is not vma:
            raise InvariantError(f"{vma} is not in the tree")
        return number, index

    def remove(self, vma: Vma) -> None:
        """Take an area out."""
        number, index = self._place(vma)
        del self._chunks[number][index], self._starts[number][index]
        if vma.vm_prev is not None:
            vma.vm_prev.vm_next = vma.vm_next
        if vma.vm_next is not None:
            vma.vm_next.vm_prev = vma.vm_prev
        vma.vm_prev = vma.vm_next = None
        self._count -= 1
        if self._last_hit is vma:
            self._last_hit = None
        if self._chunks[number]:
            self._firsts[number] = self._starts[number][0]
        else:
            del self._chunks[number], self._starts[number], self._firsts[number], self._gaps[number]
            index = 0
        self._note_gap_above(number, index)

    def resize(self, vma: Vma, start: int, end: int) -> None:
        """Change an area's range; it must keep its place between its neighbours."""
        number, index = self._place(vma)
        vma.vm_start, vma.vm_end = start, end
        self._starts[number][index] = start
        self._firsts[number] = self._starts[number][0]
        self._note_gap(number, vma)
        self._note_gap_above(number, index + 1)

    # -- gaps ----------------------------------------------------------------------------------------------

    def start_gap(self, vma: Vma) -> int:
        """Where an area begins, with the guard gap below one that grows down (5.17: include/linux/mm.h, vm_start_gap())."""
        if vma.vm_flags & VM_GROWSDOWN:
            return max(vma.vm_start - self.stack_guard_gap, 0)
        return vma.vm_start

    def _gap_below(self, vma: Vma) -> int:
        """Free bytes between an area, with its guard gap, and the one below (5.17: mm/mmap.c, vma_compute_gap())."""
        return self.start_gap(vma) - (vma.vm_prev.vm_end if vma.vm_prev is not None else 0)

    def _large_gaps(self, number: int, length: int, upwards: bool) -> Iterator[tuple[int, int]]:
        """The gaps of a chunk that have ``length`` bytes. If there are none, the chunk learns how large they really are."""
        largest, chunk = 0, self._chunks[number]
        for vma in chunk if upwards else reversed(chunk):
            prev = vma.vm_prev
            start = prev.vm_end if prev is not None else 0
            end = vma.vm_start if not vma.vm_flags & VM_GROWSDOWN else self.start_gap(vma)
            if end - start >= length:
                yield start, end
            if end - start > largest:
                largest = end - start
        self._gaps[number] = largest

    def gaps_down(self, length: int, high: int) -> Iterator[tuple[int, int]]:
        """The gaps of at least ``length`` bytes that begin at or below ``high``, from the highest down, but not the one
        above all areas. Chunks without such a gap cost one comparison."""
        for number in range(bisect_right(self._firsts, high + length), -1, -1):
            if number < len(self._chunks) and not _UNKNOWN < self._gaps[number] < length:
                for start, end in self._large_gaps(number, length, upwards=False):
                    if start <= high:
                        yield start, end

    def gaps_up(self, length: int, low: int) -> Iterator[tuple[int, int]]:
        """The gaps of at least ``length`` bytes that end at or above ``low``, upwards, without the one above all areas."""
        for number in range(max(bisect_right(self._firsts, low) - 1, 0), len(self._chunks)):
            if not _UNKNOWN < self._gaps[number] < length:
                for start, end in self._large_gaps(number, length, upwards=True):
                    if end >= low:
                        yield start, end

    # -- consistency ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Areas are whole pages, sorted and disjoint; links, keys, count and known gaps are right (validate_mm())."""
        count, below = 0, None
        for number, chunk in enumerate(self._chunks):
            if not chunk or len(chunk) != len(self._starts[number]) or self._firsts[number] != chunk[0].vm_start:
                raise InvariantError(f"VMA tree: chunk {number} and its keys differ")
            for vma, key in zip(chunk, self._starts[number]):
                if key != vma.vm_start:
                    raise InvariantError(f"VMA tree: {vma} is filed under {key:x}")
                if vma.vm_start >= vma.vm_end or (vma.vm_start | vma.vm_end) & (PAGE_SIZE - 1):
                    raise InvariantError(f"VMA tree: {vma} is empty or not made of whole pages")
                if below is not None and below.vm_end > vma.vm_start:
                    raise InvariantError(f"VMA tree: {below} and {vma} overlap")
                if vma.vm_prev is not below or (below is not None and below.vm_next is not vma):
                    raise InvariantError(f"VMA tree: {vma} is not linked to {below}")
                below = vma
                count += 1
            known, largest = self._gaps[number], max(self._gap_below(vma) for vma in chunk)
            if _UNKNOWN < known < largest:
                raise InvariantError(f"VMA tree: chunk {number} has a gap of {largest:#x} but remembers {known:#x}")
        if below is not None and below.vm_next is not None:
            raise InvariantError(f"VMA tree: {below} is the last but has a next")
        if count != self._count:
            raise InvariantError(f"VMA tree: {self._count} areas counted, {count} there")
        hit = self._last_hit
        if hit is not None and self.lookup_slow(hit.vm_start) is not hit:
            raise InvariantError(f"VMA tree: the last hit {hit} is not in the tree")

    def lookup_slow(self, address: int) -> Vma | None:
        """:meth:`lookup` past the remembered hit."""
        vma = self._at_or_below(address)
        return vma if vma is not None and address < vma.vm_end else None
