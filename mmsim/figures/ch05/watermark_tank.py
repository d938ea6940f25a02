"""Watermark tank: three zones drain, and for one kind of request after the other the floor is reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmsim.constants import (
    _GFP_DIRECT_RECLAIM,
    ALLOC_HARDER,
    ALLOC_HIGH,
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    ALLOC_WMARK_LOW,
    GFP_ATOMIC,
    GFP_DMA,
    GFP_DMA32,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    MAX_NR_ZONES,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    ZONE_NAMES,
)
from mmsim.draw import Ask, Choice, Frame, Level, Scene, Tank, Toggle, figure, grouped
from mmsim.physical.gfp import gfp_to_alloc_flags, gfp_zone
from mmsim.physical.watermark import Reserves, zone_watermark_ok

__all__ = ["CALLERS", "MACHINES", "TankZone", "floor_of", "watermark_tank"]

#: Managed pages of DMA, DMA32 and Normal: two recorded machines and one with 24 GiB.
MACHINES: dict[str, tuple[int, int, int]] = {
    "256 MiB": (3840, 54963, 0), "8 GiB": (3840, 772915, 1212416), "24 GiB": (3840, 757504, 5347840),
}


@dataclass(slots=True)
class _Area:
    """Free blocks of one order: what a watermark check of order 0 never looks at."""

    nr_free: int = 0
    free_list: list[list[int]] = field(default_factory=lambda: [[] for _ in range(5)])


@dataclass(slots=True)
class TankZone:
    """A zone with nothing but its numbers: what the arithmetic of :mod:`mmsim.physical.watermark` needs."""

    index: int
    managed_pages: int
    nr_free_pages: int = 0
    watermark: list[int] = field(default_factory=lambda: [0, 0, 0])
    watermark_boost: int = 0
    lowmem_reserve: list[int] = field(default_factory=lambda: [0] * MAX_NR_ZONES)
    nr_reserved_highatomic: int = 0
    nr_free_cma_pages: int = 0
    free_area: list[_Area] = field(default_factory=lambda: [_Area() for _ in range(11)])

    @property
    def present_pages(self) -> int:
        """As many as managed: holes don't matter here."""
        return self.managed_pages

    @property
    def name(self) -> str:
        """The kernel's name for zones of this type."""
        return ZONE_NAMES[self.index]


@dataclass(frozen=True, slots=True)
class Caller:
    """A kind of request: its GFP mask, and allocation flags that come from the task rather than from the mask."""

    gfp_mask: int
    words: str
    task_flags: int = 0


CALLERS: dict[str, Caller] = {
    "GFP_KERNEL": Caller(GFP_KERNEL, "the kernel for itself; may sleep and reclaim"),
    "GFP_HIGHUSER_MOVABLE": Caller(GFP_HIGHUSER_MOVABLE, "a page of a process; may sleep and reclaim"),
    "GFP_ATOMIC": Caller(GFP_ATOMIC, "an interrupt handler; may not sleep"),
    "GFP_KERNEL|GFP_DMA32": Caller(GFP_KERNEL | GFP_DMA32, "a device that reaches 4 GiB"),
    "GFP_KERNEL|GFP_DMA": Caller(GFP_KERNEL | GFP_DMA, "a device that reaches 16 MiB"),
    "OOM victim": Caller(GFP_KERNEL, "a task that the OOM killer chose", ALLOC_OOM),
    "PF_MEMALLOC": Caller(GFP_KERNEL, "a task that is reclaiming memory", ALLOC_NO_WATERMARKS),
}


def make_zones(machine: str, thp: bool) -> tuple[list[TankZone], Reserves]:
    """The zones of a machine with the marks and reserves that a boot gives them."""
    zones = [TankZone(index, pages, pages) for index, pages in enumerate((*MACHINES[machine], 0))]
    reserves = Reserves([zones])
    reserves.init_per_zone_wmark_min()
    if thp:
        reserves.set_recommended_min_free_kbytes()
    return zones, reserves


def slow_flags(caller: Caller) -> int:
    """Allocation flags of the slow path's attempts (5.17: gfp_to_alloc_flags(), __gfp_pfmemalloc_flags())."""
    return caller.task_flags or gfp_to_alloc_flags(caller.gfp_mask)


def floor_of(zone: TankZone, caller: Caller, alloc_flags: int) -> int:
    """The number of free pages at and below which :func:`zone_watermark_ok` refuses a single page; it may be more than the zone has."""
    if alloc_flags & ALLOC_NO_WATERMARKS:
        return 0
    low, high = -1, 1 << 40
    mark = zone.watermark[alloc_flags & 3]
    highest = gfp_zone(caller.gfp_mask)
    while high - low > 1:
        middle = (low + high) // 2
        if zone_watermark_ok(zone, 0, mark, highest, alloc_flags, middle):
            high = middle
        else:
            low = middle
    return low


