"""Giving an object back.

    fast   it belongs to the CPU's own slab: push it on the CPU's list. No lock.
    slow   push it on its slab's list; then, by what the slab was before:
           frozen             it has an owner, who will see: nothing else
           full, on no list   freeze it, it goes to this CPU's partial chain. No lock of the node either
           now empty          and the node has enough: take it off the list, give its pages back

So an object freed on another CPU travels: its whole slab may end up on the chain of the CPU that freed it.

5.17: mm/slub.c.
"""

from __future__ import annotations

from mmsim.kernel.slab import KmemCache, Slab
from mmsim.kernel.slub_debug import free_debug_processing
from mmsim.kernel.slub_lists import TID_STEP, put_cpu_partial, remove_full
from mmsim.kernel.slub_pages import discard_slab

__all__ = ["slab_free"]


def slab_free(s: KmemCache, slab: Slab, obj: int, caller: str) -> None:
    """Free an object of ``slab`` (5.17: do_slab_free()).

    Nothing is checked unless the cache is debugged: what is freed twice stands twice on a list, and will be given out twice.
    """
    cpu = s.cpu_slab[s.slub.memory.cpu]
    if slab is not cpu.slab:
        _slow_path(s, slab, obj, caller)
        return
    s.set_freepointer(obj, cpu.freelist)
    cpu.freelist = obj
    cpu.tid += TID_STEP
    cpu.stat["free_fastpath"] += 1


def _slow_path(s: KmemCache, slab: Slab, obj: int, caller: str) -> None:
    """5.17: __slab_free()."""
    s.stat("free_slowpath")
    if s.debug and not free_debug_processing(s, slab, obj, caller):
        return
    prior, was_frozen = slab.freelist, slab.frozen
    s.set_freepointer(obj, prior)
    slab.freelist = obj
    slab.inuse = slab.inuse - 1 & 0xFFFF       # a counter of 16 bits: freed too often, it wraps
    if was_frozen:
        s.stat("free_frozen")
        return
    if not prior and s.has_cpu_partial:
        slab.frozen = True
        put_cpu_partial(s, slab, drain=True)
        s.stat("cpu_partial_free")
        return
    if prior and slab.inuse:
        return
    # Only here the node's list_lock is taken.
    n = s.node[slab.nid]
    if not slab.inuse and n.nr_partial >= s.layout.min_partial:
        if prior:
            slab.cache.node[slab.nid].remove_partial(slab)
            s.stat("free_remove_partial")
        else:
            remove_full(s, n, slab)
        s.stat("free_slab")
        discard_slab(s, slab)
    elif not prior:
        remove_full(s, n, slab)
        n.add_partial(slab, tail=True)
        s.stat("free_add_partial")
