"""mremap: shrink, grow in place, or move an area with its pages."""

from __future__ import annotations

from mmsim.constants import (
    LOCKED_MASK,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SHARED,
)
from mmsim.errors import Errno
from mmsim.process.change import move_page_tables
from mmsim.process.merge import MergeRequest
from mmsim.process.mm import Mm
from mmsim.process.munmap import do_munmap
from mmsim.process.populate import mm_populate
from mmsim.process.unmapped_area import get_unmapped_area
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, align_up, is_aligned, u64

__all__ = ["mremap"]


def _vma_to_resize(mm: Mm, addr: int, old_len: int, new_len: int, flags: int) -> Vma:
    """The area that is to be resized or moved, if that is allowed. Raise EFAULT, EINVAL, EAGAIN, ENOMEM.

    5.17: mm/mremap.c, vma_to_resize().
    """
    vma = mm.tree.lookup(addr)
    if vma is None:
        raise Errno("EFAULT", f"nothing is mapped at {addr:#x}")
    if not old_len and not vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        raise Errno("EINVAL", "only shared memory can be mapped a second time")
    if flags & MREMAP_DONTUNMAP and vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise Errno("EINVAL", "MREMAP_DONTUNMAP of a special mapping")
    if old_len > vma.vm_end - addr:
        raise Errno("EFAULT", f"{addr:#x} + {old_len:#x} reaches beyond {vma}")
    if new_len == old_len:
        return vma
    if vma.pgoff_at(addr) + (new_len >> PAGE_SHIFT) > U64_MAX:
        raise Errno("EINVAL", "the page offset wraps")
    if vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise Errno("EFAULT", f"{vma} keeps its size")
    mm.mlock_future_check(vma.vm_flags, new_len - old_len)
    if not mm.may_expand_vm(vma.vm_flags, (new_len - old_len) >> PAGE_SHIFT):
        raise Errno("ENOMEM", "RLIMIT_AS or RLIMIT_DATA")
    return vma


def _copy_vma(mm: Mm, vma: Vma, addr: int, length: int, pgoff: int, keep_source: bool) -> tuple[Vma, Vma]:
    """Make the destination of a move, or extend a neighbour over it; return (source, destination).

    An area without anonymous pages gets the page offset of its new place, so that it may merge there, even with its
    own old self: then both are one. 5.17: mm/mmap.c, copy_vma().
    """
    untouched = vma.is_anonymous and vma.anon_vma is None
    if untouched:
        pgoff = addr >> PAGE_SHIFT
    old_start = vma.vm_start
    prev = mm.tree.find_vma_links(addr)
    next_ = prev.vm_next if prev is not None else mm.tree.first
    request = MergeRequest(addr, addr + length, vma.vm_flags, pgoff, vma.vm_file, vma.anon_vma, vma.policy, vma.uffd,
                           vma.anon_name, vma, mm.rules.merge_into_untouched)
    new = None
    if mm.rules.mremap_copy_joins_source or not (untouched and keep_source and vma in (prev, next_)):
        new = mm.merge_between(prev, next_, request)
    elif mm.rules.mremap_copy_joins_others:
        new = mm.merge_between(None if prev is vma else prev, None if next_ is vma else next_, request)
    elif addr != vma.vm_end and vma.vm_start != addr + length:
        new = mm.merge_between(prev, next_, request)
    if new is not None:
        return (new if new.vm_start <= old_start < new.vm_end else vma), new
    new = vma.duplicate()
    new.vm_start, new.vm_end, new.vm_pgoff = addr, addr + length, pgoff
    mm.anon_vma_clone(new, vma)
    mm.get_file(new)
    mm.link(new)
    return vma, new


