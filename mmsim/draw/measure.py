"""How wide a text will be, without a font: a table of letter widths, so that no label leaves its box.

The widths are those of DejaVu Sans, the widest of the fonts that a reader's system may choose for the figures; in any
other one the text is a little narrower, never wider. Monospaced text takes 0.602 em a letter.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from mmsim.draw.theme import TEXT_STYLES

__all__ = ["text_width", "fit_text", "wrap_text"]

# Widths of the characters 32 to 126 in thousandths of the font size.
_PLAIN = (
    318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318, 337, 636, 636, 636, 636, 636, 636, 636, 636,
    636, 636, 337, 337, 838, 838, 838, 531, 1000, 684, 686, 698, 770, 632, 575, 775, 752, 295, 295, 656, 557, 863, 748, 787,
    603, 787, 695, 635, 611, 732, 684, 989, 685, 611, 685, 390, 337, 390, 838, 500, 500, 613, 635, 550, 635, 615, 352, 635,
    634, 278, 278, 579, 278, 974, 634, 612, 635, 635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636, 337, 636, 838,
)  # fmt: skip
_BOLD = (
    348, 456, 521, 838, 696, 1002, 872, 306, 457, 457, 523, 838, 380, 415, 380, 365, 696, 696, 696, 696, 696, 696, 696, 696,
    696, 696, 400, 400, 838, 838, 838, 580, 1000, 774, 762, 734, 830, 683, 683, 821, 837, 372, 372, 775, 637, 995, 837, 850,
    733, 850, 770, 720, 682, 812, 774, 1103, 771, 724, 725, 457, 365, 457, 838, 500, 500, 675, 716, 593, 716, 678, 435, 716,
    712, 343, 343, 665, 343, 1042, 712, 687, 716, 716, 493, 595, 478, 712, 652, 924, 645, 652, 582, 712, 365, 712, 838,
)  # fmt: skip
_OTHERS = {
    "·": 380,
    "–": 500,
    "‘": 318,
    "’": 318,
    "“": 657,
    "”": 657,
    "°": 500,
    "²": 438,
    "³": 438,
    "•": 639,
    "\u202f": 200,
}


def _letter(char: str, bold: bool) -> int:
    code = ord(char)
    if 32 <= code < 127:
        return (_BOLD if bold else _PLAIN)[code - 32]
    if char in _OTHERS:
        return _OTHERS[char]
    if unicodedata.combining(char) or unicodedata.category(char) == "Cf":
        return 0
    if char.isalpha() and code < 0x250:
        return 720
    return 1100 if unicodedata.east_asian_width(char) in "WF" else 1000


@lru_cache(maxsize=8192)
def text_width(text: str, style: str = "label") -> float:
    """The width of ``text`` in scene units, at least what any font of the stack needs.

    >>> text_width("zone DMA32") < text_width("zone Normal, order 10")
    True
    """
    form = TEXT_STYLES[style]
    if form.mono:
        wide = sum(1 for char in text if unicodedata.east_asian_width(char) in "WF") if not text.isascii() else 0
        return (len(text) + wide) * 0.602 * form.size
    return sum(_letter(char, form.bold) for char in text) * form.size / 1000


@lru_cache(maxsize=8192)
def fit_text(text: str, width: float, style: str = "label") -> str:
    """``text``, or its beginning and an ellipsis, so that it fits into ``width``; empty if nothing sensible fits.

    >>> fit_text("reserved by firmware", 60)
    'reserve…'
    >>> fit_text("reserved by firmware", 10)
    ''
    """
    if text_width(text, style) <= width:
        return text
    room = width - text_width("…", style)
    kept = len(text)
    while kept and text_width(text[:kept].rstrip(), style) > room:
        kept -= 1
    return text[:kept].rstrip() + "…" if kept >= 2 else ""


def wrap_text(text: str, width: float, style: str = "label", lines: int = 99) -> list[str]:
    """``text`` broken at spaces into lines no wider than ``width``; the last of ``lines`` gets an ellipsis if cut."""
    result: list[str] = []
    for paragraph in text.split("\n"):
        current = ""
        for word in paragraph.split(" "):
            longer = f"{current} {word}" if current else word
            if current and text_width(longer, style) > width:
                result.append(current)
                longer = word
            current = longer
        result.append(current)
    if len(result) > lines:
        result = [*result[: lines - 1], " ".join(result[lines - 1 :])]
    return [fit_text(line, width, style) or line[:1] for line in result]
