"""Atlas of the kernel half: which region an address lies in, what the address alone says, and where KASLR puts the regions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.draw import (
    Ask,
    Axis,
    Bits,
    Choice,
    Field,
    Frame,
    Legend,
    Scene,
    Seed,
    Span,
    TextPane,
    Toggle,
    figure,
    text_width,
)
from mmsim.draw import Text as TextParam
from mmsim.errors import InputError
from mmsim.kernel.fault_entry import Outcome, decide_fault
from mmsim.kernel.layout import FIXADDR_TOP, GUARD_HOLE_BASE, Layout, Region
from mmsim.units import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, TIB

__all__ = ["facts_of", "kernel_atlas", "parse_addresses"]

#: The address that a report names, two registers of the same report, and three that are worth a look.
DEFAULT = "ffffc900011bbff8 ffffea0004243200 ffffffff81000000 ffff888000fff000 ffffffffff5fd000 dead000000000100"
RAM = {"256M": 256 * MIB, "64G": 64 * GIB, "6T": 6 * TIB}
MOST = 8
TOP = 1 << 64

ROLES = {"direct map": "huge", "vmalloc": "kernel", "vmemmap": "table", "kernel image": "file", "modules": "file",
         "cpu_entry_area": "reserved", "fixmap": "reserved", "espfix": "reserved", "EFI": "reserved", "LDT remap": "reserved",
         "guard hole": "reserved"}
LEGEND = {"huge": "all of RAM, mapped once", "kernel": "vmalloc", "table": "struct page", "file": "kernel and module code",
          "reserved": "special purposes"}
SHORT = {"direct map": "direct map", "kernel image": "image", "cpu_entry_area": "cpu_entry", "LDT remap": "LDT", "guard hole": "guard hole",
         "non-canonical hole": "not canonical"}


def parse_addresses(text: str) -> list[int]:
    """Hexadecimal addresses between blanks or commas, with or without 0x. Raise InputError for anything else."""
    words = text.replace(",", " ").split()
    if not words:
        raise InputError("give at least one address, such as ffffc900011bbff8")
    if len(words) > MOST:
        raise InputError(f"{len(words)} addresses are too many; {MOST} fit")
    found = []
    for word in words:
        digits = word.lower().removeprefix("0x").replace("_", "").rstrip(":")
        if not digits or len(digits) > 16 or any(digit not in "0123456789abcdef" for digit in digits):
            raise InputError(f"{word[:30]!r} is no address: up to 16 hexadecimal digits")
        found.append(int(digits, 16))
    return found


def size_text(size: int) -> str:
    """Bytes in the largest unit that gives a short number."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            value = size / unit
            return f"{value:.0f} {name}" if value == int(value) or value >= 100 else f"{value:.1f} {name}"
    return f"{size} bytes"


def facts_of(layout: Layout, addr: int) -> list[str]:
    """What an address says by itself: one line each, region first."""
    region = layout.classify(addr)
    lines = [f"region: {region.name}, {size_text(region.size)}"]
    ram = layout.max_pfn << PAGE_SHIFT
    if region.name == "direct map":
        phys = layout.pa(addr)
        lines += [f"minus page_offset: physical {phys:#x}", f"frame {phys >> PAGE_SHIFT:#x}, offset {addr % PAGE_SIZE:#x}",
                  "RAM ends before it: nothing is mapped" if phys >= ram else "inside of RAM"]
    elif region.name == "vmemmap":
        pfn = layout.struct_to_pfn(addr)
        inside = (addr - layout.vmemmap_start) % 64
        lines += [f"minus vmemmap, divided by 64: struct page of frame {pfn:#x}" + (f", byte {inside}" if inside else ""),
                  "RAM ends before that frame" if pfn >= layout.max_pfn else f"its direct-map address: {layout.page_address(pfn):x}"]
    elif region.name == "vmalloc":
        lines += [f"{size_text(addr - layout.vmalloc_start)} into the region", "which frame? only the page tables know"]
    elif region.name == "kernel image":
        phys = layout.pa(addr)
        lines += [f"linked at {addr - layout.kernel_offset:x}", f"physical {phys:#x}",
                  f"the same byte in the direct map: {layout.va(phys):x}" if phys < ram else "no RAM there"]
    elif region.name == "fixmap":
        lines += [f"slot {(FIXADDR_TOP - (addr & -PAGE_SIZE)) >> PAGE_SHIFT}, counted down from {FIXADDR_TOP:x}"]
    elif region.name == "non-canonical hole":
        lines += ["bits 63 to 47 are not all alike"]
    return lines


def _verdict(region: Region, addr: int) -> str:
    if region.name == "non-canonical hole":
        return "general protection fault: an oops"
    outcome = decide_fault(addr, 0).outcome
    if outcome is Outcome.OOPS and region.name == "user space":
        return "oops, unless through copy_from_user()"
    return {Outcome.OOPS: "oops, unless the instruction has a fixup"}.get(outcome, outcome.value)


