"""From address spaces to drawings: areas as pieces of a strip of pages, one cell a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmsim.constants import VM_GROWSDOWN, VM_WRITE
from mmsim.draw import Scene, fit_text, text_width
from mmsim.draw.theme import ROLES
from mmsim.process.mm import Mm
from mmsim.process.vma import Vma, prot_text
from mmsim.units import PAGE_SHIFT

__all__ = ["Piece", "Strip", "pieces_of", "role_of", "size_text"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Pages ``first`` up to ``end`` of a strip: a role (or ``level``, for a neutral filling), a label, a mark."""

    first: float
    end: float
    role: str
    label: str = ""
    tip: str = ""
    mark: str = ""
    key: str = ""


def size_text(pages: int) -> str:
    """A number of pages as a size.

    >>> size_text(33), size_text(16384), size_text(3 << 18)
    ('132 KiB', '64 MiB', '3 GiB')
    """
    kib = pages * 4
    for unit, step in (("TiB", 1 << 30), ("GiB", 1 << 20), ("MiB", 1 << 10)):
        if kib >= step:
            number = kib / step
            return f"{number:.4g} {unit}"
    return f"{kib} KiB"


def role_of(vma: Vma) -> str:
    """The role of an area: writable anonymous memory, a file, or neutral for all that cannot be written."""
    if vma.vm_file is not None and not vma.vm_file.shmem_zero:
        return "file"
    return "anon" if vma.vm_flags & (VM_WRITE | VM_GROWSDOWN) else "level"


def pieces_of(mm: Mm, start: int, pages: int) -> list[Piece]:
    """The areas between ``start`` and ``start + pages``, with their permissions as labels."""
    found = []
    for vma in mm.tree.overlapping(start, start + (pages << PAGE_SHIFT)):
        first = max(vma.vm_start - start, 0) >> PAGE_SHIFT
        end = min((vma.vm_end - start) >> PAGE_SHIFT, pages)
        text = prot_text(vma.vm_flags)
        tip = f"{vma.vm_start:#x}-{vma.vm_end:#x} {text}, {vma.pages} page{'' if vma.pages == 1 else 's'}"
        tip += f", page offset {vma.vm_pgoff:#x}" + (", has an anon_vma" if vma.anon_vma else ", untouched")
        found.append(Piece(first, end, role_of(vma), text, tip, key=f"{vma.vm_start:x}"))
    return found


class Strip:
    """One line of pages with pieces on it. ``name`` stands at the left (above on a phone), ``ticks`` below."""

    def __init__(self, pieces: Sequence[Piece], pages: float, name: str = "", thick: float = 26, names: float = 62,
                 ticks: Iterable[tuple[float, str]] = (), grid: bool = True):
        self.pieces, self.pages, self.name, self.thick, self.names = list(pieces), pages, name, thick, names
        self.ticks, self.grid = list(ticks), grid

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the strip; a piece's key is ``key/<its key or first page>``."""
        above = scene.narrow
        left, top = x, y
        if self.name:
            if above:
                scene.text(f"{key}.name", x, y + 11, self.name, "small", "muted", width=width)
                top += 16
            else:
                left += self.names
                scene.text(f"{key}.name", left - 10, y + self.thick / 2 + 4, self.name, "small", "muted", "end", self.names - 10)
        room = x + width - left
        cell = room / self.pages
        scene.rect(f"{key}.bed", left, top, room, self.thick, "panel")
        if self.grid and cell >= 5:
            for number in range(1, int(self.pages)):
                at = left + number * cell
                scene.line(f"{key}.grid{number}", at, top, at, top + self.thick, "grid")
        for piece in self.pieces:
            at, wide = left + piece.first * cell, max((piece.end - piece.first) * cell, 1.5)
            name = f"{key}/{piece.key or f'{piece.first:g}'}"
            label = fit_text(piece.label, wide - 4, "small")
            label = label if label == piece.label or len(label) > 3 else ""
            if piece.role in ROLES:
                scene.box(name, at, top, wide, self.thick, label, piece.role, piece.tip or piece.label, cls=piece.mark)
                continue
            scene.rect(name, at, top, wide, self.thick, f"{piece.role} {piece.mark}".strip(), piece.tip or piece.label)
            if label:
                scene.text(f"{name}.t", at + wide / 2, top + self.thick / 2 + 4, label, "small", "", "middle")
        bottom = top + self.thick
        for page, text in self.ticks:
            at, half = left + page * cell, text_width(text, "small") / 2
            scene.line(f"{key}.tick{page:g}", at, bottom, at, bottom + 4, "axis")
            scene.text(f"{key}.tick{page:g}.t", min(max(at, left + half), left + room - half), bottom + 16, text, "small", "muted",
                       "middle")
        bottom += 20 if self.ticks else 0
        scene.height = max(scene.height, round(bottom, 1))
        return bottom - y

