"""/proc/slabinfo and the files of /sys/kernel/slab: every cache, its objects and its slabs.

Names hide: caches that share their slabs appear once, under the oldest name.
"""

from __future__ import annotations

from mmsim.kernel.slab import KmemCache
from mmsim.kernel.slab_layout import (
    SLAB_CACHE_DMA,
    SLAB_CONSISTENCY_CHECKS,
    SLAB_HWCACHE_ALIGN,
    SLAB_POISON,
    SLAB_RECLAIM_ACCOUNT,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    SLAB_TRACE,
    SLAB_TYPESAFE_BY_RCU,
)
from mmsim.kernel.slub import Slub

__all__ = ["slab_sysfs", "slabinfo"]

_HEADER = ("slabinfo - version: 2.1\n"
           "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
           " : tunables <limit> <batchcount> <sharedfactor>"
           " : slabdata <active_slabs> <num_slabs> <sharedavail>\n")


def slabinfo(slub: Slub) -> str:
    """The text of /proc/slabinfo, the newest cache first.

    Objects in slabs that CPUs own all count as active, given out or not: the kernel looks at the nodes' lists only.
    5.17: mm/slab_common.c, cache_show(); mm/slub.c, get_slabinfo().
    """
    lines = [_HEADER]
    for s in reversed(slub.caches.list):
        slabs = sum(n.nr_slabs for n in s.node.values())
        objects = sum(n.total_objects for n in s.node.values())
        free = sum(slab.objects - slab.inuse for n in s.node.values() for slab in n.partial)
        lines.append(f"{s.name:<17} {objects - free:6d} {objects:6d} {s.size:6d} {s.layout.objects:4d} {1 << s.layout.order:4d}"
                     f" : tunables {0:4d} {0:4d} {0:4d} : slabdata {slabs:6d} {slabs:6d} {0:6d}\n")
    return "".join(lines)


def _nodes(counts: dict[int, int]) -> str:
    return " ".join([str(sum(counts.values()))] + [f"N{nid}={count}" for nid, count in counts.items() if count])


def _partial_of_cpus(s: KmemCache) -> str:
    """``objects(slabs)`` of the CPUs' partial chains; the objects are an estimate: half of each slab."""
    slabs = {cpu.cpu: cpu.partial.slabs if cpu.partial else 0 for cpu in s.cpu_slab}
    half = s.layout.objects / 2

    def text(count: int) -> str:
        return f"{int(count * half)}({count})"
    return " ".join([text(sum(slabs.values()))] + [f"C{cpu}={text(count)}" for cpu, count in slabs.items() if count])


def slab_sysfs(s: KmemCache) -> dict[str, str]:
    """The files of /sys/kernel/slab/NAME that can be read without asking the kernel to do anything, by name.

    5.17: mm/slub.c, slab_attrs[]. Left out: those of fault injection and KASAN, and ``alloc_calls``.
    """
    nodes = s.node.values()
    on_cpu = {n.nid: 0 for n in nodes}
    for slab in s.slabs_of_cpus():
        on_cpu[slab.nid] += 1
    flags = {"cache_dma": SLAB_CACHE_DMA, "destroy_by_rcu": SLAB_TYPESAFE_BY_RCU, "hwcache_align": SLAB_HWCACHE_ALIGN,
             "poison": SLAB_POISON, "reclaim_account": SLAB_RECLAIM_ACCOUNT, "red_zone": SLAB_RED_ZONE,
             "sanity_checks": SLAB_CONSISTENCY_CHECKS, "store_user": SLAB_STORE_USER, "trace": SLAB_TRACE}
    free = {n.nid: sum(slab.objects - slab.inuse for slab in n.partial) for n in nodes}
    return {
        "aliases": str(max(s.refcount - 1, 0)), "align": str(s.layout.align), "cpu_partial": str(s.layout.cpu_partial),
        "cpu_slabs": _nodes(on_cpu), "min_partial": str(s.layout.min_partial), "object_size": str(s.object_size),
        "objects": _nodes({n.nid: n.total_objects - free[n.nid] for n in nodes}),
        "objects_partial": _nodes({n.nid: sum(slab.inuse for slab in n.partial) for n in nodes}),
        "objs_per_slab": str(s.layout.objects), "order": str(s.layout.order),
        "partial": _nodes({n.nid: n.nr_partial for n in nodes}), "remote_node_defrag_ratio": "100",
        "slab_size": str(s.size), "slabs": _nodes({n.nid: n.nr_slabs for n in nodes}),
        "slabs_cpu_partial": _partial_of_cpus(s), "total_objects": _nodes({n.nid: n.total_objects for n in nodes}),
        "usersize": str(s.usersize), **{name: str(int(bool(s.flags & flag))) for name, flag in flags.items()},
    }
