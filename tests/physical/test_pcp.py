"""Per-CPU lists: refill, order of use, draining."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE
from mmsim.errors import InputError
from mmsim.physical.free import free_pages, free_unref_page_list
from mmsim.physical.pcp import (
    drain_all_pages,
    drain_pages,
    drain_zone_pages,
    nr_pcp_free,
    nr_pcp_high,
    pcp_allowed_order,
)
from mmsim.physical.zone import PerCpuPages, order_to_pindex, pindex_to_order

from .machines import lists, machine, take

UNMOVABLE, MOVABLE, RECLAIMABLE = MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE


def test_there_are_fifteen_lists_three_types_of_orders_0_to_3_and_9():
    assert len(PerCpuPages().lists) == 15
    assert [pindex_to_order(pindex) for pindex in range(0, 15, 3)] == [0, 1, 2, 3, 9]
    assert [order_to_pindex(RECLAIMABLE, order) for order in (0, 1, 2, 3, 9)] == [2, 5, 8, 11, 14]
    assert [order for order in range(11) if pcp_allowed_order(order)] == [0, 1, 2, 3, 9]


def test_a_refill_takes_a_batch_and_hands_it_out_in_address_order():
    _, zone = machine(batch=63, high=500)
    assert [take(zone) for _ in range(4)] == [0, 1, 2, 3]
    assert zone.pageset[0].count == 59
    assert zone.nr_free_pages == 4096 - 63


def test_a_refill_of_higher_order_is_smaller_but_at_least_two():
    _, zone = machine(batch=7, high=500)
    for order, blocks in ((1, 3), (2, 2), (3, 2)):
        count = zone.pageset[0].count
        take(zone, order)
        assert zone.pageset[0].count - count == (blocks - 1) << order


def test_the_last_page_freed_is_the_first_to_be_allocated():
    memory, zone = machine(batch=7, high=500)
    pages = [take(zone) for _ in range(5)]
    for pfn in pages:
        free_pages(memory, pfn)
    assert [take(zone) for _ in range(5)] == pages[::-1]


def test_drains_double_until_only_a_batch_stays():
    pcp = PerCpuPages(high=535, batch=63)
    assert [nr_pcp_free(pcp, 535, 63) for _ in range(5)] == [63, 126, 252, 472, 472]
    assert pcp.free_factor == 3


def test_an_allocation_halves_the_free_factor():
    _, zone = machine(batch=7, high=500)
    zone.pageset[0].free_factor = 3
    take(zone)
    assert zone.pageset[0].free_factor == 1


def test_the_boot_page_set_keeps_nothing():
    memory, zone = machine(batch=1, high=0)
    free_pages(memory, take(zone))
    assert zone.pageset[0].count == 0 and zone.nr_free_pages == 4096


def test_lists_stay_short_while_the_zone_is_reclaimed():
    _, zone = machine(batch=7, high=500)
    assert nr_pcp_high(zone.pageset[0], zone) == 500
    zone.reclaim_active = True
    assert nr_pcp_high(zone.pageset[0], zone) == 28


def test_a_drain_goes_round_robin_from_list_1_and_takes_the_oldest():
    memory, zone = machine(batch=7, high=10_000)
    pages = {migratetype: [take(zone, 0, migratetype) for _ in range(7)] for migratetype in (UNMOVABLE, MOVABLE, RECLAIMABLE)}
    for migratetype in (UNMOVABLE, MOVABLE, RECLAIMABLE):
        for pfn in pages[migratetype]:
            free_pages(memory, pfn)
    with memory.trace.recording("kmem:mm_page_pcpu_drain") as events:
        drain_zone_pages(zone, zone.pageset[0])
    # List 1 gives one block, list 2 one, list 0 (twelve empty lists later) thirteen, as far as the batch goes.
    assert [event["migratetype"] for event in events] == [1, 2] + [0] * 5
    assert [event["pfn"] for event in events] == [pages[1][0], pages[2][0], *pages[0][:5]]
    memory.check()


def test_the_only_list_that_is_not_empty_gives_everything():
    memory, zone = machine(batch=7, high=10_000)
    for pfn in [take(zone, 2) for _ in range(10)]:
        free_pages(memory, pfn, 2)
    drain_pages(zone, 0)
    assert zone.pageset[0].count == 0
    assert lists(zone) == {(10, MOVABLE): [0, 1024, 2048, 3072]}


def test_each_cpu_has_lists_of_its_own():
    memory, zone = machine(nr_cpus=2, batch=7, high=500)
    assert take(zone) == 0
    memory.run_on(1)
    assert take(zone) == 7
    assert [pcp.count for pcp in zone.pageset] == [6, 6]
    drain_all_pages(memory)
    assert [pcp.count for pcp in zone.pageset] == [0, 0]
    with pytest.raises(InputError, match="no CPU 2"):
        memory.run_on(2)


def test_a_huge_page_goes_through_the_cpu_s_list():
    memory, zone = machine(batch=63, high=2000)
    pfn = take(zone, 9, MOVABLE, compound=True)
    free_pages(memory, pfn, 9)
    assert zone.pageset[0].lists[13][0] == pfn
    memory.check()


def test_a_list_of_pages_is_freed_in_its_order_and_traced_as_a_batch():
    memory, zone = machine(batch=7, high=500)
    pages = [take(zone) for _ in range(3)]
    for pfn in pages:
        memory.frames.refcount[pfn] = 0
    with memory.trace.recording("kmem:*") as events:
        free_unref_page_list(memory, pages)
    assert [(event.name, event["pfn"]) for event in events] == \
        [("kmem:mm_page_free", pfn) for pfn in pages] + [("kmem:mm_page_free_batched", pfn) for pfn in pages]
    assert list(zone.pageset[0].lists[1])[:3] == pages[::-1]


def test_a_block_from_a_per_cpu_list_counts_as_one_page_whatever_its_order():
    memory, zone = machine(batch=7, high=500)
    pfn = take(zone, 3)
    assert memory.counters["pgalloc_normal"] == 1
    before = memory.counters["pgfree"]
    free_pages(memory, pfn, 3)
    assert memory.counters["pgfree"] == before + 1
    take(zone, 4)
    assert memory.counters["pgalloc_normal"] == 17


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 3]), st.integers(0, 2), st.booleans()), max_size=120),
       st.sampled_from([1, 7, 63]))
def test_refilling_in_runs_is_the_same_as_frame_by_frame(steps, batch):
    results = []
    for traced in (False, True):
        memory, zone = machine(0, 2048, batch=batch, high=3 * batch)
        stop = memory.trace.subscribe(lambda event: None) if traced else None     # tracing switches runs off
        held, seen = [], []
        for order, migratetype, free in steps:
            if free and held:
                free_pages(memory, *held.pop(len(held) // 2))
            else:
                held.append((take(zone, order, migratetype), order))
            seen.append((list(held), lists(zone), zone.nr_free_pages, [list(pages) for pages in zone.pageset[0].lists]))
            memory.check()
        results.append(seen)
        if stop:
            stop()
    assert results[0] == results[1]
