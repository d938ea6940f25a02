"""Buddy board: one zone of 2 MiB, drawn frame by frame, and what every request does to its blocks and lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from mmsim.constants import MIGRATE_MOVABLE, MIGRATE_UNMOVABLE, PAGEBLOCK_ORDER, ZONE_NORMAL
from mmsim.draw import (
    Ask,
    Bits,
    Choice,
    Field,
    Frame,
    FrameBoard,
    FreeLists,
    Legend,
    Operation,
    Operations,
    Run,
    Scene,
    Seed,
    figure,
)
from mmsim.errors import Errno, InputError, InvariantError, KernelBug
from mmsim.figures.ch05.machines import ROLE_OF_TYPE, TYPE_NAMES, TYPE_NUMBERS, free_lists, small_memory
from mmsim.physical.buddy import _free_one_page, check_order, find_buddy_pfn
from mmsim.physical.frames import Frames
from mmsim.physical.rmqueue import rmqueue_buddy
from mmsim.physical.zone import Zone

__all__ = ["buddy_board"]

#: One pageblock: the board's largest block has order 9.
TOP = PAGEBLOCK_ORDER
FRAMES = 1 << TOP
DEFAULT = """\
alloc 3 movable
alloc 3 movable
alloc 6 movable
free 0x0      # its buddy 0x8 is in use
free 0x8      # now both are free
free 0x40
alloc 0 unmovable
"""
VERBS = {
    "alloc": "order:int [type:movable|unmovable|reclaimable] -- take a block of 2^order frames",
    "free": "pfn:int -- give the block that begins at this frame back",
    "random": "count:int -- so many requests of the seeded workload",
}
Lists = dict[tuple[int, int], list[int]]


@dataclass(slots=True)
class _Picture:
    """What one frame shows besides the zone's state: the block that changes, its buddy, and the arithmetic."""

    say: str
    moving: tuple[int, int] | None = None
    pair: tuple[int, int] | None = None
    order: int = -1
    ask: Ask | None = None


@dataclass(slots=True)
class _Board:
    """A zone, the blocks that were given out, and how to draw both."""

    zone: Zone
    layout: str
    width: float
    owners: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def frames(self) -> Frames:
        return self.zone.frames

    def draw(self, picture: _Picture, free: Lists) -> Frame:
        """One frame: board, lists, and the two words whose bits are compared."""
        scene = Scene(self.width)
        moving = picture.moving
        runs = [
            Run(pfn, 1 << order, "moving" if (pfn, order) == moving else "free", str(order),
                f"free block of order {order}, {TYPE_NAMES.get(mt, mt)} list: {pfn:#x}-{pfn + (1 << order) - 1:#x}")
            for (order, mt), blocks in free.items() for pfn in blocks
        ]
        listed = {(run.start, run.count) for run in runs}
        for pfn, (order, mt) in self.owners.items():
            role = "moving" if (pfn, order) == moving else ROLE_OF_TYPE[mt]
            runs.append(Run(pfn, 1 << order, role, str(order), f"in use, {TYPE_NAMES[mt]}: {pfn:#x}-{pfn + (1 << order) - 1:#x}"))
            listed.add((pfn, 1 << order))
        if moving and (moving[0], 1 << moving[1]) not in listed:
            runs.append(Run(moving[0], 1 << moving[1], "moving", str(moving[1]),
                f"in nobody's hands: {moving[0]:#x}, order {moving[1]}"))
        runs.sort(key=lambda run: run.start)
        board = FrameBoard(runs, FRAMES, columns=32, hilbert=self.layout == "hilbert", height=352)
        scene.row([("board", board, "512 frames, 2 MiB; numbers are orders", 2), ("xor", _Xor(picture), "The buddy's address", 1)])
        roles = {moving[0]: "moving"} if moving else {}
        lists = FreeLists(free, [(TYPE_NAMES[mt], "free") for mt in sorted(TYPE_NAMES)], range(TOP, -1, -1), roles=roles)
        scene.add(lists, "lists", "Free lists, head first", "PFNs in hexadecimal")
        scene.add(Legend({"free": "free", "moving": "this step", **{ROLE_OF_TYPE[mt]: f"in use, {name}" for mt,
            name in TYPE_NAMES.items()}}), "legend", gap=10)
        return Frame(scene, picture.say, ask=picture.ask)


