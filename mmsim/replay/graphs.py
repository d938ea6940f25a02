"""recordings/linux-5.17-userland, chapter 2: function graphs of single events, against the functions that the model runs through.

Of the model's calls, in their order, those are compared that the recorded kernel could show: the compiler had made the others
part of their callers, and the tracer cannot see them (``available_filter_functions``). What is left must be an ordered part of
the recorded calls: the kernel does more (locks, cgroups, statistics), never less, and never in another order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsim import constants as c
from mmsim.ftrace.graph import FunctionGraph
from mmsim.ftrace.hidden import HIDDEN
from mmsim.ftrace.kfunc import ELSEWHERE, INLINED_AT_HOME
from mmsim.ftrace.text import function_graph_text
from mmsim.paging.pte import PAGE_READONLY
from mmsim.process.populate import Access
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile, Vma
from mmsim.reference import ref256
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays
from mmsim.units import PAGE_SIZE

__all__ = ["EVENTS", "graph_of", "graphs", "model_graph", "recorded_calls", "recorded_events"]

_CALL = re.compile(r"\|\s+(\w+)[\w.]*\(\)")
_FAULT = re.compile(r"/\* (page_fault_user): (address=\S+) ip=\S+ (error_code=\S+)")
_ALLOCATION = re.compile(r"/\* (mm_page_alloc): page=\S+ pfn=\S+ (order=\S+ migratetype=\S+ gfp_flags=\S+)")
_RW = c.PROT_READ | c.PROT_WRITE
_ANON = c.MAP_PRIVATE | c.MAP_ANONYMOUS
#: The two areas of the recorded program, 64 pages each; of the second one the first page is written.
P, Q, AREA = 0x3000_0000, 0x5000_0000, 64 * PAGE_SIZE
_HEAP, _VVAR, _STACK = 0x4D_0000, 0x7FFF_F7FF_9000, 0x7FFF_FFFD_E000


def recorded_calls(text: str) -> list[str]:
    """The names in a function graph, in the order in which the calls began."""
    return _CALL.findall(text)


def _program() -> Process:
    """A process as the recorded one is before its event."""
    process = ref256().spawn("ft")
    process.mm.start_brk = process.mm.brk = _HEAP
    process.mmap(_STACK, 33 * PAGE_SIZE, _RW, _ANON | c.MAP_FIXED | c.MAP_GROWSDOWN)
    for area in (P, Q):
        process.mmap(area, AREA, _RW, _ANON | c.MAP_FIXED)
    process.write(Q, b"\1")
    process.brk(_HEAP + 33 * PAGE_SIZE)
    for used in (_HEAP, _STACK):
        process.write(used, b"\1")
    # [vvar]: pages of the kernel, mapped by number.
    vvar = Vma(_VVAR, _VVAR + 4 * PAGE_SIZE, c.VM_READ | c.VM_MAYREAD | c.VM_IO | c.VM_DONTDUMP | c.VM_PFNMAP, 0, special="[vvar]",
               vm_mm=process.mm)
    process.mm.link(vvar)
    process.mm.vm_stat_account(vvar.vm_flags, vvar.pages)
    process.page_tables.map_page(_VVAR, process.user.zero_pfn, PAGE_READONLY | c._PAGE_SPECIAL)
    _drain(process)
    return process


def _drain(process: Process) -> None:
    """Empty the CPU's pagevec as the recorded program does: an unmapping begins with it."""
    process.munmap(process.mmap(0, PAGE_SIZE, _RW, _ANON), PAGE_SIZE)


def _touched(process: Process, pages: int) -> None:
    for page in range(pages):
        process.write(P + page * PAGE_SIZE, b"\1")


def _file(process: Process, prot: int) -> MappedFile:
    """Map a file of 64 pages, all of them in the page cache, and nobody's batch."""
    file = MappedFile("/mnt/x", pages=64)
    for index in range(file.pages):
        process.user.add_to_page_cache(file, index, process.mm)
    process.mmap(P, AREA, prot, c.MAP_PRIVATE | c.MAP_FIXED, file)
    return file


