"""Traces as text, as tracefs prints them: events in ``trace``, calls in the format of ``function_graph``.

No durations: the model's clock does not know how long a function takes, and the kernel can leave that column out too
(``options/funcgraph-duration``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmsim.constants import SIZEOF_STRUCT_PAGE
from mmsim.ftrace.graph import Call, FunctionGraph
from mmsim.kernel.layout import VMEMMAP_BASE
from mmsim.trace import Event

__all__ = ["event_text", "function_graph_text", "trace_text"]

_TRACE_HEADER = """\
# tracer: nop
#
# entries-in-buffer/entries-written: {kept}/{written}   #P:{cpus}
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""
_GRAPH_HEADER = """\
# CPU               FUNCTION CALLS
# |                 |   |   |   |
"""


def _page(fields: Mapping[str, Any]) -> str:
    """The address of struct page and the PFN; a real kernel hashes the address unless told not to."""
    pfn = fields["pfn"]
    page = 0 if pfn < 0 else VMEMMAP_BASE + pfn * SIZEOF_STRUCT_PAGE
    return f"page={page:016x} pfn=0x{max(pfn, 0):x}"


_FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "kmem:mm_page_alloc": lambda f: (f"{_page(f)} order={f['order']} migratetype={f['migratetype']} "
                                     f"gfp_flags={f['gfp_flags']}"),
    "kmem:mm_page_free": lambda f: f"{_page(f)} order={f['order']}",
    "kmem:mm_page_free_batched": lambda f: f"{_page(f)} order=0",
    "kmem:mm_page_pcpu_drain": lambda f: f"{_page(f)} order={f['order']} migratetype={f['migratetype']}",
    "exceptions:page_fault_user": lambda f: f"address=0x{f['address']:x} ip=0x{f.get('ip', 0):x} error_code=0x{f['error_code']:x}",
    "exceptions:page_fault_kernel": lambda f: f"address=0x{f['address']:x} ip=0x{f.get('ip', 0):x} error_code=0x{f['error_code']:x}",
}


def event_text(event: Event) -> str:
    """The event's name and fields as its tracepoint prints them (5.17: include/trace/events/, TP_printk).

    An event whose format is not known here, or that only the model has, is printed as ``name: field=value``.
    """
    form = _FORMATS.get(event.name)
    fields = form(event.fields) if form else " ".join(f"{key}={value}" for key, value in event.fields.items())
    return f"{event.name.partition(':')[2]}: {fields}"


def trace_text(events: Iterable[Event], *, comm: str = "swapper", pid: int = 0, cpus: int = 1, written: int | None = None
               ) -> Iterator[str]:
    """The lines of /sys/kernel/tracing/trace for ``events``, header first; ``written`` counts those that were lost too.

    Lines come one by one, so that a million of them need no memory. 5.17: kernel/trace/trace_output.c,
    trace_print_context(); kernel/trace/trace.c, print_func_help_header_irq().
    """
    known = list(events)
    header = _TRACE_HEADER.format(kept=len(known), written=len(known) if written is None else written, cpus=cpus)
    yield from header.splitlines(keepends=True)
    for event in known:
        seconds, rest = divmod(event.ns, 1_000_000_000)
        yield f"{comm[:16]:>16}-{pid:<7d} [{event.cpu:03d}] ..... {seconds:5d}.{rest // 1000:06d}: {event_text(event)}\n"


def function_graph_text(graph: FunctionGraph, header: bool = True) -> str:
    """The graph as ``function_graph`` prints it without durations (5.17: print_graph_entry_leaf(), print_graph_comment()).

    >>> from mmsim.reference import toy16
    >>> machine = toy16()
    >>> with FunctionGraph(machine.trace, max_depth=1) as graph:
    ...     pfn = machine.alloc_pages()
    >>> print(function_graph_text(graph), end="")
    # CPU               FUNCTION CALLS
    # |                 |   |   |   |
     0) alloc_pages();
    """
    lines = [_GRAPH_HEADER] if header else []

    def write(one: Call | Event, depth: int) -> None:
        place = f" {graph.cpu}) {'  ' * depth}"
        if isinstance(one, Event):
            lines.append(f"{place}/* {event_text(one)} */\n")
        elif not one.inner:
            lines.append(f"{place}{one.function.name}();\n")
        else:
            lines.append(f"{place}{one.function.name}() {{\n")
            for inner in one.inner:
                write(inner, depth + 1)
            lines.append(f"{place}}}\n")

    for root in graph.roots:
        write(root, 0)
    return "".join(lines)
