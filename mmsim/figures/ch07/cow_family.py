"""CoW family tree: who shares which frame after forks and writes, who copies, and what the pagevec has to do with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.draw import (
    Ask,
    Choice,
    Frame,
    Item,
    Ledger,
    Legend,
    Operation,
    Operations,
    Region,
    RegionList,
    Scene,
    Tape,
    Toggle,
    figure,
)
from mmsim.draw import Entry as Count
from mmsim.errors import InputError
from mmsim.figures.ch07.family import Entry, Family
from mmsim.process.user_memory import ANON_EXCLUSIVE

__all__ = ["cow_family"]

PAGES = 4
DEFAULT = """\
write A 0-2
fork A          # the child is B
write B 0
write A 0       # nobody else maps it now
exit B          # the end of a process drains the pagevec
write A 1
fork A          # C
fork C          # D
write A 2
write C 2
write D 2       # who pays for the last one?
"""
VERBS = {
    "write": "who:word pages:word -- one store to a page, or to each of a range such as 0-2",
    "read": "who:word pages:word -- one load",
    "fork": "who:word -- a child; it gets the next letter",
    "exit": "who:word -- the end of a process",
    "drain": "-- empty the pagevec, as another mapping's end would",
}
RULES = {"page_count": "5.17: nobody else holds a reference", "exclusive": "5.19: the page is marked exclusive"}
_WORDS = {"new": "gets a new frame", "copy": "copies", "reuse": "reuses its frame", "zero": "sees the page of zeros", "none": "no fault"}


@dataclass(slots=True)
class _State:
    """What is drawn: entries by (letter, page), and what this step changed."""

    family: Family
    width: float
    copies: int = 0
    news: int = 0

    def entries(self) -> dict[tuple[str, int], Entry]:
        found = {}
        for letter in self.family.members:
            for page in range(PAGES):
                entry = self.family.entry(letter, page)
                if entry:
                    found[letter, page] = entry
        return found

    def draw(self, op: str, say: str, before: dict[tuple[str, int], Entry], counts: tuple[int, int], ask: Ask | None = None) -> Frame:
        family, scene = self.family, Scene(self.width)
        scene.text("op", 0, 13, op, "mono", "strong", width=self.width)
        scene.y = 18
        now = self.entries()
        scene.add(_Matrix(family, now, before), "matrix", gap=6)
        waiting = family.waiting()
        known = {entry.pfn for entry in now.values()} | {pfn for pfn in waiting if family.knows(pfn)}
        frames = sorted(known - {family.user.zero_pfn}, key=lambda pfn: int(family.name(pfn)[1:]))
        rows = []
        counted = family.user.frames
        for pfn in frames:
            holders = [letter for letter in family.living() if any(now.get((letter, page)) and now[letter, page].pfn == pfn
                                                                   for page in range(PAGES))]
            holders += ["pagevec"] if pfn in waiting else []
            owner = family.user.mapping.get(pfn)
            record = next((letter for letter in family.members if letter in family.living()
                           and family.area(letter).anon_vma is owner), "–")
            rows.append(Region(family.name(pfn), (family.name(pfn), str(counted.mapcount[pfn]), str(counted.refcount[pfn]),
                                                  ", ".join(holders), record)))
        table = RegionList(rows, ("frame", "maps", "refs", "held by", "anon_vma"), most=12, empty="no frame yet")
        faults, reused = counts
        entries = [Count("faults", family.machine.counters["pgfault"] - self._zero[0], faults),
                   Count("copies", self.copies, self._delta_copies),
                   Count("pgreuse", family.machine.counters["pgreuse"] - self._zero[1], reused)]
        scene.row([("frames", table, "Frames", 2.1), ("counts", Ledger(entries, columns=1), "Counters", 1)], above=14)
        items = [Item(family.name(pfn), family.name(pfn), "hot") for pfn in family.user.lru.waiting() if family.knows(pfn)]
        scene.add(Tape(items, "pagevec: each page in it has a reference", head="", tail=""), "pagevec", gap=12)
        scene.add(Legend({"anon": "writable", "level": "read-only", "moving": "this step", "hot": "in the pagevec"}), "legend", gap=10)
        return Frame(scene, say, ask=ask)

    _zero: tuple[int, int] = (0, 0)
    _delta_copies: int = 0


class _Matrix:
    """Processes as rows with lines to their parents, pages as columns; a cell says which frame, and whether it may be written."""

    def __init__(self, family: Family, now: dict[tuple[str, int], Entry], before: dict[tuple[str, int], Entry]):
        self.family, self.now, self.before = family, now, before

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        family = self.family
        depth: dict[str, int] = {}
        for letter in family.members:
            depth[letter] = depth[family.parents[letter]] + 1 if letter in family.parents else 0
        step, high = 16.0, 26.0
        names = 34 + step * max(depth.values())
        cell = (width - names) / PAGES
        for page in range(PAGES):
            scene.text(f"{key}.page{page}", x + names + (page + 0.5) * cell, y + 11, f"page {page}", "small", "muted", "middle")
        top = y + 18
        places: dict[str, float] = {}
        for letter in family.members:
            places[letter] = top
            left = x + depth[letter] * step
            alive = family.members[letter].alive
            if letter in family.parents:
                above = places[family.parents[letter]]
                scene.path(f"{key}/{letter}.edge", f"M{left - 8:.5g} {above + high:.5g}V{top + high / 2:.5g}H{left:.5g}", "wire",
                           bottom=top + high / 2)
            scene.box(f"{key}/{letter}", left, top + 1, 24, high - 2, letter, "free" if alive else "", cls="" if alive else "ghost", rx=4,
                      tip=f"process {letter}" + ("" if alive else ", exited"))
            for page in range(PAGES):
                at = x + names + page * cell
                entry = self.now.get((letter, page))
                name = f"{key}/{letter}{page}"
                if entry is None:
                    scene.rect(name, at + 1, top + 1, cell - 3, high - 2, "panel", f"{letter}, page {page}: nothing mapped")
                    continue
                changed = self.before.get((letter, page)) != entry
                text = f"{family.name(entry.pfn)} {'rw' if entry.writable else 'r'}"
                tip = f"{letter}, page {page}: frame {entry.pfn:#x}, {'writable' if entry.writable else 'read-only'}"
                if changed:
                    scene.box(name, at + 1, top + 1, cell - 3, high - 2, text, "moving", tip)
                elif entry.writable:
                    scene.box(name, at + 1, top + 1, cell - 3, high - 2, text, "anon", tip)
                else:
                    scene.rect(name, at + 1, top + 1, cell - 3, high - 2, "level", tip)
                    scene.text(f"{name}.t", at + cell / 2, top + high / 2 + 4, text, "small", "", "middle")
            top += high + 4
        scene.height = max(scene.height, round(top - 4, 1))
        return top - 4 - y


def _pages(text: str) -> range:
    first, dash, last = text.partition("-")
    try:
        found = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise InputError(f'pages: "{text[:20]}" is neither a number nor a range such as 0-2') from None
    if not found or found[0] < 0 or found[-1] >= PAGES:
        raise InputError(f"there are pages 0 to {PAGES - 1}")
    return found


def _run(state: _State, op: Operation) -> str:
    """Do one line; the sentence that says what happened."""
    family = state.family
    if op.verb == "fork":
        child = family.fork(op["who"])
        shared = sum(1 for page in range(PAGES) if family.entry(child, page))
        return (f"{op['who']} forks {child}: page tables are copied, frames are not. {shared} page{'' if shared == 1 else 's'} "
                "lost the right to write on both sides.")
    if op.verb == "exit":
        waited = len(family.waiting())
        family.exit(op["who"])
        drained = " Its end drained the pagevec." if waited and not family.waiting() else ""
        return f"{op['who']} exits and gives its references back.{drained}"
    if op.verb == "drain":
        family.user.lru.lru_add_drain()
        return "The pagevec is emptied: its pages are on the LRU list, and its references are gone."
    said = []
    for page in _pages(op["pages"]):
        said.append((page, _access(state, op.verb, op["who"], page)))
    kinds = {kind for _, (kind, _) in said}
    if len(said) > 1 and len(kinds) == 1:
        return f"{op['who']} {op.verb}s pages {op['pages']} and {_WORDS[kinds.pop()]} for each."
    return " ".join(f"{op['who']} {op.verb}s page {page} and {_WORDS[kind]}.{why}" for page, (kind, why) in said)


def _access(state: _State, verb: str, who: str, page: int) -> tuple[str, str]:
    family = state.family
    family.get(who)
    before = family.entry(who, page)
    reuse = family.machine.counters["pgreuse"]
    references = family.user.frames.refcount[before.pfn] if before else 0
    mapped = family.user.frames.mapcount[before.pfn] if before else 0
    waits = before is not None and before.pfn in family.waiting()
    exclusive = before is not None and family.user.frames.flags[before.pfn] & ANON_EXCLUSIVE
    if verb == "read":
        family.read(who, page)
        after = family.entry(who, page)
        if before is None:
            state.news += 1
        return ("none", "") if before == after else ("zero", " It costs no frame.")
    family.write(who, page)
    after = family.entry(who, page)
    assert after is not None
    if before is None or before.pfn == family.user.zero_pfn:
        state.news += 1
        return "new", ""
    if after.pfn != before.pfn:
        state.copies += 1
        if mapped == 1 and waits:
            return "copy", f" Nobody else maps {family.name(before.pfn)}, but the pagevec holds a reference: {references} instead of 1."
        return "copy", f" {family.name(before.pfn)} had {references} references."
    if family.machine.counters["pgreuse"] > reuse:
        if references == 1:
            return "reuse", " It had one reference."
        why = "it is marked exclusive" if exclusive and family.machine.rules.cow_reuse == "exclusive" else "the pagevec was emptied first"
        return "reuse", f" It had {references} references, but {why}."
    return "none", ""


def _ask(state: _State, op: Operation, played: list[Operation], rule: str, waiting: bool) -> Ask | None:
    """The question before the first write of a page that its writer alone maps, but may not write."""
    if op.verb != "write" or "-" in op["pages"]:
        return None
    try:
        entry = state.family.entry(op["who"], _pages(op["pages"])[0])
    except (InputError, KeyError):
        return None
    if entry is None or entry.writable or state.family.user.frames.mapcount[entry.pfn] != 1:
        return None
    rehearsal = _State(Family(PAGES, rule, waiting), state.width)
    for past in played:
        _run(rehearsal, past)
    _run(rehearsal, op)
    copied = rehearsal.copies > state.copies
    return Ask(f"{op['who']} writes page {op['pages']}, which nobody else maps. What happens?", "copied" if copied else "reused",
               "5.17 counts every reference, and the pagevec has one." if copied else "There is no other reference.",
               choices=["reused", "copied"])


@figure(
    "CoW family tree",
    alt="A tree of processes against pages: which frame each page table holds and whether it may be written; below, each frame's "
        "mappings and references, and the pagevec, after each fork, write and exit.",
    params=[
        Operations("story", DEFAULT, VERBS, label="story"),
        Choice("rule", RULES, label="a page is reused if"),
        Toggle("waiting", True, label="new pages wait in a pagevec", help="off: each goes to its LRU list at once"),
    ],
)
def cow_family(story: list[Operation], rule: str, waiting: bool, width: float) -> Iterator[Frame]:
    """Runs the story on processes of a booted machine; faults, forks and exits are :mod:`mmsim.process`'s own."""
    state = _State(Family(PAGES, rule, waiting), width)
    counters = state.family.machine.counters
    state._zero = counters["pgfault"], counters["pgreuse"]
    if not story:
        raise InputError("no story: write a line such as  write A 0")
    played: list[Operation] = []
    asked, told = False, ""
    before, faults, reused, copies = state.entries(), counters["pgfault"], counters["pgreuse"], state.copies
    for number, op in enumerate(story):
        try:
            say = _run(state, op)
        except InputError as error:
            op.fail(error)
            continue
        played.append(op)
        state._delta_copies = state.copies - copies
        following = story[number + 1] if number + 1 < len(story) else None
        told = f"{told} {say}".strip()
        if op.verb == "write" and following is not None and following.verb in ("write", "fork") and len(state.family.members) == 1:
            continue                            # the first frame shows the family's first fork
        ask = None if asked or following is None else _ask(state, following, played, rule, waiting)
        asked = asked or ask is not None
        yield state.draw(op.text, told, before, (counters["pgfault"] - faults, counters["pgreuse"] - reused), ask)
        told = ""
        before, faults, reused, copies = state.entries(), counters["pgfault"], counters["pgreuse"], state.copies
    if told:                                    # the lines behind it were refused
        yield state.draw(played[-1].text, told, before, (counters["pgfault"] - faults, counters["pgreuse"] - reused))
    state.family.machine.check()
