"""A scene: named shapes on a sheet of a given width.

Every shape has a *key*. Two shapes of successive frames with the same key are the same thing, which the player moves,
recolours or relabels; so a key names what is drawn (``"board/0x240"``), not where it stands. Lengths are CSS pixels at
full size. A figure is laid out for the width it is given: 720 on a screen, 344 on a phone; nothing is shrunk to fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from mmsim.draw.measure import fit_text, text_width, wrap_text
from mmsim.draw.theme import MARKS, ROLES, TEXT_STYLES

__all__ = ["WIDE", "NARROW", "MAX_SHAPES", "Shape", "Scene", "Idiom"]

WIDE = 720
NARROW = 344
#: More shapes than this in one scene is a mistake of the figure (and would stall the page).
MAX_SHAPES = 20_000

#: A shape as it is sent to the page: ``t`` kind, ``c`` classes, ``tip`` tooltip, ``in`` the group it stands in, geometry.
Shape = dict[str, Any]

_KNOWN = frozenset(ROLES) | frozenset(MARKS) | {f"on-{role}" for role in ROLES}
_checked: set[str] = {""}


def _round(value: float) -> float:
    rounded = round(value, 1)
    whole = int(rounded)
    return whole if whole == rounded else rounded


def _check_class(cls: str) -> str:
    if cls not in _checked:
        unknown = [word for word in cls.split() if word not in _KNOWN]
        if unknown:
            raise ValueError(
                f"no such shape class: {' '.join(unknown)} (roles: {', '.join(ROLES)}; marks: {', '.join(MARKS)})"
            )
        _checked.add(cls)
    return cls


class Idiom(Protocol):
    """Anything that can draw itself into a scene: all of the modules frameboard, addressbar, tape, ... hold such classes."""

    def draw(self, scene: "Scene", key: str, x: float, y: float, width: float) -> float:
        """Add shapes at (x, y), no wider than ``width``, with keys that begin with ``key``; return the height used."""


class Scene:
    """A sheet ``width`` wide that grows downwards.

    ``add`` and ``row`` place whole idioms below each other and keep the spacing; ``rect``, ``text``, ``line``, ``path``,
    ``circle`` and ``box`` place single shapes anywhere. ``height`` follows what is drawn.

    >>> scene = Scene(344)
    >>> scene.box("one", 0, 0, 80, 24, "order 3", "free")
    >>> [shape["t"] for shape in scene.shapes.values()], scene.height
    (['rect', 'text'], 24)
    """

    __slots__ = ("width", "height", "shapes", "y", "_group", "_origin")

    def __init__(self, width: float = WIDE):
        self.width = width
        self.height: float = 0
        self.shapes: dict[str, Shape] = {}
        self.y: float = 0
        self._group = ""
        self._origin = (0.0, 0.0)

    @property
    def narrow(self) -> bool:
        """Whether the layout is for a phone."""
        return self.width < 560

    def copy(self) -> "Scene":
        """A copy that later drawing into this scene does not change."""
        twin = Scene(self.width)
        twin.height, twin.shapes, twin.y = self.height, dict(self.shapes), self.y
        return twin

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scene):
            return NotImplemented
        return (self.width, self.height) == (other.width, other.height) and list(self.shapes.items()) == list(
            other.shapes.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Scene {self.width:g}x{self.height:g}, {len(self.shapes)} shapes>"

    # ---- single shapes ----

    def _put(self, key: str, shape: Shape, cls: str, tip: str, bottom: float) -> None:
        if key in self.shapes:
            raise ValueError(f"two shapes with the key {key!r}")
        if len(self.shapes) >= MAX_SHAPES:
            raise ValueError(f"more than {MAX_SHAPES} shapes in one scene")
        if cls:
            shape["c"] = _check_class(cls)
        if tip:
            shape["tip"] = tip
        if self._group:
            shape["in"] = self._group
        self.shapes[key] = shape
        bottom += self._origin[1]
        if bottom > self.height:
            self.height = _round(bottom)

    def rect(
        self, key: str, x: float, y: float, w: float, h: float, cls: str = "", tip: str = "", rx: float = 0
    ) -> None:
        """A rectangle; ``rx`` rounds its corners."""
        shape: Shape = {"t": "rect", "x": _round(x), "y": _round(y), "w": _round(max(w, 0)), "h": _round(max(h, 0))}
        if rx:
            shape["rx"] = rx
        self._put(key, shape, cls, tip, y + h)

    def text(
        self, key: str, x: float, y: float, text: str, style: str = "label", cls: str = "",
        anchor: str = "start", width: float | None = None, tip: str = "",
    ) -> None:  # fmt: skip
        """One line of text with its baseline at ``y``; ``anchor`` is start, middle or end.

        With ``width`` it is cut to fit, and the whole text becomes the tooltip.
        """
        if style not in TEXT_STYLES:
            raise ValueError(f"no such text style: {style} ({', '.join(TEXT_STYLES)})")
        if anchor not in ("start", "middle", "end"):
            raise ValueError(f"anchor is start, middle or end, not {anchor}")
        shown = text
        if width is not None:
            shown = fit_text(text, width, style)
            if shown != text and not tip:
                tip = text
            if not shown:
                return
        shape: Shape = {"t": "text", "x": _round(x), "y": _round(y), "s": shown, "f": style}
        if anchor != "start":
            shape["a"] = anchor
        self._put(key, shape, cls, tip, y + 4)

    def line(self, key: str, x1: float, y1: float, x2: float, y2: float, cls: str = "wire", tip: str = "") -> None:
        """A straight line."""
        shape: Shape = {"t": "line", "x": _round(x1), "y": _round(y1), "x2": _round(x2), "y2": _round(y2)}
        self._put(key, shape, cls, tip, max(y1, y2))

    def path(self, key: str, d: str, cls: str = "wire", tip: str = "", bottom: float = 0) -> None:
        """An SVG path; ``bottom`` is its lowest y, by which the sheet grows."""
        self._put(key, {"t": "path", "d": d}, cls, tip, bottom)

    def circle(self, key: str, cx: float, cy: float, r: float, cls: str = "", tip: str = "") -> None:
        """A circle."""
        self._put(key, {"t": "circle", "x": _round(cx), "y": _round(cy), "r": _round(r)}, cls, tip, cy + r)

    @contextmanager
    def group(self, key: str, x: float = 0, y: float = 0, cls: str = "") -> Iterator[None]:
        """Shapes drawn inside stand relative to (x, y) and move together. Groups do not nest."""
        if self._group:
            raise ValueError(f"group {key!r} inside group {self._group!r}: groups do not nest")
        self._put(key, {"t": "group", "x": _round(x), "y": _round(y)}, cls, "", 0)
        self._group, self._origin = key, (x, y)
        try:
            yield
        finally:
            self._group, self._origin = "", (0.0, 0.0)

    # ---- compound shapes ----

    def box(
        self, key: str, x: float, y: float, w: float, h: float, label: str = "", role: str = "", tip: str = "",
        style: str = "small", cls: str = "", rx: float = 0,
    ) -> None:  # fmt: skip
        """A rectangle of a role with a label in its middle, cut to fit (or left out, with a tooltip instead)."""
        if label and not tip and text_width(label, style) > w - 6:
            tip = label
        self.rect(key, x, y, w, h, f"{role} {cls}".strip() or "frame", tip, rx)
        if label and h >= TEXT_STYLES[style].size + 1:
            shown = fit_text(label, w - 6, style)
            if shown:
                # On a faded fill the ink of the role would fade into it.
                ink = f"on-{role}" if role in ROLES and "dim" not in cls.split() else ""
                baseline = y + h / 2 + TEXT_STYLES[style].size * 0.36
                self.text(
                    f"{key}.t", x + w / 2, baseline, shown, style, ink, "middle"
                )

    def arrow(self, key: str, x1: float, y1: float, x2: float, y2: float, cls: str = "wire", tip: str = "") -> None:
        """A straight arrow from (x1, y1) to (x2, y2)."""
        dx, dy = x2 - x1, y2 - y1
        length = (dx * dx + dy * dy) ** 0.5 or 1.0
        ux, uy = dx / length * 6, dy / length * 6
        points = [x1, y1, x2, y2, x2 - ux - uy * 0.6, y2 - uy + ux * 0.6, x2 - ux + uy * 0.6, y2 - uy - ux * 0.6]
        a, b, c, d, e, f, g, h = (f"{_round(v):g}" for v in points)
        self.path(key, f"M{a} {b}L{c} {d}M{e} {f}L{c} {d}L{g} {h}", cls, tip, max(y1, y2))

    def paragraph(
        self,
        key: str,
        x: float,
        y: float,
        text: str,
        width: float,
        style: str = "label",
        cls: str = "",
        lines: int = 99,
    ) -> float:
        """Text broken into lines of at most ``width``, its top at ``y``; return the height."""
        step = TEXT_STYLES[style].size * 1.35
        broken = wrap_text(text, width, style, lines)
        for number, line in enumerate(broken):
            if line:
                self.text(f"{key}.{number}", x, y + step * (number + 0.75), line, style, cls)
        return len(broken) * step

    # ---- stacking ----

    def caption(self, text: str, key: str = "", gap: float = 16, note: str = "") -> None:
        """A heading at the cursor (``scene.y``), with an optional quieter note behind it."""
        key = key or f"caption:{text}"
        top = self.y + (gap if self.y else 0)
        head = fit_text(text, self.width, "head")
        self.text(key, 0, top + 12, head, "head")
        self.y = top + 20
        if note:
            start = text_width(head, "head") + 10
            if start + text_width(note, "small") <= self.width:
                self.text(f"{key}.note", start, top + 12, note, "small", "muted")
            else:
                self.y = top + 18 + self.paragraph(f"{key}.note", 0, top + 18, note, self.width, "small", "muted")

    def note(self, text: str, key: str = "", gap: float = 8) -> None:
        """Quiet text at the cursor, broken into lines."""
        top = self.y + (gap if self.y else 0)
        self.y = top + self.paragraph(key or f"note:{text}", 0, top, text, self.width, "small", "muted")

    def add(self, idiom: Idiom, key: str, caption: str = "", note: str = "", gap: float = 16) -> float:
        """Place an idiom at the cursor over the whole width, with an optional caption; return the y where it starts."""
        if caption:
            self.caption(caption, f"{key}.caption", gap, note)
        elif self.y:
            self.y += gap
        top = self.y
        self.y += idiom.draw(self, key, 0, top, self.width)
        self.height = max(self.height, _round(self.y))
        return top

    def row(
        self, parts: Sequence[tuple[str, Idiom, str, float]], gap: float = 24, above: float = 16, stack: bool = True
    ) -> None:
        """Place several idioms side by side, below each other on a phone (unless ``stack=False``).

        A part is (key, idiom, caption, weight).
        """
        if self.narrow and stack:
            for key, idiom, caption, _ in parts:
                self.add(idiom, key, caption, gap=above)
            return
        top = self.y + (above if self.y else 0)
        room = self.width - gap * (len(parts) - 1)
        total = sum(weight for *_, weight in parts)
        x, bottom = 0.0, top
        for key, idiom, caption, weight in parts:
            width, y = room * weight / total, top
            if caption:
                self.text(f"{key}.caption", x, y + 12, caption, "head", width=width)
                y += 20
            bottom = max(bottom, y + idiom.draw(self, key, x, y, width))
            x += width + gap
        self.y = bottom
        self.height = max(self.height, _round(bottom))