def _forked(process: Process, leave: bool) -> None:
    process.write(P, b"\1")
    _drain(process)
    child = process.table.processes[process.fork()]
    if leave:
        child.exit()
        process.wait()


Event = Callable[[Process], object]


def _nothing(process: Process) -> None:
    """No preparation."""


#: For each recorded event whose mechanism exists: how to prepare the process, and the event itself.
EVENTS: dict[str, tuple[Event, Event]] = {
    "nothing": (_nothing, _nothing),
    "anon_read": (_nothing, lambda p: p.read(P)),
    "anon_write": (_nothing, lambda p: p.write(P, b"\1")),
    "anon_write_sameptable": (lambda p: p.write(P + PAGE_SIZE, b"\1"), lambda p: p.write(P, b"\1")),
    "zero_then_write": (lambda p: p.read(P), lambda p: p.write(P, b"\1")),
    "cow_copy": (lambda p: _forked(p, leave=False), lambda p: p.write(P, b"\2")),
    "cow_reuse": (lambda p: _forked(p, leave=True), lambda p: p.write(P, b"\2")),
    "file_minor": (lambda p: _file(p, c.PROT_READ), lambda p: p.read(P)),
    "filew_minor_cow": (lambda p: _file(p, _RW), lambda p: p.write(P, b"\1")),
    "shmem_write": (lambda p: p.mmap(P, AREA, _RW, c.MAP_SHARED | c.MAP_ANONYMOUS | c.MAP_FIXED), lambda p: p.write(P, b"\1")),
    "mmap_anon": (_nothing, lambda p: p.mmap(0, 4 * PAGE_SIZE, _RW, _ANON)),
    "mmap_merge": (_nothing, lambda p: p.mmap(P + AREA, 4 * PAGE_SIZE, _RW, _ANON | c.MAP_FIXED)),
    "mmap_file": (lambda p: _file(p, c.PROT_READ),
                  lambda p: p.mmap(0, 4 * PAGE_SIZE, c.PROT_READ, c.MAP_PRIVATE, MappedFile("/mnt/x", 64))),
    "mmap_shared_anon": (_nothing, lambda p: p.mmap(0, 4 * PAGE_SIZE, _RW, c.MAP_SHARED | c.MAP_ANONYMOUS)),
    "munmap64": (lambda p: _touched(p, 16), lambda p: p.munmap(P, AREA)),
    "munmap1": (lambda p: _touched(p, 1), lambda p: p.munmap(P, AREA)),
    "munmap_untouched": (_nothing, lambda p: p.munmap(Q + 32 * PAGE_SIZE, 32 * PAGE_SIZE)),
    "munmap_split": (_nothing, lambda p: p.munmap(Q + 8 * PAGE_SIZE, PAGE_SIZE)),
    "mprotect_split": (lambda p: _touched(p, 16), lambda p: p.mprotect(P + 4 * PAGE_SIZE, 4 * PAGE_SIZE, c.PROT_READ)),
    "mprotect_whole": (lambda p: _touched(p, 16), lambda p: p.mprotect(P, AREA, c.PROT_READ)),
    "mremap_move": (lambda p: _touched(p, 16), lambda p: p.mremap(P, AREA, AREA, c.MREMAP_MAYMOVE | c.MREMAP_FIXED, 0x6000_0000)),
    "madv_dontneed16": (lambda p: _touched(p, 16), lambda p: p.madvise(P, 16 * PAGE_SIZE, c.MADV_DONTNEED)),
    "mlock16": (_nothing, lambda p: p.mlock(P, 16 * PAGE_SIZE)),
    "brk_query": (_nothing, lambda p: p.brk(0)),
    "brk_grow": (_nothing, lambda p: p.brk(p.mm.brk + 16 * PAGE_SIZE)),
    "brk_grow_merge": (lambda p: p.brk(p.mm.brk + AREA), lambda p: p.brk(p.mm.brk + 16 * PAGE_SIZE)),
    "brk_shrink": (lambda p: p.brk(p.mm.brk + AREA), lambda p: p.brk(p.mm.brk - 32 * PAGE_SIZE)),
    "segv_unmapped": (_nothing, lambda p: p.write(0x123_4000, b"\1")),
    "segv_ro": (lambda p: p.mprotect(P, PAGE_SIZE, c.PROT_READ), lambda p: p.write(P, b"\1")),
    "stack_grow": (_nothing, lambda p: p.touch(_STACK - 67 * PAGE_SIZE, Access.WRITE)),
    "fork": (_nothing, lambda p: p.fork()),
    "vfork": (_nothing, lambda p: p.vfork()),
    "exit": (lambda p: _touched(p, 8), lambda p: p.exit()),
}
#: What the recording has and the model has not yet: files on disk, opening files, programs, cgroups.
NOT_COVERED = {
    "direct_reclaim_memcg": "reclaim", "exec": "running a program", "file_major": "reading from disk",
    "file_major_random": "reading from disk", "open": "file systems", "open_creat_tmpfs": "file systems", "open_ext4": "file systems",
    "pipe": "pipes",
}


