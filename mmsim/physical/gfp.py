"""GFP flags: what a caller of the page allocator may have, and what may be done to get it.

The low four bits name zones, two more the mobility of the page, the rest what the allocator may do: sleep and reclaim,
start I/O, dip into reserves, fail early or never. A mask is a plain integer; its flags are written without
the kernel's first underscore (``_GFP_ZERO`` is ``__GFP_ZERO``).
"""

from __future__ import annotations

from mmsim import constants as c
from mmsim.errors import InputError, KernelBug

__all__ = ["GFP_FLAGS", "gfp_zone", "gfp_migratetype", "gfp_to_alloc_flags", "gfp_names", "parse_gfp", "alloc_flag_names"]

#: Every flag and composite by the kernel's name.
GFP_FLAGS: dict[str, int] = {
    ("_" + name if name.startswith("_") else name): value
    for name, value in vars(c).items()
    if name.startswith(("GFP_", "_GFP_")) and not name.endswith("MASK")
}

# The order in which the kernel looks for names: masks of most bits first, what is left shows by itself.
# 5.17: include/trace/events/mmflags.h, __def_gfpflag_names. The KASAN flag has a name only with CONFIG_KASAN_HW_TAGS.
_PRINTED = tuple((name, GFP_FLAGS[name]) for name in (
    "GFP_TRANSHUGE", "GFP_TRANSHUGE_LIGHT", "GFP_HIGHUSER_MOVABLE", "GFP_HIGHUSER", "GFP_USER", "GFP_KERNEL_ACCOUNT",
    "GFP_KERNEL", "GFP_NOFS", "GFP_ATOMIC", "GFP_NOIO", "GFP_NOWAIT", "GFP_DMA", "__GFP_HIGHMEM", "GFP_DMA32",
    "__GFP_HIGH", "__GFP_ATOMIC", "__GFP_IO", "__GFP_FS", "__GFP_NOWARN", "__GFP_RETRY_MAYFAIL", "__GFP_NOFAIL",
    "__GFP_NORETRY", "__GFP_COMP", "__GFP_ZERO", "__GFP_NOMEMALLOC", "__GFP_MEMALLOC", "__GFP_HARDWALL", "__GFP_THISNODE",
    "__GFP_RECLAIMABLE", "__GFP_MOVABLE", "__GFP_ACCOUNT", "__GFP_WRITE", "__GFP_RECLAIM", "__GFP_DIRECT_RECLAIM",
    "__GFP_KSWAPD_RECLAIM", "__GFP_ZEROTAGS"))

# What the four zone bits select (DMA 1, HIGHMEM 2, DMA32 4, MOVABLE 8); without HIGHMEM zones, HIGHMEM means Normal.
# The selectors that are missing contradict themselves. 5.17: include/linux/gfp.h, GFP_ZONE_TABLE and GFP_ZONE_BAD.
_ZONE_TABLE = {
    0x0: c.ZONE_NORMAL,
    0x1: c.ZONE_DMA,
    0x2: c.ZONE_NORMAL,
    0x4: c.ZONE_DMA32,
    0x8: c.ZONE_NORMAL,
    0x9: c.ZONE_DMA,
    0xA: c.ZONE_MOVABLE,
    0xC: c.ZONE_DMA32,
}


def gfp_zone(gfp_mask: int) -> int:
    """The highest zone that may serve a request: the allocator starts there and falls back to lower ones.

    Raise KernelBug for zone bits that contradict each other (two zones at once): the kernel's VM_BUG_ON.
    5.17: include/linux/gfp.h, gfp_zone().

    >>> gfp_zone(c.GFP_KERNEL), gfp_zone(c.GFP_HIGHUSER_MOVABLE), gfp_zone(c.GFP_DMA)
    (2, 3, 0)
    """
    selector = gfp_mask & c.GFP_ZONEMASK
    try:
        return _ZONE_TABLE[selector]
    except KeyError:
        raise KernelBug(f"VM_BUG_ON((GFP_ZONE_BAD >> bit) & 1): gfp {gfp_mask:#x} asks for several zones at once "
                        f"({gfp_names(selector)})") from None


def gfp_migratetype(gfp_mask: int) -> int:
    """The migratetype whose free lists a request uses.

    A mask that is both reclaimable and movable is MIGRATE_HIGHATOMIC's number; the kernel warns.
    5.17: include/linux/gfp.h, gfp_migratetype(). Left out: page_group_by_mobility_disabled, for machines too small
    for it.

    >>> gfp_migratetype(c.GFP_HIGHUSER_MOVABLE) == c.MIGRATE_MOVABLE
    True
    """
    return (gfp_mask & c.GFP_MOVABLE_MASK) >> 3


