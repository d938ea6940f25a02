"""Memblock sandbox: the reader edits a list of calls and watches both region lists after each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.boot.memblock import Memblock
from mmsim.boot.regions import RegionList as Regions
from mmsim.clock import Clock
from mmsim.constants import MEMBLOCK_HOTPLUG, MEMBLOCK_MIRROR, MEMBLOCK_NOMAP, NUMA_NO_NODE
from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Choice,
    Frame,
    Legend,
    Operation,
    Operations,
    Region,
    RegionList,
    Scene,
    Span,
    TextPane,
    Toggle,
    figure,
    short_size,
    text_width,
)
from mmsim.errors import KernelError
from mmsim.klog import KernelLog
from mmsim.units import PAGE_SIZE, U64_MAX, align_down, format_bytes

__all__ = ["memblock_sandbox", "free_ranges_from_the_top"]

DEFAULT = """\
add 4K 632K             # RAM below the BIOS
add 1M 15M              # and above it
reserve 0 1M            # more than there is: legal
reserve 4M 3M           # the kernel image
reserve 14M 1536K       # the initial RAM disk
alloc 256K align=64K
alloc 1M align=1M
alloc 384K
free 0xff00000 64K      # nobody has it: no error
free 14M 1536K          # the RAM disk is no longer needed
alloc 512K max=8M
"""

VERBS = {
    "add": "base:addr size:size [node:int] -- memblock_add(), or memblock_add_node(): this is RAM",
    "remove": "base:addr size:size -- memblock_remove(): this is no RAM",
    "reserve": "base:addr size:size -- memblock_reserve(): take it, be it RAM or not",
    "free": "base:addr size:size -- memblock_phys_free(): give it back",
    "alloc": "size:size [align:size] [node:int] [min:addr] [max:addr] -- find a place and reserve it",
    "nomap": "base:addr size:size -- memblock_mark_nomap(): RAM that must not be mapped",
    "hotplug": "base:addr size:size -- memblock_mark_hotplug(): RAM that may be unplugged",
    "limit": "address:addr -- memblock_set_current_limit(): nothing is mapped above",
    "resize": "-- memblock_allow_resize(): from now on a full array may grow",
}

FLAG_NAMES = {MEMBLOCK_HOTPLUG: "HOTPLUG", MEMBLOCK_MIRROR: "MIRROR", MEMBLOCK_NOMAP: "NOMAP"}


@dataclass(slots=True)
class _Step:
    """One call and what became of it, in plain data: frames are drawn when the axis is known."""

    title: str
    say: str
    memory: list[tuple[int, int, int, int]]
    reserved: list[tuple[int, int, int, int]]
    free: list[tuple[int, int]]
    slots: tuple[int, int] = (0, 0)
    changed: tuple[int, int] | None = None
    tried: tuple[tuple[int, int], ...] = ()
    result: str = ""
    bad: bool = False
    ask: Ask | None = None
    log: tuple[str, ...] = ()


def free_ranges_from_the_top(memblock: Memblock, low: int, high: int, nid: int) -> list[tuple[int, int]]:
    """The free ranges of a node (-1: of all) in the order in which a top-down search meets them, cut to [low, high)."""
    walk = memblock.for_each_free_mem_range_reverse(nid, below=high)
    cut = [(max(start, low), min(end, high)) for start, end, _ in walk]
    return [(start, end) for start, end in cut if start < end]


def _exact(size: int) -> str:
    return format_bytes(size) if size % 1024 == 0 else f"{size} bytes"


def _brief(size: int) -> str:
    """A size for a label: at most five characters."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size >> shift:
            whole, rest = size >> shift, size & ((1 << shift) - 1)
            return f"{whole}{unit}" if not rest else f"{size / (1 << shift):.1f}{unit}"
    return f"{size}"


def _place(address: int) -> str:
    """An address for a sentence: hexadecimal, with the short size where there is one."""
    short = short_size(address)
    return hex(address) if short.startswith("0x") or short == "0" else f"{address:#x} ({short})"


