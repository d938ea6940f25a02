"""memblock: the statements of chapter 19 about single calls, each with numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.memblock import Memblock
from mmsim.boot.provenance import Provenance
from mmsim.boot.regions import ENOMEM, Region, RegionList
from mmsim.clock import Clock
from mmsim.constants import MEMBLOCK_HOTPLUG, MEMBLOCK_NOMAP
from mmsim.errors import InputError, InvariantError, KernelPanic
from mmsim.klog import KernelLog
from mmsim.rules import rules_for
from mmsim.trace import Trace
from mmsim.units import GIB, KIB, MIB, U64_MAX


def regions(region_list: RegionList) -> list[tuple[int, int]]:
    return [(region.base, region.end) for region in region_list]


def logged(**rules: str) -> tuple[Memblock, KernelLog]:
    log = KernelLog(Clock())
    memblock = Memblock(rules_for(**rules) if rules else None, klog=log)
    memblock.debug = True
    return memblock, log


# -- adding and merging ------------------------------------------------------------------------------------

def test_touching_ranges_of_one_node_become_one_region() -> None:
    memblock = Memblock()
    memblock.add(0, 0x1000)
    memblock.add(0x1000, 0x1000)
    assert regions(memblock.memory) == [(0, 0x2000)]


def test_touching_ranges_of_two_nodes_stay_two_regions() -> None:
    memblock = Memblock()
    memblock.add_node(0, 0x1000, 0)
    memblock.add_node(0x1000, 0x1000, 1)
    assert regions(memblock.memory) == [(0, 0x1000), (0x1000, 0x2000)]


def test_an_overlapping_range_leaves_the_old_region_as_it_was() -> None:
    memblock, log = logged()
    memblock.add_node(0x2000, 0x1000, 1, MEMBLOCK_HOTPLUG)
    memblock.add_node(0x1000, 0x3000, 0)
    assert list(memblock.memory) == [Region(0x1000, 0x1000, 0), Region(0x2000, 0x1000, 1, MEMBLOCK_HOTPLUG),
                                     Region(0x3000, 0x1000, 0)]
    assert "WARNING: memblock_add_range: nid != memblock_get_region_node(rgn)" in log.lines()


def test_reserving_what_is_not_memory_is_legal() -> None:
    memblock = Memblock()
    assert memblock.reserve(0x5000, 0x1000) == 0
    assert memblock.is_reserved(0x5fff) and not memblock.is_memory(0x5000)


def test_freeing_the_middle_of_a_reservation_leaves_two() -> None:
    memblock = Memblock()
    memblock.reserve(0, 0x3000)
    memblock.phys_free(0x1000, 0x1000)
    assert regions(memblock.reserved) == [(0, 0x1000), (0x2000, 0x3000)]


def test_trimming_forgets_to_lower_the_total() -> None:
    """The recorded boot prints a memory size that ends in c00 for whole pages."""
    memblock = Memblock()
    memblock.add(0x1000, 0x9ec00)
    memblock.trim_memory(0x1000)
    assert regions(memblock.memory) == [(0x1000, 0x9f000)] and memblock.phys_mem_size() == 0x9ec00
    memblock.check()


def test_nomap_memory_survives_a_cap_and_may_stay_split_until_the_next_change() -> None:
    memblock = Memblock()
    memblock.add(0, 0x8000)
    memblock.mark_nomap(0x2000, 0x4000)
    memblock.cap_memory_range(0x3000, 0x1000)
    assert regions(memblock.memory) == [(0x2000, 0x3000), (0x3000, 0x4000), (0x4000, 0x6000)]
    memblock.check()
    memblock.mark_nomap(0x2000, 0x100)
    assert regions(memblock.memory) == [(0x2000, 0x6000)], "5.17 merges the whole list"


def test_6_12_merges_only_around_what_changed() -> None:
    memblock = Memblock(rules_for("6.12"))
    memblock.add(0, 0x8000)
    memblock.mark_nomap(0x2000, 0x4000)
    memblock.cap_memory_range(0x3000, 0x1000)
    memblock.mark_nomap(0x5000, 0x1000)
    assert (0x2000, 0x3000) in regions(memblock.memory)


# -- allocating --------------------------------------------------------------------------------------------

def two_gib() -> Memblock:
    memblock = Memblock()
    memblock.add(0, 2 * GIB)
    memblock.reserve(2 * GIB - 64 * KIB, 64 * KIB)
    return memblock


def test_an_allocation_ends_as_high_as_it_can() -> None:
    assert two_gib().phys_alloc_range(20 * KIB, 4 * KIB) == 0x7FFEB000


def test_bottom_up_it_begins_as_low_as_it_can_but_never_at_page_0() -> None:
    memblock = two_gib()
    memblock.bottom_up = True
    assert memblock.phys_alloc_range(20 * KIB, 4 * KIB) == 0x1000
    assert memblock.phys_alloc_range(100, 4 * KIB) == 0x6000


def test_page_0_is_never_given_away() -> None:
    memblock = Memblock()
    memblock.add(0, 0x1000)
    assert memblock.alloc(64) == 0


def test_nothing_is_allocated_above_the_current_limit() -> None:
    memblock = two_gib()
    memblock.set_current_limit(MIB)
    assert memblock.alloc(4096, 4096) == MIB - 4096
    assert memblock.phys_alloc_range(4096, 4096, 0, GIB) == GIB - 4096, "unless the caller of a *_range names a limit"


def test_an_allocation_prefers_its_node_and_falls_back_to_any() -> None:
    memblock = Memblock()
    memblock.add_node(0, 0x10000, 0)
    memblock.add_node(0x10000, 0x10000, 1)
    assert memblock.alloc_node(0x1000, 0x1000, 0) == 0xF000
    assert memblock.alloc_node(0x1000, 0x1000, 7) == 0x1F000
    assert memblock.alloc_exact_nid_raw(0x1000, 0x1000, nid=7) == 0


def test_virtual_calls_drop_the_lower_limit_as_a_last_resort_and_phys_calls_do_not() -> None:
    memblock = Memblock()
    memblock.add(0, 0x10000)
    assert memblock.phys_alloc_range(0x1000, 0x1000, 0x20000) == 0
    assert memblock.alloc_from(0x1000, 0x1000, 0x20000) == 0xF000


def test_hotpluggable_memory_is_passed_over_only_with_movable_node() -> None:
    memblock = Memblock()
    memblock.add(0, 0x20000)
    memblock.mark_hotplug(0x10000, 0x10000)
    assert memblock.find_in_range_node(0x1000, 0x1000, 0, U64_MAX, -1, 0) == 0x1F000
    memblock.movable_node = True
    assert memblock.find_in_range_node(0x1000, 0x1000, 0, U64_MAX, -1, 0) == 0xF000


def test_mirrored_memory_is_preferred_and_its_lack_reported() -> None:
    memblock, log = logged()
    memblock.add(0, 0x20000)
    assert memblock.mark_mirror(0x4000, 0x1000) == 0 and not memblock.has_mirror, "ignored without kernelcore=mirror"
    memblock.mirrored_kernelcore = True
    memblock.mark_mirror(0x4000, 0x1000)
    assert memblock.alloc(0x1000, 0x1000) == 0x4000
    assert memblock.alloc(0x1000, 0x1000) == 0x1F000
    assert "Could not allocate 0x0000000000001000 bytes of mirrored memory" in log.lines()


def test_nomap_memory_is_never_allocated() -> None:
    memblock = Memblock()
    memblock.add(0, 0x10000)
    memblock.mark_nomap(0x2000, 0xE000)
    assert memblock.alloc(0x1000, 0x1000) == 0x1000
    assert memblock.alloc(0x1000, 0x1000) == 0


def test_after_slab_is_up_an_allocation_warns_and_goes_there() -> None:
    memblock, log = logged()
    memblock.add(0, 0x10000)
    memblock.kmalloc = lambda size, nid: 0xABC000
    assert memblock.alloc(64, caller="late_caller") == 0xABC000
    assert any("slab_is_available" in line for line in log.lines())


# -- growing -----------------------------------------------------------------------------------------------

def full_of_holes(holes: int, resize: bool = True) -> Memblock:
    memblock = Memblock()
    memblock.add(0, 16 * MIB)
    if resize:
        memblock.allow_resize()
    for index in range(holes):
        assert memblock.reserve(MIB + index * 0x2000, 0x1000) == (0 if index < 128 or resize else -ENOMEM)
    return memblock


def test_the_129th_region_doubles_the_array_which_is_itself_a_reservation() -> None:
    memblock = full_of_holes(128)
    assert memblock.reserved.max == 128
    memblock.reserve(8 * MIB, 0x1000)
    assert memblock.reserved.max == 256
    # 256 entries of 24 bytes are 6144 bytes: two pages, at the top of memory
    assert memblock.array_at["reserved"] == 16 * MIB - 0x2000
    assert memblock.is_region_reserved(16 * MIB - 0x2000, 0x2000) and len(memblock.reserved) == 130
    memblock.check()


def test_before_resizing_is_allowed_a_full_array_is_enomem_and_in_6_12_a_panic() -> None:
    memblock = full_of_holes(129, resize=False)
    assert len(memblock.reserved) == 128
    newer = Memblock(rules_for("6.12"))
    newer.add(0, 16 * MIB)
    with pytest.raises(KernelPanic, match="cannot resize reserved array"):
        for index in range(129):
            newer.reserve(MIB + index * 0x2000, 0x1000)


def test_the_new_array_does_not_lie_in_the_range_that_is_just_being_reserved() -> None:
    memblock = full_of_holes(128)
    assert memblock.reserve(12 * MIB, 4 * MIB) == 0     # the top of memory, where the array would go
    array = memblock.array_at["reserved"]
    assert array is not None and array + 0x2000 <= 12 * MIB
    memblock.check()


def test_the_second_doubling_frees_the_first_array() -> None:
    memblock = full_of_holes(129)
    first = memblock.array_at["reserved"]
    assert first is not None
    for index in range(200):
        memblock.reserve(8 * MIB + index * 0x2000, 0x1000)
    assert memblock.reserved.max == 512
    assert not memblock.is_reserved(first)
    memblock.check()


pages_taken = st.lists(st.tuples(st.booleans(), st.integers(1, 200), st.integers(1, 6)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(pages_taken)
def test_growing_from_tiny_arrays_loses_no_reservation(calls: list[tuple[bool, int, int]]) -> None:
    """Arrays of four entries double while reservations come and go; each doubling changes the list it is made for."""
    memblock = Memblock()
    memblock.add(0, 0x1000 * 4096)
    memblock.allow_resize()
    memblock.memory.max = memblock.reserved.max = 4
    memblock.reserve(0, 0x1000 * 1024)          # the calls stay below, the arrays go to the top
    ours = set(range(1024))
    for take, first, count in calls:
        span = set(range(first, first + count))
        if take:
            assert memblock.reserve(first * 0x1000, count * 0x1000) == 0
            ours |= span
        else:
            assert memblock.phys_free(first * 0x1000, count * 0x1000) == 0
            ours -= span
        memblock.check()
    below = {page for region in memblock.reserved for page in range(region.base >> 12, region.end >> 12) if page < 1024}
    assert below == ours
    arrays = [region for region in memblock.reserved if region.base >= 0x1000 * 1024]
    grown = memblock.array_at["reserved"]
    assert [region.base for region in arrays] == ([grown] if grown else []), "the old array was given back"


def test_an_array_that_finds_no_room_is_reported() -> None:
    memblock, log = logged()
    memblock.allow_resize()
    for index in range(129):
        memblock.reserve(index * 0x2000, 0x1000)
    assert "memblock: Failed to double reserved array from 128 to 256 entries !" in log.lines()


def test_5_17_walks_the_list_twice_for_each_range_and_6_1_once_while_there_is_room() -> None:
    for release, walks in (("5.17", 2), ("6.1", 1)):
        memblock = Memblock(rules_for(release))
        memblock.reserve(0, 0x1000)
        before = memblock.reserved.walks
        memblock.reserve(0x2000, 0x1000)
        assert memblock.reserved.walks - before == walks
    for index in range(70):
        memblock.reserve(0x10000 + index * 0x2000, 0x1000)
    before = memblock.reserved.walks
    memblock.reserve(0x4000, 0x1000)
    assert memblock.reserved.walks - before == 2, "more than half full: 6.1 counts first, too"


# -- asking and walking ------------------------------------------------------------------------------------

def test_free_memory_is_memory_minus_reserved_in_both_directions() -> None:
    memblock = Memblock()
    memblock.add_node(0, 0x8000, 0)
    memblock.add_node(0x8000, 0x8000, 1)
    memblock.reserve(0x6000, 0x4000)
    memblock.reserve(0x20000, 0x1000)
    expected = [(0, 0x6000, 0), (0xA000, 0x10000, 1)]
    assert list(memblock.for_each_free_mem_range()) == expected
    assert list(memblock.for_each_free_mem_range_reverse()) == expected[::-1]
    assert list(memblock.for_each_free_mem_range(nid=1)) == expected[1:]


def test_frames_are_counted_whole_only() -> None:
    memblock = Memblock()
    memblock.add_node(0x800, 0x2000, 0)
    memblock.add_node(0x5100, 0x800, 0)
    assert list(memblock.for_each_mem_pfn_range()) == [(1, 2, 0)]


def test_search_finds_node_and_bounds_of_a_frame() -> None:
    memblock = Memblock()
    memblock.add_node(0x10000, 0x10000, 3)
    assert memblock.search_pfn_nid(0x1F) == (3, 0x10, 0x20)
    assert memblock.search_pfn_nid(0x20) is None


def test_a_region_is_memory_only_if_one_region_holds_all_of_it() -> None:
    memblock = Memblock()
    memblock.add_node(0, 0x8000, 0)
    memblock.add_node(0x8000, 0x8000, 1)
    assert memblock.is_region_memory(0, 0x8000) and not memblock.is_region_memory(0x4000, 0x8000)
    assert memblock.overlaps_memory(0xF000, 0x10000) and not memblock.overlaps_memory(0x10000, 0x1000)


def test_a_memory_limit_counts_ram_not_addresses() -> None:
    memblock = Memblock()
    memblock.add(0, 0x4000)
    memblock.add(0x10000, 0x10000)
    memblock.reserve(0x1F000, 0x1000)
    memblock.enforce_memory_limit(0x6000)
    assert regions(memblock.memory) == [(0, 0x4000), (0x10000, 0x12000)] and regions(memblock.reserved) == []


# -- text --------------------------------------------------------------------------------------------------

def test_the_debug_log_reads_as_the_kernels() -> None:
    memblock, log = logged()
    memblock.add(0x1000, 0x9EC00, "e820__memblock_setup")
    memblock.phys_alloc_range(24576, 0x1000, 0, MIB, "reserve_real_mode")
    memblock.alloc_try_nid(80, 64, 0x8000000, 0x10000000, 0, "sparse_init_nid")
    memblock.phys_free(0x1000, 0x1000, "somebody")
    assert log.lines() == [
        "memblock_add: [0x0000000000001000-0x000000000009fbff] e820__memblock_setup",
        "memblock_phys_alloc_range: 24576 bytes align=0x1000 from=0x0000000000000000 max_addr=0x0000000000100000 "
        "reserve_real_mode",
        "memblock_reserve: [0x0000000000099000-0x000000000009efff] memblock_alloc_range_nid",
        "memblock_alloc_try_nid: 80 bytes align=0x40 nid=0 from=0x0000000008000000 max_addr=0x0000000010000000 "
        "sparse_init_nid",
        "memblock_reserve: [0x000000000009fb80-0x000000000009fbcf] memblock_alloc_range_nid",
        "memblock_phys_free: [0x0000000000001000-0x0000000000001fff] somebody",
    ]


def test_an_empty_list_is_dumped_as_the_dummy_entry_it_is_before_6_12() -> None:
    lines = Memblock().dump_text().split("\n")
    assert lines[2:4] == [" memory.cnt  = 0x1", " memory[0x0]\t[0x0000000000000000-0xffffffffffffffff], "
                          "0x0000000000000000 bytes flags: 0x0"]
    assert Memblock(rules_for("6.12")).dump_text().split("\n")[2] == " memory.cnt  = 0x0"


def test_a_picture_shows_free_reserved_and_nothing() -> None:
    memblock = Memblock()
    memblock.add(0x2000, 0x4000)
    memblock.reserve(0x4000, 0x1000)
    memblock.reserve(0x7000, 0x1000)
    assert memblock.picture(0, 0x8000, cells=8) == "  --#- #"
    assert memblock.picture(0, 0x8000, cells=4) == " -++"


def test_every_call_is_traced_when_somebody_listens() -> None:
    trace = Trace()
    memblock = Memblock(trace=trace)
    with trace.recording("boot:*") as events:
        memblock.reserve(0x1000, 0x2000, "me")
    assert [(event.name, event["base"], event["size"]) for event in events] == [("boot:memblock_reserve", 0x1000, 0x2000)]


def test_an_allocation_belongs_to_its_caller_not_to_the_allocator() -> None:
    owners = Provenance("sparse_init")
    memblock = Memblock(owners=owners)
    memblock.add(0, 0x10000)
    memblock.alloc(0x1000, 0x1000, caller="memmap_alloc")
    assert [(run.base, run.who, run.phase) for run in owners.runs()] == [(0xF000, "memmap_alloc", "sparse_init")]


# -- bad input ---------------------------------------------------------------------------------------------

def test_size_0_changes_nothing() -> None:
    memblock = Memblock()
    assert memblock.add(0x1000, 0) == memblock.reserve(0x1000, 0) == memblock.remove(0x1000, 0) == 0
    assert len(memblock.memory) == len(memblock.reserved) == 0


def test_an_allocation_of_size_0_gives_an_address_and_takes_nothing() -> None:
    memblock = two_gib()
    assert memblock.phys_alloc_range(0, 0x1000) != 0
    assert memblock.reserved_size() == 64 * KIB


def test_a_range_over_the_end_of_the_address_space_is_cut_there() -> None:
    memblock = Memblock()
    assert memblock.add(U64_MAX - 0xFFF, 0x10000) == 0
    assert regions(memblock.memory) == [(U64_MAX - 0xFFF, U64_MAX)]
    memblock.check()


def test_alignment_0_is_taken_for_a_cache_line() -> None:
    assert two_gib().phys_alloc_range(100, 0) % 64 == 0


def test_unaligned_ranges_are_kept_to_the_byte() -> None:
    memblock = Memblock()
    memblock.reserve(0xFFE198C, 0x74)
    assert regions(memblock.reserved) == [(0xFFE198C, 0xFFE1A00)]


@pytest.mark.parametrize("base, size", [(-1, 1), (0, -1), (1 << 64, 1), (0, 1 << 64)])
def test_what_is_no_64_bit_address_is_refused(base: int, size: int) -> None:
    memblock = Memblock()
    for call in (memblock.add, memblock.reserve, memblock.remove, memblock.phys_free, memblock.mark_nomap):
        with pytest.raises(InputError, match="64-bit address"):
            call(base, size)


def test_check_says_which_list_is_broken_and_where() -> None:
    memblock = Memblock()
    memblock.add(0, 0x1000)
    memblock.add(0x2000, 0x1000)
    memblock.memory.bases[1] = 0x800
    with pytest.raises(InvariantError, match=r"memory\[0x1\].*overlaps"):
        memblock.check()


def test_check_notices_equal_neighbours_and_empty_regions() -> None:
    memblock = Memblock()
    memblock.add(0, 0x1000)
    memblock.memory.nids.append(-1)
    memblock.memory.flags.append(0)
    memblock.memory.bases.append(0x1000)
    memblock.memory.ends.append(0x2000)
    memblock.memory.total_size = 0x2000
    with pytest.raises(InvariantError, match="not merged"):
        memblock.check()
    memblock.memory.ends[1] = 0x1000
    with pytest.raises(InvariantError, match="empty"):
        memblock.check()


# -- size --------------------------------------------------------------------------------------------------

def plain_find(memblock: Memblock, size: int, align: int, start: int, end: int, bottom_up: bool) -> int:
    """The search without its shortcuts: every free range, from one end."""
    start, end = max(start, 0x1000), max(start, 0x1000, end)
    ranges = list(memblock.for_each_free_mem_range())
    for low, high, _ in ranges if bottom_up else ranges[::-1]:
        low, high = min(max(low, start), end), min(max(high, start), end)
        place = -(-low // align) * align if bottom_up else (high - size) // align * align
        if place >= low and place + size <= high and size <= high:
            return place
    return 0


def test_with_ten_thousand_regions_the_search_finds_what_the_plain_one_finds() -> None:
    randomness = random.Random(19)
    memblock = Memblock()
    memblock.add(0, 4 * GIB)
    memblock.allow_resize()
    for index in range(10_000):
        memblock.reserve(index * 0x20000 + randomness.randrange(8) * 0x1000, randomness.randrange(1, 20) * 0x1000)
    assert len(memblock.reserved) >= 10_000
    memblock.check()
    for _ in range(60):
        start, end = sorted(randomness.randrange(0, 4 * GIB) for _ in range(2))
        size, align = randomness.randrange(1, 0x1C000), 1 << randomness.randrange(18)
        for bottom_up in (False, True):
            memblock.bottom_up = bottom_up
            assert memblock.find_in_range_node(size, align, start, end, -1, 0) == plain_find(
                memblock, size, align, start, end, bottom_up)


def test_flags_of_a_mark_split_and_unmark_rejoin() -> None:
    memblock = Memblock()
    memblock.add(0, 0x10000)
    memblock.mark_nomap(0x4000, 0x4000)
    assert [(r.base, r.flags) for r in memblock.memory] == [(0, 0), (0x4000, MEMBLOCK_NOMAP), (0x8000, 0)]
    assert memblock.is_memory(0x4000) and not memblock.is_map_memory(0x4000)
    memblock.clear_nomap(0, 0x10000)
    assert regions(memblock.memory) == [(0, 0x10000)]
