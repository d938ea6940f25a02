"""mprotect: other permissions for a range, area by area; each part is merged with a neighbour or split off."""

from __future__ import annotations

from mmsim.constants import (
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from mmsim.errors import Errno
from mmsim.process.change import change_protection
from mmsim.process.mm import Mm
from mmsim.process.populate import populate_vma_page_range
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, align_up, is_aligned, u64

__all__ = ["change_area", "mprotect", "mprotect_fixup"]


def change_area(mm: Mm, vma: Vma, prev: Vma | None, start: int, end: int, vm_flags: int) -> Vma:
    """Bring [start, end), which lies in ``vma``, into an area of its own or a neighbour's; return that area.

    Its flags are still the caller's business. Raise ENOMEM at max_map_count. The common part of 5.17's
    mprotect_fixup(), mlock_fixup() and madvise_update_vma().
    """
    merged = mm.vma_merge(prev, mm.request(vma, start, end, vm_flags))
    if merged is not None:
        return merged
    if start != vma.vm_start:
        mm.split_vma(vma, start, new_below=True)
    if end != vma.vm_end:
        mm.split_vma(vma, end, new_below=False)
    return vma


def mprotect_fixup(mm: Mm, vma: Vma, prev: Vma | None, start: int, end: int, newflags: int) -> Vma:
    """Give part of one area new flags; return the area that now holds it.

    Private memory that becomes writable is a promise from then on, and stays one when it becomes read-only again.
    Raise ENOMEM. 5.17: mm/mprotect.c, mprotect_fixup().
    """
    oldflags, pages = vma.vm_flags, (end - start) >> PAGE_SHIFT
    if newflags == oldflags:
        return vma
    charged = 0
    if newflags & VM_WRITE:
        if not mm.may_expand_vm(newflags, pages) and mm.may_expand_vm(oldflags, pages):
            raise Errno("ENOMEM", "RLIMIT_DATA")
        if not oldflags & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            mm.charge(pages)
            charged = pages
            newflags |= VM_ACCOUNT
    elif mm.rules.mprotect_returns_promise and oldflags & VM_ACCOUNT and vma.is_anonymous and vma.anon_vma is None:
        newflags &= ~VM_ACCOUNT
    try:
        vma = change_area(mm, vma, prev, start, end, newflags)
    except Errno:
        mm.overcommit.uncharge(charged)
        raise
    if oldflags & VM_ACCOUNT and not newflags & VM_ACCOUNT:
        mm.overcommit.uncharge(pages)
    vma.vm_flags = newflags
    if mm.pages is not None:
        change_protection(mm.pages, vma, start, end)
    if mm.on_protect is not None:
        mm.on_protect(vma, start, end)
    if oldflags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and newflags & VM_WRITE:
        try:
            populate_vma_page_range(mm, vma, start, end)     # break copy-on-write now, not at the access
        except Errno:
            pass
    mm.vm_stat_account(oldflags, -pages)
    mm.vm_stat_account(newflags, pages)
    return vma


def mprotect(mm: Mm, start: int, length: int, prot: int) -> None:
    """Set the permissions of a range. Areas before the one that fails keep their new permissions.

    Raise EINVAL (unaligned, unknown bits, both GROWS flags), ENOMEM (a hole, wrap, too many areas, no promise), EACCES (the
    file was not opened for it). 5.17: mm/mprotect.c, do_mprotect_pkey(). Left out: protection keys.
    """
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    prot &= ~(PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == PROT_GROWSDOWN | PROT_GROWSUP:
        raise Errno("EINVAL", "PROT_GROWSDOWN and PROT_GROWSUP")
    if not is_aligned(start, PAGE_SIZE):
        raise Errno("EINVAL", f"{start:#x} is not the address of a page")
    if not length:
        return
    end = u64(start + u64(align_up(length, PAGE_SIZE)))
    if end <= start:
        raise Errno("ENOMEM", "the range wraps")
    if prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM):
        raise Errno("EINVAL", f"unknown protection bits {prot:#x}")
    vma = mm.tree.find_vma(start)
    if vma is None:
        raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
    if grows & PROT_GROWSDOWN:
        if vma.vm_start >= end:
            raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
        start = vma.vm_start
        if not vma.vm_flags & VM_GROWSDOWN:
            raise Errno("EINVAL", f"{vma} does not grow")
    elif vma.vm_start > start:
        raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
    elif grows:
        raise Errno("EINVAL", "nothing grows up on x86")
    prev = vma if start > vma.vm_start else vma.vm_prev
    while True:
        newflags = prot & VM_ACCESS_FLAGS | vma.vm_flags & ~VM_ACCESS_FLAGS
        if newflags & ~(newflags >> 4) & VM_ACCESS_FLAGS:
            raise Errno("EACCES", f"{vma} may not get these permissions")
        upto = min(vma.vm_end, end)
        prev = mprotect_fixup(mm, vma, prev, start, upto, newflags)
        start = max(upto, prev.vm_end)
        if start >= end:
            return
        following = prev.vm_next
        if following is None or following.vm_start != start:
            raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
        vma = following
