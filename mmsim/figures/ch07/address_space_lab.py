"""Address-space lab: the reader's script of system calls and accesses, run step by step on processes of a booted machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Choice,
    Entry,
    Frame,
    Item,
    Ledger,
    Legend,
    Region,
    RegionList,
    Scene,
    Span,
    Tape,
    Text,
    TextPane,
    Toggle,
    figure,
    short_size,
    text_width,
)
from mmsim.draw.scene import Idiom
from mmsim.errors import InputError
from mmsim.figures.ch07.strips import size_text
from mmsim.lab import Lab, LabError, Step
from mmsim.lab.snapshot import AreaState, ProcessState, Snapshot
from mmsim.paging.pte import pte_pfn, pte_present, pte_special, pte_write
from mmsim.reference import ref256
from mmsim.rules import RELEASES, rules_for
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["DEFAULT", "address_space_lab"]

DEFAULT = """\
a = mmap(12K, rw, private|anon)
write a 12K                     # one byte in each page
mprotect(a+4K, 4K, r)
write a+4K                      # not allowed now
mprotect(a+4K, 4K, rw)
fork -> child
child: write a "mine"
write a "ours"
munmap(a+4K, 4K)
read a+4K
mremap(a+4K, 4K, 8K, maymove)   # nothing is mapped there
munmap(a+2K, 4K)
exit child
"""
USAGE = {
    "a = mmap(64K, rw, private|anon)": "length, permissions, flags [, file [, offset]]; at= is the address or hint",
    'f = file("notes", 8K)': "a file in memory; a third argument ro or wo says how it was opened",
    "munmap(a, 4K)  mprotect(a, 4K, r)": "and mremap, madvise, mlock, munlock, mlockall, msync, mincore, with Linux's arguments",
    "brk(+64K)": "moves the end of the heap",
    'write a "text"  write a 64K': "bytes, or one byte in each page of a range",
    "read a  read a 8  exec a": "one byte or several; one instruction",
    "fork -> child  child: write a": "a second process, and what it does; vfork too",
    "exit child  drain": "the end of a process; empties the pagevec",
    "rlimit memlock 64K  sysctl max_map_count 8": "limits: as, data, stack, memlock; overcommit_memory, overcommit_ratio",
    'repeat 8: write a "x"; a = a + 4K': "several times; a script makes at most 400 steps",
}
_LEVELS = {1: "PTE", 2: "PMD", 3: "PUD", 4: "P4D"}
_MOST_LINES, _MOST_CELLS, _MOST_FRAMES = 9, 64, 7


def _role(area: AreaState) -> str:
    if area.line.name and not area.line.name.startswith("["):
        return "file"
    return "anon" if "w" in area.line.perms else "level"


def _short(area: AreaState) -> str:
    return f"{area.line.start:x}-{area.line.end:x} {area.line.perms} {area.line.name}".rstrip()


def _pages(area: AreaState) -> int:
    return (area.line.end - area.line.start) >> PAGE_SHIFT


def _axis(states: list[Snapshot]) -> Axis:
    """One axis for all frames: every border that any area ever has is on it; stretches in which nothing lies are left out."""
    spans = [Span(area.line.start, area.line.end, "anon") for state in states for process in state.processes for area in process.areas]
    low, high = min(span.start for span in spans), max(span.end for span in spans)
    return Axis(low - PAGE_SIZE, high, spans, scale="broken", show=lambda address: f"{address:x}" if address % (1 << 40) else
                short_size(address))


class _Bars:
    """All processes on one axis: the areas that changed in this step have a heavy outline."""

    def __init__(self, state: Snapshot, before: Snapshot, axis: Axis, width: float):
        self.state, self.before, self.axis, self.width = state, before, axis, width

    def bar(self, process: ProcessState) -> Bar:
        """One process."""
        old = {_short(area) for other in self.before.processes if other.name == process.name for area in other.areas}
        room = self.width - (70 if self.width >= 480 else 0)
        spans = []
        for area in process.areas:
            text = area.line.name if area.line.name in ("[heap]", "[stack]") else area.line.perms
            wide = (self.axis.place(area.line.end) - self.axis.place(area.line.start)) * room
            label = text if text_width(text, "small") < wide - 6 else ""
            tip = f"{_short(area)}, {size_text(_pages(area))}: {area.flags}"
            spans.append(Span(area.line.start, area.line.end, _role(area), label, tip, "" if _short(area) in old else "focus"))
        name, tip = (process.name, f"pid {process.pid}") if process.alive else (f"{process.name} †", "ended")
        return Bar(name, spans, tip, process.name)

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        bars = [self.bar(process) for process in self.state.processes]
        return AddressBar(bars, self.axis, thick=24, names=70).draw(scene, key, x, y, width)


class _Cells:
    """The pages of each area as cells: what the page table has for each."""

    def __init__(self, process: ProcessState, before: Mapping[int, int]):
        self.process, self.before = process, before

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        top, cell = y, 13.0
        shown = [area for area in self.process.areas if any(area.line.start <= at < area.line.end for at in self.process.entries)
                 or _pages(area) <= 16][-6:]
        if not shown:
            return scene.paragraph(f"{key}.none", x, y, "no pages", width, "small", "muted")
        for area in shown:
            left = x
            name = area.line.name or f"{area.line.start:x}"
            scene.text(f"{key}/{area.line.start:x}.name", left, top + 11, name, "code", "muted", width=104)
            left += 108
            per_row = int((x + width - left) // cell)
            pages = min(_pages(area), _MOST_CELLS, per_row * 2)
            skipped = _pages(area) - pages
            for number in range(pages):
                at = area.line.start + ((skipped + number) << PAGE_SHIFT)     # the upper end: stacks are used there
                row, column = divmod(number, per_row)
                self._cell(scene, f"{key}/{at:x}", left + column * cell, top + row * cell, cell - 1.5, at)
            if skipped:
                scene.text(f"{key}/{area.line.start:x}.more", left, top + cell * ((pages - 1) // per_row + 1) + 11,
                           f"the upper {pages} of {_pages(area)} pages", "small", "muted")
                top += 16
            top += cell * ((pages - 1) // per_row + 1) + 4
        scene.height = max(scene.height, round(top, 1))
        return top - y

    def _cell(self, scene: Scene, key: str, x: float, y: float, size: float, at: int) -> None:
        word = self.process.entries.get(at, 0)
        if not pte_present(word):
            scene.rect(key, x, y, size, size, "panel" + (" focus" if at in self.before else ""), f"{at:#x}: no page")
            return
        zero = pte_special(word)
        role = "free" if zero else "anon" if pte_write(word) else "level"
        words = "the page of zeros" if zero else f"frame {pte_pfn(word):#x}, {'writable' if pte_write(word) else 'read-only'}"
        was = self.before.get(at, 0)
        changed = pte_pfn(was) != pte_pfn(word) or pte_write(was) != pte_write(word)
        scene.rect(key, x, y, size, size, role + (" focus" if changed else ""), f"{at:#x}: {words}")


class _Pages:
    """The pages of several processes below each other, with what their entries were before."""

    def __init__(self, processes: list[tuple[ProcessState, Mapping[int, int]]]):
        self.processes = processes

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        top = y
        for process, before in self.processes:
            scene.text(f"{key}:{process.name}.caption", x, top + 12, f"Pages of {process.name}", "head", width=width)
            top += 20 + _Cells(process, before).draw(scene, f"{key}:{process.name}", x, top + 20, width) + 6
        return top - 6 - y


class _Column:
    """Idioms below each other, each with its caption."""

    def __init__(self, parts: list[tuple[str, Idiom, str]]):
        self.parts = parts

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        top = y
        for name, idiom, caption in self.parts:
            if caption:
                scene.text(f"{key}.{name}.caption", x, top + 12, caption, "head", width=width)
                top += 20
            top += idiom.draw(scene, name, x, top, width) + 14
        return top - 14 - y


def _frames(state: Snapshot, before: Snapshot) -> RegionList:
    rows = []
    for pfn, frame in state.frames.items():
        if frame.kind == "zero":
            continue
        holders = ", ".join(dict.fromkeys(name for name, _ in frame.mapped_at)) + (" + pagevec" if frame.in_pagevec else "")
        old = before.frames.get(pfn)
        mark = "" if old is not None and (old.mapcount, old.refcount) == (frame.mapcount, frame.refcount) else "moving"
        rows.append(Region(f"{pfn:x}", (f"{pfn:#x}", str(frame.mapcount), str(frame.refcount), holders),
                           "anon" if frame.kind == "anon" else "file", mark=mark))
    return RegionList(rows, ("frame", "maps", "refs", "held by"), most=_MOST_FRAMES, empty="no frames")


def _find(state: Snapshot, name: str) -> ProcessState | None:
    return next((process for process in state.processes if process.name == name), None)


def _draw(width: float, step: Step, before: Snapshot, axis: Axis, say: str, ask: Ask | None) -> Frame:
    scene, state = Scene(width), step.state
    process = state.process(step.process)
    old = _find(before, step.process)
    bad = bool(step.errno or step.signal)
    access = step.text.startswith(("read ", "write ", "exec "))
    said = "ok" if access and not bad and not step.data else step.outcome
    outcome = said if len(said) < 34 else said[:33] + "…"
    if scene.narrow:
        scene.text("step", 0, 13, f"{step.process}: {step.text}", "mono", "strong", width=width)
        scene.text("outcome", 0, 31, outcome, "mono", "warn" if bad else "accent", width=width)
        scene.y = 36
    else:
        scene.text("step", 0, 13, f"{step.process}: {step.text}", "mono", "strong", width=width - text_width(outcome, "mono") - 16)
        scene.text("outcome", width, 13, outcome, "mono", "warn" if bad else "accent", "end")
        scene.y = 20
    scene.add(_Bars(state, before, axis, width), "areas", gap=6)
    lines = [_short(area) for area in process.areas]
    known = {_short(area) for area in old.areas} if old is not None else set()
    lines = lines[-_MOST_LINES:]
    marks = {number: [(0, len(line))] for number, line in enumerate(lines) if line not in known}
    pane = TextPane(lines or ["(nothing is mapped)"], marks=marks, title=f"maps of {step.process}, without offsets")
    entries = [Entry("faults", process.minflt + process.majflt, step.minflt + step.majflt), Entry("pgreuse", state.pgreuse, step.pgreuse),
               Entry("RssAnon", f"{process.rss_anon * 4} kB", 4 * (process.rss_anon - (old.rss_anon if old else 0))),
               Entry("VmPTE", f"{process.pgtables_bytes >> 10} kB", (process.pgtables_bytes - (old.pgtables_bytes if old else 0)) >> 10),
               Entry("Committed", f"{state.committed * 4} kB", 4 * (state.committed - before.committed), tip="promised to all processes")]
    shown = [process, *(one for one in state.processes if one.name != step.process and one.alive)][:3]
    pages = _Pages([(one, past.entries if (past := _find(before, one.name)) else {}) for one in shown])
    left = _Column([("maps", pane, ""), ("pages", pages, "")])
    right = _Column([("counts", Ledger(entries, columns=1), ""), ("frames", _frames(state, before), "Frames")])
    scene.row([("left", left, "", 1.12), ("right", right, "", 1)], above=12)
    tables = [Item(f"{table.pfn:x}", f"{_LEVELS[table.level]} {table.pfn:x}", "table",
                   f"{table.pfn:#x}: translates from {table.address:#x} on",
                   "" if old is not None and table in old.tables else "focus") for table in process.tables]
    scene.add(Tape(tables, f"Page tables of {step.process}: level and frame", head="", tail="", most=12, shared="tables"), "tables", gap=12)
    scene.add(Legend({"anon": "writable", "level": "read-only or no access", "file": "file or shared", "free": "page of zeros",
                      "table": "page table"}), "legend", gap=10)
    merges = [event["case"] for event in step.events if event.name == "mmsim:vma_merge"]
    return Frame(scene, say, event=f"vma_merge: case {merges[0]}" if merges else None, ask=ask)


def _say(step: Step, before: Snapshot) -> str:
    process, old = step.state.process(step.process), _find(before, step.process)
    said = f"{step.process}: {step.text} "
    if step.signal is not None:
        said += f"ends in {step.signal}."
    elif step.errno:
        said += f"fails with {step.errno}: {step.why}."
    elif step.result == 14 and step.text.startswith(("mremap", "b = mremap", "a = mremap")):
        said += "returns 14: EFAULT without its minus sign, which a program takes for an address."
    else:
        said += f"returns {step.result:#x}." if step.result > 4095 else "works." if not step.data else f"gives {step.outcome}."
    if step.faults:
        counted = {name: step.faults.count(name) for name in step.faults}
        said += " Faults: " + ", ".join(f"{count} × {name}" if count > 1 else name for name, count in counted.items()) + "."
    was = len(old.areas) if old is not None else 0
    if process.alive and len(process.areas) != was:
        said += f" {was} area{' becomes' if was == 1 else 's become'} {len(process.areas)}."
    merges = [event["case"] for event in step.events if event.name == "mmsim:vma_merge"]
    if merges:
        said += f" It merges: case {merges[0]}."
    return said


def _question(step: Step, following: Step) -> Ask | None:
    """Before the first call that changes how many areas there are: how many there will be."""
    now, then = _find(step.state, following.process), _find(following.state, following.process)
    if now is None or then is None or not then.alive or len(now.areas) == len(then.areas):
        return None
    if not following.text.startswith(("mprotect", "munmap", "madvise", "mlock", "mremap")):
        return None
    return Ask(f"Next: {following.text}. How many areas will {following.process} have, with its stack?", len(then.areas),
               f"There are {len(now.areas)} now; an area has one set of flags, so the range is cut out or joined.")


@figure(
    "Address-space lab",
    alt="The areas of each process on one address axis, /proc/PID/maps, counters, every page's entry and the frames with their counts, "
        "after each line of an editable script of system calls and accesses.",
    params=[
        Text("script", DEFAULT, lines=13, usage=USAGE, help="one step a line, # for comments"),
        Choice("release", list(RELEASES), label="Linux"),
        Toggle("waiting", True, label="new pages wait in a pagevec"),
    ],
)
def address_space_lab(script: str, release: str, waiting: bool, width: float) -> Iterator[Frame]:
    """Runs the script with :class:`mmsim.lab.Lab`; where it cannot go on, the lab's message follows the frames."""
    machine = ref256()
    machine.rules = rules_for(release)
    lab = Lab(machine)
    lab.user.lru.enabled = waiting
    failure: LabError | None = None
    try:
        lab.run(script)
    except LabError as error:
        failure = error
    steps = lab.steps
    if not steps and failure is None:
        raise InputError("the script has no step: write a line such as  a = mmap(12K, rw, private|anon)")
    if steps:
        axis, asked, before = _axis([lab.start, *(step.state for step in steps)]), False, lab.start
        for number, step in enumerate(steps):
            ask = None
            if not asked and number + 1 < len(steps):
                ask = _question(step, steps[number + 1])
                asked = ask is not None
            yield _draw(width, step, before, axis, _say(step, before), ask)
            before = step.state
        lab.check()
    if failure is not None:
        raise failure