class _Lab:
    """A memblock, its log, and the steps made so far."""

    def __init__(self, slots: int, direction: str):
        self.log = KernelLog(Clock())
        self.memblock = Memblock(klog=self.log)
        self.memblock.bottom_up = direction == "bottom-up"
        for regions in (self.memblock.memory, self.memblock.reserved):
            regions.max = slots
        self.slots = slots
        self.asked = False
        self.steps: list[_Step] = []

    def step(self, title: str, say: str, **more: object) -> _Step:
        made = _Step(
            title, say, [(r.base, r.size, r.nid, r.flags) for r in self.memblock.memory],
            [(r.base, r.size, r.nid, r.flags) for r in self.memblock.reserved],
            [(start, end) for start, end, _ in self.memblock.for_each_free_mem_range()],
            (self.memblock.memory.max, self.memblock.reserved.max),
        )  # fmt: skip
        for name, value in more.items():
            setattr(made, name, value)
        self.steps.append(made)
        return made

    def folded(self) -> list[_Step]:
        """The steps with the leading calls that describe the machine folded into one; refused ones stay by themselves."""
        first = next((i for i, step in enumerate(self.steps) if step.tried or step.bad or step.log), len(self.steps))
        if first < 2:
            return self.steps
        last = self.steps[first - 1]
        ram, taken = sum(size for _, size, *_ in last.memory), sum(size for _, size, *_ in last.reserved)
        free = sum(end - start for start, end in last.free)
        last.title, last.result = f"{first} calls describe the machine", ""
        last.say = (
            f"{first} calls: {_exact(ram)} of RAM in {len(last.memory)} region{'' if len(last.memory) == 1 else 's'}, "
            f"{_exact(taken)} reserved in "
            f"{len(last.reserved)}. What is in the first list and not in the second is free: {_exact(free)} in {len(last.free)} "
            f"range{'' if len(last.free) == 1 else 's'}."
        )
        last.changed = None
        return self.steps[first - 1 :]

    # -- the calls -----------------------------------------------------------------------------------------

    def run(self, op: Operation) -> None:
        """Make one call; a refusal of the kernel goes to the line of the editor."""
        before = len(self.log)
        try:
            getattr(self, f"_{op.verb}")(op)
        except (KernelError, ValueError) as error:
            op.fail(error)
            self.step(op.text, f"{op.text}: {error}", bad=True, result=str(error))
        lines = tuple(self.log.lines()[before:])
        if lines and self.steps:
            self.steps[-1].log = lines

    def _list_call(self, op: Operation, regions: Regions, result: int, call: str, meaning: str) -> None:
        base, end = op["base"], min(op["base"] + op["size"], U64_MAX)
        if result:
            op.fail(
                f"-ENOMEM: all {regions.max} entries of memblock.{regions.name} are in use, and the array may not grow yet"
            )
            self.step(
                op.text,
                f"{call} returns -ENOMEM: all {regions.max} entries of the {regions.name} array are in use, and "
                "before memblock_allow_resize() it may not grow.",
                bad=True,
                result="-ENOMEM",
            )
            return
        count = f"the {regions.name} list has {len(regions)} region{'' if len(regions) == 1 else 's'}"
        self.step(op.text, f"{call}: {meaning}; {count}.{self._grown()}", changed=(base, end), result="0")

    def _grown(self) -> str:
        """A sentence about arrays that this call has doubled."""
        before = self.steps[-1].slots if self.steps else (self.slots, self.slots)
        grown = [
            f" The {regions.name} array was full: memblock gave itself a new one of {regions.max} entries, "
            f"at {self.memblock.array_at[regions.name] or 0:#x}, and reserved it."
            for regions, old in zip((self.memblock.memory, self.memblock.reserved), before, strict=True)
            if regions.max > old
        ]
        return "".join(grown)

    def _merged(self, regions: Regions, before: int) -> str:
        gone = before + 1 - len(regions)
        if gone <= 0:
            return ""
        return f", and it joins {'its equal neighbour' if gone == 1 else f'{gone} equal neighbours'}"

    def _add(self, op: Operation) -> None:
        regions, before = self.memblock.memory, len(self.memblock.memory)
        node = op.get("node", NUMA_NO_NODE)
        if node == NUMA_NO_NODE:
            result, call = self.memblock.add(op["base"], op["size"]), "memblock_add()"
        else:
            result, call = self.memblock.add_node(op["base"], op["size"], node), "memblock_add_node()"
        where = f" of node {node}" if node != NUMA_NO_NODE else ""
        self._list_call(
            op,
            regions,
            result,
            call,
            f"{_exact(op['size'])} at {_place(op['base'])} are RAM{where}{self._merged(regions, before)}",
        )

    def _remove(self, op: Operation) -> None:
        result = self.memblock.remove(op["base"], op["size"])
        self._list_call(
            op,
            self.memblock.memory,
            result,
            "memblock_remove()",
            f"{_exact(op['size'])} at {_place(op['base'])} are not RAM; reservations there stay",
        )

    def _reserve(self, op: Operation) -> None:
        base, size = op["base"], op["size"]
        regions, before = self.memblock.reserved, len(self.memblock.reserved)
        twice = self.memblock.is_region_reserved(base, size)
        ram = sum(max(0, min(r.end, base + size) - max(r.base, base)) for r in self.memblock.memory)
        result = self.memblock.reserve(base, size)
        meaning = f"{_exact(size)} at {_place(base)} are taken"
        if ram < size:
            meaning += f", though only {_exact(ram)} of that is RAM" if ram else ", though none of that is RAM"
        if twice:
            meaning += "; a part was reserved already, which is no error"
        self._list_call(op, regions, result, "memblock_reserve()", meaning + self._merged(regions, before))

    def _free(self, op: Operation) -> None:
        had = self.memblock.is_region_reserved(op["base"], op["size"])
        result = self.memblock.phys_free(op["base"], op["size"])
        meaning = f"{_exact(op['size'])} at {_place(op['base'])} are free again, whoever reserved them"
        if not had:
            meaning = f"nobody had reserved {_exact(op['size'])} at {_place(op['base'])}; memblock does not notice"
        self._list_call(op, self.memblock.reserved, result, "memblock_phys_free()", meaning)

    def _nomap(self, op: Operation) -> None:
        result = self.memblock.mark_nomap(op["base"], op["size"])
        self._list_call(
            op,
            self.memblock.memory,
            result,
            "memblock_mark_nomap()",
            "the range stays RAM, but is neither mapped nor given to anyone",
        )

    def _hotplug(self, op: Operation) -> None:
        result = self.memblock.mark_hotplug(op["base"], op["size"])
        self._list_call(
            op,
            self.memblock.memory,
            result,
            "memblock_mark_hotplug()",
            "the range may be unplugged later; only movable_node keeps allocations out of it",
        )

    def _limit(self, op: Operation) -> None:
        self.memblock.set_current_limit(op["address"])
        self.step(
            op.text,
            f"memblock_set_current_limit(): from now on no allocation ends above {_place(op['address'])}, "
            "because nothing above it is mapped.",
            result="",
        )

    def _resize(self, op: Operation) -> None:
        self.memblock.allow_resize()
        self.step(
            op.text,
            "memblock_allow_resize(): all that must survive is reserved, so a full array may be copied to a larger one.",
        )

    def _alloc(self, op: Operation) -> None:
        memblock, size, align = self.memblock, op["size"], op.get("align", 0) or 64
        node, low = op.get("node", NUMA_NO_NODE), max(op.get("min", 0), PAGE_SIZE)
        high = min(op.get("max", memblock.current_limit) or memblock.current_limit, memblock.current_limit)
        walk = free_ranges_from_the_top(memblock, low, max(high, low), node)
        if memblock.bottom_up:
            walk.reverse()
        found = memblock.find_in_range_node(size, align, low, high, node, 0)
        passed = (
            [span for span in walk if (span[0] > found if not memblock.bottom_up else span[1] <= found)]
            if found
            else walk
        )
        where = next((span for span in walk if found and span[0] <= found < span[1]), None)
        if walk:
            order = "from the bottom up" if memblock.bottom_up else "from the top down"
            tried = f"the search goes through the free ranges {order}"
            tried += f" below {_place(high)}" if high < self._top() else ""
            ranges = f"{len(walk)} free range{'' if len(walk) == 1 else 's'}"
            say = f"alloc {_exact(size)}, aligned to {_exact(align)}: {tried}; there {'is' if len(walk) == 1 else 'are'} {ranges}."
            ask = self._question(size, align, found, walk) if not self.asked and where else None
            self.asked = self.asked or ask is not None
            self.step(op.text, say, tried=tuple(walk), ask=ask)
        got = memblock.alloc_range_nid(size, align, op.get("min", 0), op.get("max", 0), node)
        if not got:
            op.fail("NULL: no free range is large enough")
            self.step(
                op.text,
                f"alloc {_exact(size)}: no free range holds it at this alignment, so the call returns NULL; most callers panic.",
                bad=True,
                result="NULL",
            )
            return
        if where is None:
            fallback = f"node {node} has no room" if node != NUMA_NO_NODE else "the search began anew"
            self.step(
                op.text,
                f"alloc {_exact(size)}: {fallback}; another node gives {_place(got)}.",
                changed=(got, got + size),
                result=hex(got),
            )
            return
        skipped = "" if not passed else f"{len(passed)} range{' is' if len(passed) == 1 else 's are'} too small; then "
        if memblock.bottom_up:
            rule = f"{where[0]:#x} rounded up to {_exact(align)} is {got:#x}"
        else:
            rule = f"{where[1]:#x} − {size:#x}, rounded down to {_exact(align)}, is {got:#x}"
        self.step(
            op.text,
            f"alloc {_exact(size)}: {skipped}{rule}. The range becomes reserved; that is all the record there is.{self._grown()}",
            changed=(got, got + size),
            result=hex(got),
        )

    def _top(self) -> int:
        return self.memblock.end_of_DRAM()

    def _question(self, size: int, align: int, found: int, walk: list[tuple[int, int]]) -> Ask | None:
        lowest = min(walk)
        first = (lowest[0] + align - 1) & ~(align - 1)
        tightest = min(
            (span for span in walk if align_down(span[1] - size, align) >= span[0]), key=lambda s: s[1] - s[0]
        )
        highest = max(walk)
        choices = {hex(found), hex(first), hex(align_down(tightest[1] - size, align)), hex(highest[0])}
        if len(choices) < 2:
            return None
        why = (
            "Bottom-up, the lowest range that is large enough is cut at its lower end."
            if self.memblock.bottom_up
            else "Top-down, the highest range that is large enough is cut at its upper end: not the best fit, not the lowest address."
        )
        return Ask(
            "Which address does the caller get?",
            hex(found),
            why,
            choices=sorted(choices, key=lambda text: int(text, 16)),
        )


