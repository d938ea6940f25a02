"""The firmware map: the sweep, the edits of the command line, and answers to maps that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.e820 import E820Entry, E820Table, sweep, type_text
from mmsim.boot.e820_params import finish_early_params, parse_command_line, parse_memmap_opt, parse_memopt
from mmsim.boot.memblock import Memblock
from mmsim.clock import Clock
from mmsim.constants import E820_MAX_ENTRIES, E820_TYPE_PRAM, E820_TYPE_SOFT_RESERVED, MAX_ARCH_PFN
from mmsim.errors import InputError, InvariantError, KernelBug, KernelPanic
from mmsim.klog import KernelLog
from mmsim.units import GIB, KIB, MIB, U64_MAX

RAM, RESERVED, ACPI = 1, 2, 3


def rows(table: E820Table) -> list[tuple[int, int, int]]:
    return [(entry.addr, entry.end, entry.type) for entry in table]


def table_of(*entries: tuple[int, int, int]) -> E820Table:
    """A table from (start, end, type)."""
    return E820Table(E820Entry(start, end - start, kind) for start, end, kind in entries)


def ref256() -> E820Table:
    return table_of((0, 0x9FC00, 1), (0x9FC00, 0xA0000, 2), (0xF0000, 0x100000, 2), (0x100000, 0xFFD7000, 1),
                    (0xFFD7000, 0x10000000, 2), (0xFFFC0000, 0x100000000, 2))


# -- the sweep ---------------------------------------------------------------------------------------------

SPAN = 40
entries_strategy = st.lists(st.tuples(st.integers(0, SPAN - 1), st.integers(0, 12), st.sampled_from([1, 2, 3, 4, 5, 7])),
                            min_size=2, max_size=12)


@settings(max_examples=300, deadline=None)
@given(entries_strategy)
def test_after_the_sweep_every_byte_has_the_largest_type_that_claimed_it(given_entries: list[tuple[int, int, int]]) -> None:
    table = E820Table(E820Entry(addr, size, kind) for addr, size, kind in given_entries)
    expected = [max((kind for addr, size, kind in given_entries if addr <= byte < addr + size), default=0)
                for byte in range(SPAN + 12)]
    assert table.update_table() == 0
    table.check()
    got = [0] * len(expected)
    for entry in table:
        got[entry.addr:entry.end] = [entry.type] * entry.size
    assert got == expected
    again = rows(table)
    table.update_table()
    assert rows(table) == again, "a sane table stays as it is"


def test_where_ram_and_reserved_overlap_reserved_wins() -> None:
    table = table_of((0, 0x3000, RAM), (0x1000, 0x2000, RESERVED))
    table.update_table()
    assert rows(table) == [(0, 0x1000, RAM), (0x1000, 0x2000, RESERVED), (0x2000, 0x3000, RAM)]


def test_at_one_address_an_entry_begins_before_another_ends() -> None:
    steps = list(sweep([E820Entry(0, 8, 1), E820Entry(8, 8, 1)]))
    assert [(step.addr, step.begins, step.active) for step in steps] == [
        (0, True, (0,)), (8, True, (0, 1)), (8, False, (1,)), (16, False, ())]
    assert steps[-1].finished == E820Entry(0, 16, 1), "so two touching entries of one type merge"


@pytest.mark.parametrize("kind", [E820_TYPE_PRAM, E820_TYPE_SOFT_RESERVED])
def test_persistent_and_soft_reserved_ranges_are_never_merged(kind: int) -> None:
    table = table_of((0, 8, kind), (8, 16, kind))
    table.update_table()
    assert rows(table) == [(0, 8, kind), (8, 16, kind)]
    table.check()


def test_a_table_of_one_entry_is_left_alone() -> None:
    table = table_of((0, 0x1000, RAM))
    assert table.update_table() == -1 and len(table) == 1


# -- edits -------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(entries_strategy, st.integers(0, SPAN), st.integers(0, 20), st.sampled_from([1, 2, 3]), st.booleans())
def test_update_and_remove_change_exactly_the_bytes_of_the_type_in_the_range(
        given_entries: list[tuple[int, int, int]], start: int, size: int, kind: int, remove: bool) -> None:
    table = E820Table(E820Entry(addr, length, t) for addr, length, t in given_entries)
    table.update_table()
    before = [0] * (SPAN + 40)
    for entry in table:
        before[entry.addr:entry.end] = [entry.type] * entry.size
    new = 0 if remove else 5
    expected = [new if value == kind and start <= byte < start + size else value for byte, value in enumerate(before)]
    changed = table.range_remove(start, size, kind) if remove else table.range_update(start, size, kind, 5)
    got = [0] * len(before)
    for entry in table:
        got[entry.addr:entry.end] = [entry.type] * entry.size
    assert got == expected
    if size:
        assert changed == sum(value == kind and start <= byte < start + size for byte, value in enumerate(before))


def test_the_bios_keeps_page_0_and_the_384_kib_below_1_mib() -> None:
    table = ref256()
    table.trim_bios_range()
    assert rows(table)[:4] == [(0, 0x1000, RESERVED), (0x1000, 0x9FC00, RAM), (0x9FC00, 0xA0000, RESERVED),
                               (0xF0000, 0x100000, RESERVED)]


def test_turning_a_type_into_itself_is_a_bug() -> None:
    with pytest.raises(KernelBug):
        ref256().range_update(0, 0x1000, RAM, RAM)


def test_a_kernel_image_outside_ram_is_made_ram_with_a_warning() -> None:
    log = KernelLog(Clock())
    table = E820Table([E820Entry(0, MIB, RAM), E820Entry(MIB, MIB, RESERVED)], klog=log)
    table.add_kernel_range(MIB, 64 * KIB)
    assert table.mapped_all(MIB, MIB + 64 * KIB, RAM)
    assert log.lines()[0] == ".text .data .bss are not marked as E820_TYPE_RAM!"


# -- the command line --------------------------------------------------------------------------------------

def test_mem_cuts_ram_off_above_a_limit_and_nothing_else() -> None:
    log = KernelLog(Clock())
    table = ref256()
    table.klog = log
    assert parse_memopt(table, "200M") == 0
    finish_early_params(table)
    assert log.lines()[0] == "e820: remove [mem 0x0c800000-0xfffffffffffffffe] usable"
    assert (0x100000, 200 * MIB, RAM) in rows(table) and (0xFFD7000, 0x10000000, RESERVED) in rows(table)


@pytest.mark.parametrize("value", ["0", "", "nonsense", "nopentium"])
def test_mem_without_a_size_is_refused_and_keeps_all_memory(value: str) -> None:
    table = ref256()
    assert parse_memopt(table, value) == -22
    assert rows(table) == rows(ref256())


@pytest.mark.parametrize("option, entry", [
    ("64M$128M", (128 * MIB, 192 * MIB, 2)), ("64M@1G", (GIB, GIB + 64 * MIB, 1)),
    ("64K#0x20000000", (0x20000000, 0x20010000, 3)), ("1G!4G", (4 * GIB, 5 * GIB, 12)),
])
def test_memmap_adds_a_range_of_the_type_its_sign_says(option: str, entry: tuple[int, int, int]) -> None:
    table = ref256()
    parse_memmap_opt(table, option)
    table.update_table()
    assert entry in rows(table)


def test_memmap_percent_changes_adds_or_removes_types() -> None:
    table = table_of((0, 8 * MIB, 1), (8 * MIB, 16 * MIB, 2))
    parse_memmap_opt(table, "1M%4M-1+2,1M%6M-1,1M%20M+4")
    table.update_table()
    assert rows(table) == [(0, 4 * MIB, 1), (4 * MIB, 5 * MIB, 2), (5 * MIB, 6 * MIB, 1), (7 * MIB, 8 * MIB, 1),
                           (8 * MIB, 16 * MIB, 2), (20 * MIB, 21 * MIB, 4)]


def test_exactmap_forgets_the_firmware() -> None:
    table = ref256()
    parse_command_line(table, "quiet memmap=exactmap memmap=640K@0 memmap=63M@1M")
    finish_early_params(table)
    assert rows(table) == [(0, 640 * KIB, 1), (MIB, 64 * MIB, 1)]


def test_an_exact_map_of_one_range_is_a_panic() -> None:
    table = ref256()
    parse_command_line(table, "memmap=exactmap,64M@0")
    with pytest.raises(KernelPanic, match="Invalid user supplied memory map"):
        finish_early_params(table)


def test_a_wrong_mem_option_is_reported() -> None:
    log = KernelLog(Clock())
    table = ref256()
    table.klog = log
    parse_command_line(table, "mem=0 memmap=junk")
    assert log.lines() == ["Malformed early option 'mem'"]


# -- questions ---------------------------------------------------------------------------------------------

def test_the_end_of_ram_ignores_what_is_not_ram() -> None:
    assert ref256().end_of_ram_pfn() == 0xFFD7
    big = table_of((0, GIB, 1), (4 * GIB, 6 * GIB, 1))
    assert (big.end_of_ram_pfn(), big.end_of_low_ram_pfn()) == (0x180000, 0x40000)


def test_ram_beyond_64_tib_does_not_count() -> None:
    assert table_of((0, GIB, 1), (4 * GIB, 1 << 53, 1)).end_of_ram_pfn() == MAX_ARCH_PFN


def test_pci_devices_get_the_largest_gap_below_4_gib() -> None:
    log = KernelLog(Clock())
    table = ref256()
    table.klog = log
    assert table.pci_gap(0xFFD7) == (0x10000000, 0xEFFC0000)
    assert log.lines() == ["[mem 0x10000000-0xfffbffff] available for PCI devices"]


def test_the_end_of_ram_is_padded_against_silent_firmware_use() -> None:
    assert ref256().ram_buffers() == [(0x9FC00, 0xA0000), (0xFFD7000, 0x10000000)]


def test_memblock_learns_of_whole_pages_of_ram_only() -> None:
    table = ref256()
    table.trim_bios_range()
    memblock = Memblock()
    table.memblock_setup(memblock)
    assert [(region.base, region.end) for region in memblock.memory] == [(0x1000, 0x9F000), (0x100000, 0xFFD7000)]
    assert memblock.can_resize


def test_soft_reserved_memory_is_reserved_and_not_ram() -> None:
    memblock = Memblock()
    table_of((0, GIB, 1), (GIB, 2 * GIB, E820_TYPE_SOFT_RESERVED)).memblock_setup(memblock)
    assert memblock.is_reserved(GIB) and not memblock.is_memory(GIB)


# -- where maps come from ----------------------------------------------------------------------------------

def test_a_map_survives_being_printed_and_parsed() -> None:
    table = table_of((0, 0x1000, 1), (0x1000, 0x2000, 2), (0x2000, 0x3000, 3), (0x3000, 0x4000, 4), (0x4000, 0x5000, 5),
                     (0x5000, 0x6000, 7), (0x6000, 0x7000, 12), (0x7000, 0x8000, 20), (0x8000, 0x9000, 0xEFFFFFFF))
    timed = "\n".join(f"[    0.000000] {line}" for line in table.text().split("\n"))
    assert rows(E820Table.from_dmesg(timed)) == rows(table)
    assert rows(E820Table.from_dmesg(table.text("user"), who="user")) == rows(table)


def test_a_map_is_read_from_sys_firmware_memmap() -> None:
    text = "\n".join(["/sys/firmware/memmap/0/end:0x9fbff", "/sys/firmware/memmap/0/start:0x0",
                      "/sys/firmware/memmap/0/type:System RAM", "/sys/firmware/memmap/1/end:0x9ffff",
                      "/sys/firmware/memmap/1/start:0x9fc00", "/sys/firmware/memmap/1/type:Reserved"])
    assert rows(E820Table.from_memmap(text)) == [(0, 0x9FC00, 1), (0x9FC00, 0xA0000, 2)]


@pytest.mark.parametrize("text, message", [
    ("", "no BIOS-e820 lines"),
    ("BIOS-e820: [mem 0x0000000000001000-0x0000000000000fff] usable", "ends before it starts"),
    ("BIOS-e820: [mem 0x0000000000000000-0x1ffffffffffffffff] usable", "beyond 2\\^64"),
    ("BIOS-e820: [mem 0x0000000000000000-0x0000000000000fff] haunted", "unknown memory type"),
    ("\n".join(f"BIOS-e820: [mem 0x{i << 12:016x}-0x{(i << 12) + 9:016x}] usable" for i in range(400)), "more than 320"),
])
def test_a_log_that_holds_no_map_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        E820Table.from_dmesg(text)


@pytest.mark.parametrize("text, message", [
    ("nothing", "no memory map found"), ("x/0/start:0x0", "has only start"),
    ("x/0/start:0\nx/0/end:zz\nx/0/type:Reserved", "no hexadecimal number"),
    ("x/0/start:0\nx/0/end:1\nx/0/type:Cheese", "unknown memory type"),
    ("x/0/start:5\nx/0/end:1\nx/0/type:Reserved", "ends before it starts"),
])
def test_a_memmap_listing_that_makes_no_sense_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        E820Table.from_memmap(text)


@pytest.mark.parametrize("entries", [
    [], [E820Entry(0, GIB, 1)], [E820Entry(0, GIB, 1), E820Entry(U64_MAX - 0xFFF, 0x2000, 2)],
])
def test_an_unusable_firmware_map_is_replaced_by_a_guess(entries: list[E820Entry]) -> None:
    table, who = E820Table.from_firmware(entries, alt_mem_kib=64 * 1024)
    assert who == "BIOS-e801" and rows(table) == [(0, 0x9F000, 1), (MIB, 65 * MIB, 1)]


def test_an_unsorted_overlapping_firmware_map_comes_out_sane() -> None:
    table, who = E820Table.from_firmware([E820Entry(MIB, 15 * MIB, 1), E820Entry(0, 640 * KIB, 1),
                                          E820Entry(8 * MIB, MIB, 2), E820Entry(2 * MIB, 0, 5)])
    table.check()
    assert who == "BIOS-e820" and rows(table) == [(0, 640 * KIB, 1), (MIB, 8 * MIB, 1), (8 * MIB, 9 * MIB, 2),
                                                  (9 * MIB, 16 * MIB, 1)]


def test_what_does_not_fit_in_the_table_is_reported_and_dropped() -> None:
    log = KernelLog(Clock())
    table = E820Table((E820Entry(i << 13, 0x1000, 1) for i in range(E820_MAX_ENTRIES + 1)), klog=log)
    assert len(table) == E820_MAX_ENTRIES == 320
    assert log.lines() == ["too many entries; ignoring [mem 0x00280000-0x00280fff]"]


@pytest.mark.parametrize("entries, problem", [
    ([(0, 1, 1)], "fewer than two"), ([(0, 2, 1), (1, 3, 2)], "overlaps"), ([(4, 5, 1), (0, 2, 1)], "not in order"),
    ([(0, 0, 1), (1, 2, 1)], "empty entry"), ([(0, 1, 1), (4 * GIB, (1 << 52) + 1, 1)], "above 2^52"),
    ([(0, 1, 1), (4 * GIB, 1 << 47, 1)], "64 TiB"), ([(0, 1, 1), (U64_MAX - 1, U64_MAX + 9, 2)], "2^64"),
    ([(i * 2, i * 2 + 1, 1) for i in range(129)], "only 128 fit"),
])
def test_what_is_wrong_with_a_map_is_said_in_words(entries: list[tuple[int, int, int]], problem: str) -> None:
    assert any(problem in text for text in table_of(*entries).problems())


def test_a_sound_map_has_no_problems() -> None:
    assert ref256().problems() == []


def test_check_notices_overlap_and_lack_of_merging() -> None:
    with pytest.raises(InvariantError, match="overlaps"):
        table_of((0, 8, 1), (4, 12, 2)).check()
    with pytest.raises(InvariantError, match="not merged"):
        table_of((0, 8, 1), (8, 12, 1)).check()


def test_types_print_as_in_dmesg() -> None:
    assert [type_text(kind) for kind in (1, 2, 3, 4, 5, 7, 12, 128, 99)] == [
        "usable", "reserved", "ACPI data", "ACPI NVS", "unusable", "persistent (type 7)", "persistent (type 12)", "usable",
        "type 99"]


def test_a_map_of_300_entries_makes_memblock_grow_within_the_first_mib() -> None:
    """While only 1 MiB is mapped, the larger arrays of memblock must lie there, too."""
    memblock = Memblock()
    memblock.reserve(16 * MIB, MIB)
    memblock.set_current_limit(MIB)
    table = E820Table([E820Entry(0x1000, 0x9E000, RAM), *(E820Entry(MIB + i * 64 * KIB, 32 * KIB, RAM) for i in range(299))])
    assert table.update_table() == 0 and len(table) == 300
    table.memblock_setup(memblock)
    memblock.check()
    array = memblock.array_at["memory"]
    assert len(memblock.memory) == 300 and memblock.memory.max == 512
    assert array is not None and array + 512 * 24 <= MIB and memblock.is_region_reserved(array, 512 * 24)
