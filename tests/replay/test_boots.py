"""The recorded boots, booted again by the model: every line and number that the log decides is equal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmsim.boot.memblock import Memblock
from mmsim.bootlog import boot_inputs, memblock_requests
from mmsim.errors import InputError
from mmsim.recorded import read_recording
from mmsim.replay.boots import boot_again, boot_log, boot_recording, compare_log, compared_lines

GOLDEN = Path(__file__).parents[1] / "golden" / "recordings"
RECORDINGS = sorted([*GOLDEN.glob("boots-*/*.txt*"), *GOLDEN.glob("linux-*/boot.txt")])


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_boot_is_repeated_exactly(path):
    checks = list(boot_recording(path))
    assert [check.describe() for check in checks if not check.agrees] == []
    assert len(checks) > 200


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_memblock_line_of_the_log_is_compared(path):
    recording = read_recording(path)
    lines = [message for message in recording.messages() if message.startswith("memblock_")]
    memblock_group = re.compile(r"^memblock_\w+: ")
    assert len(compared_lines(lines, memblock_group)) == len(lines) > 60
    labels = [check.label for check in boot_recording(path)]
    assert sum(label.startswith("log, memblock ") for label in labels) == len(lines)


@pytest.mark.parametrize("name, line", [
    ("linux-5.17/numa.txt", "NODE_DATA(1) allocated [mem 0x0ffd2000-0x0ffd6fff]"),
    ("linux-6.1/numa.txt", "Dentry cache hash table entries: 32768 (order: 6, 262144 bytes, vmalloc)"),
    # Deferred struct pages: most of the free memory is not in the free lists yet when the balance is printed.
    ("linux-6.1/huge-1G.txt", "Memory: 219836K/1048020K available"),
])
def test_the_boot_before_another_scenario_is_repeated_exactly(name, line):
    recording = read_recording(GOLDEN / name)
    assert any(message.startswith(line) for message in recording.messages())
    checks = list(boot_log(GOLDEN / name))
    assert [check.describe() for check in checks if not check.agrees] == []
    assert len(checks) > 180


def test_all_recordings_are_there():
    assert len(RECORDINGS) == 29


def test_no_address_that_an_allocation_got_is_input():
    """Moving every address that the log gives as an answer changes nothing in what the model starts from."""
    path = GOLDEN / "boots-5.17" / "m512.txt"
    recording = read_recording(path)
    before = boot_inputs(recording)
    moved = re.sub(r"memblock_reserve: \[0x[0-9a-f]{16}-0x[0-9a-f]{16}\] memblock_alloc_range_nid",
                   "memblock_reserve: [0x0000000012345000-0x0000000012345fff] memblock_alloc_range_nid", recording.console)
    moved = re.sub(r"NODE_DATA\(0\) allocated \[mem 0x[0-9a-f]+-0x[0-9a-f]+\]",
                   "NODE_DATA(0) allocated [mem 0x00005000-0x00009fff]", moved)
    assert moved != recording.console
    recording.console = moved
    after = boot_inputs(recording)
    assert after.image == before.image
    assert after.platform == before.platform
    assert after.firmware_map == before.firmware_map


def test_an_allocator_that_searches_from_below_is_found_out(monkeypatch):
    monkeypatch.setattr(Memblock, "_find_range_top_down", Memblock._find_range_bottom_up)
    checks = list(boot_recording(GOLDEN / "boots-5.17" / "m512.txt"))
    wrong = [check for check in checks if not check.agrees]
    assert len(wrong) > 50
    assert "recorded:" in wrong[0].describe()


def test_a_missing_line_counts_once():
    lines = ["Zone ranges:", "  DMA      [mem 0x1-0x2]", "  Normal   empty", "Movable zone start for each node"]
    checks = list(compare_log(lines, lines[:1] + lines[2:]))
    assert [check.agrees for check in checks] == [True, False, True, True]


def test_requests_are_read_with_all_their_arguments():
    request, = memblock_requests(["memblock_alloc_try_nid_raw: 4096 bytes align=0x1000 nid=0 from=0x0000000001000000 "
                                  "max_addr=0x0000000000000000 __earlyonly_bootmem_alloc.constprop.0+0x1e/0x28"])
    assert (request.size, request.align, request.nid, request.min_addr, request.max_addr) == (4096, 4096, 0, 0x1000000, 0)
    assert request.caller == "__earlyonly_bootmem_alloc"


def test_a_driver_that_the_model_does_not_know_is_served_in_its_place():
    """A request of an unknown function between two known ones is repeated there, and all later addresses move with it."""
    recording = read_recording(GOLDEN / "boots-5.17" / "m512.txt")
    line = ("[    0.035560] memblock_alloc_try_nid: 4096 bytes align=0x40 nid=-1 from=0x0000000000000000 "
            "max_addr=0x0000000000000000 some_driver+0x1/0x2\n")
    marker = re.search(r"^\[.*smpboot: Allowing 1 CPUs", recording.console, re.MULTILINE)
    recording.console = recording.console[:marker.start()] + line + recording.console[marker.start():]
    inputs = boot_inputs(recording)
    assert ("acpi_boot_init", 4096) in [(request.after, request.size) for request in inputs.image.driver_requests]
    log = boot_again(inputs).dmesg_lines()
    assert any("4096 bytes" in message and message.endswith("some_driver") for message in log)


@pytest.mark.parametrize("damage, message", [
    (lambda text: text[:40_000], "truncated"),
    (lambda text: text.replace("# command", "command", 1), "not a recording"),
    (lambda text: text.replace("BIOS-e820: [mem 0x", "BIOS: [mem 0x"), "no BIOS-e820 lines"),
    (lambda text: text.replace("=== /proc/zoneinfo", "=== /proc/nothing"), "no section '=== /proc/zoneinfo'"),
    (lambda text: text.replace("Linux version", "Linus version"), "lacks its first lines"),
])
def test_a_damaged_recording_gets_one_clear_message(tmp_path, damage, message):
    text = (GOLDEN / "boots-5.17" / "m64.txt").read_text(errors="replace")
    path = tmp_path / "boot.txt"
    path.write_text(damage(text))
    with pytest.raises(InputError, match=re.escape(message)):
        list(boot_recording(path))
