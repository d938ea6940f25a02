"""What mprotect, mremap and madvise do to entries that are there: other permissions, another address, another age.

5.17: mm/mprotect.c, mm/mremap.c, mm/madvise.c.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_CHG_MASK,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    _PAGE_SPECIAL,
    MADV_COLD,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    VM_SHARED,
    VM_WRITE,
)
from mmsim.errors import Errno
from mmsim.paging.pte import PAGE_SOFT_DIRTY, pte_modify, pte_pfn
from mmsim.physical.frames import PG
from mmsim.process.address_space import AddressSpace, vma_wants_writenotify
from mmsim.process.user_memory import ANON_EXCLUSIVE
from mmsim.process.vma import Vma
from mmsim.process.zap import unmap_mapping_range, zap_page_range
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["advise", "change_protection", "move_page_tables"]

_PRESENT = _PAGE_PRESENT | _PAGE_PROTNONE
_LRU, _DIRTY, _REFERENCED = PG["lru"], PG["dirty"], PG["referenced"]
_PMD_SIZE = 2 * MIB
assert not _PAGE_CHG_MASK & PAGE_SOFT_DIRTY


def change_protection(space: AddressSpace, vma: Vma, start: int, end: int) -> int:
    """Give the entries of a range the area's protection; return how many pages changed.

    Private entries never become writable here: under 5.17's rules the next write faults and finds out whether the page is its
    own. In 6.1 a page that certainly is (``rules.mprotect_maps_writable``) is made writable at once. One flush at the end.
    5.17: mm/mprotect.c, change_protection(), change_pte_range().
    """
    user, prot = space.user, space.vm_page_prot(vma)
    dirty_accountable = vma_wants_writenotify(vma, space.soft_dirty)
    upgrade = user.rules.mprotect_maps_writable and vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    pages = 0
    for table, index, old in _present_words(space, start, end):
        word = pte_modify(old, prot) | old & PAGE_SOFT_DIRTY
        if dirty_accountable and word & _PAGE_DIRTY and (not space.soft_dirty or word & PAGE_SOFT_DIRTY):
            word |= _PAGE_RW
        if upgrade and word & _PAGE_DIRTY and not word & _PAGE_SPECIAL:
            pfn = pte_pfn(word)
            if user.page_anon(pfn) and user.frames.flags[pfn] & ANON_EXCLUSIVE:
                word |= _PAGE_RW
        table[index] = word
        pages += 1
    if pages:
        space.flush_tlb_range(start, end)
    return pages


def move_page_tables(space: AddressSpace, old: int, new: int, length: int) -> int:
    """Move entries to another address; return how many bytes were moved before memory for tables ran out.

    Where both addresses are at the beginning of a PTE table and all of it moves, the table itself is hung up elsewhere.
    5.17: mm/mremap.c, move_page_tables(), move_normal_pmd(), move_ptes(). Left out: whole PUDs (the result is the same).
    """
    tables, moved, done = space.tables, False, 0
    while done < length:
        at, to = old + done, new + done
        extent = min(_PMD_SIZE - (at & _PMD_SIZE - 1), length - done)
        table = tables.ptes.get(at >> 21)
        if table is None:
            done += extent
            continue
        if extent == _PMD_SIZE and not to & _PMD_SIZE - 1:
            try:
                if _move_normal_pmd(space, at, to):
                    moved = True
                    done += extent
                    continue
            except Errno:
                break
        extent = min(extent, _PMD_SIZE - (to & _PMD_SIZE - 1))
        try:
            target, index = tables.pte_alloc(to)
        except Errno:
            break
        for offset in range(0, extent, PAGE_SIZE):
            source = at + offset >> PAGE_SHIFT & 511
            word = table[source]
            if not word:
                continue
            table[source] = 0
            if space.soft_dirty and word & _PRESENT:
                word |= PAGE_SOFT_DIRTY                         # move_soft_dirty_pte()
            target[index + (offset >> PAGE_SHIFT)] = word
            moved = True
        done += extent
    if moved:
        space.flush_tlb_range(old, old + length)
    return done


def _move_normal_pmd(space: AddressSpace, old: int, new: int) -> bool:
    """Hang a whole PTE table up at another address; False if a table is there already (5.17: mm/mremap.c, move_normal_pmd())."""
    tables = space.tables
    if new >> 21 in tables.ptes:
        return False
    target, to = tables.alloc(new, 2)
    source = tables.entry(old, 2)
    if source is None or target[to]:
        return False
    table, index = source
    target[to], table[index] = table[index], 0
    tables.ptes[new >> 21] = tables.ptes.pop(old >> 21)
    return True


# -- advice ------------------------------------------------------------------------------------------------------

def advise(space: AddressSpace, vma: Vma, start: int, end: int, advice: int) -> None:
    """Follow advice on pages that the area allows (5.17: mm/madvise.c, madvise_vma_behavior())."""
    if advice == MADV_DONTNEED:
        zap_page_range(space, vma, start, end)
    elif advice == MADV_FREE:
        _madvise_free(space, start, end)
    elif advice in (MADV_COLD, MADV_PAGEOUT):
        _madvise_cold(space, start, end)
    elif advice == MADV_REMOVE and vma.vm_file is not None:
        _madvise_remove(space, vma, start, end)


def _present_words(space: AddressSpace, start: int, end: int) -> Iterator[tuple[array[int], int, int]]:
    """(table, index, word) of the entries of a range that hold pages, in order; each may be changed when it is met."""
    for number in range(start >> 21, (end - 1 >> 21) + 1):
        table = space.tables.ptes.get(number)
        if table is None:
            continue
        base = number << 21
        for index in range(max(start - base, 0) >> PAGE_SHIFT, min(end - base >> PAGE_SHIFT, 512)):
            if table[index] & _PRESENT:
                yield table, index, table[index]


def _present_entries(space: AddressSpace, start: int, end: int) -> list[tuple[array[int], int, int]]:
    """(table, index, frame) of the pages of a range that count, in order."""
    return [(table, index, pte_pfn(word)) for table, index, word in _present_words(space, start, end) if not word & _PAGE_SPECIAL]


def _madvise_free(space: AddressSpace, start: int, end: int) -> None:
    """The contents are not needed any more, unless somebody writes again before the pages are taken.

    5.17: mm/madvise.c, madvise_free_single_vma(), madvise_free_pte_range().
    """
    user = space.user
    user.lru.lru_add_drain()
    for table, index, pfn in _present_entries(space, start, end):
        if user.frames.flags[pfn] & _DIRTY and user.page_anon(pfn):
            if user.frames.mapcount[pfn] != 1:
                continue
            user.frames.flags[pfn] &= ~_DIRTY
        table[index] &= ~(_PAGE_ACCESSED | _PAGE_DIRTY)
        if user.page_anon(pfn):
            user.lru.mark_page_lazyfree(pfn)
    space.flush_tlb_range(start, end)


def _madvise_cold(space: AddressSpace, start: int, end: int) -> None:
    """Pages of this process only are made old, to be taken first. MADV_PAGEOUT would take them now: anonymous memory without
    swap stays, which is all that is modelled.

    5.17: mm/madvise.c, madvise_cold_or_pageout_pte_range().
    """
    user = space.user
    user.lru.lru_add_drain()
    for table, index, pfn in _present_entries(space, start, end):
        if not user.frames.flags[pfn] & _LRU or user.frames.mapcount[pfn] != 1:
            continue
        table[index] &= ~_PAGE_ACCESSED
        user.frames.flags[pfn] &= ~_REFERENCED
        user.lru.deactivate_page(pfn)
    space.flush_tlb_range(start, end)


def _madvise_remove(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    """Punch a hole into the file: its pages go, wherever they are mapped (5.17: mm/madvise.c, madvise_remove())."""
    file = vma.vm_file
    assert file is not None
    first, last = vma.pgoff_at(start), vma.pgoff_at(end)
    unmap_mapping_range(file.i_mmap, first, last, even_cows=False)
    for index in [index for index in file.cache if first <= index < last]:
        space.user.delete_from_page_cache(file, index)
