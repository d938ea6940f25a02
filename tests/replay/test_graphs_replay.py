"""Function graphs of 5.17 against those of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsim.ftrace.hidden import HIDDEN
from mmsim.replay.driver import replay_file
from mmsim.replay.graphs import EVENTS, NOT_COVERED, model_graph, recorded_calls, recorded_events
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import load_handlers
from tools.hidden_functions import hidden

GOLDEN = Path(__file__).parent.parent / "golden" / "recordings" / "linux-5.17-userland"


def test_the_models_calls_are_an_ordered_part_of_the_kernels() -> None:
    load_handlers()
    report = replay_file(GOLDEN / "ch02_graphs.jsonl.gz")
    assert not report.error and not report.disagreements
    assert report.agree >= 121 and report.agree + sum(report.known.values()) == report.total


def test_every_recorded_event_is_compared_or_named() -> None:
    recorded = {record["event"] for record in read_jsonl(GOLDEN / "ch02_graphs.jsonl.gz")}
    assert recorded <= EVENTS.keys() | NOT_COVERED.keys() and not EVENTS.keys() & NOT_COVERED.keys()


def test_the_list_of_hidden_functions_is_that_of_the_recorded_kernel() -> None:
    """If this fails, run tools/hidden_functions.py as its docstring says."""
    assert hidden(GOLDEN / "ch02_available_filter_functions.txt.gz") == HIDDEN


@pytest.mark.parametrize(("event", "names"), [
    ("anon_write", ["find_vma", "handle_mm_fault", "__pte_alloc", "__anon_vma_prepare", "__alloc_pages", "page_add_new_anon_rmap"]),
    ("cow_copy", ["handle_mm_fault", "do_wp_page", "wp_page_copy", "ptep_clear_flush", "page_remove_rmap"]),
    ("munmap_split", ["__do_munmap", "__split_vma", "__vma_adjust", "unmap_region", "free_pgd_range"]),
])
def test_what_a_graph_shows_is_worth_reading(event: str, names: list[str]) -> None:
    rest = iter(model_graph(event).names())
    assert all(name in rest for name in names)


def test_a_graph_without_a_call_of_the_model_disagrees(tmp_path: Path) -> None:
    """The comparison can fail: take handle_mm_fault() out of a recording."""
    load_handlers()
    lines = (record for record in read_jsonl(GOLDEN / "ch02_graphs.jsonl.gz") if record["event"] == "anon_read")
    record = next(lines)
    folder = tmp_path / "linux-5.17-userland"
    folder.mkdir()
    text = record["text"].replace("  handle_mm_fault()", "  some_other_function()")
    (folder / "ch02_graphs.jsonl").write_text(json.dumps({"event": "anon_read", "rep": 1, "text": text}) + "\n")
    report = replay_file(folder / "ch02_graphs.jsonl")
    assert report.disagreements and report.agree == 0


def test_calls_and_events_are_read_from_the_text() -> None:
    text = """\
 0)               |  /* page_fault_user: address=0x30000000 ip=0x402250 error_code=0x6 */
 0)               |  find_vma() {
 0)   1.292 us    |    vmacache_find.part.0();
 0)               |    /* mm_page_alloc: page=(____ptrval____) pfn=0x5a8c order=0 migratetype=0 gfp_flags=GFP_KERNEL */
 0)   7.000 us    |  }
"""
    assert recorded_calls(text) == ["find_vma", "vmacache_find"]
    assert recorded_events(text) == ["page_fault_user address=0x30000000 error_code=0x6",
                                     "mm_page_alloc order=0 migratetype=0 gfp_flags=GFP_KERNEL"]
