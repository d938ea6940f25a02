"""mlock and its relatives: areas whose pages stay in memory, counted against RLIMIT_MEMLOCK."""

from __future__ import annotations

from mmsim.constants import (
    LOCKED_MASK,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    TASK_SIZE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_SPECIAL,
)
from mmsim.errors import Errno
from mmsim.paging.pte import pte_pfn, pte_present, pte_special
from mmsim.process.address_space import AddressSpace
from mmsim.process.mm import Mm
from mmsim.process.mprotect import change_area
from mmsim.process.populate import mm_populate, populate_range
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, align_down, align_up, u64

__all__ = ["mlock", "mlock2", "mlockall", "munlock", "munlockall"]


def mlock_fixup(mm: Mm, vma: Vma, prev: Vma | None, start: int, end: int, newflags: int) -> Vma:
    """Lock or unlock part of one area; special areas are passed over. 5.17: mm/mlock.c, mlock_fixup()."""
    oldflags = vma.vm_flags
    if newflags == oldflags or oldflags & (VM_SPECIAL | VM_HUGETLB):
        return vma
    vma = change_area(mm, vma, prev, start, end, newflags)
    pages = (end - start) >> PAGE_SHIFT
    if not newflags & VM_LOCKED:
        # munlock of an area that isn't locked never gets here: its flags would not change.
        mm.locked_vm -= pages
    elif not oldflags & VM_LOCKED:
        mm.locked_vm += pages
    vma.vm_flags = newflags
    if mm.pages is not None and oldflags & VM_LOCKED and not newflags & VM_LOCKED:
        munlock_vma_pages_range(mm.pages, start, end)
    return vma


def munlock_vma_pages_range(space: AddressSpace, start: int, end: int) -> None:
    """The pages of a range need not stay in memory any more (5.17: mm/mlock.c, munlock_vma_pages_range())."""
    space.user.lru.lru_add_drain()
    for address in range(start, end, PAGE_SIZE):
        word = space.pte(address)
        if pte_present(word) and not pte_special(word):
            space.user.clear_page_mlock(pte_pfn(word))


def apply_vma_lock_flags(mm: Mm, start: int, length: int, flags: int) -> None:
    """Set the lock flags of a range; raise ENOMEM at a hole, after what lies before it was done.

    5.17: mm/mlock.c, apply_vma_lock_flags().
    """
    end = u64(start + length)
    if end < start:
        raise Errno("EINVAL", "the range wraps")
    if end == start:
        return
    vma = mm.tree.lookup(start)
    if vma is None:
        raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
    prev = vma if start > vma.vm_start else vma.vm_prev
    while True:
        upto = min(vma.vm_end, end)
        prev = mlock_fixup(mm, vma, prev, start, upto, vma.vm_flags & ~LOCKED_MASK | flags)
        start = max(upto, prev.vm_end)
        if start >= end:
            return
        following = prev.vm_next
        if following is None or following.vm_start != start:
            raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
        vma = following


def _whole_pages(start: int, length: int) -> tuple[int, int]:
    return align_down(start, PAGE_SIZE), u64(align_up(length + (start & (PAGE_SIZE - 1)), PAGE_SIZE))


def _count_locked(mm: Mm, start: int, end: int) -> int:
    """Pages of a range that are locked already (5.17: mm/mlock.c, count_mm_mlocked_page_nr())."""
    return sum(min(end, vma.vm_end) - max(start, vma.vm_start) for vma in mm.tree.overlapping(start, end)
               if vma.vm_flags & VM_LOCKED) >> PAGE_SHIFT


def _do_mlock(mm: Mm, start: int, length: int, flags: int) -> None:
    """5.17: mm/mlock.c, do_mlock()."""
    if not mm.can_do_mlock():
        raise Errno("EPERM", "RLIMIT_MEMLOCK is 0")
    start, length = _whole_pages(start, length)
    limit = mm.limits.memlock >> PAGE_SHIFT
    locked = (length >> PAGE_SHIFT) + mm.locked_vm
    if locked > limit and not mm.privileged:
        locked -= _count_locked(mm, start, start + length)
        if locked > limit:
            raise Errno("ENOMEM", f"{locked} locked pages would exceed RLIMIT_MEMLOCK ({limit})")
    apply_vma_lock_flags(mm, start, length, flags)
    try:
        populate_range(mm, start, start + length, ignore_errors=False)
    except Errno as error:
        raise Errno({"EFAULT": "ENOMEM", "ENOMEM": "EAGAIN"}.get(error.name, error.name), error.why) from None


def mlock(mm: Mm, start: int, length: int) -> None:
    """Lock the pages that hold a range, and bring them in.

    Raise EPERM, EINVAL (wrap), ENOMEM (limit, hole, a page that cannot be brought in: the flags are set nevertheless).
    5.17: mm/mlock.c, mlock().
    """
    _do_mlock(mm, start, length, VM_LOCKED)


def mlock2(mm: Mm, start: int, length: int, flags: int) -> None:
    """:func:`mlock`, with MLOCK_ONFAULT only for pages as they are touched (5.17: mm/mlock.c, mlock2())."""
    if flags & ~MLOCK_ONFAULT:
        raise Errno("EINVAL", f"unknown flags {flags:#x}")
    _do_mlock(mm, start, length, VM_LOCKED | (VM_LOCKONFAULT if flags & MLOCK_ONFAULT else 0))


def munlock(mm: Mm, start: int, length: int) -> None:
    """Unlock the pages that hold a range. Raise EINVAL (wrap), ENOMEM (a hole). 5.17: mm/mlock.c, munlock()."""
    apply_vma_lock_flags(mm, *_whole_pages(start, length), 0)


def _apply_mlockall_flags(mm: Mm, flags: int) -> None:
    """5.17: mm/mlock.c, apply_mlockall_flags(): errors of single areas are ignored."""
    mm.def_flags &= ~LOCKED_MASK
    if flags & MCL_FUTURE:
        mm.def_flags |= VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
        if not flags & MCL_CURRENT:
            return
    add = 0
    if flags & MCL_CURRENT:
        add = VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
    vma, prev = mm.tree.first, None
    while vma is not None:
        try:
            vma = mlock_fixup(mm, vma, prev, vma.vm_start, vma.vm_end, vma.vm_flags & ~LOCKED_MASK | add)
        except Errno:
            pass
        prev, vma = vma, vma.vm_next


def mlockall(mm: Mm, flags: int) -> None:
    """Lock all areas, those to come, or both. Raise EINVAL, EPERM, ENOMEM (limit). 5.17: mm/mlock.c, mlockall()."""
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        raise Errno("EINVAL", f"flags {flags:#x}")
    if not mm.can_do_mlock():
        raise Errno("EPERM", "RLIMIT_MEMLOCK is 0")
    if flags & MCL_CURRENT and mm.total_vm > mm.limits.memlock >> PAGE_SHIFT and not mm.privileged:
        raise Errno("ENOMEM", f"{mm.total_vm} pages are more than RLIMIT_MEMLOCK")
    _apply_mlockall_flags(mm, flags)
    if flags & MCL_CURRENT:
        mm_populate(mm, 0, TASK_SIZE)


def munlockall(mm: Mm) -> None:
    """Unlock everything, also for areas to come (5.17: mm/mlock.c, munlockall())."""
    _apply_mlockall_flags(mm, 0)
