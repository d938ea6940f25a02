"""Numbers as readers write them, and whether they are the ones that were asked for.

``site/mm-exercises.js`` reads and compares in the same way; a test of the pages holds the two equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mmsim.errors import InputError

__all__ = ["Answer", "Number", "Part", "SIZES", "read_list", "read_number", "show"]

Number = int | float
Answer = int | float | str
Expected = Number | tuple[int, ...]

#: The units of memory. Everybody who writes kB about memory, and /proc too, means 1024 bytes.
SIZES = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
LONGEST = 80                            # characters of an answer
_SPACES = "[ \u00a0\u2009\u202f]"       # plain, no-break, thin, narrow no-break
_HEX = re.compile(r"([+-]?)0x([0-9a-f]+(?:_[0-9a-f]+)*)", re.I | re.A)
_DECIMAL = re.compile(rf"([+-]?)(\d{{1,3}}(?:{_SPACES}\d{{3}})+|\d{{1,3}}(?:,\d{{3}})+|\d{{1,3}}(?:['_]\d{{3}})+|\d+)(\.\d+)?", re.A)
_SUFFIX = re.compile(r"(.*?[0-9a-f])\s*(?:([kmgt])(?:i?b)?|(b|bytes?))", re.I)


def read_number(answer: Answer, unit: str = "") -> Number:
    """A number that somebody typed: ``375``, ``0x240``, ``1 939``, ``1,939``, ``2.5``, and where a size is asked, ``64 KiB``.

    The result is in ``unit``; a size without a suffix is taken to be. Raise InputError, in one sentence, for anything else.

    >>> read_number("64 KiB", "bytes"), read_number("1 939"), read_number("0x240")
    (65536, 1939, 576)
    """
    if isinstance(answer, bool) or not isinstance(answer, int | float | str):
        raise InputError(f"{type(answer).__name__} {answer!r:.40} is no number; write 375, 0x240 or '64 KiB'")
    if isinstance(answer, int | float):
        if not math.isfinite(answer):
            raise InputError(f"{answer} is no number that an exercise asks for")
        return answer
    text = answer.strip().replace("\u2212", "-")
    if not text:
        raise InputError("there is no answer yet; write a number")
    if len(text) > LONGEST:
        raise InputError(f"an answer of {len(text)} characters is no number")
    scale = 0
    value = _plain(text)
    if value is None and (suffix := _SUFFIX.fullmatch(text)):
        value = _plain(suffix[1])
        scale = 1 << 10 * (" kmgt".index(suffix[2].lower()) if suffix[2] else 0)
    if value is None:
        raise InputError(f"{text[:40]!r} is no number; write 375, 0x240 or 64 KiB, and 2.5 with a point")
    if not scale:
        return value
    if unit not in SIZES:
        raise InputError(f"{text[:40]!r} is a size, but the answer is a number{f' of {unit}' if unit else ''}")
    size, divisor = value * scale, SIZES[unit]
    return size // divisor if isinstance(size, int) and size % divisor == 0 else size / divisor


def _plain(text: str) -> Number | None:
    """A number without a suffix."""
    if found := _HEX.fullmatch(text):
        return int(found[1] + found[2].replace("_", ""), 16)
    if found := _DECIMAL.fullmatch(text):
        digits = found[1] + re.sub(r"\D", "", found[2])
        return float(digits + found[3]) if found[3] else int(digits)
    return None


def read_list(answer: Answer | Iterable[Answer]) -> tuple[int, ...]:
    """Several whole numbers in a row, as ``0, 2, 3`` or ``0 2 3`` or a Python list. Raise InputError."""
    if isinstance(answer, str):
        items: list[Answer] = [item for item in re.split(r"[\s,;]+", answer.strip(" \t\n[]()")) if item]
        if not items:
            raise InputError("there is no answer yet; write numbers, as in 0, 2, 3")
    elif isinstance(answer, int | float):
        items = [answer]
    else:
        try:
            items = list(answer)
        except TypeError:
            raise InputError(f"{type(answer).__name__} {answer!r:.40} is no list of numbers; write 0, 2, 3") from None
    if len(items) > LONGEST:
        raise InputError(f"a list of {len(items)} numbers is longer than any answer")
    numbers = [read_number(item) for item in items]
    for number in numbers:
        if number != int(number):
            raise InputError(f"{number} is no whole number; write numbers as in 0, 2, 3")
    return tuple(int(number) for number in numbers)


def show(value: Expected, unit: str = "", hexadecimal: bool = False) -> str:
    """A number for people, with its unit.

    >>> show(65530, "areas"), show(0x240, hexadecimal=True), show((0, 2, 3))
    ('65 530 areas', '0x240', '0, 2, 3')
    """
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if hexadecimal and isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < 1 << 53 else round(value, 2)
    text = f"{value:,}".replace(",", " ") if abs(value) >= 10_000 else f"{value}"
    return f"{text} {unit}".strip()


@dataclass(frozen=True, slots=True)
class Part:
    """One number that an exercise asks for.

    ``name`` is what ``check(…, name=…)`` calls it, ``ask`` says what it is, ``unit`` in what it counts (a size may be given in
    any unit of memory). ``within`` is how far an answer may be off where the text says "about". ``kind`` is "number", "hex"
    (an address, a PFN, a code: shown in hexadecimal) or "list" (whole numbers in a row).
    """

    name: str
    ask: str
    unit: str = ""
    within: float = 0
    kind: str = "number"

    @property
    def asked(self) -> str:
        """What is asked, with its unit."""
        return f"{self.ask}, in {self.unit}" if self.unit else self.ask

    def read(self, answer: Answer | Iterable[Answer]) -> Expected:
        """The answer as a number, in this part's unit. Raise InputError naming the part."""
        try:
            if self.kind == "list":
                return read_list(answer)
            if not isinstance(answer, int | float | str):
                raise InputError(f"{type(answer).__name__} {answer!r:.40} is no number; write 375, 0x240 or '64 KiB'")
            return read_number(answer, self.unit)
        except InputError as error:
            raise InputError(f"{self.ask}: {error}") from None

    def agrees(self, given: Expected, expected: Expected) -> bool:
        """Whether a number is the one asked for."""
        if isinstance(given, tuple) or isinstance(expected, tuple):
            return given == expected
        return abs(given - expected) <= self.within

    def show(self, value: Expected) -> str:
        """A value of this part for people."""
        return show(value, self.unit, self.kind == "hex")
