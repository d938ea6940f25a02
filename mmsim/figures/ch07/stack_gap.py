"""A stack grows down to its limit, or to the gap: touches below it, one by one, until a signal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.constants import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from mmsim.draw import Ask, Choice, Entry, Frame, Ledger, Legend, Range, Scene, figure
from mmsim.figures.ch07.strips import Piece, Strip, size_text
from mmsim.process.mm import Limits, Mm
from mmsim.process.populate import Access
from mmsim.process.stack import setup_stack
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import Vma
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["grow_to_the_end", "stack_gap"]

OBSTACLES = {"rw": "a mapping, rw", "none": "a PROT_NONE mapping", "no": "nothing"}
GAP = 256


@dataclass(slots=True)
class _Lab:
    """A process with a stack and perhaps an obstacle below it; distances are in pages below the stack's top."""

    mm: Mm
    calls: SystemCalls
    stack: Vma
    obstacle: tuple[int, int] | None

    @property
    def size(self) -> int:
        return self.stack.pages

    def touch(self, below: int) -> str:
        """Write to the page ``below`` pages under the top; "" or the signal with its code."""
        touch = self.calls.touch(self.stack.vm_end - below * PAGE_SIZE, Access.WRITE)
        self.mm.check()
        return f"{touch.outcome.name} ({touch.code})" if touch.outcome.value else ""


