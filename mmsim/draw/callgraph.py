"""CallGraph: which function called which, indented as a function-graph trace; the path taken is lit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["Call", "CallGraph"]


@dataclass(frozen=True, slots=True)
class Call:
    """One line: a function at a depth, and a note. ``state``: empty (not reached), ``lit``, ``now``, ``failed``."""

    depth: int
    name: str
    note: str = ""
    state: str = ""
    tip: str = ""


class CallGraph:
    """Calls below each other, each indented by its depth, with lines from caller to callee."""

    def __init__(self, calls: Sequence[Call]):
        self.calls = list(calls)

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the graph; a call's key is ``key/<line>:<name>``."""
        step = 24.0
        indent = 22.0 if width >= 480 else 14.0
        last: dict[int, float] = {}
        for number, call in enumerate(self.calls):
            name = f"{key}/{number}:{call.name}"
            left, top = x + call.depth * indent, y + number * step
            if call.depth:
                stem = left - indent + 7
                begin = last.get(call.depth - 1, top)
                wire = "wire lit" if call.state in ("lit", "now") else "wire warn" if call.state == "failed" else "wire"
                scene.path(f"{name}.wire", f"M{stem:g} {begin + 20:g}V{top + 11:g}H{left - 1:g}", wire, bottom=top + 11)
            wide = text_width(call.name, "code") + 12
            cls = {"": "panel", "lit": "panel focus", "now": "moving focus", "failed": "error"}[call.state]
            ink = {"now": "on-moving", "failed": "on-error", "lit": "strong"}.get(call.state, "muted")
            wide = min(wide, x + width - left)
            scene.rect(name, left, top + 1, wide, 19, cls, call.tip, rx=3)
            scene.text(f"{name}.t", left + 6, top + 13.5, call.name, "code", ink, width=wide - 11)
            if call.note:
                scene.text(
                    f"{name}.note",
                    left + wide + 8,
                    top + 14,
                    call.note,
                    "small",
                    "muted",
                    width=x + width - left - wide - 8,
                )
            last[call.depth] = top
        height = len(self.calls) * step
        scene.height = max(scene.height, round(y + height, 1))
        return height
