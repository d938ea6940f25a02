"""FreeLists: the free lists of a zone, one row an order, one column a migratetype, each from head to tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["FreeLists"]


class FreeLists:
    """``lists[order, type]`` holds the first PFNs of the blocks from head to tail.

    ``types`` are (name, role) pairs; ``marks`` gives a mark (``focus``, ``moving`` as a role change) for a PFN, ``roles`` a
    role for one. A block keeps its key when it goes to another list, so it glides there.
    """

    def __init__(
        self, lists: Mapping[tuple[int, int], Sequence[int]], types: Sequence[tuple[str, str]],
        orders: Sequence[int] = tuple(range(10, -1, -1)),
        marks: Mapping[int, str] | None = None, roles: Mapping[int, str] | None = None,
    ):  # fmt: skip
        self.lists, self.types, self.orders = lists, list(types), list(orders)
        self.marks, self.roles = marks or {}, roles or {}

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the lists; a block's key is ``key/0x<pfn>``."""
        left = x + 30
        room = (x + width - left) / len(self.types)
        scene.text(f"{key}.order", x, y + 11, "order", "small", "muted", width=34)
        for column, (name, _) in enumerate(self.types):
            at = left + column * room + 8
            scene.text(
                f"{key}.type:{column}", at + (10 if column == 0 else 0), y + 11, name, "small", "muted", width=room - 20
            )
        top = y + 19
        step = 22.0
        for order in self.orders:
            scene.line(f"{key}.rule:{order}", x, top, x + width, top, "grid")
            scene.text(f"{key}.o:{order}", x + 16, top + 15, str(order), "small", "strong", "end")
            for column, (name, role) in enumerate(self.types):
                blocks = self.lists.get((order, column), ())
                self._row(scene, key, left + column * room + 8, top + 3, room - 14, order, column, name, role, blocks)
            top += step
        scene.height = max(scene.height, round(top, 1))
        return top - y

    def _row(
        self,
        scene: Scene,
        key: str,
        x: float,
        y: float,
        width: float,
        order: int,
        column: int,
        name: str,
        role: str,
        blocks: Sequence[int],
    ) -> None:
        labels = [f"{pfn:x}" for pfn in blocks]
        widths = [max(text_width(label, "small") + 8, 18) for label in labels]
        rest = text_width(f"+{len(blocks)}", "small") + 6
        used, fits = 0.0, 0
        for number, wide in enumerate(widths):
            need = used + wide + (rest if number + 1 < len(widths) else 0)
            if need > width:
                break
            used += wide + 3
            fits = number + 1
        at = x
        for number, (pfn, label, wide) in enumerate(list(zip(blocks, labels, widths, strict=True))[:fits], 1):
            tip = f"order {order}, frames {pfn:#x}-{pfn + (1 << order) - 1:#x}, {name}"
            tip += f"; number {number} of {len(blocks)} from the head"
            scene.box(
                f"{key}/{pfn:#x}",
                at,
                y,
                wide,
                16,
                label,
                self.roles.get(pfn, role),
                tip,
                cls=self.marks.get(pfn, ""),
                rx=2,
            )
            at += wide + 3
        if len(blocks) > fits:
            listed = ", ".join(labels[fits : fits + 12]) + (", …" if len(blocks) > fits + 12 else "")
            text = f"+{len(blocks) - fits}" if fits else str(len(blocks))
            scene.text(
                f"{key}.more:{order}:{column}",
                at + 1,
                y + 12,
                text,
                "small",
                "muted",
                tip=f"{len(blocks) - fits} more: {listed}",
            )
