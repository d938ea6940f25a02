"""The texts of /proc/PID: what recorded kernels printed is read into numbers and printed again, byte for byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsim.errors import InputError
from mmsim.procfs.maps import AreaLine
from mmsim.procfs.smaps import MemSizeStats, SmapsArea, format_rollup, parse_rollup, parse_smaps
from mmsim.procfs.status import Statm, StatusMemory

RECORDINGS = Path(__file__).parents[1] / "golden" / "recordings"
USERLAND = RECORDINGS / "linux-5.17-userland"
FILES = RECORDINGS / "linux-5.17-pressure" / "api" / "files" / "f"


def programs(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(USERLAND / f"{name}.jsonl.gz", "rt") as file:
        yield from map(json.loads, file)


def texts(value: Any, name: str) -> Iterator[str]:
    """Every text under a name, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == name and isinstance(inner, str):
                yield inner
            else:
                yield from texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, name)


def printed_again(name: str, text: str) -> str:
    if name == "maps":
        return "".join(AreaLine.parse(line).text() + "\n" for line in text.splitlines())
    if name == "smaps":
        return "".join(area.text() for area in parse_smaps(text))
    return Statm.parse(text).text() if name == "statm" else StatusMemory.parse(text).text()


@pytest.mark.parametrize(("name", "count"), [("maps", 600), ("smaps", 140), ("statm", 120)])
def test_what_the_recorded_programs_showed_is_printed_byte_for_byte(name: str, count: int) -> None:
    seen = 0
    for recording in ("ch11_autopsy", "ch11_autopsy_aslr", "ch11_autopsy_cold"):
        for program in programs(recording):
            for text in filter(None, texts(program, name)):
                assert printed_again(name, text) == text, program["prog"]
                seen += 1
    assert seen >= count


def test_the_memory_lines_of_status_are_printed_byte_for_byte() -> None:
    seen = 0
    for recording in ("ch11_autopsy", "ch11_autopsy_aslr", "ch11_autopsy_cold"):
        for program in programs(recording):
            for text in texts(program, "status"):
                block = text[text.index("VmPeak:"):text.index("CoreDumping:")]
                assert StatusMemory.parse(text).text() == block, program["prog"]
                seen += 1
    assert seen >= 140


@pytest.mark.parametrize("name", ["maps", "smaps", "smaps.after_clear_refs", "statm"])
def test_what_a_busy_process_showed_is_printed_byte_for_byte(name: str) -> None:
    text = (FILES / f"proc_PID_{name}").read_text()
    assert printed_again(name.split(".")[0], text) == text


def test_the_rollup_is_the_sum_of_the_areas() -> None:
    text = (FILES / "proc_PID_smaps_rollup").read_text()
    start, end, stats = parse_rollup(text)
    assert format_rollup(start, end, stats) == text
    total = MemSizeStats()
    for area in parse_smaps((FILES / "proc_PID_smaps").read_text()):
        total.add(area.stats)
    for name in ("resident", "shared_dirty", "private_clean", "private_dirty", "anonymous", "lazyfree", "swap"):
        assert total.kib(name) == stats.kib(name), name
    # The areas show their shares cut to whole KiB, the rollup cuts the sum once.
    assert 0 <= stats.kib("pss") - total.kib("pss") < 40


def test_shares_of_the_recorded_memory_come_out_exactly() -> None:
    """Four kinds of memory, six sizes, 1 to 5 processes: Pss is that of the mapcount, with 12 binary places."""
    compared = 0
    for line in (USERLAND / "ch10_pss.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] != "pss":
            continue
        for process in record["procs"]:
            stats = MemSizeStats()
            for _ in range(record["pages"]):
                stats.account(mapcount=record["kpagecount"], dirty=True, young=True)
            assert (stats.kib("resident"), stats.kib("pss")) == (process["Rss"], process.get("Pss", 0)), record
            assert stats.kib("shared_dirty") == process.get("Shared_Dirty", 0)
            compared += 1
    assert compared == 360


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=60))
def test_the_parts_of_an_area_add_up(pages: list[tuple[int, bool, bool, bool, bool]]) -> None:
    stats = MemSizeStats()
    exact = Fraction(0)
    for mapcount, anon, backed, dirty, locked in pages:
        stats.account(mapcount=mapcount, anon=anon, swap_backed=backed, dirty=dirty, locked=locked)
        exact += Fraction(4096, mapcount)
    kinds = stats.shared_clean + stats.shared_dirty + stats.private_clean + stats.private_dirty
    assert stats.resident == kinds == 4096 * len(pages)
    assert stats.pss == stats.pss_anon + stats.pss_file + stats.pss_shmem >= stats.pss_locked
    assert 0 <= exact - Fraction(stats.pss, 4096) < Fraction(len(pages), 4096) + 1


def test_swap_shared_by_forks_is_shared_in_the_text() -> None:
    stats = MemSizeStats()
    for _ in range(100):
        stats.account_swap(3)
    assert (stats.kib("swap"), stats.kib("swap_pss")) == (400, 133)


def test_an_area_without_pages_shows_zeros_and_its_flags() -> None:
    text = SmapsArea(AreaLine(0x7FFFFFFDE000, 0x7FFFFFFFF000, "rw-p", name="[stack]"), flags="rd wr mr mw me gd ac").text()
    assert text.startswith("7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]\n"
                           "Size:                132 kB\nKernelPageSize:        4 kB\n")
    assert text.endswith("Locked:                0 kB\nTHPeligible:    0\nVmFlags: rd wr mr mw me gd ac \n")


@pytest.mark.parametrize(("read", "text"), [(parse_smaps, "Rss: 4 kB\nhello world\n"), (parse_smaps, "Rss: many kB\n"),
                                            (parse_rollup, ""), (Statm.parse, "1 2 3"), (Statm.parse, "1 2 3 4 5 6 x"),
                                            (StatusMemory.parse, "VmPeak:\t 1 kB\n"), (AreaLine.parse, "1-2 rw-p")])
def test_another_text_is_refused(read: Any, text: str) -> None:
    with pytest.raises(InputError):
        read(text)


@given(st.text())
def test_no_text_breaks_the_readers(text: str) -> None:
    for read in (parse_smaps, parse_rollup, Statm.parse, StatusMemory.parse, AreaLine.parse):
        try:
            read(text)                          # type: ignore[operator]
        except InputError:
            pass


def test_a_newline_in_a_name_does_not_break_the_line() -> None:
    line = AreaLine(0x1000, 0x2000, "r--p", name="a\nb")
    assert line.text().endswith(" a\\012b") and AreaLine.parse(line.text().replace("00001000", "00001000")) == line
