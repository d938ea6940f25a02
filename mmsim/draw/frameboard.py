"""FrameBoard: page frames as cells, row by row or along a Hilbert curve; neighbours in address are neighbours on the board."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mmsim.draw.scene import Scene

__all__ = ["Run", "FrameBoard", "runs_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` frames from ``start`` on that are one thing: a role, perhaps a label, a tooltip, a mark such as ``focus``."""

    start: int
    count: int
    role: str
    label: str = ""
    tip: str = ""
    mark: str = ""


def runs_of(roles: Iterable[str], start: int = 0) -> list[Run]:
    """Runs of equal roles from one role a frame.

    >>> [(run.start, run.count, run.role) for run in runs_of(["free", "free", "anon"], 16)]
    [(16, 2, 'free'), (18, 1, 'anon')]
    """
    runs: list[Run] = []
    first, current, position = start, None, start
    for position, role in enumerate(roles, start):
        if role != current:
            if current is not None:
                runs.append(Run(first, position - first, current))
            first, current = position, role
    if current is not None:
        runs.append(Run(first, position + 1 - first, current))
    return runs


@lru_cache(maxsize=65536)
def _hilbert(side: int, distance: int) -> tuple[int, int]:
    """Column and row of the cell that lies ``distance`` along the curve through a square of ``side`` cells."""
    x = y = 0
    size, rest = 1, distance
    while size < side:
        right = 1 & (rest // 2)
        up = 1 & (rest ^ right)
        if not up:
            if right:
                x, y = size - 1 - x, size - 1 - y
            x, y = y, x
        x, y = x + size * right, y + size * up
        rest //= 4
        size *= 2
    return x, y


def _aligned_pieces(start: int, count: int) -> list[tuple[int, int]]:
    pieces = []
    while count:
        size = (start & -start) or 1 << count.bit_length()
        while size > count:
            size >>= 1
        pieces.append((start, size))
        start, count = start + size, count - size
    return pieces


class FrameBoard:
    """A board of ``frames`` frames from ``start`` on; ``runs`` say what they are (what no run covers stays blank).

    ``columns`` is the number of cells in a row (a power of two is easiest to read; chosen from the width if 0).
    ``hilbert=True`` draws a square in which an aligned block of 4^k frames is a square and one of 2*4^k a domino; the
    number of frames is rounded up to a power of four. When a board has more than ``most`` cells, a cell stands for
    several frames and shows the role that most of them have.
    """

    def __init__(
        self, runs: Sequence[Run], frames: int, start: int = 0, columns: int = 0, hilbert: bool = False,
        height: float = 0, most: int = 8192, cell: float = 0,
    ):  # fmt: skip
        self.runs, self.frames, self.start, self.columns = list(runs), frames, start, columns
        self.hilbert, self.limit, self.most, self.cell = hilbert, height, most, cell
        self.per_cell = 1
        while (frames + self.per_cell - 1) // self.per_cell > most:
            self.per_cell *= 2

    def _binned(self) -> list[Run]:
        """The runs, one unit a cell."""
        if self.per_cell == 1:
            return [Run(run.start - self.start, run.count, run.role, run.label, run.tip, run.mark) for run in self.runs]
        per = self.per_cell
        cells = -(-self.frames // per)
        share: list[dict[str, int]] = [{} for _ in range(cells)]
        for run in self.runs:
            first, last = run.start - self.start, run.start - self.start + run.count
            for cell in range(max(first // per, 0), min(-(-last // per), cells)):
                covered = min(last, (cell + 1) * per) - max(first, cell * per)
                share[cell][run.role] = share[cell].get(run.role, 0) + covered
        best = [max(counts, key=lambda role: counts[role]) if counts else "" for counts in share]
        return [
            Run(
                run.start,
                run.count,
                run.role,
                "",
                f"about {run.count * per} frames from {hex(self.start + run.start * per)}: {run.role}",
            )
            for run in runs_of(best)
            if run.role
        ]

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the board; a run's key is ``key/0x<first frame>``."""
        cells = -(-self.frames // self.per_cell)
        runs = self._binned()
        if self.hilbert:
            side = 1
            while side * side < cells:
                side *= 2
            cell = self.cell or min(width, self.limit or 420) / side
            return self._draw_hilbert(scene, key, x, y, side, cell, runs)
        columns = self.columns
        if not columns:
            columns = 1
            while columns * 2 * 5 <= width and columns < cells:
                columns *= 2
        cell = self.cell or min(int(width / columns * 2) / 2, 45 if columns <= 16 else 22)
        high = min(max(cell, 8.0), 28.0) if cell * -(-cells // columns) < 60 else cell
        rows = -(-cells // columns)
        for run in runs:
            first, last = run.start, run.start + run.count
            row, column = divmod(first, columns)
            last_row, last_column = divmod(last - 1, columns)
            left, top = x + column * cell, y + row * high
            self._one(scene, key, run, left, top, cell, high, columns, row, column, last_row, last_column, x, y)
        scene.height = max(scene.height, round(y + rows * high, 1))
        return rows * high

    def _tip(self, run: Run) -> str:
        if run.tip:
            return run.tip
        first = self.start + run.start
        frames = "frame" if run.count == 1 else f"{run.count} frames from"
        return f"{frames} {first:#x}: {run.label + ', ' if run.label else ''}{run.role}"

    def _one(
        self, scene: Scene, key: str, run: Run, left: float, top: float, cell: float, high: float, columns: int,
        row: int, column: int, last_row: int, last_column: int, x: float, y: float,
    ) -> None:  # fmt: skip
        name = f"{key}/{self.start + run.start * self.per_cell:#x}"
        cls = f"{run.role} {run.mark}".strip()
        if row == last_row or (column == 0 and last_column == columns - 1):
            wide = (last_column - column + 1) * cell
            scene.box(
                name, left, top, wide, (last_row - row + 1) * high, run.label, run.role, self._tip(run), cls=run.mark
            )
            return
        a, b = x + column * cell, x + (last_column + 1) * cell
        far, near = x + columns * cell, x
        t0, t1 = y + row * high, y + (row + 1) * high
        b0, b1 = y + last_row * high, y + (last_row + 1) * high
        if last_row == row + 1 and last_column < column:
            d = f"M{a:g} {t0:g}H{far:g}V{t1:g}H{a:g}ZM{near:g} {b0:g}H{b:g}V{b1:g}H{near:g}Z"
        else:
            d = f"M{a:g} {t0:g}H{far:g}V{b0:g}H{b:g}V{b1:g}H{near:g}V{t1:g}H{a:g}Z"
        scene.path(name, d, cls, self._tip(run), b1)

    def _draw_hilbert(
        self, scene: Scene, key: str, x: float, y: float, side: int, cell: float, runs: list[Run]
    ) -> float:
        for run in runs:
            name = f"{key}/{self.start + run.start * self.per_cell:#x}"
            boxes = []
            for start, size in _aligned_pieces(run.start, run.count):
                one, other = _hilbert(side, start), _hilbert(side, start + size - 1)
                if size >= 4:
                    # The corners of an aligned piece are ends of the curve in it, or of its two halves.
                    half = size // 2 if (size.bit_length() - 1) % 2 else size
                    edge = int(half**0.5)
                    corners = [(px // edge * edge, py // edge * edge) for px, py in (one, other)]
                    left, top = min(c[0] for c in corners), min(c[1] for c in corners)
                    right, bottom = max(c[0] for c in corners) + edge, max(c[1] for c in corners) + edge
                else:
                    left, top = min(one[0], other[0]), min(one[1], other[1])
                    right, bottom = max(one[0], other[0]) + 1, max(one[1], other[1]) + 1
                boxes.append((left, top, right, bottom))
            if len(boxes) == 1:
                left, top, right, bottom = boxes[0]
                scene.box(
                    name, x + left * cell, y + top * cell, (right - left) * cell, (bottom - top) * cell,
                    run.label, run.role, self._tip(run), cls=run.mark,
                )  # fmt: skip
            else:
                d = "".join(
                    f"M{x + a * cell:.5g} {y + b * cell:.5g}H{x + c * cell:.5g}V{y + e * cell:.5g}H{x + a * cell:.5g}Z"
                    for a, b, c, e in boxes
                )
                scene.path(
                    name, d, f"{run.role} {run.mark}".strip(), self._tip(run), y + max(box[3] for box in boxes) * cell
                )
        scene.height = max(scene.height, round(y + side * cell, 1))
        return side * cell
