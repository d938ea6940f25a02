"""Fragmentation indices: worked numbers and bounds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import MAX_ORDER
from mmsim.physical.fragmentation import (
    extfrag_for_order,
    fill_contig_page_info,
    format_index,
    fragmentation_index,
    fragmentation_score_node,
    fragmentation_score_wmark,
    should_proactive_compact_node,
    unusable_free_index,
)

COUNTS = st.lists(st.integers(0, 5000), min_size=MAX_ORDER, max_size=MAX_ORDER)


def test_a_thousand_single_pages_cannot_serve_order_4_because_of_fragmentation():
    assert format_index(fragmentation_index([1000] + [0] * 10, 4)) == "0.937"


def test_a_hundred_blocks_of_order_3_fail_order_4_half_for_want_of_memory():
    assert format_index(fragmentation_index([0, 0, 0, 100] + [0] * 7, 4)) == "0.490"


def test_one_block_of_order_8_fails_order_9_for_lack_of_memory_and_the_formula_leaves_its_range():
    assert format_index(fragmentation_index([0] * 8 + [1, 0, 0], 9)) == "0.-500"


def test_an_index_is_minus_one_where_the_request_would_succeed_and_zero_where_nothing_is_free():
    assert fragmentation_index([0, 1] + [0] * 9, 1) == -1000
    assert fragmentation_index([0] * 11, 0) == 0
    assert fragmentation_index([1] * 11, MAX_ORDER) == 0


@given(COUNTS)
@settings(deadline=None)
def test_the_larger_the_order_the_less_of_free_memory_is_usable(nr_free):
    unusable = [unusable_free_index(nr_free, order) for order in range(MAX_ORDER)]
    extfrag = [extfrag_for_order(nr_free, order) for order in range(MAX_ORDER)]
    assert unusable == sorted(unusable) and extfrag == sorted(extfrag)
    assert all(0 <= value <= 1000 for value in unusable) and all(0 <= value <= 100 for value in extfrag)
    free = fill_contig_page_info(nr_free, 0)
    assert free.free_pages == free.free_blocks_suitable


@given(COUNTS, st.integers(0, MAX_ORDER - 1))
@settings(deadline=None)
def test_the_index_is_minus_one_exactly_where_a_block_is_large_enough(nr_free, order):
    index = fragmentation_index(nr_free, order)
    assert (index == -1000) == any(nr_free[order:]) and index <= 1000


def test_proactive_compaction_starts_above_the_high_threshold_and_only_when_kswapd_rests():
    assert [fragmentation_score_wmark(100, low) for low in (True, False)] == [5, 15]
    assert should_proactive_compact_node(91, 20, kswapd_running=False)
    assert not should_proactive_compact_node(90, 20, kswapd_running=False)
    assert not should_proactive_compact_node(91, 20, kswapd_running=True)
    assert not should_proactive_compact_node(100, 0, kswapd_running=False)


def test_a_small_zone_counts_little_for_its_node():
    fragmented, whole = [1000] + [0] * 10, [0] * 10 + [100]
    assert fragmentation_score_node([(fragmented, 1000), (whole, 99_000)]) == 0
    assert fragmentation_score_node([(fragmented, 99_000), (whole, 1000)]) == 98
