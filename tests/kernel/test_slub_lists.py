"""Which slab is where: fast and slow path, partial chains, node lists."""

import pytest

from mmsim.errors import InvariantError
from mmsim.kernel.slub import Slub
from mmsim.kernel.slub_alloc import fastpath_commit, fastpath_read
from mmsim.kernel.slub_lists import TID_STEP
from mmsim.reference import big64, toy16

from .machines import free_frames, moved, slub


def take(slub_, s, count):
    return [slub_.kmem_cache_alloc(s) for _ in range(count)]


def test_objects_of_a_new_slab_come_in_order_of_their_addresses():
    k = slub()
    s = k.cache("kmalloc-512")
    assert take(k, s, 8) == list(range(s.cpu_slab[0].slab.address, s.cpu_slab[0].slab.address + 4096, 512))


def test_the_object_freed_last_comes_back_first():
    k = slub()
    s = k.cache("kmalloc-64")
    a, b = take(k, s, 2)
    k.kfree(a)
    k.kfree(b)
    assert take(k, s, 3)[:2] == [b, a]
    assert s.stats()["free_fastpath"] == 2


def test_the_first_allocation_is_slow_and_the_rest_of_the_slab_fast():
    k = slub()
    s = k.cache("kmalloc-512")
    before = s.stats()
    take(k, s, 8)
    assert moved(s, before) == {"alloc_slowpath": 1, "alloc_slab": 1, "alloc_fastpath": 7}
    before = s.stats()
    take(k, s, 1)
    assert moved(s, before) == {"alloc_slowpath": 1, "deactivate_bypass": 1, "alloc_slab": 1}


def test_a_full_slab_is_on_no_list_and_its_first_free_object_freezes_it_to_the_freer():
    k = slub(cpus=2)
    s = k.cache("kmalloc-512")
    size = s.layout.objects
    objects = take(k, s, size + 1)
    full = k.slab_of(objects[0])
    k.check()
    assert not full.frozen and full.inuse == size == 16 and not s.node[0].partial
    k.memory.run_on(1)
    before = s.stats()
    k.kfree(objects[0])
    assert s.cpu_slab[1].partial is full and full.frozen
    assert moved(s, before) == {"free_slowpath": 1, "cpu_partial_free": 1}
    # It has an owner now: another free only touches the slab.
    k.memory.run_on(0)
    before = s.stats()
    k.kfree(objects[1])
    assert s.cpu_slab[1].partial is full and moved(s, before) == {"free_slowpath": 1, "free_frozen": 1}
    k.check()


def test_objects_freed_elsewhere_are_taken_over_when_the_own_list_is_empty():
    k = slub(cpus=2)
    s = k.cache("kmalloc-512")
    objects = take(k, s, s.layout.objects)
    k.memory.run_on(1)
    k.kfree(objects[3])
    k.memory.run_on(0)
    before = s.stats()
    assert take(k, s, 1) == [objects[3]]
    assert moved(s, before) == {"alloc_slowpath": 1, "alloc_refill": 1}


def test_a_chain_that_is_long_enough_goes_to_the_node_as_a_whole():
    k = slub(pages=2048)
    s = k.cache("kmalloc-512")
    limit = s.layout.cpu_partial_slabs
    assert limit == 13
    slabs = [take(k, s, 8) for _ in range(limit + 2)]
    before = s.stats()
    for objects in slabs[:limit]:
        k.kfree(objects[0])
    assert s.cpu_slab[0].partial.slabs == limit and s.node[0].nr_partial == 0
    k.kfree(slabs[limit][0])
    assert s.cpu_slab[0].partial.slabs == 1 and s.node[0].nr_partial == limit
    assert moved(s, before)["cpu_partial_drain"] == 1
    # Unfrozen from the newest to the oldest, each to the tail.
    assert [slab.pfn for slab in s.node[0].partial] == [k.slab_of(objects[0]).pfn for objects in reversed(slabs[:limit])]
    k.check()


