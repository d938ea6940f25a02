"""The function tracer: what it hears, what it leaves alone, and what it prints."""

from __future__ import annotations

import json
import sys

import pytest

from mmsim.constants import GFP_KERNEL
from mmsim.ftrace.graph import Call, FunctionGraph
from mmsim.ftrace.kfunc import kernel_function_of
from mmsim.ftrace.perfetto import chrome_trace
from mmsim.ftrace.text import event_text, function_graph_text, trace_text
from mmsim.reference import toy16
from mmsim.trace import Event


def test_an_allocation_goes_from_alloc_pages_down_to_rmqueue() -> None:
    machine = toy16()
    with FunctionGraph(machine.trace) as graph:
        machine.alloc_pages()
    names = graph.names()
    wanted = iter(names)
    assert all(name in wanted for name in ("__alloc_pages", "prepare_alloc_pages", "get_page_from_freelist", "rmqueue", "prep_new_page"))
    assert {call.function.file for call in graph.walk() if call.function.name == "rmqueue"} == {"mm/page_alloc.c"}


def test_a_traced_machine_does_what_an_untraced_one_does() -> None:
    plain, traced = toy16(), toy16()
    expected = [plain.alloc_pages(GFP_KERNEL, order) for order in (0, 3, 0, 2)]
    with FunctionGraph(traced.trace, events=("kmem:*",)):
        got = [traced.alloc_pages(GFP_KERNEL, order) for order in (0, 3, 0, 2)]
    assert got == expected
    assert traced.proc("buddyinfo") == plain.proc("buddyinfo")
    traced.check()


def test_the_profiler_hook_is_given_back_even_after_an_exception() -> None:
    machine = toy16()
    before = sys.getprofile()
    with pytest.raises(ZeroDivisionError), FunctionGraph(machine.trace):
        machine.alloc_pages()
        1 / 0  # noqa: B018
    assert sys.getprofile() is before
    assert not machine.trace.enabled


def test_calls_are_balanced_and_deeper_ones_lie_inside() -> None:
    machine = toy16()
    with FunctionGraph(machine.trace) as graph:
        pfn = machine.alloc_pages(GFP_KERNEL, 4)
        assert pfn is not None
        machine.free_pages(pfn, 4)

    def depths(call: Call) -> None:
        for one in call.inner:
            if isinstance(one, Call):
                assert one.depth == call.depth + 1
                depths(one)

    for root in graph.roots:
        assert isinstance(root, Call) and root.depth == 0
        depths(root)


def test_max_depth_cuts_off_what_lies_deeper() -> None:
    machine = toy16()
    with FunctionGraph(machine.trace, max_depth=2) as graph:
        machine.alloc_pages()
    assert {call.depth for call in graph.walk()} == {0, 1}


def test_set_graph_function_keeps_what_happens_inside_only() -> None:
    machine = toy16()
    with FunctionGraph(machine.trace, graph_function=("get_page_from_*",), events=("kmem:mm_page_alloc",)) as graph:
        machine.alloc_pages()
    assert [call.function.name for call in graph.roots if isinstance(call, Call)] == ["get_page_from_freelist"]
    assert all(isinstance(one, Call) for one in graph.roots)          # the event comes after that function


def test_a_hidden_function_leaves_what_it_calls_in_its_place() -> None:
    machine, other = toy16(), toy16()
    with FunctionGraph(machine.trace) as whole:
        machine.alloc_pages()
    with FunctionGraph(other.trace, hide=frozenset({"get_page_from_freelist"})) as hidden:
        other.alloc_pages()
    assert hidden.names() == [name for name in whole.names() if name != "get_page_from_freelist"]


def test_a_full_buffer_counts_what_it_could_not_keep() -> None:
    machine = toy16()
    with FunctionGraph(machine.trace, limit=3) as graph:
        machine.alloc_pages()
    assert len(graph.names()) == 3 and graph.overrun > 0


@pytest.mark.parametrize("options", [{"max_depth": -1}, {"limit": 0}])
def test_a_graph_that_could_keep_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="records nothing"):
        FunctionGraph(toy16().trace, **options)  # type: ignore[arg-type]


def test_the_text_is_balanced_and_events_stand_inside_their_function() -> None:
    machine = toy16()
    with FunctionGraph(machine.trace, events=("kmem:mm_page_alloc",)) as graph:
        machine.alloc_pages()
    text = function_graph_text(graph)
    assert text.count("{") == text.count("}")
    event = next(line for line in text.splitlines() if "mm_page_alloc:" in line)
    assert event.startswith(" 0)     /* mm_page_alloc: page=ffffea") and event.endswith("order=0 migratetype=0 gfp_flags=GFP_KERNEL */")


def test_the_json_for_perfetto_has_an_end_for_each_begin() -> None:
    machine = toy16()
    with FunctionGraph(machine.trace, events=("kmem:*",)) as graph:
        machine.alloc_pages()
    steps = json.loads(chrome_trace(graph))["traceEvents"]
    assert [step["ts"] for step in steps] == list(range(len(steps)))
    open_calls: list[str] = []
    for step in steps:
        if step["ph"] == "B":
            open_calls.append(step["name"])
        elif step["ph"] == "E":
            assert open_calls.pop() == step["name"]
    assert not open_calls and any(step["ph"] == "i" for step in steps)


def test_the_trace_file_has_the_header_and_the_columns_of_5_17() -> None:
    lines = list(trace_text([Event(1_349_223_000, 0, "kmem:mm_page_alloc", {"pfn": 0x34F4, "order": 2, "migratetype": 0, "gfp_flags":
                             "GFP_KERNEL_ACCOUNT|__GFP_ZERO"})], comm="sh", pid=40))
    assert lines[2] == "# entries-in-buffer/entries-written: 1/1   #P:1\n"
    assert lines[-1] == ("              sh-40      [000] .....     1.349223: mm_page_alloc: page=ffffea00000d3d00 pfn=0x34f4 order=2 "
                         "migratetype=0 gfp_flags=GFP_KERNEL_ACCOUNT|__GFP_ZERO\n")


def test_an_event_without_a_known_format_prints_its_fields() -> None:
    assert event_text(Event(0, 0, "mmsim:vma_merge", {"case": 4, "start": 1})) == "vma_merge: case=4 start=1"


@pytest.mark.parametrize(("docstring", "expected"), [
    ("Do it (5.17: mm/mmap.c, __vma_adjust()).", ("__vma_adjust", "mm/mmap.c")),
    ("5.17: mm/a.c, first(); mm/b.c, adjust(). Left out: other().", ("adjust", "mm/b.c")),
    ("5.17: mm/a.c, one(), two().", ("one", "mm/a.c")),
    ("5.17: mm/a.c, struct thing.", None),
    ("What it is called elsewhere: other().", None),
])
def test_the_citation_in_a_docstring_names_the_function(docstring: str, expected: tuple[str, str] | None) -> None:
    found = kernel_function_of("adjust", docstring)
    assert found == expected
