"""Requests from the GFP mask to the frame: zonelists, the fast path, bulk allocation.

The replay of golden/buddy holds the same functions against the kernel's own C.
"""


import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim import constants as c
from mmsim.errors import InputError, KernelBug
from mmsim.physical.buddy import check_zone
from mmsim.physical.free import free_pages_core
from mmsim.physical.freelist import alloc_flags_nofragment, prepare_alloc_pages
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.watermark import Reserves, zone_batchsize, zone_highsize
from mmsim.physical.zonelist import build_all_zonelists


def allocator_of(*spans: tuple[int, int, int, int], nr_cpus: int = 1) -> PageAllocator:
    """A machine with zones (nid, index, start, end), all free, in blocks of order 10 and 9, marks and per-CPU lists set."""
    memory = PhysicalMemory(max(end for *_, end in spans), nr_cpus=nr_cpus)
    blocks = memory.frames.pageblock_mt
    blocks[:] = bytes((c.MIGRATE_MOVABLE,)) * len(blocks)
    for nid, index, start, end in spans:
        if nid not in memory.nodes:
            memory.add_node(nid)
        zone = memory.nodes[nid].zones[index]
        zone.start_pfn, zone.spanned_pages, zone.present_pages = start, end - start, end - start
        memory.frames.assign_zone(zone, start, end)
        for pfn in range(start, end, 512):
            free_pages_core(memory, pfn, 9)
    memory.cpu_to_node = [min(cpu, max(memory.nodes)) for cpu in range(nr_cpus)]
    build_all_zonelists(memory)
    Reserves([node.zones for node in memory.nodes.values()]).init_per_zone_wmark_min()
    for zone in memory.zones():
        for pcp in zone.pageset:
            pcp.batch = max(1, zone_batchsize(zone.managed_pages))
            pcp.high = zone_highsize(zone.watermark[1], zone.managed_pages, pcp.batch, nr_cpus, nr_cpus)
    return PageAllocator(memory)


def two_zones() -> PageAllocator:
    return allocator_of((0, c.ZONE_DMA32, 0, 8192), (0, c.ZONE_NORMAL, 8192, 16384))


def zone_name(allocator: PageAllocator, pfn: int | None) -> str:
    assert pfn is not None
    return allocator.memory.frames.page_zone(pfn).name


def test_the_highest_zone_serves_first_and_the_mask_can_ask_for_a_lower_one():
    allocator = two_zones()
    assert zone_name(allocator, allocator.alloc_pages(c.GFP_KERNEL)) == "Normal"
    assert zone_name(allocator, allocator.alloc_pages(c.GFP_KERNEL | c._GFP_DMA32)) == "DMA32"
    # The machine has no DMA zone, and none is above it.
    assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_DMA | c._GFP_NOWARN) is None


def test_a_zone_at_its_low_mark_passes_requests_on_to_the_next_lower_one():
    allocator = two_zones()
    normal = allocator.memory.nodes[0].zones[c.ZONE_NORMAL]
    while zone_name(allocator, allocator.alloc_pages(c.GFP_USER)) == "Normal":
        pass
    assert normal.nr_free_pages <= normal.watermark[c.WMARK_LOW]


def test_an_unmovable_request_avoids_mixing_pageblocks_while_a_whole_one_is_free_elsewhere():
    allocator = two_zones()
    # All pageblocks are movable, so the first unmovable request must convert one: a whole one, which does not fragment.
    with allocator.memory.trace.recording("kmem:mm_page_alloc_extfrag") as events:
        allocator.alloc_pages(c.GFP_KERNEL)
    assert [event["fragmenting"] for event in events] == [0]
    context, _ = prepare_alloc_pages(allocator.memory, c.GFP_KERNEL, 0)
    assert alloc_flags_nofragment(allocator.memory, context.preferred_zone, c.GFP_KERNEL) & c.ALLOC_NOFRAGMENT
    context, _ = prepare_alloc_pages(allocator.memory, c.GFP_DMA32, 0)
    assert not alloc_flags_nofragment(allocator.memory, context.preferred_zone, c.GFP_DMA32) & c.ALLOC_NOFRAGMENT


def test_a_full_node_falls_back_to_the_next_and_this_node_does_not():
    allocator = allocator_of((0, c.ZONE_NORMAL, 0, 4096), (1, c.ZONE_NORMAL, 4096, 8192), nr_cpus=2)
    zones = [allocator.memory.nodes[nid].zones[c.ZONE_NORMAL] for nid in (0, 1)]
    while (pfn := allocator.alloc_pages(c.GFP_USER | c._GFP_THISNODE | c._GFP_NOWARN, nid=0)) is not None:
        assert pfn < 4096
    pfn = allocator.alloc_pages(c.GFP_USER)
    assert pfn is not None and pfn >= 4096
    assert (zones[0].numa_stat["numa_foreign"], zones[1].numa_stat["numa_miss"], zones[1].numa_stat["numa_other"]) == (1, 1, 1)
    assert allocator.alloc_pages(c.GFP_USER | c._GFP_NOWARN, nid=1, nodemask={0}) is None


