"""The words of /proc/PID/pagemap."""

from mmsim.constants import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PRESENT, PM_SOFT_DIRTY, PM_SWAP, PM_UFFD_WP
from mmsim.paging.pagemap import pagemap_entry
from mmsim.paging.pte import (
    PAGE_NONE,
    PAGE_READONLY,
    PAGE_SHARED,
    pfn_pmd,
    pfn_pte,
    pmd_mkhuge,
    pte_mkspecial,
    pte_swp_mksoft_dirty,
    swp_entry,
    swp_entry_to_pte,
)
from mmsim.paging.tables import Leaf

ADDR = 0x10000000000


def word(entry, **more):
    return pagemap_entry(Leaf(ADDR, 1, entry), ADDR, **more)


def test_an_empty_place_in_a_new_area_is_soft_dirty_and_nothing_else():
    assert pagemap_entry(None, ADDR, vma_soft_dirty=True) == PM_SOFT_DIRTY and pagemap_entry(None, ADDR) == 0


def test_a_page_shows_its_frame_and_whether_another_process_maps_it():
    assert word(pfn_pte(5, PAGE_SHARED), mapcount=1) == PM_PRESENT | PM_MMAP_EXCLUSIVE | 5
    assert word(pfn_pte(5, PAGE_SHARED), mapcount=2, file=True) == PM_PRESENT | PM_FILE | 5
    assert word(pfn_pte(5, PAGE_SHARED) | 0x400) == PM_PRESENT | PM_UFFD_WP | 5


def test_prot_none_is_present_and_the_zero_page_is_nobodys():
    assert word(pfn_pte(5, PAGE_NONE)) == PM_PRESENT | 5
    assert word(pte_mkspecial(pfn_pte(5, PAGE_READONLY)), mapcount=1, file=True) == PM_PRESENT | 5


def test_the_512_pages_of_a_huge_page_count_up():
    leaf = Leaf(ADDR, 2, pmd_mkhuge(pfn_pmd(1024, PAGE_SHARED)))
    assert [pagemap_entry(leaf, ADDR + page * 4096) & 0xFFFF for page in (0, 1, 511)] == [1024, 1025, 1535]


def test_a_swapped_page_shows_its_area_in_five_bits_and_its_place_above():
    entry = swp_entry_to_pte(swp_entry(3, 9))
    assert word(entry) == PM_SWAP | 9 << 5 | 3 and word(pte_swp_mksoft_dirty(entry)) == PM_SWAP | PM_SOFT_DIRTY | 9 << 5 | 3
    assert word(entry | 4) == PM_SWAP | PM_UFFD_WP | 9 << 5 | 3


def test_a_page_on_the_move_is_still_of_its_file_but_never_exclusive():
    assert word(swp_entry_to_pte(swp_entry(31, 9)), file=True, mapcount=1) == PM_SWAP | PM_FILE | 9 << 5 | 31


def test_without_the_capability_no_frame_and_no_place_is_shown():
    assert word(pfn_pte(5, PAGE_SHARED), show_pfn=False) == PM_PRESENT
    assert word(swp_entry_to_pte(swp_entry(3, 9)), show_pfn=False) == PM_SWAP
