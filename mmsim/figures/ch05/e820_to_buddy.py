"""From e820 to buddy: the same addresses six times, from the firmware's words to the free lists of the page allocator."""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.boot.e820 import E820Entry, E820Table, type_text
from mmsim.boot.image import IMAGE_5_17, TINY_IMAGE
from mmsim.constants import E820_TYPE_RAM, E820_TYPE_UNUSABLE, PAGEBLOCK_NR_PAGES
from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Frame,
    Legend,
    Operation,
    Operations,
    Scene,
    Span,
    TextPane,
    figure,
    grouped,
    short_size,
)
from mmsim.errors import InputError, KernelError
from mmsim.figures.ch05.machines import ROLE_OF_TYPE, TYPE_NAMES
from mmsim.figures.ch19.e820_surgery import TYPES, VERBS
from mmsim.machine import Machine
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.zone import Zone
from mmsim.procfs.buddyinfo import buddyinfo
from mmsim.units import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, format_bytes

__all__ = ["e820_to_buddy"]

DEFAULT = """\
usable 0 0x9fc00
reserved 0x9fc00 640K
reserved 960K 1M
usable 1M 0xffd7000
reserved 0xffd7000 256M
reserved 0xfffc0000 4G
"""
#: More RAM than this takes the page's Python too long to boot.
MOST_RAM = 8 * GIB
NAMES = ("firmware says", "sanitised", "memory", "reserved", "zones", "free blocks")


def _entries(ops: list[Operation]) -> list[E820Entry]:
    entries = []
    for op in ops:
        if op["end"] <= op["start"]:
            op.fail(f"it ends at {op['end']:#x}, not above its start {op['start']:#x}")
        else:
            entries.append(E820Entry(op["start"], op["end"] - op["start"], TYPES[op.verb]))
    return entries


def _map_span(entry: E820Entry, key: str) -> Span:
    role = "free" if entry.type == E820_TYPE_RAM else "error" if entry.type == E820_TYPE_UNUSABLE else "reserved"
    tip = f"{type_text(entry.type)}: {entry.addr:#x}-{entry.end - 1:#x}, {format_bytes(entry.size)}"
    return Span(entry.addr, entry.end, role, type_text(entry.type), tip, key=key)


def _blocks(memory: PhysicalMemory) -> list[Span]:
    """Free blocks as spans; neighbours of one order and zone are drawn as one."""
    spans: list[list[int]] = []
    for zone in memory.zones():
        for order, pfn in sorted(((order, pfn) for order, _, pfn in zone.free_blocks()), key=lambda block: block[1]):
            if spans and spans[-1][1] == pfn and spans[-1][2] == order and spans[-1][0] >= zone.start_pfn:
                spans[-1][1] += 1 << order
                spans[-1][3] += 1
            else:
                spans.append([pfn, pfn + (1 << order), order, 1])
    return [
        Span(start << PAGE_SHIFT, end << PAGE_SHIFT, "free", f"{order}" if count == 1 else f"{count} × {order}",
             f"{count} free block{'s' if count > 1 else ''} of order {order}: frames {start:#x}-{end - 1:#x}")
        for start, end, order, count in spans
    ]


def _zone_words(zone: Zone) -> str:
    return (f"zone {zone.name}: frames {zone.start_pfn:#x}-{zone.end_pfn - 1:#x}, {grouped(zone.spanned_pages)} spanned, "
            f"{grouped(zone.present_pages)} present, {grouped(zone.managed_pages)} managed")


