"""munmap: take pages away, which may mean to split the areas at both ends, and so may fail."""

from __future__ import annotations

from mmsim.constants import TASK_SIZE, VM_ACCOUNT, VM_LOCKED
from mmsim.errors import Errno
from mmsim.process.mm import Mm
from mmsim.process.zap import unmap_region
from mmsim.units import PAGE_SIZE, align_up, is_aligned

__all__ = ["do_munmap"]


def do_munmap(mm: Mm, start: int, length: int) -> None:
    """Unmap [start, start + length), length rounded up to pages. A range with nothing in it is no error.

    Raise EINVAL for a start that is no page's, a length of 0 or a range outside the user half; ENOMEM if cutting a
    hole into one area would make more areas than max_map_count. O(log n) and the areas that go.
    5.17: mm/mmap.c, __do_munmap(). Left out: userfaultfd's unmap events.
    """
    if not is_aligned(start, PAGE_SIZE) or start > TASK_SIZE or length > TASK_SIZE - start:
        raise Errno("EINVAL", f"{start:#x} + {length:#x} is no range of user pages")
    end = start + align_up(length, PAGE_SIZE)
    if end == start:
        raise Errno("EINVAL", "a length of 0")
    vma = mm.tree.find_vma(start)
    if vma is None or vma.vm_start >= end:
        return
    if start > vma.vm_start:
        # Only a hole inside one area leaves more areas than before; the limit may be exceeded in between.
        if end < vma.vm_end and mm.map_count >= mm.max_map_count:
            raise Errno("ENOMEM", f"a hole would make more than {mm.max_map_count} areas")
        vma = mm.split_vma_unchecked(vma, start, new_below=False)
    last = mm.tree.find_vma(end)
    if last is not None and end > last.vm_start:
        below = mm.split_vma_unchecked(last, end, new_below=True)
        if last is vma:
            vma = below
    doomed = list(mm.tree.overlapping(start, end))
    mm.update_hiwater()
    if mm.pages is not None:
        unmap_region(mm.pages, doomed, doomed[0].vm_prev, doomed[-1].vm_next)
    for vma in doomed:
        if mm.on_unmap is not None:
            mm.on_unmap(vma, vma.vm_start, vma.vm_end)
        mm.tree.remove(vma)
        mm.map_count -= 1
        if vma.vm_flags & VM_LOCKED:
            mm.locked_vm -= vma.pages
        if vma.vm_flags & VM_ACCOUNT:
            mm.overcommit.uncharge(vma.pages)
        mm.vm_stat_account(vma.vm_flags, -vma.pages)
        mm.put_file(vma)
        if mm.pages is None:                                    # else its pages went, and these with them
            mm.unlink_anon_vmas(vma)
