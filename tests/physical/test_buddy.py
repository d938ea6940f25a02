"""The free lists: splitting, merging, head and tail, pageblocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE
from mmsim.errors import InvariantError
from mmsim.physical.buddy import (
    _free_one_page,
    _rmqueue_smallest,
    check_zone,
    find_buddy_pfn,
    get_pageblock_migratetype,
    mod_zone_freepage_state,
    move_freepages_block,
    set_pageblock_migratetype,
    take_run,
)
from mmsim.physical.frames import PG
from mmsim.physical.zone import FreeList

from .machines import hand_over, lists, machine

MOVABLE, UNMOVABLE = MIGRATE_MOVABLE, MIGRATE_UNMOVABLE


def used_zone(start_pfn=0, pages=4096):
    """A zone of which every frame is in use."""
    memory, zone = machine(start_pfn, pages, free=False)
    return memory, zone


def test_a_buddy_differs_in_the_bit_of_its_order():
    assert find_buddy_pfn(0x240, 6) == 0x200
    assert find_buddy_pfn(0x200, 6) == 0x240


def test_a_range_is_handed_over_in_the_largest_aligned_blocks():
    memory, zone = machine(0, 0x1000, free=False)
    hand_over(memory, 0x123, 0x200)
    assert [(order, pfn) for order, _, pfn in zone.free_blocks()] == [
        (0, 0x123), (2, 0x124), (3, 0x128), (4, 0x130), (6, 0x140), (7, 0x180)]
    check_zone(zone)


def test_the_dma_zone_of_a_pc_reads_1_1_3_at_its_end():
    memory, zone = machine(0, 0x1000, free=False)
    hand_over(memory, 0x100, 0x1000)
    assert zone.buddyinfo() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3]
    assert zone.managed_pages == zone.nr_free_pages == 3840


def test_the_first_pages_of_a_pc_are_eight_blocks():
    memory, zone = machine(0, 1024, free=False)
    hand_over(memory, 1, 160)
    assert [order for order, _, _ in sorted(zone.free_blocks(), key=lambda block: block[2])] == [0, 1, 2, 3, 4, 5, 6, 5]


def test_boot_puts_blocks_at_the_tail_so_low_addresses_go_first():
    _, zone = machine(0, 4096)
    assert lists(zone) == {(10, MOVABLE): [0, 1024, 2048, 3072]}


def test_a_split_returns_the_upper_halves():
    _, zone = machine(0, 1024)
    assert _rmqueue_smallest(zone, 7, MOVABLE) == 0
    assert lists(zone) == {(7, MOVABLE): [128], (8, MOVABLE): [256], (9, MOVABLE): [512]}


def test_the_smallest_order_that_fits_is_split():
    _, zone = used_zone()
    _free_one_page(zone, 1024, 10, MOVABLE)
    _free_one_page(zone, 64, 4, MOVABLE)
    assert _rmqueue_smallest(zone, 2, MOVABLE) == 64


def test_a_block_merges_with_its_buddy_only_when_both_are_free_and_of_one_order():
    _, zone = used_zone()
    _free_one_page(zone, 8, 3, MOVABLE)
    _free_one_page(zone, 0, 2, MOVABLE)
    assert lists(zone) == {(2, MOVABLE): [0], (3, MOVABLE): [8]}
    _free_one_page(zone, 4, 2, MOVABLE)
    assert lists(zone) == {(4, MOVABLE): [0]}


def test_merging_stops_at_order_10():
    _, zone = used_zone()
    for pfn in range(0, 2048, 512):
        _free_one_page(zone, pfn, 9, MOVABLE)
    assert sorted(lists(zone)[10, MOVABLE]) == [0, 1024]


def test_a_merged_block_goes_to_the_list_of_the_type_that_was_freed_last():
    _, zone = used_zone()
    _free_one_page(zone, 0, 0, UNMOVABLE)
    _free_one_page(zone, 1, 0, MOVABLE)
    assert lists(zone) == {(1, MOVABLE): [0]}


def test_blocks_of_different_zones_never_merge():
    memory, low = machine(0, 2048, free=False)
    high = memory.nodes[0].zones[3]
    high.start_pfn = low.spanned_pages = 1536
    high.spanned_pages = high.present_pages = low.present_pages = 512
    low.present_pages = 1536
    memory.frames.assign_zone(high, 1536, 2048)
    _free_one_page(low, 1024, 9, MOVABLE)
    _free_one_page(high, 1536, 9, MOVABLE)
    assert lists(low) == {(9, MOVABLE): [1024]} and lists(high) == {(9, MOVABLE): [1536]}


def test_a_freed_block_is_the_next_to_be_taken():
    _, zone = used_zone()
    _free_one_page(zone, 0, 0, MOVABLE)
    _free_one_page(zone, 8, 0, MOVABLE)
    assert lists(zone) == {(0, MOVABLE): [8, 0]}


def test_a_block_whose_larger_buddy_is_free_waits_at_the_tail():
    _, zone = used_zone()
    _free_one_page(zone, 32, 0, MOVABLE)
    _free_one_page(zone, 2, 1, MOVABLE)
    _free_one_page(zone, 0, 0, MOVABLE)
    assert lists(zone)[0, MOVABLE] == [32, 0], "0 and 1 would merge with 2 and 3"


def test_from_order_9_on_nobody_waits_for_a_merge():
    _, zone = used_zone(pages=8192)
    _free_one_page(zone, 4096, 9, MOVABLE)
    _free_one_page(zone, 1024, 10, MOVABLE)
    _free_one_page(zone, 0, 9, MOVABLE)
    assert lists(zone)[9, MOVABLE] == [0, 4096]


def test_a_block_at_the_start_of_an_unaligned_zone_does_not_wait_for_a_missing_half():
    _, zone = used_zone(256, 4096)
    _free_one_page(zone, 4096, 8, MOVABLE)
    _free_one_page(zone, 512, 9, MOVABLE)
    _free_one_page(zone, 256, 8, MOVABLE)
    assert lists(zone)[8, MOVABLE] == [256, 4096]


def test_a_pageblock_moves_to_the_tails_of_the_new_type():
    memory, zone = used_zone()
    _free_one_page(zone, 2048, 3, MIGRATE_RECLAIMABLE)
    _free_one_page(zone, 512, 3, MOVABLE)
    _free_one_page(zone, 528, 3, MOVABLE)
    for pfn in (513 + 100, 700):
        memory.frames.flags[pfn] |= PG["lru"]
    assert move_freepages_block(zone, 600, MIGRATE_RECLAIMABLE) == (16, 2)
    assert lists(zone) == {(3, MIGRATE_RECLAIMABLE): [2048, 512, 528]}


def test_a_pageblock_that_reaches_beyond_the_zone_is_not_moved():
    _, zone = used_zone(0, 700)
    _free_one_page(zone, 512, 3, MOVABLE)
    assert move_freepages_block(zone, 512, UNMOVABLE) == (0, 0)
    assert lists(zone) == {(3, MOVABLE): [512]}


def test_without_grouping_by_mobility_every_pageblock_is_unmovable():
    memory, zone = machine()
    memory.page_group_by_mobility_disabled = True
    set_pageblock_migratetype(zone, 600, MIGRATE_RECLAIMABLE)
    assert get_pageblock_migratetype(memory.frames, 1023) == UNMOVABLE


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3), st.lists(st.integers(1, 300), min_size=1, max_size=8), st.sets(st.integers(0, 2047), max_size=40))
def test_taking_a_run_is_the_same_as_taking_its_blocks_one_by_one(order, counts, holes):
    zones = []
    for _ in range(2):
        _, zone = machine(0, 2048, free=False)
        for pfn in set(range(2048)) - holes:
            _free_one_page(zone, pfn, 0, MOVABLE)
        zones.append(zone)
    one_by_one, runs = zones
    for count in counts:
        expected = []
        while len(expected) < count:
            pfn = _rmqueue_smallest(one_by_one, order, MOVABLE)
            if pfn is None:
                break
            expected.append(pfn)
        taken = []
        while len(taken) < count:
            run = take_run(runs, order, MOVABLE, count - len(taken))
            if not run:
                break
            taken += run
        assert taken == expected
        for zone in zones:
            mod_zone_freepage_state(zone, -len(taken) << order, MOVABLE)
            check_zone(zone)
        assert lists(runs) == lists(one_by_one)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("htrp"), st.integers(0, 15)), max_size=60))
def test_a_free_list_behaves_like_a_plain_list(steps):
    blocks, model = FreeList(), []
    for step, pfn in steps:
        if step == "p" and model:
            assert blocks.first() == model[0]
            assert blocks.pop() == model.pop(0)
        elif step == "r" and pfn in model:
            blocks.remove(pfn)
            model.remove(pfn)
        elif step == "h" and pfn not in model:
            blocks.add(pfn)
            model.insert(0, pfn)
        elif step == "t" and pfn not in model:
            blocks.add_tail(pfn)
            model.append(pfn)
        assert list(blocks) == model and len(blocks) == len(model) and bool(blocks) == bool(model)
    with pytest.raises(KeyError):
        blocks.remove(99)


def broken_by(damage, message):
    _, zone = machine(0, 2048)
    _rmqueue_smallest(zone, 3, MOVABLE)
    mod_zone_freepage_state(zone, -8, MOVABLE)
    check_zone(zone)
    damage(zone)
    with pytest.raises(InvariantError, match=message):
        check_zone(zone)


def test_check_finds_what_is_broken():
    broken_by(lambda zone: setattr(zone, "nr_free_pages", zone.nr_free_pages + 1), "the counts say")
    broken_by(lambda zone: setattr(zone.free_area[3], "nr_free", 7), "nr_free says 7")
    broken_by(lambda zone: zone.frames.free_block.__setitem__(8, 0), "its frame says")
    broken_by(lambda zone: zone.frames.free_block.__setitem__(0, 1), "marked as free blocks")
    broken_by(lambda zone: zone.frames.refcount.__setitem__(12, 1), "with references")
    broken_by(lambda zone: zone.pageset[0].lists[1].append(1), "per-CPU lists hold 1 frames")

    def unmerged(zone):
        zone.free_area[3].free_list[MOVABLE].add(0)
        zone.free_area[3].nr_free += 1
        zone.nr_free_pages += 8
        zone.frames.free_block[0] = 4 | MOVABLE << 4

    broken_by(unmerged, "not merged")
