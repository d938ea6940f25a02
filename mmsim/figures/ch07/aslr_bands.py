"""ASLR bands: where the parts of a process may lie, drawn many times from the kernel's rules."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mmsim.constants import BRK_RND_RANGE, DEFAULT_MAP_WINDOW, MMAP_RND_BITS, RLIM_INFINITY, STACK_RND_MASK
from mmsim.draw import Ask, Choice, Frame, Legend, Range, Region, RegionList, Scene, Seed, figure, grouped, text_width
from mmsim.figures.ch07.strips import size_text
from mmsim.process.layout import Layout, draw_layout, fixed_layout, mmap_base
from mmsim.units import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["aslr_bands", "band_of"]

LIMITS = {"8 MiB": 8 * MIB, "64 MiB": 64 * MIB, "64 GiB": 64 * GIB, "unlimited": RLIM_INFINITY}
PARTS = ("program", "heap", "mmap base", "stack top")
ROLES = {"program": "file", "heap": "anon", "mmap base": "table", "stack top": "hot"}
#: The program of the figure ends so far above its base; the heap's randomisation starts there.
PROGRAM = 64 * KIB
BINS = 48
Span = tuple[int, int]


def band_of(part: str, limit: int) -> Span:
    """The lowest and the highest address that a part can have."""
    top = ((1 << MMAP_RND_BITS) - 1) << PAGE_SHIFT
    pie = fixed_layout(8 * MIB).pie_base
    if part == "program":
        return pie, pie + top
    if part == "heap":
        return pie + PROGRAM, pie + top + PROGRAM + BRK_RND_RANGE - PAGE_SIZE
    if part == "mmap base":
        return mmap_base(limit, top, randomize=True), mmap_base(limit, 0, randomize=True)
    return DEFAULT_MAP_WINDOW - (STACK_RND_MASK << PAGE_SHIFT), DEFAULT_MAP_WINDOW


def places(layout: Layout) -> dict[str, int]:
    """Where each part lies in one draw."""
    return {"program": layout.pie_base, "heap": layout.pie_base + PROGRAM + layout.brk_offset, "mmap base": layout.mmap_base,
            "stack top": layout.stack_top}


class _Band:
    """A histogram of addresses over [low, high), with the places of the first draws as ticks below it."""

    def __init__(self, part: str, values: list[int], low: int, high: int, bins: int, shown: int):
        self.part, self.values, self.low, self.high, self.bins, self.shown = part, values, low, high, bins, shown

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        span = self.high - self.low
        counts = [0] * self.bins
        for value in self.values:
            if self.low <= value <= self.high:
                counts[min((value - self.low) * self.bins // span, self.bins - 1)] += 1
        most, high, wide = max(max(counts), 1), 34.0, width / self.bins
        scene.rect(f"{key}.bed", x, y, width, high, "panel")
        for number, count in enumerate(counts):
            if count:
                tall = max(high * count / most, 1.5)
                start = self.low + number * span // self.bins
                scene.rect(f"{key}/{number}", x + number * wide, y + high - tall, wide, tall, f"{ROLES[self.part]} flat",
                           f"{count} of {len(self.values)} from {start:#x}")
        for number, value in enumerate(self.values[: self.shown]):
            if self.low <= value <= self.high:
                at = x + (value - self.low) * width / span
                scene.line(f"{key}.draw{number}", at, y + high, at, y + high + 6, "wire lit", f"{value:#x}")
        scene.height = max(scene.height, round(y + high + 6, 1))
        return high + 8


def _axis(scene: Scene, key: str, low: int, high: int, y: float) -> None:
    scene.line(f"{key}.axis", 0, y, scene.width, y, "axis")
    texts = (hex(low), hex(high))
    scene.text(f"{key}.low", 0, y + 15, texts[0], "code", "muted")
    scene.text(f"{key}.high", scene.width, y + 15, texts[1], "code", "muted", "end")
    middle = f"{size_text(((high - low) >> PAGE_SHIFT) + 1)} wide"
    if sum(text_width(text, "code") for text in texts) + text_width(middle, "small") + 20 < scene.width:
        scene.text(f"{key}.wide", scene.width / 2, y + 15, middle, "small", "muted", "middle")
    scene.y = y + 20


def _bands(width: float, drawn: dict[str, list[int]], parts: tuple[str, ...], low: int, high: int, say: str, notes: dict[str, str],
           ask: Ask | None = None) -> Frame:
    scene = Scene(width)
    for part in parts:
        band = _Band(part, drawn[part], low, high, BINS, 12) if high - low <= 2 << 40 else _Band(part, drawn[part], low, high, 256, 0)
        scene.add(band, part, part, notes.get(part, ""), gap=10)
    _axis(scene, "axis", low, high, scene.y + 4)
    scene.add(Legend({ROLES[part]: part for part in parts}), "legend", gap=8)
    return Frame(scene, say, ask=ask)


@figure(
    "ASLR bands",
    alt="Histograms of where thousands of program starts put the program, the heap, the mmap base and the stack: four narrow bands "
        "in 128 TiB, then each one enlarged.",
    params=[
        Range("draws", 100, 10_000, default=4000, step=100, label="program starts"),
        Choice("limit", list(LIMITS), label="RLIMIT_STACK"),
        Seed(),
    ],
)
def aslr_bands(draws: int, limit: str, seed: int, width: float) -> Iterator[Frame]:
    """Draws layouts with :func:`mmsim.process.layout.draw_layout`, the kernel's arithmetic on a seeded generator."""
    stack, random = LIMITS[limit], Random(seed)
    layouts = [draw_layout(random, stack) for _ in range(draws)]
    drawn: dict[str, list[int]] = {part: [] for part in PARTS}
    for layout in layouts:
        for part, place in places(layout).items():
            drawn[part].append(place)
    gap = DEFAULT_MAP_WINDOW - mmap_base(stack, 0, randomize=True)
    yield _bands(width, drawn, PARTS, 0, DEFAULT_MAP_WINDOW,
                 f"{grouped(draws)} starts of one program in the 128 TiB of a process. Everything lies in four narrow bands; "
                 "three of them are 1 TiB wide, the stack's only 16 GiB.", {},
                 Ask("The mmap base is drawn from 2^28 pages. How many TiB are they?", 1, "2^28 pages of 4 KiB are 2^40 bytes.",
                     unit="TiB"))
    low, high = band_of("program", stack)
    high = band_of("heap", stack)[1]
    yield _bands(width, drawn, ("program", "heap"), low, high,
                 f"The program (position-independent) lies between {low:#x} and 1 TiB above: 28 random bits of a page number. The heap "
                 "follows it closely.", {"program": "ticks: the first 12 starts"})
    offsets = {"heap": [one.brk_offset for one in layouts]}
    yield _bands(width, offsets, ("heap",), 0, BRK_RND_RANGE,
                 f"Seen from the end of the program's data the heap begins 0 to 32 MiB higher: {grouped(8192)} pages, 13 bits. Who "
                 "knows where the program is has nearly found the heap.", {"heap": "distance from the program's end"})
    low, high = band_of("mmap base", stack)
    yield _bands(width, drawn, ("mmap base",), low, high,
                 f"mmap base: 28 random bits below {high:#x}, which is {size_text(gap >> PAGE_SHIFT)} below the top. Libraries and "
                 "large mappings follow downwards.", {"mmap base": "ticks: the first 12 starts"})
    low, high = band_of("stack top", stack)
    yield _bands(width, drawn, ("stack top",), low, high,
                 "The stack's top: 22 random bits of a page number, 16 GiB below the end of the address space.",
                 {"stack top": "ticks: the first 12 starts"})
    yield _table(width, drawn, stack)


def _table(width: float, drawn: dict[str, list[int]], stack: int) -> Frame:
    scene = Scene(width)
    fixed = places(fixed_layout(stack))
    bits = {"program": 28, "heap": 13, "mmap base": 28, "stack top": 22}
    rows = []
    for part in PARTS:
        values = drawn[part]
        rows.append(Region(part, (part, hex(fixed[part]), hex(min(values)), hex(max(values)), str(bits[part])), ROLES[part]))
    heads: tuple[str, ...] = ("part", "without ASLR", "lowest drawn", "highest drawn", "bits")
    if scene.narrow:
        rows = [Region(row.key, (row.cells[0], row.cells[1], row.cells[4]), row.role) for row in rows]
        heads = ("part", "without ASLR", "bits")
    scene.add(RegionList(rows, heads), "table")
    scene.note("bits: of the page number, seen alone; the heap's from the end of the program's data.", gap=10)
    return Frame(scene, f"Without ASLR each number is fixed: programs at {fixed['program']:#x}, mmap base "
                        f"{fixed['mmap base']:#x}, the stack at {fixed['stack top']:#x}.")