def gfp_to_alloc_flags(gfp_mask: int, *, cma: bool = False) -> int:
    """The allocation flags of the slow path: which watermark counts, and how far below it this caller may go.

    ``__GFP_HIGH`` halves the mark; a caller that cannot sleep (``__GFP_ATOMIC``) takes a quarter more and ignores
    cpusets. With ``cma``, movable requests may use CMA areas.
    5.17: mm/page_alloc.c, gfp_to_alloc_flags(). Left out: real-time tasks, which count as ALLOC_HARDER.

    >>> hex(gfp_to_alloc_flags(c.GFP_ATOMIC))
    '0x830'
    """
    alloc_flags = c.ALLOC_WMARK_MIN | c.ALLOC_CPUSET
    # Two flags have the same value as their GFP counterparts: the kernel saves the branches.
    alloc_flags |= gfp_mask & (c._GFP_HIGH | c._GFP_KSWAPD_RECLAIM)
    if gfp_mask & c._GFP_ATOMIC:
        if not gfp_mask & c._GFP_NOMEMALLOC:
            alloc_flags |= c.ALLOC_HARDER
        alloc_flags &= ~c.ALLOC_CPUSET
    return gfp_to_alloc_flags_cma(gfp_mask, alloc_flags, cma=cma)


def gfp_to_alloc_flags_cma(gfp_mask: int, alloc_flags: int, *, cma: bool) -> int:
    """``alloc_flags`` with ALLOC_CMA if the kernel has CMA areas and the page is movable.

    5.17: mm/page_alloc.c, gfp_to_alloc_flags_cma().
    """
    if cma and gfp_migratetype(gfp_mask) == c.MIGRATE_MOVABLE:
        alloc_flags |= c.ALLOC_CMA
    return alloc_flags


def gfp_names(gfp_mask: int) -> str:
    """The mask in names, as traces and ``%pGg`` print it; bits without a name stay a hexadecimal number.

    5.17: lib/vsprintf.c, format_flags(), and include/trace/events/mmflags.h, show_gfp_flags().

    >>> gfp_names(c.GFP_KERNEL_ACCOUNT | c._GFP_ZERO)
    'GFP_KERNEL_ACCOUNT|__GFP_ZERO'
    """
    names, left = [], gfp_mask
    for name, mask in _PRINTED:
        if left & mask == mask:
            names.append(name)
            left &= ~mask
    if left:
        names.append(f"{left:#x}")
    return "|".join(names) or "none"


def parse_gfp(text: str) -> int:
    """The mask that names joined by ``|`` mean; numbers in C notation are accepted too. Raise InputError for anything
    else.

    >>> hex(parse_gfp("GFP_KERNEL|__GFP_ZERO"))
    '0xdc0'
    """
    gfp_mask = 0
    for part in (part.strip() for part in text.split("|")):
        if part in GFP_FLAGS:
            gfp_mask |= GFP_FLAGS[part]
        elif part != "none":
            try:
                gfp_mask |= int(part, 0)
            except ValueError:
                raise InputError(f"{part!r} is no GFP flag") from None
    return gfp_mask


_ALLOC_FLAGS = tuple((name, getattr(c, name)) for name in (
    "ALLOC_NO_WATERMARKS", "ALLOC_OOM", "ALLOC_HARDER", "ALLOC_HIGH", "ALLOC_CPUSET", "ALLOC_CMA", "ALLOC_NOFRAGMENT",
    "ALLOC_KSWAPD"))


def alloc_flag_names(alloc_flags: int) -> str:
    """Allocation flags in names, the watermark first. (The kernel never prints them; the names are mm/internal.h's.)

    >>> alloc_flag_names(0x830)
    'ALLOC_WMARK_MIN|ALLOC_HARDER|ALLOC_HIGH|ALLOC_KSWAPD'
    """
    names = [name for name, flag in _ALLOC_FLAGS if alloc_flags & flag]
    if not alloc_flags & c.ALLOC_NO_WATERMARKS:
        names.insert(0, ("ALLOC_WMARK_MIN", "ALLOC_WMARK_LOW", "ALLOC_WMARK_HIGH", "ALLOC_WMARK_3")[alloc_flags & 3])
    return "|".join(names)
