"""The figures of chapter 7 tell what the mechanism does, for the reader's parameters too, and refuse nonsense in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsim.constants import RLIM_INFINITY
from mmsim.draw.figure import compute
from mmsim.errors import InputError
from mmsim.figures import ch07
from mmsim.figures.ch07.aslr_bands import LIMITS, PARTS, band_of, places
from mmsim.figures.ch07.merge_cases import CASES, make_case
from mmsim.figures.ch07.overcommit_gauge import RECORDED
from mmsim.figures.ch07.own import RECORDED_STEPS
from mmsim.figures.ch07.rmap_xray import links, make_family, walk
from mmsim.figures.ch07.stack_gap import grow_to_the_end
from mmsim.process.layout import draw_layout, fixed_layout
from mmsim.units import MIB
from tests.figures.whole import sentences

RECORDINGS = Path(__file__).resolve().parents[1] / "golden" / "recordings" / "linux-5.17-userland"


def records(name: str) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]


# -- merge cases ------------------------------------------------------------------------------------------------

def test_untouched_areas_merge_in_all_eight_cases() -> None:
    assert {number: make_case(number).case for number in CASES} == {number: number for number in CASES}


def test_areas_written_apart_merge_only_with_a_new_mapping() -> None:
    assert [make_case(number, "written").case for number in CASES] == [2, 2, 3, 0, 0, 0, 0, 0]


def test_a_read_only_mapping_never_merges_with_memory_that_was_made_read_only() -> None:
    """VM_ACCOUNT differs, though both show as r--p."""
    from mmsim.constants import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE
    from mmsim.process.mm import Mm
    from mmsim.process.syscalls import SystemCalls

    mm, flags = Mm(), MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    calls = SystemCalls(mm)
    calls.mmap(0x100000, 0x2000, 3, flags)
    calls.mmap(0x102000, 0x2000, 1, flags)
    calls.mprotect(0x100000, 0x2000, 1)
    assert mm.map_count == 2


# -- overcommit -------------------------------------------------------------------------------------------------

def test_the_gauge_repeats_the_recorded_program() -> None:
    recorded = records("ch07_over.jsonl")[::-1]         # the first of a kind, with the default ratio, counts last
    first = [record for record in recorded if record["kind"] == "overcommit"][-1]
    assert first["mode"] == 0
    assert {name: first[name] for name in RECORDED} == RECORDED
    forks = {record["mode"]: record["fork_ok"] for record in recorded if record["kind"] == "overcommit_fork" and record["root"]}
    maps = {record["mode"]: record["maps_of_64MB"] for record in recorded if record["kind"] == "overcommit_many" and record["root"]}
    assert maps == {0: 200, 1: 200, 2: 3} and forks == {0: 0, 1: 1, 2: 0}
    said = sentences(ch07.overcommit_gauge())
    assert "guess: all 200; always: all 200; never: 3 of 200, then ENOMEM" in said[0]
    assert said[1].startswith("fork. guess: ENOMEM; always: ok; never: ENOMEM.")


def test_two_areas_with_a_fence_may_fork_where_one_may_not() -> None:
    said = sentences(ch07.overcommit_gauge())
    assert said[6].startswith("fork. guess: ok") and "none is larger than RAM" in said[6]
    joined = sentences(ch07.overcommit_gauge(requests="map 400M\nmap 400M\nfork"))
    assert joined[-1].startswith("fork. guess: ENOMEM")


def test_half_a_terabyte_with_swap_is_a_matter_of_the_ratio() -> None:
    said = sentences(ch07.overcommit_gauge(requests="map 14G", machine="16", ratio=100, root=False))
    assert said == ["map 14G. guess: ok; always: ok; never: ok."]
    assert "never: ENOMEM" in sentences(ch07.overcommit_gauge(requests="map 14G", machine="16", ratio=50))[0]


@pytest.mark.parametrize("requests, problem", [
    ("# none", "no requests"),
    ("map 0", None),
    ("map 1M times=99999", None),
])
def test_requests_that_make_no_sense_are_answered(requests: str, problem: str | None) -> None:
    payload = json.loads(compute(ch07.overcommit_gauge.name, {"requests": requests}))
    if problem:
        assert problem in payload["error"]
    else:
        assert "at most 1000 times" in payload["problems"]["requests"][0]["text"]


# -- stack ------------------------------------------------------------------------------------------------------

def test_the_stack_ends_where_the_recorded_ones_ended() -> None:
    ends = {}
    for record in records("ch07_stack.jsonl"):
        if record["kind"] == "stack" and record["test"] < 5:
            ends[record["test"]] = record["VmStk_kB"] // 4
    assert [ends[test] for test in (0, 1, 3, 4)] == [
        grow_to_the_end("no", 768, 8 * MIB)[0], grow_to_the_end("no", 768, 1 * MIB)[0],
        grow_to_the_end("rw", 768, 8 * MIB)[0], grow_to_the_end("none", 768, 8 * MIB)[0]]


def test_beyond_the_gap_a_write_hits_the_other_mapping() -> None:
    assert "works: it belongs to a mapping" in sentences(ch07.stack_gap())[-1]
    assert "SIGSEGV (SEGV_ACCERR)" in sentences(ch07.stack_gap(obstacle="none"))[-1]
    assert "RLIMIT_STACK is reached" in sentences(ch07.stack_gap(limit=1, obstacle="no"))[-1]


# -- ASLR -------------------------------------------------------------------------------------------------------

def test_every_draw_lies_in_its_band() -> None:
    from random import Random
    random = Random(7)
    for limit in LIMITS.values():
        for _ in range(300):
            for part, place in places(draw_layout(random, limit)).items():
                low, high = band_of(part, limit)
                assert low <= place <= high, part
    assert set(PARTS) == set(places(fixed_layout()))


def test_recorded_stacks_lie_in_the_stack_s_band() -> None:
    tops = [int(record["stack_top"], 16) for record in records("ch07_stack_aslr.jsonl") if "stack_top" in record]
    low, high = band_of("stack top", 8 * MIB)
    assert len(tops) >= 6 and all(low <= top <= high for top in tops)


def test_the_worked_base_range() -> None:
    assert [hex(address) for address in band_of("mmap base", 8 * MIB)] == ["0x7efbff701000", "0x7ffbff700000"]
    assert fixed_layout(RLIM_INFINITY).mmap_base == 0x155555556000


# -- the reader's own process -----------------------------------------------------------------------------------

def test_the_recorded_process_is_read_whole() -> None:
    process = ch07.own_process(live=False)
    areas = process.areas()
    assert (len(areas), sum(area.rss for area in areas)) == (22, 1552)
    assert sum(process.pages[kind] for kind in ("file", "anon")) * 4 == 1552
    assert process.status["VmRSS"] == "1552 kB"


def test_smaps_of_this_process_is_read_where_there_is_one() -> None:
    process = ch07.own_process(live=True)
    assert all(area.rss <= area.size for area in process.areas())
    assert process.table().count("\n") >= 3 and process.words()


@pytest.mark.parametrize("smaps", ["", "nonsense", "1000-2000 rw-p 00000000 00:00 0 \nSize: x kB\n"])
def test_a_broken_smaps_is_refused(smaps: str) -> None:
    with pytest.raises(InputError):
        ch07.OwnProcess("a test", False, smaps).areas()


def test_the_recorded_experiment_names_steps_that_are_there() -> None:
    text = ch07.own_experiment(False, RECORDINGS / "ch07_steps.jsonl")
    assert [int(line.split()[-1]) for line in text.splitlines()[1:]] == [64] * len(RECORDED_STEPS)


# -- the lab ----------------------------------------------------------------------------------------------------

def lab(script: str, **values: str) -> dict:  # type: ignore[type-arg]
    return json.loads(compute(ch07.address_space_lab.name, {"script": script, **values}))


def test_the_lab_s_own_script_tells_of_merge_signal_copy_and_the_lost_sign() -> None:
    said = sentences(ch07.address_space_lab())
    assert "It merges: case 6." in said[4]
    assert said[3].endswith("ends in SIGSEGV (SEGV_ACCERR) at 0x7ffff7ffd000.")
    assert said[6].endswith("Faults: copy.") and said[7].endswith("Faults: copy.")
    assert "returns 14" in said[10] and "EINVAL" in said[11]


def test_a_later_release_gives_later_answers() -> None:
    said = [frame["say"] for frame in lab(ch07.address_space_lab().values["script"], release="6.1")["frames"]]
    assert "fails with EFAULT" in said[10] and said[7].endswith("Faults: reuse.")


@pytest.mark.parametrize("script, frames, message", [
    ("a = mmap(", 0, "line 1, column 10"),
    ("a = mmap(4K, rw, private|anon)\nwrite b", 1, "line 2, column 7: no variable or constant 'b'"),
    ("", 0, "the script has no step"),
    ("repeat 100000: mmap(4K, rw, private|anon)", 400, "400 steps"),
    ("a = mmap(1G, rw, private|anon)\nwrite a 1G", 1, "frames"),
    ("<script>alert(1)</script>", 0, "line 1, column 1"),
])
def test_a_script_that_cannot_go_on_says_why_after_its_frames(script: str, frames: int, message: str) -> None:
    payload = lab(script)
    assert len(payload["frames"]) == frames and message in payload["error"]


def test_every_errno_is_the_kernel_s() -> None:
    said = [frame["say"] for frame in lab("""munmap(4097, 4K)
