"""The figures of chapter 6 show what the mechanism does, in both widths, for any input a reader may give."""

from __future__ import annotations

import json

import pytest

from mmsim.draw import BoundFigure
from mmsim.draw.figure import compute
from mmsim.errors import InputError
from mmsim.figures import ch06
from mmsim.figures.ch06.gauges import caches_of, cpus_of
from mmsim.figures.ch06.kernel_atlas import parse_addresses, size_text
from mmsim.figures.ch06.slab_order import attempts
from mmsim.figures.ch06.slab_report import BUGS, DEBUG
from mmsim.figures.ch06.slub_machine import letters
from mmsim.host import host
from mmsim.kernel.layout import Layout
from mmsim.kernel.slab_layout import calculate_order
from tests.figures.whole import named, nothing_outside_of_the_sheet, one_story_in_both_widths, sentences

VARIANTS: list[BoundFigure] = [
    ch06.kernel_atlas(kaslr="on", seed=7, ram="6T"), ch06.kernel_atlas(addresses="0x400000, ffffffffffffffff 0"),
    ch06.kernel_atlas(kaslr="on", ram="256M", addresses="ffff9e4a00001000 ffffffffc0000000 fffffe0000001000"),
    ch06.slub_machine(size=64, cpus=64), ch06.slub_machine(size=1024, cpus=4, hardened="on"), ch06.slub_machine(chain=0),
    ch06.slub_machine(ops=""), ch06.slub_machine(ops="alloc 1 count=100\nfree A cpu=0\nflush\nshrink"), ch06.slub_machine(size=192),
    ch06.tid_race(tid="off"), ch06.tid_race(ops="read\nmove 1\ncommit"), ch06.tid_race(ops="read\ncommit\nirq alloc\nread\ncommit"),
    *(ch06.slab_report(bug=bug, debug=debug) for bug in BUGS for debug in DEBUG),
    ch06.slab_report(bug="twice", debug="none", hardened="on"),
    *(ch06.slab_order(size=size, cpus=cpus, align=align, debug=debug) for size, cpus, align, debug in (
        (8, 1, "off", "off"), (24, 256, "on", "off"), (680, 4, "off", "off"), (9000, 64, "on", "on"), (16384, 1, "off", "on"),
        (12345, 2, "off", "off"), (3500, 16, "on", "off"))),
    ch06.vmalloc_gaps(ops="stack s\nstack t\nvfree s\nstack u\nvfree t\nvfree u"), ch06.vmalloc_gaps(ops="", cpus=64),
    ch06.vmalloc_gaps(ops="vmalloc a 100K\nwrite a 5\nvfree a\nvmalloc b 1M\npurge\npurge"),
    *(ch06.which_allocator(size=size, context=context, state=state) for size in (1, 100, 4097, 40_000, 5_000_000, 64 << 20)
      for context in ("GFP_KERNEL", "GFP_ATOMIC") for state in ("whole", "fragmented")),
]  # fmt: skip


@pytest.mark.parametrize("figure", VARIANTS, ids=named)
def test_a_readers_parameters_make_a_whole_figure_too(figure: BoundFigure) -> None:
    one_story_in_both_widths(figure)
    nothing_outside_of_the_sheet(figure)


# -- atlas ------------------------------------------------------------------------------------------------------

def test_the_pins_of_the_report_are_a_guard_page_and_a_struct_page() -> None:
    told = sentences(ch06.kernel_atlas())
    assert "vmalloc region" in told[1] and "struct page of frame 0x1090c8" in told[2]
    assert "physical 0x1000000; the same byte in the direct map: ffff888001000000" in told[3]


def test_an_early_window_is_in_the_fixmap() -> None:
    assert "lies in the fixmap: slot 514" in sentences(ch06.kernel_atlas())[5]


def test_kaslr_keeps_the_order_of_the_regions() -> None:
    for seed in range(20):
        layout = Layout(1 << 24, seed=seed)
        assert layout.page_offset + layout.direct_map_size <= layout.vmalloc_start < layout.vmalloc_end < layout.vmemmap_start
    assert "11 TiB" in sentences(ch06.kernel_atlas())[-1]


@pytest.mark.parametrize("text, sentence", [("", "at least one"), ("xyz", "no address"), ("0 " * 9, "too many"), ("f" * 17, "no address")])
def test_what_is_no_address_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_addresses(text)
    assert sentence in json.loads(compute(ch06.kernel_atlas.name, {"addresses": text}))["error"]


def test_sizes_read_well() -> None:
    assert [size_text(size) for size in (5, 4096, 3 << 29, 64 << 40)] == ["5 bytes", "4 KiB", "1.5 GiB", "64 TiB"]


