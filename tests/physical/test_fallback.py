"""Stealing between migratetypes, boosted watermarks, the HighAtomic reserve, CMA."""

from __future__ import annotations

from mmsim.config import Config
from mmsim.constants import (
    ALLOC_CMA,
    ALLOC_HARDER,
    ALLOC_KSWAPD,
    ALLOC_NOFRAGMENT,
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
)
from mmsim.physical.buddy import _free_one_page, check_zone
from mmsim.physical.fallback import (
    _rmqueue,
    boost_watermark,
    can_steal_fallback,
    find_suitable_fallback,
    reserve_highatomic_pageblock,
    unreserve_highatomic_pageblock,
)
from mmsim.physical.frames import PG
from mmsim.physical.free import free_pages, init_cma_reserved_pageblock
from mmsim.physical.rmqueue import rmqueue, rmqueue_buddy

from .machines import hand_over, lists, machine, take

UNMOVABLE, MOVABLE, RECLAIMABLE = MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE


def block_types(zone):
    return list(zone.frames.pageblock_mt[zone.start_pfn >> 9:(zone.end_pfn - 1 >> 9) + 1])


def test_one_unmovable_page_takes_a_whole_largest_block():
    _, zone = machine(0, 4096)
    assert rmqueue_buddy(zone, 0, UNMOVABLE, 0) == 0
    assert block_types(zone) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert zone.watermark_boost == 0, "blocks of at least a pageblock do not mix types"
    check_zone(zone)


def test_one_unmovable_order_5_block_of_a_pc_s_dma_zone_leaves_1_1_1_0_1_3():
    memory, zone = machine(0, 0x1000, free=False)
    zone.frames.pageblock_mt[0] = UNMOVABLE     # pageblock 0 begins outside of the zone and keeps type 0
    hand_over(memory, 0x100, 0x1000)
    assert rmqueue_buddy(zone, 5, UNMOVABLE, 0) == 0x100
    assert zone.buddyinfo() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 3]


def test_stealing_is_traced_with_the_kernel_s_fields():
    memory, zone = machine(0, 4096)
    with memory.trace.recording("kmem:mm_page_alloc_extfrag", "kmem:mm_page_alloc_zone_locked") as events:
        rmqueue_buddy(zone, 0, UNMOVABLE, 0)
    assert [(event.name, event.fields) for event in events] == [
        ("kmem:mm_page_alloc_extfrag", {
            "pfn": 0, "alloc_order": 0, "fallback_order": 10, "pageblock_order": 9, "alloc_migratetype": 0,
            "fallback_migratetype": 1, "fragmenting": 0, "change_ownership": 1}),
        ("kmem:mm_page_alloc_zone_locked", {"pfn": 0, "order": 0, "migratetype": 0, "percpu_refill": 1})]


def test_unmovable_falls_back_to_reclaimable_before_movable():
    _, zone = machine(0, 2048, free=False)
    _free_one_page(zone, 1024, 10, MOVABLE)
    _free_one_page(zone, 0, 10, RECLAIMABLE)
    assert find_suitable_fallback(zone.free_area[10], 10, UNMOVABLE) == (RECLAIMABLE, True)
    assert find_suitable_fallback(zone.free_area[10], 10, RECLAIMABLE) == (MOVABLE, True)
    assert find_suitable_fallback(zone.free_area[9], 9, UNMOVABLE) == (-1, False)


def test_a_movable_request_may_take_over_a_pageblock_from_order_4_on():
    assert [can_steal_fallback(order, MOVABLE) for order in (0, 3, 4, 9)] == [False, False, True, True]
    assert can_steal_fallback(0, UNMOVABLE) and can_steal_fallback(0, RECLAIMABLE)


def test_a_movable_request_that_may_not_take_over_splits_the_smallest_block():
    _, zone = machine(0, 2048, free=False)
    zone.frames.pageblock_mt[:] = bytes(4)
    _free_one_page(zone, 8, 3, UNMOVABLE)
    _free_one_page(zone, 512, 1, UNMOVABLE)
    assert _rmqueue(zone, 0, MOVABLE, 0) == 512
    assert lists(zone) == {(0, MOVABLE): [513], (3, UNMOVABLE): [8]}


def test_an_unmovable_request_takes_the_largest_block_and_its_pageblock_when_half_of_that_is_alike():
    _, zone = machine(0, 2048, free=False)
    _free_one_page(zone, 8, 3, MOVABLE)
    _free_one_page(zone, 32, 1, MOVABLE)
    _free_one_page(zone, 513, 0, MOVABLE)
    # In use and not on an LRU list: unmovable frames in a movable pageblock.
    assert _rmqueue(zone, 0, UNMOVABLE, 0) == 32, "all free blocks of the pageblock moved; the smallest is split"
    assert lists(zone) == {(0, UNMOVABLE): [33], (0, MOVABLE): [513], (3, UNMOVABLE): [8]}
    assert block_types(zone)[0] == UNMOVABLE


def test_a_pageblock_full_of_movable_pages_keeps_its_type():
    memory, zone = machine(0, 2048, free=False)
    _free_one_page(zone, 8, 3, MOVABLE)
    for pfn in range(16, 512):
        memory.frames.flags[pfn] |= PG["lru"]
    _rmqueue(zone, 0, UNMOVABLE, 0)
    assert block_types(zone)[0] == MOVABLE


