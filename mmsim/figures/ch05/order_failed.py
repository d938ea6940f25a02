"""Why order N failed: one request on the slow path, every decision as it falls, and the free lists that decide it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from mmsim.constants import (
    _GFP_NORETRY,
    _GFP_RETRY_MAYFAIL,
    ALLOC_NO_WATERMARKS,
    GFP_ATOMIC,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_TRANSHUGE_LIGHT,
    MIGRATE_UNMOVABLE,
    ZONE_NORMAL,
)
from mmsim.draw import (
    Ask,
    Choice,
    FlowChart,
    Frame,
    FrameBoard,
    Legend,
    Range,
    Scene,
    Step,
    TextPane,
    Toggle,
    Way,
    figure,
    grouped,
    runs_of,
)
from mmsim.figures.ch05.machines import small_memory
from mmsim.physical.fragmentation import format_index, fragmentation_index, unusable_free_index
from mmsim.physical.free import free_pages
from mmsim.physical.freelist import AllocContext
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.pcp import drain_all_pages
from mmsim.physical.rmqueue import rmqueue_buddy
from mmsim.physical.slowpath import SlowPathHooks
from mmsim.physical.slowpath import Step as SlowStep

__all__ = ["Lab", "why_order_failed"]

FRAMES = 4096
VICTIM = range(2048, 2304)              # what the process holds that the OOM killer would choose
EXCERPT = range(1792, 2304)             # the frames that are drawn: some before the process's memory, and all of that
RECLAIM_BATCH = 32                      # 5.17: SWAP_CLUSTER_MAX

REQUESTS: dict[str, int] = {
    "GFP_KERNEL": GFP_KERNEL, "GFP_ATOMIC": GFP_ATOMIC, "GFP_HIGHUSER_MOVABLE": GFP_HIGHUSER_MOVABLE,
    "GFP_KERNEL|__GFP_NORETRY": GFP_KERNEL | _GFP_NORETRY, "GFP_KERNEL|__GFP_RETRY_MAYFAIL": GFP_KERNEL | _GFP_RETRY_MAYFAIL,
    "GFP_TRANSHUGE_LIGHT": GFP_TRANSHUGE_LIGHT,
}
STATES = {"fragmented": "half free, in single frames", "scarce": "almost nothing free", "whole": "half free, in large blocks"}

#: The chart's boxes from top to bottom, named as the model names the steps.
BOXES: dict[str, str] = {
    "fast_path": "fast path: above low?", "wake_kswapd": "wake kswapd", "first_attempt": "above min?",
    "compact_first": "compact before reclaim", "retry": "a round: try again", "reclaim": "direct reclaim",
    "drain": "drain per-CPU lists", "compact": "compact, try again", "should_reclaim_retry": "reclaim again?",
    "should_compact_retry": "compact again?", "oom": "OOM killer?",
}


#: How a request can end at a box: with a block, or without.
EXITS = {
    "fast_path": "a block", "first_attempt": "a block", "compact_first": "a block, or NULL",
    "retry": "a block, or NULL", "reclaim": "a block", "drain": "a block", "compact": "a block, or NULL",
    "oom": "a block, or NULL",
}


class Lab:
    """A zone of 16 MiB in a chosen state, an allocator for it, and hooks that play the parts of later chapters.

    The frames in use are the kernel's (they stay), page cache (``cache``: reclaim frees 32 a time), and those of one process
    (256 neighbours, which the OOM killer frees).
    """

    def __init__(self, state: str, reclaim: bool, oom: bool):
        self.memory = small_memory((ZONE_NORMAL, FRAMES), per_cpu_lists=False)
        self.zone = self.memory.nodes[0].zones[ZONE_NORMAL]
        self.cache: list[int] = []
        self.victim: list[int] = list(VICTIM)
        self._fill(state, reclaim)
        hooks = SlowPathHooks(reclaimable=lambda zone: len(self.cache))
        if reclaim:
            hooks.reclaim = self._reclaim
        if oom:
            hooks.oom = self._oom
        self.allocator = PageAllocator(self.memory, hooks)

    def _fill(self, state: str, reclaim: bool) -> None:
        """Take every frame, then free those that the state wants free."""
        memory = self.memory
        while (pfn := rmqueue_buddy(self.zone, 0, MIGRATE_UNMOVABLE, ALLOC_NO_WATERMARKS)) is not None:
            memory.frames.refcount[pfn] = 1
        wanted = {
            "fragmented": [pfn for pfn in range(0, FRAMES, 2) if pfn not in VICTIM],
            "scarce": [pfn for pfn in range(1, FRAMES, 61) if pfn not in VICTIM],
            "whole": [pfn for pfn in range(FRAMES // 2) if pfn not in VICTIM],
        }[state]
        for pfn in wanted:
            free_pages(memory, pfn)
        drain_all_pages(memory)
        if reclaim:
            cache = (pfn for pfn in range(7, FRAMES, 32) if memory.frames.refcount[pfn] and pfn not in VICTIM)
            self.cache = sorted(cache, key=lambda pfn: pfn not in EXCERPT)      # the oldest are those that are drawn

    def _reclaim(self, context: AllocContext, order: int, gfp_mask: int) -> int:
        freed = self.cache[:RECLAIM_BATCH]
        del self.cache[:RECLAIM_BATCH]
        for pfn in freed:
            free_pages(self.memory, pfn)
        return len(freed)

    def _oom(self, context: AllocContext, order: int, gfp_mask: int) -> bool:
        killed = bool(self.victim)
        for pfn in self.victim:
            free_pages(self.memory, pfn)
        self.victim = []
        drain_all_pages(self.memory)
        return killed

    def state(self) -> "State":
        """What a frame of the figure shows of the zone at this moment."""
        frames = self.memory.frames
        cache, victim = set(self.cache), set(self.victim)
        used = ["file" if pfn in cache else "anon" if pfn in victim else "kernel" for pfn in EXCERPT]
        free = [not frames.refcount[pfn] for pfn in EXCERPT]
        roles = tuple("free" if none else role for none, role in zip(free, used, strict=True))
        return State(self.zone.buddyinfo(), self.zone.nr_free_pages, roles)


#: Columns to highlight, by line of the text.
Marks = dict[int, list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class State:
    """Free blocks per order, free pages, and the roles of the frames in the excerpt."""

    nr_free: list[int]
    free: int
    roles: tuple[str, ...]


def _gauge_lines(memory: PhysicalMemory, nr_free: list[int], order: int, free: int) -> tuple[list[str], Marks]:
    """The gauges as text, and the marks: the row of the order asked for."""
    zone = memory.nodes[0].zones[ZONE_NORMAL]
    low, high = zone.watermark[1:]
    lines = [f"free {free}  min {zone.watermark[0]}  low {low}  high {high}", "", "order blocks extfrag unusable"]
    marks: Marks = {}
    for each, blocks in enumerate(nr_free):
        if each == order:
            marks[len(lines)] = [(0, 29)]
        lines.append(f"{each:5} {blocks:6} {format_index(fragmentation_index(nr_free, each)):>7} "
                     f"{format_index(unusable_free_index(nr_free, each)):>8}")
    return lines, marks


class _ZonePane:
    """The gauges as text, and below them a stretch of the zone frame by frame."""

    def __init__(self, pane: TextPane, state: State):
        self.pane, self.state = pane, state

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Pane, board, legend, below each other."""
        top = y + self.pane.draw(scene, f"{key}/gauges", x, y, width) + 12
        scene.text(f"{key}.frames-head", x, top + 12, f"Frames {EXCERPT.start:#x} to {EXCERPT.stop - 1:#x}", "head", width=width)
        top += 20
        board = FrameBoard(runs_of(self.state.roles, EXCERPT.start), len(EXCERPT), EXCERPT.start, columns=32)
        top += board.draw(scene, f"{key}/frames", x, top, width) + 8
        words = {"free": "free", "kernel": "kernel: stays", "file": "cache", "anon": "one process"}
        legend = Legend({role: text for role, text in words.items() if role in self.state.roles})
        return top + legend.draw(scene, f"{key}/legend", x, top, width) - y


