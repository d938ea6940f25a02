"""Eight ways to merge: the cases of vma_merge(), each made by a system call on a real address space, and what prevents them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.constants import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    SOFTDIRTY_BIT,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS,
)
from mmsim.draw import Ask, Choice, Frame, Legend, Region, RegionList, Scene, figure
from mmsim.errors import InvariantError
from mmsim.figures.ch07.strips import Piece, Strip, pieces_of
from mmsim.process.merge import is_mergeable_anon_vma
from mmsim.process.populate import Access
from mmsim.process.task import Process, ProcessTable
from mmsim.process.vma import Vma
from mmsim.reference import ref256
from mmsim.units import PAGE_SHIFT

__all__ = ["CASES", "Case", "make_case", "merge_cases"]

BASE = 0x7000_0000
PAGES = 12
RW, R, NONE = PROT_READ | PROT_WRITE, PROT_READ, 0


@dataclass(frozen=True, slots=True)
class Case:
    """The areas before (first page, end, permissions), and the call: its name, first page, end, permissions."""

    areas: tuple[tuple[int, int, int], ...]
    call: str
    first: int
    end: int
    prot: int
    what: str


CASES = {
    1: Case(((0, 4, RW), (8, 12, RW)), "mmap", 4, 8, RW, "a hole is filled, both sides fit"),
    2: Case(((0, 4, RW), (8, 12, R)), "mmap", 4, 8, RW, "a hole is filled, the lower side fits"),
    3: Case(((0, 4, R), (8, 12, RW)), "mmap", 4, 8, RW, "a hole is filled, the upper side fits"),
    4: Case(((0, 8, RW), (8, 12, R)), "mprotect", 4, 8, R, "the end of an area goes to the next one"),
    5: Case(((0, 4, RW), (4, 12, R)), "mprotect", 4, 8, RW, "the beginning of an area goes to the one before"),
    6: Case(((0, 4, RW), (4, 8, R), (8, 12, RW)), "mprotect", 4, 8, RW, "a whole area, both sides fit"),
    7: Case(((0, 4, RW), (4, 8, R), (8, 12, NONE)), "mprotect", 4, 8, RW, "a whole area, the lower side fits"),
    8: Case(((0, 4, NONE), (4, 8, R), (8, 12, RW)), "mprotect", 4, 8, RW, "a whole area, the upper side fits"),
}
HISTORY = {
    "fresh": "none was written to",
    "written": "each was written on its own",
    "child": "each was written, then a fork: in the child",
}
_WORDS = {RW: "rw", R: "r", NONE: "none"}


def _processes() -> ProcessTable:
    return ref256().process_table


@dataclass(slots=True)
class _Made:
    """A case carried out: pieces before and after, the kernel's case (0: not merged), and the two neighbours' answers."""

    before: list[Piece]
    after: list[Piece]
    case: int
    rows: list[tuple[str, str, str]]


def _mmap(calls: Process, first: int, end: int, prot: int) -> None:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    calls.mmap(BASE + (first << PAGE_SHIFT), (end - first) << PAGE_SHIFT, prot, flags)


def _mprotect(calls: Process, first: int, end: int, prot: int) -> None:
    calls.mprotect(BASE + (first << PAGE_SHIFT), (end - first) << PAGE_SHIFT, prot)


def _build(calls: Process, case: Case, written: bool) -> None:
    """Map the areas, writable at first: so all of them have VM_ACCOUNT, without which no two could merge.

    Written ones get their pages while there is a hole between them, so that they share no anon_vma.
    """
    for first, end, _ in case.areas:
        _mmap(calls, first, end - 1, RW)
        if written:
            calls.touch(BASE + (first << PAGE_SHIFT), Access.WRITE)
    for first, end, prot in case.areas:
        _mmap(calls, end - 1, end, RW)
        if prot != RW:
            _mprotect(calls, first, end, prot)


def _side(vma: Vma | None, case: Case, source: Vma | None, below: bool) -> tuple[str, str, str, str]:
    """What the kernel asks of one neighbour: does it touch the range, same flags, offsets, anon_vma."""
    first, end = BASE + (case.first << PAGE_SHIFT), BASE + (case.end << PAGE_SHIFT)
    if vma is None or (vma.vm_end != first if below else vma.vm_start != end):
        return ("no", "–", "–", "–")
    wanted = (source.vm_flags & ~VM_ACCESS_FLAGS if source is not None else VM_DATA_DEFAULT_FLAGS & ~VM_ACCESS_FLAGS) | case.prot
    wanted |= VM_ACCOUNT if case.prot & PROT_WRITE else 0
    flags = (vma.vm_flags ^ wanted) & ~SOFTDIRTY_BIT
    offset = vma.pgoff_at(first) == first >> PAGE_SHIFT
    anon_vma = source.anon_vma if source is not None else None
    return ("yes", "no" if flags else "yes", "yes" if offset else "no",
            "yes" if is_mergeable_anon_vma(anon_vma, vma.anon_vma, vma) else "no")


def make_case(number: int, history: str = "fresh", processes: ProcessTable | None = None) -> _Made:
    """Carry out one of the cases in a process (or its child) with that history; the state before and after."""
    case, table = CASES[number], processes or _processes()
    calls = table.spawn("P")
    _build(calls, case, history != "fresh")
    if history == "child":
        calls = table.processes[calls.fork()]
    mm, trace = calls.mm, calls.mm.trace
    before = pieces_of(mm, BASE, PAGES)
    start, end = BASE + (case.first << PAGE_SHIFT), BASE + (case.end << PAGE_SHIFT)
    source = mm.tree.lookup(start)
    low, high = mm.tree.lookup(start - 1), mm.tree.lookup(end)
    below = _side(low if low is not source else None, case, source, True)
    above = _side(high if high is not source else None, case, source, False)
    names = ("touches the range", "same flags", "page offsets go on", "anon_vma fits")
    rows = list(zip(names, below, above))
    with trace.recording("mmsim:vma_merge") as events:
        if case.call == "mmap":
            _mmap(calls, case.first, case.end, case.prot)
        else:
            _mprotect(calls, case.first, case.end, case.prot)
    mm.check()
    merged = [event for event in events if event.name == "mmsim:vma_merge"]
    if len(merged) > 1:
        raise InvariantError(f"case {number}: one call merged {len(merged)} times")
    return _Made(before, pieces_of(mm, BASE, PAGES), merged[0]["case"] if merged else 0, rows)


def _title(number: int) -> str:
    case = CASES[number]
    return f"{case.call}({case.first}–{case.end - 1}, {_WORDS[case.prot]})"


def _bracket(scene: Scene, key: str, x: float, y: float, width: float, case: Case) -> None:
    """The range of the call, drawn above the pages."""
    cell = width / PAGES
    scene.rect(key, x + case.first * cell, y, (case.end - case.first) * cell, 7, "moving", f"the range of the call: {_title_of(case)}")


def _title_of(case: Case) -> str:
    return f"{case.call} of pages {case.first} to {case.end - 1}"


def _overview(width: float, made: dict[int, _Made], history: str) -> Frame:
    scene = Scene(width)
    columns = 2 if scene.narrow else 4
    gap = 16.0
    wide = (width - gap * (columns - 1)) / columns
    high = 112.0
    for place, (number, one) in enumerate(made.items()):
        x, y = place % columns * (wide + gap), place // columns * high
        case = CASES[number]
        scene.text(f"{number}.title", x, y + 12, f"{number}", "head")
        scene.text(f"{number}.call", x + 16, y + 12, _title(number), "small", "muted", width=wide - 16)
        _bracket(scene, f"{number}.range", x, y + 20, wide, case)
        Strip(one.before, PAGES, thick=22, grid=False).draw(scene, f"{number}.before", x, y + 29, wide)
        scene.text(f"{number}.arrow", x + wide / 2, y + 65, "↓" if one.case else "↓ not merged", "small", "muted" if one.case else "warn",
                   "middle")
        Strip(one.after, PAGES, thick=22, grid=False).draw(scene, f"{number}.after", x, y + 71, wide)
    rows = -(-len(made) // columns)
    scene.y = scene.height = rows * high - 12
    scene.add(Legend({"moving": "the range of the call", "anon": "writable, private, anonymous"}), "legend", gap=6)
    merged = sum(1 for one in made.values() if one.case)
    say = {
        "fresh": f"Above the arrows: the areas before the call; below: after it. In all {merged} cases an area disappears, grows or "
                 "moves its border, and none is left over.",
        "written": f"The same calls, but each area got its own pages before it had neighbours. Only {merged} of 8 calls merge: "
                   "two places where pages are recorded cannot become one.",
        "child": f"The same calls in a forked child. {merged} of 8 calls merge: areas that have been through a fork take in nothing new.",
    }[history]
    ask = None
    if history != "child":
        then, answer = ("written", "the areas that were each written on their own") if history == "fresh" else ("child", "a forked child")
        table = _processes()
        count = sum(1 for number in CASES if make_case(number, then, table).case)
        ask = Ask(f"The same eight calls, for {answer}: how many merge?", count,
                  "Pages are found again through the anon_vma of their area. A range without pages joins an area that has some; "
                  "two areas with pages of their own stay two." if then == "written" else
                  "After a fork the pages of an area are recorded in two places, and such an area takes in nothing new; what "
                  "shares the same record still merges.")
    return Frame(scene, say, ask=ask)


def _detail(width: float, number: int, one: _Made) -> Frame:
    scene, case = Scene(width), CASES[number]
    head = f"Case {number}: {case.what}" if one.case == number else f"Not case {number}"
    scene.text("call", 0, 13, head, "head", width=width)
    names = 0.0 if scene.narrow else 62.0
    scene.y = 24
    scene.text("name", 0, scene.y + 12, _title(number), "mono", "strong", width=width)
    scene.y += 22
    _bracket(scene, "range", names, scene.y, width - names, case)
    scene.y += 10
    ticks = [(float(page), str(page)) for page in range(0, PAGES + 1, 4)]
    scene.add(Strip(one.before, PAGES, "before", 28), "before", gap=4)
    scene.add(Strip(one.after, PAGES, "after", 28, ticks=ticks), "after", gap=8)
    table = RegionList([Region(name, (name, low, high)) for name, low, high in one.rows],
                       ("", "area below", "area above"))
    scene.add(table, "asked", gap=14)
    fits = [side for side, column in (("below", 1), ("above", 2)) if all(row[column] == "yes" for row in one.rows)]
    if one.case == 0:
        result = "Nobody can take it in: the range stays or becomes an area of its own."
    elif one.case != number:
        result = f"The kernel finds case {one.case} instead of {number}: " + (
            "both sides fit the range, but not each other, so the lower one takes it." if len(fits) == 2 else "one side fits.")
    else:
        result = {1: "Both neighbours fit: three ranges become one area.", 6: "Both neighbours fit: three areas become one."}.get(
            number, f"The area {fits[0]} fits and takes the range." if fits else "")
    count = len(one.after)
    what = f", {case.what}" if one.case == number else ""
    say = f"{_title(number)}{what}. {result} {count} area{' is' if count == 1 else 's are'} left in the window."
    return Frame(scene, say)


@figure(
    "Eight ways to merge",
    alt="Eight pairs of address strips, before and after a call: mmap fills a hole or mprotect changes a range, and the range "
        "becomes part of the area below, above, or of both.",
    params=[Choice("history", HISTORY, label="the areas", help="what happened to the areas before the call")],
)
def merge_cases(history: str, width: float) -> Iterator[Frame]:
    """Runs each case as system calls on an address space of its own; the case's number is the one that the kernel's rule gives."""
    table = _processes()
    made = {number: make_case(number, history, table) for number in CASES}
    yield _overview(width, made, history)
    for number, one in made.items():
        yield _detail(width, number, one)