def test_from_the_node_the_cpu_takes_one_slab_and_half_a_chain_more():
    k = slub(pages=2048)
    s = k.cache("kmalloc-512")
    slabs = [take(k, s, 8) for _ in range(15)]
    for objects in slabs[:14]:
        k.kfree(objects[0])
    take(k, s, 1)                    # The chain's only slab is used first.
    order = [slab.pfn for slab in s.node[0].partial]
    before = s.stats()
    take(k, s, 2)
    assert moved(s, before) == {"alloc_slowpath": 2, "deactivate_bypass": 2, "alloc_from_partial": 1, "cpu_partial_node": 7,
                                "cpu_partial_alloc": 1, "alloc_refill": 1}
    assert [slab.pfn for slab in s.node[0].partial] == order[8:]
    k.check()


def test_empty_slabs_stay_while_the_node_has_few():
    k = slub(pages=2048)
    s = k.cache("kmalloc-4k")
    slabs = [take(k, s, 8) for _ in range(12)]
    for objects in slabs:
        for obj in objects:
            k.kfree(obj)
    k.check()
    k.flush_all()
    assert s.node[0].nr_partial == s.layout.min_partial == 6
    assert all(not slab.inuse for slab in s.node[0].partial)


def test_shrink_frees_empty_slabs_and_sorts_the_fullest_to_the_front():
    k = slub(pages=2048)
    s = k.cache("kmalloc-512")
    slabs = [take(k, s, 8) for _ in range(6)]
    for objects, freed in zip(slabs, (3, 8, 1, 6, 2, 3)):
        for obj in objects[:freed]:
            k.kfree(obj)
    frames = free_frames(k.memory)
    assert k.kmem_cache_shrink(s)
    assert [slab.objects - slab.inuse for slab in s.node[0].partial] == [1, 2, 3, 3, 6]
    assert [k.slab_of(slabs[index][7]).pfn for index in (2, 4)] == [slab.pfn for slab in s.node[0].partial][:2]
    assert free_frames(k.memory) == frames + 1
    k.check()
    for objects, freed in zip(slabs, (3, 8, 1, 6, 2, 3)):
        for obj in objects[freed:]:
            k.kfree(obj)
    assert not k.kmem_cache_shrink(s)


def test_pages_of_slabs_are_marked_compound_and_counted():
    k = slub()
    before = free_frames(k.memory)
    s = k.cache("kmalloc-rcl-4k")
    obj = k.kmem_cache_alloc(s)
    slab, frames, stat = k.slab_of(obj), k.memory.frames, k.memory.nodes[0].vm_stat
    assert frames.flags[slab.pfn] & 1 << 9 and frames.compound_order(slab.pfn + 5) == 3
    assert stat["nr_slab_reclaimable"] == 8 and before - free_frames(k.memory) == 8
    k.kfree(obj)
    k.kmem_cache_shrink(s)
    assert stat["nr_slab_reclaimable"] == 0 and free_frames(k.memory) == before and not frames.flags[slab.pfn]


def test_when_blocks_are_short_a_slab_is_made_of_the_lowest_order():
    k = slub(pages=512)
    taken = []
    while (pfn := k.allocator.alloc_pages(0x2000 | 0x20000)) is not None:
        taken.append(pfn)
    for pfn in taken[::2]:
        k.allocator.free_pages(pfn)     # No two neighbours are free: order 0 only.
    s = k.cache("kmalloc-1k")
    obj = k.kmem_cache_alloc(s, 0x2000 | 0x20000 | 0x20)
    assert k.slab_of(obj).order == 0 and k.slab_of(obj).objects == 4 and s.stats()["order_fallback"] == 1
    k.check()


def test_an_object_of_a_given_node_comes_from_there():
    k = slub(nodes=2, cpus=2)
    s = k.cache("kmalloc-256")
    near, far = k.kmem_cache_alloc(s), k.kmem_cache_alloc(s, nid=1)
    assert [k.slab_of(obj).nid for obj in (near, far)] == [0, 1]
    assert s.stats()["alloc_node_mismatch"] == 1
    # A node without memory does not exist for the cache.
    assert k.slab_of(k.kmem_cache_alloc(s, nid=7)).nid in (0, 1)
    k.check()


