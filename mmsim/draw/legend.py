"""Legend: which roles a figure shows, each with its pattern and its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmsim.draw.measure import fit_text, text_width
from mmsim.draw.scene import Scene
from mmsim.draw.theme import ROLES

__all__ = ["Legend"]


class Legend:
    """Swatches with words, flowing into lines. Give role names, or a mapping from role to the words of this figure."""

    def __init__(self, roles: Sequence[str] | Mapping[str, str]):
        self.roles = dict(roles) if isinstance(roles, Mapping) else {role: ROLES[role].meaning for role in roles}

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the legend; keys are ``key/<role>``."""
        left, top = x, y
        for role, words in self.roles.items():
            label = fit_text(words, width - 26, "small")
            wide = 20 + text_width(label, "small") + 16
            if left > x and left + wide - 16 > x + width:
                left, top = x, top + 20
            scene.rect(f"{key}/{role}", left + 0.5, top + 2.5, 14, 12, role)
            scene.text(f"{key}/{role}.t", left + 20, top + 12.5, label, "small", "muted")
            left += wide
        scene.height = max(scene.height, round(top + 18, 1))
        return top + 18 - y
