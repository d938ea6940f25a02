"""Recorded function graphs and the model's, read line by line and laid beside each other."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmsim import ftrace
from mmsim.ftrace.graph import Call, FunctionGraph
from mmsim.ftrace.hidden import HIDDEN
from mmsim.ftrace.kfunc import ELSEWHERE, INLINED_AT_HOME
from mmsim.ftrace.text import event_text
from mmsim.replay.graphs import graph_of
from mmsim.trace import Event

__all__ = ["HELPERS", "Line", "beside", "model_lines", "read_graph", "recorded_text", "shipped_events"]

DATA = Path(ftrace.__file__).parents[1] / "data" / "linux-5.17-graphs.jsonl.gz"
_LINE = re.compile(r"\s*\d+\)[^|]*\|(?P<indent>\s*)(?P<what>\S.*)$")
_CALL = re.compile(r"(?P<name>\w+)[\w.]*\(\)(?P<open> \{|;)")

#: Helpers of a line or two that one can do without to follow the path.
HELPERS = frozenset("""
    IS_ALIGNED PageAnon TestSetPageMlocked __get_locked_pte __insert_vm_struct __pte_needs_invert __zone_watermark_unusable_free
    accountable_mapping add_mm_counter alloc_flags_nofragment anon_vma_chain_link find_vma_intersection find_vma_links
    first_zones_zonelist flush_tlb_range format_flags gfp_migratetype gfp_to_alloc_flags_cma gfp_zone is_data_mapping is_exec_mapping
    is_mergeable_anon_vma is_mergeable_vma is_stack_mapping linear_page_index maybe_mkwrite mm_counter p4d_alloc page_zone
    prepare_alloc_pages pte_alloc_map pte_modify pte_pfn put_page round_down round_up security_vm_enough_memory_mm
    shmem_mapping vma_is_accessible vma_is_anonymous vma_lookup vma_pages vm_start_gap zone_watermark_fast
""".split())


@dataclass(slots=True)
class Line:
    """A line of a graph: a call or an event, how deep, and the index behind the last line that lies inside.

    ``inlined``: the recorded kernel's tracer cannot show it. ``twin``: the index of the same call in the other graph, or None.
    """

    depth: int
    name: str
    end: int = 0
    event: bool = False
    file: str = ""
    inlined: bool = False
    times: int = 1
    twin: int | None = None


@cache
def _shipped() -> dict[str, str]:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return {record["event"]: record["text"] for record in map(json.loads, lines)}


def shipped_events() -> list[str]:
    """The events whose recorded graph comes with the package."""
    return list(_shipped())


def recorded_text(event: str) -> str:
    """The graph of one event as the recorded 5.17.0 printed it."""
    return _shipped()[event]


def _close(lines: list[Line]) -> list[Line]:
    """Say for each line where what is inside of it ends."""
    for number, line in enumerate(lines):
        end = number + 1
        while end < len(lines) and lines[end].depth > line.depth:
            end += 1
        line.end = end
    return lines


def read_graph(text: str) -> list[Line]:
    """The calls and events of a graph as ``function_graph`` prints it, with any columns before the bar."""
    lines = []
    for row in text.splitlines():
        if not (found := _LINE.match(row)):
            continue
        depth = len(found["indent"]) // 2 - 1
        if call := _CALL.match(found["what"]):
            lines.append(Line(depth, call["name"]))
        elif found["what"].startswith("/*"):
            lines.append(Line(depth, found["what"][2:-2].strip(), event=True))
    return _close(lines)


def _walk(what: list[Call | Event], depth: int, caller: str = "") -> Iterator[Line]:
    shapes: list[str] = []
    last: Line | None = None
    for one in what:
        if isinstance(one, Event):
            yield Line(depth, event_text(one), event=True)
            continue
        # A method that hands over to the function of its name is one call of the kernel's.
        if one.function.name in HELPERS or one.function.name == caller:
            yield from _walk(one.inner, depth, caller)
            continue
        inside = list(_walk(one.inner, depth + 1, one.function.name))
        shape = one.function.name + "/".join(line.name for line in inside)
        if last is not None and shapes and shapes[-1] == shape:
            last.times += 1
            continue
        shapes.append(shape)
        last = Line(depth, one.function.name, file=one.function.file)
        yield last
        yield from inside


def model_lines(event: str) -> list[Line]:
    """What the model runs through in this event, also what the compiler hides; equal neighbours stand once, with a count."""
    graph: FunctionGraph = graph_of(event, leave_out=ELSEWHERE.keys())
    lines = _close(list(_walk(graph.roots, 0)))
    path: list[Line] = []
    for line in lines:
        del path[line.depth:]
        outer = next((one for one in reversed(path) if not one.inlined), None)
        line.inlined = not line.event and (
            line.name in HIDDEN or line.name in INLINED_AT_HOME and outer is not None and outer.file == line.file)
        path.append(line)
    return lines


def _same_event(model: str, recorded: str) -> bool:
    """Page numbers and program counters differ from boot to boot."""
    drop = re.compile(r"(?:page|pfn|ip)=\S+ ?")
    return drop.sub("", model) == drop.sub("", recorded)


def beside(model: list[Line], recorded: list[Line]) -> None:
    """Give each of the model's lines that can be seen its twin in the recording: the first one, in order, of the same name."""
    at = 0
    for number, line in enumerate(model):
        if line.inlined:
            continue
        for place in range(at, len(recorded)):
            other = recorded[place]
            if other.event == line.event and (_same_event(line.name, other.name) if line.event else other.name == line.name):
                line.twin, other.twin, at = place, number, place + 1
                break
