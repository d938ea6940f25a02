"""How SLUB lays objects out in a slab: pure arithmetic on sizes, flags and the number of CPUs.

A cache cuts blocks of pages (*slabs*) into objects of one size. Before the first object exists, everything below is fixed::

    slab of 2^order pages
    |<------ size ------>|<------ size ------>| …                                  |rest|
    | pad | object | red zone | free pointer | who allocated, who freed | padding |
          |<- object_size ->|
          |<------- inuse ------>|

Without debugging only the object is left, and a free object keeps the pointer to the next free one in its own middle, where
an overrun of a neighbour does not reach it at once.

5.17: mm/slub.c, mm/slab_common.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsim.constants import _GFP_COMP, _GFP_DMA, _GFP_DMA32, _GFP_RECLAIMABLE, MAX_ORDER, PAGE_ALLOC_COSTLY_ORDER
from mmsim.errors import Errno
from mmsim.units import PAGE_SIZE, align_down, align_up, fls, ilog2

__all__ = [
    "ARCH_SLAB_MINALIGN", "CacheLayout", "L1_CACHE_BYTES", "SIZEOF_POINTER", "SIZEOF_TRACK", "SLAB_ACCOUNT", "SLAB_CACHE_DMA",
    "SLAB_CACHE_DMA32", "SLAB_CONSISTENCY_CHECKS", "SLAB_DEBUG_FLAGS", "SLAB_FAILSLAB", "SLAB_FLAG_NAMES",
    "SLAB_HWCACHE_ALIGN", "SLAB_MEM_SPREAD", "SLAB_MERGE_SAME", "SLAB_NEVER_MERGE", "SLAB_NOLEAKTRACE", "SLAB_PANIC",
    "SLAB_POISON", "SLAB_RECLAIM_ACCOUNT", "SLAB_RED_ZONE", "SLAB_STORE_USER", "SLAB_TRACE", "SLAB_TYPESAFE_BY_RCU",
    "SLUB_MAX_ORDER", "calc_slab_order", "calculate_alignment", "calculate_order", "calculate_sizes", "cpu_partial_limits",
    "get_order", "order_objects", "slab_flag_names",
]

# -- flags of a cache: include/linux/slab.h ------------------------------------------------------------------
SLAB_CONSISTENCY_CHECKS = 0x100
SLAB_RED_ZONE = 0x400
SLAB_POISON = 0x800
SLAB_HWCACHE_ALIGN = 0x2000
SLAB_CACHE_DMA = 0x4000
SLAB_CACHE_DMA32 = 0x8000
SLAB_STORE_USER = 0x1_0000
SLAB_RECLAIM_ACCOUNT = 0x2_0000
SLAB_PANIC = 0x4_0000
SLAB_TYPESAFE_BY_RCU = 0x8_0000
SLAB_MEM_SPREAD = 0x10_0000
SLAB_TRACE = 0x20_0000
SLAB_NOLEAKTRACE = 0x80_0000
SLAB_FAILSLAB = 0x200_0000
SLAB_ACCOUNT = 0x400_0000
SLAB_FLAG_NAMES: dict[str, int] = {
    name: value for name, value in globals().items() if name.startswith("SLAB_") and isinstance(value, int)}

#: Flags that switch off everything fast: such a cache checks each object at each step.
SLAB_DEBUG_FLAGS = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER | SLAB_TRACE | SLAB_CONSISTENCY_CHECKS
#: A cache with one of these shares its slabs with nobody.
SLAB_NEVER_MERGE = (SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER | SLAB_TRACE | SLAB_TYPESAFE_BY_RCU | SLAB_NOLEAKTRACE
                    | SLAB_FAILSLAB)
#: Caches that share must agree in these.
SLAB_MERGE_SAME = SLAB_RECLAIM_ACCOUNT | SLAB_CACHE_DMA | SLAB_CACHE_DMA32 | SLAB_ACCOUNT

SIZEOF_POINTER = 8
#: struct track with CONFIG_STACKTRACE: caller, sixteen return addresses, CPU and PID, time.
SIZEOF_TRACK = 8 + 16 * 8 + 4 + 4 + 8
L1_CACHE_BYTES = 64
ARCH_SLAB_MINALIGN = 8
MAX_OBJS_PER_PAGE = 32767           # struct slab counts objects in 15 bits
SLUB_MAX_ORDER = PAGE_ALLOC_COSTLY_ORDER
MIN_PARTIAL, MAX_PARTIAL = 5, 10


def slab_flag_names(flags: int) -> list[str]:
    """The names of the set flags, lowest first.

    >>> slab_flag_names(0x10D00)
    ['SLAB_CONSISTENCY_CHECKS', 'SLAB_RED_ZONE', 'SLAB_POISON', 'SLAB_STORE_USER']
    """
    return [name for name, value in SLAB_FLAG_NAMES.items() if flags & value]


def get_order(size: int) -> int:
    """The order of the smallest block that holds ``size`` bytes, 1 or more (5.17: include/asm-generic/getorder.h).

    >>> get_order(1), get_order(4096), get_order(8193)
    (0, 0, 2)
    """
    return (size - 1 >> 12).bit_length()


def order_objects(order: int, size: int) -> int:
    """How many objects of ``size`` bytes fit a slab of ``order`` (5.17: mm/slub.c, order_objects())."""
    return (PAGE_SIZE << order) // size


def calculate_alignment(flags: int, align: int, size: int) -> int:
    """The alignment of a cache's objects in bytes.

    With SLAB_HWCACHE_ALIGN it is a cache line, or the half, quarter… of one in which a small object still fits, so that no
    object lies in more lines than it must. 5.17: mm/slab_common.c, calculate_alignment().

    >>> calculate_alignment(SLAB_HWCACHE_ALIGN, 0, 200), calculate_alignment(SLAB_HWCACHE_ALIGN, 0, 24)
    (64, 32)
    """
    if flags & SLAB_HWCACHE_ALIGN:
        ralign = L1_CACHE_BYTES
        while size <= ralign // 2:
            ralign //= 2
        align = max(align, ralign)
    return align_up(max(align, ARCH_SLAB_MINALIGN), SIZEOF_POINTER)


def calc_slab_order(size: int, min_objects: int, max_order: int, fract_leftover: int) -> int:
    """The lowest order with room for ``min_objects`` that wastes at most one part in ``fract_leftover`` of the slab.

    More than ``max_order`` if there is none. 5.17: mm/slub.c, calc_slab_order().
    """
    if order_objects(0, size) > MAX_OBJS_PER_PAGE:
        return get_order(size * MAX_OBJS_PER_PAGE) - 1
    order = get_order(min_objects * size)
    while order <= max_order:
        slab_size = PAGE_SIZE << order
        if slab_size % size <= slab_size // fract_leftover:
            break
        order += 1
    return order


def calculate_order(size: int, nr_cpus: int) -> int:
    """The order of a cache's slabs for objects of ``size`` bytes on a machine with ``nr_cpus`` CPUs.

    A slab should hold many objects, the more the more CPUs compete for slabs, waste little, and stay at order 3, which
    the page allocator can still be expected to have: first at most 1/16 of the slab may be lost, then 1/8, then 1/4;
    then fewer objects must do. Raise Errno (ENOSYS) for an object larger than the largest block.
    5.17: mm/slub.c, calculate_order().

    >>> [calculate_order(size, 4) for size in (192, 680, 1024, 4096)]
    [0, 2, 2, 3]
    """
    min_objects = min(4 * (fls(nr_cpus) + 1), order_objects(SLUB_MAX_ORDER, size))
    while min_objects > 1:
        for fraction in (16, 8, 4):
            order = calc_slab_order(size, min_objects, SLUB_MAX_ORDER, fraction)
            if order <= SLUB_MAX_ORDER:
                return order
        min_objects -= 1
    # Not even two: let the slab hold one, if need be in a block of a higher order.
    order = calc_slab_order(size, 1, SLUB_MAX_ORDER, 1)
    if order <= SLUB_MAX_ORDER:
        return order
    order = calc_slab_order(size, 1, MAX_ORDER, 1)
    if order < MAX_ORDER:
        return order
    raise Errno("ENOSYS", f"no block holds an object of {size} bytes")


def cpu_partial_limits(size: int, objects: int, debug: bool = False) -> tuple[int, int]:
    """How many free objects a CPU may keep in partial slabs, and how many slabs that makes if each is half full.

    5.17: mm/slub.c, set_cpu_partial() and slub_set_cpu_partial().

    >>> cpu_partial_limits(192, 21), cpu_partial_limits(4096, 8)
    ((120, 12), (6, 2))
    """
    if debug:
        nr_objects = 0
    elif size >= PAGE_SIZE:
        nr_objects = 6
    elif size >= 1024:
        nr_objects = 24
    elif size >= 256:
        nr_objects = 52
    else:
        nr_objects = 120
    return nr_objects, -(-nr_objects * 2 // objects)


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Everything about a cache that its sizes and flags decide. Sizes and offsets are in bytes.

    ``size`` is the distance from one object to the next, ``offset`` where in a free object the free pointer stands,
    ``order``/``objects`` what a slab is made of, ``min_order``/``min_objects`` what it is made of when memory is short,
    ``min_partial`` how many partial slabs a node keeps even if they are empty, ``allocflags`` the GFP flags that the
    cache adds to each request.
    """

    object_size: int
    flags: int
    align: int
    has_ctor: bool
    size: int
    inuse: int
    offset: int
    red_left_pad: int
    order: int
    objects: int
    min_order: int
    min_objects: int
    min_partial: int
    cpu_partial: int
    cpu_partial_slabs: int
    allocflags: int
    #: Whether free objects may be overwritten with a pattern (5.17: __OBJECT_POISON).
    object_poison: bool

    @property
    def debug(self) -> bool:
        """Whether the cache has any debugging switched on (5.17: kmem_cache_debug())."""
        return bool(self.flags & SLAB_DEBUG_FLAGS)

    @property
    def freeptr_outside_object(self) -> bool:
        """Whether the free pointer stands behind the object, not in it (5.17: freeptr_outside_object())."""
        return self.offset >= self.inuse

    @property
    def info_end(self) -> int:
        """Where the object, its red zone and its free pointer end (5.17: get_info_end())."""
        return self.inuse + SIZEOF_POINTER if self.freeptr_outside_object else self.inuse

    @property
    def wasted(self) -> int:
        """Bytes of a slab that belong to no object."""
        return (PAGE_SIZE << self.order) - self.objects * self.size


