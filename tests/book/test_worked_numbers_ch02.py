"""Every number that chapter 2 prints in its prose, computed by the mechanism or read from the recordings."""

from __future__ import annotations

import gzip
import re

import pytest

from mmsim import constants as c
from mmsim.figures import ch02
from mmsim.ftrace.event_filter import event_filter
from mmsim.ftrace.tracefs import EVENT_FIELDS, TraceFs
from mmsim.kernel.layout import VMEMMAP_BASE
from mmsim.machine import Machine
from mmsim.process.task import Process
from mmsim.reference import ref256, toy16
from mmsim.replay.graphs import EVENTS, model_graph, recorded_calls
from mmsim.units import MIB
from tests.book.pages import BOOK, markdown
from tests.figures.test_ch02 import GRAPHS

CHAPTER = BOOK / "02-working-with-the-kernel.ipynb"
AREA = 0x2000_0000_0000
RW, PRIVATE = c.PROT_READ | c.PROT_WRITE, c.MAP_PRIVATE | c.MAP_ANONYMOUS | c.MAP_FIXED


def demo(machine: Machine) -> Process:
    process = machine.spawn("demo")
    process.mmap(AREA, 8 * MIB, RW, PRIVATE)
    return process


def test_four_two_and_one_allocations_with_their_flags() -> None:
    machine = ref256()
    process = demo(machine)
    for offset, tables, grown in ((0, 3, 12), (2 * MIB, 1, 4), (4096, 0, 0)):
        before = process.mm.pgtables_bytes
        with machine.trace.recording("kmem:mm_page_alloc") as events:
            process.write(AREA + offset, b"\1")
        kinds = [(event["order"], event["migratetype"], event["gfp_flags"]) for event in events]
        assert kinds == [(0, 0, "GFP_KERNEL_ACCOUNT|__GFP_ZERO")] * tables + [(0, 1, "GFP_HIGHUSER_MOVABLE|__GFP_ZERO")]
        assert process.mm.pgtables_bytes - before == grown << 10
    assert (c.GFP_KERNEL_ACCOUNT | c._GFP_ZERO, c.GFP_HIGHUSER_MOVABLE | c._GFP_ZERO) == (0x400DC0, 0x1100DCA)


def test_page_addresses() -> None:
    assert VMEMMAP_BASE + 0x100000 * 64 == 0xFFFFEA0004000000 and (0xFFFFEA0000091440 - VMEMMAP_BASE) // 64 == 0x2451


def test_a_batch_is_fifteen_and_the_next_fourteen_are_free_of_it() -> None:
    machine = ref256()
    found = []
    for _ in range(60):
        with machine.trace.recording("kmem:mm_page_alloc_zone_locked") as events:
            machine.alloc_pages(c.GFP_HIGHUSER_MOVABLE)
        found.append(len(events))
    first = found.index(15)
    assert found[first:first + 16] == [15, *[0] * 14, 15]


def test_the_graph_of_the_ring_has_35_entries() -> None:
    machine = toy16()
    process = demo(machine)
    tracing = TraceFs(machine.trace)
    tracing["current_tracer"] = "function_graph"
    with tracing:
        process.write(AREA, b"\1")
    lines = tracing["trace"].splitlines()[2:]
    assert len(lines) == 35
    cut = lines[-8:]
    assert sum(line.endswith("{") for line in cut) < sum(line.endswith("}") for line in cut)


@pytest.mark.parametrize(("text", "order", "kind", "passes"), [
    ("order == 9 && migratetype == 1", 9, 1, True), ("order == 9 && migratetype == 1", 9, 0, False),
    ("order > 0 && migratetype != 1", 3, 0, True), ("order > 0 && migratetype != 1", 0, 0, False),
])
def test_the_filters_of_the_exercise(text: str, order: int, kind: int, passes: bool) -> None:
    assert event_filter(text, EVENT_FIELDS["kmem/mm_page_alloc"])({"order": order, "migratetype": kind}) is passes


def test_depths_of_the_two_allocations() -> None:
    lines = ch02.read_graph(ch02.recorded_text("anon_write"))
    assert [line.depth + 1 for line in lines if line.name == "__alloc_pages"] == [6, 4]


def test_calls_recorded_and_shared() -> None:
    counts = {event: (len(recorded_calls(ch02.recorded_text(event))), len(model_graph(event).names())) for event in ch02.SHOWN}
    assert (counts["segv_unmapped"], counts["mmap_anon"]) == ((83, 2), (28, 10))
    shares = {event: ours / real for event, (real, ours) in counts.items()}
    assert min(shares.values()) == shares["segv_unmapped"] and max(shares, key=lambda event: shares[event]) == "mmap_anon"
    real = [counts[event][0] for event in counts]
    assert (min(real), max(real), len(real), len(EVENTS)) == (18, 217, 17, 33)


def test_a_cached_file_is_mapped_16_pages_at_once() -> None:
    assert [line.times for line in ch02.model_lines("file_minor") if line.name == "do_set_pte"] == [16]


def test_the_list_has_18_421_lines_and_some_repetitions_twice_the_functions() -> None:
    with gzip.open(GRAPHS.parent / "ch02_available_filter_functions.txt.gz", "rt") as lines:
        assert sum(1 for _ in lines) == 18421
    with gzip.open(GRAPHS, "rt") as records:
        text = records.read()
    sizes = [int(size) for size in re.findall(r'"event": "mprotect_split".*?"functions": (\d+)', text)]
    assert max(sizes) > 2 * min(sizes)


def test_the_prose_says_these_numbers() -> None:
    text = markdown(CHAPTER).replace("\u202f", " ")
    for said in ("18 421 lines", "113 C files", "33 kinds of events", "2 of 83", "10 of 28", "35 entries", "`0x2451`", "`0x1100dca`"):
        assert said in text, said