def _move_vma(mm: Mm, vma: Vma, old_addr: int, old_len: int, new_len: int, new_addr: int, flags: int) -> int:
    """Move part of an area; return the new address. Raise ENOMEM.

    The promise of memory moves along: VM_ACCOUNT is hidden while the old place is unmapped, so that nothing is taken
    back, and restored for what is left of the old area. 5.17: mm/mremap.c, move_vma().
    """
    if mm.map_count >= mm.max_map_count - 3:
        raise Errno("ENOMEM", "a move may need three more areas than max_map_count leaves")
    dont_unmap = bool(flags & MREMAP_DONTUNMAP)
    vm_flags = vma.vm_flags
    if vma.special and (vma.vm_start, vma.vm_end) != (old_addr, old_addr + old_len):
        raise Errno("EINVAL", f"{vma.special} must stay in one piece")
    if dont_unmap and vm_flags & VM_LOCKED and mm.rules.mremap_dontunmap_splits_locked:
        # So that only the moved part loses its lock.
        if vma.vm_start != old_addr:
            mm.split_vma(vma, old_addr, new_below=True)
        if vma.vm_end != old_addr + old_len:
            mm.split_vma(vma, old_addr + old_len, new_below=False)
    to_account = (new_len if dont_unmap else new_len - old_len) >> PAGE_SHIFT
    if vm_flags & VM_ACCOUNT:
        mm.charge(to_account)
    vma, new = _copy_vma(mm, vma, new_addr, new_len, vma.pgoff_at(old_addr), dont_unmap)
    failed = False
    if mm.pages is not None:
        moved = move_page_tables(mm.pages, old_addr, new_addr, old_len)
        if moved < old_len:
            # Back to where it was; then the destination is unmapped instead of the source.
            failed = True
            move_page_tables(mm.pages, new_addr, old_addr, moved)
            vma, old_addr, old_len, dont_unmap = new, new_addr, new_len, False
            if vm_flags & VM_ACCOUNT:
                mm.overcommit.uncharge(to_account)          # 5.17 forgets that
    if mm.on_move is not None and not failed:
        mm.on_move(vma, old_addr, new, new_addr, old_len)
    excess, split = 0, False
    if vm_flags & VM_ACCOUNT and not dont_unmap:
        vma.vm_flags &= ~VM_ACCOUNT
        excess = vma.vm_end - vma.vm_start - old_len
        split = vma.vm_start < old_addr and old_addr + old_len < vma.vm_end
    mm.vm_stat_account(vma.vm_flags, new_len >> PAGE_SHIFT)
    if dont_unmap:
        if vma.vm_flags & VM_LOCKED:
            # locked_vm stays as it is: right if all of the area moved, else what did not move is counted for ever.
            mm.locked_vm_lost += (vma.vm_end - vma.vm_start - old_len) >> PAGE_SHIFT
        vma.vm_flags &= ~LOCKED_MASK
        if new is not vma and (vma.vm_start, vma.vm_end) == (old_addr, old_addr + old_len):
            mm.unlink_anon_vmas(vma)
            if vma.is_anonymous and not mm.rules.mremap_dontunmap_keeps_pgoff:
                vma.vm_pgoff = vma.vm_start >> PAGE_SHIFT
        return new_addr
    hiwater_vm = mm.hiwater_vm
    try:
        do_munmap(mm, old_addr, old_len)
    except Errno:
        if vm_flags & VM_ACCOUNT:
            mm.overcommit.committed += old_len >> PAGE_SHIFT
        excess = 0
    mm.hiwater_vm = hiwater_vm              # while both were there, the address space only looked larger
    if vm_flags & VM_LOCKED:
        mm.locked_vm += new_len >> PAGE_SHIFT
    if excess:
        vma.vm_flags |= VM_ACCOUNT
        if split and vma.vm_next is not None:
            vma.vm_next.vm_flags |= VM_ACCOUNT
    if failed:
        raise Errno("ENOMEM", "no memory for page tables at the new place")
    return new_addr


def _check_destination(mm: Mm, addr: int, old_len: int, new_addr: int, new_len: int) -> None:
    """Can anything be moved there? Raise EINVAL, ENOMEM (5.17: mm/mremap.c, the beginning of mremap_to())."""
    if not is_aligned(new_addr, PAGE_SIZE):
        raise Errno("EINVAL", f"{new_addr:#x} is not the address of a page")
    if new_len > TASK_SIZE or new_addr > TASK_SIZE - new_len:
        raise Errno("EINVAL", "the destination ends above the user half")
    if addr + old_len > new_addr and new_addr + new_len > addr:
        raise Errno("EINVAL", "source and destination overlap")
    if mm.map_count + 2 >= mm.max_map_count - 3:
        raise Errno("ENOMEM", "a move may need more areas than max_map_count leaves")


def _mremap_to(mm: Mm, addr: int, old_len: int, new_addr: int, new_len: int, flags: int) -> int:
    """Move to an address that the caller chose, or (MREMAP_DONTUNMAP alone) to one near it.

    What lies there goes first, and stays gone if the move then fails. 5.17: mm/mremap.c, mremap_to().
    """
    _check_destination(mm, addr, old_len, new_addr, new_len)
    if flags & MREMAP_FIXED:
        do_munmap(mm, new_addr, new_len)
    if old_len > new_len:
        do_munmap(mm, addr + new_len, old_len - new_len)
        old_len = new_len
    vma = _vma_to_resize(mm, addr, old_len, new_len, flags)
    if flags & MREMAP_DONTUNMAP and not mm.may_expand_vm(vma.vm_flags, old_len >> PAGE_SHIFT):
        raise Errno("ENOMEM", "RLIMIT_AS or RLIMIT_DATA")
    map_flags = (MAP_FIXED if flags & MREMAP_FIXED else 0) | (MAP_SHARED if vma.vm_flags & VM_MAYSHARE else 0)
    place = get_unmapped_area(mm, new_addr, new_len, map_flags)
    locked = bool(vma.vm_flags & VM_LOCKED) and not flags & MREMAP_DONTUNMAP
    result = _move_vma(mm, vma, addr, old_len, new_len, place, flags)
    if locked and new_len > old_len:
        mm_populate(mm, result + old_len, new_len - old_len)
    return result


