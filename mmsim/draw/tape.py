"""Tape: a linked list with its two ends, head at the left; long lists wrap or are cut in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["Item", "Tape"]


@dataclass(frozen=True, slots=True)
class Item:
    """One element: ``key`` names the thing itself (a page frame), so that it glides when it changes its place or list."""

    key: str
    label: str
    role: str = "free"
    tip: str = ""
    mark: str = ""


class Tape:
    """A list from ``head`` to ``tail``; ``most`` items are shown, the middle of a longer one is counted instead.

    ``shared`` is a key prefix for the items: tapes with the same one hand items to each other.
    """

    def __init__(
        self, items: Sequence[Item], name: str = "", head: str = "head", tail: str = "tail", most: int = 60, shared: str = "",
    ):  # fmt: skip
        self.items, self.name, self.head, self.tail, self.most, self.shared = (
            list(items),
            name,
            head,
            tail,
            most,
            shared,
        )

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the list; an item's key is ``shared/<item key>``."""
        prefix = self.shared or key
        top = y
        if self.name:
            scene.text(f"{key}.name", x, top + 11, self.name, "small", "strong", width=width)
            top += 18
        high, step = 22.0, 30.0
        left = x
        scene.text(f"{key}.head", left, top + 15, self.head, "small", "muted")
        left += text_width(self.head, "small") + 8
        start = left
        shown: list[Item | int] = list(self.items)
        if len(self.items) > self.most:
            half = max(self.most // 2, 1)
            shown = [*self.items[:half], len(self.items) - 2 * half, *self.items[-half:]]
        previous: tuple[float, float] | None = None
        for item in shown:
            label = f"… {item} more" if isinstance(item, int) else item.label
            wide = max(text_width(label, "small") + 12, 22)
            if left + wide > x + width and left > start:
                left, top = start, top + step
                previous = None
            name = f"{prefix}/more" if isinstance(item, int) else f"{prefix}/{item.key}"
            if previous:
                scene.line(f"{name}.link", previous[0], previous[1], left, previous[1], "wire")
            if isinstance(item, int):
                scene.text(name, left + wide / 2, top + 15, label, "small", "muted", "middle")
            else:
                scene.box(name, left, top, wide, high, label, item.role, item.tip, cls=item.mark, rx=3)
            previous = (left + wide, top + high / 2)
            left += wide + 8
        if not shown:
            scene.text(f"{key}.empty", left, top + 15, "empty", "small", "muted")
            left += text_width("empty", "small") + 8
        if left + text_width(self.tail, "small") > x + width:
            left, top = start, top + step
        scene.text(f"{key}.tail", left, top + 15, self.tail, "small", "muted")
        scene.height = max(scene.height, round(top + high, 1))
        return top + high - y
