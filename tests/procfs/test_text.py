"""The text of /proc files: what the recorded kernels printed is printed again from zones with the same numbers."""

from pathlib import Path

import pytest

from mmsim.config import Config
from mmsim.constants import PAGEBLOCK_ORDER, ZONE_NAMES
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.node import Node
from mmsim.physical.vmstat import calculate_normal_threshold
from mmsim.physical.zone import Zone
from mmsim.procfs.buddyinfo import FREE_COUNT_LIMIT, buddyinfo, extfrag_index, pagetypeinfo, unusable_index
from mmsim.procfs.meminfo import (
    MEMINFO_NAMES,
    VMSTAT_NAMES,
    format_meminfo,
    format_vmstat,
    meminfo_values,
    vmstat_values,
)
from mmsim.procfs.nodestats import meminfo_of_stats
from mmsim.procfs.zoneinfo import NODE_STATS, NUMA_STATS, ZONE_STATS, zoneinfo
from mmsim.recorded import (
    Recording,
    parse_buddyinfo,
    parse_meminfo,
    parse_pagetypeinfo,
    parse_vmstat,
    parse_zoneinfo,
    read_recording,
    strip_kernel_lines,
)

RECORDINGS = Path(__file__).parent.parent / "golden" / "recordings"
BOOTS = sorted(RECORDINGS.glob("boots-5.17/*.txt")) + sorted(RECORDINGS.glob("linux-5.17/boot.txt"))


def test_there_are_recorded_boots():
    assert len(BOOTS) >= 14


