"""Watermarks and reserves: worked numbers, recorded machines, and what must hold for every machine."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import (
    ALLOC_CMA,
    ALLOC_HARDER,
    ALLOC_HIGH,
    ALLOC_OOM,
    ALLOC_WMARK_LOW,
    ALLOC_WMARK_MIN,
    GFP_ATOMIC,
    GFP_KERNEL,
    MAX_ORDER,
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
)
from mmsim.physical.vmstat import (
    MAX_STAT_THRESHOLD,
    calculate_normal_threshold,
    calculate_pressure_threshold,
    percpu_drift_mark,
)
from mmsim.physical.watermark import (
    Reserves,
    calculate_min_free_kbytes,
    recommended_min_free_kbytes,
    si_mem_available,
    zone_batchsize,
    zone_highsize,
    zone_watermark_fast,
    zone_watermark_ok,
)


def zones_of(*managed: int) -> list[SimpleNamespace]:
    """One node's zones DMA, DMA32, Normal, Movable with so many managed pages."""
    return [SimpleNamespace(index=index, present_pages=pages, managed_pages=pages, watermark=[0, 0, 0], watermark_boost=0,
                            lowmem_reserve=[0, 0, 0, 0])
            for index, pages in enumerate((*managed, *[0] * (4 - len(managed))))]


def checked_zone(free: int, *, boost: int = 0, reserve: int = 0, highatomic: int = 0, cma: int = 0,
                 blocks: dict[tuple[int, int], int] | None = None) -> SimpleNamespace:
    """A zone with marks 1000, 1250, 1500 and ``blocks`` free blocks by (order, migratetype)."""
    areas = [SimpleNamespace(nr_free=0, free_list=[[] for _ in range(6)]) for _ in range(MAX_ORDER)]
    for (order, migratetype), count in (blocks or {}).items():
        areas[order].nr_free += count
        areas[order].free_list[migratetype] = [0] * count
    return SimpleNamespace(watermark=[1000, 1250, 1500], watermark_boost=boost, lowmem_reserve=[0, 0, reserve, reserve],
                           nr_reserved_highatomic=highatomic, nr_free_pages=free, nr_free_cma_pages=cma, free_area=areas)


# -- computing the marks -----------------------------------------------------------------------------------

def test_the_marks_and_reserves_of_a_machine_of_eight_gigabytes_are_the_recorded_ones():
    zones = zones_of(3840, 772915, 1212416)
    reserves = Reserves([zones])
    reserves.init_per_zone_wmark_min()
    reserves.set_recommended_min_free_kbytes()
    assert reserves.min_free_kbytes == 67584 == 4 * 512 * 3 * 11
    assert [zone.watermark for zone in zones[:3]] == [[32, 40, 48], [6565, 8206, 9847], [10298, 12872, 15446]]
    assert [zone.lowmem_reserve[1:3] for zone in zones[:2]] == [[3019, 7755], [0, 4736]]


def test_the_marks_of_ref256_are_the_recorded_ones():
    zones = zones_of(3840, 54893)
    reserves = Reserves([zones])
    reserves.init_per_zone_wmark_min()
    assert reserves.min_free_kbytes == 1938
    assert [zone.watermark for zone in zones[:2]] == [[31, 38, 45], [452, 565, 678]]
    assert [max(1, zone_batchsize(zone.managed_pages)) for zone in zones[:2]] == [1, 15]
    assert [zone_highsize(zone.watermark[1], zone.managed_pages, batch, 1, 1)
            for zone, batch in zip(zones, (1, 15))] == [38, 565]


@pytest.mark.parametrize(("mebibytes", "kbytes"), [(16, 512), (64, 1024), (256, 2048), (1024, 4096), (4096, 8192), (16384, 16384)])
def test_min_free_kbytes_grows_with_the_square_root_of_memory(mebibytes, kbytes):
    assert calculate_min_free_kbytes(zones_of(0, 0, mebibytes * 256)) == kbytes


