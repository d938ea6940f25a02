"""The control files of the tracers: what they take, what they refuse, and what then stands in the trace."""

from __future__ import annotations

import pytest

from mmsim.constants import GFP_KERNEL
from mmsim.errors import Errno
from mmsim.ftrace.event_filter import event_filter
from mmsim.ftrace.tracefs import EVENT_FIELDS, TraceFs, traceable_functions
from mmsim.machine import Machine
from mmsim.reference import toy16

FIELDS = EVENT_FIELDS["kmem/mm_page_alloc"]


def traced(**files: object) -> tuple[Machine, TraceFs]:
    machine = toy16()
    tracing = TraceFs(machine.trace)
    for name, value in files.items():
        tracing[name] = value
    return machine, tracing


def test_a_graph_function_and_a_depth_cut_out_what_is_asked_for() -> None:
    machine, tracing = traced(current_tracer="function_graph", set_graph_function="__alloc_pages", max_graph_depth=2)
    with tracing:
        machine.alloc_pages()
    assert tracing["trace"].splitlines()[2:] == [" 0) __alloc_pages() {", " 0)   get_page_from_freelist();", " 0) }"]
    assert tracing["tracing_on"] == "0"


def test_the_function_tracer_names_the_caller() -> None:
    machine, tracing = traced(current_tracer="function")
    with tracing:
        machine.alloc_pages()
    assert "get_page_from_freelist <-__alloc_pages" in tracing["trace"].splitlines()


@pytest.mark.parametrize(("name", "value", "error"), [
    ("current_tracer", "blk", "EINVAL"), ("set_graph_function", "no_such_function", "EINVAL"), ("set_graph_function", "do_user_addr_fault",
     "EINVAL"), ("max_graph_depth", "-1", "EINVAL"), ("buffer_entries", "0", "EINVAL"), ("options/overwrite", "2", "EINVAL"),
    ("available_tracers", "nop", "EACCES"), ("events/kmem/nothing/enable", "1", "ENOENT"), ("no_file", "1", "ENOENT"),
    ("events/kmem/mm_page_alloc/enable", "yes", "EINVAL"), ("events/kmem/mm_page_alloc/filter", "size > 1", "EINVAL"),
])
def test_what_tracefs_does_not_take_changes_nothing(name: str, value: str, error: str) -> None:
    _, tracing = traced(set_graph_function="__alloc_*")
    before = {file: tracing[file] for file in ("current_tracer", "set_graph_function", "max_graph_depth", "buffer_entries")}
    with pytest.raises(Errno) as refused:
        tracing[name] = value
    assert refused.value.name == error
    assert before == {file: tracing[file] for file in before}


def test_unknown_files_cannot_be_read() -> None:
    with pytest.raises(Errno, match="ENOENT"):
        traced()[1]["events/kmem/nothing/enable"]


def test_inlined_functions_are_not_in_the_list_of_what_can_be_traced() -> None:
    toy16()
    assert "handle_mm_fault" in traceable_functions() and not {"do_anonymous_page", "handle_pte_fault", "rmqueue"} & traceable_functions()


def test_a_filter_keeps_the_events_that_pass() -> None:
    machine, tracing = traced()
    tracing["events/kmem/mm_page_alloc/enable"] = 1
    tracing["events/kmem/mm_page_alloc/filter"] = "order > 0 && migratetype == 0"
    with tracing:
        for order in (0, 1, 0, 3):
            machine.alloc_pages(GFP_KERNEL, order)
    kept = [line for line in tracing["trace"].splitlines() if "mm_page_alloc" in line]
    assert ["order=1" in kept[0], "order=3" in kept[1], len(kept)] == [True, True, 2]
    tracing["events/kmem/mm_page_alloc/filter"] = "0"
    assert tracing["events/kmem/mm_page_alloc/filter"] == "none"


def test_a_whole_system_is_enabled_at_once() -> None:
    _, tracing = traced()
    tracing["events/kmem/enable"] = "1"
    assert tracing["events/kmem/mm_page_free/enable"] == "1" and tracing["events/exceptions/page_fault_user/enable"] == "0"


@pytest.mark.parametrize(("text", "passes"), [
    ("order==9", True), ("order != 9", False), ("order<=9 && order >= 9", True), ("order&8", True), ("order & 6", False),
    ("order < 9 || migratetype == 1", True), ("!(order == 9)", False), ("order==9 && migratetype==0 || migratetype==1", True),
    ("order==9 && (migratetype==0 || order==1)", False), ('gfp_flags ~ "*MOVABLE*"', True), ("gfp_flags == GFP_KERNEL", False),
])
def test_filter_expressions(text: str, passes: bool) -> None:
    assert event_filter(text, FIELDS)({"order": 9, "migratetype": 1, "gfp_flags": "GFP_HIGHUSER_MOVABLE"}) is passes


@pytest.mark.parametrize("text", ["", "order", "order ==", "order == 1 &&", "(order == 1", "order == 1)", "order ~ 3", "gfp_flags < x",
                                  "order = 1", "order == 1 migratetype == 2", "(" * 60 + "order == 1"])
def test_a_filter_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Errno, match="EINVAL"):
        event_filter(text, FIELDS)


def test_a_full_ring_forgets_the_oldest_or_refuses_the_newest() -> None:
    def last(overwrite: int) -> tuple[list[str], int, int]:
        machine, tracing = traced(current_tracer="function", buffer_entries=3)
        tracing["options/overwrite"] = overwrite
        with tracing:
            machine.alloc_pages()
            machine.alloc_pages()
        return tracing["trace"].splitlines()[1:], tracing.overrun, tracing.dropped
    new, overrun, dropped = last(1)
    old, overrun_, dropped_ = last(0)
    assert len(new) == len(old) == 3 and overrun == dropped_ > 0 and dropped == overrun_ == 0
    assert old[0].endswith("<-?")


def test_tracing_changes_nothing_that_the_machine_does() -> None:
    plain = toy16()
    machine, tracing = traced(current_tracer="function_graph")
    tracing["events/kmem/enable"] = 1
    expected = [plain.alloc_pages(GFP_KERNEL, order) for order in (0, 3, 0)]
    with tracing:
        assert [machine.alloc_pages(GFP_KERNEL, order) for order in (0, 3, 0)] == expected
    assert machine.proc("buddyinfo") == plain.proc("buddyinfo") and not machine.trace.enabled
    tracing["trace"] = ""
    assert tracing["stats"] == "entries: 0\noverrun: 0\ndropped events: 0\n"
