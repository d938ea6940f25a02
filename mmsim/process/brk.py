"""brk: the end of the heap, up or down."""

from __future__ import annotations

from mmsim.constants import (
    MAP_FIXED,
    RLIM_INFINITY,
    SOFTDIRTY_BIT,
    VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS,
    VM_LOCKED,
)
from mmsim.errors import Errno
from mmsim.process.merge import MergeRequest, can_vma_merge_after
from mmsim.process.mm import Mm
from mmsim.process.munmap import do_munmap
from mmsim.process.populate import mm_populate
from mmsim.process.unmapped_area import get_unmapped_area
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, align_up

__all__ = ["brk", "do_brk_flags"]


def brk(mm: Mm, address: int) -> int:
    """Move the heap's end to ``address``; return where it is then: unchanged if that is not possible.

    Refused: below the heap's start, beyond RLIMIT_DATA, within a page (and its guard gap) of the next area, no promise of
    memory. 5.17: mm/mmap.c, brk().
    """
    limit = mm.limits.data
    if address < mm.start_brk or (limit < RLIM_INFINITY and
                                  address - mm.start_brk + mm.end_data - mm.start_data > limit):
        return mm.brk
    new, old = align_up(address, PAGE_SIZE), align_up(mm.brk, PAGE_SIZE)
    try:
        if new < old:
            do_munmap(mm, new, old - new)
        elif new > old:
            following = mm.tree.find(old)
            if following is not None and new + PAGE_SIZE > mm.tree.start_gap(following):
                return mm.brk
            do_brk_flags(mm, old, new - old)
    except Errno:
        return mm.brk
    mm.brk = address
    if new > old and mm.def_flags & VM_LOCKED:
        mm_populate(mm, old, new - old)
    return mm.brk


def do_brk_flags(mm: Mm, addr: int, length: int, flags: int = 0) -> Vma:
    """Map anonymous memory the short way: extend what lies below, or make an area. Raise ENOMEM, EAGAIN.

    5.17: mm/mmap.c, do_brk_flags().
    """
    flags |= VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT | mm.def_flags
    get_unmapped_area(mm, addr, length, MAP_FIXED)
    mm.mlock_future_check(mm.def_flags, length)
    pages = length >> PAGE_SHIFT
    if mm.tree.intersection(addr, addr + length) is not None:   # munmap_vma_range()
        do_munmap(mm, addr, length)
    if not mm.may_expand_vm(flags, pages):
        raise Errno("ENOMEM", "RLIMIT_AS or RLIMIT_DATA")
    if mm.map_count > mm.max_map_count:
        raise Errno("ENOMEM", f"more than {mm.max_map_count} areas")
    mm.charge(pages)
    prev = mm.tree.find_vma_links(addr)
    request = MergeRequest(addr, addr + length, flags, addr >> PAGE_SHIFT)
    vma: Vma | None = None
    if mm.rules.brk_merges_next:
        vma = mm.vma_merge(prev, request)
    elif prev is not None and prev.vm_end == addr and prev.policy is None and can_vma_merge_after(prev, request, None):
        mm.tree.resize(prev, prev.vm_start, addr + length)
        vma = prev
    if vma is None:
        vma = Vma(addr, addr + length, flags, addr >> PAGE_SHIFT)
        mm.link(vma)
    mm.total_vm += pages
    mm.data_vm += pages
    if flags & VM_LOCKED:
        mm.locked_vm += pages
    if mm.soft_dirty:
        vma.vm_flags |= SOFTDIRTY_BIT
    return vma
