"""The reverse map: from a page to every page-table entry that maps it.

A page knows its owner (``page->mapping``: an anon_vma, or a file) and its place there (``page->index``). The owner knows the
areas in which its pages may be met; in each the address follows from the index. Whether the page really is there only the
page table says: after a copy-on-write a child's area is still linked to the parent's anon_vma, and a walk visits it for
nothing::

    page ──► anon_vma A ──► area of the root           hit
                        ├─► area of the child          miss: it has its own copy
                        └─► area of the grandchild     hit

Each fork links the child's area to all anon_vmas of the parent's area and to one more, its own, so that pages made after the
fork are looked for among descendants only.

5.17: mm/rmap.c. Left out: its locks, large pages, pages of KSM.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmsim.constants import _PAGE_PRESENT, _PAGE_PROTNONE, _PAGE_SPECIAL
from mmsim.paging.pte import pte_pfn
from mmsim.process.merge import anon_vma_compatible
from mmsim.process.vma import AnonVma, MappedFile, Vma
from mmsim.units import PAGE_SHIFT

__all__ = ["Visit", "anon_vma_clone", "anon_vma_fork", "anon_vma_interval_search", "anon_vma_prepare", "rmap_walk",
           "unlink_anon_vmas", "vma_address"]


def _anon_vma_chain_link(vma: Vma, anon_vma: AnonVma) -> None:
    """Link an area and an anon_vma both ways (5.17: mm/rmap.c, anon_vma_chain_link())."""
    vma.anon_vma_chain.append(anon_vma)
    anon_vma.areas[vma] = None


def _reusable_anon_vma(old: Vma) -> AnonVma | None:
    """The anon_vma of a neighbour, if no fork has been there (5.17: mm/mmap.c, reusable_anon_vma())."""
    return old.anon_vma if len(old.anon_vma_chain) == 1 else None


def find_mergeable_anon_vma(vma: Vma) -> AnonVma | None:
    """The anon_vma of a neighbour with which the area might merge one day: the next one's, else the previous one's.

    5.17: mm/mmap.c, find_mergeable_anon_vma().
    """
    anon_vma = None
    if vma.vm_next is not None and anon_vma_compatible(vma, vma.vm_next):
        anon_vma = _reusable_anon_vma(vma.vm_next)
    if anon_vma is None and vma.vm_prev is not None and anon_vma_compatible(vma.vm_prev, vma):
        anon_vma = _reusable_anon_vma(vma.vm_prev)
    return anon_vma


def anon_vma_prepare(vma: Vma) -> None:
    """See that an area has an anon_vma before its first anonymous page (5.17: include/linux/rmap.h, anon_vma_prepare())."""
    if vma.anon_vma is None:
        __anon_vma_prepare(vma)


def __anon_vma_prepare(vma: Vma) -> None:
    """Give an area a neighbour's anon_vma, if the two might merge, or a new one (5.17: mm/rmap.c, __anon_vma_prepare())."""
    anon_vma = find_mergeable_anon_vma(vma) or AnonVma()
    vma.anon_vma = anon_vma
    _anon_vma_chain_link(vma, anon_vma)
    anon_vma.degree += 1            # a new root's second one is for being its own parent


def anon_vma_clone(vma: Vma, source: Vma) -> None:
    """Link an area to every anon_vma at which the other's pages may be met.

    An area of a child that has no anon_vma yet gets one of its forefathers' that nobody uses any more and that has but one
    child: so the chain does not grow for ever in a line of forks in which each parent exits. 5.17: mm/rmap.c, anon_vma_clone().
    """
    for anon_vma in source.anon_vma_chain:
        _anon_vma_chain_link(vma, anon_vma)
        if vma.anon_vma is None and source.anon_vma is not None and anon_vma is not source.anon_vma and anon_vma.degree < 2:
            vma.anon_vma = anon_vma
    if vma.anon_vma is not None:
        vma.anon_vma.degree += 1


def anon_vma_fork(vma: Vma, parent: Vma) -> None:
    """Link a child's area to the anon_vmas of its parent's and to one of its own (5.17: mm/rmap.c, anon_vma_fork())."""
    if parent.anon_vma is None:
        return
    vma.anon_vma = None
    anon_vma_clone(vma, parent)
    if vma.anon_vma is not None:
        return
    anon_vma = AnonVma(parent.anon_vma)
    vma.anon_vma = anon_vma
    _anon_vma_chain_link(vma, anon_vma)
    anon_vma.parent.degree += 1


def unlink_anon_vmas(vma: Vma) -> None:
    """The area has no anonymous pages any more; an anon_vma that loses its last area is gone.

    5.17: mm/rmap.c, unlink_anon_vmas().
    """
    for anon_vma in reversed(vma.anon_vma_chain):
        anon_vma.areas.pop(vma, None)
        if not anon_vma.areas:
            anon_vma.parent.degree -= 1
    vma.anon_vma_chain.clear()
    if vma.anon_vma is not None:
        vma.anon_vma.degree -= 1
        vma.anon_vma = None


# -- walks -------------------------------------------------------------------------------------------------------

class Visit(NamedTuple):
    """One area that a walk looked at: the address at which the page would be, and whether it is."""

    vma: Vma
    address: int
    hit: bool


def vma_address(index: int, vma: Vma) -> int:
    """Where the page of this index is in an area (5.17: mm/internal.h, vma_address())."""
    return vma.vm_start + (index - vma.vm_pgoff << PAGE_SHIFT)


def anon_vma_interval_search(areas: dict[Vma, None], index: int) -> Iterator[Vma]:
    """The areas of an owner that contain the index. Cost: linear in its areas; the kernel's interval tree skips those that do
    not (5.17: mm/interval_tree.c, anon_vma_interval_tree_iter_first()).
    """
    for vma in areas:
        if vma.vm_pgoff <= index < vma.vm_pgoff + (vma.vm_end - vma.vm_start >> PAGE_SHIFT):
            yield vma


def rmap_walk(pfn: int, owner: AnonVma | MappedFile, index: int) -> list[Visit]:
    """Visit every area in which a page may be mapped; those that map it are hits.

    5.17: mm/rmap.c, rmap_walk_anon(), rmap_walk_file(); mm/page_vma_mapped.c, page_vma_mapped_walk().
    """
    visits = []
    for vma in anon_vma_interval_search(owner.areas if isinstance(owner, AnonVma) else owner.i_mmap, index):
        address = vma_address(index, vma)
        mm = vma.vm_mm
        table = mm.pages.tables.ptes.get(address >> 21) if mm is not None and mm.pages is not None else None
        word = table[address >> 12 & 511] if table is not None else 0
        hit = word & (_PAGE_PRESENT | _PAGE_PROTNONE) != 0 and not word & _PAGE_SPECIAL and pte_pfn(word) == pfn
        visits.append(Visit(vma, address, hit))
    return visits
