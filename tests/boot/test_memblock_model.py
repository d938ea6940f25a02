"""Any sequence of memblock calls leaves the same map as a plain model with one cell a page, whose every search is a loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mmsim.boot.memblock import Memblock
from mmsim.boot.provenance import Provenance

UNIT = 0x1000
Cell = tuple[int, int]      # nid, flags
NOMAP = 4


@dataclass
class FlatMemblock:
    """``units`` pages of address space; a cell is None (no memory) or (nid, flags); reserved is a set of pages."""

    units: int
    memory: list[Cell | None] = field(default_factory=list)
    reserved: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.memory = [None] * self.units

    def add(self, first: int, count: int, nid: int = -1, flags: int = 0) -> None:
        for page in range(first, min(first + count, self.units)):
            if self.memory[page] is None:
                self.memory[page] = (nid, flags)

    def remove(self, first: int, count: int) -> None:
        for page in range(first, min(first + count, self.units)):
            self.memory[page] = None

    def set_node(self, first: int, count: int, nid: int) -> None:
        for page in range(first, min(first + count, self.units)):
            cell = self.memory[page]
            if cell is not None:
                self.memory[page] = (nid, cell[1])

    def mark(self, first: int, count: int, flag: int, on: bool) -> None:
        for page in range(first, min(first + count, self.units)):
            cell = self.memory[page]
            if cell is not None:
                self.memory[page] = (cell[0], cell[1] | flag if on else cell[1] & ~flag)

    def free_pages(self, nid: int = -1) -> list[bool]:
        return [cell is not None and page not in self.reserved and not cell[1] & NOMAP and nid in (-1, cell[0])
                for page, cell in enumerate(self.memory)]

    def find(self, count: int, align: int, start: int, end: int, nid: int, bottom_up: bool) -> int:
        """The first page of the place that memblock must choose, 0 for none. A range does not cross a region's border."""
        free = self.free_pages(nid)
        start = max(start, 1)
        places = range(start, end - count + 1) if bottom_up else range(end - count, start - 1, -1)
        for place in places:
            if place % align or place + count > self.units:
                continue
            cells = {self.memory[page] for page in range(place, place + count)}
            if len(cells) == 1 and all(free[page] for page in range(place, place + count)):
                return place
        return 0

    def regions(self) -> list[tuple[int, int, int, int]]:
        """Maximal runs of equal cells: (first page, pages, nid, flags)."""
        runs: list[tuple[int, int, int, int]] = []
        for page, cell in enumerate(self.memory):
            if cell is None:
                continue
            if runs and runs[-1][0] + runs[-1][1] == page and runs[-1][2:] == cell:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1, *cell)
            else:
                runs.append((page, 1, *cell))
        return runs

    def reserved_runs(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for page in sorted(self.reserved):
            if runs and sum(runs[-1]) == page:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((page, 1))
        return runs


PAGES = 48
pages = st.integers(0, PAGES - 1)
counts = st.integers(0, 16)
nodes = st.integers(-1, 2)


class MemblockMachine(RuleBasedStateMachine):
    """memblock and the flat model side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.provenance = Provenance()
        self.memblock = Memblock(owners=self.provenance)
        self.flat = FlatMemblock(PAGES)

    @rule(first=pages, count=counts, nid=nodes)
    def add(self, first: int, count: int, nid: int) -> None:
        count = min(count, PAGES - first)
        assert self.memblock.add_node(first * UNIT, count * UNIT, nid) == 0
        self.flat.add(first, count, nid)

    @rule(first=pages, count=counts)
    def remove(self, first: int, count: int) -> None:
        assert self.memblock.remove(first * UNIT, count * UNIT) == 0
        self.flat.remove(first, count)

    @rule(first=pages, count=counts)
    def reserve(self, first: int, count: int) -> None:
        count = min(count, PAGES - first)
        assert self.memblock.reserve(first * UNIT, count * UNIT, "test") == 0
        self.flat.reserved |= set(range(first, first + count))

    @rule(first=pages, count=counts)
    def free(self, first: int, count: int) -> None:
        assert self.memblock.phys_free(first * UNIT, count * UNIT) == 0
        self.flat.reserved -= set(range(first, first + count))

    @rule(first=pages, count=counts, nid=nodes)
    def set_node(self, first: int, count: int, nid: int) -> None:
        assert self.memblock.set_node(first * UNIT, count * UNIT, nid) == 0
        self.flat.set_node(first, count, nid)

    @rule(first=pages, count=counts, on=st.booleans())
    def nomap(self, first: int, count: int, on: bool) -> None:
        (self.memblock.mark_nomap if on else self.memblock.clear_nomap)(first * UNIT, count * UNIT)
        self.flat.mark(first, count, NOMAP, on)

    @rule(count=st.integers(1, 8), align=st.sampled_from([1, 2, 4, 8]), start=pages, end=pages, nid=nodes,
          bottom_up=st.booleans())
    def alloc(self, count: int, align: int, start: int, end: int, nid: int, bottom_up: bool) -> None:
        self.memblock.bottom_up = bottom_up
        end = max(start, end) + 1
        got = self.memblock.alloc_range_nid(count * UNIT, align * UNIT, start * UNIT, end * UNIT, nid, True, caller="alloc")
        place = self.flat.find(count, align, start, end, nid, bottom_up)
        assert got == place * UNIT
        if place:
            assert not self.flat.reserved & set(range(place, place + count)), "allocated what was taken"
            self.flat.reserved |= set(range(place, place + count))

    @invariant()
    def lists_equal_the_model(self) -> None:
        self.memblock.check()
        self.provenance.check()
        assert [(r.base // UNIT, r.size // UNIT, r.nid, r.flags) for r in self.memblock.memory] == self.flat.regions()
        assert [(r.base // UNIT, r.size // UNIT) for r in self.memblock.reserved] == self.flat.reserved_runs()
        free = {page for low, high, _ in self.memblock.for_each_free_mem_range()
                for page in range(low // UNIT, high // UNIT)}
        assert free == {page for page, is_free in enumerate(self.flat.free_pages()) if is_free}
        forwards = list(self.memblock.for_each_free_mem_range())
        assert list(self.memblock.for_each_free_mem_range_reverse()) == forwards[::-1]
        taken = {page for run in self.provenance.runs() for page in range(run.base // UNIT, run.end // UNIT)}
        assert taken == self.flat.reserved, "provenance lost or invented a page"


MemblockMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestMemblockAgainstTheFlatModel = MemblockMachine.TestCase
