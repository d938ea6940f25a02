"""Tank: a level against marks: free pages against the watermarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["Level", "Tank"]


@dataclass(frozen=True, slots=True)
class Level:
    """A mark on the tank's wall; ``cls`` ``accent`` leads the eye, ``warn`` says that this one is crossed."""

    value: float
    label: str
    cls: str = ""
    tip: str = ""


class Tank:
    """``level`` of something in a tank that holds ``top``, with marks at the side.

    A level above ``top`` fills the tank and its number says so. ``role`` colours the filling; a level of free pages
    stays neutral.
    """

    def __init__(
        self, name: str, level: float, top: float, marks: Sequence[Level], height: float = 190, role: str = "level",
        unit: str = "", note: str = "", tip: str = "",
    ):  # fmt: skip
        self.name, self.level, self.top, self.marks, self.height = name, level, top, list(marks), height
        self.role, self.unit, self.note, self.tip = role, unit, note, tip

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the tank; a mark's key is ``key/mark:<label>``."""
        scene.text(f"{key}.name", x, y + 12, self.name, "head", width=width)
        number = f"{self.level:,.0f}".replace(",", "\u202f") + (f" {self.unit}" if self.unit else "")
        scene.text(f"{key}.value", x, y + 28, number, "small", "muted", width=width)
        top = y + 36
        wide = min(max(width * 0.36, 34), 72)
        fill = min(max(self.level / self.top, 0), 1) * self.height
        tip = self.tip or f"{self.name}: {number}"
        scene.rect(f"{key}.wall", x, top, wide, self.height, "panel")
        scene.rect(f"{key}.level", x, top + self.height - fill, wide, fill, self.role, tip)
        scene.rect(f"{key}.glass", x, top, wide, self.height, "frame", tip)
        if self.level > self.top:
            scene.path(
                f"{key}.over",
                f"M{x - 2:g} {top + 7:g}l{wide / 4 + 1:g} -5l{wide / 4:g} 8l{wide / 4:g} -8l{wide / 4 + 1:g} 5",
                "wire lit",
            )
        least = top + self.height + 20.0
        for mark in sorted(self.marks, key=lambda m: m.value):
            at = top + self.height - min(mark.value / self.top, 1) * self.height
            label_y = min(at, least - 14)
            least = label_y
            cls = mark.cls
            scene.line(
                f"{key}/mark:{mark.label}",
                x - 3,
                at,
                x + wide + 5,
                at,
                f"wire {cls}" if cls in ("accent", "warn", "lit") else "wire",
            )
            if abs(label_y - at) > 1:
                scene.line(f"{key}/lead:{mark.label}", x + wide + 5, at, x + wide + 10, label_y, "grid")
            value = f"{mark.value:,.0f}".replace(",", "\u202f")
            text = f"{mark.label} {value}"
            if text_width(text, "small") > width - wide - 12:
                text = mark.label
            scene.text(
                f"{key}/label:{mark.label}", x + wide + 12, label_y + 4, text, "small", cls if cls in ("accent", "warn", "muted") else "",
                width=width - wide - 12, tip=mark.tip or f"{mark.label}: {value}",
            )  # fmt: skip
        bottom = top + self.height
        if self.note:
            bottom += 4 + scene.paragraph(f"{key}.note", x, bottom + 4, self.note, width, "small", "muted")
        scene.height = max(scene.height, round(bottom + 4, 1))
        return bottom + 4 - y
