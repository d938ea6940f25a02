"""mincore: which pages of a range are in memory; a touched page is, and so is a page of a file that anybody brought in."""

from __future__ import annotations

from collections.abc import Callable

from mmsim.constants import TASK_SIZE_MAX
from mmsim.errors import Errno
from mmsim.paging.pte import is_migration_entry, pte_present, pte_to_swp_entry
from mmsim.process.mm import Mm
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, is_aligned

__all__ = ["access_ok", "mincore"]

#: The kernel collects the answers in one page, one byte a page of the range.
_CHUNK = PAGE_SIZE


def access_ok(start: int, size: int) -> bool:
    """Whether a range lies below the end of user space (5.17: arch/x86/include/asm/uaccess.h, __chk_range_not_ok()).

    >>> access_ok(TASK_SIZE_MAX - 1, 1), access_ok(TASK_SIZE_MAX, 1), access_ok(1 << 63, 1 << 63)
    (True, False, False)
    """
    return start + size <= TASK_SIZE_MAX


def _mincore_pte_range(mm: Mm, vma: Vma, start: int, end: int) -> bytearray:
    """A byte a page: mapped, or in the page cache at the place that the area shows.

    5.17: mm/mincore.c, mincore_pte_range(), __mincore_unmapped_range(). A page on the move (a migration entry) is in memory; a
    swapped one is not.
    """
    found = bytearray()
    cache = vma.vm_file.cache if vma.vm_file is not None else {}
    for address in range(start, end, PAGE_SIZE):
        word = mm.pages.pte(address) if mm.pages is not None else 0
        if not word:
            found.append(vma.pgoff_at(address) in cache)
        else:
            found.append(pte_present(word) or is_migration_entry(pte_to_swp_entry(word)))
    return found


def _do_mincore(mm: Mm, start: int, pages: int) -> bytearray:
    """What the area at ``start`` tells, up to its end. Raise ENOMEM if there is none. 5.17: mm/mincore.c, do_mincore()."""
    vma = mm.tree.lookup(start)
    if vma is None:
        raise Errno("ENOMEM", f"nothing is mapped at {start:#x}")
    end = min(vma.vm_end, start + (pages << PAGE_SHIFT))
    if vma.special:
        # can_do_mincore(): what is not the program's to know always looks as if it were there.
        return bytearray(b"\1" * (end - start >> PAGE_SHIFT))
    return _mincore_pte_range(mm, vma, start, end)


def mincore(mm: Mm, start: int, length: int, vec: int, copy_to_user: Callable[[int, bytes], bool]) -> None:
    """Write a byte for each page of a range to ``vec``: 1 if it is in memory. ``copy_to_user`` writes; False: a bad address.

    Raise EINVAL (unaligned), ENOMEM (beyond user space, a hole: what lies before it was written), EFAULT (``vec``). A length of
    0 is no error. 5.17: mm/mincore.c, mincore(). Left out: files that the caller could not write (all ones there).
    """
    if not is_aligned(start, PAGE_SIZE):
        raise Errno("EINVAL", f"{start:#x} is not the address of a page")
    if not access_ok(start, length):
        raise Errno("ENOMEM", "the range ends beyond user space")
    pages = (length >> PAGE_SHIFT) + (not is_aligned(length, PAGE_SIZE))
    if not access_ok(vec, pages):
        raise Errno("EFAULT", "the vector lies beyond user space")
    while pages:
        found = _do_mincore(mm, start, min(pages, _CHUNK))
        if not copy_to_user(vec, bytes(found)):
            raise Errno("EFAULT", f"the vector at {vec:#x} can't be written")
        pages -= len(found)
        vec += len(found)
        start += len(found) << PAGE_SHIFT