class _Xor:
    """Two PFNs as words: above bit k, bit k, below it."""

    def __init__(self, picture: _Picture):
        self.picture = picture

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        order, pair = self.picture.order, self.picture.pair
        if pair is None or order < 0:
            return scene.paragraph(f"{key}.none", x, y, "No buddies meet in this step.", width, "small", "muted")
        top = y
        pfn, buddy = pair
        scene.text(f"{key}.sum", x, top + 12, f"{pfn:#x} ^ (1 << {order}) = {buddy:#x}", "mono", width=width)
        top += 24
        for name, value in (("block", pfn), ("buddy", buddy)):
            fields = [Field(f"bit {order}", order, order, "moving")]
            if order < TOP - 1:
                fields.append(Field("pair", TOP - 1, order + 1, tip="the same in both: which block of the next order"))
            if order:
                fields.append(Field("inside", order - 1, 0, tip="zero: the block is aligned to its size"))
            top += Bits(value, fields, TOP, name).draw(scene, f"{key}/{name}", x, top, width) + 8
        return top - y


def _copy(lists: Lists) -> Lists:
    return {key: list(blocks) for key, blocks in lists.items() if blocks}


def _alloc(board: _Board, order: int, mt: int, told: bool) -> Iterator[Frame]:
    """Take a block with :func:`rmqueue_buddy`, and show the halving that this took, one half at a time."""
    check_order(order)
    zone = board.zone
    before = free_lists(zone)
    pfn = rmqueue_buddy(zone, order, mt, 0)
    if pfn is None:
        raise Errno("ENOMEM", f"no free block of order {order} or more")
    after = free_lists(zone)
    (high, source), start = next(
        (place, block) for place, blocks in sorted(before.items()) for block in blocks if block <= pfn < block + (1 << place[0]))
    kind = TYPE_NAMES[mt]
    state = _copy(before)
    state[high, source].remove(start)
    steps: list[Frame] = []
    if told and high > order:
        found = (f"alloc order {order}, {kind}: the smallest list that has a block is order {high}. Its head, {start:#x}, "
                 "is taken out.")
        if source != mt:
            found = (f"alloc order {order}, {kind}: all {kind} lists are empty. The largest block of another type is "
                     f"taken, {start:#x} of order {high} ({TYPE_NAMES[source]}), and its pageblocks become {kind}.")
        steps.append(board.draw(_Picture(found, (start, high)), _copy(state)))
        for size in range(high - 1, order - 1, -1):
            half = start + (1 << size)
            state.setdefault((size, mt), []).insert(0, half)
            if source != mt and order < size < high - 1:
                continue                    # the halving was told before; here the theft is the point
            steps.append(board.draw(_Picture(
                f"Halved to order {size}: the upper half, {half:#x}, goes to the free list of order {size}; {start:#x} "
                "stays in hand.",
                (start, size), (start, half), size), _copy(state)))
        if _copy(state) != after:
            raise InvariantError(f"the steps told for {start:#x} do not end in the lists of the zone")
    board.owners[pfn] = order, mt
    yield from steps
    how = "" if high > order else ": the head of its list, nothing is split"
    yield board.draw(_Picture(
        f"{kind} block {pfn:#x} of order {order} is handed out{how}. {zone.nr_free_pages} frames are free.", (pfn, order)), after)


def _free(board: _Board, pfn: int, told: bool, ask: bool) -> Iterator[Frame]:
    """Give a block back with :func:`_free_one_page`, and show with which buddies it merges, and which one stops it."""
    zone = board.zone
    if pfn not in board.owners:
        around = [start for start, (order, _) in board.owners.items() if start < pfn < start + (1 << order)]
        inside = f"; it is inside the block {around[0]:#x}" if around else ""
        raise InputError(f"no block in use begins at {pfn:#x}{inside}")
    order = board.owners[pfn][0]
    before = free_lists(zone)
    _free_one_page(zone, pfn, order, zone.frames.pageblock_mt[pfn >> 9])
    after = free_lists(zone)
    final = next(size for size in range(order, TOP + 1) if zone.frames.buddy_order(pfn & -(1 << size)) == size)
    listed = next(blocks for (size, _), blocks in after.items() if size == final and pfn & -(1 << final) in blocks)
    place = "tail" if len(listed) > 1 and listed[-1] == pfn & -(1 << final) else "head"
    if told:
        buddy = find_buddy_pfn(pfn, order)
        question = Ask(f"With how many buddies does {pfn:#x} merge before it stops?", final - order,
                       f"It grows from order {order} to order {final}: a merge needs a buddy that is free and whole.")
        yield board.draw(_Picture(
            f"free {pfn:#x}, order {order}: where is its buddy? Flip bit {order}: {buddy:#x}.",
            (pfn, order), (pfn, buddy), order, question if ask else None), before)
    del board.owners[pfn]
    state, start = _copy(before), pfn
    if told:
        for size in range(order, final):
            buddy = find_buddy_pfn(start, size)
            for (other, _), blocks in state.items():
                if other == size and buddy in blocks:
                    blocks.remove(buddy)
            merged = start & buddy
            yield board.draw(_Picture(
                f"Buddy {buddy:#x} is free and of order {size}: both become {merged:#x} of order {size + 1}.",
                (merged, size + 1), (start, buddy), size), _copy(state))
            start = merged
    start = pfn & -(1 << final)
    if final == TOP:
        why = "the zone has no larger block"
    else:
        buddy = find_buddy_pfn(start, final)
        whole = zone.frames.buddy_order(buddy)
        used = buddy in board.owners or whole < 0
        why = f"buddy {buddy:#x} is in use" if used else f"buddy {buddy:#x} is free only as order {whole}"
    yield board.draw(_Picture(
        f"{start:#x} goes to the {place} of the free list of order {final}: {why}. {zone.nr_free_pages} frames are free.",
        (start, final), None if final == TOP else (start, find_buddy_pfn(start, final)), final), after)