def make_lab(obstacle: str, distance: int, limit: int) -> _Lab:
    """A stack as after exec, with RLIMIT_STACK ``limit`` and 16 pages of obstacle that end ``distance`` pages below its top."""
    mm = Mm(limits=Limits(stack=limit))
    stack = setup_stack(mm)
    calls, place = SystemCalls(mm), None
    if obstacle != "no":
        prot = PROT_READ | PROT_WRITE if obstacle == "rw" else 0
        start = stack.vm_end - (distance + 16) * PAGE_SIZE
        calls.mmap(start, 16 * PAGE_SIZE, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        place = (distance, distance + 16)
    return _Lab(mm, calls, stack, place)


def grow_to_the_end(obstacle: str, distance: int, limit: int) -> tuple[int, str]:
    """Touch one page below the other until a signal; pages the stack has then, and the signal."""
    lab = make_lab(obstacle, distance, limit)
    while True:
        signal = lab.touch(lab.size + 1)
        if signal:
            return lab.size, signal


def _draw(width: float, lab: _Lab, window: int, limit: int, say: str, touched: set[int], hot: tuple[int, str] | None,
          ask: Ask | None = None) -> Frame:
    scene = Scene(width)
    size = lab.size

    def at(below: float) -> float:                      # pages below the top, as a place on the strip
        return window - below
    pieces = [Piece(at(size), window, "anon", f"stack {size_text(size)}", f"{lab.stack.vm_start:#x}-{lab.stack.vm_end:#x}", key="stack")]
    accessible = False
    if lab.obstacle:
        near, far = lab.obstacle
        accessible = lab.mm.tree.lookup(lab.stack.vm_end - far * PAGE_SIZE).is_accessible  # type: ignore[union-attr]
        pieces.append(Piece(at(far), at(near), "file" if accessible else "level", "", "the obstacle", key="obstacle"))
        if accessible:
            pieces.append(Piece(at(near), at(near - GAP), "reserved", "gap", "256 pages that stay free", key="gap"))
    ticks = [(at(below), f"−{size_text(below)}") for below in range(0, window + 1, 512 if not scene.narrow else 1024) if below]
    ticks.append((float(window), "top"))
    scene.y = 14
    scene.add(Strip(pieces, window, thick=44, ticks=ticks, grid=False), "stack", gap=0)
    edge = (window - (limit >> PAGE_SHIFT)) * width / window
    if 0 <= edge <= width:
        scene.line("limit", edge, 10, edge, 62, "wire warn", f"RLIMIT_STACK: {size_text(limit >> PAGE_SHIFT)}")
    if hot:
        x = max((window - hot[0]) * width / window, 4)
        scene.path("touch", f"M{x:.5g} 12l-5.5 -10h11z", "error" if hot[1] else "moving", f"write {size_text(hot[0])} below the top", 12)
    entries = [
        Entry("VmStk", f"{size * 4} kB", tip="the area"), Entry("pages touched", len(touched), tip="by this program's writes"),
        Entry("to the limit", size_text((limit >> PAGE_SHIFT) - size)),
        Entry("to the obstacle", size_text(lab.obstacle[0] - size) if lab.obstacle else "–"),
    ]
    scene.add(Ledger(entries), "numbers", gap=8)
    roles = {"anon": "the stack's area"}
    if lab.obstacle:
        roles |= {"file": "another mapping", "reserved": "gap of 256 pages"} if accessible else {}
    scene.add(Legend(roles | {"moving": "write", "error": "write that ends in a signal"}), "legend", gap=8)
    return Frame(scene, say, ask=ask)


@figure(
    "Stack and gap",
    alt="The addresses below a stack's top: the stack's area grows at each write below it, until RLIMIT_STACK or the gap of 256 "
        "pages above another mapping ends it with SIGSEGV.",
    params=[
        Choice("obstacle", OBSTACLES, label="below the stack"),
        Range("distance", 400, 2000, default=768, step=16, unit="pages", label="its distance from the top"),
        Range("limit", 1, 8, default=8, unit="MiB", label="RLIMIT_STACK"),
    ],
)
def stack_gap(obstacle: str, distance: int, limit: int, width: float) -> Iterator[Frame]:
    """Runs touches below the stack with :func:`mmsim.process.stack.expand_stack` behind them."""
    most = limit * MIB
    lab = make_lab(obstacle, distance, most)
    window = 2112
    touched: set[int] = set()

    def shot(say: str, hot: tuple[int, str] | None = None, ask: Ask | None = None) -> Frame:
        return _draw(width, lab, window, most, say, touched, hot, ask)

    def write(below: int) -> str:
        signal = lab.touch(below)
        if not signal:
            touched.add(below)
        return signal
    end, _ = grow_to_the_end(obstacle, distance, most)
    yield shot(f"After exec the stack's area has {lab.size * 4} KiB: one page of arguments and 128 KiB in advance, nearly all of it "
               "untouched.")
    below = lab.size + 1
    signal = write(below)
    yield shot(f"A write to the page right below it: no area there, but the next one above grows down. The area has "
               f"{size_text(lab.size)} now.", (below, signal))
    if end > lab.size + 130:
        below = lab.size + 128
        before = lab.size
        signal = write(below)
        yield shot(f"A write {size_text(below)} below the top: the area grows by {lab.size - before} pages at once. Nobody asks how far "
                   "the address is from the stack pointer.", (below, signal),
                   Ask("One page after the other from here on: how many KiB will the stack have at the end?", end * 4,
                       _why(obstacle, distance, most, end), unit="KiB"))
    while lab.size < end:
        write(lab.size + 1)
    yield shot(f"Page by page down to {size_text(end)}: the last write that works.", (end, ""))
    signal = write(end + 1)
    yield shot(f"One page lower: {signal}. {_why(obstacle, distance, most, end)}", (end + 1, signal))
    if lab.obstacle:
        below = distance + 8
        signal = write(below)
        what = f"{signal}: the mapping is there, but nothing may be done with it" if signal else "works: it belongs to a mapping"
        yield shot(f"And a write {size_text(below)} below the top, beyond the gap, {what}. A frame larger than the gap would jump over "
                   "it.", (below, signal))


def _why(obstacle: str, distance: int, limit: int, end: int) -> str:
    if end == limit >> PAGE_SHIFT:
        return "RLIMIT_STACK is reached."
    if obstacle == "rw":
        return f"256 pages above the other mapping stay free: {distance} − 256 = {end} pages."
    return "A PROT_NONE neighbour needs no gap: the stack grows until it touches it."
