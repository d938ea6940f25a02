"""Tracepoints: every step of the machine that somebody may want to watch.

An event has the kernel's own name and fields (``kmem:mm_page_alloc`` with ``pfn``, ``order``, ``gfp_flags``…); events that exist
in the model only have the system ``mmsim`` or ``boot``. Nothing is recorded until somebody asks, and until then an event costs one
test, provided that the caller writes it so::

    if trace.enabled:
        trace.emit("kmem:mm_page_free", pfn=pfn, order=order)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from mmsim.clock import Clock

__all__ = ["Event", "Trace"]


@dataclass(frozen=True, slots=True)
class Event:
    """One hit of a tracepoint: ``ns`` since boot, the CPU, ``system:name`` and the fields."""

    ns: int
    cpu: int
    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def __str__(self) -> str:
        """As a line of /sys/kernel/tracing/trace, without task and flags."""
        fields = " ".join(f"{key}={value}" for key, value in self.fields.items())
        return f"[{self.cpu:03d}] {self.ns // 1_000_000_000:5d}.{self.ns // 1000 % 1_000_000:06d}: {self.name.partition(':')[2]}: {fields}"


class Trace:
    """The machine's tracing: a buffer of events and subscribers to them.

    >>> trace = Trace()
    >>> with trace.recording("kmem:*") as events:
    ...     trace.emit("kmem:mm_page_free", pfn=5, order=0)
    ...     trace.emit("mmsim:step", name="boot")
    >>> [event["pfn"] for event in events]
    [5]
    """

    def __init__(self, clock: Clock | None = None):
        self.clock = clock or Clock()
        self.cpu = 0
        #: True while anybody listens. Mechanisms test it before they gather an event's fields.
        self.enabled = False
        self._listeners: list[tuple[tuple[str, ...], Callable[[Event], object]]] = []

    def emit(self, name: str, /, **fields: Any) -> None:
        """Tell every listener whose filter matches. Cost: one pattern match a listener."""
        event = None
        for patterns, listener in tuple(self._listeners):
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                if event is None:
                    event = Event(self.clock.ns, self.cpu, name, fields)
                listener(event)

    def subscribe(self, listener: Callable[[Event], object], *patterns: str) -> Callable[[], None]:
        """Call ``listener(event)`` for each event that matches one of ``patterns`` (shell wildcards; none means all).

        Return a function that ends the subscription; to call it twice does no harm.
        """
        entry = (patterns or ("*",), listener)
        self._listeners.append(entry)
        self.enabled = True

        def unsubscribe() -> None:
            # By identity: two subscriptions of one listener are two.
            self._listeners = [other for other in self._listeners if other is not entry]
            self.enabled = bool(self._listeners)

        return unsubscribe

    def recording(self, *patterns: str, capacity: int | None = None) -> "Recording":
        """Record matching events while a ``with`` block runs: all of them, or the newest ``capacity``."""
        return Recording(self, patterns, capacity)


class Recording:
    """The events of one ``with`` block. ``dropped`` counts those that the ring lost."""

    def __init__(self, trace: Trace, patterns: Iterable[str], capacity: int | None):
        if capacity is not None and capacity < 1:
            raise ValueError(f"a ring of {capacity} events holds nothing")
        self._trace, self._patterns = trace, tuple(patterns)
        self._events: deque[Event] = deque(maxlen=capacity)
        self.dropped = 0
        self._stop: Callable[[], None] | None = None

    def _record(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self.dropped += 1
        self._events.append(event)

    def __enter__(self) -> "Recording":
        self._stop = self._trace.subscribe(self._record, *self._patterns)
        return self

    def __exit__(self, *_: object) -> None:
        if self._stop:
            self._stop()

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: int) -> Event:
        return self._events[index]