class _Chart:
    """Draws the path so far, with the gauges of that moment beside it."""

    def __init__(self, lab: Lab, order: int, width: float):
        self.lab, self.order, self.width = lab, order, width

    def frame(self, say: str, path: list[str], state: State, ask: Ask | None = None) -> Frame:
        """``path`` holds the names of the steps so far."""
        scene = Scene(self.width)
        begins = [place for place, name in enumerate(path) if name == "retry"]
        now = path[:begins[0]] + path[begins[-1]:] if begins else path      # of the rounds only the current one is lit
        taken = set(pairwise(path))
        taken = {pair for pair in taken if pair[0] in now and pair[1] in now or pair[1] == "retry"}
        names = list(BOXES)
        boxes = []
        for row, (name, text) in enumerate(BOXES.items()):
            mark = "now" if path and path[-1] == name else "lit" if name in now else ""
            kind = "choice" if text.endswith("?") else "step"
            rounds = path.count(name)
            boxes.append(Step(name, f"{text} ×{rounds}" if rounds > 1 else text, 0, row, kind, mark))
        ways = [Way(one, other, lit=(one, other) in taken) for one, other in pairwise(names)]
        loops = {(one, other) for one, other in taken
                 if one in names and other == "retry" and names.index(one) > names.index(other)}
        ways += [Way(one, other, "" if number else "once more", lit=True) for number, (one, other) in enumerate(sorted(loops))]
        ended = path[-1] if path and path[-1] not in BOXES else ""
        for row, name in enumerate(names):
            if ended and len(path) > 1 and path[-2] == name:
                boxes.append(Step("end", "a block" if ended == "allocated" else "NULL", 1, row, "end",
                    "now" if ended == "allocated" else "failed"))
                ways.append(Way(name, "end", lit=True))
            elif name in EXITS:
                boxes.append(Step(f"{name}.exit", EXITS[name], 1, row, "end"))
        lines, marks = _gauge_lines(self.lab.memory, state.nr_free, self.order, state.free)
        chart = FlowChart(boxes, ways, gap=22)
        zone = _ZonePane(TextPane(lines, marks=marks), state)
        scene.row([("chart", chart, "__alloc_pages(), then its slow path", 1.55), ("zone", zone, "The zone", 1)])
        return Frame(scene, say, ask=ask)