class _FilledTank(Tank):
    """A tank whose surface is drawn as a line: free memory is pale."""

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """The tank, and its surface."""
        high = super().draw(scene, key, x, y, width)
        wide = min(max(width * 0.36, 34), 72)
        top = y + 36 + self.height * (1 - min(max(self.level / self.top, 0), 1))
        scene.line(f"{key}.surface", x, top, x + wide, top, "wire lit", f"{grouped(self.level)} pages are free")
        return high


class _Floors:
    """A table: one row for each kind of request, one column for each zone."""

    def __init__(self, zones: list[TankZone], chosen: str):
        self.zones, self.chosen = zones, chosen

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        step, first = 21.0, width * (0.44 if scene.narrow else 0.34)
        column = (width - first) / max(len(self.zones), 3)
        for place, zone in enumerate(self.zones, 1):
            scene.text(f"{key}.head:{zone.name}", x + first + column * place - 6, y + 12, zone.name, "small", "muted", "end")
        scene.line(f"{key}.rule", x, y + 18, x + width, y + 18, "axis")
        top = y + 19
        for name, caller in CALLERS.items():
            row = f"{key}/{name}"
            if name == self.chosen:
                scene.rect(f"{row}.mark", x, top + 1, width, step - 2, "mark", rx=2)
            scene.text(f"{row}.name", x + 4, top + 15, name, "small", "strong" if name == self.chosen else "", width=first - 8,
                tip=caller.words)
            for place, zone in enumerate(self.zones, 1):
                floor = floor_of(zone, caller, slow_flags(caller))
                may = zone.index <= gfp_zone(caller.gfp_mask)
                words = "–" if not may else grouped(floor) if floor < zone.managed_pages else "never"
                has = f"the zone has {grouped(zone.managed_pages)}"
                tip = f"refused at {grouped(floor)} free pages or fewer; {has}" if may else "may not use this zone"
                cls = "muted" if words == "–" else "warn" if words == "never" else "strong" if name == self.chosen else ""
                scene.text(f"{row}:{zone.name}", x + first + column * place - 6, top + 15, words, "small", cls, "end", tip=tip)
            top += step
        return top - y


class _Tanks:
    """The zones side by side, and the table of floors below."""

    def __init__(self, zones: list[TankZone], caller_name: str, width: float):
        self.zones = [zone for zone in zones if zone.managed_pages]
        self.caller_name, self.caller, self.width = caller_name, CALLERS[caller_name], width

    def reachable(self) -> list[TankZone]:
        """Zones that the request may use, in the order in which it tries them."""
        return [zone for zone in reversed(self.zones) if zone.index <= gfp_zone(self.caller.gfp_mask)]

    def _tank(self, zone: TankZone, alloc_flags: int, current: TankZone | None) -> Tank:
        marks = [Level(zone.watermark[mark], name) for mark, name in ((WMARK_MIN, "min"), (WMARK_LOW, "low"), (WMARK_HIGH, "high"))]
        top = max(zone.watermark[WMARK_HIGH], zone.watermark[WMARK_LOW] + max(zone.lowmem_reserve)) * 1.25
        note = "not for this request"
        if zone in self.reachable():
            reserve = zone.lowmem_reserve[gfp_zone(self.caller.gfp_mask)]
            note = f"reserve {grouped(reserve)} against this request" if reserve else "no reserve against this request"
            floor = floor_of(zone, self.caller, alloc_flags)
            marks.append(Level(floor, "floor", "accent", f"this request gets nothing at or below {grouped(floor)} free pages"))
        if zone.managed_pages < top:
            marks.append(Level(zone.managed_pages, "all it has", "muted"))
        return _FilledTank(f"zone {zone.name}", zone.nr_free_pages, top, marks, 170, "moving" if zone is current else "free",
            "free", note)

    def frame(self, say: str, alloc_flags: int, current: TankZone | None = None, ask: Ask | None = None) -> Frame:
        """The tanks, with the floor that ``alloc_flags`` mean."""
        scene = Scene(self.width)
        scene.row([(zone.name, self._tank(zone, alloc_flags, current), "", 1.0) for zone in self.zones], stack=False,
            gap=10 if scene.narrow else 24)
        scene.add(_Floors(self.zones, self.caller_name), "floors", "Who is stopped where",
            "free pages at which a single page is refused, on the slow path")
        return Frame(scene, say, ask=ask)


