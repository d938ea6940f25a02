"""The TLB: what it keeps, whose it is, what each flush takes, and that the bulk run is the plain one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.errors import InputError, InvariantError
from mmsim.paging.mmu import CR3_NOFLUSH, INVPCID_ADDRESS, INVPCID_ALL, INVPCID_ALL_GLOBAL, INVPCID_SINGLE, Mmu
from mmsim.paging.pte import PAGE_KERNEL, PAGE_READONLY, PAGE_SHARED, PAGE_SHARED_EXEC, pte_dirty, pte_mkold, pte_young
from mmsim.paging.tables import PageTables
from mmsim.paging.tlb import Geometry, Tlb, TlbGeometry
from mmsim.paging.walk import Control, GeneralProtection, PageFault
from mmsim.paging.walk_cache import WalkCache
from mmsim.units import GIB, MIB

from .machines import TINY, error_code, space, table_memory

KERNEL = 0xFFFF_8880_0000_0000


def test_the_second_access_reads_no_table():
    tables, cpu = space()
    tables.map_page(0x400000, 5, PAGE_SHARED)
    cpu.translate(0x400000)
    loads = cpu.loads
    cpu.translate(0x400FFF)
    assert (cpu.loads, cpu.tlb.hits, cpu.tlb.misses) == (loads, 1, 1)


def test_one_entry_of_2_mib_covers_512_small_pages():
    tables, cpu = space()
    tables.map_page(4 * MIB, 1024, PAGE_SHARED, level=2)
    for page in range(512):
        assert cpu.translate(4 * MIB + page * 4096) == (1024 + page) * 4096
    assert cpu.tlb.misses == 1 and cpu.tlb.hits == 511


def test_what_falls_out_of_the_first_level_is_found_in_the_second():
    tables, cpu = space()
    for page in range(200):
        tables.map_page(page << 12, page, PAGE_SHARED)
    for _ in range(2):
        for page in range(200):
            cpu.translate(page << 12)
    assert cpu.tlb.misses == 200 and cpu.tlb.second_hits == 200 and len(cpu.tlb.data[0]) == 64


def test_the_least_recently_used_way_of_a_set_goes_first():
    geometry = TlbGeometry(data_4k=Geometry(1, 2), second=Geometry(0, 1))
    tables, cpu = space(geometry=geometry)
    for page in range(3):
        tables.map_page(page << 12, page, PAGE_SHARED)
    for page in (0, 1, 0, 2):
        cpu.translate(page << 12)
    assert sorted(addr >> 12 for addr, _, _ in cpu.tlb.entries()) == [0, 2]


def test_pages_of_both_sizes_share_the_second_level_without_being_mistaken_for_each_other():
    tables, cpu = space(geometry=TlbGeometry(Geometry(0, 1), Geometry(0, 1), Geometry(0, 1)))
    tables.map_page(5 << 12, 7, PAGE_SHARED)
    tables.map_page(5 << 21, 1024, PAGE_SHARED, level=2)
    for _ in range(2):
        assert cpu.translate(5 << 12) == 7 << 12 and cpu.translate(5 << 21) == 1024 << 12
    assert cpu.tlb.misses == 2 and cpu.tlb.second_hits == 2
    cpu.tlb.check()


def test_a_granted_right_needs_no_flush_but_may_cost_a_spurious_fault():
    tables, cpu = space()
    tables.map_page(0x400000, 5, PAGE_READONLY)
    cpu.translate(0x400000)
    tables.set_entry(0x400000, tables.lookup(0x400000).word | 2)
    assert error_code(cpu, 0x400000, "w") == 7                 # the TLB still forbids it
    assert error_code(cpu, 0x400000, "w") is None              # the fault made it look again


def test_a_right_that_is_taken_away_stays_until_the_flush():
    tables, cpu = space()
    tables.map_page(0x400000, 5, PAGE_SHARED)
    cpu.translate(0x400000, "w")
    tables.unmap_page(0x400000)
    assert cpu.translate(0x400000, "w") == 5 << 12
    assert len(cpu.stale({cpu.pcid: tables.pgd})) == 2         # both levels
    cpu.invlpg(0x400000)
    assert not cpu.stale({cpu.pcid: tables.pgd}) and error_code(cpu, 0x400000) == 4


def test_the_kernel_that_clears_accessed_without_a_flush_does_not_see_the_next_use():
    tables, cpu = space()
    tables.map_page(0x400000, 5, PAGE_SHARED)
    cpu.translate(0x400000)
    tables.set_entry(0x400000, pte_mkold(tables.lookup(0x400000).word))
    cpu.translate(0x400000)
    assert not pte_young(tables.lookup(0x400000).word)
    cpu.invlpg(0x400000)
    cpu.translate(0x400000)
    assert pte_young(tables.lookup(0x400000).word)


def test_the_first_write_through_a_clean_entry_walks_to_set_dirty_and_later_ones_do_not():
    tables, cpu = space()
    tables.map_page(0x400000, 5, PAGE_SHARED)
    cpu.translate(0x400000)
    assert not pte_dirty(tables.lookup(0x400000).word)
    loads = cpu.loads
    cpu.translate(0x400000, "w")
    assert pte_dirty(tables.lookup(0x400000).word) and cpu.loads > loads
    loads = cpu.loads
    cpu.translate(0x400000, "w")
    assert cpu.loads == loads


def two_spaces():
    memory = table_memory()
    kernel = PageTables(memory, user=False)
    kernel.map_page(KERNEL, 9, PAGE_KERNEL)
    one, other = PageTables(memory, kernel), PageTables(memory, kernel)
    one.map_page(0x400000, 5, PAGE_SHARED)
    other.map_page(0x400000, 6, PAGE_SHARED)
    return one, other, Mmu(memory.contents)


def warm(cpu, one, other):
    for tables, pcid in ((one, 1), (other, 2)):
        cpu.write_cr3(tables.pgd << 12 | pcid)
        cpu.translate(0x400000)
        cpu.translate(KERNEL, user=False)


def kept(cpu):
    """Which entries there are, by tag."""
    return {("global" if tag == 4096 else tag) for _, tag, _ in cpu.tlb.entries()}


def test_with_pcids_two_address_spaces_keep_their_entries_side_by_side():
    one, other, cpu = two_spaces()
    warm(cpu, one, other)
    misses = cpu.tlb.misses
    cpu.write_cr3(one.pgd << 12 | 1 | CR3_NOFLUSH)
    assert cpu.translate(0x400000) == 5 << 12
    cpu.write_cr3(other.pgd << 12 | 2 | CR3_NOFLUSH)
    assert cpu.translate(0x400000) == 6 << 12 and cpu.tlb.misses == misses
    assert kept(cpu) == {1, 2, "global"}


def test_without_pcids_a_cr3_write_leaves_only_global_entries():
    one, other, cpu = two_spaces()
    cpu.control.pcide = False
    warm(cpu, one, other)
    cpu.write_cr3(one.pgd << 12 | CR3_NOFLUSH)
    assert kept(cpu) == {"global"} and not len(cpu.walk_cache)


@pytest.mark.parametrize(("flush", "left"), [
    (lambda cpu: cpu.write_cr3(cpu.cr3), {1, "global"}),
    (lambda cpu: cpu.invlpg(0x400000), {1, "global"}),
    (lambda cpu: cpu.invlpg(KERNEL), {1, 2}),
    (lambda cpu: cpu.invpcid(INVPCID_ADDRESS, 1, 0x400000), {2, "global"}),
    (lambda cpu: cpu.invpcid(INVPCID_ADDRESS, 1, KERNEL), {1, 2, "global"}),
    (lambda cpu: cpu.invpcid(INVPCID_SINGLE, 1), {2, "global"}),
    (lambda cpu: cpu.invpcid(INVPCID_ALL), {"global"}),
    (lambda cpu: cpu.invpcid(INVPCID_ALL_GLOBAL), set()),
])
def test_each_form_of_flush_takes_what_the_manual_says(flush, left):
    one, other, cpu = two_spaces()
    warm(cpu, one, other)
    flush(cpu)
    assert kept(cpu) == left
    cpu.tlb.check()


def test_an_unknown_form_of_invpcid_is_general_protection():
    _, cpu = space()
    with pytest.raises(GeneralProtection):
        cpu.invpcid(4)


def test_a_table_remembered_saves_the_upper_loads_and_invlpg_forgets_all_of_them():
    tables, cpu = space()
    for page in range(3):
        tables.map_page(page << 12, page, PAGE_SHARED)
    cpu.translate(0)
    assert cpu.loads == 4
    cpu.translate(1 << 12)
    assert cpu.loads == 5 and cpu.walk_cache.hits == 1
    cpu.invlpg(0x7000_0000_0000)
    cpu.translate(2 << 12)
    assert cpu.loads == 9


def test_a_freed_table_is_walked_on_until_the_flush():
    tables, cpu = space()
    tables.map_page(0, 7, PAGE_SHARED)
    tables.map_page(1 << 12, 8, PAGE_SHARED)
    tables.map_page(2 << 12, 9, PAGE_SHARED)
    cpu.translate(0)
    pte_table = next(pfn for pfn, level in tables.table_level.items() if level == 1)
    stale = tables.memory.contents.words(pte_table)
    tables.memory.contents.words(tables.pgd)[0] = 0
    assert cpu.translate(1 << 12) == 8 << 12 and pte_young(stale[1])
    cpu.invlpg(0)
    assert error_code(cpu, 2 << 12) == 4


def test_the_least_recently_used_table_is_forgotten():
    cache = WalkCache({1: 2})
    tables, cpu = space()
    cpu.walk_cache = cache
    for number in range(3):
        tables.map_page(number << 21, number, PAGE_SHARED)
        tables.map_page(number << 21 | 4096, number, PAGE_SHARED)
    for addr in (0, 1 << 21, 4096, 2 << 21):
        cpu.translate(addr)
    assert [entry[0] >> 21 for entry in cache.entries()] == [0, 2]
    assert not len(WalkCache({}))


def test_a_tlb_must_have_a_power_of_two_of_sets():
    with pytest.raises(InputError, match="3 sets"):
        Tlb(TlbGeometry(data_4k=Geometry(3, 4)))


def test_an_entry_in_a_wrong_set_is_found():
    tables, cpu = space()
    tables.map_page(0, 7, PAGE_SHARED)
    cpu.translate(0)
    sets = cpu.tlb.data[0].sets
    sets[0], sets[1] = sets[1], sets[0]
    with pytest.raises(InvariantError, match="lies in set 1"):
        cpu.tlb.check()


# -- the bulk path -----------------------------------------------------------------------------------------------

def state(cpu, tables):
    return ([list(ways.items()) for array in cpu.tlb.arrays() for ways in array.sets], list(cpu.walk_cache.entries()),
            cpu.tlb.hits, cpu.tlb.second_hits, cpu.tlb.misses, cpu.loads, cpu.faults, cpu.cr2, list(tables.leaves()),
            cpu.walk_cache.hits, cpu.walk_cache.misses)


def build(geometry):
    memory = table_memory()
    tables = PageTables(memory)
    for page in range(12):
        tables.map_page(page << 12, 100 + page, PAGE_READONLY if page == 7 else PAGE_SHARED_EXEC)
    tables.map_page(2 * MIB, 512, PAGE_SHARED_EXEC, level=2)
    tables.map_page(GIB, 0, PAGE_SHARED_EXEC, level=3)
    tables.map_page(3 * MIB & -4096 | 1 << 40, 300, PAGE_SHARED_EXEC | 0x100)          # a global page
    cpu = Mmu(memory.contents, Control(), geometry, WalkCache({1: 1, 2: 1}))
    cpu.write_cr3(tables.pgd << 12 | 3)
    return tables, cpu


def plain(cpu, addrs, access, on_fault):
    for done, addr in enumerate(addrs):
        while True:
            try:
                cpu.translate(addr, access)
            except PageFault as fault:
                fault.index = done
                if not on_fault(fault):
                    raise
                continue
            break
    return len(addrs)


ADDRS = st.one_of(st.integers(0, 14).map(lambda page: page << 12 | 8), st.sampled_from([2 * MIB, 3 * MIB, GIB, 3 * MIB & -4096 | 1 << 40]))
RUNS = st.lists(st.tuples(st.lists(ADDRS, max_size=40), st.sampled_from("rwx"), st.integers(1, 4)), max_size=6)


@given(RUNS, st.sampled_from([TINY, TlbGeometry(), TlbGeometry(data_2m=Geometry(0, 1))]))
@settings(deadline=None, max_examples=60)
def test_a_bulk_run_leaves_tlb_tables_and_counts_as_single_accesses_do(runs, geometry):
    results = []
    for bulk in (False, True):
        tables, cpu = build(geometry)
        seen = []

        def kernel(fault, tables=tables, seen=seen):
            seen.append((fault.cr2, fault.error_code, fault.index))
            if fault.error_code & 1 or fault.cr2 >> 12 == 14:
                return False
            tables.map_page(fault.cr2 & -4096, 200, PAGE_SHARED_EXEC)
            return True
        for addrs, access, times in runs:
            try:
                done = (cpu.run(addrs * times, access, on_fault=kernel) if bulk
                        else plain(cpu, addrs * times, access, kernel))
                seen.append(done)
            except PageFault as fault:
                seen.append(("fault", fault.cr2, fault.index))
            seen.append(state(cpu, tables))
        results.append(seen)
    assert results[0] == results[1]


def test_a_long_run_within_the_reach_of_the_tlb_is_all_hits():
    _, cpu = build(TlbGeometry())
    addrs = [page << 12 for page in range(12)] * 2000
    assert cpu.run(addrs) == 24_000 and cpu.tlb.misses == 12 and cpu.tlb.hits == 24_000 - 12


def test_a_fault_that_nobody_handles_ends_the_run_and_says_where():
    _, cpu = build(TlbGeometry())
    with pytest.raises(PageFault) as fault:
        cpu.run([0, 0x1000, 0x9000_0000, 0])
    assert fault.value.index == 2 and fault.value.cr2 == 0x9000_0000


def test_without_a_tlb_every_access_walks_and_finds_the_same():
    _, cpu = build(TlbGeometry())
    expected = [cpu.translate(page << 12) for page in range(12)]
    cpu.use_tlb = False
    loads = cpu.loads
    assert [cpu.translate(page << 12) for page in range(12)] == expected and cpu.loads == loads + 48
