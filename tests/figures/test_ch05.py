"""The figures of chapter 5 tell what the mechanism does, for the reader's parameters too, and refuse nonsense in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmsim.draw.figure import compute
from mmsim.errors import InputError
from mmsim.figures import ch05
from mmsim.figures.ch05.order_failed import REQUESTS, STATES
from mmsim.figures.ch05.watermark_tank import CALLERS, MACHINES
from mmsim.host import host
from mmsim.recorded import parse_buddyinfo, read_recording
from tests.figures.whole import sentences

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


# -- e820 to buddy ----------------------------------------------------------------------------------------------

def test_the_default_map_ends_in_the_blocks_of_the_recorded_zone_dma() -> None:
    recorded = parse_buddyinfo(read_recording(GOLDEN / "recordings/linux-5.17/boot.txt").section("/proc/buddyinfo"))
    drawn = ch05.e820_to_buddy().frames()[0].scene.shapes
    lines = [shape["s"].split()[4:] for shape in drawn.values() if str(shape.get("s", "")).startswith("Node 0, zone      DMA ")]
    assert [tuple(map(int, line)) for line in lines] == [recorded[0].counts]


def test_pageblock_0_stays_unmovable_and_384_kib_are_a_hole() -> None:
    last = sentences(ch05.e820_to_buddy())[-1]
    assert "begins at frame 1" in last and "Unmovable" in last and "384 KiB" in last


@pytest.mark.parametrize("entries, sentence", [
    ("# nothing", "no entry"),
    ("usable 0 1M", "cannot boot"),
    ("usable 0 100T\nusable 0 4K", "up to 8G"),
    ("usable 0 16M\nusable 70G 71G", "64 GiB"),
])
def test_a_map_that_cannot_boot_is_refused_in_a_sentence(entries: str, sentence: str) -> None:
    assert sentence in json.loads(compute(ch05.e820_to_buddy.name, {"entries": entries}))["error"]


@pytest.mark.parametrize("entries", [
    "usable 0 16M\nreserved 3M 4M",
    "usable 1M 64M\nusable 4G 5G\nusable 3M 3M\nunusable 33M 34M",
    "usable 0 64M\nacpi 0 2M\nnvs 60M 70M\nsoft 40M 44M\npmem 50M 51M",
])
def test_an_edited_map_boots_and_tells_its_whole_story(entries: str) -> None:
    payload = json.loads(compute(ch05.e820_to_buddy.name, {"entries": entries}))
    assert "error" not in payload and len(payload["frames"]) == 9


# -- buddy board ------------------------------------------------------------------------------------------------

def test_a_block_is_halved_once_for_each_order() -> None:
    said = sentences(ch05.buddy_board(ops="alloc 3 movable"))
    assert [re.search(r"Halved to order (\d)", text)[1] for text in said if "Halved" in text] == list("876543")  # type: ignore[index]


def test_freeing_merges_until_a_buddy_is_in_use() -> None:
    said = sentences(ch05.buddy_board())
    assert "0x0 goes to the head of the free list of order 3: buddy 0x8 is in use. 440 frames are free." in said
    assert sum("both become" in text for text in said) == 3 + 3


@pytest.mark.parametrize("ops, line, answer", [
    ("alloc 11", 1, "order 11"),
    ("alloc 9\nalloc 0", 2, "ENOMEM"),
    ("alloc 3\nfree 0x4", 2, "inside the block 0x0"),
    ("free 0x8", 1, "no block in use"),
    ("fry 3", 1, "no operation"),
])
def test_a_bad_request_is_answered_at_its_line_and_the_board_goes_on(ops: str, line: int, answer: str) -> None:
    payload = json.loads(compute(ch05.buddy_board.name, {"ops": ops}))
    problem = payload["problems"]["ops"][0]
    assert problem["line"] == line and answer in problem["text"]
    assert "error" not in payload and payload["frames"]


@pytest.mark.parametrize("seed", range(12))
def test_a_seeded_workload_keeps_the_zone_sound(seed: int) -> None:
    assert len(ch05.buddy_board(ops="random 60\nalloc 2 reclaimable\nrandom 20", seed=seed, layout="hilbert").frames()) > 80


# -- stealing ---------------------------------------------------------------------------------------------------

def test_grouping_keeps_unmovable_pages_together() -> None:
    for pressure in (1, 5, 10):
        grouped, strewn = ch05.Workload(pressure, 1), ch05.Workload(pressure, 1, grouping=False)
        for load in (grouped, strewn):
            load.run(24_000)
            load.memory.check()
        assert grouped.whole() >= 28 and strewn.whole() == 0


def test_one_unmovable_page_in_each_pageblock_leaves_no_block_of_order_9() -> None:
    load = ch05.Workload(1, 1, grouping=False)
    load.run(24_000)
    kernel = len(load.kernel)
    load.drop_cache()
    assert kernel < 300 and load.memory.nr_free_pages > 16_000
    assert all(zone.free_area[9].nr_free == zone.free_area[10].nr_free == 0 for zone in load.memory.zones())


def test_without_pressure_everything_stays_whole() -> None:
    assert all("32" not in text or "0 unmovable" in text or "32 pageblocks" in text for text in sentences(ch05.stealing(pressure=0)))
    load = ch05.Workload(0, 1)
    load.run(1000)
    assert load.whole() == 32


@pytest.mark.parametrize("switch", ["nofragment", "boost"])
def test_every_switch_changes_what_happens(switch: str) -> None:
    assert sentences(ch05.stealing(pressure=20)) != sentences(ch05.stealing(pressure=20, **{switch: False}))


# -- watermark tank ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_request_drains_every_machine_to_its_floor(caller: str, machine: str) -> None:
    frames = ch05.watermark_tank(caller=caller, machine=machine).frames()
    assert 4 <= len(frames) <= 12


def test_zone_dma_refuses_gfp_kernel_altogether_on_8_gib() -> None:
    said = sentences(ch05.watermark_tank())
    assert any(text.startswith("DMA refuses GFP_KERNEL even when all of it is free") for text in said)


def test_only_those_who_reclaim_take_the_last_page() -> None:
    assert "Nothing is left for anybody" in sentences(ch05.watermark_tank(caller="PF_MEMALLOC"))[-1]
    assert "PF_MEMALLOC" in sentences(ch05.watermark_tank(caller="GFP_ATOMIC"))[-1]


# -- why order N failed -----------------------------------------------------------------------------------------

def test_a_costly_order_fails_after_one_round_beside_much_free_memory() -> None:
    said = sentences(ch05.why_order_failed())
    assert "1 920 of 4 096 frames free" in said[0] and "costly" in said[0]
    assert sum(text.startswith("Round") for text in said) == 1


def test_a_small_order_can_end_in_a_kill_with_much_memory_free() -> None:
    said = sentences(ch05.why_order_failed(order=2, oom=True))
    assert any("the OOM killer freed memory" in text for text in said) and said[-1].startswith("Served")


def test_a_single_frame_does_not_fail_through_fragmentation() -> None:
    assert "order 0 is served" in sentences(ch05.why_order_failed(order=0))[0]


@pytest.mark.parametrize("order", [0, 3, 4, 9])
@pytest.mark.parametrize("state", STATES)
def test_every_order_in_every_state_ends(order: int, state: str) -> None:
    for request in REQUESTS:
        assert len(ch05.why_order_failed(order=order, state=state, request=request, reclaim=order % 2).frames()) <= 70


def test_parameters_out_of_range_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="order"):
        ch05.why_order_failed(order=11)
    assert "not one of" in json.loads(compute(ch05.watermark_tank.name, {"caller": "GFP_NONSENSE"}))["error"]


# -- marks of a real machine ------------------------------------------------------------------------------------

def test_the_recorded_marks_follow_from_the_recorded_sizes() -> None:
    rows = ch05.marks_of(host("recording"))
    assert len(rows) == 9 and all(row.agrees for row in rows)


def test_memory_freed_later_makes_the_marks_look_wrong() -> None:
    assert sum(row.agrees for row in ch05.marks_of(host("recording"), corrected=False)) == 3


@pytest.mark.parametrize("path", sorted((GOLDEN / "recordings/boots-5.17").glob("*.txt")), ids=lambda path: path.stem)
def test_the_marks_of_every_recorded_machine_follow_from_its_sizes(path: Path) -> None:
    rows = ch05.marks_of(host("recording", read_recording(path)))
    assert len(rows) >= 9 and [row for row in rows if not row.agrees] == []
