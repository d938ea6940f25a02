"""SLUB under random use, against a set: no object is given out twice, none is lost, and what is in one stays there."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from mmsim import constants as c
from mmsim.kernel import slab_layout as sl
from mmsim.kernel.slab import KmemCache

from .machines import free_frames, slub

SIZES = st.one_of(st.integers(1, 300), st.sampled_from([512, 1000, 2048, 4096, 8192, 8193, 20_000]))
GFP = st.sampled_from([c.GFP_KERNEL, c.GFP_ATOMIC, c.GFP_KERNEL_ACCOUNT, c.GFP_KERNEL | c._GFP_RECLAIMABLE,
                       c.GFP_KERNEL | c._GFP_ZERO])
#: Half of the caches are plain: only these have slabs at CPUs.
FLAGS = st.just(0) | st.sets(st.sampled_from([sl.SLAB_HWCACHE_ALIGN, sl.SLAB_TYPESAFE_BY_RCU, sl.SLAB_RECLAIM_ACCOUNT,
                                 sl.SLAB_RED_ZONE, sl.SLAB_POISON, sl.SLAB_STORE_USER, sl.SLAB_CONSISTENCY_CHECKS])).map(sum)


class Objects(RuleBasedStateMachine):
    """Two nodes, three CPUs. ``held`` has every object that somebody has: its size and its contents."""

    objects = Bundle("objects")
    caches = Bundle("caches")

    @initialize(target=caches, hardened=st.booleans(), shuffled=st.booleans(), seed=st.integers(0, 9),
                debug=st.sampled_from([None, None, None, "FZ,kmalloc-*", "P", "FZPU"]))
    def boot(self, hardened, shuffled, seed, debug):
        self.k = slub(nodes=2, cpus=3, hardened=hardened, freelist_random=shuffled, seed=seed, slub_debug=debug)
        self.held: dict[int, tuple[int, bytes]] = {}
        self.serial = 0
        return multiple()

    def _take(self, obj, size, name):
        if obj is None:
            return multiple()
        assert obj not in self.held and obj % 8 == 0
        for other, (length, _) in self.held.items():
            assert obj + size <= other or other + length <= obj, f"{obj:#x} overlaps {other:#x}"
        self.serial += 1
        data = (self.serial.to_bytes(4, "little") * (size // 4 + 1))[:size]
        self.k.write(obj, data)
        self.held[obj] = size, data
        return obj, name

    @rule(target=objects, size=SIZES, gfp=GFP, cpu=st.integers(0, 2), nid=st.sampled_from([None, None, 0, 1]))
    def kmalloc(self, size, gfp, cpu, nid):
        self.k.memory.run_on(cpu)
        obj = self.k.kmalloc(size, gfp, nid)
        if obj is not None:
            assert self.k.ksize(obj) >= size
            if gfp & c._GFP_ZERO:
                assert self.k.read(obj, size) == bytes(size)
        return self._take(obj, size, None)

    @rule(target=caches, size=st.sampled_from([24, 500, 1000, 1500, 3000]), align=st.sampled_from([0, 8, 64, 256]), flags=FLAGS,
          name=st.sampled_from("abcdef"))
    def create(self, size, align, flags, name):
        s = self.k.kmem_cache_create(name, size, align, flags)
        return (s, size)

    @rule(target=objects, cache=caches, cpu=st.integers(0, 2), count=st.integers(1, 30))
    def alloc(self, cache, cpu, count):
        s, size = cache
        if s not in self.k.caches.list:
            return multiple()
        self.k.memory.run_on(cpu)
        return multiple(*[self._take(self.k.kmem_cache_alloc(s), size, s) for _ in range(count)])

    @rule(items=st.lists(consumes(objects), max_size=25), cpu=st.integers(0, 2))
    def free(self, items, cpu):
        self.k.memory.run_on(cpu)
        for obj, s in items:
            size, data = self.held.pop(obj)
            assert self.k.read(obj, size) == data
            if s is None:
                self.k.kfree(obj)
            else:
                self.k.kmem_cache_free(s, obj)

    @rule(item=consumes(objects), size=SIZES, target=objects)
    def krealloc(self, item, size):
        obj, s = item
        if s is not None:
            return item
        old, data = self.held[obj]
        new = self.k.krealloc(obj, size)
        if new is None:
            return item
        del self.held[obj]
        assert self.k.read(new, min(old, size)) == data[:min(old, size)]
        return self._take(new, size, None)

    @rule(cache=consumes(caches))
    def destroy(self, cache):
        s, _ = cache
        users = any(self.k.slab_of(obj) and self.k.slab_of(obj).cache is s for obj in self.held)
        if s.refcount > 1:
            assert self.k.kmem_cache_destroy(s)
        elif s in self.k.caches.list and not users:
            assert self.k.kmem_cache_destroy(s) and s not in self.k.caches.list

    @rule()
    def shrink(self):
        for s in self.k.caches:
            self.k.kmem_cache_shrink(s)

    @rule()
    def grace_period(self):
        self.k.rcu_barrier()

    @invariant()
    def everything_adds_up(self):
        if not hasattr(self, "k"):
            return
        self.k.check()
        for obj, (size, data) in self.held.items():
            assert self.k.read(obj, size) == data
        # What is held is not free, and what is neither free nor held belongs to nobody: then it was lost.
        used = {s: sum(slab.objects for slab in self.k.slabs.values() if slab.cache is s and slab not in self.k.rcu_pending)
                for s in self.k.caches}
        held = dict.fromkeys(used, 0)
        for obj in self.held:
            slab = self.k.slab_of(obj)
            if slab is not None:
                held[slab.cache] += 1
        waiting = {slab.pfn for slab in self.k.rcu_pending}
        for s in self.k.caches:
            free = {obj for pfn, found in self.k.free_of(s).items() if pfn not in waiting for obj in found}
            assert not free & self.held.keys()
            if s.name not in ("kmem_cache", "kmem_cache_node"):
                assert used[s] == len(free) + held[s], s

    def teardown(self):
        if not hasattr(self, "k"):
            return
        for obj in list(self.held):
            slab = self.k.slab_of(obj)
            if slab is None:
                self.k.kfree(obj)
            else:
                self.k.kmem_cache_free(slab.cache, obj)
        own = {self.k.cache("kmem_cache"), self.k.cache("kmem_cache_node")}
        for s in self.k.caches:
            self.k.kmem_cache_shrink(s)
        self.k.rcu_barrier()
        left = [slab for slab in self.k.slabs.values() if slab.cache not in own]
        assert not left and "BUG" not in self.k.klog.text()
        frames = sum(1 << slab.order for slab in self.k.slabs.values())
        assert free_frames(self.k.memory) + frames == 2048


Objects.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
TestObjects = pytest.mark.filterwarnings("ignore")(Objects.TestCase)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_run_on_few_caches_moves_slabs_through_every_list(seed):
    random = Random(seed)
    k = slub(nodes=2, cpus=3, hardened=True, freelist_random=bool(seed), seed=seed)
    caches = [k.kmem_cache_create(f"c{size}", size) for size in (500, 1500, 3000)]
    held: dict[int, KmemCache] = {}
    for step in range(3000):
        k.memory.run_on(random.randrange(3))
        if len(held) < 20 or random.random() < (0.7 if step // 300 % 2 else 0.4):
            s = random.choice(caches)
            obj = k.kmem_cache_alloc(s)
            if obj is not None:
                assert obj not in held
                held[obj] = s
        else:
            obj = random.choice(list(held))
            k.kmem_cache_free(held.pop(obj), obj)
        if step % 20 == 0:
            k.check()
    total = {item: sum(s.stats()[item] for s in caches) for item in caches[0].stats()}
    assert all(total[item] for item in ("alloc_refill", "cpu_partial_alloc", "alloc_from_partial", "cpu_partial_node",
                                        "cpu_partial_free", "free_frozen", "cpu_partial_drain", "deactivate_bypass"))