mmap(0, rw, private|anon)
mprotect(0x10000, 4K, r)
a = mmap(8K, r, private|anon)
mmap(4K, rw, private|anon|fixed_noreplace, at=a)
madvise(a, 16K, dontneed)
f = file("f", 4K, ro)
mmap(4K, rw, shared, f)
rlimit memlock 4K
mlock(a, 8K)
sysctl max_map_count 2
munmap(a, 4K)
b = mmap(12K, rw, private|anon)
""")["frames"]]
    names = [text.split(" fails with ")[1].split(":")[0] for text in said if " fails with " in text]
    assert names == ["EINVAL", "EINVAL", "ENOMEM", "EEXIST", "ENOMEM", "EACCES", "ENOMEM"]


# -- families ---------------------------------------------------------------------------------------------------

def test_the_parent_copies_a_page_that_waits_in_a_pagevec() -> None:
    said = sentences(ch07.cow_family())
    assert said[2] == "A writes page 0 and copies. Nobody else maps f0, but the pagevec holds a reference: 2 instead of 1."
    assert sentences(ch07.cow_family(waiting=False))[2] == "A writes page 0 and reuses its frame. It had one reference."
    assert sentences(ch07.cow_family(rule="exclusive"))[2].endswith("It had one reference.")      # B's fault drained it


def test_the_last_writer_pays_nothing() -> None:
    said = sentences(ch07.cow_family())
    assert said[-3].startswith("A writes page 2 and copies") and said[-2].startswith("C writes page 2 and copies")
    assert said[-1].startswith("D writes page 2 and reuses")


def test_the_end_of_the_child_drains_the_pagevec_so_the_parent_reuses() -> None:
    """Exercise 4."""
    said = sentences(ch07.cow_family(story="write A 0\nfork A\nexit B\nwrite A 0"))
    assert "drained the pagevec" in said[1] and said[2].startswith("A writes page 0 and reuses")


@pytest.mark.parametrize("story, line, problem", [
    ("write A 0\nwrite Q 0", 2, "no process"), ("write A 9", 1, "pages 0 to 3"), ("fork A\nexit B\nwrite B 0", 3, "has exited"),
    ("write A 0\n" + "fork A\n" * 13, 14, "room for 13"), ("write A x", 1, "neither a number nor a range"),
])
def test_a_bad_line_of_the_story_is_answered_at_its_line(story: str, line: int, problem: str) -> None:
    payload = json.loads(compute(ch07.cow_family.name, {"story": story}))
    assert (payload["problems"]["story"][0]["line"], problem in payload["problems"]["story"][0]["text"]) == (line, True)


def test_a_page_of_the_root_is_searched_in_all_areas_and_one_of_the_youngest_in_one() -> None:
    for depth in (1, 3, 7, 12):
        family = make_family(depth, "line", True)
        assert [visit.hit for visit in walk(family, 0)] == [True] + [False] * depth
        assert len(walk(family, 1)) == 1
        assert sum(map(len, links(family).values())) == (depth + 1) * (depth + 2) // 2
    assert sum(map(len, links(make_family(5, "star", True)).values())) == 1 + 5 * 2


def test_a_page_of_the_root_costs_four_visits_after_three_forks() -> None:
    assert len(walk(make_family(3, "line", False), 0)) == 4


# -- measurements -----------------------------------------------------------------------------------------------

def test_copies_after_an_mprotect_round_trip_are_the_waiting_pages_until_the_copies_fill_the_pagevec() -> None:
    sizes = (1, 7, 8, 14, 15, 16, 64)
    assert ch07.mprotect_copies(sizes, "5.17") == [min(size % 15, -size % 15) for size in sizes]
    assert ch07.mprotect_copies(sizes, "6.1") == [0] * len(sizes)


def test_fork_copies_tables_of_what_was_written_only() -> None:
    assert ch07.fork_tables([2, 8], "file") == [0, 0]
    small, large = ch07.fork_tables([2, 34], "written")
    assert large - small == 16 * 4
    with pytest.raises(InputError):
        ch07.fork_tables([1], "swap")
