"""recordings/*/buddy.out/kmem-trace.txt: every kmem:mm_page_* event of a run, replayed for consistency.

The trace begins on a running machine, so what each frame was before is unknown until an event names it. From then on a
frame is in one of four places, and every event moves a block from one to another::

    in use ──mm_page_free──► a per-CPU list ──mm_page_pcpu_drain──► the free lists
       ▲                          │    ▲                               │
       └────────mm_page_alloc─────┘    └──mm_page_alloc_zone_locked────┘    (other orders: straight to mm_page_alloc)

An event agrees if all frames of its block are where it must take them from (or were never seen), and its fields fit. As far
as the contents of a per-CPU list are known, the very frame is predicted: an allocation takes the head, a drain the tail.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsim.constants import MAX_ORDER, MIGRATE_MOVABLE, MIGRATE_PCPTYPES, PAGEBLOCK_ORDER, ZONE_NAMES
from mmsim.errors import InputError, KernelBug
from mmsim.physical.fallback import FALLBACKS
from mmsim.physical.gfp import GFP_FLAGS, gfp_migratetype, gfp_zone
from mmsim.physical.pcp import pcp_allowed_order
from mmsim.replay.readers import read_text
from mmsim.replay.registry import Check, replays

__all__ = ["kmem_trace"]

_LINE = re.compile(r"\s*(?P<task>\S.*?)-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\]\s+\S+\s+[\d.]+: (?P<event>\w+): (?P<fields>.*)")
_EVENTS = ("mm_page_alloc", "mm_page_free", "mm_page_free_batched", "mm_page_alloc_zone_locked", "mm_page_pcpu_drain",
           "mm_page_alloc_extfrag")

IN_USE, ON_PCP_LIST, IN_FREE_LIST, TAKEN = "in use", "on a per-CPU list", "in a free list", "taken from a free list"


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block is: its first frame and order; on a per-CPU list also the CPU and, if it is known, the list's
    type."""

    pfn: int
    order: int
    place: str
    cpu: int = -1
    migratetype: int = -1


class PcpLists:
    """What is known of the per-CPU lists: for each the blocks at its head, above those that were there before the trace.

    A freed block goes to the list of its pageblock's type, which the trace tells only afterwards, when the block is
    allocated again or drained: ``pageblock_types`` is gathered before the replay. Where that leaves a doubt, lists of the
    CPU and order are not predicted until they have been empty.
    """

    def __init__(self, pageblock_types: Mapping[int, int]):
        self.pageblock_types = pageblock_types
        self._lists: dict[tuple[int, int, int, int], deque[int]] = {}
        self._doubtful: set[tuple[int, int, int, int]] = set()
        self._refilling: tuple[int, int, int, int] | None = None

    @staticmethod
    def _key(cpu: int, zone: int, order: int, migratetype: int) -> tuple[int, int, int, int]:
        # Types without lists of their own stand among the movable blocks.
        return cpu, zone, order, migratetype if migratetype < MIGRATE_PCPTYPES else MIGRATE_MOVABLE

    def free(self, cpu: int, zone: int, order: int, pfn: int) -> None:
        """A block comes to the head of its list."""
        self._refilling = None
        migratetype = self.pageblock_types.get(pfn >> PAGEBLOCK_ORDER, -1)
        if migratetype >= 0:
            self._lists.setdefault(self._key(cpu, zone, order, migratetype), deque()).appendleft(pfn)
        else:
            self._doubtful.update(self._key(cpu, zone, order, each) for each in range(MIGRATE_PCPTYPES))

    def refill(self, cpu: int, zone: int, order: int, migratetype: int, pfn: int) -> str:
        """A block comes to the tail of a list that has run empty. Return what is wrong, or nothing."""
        key = self._key(cpu, zone, order, migratetype)
        pages = self._lists.setdefault(key, deque())
        problem = ""
        if self._refilling != key:
            if pages and key not in self._doubtful:
                problem = f"the list is refilled while it holds {len(pages)} blocks"
            pages.clear()
            self._doubtful.discard(key)
            self._refilling = key
        pages.append(pfn)
        return problem

    def allocate(self, cpu: int, zone: int, order: int, migratetype: int, pfn: int) -> str:
        """A block is taken from the head of a list. Return what is wrong, or nothing."""
        self._refilling = None
        return self._take(self._key(cpu, zone, order, migratetype), pfn, 0)

    def drain(self, cpu: int, zone: int, order: int, migratetype: int, pfn: int) -> str:
        """A block is taken from the tail of a list: first those that were there before the trace. Return what is wrong."""
        self._refilling = None
        key = self._key(cpu, zone, order, migratetype)
        return self._take(key, pfn, -1) if pfn in self._lists.get(key, ()) else ""

    def _take(self, key: tuple[int, int, int, int], pfn: int, end: int) -> str:
        pages = self._lists.get(key)
        if not pages:
            return ""
        predicted = pages[end]
        if predicted == pfn:
            pages.pop() if end else pages.popleft()
            return ""
        if pfn in pages:
            pages.remove(pfn)
        return "" if key in self._doubtful else f"the {'tail' if end else 'head'} of the CPU's list is {predicted:#x}"