@dataclass(slots=True)
class _Strip:
    """The kernel half on one line: linear or broken; numbered pins stand where the addresses are."""

    layout: Layout
    axis: Axis
    pins: list[tuple[int, int]]
    hot: Region | None = None
    now: int | None = None
    names: bool = False

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        axis, thick = self.axis, 26.0
        rows: list[float] = []
        marks = []
        for number, addr in sorted(self.pins, key=lambda pin: pin[1]):
            if not axis.low <= addr < axis.high:
                continue
            at = min(max(x + axis.place(addr) * width, x + 8), x + width - 8)
            row = next((row for row, right in enumerate(rows) if at - right > 17), len(rows))
            if row == len(rows):
                rows.append(at)
            rows[row] = at
            marks.append((number, addr, at, row))
        top = y + 19 * len(rows) + 2
        scene.rect(f"{key}.bed", x, top, width, thick, "panel")
        for region in self.layout.regions():
            role = ROLES.get(region.name)
            if role is None or region.end <= axis.low or region.start >= axis.high:
                continue
            a, b = axis.place(region.start) * width, axis.place(region.end) * width
            tip = f"{region.name}: {region.start:x}-{region.end - 1:x}, {size_text(region.size)}"
            mark = "focus" if self.hot is not None and region.start == self.hot.start else ""
            label = SHORT.get(region.name, region.name)
            if text_width(label, "small") > b - a - 4:
                label = ""
            scene.box(f"{key}/{region.name}", x + a, top, max(b - a, 1.5), thick, label, role, tip, cls=mark)
        for number, addr, at, row in marks:
            circle = y + 8 + 19 * row
            cls = "moving focus" if addr == self.now else "panel"
            scene.line(f"{key}/pin{number}.line", at, circle + 8, at, top + thick + 4, "wire lit" if addr == self.now else "wire")
            scene.circle(f"{key}/pin{number}", at, circle, 8, cls, f"{addr:016x}")
            scene.text(f"{key}/pin{number}.t", at, circle + 4, str(number), "small", "on-moving" if addr == self.now else "", "middle")
        bottom = top + thick
        for a, b in axis.gaps:
            middle = x + (axis.place(a) + axis.place(b)) / 2 * width
            scene.text(f"{key}/gap:{a:x}", middle, bottom - 9, "⋯", "small", "muted", "middle", tip=f"{a:x}-{b - 1:x}: nothing is mapped")
        scene.height = max(scene.height, round(bottom + 6, 1))
        return bottom + 6 - y


@dataclass(slots=True)
class _Table:
    """The addresses, one row each: number, digits, region."""

    layout: Layout
    addresses: list[int]
    now: int | None

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        top = y
        for number, addr in enumerate(self.addresses, 1):
            region = self.layout.classify(addr)
            if addr == self.now:
                scene.rect(f"{key}/{number}.mark", x, top + 1, width, 19, "mark", rx=2)
            scene.text(f"{key}/{number}.n", x + 8, top + 15, str(number), "small", "muted", "middle")
            scene.text(f"{key}/{number}.a", x + 22, top + 15, f"{addr:016x}", "code", "strong" if addr == self.now else "")
            scene.text(f"{key}/{number}.r", x + 152, top + 15, SHORT.get(region.name, region.name), "small", "strong", width=100)
            if width > 480:
                scene.text(f"{key}/{number}.w", x + 258, top + 15, region.what, "small", "muted", width=width - 258)
            top += 21
        scene.height = max(scene.height, round(top, 1))
        return top - y


def _word(addr: int) -> Bits:
    return Bits(addr, [Field("sign", 63, 48, tip="copies of bit 47"), Field("PGD", 47, 39, "table", "entry of the top table"),
                       Field("PUD", 38, 30, "table"), Field("PMD", 29, 21, "table"), Field("PTE", 20, 12, "table"), Field("offset", 11, 0)])


class _Boots:
    """The three regions that KASLR moves, for some boots below each other, to scale."""

    def __init__(self, layouts: list[tuple[str, Layout]]):
        self.layouts = layouts

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        axis = Axis(0xFFFF_8000_0000_0000, TOP)
        top = y
        for name, layout in self.layouts:
            scene.text(f"{key}/{name}.name", x, top + 12, name, "small", "strong")
            words = f"page_offset {layout.page_offset:x}"
            scene.text(f"{key}/{name}.base", x + width, top + 12, words, "code", "muted", "end")
            scene.rect(f"{key}/{name}.bed", x, top + 18, width, 22, "panel")
            for region in layout.regions():
                if region.name in ("direct map", "vmalloc", "vmemmap"):
                    a, b = axis.place(region.start) * width, axis.place(region.end) * width
                    label = region.name if text_width(region.name, "small") < b - a - 6 else ""
                    scene.box(f"{key}/{name}/{region.name}", x + a, top + 18, max(b - a, 2), 22, label, ROLES[region.name],
                              f"{region.name}: {region.start:x}, {size_text(region.size)}")
            top += 50
        scene.height = max(scene.height, round(top, 1))
        return top - y


