"""Keeping TLBs true on several CPUs: switches, generations, lazy CPUs, and the bug of a flush that is left out."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmsim.constants import TLB_FLUSH_ALL
from mmsim.errors import InputError, InvariantError
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import (
    PAGE_KERNEL,
    PAGE_NONE,
    PAGE_READONLY,
    PAGE_SHARED,
    pte_mkold,
    pte_modify,
    pte_pfn,
    swp_entry,
    swp_entry_to_pte,
)
from mmsim.paging.tables import PageTables
from mmsim.paging.tlbflush import TlbFlush
from mmsim.paging.walk import Control, PageFault
from mmsim.paging.walk_cache import WalkCache
from mmsim.trace import Trace
from mmsim.units import MIB

from .machines import TINY, error_code, table_memory

ADDR = 0x400000
KERNEL = 0xFFFF_8880_0000_0000


def machine(cpus=2, processes=2, *, geometry=TINY, **control):
    memory = table_memory()
    kernel = PageTables(memory, user=False)
    kernel.map_page(KERNEL, 9, PAGE_KERNEL)
    mmus = [Mmu(memory.contents, Control(**control), geometry, WalkCache({1: 2, 2: 1})) for _ in range(cpus)]
    flush = TlbFlush(mmus, kernel, Trace())
    contexts = [flush.new_context(PageTables(memory, kernel)) for _ in range(processes)]
    for number, mm in enumerate(contexts):
        mm.tables.map_page(ADDR, 100 + number, PAGE_SHARED)
    return flush, contexts


def test_a_process_that_comes_back_to_its_cpu_finds_its_entries():
    flush, (one, other) = machine()
    cpu = flush.cpus[0]
    flush.switch_mm(0, one)
    cpu.translate(ADDR)
    flush.switch_mm(0, other)
    cpu.translate(ADDR)
    misses = cpu.tlb.misses
    assert flush.switch_mm(0, one) == 1
    assert cpu.translate(ADDR) == 100 << 12 and cpu.tlb.misses == misses


def test_without_pcid_every_switch_flushes():
    flush, (one, other) = machine(pcide=False)
    assert [flush.switch_mm(0, mm) for mm in (one, other, one)] == [0, 0, 0]
    with flush.trace.recording("tlb:tlb_flush") as events:
        flush.switch_mm(0, other)
    assert [(event["reason"], event["pages"]) for event in events] == [(0, -1)]


def test_the_seventh_process_takes_the_slot_of_the_first_whatever_the_size_of_the_tlb():
    flush, processes = machine(processes=7)
    cpu = flush.cpus[0]
    for mm in processes:
        flush.switch_mm(0, mm)
        cpu.translate(ADDR)
    misses = cpu.tlb.misses
    flush.switch_mm(0, processes[0])
    assert cpu.translate(ADDR) == 100 << 12 and cpu.tlb.misses == misses + 1


def test_a_process_whose_tables_changed_elsewhere_is_flushed_when_it_comes_back():
    flush, (one, other) = machine()
    flush.switch_mm(0, one)
    flush.cpus[0].translate(ADDR)
    flush.switch_mm(0, other)
    flush.switch_mm(1, one)
    one.tables.unmap_page(ADDR)
    assert flush.flush_tlb_page(1, one, ADDR) == 1
    assert flush.counts["nr_tlb_remote_flush"] == 0                 # CPU 0 runs something else: no interrupt
    flush.check([one, other])
    flush.switch_mm(0, one)
    assert error_code(flush.cpus[0], ADDR) == 4


def test_a_cpu_that_runs_the_process_is_told_by_an_interrupt():
    flush, (one, _) = machine()
    for cpu in (0, 1):
        flush.switch_mm(cpu, one)
        flush.cpus[cpu].translate(ADDR)
    one.tables.unmap_page(ADDR)
    with flush.trace.recording("tlb:tlb_flush") as events:
        flush.flush_tlb_page(0, one, ADDR)
    assert [(event["why"], event["pages"], event["on_cpu"]) for event in events] == [
        ("remote ipi send", 1, 0), ("local mm shootdown", 1, 0), ("remote shootdown", 1, 1)]
    assert error_code(flush.cpus[1], ADDR) == 4


def test_a_lazy_cpu_is_spared_and_catches_up_when_it_returns():
    flush, (one, _) = machine()
    for cpu in (0, 1):
        flush.switch_mm(cpu, one)
        flush.cpus[cpu].translate(ADDR)
    flush.enter_lazy_tlb(1)
    one.tables.unmap_page(ADDR)
    flush.flush_tlb_page(0, one, ADDR)
    assert flush.counts["nr_tlb_remote_flush_received"] == 0
    flush.check([one])
    flush.switch_mm(1, one)
    assert error_code(flush.cpus[1], ADDR) == 4


def test_a_lazy_cpu_that_missed_nothing_returns_for_free():
    flush, (one, _) = machine()
    flush.switch_mm(1, one)
    flush.enter_lazy_tlb(1)
    with flush.trace.recording("tlb:*") as events:
        flush.switch_mm(1, one)
    assert not len(events) and not flush.states[1].is_lazy


def test_freed_tables_reach_lazy_cpus_too_and_make_them_load_the_kernels_own():
    flush, (one, _) = machine()
    for cpu in (0, 1):
        flush.switch_mm(cpu, one)
    flush.enter_lazy_tlb(1)
    one.tables.unmap_page(ADDR)
    one.tables.free_pgtables(ADDR, ADDR + 4096)
    flush.flush_tlb_mm_range(0, one, ADDR, ADDR + 4096, freed_tables=True)
    assert flush.states[1].loaded_mm is flush.init_mm and one.cpumask == {0}


@pytest.mark.parametrize("newest_first", [False, True])
def test_two_flushes_that_arrive_in_any_order_leave_nothing_stale(newest_first):
    flush, (one, _) = machine(cpus=3)
    one.tables.map_page(0x401000, 7, PAGE_SHARED)
    flush.switch_mm(2, one)
    for page in (ADDR, 0x401000):
        flush.cpus[2].translate(page)
    flush.held.add(2)
    for cpu, page in ((0, ADDR), (1, 0x401000)):
        one.tables.unmap_page(page)
        flush.flush_tlb_page(cpu, one, page)
    assert flush.cpus[2].translate(ADDR) == 100 << 12              # allowed: both senders still wait
    flush.check([one])
    with flush.trace.recording("tlb:tlb_flush") as events:
        assert flush.deliver(2, newest_first) == 2
    # Whichever comes first finds itself two generations behind and flushes everything; the other has nothing left to do.
    assert [event["pages"] for event in events] == [-1, 0]
    flush.check([one])
    assert [error_code(flush.cpus[2], page) for page in (ADDR, 0x401000)] == [4, 4]


def test_a_huge_page_is_flushed_by_one_invalidation():
    flush, (one, _) = machine()
    flush.switch_mm(0, one)
    one.tables.map_page(8 * MIB, 1024, PAGE_SHARED, level=2)
    flush.cpus[0].translate(8 * MIB + 4096)
    one.tables.unmap_page(8 * MIB)
    assert flush.flush_tlb_mm_range(0, one, 8 * MIB, 10 * MIB, stride_shift=21) == 1
    assert error_code(flush.cpus[0], 8 * MIB) == 4


def test_kernel_ranges_are_flushed_on_all_cpus_from_every_address_space():
    flush, (one, other) = machine()
    for cpu, mm in ((0, one), (1, other)):
        flush.switch_mm(cpu, mm)
        flush.cpus[cpu].translate(KERNEL, user=False)
    flush.init_mm.tables.unmap_page(KERNEL)
    flush.flush_tlb_kernel_range(KERNEL, KERNEL + 4096)
    assert [error_code(cpu, KERNEL, user=False) for cpu in flush.cpus] == [0, 0]
    flush.cpus[0].translate(ADDR)
    flush.flush_tlb_kernel_range(KERNEL, KERNEL + 34 * 4096)
    assert not list(flush.cpus[0].tlb.entries())
    flush.cpus[0].translate(ADDR)
    flush.flush_tlb_all()
    assert not list(flush.cpus[0].tlb.entries())


def test_a_flush_that_is_left_out_is_named():
    flush, (one, other) = machine()
    flush.switch_mm(0, one)
    flush.cpus[0].translate(ADDR, "w")
    one.tables.set_entry(ADDR, pte_modify(one.tables.lookup(ADDR).word, PAGE_READONLY))
    with pytest.raises(InvariantError, match=r"CPU 0 lacks a flush: 0x400000 of PCID 2: the TLB still allows write"):
        flush.check([one, other])
    one.tables.unmap_page(ADDR)
    with pytest.raises(InvariantError, match="the tables map nothing there"):
        flush.check([one, other])
    one.tables.map_page(ADDR, 7, PAGE_SHARED)
    with pytest.raises(InvariantError, match="the TLB says 0x64000, the tables 0x7000"):
        flush.check([one, other])
    flush.flush_tlb_page(0, one, ADDR)
    flush.check([one, other])


def test_a_cpu_that_is_not_told_of_flushes_is_found():
    flush, (one, other) = machine()
    flush.switch_mm(0, one)
    one.cpumask.clear()
    with pytest.raises(InvariantError, match="would not be told"):
        flush.check([one, other])
    one.cpumask.add(0)
    flush.cpus[0].write_cr3(0)
    with pytest.raises(InvariantError, match="CR3"):
        flush.check([one, other])


def test_an_address_space_that_goes_is_loaded_nowhere():
    flush, (one, other) = machine()
    flush.switch_mm(0, one)
    flush.enter_lazy_tlb(0)
    flush.switch_mm(1, one)
    flush.drop_context(one)
    assert all(state.loaded_mm is flush.init_mm for state in flush.states)
    flush.check([other])


def test_a_machine_needs_a_cpu():
    with pytest.raises(InputError, match="without CPUs"):
        TlbFlush([], PageTables(table_memory()))


# -- all together ------------------------------------------------------------------------------------------------

PAGES = [0x400000, 0x401000, 0x5FF000, 0x600000, 0x7FFF_F000_0000]
HUGE = 0x4000_0000


class Translations(RuleBasedStateMachine):
    """Processes on two CPUs change their tables and flush by the kernel's rules: no access ever reaches a frame, or is
    allowed a right, that its tables do not give; and what they give is reached after at most one spurious fault.
    """

    @initialize(pcide=st.booleans(), processes=st.integers(1, 3))
    def start(self, pcide, processes):
        self.flush, self.contexts = machine(processes=processes, pcide=pcide)
        self.flat = [{ADDR: (100 + number, PAGE_SHARED, 1)} for number in range(processes)]
        self.next_pfn = 200

    def pick(self, number):
        number %= len(self.contexts)
        return self.contexts[number], self.flat[number]

    @rule(cpu=st.integers(0, 1), mm=st.integers(0, 2))
    def switch(self, cpu, mm):
        self.flush.switch_mm(cpu, self.pick(mm)[0])

    @rule(cpu=st.integers(0, 1))
    def kernel_thread(self, cpu):
        self.flush.enter_lazy_tlb(cpu)

    @rule(mm=st.integers(0, 2), page=st.sampled_from(PAGES), prot=st.sampled_from([PAGE_SHARED, PAGE_READONLY]))
    def map(self, mm, page, prot):
        context, flat = self.pick(mm)
        if page not in flat:
            self.next_pfn += 1
            if context.tables.lookup(page) is not None:
                context.tables.unmap_page(page)                        # a swap entry: nothing of it is in a TLB
            context.tables.map_page(page, self.next_pfn, prot)
            flat[page] = (self.next_pfn, prot, 1)

    @rule(mm=st.integers(0, 2), prot=st.sampled_from([PAGE_SHARED, PAGE_READONLY]))
    def map_huge(self, mm, prot):
        context, flat = self.pick(mm)
        if HUGE not in flat:
            self.next_pfn = (self.next_pfn | 511) + 1
            context.tables.map_page(HUGE, self.next_pfn, prot, level=2)
            flat[HUGE] = (self.next_pfn, prot, 2)

    @rule(cpu=st.integers(0, 1), mm=st.integers(0, 2), page=st.sampled_from([*PAGES, HUGE]), swap=st.booleans())
    def unmap(self, cpu, mm, page, swap):
        context, flat = self.pick(mm)
        if page in flat:
            context.tables.unmap_page(page)
            if swap and page != HUGE:
                context.tables.set_entry(page, swp_entry_to_pte(swp_entry(0, 1)))
            shift = 21 if flat.pop(page)[2] == 2 else 12
            self.flush.flush_tlb_mm_range(cpu, context, page, page + (1 << shift), shift)

    @rule(cpu=st.integers(0, 1), mm=st.integers(0, 2), page=st.sampled_from(PAGES),
          prot=st.sampled_from([PAGE_SHARED, PAGE_READONLY, PAGE_NONE]))
    def mprotect(self, cpu, mm, page, prot):
        context, flat = self.pick(mm)
        if page in flat:
            pfn, before, _ = flat[page]
            context.tables.set_entry(page, pte_modify(context.tables.lookup(page).word, prot))
            flat[page] = (pfn, prot, 1)
            # Only what takes a right away needs a flush.
            if (before, prot) not in ((PAGE_READONLY, PAGE_SHARED), (PAGE_NONE, PAGE_SHARED), (PAGE_NONE, PAGE_READONLY)):
                self.flush.flush_tlb_page(cpu, context, page)

    @rule(cpu=st.integers(0, 1), mm=st.integers(0, 2), page=st.sampled_from(PAGES))
    def age(self, cpu, mm, page):
        context, flat = self.pick(mm)
        if page in flat:
            context.tables.set_entry(page, pte_mkold(context.tables.lookup(page).word))

    @rule(cpu=st.integers(0, 1), mm=st.integers(0, 2))
    def munmap_all(self, cpu, mm):
        context, flat = self.pick(mm)
        for leaf in list(context.tables.leaves()):
            context.tables.unmap_page(leaf.addr)
        context.tables.free_pgtables(0, 1 << 47)
        self.flush.flush_tlb_mm_range(cpu, context, 0, TLB_FLUSH_ALL, freed_tables=True)
        flat.clear()
        context.tables.check()

    def expected(self, flat, page, access, user):
        """The physical address, or None for a fault, as the flat dict has it."""
        entry = flat.get(page & -2 * MIB if page & -2 * MIB == HUGE else page)
        if entry is None:
            return None
        pfn, prot, level = entry
        if not prot & 1 or (access == "w" and not prot & 2) or access == "x" or not user:
            return None
        return pfn << 12 | (page - HUGE if level == 2 else 0)

    @rule(cpu=st.integers(0, 1), page=st.sampled_from([*PAGES, HUGE, HUGE + 0x5000]), access=st.sampled_from("rwx"),
          user=st.sampled_from([True, True, False]), times=st.integers(1, 3))
    def touch(self, cpu, page, access, user, times):
        state = self.flush.states[cpu]
        if state.is_lazy or state.loaded_mm is self.flush.init_mm:
            return                                                     # a kernel thread has no user memory
        flat = self.flat[self.contexts.index(state.loaded_mm)]
        wanted = self.expected(flat, page, access, user)
        for _ in range(times):
            for attempt in (0, 1):
                try:
                    got = self.flush.cpus[cpu].translate(page, access, user)
                except PageFault as fault:
                    got = None
                    if wanted is None or attempt:
                        break
                    assert fault.error_code & 1, "only a right that was granted since can fault for nothing"
                    continue
                break
            assert got == wanted
            wanted_word = state.loaded_mm.tables.lookup(page)
            if wanted is not None and access == "w":
                assert wanted_word.word & 0x40, "written but not dirty"

    @precondition(lambda self: hasattr(self, "flush"))
    @invariant()
    def nothing_is_stale(self):
        self.flush.check(self.contexts)
        for context, flat in zip(self.contexts, self.flat):
            mapped = {leaf.addr: pte_pfn(leaf.word, leaf.level) for leaf in context.tables.leaves() if leaf.word & 0x101}
            assert mapped == {page: pfn for page, (pfn, _, _) in flat.items()}


TestTranslations = Translations.TestCase
TestTranslations.settings = settings(deadline=None, max_examples=60, stateful_step_count=50)
