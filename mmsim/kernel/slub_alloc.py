"""Taking an object from a cache.

    fast   the CPU has a free object of its slab: pop it. Two words are compared and exchanged, no lock.
    slow   1  others freed objects of the CPU's slab meanwhile: take that list over
           2  the next slab of the CPU's partial chain becomes its slab; back to 1
           3  the node's list: the first slab for the CPU, some more for its chain
           4  the lists of other nodes
           5  a new slab from the page allocator

5.17: mm/slub.c. Left out: emergency reserves (slabs of pfmemalloc pages), KASAN, KFENCE, init_on_free, cgroup charges.
"""

from __future__ import annotations

from typing import NamedTuple

from mmsim import constants as c
from mmsim.errors import KernelBug
from mmsim.kernel.slab import KmemCache, Slab
from mmsim.kernel.slab_layout import get_order
from mmsim.kernel.slub_debug import alloc_debug_processing
from mmsim.kernel.slub_lists import TID_STEP, acquire_slab, deactivate_slab, flush_slab, next_tid, put_cpu_partial
from mmsim.kernel.slub_pages import new_slab
from mmsim.physical.gfp import gfp_names

__all__ = ["FastPath", "fastpath_commit", "fastpath_read", "slab_alloc"]


class FastPath(NamedTuple):
    """What the fast path read before it tries to write: on which CPU, under which TID, the first free object, the next."""

    cpu: int
    tid: int
    obj: int
    following: int


def fastpath_read(s: KmemCache) -> FastPath | None:
    """The first half of the fast path: read the current CPU's list. None: it is empty, the slow path must run.

    Anything may happen before :func:`fastpath_commit`: an interrupt allocates, the task moves to another CPU.
    5.17: slab_alloc_node() up to this_cpu_cmpxchg_double().
    """
    cpu = s.this_cpu
    if not cpu.freelist or cpu.slab is None:
        return None
    return FastPath(cpu.cpu, cpu.tid, cpu.freelist, s.get_freepointer(cpu.freelist))


def fastpath_commit(s: KmemCache, read: FastPath) -> bool:
    """The second half: exchange list and TID of the current CPU in one instruction, if both are still what was read.

    False: somebody was here in between, start again. The list alone would not tell: the same object may be at its head again
    with another one behind it. 5.17: this_cpu_cmpxchg_double(); note_cmpxchg_failure().
    """
    cpu = s.this_cpu
    if (cpu.freelist, cpu.tid) != (read.obj, read.tid):
        s.stat("cmpxchg_double_cpu_fail")
        return False
    cpu.freelist, cpu.tid = read.following, next_tid(read.tid)
    s.stat("alloc_fastpath")
    return True


def slab_alloc(s: KmemCache, gfp_flags: int, nid: int | None, caller: str) -> int:
    """Allocate an object; return its address, or 0 if there is no memory. 5.17: slab_alloc_node()."""
    cpu = s.cpu_slab[s.slub.memory.cpu]
    obj, slab = cpu.freelist, cpu.slab
    if not obj or slab is None or nid is not None and slab.nid != nid:
        obj = _slow_path(s, gfp_flags, nid, caller)
    else:
        # fastpath_read() and fastpath_commit() in one: nobody comes in between here.
        cpu.freelist = s.get_freepointer(obj)
        cpu.tid += TID_STEP
        cpu.stat["alloc_fastpath"] += 1
    if obj and (gfp_flags & c._GFP_ZERO or s.slub.init_on_alloc and s.ctor is None):
        s.slub.memset(obj, 0, s.object_size)
    return obj


def _get_freelist(s: KmemCache, slab: Slab) -> int:
    """Take over what others freed of the CPU's slab; 0, and the slab leaves the CPU, if that is nothing.

    5.17: get_freelist().
    """
    if not slab.frozen:
        raise KernelBug(f"VM_BUG_ON(!new.frozen): {slab!r} is a CPU's slab and not frozen")
    freelist, slab.freelist = slab.freelist, 0
    slab.inuse = slab.objects
    slab.frozen = bool(freelist)
    return freelist


