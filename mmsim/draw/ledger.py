"""Ledger: counters, their values, and by how much this step changed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["Entry", "Ledger", "grouped"]


def grouped(number: float) -> str:
    """A number with thin spaces between its thousands."""
    return f"{number:,}".replace(",", "\u202f")


@dataclass(frozen=True, slots=True)
class Entry:
    """A counter (named as in /proc/vmstat where it is there), its value now, and the change."""

    name: str
    value: float | str
    delta: float = 0
    tip: str = ""
    cls: str = ""


class Ledger:
    """Entries below each other, in two columns where there is room for them; a change is marked and signed."""

    def __init__(self, entries: Sequence[Entry], columns: int = 0):
        self.entries, self.columns = list(entries), columns

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the ledger; an entry's keys begin with ``key/<name>``."""
        columns = self.columns or (2 if width >= 520 and len(self.entries) > 3 else 1)
        rows = -(-len(self.entries) // columns)
        room = (width - 28 * (columns - 1)) / columns
        step = 21.0
        deltas = [f"{entry.delta:+,}".replace(",", "\u202f").replace("-", "−") if entry.delta else "" for entry in self.entries]
        aside = max([58 if room > 200 else 48, *(text_width(delta, "small") + 14 for delta in deltas)])
        for number, entry in enumerate(self.entries):
            column, row = divmod(number, rows)
            left, top = x + column * (room + 28), y + row * step
            name = f"{key}/{entry.name}"
            value = entry.value if isinstance(entry.value, str) else grouped(entry.value)
            delta, right = deltas[number], left + room - aside
            if delta:
                wide = text_width(delta, "small") + 8
                scene.rect(f"{name}.mark", right + 6, top + 2, wide, 17, "mark", rx=2)
                scene.text(f"{name}.delta", right + 10, top + 15, delta, "small", "strong")
            scene.text(f"{name}.value", right, top + 15, value, "label", entry.cls or "strong", "end")
            free = right - left - text_width(value, "label") - 10
            scene.text(f"{name}.name", left, top + 15, entry.name, "code", width=free, tip=entry.tip)
            scene.line(f"{name}.rule", left, top + 20.5, left + room, top + 20.5, "grid")
        scene.height = max(scene.height, round(y + rows * step, 1))
        return rows * step
