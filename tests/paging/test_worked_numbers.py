"""The worked numbers and the exercises of chapter 3."""

import pytest

from mmsim import constants as c
from mmsim.errors import InputError
from mmsim.paging.address import from_indexes, indexes, is_canonical, level_name, page_size, sign_extend, table_cost
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import (
    PAGE_COPY,
    PAGE_READONLY,
    describe,
    mk_pte,
    pte_flags,
    pte_mkdirty,
    pte_mkspecial,
    pte_mkwrite,
    swp_entry,
    swp_entry_to_pte,
)
from mmsim.paging.tables import PageTables
from mmsim.paging.tlbflush import TlbFlush
from mmsim.paging.walk import loads
from mmsim.units import GIB, KIB, MIB, TIB

from .machines import error_code, space, table_memory


@pytest.mark.parametrize(("addr", "index"), [
    (0xFFFF_8880_0000_0000, (273, 0, 0, 0)), (0xFFFF_FFFF_8100_0000, (511, 510, 8, 0)),
    (0x5555_5555_4000, (170, 341, 170, 340)), (0x7FFF_F7FF_F000, (255, 511, 447, 511))])
def test_indexes_of_known_addresses(addr, index):
    assert indexes(addr) == index and from_indexes(*index) == addr


def test_words_of_known_pages():
    assert pte_mkwrite(pte_mkdirty(mk_pte(0x12345, PAGE_COPY), soft_dirty=False)) == 0x8000_0000_1234_5067
    assert pte_flags(pte_mkspecial(mk_pte(0x1E24, PAGE_READONLY))) == 0x8000_0000_0000_0225
    assert swp_entry_to_pte(swp_entry(0, 1)) == 0x07FF_FFFF_FFFF_FC00
    assert swp_entry_to_pte(swp_entry(1, 0x1234)) == 0x0FFF_FFFF_FFDB_9600
    assert describe(0x8000_0000_1234_5867) == "frame 0x12345: P RW US A D soft-dirty NX"


def test_error_codes_of_known_accesses():
    tables, cpu = space()
    assert error_code(cpu, 0x400000) == 4
    assert error_code(cpu, 0x400000, "w") == 6
    assert error_code(cpu, 0x400000, "w", user=False) == 2
    tables.map_page(0x400000, 5, PAGE_READONLY)
    assert error_code(cpu, 0x400000, "x") == 0x15
    assert error_code(cpu, 0x400000, "w") == 7


def test_asids_of_seven_processes_in_turn():
    memory = table_memory()
    kernel = PageTables(memory, user=False)
    flush = TlbFlush([Mmu(memory.contents)], kernel)
    processes = [flush.new_context(PageTables(memory, kernel)) for _ in range(7)]
    assert [flush.switch_mm(0, mm) for mm in processes] == [1, 2, 3, 4, 5, 0, 1]


def test_loads_of_a_walk():
    assert loads(4) == 4 and loads(4, 4) == 24 and loads(5) == 5


def test_tables_for_513_pages_on_a_2_mib_boundary():
    assert table_cost(range(64 * MIB, 64 * MIB + 513 * 4 * KIB, 4 * KIB)) == (2, 1, 1, 0)


@pytest.mark.parametrize(("stride", "tables_a_page"), [(2 * MIB, 1), (GIB, 2), (512 * GIB, 3)])
def test_the_table_tax_grows_with_the_stride(stride, tables_a_page):
    pages = 64
    cost = table_cost(range(0, pages * stride, stride))
    # Beside the tables shared by all: none of a kind is shared once the stride spans it.
    assert tables_a_page * pages <= cost.pages <= tables_a_page * pages + 4


def test_34_pages_are_flushed_as_a_whole_and_33_singly():
    memory = table_memory()
    kernel = PageTables(memory, user=False)
    flush = TlbFlush([Mmu(memory.contents)], kernel)
    mm = flush.new_context(PageTables(memory, kernel))
    flush.switch_mm(0, mm)
    assert flush.flush_tlb_mm_range(0, mm, 0, 33 * 4096) == 33
    assert flush.flush_tlb_mm_range(0, mm, 0, 34 * 4096) == -1
    assert flush.counts["nr_tlb_local_flush_one"] == 33 and flush.counts["nr_tlb_local_flush_all"] == 1


def test_the_halves_of_the_address_space():
    assert is_canonical((1 << 47) - 1) and not is_canonical(1 << 47) and is_canonical(-(1 << 47) & c.TLB_FLUSH_ALL)
    assert is_canonical((1 << 56) - 1, 5) and not is_canonical(1 << 56, 5)
    assert c.TASK_SIZE_MAX == 128 * TIB - 4096
    assert sign_extend(1 << 47) == 0xFFFF_8000_0000_0000 and sign_extend(1 << 56, 5) == 0xFF00_0000_0000_0000


def test_levels_have_names_and_pages_sizes():
    assert [level_name(level) for level in (4, 3, 2, 1)] == ["PGD", "PUD", "PMD", "PTE"]
    assert [level_name(level, 5) for level in (5, 4)] == ["PGD", "P4D"]
    assert [page_size(level) for level in (1, 2, 3)] == [4 * KIB, 2 * MIB, GIB]
    for wrong in (lambda: page_size(4), lambda: indexes(0, 3), lambda: from_indexes(1, 2, 3, 512), lambda: from_indexes(1)):
        with pytest.raises(InputError):
            wrong()
