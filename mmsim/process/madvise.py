"""madvise: what a program says about a range. Some advice becomes a flag of the area, and so splits and merges it.

Advice on pages (DONTNEED, FREE, COLD, PAGEOUT, POPULATE) is checked here and handed to the faults' part by
``Mm.on_advice``.
"""

from __future__ import annotations

from mmsim.constants import (
    MADV_COLD,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
)
from mmsim.errors import Errno
from mmsim.process.change import advise
from mmsim.process.mm import Mm
from mmsim.process.mprotect import change_area
from mmsim.process.populate import fault_in_range
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SIZE, align_up, is_aligned, u64

__all__ = ["madvise", "new_flags"]

#: Advice that only sets and clears flags: (clear, set).
_FLAG_ADVICE = {
    MADV_NORMAL: (VM_RAND_READ | VM_SEQ_READ, 0), MADV_SEQUENTIAL: (VM_RAND_READ, VM_SEQ_READ),
    MADV_RANDOM: (VM_SEQ_READ, VM_RAND_READ), MADV_DONTFORK: (0, VM_DONTCOPY), MADV_DOFORK: (VM_DONTCOPY, 0),
    MADV_WIPEONFORK: (0, VM_WIPEONFORK), MADV_KEEPONFORK: (VM_WIPEONFORK, 0), MADV_DONTDUMP: (0, VM_DONTDUMP),
    MADV_DODUMP: (VM_DONTDUMP, 0), MADV_HUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE), MADV_MERGEABLE: (0, VM_MERGEABLE), MADV_UNMERGEABLE: (VM_MERGEABLE, 0),
}
_PAGE_ADVICE = {MADV_WILLNEED, MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ,
                MADV_POPULATE_WRITE}
_NOT_FOR_KSM = (VM_MERGEABLE | VM_SHARED | VM_MAYSHARE | VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_HUGETLB | VM_MIXEDMAP)


def new_flags(vma: Vma, advice: int) -> int:
    """The flags of an area after advice that changes flags; raise EINVAL where the area cannot take it.

    5.17: mm/madvise.c, madvise_vma_behavior(); mm/ksm.c, ksm_madvise(); mm/khugepaged.c, hugepage_madvise().
    """
    if advice == MADV_DOFORK and vma.vm_flags & VM_IO:
        raise Errno("EINVAL", "device memory is never copied")
    if advice == MADV_WIPEONFORK and (vma.vm_file is not None or vma.vm_flags & VM_SHARED):
        raise Errno("EINVAL", "only private anonymous memory can be wiped")
    if advice == MADV_DODUMP and vma.vm_flags & VM_SPECIAL:
        raise Errno("EINVAL", "special mappings are never dumped")
    if advice == MADV_MERGEABLE and vma.vm_flags & _NOT_FOR_KSM:
        return vma.vm_flags
    clear, add = _FLAG_ADVICE[advice]
    return vma.vm_flags & ~clear | add


def _advise_pages(mm: Mm, vma: Vma, start: int, end: int, advice: int) -> None:
    """Advice on pages: may it be followed here? Raise EINVAL, EACCES, EFAULT."""
    if advice in (MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT) and vma.vm_flags & (VM_LOCKED | VM_HUGETLB | VM_PFNMAP):
        raise Errno("EINVAL", f"{vma} is locked")
    if advice == MADV_FREE and not vma.is_anonymous:
        raise Errno("EINVAL", "MADV_FREE is for private anonymous memory")
    if advice == MADV_REMOVE:
        if vma.vm_flags & VM_LOCKED or vma.vm_file is None:
            raise Errno("EINVAL", "MADV_REMOVE needs a file, not locked")
        if vma.vm_flags & (VM_SHARED | VM_WRITE) != VM_SHARED | VM_WRITE:
            raise Errno("EACCES", "MADV_REMOVE needs a shared writable mapping")
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        write = advice == MADV_POPULATE_WRITE
        if not vma.vm_flags & (VM_WRITE if write else VM_READ) or vma.vm_flags & (VM_IO | VM_PFNMAP):
            raise Errno("EINVAL", f"{vma} does not allow the access")
        fault_in_range(mm, vma, start, end, write)


def _advise_flags(mm: Mm, vma: Vma, prev: Vma | None, start: int, end: int, advice: int) -> Vma:
    """Advice that becomes flags of the area (5.17: mm/madvise.c, madvise_update_vma()): no room for a split is EAGAIN."""
    flags = new_flags(vma, advice)
    if flags == vma.vm_flags:
        return vma
    try:
        vma = change_area(mm, vma, prev, start, end, flags)
    except Errno as error:
        raise Errno("EAGAIN" if error.name == "ENOMEM" else error.name, error.why) from None
    vma.vm_flags = flags
    return vma


def madvise(mm: Mm, start: int, length: int, advice: int) -> None:
    """Follow advice on a range. Holes are passed over but make it ENOMEM at the end.

    Raise EINVAL (unaligned, wrap, unknown advice, wrong kind of area), EAGAIN (max_map_count), EACCES, EFAULT, ENOMEM.
    5.17: mm/madvise.c, do_madvise() and madvise_walk_vmas(). Left out: MADV_HWPOISON and MADV_SOFT_OFFLINE (EINVAL, as
    without CONFIG_MEMORY_FAILURE), named anonymous memory.
    """
    if advice not in _FLAG_ADVICE and advice not in _PAGE_ADVICE:
        raise Errno("EINVAL", f"unknown advice {advice}")
    if not is_aligned(start, PAGE_SIZE):
        raise Errno("EINVAL", f"{start:#x} is not the address of a page")
    rounded = u64(align_up(length, PAGE_SIZE))
    if length and not rounded:
        raise Errno("EINVAL", "the length wraps when it is rounded up")
    end = u64(start + rounded)
    if end < start:
        raise Errno("EINVAL", "the range wraps")
    if end == start:
        return
    vma, prev = mm.tree.find_prev(start)
    if vma is not None and start > vma.vm_start:
        prev = vma
    hole = False
    while True:
        if vma is None:
            raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
        if start < vma.vm_start:
            hole, start = True, vma.vm_start
            if start >= end:
                break
        upto = min(vma.vm_end, end)
        if advice in _FLAG_ADVICE:
            prev = _advise_flags(mm, vma, prev, start, upto, advice)
        else:
            _advise_pages(mm, vma, start, upto, advice)
            if mm.pages is not None:
                advise(mm.pages, vma, start, upto, advice)
            if mm.on_advice is not None:
                mm.on_advice(vma, start, upto, advice)
            prev = vma
        start = max(upto, prev.vm_end)
        if start >= end:
            break
        vma = prev.vm_next
    if hole:
        raise Errno("ENOMEM", "part of the range is not mapped")