def _slow_path(s: KmemCache, gfp_flags: int, nid: int | None, caller: str) -> int:
    """5.17: ___slab_alloc()."""
    s.stat("alloc_slowpath")
    cpu = s.this_cpu
    if nid is not None and nid not in s.node:
        nid = None                  # The node has no memory: any will do.
    while True:
        slab = cpu.slab
        if slab is not None:
            if nid is not None and slab.nid != nid:
                s.stat("alloc_node_mismatch")
                freelist, cpu.slab, cpu.freelist = cpu.freelist, None, 0
                deactivate_slab(s, slab, freelist)
            else:
                freelist = cpu.freelist or _get_freelist(s, slab)
                if freelist:
                    s.stat("alloc_refill")
                    return _load_freelist(s, freelist)
                cpu.slab = None
                s.stat("deactivate_bypass")
        if cpu.partial is None:
            break
        slab = cpu.slab = cpu.partial
        cpu.partial, slab.next, slab.slabs = slab.next, None, 0
        s.stat("cpu_partial_alloc")
    while True:
        found = _get_partial(s, gfp_flags, nid)
        if found is None:
            slab = new_slab(s, gfp_flags, nid)
            if slab is None:
                _slab_out_of_memory(s, gfp_flags, nid)
                return 0
            freelist, slab.freelist = slab.freelist, 0
            s.stat("alloc_slab")
        else:
            freelist, slab = found
        if not s.debug:
            if cpu.slab is not None:
                flush_slab(s, cpu)
            cpu.slab = slab
            return _load_freelist(s, freelist)
        # A cache that checks its objects has no slabs at CPUs: the slab goes back at once, without the object.
        if alloc_debug_processing(s, slab, freelist, caller):
            deactivate_slab(s, slab, s.get_freepointer(freelist))
            return freelist


def _load_freelist(s: KmemCache, freelist: int) -> int:
    """Give the first object out; the others are the CPU's."""
    cpu = s.this_cpu
    cpu.freelist = s.get_freepointer(freelist)
    cpu.tid = next_tid(cpu.tid)
    return freelist


def _get_partial(s: KmemCache, gfp_flags: int, nid: int | None) -> tuple[int, Slab] | None:
    """Find a slab with free objects on a node's list: the wanted node's, or the nearest; return its free objects too.

    Other nodes give only what they have above their minimum. The kernel asks them on 98 of 100 occasions, by the time stamp
    counter; the model always. 5.17: get_partial(), get_any_partial().
    """
    memory = s.slub.memory
    local = memory.cpu_to_node[memory.cpu] if nid is None else nid
    found = _get_partial_node(s, local)
    if found is not None or nid is not None:
        return found
    for zone in memory.nodes[local].zonelist:
        n = s.node.get(zone.nid)
        if n is not None and n.nr_partial > s.layout.min_partial:
            found = _get_partial_node(s, zone.nid)
            if found is not None:
                return found
    return None


def _get_partial_node(s: KmemCache, nid: int) -> tuple[int, Slab] | None:
    """The node's first slab; further ones go to the CPU's chain, until that holds more than half of what it may.

    5.17: get_partial_node().
    """
    n = s.node.get(nid)
    found: tuple[int, Slab] | None = None
    if n is None or not n.nr_partial:
        return None
    partial_slabs = 0
    for slab in list(n.partial):
        freelist = acquire_slab(s, n, slab, found is None)
        if found is None:
            s.stat("alloc_from_partial")
            found = freelist, slab
        else:
            put_cpu_partial(s, slab, drain=False)
            s.stat("cpu_partial_node")
            partial_slabs += 1
        if not s.has_cpu_partial or partial_slabs > s.layout.cpu_partial_slabs // 2:
            break
    return found


def _slab_out_of_memory(s: KmemCache, gfp_flags: int, nid: int | None) -> None:
    """Say what the cache has when it cannot get more (5.17: slab_out_of_memory(); left out: the limit of ten a minute)."""
    if gfp_flags & c._GFP_NOWARN:
        return
    printk, layout = s.slub.klog.printk, s.layout
    printk(f"SLUB: Unable to allocate memory on node {-1 if nid is None else nid}, gfp={gfp_flags:#x}({gfp_names(gfp_flags)})")
    printk(f"  cache: {s.name}, object size: {s.object_size}, buffer size: {s.size}, default order: {layout.order}, "
           f"min order: {layout.min_order}")
    if layout.min_order > get_order(s.object_size):
        printk(f"  {s.name} debugging increased min order, use slub_debug=O to disable.")
    for n in s.node.values():
        free = sum(slab.objects - slab.inuse for slab in n.partial)
        printk(f"  node {n.nid}: slabs: {n.nr_slabs}, objs: {n.total_objects}, free: {free}")