@dataclass(slots=True)
class ZoneSpan:
    """A zone's frames, from zoneinfo."""

    index: int
    start_pfn: int
    end_pfn: int


@dataclass(slots=True)
class Frames:
    """What the trace has told of every frame so far. ``problems`` gathers what does not fit in the event at hand."""

    zones: list[ZoneSpan]
    percpu_refill_is_order_0: bool
    pcp_lists: PcpLists
    blocks: dict[int, Block] = field(default_factory=dict)
    not_batched: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def expect(self, condition: bool, problem: str) -> None:
        """Note a problem unless ``condition`` holds."""
        if not condition:
            self.problems.append(problem)

    def known(self, pfn: int, order: int) -> set[Block]:
        """The blocks of which frames of this block are known."""
        return {self.blocks[frame] for frame in range(pfn, pfn + (1 << order)) if frame in self.blocks}

    def put(self, block: Block) -> None:
        """Say where a block is now."""
        for frame in range(block.pfn, block.pfn + (1 << block.order)):
            self.blocks[frame] = block

    def zone_of(self, pfn: int, order: int) -> int | None:
        """The type of the zone that holds the whole block."""
        for zone in self.zones:
            if zone.start_pfn <= pfn and pfn + (1 << order) <= zone.end_pfn:
                return zone.index
        return None

    # -- the events --------------------------------------------------------------------------------------------

    def block_fits(self, pfn: int, order: int) -> None:
        """Every block is aligned to its order and lies in one zone."""
        self.expect(0 <= order < MAX_ORDER and pfn & (1 << order) - 1 == 0, f"frame {pfn:#x} is not aligned to order {order}")
        self.expect(self.zone_of(pfn, order) is not None, "the block does not lie in one zone")

    def mm_page_alloc(self, cpu: int, pfn: int, order: int, migratetype: int, gfp_flags: str) -> None:
        """A caller gets a block: from this CPU's list of its order and type, or, for other orders, just taken from a
        free list."""
        gfp = sum(GFP_FLAGS.get(name, 0) for name in gfp_flags.split("|"))
        self.expect(gfp_migratetype(gfp) == migratetype, f"{gfp_flags} asks for type {gfp_migratetype(gfp)}")
        if pfn == 0:
            # A failed request. (Frame 0 is reserved for ever.)
            return
        self.block_fits(pfn, order)
        zone = self.zone_of(pfn, order)
        try:
            self.expect(zone is None or zone <= gfp_zone(gfp), f"zone {zone} is above what {gfp_flags} may use")
        except KernelBug as bug:
            self.problems.append(str(bug))
        known = self.known(pfn, order)
        wanted = ON_PCP_LIST if pcp_allowed_order(order) else TAKEN
        for block in known:
            self.expect(block.place == wanted, f"frame {block.pfn:#x} (order {block.order}) is {block.place}, not {wanted}")
            self.expect((block.pfn, block.order) == (pfn, order), f"it is part of a block of order {block.order} at {block.pfn:#x}")
            self.expect(block.cpu in (-1, cpu), f"it is on CPU {block.cpu}'s list")
            self.expect(block.migratetype in (-1, migratetype), f"it is on the list of type {block.migratetype}")
        self.expect(bool(known) or wanted == ON_PCP_LIST, "no block was taken from a free list for it")
        if zone is not None and wanted == ON_PCP_LIST:
            problem = self.pcp_lists.allocate(cpu, zone, order, migratetype, pfn)
            self.expect(not problem, problem)
        self.put(Block(pfn, order, IN_USE))

    def mm_page_free(self, cpu: int, pfn: int, order: int) -> None:
        """A caller gives a block back: it must be in use, and be the block that was allocated, or a part of it
        (split_page())."""
        self.block_fits(pfn, order)
        for block in self.known(pfn, order):
            self.expect(block.place == IN_USE, f"double free: frame {block.pfn:#x} is {block.place}")
            self.expect(block.order >= order, f"the block was allocated with order {block.order}")
        # The list's type is that of the pageblock, which the trace does not tell.
        self.put(Block(pfn, order, ON_PCP_LIST, cpu) if pcp_allowed_order(order) else Block(pfn, order, IN_FREE_LIST))
        zone = self.zone_of(pfn, order)
        if zone is not None and pcp_allowed_order(order):
            self.pcp_lists.free(cpu, zone, order, pfn)
        if order == 0:
            self.not_batched.add(pfn)

    def mm_page_free_batched(self, cpu: int, pfn: int, order: int) -> None:
        """A page freed as part of a list goes to the CPU's list: it was freed before, and is announced once."""
        self.expect(order == 0, "only single pages are freed in batches")
        self.expect(pfn in self.not_batched, f"frame {pfn:#x} was not freed before, or was announced already")
        self.expect(self.blocks.get(pfn) == Block(pfn, 0, ON_PCP_LIST, cpu), f"frame {pfn:#x} is not on this CPU's list")
        self.not_batched.discard(pfn)

    def mm_page_alloc_zone_locked(self, cpu: int, pfn: int, order: int, migratetype: int, percpu_refill: int) -> None:
        """A block leaves the free lists: for a per-CPU list if those have its order, else for the caller."""
        self.block_fits(pfn, order)
        for block in self.known(pfn, order):
            self.expect(block.place == IN_FREE_LIST, f"frame {block.pfn:#x} is {block.place}, not in a free list")
        refill = order == 0 if self.percpu_refill_is_order_0 else pcp_allowed_order(order) and migratetype < MIGRATE_PCPTYPES
        self.expect(percpu_refill == int(refill), f"percpu_refill of order {order} should be {int(refill)}")
        zone = self.zone_of(pfn, order)
        if zone is not None and pcp_allowed_order(order):
            problem = self.pcp_lists.refill(cpu, zone, order, migratetype, pfn)
            self.expect(not problem, problem)
        self.put(Block(pfn, order, ON_PCP_LIST, cpu, migratetype) if pcp_allowed_order(order) else Block(pfn, order, TAKEN))

    def mm_page_pcpu_drain(self, cpu: int, pfn: int, order: int, migratetype: int) -> None:
        """A block goes from a per-CPU list back to the free lists, under the type of its list."""
        self.block_fits(pfn, order)
        self.expect(pcp_allowed_order(order), f"there are no per-CPU lists of order {order}")
        for block in self.known(pfn, order):
            self.expect(block.place == ON_PCP_LIST, f"frame {block.pfn:#x} is {block.place}, not on a per-CPU list")
            self.expect((block.pfn, block.order) == (pfn, order), f"it is part of a block of order {block.order} at {block.pfn:#x}")
            self.expect(block.migratetype in (-1, migratetype), f"it is on the list of type {block.migratetype}")
            # Another CPU may drain this one's lists.
            cpu = block.cpu if block.cpu >= 0 else cpu
        zone = self.zone_of(pfn, order)
        if zone is not None:
            problem = self.pcp_lists.drain(cpu, zone, order, migratetype, pfn)
            self.expect(not problem, problem)
        self.put(Block(pfn, order, IN_FREE_LIST))

    def mm_page_alloc_extfrag(self, cpu: int, pfn: int, alloc_order: int, fallback_order: int, pageblock_order: int,
                              alloc_migratetype: int, fallback_migratetype: int, fragmenting: int, change_ownership: int) -> None:
        """A request steals from another type: a larger or equal block, of a type in its fallback order, that is
        free."""
        self.block_fits(pfn, fallback_order)
        for block in self.known(pfn, fallback_order):
            self.expect(block.place == IN_FREE_LIST, f"frame {block.pfn:#x} is {block.place}, not in a free list")
        self.expect(alloc_order <= fallback_order, "the stolen block is smaller than the request")
        self.expect(pageblock_order == PAGEBLOCK_ORDER, f"pageblock_order should be {PAGEBLOCK_ORDER}")
        self.expect(fallback_migratetype in FALLBACKS.get(alloc_migratetype, ()),
                    f"type {alloc_migratetype} does not fall back to {fallback_migratetype}")
        self.expect(fragmenting == int(fallback_order < PAGEBLOCK_ORDER), "fragmenting means: less than a pageblock")
        self.expect(change_ownership in (0, 1) and (change_ownership == 1 or fallback_order < PAGEBLOCK_ORDER),
                    "whole pageblocks always change their type")


