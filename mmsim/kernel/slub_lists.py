"""Slabs on the move: from a CPU to the node's list, from there to a CPU, and back to the page allocator.

5.17: mm/slub.c.
"""

from __future__ import annotations

from mmsim.errors import KernelBug
from mmsim.kernel.slab import KmemCache, KmemCacheCpu, KmemCacheNode, Slab
from mmsim.kernel.slab_layout import SLAB_CONSISTENCY_CHECKS, SLAB_STORE_USER
from mmsim.kernel.slub_debug import check_valid_pointer, object_err, slab_fix
from mmsim.kernel.slub_pages import discard_slab

__all__ = [
    "acquire_slab", "add_full", "deactivate_slab", "flush_all", "flush_cpu_slab", "put_cpu_partial", "remove_full", "shrink",
    "unfreeze_partials",
]

TID_STEP = 8                        # roundup_pow_of_two(CONFIG_NR_CPUS) on a preemptible kernel for eight CPUs
SHRINK_PROMOTE_MAX = 32


def next_tid(tid: int) -> int:
    """The transaction number after ``tid`` (5.17: next_tid())."""
    return tid + TID_STEP


def add_full(s: KmemCache, n: KmemCacheNode, slab: Slab) -> None:
    """Remember a slab without free objects, if the cache wants to find all its objects (5.17: add_full())."""
    if s.flags & SLAB_STORE_USER:
        n.full[slab] = None
        n.full.move_to_end(slab, last=False)


def remove_full(s: KmemCache, n: KmemCacheNode, slab: Slab) -> None:
    """Forget it again (5.17: remove_full())."""
    if s.flags & SLAB_STORE_USER:
        n.full.pop(slab, None)


def acquire_slab(s: KmemCache, n: KmemCacheNode, slab: Slab, take_freelist: bool) -> int:
    """Freeze a slab of the node's list for the current CPU; return its free list.

    With ``take_freelist`` the list becomes the CPU's own: the slab keeps none, and all its objects count as in use. Without,
    the slab goes to the CPU's partial chain and keeps its list. 5.17: acquire_slab().
    """
    freelist = slab.freelist
    if slab.frozen:
        raise KernelBug(f"VM_BUG_ON(new.frozen): {slab!r} is on the node's list and frozen")
    if take_freelist:
        slab.inuse, slab.freelist = slab.objects, 0
    slab.frozen = True
    n.remove_partial(slab)
    return freelist


def deactivate_slab(s: KmemCache, slab: Slab, freelist: int) -> None:
    """Take a slab away from its CPU: the CPU's free objects go back to the slab, the slab to where it now belongs.

    Empty, and the node has enough: to the page allocator. With free objects: to the node's list, at its tail if others freed
    objects meanwhile (their caches are not warm here), else at its head. Full: to no list. 5.17: deactivate_slab().
    """
    n = s.node[slab.nid]
    tail = bool(slab.freelist)
    if tail:
        s.stat("deactivate_remote_frees")
    free_delta, last, obj = 0, 0, freelist
    while obj:
        following = s.get_freepointer(obj)
        if (s.flags & SLAB_CONSISTENCY_CHECKS) and not check_valid_pointer(s, slab, following):
            object_err(s, slab, obj, "Freechain corrupt")
            slab_fix(s, "Isolate corrupted freechain")
            break
        last = obj
        free_delta += 1
        obj = following
    if not slab.frozen:
        raise KernelBug(f"VM_BUG_ON(!old.frozen): {slab!r} belongs to no CPU")
    if last:
        s.set_freepointer(last, slab.freelist)
        slab.inuse -= free_delta
        slab.freelist = freelist
    slab.frozen = False
    if not slab.inuse and n.nr_partial >= s.layout.min_partial:
        s.stat("deactivate_empty")
        discard_slab(s, slab)
        s.stat("free_slab")
    elif slab.freelist:
        n.add_partial(slab, tail)
        s.stat("deactivate_to_tail" if tail else "deactivate_to_head")
    else:
        add_full(s, n, slab)
        s.stat("deactivate_full")


def unfreeze_partials(s: KmemCache, chain: Slab | None) -> None:
    """Give a chain of partial slabs to their nodes' lists, and empty ones back where the node has enough.

    5.17: __unfreeze_partials().
    """
    discard: list[Slab] = []
    while chain is not None:
        slab, chain = chain, chain.next
        n = s.node[slab.nid]
        slab.frozen = False
        slab.next, slab.slabs = None, 0
        if not slab.inuse and n.nr_partial >= s.layout.min_partial:
            discard.append(slab)
        else:
            n.add_partial(slab, tail=True)
            s.stat("free_add_partial")
    for slab in reversed(discard):
        s.stat("deactivate_empty")
        discard_slab(s, slab)
        s.stat("free_slab")


def put_cpu_partial(s: KmemCache, slab: Slab, drain: bool) -> None:
    """Put a frozen slab at the head of the current CPU's partial chain.

    With ``drain``, a chain that is long enough already goes to the node first, all of it. 5.17: put_cpu_partial().
    """
    c = s.this_cpu
    oldslab, to_unfreeze = c.partial, None
    if oldslab is not None and drain and oldslab.slabs >= s.layout.cpu_partial_slabs:
        oldslab, to_unfreeze = None, oldslab
    slab.slabs = (oldslab.slabs if oldslab is not None else 0) + 1
    slab.next = oldslab
    c.partial = slab
    if to_unfreeze is not None:
        unfreeze_partials(s, to_unfreeze)
        s.stat("cpu_partial_drain")


def flush_slab(s: KmemCache, c: KmemCacheCpu) -> None:
    """Take a CPU's slab away (5.17: flush_slab())."""
    slab, freelist = c.slab, c.freelist
    c.slab, c.freelist = None, 0
    c.tid = next_tid(c.tid)
    if slab is not None:
        deactivate_slab(s, slab, freelist)
        s.stat("cpuslab_flush")


def flush_cpu_slab(s: KmemCache, cpu: int) -> None:
    """Take everything that a CPU has of the cache away (5.17: __flush_cpu_slab())."""
    c = s.cpu_slab[cpu]
    flush_slab(s, c)
    chain, c.partial = c.partial, None
    unfreeze_partials(s, chain)


def flush_all(s: KmemCache) -> None:
    """Take away what any CPU has (5.17: flush_all()). Real CPUs do it each for itself, on a work queue."""
    for c in s.cpu_slab:
        if c.slab is not None or c.partial is not None:
            flush_cpu_slab(s, c.cpu)


def shrink(s: KmemCache) -> bool:
    """Give all empty slabs back and sort the nodes' lists, the fullest slabs first. Return whether slabs are left.

    The next allocations then come from slabs that are nearly full, so that the others can run empty.
    5.17: __kmem_cache_shrink().
    """
    flush_all(s)
    left = False
    for n in s.node.values():
        promote: list[list[Slab]] = [[] for _ in range(SHRINK_PROMOTE_MAX)]
        discard: list[Slab] = []
        for slab in list(n.partial):
            free = slab.objects - slab.inuse
            if free == slab.objects:
                n.remove_partial(slab)
                discard.append(slab)
            elif free <= SHRINK_PROMOTE_MAX:
                promote[free - 1].append(slab)
        # Each list is built at its head, and the lists come before all others, the one with the fewest free objects first.
        for group in reversed(promote):
            for slab in group:
                n.partial.move_to_end(slab, last=False)
        for slab in reversed(discard):
            discard_slab(s, slab)
        left = left or n.nr_slabs > 0
    return left