def recorded_events(text: str) -> list[str]:
    """The page faults and page allocations among the calls, as text without what differs from boot to boot."""
    return [" ".join(found) for found in _FAULT.findall(text) + _ALLOCATION.findall(text)]


def graph_of(event: str, **how: Any) -> FunctionGraph:
    """Run an event and record it; ``how`` goes to :class:`~mmsim.ftrace.graph.FunctionGraph`."""
    prepare, action = EVENTS[event]
    process = _program()
    prepare(process)
    with FunctionGraph(process.user.trace, events=("kmem:mm_page_alloc", "exceptions:*"), **how) as graph:
        action(process)
    return graph


def model_graph(event: str) -> FunctionGraph:
    """The graph of an event, without functions that the recorded kernel's tracer could not see."""
    return graph_of(event, hide=HIDDEN, hide_at_home=INLINED_AT_HOME, leave_out=ELSEWHERE.keys())


def _first_out_of_order(calls: list[str], recorded: list[str]) -> int | None:
    """The index of the first one that is not found in order among the recorded ones, or None."""
    rest = iter(recorded)
    for index, name in enumerate(calls):
        if name not in rest:
            return index
    return None


@replays("recordings/linux-5.17-userland/ch02_graphs*.jsonl*", "linux-5.17-userland/ch02_graphs*.jsonl*")
def graphs(path: Path) -> Iterator[Check]:
    """Function graphs of single events: the model's calls are an ordered part of the recorded ones."""
    known: dict[str, FunctionGraph] = {}
    for record in read_jsonl(path):
        event = record["event"]
        label = f"line {record.line}: {event}, repetition {record['rep']}"
        if event not in EVENTS:
            yield Check(label, False, known=f"not yet covered: {NOT_COVERED.get(event, 'an event that the model does not know')}")
            continue
        if event not in known:
            known[event] = model_graph(event)
        calls, recorded = known[event].names(), recorded_calls(record["text"])
        wrong = _first_out_of_order(calls, recorded)
        yield Check(label, wrong is None, " ".join(recorded)[:1500],
                    None if wrong is None else f"{calls[wrong]} after {' '.join(calls[:wrong])}")
        if record["rep"] == "ev":
            # With tracepoints on: the faults, and what they allocate. The kernel may need memory of its own besides.
            events, model = recorded_events(record["text"]), recorded_events(function_graph_text(known[event]))
            yield Check(f"{label}: faults and allocations", _first_out_of_order(model, events) is None, events, model)