def _axis(steps: list[_Step], scale: str) -> Axis:
    """One axis for all frames: over all RAM and all reservations that are near it."""
    ram = [(base, base + size) for step in steps for base, size, *_ in step.memory]
    taken = [(base, base + size) for step in steps for base, size, *_ in step.reserved]
    spans = ram + taken
    high = max((end for _, end in spans), default=16 << 20)
    low = 0 if min((start for start, _ in spans), default=0) < high // 2 else min(start for start, _ in spans)
    smallest = min((end - start for start, end in spans), default=high)
    if scale == "linear" or (scale == "auto" and smallest * 400 >= high - low):
        return Axis(low, high)
    return Axis(low, high, [Span(start, end, "free") for start, end in spans], scale="broken")


def _bars(step: _Step, axis: Axis, width: float) -> AddressBar:
    memory, reserved, free = [], [], []
    room = width - 70 if width >= 480 else width

    def fitting(label: str, start: int, end: int) -> str:
        wide = (axis.place(end) - axis.place(start)) * room
        return label if text_width(label, "small") < wide - 7 else ""

    changed = step.changed
    for base, size, nid, flags in step.memory:
        node = f"node {nid}" if nid != NUMA_NO_NODE else ""
        words = " ".join([f"RAM {node}".strip(), *(name for bit, name in FLAG_NAMES.items() if flags & bit)])
        memory.append(
            Span(
                base,
                base + size,
                "free",
                fitting(words, base, base + size),
                f"memory: {base:#x}-{base + size - 1:#x}, {_exact(size)} {words}",
            )
        )
    for base, size, *_ in step.reserved:
        reserved.append(
            Span(
                base,
                base + size,
                "reserved",
                fitting(_brief(size), base, base + size),
                f"reserved: {base:#x}-{base + size - 1:#x}, {_exact(size)}",
            )
        )
    for start, end in step.free:
        order = step.tried.index((start, end)) + 1 if (start, end) in step.tried else 0
        free.append(
            Span(
                start,
                end,
                "free",
                fitting(f"{order}" if order else _brief(end - start), start, end),
                f"free: {start:#x}-{end - 1:#x}, {_exact(end - start)}",
                mark="focus" if order else "",
            )
        )
    bars = [
        Bar("memory", memory, "memblock.memory: where RAM is"),
        Bar("reserved", reserved, "memblock.reserved: what is taken"),
        Bar("free", free, "memory minus reserved, computed anew for each search"),
    ]
    if changed and changed[1] > changed[0]:
        bars.append(Bar("this call", [Span(*changed, "moving", fitting(_brief(changed[1] - changed[0]), *changed))]))
    else:
        bars.append(Bar("this call", []))
    return AddressBar(bars, axis, thick=22)