def _zone_spans(path: Path) -> list[ZoneSpan]:
    """The zones of the machine, from the zoneinfo in ``before.txt`` beside the trace."""
    before = path.with_name("before.txt")
    if not before.exists():
        raise InputError("before.txt, which tells the machine's zones, is not beside it")
    spans = []
    for part in re.split(r"(?m)^Node ", read_text(before)):
        sizes = {key: int(value) for key, value in re.findall(r"(?m)^ +(spanned|start_pfn):? +(\d+)$", part)}
        name = re.match(r"\d+, zone +(\w+)", part)
        if name and sizes.get("spanned") and "start_pfn" in sizes:
            spans.append(ZoneSpan(ZONE_NAMES.index(name[1]), sizes["start_pfn"], sizes["start_pfn"] + sizes["spanned"]))
    if not spans:
        raise InputError("before.txt beside it has no zoneinfo")
    return spans


@dataclass(slots=True)
class TraceEvent:
    """One line of the trace: where it stands, its text, and its fields (all numbers but ``gfp_flags``)."""

    line: int
    text: str
    name: str
    cpu: int
    fields: dict[str, Any]


def _events(path: Path) -> list[TraceEvent]:
    """The mm_page_* events of a trace. Raise InputError if it is cut off or a line cannot be read."""
    whole = read_text(path)
    lines = [(number, text) for number, text in enumerate(whole.split("\n"), 1)
             if text.strip() and not text.startswith("#")]
    written = re.search(r"(?m)^# entries-in-buffer/entries-written: (\d+)/", whole)
    if not whole.endswith("\n") or written and len(lines) < int(written[1]):
        raise InputError(f"is truncated: {len(lines)} lines where its heading announces {written[1] if written else 'more'}")
    events = []
    for number, text in lines:
        line = _LINE.match(text)
        if not line:
            raise InputError(f"line {number} is no trace event: {text[:80]!r}")
        if line["event"] not in _EVENTS:
            continue
        words = dict(part.partition("=")[::2] for part in line["fields"].split())
        words.pop("page", None)
        try:
            fields: dict[str, Any] = {name: value if name == "gfp_flags" else int(value, 0) for name, value in words.items()}
        except ValueError:
            raise InputError(f"line {number}: the event is cut off: {text.strip()[:120]!r}") from None
        for name in ("order", "fallback_order"):
            if not 0 <= fields.get(name, 0) < MAX_ORDER:
                raise InputError(f"line {number}: there are no blocks of order {fields[name]}")
        events.append(TraceEvent(number, f"{line['event']} {line['fields']}", line["event"], int(line["cpu"]), fields))
    return events


