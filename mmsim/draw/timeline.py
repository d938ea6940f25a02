"""Timeline: what happened when, one lane for each actor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["Moment", "Lane", "Timeline"]


@dataclass(frozen=True, slots=True)
class Moment:
    """Something from ``start`` to ``end`` (the same for an instant)."""

    start: float
    end: float
    role: str
    label: str = ""
    tip: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """One actor (a task, kswapd, a CPU) and what it did."""

    name: str
    moments: Sequence[Moment]


class Timeline:
    """Lanes over one time axis from ``low`` to ``high``; ``now`` draws the current time through all of them."""

    def __init__(self, lanes: Sequence[Lane], low: float, high: float, unit: str = "", now: float | None = None):
        if high <= low:
            raise ValueError("a timeline needs low < high")
        self.lanes, self.low, self.high, self.unit, self.now = list(lanes), low, high, unit, now

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the lanes; a moment's key is ``key/<lane>/<number>``."""
        above = width < 480
        indent = 0.0 if above else min(max(text_width(lane.name, "small") for lane in self.lanes) + 12, width / 4)
        left, room, top = x + indent, width - indent, y
        scale = room / (self.high - self.low)
        start = y
        for lane in self.lanes:
            if above:
                scene.text(f"{key}/{lane.name}.name", x, top + 11, lane.name, "small", "muted", width=width)
                top += 16
            else:
                scene.text(
                    f"{key}/{lane.name}.name", left - 12, top + 15, lane.name, "small", "muted", "end", indent - 12
                )
            scene.line(f"{key}/{lane.name}.line", left, top + 11, left + room, top + 11, "grid")
            for number, moment in enumerate(lane.moments):
                a, b = (moment.start - self.low) * scale, (moment.end - self.low) * scale
                name = f"{key}/{lane.name}/{number}"
                tip = moment.tip or f"{moment.label or moment.role} at {moment.start:g} {self.unit}".strip()
                if b - a < 3:
                    scene.circle(name, left + a, top + 11, 4.5, f"{moment.role} {moment.mark}".strip(), tip)
                else:
                    scene.box(name, left + a, top + 2, b - a, 18, moment.label, moment.role, tip, cls=moment.mark)
            top += 26
        scene.line(f"{key}/axis", left, top, left + room, top, "axis")
        steps = 6 if room > 400 else 3
        for number in range(steps + 1):
            at = self.low + (self.high - self.low) * number / steps
            label = f"{at:.4g}" + (f" {self.unit}" if number == steps and self.unit else "")
            anchor = "start" if number == 0 else "end" if number == steps else "middle"
            scene.line(
                f"{key}/tick{number}",
                left + (at - self.low) * scale,
                top,
                left + (at - self.low) * scale,
                top + 4,
                "axis",
            )
            scene.text(
                f"{key}/label{number}", left + (at - self.low) * scale, top + 17, label, "small", "muted", anchor
            )
        if self.now is not None:
            at = left + (min(max(self.now, self.low), self.high) - self.low) * scale
            scene.line(f"{key}/now", at, start, at, top + 5, "wire lit", f"now: {self.now:g} {self.unit}".strip())
        scene.height = max(scene.height, round(top + 22, 1))
        return top + 22 - y
