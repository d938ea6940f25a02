"""The files of /sys/kernel/tracing by which one steers the tracers, for the simulated machine.

    >>> from mmsim.reference import toy16
    >>> machine = toy16()
    >>> tracing = TraceFs(machine.trace)
    >>> tracing["current_tracer"] = "function_graph"
    >>> tracing["set_graph_function"] = "get_page_*"
    >>> tracing["max_graph_depth"] = "1"
    >>> with tracing:
    ...     pfn = machine.alloc_pages()
    >>> print(tracing["trace"], end="")
    # CPU               FUNCTION CALLS
    # |                 |   |   |   |
     0) get_page_from_freelist();

5.17: kernel/trace/trace.c, tracing_set_tracer(); kernel/trace/ring_buffer.c; kernel/trace/trace_events.c. Left out: the ring is
measured in entries, not in pages (``buffer_entries`` stands for ``buffer_size_kb``), there is one for all CPUs, and tracing by PID.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from inspect import isclass, isfunction
from typing import Any

from mmsim.errors import Errno
from mmsim.ftrace.event_filter import event_filter
from mmsim.ftrace.graph import Call, FunctionGraph
from mmsim.ftrace.hidden import HIDDEN
from mmsim.ftrace.kfunc import kernel_function
from mmsim.ftrace.text import event_text, trace_text
from mmsim.trace import Event, Trace

__all__ = ["EVENT_FIELDS", "TRACERS", "TraceFs", "traceable_functions"]

TRACERS = ("function_graph", "function", "nop")
#: The events that can be enabled and filtered, and their fields.
EVENT_FIELDS: dict[str, frozenset[str]] = {
    "kmem/mm_page_alloc": frozenset({"pfn", "order", "migratetype", "gfp_flags"}),
    "kmem/mm_page_alloc_zone_locked": frozenset({"pfn", "order", "migratetype"}),
    "kmem/mm_page_free": frozenset({"pfn", "order"}),
    "kmem/mm_page_free_batched": frozenset({"pfn"}),
    "kmem/mm_page_pcpu_drain": frozenset({"pfn", "order", "migratetype"}),
    "kmem/rss_stat": frozenset({"mm_id", "curr", "member", "size"}),
    "exceptions/page_fault_user": frozenset({"address", "ip", "error_code"}),
    "exceptions/page_fault_kernel": frozenset({"address", "ip", "error_code"}),
}
_GRAPH_HEADER = "# CPU               FUNCTION CALLS\n# |                 |   |   |   |\n"


@cache
def traceable_functions() -> frozenset[str]:
    """The kernel's functions that something in mmsim stands for and that the recorded 5.17.0 could trace."""
    found = set()
    for name, module in list(sys.modules.items()):
        if not name.startswith("mmsim."):
            continue
        for thing in list(vars(module).values()):
            members = list(vars(thing).values()) if isclass(thing) else [thing]
            for member in members:
                function = kernel_function(member.__code__) if isfunction(member) else None
                if function is not None:
                    found.add(function.name)
    return frozenset(found - HIDDEN)