def _move_several(mm: Mm, addr: int, length: int, new_addr: int, flags: int) -> int:
    """Move all areas of a range one after the other, with the holes between them; a hole at the start is EFAULT.

    6.18: mm/mremap.c, remap_move().
    """
    end, result, target, last_end = addr + length, 0, new_addr, None
    vma = mm.tree.intersection(addr, end)
    if vma is None or vma.vm_start > addr:
        raise Errno("EFAULT", f"nothing is mapped at {addr:#x}")
    at = addr
    while vma is not None and at < end and vma.vm_start < end:
        start, stop = max(vma.vm_start, at), min(vma.vm_end, end)
        target += vma.vm_start - last_end if last_end is not None else 0
        last_end, at = vma.vm_end, stop
        moved = _mremap_to(mm, start, stop - start, target, stop - start, flags)
        result = result or moved
        target = moved + stop - start
        vma = mm.tree.find(at)
    return result


def _vma_expandable(mm: Mm, vma: Vma, delta: int) -> bool:
    """Is there room right above? 5.17: mm/mremap.c, vma_expandable()."""
    end = vma.vm_end + delta
    if end > U64_MAX or mm.tree.intersection(vma.vm_end, end) is not None:
        return False
    try:
        get_unmapped_area(mm, vma.vm_start, end - vma.vm_start, MAP_FIXED)
    except Errno:
        return False
    return True


def _expand_in_place(mm: Mm, vma: Vma, addr: int, old_len: int, new_len: int) -> None:
    """Move the upper end of an area up. Only since 6.0 does it merge with what it then touches."""
    pages, start, end = (new_len - old_len) >> PAGE_SHIFT, addr + old_len, addr + new_len
    if vma.vm_flags & VM_ACCOUNT:
        mm.charge(pages)
    if mm.rules.mremap_growth_merges and not vma.has_close:
        merged = mm.vma_merge(vma, mm.request(vma, start, end, vma.vm_flags))
        if merged is None:
            if vma.vm_flags & VM_ACCOUNT:
                mm.overcommit.uncharge(pages)
            raise Errno("ENOMEM", f"{vma} cannot be extended")
        vma = merged
    else:
        mm.vma_adjust(vma, vma.vm_start, end, vma.vm_pgoff)
    mm.vm_stat_account(vma.vm_flags, pages)
    if vma.vm_flags & VM_LOCKED:
        mm.locked_vm += pages
        mm_populate(mm, start, new_len - old_len)


def mremap(mm: Mm, addr: int, old_len: int, new_len: int, flags: int, new_addr: int = 0) -> int:
    """Resize or move; return the address.

    Raise EINVAL (unaligned, unknown or contradictory flags, new length 0, overlap), EFAULT (no area, or more than one),
    EAGAIN (RLIMIT_MEMLOCK), ENOMEM. Under 5.17's rules an address with nothing mapped is no error but the *result* 14:
    the kernel had lost a minus sign. 5.17: mm/mremap.c, mremap().
    """
    if flags & ~(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP):
        raise Errno("EINVAL", f"unknown flags {flags:#x}")
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        raise Errno("EINVAL", "MREMAP_FIXED and MREMAP_DONTUNMAP need MREMAP_MAYMOVE")
    if flags & MREMAP_DONTUNMAP and old_len != new_len:
        raise Errno("EINVAL", "MREMAP_DONTUNMAP moves without resizing")
    if not is_aligned(addr, PAGE_SIZE):
        raise Errno("EINVAL", f"{addr:#x} is not the address of a page")
    old_len, new_len = u64(align_up(old_len, PAGE_SIZE)), u64(align_up(new_len, PAGE_SIZE))
    if not new_len:
        raise Errno("EINVAL", "a new length of 0")
    if mm.rules.mremap_moves_several and flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        # Since 6.17 nothing is unmapped before the source is known to be good.
        _check_destination(mm, addr, old_len, new_addr, new_len)
        if flags & MREMAP_FIXED and old_len == new_len:
            return _move_several(mm, addr, old_len, new_addr, flags)
        _vma_to_resize(mm, addr, min(old_len, new_len), new_len, flags)
    if mm.tree.lookup(addr) is None:
        error = Errno("EFAULT", f"nothing is mapped at {addr:#x}")
        if mm.rules.mremap_positive_efault:
            return error.number
        raise error
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return _mremap_to(mm, addr, old_len, new_addr, new_len, flags)
    if old_len >= new_len:
        if old_len != new_len:
            do_munmap(mm, addr + new_len, old_len - new_len)
        return addr
    vma = _vma_to_resize(mm, addr, old_len, new_len, flags)
    if old_len == vma.vm_end - addr and _vma_expandable(mm, vma, new_len - old_len):
        _expand_in_place(mm, vma, addr, old_len, new_len)
        return addr
    if not flags & MREMAP_MAYMOVE:
        raise Errno("ENOMEM", f"{vma} cannot grow where it is")
    place = get_unmapped_area(mm, 0, new_len, MAP_SHARED if vma.vm_flags & VM_MAYSHARE else 0)
    locked = vma.vm_flags & VM_LOCKED
    result = _move_vma(mm, vma, addr, old_len, new_len, place, flags)
    if locked:
        mm_populate(mm, result + old_len, new_len - old_len)
    return result
