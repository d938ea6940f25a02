"""TreeView: page tables, VMAs, cgroups: a tree drawn downwards, or indented where there is no room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.measure import text_width
from mmsim.draw.scene import Scene

__all__ = ["Node", "TreeView"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node and its children. ``word`` stands on the line from its parent (an index, for a table)."""

    key: str
    label: str
    role: str = ""
    children: Sequence["Node"] = ()
    tip: str = ""
    mark: str = ""
    word: str = ""


class TreeView:
    """A tree from its root. ``indented=True`` forces the list form that a phone gets."""

    def __init__(self, root: Node, indented: bool = False):
        self.root, self.indented = root, indented

    def _need(self, node: Node) -> float:
        # The word stands beside the line, on one side of the node's middle.
        beside = 2 * (text_width(node.word, "small") + 8) if node.word else 0
        own = max(text_width(node.label, "small") + 14, beside)
        return max(own, sum(self._need(child) for child in node.children) + 10 * (len(node.children) - 1))

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the tree; a node's key is ``key/<node key>``."""
        if self.indented or self._need(self.root) > width:
            return self._list(scene, key, self.root, x, y, width, 0)
        bottom = self._layer(scene, key, self.root, x, y, width)
        return bottom - y

    def _layer(self, scene: Scene, key: str, node: Node, x: float, y: float, width: float) -> float:
        wide = min(max(text_width(node.label, "small") + 14, 34), width)
        middle = x + width / 2
        name = f"{key}/{node.key}"
        bottom = y + 24
        if node.children:
            needs = [self._need(child) for child in node.children]
            spare = (width - sum(needs) - 10 * (len(needs) - 1)) / len(needs)
            left = x
            for child, need in zip(node.children, needs, strict=True):
                room = need + spare
                at = left + room / 2
                d = f"M{middle:.5g} {y + 24:.5g}C{middle:.5g} {y + 42:.5g} {at:.5g} {y + 38:.5g} {at:.5g} {y + 56:.5g}"
                lit = "wire lit" if "focus" in child.mark or child.role == "moving" else "wire"
                scene.path(f"{key}/{child.key}.edge", d, lit, bottom=y + 56)
                if child.word:
                    side = -1 if at < middle else 1
                    anchor = "end" if at < middle else "start"
                    scene.text(f"{key}/{child.key}.word", at + 6 * side, y + 50, child.word, "small", "muted", anchor)
                bottom = max(bottom, self._layer(scene, key, child, left, y + 56, room))
                left += room + 10
        scene.box(name, middle - wide / 2, y, wide, 24, node.label, node.role, node.tip, cls=node.mark, rx=3)
        return bottom

    def _list(self, scene: Scene, key: str, node: Node, x: float, y: float, width: float, depth: int) -> float:
        left = x + depth * 16
        wide = min(text_width(node.label, "small") + 14, x + width - left)
        scene.box(f"{key}/{node.key}", left, y, wide, 21, node.label, node.role, node.tip, cls=node.mark, rx=3)
        if node.word:
            scene.text(
                f"{key}/{node.key}.word",
                left + wide + 6,
                y + 15,
                node.word,
                "small",
                "muted",
                width=x + width - left - wide - 6,
            )
        top = y + 26
        for child in node.children:
            scene.path(
                f"{key}/{child.key}.edge",
                f"M{left + 7:g} {y + 21:g}V{top + 11:g}H{left + 16:g}",
                "wire",
                bottom=top + 11,
            )
            top += self._list(scene, key, child, x, top, width, depth + 1)
        return top - y
