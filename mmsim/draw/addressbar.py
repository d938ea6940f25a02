"""AddressBar: ranges on a line of addresses, to scale or on a broken axis; several bars share one axis."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log2

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["Span", "Bar", "Axis", "AddressBar", "short_size"]


@dataclass(frozen=True, slots=True)
class Span:
    """The range ``start <= address < end`` of a role. ``key`` tells it apart (its start address if empty)."""

    start: int
    end: int
    role: str
    label: str = ""
    tip: str = ""
    mark: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of spans with its name; ``tip`` explains the bar."""

    name: str
    spans: Sequence[Span]
    tip: str = ""
    key: str = ""


def short_size(address: int) -> str:
    """An address as a short size where it is one, in hexadecimal otherwise.

    >>> short_size(640 << 10), short_size(16 << 20), short_size(0x9fc00)
    ('640K', '16M', '639K')
    """
    if not address:
        return "0"
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if address % (1 << shift) == 0 and (address >> shift) < 10_000:
            return f"{address >> shift}{unit}"
    return hex(address)


class Axis:
    """Where an address stands on the line. Make one for the whole figure, so that nothing shifts from frame to frame.

    ``scale="linear"`` is true to scale. ``"broken"`` gives every stretch between two ``cuts`` (and every range of
    ``spans``) a width that grows with the logarithm of its size, and shrinks stretches that no span covers to a break.
    """

    def __init__(
        self, low: int, high: int, spans: Iterable[Span] = (), cuts: Iterable[int] = (), scale: str = "linear",
        show: Callable[[int], str] = short_size,
    ):  # fmt: skip
        if high <= low:
            raise ValueError("an axis needs low < high")
        if scale not in ("linear", "broken"):
            raise ValueError("scale is linear or broken")
        self.low, self.high, self.scale, self.show = low, high, scale, show
        covered = sorted((max(s.start, low), min(s.end, high)) for s in spans if s.end > low and s.start < high)
        points = {low, high} | {c for c in cuts if low <= c <= high} | {edge for pair in covered for edge in pair}
        self.points = sorted(points)
        self.gaps: list[tuple[int, int]] = []
        if scale == "linear":
            self._edges = [0.0, 1.0]
            self._knots = [low, high]
            return
        merged: list[list[int]] = []
        for start, end in covered:
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        sizes = [b - a for a, b in zip(self.points, self.points[1:], strict=False)]
        least = min(sizes)
        weights = []
        starts = [start for start, _ in merged]
        for (a, b), size in zip(zip(self.points, self.points[1:], strict=False), sizes, strict=True):
            place = bisect_right(starts, a) - 1
            inside = place >= 0 and merged[place][1] >= b
            if merged and not inside and size > (high - low) / 64:
                self.gaps.append((a, b))
                weights.append(0.8)
            else:
                weights.append(1 + 0.75 * log2(size / least))
        total = sum(weights)
        self._knots, self._edges = self.points, [0.0]
        for weight in weights:
            self._edges.append(self._edges[-1] + weight / total)

    def place(self, address: int) -> float:
        """The position of an address, from 0 to 1; addresses outside stand at the ends."""
        address = min(max(address, self.low), self.high)
        index = min(bisect_right(self._knots, address), len(self._knots) - 1)
        a, b = self._knots[index - 1], self._knots[index]
        left, right = self._edges[index - 1], self._edges[index]
        return left + (right - left) * (address - a) / (b - a)

    def ticks(self, width: float, wanted: Iterable[int] = ()) -> list[int]:
        """Addresses to label, so chosen that no two labels touch; ``wanted`` ones first."""
        if self.scale == "linear":
            step = 1 << max((self.high - self.low) // 6, 1).bit_length() - 1
            rest = list(range(-(-self.low // step) * step, self.high + 1, step))
        else:
            rest = list(self.points)
        candidates = [*wanted, self.low, self.high, *sorted(rest, key=lambda p: (-((p & -p) if p else 1 << 62), p))]
        taken: list[tuple[float, float]] = []
        chosen: list[int] = []
        for point in candidates:
            if point in chosen or not self.low <= point <= self.high:
                continue
            label, at = text_width(self.show(point), "small"), self.place(point) * width
            left = min(max(at - label / 2, 0), width - label)
            if all(left > b + 7 or left + label < a - 7 for a, b in taken):
                taken.append((left, left + label))
                chosen.append(point)
        return sorted(chosen)


class AddressBar:
    """Bars of spans above each other on one axis. On a phone a bar's name stands above it, else to the left.

    ``cursor`` draws a line through all bars at an address (a sweep line), ``ticks`` asks for labels at addresses.
    """

    def __init__(
        self, bars: Sequence[Bar], axis: Axis, thick: float = 24, gap: float = 9, cursor: int | None = None,
        ticks: Iterable[int] = (), names: float = 0,
    ):  # fmt: skip
        self.bars, self.axis, self.thick, self.gap, self.cursor, self.wanted = (
            list(bars),
            axis,
            thick,
            gap,
            cursor,
            list(ticks),
        )
        self.names = names

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the bars; a span's key is ``key/<bar>/<span key or 0xstart>``."""
        above = width < 480
        named = any(bar.name for bar in self.bars)
        indent = 0.0
        if named and not above:
            indent = self.names or min(max(text_width(bar.name, "small") for bar in self.bars) + 12, width / 4)
        left, room = x + indent, width - indent
        top = y + 1
        first_bar = top
        for number, bar in enumerate(self.bars):
            name = f"{key}/{bar.key or bar.name or number}"
            if bar.name:
                if above:
                    scene.text(f"{name}.name", x, top + 11, bar.name, "small", "muted", width=width, tip=bar.tip)
                    top += 16
                else:
                    middle = top + self.thick / 2 + 4
                    scene.text(
                        f"{name}.name", left - 12, middle, bar.name, "small", "muted", "end", indent - 11.9, bar.tip
                    )
            first_bar = first_bar if number else top
            scene.rect(f"{name}.bed", left, top, room, self.thick, "panel")
            for span in bar.spans:
                if span.end <= self.axis.low or span.start >= self.axis.high:
                    continue
                a, b = self.axis.place(span.start) * room, self.axis.place(span.end) * room
                tip = span.tip or f"{span.label or span.role}: {span.start:#x}-{span.end - 1:#x}"
                scene.box(
                    f"{name}/{span.key or hex(span.start)}", left + a, top, max(b - a, 1.5), self.thick,
                    span.label, span.role, tip, cls=span.mark,
                )  # fmt: skip
            top += self.thick + self.gap
        top -= self.gap
        bottom = top
        for a, b in self.axis.gaps:
            middle = left + (self.axis.place(a) + self.axis.place(b)) / 2 * room
            scene.path(
                f"{key}/break:{a:x}", "".join(f"M{middle + side:.5g} {first_bar - 3:.5g}V{bottom + 3:.5g}" for side in (-3, 3)),
                "grid ghost", f"left out: {a:#x}-{b - 1:#x}", bottom + 3,
            )  # fmt: skip
        if self.cursor is not None:
            at = left + self.axis.place(self.cursor) * room
            scene.line(f"{key}/cursor", at, first_bar - 5, at, bottom + 5, "wire lit", f"at {self.cursor:#x}")
        scene.line(f"{key}/axis", left, bottom + 6, left + room, bottom + 6, "axis")
        for point in self.axis.ticks(room, self.wanted):
            at = self.axis.place(point) * room
            label = self.axis.show(point)
            half = text_width(label, "small") / 2
            scene.line(f"{key}/tick:{point:x}", left + at, bottom + 6, left + at, bottom + 10, "axis")
            scene.text(
                f"{key}/ticktext:{point:x}", left + min(max(at, half), room - half), bottom + 22, label, "small", "muted", "middle",
                tip=hex(point) if label != hex(point) else "",
            )  # fmt: skip
        return bottom + 27 - y
