"""Every number that chapter 19 states in prose, in an exercise or in a solution."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from mmsim.boot.brk import BrkArea
from mmsim.boot.crashkernel import parse_crashkernel
from mmsim.boot.direct_map import split_mem_range
from mmsim.boot.e820 import E820Entry, E820Table
from mmsim.boot.handover import blocks_of
from mmsim.boot.image import IMAGE_5_17
from mmsim.boot.ioremap import FIX_BTMAPS_SLOTS, NR_FIX_BTMAPS, EarlyIoremap
from mmsim.boot.memblock import Memblock
from mmsim.boot.sparse import sparse_init
from mmsim.constants import (
    E820_MAX_ENTRIES,
    E820_TYPE_SOFT_RESERVED,
    MEMBLOCK_DRIVER_MANAGED,
    MEMBLOCK_HOTPLUG,
    MEMBLOCK_MIRROR,
    MEMBLOCK_NOMAP,
    PAGES_PER_SECTION,
    SIZEOF_MEMBLOCK_REGION,
    SIZEOF_STRUCT_PAGE,
)
from mmsim.machine import Machine
from mmsim.recorded import parse_meminfo, read_recording
from mmsim.reference import ref256, toy16
from mmsim.rules import rules_for
from mmsim.units import GIB, KIB, MIB, TIB

BOOT = Path(__file__).resolve().parents[1] / "golden" / "recordings" / "linux-5.17" / "boot.txt"


@pytest.fixture(scope="module")
def machine() -> Machine:
    return ref256()


def toy_lists() -> Memblock:
    memblock = Memblock()
    memblock.add(0x1000, 0x9E000)
    memblock.add(0x100000, 0xF00000)
    memblock.reserve(0, 0x100000)
    memblock.reserve(0x200000, 0x100000)
    return memblock


# -- the specification's worked numbers -------------------------------------------------------------------------

def test_frames_1_to_160_are_eight_blocks() -> None:
    assert [order for _, order in blocks_of(1, 160)] == [0, 1, 2, 3, 4, 5, 6, 5]


def test_a_range_from_1_mib_to_5_gib_and_3_mib_takes_five_pieces() -> None:
    pieces = split_mem_range(MIB, 5 * GIB + 3 * MIB)
    assert [(piece.end, piece.level) for piece in pieces] == [
        (2 * MIB, 1), (GIB, 2), (5 * GIB, 3), (5 * GIB + 2 * MIB, 2), (5 * GIB + 3 * MIB, 1)]


def test_16_gib_have_4194304_pages_and_a_memmap_of_256_mib() -> None:
    assert 16 * GIB // 4096 == 4194304
    assert 4194304 * SIZEOF_STRUCT_PAGE == 256 * MIB == 65536 * 4096


def test_equal_neighbours_are_one_region_and_different_nodes_two() -> None:
    same, different = Memblock(), Memblock()
    same.add(0, 4096), same.add(4096, 4096)
    different.add_node(0, 4096, 0), different.add_node(4096, 4096, 1)
    assert (len(same.memory), len(different.memory)) == (1, 2)


# -- the scene ------------------------------------------------------------------------------------------------

def test_the_scenes_numbers_are_those_of_the_recording(machine: Machine) -> None:
    recording = read_recording(BOOT)
    line = next(line for line in recording.messages() if line.startswith("Memory:"))
    total = parse_meminfo(recording.section("/proc/meminfo"))["MemTotal"]
    assert line.startswith("Memory: 234932K/261588K available") and "26400K reserved" in line and total == 243480
    late = sum(int(text.split()[-1][:-1]) for text in recording.messages() if text.startswith("Freeing"))
    assert (256 * 1024 - 261588, 261588 - 234932, late) == (556, 26656, 8292)
    assert line in machine.klog.lines()
    assert sum(zone.managed_pages for zone in machine.zones) * 4 == 243480
    assert 261588 - 243480 == 18108 and round(100 * 18108 / 261588) == 7


def test_the_556_kib_are_page_0_the_bios_range_and_the_firmwares_tables() -> None:
    pages = [int(found[1]) for line in read_recording(BOOT).messages()
             if (found := re.search(r"(\d+) pages in unavailable ranges", line))]
    assert pages == [1, 97, 41] and sum(pages) * 4 == 556


def test_the_256_kib_between_available_and_handed_over_are_64_page_tables(machine: Machine) -> None:
    assert len(machine.start.vmalloc_tables) == IMAGE_5_17.vmalloc_tables == 64
    assert 261588 - 26400 - 234932 == 256


def test_the_late_frees_are_those_of_the_table() -> None:
    freed = [int(line.split()[-1][:-1]) for line in read_recording(BOOT).messages() if line.startswith("Freeing")]
    assert sorted(freed) == sorted([24, 4600, 980, 2040, 648])


# -- what Linux does ------------------------------------------------------------------------------------------

def test_there_are_8_windows_of_256_kib_and_the_ninth_request_gets_null() -> None:
    assert FIX_BTMAPS_SLOTS == 8 and NR_FIX_BTMAPS * 4096 == 256 * KIB
    early = EarlyIoremap()
    assert all(early.ioremap(n * MIB, 64) for n in range(1, 9))
    assert early.ioremap(9 * MIB, 64) == 0


def test_the_brk_area_gives_six_frames_to_page_tables(machine: Machine) -> None:
    assert machine.image.pgt_buf_pages == 6
    brk = machine.setup.brk
    assert isinstance(brk, BrkArea) and brk.end - brk.start == 6 * 4096


def test_the_table_has_room_for_320_entries_and_an_array_for_128_regions_of_24_bytes() -> None:
    assert E820_MAX_ENTRIES == 128 + 3 * 64 == 320
    assert Memblock().memory.max == Memblock().reserved.max == 128
    assert SIZEOF_MEMBLOCK_REGION == 24 and 12 * KIB == 512 * 24


def test_the_flags_have_the_values_of_the_text() -> None:
    assert (MEMBLOCK_HOTPLUG, MEMBLOCK_MIRROR, MEMBLOCK_NOMAP, MEMBLOCK_DRIVER_MANAGED) == (1, 2, 4, 8)


def test_the_trampoline_lies_at_0x99000(machine: Machine) -> None:
    run = machine.provenance.at(0x99000)
    assert run is not None and (run.base, run.size, run.who) == (0x99000, 24 * KIB, "reserve_real_mode")


def test_a_section_has_32768_frames_and_2_mib_of_struct_pages() -> None:
    assert PAGES_PER_SECTION == 32768 and PAGES_PER_SECTION * SIZEOF_STRUCT_PAGE == 2 * MIB
    assert toy16().frames.max_pfn == 4096 and TIB // 4096 == 268435456


def test_the_machine_is_handed_on_with_60870_managed_frames_in_two_zones(machine: Machine) -> None:
    assert sum(zone.managed_pages for zone in machine.zones) == 60870
    assert [zone.name for zone in machine.zones if zone.managed_pages] == ["DMA", "DMA32"]


# -- the exercises --------------------------------------------------------------------------------------------

def test_exercise_top_down() -> None:
    memblock = Memblock()
    memblock.add(0, 2 * GIB)
    memblock.reserve(0x7FFF0000, 64 * KIB)
    assert memblock.alloc(20 * KIB, 4096) == 0x7FFEB000
    assert memblock.alloc(MIB, 2 * MIB) == 0x7FE00000


def test_exercise_who_wins() -> None:
    def swept(kinds: list[int]) -> list[tuple[int, int]]:
        table = E820Table([E820Entry(0, 4 * GIB, 1)] + [E820Entry(GIB, GIB, kind) for kind in kinds])
        table.update_table()
        return [(entry.addr, entry.type) for entry in table]

    assert swept([2, 3, 4, 5, 7]) == [(0, 1), (GIB, 7), (2 * GIB, 1)]
    assert (GIB, E820_TYPE_SOFT_RESERVED) in swept([2, 3, 4, 5, 7, E820_TYPE_SOFT_RESERVED])
    assert E820_TYPE_SOFT_RESERVED == 0xEFFFFFFF


def test_exercise_reserved_but_not_memory() -> None:
    memblock = toy_lists()
    assert memblock.reserve(GIB, GIB) == 0
    memblock.add(GIB, GIB)
    assert memblock.alloc(MIB, 4096) < 16 * MIB


def test_exercise_blocks() -> None:
    assert list(blocks_of(5, 32)) == [(5, 0), (6, 1), (8, 3), (16, 4)]
    assert [order for _, order in blocks_of(1, 4096)] == [*range(10), 10, 10, 10]
    assert max(len([o for _, o in blocks_of(a, b) if o < 10]) for a, b in ((1, 8191), (1, 1 << 14), (1023, 4095), (1, 3071))) == 20


def test_exercise_just_below_the_line() -> None:
    option = "crashkernel=512M-2G:64M,2G-:128M"
    assert parse_crashkernel(option, 2047 * MIB)[0] == 64 * MIB
    new = rules_for("6.1")
    assert parse_crashkernel(option, 2047 * MIB, rules=new)[0] == 128 * MIB
    assert parse_crashkernel(option, 1920 * MIB, rules=new)[0] == 64 * MIB
    assert parse_crashkernel(option, 1920 * MIB + 1, rules=new)[0] == 128 * MIB


def test_exercise_a_terabyte() -> None:
    memblock = Memblock()
    memblock.add_node(0, TIB, 0)
    sparse = sparse_init(memblock, IMAGE_5_17, {0: TIB - 4096})
    assert (sparse.memmap_bytes, len(sparse.memmap), len(sparse.tables)) == (16 * GIB, 8192, 17)


def test_exercise_a_map_of_300_entries_fits_once_the_arrays_may_grow() -> None:
    memblock = Memblock()
    memblock.set_current_limit(MIB)
    table = E820Table([E820Entry(64 * MIB + n * 2 * MIB, MIB, 1) for n in range(299)] + [E820Entry(0x10000, 0x80000, 1)])
    table.update_table()
    table.memblock_setup(memblock)
    assert len(memblock.memory) == 300 and memblock.memory.max == 512
    assert all(at is None or at < MIB for at in memblock.array_at.values())


def test_exercise_predict_with_a_seed() -> None:
    rng, memblock = random.Random(7), toy_lists()
    pieces = [(memblock.alloc(size := rng.randrange(1, 17) << 12, 4096), size) for _ in range(200)]
    assert all(address for address, _ in pieces) and len(memblock.reserved) == 3
    for address, size in pieces[::2]:
        memblock.phys_free(address, size)
    assert len(memblock.reserved) == 102


def test_exercise_break_it() -> None:
    memblock = toy_lists()
    neighbour = memblock.alloc(64 * KIB, 4096)
    mine = memblock.alloc(64 * KIB, 4096)
    assert memblock.phys_free(mine, 128 * KIB) == 0
    assert memblock.alloc(64 * KIB, 4096) == neighbour


def test_exercise_bottom_up_agrees_with_memblock() -> None:
    def add(ranges: list[tuple[int, int]], base: int, end: int) -> list[tuple[int, int]]:
        touched = [r for r in ranges if r[0] <= end and base <= r[1]]
        low, high = min([base] + [r[0] for r in touched]), max([end] + [r[1] for r in touched])
        return sorted([*(r for r in ranges if r not in touched), (low, high)])

    memory, reserved = [(0x1000, 0x9F000), (0x100000, 0x1000000)], [(0, 0x100000), (0x200000, 0x300000)]
    rng, memblock = random.Random(19), toy_lists()
    memblock.bottom_up = True
    for _ in range(200):
        size, align = rng.randrange(1, 65) << 12, 1 << rng.randrange(12, 19)
        mine = 0
        for low, high in memory:
            at = low
            for base, end in [*reserved, (high, high)]:
                if end <= at or base > high:
                    continue
                start = -(-max(at, 0x1000) // align) * align
                if not mine and start + size <= min(base, high) and at < base:
                    mine = start
                at = max(at, end)
        if mine:
            reserved = add(reserved, mine, mine + size)
        assert memblock.alloc(size, align) == mine
