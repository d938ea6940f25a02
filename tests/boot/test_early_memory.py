"""The small helpers of the first instants: early_ioremap, the brk area, crashkernel=, and the provenance map."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.brk import BrkArea
from mmsim.boot.crashkernel import CrashKernel, parse_crashkernel, reserve_crashkernel
from mmsim.boot.ioremap import FIX_BTMAPS_SLOTS, NR_FIX_BTMAPS, EarlyIoremap
from mmsim.boot.memblock import Memblock
from mmsim.boot.provenance import Provenance, Run
from mmsim.clock import Clock
from mmsim.errors import Errno, InvariantError, KernelBug
from mmsim.klog import KernelLog
from mmsim.rules import rules_for
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE, U64_MAX

# -- early_ioremap -----------------------------------------------------------------------------------------


def test_a_window_shows_the_pages_around_what_was_asked_for() -> None:
    early = EarlyIoremap()
    virt = early.ioremap(0xFFE198C, 0x74)
    assert virt == early.slot_virt(0) + 0x98C
    assert early.translate(virt + 0x10) == 0xFFE199C and early.translate(early.slot_virt(0)) == 0xFFE1000
    assert early.translate(early.slot_virt(1)) is None
    early.check()


def test_a_ninth_mapping_is_null_with_a_warning() -> None:
    log = KernelLog(Clock())
    early = EarlyIoremap(log)
    addresses = [early.ioremap(0x1000 * index, 16) for index in range(FIX_BTMAPS_SLOTS)]
    assert 0 not in addresses and len(set(addresses)) == 8
    assert early.ioremap(0x9000, 16) == 0
    assert "__early_ioremap(0x0000000000009000, 00000010) not found slot" in log.lines()
    early.iounmap(addresses[3], 16)
    assert early.ioremap(0x9000, 16) == early.slot_virt(3)
    assert repr(early) == "<EarlyIoremap: slots ########>"


@pytest.mark.parametrize("phys, size", [(0x1000, 0), (U64_MAX - 10, 100), (0x1000, NR_FIX_BTMAPS * PAGE_SIZE + 1),
                                        (0x1FFF, NR_FIX_BTMAPS * PAGE_SIZE)])
def test_an_empty_wrapping_or_too_long_range_is_null(phys: int, size: int) -> None:
    log = KernelLog(Clock())
    assert EarlyIoremap(log).ioremap(phys, size) == 0 and len(log) == 3


def test_a_window_holds_64_pages() -> None:
    assert EarlyIoremap().ioremap(0x10000, 256 * KIB) != 0


def test_a_mapping_is_given_back_only_with_its_own_size() -> None:
    log = KernelLog(Clock())
    early = EarlyIoremap(log)
    virt = early.ioremap(0x1000, 16)
    early.iounmap(virt, 32)
    assert early.translate(virt) == 0x1000 and any("size not consistent 00000010" in line for line in log.lines())
    early.iounmap(virt + 1, 16)
    assert any("not found slot" in line for line in log.lines())
    early.iounmap(virt, 16)
    assert early.check_leak() == 0


def test_a_forgotten_window_is_reported_at_the_end_of_boot() -> None:
    log = KernelLog(Clock())
    early = EarlyIoremap(log)
    early.ioremap(0x1000, 16)
    assert early.check_leak() == 1
    assert "Debug warning: early ioremap leak of 1 areas detected." in log.lines()


# -- brk ---------------------------------------------------------------------------------------------------

def test_brk_is_a_bump_allocator_of_which_only_the_used_part_is_reserved() -> None:
    memblock, brk = Memblock(), BrkArea(0x2000000, 0x2010000)
    assert brk.extend(6 * PAGE_SIZE, PAGE_SIZE, "early_pgt_alloc") == 0x2000000
    assert brk.extend(10, 1) == 0x2006000 and brk.extend(8, 8) == 0x2006010
    brk.reserve(memblock)
    assert [(region.base, region.end) for region in memblock.reserved] == [(0x2000000, 0x2006018)]
    brk.check()


def test_brk_past_its_limit_or_after_it_was_reserved_or_misaligned_is_a_bug() -> None:
    brk = BrkArea(0x1000, 0x3000)
    with pytest.raises(KernelBug, match="__brk_limit"):
        brk.extend(0x2001, 1)
    with pytest.raises(KernelBug, match="no power of two"):
        brk.extend(1, 3)
    brk.reserve(Memblock())
    with pytest.raises(KernelBug, match="_brk_start"):
        brk.extend(1, 1)


def test_an_unused_brk_area_reserves_nothing() -> None:
    memblock = Memblock()
    BrkArea(0x1000, 0x2000).reserve(memblock)
    assert len(memblock.reserved) == 0


def test_brk_check_notices_a_piece_outside() -> None:
    brk = BrkArea(0x1000, 0x2000)
    brk.taken.append((0x5000, 16, "stray"))
    with pytest.raises(InvariantError, match="stray"):
        brk.check()


# -- crashkernel= ------------------------------------------------------------------------------------------

def ram(*ranges: tuple[int, int], release: str = "5.17") -> tuple[Memblock, KernelLog]:
    log = KernelLog(Clock())
    memblock = Memblock(rules_for(release), klog=log)
    for start, end in ranges:
        memblock.add(start, end - start)
    return memblock, log


def test_the_range_syntax_compares_the_exact_amount_of_ram_and_rounded_up_in_6_1() -> None:
    line = "crashkernel=512M-2G:64M,2G-:128M"
    assert parse_crashkernel(line, 2047 * MIB) == (64 * MIB, 0)
    assert parse_crashkernel(line, 2047 * MIB, rules=rules_for("6.1")) == (128 * MIB, 0)
    assert parse_crashkernel(line, 511 * MIB) == (0, 0)


@pytest.mark.parametrize("line, size, base", [
    ("crashkernel=64M", 64 * MIB, 0), ("quiet crashkernel=64M@16M ro", 64 * MIB, 16 * MIB),
    ("crashkernel=64M crashkernel=32M", 32 * MIB, 0), ("crashkernel=0", 0, 0),
    ("crashkernel=0-:32M@16M", 32 * MIB, 16 * MIB), ("crashkernel=1G,high crashkernel=8M", 8 * MIB, 0),
])
def test_crashkernel_forms(line: str, size: int, base: int) -> None:
    assert parse_crashkernel(line, 4 * GIB) == (size, base)


def test_high_and_low_have_their_own_values() -> None:
    line = "crashkernel=1G,high crashkernel=72M,low"
    assert parse_crashkernel(line, 64 * GIB, ",high") == (GIB, 0)
    assert parse_crashkernel(line, 64 * GIB, ",low") == (72 * MIB, 0)
    with pytest.raises(Errno, match="ENOENT"):
        parse_crashkernel(line, 64 * GIB)


@pytest.mark.parametrize("line, why", [
    ("crashkernel=", "memory value expected"), ("crashkernel=much", "memory value expected"),
    ("crashkernel=64MB", "unrecognized char: B"), ("crashkernel=1M,high", "ENOENT"),
    ("crashkernel=:64M", "Memory value expected"), ("crashkernel=1G:64M", "'-' expected"),
    ("crashkernel=2G-1G:64M", "end <= start"), ("crashkernel=1G-2G64M", "unrecognized"),
    ("crashkernel=1G-:8G", "invalid size"), ("crashkernel=0-x:8M", "Memory value expected"),
    ("crashkernel=0-:8M@", "after '@'"), ("crashkernel=0-:", "Memory value expected"),
])
def test_what_makes_no_sense_is_einval_with_the_kernels_words(line: str, why: str) -> None:
    with pytest.raises(Errno, match=why):
        parse_crashkernel(line, 4 * GIB)


def test_a_crash_kernel_is_placed_top_down_below_4_gib_at_16_mib() -> None:
    memblock, log = ram((0, 3 * GIB), (4 * GIB, 6 * GIB))
    assert reserve_crashkernel(memblock, "crashkernel=100M") == CrashKernel(3 * GIB - 112 * MIB, 100 * MIB)
    assert log.lines() == ["Reserving 100MB of memory at 2960MB for crashkernel (System RAM: 5120MB)"]


def test_a_high_one_takes_256_mib_below_for_devices() -> None:
    memblock, log = ram((0, 3 * GIB), (4 * GIB, 6 * GIB))
    assert reserve_crashkernel(memblock, "crashkernel=1G,high") == CrashKernel(5 * GIB, GIB, 3 * GIB - 256 * MIB, 256 * MIB)
    assert log.lines() == [
        "Reserving 256MB of low memory at 2816MB for crashkernel (low RAM limit: 4096MB)",
        "Reserving 1024MB of memory at 5120MB for crashkernel (System RAM: 5120MB)"]


def test_a_high_one_takes_as_little_below_as_it_is_told() -> None:
    memblock, _ = ram((0, 3 * GIB), (4 * GIB, 6 * GIB))
    assert reserve_crashkernel(memblock, "crashkernel=1G,high crashkernel=0,low") == CrashKernel(5 * GIB, GIB)


def test_what_does_not_fit_below_4_gib_goes_above() -> None:
    memblock, _ = ram((0, GIB), (4 * GIB, 8 * GIB))
    found = reserve_crashkernel(memblock, "crashkernel=2G")
    assert found == CrashKernel(6 * GIB, 2 * GIB, GIB - 256 * MIB, 256 * MIB)


def test_without_room_below_the_high_part_is_given_back() -> None:
    memblock, log = ram((0, 128 * MIB), (4 * GIB, 8 * GIB))
    assert reserve_crashkernel(memblock, "crashkernel=2G") is None
    assert len(memblock.reserved) == 0
    assert log.lines() == ["Cannot reserve 256MB crashkernel low memory, please try smaller size."]


def test_a_place_in_use_and_a_size_that_fits_nowhere_are_reported() -> None:
    memblock, log = ram((0, GIB))
    memblock.reserve(512 * MIB, PAGE_SIZE)
    assert reserve_crashkernel(memblock, "crashkernel=64M@512M") is None
    assert reserve_crashkernel(memblock, "crashkernel=2G") is None
    assert reserve_crashkernel(memblock, "crashkernel=4G-:64M") is None
    assert reserve_crashkernel(memblock, "crashkernel=sixty") is None
    assert reserve_crashkernel(memblock, "quiet") is None
    assert log.lines() == ["crashkernel reservation failed - memory is in use.",
                           "crashkernel reservation failed - No suitable area found.",
                           "crashkernel size resulted in zero bytes", "crashkernel: memory value expected"]


# -- provenance --------------------------------------------------------------------------------------------

def test_what_is_taken_stays_with_its_first_owner_until_it_is_given() -> None:
    provenance = Provenance("one")
    provenance.take(0x1000, 0x1000, "trampoline")
    provenance.phase = "two"
    provenance.take(0, 0x4000, "first megabyte")
    assert [(run.base, run.end, run.who, run.phase) for run in provenance.runs()] == [
        (0, 0x1000, "first megabyte", "two"), (0x1000, 0x2000, "trampoline", "one"), (0x2000, 0x4000, "first megabyte", "two")]
    provenance.give(0x1800, 0x1000, "buddy")
    assert provenance.at(0x1FFF) == Run(0x1800, 0x2800, "buddy", "two")
    provenance.release(0, 0x1000)
    assert provenance.at(0xFFF) is None
    assert provenance.totals() == {"trampoline": 0x800, "buddy": 0x1000, "first megabyte": 0x1800}
    assert provenance.phases() == {"one": 0x800, "two": 0x2800}


def test_a_frame_may_have_several_owners() -> None:
    provenance = Provenance()
    provenance.take(0x1F80, 0x50, "mem_section")
    provenance.take(0x1F00, 0x49, "acpi_parse_hpet")
    assert [run.who for run in provenance.of_frame(1)] == ["acpi_parse_hpet", "mem_section"]
    assert provenance.of_frame(2) == []


steps = st.lists(st.tuples(st.sampled_from(["take", "give", "release"]), st.integers(0, 40), st.integers(0, 12),
                           st.sampled_from("abc")), max_size=30)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_provenance_equals_one_owner_a_byte(calls: list[tuple[str, int, int, str]]) -> None:
    provenance, flat = Provenance("p"), [""] * 60
    for call, base, size, who in calls:
        span = range(base, base + size)
        if call == "release":
            provenance.release(base, size)
            for byte in span:
                flat[byte] = ""
        else:
            getattr(provenance, call)(base, size, who)
            for byte in span:
                if call == "give" or not flat[byte]:
                    flat[byte] = who
        provenance.check()
    got = [""] * 60
    for run in provenance.runs():
        got[run.base:run.end] = [run.who] * run.size
    assert got == flat
    owners = [provenance.at(byte) for byte in range(60)]
    assert [run.who if run else "" for run in owners] == flat
