"""Traces as JSON that ui.perfetto.dev and chrome://tracing open: a slice for each call, an instant for each event.

The model has no durations, so a step is one microsecond: the order is meant, and what lies inside what, never the length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from mmsim.ftrace.graph import Call, FunctionGraph
from mmsim.ftrace.text import event_text
from mmsim.trace import Event

__all__ = ["chrome_trace"]


def _begin(name: str, phase: str, ts: int, cpu: int, pid: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "ph": phase, "ts": ts, "pid": pid, "tid": cpu, **more}


def _steps(what: Iterable[Call | Event], cpu: int, pid: int, clock: Iterator[int]) -> Iterator[dict[str, Any]]:
    for one in what:
        if isinstance(one, Event):
            yield _begin(one.name, "i", next(clock), cpu, pid, s="t", args={"text": event_text(one)})
        else:
            yield _begin(one.function.name, "B", next(clock), cpu, pid, cat=one.function.file, args={"file": one.function.file})
            yield from _steps(one.inner, cpu, pid, clock)
            yield _begin(one.function.name, "E", next(clock), cpu, pid)


def chrome_trace(source: FunctionGraph | Iterable[Event], *, pid: int = 1) -> str:
    """The JSON of a function graph or of plain events (whose times are the machine's).

    >>> import json
    >>> print(json.loads(chrome_trace([Event(5000, 0, "kmem:mm_page_free", {"pfn": 1, "order": 0})]))["traceEvents"][0]["ts"])
    5.0
    """
    if isinstance(source, FunctionGraph):
        steps = list(_steps(source.roots, source.cpu, pid, iter(range(1 << 62))))
        note = "1 us is one step: the model has no durations"
    else:
        steps = [_begin(event.name, "i", event.ns / 1000, event.cpu, pid, s="t", args={"text": event_text(event)})  # type: ignore[arg-type]
                 for event in source]
        note = "times are the simulated machine's"
    return json.dumps({"traceEvents": steps, "displayTimeUnit": "ns", "otherData": {"clock": note}}, separators=(",", ":"))