def test_an_order_of_11_is_refused_with_a_warning_that_comes_once():
    allocator = two_zones()
    assert allocator.alloc_pages(c.GFP_KERNEL, 11) is None
    assert allocator.alloc_pages(c.GFP_KERNEL, -1) is None
    warnings = [line for line in allocator.memory.klog.lines() if "WARNING" in line]
    assert len(warnings) == 1 and "order 11" in warnings[0] and "MAX_ORDER" in warnings[0]


def test_contradicting_zone_bits_are_a_bug_and_an_unknown_node_is_refused():
    allocator = two_zones()
    with pytest.raises(KernelBug, match="several zones"):
        allocator.alloc_pages(c.GFP_KERNEL | c._GFP_DMA | c._GFP_DMA32)
    with pytest.raises(InputError, match="no node 7"):
        allocator.alloc_pages(c.GFP_KERNEL, nid=7)


def test_a_compound_request_gives_a_compound_page_and_takes_it_back_whole():
    allocator = two_zones()
    before = allocator.memory.nr_free_pages
    pfn = allocator.alloc_pages(c.GFP_KERNEL | c._GFP_COMP, 4)
    assert pfn is not None and allocator.memory.frames.compound_order(pfn + 7) == 4
    assert allocator.memory.frames.compound_head(pfn + 7) == pfn
    allocator.free_pages(pfn, 4)
    assert allocator.memory.nr_free_pages == before


def test_the_event_names_the_request_as_a_recorded_trace_does():
    allocator = two_zones()
    with allocator.memory.trace.recording("kmem:mm_page_alloc") as events:
        pfn = allocator.alloc_pages(c.GFP_HIGHUSER_MOVABLE | c._GFP_ZERO)
        allocator.alloc_pages(c.GFP_DMA | c._GFP_NOWARN)
    assert events[0].fields == {"pfn": pfn, "order": 0, "migratetype": 1, "gfp_flags": "GFP_HIGHUSER_MOVABLE|__GFP_ZERO"}
    assert events[1]["pfn"] == -1


# -- bulk --------------------------------------------------------------------------------------------------

@given(st.integers(1, 600), st.sampled_from([c.GFP_KERNEL, c.GFP_HIGHUSER_MOVABLE]))
@settings(deadline=None, max_examples=30)
def test_bulk_allocation_gives_the_frames_that_single_requests_would(nr_pages, gfp):
    single, bulk = two_zones(), two_zones()
    assert bulk.alloc_pages_bulk(gfp, nr_pages) == [single.alloc_pages(gfp) for _ in range(nr_pages)]
    for zone in bulk.memory.zones():
        check_zone(zone)
    assert bulk.memory.counters == single.memory.counters


def test_bulk_allocation_gives_one_page_where_no_zone_has_room_for_all():
    allocator = two_zones()
    assert len(allocator.alloc_pages_bulk(c.GFP_KERNEL, 10_000)) == 1
    assert allocator.alloc_pages_bulk(c.GFP_KERNEL, 0) == []
    assert len(allocator.alloc_pages_bulk(c.GFP_KERNEL, 5000)) == 5000


def test_bulk_allocation_fills_the_empty_places_of_an_array_only():
    allocator = two_zones()
    pages: list[int | None] = [7, None, 9, None, None]
    assert allocator.alloc_pages_bulk_array(c.GFP_KERNEL, pages) == 5
    assert pages[0] == 7 and pages[2] == 9 and None not in pages and len(set(pages)) == 5


# -- random use --------------------------------------------------------------------------------------------

@given(st.lists(st.tuples(st.sampled_from([c.GFP_KERNEL, c.GFP_ATOMIC, c.GFP_HIGHUSER_MOVABLE, c.GFP_DMA32,
                                           c.GFP_KERNEL | c._GFP_RECLAIMABLE, c.GFP_KERNEL | c._GFP_MEMALLOC]),
                          st.integers(0, 10), st.integers(0, 20)), max_size=120))
@settings(deadline=None, max_examples=40)
def test_no_frame_is_lost_or_handed_out_twice(requests):
    allocator = two_zones()
    total = allocator.memory.nr_free_pages
    held: dict[int, int] = {}
    used: set[int] = set()
    for gfp, order, victim in requests:
        pfn = allocator.alloc_pages(gfp | c._GFP_NOWARN, order)
        if pfn is not None:
            block = set(range(pfn, pfn + (1 << order)))
            assert not block & used
            used |= block
            held[pfn] = order
        if held and victim < 8:
            freed = sorted(held)[victim % len(held)]
            allocator.free_pages(freed, held[freed])
            used -= set(range(freed, freed + (1 << held.pop(freed))))
        for zone in allocator.memory.zones():
            check_zone(zone)
    on_lists = sum(pcp.count for zone in allocator.memory.zones() for pcp in zone.pageset)
    assert allocator.memory.nr_free_pages + on_lists + len(used) == total
