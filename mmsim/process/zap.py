"""Taking pages out of page tables: for munmap, at exit, and on advice.

Entries are emptied and their pages gathered; only when the TLBs have been flushed are the pages given back, so that no CPU can
reach a page through an old entry that somebody else uses already.

5.17: mm/memory.c, mm/mmu_gather.c, mm/mmap.c.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_SPECIAL,
    MM_ANONPAGES,
    PTE_PFN_MASK,
    VM_SEQ_READ,
)
from mmsim.errors import KernelBug
from mmsim.paging.pte import describe, pte_pfn
from mmsim.physical.frames import PG
from mmsim.process.address_space import AddressSpace
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["unmap_mapping_range", "unmap_region", "unmap_vmas", "zap_page_range", "zap_pte_range"]

_PRESENT = _PAGE_PRESENT | _PAGE_PROTNONE
_MLOCKED = PG["mlocked"]


def zap_pte_range(space: AddressSpace, vma: Vma, start: int, end: int, gather: list[int], *, even_cows: bool = True) -> bool:
    """Empty the entries of a range inside one area; their pages are appended to ``gather``, each with the entry's reference.

    Without ``even_cows`` private copies of a file's pages stay. Return whether anything was mapped, which needs a flush.

    What the entry knew goes to the page: a file's page becomes dirty if the entry was, and is marked as used.
    Cost: one step an entry in use; tables that do not exist cost nothing. 5.17: mm/memory.c, zap_pte_range().
    """
    user, ptes = space.user, space.tables.ptes
    frames = user.frames
    rss, flush = [0, 0, 0, 0], False
    for number in _table_numbers(ptes, start, end):
        table = ptes[number]
        base = number << 21
        first, last = max(start - base, 0) >> PAGE_SHIFT, min(end - base >> PAGE_SHIFT, 512)
        words = table[first:last]
        kept: list[int] = [] if even_cows else words.tolist()
        for index, word in enumerate(words, first):
            if not word:
                continue
            if not word & _PRESENT:
                raise KernelBug(f"{base | index << PAGE_SHIFT:#x}: {describe(word)}; swap is not modelled")
            flush = True
            if word & _PAGE_SPECIAL:
                if kept:
                    kept[index - first] = 0
                continue
            pfn = (word & PTE_PFN_MASK) >> PAGE_SHIFT if word & _PAGE_PRESENT else pte_pfn(word)
            member = user.mm_counter(pfn)
            if kept:
                if member == MM_ANONPAGES:
                    continue
                kept[index - first] = 0
            rss[member] += 1
            if member != MM_ANONPAGES:
                if word & _PAGE_DIRTY:
                    user.set_page_dirty(pfn)
                if word & _PAGE_ACCESSED and not vma.vm_flags & VM_SEQ_READ:
                    user.mark_page_accessed(pfn)
            if frames.mapcount[pfn] == 1 and member == MM_ANONPAGES and not frames.flags[pfn] & _MLOCKED:
                frames.mapcount[pfn] = 0                        # page_remove_rmap(), the common case
                user.nr_anon_mapped -= 1
            else:
                user.page_remove_rmap(pfn)
            gather.append(pfn)
        table[first:last] = array("Q", kept or bytes(8 * (last - first)))
    if user.current is not None and user.current.mm is space.mm:
        space.sync_mm_rss()                                     # add_mm_rss_vec()
    for member, pages in enumerate(rss):
        if pages:
            space.add_mm_counter(member, -pages)
    return flush


def _table_numbers(ptes: Mapping[int, object], start: int, end: int) -> Sequence[int]:
    """The PTE tables of a range, in order: of those that exist, or of the range's, whichever are fewer."""
    low, high = start >> 21, (end - 1 >> 21) + 1
    if high - low <= len(ptes):
        return [number for number in range(low, high) if number in ptes]
    return sorted(number for number in ptes if low <= number < high)


def _tlb_finish_mmu(space: AddressSpace, start: int, end: int, gather: list[int], flush: bool, freed_tables: bool = False) -> None:
    """Flush the TLBs, then give the gathered pages back (5.17: mm/mmu_gather.c, tlb_finish_mmu())."""
    if flush or freed_tables:
        space.flush_tlb_range(start, end, freed_tables)
    if gather:
        space.user.release_pages(gather)


def zap_page_range(space: AddressSpace, vma: Vma, start: int, end: int, *, even_cows: bool = True) -> None:
    """Take all pages of a range away; the area stays (5.17: mm/memory.c, zap_page_range(), for MADV_DONTNEED)."""
    if space.user.rules.unmap_drains:
        space.user.lru.lru_add_drain()
    space.mm.update_hiwater()
    gather: list[int] = []
    flush = zap_pte_range(space, vma, start, end, gather, even_cows=even_cows)
    _tlb_finish_mmu(space, start, end, gather, flush)


def unmap_region(space: AddressSpace, areas: Sequence[Vma], previous: Vma | None, following: Vma | None) -> None:
    """Take the pages of areas away that are out of the tree already, and the tables that no neighbour needs.

    The CPU's pagevecs are emptied first, so that pages are really free afterwards. 5.17: mm/mmap.c, unmap_region(); mm/memory.c,
    free_pgtables().
    """
    if space.user.rules.unmap_drains:
        space.user.lru.lru_add_drain()
    space.mm.update_hiwater()
    unmap_vmas(space, areas, previous, following)


def unmap_vmas(space: AddressSpace, areas: Sequence[Vma], previous: Vma | None, following: Vma | None) -> None:
    """Empty the entries of areas, free the tables that neither neighbour needs, flush, and give the pages back.

    5.17: mm/memory.c, unmap_vmas(), free_pgtables().
    """
    start, end = areas[0].vm_start, areas[-1].vm_end
    gather: list[int] = []
    flush = False
    for vma in areas:
        flush |= zap_pte_range(space, vma, vma.vm_start, vma.vm_end, gather)
    for vma in areas:
        space.mm.unlink_anon_vmas(vma)
    tables = space.tables
    before = tables.pgtables_bytes
    tables.free_pgtables(start, end, previous.vm_end if previous is not None else 0,
                         following.vm_start if following is not None else 0, gather)
    _tlb_finish_mmu(space, start, end, gather, flush, tables.pgtables_bytes != before)


def unmap_mapping_range(areas: Iterable[Vma], first: int, last: int, *, even_cows: bool) -> None:
    """Unmap pages ``first <= index < last`` of a file wherever they are mapped, and with ``even_cows`` private copies of them.

    5.17: mm/memory.c, unmap_mapping_range().
    """
    for vma in list(areas):
        if vma.vm_mm is None or vma.vm_mm.pages is None:
            continue
        low = max(first - vma.vm_pgoff, 0)
        high = min(last - vma.vm_pgoff, vma.pages)
        if low < high:
            zap_page_range(vma.vm_mm.pages, vma, vma.vm_start + low * PAGE_SIZE, vma.vm_start + high * PAGE_SIZE,
                           even_cows=even_cows)
