"""The figures of chapter 4 show what the mechanism does, in both widths, for any input a reader may give."""

from __future__ import annotations

import gzip
import json

import pytest

from mmsim.draw import NARROW, WIDE, BoundFigure, Figure, text_width
from mmsim.draw.figure import compute
from mmsim.draw.theme import TEXT_STYLES
from mmsim.figures import ch04
from mmsim.figures.ch04.brk_or_mmap import STATES
from mmsim.figures.ch04.heap_bug import BY_NAME
from mmsim.units import MIB

FIGURES = [ch04.the_pin, ch04.three_layers, ch04.allocator_race, ch04.heap_bins, ch04.brk_or_mmap, ch04.heap_bug]
VARIANTS: list[BoundFigure] = [
    *(figure() for figure in FIGURES),
    ch04.the_pin(size=1000, order="down"), ch04.the_pin(place=100, order="any"), ch04.the_pin(place=0, size=60000),
    ch04.three_layers(ops=""), ch04.three_layers(ops="malloc a 8M\ntouch a 100\nrealloc a 12M\nrealloc a 1\nfree a\ntrim"),
    ch04.three_layers(ops="malloc a 100000\ntouch a\nmalloc b 100000\ntouch b\nfree b\nfree a"),
    ch04.allocator_race(sizes="shift", live=20), ch04.allocator_race(sizes="uniform", seed=7), ch04.allocator_race(sizes="powers", live=10),
    ch04.heap_bins(tcache=0), ch04.heap_bins(ops=""), ch04.heap_bins(ops="malloc a 1M\nfree a\nmalloc b 24 40\nfree b\ntrim", tcache=16),
    *(ch04.brk_or_mmap(size=size) for size in (1, 4000, 134472, 134473, 40 * MIB)),
    *(ch04.heap_bug(bug=bug, tcache=tcache) for bug in BY_NAME for tcache in ("on", "off")),
]  # fmt: skip


def named(figure: BoundFigure) -> str:
    return figure.words().split("\n")[0][:60]


def said(figure: BoundFigure) -> list[str]:
    return [frame.say for frame in figure.frames()]


@pytest.mark.parametrize("figure", VARIANTS, ids=named)
def test_both_widths_tell_the_same_story_in_a_readable_number_of_frames(figure: BoundFigure) -> None:
    wide, narrow = figure.frames(WIDE), figure.frames(NARROW)
    assert [frame.say for frame in wide] == [frame.say for frame in narrow]
    assert [frame.ask for frame in wide] == [frame.ask for frame in narrow]
    assert 1 <= len(wide) <= 60


@pytest.mark.parametrize("figure", VARIANTS, ids=named)
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_is_drawn_outside_of_the_sheet(figure: BoundFigure, width: float) -> None:
    for number, frame in enumerate(figure.frames(width), 1):
        for key, shape in frame.scene.shapes.items():
            if shape["t"] == "rect":
                left, right = shape["x"], shape["x"] + shape["w"]
            elif shape["t"] == "text":
                size = text_width(shape["s"], shape["f"])
                left = shape["x"] - {"middle": size / 2, "end": size}.get(shape.get("a", ""), 0)
                right = left + size
                assert TEXT_STYLES[shape["f"]].size >= 10
            else:
                continue
            assert left >= -2 and right <= width + 2, f"frame {number}: {key} from {left} to {right}"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.title)
def test_a_figure_travels_in_few_bytes_and_asks(figure: Figure) -> None:
    bound = figure()
    assert len(gzip.compress(json.dumps(bound.payload()).encode())) < 60_000
    asks = [frame.ask for frame in bound.frames() if frame.ask]
    assert asks and all(ask.right(ask.answer) and ask.why for ask in asks)
    assert bound.payload() == figure().payload()


# -- the pin ----------------------------------------------------------------------------------------------------

def test_what_stays_resident_grows_with_the_place_of_the_pin() -> None:
    left = [ch04.pinned(5000, place, "up")[1].rss for place in range(0, 101, 10)]
    assert left == sorted(left) and left[0] < left[-1] / 8
    sentences = said(ch04.the_pin())
    assert "67% of the memory stays in RAM, 1\u202f308 KiB for an object of 5000 bytes" in sentences[0]
    assert "only 12 KiB are in RAM" in sentences[3]


def test_the_threads_cache_pins_a_heap_as_well() -> None:
    allocated, freed, *_ = ch04.pinned(1000, 0, "down")
    assert freed.rss > 0.99 * allocated.rss
    assert "freed objects in the thread's cache" in said(ch04.the_pin(size=1000, order="down", place=0))[2]
    assert ch04.pinned(1000, 0, "up")[1].rss < allocated.rss / 8


# -- three layers -----------------------------------------------------------------------------------------------

def test_a_free_changes_the_first_layer_only_and_a_mapping_comes_and_goes() -> None:
    sentences = said(ch04.three_layers())
    assert sentences[2].endswith("The kernel sees brk(+132 KiB); 1 page fault brought 1 frame.")
    assert sentences[5] == "free(b). The kernel sees no system call, no fault."
    assert "a chunk of 200\u202f704 bytes in a mapping of its own. The kernel sees mmap(196 KiB)" in sentences[6]
    assert sentences[8] == "free(c). The kernel sees munmap(196 KiB); 3 frames went back."
    assert "a chunk of 200\u202f016 bytes in the heap. The kernel sees brk(+196 KiB)" in sentences[9]
    assert sentences[12].startswith("malloc_trim(0). The kernel sees brk(−324 KiB); 11 frames")