def test_min_free_kbytes_stays_between_128_kib_and_256_mib():
    assert calculate_min_free_kbytes(zones_of(64)) == 128
    assert calculate_min_free_kbytes(zones_of(0, 0, 1 << 40)) == 262144


def test_khugepaged_reserves_at_most_five_per_cent_of_low_memory():
    zones = zones_of(0, 0, 20000)
    assert recommended_min_free_kbytes(zones) == 20000 // 20 * 4


def test_khugepaged_ignores_zone_movable_but_the_share_of_a_zone_does_not():
    with_movable, without = zones_of(0, 0, 1 << 20, 1 << 20), zones_of(0, 0, 1 << 20)
    assert recommended_min_free_kbytes(with_movable) == recommended_min_free_kbytes(without)
    for zones in (with_movable, without):
        Reserves([zones]).write_min_free_kbytes(8192)
    assert with_movable[2].watermark[0] == without[2].watermark[0] // 2


def test_a_value_set_by_the_user_stays_unless_the_computed_one_is_larger():
    zones = zones_of(0, 0, 1 << 20)
    reserves = Reserves([zones])
    reserves.init_per_zone_wmark_min()
    computed = reserves.min_free_kbytes
    reserves.write_min_free_kbytes(computed * 2)
    reserves.set_recommended_min_free_kbytes(hugepages_enabled=False)
    assert reserves.min_free_kbytes == computed * 2
    reserves.write_min_free_kbytes(computed // 2)
    reserves.set_recommended_min_free_kbytes(hugepages_enabled=False)
    assert reserves.min_free_kbytes > computed // 2


def test_a_new_scale_factor_moves_low_and_high_but_not_min():
    zones = zones_of(0, 0, 1 << 20)
    reserves = Reserves([zones])
    reserves.init_per_zone_wmark_min()
    before = list(zones[2].watermark)
    reserves.write_watermark_scale_factor(1000)
    distance = (1 << 20) // 10
    assert zones[2].watermark == [before[0], before[0] + distance, before[0] + 2 * distance]


@given(st.lists(st.integers(0, 1 << 30), min_size=4, max_size=4), st.integers(1, 1 << 30), st.integers(1, 1000))
@settings(deadline=None)
def test_marks_rise_shares_stay_within_min_free_kbytes_and_reserves_grow_with_the_zones_above(managed, kbytes, factor):
    zones = zones_of(*managed)
    reserves = Reserves([zones], watermark_scale_factor=factor)
    reserves.init_per_zone_wmark_min()
    reserves.write_min_free_kbytes(kbytes)
    assert sum(zone.watermark[0] for zone in zones) <= kbytes // 4
    for zone in zones:
        low, high = zone.watermark[1], zone.watermark[2]
        assert zone.watermark[0] <= low <= high and high - low == low - zone.watermark[0]
        assert zone.lowmem_reserve == sorted(zone.lowmem_reserve)
        assert zone.managed_pages or zone.lowmem_reserve == [0] * 4
    assert 0 <= reserves.totalreserve_pages <= sum(managed)


# -- checking them -----------------------------------------------------------------------------------------

def test_an_atomic_request_may_go_to_three_eighths_of_min():
    floor = 1000 - 500 - 125
    flags = ALLOC_HIGH | ALLOC_HARDER
    assert not zone_watermark_ok(checked_zone(floor), 0, 1000, 2, flags)
    assert zone_watermark_ok(checked_zone(floor + 1), 0, 1000, 2, flags)


@pytest.mark.parametrize(("flags", "floor"), [(0, 1000), (ALLOC_HIGH, 500), (ALLOC_HARDER, 750), (ALLOC_OOM, 500),
                                              (ALLOC_HIGH | ALLOC_OOM, 250)])
def test_each_privilege_lowers_the_floor_by_its_part(flags, floor):
    assert [zone_watermark_ok(checked_zone(free), 0, 1000, 2, flags) for free in (floor, floor + 1)] == [False, True]


def test_the_lowmem_reserve_is_kept_from_those_who_could_go_higher_only():
    zone = checked_zone(1100, reserve=200)
    assert zone_watermark_ok(zone, 0, 1000, 1, 0)
    assert not zone_watermark_ok(zone, 0, 1000, 2, 0)


def test_a_high_order_needs_a_block_of_its_size_and_not_only_free_pages():
    assert not zone_watermark_ok(checked_zone(5000, blocks={(2, MIGRATE_MOVABLE): 1250}), 3, 1000, 2, 0)
    assert zone_watermark_ok(checked_zone(5000, blocks={(5, MIGRATE_MOVABLE): 1}), 3, 1000, 2, 0)


def test_only_urgent_requests_may_use_reserved_blocks():
    zone = checked_zone(5000, highatomic=512, blocks={(4, MIGRATE_HIGHATOMIC): 1})
    assert not zone_watermark_ok(zone, 4, 1000, 2, ALLOC_HIGH)
    assert zone_watermark_ok(zone, 4, 1000, 2, ALLOC_HARDER)


def test_free_cma_pages_count_for_movable_requests_only():
    zone = checked_zone(1500, cma=600, blocks={(3, 4): 1})
    assert not zone_watermark_ok(zone, 3, 1000, 2, 0)
    assert zone_watermark_ok(zone, 3, 1000, 2, ALLOC_CMA)


def test_an_atomic_order_0_request_ignores_the_boost_at_min():
    zone = checked_zone(1200, boost=5000)
    assert not zone_watermark_fast(zone, 0, 6000, 2, ALLOC_WMARK_MIN, GFP_KERNEL)
    assert zone_watermark_fast(zone, 0, 6000, 2, ALLOC_WMARK_MIN, GFP_ATOMIC)
    assert not zone_watermark_fast(zone, 0, 6000, 2, ALLOC_WMARK_LOW, GFP_ATOMIC)


def test_5_17_lets_order_0_pass_when_fewer_pages_are_free_than_are_reserved():
    zone = checked_zone(100, highatomic=512)
    assert zone_watermark_fast(zone, 0, 1250, 2, ALLOC_WMARK_LOW, GFP_KERNEL)
    assert not zone_watermark_ok(zone, 0, 1250, 2, ALLOC_WMARK_LOW)


# -- what follows ------------------------------------------------------------------------------------------

@given(st.integers(0, 1 << 32))
@settings(deadline=None)
def test_the_batch_is_one_less_than_a_power_of_two_and_at_most_63(managed):
    batch = zone_batchsize(managed)
    assert batch <= 63 and (batch + 1) & batch == 0


def test_a_node_without_cpus_shares_its_lists_among_all():
    assert zone_highsize(1000, 50000, 15, 0, 4) == 250
    assert zone_highsize(1000, 50000, 63, 8, 8) == 252
    assert zone_highsize(1000, 50000, 15, 1, 4, high_fraction=8) == 6250


def test_available_memory_keeps_half_of_the_page_cache_or_the_low_marks_whichever_is_less():
    assert si_mem_available(1000, 100, 50, 400, 60) == 900 + 350 + 30
    assert si_mem_available(1000, 100, 5000, 400, 60) == 900 + 200 + 30
    assert si_mem_available(10, 1000, 50, 0, 0) == 0


def test_counters_may_drift_further_in_larger_zones_and_on_more_cpus():
    assert calculate_normal_threshold(3840, 1) == 2
    assert calculate_normal_threshold(57030, 1) == 4
    assert calculate_normal_threshold(3840, 4) == 6
    assert calculate_normal_threshold(1 << 30, 512) == MAX_STAT_THRESHOLD


def test_under_pressure_all_cpus_together_cannot_hide_the_way_from_low_to_min():
    for cpus in (1, 3, 64):
        assert calculate_pressure_threshold(1000, 1250, cpus) * cpus <= 250
    assert calculate_pressure_threshold(1000, 1000, 8) == 1


def test_the_free_count_is_checked_exactly_only_where_drift_could_reach_min():
    assert percpu_drift_mark(1000, 1250, 1500, 4, 8) == 0
    assert percpu_drift_mark(31, 38, 45, 6, 4) == 45 + 24
