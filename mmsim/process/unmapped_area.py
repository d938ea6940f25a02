"""Where a new mapping goes: the highest gap below ``mmap_base`` that fits, or the lowest one above the legacy base.

A hint is taken if nothing is in the way, whatever a search would choose. If the top-down search fails, the bottom-up
one is tried: below a huge stack gap there may be no room, above it there is.
"""

from __future__ import annotations

from collections.abc import Callable

from mmsim.constants import DEFAULT_MAP_WINDOW, MAP_32BIT, MAP_FIXED, TASK_SIZE
from mmsim.errors import Errno
from mmsim.process.mm import Mm
from mmsim.units import MIB, PAGE_SIZE, align_down, align_up, is_aligned

__all__ = ["get_unmapped_area", "unmapped_area", "unmapped_area_topdown"]


def unmapped_area_topdown(mm: Mm, length: int, low_limit: int, high_limit: int) -> int:
    """The highest address in [low_limit, high_limit - length] with ``length`` free bytes; raise ENOMEM if there is none.

    Cost: one comparison for each chunk of 512 areas, then the areas of one. 5.17: mm/mmap.c, unmapped_area_topdown().
    """
    return _traced(mm, _topdown, length, low_limit, high_limit)


def _topdown(mm: Mm, length: int, low_limit: int, high_limit: int) -> int:
    last_start = high_limit - length
    if last_start < low_limit:
        raise Errno("ENOMEM", f"{length:#x} bytes do not fit below {high_limit:#x}")
    highest = mm.tree.last
    if highest is None or highest.vm_end <= last_start:
        return last_start
    for _, end in mm.tree.gaps_down(length, last_start):
        if end < low_limit + length:
            break
        return min(end, high_limit) - length
    raise Errno("ENOMEM", f"no gap of {length:#x} bytes below {high_limit:#x}")


def unmapped_area(mm: Mm, length: int, low_limit: int, high_limit: int) -> int:
    """The lowest address in [low_limit, high_limit - length] with ``length`` free bytes; raise ENOMEM if there is none.

    5.17: mm/mmap.c, unmapped_area().
    """
    return _traced(mm, _upwards, length, low_limit, high_limit)


def _upwards(mm: Mm, length: int, low_limit: int, high_limit: int) -> int:
    last_start = high_limit - length
    if last_start < low_limit:
        raise Errno("ENOMEM", f"{length:#x} bytes do not fit below {high_limit:#x}")
    for start, end in mm.tree.gaps_up(length, low_limit + length):
        if start > last_start:
            break
        place = max(start, low_limit)
        if place + length <= end:
            return place
    highest = mm.tree.last
    place = max(highest.vm_end if highest is not None else 0, low_limit)
    if place > last_start:
        raise Errno("ENOMEM", f"no gap of {length:#x} bytes between {low_limit:#x} and {high_limit:#x}")
    return place


def _traced(mm: Mm, search: Callable[[Mm, int, int, int], int], length: int, low_limit: int, high_limit: int) -> int:
    """A search with its tracepoint, which a failed search hits too (5.17: mm/mmap.c, vm_unmapped_area())."""
    address = -12
    try:
        address = search(mm, length, low_limit, high_limit)
    finally:
        if mm.trace.enabled:
            mm.trace.emit("mmap:vm_unmapped_area", addr=address, total_vm=mm.total_vm, flags=int(search is _topdown),
                          length=length, low_limit=low_limit, high_limit=high_limit, align_mask=0, align_offset=0)
    return address


def _bottom_up(mm: Mm, hint: int, length: int, flags: int) -> int:
    """5.17: arch/x86/kernel/sys_x86_64.c, arch_get_unmapped_area() and find_start_end().

    Left out: the randomised start of the MAP_32BIT window.
    """
    begin, end = (0x4000_0000, 0x8000_0000) if flags & MAP_32BIT else (mm.layout.mmap_legacy_base, DEFAULT_MAP_WINDOW)
    if length > end:
        raise Errno("ENOMEM", "longer than the address space")
    if hint:
        hint = align_up(hint, PAGE_SIZE)
        vma = mm.tree.find(hint)
        if end - length >= hint and (vma is None or hint + length <= mm.tree.start_gap(vma)):
            return hint
    return unmapped_area(mm, length, begin, end)


def _top_down(mm: Mm, hint: int, length: int, flags: int) -> int:
    """5.17: arch/x86/kernel/sys_x86_64.c, arch_get_unmapped_area_topdown()."""
    if not flags & MAP_32BIT:
        if hint:
            place = align_down(hint, PAGE_SIZE)
            vma = mm.tree.find(place)
            if place <= TASK_SIZE - length and (vma is None or place + length <= mm.tree.start_gap(vma)):
                return place
        try:
            return unmapped_area_topdown(mm, length, PAGE_SIZE, mm.layout.mmap_base)
        except Errno:
            pass            # a failed mmap() very likely ends the program: try the other way
    return _bottom_up(mm, hint, length, flags)


def _huge_aligned(mm: Mm, length: int, flags: int) -> int | None:
    """A place at a multiple of 2 MiB, or None if there is no room for the padding.

    6.12: mm/huge_memory.c, __thp_get_unmapped_area().
    """
    try:
        place = (_bottom_up if mm.layout.legacy else _top_down)(mm, 0, length + 2 * MIB, flags)
    except Errno:
        return None
    above = -place & (2 * MIB - 1)
    return place + (above or (0 if mm.layout.legacy else 2 * MIB))


def get_unmapped_area(mm: Mm, hint: int, length: int, flags: int, private_anonymous: bool = False) -> int:
    """Choose or verify an address for ``length`` bytes (whole pages).

    Raise ENOMEM where nothing fits, EINVAL for a fixed address that is no page's, EPERM below mmap_min_addr.
    5.17: mm/mmap.c, get_unmapped_area(). Left out: what file systems decide themselves (huge pages).
    """
    if length > TASK_SIZE:
        raise Errno("ENOMEM", "longer than the address space")
    aligned = None
    if mm.rules.mmap_aligns_huge and private_anonymous and not hint and not flags & MAP_FIXED and is_aligned(length, 2 * MIB):
        aligned = _huge_aligned(mm, length, flags)
    if flags & MAP_FIXED:
        address = hint
    elif aligned is not None:
        address = aligned
    elif mm.layout.legacy:
        address = _bottom_up(mm, hint, length, flags)
    else:
        address = _top_down(mm, hint, length, flags)
    if address > TASK_SIZE - length:
        raise Errno("ENOMEM", f"{address:#x} + {length:#x} ends above the user half")
    if not is_aligned(address, PAGE_SIZE):
        raise Errno("EINVAL", f"{address:#x} is not the address of a page")
    if address < mm.mmap_min_addr and not mm.privileged:
        raise Errno("EPERM", f"{address:#x} is below mmap_min_addr")
    return address
