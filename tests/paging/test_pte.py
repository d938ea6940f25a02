"""Entries: what each bit means, and what the kernel's functions keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsim import constants as c
from mmsim.errors import InputError
from mmsim.paging import pte

PFNS = st.integers(0, (1 << 40) - 1)
PROTS = st.sampled_from(sorted({*pte.PROTECTION_MAP, pte.PAGE_KERNEL, pte.PAGE_KERNEL_ROX}))


@given(PFNS, PROTS)
def test_the_frame_of_an_entry_is_read_back_whatever_its_protection(pfn, prot):
    word = pte.pfn_pte(pfn, prot)
    assert pte.pte_pfn(word) == pfn
    assert pte.pte_flags(word) == prot
    assert pte.pte_present(word)


@given(PFNS, st.lists(PROTS, min_size=1, max_size=5))
def test_changing_the_protection_keeps_frame_accessed_dirty_and_software_bits(pfn, prots):
    word = pte.pte_mkspecial(pte.pte_mkdirty(pte.pfn_pte(pfn, pte.PAGE_SHARED)))
    for prot in prots:
        word = pte.pte_modify(word, prot)
        assert pte.pte_pfn(word) == pfn
        assert pte.pte_dirty(word) and pte.pte_young(word) and pte.pte_special(word) and pte.pte_soft_dirty(word)
        assert pte.pte_write(word) == bool(prot & c._PAGE_RW)
        assert pte.pte_protnone(word) == (prot == pte.PAGE_NONE)


def test_prot_none_stores_the_frame_number_inverted_so_that_its_upper_bits_are_set():
    word = pte.pfn_pte(0x12345, pte.PAGE_NONE)
    assert word & c.PTE_PFN_MASK == ~0x12345000 & c.PTE_PFN_MASK
    assert not word & c._PAGE_PRESENT


def test_5_17_loses_the_cache_type_bit_7_of_a_small_page_and_keeps_pse_of_a_large_one():
    assert not pte.pte_modify(pte.pfn_pte(5, pte.PAGE_SHARED) | c._PAGE_PAT, pte.PAGE_READONLY) & c._PAGE_PAT
    assert pte.pmd_modify(pte.pmd_mkhuge(pte.pfn_pmd(512, pte.PAGE_SHARED)), pte.PAGE_READONLY) & c._PAGE_PSE


def test_a_huge_page_under_prot_none_keeps_its_frame():
    word = pte.pmd_modify(pte.pfn_pmd(0xBC00, pte.pmd_mkhuge(pte.PAGE_SHARED)), pte.PAGE_NONE)
    assert pte.pte_pfn(word, 2) == 0xBC00 and pte.pmd_present(word) and not pte.pmd_large(word)
    assert pte.pmd_modify(word, pte.PAGE_SHARED) == pte.pfn_pmd(0xBC00, pte.pmd_mkhuge(pte.PAGE_SHARED))


def test_a_huge_page_being_split_is_present_though_its_present_bit_is_clear():
    word = pte.pmd_mkhuge(pte.pfn_pmd(512, pte.PAGE_SHARED)) & ~c._PAGE_PRESENT
    assert pte.pmd_present(word) and not pte.pmd_large(word)


def test_private_areas_never_start_writable_and_x86_has_no_write_only_page():
    for flags in range(16):
        prot = pte.vm_get_page_prot(flags)
        assert bool(prot & c._PAGE_RW) == (flags & c.VM_SHARED and flags & c.VM_WRITE != 0)
        assert bool(prot & c._PAGE_USER) == bool(flags & 7)          # any right at all makes it readable
        if flags & 7:
            assert bool(prot & c._PAGE_NX) == (not flags & c.VM_EXEC)


def test_a_protection_key_stands_in_bits_59_to_62():
    word = pte.pfn_pte(7, pte.vm_get_page_prot(c.VM_READ, pkey=11))
    assert pte.pte_pkey(word) == 11 and pte.pte_pfn(word) == 7 and "pkey 11" in pte.describe(word)


@given(st.integers(0, 31), st.integers(0, (1 << 50) - 1))
def test_a_swap_entry_is_neither_present_nor_empty_and_reads_back(kind, offset):
    word = pte.swp_entry_to_pte(pte.swp_entry(kind, offset))
    assert pte.pte_to_swp_entry(word) == (kind, offset)
    assert not pte.pte_present(word) and not word & 0x1FF
    marked = pte.pte_swp_mksoft_dirty(word)
    assert pte.pte_to_swp_entry(marked) == (kind, offset) and pte.pte_swp_soft_dirty(marked)
    assert pte.pte_swp_clear_soft_dirty(marked) == word
    assert pte.SwapEntry.from_val(pte.swp_entry(kind, offset).val) == (kind, offset)


def test_page_0_of_swap_area_0_is_the_one_entry_that_would_look_like_a_frame_beyond_all_memory():
    assert pte.swp_entry_to_pte(pte.swp_entry(0, 0)) == 0x07FF_FFFF_FFFF_FE00
    assert not pte.pte_none(pte.swp_entry_to_pte(pte.swp_entry(0, 0)))


def test_an_entry_too_large_for_its_bits_is_refused():
    for kind, offset in ((32, 0), (-1, 0), (0, 1 << 50), (0, -1)):
        with pytest.raises(InputError, match="swap entry"):
            pte.swp_entry(kind, offset)


def test_accessed_and_dirty_alone_are_no_entry_because_some_cpus_set_them_by_mistake():
    assert pte.pte_none(0x60) and not pte.is_swap_pte(0x60) and pte.kind(0x60) == "none"


@pytest.mark.parametrize(("word", "level", "kind", "words"), [
    (0, 1, "none", "empty"),
    (0x8000000012345867, 1, "page", "frame 0x12345: P RW US A D soft-dirty NX"),
    (0xffffffe42e960, 1, "protnone", "frame 0x1bd1: A D PROT_NONE soft-dirty"),
    (pte.swp_entry_to_pte(pte.swp_entry(2, 9)), 1, "swap", "swap area 2, page 0x9"),
    (pte.swp_entry_to_pte(pte.swp_entry(31, 0x55)), 1, "migration", "frame 0x55 on the move, writable"),
    (pte.swp_entry_to_pte(pte.swp_entry(30, 0x55)), 1, "migration", "frame 0x55 on the move, read-only"),
    (0x3137067, 4, "table", "table in frame 0x3137: P RW US A D"),
    (0x800000000bc008e5, 2, "page", "frame 0xbc00: P US A D PSE soft-dirty NX"),
])
def test_an_entry_is_told_in_words(word, level, kind, words):
    assert pte.kind(word, level) == kind and pte.describe(word, level) == words


def test_a_table_the_kernel_did_not_make_is_bad():
    assert not pte.pmd_bad(0x1000 | c._PAGE_TABLE) and not pte.pmd_bad(0x1000 | c._KERNPG_TABLE)
    assert pte.pmd_bad(0x1000 | c._PAGE_TABLE & ~c._PAGE_RW) and pte.pmd_bad(pte.pmd_mkhuge(0x25))