def calculate_sizes(object_size: int, align: int, flags: int, nr_cpus: int, has_ctor: bool = False) -> CacheLayout:
    """Lay out a cache of objects of ``object_size`` bytes; ``align`` comes from :func:`calculate_alignment`.

    The free pointer stands in the middle of a free object, unless nobody may write there: because the object has a
    constructor whose work must last, may still be read after it was freed (SLAB_TYPESAFE_BY_RCU), or holds a pattern
    (SLAB_POISON). Then it stands behind the object. Raise Errno (ENOSYS) for an object that no block holds.
    5.17: mm/slub.c, calculate_sizes() and kmem_cache_open(). Left out: KASAN's metadata.

    >>> layout = calculate_sizes(680, 8, 0, nr_cpus=4)
    >>> layout.order, layout.objects, layout.offset
    (2, 24, 336)
    """
    size = align_up(object_size, SIZEOF_POINTER)
    object_poison = bool(flags & SLAB_POISON) and not flags & SLAB_TYPESAFE_BY_RCU and not has_ctor
    if flags & SLAB_RED_ZONE and size == object_size:
        # No room between the object and what follows: make some.
        size += SIZEOF_POINTER
    inuse = size
    if (flags & (SLAB_TYPESAFE_BY_RCU | SLAB_POISON) or has_ctor
            or flags & SLAB_RED_ZONE and object_size < SIZEOF_POINTER):
        offset = size
        size += SIZEOF_POINTER
    else:
        offset = align_down(object_size // 2, SIZEOF_POINTER)
    if flags & SLAB_STORE_USER:
        size += 2 * SIZEOF_TRACK
    red_left_pad = 0
    if flags & SLAB_RED_ZONE:
        size += SIZEOF_POINTER
        red_left_pad = align_up(SIZEOF_POINTER, align)
        size += red_left_pad
    size = align_up(size, align)
    order = calculate_order(size, nr_cpus)
    allocflags = _GFP_COMP if order else 0
    for flag, gfp in ((SLAB_CACHE_DMA, _GFP_DMA), (SLAB_CACHE_DMA32, _GFP_DMA32), (SLAB_RECLAIM_ACCOUNT, _GFP_RECLAIMABLE)):
        if flags & flag:
            allocflags |= gfp
    objects, min_order = order_objects(order, size), get_order(size)
    cpu_partial, cpu_partial_slabs = cpu_partial_limits(size, objects, bool(flags & SLAB_DEBUG_FLAGS))
    return CacheLayout(
        object_size, flags, align, has_ctor, size, inuse, offset, red_left_pad, order, objects, min_order,
        order_objects(min_order, size), max(MIN_PARTIAL, min(MAX_PARTIAL, ilog2(size) // 2)), cpu_partial, cpu_partial_slabs,
        allocflags, object_poison)
