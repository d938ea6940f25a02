"""TextPane: text of /proc or dmesg as it stands, with what changed marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmsim.draw.measure import fit_text
from mmsim.draw.scene import Scene
from mmsim.draw.theme import TEXT_STYLES

__all__ = ["TextPane", "changed_parts"]


def changed_parts(old: str, new: str) -> list[tuple[int, int]]:
    """The (first, end) columns of the words of ``new`` that are not the same in ``old``.

    >>> changed_parts("Normal  3  4", "Normal  3  5")
    [(11, 12)]
    """
    before = re.findall(r"\S+", old)
    return [
        match.span()
        for number, match in enumerate(re.finditer(r"\S+", new))
        if number >= len(before) or before[number] != match[0]
    ]


class TextPane:
    """Lines in a monospaced font. ``old`` is the text before: differing words get a highlighter behind them.

    ``marks`` gives (first, end) columns by line number instead; ``tips`` a tooltip by line number. With ``rows``, the last
    ``rows`` lines are shown, as a console does.
    """

    def __init__(
        self, text: str | Sequence[str], old: str | Sequence[str] | None = None, marks: Mapping[int, Sequence[tuple[int, int]]] | None = None,
        tips: Mapping[int, str] | None = None, rows: int = 0, title: str = "",
    ):  # fmt: skip
        self.lines = (text.rstrip("\n").split("\n") if text else []) if isinstance(text, str) else list(text)
        before = old.rstrip("\n").split("\n") if isinstance(old, str) else list(old) if old is not None else None
        self.marks: dict[int, Sequence[tuple[int, int]]] = dict(marks or {})
        if before is not None:
            for number, line in enumerate(self.lines):
                self.marks.setdefault(number, changed_parts(before[number] if number < len(before) else "", line))
        self.tips, self.rows, self.title = tips or {}, rows, title

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the pane; a line's key is ``key/<line number>``."""
        letter = TEXT_STYLES["code"].size * 0.602
        step = 17.0
        first = max(len(self.lines) - self.rows, 0) if self.rows else 0
        rows = self.rows or len(self.lines)
        top = y
        high = rows * step + 12 + (20 if self.title else 0)
        scene.rect(f"{key}.pane", x, top, width, high, "panel", rx=3)
        if self.title:
            scene.text(f"{key}.title", x + 8, top + 16, self.title, "small", "muted", width=width - 16)
            top += 20
        top += 6
        for number, line in enumerate(self.lines[first:], first):
            line = line.expandtabs(8)
            baseline = top + (number - first) * step + 12.5
            for part, (begin, end) in enumerate(self.marks.get(number, ())):
                left, right = x + 8 + begin * letter, min(x + 8 + end * letter, x + width - 4)
                if right > left:
                    scene.rect(
                        f"{key}/{number}.mark{part}", left - 1.5, baseline - 11.5, right - left + 3, 15, "mark", rx=2
                    )
            shown = fit_text(line, width - 16, "code")
            if shown.strip():
                tip = self.tips.get(number, line if shown != line else "")
                scene.text(f"{key}/{number}", x + 8, baseline, shown, "code", tip=tip)
        scene.height = max(scene.height, round(y + high, 1))
        return high
