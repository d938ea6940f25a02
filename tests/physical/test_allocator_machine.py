"""The allocator as a whole under random use: no frame is lost, none is given out twice, and check() holds after each step."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from mmsim.config import Config
from mmsim.constants import (
    ALLOC_CMA,
    ALLOC_HARDER,
    ALLOC_KSWAPD,
    ALLOC_NOFRAGMENT,
    MIGRATE_PCPTYPES,
    ZONE_DMA32,
    ZONE_NORMAL,
)
from mmsim.physical.fallback import reserve_highatomic_pageblock, unreserve_highatomic_pageblock
from mmsim.physical.frames import PG
from mmsim.physical.free import free_pages, init_cma_reserved_pageblock
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page import prep_new_page
from mmsim.physical.pcp import drain_all_pages, drain_zone_pages
from mmsim.physical.rmqueue import rmqueue

from .machines import hand_over

ORDERS = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 9, 10])
ALLOC_FLAGS = st.sets(st.sampled_from([ALLOC_CMA, ALLOC_HARDER, ALLOC_KSWAPD, ALLOC_NOFRAGMENT])).map(sum)


class Allocator(RuleBasedStateMachine):
    """Two zones side by side (the second neither begins nor ends at a pageblock), two CPUs, a CMA area or none."""

    blocks = Bundle("blocks")

    @initialize(cma=st.booleans(), holes=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 90)), max_size=4),
                batch=st.sampled_from([1, 7, 31]), grouping=st.booleans())
    def boot(self, cma, holes, batch, grouping):
        self.memory = PhysicalMemory(5000, nr_cpus=2, config=Config(cma=cma))
        self.memory.page_group_by_mobility_disabled = not grouping
        node = self.memory.add_node(0, 1, 4999, 4999)
        frames = self.memory.frames
        frames.pageblock_mt[:] = bytes((1 if grouping else 0,)) * len(frames.pageblock_mt)
        self.zones = [node.zones[ZONE_DMA32], node.zones[ZONE_NORMAL]]
        for zone, start, end in zip(self.zones, (1, 2300), (2300, 5000)):
            zone.start_pfn, zone.spanned_pages, zone.present_pages = start, end - start, end - start
            frames.assign_zone(zone, start, end)
        taken = {pfn for start, pages in holes for pfn in range(start, min(start + pages, 5000))}
        if cma:
            taken |= set(range(3072, 4096))
        frames.reserve(1, 5000)
        start = 1
        for pfn in range(1, 5001):
            if pfn == 5000 or pfn in taken or pfn == 2300:
                hand_over(self.memory, start, pfn)
                start = pfn + (pfn in taken)
        self.total = 4999 - len(taken - {0})
        for zone in self.zones:
            zone.watermark = [30, 40, 50]
            for pcp in zone.pageset:
                pcp.batch, pcp.high = batch, 4 * batch
        if cma:
            for pfn in (3072, 3584):
                init_cma_reserved_pageblock(self.zones[1], pfn)
            self.total += 1024
        self.used: dict[int, int] = {}

    @rule(target=blocks, zone=st.integers(0, 1), order=ORDERS, migratetype=st.integers(0, MIGRATE_PCPTYPES - 1),
          alloc_flags=ALLOC_FLAGS, compound=st.booleans(), lru=st.booleans(), count=st.sampled_from([1, 1, 5, 40]))
    def allocate(self, zone, order, migratetype, alloc_flags, compound, lru, count):
        zone = self.zones[zone]
        taken = []
        for _ in range(count):
            pfn = rmqueue(zone, zone, order, 0, alloc_flags, migratetype)
            if pfn is None:
                break
            assert zone.spans_pfn(pfn) and pfn % (1 << order) == 0
            for frame in range(pfn, pfn + (1 << order)):
                assert frame not in self.used, f"frame {frame:#x} was given out twice"
                self.used[frame] = pfn
            prep_new_page(self.memory.frames, pfn, order, compound)
            if order and alloc_flags & ALLOC_HARDER:
                reserve_highatomic_pageblock(zone, pfn)
            if lru:
                self.memory.frames.flags[pfn] |= PG["lru"]
            taken.append((pfn, order))
        return multiple(*taken)

    @rule(block=consumes(blocks))
    def free(self, block):
        pfn, order = block
        self.memory.frames.flags[pfn] &= ~PG["lru"]
        free_pages(self.memory, pfn, order)
        for frame in range(pfn, pfn + (1 << order)):
            del self.used[frame]

    @rule(cpu=st.integers(0, 1))
    def migrate(self, cpu):
        self.memory.run_on(cpu)

    @rule(zone=st.integers(0, 1))
    def tick(self, zone):
        for pcp in self.zones[zone].pageset:
            drain_zone_pages(self.zones[zone], pcp)

    @rule()
    def drain(self):
        drain_all_pages(self.memory)
        assert self.memory.nr_free_pages == self.total - len(self.used)

    @rule(active=st.booleans())
    def reclaim(self, active):
        self.zones[1].reclaim_active = active

    @rule(migratetype=st.integers(0, MIGRATE_PCPTYPES - 1), force=st.booleans())
    def unreserve(self, migratetype, force):
        unreserve_highatomic_pageblock(self.zones, migratetype, force)

    @invariant()
    def every_frame_is_in_one_place(self):
        if not hasattr(self, "total"):
            return
        self.memory.check()
        on_lists = sum(pcp.count for zone in self.zones for pcp in zone.pageset)
        assert self.memory.nr_free_pages + on_lists + len(self.used) == self.total
        assert not self.memory.klog.lines()


TestAllocator = Allocator.TestCase
TestAllocator.settings = settings(deadline=None, max_examples=60, stateful_step_count=50)


@pytest.mark.parametrize("seed, cma, grouping", [(1, False, True), (2, True, True), (3, True, False)])
def test_a_long_random_workload_loses_no_frame(seed, cma, grouping):
    draw = random.Random(seed)
    machine = Allocator()
    machine.boot(cma, [(700, 30), (2900, 7)], 7, grouping)
    held: list[tuple[int, int]] = []
    for step in range(3000):
        # Memory fills and empties in waves, so that stealing, splitting and merging all happen.
        if held and draw.random() < (0.35 if step // 500 % 2 == 0 else 0.65):
            machine.free(held.pop(draw.randrange(len(held))))
        else:
            flags = draw.choice([0, ALLOC_CMA]) | draw.choice([0, ALLOC_KSWAPD]) | draw.choice([0, 0, 0, ALLOC_HARDER])
            block = machine.allocate(draw.randrange(2), draw.choice([0, 0, 0, 1, 2, 3, 5, 9]), draw.choice([0, 1, 1, 2]), flags,
                                     draw.random() < 0.5, draw.random() < 0.3, 1)
            held += block.values if hasattr(block, "values") else [block]
        if step % 100 == 0:
            machine.unreserve(draw.randrange(3), True)
            machine.migrate(draw.randrange(2))
            machine.every_frame_is_in_one_place()
    for block in held:
        machine.free(block)
    machine.drain()
    machine.every_frame_is_in_one_place()
    assert machine.memory.nr_free_pages == machine.total