class TraceFs:
    """The control files as a mapping from name to text. While a ``with`` block runs, ``tracing_on`` is 1.

    Raise ENOENT for a file that does not exist, EACCES for one that cannot be written, EINVAL for text that it does not take.
    """

    def __init__(self, trace: Trace):
        self._machine = trace
        self._files = {"current_tracer": "nop", "set_graph_function": "", "max_graph_depth": "0", "buffer_entries": "10000",
                       "options/overwrite": "1", "tracing_on": "0"}
        self._events: dict[str, bool] = dict.fromkeys(EVENT_FIELDS, False)
        self._filters: dict[str, tuple[str, Callable[..., bool]]] = {}
        self._graph: FunctionGraph | None = None
        #: (depth, text of a line for function_graph, call or event, the caller's name), oldest first.
        self._ring: list[tuple[int, str, Call | Event, str]] = []
        self.overrun = self.dropped = 0

    def __getitem__(self, name: str) -> str:
        match name:
            case "available_tracers":
                return " ".join(TRACERS)
            case "available_filter_functions":
                return "\n".join(sorted(traceable_functions()))
            case "trace":
                return self._text()
            case "stats":
                return f"entries: {len(self._ring)}\noverrun: {self.overrun}\ndropped events: {self.dropped}\n"
            case "set_graph_function":
                return self._files[name] or "#### all functions enabled ####"
        if name in self._files:
            return self._files[name]
        for event in self._matching(name):
            return str(int(self._events[event])) if name.endswith("/enable") else self._filters.get(event, ("none",))[0]
        raise Errno("ENOENT", name)

    def _matching(self, name: str) -> list[str]:
        """The events that a file under events/ is about: one, or all of a system."""
        if not (name.startswith("events/") and name.endswith(("/enable", "/filter"))):
            return []
        what = name.removeprefix("events/").rpartition("/")[0]
        return [event for event in EVENT_FIELDS if event == what or event.partition("/")[0] == what]

    def __setitem__(self, name: str, value: object) -> None:
        text = str(value).strip()
        match name:
            case "current_tracer":
                if text not in TRACERS:
                    raise Errno("EINVAL", f"there is no tracer {text!r}: {' '.join(TRACERS)}")
            case "set_graph_function":
                for pattern in text.split():
                    if not any(fnmatchcase(function, pattern) for function in traceable_functions()):
                        raise Errno("EINVAL", f"no function that can be traced is named {pattern}")
            case "max_graph_depth" | "buffer_entries":
                if not text.isascii() or not text.isdigit() or (name == "buffer_entries" and int(text) < 1):
                    raise Errno("EINVAL", f"{name}: {text!r} is not such a number")
            case "options/overwrite" | "tracing_on":
                if text not in ("0", "1"):
                    raise Errno("EINVAL", f"{name} is 0 or 1")
            case "trace":
                # Writing to it empties the ring, whatever is written.
                self._ring, self.overrun, self.dropped = [], 0, 0
                return
            case "available_tracers" | "available_filter_functions" | "stats":
                raise Errno("EACCES", f"{name} can only be read")
            case _:
                self._set_event(name, text)
                return
        self._files[name] = text

    def _set_event(self, name: str, text: str) -> None:
        events = self._matching(name)
        if not events:
            raise Errno("ENOENT", name)
        if name.endswith("/enable"):
            if text not in ("0", "1"):
                raise Errno("EINVAL", f"{name} is 0 or 1")
            self._events.update(dict.fromkeys(events, text == "1"))
        elif text == "0":
            for event in events:
                self._filters.pop(event, None)
        else:
            # All are read before any is set.
            self._filters |= {event: (text, event_filter(text, EVENT_FIELDS[event])) for event in events}

    def __enter__(self) -> TraceFs:
        enabled = tuple(event.replace("/", ":") for event, on in self._events.items() if on)
        functions = tuple(self._files["set_graph_function"].split())
        how: dict[str, Any] = {"hide": HIDDEN, "events": enabled, "limit": 1 << 40}
        match self._files["current_tracer"]:
            case "function_graph":
                how |= {"graph_function": functions, "max_depth": int(self._files["max_graph_depth"])}
            case "nop":
                how |= {"leave_out": frozenset(), "hide": _All()}
        self._files["tracing_on"] = "1"
        self._graph = FunctionGraph(self._machine, **how)
        self._graph.__enter__()
        return self

    def __exit__(self, *what: object) -> None:
        graph, self._graph = self._graph, None
        if graph is None:
            return
        graph.__exit__(*what)
        self._files["tracing_on"] = "0"
        room = int(self._files["buffer_entries"])
        for entry in self._entries(graph.roots, 0, "", graph.cpu):
            if len(self._ring) >= room:
                if self._files["options/overwrite"] == "0":
                    self.dropped += 1
                    continue
                del self._ring[0]
                self.overrun += 1
            self._ring.append(entry)

    def _entries(self, what: list[Call | Event], depth: int, caller: str, cpu: int) -> Iterator[tuple[int, str, Call | Event, str]]:
        for one in what:
            place = f" {cpu}) {'  ' * depth}"
            if isinstance(one, Event):
                wanted = self._filters.get(one.name.replace(":", "/"))
                if wanted is None or wanted[1](one.fields):
                    yield depth, f"{place}/* {event_text(one)} */", one, caller
                continue
            name = one.function.name
            inner = list(self._entries(one.inner, depth + 1, name, cpu))
            yield depth, f"{place}{name}() {{" if inner else f"{place}{name}();", one, caller
            yield from inner
            if inner and self._files["current_tracer"] == "function_graph":
                yield depth, f"{place}}}", one, caller

    def _text(self) -> str:
        tracer = self._files["current_tracer"]
        if tracer == "function_graph":
            return _GRAPH_HEADER + "".join(f"{line}\n" for _, line, _, _ in self._ring)
        events = [one for _, _, one, _ in self._ring if isinstance(one, Event)]
        if tracer == "nop":
            return "".join(trace_text(events, written=len(events) + self.overrun))
        lines = [f"/* {event_text(one)} */" if isinstance(one, Event) else f"{one.function.name} <-{caller or '?'}"
                 for _, _, one, caller in self._ring]
        return "# tracer: function\n" + "".join(f"{line}\n" for line in lines)


class _All(frozenset[str]):
    """A set that everything is in: no function is recorded."""

    def __contains__(self, _: object) -> bool:
        return True