@figure(
    "Atlas of the kernel half",
    alt="The upper half of the address space as a strip of regions, to scale and broken; numbered pins mark addresses, and a table says "
        "what each address means.",
    params=[TextParam("addresses", DEFAULT, label="addresses", limit=400),
            Toggle("kaslr", False, label="KASLR", help="regions at random places, as on most machines"), Seed(label="boot"),
            Choice("ram", {"256M": "256 MiB", "64G": "64 GiB", "6T": "6 TiB"}, "64G", label="RAM")],
)
def kernel_atlas(addresses: str, kaslr: bool, seed: int, ram: str, width: float) -> Iterator[Frame]:
    """Reads :class:`mmsim.kernel.layout.Layout` and asks :func:`decide_fault` what a fault would mean."""
    wanted = parse_addresses(addresses)
    max_pfn = RAM[ram] >> PAGE_SHIFT
    layout = Layout(max_pfn, seed=seed if kaslr else None)
    layout.check()
    pins = [(number, addr) for number, addr in enumerate(wanted, 1) if addr >= GUARD_HOLE_BASE]
    regions = [region for region in layout.regions() if region.start >= GUARD_HOLE_BASE]
    spans = [region for region in regions if region.name in ROLES]
    linear = Axis(GUARD_HOLE_BASE, TOP)
    broken = Axis(GUARD_HOLE_BASE, TOP, [Span(region.start, region.end, "") for region in spans], scale="broken")

    def picture(say: str, now: int | None = None, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        hot = layout.classify(now) if now is not None else None
        scene.add(_Strip(layout, linear, pins, hot, now), "linear", "The kernel half, to scale",
                  "128 TiB, from ffff800000000000 to the top")
        scene.add(_Strip(layout, broken, pins, hot, now), "broken", "The same, so that every region can be seen")
        scene.add(Legend(LEGEND), "legend", gap=6)
        if now is None:
            scene.add(_Table(layout, wanted, now), "table", "The addresses")
        else:
            scene.add(_word(now), "word", f"Address {wanted.index(now) + 1}: {now:016x}")
            assert hot is not None
            lines = [*facts_of(layout, now), f"holds: {hot.what}", f"access without a mapping: {_verdict(hot, now)}"]
            scene.add(TextPane(lines), "facts", gap=10)
        return Frame(scene, say, ask=ask)

    first = layout.classify(wanted[0])
    how = f"boot {seed} with KASLR" if kaslr else "without KASLR"
    question = None
    if len(wanted) > 1:
        second = layout.classify(wanted[1])
        names = sorted({second.name, "direct map", "vmalloc", "vmemmap", "kernel image"})
        question = Ask(f"Before you look: in which region is address 2, {wanted[1]:x}?", second.name,
                       f"It is {_article(second)}: {second.what}.", names)
    yield picture(
        f"The kernel half of the address space, {how}: {wanted[0]:x} lies in {_article(first)}. "
        "Two regions of 64 and 32 TiB take nearly all of the room, and everything else is too small to be seen to scale."
        if not kaslr else f"The kernel half of the address space, {how}: {wanted[0]:x} lies in {_article(first)}.")
    for number, addr in enumerate(wanted, 1):
        region = layout.classify(addr)
        facts = facts_of(layout, addr)
        said = "; ".join(facts[1:])
        where = f"Address {number}, {addr:x}, lies in {_article(region)}" + (f": {said}" if said else "")
        yield picture(f"{where}. A fault there: {_verdict(region, addr)}.", addr, question if number == 1 else None)
    boots = [("without KASLR", Layout(max_pfn)), *((f"boot {number}", Layout(max_pfn, seed=number)) for number in range(seed, seed + 4))]
    scene = Scene(width)
    scene.add(_Boots(boots), "boots", "Five boots of one kernel", f"{size_text(RAM[ram])} of RAM")
    scene.add(Legend({role: LEGEND[role] for role in ("huge", "kernel", "table")}), "legend", gap=4)
    size = boots[1][1].direct_map_size
    yield Frame(scene, "KASLR keeps the order of the three regions and moves each by a multiple of 1 GiB. The direct map shrinks to "
                f"{size >> 40} TiB, RAM rounded up and 10 TiB for memory plugged in later; what that sets free are the gaps.")


def _article(region: Region) -> str:
    return {"user space": "user space", "vmalloc": "the vmalloc region", "vmemmap": "vmemmap", "modules": "the region of modules",
            "unused": "a hole between the regions", "EFI": "the region for EFI",
            "espfix": "the espfix region"}.get(region.name, f"the {region.name}")