def _words(step: SlowStep, order: int) -> str:
    """One step in a sentence that stands alone."""
    name = {
        "fast_path": "Fast path",
        "wake_kswapd": "The slow path wakes",
        "first_attempt": "At the min mark",
        "compact_first": "Compaction before reclaim",
        "retry": f"Round {step.numbers.get('round', 1)}",
        "reclaim": f"Direct reclaim freed {step.numbers.get('reclaimed', 0)} pages",
        "drain": "Per-CPU lists and reserves given back",
        "compact": "Compaction",
        "should_reclaim_retry": "Is another round of reclaim worth it",
        "should_compact_retry": "Is another round of compaction worth it",
        "oom": "The last resort",
        "failed": "The request fails",
        "allocated": "Served",
    }.get(step.name, step.name)
    verdicts = step.numbers.get("zones") or []
    why = "; ".join(f"{v['zone']} has {grouped(v['free'])} pages free, mark {grouped(v['mark'])}: {v['verdict']}"
                    for v in verdicts if v["verdict"] != "ok")
    if step.name == "wake_kswapd":
        return f"{name} {step.decision}."
    text = f"{name}: {step.decision}" + (f" ({why})" if why and step.name != "failed" else "")
    return text + "."


@figure(
    "Why order N failed",
    alt="A flow chart of a page allocation from the fast path to the OOM killer, lit along the decisions of a real run of "
        "the model, beside free blocks and fragmentation indices for every order.",
    params=[
        Range("order", 0, 10, default=4),
        Choice("request", {name: name for name in REQUESTS}),
        Choice("state", STATES, label="memory"),
        Toggle("reclaim", True, label="reclaim finds pages", help="a twentieth of the used frames is page cache"),
        Toggle("oom", False, label="OOM killer", help="it may kill one process that holds 256 neighbouring frames"),
    ],
)
def why_order_failed(order: int, request: str, state: str, reclaim: bool, oom: bool, width: float) -> Iterator[Frame]:
    """Runs :meth:`mmsim.physical.page_alloc.PageAllocator.alloc_steps`; later chapters' parts are played by simple hooks."""
    lab = Lab(state, reclaim, oom)
    before = lab.state()
    told: list[tuple[SlowStep, State]] = []
    for step in lab.allocator.alloc_steps(REQUESTS[request], order):
        if step.name != "wake_kswapd" or all(earlier.name != "wake_kswapd" for earlier, _ in told):
            told.append((step, lab.state()))   # kswapd is woken again in every round: told once
    path = [step.name for step, _ in told]
    end = told[-1][0]
    chart = _Chart(lab, order, width)
    index = fragmentation_index(before.nr_free, order)
    verdict = (f"order {order} is served" if end.name == "allocated" else f"order {order} fails: {end.decision}")
    meaning = "a block is there" if index == -1000 else "lack of memory" if index < 500 else "fragmentation"
    yield chart.frame(
        f"{request}, order {order} ({4 << order} KiB), {grouped(before.free)} of {grouped(FRAMES)} frames free: "
        f"{verdict}. The fragmentation index of this order was {format_index(index)}: {meaning}.", path, before)
    ask = Ask(f"{grouped(before.free * 4)} KiB are free; the request is for {4 << order} KiB. Will it be served?",
              "yes" if end.name == "allocated" else "no",
              f"In the end: {end.decision}.", choices=["yes", "no"])
    yield chart.frame(f"{request} asks for order {order}. {grouped(before.free)} frames are free.", [], before, ask=ask)
    for number, (step, state_then) in enumerate(told, 1):
        yield chart.frame(_words(step, order), path[:number], state_then)
        if number >= 60:
            yield chart.frame(f"And so on, for {len(told) - number} steps more, until: {end.decision}.", path, told[-1][1])
            return
