"""The direct map: page sizes, the ladder of steps, and where its tables come from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.brk import BrkArea
from mmsim.boot.direct_map import (
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    DirectMap,
    MapRange,
    add_range_with_merge,
    split_mem_range,
)
from mmsim.boot.memblock import Memblock
from mmsim.errors import InvariantError, KernelPanic
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE, TIB

KERNEL = (16 * MIB, 33 * MIB)


def machine(size: int, *, gbpages: bool = False, pse: bool = True, hole: tuple[int, int] | None = None) -> DirectMap:
    """A mapped machine with RAM [4 KiB, 640 KiB) and [1 MiB, size), and a kernel image at 16 MiB if it fits."""
    memblock = Memblock()
    memblock.allow_resize()
    memblock.add(0x1000, 0x9F000)
    memblock.add(MIB, size - MIB)
    if hole:
        memblock.remove(hole[0], hole[1] - hole[0])
    image = KERNEL if size > 64 * MIB else (MIB, 2 * MIB)
    memblock.reserve(image[0], image[1] - image[0])
    memblock.reserve(0, MIB)
    brk = BrkArea(image[1], image[1] + 256 * KIB)
    direct_map = DirectMap(memblock, brk, gbpages=gbpages, pse=pse)
    brk.reserve(memblock)
    direct_map.init_mem_mapping(size // PAGE_SIZE)
    direct_map.check()
    memblock.check()
    return direct_map


# -- cutting into page sizes -------------------------------------------------------------------------------

def test_a_range_is_cut_into_4k_2m_1g_2m_4k() -> None:
    assert split_mem_range(MIB, 5 * GIB + 3 * MIB) == [
        MapRange(MIB, 2 * MIB, PG_LEVEL_4K), MapRange(2 * MIB, GIB, PG_LEVEL_2M), MapRange(GIB, 5 * GIB, PG_LEVEL_1G),
        MapRange(5 * GIB, 5 * GIB + 2 * MIB, PG_LEVEL_2M), MapRange(5 * GIB + 2 * MIB, 5 * GIB + 3 * MIB, PG_LEVEL_4K)]


def test_without_gigabyte_pages_the_middle_is_one_piece_of_2_mib_pages() -> None:
    assert split_mem_range(MIB, 5 * GIB + 3 * MIB, max_level=PG_LEVEL_2M) == [
        MapRange(MIB, 2 * MIB, PG_LEVEL_4K), MapRange(2 * MIB, 5 * GIB + 2 * MIB, PG_LEVEL_2M),
        MapRange(5 * GIB + 2 * MIB, 5 * GIB + 3 * MIB, PG_LEVEL_4K)]


def test_a_piece_gets_the_large_page_around_it_if_all_of_that_is_ram() -> None:
    memblock = Memblock()
    memblock.add(0, 4 * GIB)
    assert split_mem_range(0, 3 * GIB + MIB, memblock) == [MapRange(0, 3 * GIB + MIB, PG_LEVEL_1G)]
    assert split_mem_range(0, MIB, memblock, PG_LEVEL_2M) == [MapRange(0, MIB, PG_LEVEL_2M)]
    memblock.remove(MIB, PAGE_SIZE)
    assert split_mem_range(0, MIB, memblock, PG_LEVEL_2M) == [MapRange(0, MIB, PG_LEVEL_4K)]


pages = st.integers(0, 3 * 512 * 512)


@settings(max_examples=300, deadline=None)
@given(pages, pages, st.sampled_from([PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G]))
def test_the_pieces_cover_the_range_and_each_is_aligned_to_its_page_size(first: int, last: int, max_level: int) -> None:
    start, end = min(first, last) * PAGE_SIZE, max(first, last) * PAGE_SIZE
    pieces = split_mem_range(start, end, max_level=max_level)
    assert len(pieces) <= 5
    reach = start
    for piece in pieces:
        size = {PG_LEVEL_4K: PAGE_SIZE, PG_LEVEL_2M: 2 * MIB, PG_LEVEL_1G: GIB}[piece.level]
        assert piece.start == reach and piece.start % size == piece.end % size == 0 and piece.level <= max_level
        reach = piece.end
    assert reach == end


# -- the tables --------------------------------------------------------------------------------------------

def test_16_gib_of_leaves_need_8192_or_16_tables_or_none_below_the_pud() -> None:
    """Chapter 19's numbers: 8192 PTE tables for 4 KiB pages, 16 PMD tables for 2 MiB, one PUD table for 1 GiB."""
    memblock = Memblock()
    memblock.add(0, 16 * GIB)
    counted = {}
    for level in (PG_LEVEL_2M, PG_LEVEL_1G):
        direct_map = DirectMap(memblock, BrkArea(MIB, 2 * MIB), gbpages=level == PG_LEVEL_1G, pgt_buf_pages=60)
        direct_map.init_memory_mapping(0, 16 * GIB)
        counted[level] = sorted(table.name for table in direct_map.tables.values())
    assert counted == {PG_LEVEL_2M: ["PMD"] * 16 + ["PUD"], PG_LEVEL_1G: ["PUD"]}
    small = DirectMap(memblock, BrkArea(MIB, 2 * MIB), pse=False, pgt_buf_pages=60)
    small.init_memory_mapping(0, 64 * MIB)
    assert sum(table.name == "PTE" for table in small.tables.values()) == 64 * MIB // (2 * MIB)
    assert 16 * GIB // (2 * MIB) == 8192


