"""The size classes of kmalloc(): thirteen sizes, four kinds of memory.

A request is served from the smallest class that holds it. Between the powers of two there are two more classes, 96 and 192,
because many requests of the kernel are just above 64 and 128 bytes.

5.17: include/linux/slab.h, mm/slab_common.c.
"""

from __future__ import annotations

from mmsim import constants as c
from mmsim.errors import InputError
from mmsim.kernel.slab_layout import (
    SLAB_ACCOUNT,
    SLAB_CACHE_DMA,
    SLAB_RECLAIM_ACCOUNT,
    CacheLayout,
    calculate_alignment,
    calculate_sizes,
    get_order,
)
from mmsim.units import MIB, PAGE_SIZE, is_power_of_two

__all__ = [
    "KMALLOC_CGROUP", "KMALLOC_DMA", "KMALLOC_MAX_CACHE_SIZE", "KMALLOC_MAX_SIZE", "KMALLOC_NORMAL", "KMALLOC_PREFIXES",
    "KMALLOC_INDEX", "KMALLOC_RECLAIM", "KMALLOC_SIZES", "KMALLOC_TYPE_FLAGS", "ZERO_SIZE_PTR", "boot_cache_alignment",
    "kmalloc_cache_name", "kmalloc_index", "kmalloc_layout", "kmalloc_size_roundup", "kmalloc_type", "parse_kmalloc_name",
]

#: The object size of each class by its index; index 0 is none, 1 and 2 are the two in between.
KMALLOC_SIZES: tuple[int, ...] = (0, 96, 192, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
KMALLOC_SHIFT_LOW, KMALLOC_SHIFT_HIGH = 3, 13
#: Larger requests go to the page allocator.
KMALLOC_MAX_CACHE_SIZE = 2 * PAGE_SIZE
KMALLOC_MAX_SIZE = 4 * MIB
#: What kmalloc(0) returns: an address that faults, and that kfree() knows.
ZERO_SIZE_PTR = 16

# The kinds of memory, with CONFIG_MEMCG_KMEM and CONFIG_ZONE_DMA.
KMALLOC_NORMAL, KMALLOC_CGROUP, KMALLOC_RECLAIM, KMALLOC_DMA = range(4)
KMALLOC_PREFIXES = ("kmalloc-", "kmalloc-cg-", "kmalloc-rcl-", "dma-kmalloc-")
KMALLOC_TYPE_FLAGS = (0, SLAB_ACCOUNT, SLAB_RECLAIM_ACCOUNT, SLAB_CACHE_DMA)


def kmalloc_index(size: int) -> int:
    """The size class of a request: an index of KMALLOC_SIZES; 0 for none. Raise InputError above 8192 bytes.

    5.17: include/linux/slab.h, __kmalloc_index(); mm/slab_common.c, size_index[].

    >>> [KMALLOC_SIZES[kmalloc_index(size)] for size in (1, 65, 100, 193, 8192)]
    [8, 96, 128, 256, 8192]
    """
    if not 0 <= size <= KMALLOC_MAX_CACHE_SIZE:
        raise InputError(f"no kmalloc cache holds {size} bytes")
    if not size:
        return 0
    if 64 < size <= 96:
        return 1
    if 128 < size <= 192:
        return 2
    return max(KMALLOC_SHIFT_LOW, (size - 1).bit_length())


_ASCENDING = sorted(KMALLOC_SIZES)
#: :func:`kmalloc_index` of every size, as the kernel's size_index[] has it of the small ones.
KMALLOC_INDEX = b"\0" + b"".join(bytes((kmalloc_index(size),)) * (size - below) for below, size in zip(_ASCENDING, _ASCENDING[1:]))


def kmalloc_size_roundup(size: int) -> int:
    """The bytes that a request really gets: its class's size, or whole pages above 8192 bytes.

    >>> kmalloc_size_roundup(100), kmalloc_size_roundup(8193)
    (128, 16384)
    """
    return KMALLOC_SIZES[kmalloc_index(size)] if size <= KMALLOC_MAX_CACHE_SIZE else PAGE_SIZE << get_order(size)


def kmalloc_type(gfp_flags: int) -> int:
    """Which kind of cache a request wants: for DMA memory, reclaimable, accounted to a cgroup, or none of these.

    5.17: include/linux/slab.h, kmalloc_type().
    """
    if not gfp_flags & (c._GFP_DMA | c._GFP_RECLAIMABLE | c._GFP_ACCOUNT):
        return KMALLOC_NORMAL
    if gfp_flags & c._GFP_DMA:
        return KMALLOC_DMA
    return KMALLOC_RECLAIM if gfp_flags & c._GFP_RECLAIMABLE else KMALLOC_CGROUP


def _size_name(size: int) -> str:
    return f"{size >> 10}k" if size >= 1024 else str(size)


def kmalloc_cache_name(kind: int, index: int) -> str:
    """The name of a cache.

    >>> kmalloc_cache_name(KMALLOC_RECLAIM, 11)
    'kmalloc-rcl-2k'
    """
    return KMALLOC_PREFIXES[kind] + _size_name(KMALLOC_SIZES[index])


def parse_kmalloc_name(name: str) -> tuple[int, int] | None:
    """Kind and object size of a kmalloc cache by its name (``kmalloc-1k`` or ``kmalloc-1024``); None for another name.

    >>> parse_kmalloc_name("dma-kmalloc-2k"), parse_kmalloc_name("dentry")
    ((3, 2048), None)
    """
    for kind in (KMALLOC_CGROUP, KMALLOC_RECLAIM, KMALLOC_DMA, KMALLOC_NORMAL):
        prefix, digits = KMALLOC_PREFIXES[kind], name.removeprefix(KMALLOC_PREFIXES[kind])
        if name.startswith(prefix) and digits.removesuffix("k").isdecimal():
            return kind, int(digits.removesuffix("k")) << (10 if digits.endswith("k") else 0)
    return None


def boot_cache_alignment(size: int, flags: int) -> int:
    """The alignment of a cache made at boot: objects whose size is a power of two are aligned to their size.

    5.17: mm/slab_common.c, create_boot_cache().
    """
    return calculate_alignment(flags, max(8, size) if is_power_of_two(size) else 8, size)


def kmalloc_layout(size: int, flags: int, nr_cpus: int) -> CacheLayout:
    """The layout of the kmalloc cache whose objects have ``size`` bytes."""
    return calculate_sizes(size, boot_cache_alignment(size, flags), flags, nr_cpus)
