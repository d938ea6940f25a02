"""The steps of the boot, one by one: nodes, sections, zones, per-CPU areas, hash tables, hand-over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.handover import blocks_of, first_deferred_pfn
from mmsim.boot.hash import large_system_hash
from mmsim.boot.image import IMAGE_5_17, KernelImage, Platform, SratMemory
from mmsim.boot.memblock import Memblock
from mmsim.boot.numa import numa_init
from mmsim.boot.numa_emulation import emulate
from mmsim.boot.numa_meminfo import NumaBlock, cleanup_meminfo
from mmsim.boot.options import BootOptions
from mmsim.boot.percpu import build_alloc_info, embed_first_chunk
from mmsim.boot.sparse import sparse_init
from mmsim.boot.zones import CoreOptions, ZoneLayout, find_dma_reserve, find_zone_movable_pfns, free_area_init
from mmsim.physical.memory import PhysicalMemory
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE


def ram(*ranges: tuple[int, int] | tuple[int, int, int]) -> Memblock:
    """memblock with ranges (start, end[, node]) of memory."""
    memblock = Memblock()
    for start, end, *nid in ranges:
        memblock.add_node(start, end - start, nid[0] if nid else 0)
    return memblock


# -- the hand-over -------------------------------------------------------------------------------------------

def test_a_free_range_is_cut_into_the_largest_aligned_blocks():
    assert [order for _, order in blocks_of(1, 160)] == [0, 1, 2, 3, 4, 5, 6, 5]
    assert [order for _, order in blocks_of(0x100, 0x1000)] == [8, 9, 10, 10, 10]
    assert [order for _, order in blocks_of(5, 32)] == [0, 1, 3, 4]


@settings(deadline=None)
@given(st.integers(0, 1 << 14), st.integers(0, 1 << 13))
def test_blocks_cover_a_range_exactly_and_none_could_be_larger(start, size):
    blocks = list(blocks_of(start, start + size))
    pfn = start
    for base, order in blocks:
        assert base == pfn and base % (1 << order) == 0
        pfn += 1 << order
        bigger = order + 1
        assert bigger > 10 or base % (1 << bigger) or base + (1 << bigger) > start + size
    assert pfn == start + size


def test_the_top_zone_gets_one_section_before_the_rest_is_deferred():
    memblock = ram((MIB, GIB))
    memory = PhysicalMemory(GIB // PAGE_SIZE)
    zone = memory.add_node(0, 256, GIB // PAGE_SIZE - 256).zones[1]
    zone.start_pfn, zone.spanned_pages, zone.present_pages = 0x1000, 0x3F000, 0x3F000
    # Counted from 16 MiB on: at 128 MiB less than a section is done, at 256 MiB more.
    assert first_deferred_pfn(memory, memblock, 0) == 0x10000


# -- hash tables ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pages, dentries, inodes", [
    (64215, 32768, 16384), (15831, 8192, 4096), (257751, 131072, 65536), (1031895, 524288, 262144), (2064000, 1048576, 524288)])
def test_hash_tables_grow_with_memory_as_recorded(pages, dentries, inodes):
    assert large_system_hash("Dentry cache", 8, 13, pages, pages, lambda size: size).entries == dentries
    assert large_system_hash("Inode-cache", 8, 14, pages, pages, lambda size: size).entries == inodes


def test_the_command_line_may_say_how_many_buckets():
    assert large_system_hash("t", 8, 13, 64215, 64215, lambda size: size, asked=1000).entries == 1024


def test_above_64_gib_tables_grow_half_as_fast():
    small, large = (large_system_hash("t", 8, 13, size * GIB // PAGE_SIZE, size * GIB // PAGE_SIZE, lambda s: s).entries
                    for size in (64, 256))
    assert large == 2 * small


def test_a_table_that_does_not_fit_is_halved():
    table = large_system_hash("t", 8, 13, 64215, 64215, lambda size: 0x1000 if size <= 64 * KIB else 0)
    assert (table.size, table.entries) == (64 * KIB, 8192)


# -- per-CPU areas -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cpus, unit_size, upa", [(1, 2 * MIB, 1), (2, MIB, 2), (4, 512 * KIB, 4), (8, 256 * KIB, 8)])
def test_as_many_units_share_a_block_as_waste_little(cpus, unit_size, upa):
    layout = build_alloc_info(IMAGE_5_17, [0] * cpus)
    assert (layout.unit_size, layout.upa) == (unit_size, upa)
    assert layout.embedded_line() == f"percpu: Embedded 49 pages/cpu s170176 r0 d30528 u{unit_size}"


def test_each_node_has_its_own_block():
    layout = build_alloc_info(IMAGE_5_17, [0, 0, 1, 1])
    assert [group.units for group in layout.groups] == [[0, 1], [2, 3]]
    assert layout.alloc_lines()[1] == "pcpu-alloc: [0] 0 1 [1] 2 3 "


def test_a_unit_too_many_is_shown_as_a_dash_and_freed_whole():
    layout = build_alloc_info(IMAGE_5_17, [0, 0, 0])
    assert layout.alloc_lines() == ["pcpu-alloc: s170176 r0 d30528 u524288 alloc=1*2097152", "pcpu-alloc: [0] 0 1 2 - "]
    memblock = ram((16 * MIB, 64 * MIB))
    embed_first_chunk(memblock, IMAGE_5_17, layout, [0, 0, 0], [0])
    assert not memblock.is_region_reserved(layout.groups[0].base + 3 * layout.unit_size, layout.unit_size)


def test_what_a_unit_does_not_use_goes_back():
    memblock = ram((16 * MIB, 64 * MIB))
    layout = build_alloc_info(IMAGE_5_17, [0, 0])
    embed_first_chunk(memblock, IMAGE_5_17, layout, [0, 0], [0])
    base = layout.groups[0].base
    assert base % (2 * MIB) == 0
    used = 49 * PAGE_SIZE
    assert memblock.is_region_reserved(base, used) and memblock.is_region_reserved(base + layout.unit_size, used)
    assert not memblock.is_region_reserved(base + used, layout.unit_size - used)


# -- sections ------------------------------------------------------------------------------------------------

def test_each_section_with_memory_gets_2_mib_of_struct_pages_on_its_node():
    memblock = ram((MIB, 256 * MIB, 0), (256 * MIB, 512 * MIB, 1))
    sparse = sparse_init(memblock, IMAGE_5_17, {0: 255 * MIB, 1: 511 * MIB})
    assert sparse.nid == {0: 0, 1: 0, 2: 1, 3: 1}
    assert sparse.memmap_bytes == 8 * MIB
    for section, address in sparse.memmap.items():
        found = memblock.search_pfn_nid(address // PAGE_SIZE)
        assert found[0] == sparse.nid[section]
        assert memblock.is_region_reserved(address, 2 * MIB)
    assert len(sparse.tables) == 2


def test_a_hole_without_memory_costs_nothing():
    memblock = ram((MIB, 128 * MIB), (4 * GIB, 4 * GIB + 128 * MIB))
    sparse = sparse_init(memblock, IMAGE_5_17, {0: 4 * GIB})
    assert sorted(sparse.memmap) == [0, 32]
    assert not sparse.pfn_valid(GIB // PAGE_SIZE)


def test_64_gib_need_one_more_table():
    assert [len(sparse_init(ram((MIB, size * GIB)), IMAGE_5_17, {0: GIB}).tables) for size in (64, 65)] == [2, 3]


# -- zones ---------------------------------------------------------------------------------------------------

def zones_of(memblock, options=None, **kwargs):
    max_pfn = memblock.end_of_DRAM() // PAGE_SIZE
    nodes = sorted({nid for _, _, nid in memblock.for_each_mem_pfn_range()})
    sparse = sparse_init(memblock, IMAGE_5_17, {nid: memblock.end_of_DRAM() - MIB for nid in nodes})
    memory, log = PhysicalMemory(max_pfn), []
    layout = free_area_init(memory, memblock, sparse, max_pfn, options or CoreOptions(), nodes, 0, log.append)
    return memory, layout, log


def test_a_frame_is_in_the_zone_that_its_address_says():
    memory, _, _ = zones_of(ram((MIB, 5 * GIB)))
    name = {pfn: memory.frames.page_zone(pfn).name for pfn in (0x100, 0xFFF, 0x1000, 0xFFFFF, 0x100000)}
    assert name == {0x100: "DMA", 0xFFF: "DMA", 0x1000: "DMA32", 0xFFFFF: "DMA32", 0x100000: "Normal"}


def test_a_hole_has_no_frames_but_is_spanned():
    memory, layout, log = zones_of(ram((MIB, 256 * MIB), (320 * MIB, 512 * MIB)))
    zone = memory.nodes[0].zones[1]
    assert zone.spanned_pages - zone.present_pages == 64 * MIB // PAGE_SIZE
    assert not memory.frames.pfn_valid(300 * MIB // PAGE_SIZE)
    assert "On node 0, zone DMA32: 16384 pages in unavailable ranges" in log
    assert (0x10000, 0x14000) in layout.unavailable


def test_the_memory_map_of_a_hole_is_not_subtracted_if_the_hole_is_large():
    memory, _, _ = zones_of(ram((16 * MIB, 512 * MIB), (3 * GIB, 3 * GIB + 512 * MIB)))
    zone = memory.nodes[0].zones[1]
    present = zone.present_pages
    assert zone.managed_pages == present - -(-present * 64 // PAGE_SIZE)


def test_pages_of_the_first_16_mib_that_are_taken_are_counted_once():
    memblock = ram((PAGE_SIZE, 64 * MIB))
    memblock.reserve(0, MIB)
    memblock.reserve(15 * MIB, 2 * MIB)
    assert find_dma_reserve(memblock) == 255 + 256


@pytest.mark.parametrize("option, value, starts", [
    ("movablecore", "256M", {0: 0x30000}), ("kernelcore", "256M", {0: 0x10400}), ("kernelcore", "2G", {}), ("movablecore", "0", {})])
def test_zone_movable_starts_behind_the_kernels_share(option, value, starts):
    memblock = ram((MIB, GIB))
    layout = ZoneLayout(node_ranges={0: (256, GIB // PAGE_SIZE)})
    layout.lowest, layout.highest = [1, 0x1000, 0x40000, 0, 0], [0x1000, 0x40000, 0x40000, 0, 0]
    options = CoreOptions()
    options.set(option, value)
    find_zone_movable_pfns(layout, memblock, options)
    assert layout.movable_pfn == starts


def test_with_movable_node_the_memory_that_may_be_unplugged_is_movable():
    memblock = ram((MIB, GIB, 0), (GIB, 2 * GIB, 1))
    memblock.movable_node = True
    memblock.mark_hotplug(GIB, GIB)
    memory, _, _ = zones_of(memblock, CoreOptions(movablecore=1000))
    assert [zone.name for zone in memory.nodes[1].populated_zones] == ["Movable"]
    assert not memory.nodes[0].zones[3].populated


def test_the_kernels_share_is_spread_over_the_nodes():
    memblock = ram((MIB, GIB, 0), (GIB, 2 * GIB, 1))
    memory, layout, log = zones_of(memblock, CoreOptions(kernelcore_percent=50))
    sizes = [memory.nodes[nid].zones[3].present_pages for nid in (0, 1)]
    assert abs(sizes[0] - sizes[1]) <= 2048
    assert abs(sum(sizes) - GIB // PAGE_SIZE) <= 4096
    assert [line for line in log if line.startswith("  Node ")] == [
        f"  Node {nid}: 0x{pfn * PAGE_SIZE:016x}" for nid, pfn in layout.movable_pfn.items()]


# -- nodes ---------------------------------------------------------------------------------------------------

def test_ranges_of_a_node_join_over_a_hole_that_belongs_to_nobody():
    log: list[str] = []
    blocks = [NumaBlock(0, 0xA0000, 0), NumaBlock(MIB, GIB, 0), NumaBlock(GIB, 2 * GIB, 1)]
    assert cleanup_meminfo(blocks, ram((0, 0x9F000), (MIB, 2 * GIB)), 2 * GIB // PAGE_SIZE, log.append)
    assert [(block.start, block.end, block.nid) for block in blocks] == [(0, GIB, 0), (GIB, 2 * GIB, 1)]
    assert log == ["NUMA: Node 0 [mem 0x00000000-0x0009ffff] + [mem 0x00100000-0x3fffffff] -> [mem 0x00000000-0x3fffffff]"]


def test_ranges_do_not_join_over_another_node():
    blocks = [NumaBlock(0, GIB, 0), NumaBlock(GIB, 2 * GIB, 1), NumaBlock(2 * GIB, 3 * GIB, 0)]
    assert cleanup_meminfo(blocks, ram((0, 3 * GIB)), 3 * GIB // PAGE_SIZE, lambda line: None)
    assert len(blocks) == 3


def test_nodes_that_overlap_are_refused_and_one_node_is_made_up():
    srat = (SratMemory(0, 0, GIB), SratMemory(1, GIB // 2, 2 * GIB))
    log: list[str] = []
    info = numa_init(ram((MIB, 2 * GIB)), Platform(srat=srat, cpu_to_node=(0,)), 2 * GIB // PAGE_SIZE, 2 * GIB, "", 0x5000, log.append)
    assert info.nodes == [0]
    assert any("overlaps with node" in line for line in log)
    assert "No NUMA configuration found" in log


@pytest.mark.parametrize("option, memory, sizes", [
    ("3U", 2 * GIB - 0x29000, [704, 704, 639]), ("2", GIB, [512, 512]), ("256M", GIB, [256] * 4), ("4", 2 * GIB, [512] * 4)])
def test_fake_nodes_have_the_sizes_asked_for(option, memory, sizes):
    made = emulate(option, [NumaBlock(0, memory, 0)], ram((0, memory)), memory // PAGE_SIZE, lambda line: None)
    assert [block.end - block.start >> 20 for block in made[0]] == sizes
    assert set(made[1].values()) == {0}


@pytest.mark.parametrize("option", ["0", "nonsense", "0U"])
def test_a_senseless_number_of_fake_nodes_changes_nothing(option):
    assert emulate(option, [NumaBlock(0, GIB, 0)], ram((0, GIB)), GIB // PAGE_SIZE, lambda line: None) is None


def test_processors_that_no_table_names_are_dealt_out_in_turn():
    memblock = ram((MIB, 2 * GIB))
    info = numa_init(memblock, Platform(nr_cpus=4), 2 * GIB // PAGE_SIZE, 2 * GIB, "fake=2", 0x5000, lambda line: None)
    assert info.cpu_to_node == [0, 1, 0, 1]
    assert info.cpu_masks == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}


def test_real_nodes_cut_in_pieces_keep_their_distances():
    srat = (SratMemory(0, 0, GIB), SratMemory(1, GIB, 2 * GIB))
    platform = Platform(nr_cpus=2, srat=srat, cpu_to_node=(0, 1), distances=((10, 21), (21, 10)))
    memblock = ram((MIB, 2 * GIB))
    info = numa_init(memblock, platform, 2 * GIB // PAGE_SIZE, 2 * GIB, "fake=2U", 0x5000, lambda line: None)
    assert info.nodes == [0, 1, 2, 3]
    assert info.distance == [[10, 10, 21, 21], [10, 10, 21, 21], [21, 21, 10, 10], [21, 21, 10, 10]]
    assert info.cpu_to_node == [0, 2]
    # The table of the physical nodes and its copy are given back; only the table of the fake ones stays.
    assert [end - base for base, end in memblock.for_each_reserved_mem_range() if end - base < PAGE_SIZE] == [16]


# -- the command line and the image --------------------------------------------------------------------------

def test_options_for_init_are_listed_flags_first():
    options = BootOptions.parse("a=1 nokaslr movablecore=10% b.c=2 foo", None)
    assert options.unknown == ["foo", "a=1"]
    assert options.core.movablecore_percent == 10


@pytest.mark.parametrize("value, expected", [("64M", (64 * MIB, 0, 0)), ("64M@1G", (64 * MIB, GIB, 0)),
                                             ("64M@1G-2G", (64 * MIB, GIB, 2 * GIB))])
def test_cma_may_name_a_place(value, expected):
    assert BootOptions.parse(f"cma={value}").cma == expected


def test_the_images_gaps_are_what_the_recorded_kernel_freed():
    assert [(name, end - start >> 10) for name, start, end in IMAGE_5_17.gaps] == [("text/rodata gap", 2040), ("rodata/data gap", 648)]
    assert IMAGE_5_17.init[1] - IMAGE_5_17.init[0] == 980 * KIB
    assert IMAGE_5_17.section_roots == 4096
    assert KernelImage(sizeof_mem_section=16).section_roots == 2048
