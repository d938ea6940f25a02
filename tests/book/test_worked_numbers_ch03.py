"""Every number that chapter 3 works out by hand, computed by the mechanism (those of entries and walks: tests/paging)."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
from typing import Any

import pytest

from mmsim import constants as c
from mmsim.figures import ch03
from mmsim.figures.ch03.page_table_tax import addresses
from mmsim.figures.ch03.the_walk import BITS, Space
from mmsim.figures.ch03.tlb_reach import measure_reach
from mmsim.paging.address import from_indexes, indexes, table_cost
from mmsim.paging.pte import describe
from mmsim.paging.tables import PageTables
from mmsim.paging.tlb import TlbGeometry
from mmsim.paging.walk import Control, loads
from mmsim.units import GIB, KIB, MIB, TIB
from tests.book.pages import BOOK, cells, markdown
from tests.paging.machines import table_memory

CHAPTER = BOOK / "03-fundamentals.ipynb"


def test_indexes_of_the_exercise() -> None:
    assert indexes(0x7FFFF7FFF000) == (255, 511, 447, 511) and from_indexes(255, 511, 447, 511) == 0x7FFFF7FFF000


def test_the_word_of_the_exercise() -> None:
    assert describe(0x8000000012345867) == "frame 0x12345: P RW US A D soft-dirty NX"


def test_loads_of_walks() -> None:
    assert (loads(4), loads(5), loads(4, 4), loads(5, 5)) == (4, 5, 24, 35)


def test_32_pages_2_mib_apart_cost_more_than_they_hold() -> None:
    cost = table_cost(addresses("stride", 2 * MIB, 1, 1))
    assert cost.pages * 4 * KIB == 136 * KIB > 32 * 4 * KIB == 128 * KIB


def test_one_page_in_every_2_gib_of_user_space() -> None:
    pages = range(0, 128 * TIB, 2 * GIB)
    assert len(pages) == 65536 and table_cost(pages).pages * 4 * KIB == 513 * MIB and len(pages) * 4 * KIB == 256 * MIB


def test_513_pages_one_by_one() -> None:
    tables = PageTables(table_memory())
    grown = []
    for number in range(513):
        before = tables.pgtables_bytes
        tables.map_page(GIB + number * 4096, 1, 0x25)
        grown.append((tables.pgtables_bytes - before) // KIB)
    assert (grown[0], sum(grown[1:512]), grown[512], tables.pgtables_bytes) == (12, 0, 4, 16 * KIB)


def test_the_reach_of_the_models_tlb() -> None:
    geometry = TlbGeometry()
    first, second = geometry.data_4k, geometry.second
    assert first.sets * first.ways == 64 and second.sets * second.ways == 1536
    assert second.sets * second.ways * 4 * KIB == 6 * MIB and second.sets * second.ways * 16 * KIB == 24 * MIB


def test_hits_at_the_sizes_that_the_text_names() -> None:
    assert [round(measure_reach(size, 1).hit_rate, 2) for size in (6, 8, 32)] == [1, 0.75, 0.18]
    assert measure_reach(32, 2).hit_rate == 1 and measure_reach(8, 1, "loop").hit_rate == 0


def test_a_machine_with_pages_of_16_kib() -> None:
    entries = 16 * KIB // 8
    bits = entries.bit_length() - 1
    assert (entries, bits, 14 + 3 * bits, 2 ** (14 + 3 * bits - 1)) == (2048, 11, 47, 64 * TIB)
    assert (entries * 16 * KIB, entries * entries * 16 * KIB) == (32 * MIB, 64 * GIB)


def test_random_places_by_seed() -> None:
    assert [table_cost(addresses("random", 0, 1, seed)).pud for seed in range(1, 8)] == [31, 30, 31, 31, 32, 30, 31]
    assert all(table_cost(addresses("random", 0, 1, seed))[:2] == (32, 32) for seed in range(1, 8))
    assert round(256 * (1 - (255 / 256) ** 32), 1) == 30.1


def test_fifteen_single_bits_take_the_right_to_write_away_again() -> None:
    codes: dict[int, int] = {}
    for level in ("pgd", "pud", "pmd"):
        for bit in BITS:
            space = Space(0x7FFFF7FFDE06, 1, Control())
            number = {"pgd": 4, "pud": 3, "pmd": 2}[level]
            for at, name in ((1, "RW"), (number, bit)):
                found = space.tables.entry(space.addr, at)
                assert found is not None
                found[0][found[1]] ^= BITS[name]
            code = space.outcome("w", True)
            if code >= 0:
                codes[code] = codes.get(code, 0) + 1
    assert codes == {7: 6, 6: 3, 0xF: 6}


def test_sizes_and_limits_in_the_text() -> None:
    assert (c.TASK_SIZE_MAX, c.TLB_NR_DYN_ASIDS, c.TLB_SINGLE_PAGE_FLUSH_CEILING) == (2**47 - 4096, 6, 33)
    assert (c._PAGE_TABLE, c.MAX_PHYSMEM_BITS) == (0x67, 46)


def outputs(part: str) -> str:
    """What the cells of the chapter that contain ``part`` show."""
    return "".join(json.dumps(cell.outputs) for cell in cells(CHAPTER) if cell.kind == "code" and part in cell.text)


def test_the_card_shows_that_everything_agrees() -> None:
    counts = re.findall(r"agree (\d+) of (\d+)", outputs("replay_file"))
    assert len(counts) == 6 and all(agree == total != "0" for agree, total in counts)
    assert "True)" in outputs("reachable_codes")


def smallest_model(extra: str = "") -> dict[str, Any]:
    """The chapter's own cells; with ``extra``, these lines before the last one of the walk's loop."""
    code = [cell.text for cell in cells(CHAPTER) if cell.kind == "code"]
    walk = next(text for text in code if "def walk_to" in text)
    if extra:
        last = re.search(r"        table, allowed = word .*\n", walk)
        assert last
        walk = walk.replace(last[0], extra + last[0])
    scope: dict[str, Any] = {}
    for text in (walk, next(text for text in code if "def map_page" in text), next(text for text in code if "def access(" in text)):
        exec(text, scope)
    return scope


def test_the_smallest_model_gives_the_three_outcomes() -> None:
    access = smallest_model()["access"]
    assert [access(0x7FFFF7FFDE06, False), access(0x7FFFF7FFDE06, True), access(0x1234, True)] == ["0x9e06", "#PF 0x7", "#PF 0x6"]


def test_the_build_exercise_reads_through_a_large_page() -> None:
    found = re.search(r"Put these two lines before the last line of the loop:\n\n((?:    .*\n)+)", markdown(CHAPTER))
    assert found
    extra = "".join(f"    {line}\n" for line in found[1].splitlines())
    scope = smallest_model(extra)
    scope["free"] += [0xA000, 0xB000]
    scope["map_page"](0x1000, 0x40000000, 0, 1)
    pud = scope["memory"][0x1000 + 8 * (0x40000000 >> 39 & 511)] & ~4095
    pmd = scope["memory"][pud + 8 * (0x40000000 >> 30 & 511)] & ~4095
    scope["memory"][pmd + 8 * (0x40000000 >> 21 & 511)] = 0x200000 | 128 | 1 | 4
    assert scope["access"](0x40012345, False) == "0x212345" and scope["access"](0x40012345, True) == "#PF 0x7"


def test_the_script_of_the_last_exercise_runs_where_there_is_a_proc() -> None:
    found = re.search(r"(    import mmap\n(?:    .*\n)+)", markdown(CHAPTER))
    assert found
    script = "\n".join(line[4:] for line in found[1].splitlines())
    compile(script, "exercise", "exec")
    try:
        with open("/proc/self/status") as status:
            if "VmPTE" not in status.read():
                raise OSError
    except OSError:
        pytest.skip("no /proc/self/status here")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(script, {})
    assert 128 - 8 <= int(said.getvalue()) <= 128 + 16


def test_what_true_did_is_what_the_chapter_says() -> None:
    path = BOOK.parent / "tests/golden/recordings/linux-5.17-userland/ch11_autopsy.jsonl.gz"
    faults = ch03.recorded_faults(path, "true")
    assert ch03.code_table(faults).splitlines()[0] == "49 page faults"
    twice = [(fault.code, fault.ip) for fault in faults if fault.addr == 0x7FFFF7FFDE06]
    assert twice == [(4, "0x7ffff7fe57ad"), (7, "0x7ffff7fe57ad")]
    with gzip.open(path, "rt") as lines:
        assert sum(1 for _ in lines) == 19
    assert "0x1234  error code 0x6" in outputs("segv")
