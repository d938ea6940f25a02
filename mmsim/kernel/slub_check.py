"""The invariants of SLUB: every slab in one place, every object on at most one list, every count right."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mmsim.errors import InvariantError, KernelBug
from mmsim.kernel.slab import KmemCache, Slab
from mmsim.kernel.slab_layout import SLAB_STORE_USER, order_objects
from mmsim.physical.frames import PG

if TYPE_CHECKING:
    from mmsim.kernel.slub import Slub

__all__ = ["check_slub"]


def check_slub(slub: Slub) -> None:
    """Verify all caches and slabs. Raise InvariantError."""
    places: dict[Slab, str] = {}
    for s in slub.caches:
        _check_places(s, places)
    waiting = set(slub.rcu_pending)
    caches = set(slub.caches)
    counts: Counter[tuple[KmemCache, int]] = Counter()
    objects: Counter[tuple[KmemCache, int]] = Counter()
    for pfn, slab in slub.slabs.items():
        if slab.pfn != pfn or slab.cache not in caches and slab not in waiting:
            raise InvariantError(f"{slab!r} is kept at {pfn:#x}, or belongs to a cache that is gone")
        _check_pages(slub, slab)
        if slab in waiting:
            continue
        counts[slab.cache, slab.nid] += 1
        objects[slab.cache, slab.nid] += slab.objects
        _check_objects(slab, places.get(slab, ""))
    for slab, place in places.items():
        if slub.slabs.get(slab.pfn) is not slab:
            raise InvariantError(f"{slab!r} is on {place}, but its pages were freed")
    for s in slub.caches:
        for n in s.node.values():
            if (n.nr_slabs, n.total_objects) != (counts[s, n.nid], objects[s, n.nid]):
                raise InvariantError(f"{s.name}: node {n.nid} counts {n.nr_slabs} slabs with {n.total_objects} objects; there are "
                                     f"{counts[s, n.nid]} with {objects[s, n.nid]}")


def _put(places: dict[Slab, str], slab: Slab, place: str, frozen: bool) -> None:
    if slab in places:
        raise InvariantError(f"{slab!r} is in two places: {places[slab]}, {place}")
    places[slab] = place
    if slab.frozen != frozen:
        raise InvariantError(f"{slab!r} is on {place} and {'frozen' if slab.frozen else 'not frozen'}")


def _check_places(s: KmemCache, places: dict[Slab, str]) -> None:
    for cpu in s.cpu_slab:
        if cpu.slab is not None:
            _put(places, cpu.slab, f"CPU {cpu.cpu} of {s.name}", True)
        elif cpu.freelist:
            raise InvariantError(f"{s.name}: CPU {cpu.cpu} has free objects and no slab")
        expected = cpu.partial.slabs if cpu.partial is not None else 0
        for slab in cpu.partial.chain() if cpu.partial is not None else ():
            _put(places, slab, f"the partial chain of CPU {cpu.cpu} of {s.name}", True)
            if slab.slabs != expected:
                raise InvariantError(f"{slab!r} says that the chain has {slab.slabs} slabs from here on, not {expected}")
            expected -= 1
    for n in s.node.values():
        for slab in n.partial:
            _put(places, slab, f"the partial list of node {n.nid} of {s.name}", False)
            if not slab.freelist:
                raise InvariantError(f"{slab!r} has no free object and is on the partial list")
        for slab in n.full:
            _put(places, slab, f"the full list of node {n.nid} of {s.name}", False)


def _check_pages(slub: Slub, slab: Slab) -> None:
    frames = slub.memory.frames
    if not frames.flags[slab.pfn] & PG["slab"] or frames.refcount[slab.pfn] != 1:
        raise InvariantError(f"frame {slab.pfn:#x} of {slab!r} lacks PG_slab or its one reference")
    if frames.compound_order(slab.pfn) != slab.order or slab.address != slub.layout.page_address(slab.pfn):
        raise InvariantError(f"{slab!r} is not the compound page of order {slab.order} at its address")
    if slab.objects != order_objects(slab.order, slab.cache.size):
        raise InvariantError(f"{slab!r} has {slab.objects} objects")


def _check_objects(slab: Slab, place: str) -> None:
    """Every free object is one of the slab's, and on one list; the others are in use."""
    s = slab.cache
    valid = s.objects(slab)
    seen: set[int] = set()
    lists = [slab.freelist] + [cpu.freelist for cpu in s.cpu_slab if cpu.slab is slab]
    on_slab = 0
    for number, first in enumerate(lists):
        try:
            for obj in s.free_objects(slab, first):
                if obj not in valid:
                    raise InvariantError(f"{slab!r}: free object {obj:#x} is none of its objects")
                if obj in seen:
                    raise InvariantError(f"{slab!r}: object {obj:#x} is free twice")
                seen.add(obj)
                on_slab += not number
        except KernelBug as bug:
            raise InvariantError(f"{slab!r}: its free list cannot be followed: {bug}") from None
    if slab.inuse + on_slab != slab.objects:
        raise InvariantError(f"{slab!r}: {slab.inuse} in use and {on_slab} free do not make {slab.objects}")
    if not place:
        if seen:
            raise InvariantError(f"{slab!r} has free objects and is on no list")
        if s.flags & SLAB_STORE_USER and not slab.frozen:
            raise InvariantError(f"{slab!r} is full and not on the full list")
