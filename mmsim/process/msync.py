"""msync: write what a program changed in a shared file back, and go on noticing changes."""

from __future__ import annotations

from mmsim.constants import MS_ASYNC, MS_INVALIDATE, MS_SYNC, VM_LOCKED, VM_SHARED
from mmsim.errors import Errno
from mmsim.paging.pte import pte_dirty, pte_mkclean, pte_write, pte_wrprotect
from mmsim.physical.frames import PG
from mmsim.process.mm import Mm
from mmsim.process.user_memory import UserMemory
from mmsim.process.vma import MappedFile
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, align_up, is_aligned, u64

__all__ = ["msync", "page_mkclean", "writeback"]


def page_mkclean(user: UserMemory, pfn: int) -> int:
    """Make every shared entry of a page clean and read-only, so that the next write is noticed; return how many were not.

    5.17: mm/rmap.c, page_mkclean_one().
    """
    cleaned = 0
    for visit in user.rmap_walk(pfn):
        mm = visit.vma.vm_mm
        if not visit.hit or not visit.vma.vm_flags & VM_SHARED or mm is None or mm.pages is None:
            continue
        table, index = mm.pages.tables.ptes[visit.address >> 21], visit.address >> PAGE_SHIFT & 511
        word = table[index]
        if pte_dirty(word) or pte_write(word):
            mm.pages.ptep_clear_flush(visit.address, table, index)
            table[index] = pte_mkclean(pte_wrprotect(word))
            cleaned += 1
    return cleaned


def writeback(user: UserMemory, file: MappedFile, first: int, last: int) -> int:
    """Write the dirty pages of a file from ``first`` to ``last`` (inclusive); return how many there were.

    Shared memory has nowhere to go: nothing happens to it. 5.17: fs/sync.c, vfs_fsync_range(); mm/page-writeback.c,
    clear_page_dirty_for_io(). The write itself is over at once.
    """
    if file.is_shmem:
        return 0
    written = 0
    for index, pfn in file.cache.items():
        if first <= index <= last:
            dirtied = page_mkclean(user, pfn)
            if dirtied or user.frames.flags[pfn] & PG["dirty"]:
                user.frames.flags[pfn] &= ~PG["dirty"]
                written += 1
    return written


def msync(mm: Mm, start: int, length: int, flags: int) -> None:
    """Write the changes of shared file mappings in a range back, if MS_SYNC is set; else only look at the range.

    Raise EINVAL (unknown flags, unaligned, MS_SYNC with MS_ASYNC), ENOMEM (wrap, a hole: what lies around it was written, but
    MS_ASYNC stops there), EBUSY (MS_INVALIDATE of a locked area). 5.17: mm/msync.c, msync().
    """
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC):
        raise Errno("EINVAL", f"unknown flags {flags:#x}")
    if not is_aligned(start, PAGE_SIZE):
        raise Errno("EINVAL", f"{start:#x} is not the address of a page")
    if flags & MS_ASYNC and flags & MS_SYNC:
        raise Errno("EINVAL", "both MS_ASYNC and MS_SYNC")
    end = u64(start + u64(align_up(length, PAGE_SIZE)))
    if end < start:
        raise Errno("ENOMEM", "the range wraps")
    if end == start:
        return
    hole = False
    vma = mm.tree.find(start)
    while True:
        if vma is None:
            raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
        if start < vma.vm_start:
            hole = True
            if flags == MS_ASYNC:
                raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
            start = vma.vm_start
            if start >= end:
                raise Errno("ENOMEM", "the range ends in a hole")
        if flags & MS_INVALIDATE and vma.vm_flags & VM_LOCKED:
            raise Errno("EBUSY", f"{vma} is locked")
        if flags & MS_SYNC and vma.vm_file is not None and vma.vm_flags & VM_SHARED and mm.pages is not None:
            upto = min(end, vma.vm_end)
            writeback(mm.pages.user, vma.vm_file, vma.pgoff_at(start), vma.pgoff_at(upto - PAGE_SIZE))
        start = vma.vm_end
        if start >= end:
            break
        vma = mm.tree.find(start)
    if hole:
        raise Errno("ENOMEM", "part of the range is not mapped")