def _random(board: _Board, count: int, dice: Random) -> Iterator[Frame]:
    """A seeded mix: small blocks more often than large ones, and frees so that the zone stays about half full."""
    for _ in range(min(count, 100)):
        crowded = board.zone.nr_free_pages < FRAMES // 3
        if board.owners and dice.random() < (0.8 if crowded else 0.35):
            yield from _free(board, dice.choice(sorted(board.owners)), False, False)
            continue
        order = min(int(dice.expovariate(0.6)), 6)
        mt = MIGRATE_UNMOVABLE if dice.random() < 0.15 else MIGRATE_MOVABLE
        try:
            yield from _alloc(board, order, mt, False)
        except Errno as error:
            yield board.draw(_Picture(f"alloc order {order}, {TYPE_NAMES[mt]}: {error}."), free_lists(board.zone))


def _overview(ops: list[Operation], layout: str, seed: int, width: float) -> Frame:
    """The state that all requests before the first ``free`` lead to: what the reader sees without a click."""
    memory = small_memory((ZONE_NORMAL, FRAMES), per_cpu_lists=False)
    board = _Board(memory.nodes[0].zones[ZONE_NORMAL], layout, width)
    dice, done = Random(seed), 0
    for op in ops:
        if op.verb == "free":
            break
        try:
            order = op.get("order", 0)
            if op.verb == "random":
                steps = _random(board, op["count"], dice)
            else:
                steps = _alloc(board, order, TYPE_NUMBERS[op.get("type", "movable")], False)
            done += sum(1 for _ in steps)
        except (Errno, KernelBug):
            continue
    free = free_lists(board.zone)
    blocks = sum(map(len, free.values()))
    pair = next(((pfn, find_buddy_pfn(pfn, order), order) for pfn, (order, _) in board.owners.items() if order < TOP), None)
    return board.draw(_Picture(
        f"A zone of 512 frames after {done} request{'' if done == 1 else 's'}: {len(board.owners)} blocks are in use, "
        f"{board.zone.nr_free_pages} frames are free in {blocks} blocks. The number on a block is its order. Step on to "
        "see how it came to this.",
        pair=pair[:2] if pair else None, order=pair[2] if pair else -1), free)


@figure(
    "Buddy board",
    alt="A zone of 512 page frames with its free and used blocks, the free lists by order and mobility type, and the bits "
        "of a block's address beside those of its buddy.",
    params=[
        Operations("ops", DEFAULT, VERBS, label="requests"),
        Choice("layout", {"rows": "row by row", "hilbert": "Hilbert curve"}, label="map"),
        Seed(),
    ],
)
def buddy_board(ops: list[Operation], layout: str, seed: int, width: float) -> Iterator[Frame]:
    """Runs :mod:`mmsim.physical.buddy` on a zone of one block of order 9, without per-CPU lists."""
    memory = small_memory((ZONE_NORMAL, FRAMES), per_cpu_lists=False)
    zone = memory.nodes[0].zones[ZONE_NORMAL]
    board = _Board(zone, layout, width)
    dice = Random(seed)
    yield _overview(ops, layout, seed, width)
    yield board.draw(_Picture("At first all 512 frames are free, in one block of order 9 at the head of the Movable list.",
                              (0, TOP)), free_lists(zone))
    asked = False
    for op in ops:
        try:
            if op.verb == "alloc":
                yield from _alloc(board, op["order"], TYPE_NUMBERS[op.get("type", "movable")], True)
            elif op.verb == "free":
                pfn = op["pfn"]
                buddy = find_buddy_pfn(pfn, board.owners[pfn][0]) if pfn in board.owners else pfn
                question = not asked and buddy != pfn and zone.frames.buddy_order(buddy) >= 0
                asked = asked or question
                yield from _free(board, pfn, True, question)
            else:
                yield from _random(board, op["count"], dice)
        except Exception as error:
            op.fail(error)
            yield board.draw(_Picture(f"{op.text}: refused. {error}"), free_lists(zone))
    memory.check()
