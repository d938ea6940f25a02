"""TextPane: text of /proc or dmesg as it stands, with what changed marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
        self, text: str | Sequence[str], old: str | Sequence[str] | None = None,
        marks: Mapping[int, Sequence[tuple[int, int]]] | None = None, tips: Mapping[int, str] | None = None, rows: int = 0, title: str = "",
    ):  # fmt: skip
        given = (text.rstrip("\n").split("\n") if text else []) if isinstance(text, str) else list(text)
        self.lines = [line.expandtabs(8) for line in given]
        before = old.rstrip("\n").split("\n") if isinstance(old, str) else list(old) if old is not None else None
        self.marks: dict[int, Sequence[tuple[int, int]]] = dict(marks or {})
        if before is not None:
            for number, line in enumerate(self.lines):
                was = before[number] if number < len(before) else ""
                self.marks.setdefault(number, changed_parts(was, line))
        self.tips, self.rows, self.title = tips or {}, rows, title

    def _layout(self, line: str, room: int) -> list[list[tuple[str, int, int]]]:
        """The line as one or more lines of words (text, column to draw at, column in the original).

        Where it does not fit, blanks between words shrink to one; what is still too long goes on below, indented.
        """
        words = [(match[0], match.start(), match.start()) for match in re.finditer(r"\S+", line)]
        if len(line.rstrip()) <= room:
            return [words]
        rows: list[list[tuple[str, int, int]]] = [[]]
        at = min(len(line) - len(line.lstrip()), 2)
        for word, _, original in words:
            if rows[-1] and at + len(word) > room:
                rows.append([])
                at = 2
            rows[-1].append((word if at + len(word) <= room else word[: room - at - 1] + "…", at, original))
            at += len(word) + 1
        return rows

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the pane; a line's key is ``key/<line number>``."""
        letter = TEXT_STYLES["code"].size * 0.602
        step = 17.0
        room = max(int((width - 16) / letter), 8)
        first = max(len(self.lines) - self.rows, 0) if self.rows else 0
        rows = []
        for number, line in enumerate(self.lines[first:], first):
            rows += [(number, part, row) for part, row in enumerate(self._layout(line, room))]
        if self.rows:
            rows = rows[-self.rows :]
        top = y
        high = max(len(rows), self.rows) * step + 12 + (20 if self.title else 0)
        scene.rect(f"{key}.pane", x, top, width, high, "panel", rx=3)
        if self.title:
            scene.text(f"{key}.title", x + 8, top + 16, self.title, "small", "muted", width=width - 16)
            top += 20
        top += 6
        for place, (number, part, row) in enumerate(rows):
            baseline = top + place * step + 12.5
            name = f"{key}/{number}" if part == 0 else f"{key}/{number}+{part}"
            for count, (word, at, original) in enumerate(row):
                end = original + len(word)
                if any(begin < end and original < stop for begin, stop in self.marks.get(number, ())):
                    left = x + 8 + at * letter
                    scene.rect(
                        f"{name}.mark{count}", left - 1.5, baseline - 11.5, len(word) * letter + 3, 15, "mark", rx=2
                    )
            shown = ""
            for word, at, _ in row:
                shown = shown.ljust(at) + word
            if shown.strip():
                scene.text(name, x + 8, baseline, shown, "code", tip=self.tips.get(number, ""))
        scene.height = max(scene.height, round(y + high, 1))
        return high