class _Story:
    """The six bars of one boot, and the frames that tell it."""

    def __init__(self, given: list[E820Entry], boot: Machine, width: float):
        self.boot, self.width = boot, width
        self.memory = memory = boot.memory
        self.spans: list[list[Span]] = [
            [_map_span(entry, f"raw{i}") for i, entry in enumerate(given)],
            [_map_span(entry, "") for entry in boot.e820],
        ]
        self._add_memblock()
        self.spans.append([
            Span(zone.start_pfn << PAGE_SHIFT, zone.end_pfn << PAGE_SHIFT, "frame", zone.name, _zone_words(zone), key=zone.name)
            for zone in memory.zones()
        ])
        self.spans.append(_blocks(memory))
        high = max(entry.end for entry in given)
        cuts = [zone.start_pfn << PAGE_SHIFT for zone in memory.zones()]
        edges = [Span(s.start, s.end, "free") for bar in self.spans[:2] for s in bar]
        image = boot.image
        edges.append(Span(image.start, image.end, "kernel"))
        top = [span for span in self.spans[3] if span.start >= image.end and span.role != "kernel"]
        if top:
            edges.append(Span(top[0].start, top[-1].end, "reserved"))
        self.whole = Axis(0, high, edges, cuts, scale="broken")

    def _add_memblock(self) -> None:
        """memblock's two lists at the moment of the hand-over, the reserved one by owner."""
        phase = next(phase for phase in self.boot.phases if phase.step == "vfs_caches_init_early")
        self.reserved_bytes = sum(region.size for region in phase.reserved)
        self.spans.append([
            Span(r.base, r.base + r.size, "free", "RAM", f"memory: {r.base:#x}-{r.base + r.size - 1:#x}") for r in phase.memory
        ])
        self.spans.append([
            Span(run.base, run.end, "kernel" if run.who == "kernel image" else "reserved", run.who,
                f"{run.who}: {run.base:#x}-{run.end - 1:#x}, {format_bytes(run.end - run.base)}")
            for run in phase.owners
        ])

    def frame(self, say: str, upto: int = 6, axis: Axis | None = None, newest: int = -1, ticks: tuple[int, ...] = (),
              pane: bool = False, ask: Ask | None = None) -> Frame:
        """The first ``upto`` bars; the newest one is not faded, the others are."""
        scene = Scene(self.width)
        bars = []
        for number, (name, spans) in enumerate(zip(NAMES, self.spans, strict=True)):
            shown = spans if number < upto else []
            if newest >= 0 and number < newest:
                shown = [Span(s.start, s.end, s.role, s.label, s.tip, "dim", s.key) for s in shown]
            if axis is not None:
                shown = [s for s in shown if s.start < axis.high and s.end > axis.low]
            bars.append(Bar(f"{number + 1} {name}", shown, key=f"bar{number}"))
        if axis is not None:
            bars.append(Bar("pageblocks", self._pageblocks(axis.high), "the type of each 2 MiB", key="pageblocks"))
        scene.add(AddressBar(bars, axis or self.whole, thick=24, gap=8, ticks=ticks), "bars")
        if pane:
            rows = buddyinfo(self.memory).rstrip("\n").split("\n")
            if scene.narrow:
                rows = [" ".join(row.replace("Node 0, zone", "").split()) for row in rows]
            scene.add(TextPane(rows, title="/proc/buddyinfo of this machine, just booted"), "buddyinfo", gap=10)
        legend = {"free": "RAM, free", "reserved": "not free", "kernel": "kernel image"}
        if axis is not None:
            legend = {"free": "RAM, free", "reserved": "not free", "kernel": "pageblock Unmovable", "anon": "pageblock Movable"}
        scene.add(Legend(legend), "legend", gap=10)
        return Frame(scene, say, ask=ask)

    def _pageblocks(self, high: int) -> list[Span]:
        """The types of the pageblocks below ``high``, equal neighbours as one span."""
        spans: list[Span] = []
        size = PAGEBLOCK_NR_PAGES * PAGE_SIZE
        for number in range(high // size):
            migratetype = self.memory.frames.pageblock_mt[number]
            role, name = ROLE_OF_TYPE[migratetype], TYPE_NAMES[migratetype]
            start = number * size
            if spans and spans[-1].role == role:
                start = spans.pop().start
            spans.append(Span(start, (number + 1) * size, role, name, f"pageblocks {start // size}-{number}: {name}"))
        return spans

    def tell(self) -> Iterator[Frame]:
        """Overview, the six steps, then the two places worth a closer look."""
        boot, memory = self.boot, self.memory
        ram = sum(entry.size for entry in boot.e820 if entry.type == E820_TYPE_RAM)
        given = sum(span.end - span.start for span in self.spans[0] if span.role == "free")
        zones = list(memory.zones())
        blocks = sum(area.nr_free for zone in zones for area in zone.free_area)
        free = memory.nr_free_pages
        yield self.frame(
            f"One machine, six times. The firmware's map becomes {len(zones)} zone{'s' if len(zones) > 1 else ''} with "
            f"{grouped(free)} free frames in {grouped(blocks)} blocks; each bar follows from the one above it.", pane=True)
        yield self.frame(f"1. The firmware lists {len(self.spans[0])} ranges. {grouped(given // KIB)} KiB are usable RAM "
                         "by its words.", 1)
        cut = given - ram
        lost = f"{grouped(cut // KIB)} KiB fewer than" if cut > 0 else "as much as"
        yield self.frame(
            "2. Sanitised: sorted, no overlaps. The kernel also takes page 0 and what is RAM between 640 KiB and 1 MiB. "
            f"{grouped(ram // KIB)} KiB are left, {lost} the firmware called usable.", 2, newest=1)
        pages = sum(s.end - s.start for s in self.spans[2]) // PAGE_SIZE
        yield self.frame(f"3. memblock.memory is what remains in whole frames: {grouped(pages)} of them in "
                         f"{len(self.spans[2])} range{'s' if len(self.spans[2]) > 1 else ''}.", 3, newest=2)
        yield self.frame(
            f"4. memblock.reserved is what the boot itself took, {grouped(self.reserved_bytes // KIB)} KiB: the first "
            "MiB, the kernel image, and, from the top down, page tables, the memory map, per-CPU areas, hash tables.",
            4, newest=3)
        yield self.frame(
            "5. Zones cut the frames by what devices can reach: below 16 MiB, below 4 GiB, the rest. "
            + "; ".join(f"{zone.name} has {grouped(zone.present_pages)} present" for zone in zones) + ".",
            5, newest=4, ask=self._ask())
        yield self.frame(
            f"6. Memory minus reserved, cut into the largest blocks that alignment allows: {grouped(blocks)} blocks, "
            f"{grouped(free)} frames. The buddy allocator serves from them.", 6, newest=5, pane=True)
        yield from self._closer()

    def _ask(self) -> Ask | None:
        dma = self.memory.nodes[0].zones[0]
        above = sorted(pfn for _, _, pfn in dma.free_blocks() if pfn >= MIB >> PAGE_SHIFT)
        if not above or above[0] != MIB >> PAGE_SHIFT:
            return None
        order = self.memory.frames.buddy_order(above[0])
        return Ask("The free memory of zone DMA begins at 1 MiB, frame 0x100. Of what order is the first block there?", order,
                   "The lowest set bit of 0x100 is bit 8, so no larger block can begin "
                   f"there{'' if order == 8 else '; the range ends too soon for it'}: order {order}.")

    def _closer(self) -> Iterator[Frame]:
        zone = self.memory.nodes[0].zones[0]
        if not zone.populated or zone.end_pfn << PAGE_SHIFT < 2 * MIB:
            return
        end = min(zone.end_pfn << PAGE_SHIFT, 16 * MIB)
        orders = [self.memory.frames.buddy_order(pfn) for pfn in sorted(pfn for _, _, pfn in zone.free_blocks())]
        listed = ", ".join(map(str, orders[:12])) + ("…" if len(orders) > 12 else "")
        yield self.frame(
            f"Closer: zone DMA. {grouped(zone.present_pages)} frames are present, {grouped(zone.managed_pages)} managed: "
            f"the first MiB stays reserved. From the bottom up its free blocks have the orders {listed or '(none)'}.",
            axis=Axis(0, end), pane=True)
        odd = self.memory.frames.pageblock_mt[0]
        first = zone.start_pfn
        words = "Pageblock 0 begins with the zone, so it is Movable like all others."
        if first and odd == 0:
            words = (f"Zone DMA begins at frame {first}, in the middle of pageblock 0, so nothing marks that pageblock: it "
                     "keeps type 0, Unmovable; all others begin as Movable.")
        hole = self.boot.e820.mapped_any(640 * KIB, MIB, E820_TYPE_RAM)
        below = max((s.end for s in self.spans[2] if s.end <= MIB), default=0)
        gap = ""
        if below and not hole:
            gap = (f" Between memory's first range, which ends at {below:#x}, and 1 MiB there is no RAM: 384 KiB are the "
                   "hole above 640 KiB.")
        ticks = (0, 640 * KIB, MIB, 2 * MIB)
        yield self.frame(f"Closer still: the first 2 MiB. {words}{gap}", axis=Axis(0, 2 * MIB), ticks=ticks, pane=True)


@figure(
    "e820 to buddy",
    alt="Six bars on one address axis: the firmware's map, the sanitised map, memblock's memory and reserved lists, "
        "zones, and the free blocks of the buddy allocator.",
    params=[Operations("entries", DEFAULT, VERBS, label="firmware map",
                       help="one entry a line: type, start, end (the first address behind it)")],
)
def e820_to_buddy(entries: list[Operation], width: float) -> Iterator[Frame]:
    """Boots :class:`mmsim.machine.Machine` from the reader's map."""
    given = _entries(entries)
    if not given:
        raise InputError("The map has no entry: nothing can boot from it.")
    ram = sum(entry.size for entry in given if entry.type == E820_TYPE_RAM)
    if ram > MOST_RAM:
        raise InputError(f"{short_size(ram)} of RAM: this figure boots machines of up to {short_size(MOST_RAM)}.")
    if max(entry.end for entry in given if entry.type == E820_TYPE_RAM or ram == 0) > 64 * GIB:
        raise InputError("RAM ends above 64 GiB: the memory map of so wide a machine is too large for this figure.")
    table = E820Table(given)
    table.update_table()
    image = IMAGE_5_17 if table.mapped_all(IMAGE_5_17.start, IMAGE_5_17.end, E820_TYPE_RAM) else TINY_IMAGE
    if not table.mapped_all(image.start, image.end, E820_TYPE_RAM):
        raise InputError("There is no RAM at 2 MiB, where even the small kernel is loaded: this machine cannot boot.")
    try:
        machine = Machine.boot(given, image=image)
    except KernelError as error:
        raise InputError(f"This machine does not boot: {error}") from error
    yield from _Story(given, machine, width).tell()
