"""Recordings and the text of /proc become objects; what is broken is refused in one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim import host as host_module
from mmsim.errors import InputError
from mmsim.host import host, shipped_recording
from mmsim.recorded import (
    kernel_messages,
    parse_buddyinfo,
    parse_iomem,
    parse_meminfo,
    parse_pagetypeinfo,
    parse_vmstat,
    parse_zoneinfo,
    read_recording,
    strip_kernel_lines,
)

RECORDINGS = Path(__file__).parent / "golden" / "recordings"
BOOT = RECORDINGS / "linux-5.17" / "boot.txt"


@pytest.fixture(scope="module")
def boot():
    return read_recording(BOOT)


def test_a_recording_has_its_command_scenario_and_sections(boot):
    assert boot.command.startswith("qemu-system-x86_64 -accel tcg -m 256M")
    assert boot.scenario == "boot"
    assert list(boot.sections)[:5] == ["/proc/version", "/proc/cmdline", "/proc/iomem", "/proc/meminfo", "/proc/buddyinfo"]
    assert boot.messages()[0].startswith("Linux version 5.17.0")


def test_a_kernel_message_inside_a_section_is_taken_out(boot):
    assert "random: fast init done" in BOOT.read_text()
    assert "random" not in boot.section("/proc/meminfo")
    assert parse_meminfo(boot.section("/proc/meminfo"))["MemTotal"] == 243480


def test_a_kernel_message_glued_to_a_title_is_taken_out():
    recording = read_recording(RECORDINGS / "boots-5.17" / "crash128.txt")
    assert parse_meminfo(recording.section("/proc/meminfo"))["MemTotal"] == 885400


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=200), st.text(st.characters(codec="ascii", exclude_characters="\n\r[]"), max_size=30))
def test_a_message_may_interrupt_a_line_anywhere(position, message):
    text = "MemTotal:         243480 kB\nMemFree:          219440 kB\nMemAvailable:     217336 kB\n"
    position = min(position, len(text))
    mixed = text[:position] + f"[    1.442558] {message}\n" + text[position:]
    assert strip_kernel_lines(mixed) == text


def test_messages_that_follow_firmware_output_on_a_line_are_found():
    recording = read_recording(RECORDINGS / "boots-5.17" / "m5g.txt")
    assert "ROM..[    0.000000] Linux version" in recording.console
    assert recording.messages()[0].startswith("Linux version 5.17.0")


def test_zoneinfo_is_read_whole(boot):
    zones = parse_zoneinfo(boot.section("/proc/zoneinfo"))
    assert [zone.name for zone in zones] == ["DMA", "DMA32", "Normal", "Movable", "Device"]
    dma32 = zones[1]
    assert (dma32.min, dma32.low, dma32.high, dma32.spanned, dma32.present, dma32.managed) == (452, 565, 678, 61399, 61399, 57030)
    assert zones[0].protection == (0, 214, 214, 214, 214)
    assert dma32.pagesets == [(0, 260, 565, 15)]
    assert (dma32.start_pfn, dma32.stat_threshold) == (4096, 4)
    assert zones[0].node_stats["nr_slab_reclaimable"] == 821
    assert zones[0].stats["nr_free_pages"] == 3840


def test_buddyinfo_rows_count_their_pages(boot):
    rows = parse_buddyinfo(boot.section("/proc/buddyinfo"))
    assert rows[0].counts == (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3)
    zones = parse_zoneinfo(boot.section("/proc/zoneinfo"))
    assert rows[0].free_pages == zones[0].managed


def test_pagetypeinfo_has_free_blocks_and_pageblocks(boot):
    info = parse_pagetypeinfo(boot.section("/proc/pagetypeinfo"))
    assert info.pageblock_order == 9
    assert info.free[0, "DMA", "Movable"][10] == 3
    assert info.blocks[0, "DMA"] == {"Unmovable": 1, "Movable": 7, "Reclaimable": 0, "HighAtomic": 0, "CMA": 0, "Isolate": 0}


def test_iomem_knows_what_lies_in_what(boot):
    ranges = {entry.name: entry for entry in parse_iomem(boot.section("/proc/iomem"))}
    assert (ranges["Kernel code"].start, ranges["Kernel code"].end, ranges["Kernel code"].depth) == (0x100_0000, 0x180_1480, 1)


def test_vmstat_is_names_and_counts(boot):
    assert parse_vmstat(boot.section("/proc/vmstat"))["oom_kill"] == 0


@pytest.mark.parametrize("parse", [parse_zoneinfo, parse_buddyinfo, parse_pagetypeinfo, parse_meminfo, parse_vmstat, parse_iomem])
def test_text_of_something_else_is_refused(parse):
    with pytest.raises(InputError):
        parse("this is no file of /proc\n")


def test_a_broken_number_is_named():
    with pytest.raises(InputError, match=r"zoneinfo, low: '3x' is not a number"):
        parse_zoneinfo("Node 0, zone      DMA\n  pages free     3840\n        low      3x\n")


@pytest.mark.parametrize("name, content, message", [
    ("empty.txt", b"", "not a recording"),
    ("noscenario.txt", b"# command: qemu\n[    0.000000] Linux version 5.17.0\n", "never starts"),
    ("cut.txt", b"# command: qemu\n@@@ scenario boot start uptime 1\n=== /proc/version\nLinux", "has no end line"),
    ("cut.txt.gz", gzip.compress(b"# command: x\n" * 50, mtime=0)[:20], "cannot be read"),
    ("flipped.txt.gz", gzip.compress(b"# command: x\n" * 50, mtime=0)[:12] + b"\xff" * 30, "cannot be read"),
], ids=lambda value: value if isinstance(value, str) and value.endswith(("txt", "gz")) else "")
def test_a_bad_file_gets_one_clear_message(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_recording(path)


def test_a_missing_file_and_a_missing_section_are_named(boot, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_recording(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="no section '=== /proc/kcore'"):
        boot.section("/proc/kcore")


def test_lines_without_a_time_are_not_the_kernels():
    assert kernel_messages("[    0.5] short\nplain\n[   12.000001] real\n") == ["real"]


# -- the reader's own machine --------------------------------------------------------------------------------

@pytest.fixture
def fake_root(tmp_path, boot):
    """A /proc and /sys as an unprivileged user of the recorded machine would see them."""
    proc = tmp_path / "proc"
    (proc / "sys/vm").mkdir(parents=True)
    for name in ("zoneinfo", "buddyinfo", "meminfo", "vmstat", "version"):
        (proc / name).write_text(boot.section(f"/proc/{name}"))
    (proc / "iomem").write_text("00000000-00000000 : System RAM\n00000000-00000000 : Reserved\n")
    (proc / "sys/vm/min_free_kbytes").write_text("1938\n")
    (proc / "sys/vm/lowmem_reserve_ratio").write_text("256\t256\t32\t0\n")
    return tmp_path


def test_a_live_machine_is_read_and_says_what_is_hidden(fake_root, monkeypatch):
    monkeypatch.setattr(host_module.sys, "platform", "linux")
    view = host(fake_root)
    assert view.live
    assert view.source == "this machine (Linux 5.17.0)"
    assert view.zoneinfo()[0].managed == 3840
    assert view.sysctl == {"min_free_kbytes": 1938}
    assert view.addresses_hidden
    assert any("all addresses are 0" in problem for problem in view.problems)
    with pytest.raises(InputError, match="pagetypeinfo: No such file"):
        view.pagetypeinfo()


@pytest.mark.parametrize("system", ["darwin", "win32", "emscripten"])
def test_elsewhere_the_recording_stands_in_and_says_so(monkeypatch, system):
    monkeypatch.setattr(host_module.sys, "platform", system)
    view = host()
    assert not view.live
    assert "recorded" in view.source
    assert system in view.problems[0]
    assert view.zoneinfo()[1].managed == 57030


def test_a_linux_without_readable_files_falls_back_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(host_module.sys, "platform", "linux")
    view = host(tmp_path)
    assert not view.live
    assert any("zoneinfo" in problem for problem in view.problems)


def test_the_shipped_recording_is_the_tested_one(boot):
    shipped = shipped_recording()
    assert shipped.console == boot.console
    assert shipped.sections == boot.sections


def test_the_firmware_map_comes_from_the_recorded_log_where_there_is_no_sys(monkeypatch):
    monkeypatch.setattr(host_module.sys, "platform", "emscripten")
    assert len(host().firmware_map()) == 7
