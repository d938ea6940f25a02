"""Record a function graph: run something on the machine and see which functions of the kernel it went through.

The recorder listens to Python's own profiler hook, so the mechanism is not touched and runs as fast as ever while nobody
records. What it hears is what ran: a graph cannot name a function that was not called.

    >>> from mmsim.reference import toy16
    >>> machine = toy16()
    >>> with FunctionGraph(machine.trace) as graph:
    ...     pfn = machine.alloc_pages()
    >>> [call.function.name for call in graph.walk()][:2]
    ['alloc_pages', '__alloc_pages']
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import FrameType
from typing import Any

from mmsim.ftrace.kfunc import KernelFunction, kernel_function
from mmsim.trace import Event, Trace

__all__ = ["Call", "FunctionGraph"]


@dataclass(slots=True)
class Call:
    """One call: its function, how deep, and what happened inside, calls and events in their order."""

    function: KernelFunction
    depth: int
    inner: list[Call | Event] = field(default_factory=list)

    def walk(self) -> Iterator[Call]:
        """This call and all inside it, in the order in which they began."""
        yield self
        for one in self.inner:
            if isinstance(one, Call):
                yield from one.walk()


class FunctionGraph:
    """The calls of one ``with`` block. One at a time: it takes the profiler hook and gives it back.

    ``graph_function`` are shell patterns: only calls inside a matching one are kept (``set_graph_function``).
    ``max_depth`` cuts deeper calls off, 0 keeps all (``max_graph_depth``). ``events`` are patterns of tracepoints that are
    recorded among the calls. ``limit`` bounds the calls; what comes later is counted in ``overrun``.

    ``hide`` names functions whose place is taken by what they call, as the compiler's inlining does; ``hide_at_home`` those
    that are hidden only inside a function of their own file; ``leave_out`` those that go with all that they call.

    5.17: kernel/trace/trace_functions_graph.c, kernel/trace/ftrace.c.
    """

    def __init__(self, trace: Trace, *, events: tuple[str, ...] = (), graph_function: tuple[str, ...] = (), max_depth: int = 0,
                 hide: Set[str] = frozenset(), hide_at_home: Set[str] = frozenset(), leave_out: Set[str] = frozenset(),
                 limit: int = 100_000):
        if max_depth < 0 or limit < 1:
            raise ValueError(f"a graph of depth {max_depth} and {limit} calls records nothing")
        self.trace = trace
        self.cpu = trace.cpu
        self.roots: list[Call | Event] = []
        self.overrun = 0
        self._events, self._functions, self._max_depth = events, graph_function, max_depth
        self._hide, self._hide_at_home, self._leave_out = hide, hide_at_home, leave_out
        #: The function that is left out now, with all that it calls.
        self._muted: FrameType | None = None
        self._left = limit
        #: Frames of functions that are in the graph, innermost last.
        self._open: list[tuple[FrameType, Call]] = []
        self._stop: Callable[[], None] | None = None
        self._before: Any = None

    def __enter__(self) -> FunctionGraph:
        self.cpu = self.trace.cpu
        # Even for no events: while somebody listens, the mechanisms take no short cuts past what there is to see.
        self._stop = self.trace.subscribe(self._event, *(self._events or ("none",)))
        self._before = sys.getprofile()
        sys.setprofile(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)
        self._open.clear()
        if self._stop is not None:
            self._stop()

    def _hook(self, frame: FrameType, what: str, _: object) -> None:
        if self._muted is not None:
            if what == "return" and frame is self._muted:
                self._muted = None
        elif what == "call":
            function = kernel_function(frame.f_code)
            if function is not None and function.name in self._leave_out:
                self._muted = frame
                return
            if function is not None and function.name not in self._hide and self._wanted(function):
                self._begin(frame, function)
        elif what == "return" and self._open and self._open[-1][0] is frame:
            self._open.pop()

    def _wanted(self, function: KernelFunction) -> bool:
        if self._open:
            outer = self._open[-1][1]
            # A method that hands over to the function of the same name is one call of the kernel's.
            if outer.function == function and not outer.inner:
                return False
            if function.name in self._hide_at_home and outer.function.file == function.file:
                return False
        if self._max_depth and len(self._open) >= self._max_depth:
            return False
        return bool(self._open) or not self._functions or any(fnmatchcase(function.name, one) for one in self._functions)

    def _begin(self, frame: FrameType, function: KernelFunction) -> None:
        if not self._left:
            self.overrun += 1
            return
        self._left -= 1
        call = Call(function, len(self._open))
        self._inside.append(call)
        self._open.append((frame, call))

    def _event(self, event: Event) -> None:
        if self._muted is None and (self._open or not self._functions):
            self._inside.append(event)

    @property
    def _inside(self) -> list[Call | Event]:
        return self._open[-1][1].inner if self._open else self.roots

    def walk(self) -> Iterator[Call]:
        """All calls in the order in which they began."""
        for one in self.roots:
            if isinstance(one, Call):
                yield from one.walk()

    def names(self) -> list[str]:
        """The names of all calls in the order in which they began."""
        return [call.function.name for call in self.walk()]
