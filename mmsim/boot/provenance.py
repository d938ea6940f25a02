"""Who took which memory, and in which phase of the boot: the model's own record, which no kernel keeps.

A list of ranges, not of frames, so that a machine of 64 GiB costs no more than one of 16 MiB. memblock reports each
reservation here; the boot sequence names the phases, and overwrites what changes hands later (a range freed to the
buddy allocator, the kernel's init memory).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from mmsim.errors import InvariantError
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, format_bytes

__all__ = ["Run", "Provenance"]


class Run(NamedTuple):
    """A range of addresses of one owner: ``base <= address < end``, who took it, and in which phase."""

    base: int
    end: int
    who: str
    phase: str

    @property
    def size(self) -> int:
        """Bytes in the run."""
        return self.end - self.base


class Provenance:
    """The owner of every address that anybody took.

    >>> provenance = Provenance("setup_arch")
    >>> provenance.take(0x1000, 0x3000, "kernel image")
    >>> provenance.phase = "sparse_init"
    >>> provenance.take(0x0, 0x2000, "page 0")
    >>> for run in provenance.runs():
    ...     print(f"{run.base:#x}-{run.end:#x} {run.who} ({run.phase})")
    0x0-0x1000 page 0 (sparse_init)
    0x1000-0x4000 kernel image (setup_arch)

    Taking is O(log n) and a memory move, n the number of runs. Two runs next to each other with one owner and phase are
    one.
    """

    def __init__(self, phase: str = "boot"):
        #: The phase of the boot: given to what is taken from now on.
        self.phase = phase
        self._bases: list[int] = []
        self._ends: list[int] = []
        self._owners: list[tuple[str, str]] = []

    def take(self, base: int, size: int, who: str) -> None:
        """``who`` took a range. What somebody has already stays his: a second reservation of the same memory changes
        nothing.
        """
        end, owner = base + size, (who, self.phase)
        index = bisect_right(self._ends, base)
        while base < end:
            taken = self._bases[index] if index < len(self._bases) else end
            if base < taken:
                stop = min(taken, end)
                index = self._insert(index, base, stop, owner)
            if index < len(self._bases):
                base = max(base, self._ends[index])
            else:
                base = end
            index += 1

    def give(self, base: int, size: int, who: str) -> None:
        """A range changes hands: it is ``who``'s now, whoever had it."""
        self.release(base, size)
        self.take(base, size, who)

    def release(self, base: int, size: int) -> None:
        """Nobody has the range any more."""
        end = base + size
        if size <= 0:
            return
        self._split(base)
        self._split(end)
        first, last = bisect_right(self._ends, base), bisect_right(self._ends, end)
        del self._bases[first:last], self._ends[first:last], self._owners[first:last]

    def _split(self, addr: int) -> None:
        index = bisect_right(self._ends, addr)
        if index < len(self._bases) and self._bases[index] < addr:
            self._bases.insert(index, self._bases[index])
            self._ends.insert(index, addr)
            self._owners.insert(index, self._owners[index])
            self._bases[index + 1] = addr

    def _insert(self, index: int, base: int, end: int, owner: tuple[str, str]) -> int:
        """Put a run at ``index``, joined with equal neighbours; return the index at which it is now."""
        if index and self._ends[index - 1] == base and self._owners[index - 1] == owner:
            index -= 1
            self._ends[index] = end
        else:
            self._bases.insert(index, base)
            self._ends.insert(index, end)
            self._owners.insert(index, owner)
        after = index + 1
        if after < len(self._bases) and self._bases[after] == end and self._owners[after] == owner:
            self._ends[index] = self._ends[after]
            del self._bases[after], self._ends[after], self._owners[after]
        return index

    # -- asking --------------------------------------------------------------------------------------------

    def at(self, addr: int) -> Run | None:
        """The run that holds an address, or None if nobody took it. O(log n)."""
        index = bisect_right(self._ends, addr)
        if index < len(self._bases) and self._bases[index] <= addr:
            return Run(self._bases[index], self._ends[index], *self._owners[index])
        return None

    def of_frame(self, pfn: int) -> list[Run]:
        """All runs that hold a byte of a frame, upwards: several small allocations may share one. O(log n)."""
        return list(self.runs(pfn << PAGE_SHIFT, (pfn << PAGE_SHIFT) + PAGE_SIZE))

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[Run]:
        """The runs upwards, cut to ``start <= address < end``."""
        for index in range(bisect_right(self._ends, start), len(self._bases)):
            if end is not None and self._bases[index] >= end:
                return
            stop = self._ends[index] if end is None else min(self._ends[index], end)
            yield Run(max(self._bases[index], start), stop, *self._owners[index])

    def totals(self) -> dict[str, int]:
        """Bytes by owner, in the order of their first addresses."""
        sums: dict[str, int] = {}
        for run in self.runs():
            sums[run.who] = sums.get(run.who, 0) + run.size
        return sums

    def phases(self) -> dict[str, int]:
        """Bytes by phase, in the order of their first addresses."""
        sums: dict[str, int] = {}
        for run in self.runs():
            sums[run.phase] = sums.get(run.phase, 0) + run.size
        return sums

    def __len__(self) -> int:
        return len(self._bases)

    def __repr__(self) -> str:
        return f"<Provenance: {len(self)} runs, {format_bytes(sum(self._ends) - sum(self._bases))}, phase {self.phase}>"

    def check(self) -> None:
        """Raise InvariantError unless the runs are sorted, disjoint, not empty, and joined where they are equal."""
        before: Run | None = None
        for run in self.runs():
            if run.size <= 0:
                raise InvariantError(f"provenance: empty run {run}")
            if before and before.end > run.base:
                raise InvariantError(f"provenance: {run} overlaps {before}")
            before = run