@figure(
    "Watermark tank",
    alt="One tank for each memory zone with its free pages against the min, low and high marks, the floor of the chosen "
        "request, and a table of the floors of all kinds of request.",
    params=[
        Choice("caller", {name: name for name in CALLERS}, label="request"),
        Choice("machine", {name: name for name in MACHINES}, default="8 GiB"),
        Toggle("thp", True, label="khugepaged", help="khugepaged raises min_free_kbytes on machines of 512 MiB and more"),
    ],
)
def watermark_tank(caller: str, machine: str, thp: bool, width: float) -> Iterator[Frame]:
    """Lets one kind of request take all it can, zone by zone, with the floors that the kernel's arithmetic gives."""
    zones, reserves = make_zones(machine, thp and machine != "256 MiB")
    tanks = _Tanks(zones, caller, width)
    one = CALLERS[caller]
    order = tanks.reachable()
    flags = slow_flags(one)
    for zone in zones:
        zone.nr_free_pages = zone.managed_pages
    for zone in order:
        zone.nr_free_pages = min(floor_of(zone, one, flags), zone.managed_pages)
    names = " → ".join(zone.name for zone in order)
    left = ", ".join(f"{grouped(zone.nr_free_pages)} in {zone.name}" for zone in order)
    yield tanks.frame(
        f"{caller} ({one.words}) may use {names}. When it has taken all it can get, these pages are left: {left}. The "
        "table tells for every kind of request where it is stopped (min_free_kbytes is "
        f"{grouped(reserves.min_free_kbytes)}).", flags)
    for zone in order:
        zone.nr_free_pages = zone.managed_pages
    highest = gfp_zone(one.gfp_mask)
    yield tanks.frame("All memory is free. The fast path asks of each zone that it stays above its low mark plus what it "
                      f"keeps from {caller}.", ALLOC_WMARK_LOW)
    for number, zone in enumerate(order):
        floor = floor_of(zone, one, ALLOC_WMARK_LOW)
        if floor >= zone.managed_pages:
            yield tanks.frame(
                f"{zone.name} refuses {caller} even when all of it is free: {grouped(zone.managed_pages)} pages are not "
                f"more than low {grouped(zone.watermark[WMARK_LOW])} plus reserve {grouped(zone.lowmem_reserve[highest])}.",
                ALLOC_WMARK_LOW, zone)
            continue
        ask = None
        if number + 1 < len(order):
            below = order[number + 1]
            answer = floor_of(below, one, ALLOC_WMARK_LOW)
            if answer < below.managed_pages:
                ask = Ask(f"{caller} goes on in {below.name}, whose low mark is {grouped(below.watermark[WMARK_LOW])}. At "
                          "how many free pages does it stop there?", answer,
                          f"The low mark and the reserve against requests that could use {order[0].name}: "
                          f"{grouped(below.watermark[WMARK_LOW])} + {grouped(below.lowmem_reserve[highest])} = "
                          f"{grouped(answer)}.", unit="pages")
        zone.nr_free_pages = floor
        yield tanks.frame(f"{caller} takes pages of {zone.name} until {grouped(floor)} are left: low "
                          f"{grouped(zone.watermark[WMARK_LOW])} plus reserve {grouped(zone.lowmem_reserve[highest])}.",
                          ALLOC_WMARK_LOW, zone, ask)
    slow = "Its own floor is lower now: " + _how(flags) + "."
    if flags & ALLOC_NO_WATERMARKS:
        slow = "Nobody checks a watermark for it any more."
    yield tanks.frame(
        f"No zone is above its low mark: the fast path fails. kswapd is woken and {caller} goes down the slow path. {slow}", flags)
    for zone in order:
        floor = floor_of(zone, one, flags)
        if floor >= zone.nr_free_pages:
            continue
        zone.nr_free_pages = floor
        yield tanks.frame(f"{zone.name} is drained to {grouped(floor)} free pages.", flags, zone)
    lower = [name for name, other in CALLERS.items() if any(
        floor_of(zone, other, slow_flags(other)) < zone.nr_free_pages for zone in order if zone.index <= gfp_zone(other.gfp_mask))]
    waits = one.gfp_mask & _GFP_DIRECT_RECLAIM and not flags & (ALLOC_NO_WATERMARKS | ALLOC_OOM)
    ends = "has to reclaim by itself" if waits else "fails"
    rest = f"What is left still serves: {', '.join(lower)}." if lower else "Nothing is left for anybody."
    yield tanks.frame(f"Here {caller} gets no page any more and {ends}. {rest}", flags)


def _how(alloc_flags: int) -> str:
    """How the flags lower the min mark, in words."""
    parts = ["min"]
    if alloc_flags & ALLOC_HIGH:
        parts.append("less half of it (ALLOC_HIGH)")
    if alloc_flags & ALLOC_OOM:
        parts.append("less half of the rest (ALLOC_OOM)")
    elif alloc_flags & ALLOC_HARDER:
        parts.append("less a quarter of the rest (ALLOC_HARDER)")
    return ", ".join(parts)
