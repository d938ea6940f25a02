"""The tree of areas against a plain list: every search, every gap, after every change."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mmsim.constants import VM_GROWSDOWN
from mmsim.errors import Errno, InvariantError
from mmsim.process import vma_tree
from mmsim.process.layout import fixed_layout
from mmsim.process.mm import Mm
from mmsim.process.unmapped_area import unmapped_area, unmapped_area_topdown
from mmsim.process.vma import Vma
from mmsim.process.vma_tree import VmaTree

P = 4096
PAGES = 80
GAP = 4 * P


def area(start: int, end: int, flags: int = 3) -> Vma:
    return Vma(start * P, end * P, flags, start)


class TreeMachine(RuleBasedStateMachine):
    """A tree with chunks of four areas, so that few areas already make many chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.chunk, vma_tree._CHUNK = vma_tree._CHUNK, 4
        self.tree = VmaTree(stack_guard_gap=GAP)
        self.areas: list[Vma] = []

    def teardown(self) -> None:
        vma_tree._CHUNK = self.chunk

    def free(self, start: int, end: int, but: Vma | None = None) -> bool:
        return all(end * P <= vma.vm_start or start * P >= vma.vm_end for vma in self.areas if vma is not but)

    @rule(start=st.integers(1, PAGES), pages=st.integers(1, 4), grows=st.booleans())
    def insert(self, start: int, pages: int, grows: bool) -> None:
        if self.free(start, start + pages):
            vma = area(start, start + pages, 3 | (VM_GROWSDOWN if grows else 0))
            self.tree.insert(vma)
            self.areas.append(vma)

    @precondition(lambda self: self.areas)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        vma = data.draw(st.sampled_from(self.areas))
        self.tree.remove(vma)
        self.areas.remove(vma)

    @precondition(lambda self: self.areas)
    @rule(data=st.data(), low=st.integers(-2, 2), high=st.integers(-2, 2))
    def resize(self, data: st.DataObject, low: int, high: int) -> None:
        vma = data.draw(st.sampled_from(self.areas))
        start, end = vma.vm_start // P + low, vma.vm_end // P + high
        # An area grows and shrinks where it is; it never jumps over another.
        if 0 < start < end and self.free(min(start, vma.vm_start // P), max(end, vma.vm_end // P), vma):
            self.tree.resize(vma, start * P, end * P)

    @rule(address=st.integers(0, (PAGES + 8) * P))
    def find(self, address: int) -> None:
        ordered = sorted(self.areas, key=lambda vma: vma.vm_start)
        expected = next((vma for vma in ordered if vma.vm_end > address), None)
        assert self.tree.find(address) is expected
        holds = expected if expected is not None and expected.vm_start <= address else None
        assert self.tree.lookup(address) is holds
        below = [vma for vma in ordered if expected is None or vma.vm_start < expected.vm_start]
        assert self.tree.find_prev(address) == (expected, below[-1] if below else None)

    @rule(start=st.integers(0, PAGES), pages=st.integers(1, 20))
    def overlapping(self, start: int, pages: int) -> None:
        low, high = start * P, (start + pages) * P
        expected = sorted((vma for vma in self.areas if vma.vm_start < high and vma.vm_end > low), key=lambda vma: vma.vm_start)
        assert list(self.tree.overlapping(low, high)) == expected
        assert self.tree.intersection(low, high) is (expected[0] if expected else None)

    @rule(length=st.integers(1, 12), low=st.integers(0, 40), high=st.integers(20, PAGES + 10))
    def search_for_room(self, length: int, low: int, high: int) -> None:
        """The highest and the lowest place that fits, by trying every page; the guard gap below a stack is no room, as far as it
        reaches before the next area below."""
        mm = Mm(fixed_layout(), stack_guard_gap=GAP)
        mm.tree = self.tree
        taken = [(max([self.tree.start_gap(vma)] + [other.vm_end for other in self.areas if other.vm_end <= vma.vm_start]), vma.vm_end)
                 for vma in self.areas]
        places = [page for page in range(low, high - length + 1)
                  if all((page + length) * P <= start or page * P >= end for start, end in taken)]
        for search, wanted in ((unmapped_area_topdown, max), (unmapped_area, min)):
            try:
                found: int | None = search(mm, length * P, low * P, high * P) // P
            except Errno:
                found = None
            assert found == (wanted(places) if places else None)

    @invariant()
    def sound(self) -> None:
        self.tree.check()
        assert list(self.tree) == sorted(self.areas, key=lambda vma: vma.vm_start)
        assert len(self.tree) == len(self.areas)


TreeMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestTreeAgainstAList = TreeMachine.TestCase


def test_check_names_the_area_that_broke_the_order() -> None:
    tree = VmaTree([area(1, 3), area(5, 6)])
    tree.find(P)
    tree.first.vm_end = 6 * P                                   # type: ignore[union-attr]
    with pytest.raises(InvariantError, match="overlap"):
        tree.check()


def test_an_area_that_is_not_in_the_tree_cannot_be_removed() -> None:
    with pytest.raises(InvariantError, match="not in the tree"):
        VmaTree([area(1, 3)]).remove(area(1, 3))
