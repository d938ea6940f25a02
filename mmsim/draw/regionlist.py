"""RegionList: a sorted array of regions as the kernel keeps it, one row a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene
from mmsim.draw.theme import ROLES

__all__ = ["Region", "RegionList"]


@dataclass(frozen=True, slots=True)
class Region:
    """One row: its cells as text, the role of its swatch, a key that stays with it, a mark (``moving`` highlights the row)."""

    key: str
    cells: Sequence[str]
    role: str = ""
    tip: str = ""
    mark: str = ""


class RegionList:
    """A table of regions with column heads; the first column is the index. ``most`` rows are shown, the rest counted."""

    def __init__(self, regions: Sequence[Region], heads: Sequence[str], most: int = 16, empty: str = "empty"):
        self.regions, self.heads, self.most, self.empty = list(regions), list(heads), most, empty

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the table; a row's keys begin with ``key/<region key>``."""
        step = 20.0
        shown = self.regions[: self.most]
        need = [
            max(
                [
                    text_width(head, "small"),
                    *(text_width(region.cells[c], "code") for region in shown if c < len(region.cells)),
                ]
            )
            + 14
            for c, head in enumerate(self.heads)
        ]
        index = 36.0
        room = width - index
        scale = min(1.0, room / sum(need)) if need else 1.0
        lefts, at = [], x + index
        for wide in need:
            lefts.append((at, wide * scale))
            at += wide * scale
        for (left, wide), head in zip(lefts, self.heads, strict=True):
            scene.text(f"{key}.head:{head}", left, y + 11, head, "small", "muted", width=wide - 4)
        top = y + 17
        scene.line(f"{key}.rule", x, top, x + width, top, "axis")
        for number, region in enumerate(shown):
            name = f"{key}/{region.key}"
            if region.mark:
                scene.rect(f"{name}.mark", x, top + 1, width, step - 2, "mark", rx=2)
            if region.role in ROLES:
                scene.rect(f"{name}.swatch", x + 2.5, top + 4.5, 11, 11, region.role, region.tip)
            scene.text(f"{name}.index", x + 28, top + 14.5, str(number), "code", "muted", "end")
            for (left, wide), cell in zip(lefts, region.cells, strict=False):
                scene.text(
                    f"{name}:{lefts.index((left, wide))}",
                    left,
                    top + 14.5,
                    cell,
                    "code",
                    width=wide - 4,
                    tip=region.tip,
                )
            top += step
        if not shown:
            scene.text(f"{key}.empty", x + index, top + 14.5, self.empty, "small", "muted")
            top += step
        if len(self.regions) > len(shown):
            scene.text(
                f"{key}.more", x + index, top + 14.5, f"… {len(self.regions) - len(shown)} more", "small", "muted"
            )
            top += step
        scene.height = max(scene.height, round(top, 1))
        return top - y