# -- SLUB machine -----------------------------------------------------------------------------------------------

def test_the_story_of_the_default_requests() -> None:
    told = sentences(ch06.slub_machine())
    assert "on the slow path" in told[2] and "first free object on the CPU's own list" in told[3]
    assert told[5].startswith("CPU 0 allocates A0")
    assert "It is frozen and becomes the head of the chain of CPU 1. The node's list is not touched." in told[7]
    assert "slab A is frozen, it is on the chain of CPU 1" in told[8]
    assert "the 2 slabs that the chain had already" in told[13] and "under the lock" in told[13]
    assert "takes slab C from the node's list, and 1 more for its chain" in told[15]
    assert told[17].startswith("shrink") and "1 empty slab of 6 goes back" in told[17]


def test_without_chains_a_full_slab_goes_to_the_node_under_the_lock() -> None:
    sentence = sentences(ch06.slub_machine(chain=0))[7]
    assert sentence == "CPU 1 frees A3: slab A was full; under the lock it goes to the tail of the node's list."


def test_an_emptied_slab_takes_the_lock_and_goes_back_only_if_the_node_has_enough() -> None:
    few = "alloc 0 count=9\nflush\nfree A cpu=1"
    board = ch06.Board.of(4096, 2)
    for _ in range(9):
        board.alloc(0)
    board.slub.flush_all()
    slab = board.slabs[0]
    for place in range(8):
        board.free(slab, place, 1)
    # Full: to the chain without the lock; the others are frees of a frozen slab.
    assert board.locked == 0 and board.place(slab) == "the chain of CPU 1"
    assert "frees all 8 objects of slab A" in sentences(ch06.slub_machine(ops=few))[-1]
    board.slub.flush_all()
    board.look()
    assert board.place(slab) == "the node's list"


def test_bad_requests_are_answered_at_their_lines() -> None:
    payload = json.loads(compute(ch06.slub_machine.name, {"ops": "free A0\nalloc 5\nalloc 0\nfree A9\nfree A0\nfree A0\nalloc 0 count=0"}))
    lines = {problem["line"]: problem["text"] for problem in payload["problems"]["ops"]}
    assert "no slab A" in lines[1] and "no CPU 5" in lines[2] and "objects 0 to 7" in lines[4]
    assert "free already" in lines[6] and "count is" in lines[7] and len(payload["frames"]) == 9


def test_slabs_are_named_like_columns() -> None:
    assert [letters(number) for number in (0, 25, 26, 701, 702)] == ["A", "Z", "AA", "ZZ", "AAA"]


# -- how large is a slab ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("cpus", [1, 2, 4, 8, 64, 256])
def test_the_search_told_ends_where_the_kernels_search_ends(cpus: int) -> None:
    for size in (*range(8, 3000, 40), *range(3000, 16384, 328)):
        tried = attempts(size, cpus)
        assert not any(attempt.taken for attempt in tried[:-1])
        if tried and tried[-1].taken:
            assert (tried[-1].order, tried[-1].objects) == (calculate_order(size, cpus), (4096 << calculate_order(size, cpus)) // size)


def test_objects_of_5000_bytes_lose_more_than_a_sixteenth() -> None:
    told = sentences(ch06.slab_order())
    assert "16 objects are wanted, but a block of order 3 holds only 6" in told[1]
    assert "more than a sixteenth: too much" in told[2] and "no more than an eighth: taken" in told[3]


# -- the race ---------------------------------------------------------------------------------------------------

def test_the_tid_tells_that_somebody_was_here() -> None:
    told = sentences(ch06.tid_race())
    assert "object 0 is first again, but the tid went from 16 to 40" in told[6]
    assert told[-1].endswith("The counter cmpxchg_double_cpu_fail stands at 1.")


def test_without_the_tid_an_object_has_an_owner_and_is_free() -> None:
    assert sentences(ch06.tid_race(tid="off"))[-1].startswith("Object 1 is on the free list, and the interrupt has it.")


def test_a_task_that_was_moved_does_not_take_from_the_other_cpu() -> None:
    told = sentences(ch06.tid_race(ops="read\nmove 1\ncommit"))
    assert any("and fails" in sentence for sentence in told) and "has object 100" in told[-2]


# -- who wrote there --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bug, debug, words", [
    ("use", "FZPU", "Poison overwritten"), ("overrun", "FZPU", "Right Redzone overwritten"), ("twice", "F", "Object already free"),
    ("inside", "FZP", "Invalid object pointer"), ("use", "none", "stops a task that did nothing wrong"),
    ("overrun", "none", "no message at all"), ("twice", "none", "no message at all"), ("inside", "none", "no message at all"),
])  # fmt: skip
def test_what_the_kernel_says_of_each_bug(bug: str, debug: str, words: str) -> None:
    assert words in sentences(ch06.slab_report(bug=bug, debug=debug))[0]