def _table(
    name: str, rows: list[tuple[int, int, int, int]], before: list[tuple[int, int, int, int]], most: int
) -> RegionList:
    role = "free" if name == "memory" else "reserved"
    old = set(before)
    cells = []
    for base, size, nid, flags in rows:
        words = [f"{base:#x}-{base + size - 1:#x}", _brief(size)]
        words.append("-" if nid == NUMA_NO_NODE else str(nid))
        if name == "memory":
            words.append("|".join(label for bit, label in FLAG_NAMES.items() if flags & bit) or "0")
        cells.append(Region(hex(base), words, role, mark="" if (base, size, nid, flags) in old else "moving"))
    heads = ["range", "size", "node"] + (["flags"] if name == "memory" else [])
    return RegionList(cells, heads, most=most)


def _draw(step: _Step, before: _Step | None, axis: Axis, rows: tuple[int, int], width: float) -> Frame:
    scene = Scene(width)
    scene.text("call", 0, 13, step.title, "mono", "strong", width=width - 130)
    if step.result:
        scene.text("result", width, 13, f"→ {step.result}", "mono", "warn" if step.bad else "accent", "end")
    scene.y = 20
    scene.add(_bars(step, axis, width), "bar", gap=6)
    old = before or step
    scene.row([
        ("memory", _table("memory", step.memory, old.memory, rows[0]), f"memory: {len(step.memory)} of {step.slots[0]}", 1.15),
        ("reserved", _table("reserved", step.reserved, old.reserved, rows[1]), f"reserved: {len(step.reserved)} of {step.slots[1]}", 1),
    ], gap=20, above=12)  # fmt: skip
    if step.log:
        scene.add(TextPane(list(step.log[-4:]), title="kernel log"), "log", gap=10)
    scene.add(Legend({"free": "RAM, free", "reserved": "reserved", "moving": "this call"}), "legend", gap=10)
    return Frame(scene, step.say, ask=step.ask)


