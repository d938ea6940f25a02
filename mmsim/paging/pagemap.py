"""The words of /proc/PID/pagemap: where each page of an address space is, 64 bits a page.

    bit 63 present | 62 swapped | 61 file or shared | 57 uffd-wp | 56 mapped by one process only | 55 soft-dirty
    bits 54..0: the frame number (0 for readers without CAP_SYS_ADMIN); for a swapped page 4..0 the type, 54..5 the offset
"""

from __future__ import annotations

from mmsim.constants import (
    _PAGE_SWP_UFFD_WP,
    _PAGE_UFFD_WP,
    MAX_SWAPFILES_SHIFT,
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PFRAME_MASK,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
)
from mmsim.paging.pte import (
    is_migration_entry,
    is_swap_pte,
    pmd_present,
    pte_pfn,
    pte_present,
    pte_soft_dirty,
    pte_special,
    pte_swp_soft_dirty,
    pte_to_swp_entry,
)
from mmsim.paging.tables import Leaf
from mmsim.units import PAGE_SHIFT

__all__ = ["pagemap_entry"]


def pagemap_entry(leaf: Leaf | None, addr: int, *, vma_soft_dirty: bool = False, file: bool = False, mapcount: int = 0,
                  show_pfn: bool = True) -> int:
    """The word for the page at ``addr``, whose entry is ``leaf`` (None: nothing there).

    What the entry does not say is the caller's: whether the area is new (VM_SOFTDIRTY), whether the page belongs to a file
    or shared memory, how many tables map it. A special page (the zero page) counts as neither. 5.17: fs/proc/task_mmu.c,
    pte_to_pagemap_entry(), pagemap_pmd_range().

    >>> hex(pagemap_entry(Leaf(0x10000000000, 1, 0x8000000001bcf867), 0x10000000000, mapcount=1))
    '0x8180000000001bcf'
    """
    flags = PM_SOFT_DIRTY if vma_soft_dirty else 0
    if leaf is None:
        return flags
    word, frame = leaf.word, 0
    present = pte_present(word) if leaf.level == 1 else pmd_present(word)
    if present:
        flags |= PM_PRESENT
        flags |= (PM_SOFT_DIRTY if pte_soft_dirty(word) else 0) | (PM_UFFD_WP if word & _PAGE_UFFD_WP else 0)
        frame = pte_pfn(word, leaf.level) + (addr - leaf.addr >> PAGE_SHIFT) if show_pfn else 0
        if not pte_special(word):
            flags |= (PM_FILE if file else 0) | (PM_MMAP_EXCLUSIVE if mapcount == 1 else 0)
    elif is_swap_pte(word):
        flags |= PM_SWAP | (PM_SOFT_DIRTY if pte_swp_soft_dirty(word) else 0)
        flags |= PM_UFFD_WP if word & _PAGE_SWP_UFFD_WP else 0
        entry = pte_to_swp_entry(word)
        offset = entry.offset + (addr - leaf.addr >> PAGE_SHIFT)
        frame = entry.type | offset << MAX_SWAPFILES_SHIFT if show_pfn else 0
        # A page on the move still is there to say whose it is, but not how often it was mapped.
        flags |= PM_FILE if file and is_migration_entry(entry) else 0
    return frame & PM_PFRAME_MASK | flags
