"""Slabs come from the page allocator and go back to it.

5.17: mm/slub.c.
"""

from __future__ import annotations

from mmsim import constants as c
from mmsim.kernel.slab import KmemCache, Slab
from mmsim.kernel.slab_layout import (
    SLAB_CONSISTENCY_CHECKS,
    SLAB_RECLAIM_ACCOUNT,
    SLAB_TYPESAFE_BY_RCU,
)
from mmsim.kernel.slub_debug import check_object, init_object, init_tracking, setup_slab_debug, slab_pad_check
from mmsim.klog import KernelLog
from mmsim.physical.frames import PG
from mmsim.physical.gfp import gfp_names

__all__ = ["GFP_SLAB_BUG_MASK", "allocate_slab", "discard_slab", "free_slab_now", "kmalloc_fix_flags", "new_slab"]

GFP_RECLAIM_MASK = (c._GFP_RECLAIM | c._GFP_HIGH | c._GFP_IO | c._GFP_FS | c._GFP_NOWARN | c._GFP_RETRY_MAYFAIL
                    | c._GFP_NOFAIL | c._GFP_NORETRY | c._GFP_MEMALLOC | c._GFP_NOMEMALLOC | c._GFP_ATOMIC)
GFP_CONSTRAINT_MASK = c._GFP_HARDWALL | c._GFP_THISNODE
#: What makes no sense in a request for an object: the cache knows its zone, and every object needs an address.
GFP_SLAB_BUG_MASK = c._GFP_DMA32 | c._GFP_HIGHMEM | 0xFFFF_FFFF & ~c._GFP_BITS_MASK


def _account(s: KmemCache, slab: Slab, sign: int) -> None:
    """Count the slab's pages at its node (5.17: account_slab() and unaccount_slab())."""
    name = "nr_slab_reclaimable" if s.flags & SLAB_RECLAIM_ACCOUNT else "nr_slab_unreclaimable"
    s.slub.count_pages(slab.nid, name, sign << slab.order)


def _setup_object(s: KmemCache, obj: int) -> None:
    if s.debug:
        init_object(s, obj, False)
        init_tracking(s, obj)
    if s.ctor is not None:
        s.ctor(s, obj)


def _object_order(s: KmemCache, slab: Slab) -> list[int]:
    """The slab's objects in the order in which the free list has them: by address, or shuffled.

    The shuffled order is the same for all slabs of a cache; each begins it at another place. 5.17: shuffle_freelist().
    """
    objects = s.objects(slab)
    sequence = s.random_seq
    if sequence is None or slab.objects < 2:
        return list(objects)
    start = s.slub.random.randrange(len(sequence))
    limit = slab.objects * s.size
    return [objects[0] + offset for offset in sequence[start:] + sequence[:start] if offset < limit]


def allocate_slab(s: KmemCache, gfp_flags: int, nid: int | None) -> Slab | None:
    """Get pages for a new slab and chain its objects; None if there are no pages.

    First the order that suits the cache is tried, without effort and without complaint; then, if need be, the lowest order
    that holds one object. The slab comes out frozen, all its objects in use: they are the caller's to give out.
    5.17: allocate_slab().
    """
    layout, slub = s.layout, s.slub
    flags = gfp_flags | layout.allocflags
    light = (flags | c._GFP_NOWARN | c._GFP_NORETRY) & ~c._GFP_NOFAIL
    if light & c._GFP_DIRECT_RECLAIM and layout.order > layout.min_order:
        light = (light | c._GFP_NOMEMALLOC) & ~c._GFP_RECLAIM
    order, objects = layout.order, layout.objects
    pfn = slub.allocator.alloc_pages(light, order, nid)
    if pfn is None:
        order, objects = layout.min_order, layout.min_objects
        pfn = slub.allocator.alloc_pages(flags, order, nid)
        if pfn is None:
            return None
        s.stat("order_fallback")
    frames = slub.memory.frames
    frames.flags[pfn] |= PG["slab"]
    slab = Slab(s, pfn, order, frames.page_zone(pfn).nid, slub.layout.page_address(pfn), objects)
    slub.slabs[pfn] = slab
    _account(s, slab, 1)
    setup_slab_debug(s, slab)
    chain = _object_order(s, slab)
    for obj in chain:
        _setup_object(s, obj)
    for obj, following in zip(chain, chain[1:] + [0]):
        s.set_freepointer(obj, following)
    slab.freelist = chain[0]
    slab.inuse, slab.frozen = slab.objects, True
    n = s.node.get(slab.nid)
    if n is not None:
        n.nr_slabs += 1
        n.total_objects += slab.objects
    return slab


def kmalloc_fix_flags(gfp_flags: int, klog: KernelLog) -> int:
    """Drop flags that make no sense, and say so (5.17: mm/slab_common.c, kmalloc_fix_flags())."""
    invalid = gfp_flags & GFP_SLAB_BUG_MASK
    fixed = gfp_flags & ~GFP_SLAB_BUG_MASK
    klog.printk(f"Unexpected gfp: {invalid:#x} ({gfp_names(invalid)}). Fixing up to gfp: {fixed:#x} ({gfp_names(fixed)}). "
                "Fix your code!")
    return fixed


def new_slab(s: KmemCache, gfp_flags: int, nid: int | None) -> Slab | None:
    """A new slab for a request with these flags (5.17: new_slab())."""
    if gfp_flags & GFP_SLAB_BUG_MASK:
        gfp_flags = kmalloc_fix_flags(gfp_flags, s.slub.klog)
    if s.ctor is not None and gfp_flags & c._GFP_ZERO:
        s.slub.klog.warn(f"WARNING: CPU: {s.slub.memory.cpu} PID: {s.slub.pid} at mm/slub.c new_slab: {s.name} has a "
                         "constructor: __GFP_ZERO would undo it")
    return allocate_slab(s, gfp_flags & (GFP_RECLAIM_MASK | GFP_CONSTRAINT_MASK), nid)


def free_slab_now(s: KmemCache, slab: Slab) -> None:
    """Give a slab's pages back (5.17: __free_slab())."""
    if s.flags & SLAB_CONSISTENCY_CHECKS:
        slab_pad_check(s, slab)
        for obj in s.objects(slab):
            check_object(s, slab, obj, False)
    slub = s.slub
    slub.memory.frames.flags[slab.pfn] &= ~PG["slab"]
    del slub.slabs[slab.pfn]
    _account(s, slab, -1)
    slub.allocator.free_pages(slab.pfn, slab.order)


def discard_slab(s: KmemCache, slab: Slab) -> None:
    """Let an empty slab go: at once, or after a grace period where readers may still look at its objects.

    5.17: discard_slab() and free_slab().
    """
    n = s.node[slab.nid]
    n.nr_slabs -= 1
    n.total_objects -= slab.objects
    if s.flags & SLAB_TYPESAFE_BY_RCU:
        s.slub.rcu_pending.append(slab)
    else:
        free_slab_now(s, slab)
