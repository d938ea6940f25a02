"""recordings/*/buddy.out/kmem-trace.txt: every kmem:mm_page_* event of a run, replayed for consistency.

The trace begins on a running machine, so what each frame was before is unknown until an event names it. From then on a
frame is in one of four places, and every event moves a block from one to another::

    in use ──mm_page_free──► a per-CPU list ──mm_page_pcpu_drain──► the free lists
       ▲                          │    ▲                               │
       └────────mm_page_alloc─────┘    └──mm_page_alloc_zone_locked────┘    (other orders: straight to mm_page_alloc)

An event agrees if all frames of its block are where it must take them from (or were never seen), and its fields fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmsim.constants import MAX_ORDER, MIGRATE_PCPTYPES, PAGEBLOCK_ORDER, ZONE_NAMES
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
        self.put(Block(pfn, order, ON_PCP_LIST, cpu, migratetype) if pcp_allowed_order(order) else Block(pfn, order, TAKEN))

    def mm_page_pcpu_drain(self, cpu: int, pfn: int, order: int, migratetype: int) -> None:
        """A block goes from a per-CPU list back to the free lists, under the type of its list."""
        self.block_fits(pfn, order)
        self.expect(pcp_allowed_order(order), f"there are no per-CPU lists of order {order}")
        for block in self.known(pfn, order):
            self.expect(block.place == ON_PCP_LIST, f"frame {block.pfn:#x} is {block.place}, not on a per-CPU list")
            self.expect((block.pfn, block.order) == (pfn, order), f"it is part of a block of order {block.order} at {block.pfn:#x}")
            self.expect(block.migratetype in (-1, migratetype), f"it is on the list of type {block.migratetype}")
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


@replays("buddy.out/kmem-trace*.txt*", "*/kmem-trace*.txt*")
def kmem_trace(path: Path) -> Iterator[Check]:
    """Every mm_page_* event, one check each: its block is aligned, in one zone, and where the event takes it from
    (not allocated twice, not freed twice, refilled from and drained to the free lists, on the CPU's own list of its
    order and type); the migratetype and zone follow from the GFP flags; percpu_refill and the fields of extfrag
    follow their rules."""
    release = re.search(r"linux-(\d+)\.(\d+)", str(path.resolve().parent))
    # Up to 5.18 the kernel derives the field from the order alone.
    old = not release or (int(release[1]), int(release[2])) < (5, 19)
    frames = Frames(_zone_spans(path), old)
    whole = read_text(path)
    lines = [(number, text) for number, text in enumerate(whole.split("\n"), 1) if text.strip() and not text.startswith("#")]
    written = re.search(r"(?m)^# entries-in-buffer/entries-written: (\d+)/", whole)
    if not whole.endswith("\n") or written and len(lines) < int(written[1]):
        raise InputError(f"is truncated: {len(lines)} lines where its heading announces {written[1] if written else 'more'}")
    for number, text in lines:
        line = _LINE.match(text)
        if not line:
            raise InputError(f"line {number} is no trace event: {text[:80]!r}")
        if line["event"] not in _EVENTS:
            continue
        fields = dict(part.partition("=")[::2] for part in line["fields"].split())
        fields.pop("page", None)
        try:
            values: dict[str, int | str] = {
                name: value if name == "gfp_flags" else int(value, 0) for name, value in fields.items()}
            impossible = [values[name] for name in ("order", "fallback_order")
                          if name in values and not 0 <= int(values[name]) < MAX_ORDER]
            frames.problems.clear()
            if not impossible:
                getattr(frames, line["event"])(int(line["cpu"]), **values)
        except (TypeError, ValueError):
            raise InputError(f"line {number}: the event is cut off or has other fields: {text.strip()[:120]!r}") from None
        if impossible:
            raise InputError(f"line {number}: there are no blocks of order {impossible[0]}")
        yield Check(f"line {number}: {line['event']} {line['fields']}", not frames.problems,
                    "this event", "; ".join(frames.problems))