def test_a_double_free_gives_one_object_to_two_owners_unless_hardened() -> None:
    assert "both get" in sentences(ch06.slab_report(bug="twice", debug="none"))[-1]
    assert "BUG_ON(object == fp)" in sentences(ch06.slab_report(bug="twice", debug="none", hardened="on"))[-1]


# -- vmalloc ----------------------------------------------------------------------------------------------------

def test_addresses_come_back_after_the_purge_only() -> None:
    told = sentences(ch06.vmalloc_gaps())
    assert "2 pages wait" in told[5] and "at page +9" in told[6] and "at page +4" in told[10]
    assert "unable to handle page fault" in told[12] and "over the limit of 8 192" in told[14]


def test_an_ended_tasks_stack_is_kept_for_the_next() -> None:
    told = sentences(ch06.vmalloc_gaps(ops="stack s\nvfree s\nstack t"))
    assert "keeps the stack" in told[3] and told[2].split("page +")[1][:1] == told[4].split("page +")[1][:1]


def test_bad_calls_of_vmalloc_are_answered_as_the_kernel_does() -> None:
    payload = json.loads(compute(ch06.vmalloc_gaps.name, {"ops": "vfree x\nvmalloc a 1G\nvmalloc b 1\nvmalloc b 1\nvmalloc c 0"}))
    lines = {problem["line"]: problem["text"] for problem in payload["problems"]["ops"]}
    assert "no area x" in lines[1] and "exceeds total pages" in lines[2] and "already" in lines[4] and 5 in lines


# -- which allocator --------------------------------------------------------------------------------------------

def test_who_serves_which_request() -> None:
    def served(size: int, context: str = "GFP_KERNEL", state: str = "whole") -> set[str]:
        return {offer.name for offer in ch06.offers(size, context, state) if offer.taken}

    assert served(100) == served(100, state="fragmented") == {"kmalloc", "alloc_pages", "vmalloc", "kvmalloc", "alloc_percpu"}
    assert served(20_000, state="fragmented") == {"vmalloc", "kvmalloc", "alloc_percpu"}
    assert served((4 << 20) + 1) == {"vmalloc", "kvmalloc"} and "kmalloc" in served(4 << 20)
    assert served(20_000, "GFP_ATOMIC", "fragmented") == set() and served(3000, "GFP_ATOMIC", "fragmented") == {"kmalloc", "alloc_pages"}


def test_what_a_request_costs() -> None:
    costs = {offer.name: offer.taken for offer in ch06.offers(100, "GFP_KERNEL", "whole")}
    assert costs == {"kmalloc": 128, "alloc_pages": 4096, "vmalloc": 4274, "kvmalloc": 128, "alloc_percpu": 400}
    assert ch06.vmalloc_cost(1) - 4096 == 178


# -- on your machine --------------------------------------------------------------------------------------------

def test_slabs_of_the_recorded_machine_are_computed_again() -> None:
    source = host("recording")
    rows = caches_of(source)
    assert cpus_of(source) == 1 and len(rows) == 124 and all(row.agrees for row in rows)
    assert rows[0].name == "inode_cache" and "124 of 124" in ch06.orders_table(source)
    # On eight CPUs the same objects would lie in other slabs: the comparison can fail.
    assert sum(row.agrees for row in caches_of(source, 8)) < 100


def test_vmallocused_is_the_sum_of_the_areas() -> None:
    text = ch06.vmalloc_table(host("recording"))
    assert "8 of 8 sizes" in text and "1130 pages are 4520 kB; VmallocUsed says 4520 kB" in text


def test_a_machine_that_hides_slabinfo_is_refused_in_a_sentence() -> None:
    source = host("recording")
    del source.texts["slabinfo"]
    with pytest.raises(InputError, match="slabinfo"):
        caches_of(source)


def test_chains_spare_the_lock_and_hold_memory() -> None:
    locks, used = zip(*(ch06.remote_frees(chain, fifo=True) for chain in (0, 1, 4, 16)), strict=True)
    assert list(locks) == sorted(locks, reverse=True) and list(used) == sorted(used, reverse=True)
    assert ch06.remote_frees(0)[0] > 15 * ch06.remote_frees(16)[0]