@pytest.fixture(params=BOOTS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Recording:
    return read_recording(request.param)


def memory_with_the_numbers_of(recording: Recording) -> PhysicalMemory:
    """A memory whose zones have the recorded sizes, counters and number of free blocks (the blocks themselves are
    made up)."""
    zones = parse_zoneinfo(recording.section("/proc/zoneinfo"))
    types = parse_pagetypeinfo(recording.section("/proc/pagetypeinfo"))
    buddy = {(row.nid, row.zone): row.counts for row in parse_buddyinfo(recording.section("/proc/buddyinfo"))}
    cpus = max((len(zone.pagesets) for zone in zones), default=1)
    memory = PhysicalMemory(max(zone.start_pfn + zone.spanned for zone in zones), nr_cpus=cpus, config=Config())
    for recorded in zones:
        if recorded.nid not in memory.nodes:
            memory.add_node(recorded.nid).zones.clear()
        node: Node = memory.nodes[recorded.nid]
        zone = Zone(memory, recorded.nid, ZONE_NAMES.index(recorded.name), recorded.start_pfn, recorded.spanned,
                    recorded.present, recorded.managed)
        node.zones.append(zone)
        zone.watermark = [recorded.min, recorded.low, recorded.high]
        zone.lowmem_reserve = list(recorded.protection)
        zone.cma_pages = recorded.cma
        zone.nr_free_pages = recorded.free
        node.vm_stat |= recorded.node_stats
        zone.vm_stat |= {name: recorded.stats[name] for name in ZONE_STATS if name in recorded.stats}
        zone.nr_free_cma_pages = recorded.stats.get("nr_free_cma", 0)
        zone.numa_stat |= {name: recorded.stats[name] for name in NUMA_STATS if name in recorded.stats}
        for pcp, (_, count, high, batch) in zip(zone.pageset, recorded.pagesets):
            pcp.count, pcp.high, pcp.batch = count, high, batch
        zone.stat_threshold = calculate_normal_threshold(recorded.managed, cpus)
        if not zone.populated:
            continue
        for order, count in enumerate(buddy[zone.nid, zone.name]):
            zone.free_area[order].nr_free = count
        for migratetype, name in enumerate(memory.config.migratetype_names):
            for order, count in enumerate(types.free[zone.nid, zone.name, name]):
                for block in range(count):
                    zone.free_area[order].free_list[migratetype].add(block)
        pfns = iter(range(zone.start_pfn, zone.end_pfn, 1 << PAGEBLOCK_ORDER))
        for migratetype, name in enumerate(memory.config.migratetype_names):
            for _ in range(types.blocks[zone.nid, zone.name][name]):
                memory.frames.pageblock_mt[next(pfns) >> PAGEBLOCK_ORDER] = migratetype
        hole = next(pfns, None)
        if hole is not None:
            memory.frames.unassign(hole, zone.end_pfn)
    return memory


def test_buddyinfo_is_printed_as_recorded(recording):
    text = strip_kernel_lines(recording.section("/proc/buddyinfo"))
    assert buddyinfo(memory_with_the_numbers_of(recording)) == text


def test_pagetypeinfo_is_printed_as_recorded(recording):
    text = strip_kernel_lines(recording.section("/proc/pagetypeinfo"))
    assert pagetypeinfo(memory_with_the_numbers_of(recording)) == text


def test_zoneinfo_is_printed_as_recorded(recording):
    text = strip_kernel_lines(recording.section("/proc/zoneinfo"))
    assert zoneinfo(memory_with_the_numbers_of(recording)) == text


def test_meminfo_and_vmstat_are_printed_as_recorded(recording):
    if "/proc/meminfo" in recording.sections:
        text = strip_kernel_lines(recording.section("/proc/meminfo"))
        assert format_meminfo(parse_meminfo(text)) == text
    text = strip_kernel_lines(recording.section("/proc/vmstat"))
    assert format_vmstat(parse_vmstat(text)) == text


def test_meminfo_follows_from_zoneinfo(recording):
    if "/proc/meminfo" not in recording.sections:
        return  # the console cut the section's title
    memory = memory_with_the_numbers_of(recording)
    recorded = parse_meminfo(recording.section("/proc/meminfo"))
    values = meminfo_values(memory)
    assert values["MemTotal"] == recorded["MemTotal"]
    assert values["CmaTotal"] == recorded["CmaTotal"]
    # The files are read one after the other, and each read allocates.
    assert abs(values["MemFree"] - recorded["MemFree"]) <= 512


def test_the_lines_of_meminfo_that_nodes_count_follow_from_zoneinfo(recording):
    if "/proc/meminfo" not in recording.sections:
        return
    values = meminfo_of_stats(memory_with_the_numbers_of(recording))
    recorded = parse_meminfo(recording.section("/proc/meminfo"))
    assert {"Slab", "KernelStack", "PageTables", "AnonPages", "Mapped", "Shmem", "Cached", "Mlocked", "Active(anon)"} <= values.keys()
    for name, value in values.items():
        # Buffers and swap, which are taken off Cached, are not modelled; and reading a file allocates a little.
        known = recorded[name] + (recorded["Buffers"] + recorded["SwapCached"] if name == "Cached" else 0)
        assert abs(value - known) <= 128, name
    assert sum(values[name] == recorded[name] for name in values) >= len(values) - 6


def test_what_is_printed_can_be_read_back():
    memory = PhysicalMemory(8192, nr_cpus=2)
    node = memory.add_node(0, 0, 8192, 8192)
    zone = node.zones[1] = Zone(memory, 0, 1, 4096, 4096, 4096, 4000)
    zone.watermark, zone.lowmem_reserve = [3, 4, 5], [0, 0, 7, 7]
    zone.watermark_boost = 2
    zone.free_area[3].nr_free = 9
    zone.nr_free_pages = 72
    zone.free_area[3].free_list[2].add(4096)
    row, = parse_buddyinfo(buddyinfo(memory))
    assert (row.zone, row.counts, row.free_pages) == ("DMA32", (0, 0, 0, 9) + (0,) * 7, 72)
    assert parse_pagetypeinfo(pagetypeinfo(memory)).free[0, "DMA32", "Reclaimable"][3] == 1
    parsed = parse_zoneinfo(zoneinfo(memory))[1]
    # zoneinfo adds the boost to each mark.
    assert (parsed.boost, parsed.min, parsed.low, parsed.high) == (2, 5, 6, 7)
    assert parsed.protection == (0, 0, 7, 7)
    assert len(parsed.pagesets) == 2
    assert parse_meminfo(format_meminfo(meminfo_values(memory)))["MemTotal"] == 16000
    assert parse_vmstat(format_vmstat(vmstat_values(memory)))["nr_free_pages"] == 72


def test_the_extfrag_files_show_one_line_a_zone_and_put_the_sign_into_the_fraction():
    memory = PhysicalMemory(4096)
    zone = memory.add_node(0).zones[2] = Zone(memory, 0, 2, 0, 4096, 4096, 4096)
    zone.free_area[8].nr_free = 1
    assert extfrag_index(memory) == "Node 0, zone   Normal " + "-1.000 " * 9 + "0.-500 0.-250 \n"
    assert unusable_index(memory) == "Node 0, zone   Normal " + "0.000 " * 9 + "1.000 " * 2 + "\n"


def test_pagetypeinfo_stops_counting_a_list_at_100000():
    memory = PhysicalMemory(FREE_COUNT_LIMIT + 5)
    zone = memory.add_node(0).zones[2] = Zone(memory, 0, 2, 0, FREE_COUNT_LIMIT + 5, FREE_COUNT_LIMIT + 5)
    for pfn in range(FREE_COUNT_LIMIT + 1):
        zone.free_area[0].free_list[0].add(pfn)
    assert f"Unmovable >{FREE_COUNT_LIMIT} " in pagetypeinfo(memory)


def test_a_name_that_the_file_does_not_have_is_refused():
    with pytest.raises(ValueError, match="meminfo has no line MemFree2"):
        format_meminfo({"MemFree2": 1})
    with pytest.raises(ValueError, match="vmstat has no line pgwalked"):
        format_vmstat({"pgwalked": 1})


def test_the_name_tables_have_no_name_twice():
    for names in (MEMINFO_NAMES, VMSTAT_NAMES, NODE_STATS, ZONE_STATS):
        assert len(set(names)) == len(names)