def test_a_question_whose_answer_would_be_wrong_is_not_asked() -> None:
    frames = ch04.three_layers(ops="malloc a 110000\ntouch a\nmalloc b 110000\ntouch b\nfree b").frames()
    assert "brk(−" in frames[-1].say and not any(frame.ask for frame in frames)


def test_realloc_of_a_mapping_moves_no_page_by_copying() -> None:
    sentences = said(ch04.three_layers(ops="malloc a 1M\ntouch a 50\nrealloc a 8M"))
    assert "mremap" in sentences[-1] and sentences[-1].endswith("50 pages got another address and kept their frames.")


def test_bad_requests_are_answered_at_their_lines() -> None:
    payload = json.loads(compute(ch04.three_layers.name, {"ops": "free x\nmalloc a 24\nmalloc a 24\ntouch a 9999\nmalloc b 100000G\nfree"}))
    lines = {problem["line"]: problem["text"] for problem in payload["problems"]["ops"]}
    assert "there is no x" in lines[1] and "there is a a already" in lines[3] and "ENOMEM" in lines[5] and "name is missing" in lines[6]


# -- bins -------------------------------------------------------------------------------------------------------

def test_the_story_of_the_default_requests() -> None:
    sentences = said(ch04.heap_bins())
    assert "11 free chunks in 5 lists" in sentences[0]
    assert sentences[13] == "free(a), 9 objects: 7 to tcache of 32, 2 to fastbin of 32."
    assert sentences[14].endswith("from the tcache of 32.")
    assert "from the large bin 71, cut from 1\u202f520; the rest of 1\u202f008 is unsorted" in sentences[15]
    assert "from the unsorted list, cut from 1\u202f008" in sentences[16]
    assert "The chunk of 592".lower() in sentences[17].lower() and "to small bin of 592" in sentences[17]
    assert "free(h): to top." in sentences


def test_without_a_cache_all_small_chunks_go_to_the_fastbin() -> None:
    assert "free(a), 9 objects: 9 to fastbin of 32." in said(ch04.heap_bins(tcache=0))


# -- race -------------------------------------------------------------------------------------------------------

def test_the_table_accounts_for_all_memory_in_ram() -> None:
    for name in ch04.ALLOCATORS:
        for lap in ch04.race(name, "mixed", 50, 1):
            assert lap.requested <= lap.used and 0 <= lap.rounding < 0.5
            assert abs(lap.share + lap.rounding + lap.holes - 1) < 1e-9 or lap.share > 0.99
            assert sum(end - start for start, end, _ in lap.spans) <= lap.rss


def test_buddies_lose_about_a_quarter_of_what_is_used_to_rounding() -> None:
    for seed in range(1, 5):
        last = ch04.race("buddy", "uniform", 80, seed)[-1]
        assert 0.2 < 1 - last.requested / last.used < 0.35


def test_bump_reuses_nothing() -> None:
    laps = ch04.race("bump", "mixed", 50, 1)
    assert laps[-1].rss > 4 * ch04.race("best fit", "mixed", 50, 1)[-1].rss


# -- brk or mmap ------------------------------------------------------------------------------------------------

def test_the_borders_between_heap_and_mapping() -> None:
    assert ch04.limits("new program") == (1, 134473)
    assert ch04.limits("top used up")[1] == 131049
    assert ch04.limits("mapping freed")[1] == 135145
    assert ch04.limits("mallopt")[1] == 65513
    assert ch04.outcome("new program", 134473).calls == (("brk", 135168), ("mmap", 135168))
    assert ch04.outcome("top used up", 131048).calls == (("brk", 0x3F000),)
    assert ch04.outcome("top used up", 131049).calls == (("mmap", 135168),)
    assert ch04.outcome("mapping freed", 131049).calls == (("brk", 0x3F000),)


@pytest.mark.parametrize("state", STATES)
def test_larger_requests_never_need_less(state: str) -> None:
    order = ["none", "brk", "mmap"]
    sizes = (1, 100, 3000, 5000, 50_000, 131_000, 131_049, 134_500, 10**6, 4 * 10**7)
    kinds = [order.index(ch04.outcome(state, size).kind) for size in sizes]
    assert kinds == sorted(kinds)


# -- bugs -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bug, message", [
    ("double_free_small", "free(): double free detected in tcache 2"),
    ("forged_previous_chunk", "corrupted size vs. prev_size while consolidating"),
    ("free_of_misaligned_pointer", "free(): invalid pointer"), ("overflow_into_next_size", "corrupted size vs. prev_size"),
])
def test_the_message_is_shown_in_the_first_frame_and_at_the_end(bug: str, message: str) -> None:
    ran = ch04.run_bug(bug)
    assert (ran.number, ran.message) == (6, message)
    sentences = said(ch04.heap_bug(bug=bug))
    assert message in sentences[0] and message in sentences[-1]


def test_watching_a_program_does_not_change_its_end() -> None:
    from mmsim.figures.ch04.stage import Logged, glibc
    from mmsim.malloc.program import ProgramSignal, map_anonymous

    for name, function in BY_NAME.items():
        program = Logged()
        static = map_anonymous(program, 4096)
        number, message = 0, ""
        try:
            function(glibc(program), program, static)
        except ProgramSignal as signal:
            number, message = signal.number, signal.message or str(signal)
        ran = ch04.run_bug(name)
        assert (ran.number, ran.message) == (number, message), name
