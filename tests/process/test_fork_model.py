"""fork and copy-on-write against a model of values: each process reads what it, or its ancestor before the fork, last wrote."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmsim.constants import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from mmsim.machine import Machine
from mmsim.process.populate import Access
from mmsim.process.task import Process
from mmsim.reference import REF256_COMMAND_LINE, REF256_MAP
from mmsim.rules import Rules
from mmsim.units import PAGE_SIZE

P, RW = PAGE_SIZE, 3
#: Private pages lie across the border of two page tables.
A, B, PAGES = 0x3000_0000 + 508 * PAGE_SIZE, 0x5000_0000, 8
SHARED, SHARED_PAGES = 0x6000_0000, 3

which = st.integers(0, 7)
page_numbers = st.integers(0, PAGES - 1)


class Family(RuleBasedStateMachine):
    """Up to six processes with eight private pages, at A or moved to B, and three shared ones."""

    @initialize(reuse=st.sampled_from(["page_count", "drained", "exclusive"]), batches=st.booleans(), tlb=st.booleans(),
                soft_dirty=st.booleans())
    def start(self, reuse: str, batches: bool, tlb: bool, soft_dirty: bool) -> None:
        self.machine = Machine.boot(REF256_MAP, REF256_COMMAND_LINE, rules=Rules(cow_reuse=reuse))
        user = self.machine.user
        user.lru.enabled, user.soft_dirty = batches, soft_dirty
        self.tlb = user.use_tlbs() if tlb else None
        first = self.machine.spawn()
        first.mmap(A, PAGES * P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        first.mmap(SHARED, SHARED_PAGES * P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
        self.family: list[Process] = []
        self.values: dict[int, list[int]] = {}
        self.writable: dict[int, list[bool]] = {}
        self.place: dict[int, int] = {}
        self.shared = [0] * SHARED_PAGES
        self._add(first, [0] * PAGES, [True] * PAGES, A)

    def _add(self, process: Process, values: list[int], writable: list[bool], place: int) -> None:
        if self.tlb is not None:
            process.cpu = 0
        self.family.append(process)
        self.values[process.pid], self.writable[process.pid], self.place[process.pid] = values, writable, place

    def one(self, which: int) -> Process:
        return self.family[which % len(self.family)]

    @rule(which=which, page=page_numbers, value=st.integers(1, 255))
    def write(self, which: int, page: int, value: int) -> None:
        p = self.one(which)
        touch = p.write(self.place[p.pid] + page * P, bytes((value,)))
        assert (touch.signal is None) == self.writable[p.pid][page]
        if touch.signal is None:
            self.values[p.pid][page] = value

    @rule(which=which, page=page_numbers)
    def read(self, which: int, page: int) -> None:
        p = self.one(which)
        assert p.read(self.place[p.pid] + page * P) == bytes((self.values[p.pid][page],))

    @rule(which=which, page=st.integers(0, SHARED_PAGES - 1), value=st.integers(1, 255))
    def write_shared(self, which: int, page: int, value: int) -> None:
        self.one(which).write(SHARED + page * P, bytes((value,)))
        self.shared[page] = value

    @precondition(lambda self: len(self.family) < 6)
    @rule(which=which)
    def fork(self, which: int) -> None:
        p = self.one(which)
        child = self.machine.processes[p.fork()]
        self._add(child, self.values[p.pid][:], self.writable[p.pid][:], self.place[p.pid])

    @precondition(lambda self: len(self.family) > 1)
    @rule(which=which)
    def exit(self, which: int) -> None:
        p = self.one(which)
        p.exit()
        self.family.remove(p)

    @rule(which=which, first=page_numbers, pages=st.integers(1, PAGES))
    def dontneed(self, which: int, first: int, pages: int) -> None:
        p, last = self.one(which), min(first + pages, PAGES)
        assert p.madvise(self.place[p.pid] + first * P, (last - first) * P, MADV_DONTNEED) == 0
        self.values[p.pid][first:last] = [0] * (last - first)

    @rule(which=which, first=page_numbers, pages=st.integers(1, PAGES), writable=st.booleans())
    def protect(self, which: int, first: int, pages: int, writable: bool) -> None:
        p, last = self.one(which), min(first + pages, PAGES)
        assert p.mprotect(self.place[p.pid] + first * P, (last - first) * P, RW if writable else 1) == 0
        self.writable[p.pid][first:last] = [writable] * (last - first)

    @rule(which=which)
    def move(self, which: int) -> None:
        p = self.one(which)
        source, target = self.place[p.pid], A if self.place[p.pid] == B else B
        if len({*self.writable[p.pid]}) == 1 and p.mm.tree.lookup(source).vm_end >= source + PAGES * P:      # type: ignore[union-attr]
            assert p.mremap(source, PAGES * P, PAGES * P, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target
            self.place[p.pid] = target

    @rule(which=which, pages=st.integers(1, PAGES), write=st.booleans())
    def touch_all(self, which: int, pages: int, write: bool) -> None:
        p = self.one(which)
        done = p.touch_range(self.place[p.pid], pages, write)
        readonly = [*self.writable[p.pid][:pages], False].index(False) if write else pages
        assert done == min(readonly, pages)

    @rule()
    def drain(self) -> None:
        self.machine.user.lru.lru_add_drain()

    @invariant()
    def values_and_structures_agree(self) -> None:
        if not hasattr(self, "machine"):
            return
        for p in self.family:
            for page, value in enumerate(self.values[p.pid]):
                word = p.space.pte(self.place[p.pid] + page * P)
                if word & 1:
                    assert self.machine.contents.read(word & 0xF_FFFF_FFFF_F000, 1) == bytes((value,))
                else:
                    assert value == 0
            for page, value in enumerate(self.shared):
                if p.space.pte(SHARED + page * P):
                    assert p.touch(SHARED + page * P, Access.READ).signal is None and p.read(SHARED + page * P) == bytes((value,))
        self.machine.process_table.check()
        if self.tlb is not None:
            self.tlb.check([p.space.context for p in self.family if p.space.context is not None])


TestFamily = Family.TestCase
TestFamily.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