def test_nofragment_leaves_blocks_below_a_pageblock_alone():
    _, zone = machine(0, 2048, free=False)
    _free_one_page(zone, 0, 8, MOVABLE)
    assert _rmqueue(zone, 0, UNMOVABLE, ALLOC_NOFRAGMENT) is None
    _free_one_page(zone, 512, 9, MOVABLE)
    assert _rmqueue(zone, 0, UNMOVABLE, ALLOC_NOFRAGMENT) == 512


def test_mixing_types_boosts_the_watermark_by_a_pageblock_up_to_one_and_a_half_high_marks():
    _, zone = machine(0, 4096)
    assert not boost_watermark(zone), "no marks yet"
    zone.watermark = [400, 500, 600]
    assert boost_watermark(zone) and zone.watermark_boost == 512
    assert boost_watermark(zone) and zone.watermark_boost == 900
    zone.watermark, zone.watermark_boost = [40, 50, 60], 0
    assert boost_watermark(zone) and boost_watermark(zone) and zone.watermark_boost == 512
    zone.managed_pages = 2047
    assert not boost_watermark(zone), "too small a zone"


def test_a_boost_wakes_kswapd_at_the_end_of_the_request():
    memory, zone = machine(0, 4096, free=False)
    zone.managed_pages, zone.watermark = 4096, [40, 50, 60]
    _free_one_page(zone, 0, 8, MOVABLE)
    woken = []
    memory.wakeup_kswapd = lambda *arguments: woken.append(arguments)
    assert rmqueue(zone, zone, 4, 0, ALLOC_KSWAPD, UNMOVABLE) == 0
    assert woken == [(zone, 0, 0, zone.index)]
    assert not zone.boosted_watermark


def test_the_highatomic_reserve_is_a_hundredth_and_a_pageblock():
    _, zone = machine(0, 8192)
    for pfn in range(0, 8192, 512):
        reserve_highatomic_pageblock(zone, pfn)
    # 8192 / 100 + 512 = 593: a second pageblock may still be begun, a third not.
    assert zone.nr_reserved_highatomic == 1024
    assert block_types(zone)[:3] == [MIGRATE_HIGHATOMIC, MIGRATE_HIGHATOMIC, MOVABLE]


def test_only_urgent_requests_of_high_order_use_the_reserve():
    _, zone = machine(0, 1024, free=False)
    zone.frames.pageblock_mt[0] = MIGRATE_HIGHATOMIC
    _free_one_page(zone, 0, 9, MIGRATE_HIGHATOMIC)
    assert rmqueue_buddy(zone, 1, UNMOVABLE, 0) is None
    assert rmqueue_buddy(zone, 0, UNMOVABLE, ALLOC_HARDER) is None
    assert rmqueue_buddy(zone, 1, UNMOVABLE, ALLOC_HARDER) == 0


def test_the_last_reserved_pageblock_is_given_back_by_force_only():
    _, zone = machine(0, 8192)
    pfn = rmqueue_buddy(zone, 1, MOVABLE, 0)
    reserve_highatomic_pageblock(zone, pfn)
    assert not unreserve_highatomic_pageblock([zone], UNMOVABLE)
    assert unreserve_highatomic_pageblock([zone], UNMOVABLE, force=True)
    assert zone.nr_reserved_highatomic == 0 and block_types(zone)[0] == UNMOVABLE
    check_zone(zone)


def cma_machine():
    memory, zone = machine(0, 4096, free=False, batch=1, high=4)
    for pfn in range(0, 2048, 1024):
        _free_one_page(zone, pfn, 10, MOVABLE)
    memory.frames.reserve(2048, 4096)
    for pfn in range(2048, 4096, 512):
        init_cma_reserved_pageblock(zone, pfn)
    return memory, zone


def test_a_cma_area_is_free_memory_of_its_own_type():
    memory, zone = cma_machine()
    assert (zone.cma_pages, zone.nr_free_cma_pages, zone.nr_free_pages) == (2048, 2048, 4096)
    assert block_types(zone)[4:] == [memory.config.migrate_cma] * 4
    memory.check()


def test_movable_requests_use_cma_first_when_it_is_more_than_half_of_free_memory():
    _, zone = cma_machine()
    assert rmqueue_buddy(zone, 4, MOVABLE, ALLOC_CMA) < 2048, "just half is not more than half"
    assert rmqueue_buddy(zone, 4, MOVABLE, ALLOC_CMA) >= 2048
    check_zone(zone)


def test_unmovable_requests_and_movable_ones_without_permission_never_use_cma():
    _, zone = cma_machine()
    taken = []
    while (pfn := rmqueue(zone, zone, 0, 0, 0, MOVABLE if len(taken) % 2 else UNMOVABLE)) is not None:
        taken.append(pfn)
    assert len(taken) == 2048 and max(taken) < 2048
    assert zone.nr_free_cma_pages == 2048


def test_cma_frames_keep_their_type_on_the_movable_list():
    memory, zone = cma_machine()
    pfns = [take(zone, 0, MOVABLE, ALLOC_CMA) for _ in range(1000)]
    assert any(pfn >= 2048 for pfn in pfns)
    memory.check()
    for pfn in pfns:
        free_pages(memory, pfn)
    from mmsim.physical.pcp import drain_all_pages
    drain_all_pages(memory)
    memory.check()
    assert zone.nr_free_cma_pages == 2048 and zone.nr_free_pages == 4096


def test_without_cma_the_isolate_type_moves_down():
    assert (Config().migrate_cma, Config().migrate_isolate, Config().migrate_types) == (4, 5, 6)
    assert (Config(cma=False).migrate_cma, Config(cma=False).migrate_isolate, Config(cma=False).migrate_types) == (-1, 4, 5)