def _pageblock_types(events: Iterable[TraceEvent]) -> dict[int, int]:
    """The migratetype of each pageblock of which it is certain: what became of blocks that were freed into a per-CPU list."""
    freed: set[int] = set()
    types: dict[int, set[int]] = {}
    for event in events:
        pfn = event.fields.get("pfn", 0)
        if event.name == "mm_page_free":
            freed.add(pfn)
        elif event.name == "mm_page_alloc_zone_locked":
            freed.discard(pfn)
        elif event.name == "mm_page_alloc_extfrag":
            # Stealing may give pageblocks another type, from then on.
            end = pfn + (1 << event.fields.get("fallback_order", 0))
            for block in range(pfn >> PAGEBLOCK_ORDER, (end - 1 >> PAGEBLOCK_ORDER) + 1):
                types.setdefault(block, set()).add(-1)
        elif event.name in ("mm_page_pcpu_drain", "mm_page_alloc") and pfn in freed:
            freed.discard(pfn)
            types.setdefault(pfn >> PAGEBLOCK_ORDER, set()).add(event.fields.get("migratetype", -1))
    return {block: min(found) for block, found in types.items() if len(found) == 1 and -1 not in found}


@replays("buddy.out/kmem-trace*.txt*", "*/kmem-trace*.txt*")
def kmem_trace(path: Path) -> Iterator[Check]:
    """Every mm_page_* event, one check each: its block is aligned, in one zone, and where the event takes it from (not
    allocated twice, not freed twice, refilled from and drained to the free lists, on the CPU's own list of its order and
    type); where a per-CPU list is known, an allocation takes its head, a drain its tail, and a refill finds it empty; the
    migratetype and zone follow from the GFP flags; percpu_refill and the fields of extfrag follow their rules."""
    release = re.search(r"linux-(\d+)\.(\d+)", str(path.absolute().parent))
    # Up to 5.18 the kernel derives the field percpu_refill from the order alone.
    old = not release or (int(release[1]), int(release[2])) < (5, 19)
    events = _events(path)
    frames = Frames(_zone_spans(path), old, PcpLists(_pageblock_types(events)))
    for event in events:
        frames.problems.clear()
        try:
            getattr(frames, event.name)(event.cpu, **event.fields)
        except TypeError:
            raise InputError(f"line {event.line}: the event is cut off or has other fields: {event.text[:120]!r}") from None
        yield Check(f"line {event.line}: {event.text}", not frames.problems, "this event", "; ".join(frames.problems))
