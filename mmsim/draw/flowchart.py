"""FlowChart: steps and decisions, with the path that was really taken lit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import wrap_text
from mmsim.draw.scene import Scene

__all__ = ["Step", "Way", "FlowChart"]


@dataclass(frozen=True, slots=True)
class Step:
    """A box of the chart at (column, row). ``kind``: ``step``, ``choice`` (a question), or ``end`` (an outcome).

    ``state``: empty (not reached), ``lit`` (on the path), ``now`` (the current one), ``failed``.
    """

    key: str
    text: str
    column: int
    row: int
    kind: str = "step"
    state: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """An arrow from one step to another with a word on it; ``lit`` if it was taken."""

    start: str
    end: str
    word: str = ""
    lit: bool = False


class FlowChart:
    """Steps on a grid of columns and rows, joined by arrows of straight pieces.

    A way within a column goes down, within a row sideways; to another row and column it leaves at the bottom (or top) and
    arrives at the side; back up within a column it runs around the outside.
    """

    def __init__(self, steps: Sequence[Step], ways: Sequence[Way], row_height: float = 0, gap: float = 0):
        self.steps, self.ways, self.row_height, self.gap = list(steps), list(ways), row_height, gap

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the chart; keys are ``key/<step>`` and ``key/<start>-<end>``."""
        columns = max(step.column for step in self.steps) + 1
        rows = max(step.row for step in self.steps) + 1
        back = any(self._row(way.end) < self._row(way.start) for way in self.ways)
        gap = self.gap or (44.0 if width >= 560 else 36.0)
        wide = min((width - (16 if back else 0) - gap * (columns - 1)) / columns, 250)
        texts = {
            step.key: wrap_text(step.text, wide - (30 if step.kind == "choice" else 16), "small") for step in self.steps
        }
        heights = [0.0] * rows
        for step in self.steps:
            heights[step.row] = max(heights[step.row], len(texts[step.key]) * 15 + 13, self.row_height)
        tops, at = [], y
        for height in heights:
            tops.append(at)
            at += height + 24
        boxes = {
            step.key: (x + step.column * (wide + gap), tops[step.row], wide, heights[step.row]) for step in self.steps
        }
        right_edge = x + columns * wide + (columns - 1) * gap + 10
        for way in self.ways:
            self._way(scene, key, way, boxes[way.start], boxes[way.end], right_edge)
        for step in self.steps:
            left, top, w, h = boxes[step.key]
            cls = {"": "panel", "lit": "panel focus", "now": "moving focus", "failed": "error"}[step.state]
            ink = {"now": "on-moving", "failed": "on-error", "lit": "strong"}.get(step.state, "muted")
            if step.kind == "choice":
                edge = f"L{left + w - 9:.5g} {top + h:.5g}H{left + 9:.5g}L{left:.5g} {top + h / 2:.5g}Z"
                d = f"M{left + 9:.5g} {top:.5g}H{left + w - 9:.5g}L{left + w:.5g} {top + h / 2:.5g}{edge}"
                scene.path(f"{key}/{step.key}", d, cls, step.tip, top + h)
            else:
                scene.rect(
                    f"{key}/{step.key}", left, top, w, h, cls, step.tip, rx=min(h / 2, 14) if step.kind == "end" else 3
                )
            lines = texts[step.key]
            base = top + h / 2 - (len(lines) - 1) * 7.5 + 4
            for number, line in enumerate(lines):
                scene.text(f"{key}/{step.key}.{number}", left + w / 2, base + number * 15, line, "small", ink, "middle")
        scene.height = max(scene.height, round(at - 24 + 6, 1))
        return at - 24 + 6 - y

    def _row(self, key: str) -> int:
        return next(step.row for step in self.steps if step.key == key)

    def _way(
        self,
        scene: Scene,
        key: str,
        way: Way,
        a: tuple[float, float, float, float],
        b: tuple[float, float, float, float],
        edge: float,
    ) -> None:
        cls = "wire lit" if way.lit else "wire"
        name = f"{key}/{way.start}-{way.end}"
        ax, ay, aw, ah = a
        bx, by, bw, bh = b
        word_at: tuple[float, float, str]
        if abs(ax - bx) < 1 and by > ay:
            cx = ax + aw / 2
            d = f"M{cx:.5g} {ay + ah:.5g}V{by:.5g}m-3.5 -6l3.5 6l3.5 -6"
            word_at = (cx + 7, by - 8, "start")
        elif by < ay - 1 and abs(ax - bx) < 1:
            d = f"M{ax + aw:.5g} {ay + ah / 2:.5g}H{edge:.5g}V{by + bh / 2:.5g}H{bx + bw:.5g}m6 -3.5l-6 3.5l6 3.5"
            word_at = (edge - 4, (ay + by + bh) / 2, "end")
        elif abs(ay - by) < 1:
            forward = bx > ax
            x1, x2 = (ax + aw, bx) if forward else (ax, bx + bw)
            tip = "m-6 -3.5l6 3.5l-6 3.5" if forward else "m6 -3.5l-6 3.5l6 3.5"
            d = f"M{x1:.5g} {ay + ah / 2:.5g}H{x2:.5g}{tip}"
            word_at = ((x1 + x2) / 2, ay + ah / 2 - 5, "middle")
        else:
            forward, down = bx > ax, by > ay
            cx, from_y = ax + aw / 2, ay + ah if down else ay
            side = bx if forward else bx + bw
            head = "m-6 -3.5l6 3.5l-6 3.5" if forward else "m6 -3.5l-6 3.5l6 3.5"
            d = f"M{cx:.5g} {from_y:.5g}V{by + bh / 2:.5g}H{side:.5g}{head}"
            word_at = (cx + 7, ay + ah + 16 if down else ay - 8, "start")
        scene.path(name, d, cls, way.word, max(ay + ah, by + bh))
        if way.word:
            px, py, anchor = word_at
            scene.text(f"{name}.word", px, py, way.word, "small", "strong" if way.lit else "muted", anchor)
