"""When two areas become one: the eight cases of ``vma_merge()``.

A range ``AAAA`` is about to get new properties (mprotect, mlock, madvise: it is mapped already) or to be mapped (mmap,
brk, mremap: it lies in a hole). ``PPPP`` is the area before it, ``NNNN`` the one after::

        AAAA             AAAA             AAAA                 AAAA
      PPPPPPNNNN       PPPPNNNNNN       PPPP    NNNN       PPPPNNNNXXXX
    4 PPNNNNNNNN     5 PPPPPPPPNN     1 PPPPPPPPPPPP     6 PPPPPPPPPPPP
                                      2 PPPPPPPPNNNN     7 PPPPPPPPXXXX
                                      3 PPPPNNNNNNNN     8 PPPPXXXXXXXX

Here the decision is made; :class:`mmsim.process.mm.Mm` carries it out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from mmsim.constants import SOFTDIRTY_BIT, VM_SPECIAL
from mmsim.process.vma import AnonVma, MappedFile, Vma
from mmsim.units import PAGE_SHIFT

__all__ = ["MergeRequest", "Merge", "decide_merge", "can_vma_merge_after", "can_vma_merge_before",
           "is_mergeable_anon_vma", "anon_vma_compatible"]


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """The range [addr, end) and what it will be."""

    addr: int
    end: int
    vm_flags: int
    pgoff: int
    file: MappedFile | None = None
    anon_vma: AnonVma | None = None
    policy: Hashable = None
    uffd: Hashable = None
    anon_name: str | None = None
    #: The area whose part the range is, or of which it is a copy; None for a new mapping.
    source: Vma | None = None
    #: 6.18's rule: an untouched area may take in a touched range.
    into_untouched: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """What to do: ``vma`` becomes [start, end) from ``pgoff``, and ``expand`` is the area that grows and stays."""

    case: int
    vma: Vma
    start: int
    end: int
    pgoff: int
    expand: Vma


def _is_mergeable_vma(vma: Vma, request: MergeRequest) -> bool:
    """Same flags (but soft-dirty), same file, and nobody who counts areas (5.17: mm/mmap.c, is_mergeable_vma())."""
    return (not (vma.vm_flags ^ request.vm_flags) & ~SOFTDIRTY_BIT and vma.vm_file is request.file and not vma.has_close
            and vma.uffd == request.uffd and vma.anon_name == request.anon_name)


def is_mergeable_anon_vma(one: AnonVma | None, other: AnonVma | None, vma: Vma | None) -> bool:
    """Can pages of both be met at one place? Yes if it is one place; or if one side has none yet and ``vma`` has never
    been through a fork (its chain has exactly one link).

    An untouched area has an empty chain, which is not one link: so it never takes in a touched range.
    5.17: mm/mmap.c, is_mergeable_anon_vma().
    """
    if (one is None or other is None) and (vma is None or len(vma.anon_vma_chain) == 1):
        return True
    return one is other


def _fits_anon_vma(vma: Vma, request: MergeRequest, anon_vma: AnonVma | None) -> bool:
    """:func:`is_mergeable_anon_vma`, or under 6.18's rules its successor: either side may be untouched, unless the
    other one has been through a fork."""
    if request.into_untouched and vma.anon_vma is None and anon_vma is not None:
        return request.source is None or len(request.source.anon_vma_chain) <= 1
    return is_mergeable_anon_vma(anon_vma, vma.anon_vma, vma)


def can_vma_merge_after(vma: Vma, request: MergeRequest, anon_vma: AnonVma | None) -> bool:
    """Can the range be appended to ``vma``? 5.17: mm/mmap.c, can_vma_merge_after()."""
    return (_is_mergeable_vma(vma, request) and _fits_anon_vma(vma, request, anon_vma)
            and vma.vm_pgoff + vma.pages == request.pgoff)


def can_vma_merge_before(vma: Vma, request: MergeRequest, anon_vma: AnonVma | None) -> bool:
    """Can the range be put in front of ``vma``? 5.17: mm/mmap.c, can_vma_merge_before()."""
    return (_is_mergeable_vma(vma, request) and _fits_anon_vma(vma, request, anon_vma)
            and vma.vm_pgoff == request.pgoff + ((request.end - request.addr) >> PAGE_SHIFT))


def decide_merge(prev: Vma | None, area: Vma | None, request: MergeRequest) -> Merge | None:
    """Which of the eight cases applies, or None.

    ``prev`` is the area that begins before the range, ``area`` the first one after ``prev``. O(1).
    5.17: mm/mmap.c, vma_merge().
    """
    if request.vm_flags & VM_SPECIAL:
        return None
    covered = area is not None and area.vm_end == request.end
    next_ = area.vm_next if area is not None and covered else area
    pglen = (request.end - request.addr) >> PAGE_SHIFT
    after = (prev is not None and prev.vm_end == request.addr and prev.policy == request.policy
             and can_vma_merge_after(prev, request, request.anon_vma))
    before = (next_ is not None and next_.vm_start == request.end and next_.policy == request.policy
              and can_vma_merge_before(next_, request, request.anon_vma))
    if prev is not None and after:
        if next_ is not None and before and is_mergeable_anon_vma(prev.anon_vma, next_.anon_vma, None):
            return Merge(6 if covered else 1, prev, prev.vm_start, next_.vm_end, prev.vm_pgoff, prev)
        overlaps = area is not None and area.vm_start < request.end
        return Merge(7 if covered else 5 if overlaps else 2, prev, prev.vm_start, request.end, prev.vm_pgoff, prev)
    if next_ is not None and area is not None and before:
        if prev is not None and request.addr < prev.vm_end:
            return Merge(4, prev, prev.vm_start, request.addr, prev.vm_pgoff, next_)
        return Merge(8 if covered else 3, area, request.addr, next_.vm_end, next_.vm_pgoff - pglen, next_)
    return None


def anon_vma_compatible(low: Vma, high: Vma) -> bool:
    """Might two neighbours become one after an mprotect? Then they had better share an anon_vma from the start.

    5.17: mm/mmap.c, anon_vma_compatible().
    """
    return (low.vm_end == high.vm_start and low.policy == high.policy and low.vm_file is high.vm_file
            and not (low.vm_flags ^ high.vm_flags) & ~(7 | SOFTDIRTY_BIT)
            and high.vm_pgoff == low.vm_pgoff + low.pages)