def test_every_byte_of_ram_is_mapped_to_itself_and_a_hole_is_not() -> None:
    direct_map = machine(256 * MIB, hole=(128 * MIB, 192 * MIB))
    for address in (0x1000, 0x9F000, MIB, 2 * MIB, 100 * MIB + 0x5000, 127 * MIB, 192 * MIB, 256 * MIB - 1):
        found = direct_map.translate(address)
        assert found is not None
        level, entry = found
        size = 1 << (12 + 9 * (level - 1))
        assert entry & 0xFFFFFFFFFF000 & ~(size - 1) == address & ~(size - 1) and entry & 1
    assert direct_map.translate(130 * MIB) is None and direct_map.translate(256 * MIB) is None


def test_the_first_mib_is_mapped_whatever_the_firmware_says() -> None:
    direct_map = machine(64 * MIB)
    assert direct_map.translate(0xB8000) is not None


def test_the_first_tables_come_from_brk_the_later_ones_from_just_mapped_memory() -> None:
    direct_map = machine(64 * GIB)
    sources = [table.source for table in direct_map.tables.values()]
    # Three tables for the first MiB and one for the first step. The range of the later steps holds the brk buffer itself,
    # and tables in the buffer must not map the buffer: so its last two pages stay unused.
    assert sources == ["brk"] * 4 + ["memblock"] * (len(sources) - 4) and len(sources) == 3 + 63
    # tables of the last step lie within what the step before had mapped
    last = direct_map.steps[-1]
    before = direct_map.steps[-2]
    assert all(before.start <= table.address for table in last.tables)


def test_the_step_grows_256_fold_once_a_steps_worth_is_mapped() -> None:
    assert [step.step_size for step in machine(64 * GIB).steps[1:]] == [2 * MIB, 512 * MIB, 128 * GIB]
    assert machine(16 * MIB).steps[1].step_size == 2 * MIB


def test_a_page_table_is_never_taken_from_memory_that_is_not_mapped_yet() -> None:
    direct_map = machine(16 * GIB)
    mapped: list[tuple[int, int]] = [(0, MIB)]
    for step in direct_map.steps[1:]:
        for table in step.tables:
            if table.source == "memblock":
                assert any(start <= table.address < end for start, end in mapped), table
        mapped.append((step.start, step.end))


