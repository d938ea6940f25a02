"""The figures of chapter 2 tell what ran and what was recorded, for the reader's parameters too."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmsim.draw.figure import compute
from mmsim.figures import ch02
from mmsim.figures.ch02.boot_command import FLAGS
from mmsim.figures.ch02.files import WORKLOADS
from mmsim.figures.ch02.source_map import AREAS, RELEASES
from mmsim.replay.graphs import model_graph, recorded_calls
from tests.figures.whole import named, nothing_outside_of_the_sheet, one_story_in_both_widths, sentences

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
GRAPHS = GOLDEN / "recordings/linux-5.17-userland/ch02_graphs.jsonl.gz"

OTHERS = [*(ch02.one_fault(event=event) for event in ch02.SHOWN), ch02.one_fault(inlined=False), ch02.one_fault(depth=3),
          ch02.one_fault(event="munmap_split", open=True), ch02.one_fault(event="file_minor", inlined=False, depth=2),
          *(ch02.source_treemap(area=area) for area in AREAS), *(ch02.who_calls_whom(workload=name) for name in WORKLOADS),
          ch02.boot_command(ram="64", stub=False), ch02.boot_command(program="dynamic"), ch02.boot_command(kernel=False)]
every = pytest.mark.parametrize("figure", OTHERS, ids=[f"{number}-{named(figure)[:30]}" for number, figure in enumerate(OTHERS)])


@every
def test_other_parameters_tell_one_story_within_the_sheet(figure) -> None:  # type: ignore[no-untyped-def]
    one_story_in_both_widths(figure)
    nothing_outside_of_the_sheet(figure)


# -- one fault, two recordings ----------------------------------------------------------------------------------

def test_the_shipped_recordings_are_the_recorded_ones() -> None:
    with gzip.open(GRAPHS, "rt", encoding="utf-8") as lines:
        texts = {(record["event"], record["text"]) for record in map(json.loads, lines)}
    shipped = ch02.shipped_events()
    assert set(ch02.SHOWN) <= set(shipped)
    assert all((event, ch02.recorded_text(event)) in texts for event in shipped)


@pytest.mark.parametrize("event", ch02.SHOWN)
def test_every_line_of_a_recording_is_read_with_its_depth(event: str) -> None:
    text = ch02.recorded_text(event)
    lines = ch02.read_graph(text)
    assert [line.name for line in lines if not line.event] == recorded_calls(text)
    assert sum(line.event for line in lines) == text.count("/* page_fault") + text.count("/* mm_") + text.count("/* kmalloc") \
        + text.count("/* kmem_cache") + text.count("/* kfree") + text.count("/* rss_stat")
    for number, line in enumerate(lines):
        assert all(inner.depth > line.depth for inner in lines[number + 1:line.end])
        assert line.end == len(lines) or lines[line.end].depth <= line.depth


@pytest.mark.parametrize("event", ch02.SHOWN)
def test_what_the_figure_does_not_dash_is_what_the_replay_compares(event: str) -> None:
    drawn = [line.name for line in ch02.model_lines(event) if not line.event and not line.inlined]
    compared = model_graph(event).names()
    rest = iter(compared)
    assert all(name in rest for name in drawn) and set(compared) - set(drawn) == set()


@pytest.mark.parametrize("event", ch02.SHOWN)
def test_every_function_that_can_be_seen_has_its_twin_in_order(event: str) -> None:
    model, recorded = ch02.model_lines(event), ch02.read_graph(ch02.recorded_text(event))
    ch02.beside(model, recorded)
    twins = [line.twin for line in model if not line.event and not line.inlined]
    assert None not in twins and twins == sorted(set(twins))


def test_a_first_write_is_two_allocations_and_a_segv_stops_at_find_vma() -> None:
    said = sentences(ch02.one_fault())
    assert said[0].startswith("First write to anonymous memory. 14 calls of the model") and "61 that were recorded" in said[0]
    assert sum(text.startswith("Tracepoint mm_page_alloc") for text in said) == 2
    assert any("do_anonymous_page()" in text and "called by __handle_mm_fault()" in text for text in said)
    segv = sentences(ch02.one_fault(event="segv_unmapped"))
    assert [text.split("(")[0] for text in segv[-2:]] == ["find_vma", "bad_area"]


def test_folding_the_inlined_functions_away_leaves_the_order() -> None:
    def names(**how: object) -> list[str]:
        return [text.split("()")[0] for text in sentences(ch02.one_fault(**how)) if "(), " in text or "():" in text]
    unfolded, folded = names(), names(inlined=False)
    rest = iter(unfolded)
    assert len(folded) == 14 < len(unfolded) == 30 and all(name in rest for name in folded)
    assert len(names(depth=3)) < len(names(depth=6)) < len(unfolded)


def test_an_unknown_event_is_refused_in_a_sentence() -> None:
    assert "is not one of" in json.loads(compute(ch02.one_fault.name, {"event": "reboot"}))["error"]
    assert "not between" in json.loads(compute(ch02.one_fault.name, {"depth": "0"}))["error"]


# -- the map ----------------------------------------------------------------------------------------------------

def test_four_files_hold_a_fifth_and_sixteen_hold_half() -> None:
    lines = ch02.lines_of("5.17")
    four = sorted(lines.values())[-4:]
    assert len(lines) == 113 and 0.2 <= sum(four) / sum(lines.values()) < 0.205
    half = ch02.largest(lines, 0.5)
    assert len(half) == 16 and half[0] == "mm/page_alloc.c"
    assert sum(lines[file] for file in half[:-1]) < sum(lines.values()) / 2 <= sum(lines[file] for file in half)


@pytest.mark.parametrize("release", RELEASES)
def test_every_file_has_a_subject_and_its_lines_reach_the_last_symbol(release: str) -> None:
    lines = ch02.lines_of(release)
    assert all(ch02.area_of(file) for file in lines)
    last: dict[str, int] = {}
    with gzip.open(GOLDEN / f"symbols-{release}.tsv.gz", "rt", encoding="utf-8") as index:
        for row in index:
            fields = row.rstrip("\n").split("\t")
            if fields[2] in lines:
                last[fields[2]] = max(last.get(fields[2], 0), *(int(number or 0) for number in fields[3:5]))
    assert last.keys() == lines.keys()
    assert all(0 <= lines[file] - last[file] <= 8 for file in lines)


def test_vmacache_and_slab_go_and_vma_comes() -> None:
    files = {release: set(ch02.lines_of(release)) for release in RELEASES}
    assert "mm/vmacache.c" in files["5.17"] - files["6.1"]
    assert {"mm/slab.c", "mm/slob.c"} <= files["6.1"] - files["6.12"] and "mm/vma.c" in files["6.12"] - files["6.1"]


# -- who calls whom ---------------------------------------------------------------------------------------------

def test_more_paths_end_in_the_page_allocator_than_elsewhere() -> None:
    assert ch02.last_files("all").most_common(1)[0][0] == "mm/page_alloc.c"
    edges = ch02.call_edges("all")
    assert not any(caller == callee for caller, callee in edges)
    called = {callee for _, callee in edges}
    assert "mm/page_alloc.c" in called and all(file.endswith(".c") for file in called)


def test_all_workloads_together_are_the_sum_of_each() -> None:
    each = [ch02.call_edges(name) for name in WORKLOADS]
    assert sum(sum(edges.values()) for edges in each) == sum(ch02.call_edges("all").values())


# -- the boot command -------------------------------------------------------------------------------------------

def states(*without: str, static: bool = True) -> dict[str, str]:
    return {stage.name: stage.state for stage in ch02.outcome(FLAGS.keys() - set(without), 256, static)}


def test_the_whole_command_boots_and_each_flag_left_out_breaks_its_own_stage() -> None:
    assert set(states().values()) == {"ok", "wait"}
    assert states("initrd")["first program"] == "bad" and states("initrd")["kernel"] == "ok"
    assert states(static=False)["first program"] == "bad"
    assert states("console")["console"] == states("nographic")["console"] == "quiet"
    assert states("nokaslr")["breakpoint"] == "bad" and states("nokaslr")["first program"] == "ok"
    assert states("stub")["debugger"] == "bad" and states("stub")["kernel"] == "never"
    assert states("stub", "halt")["kernel"] == "ok" and states("stub", "halt")["breakpoint"] == "never"
    assert states("kernel")["kernel"] == "bad"


def test_the_memory_is_what_the_simulated_machine_finds() -> None:
    found = [ch02.managed_kib(mib) for mib in (64, 128, 256)]
    assert found == sorted(found) and all(0.7 < kib / 1024 / mib < 1 for kib, mib in zip(found, (64, 128, 256), strict=True))
    text = next(stage.text for stage in ch02.outcome(FLAGS.keys() - {"memory"}, 256, True) if stage.name == "kernel")
    assert "of 128 MiB" in text


# -- the reader's kernel ----------------------------------------------------------------------------------------

def test_the_recorded_kernel_has_no_do_anonymous_page_and_a_do_wp_page() -> None:
    own = ch02.own_kernel("recording", GRAPHS.parent)
    assert not own.live and own.problems and own.events == 540
    assert [name in own.functions for name in ("handle_mm_fault", "do_anonymous_page", "handle_pte_fault", "do_wp_page")] \
        == [True, False, False, True]
    assert "vmacache_find" in own.functions and "lock_vma_under_rcu" not in own.functions


def test_the_readers_kernel_is_read_with_and_without_privilege(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kallsyms").write_text("0000000000000000 T handle_mm_fault\n0000000000000000 t do_wp_page.part.0\n"
                                            "0000000000000000 d some_data\n0000000000000000 t other [module]\n")
    own = ch02.own_kernel(tmp_path, GRAPHS.parent)
    assert own.live and own.addresses_hidden and own.functions == {"handle_mm_fault", "do_wp_page"} and len(own.problems) == 2
    assert "all zero" in own.text() and "yes handle_mm_fault" in own.text()
    tracing = tmp_path / "sys/kernel/tracing"
    tracing.mkdir(parents=True)
    for name, text in (("available_tracers", "function nop\n"), ("available_events", "kmem:kfree\n"),
                       ("available_filter_functions", "handle_mm_fault\nx [module]\n")):
        (tracing / name).write_text(text)
    own = ch02.own_kernel(tmp_path, GRAPHS.parent)
    assert own.tracers == ["function", "nop"] and own.events == 1 and own.functions == {"handle_mm_fault"} and not own.problems


def test_the_script_takes_a_name_and_nothing_else() -> None:
    assert "echo handle_mm_fault > set_graph_function" in ch02.record_script()
    with pytest.raises(ValueError, match="no function"):
        ch02.record_script("x; reboot")