def test_other_nodes_give_only_what_they_have_above_their_minimum():
    k = slub(pages=2048, nodes=2, cpus=2)
    s = k.cache("kmalloc-512")
    size = s.layout.objects
    objects = take(k, s, size * 7)
    for obj in objects[::size]:
        k.kfree(obj)
    k.flush_all()
    assert s.node[0].nr_partial == 7 > s.layout.min_partial
    k.memory.run_on(1)
    assert k.slab_of(k.kmem_cache_alloc(s)).nid == 0
    k.flush_all()
    k.memory.run_on(0)
    take(k, s, 6)
    k.flush_all()
    assert s.node[0].nr_partial <= s.layout.min_partial
    k.memory.run_on(1)
    assert k.slab_of(k.kmem_cache_alloc(s)).nid == 1
    k.check()


def test_every_operation_has_its_own_transaction_number():
    k = slub(cpus=2)
    s = k.cache("kmalloc-64")
    a = k.kmem_cache_alloc(s)
    tid = s.cpu_slab[0].tid
    assert tid % TID_STEP == 0 and s.cpu_slab[1].tid == 1
    k.kfree(a)
    assert s.cpu_slab[0].tid == tid + TID_STEP


def test_the_fast_path_notices_that_somebody_was_here():
    k = slub(cpus=2)
    s = k.cache("kmalloc-64")
    k.kmem_cache_alloc(s)
    read = fastpath_read(s)
    a, b = k.kmem_cache_alloc(s), k.kmem_cache_alloc(s)
    k.kfree(a)
    # The head is the same object again, with another one behind it (b is in use): only the TID tells.
    assert s.cpu_slab[0].freelist == read.obj and read.following == b
    assert not fastpath_commit(s, read) and s.stats()["cmpxchg_double_cpu_fail"] == 1
    assert fastpath_commit(s, fastpath_read(s))
    k.check()
    read = fastpath_read(s)
    k.memory.run_on(1)
    assert fastpath_read(s) is None and not fastpath_commit(s, read)


def test_the_structures_of_caches_lie_in_caches_themselves():
    k = slub(nodes=2)
    inside = [k.cache_of(s.address).name for s in k.caches]
    assert set(inside) == {"kmem_cache"}
    assert {k.cache_of(n.address).name for s in k.caches for n in s.node.values()} == {"kmem_cache_node"}
    used = sum(len(s.node) for s in k.caches)
    nodes = k.cache("kmem_cache_node")
    slabs = [slab for slab in k.slabs.values() if slab.cache is nodes]
    assert sum(slab.objects for slab in slabs) - sum(map(len, k.free_of(nodes).values())) == used
    k.check()


@pytest.mark.parametrize("boot", [toy16, big64])
def test_slub_runs_on_a_booted_machine(boot):
    machine = boot()
    k = Slub.of(machine)
    objects = [k.kmalloc(size) for size in (8, 100, 5000, 8192, 10_000, 300_000)]
    k.check()
    machine.check()
    for obj in objects:
        k.kfree(obj)
    k.check()
    machine.check()


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda k, s, slab: setattr(slab, "inuse", slab.inuse - 1), "do not make"),
    (lambda k, s, slab: setattr(slab, "frozen", False), "not frozen"),
    (lambda k, s, slab: s.node[0].add_partial(slab, True), "two places"),
    (lambda k, s, slab: setattr(s.cpu_slab[0], "freelist", slab.address + 4), "none of its objects"),
    (lambda k, s, slab: setattr(s.node[0], "nr_slabs", 9), "counts 9 slabs"),
    (lambda k, s, slab: s.set_freepointer(s.cpu_slab[0].freelist, s.cpu_slab[0].freelist), "free twice"),
    (lambda k, s, slab: k.memory.frames.flags.__setitem__(slab.pfn, 0), "lacks PG_slab"),
])
def test_check_names_what_is_broken(spoil, message):
    k = slub()
    s = k.cache("kmalloc-512")
    slab = k.slab_of(k.kmem_cache_alloc(s))
    k.check()
    spoil(k, s, slab)
    with pytest.raises(InvariantError, match=message):
        k.check()