def test_without_room_near_the_top_the_top_is_taken_anyhow() -> None:
    memblock = Memblock()
    memblock.add(0x1000, 63 * MIB)
    memblock.reserve(0, 64 * MIB)
    direct_map = DirectMap(memblock, BrkArea(65 * MIB, 66 * MIB))
    direct_map.init_mem_mapping(63 * MIB // PAGE_SIZE)
    assert direct_map.steps[-1].start == 62 * MIB
    direct_map.check()


def test_without_any_room_for_a_table_the_kernel_panics() -> None:
    memblock = Memblock()
    memblock.add(0x1000, 8 * GIB)
    memblock.reserve(0, 8 * GIB)
    brk = BrkArea(9 * GIB, 9 * GIB + 6 * PAGE_SIZE)
    direct_map = DirectMap(memblock, brk)
    brk.reserve(memblock)
    with pytest.raises(KernelPanic, match="alloc_low_pages: can not alloc memory"):
        direct_map.init_mem_mapping(8 * GIB // PAGE_SIZE)


def test_bottom_up_the_memory_above_the_kernel_is_mapped_first() -> None:
    memblock = Memblock()
    memblock.add(0x1000, GIB)
    memblock.reserve(0, 33 * MIB)
    memblock.bottom_up = True
    direct_map = DirectMap(memblock, BrkArea(32 * MIB, 33 * MIB))
    direct_map.init_mem_mapping(GIB // PAGE_SIZE, kernel_end=34 * MIB)
    assert direct_map.steps[1].start == 34 * MIB and direct_map.steps[-1].end == 34 * MIB
    direct_map.check()


def test_what_is_mapped_twice_is_counted_twice() -> None:
    """The kernel counts a page that it finds mapped once more; the DirectMap lines of /proc/meminfo inherit that."""
    direct_map = machine(64 * MIB)
    before = direct_map.direct_pages_count[PG_LEVEL_4K]
    direct_map.init_memory_mapping(0, MIB)
    assert direct_map.direct_pages_count[PG_LEVEL_4K] == before + 256


def test_splitting_a_large_page_trades_one_2_mib_page_for_512_small_ones() -> None:
    direct_map = machine(64 * MIB)
    frame = direct_map.memblock.alloc(PAGE_SIZE, PAGE_SIZE)
    with pytest.raises(InvariantError, match="no free frame"):
        direct_map.split_large_page(16 * MIB, 0, "memblock")
    small, large = direct_map.direct_pages_count[PG_LEVEL_4K], direct_map.direct_pages_count[PG_LEVEL_2M]
    direct_map.split_large_page(16 * MIB + 5, frame, "memblock")
    assert direct_map.direct_pages_count == {PG_LEVEL_4K: small + 512, PG_LEVEL_2M: large - 1, PG_LEVEL_1G: 0}
    found = direct_map.translate(16 * MIB + 0x3000)
    assert found is not None and found[0] == PG_LEVEL_4K and found[1] & 0xFFFFFFFFFF000 == 16 * MIB + 0x3000
    direct_map.check()
    with pytest.raises(InvariantError, match="no large page"):
        direct_map.split_large_page(16 * MIB, frame, "memblock")


def test_gigabyte_pages_need_no_table_below_the_pud() -> None:
    direct_map = machine(64 * GIB, gbpages=True)
    assert len(direct_map.tables) == 3
    pud = next(table for table in direct_map.walk() if table.name == "PUD")
    assert sum(bool(entry & 0x80) for entry in pud.entries) == 63
    # The top GiB is mapped whole for the first 2 MiB of it, and found mapped and counted again in the next two steps.
    assert direct_map.direct_pages_count[PG_LEVEL_1G] == 65
    assert direct_map.meminfo()[2] == "DirectMap1G:    68157440 kB"


def test_check_notices_a_table_in_memory_that_was_given_back() -> None:
    direct_map = machine(64 * GIB)
    table = next(table for table in direct_map.tables.values() if table.source == "memblock")
    direct_map.memblock.phys_free(table.address, PAGE_SIZE)
    with pytest.raises(InvariantError, match="nobody reserved"):
        direct_map.check()


def test_check_notices_an_entry_that_maps_the_wrong_frame() -> None:
    direct_map = machine(64 * MIB)
    table = next(table for table in direct_map.tables.values() if table.name == "PTE")
    table.entries[3] = 0x163 | 0x7000
    with pytest.raises(InvariantError, match="entry 3 maps 0x7000"):
        direct_map.check()


def test_mapped_ranges_join_and_stay_sorted() -> None:
    ranges = add_range_with_merge([(10, 20)], 0, 5)
    assert ranges == [(0, 5), (10, 20)]
    assert add_range_with_merge(ranges, 4, 11) == [(0, 20)]
    assert add_range_with_merge(ranges, 7, 7) == ranges
    assert machine(64 * MIB).pfn_range_is_mapped(0x100, 0x200) and not machine(64 * MIB).pfn_range_is_mapped(0, TIB)