@figure(
    "Memblock sandbox",
    alt="Three address bars, memory, reserved and their difference, above the two region tables of memblock, after each call of an "
    "editable list. Allocations are cut from the highest free range.",
    params=[
        Operations("calls", DEFAULT, VERBS, label="calls", help="one call a line; sizes such as 64K, 0x1000 or 15M"),
        Choice("direction", ["top-down", "bottom-up"], help="bottom-up with movable_node on the command line"),
        Choice(
            "slots",
            {"4": "4", "8": "8", "128": "128, as in the kernel"},
            default="128",
            label="entries in each array",
            help="fewer entries than the kernel's 128, so that an array runs full on the page",
        ),
        Choice("scale", {"auto": "automatic", "linear": "to scale", "broken": "broken axis"}),
        Toggle(
            "each",
            False,
            label="a frame for every call",
            help="off: the calls before the first allocation are one frame",
        ),
    ],
)
def memblock_sandbox(
    calls: list[Operation], direction: str, slots: str, scale: str, each: bool, width: float
) -> Iterator[Frame]:
    """Runs the reader's calls on :class:`mmsim.boot.memblock.Memblock`; two frames for an allocation, one for any other call."""
    lab = _Lab(int(slots), direction)
    for op in calls:
        lab.run(op)
    lab.memblock.check()
    if not lab.steps:
        lab.step("(no calls)", "Both lists are empty: memblock knows of no memory. Write calls such as  add 1M 15M.")
    axis = _axis(lab.steps, scale)
    rows = (
        min(max(len(step.memory) for step in lab.steps), 10) or 1,
        min(max(len(step.reserved) for step in lab.steps), 10) or 1,
    )
    before = None
    for step in lab.steps if each else lab.folded():
        yield _draw(step, before, axis, rows, width)
        before = step
