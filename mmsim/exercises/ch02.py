"""Chapter 2, Working with the kernel."""

from __future__ import annotations

from mmsim import constants as c
from mmsim.exercises.answers import Part
from mmsim.exercises.registry import exercise
from mmsim.figures.ch02.recorded import read_graph, recorded_text
from mmsim.figures.ch02.source_map import largest, lines_of
from mmsim.ftrace.tracefs import TraceFs
from mmsim.kernel.layout import VMEMMAP_BASE
from mmsim.machine import Machine
from mmsim.process.task import Process
from mmsim.reference import ref256, toy16
from mmsim.units import MIB

_AREA = 0x2000_0000_0000                # a slot of the PGD that nothing else uses


def _mapped() -> tuple[Machine, Process]:
    machine = ref256()
    process = machine.spawn("demo")
    process.mmap(_AREA, 8 * MIB, c.PROT_READ | c.PROT_WRITE, c.MAP_PRIVATE | c.MAP_ANONYMOUS | c.MAP_FIXED)
    return machine, process


@exercise(
    "2.2", "ex02-allocations", "Predict the allocations",
    Part("first", "in a new slot of the PGD", "pages"), Part("second", "2 MiB further on", "pages"),
    Part("third", "beside the first", "pages"),
    hints=("Which tables are there already?", "A new slot of the PGD lacks a PUD table, a PMD table and a PTE table."))
def predict_the_allocations() -> tuple[int, ...]:
    machine, process = _mapped()
    found = []
    for offset in (0, 2 * MIB, 4096):
        with machine.trace.recording("kmem:mm_page_alloc") as events:
            process.write(_AREA + offset, b"\1")
        found.append(len(events))
    return tuple(found)


@exercise(
    "2.5", "ex02-depth", "How deep",
    Part("depth", "least max_graph_depth"),
    hints=("The depths of the recording count from 1 for its outermost calls.", "Turn the figure's depth down until the call is gone."))
def how_deep() -> int:
    lines = read_graph(recorded_text("anon_write"))
    return 1 + max(line.depth for line in lines if line.name == "__alloc_pages")


@exercise(
    "2.6", "ex02-page", "A page's address",
    Part("address", "address of struct page", kind="hex"), Part("pfn", "the other PFN", kind="hex"),
    hints=("sizeof(struct page) is 64.", "The array begins at 0xffffea0000000000."))
def address_of_a_page() -> tuple[int, int]:
    return VMEMMAP_BASE + 0x100000 * c.SIZEOF_STRUCT_PAGE, (0xFFFFEA0000091440 - VMEMMAP_BASE) // c.SIZEOF_STRUCT_PAGE


@exercise(
    "2.7", "ex02-batch", "An empty list",
    Part("locked", "mm_page_alloc_zone_locked events"), Part("alloc", "mm_page_alloc events"),
    hints=("The list of the CPU is filled a batch at a time.", "Each page that leaves the buddy lists fires one event."))
def an_empty_list() -> tuple[int, int]:
    machine = ref256()
    while True:
        with machine.trace.recording("kmem:mm_page_alloc", "kmem:mm_page_alloc_zone_locked") as events:
            machine.alloc_pages(c.GFP_HIGHUSER_MOVABLE)
        if len(events) > 1:
            locked = sum(event.name.endswith("locked") for event in events)
            return locked, len(events) - locked


@exercise(
    "2.8", "ex02-ring", "A ring of eight",
    Part("lost", "entries overwritten"), Part("refused", "entries dropped with overwrite off"),
    hints=("Count the lines of the whole graph first: braces that close count too.", "Eight lines stay in both cases."))
def a_ring_of_eight() -> tuple[int, int]:
    found = []
    for overwrite in (1, 0):
        machine = toy16()
        tracing = TraceFs(machine.trace)
        tracing["current_tracer"], tracing["buffer_entries"], tracing["options/overwrite"] = "function_graph", 8, overwrite
        process = machine.spawn("demo")
        process.mmap(_AREA, MIB, c.PROT_READ | c.PROT_WRITE, c.MAP_PRIVATE | c.MAP_ANONYMOUS | c.MAP_FIXED)
        with tracing:
            process.write(_AREA, b"\1")
        found.append(tracing.overrun + tracing.dropped)
    return found[0], found[1]


@exercise(
    "2.9", "ex02-half", "Half of mm",
    Part("files", "files"), Part("gone", "files gone by 6.18"),
    hints=("ch02.largest(lines, 0.5) takes the largest files first.",
           "ch02.lines_of(release) is a dictionary; its keys are a set."))
def half_of_mm() -> tuple[int, int]:
    return len(largest(lines_of("5.17"), 0.5)), len(lines_of("5.17").keys() - lines_of("6.18").keys())
