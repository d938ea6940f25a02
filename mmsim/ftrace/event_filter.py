"""Filters of events: the expressions that tracefs takes in ``events/…/filter``.

    >>> wanted = event_filter("order > 0 && migratetype == 0", {"order", "migratetype"})
    >>> wanted({"order": 3, "migratetype": 0}), wanted({"order": 0, "migratetype": 0})
    (True, False)

5.17: kernel/trace/trace_events_filter.c, predicate_parse(). Simplified: numbers have no width and no sign of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from fnmatch import fnmatchcase
from typing import Any

from mmsim.errors import Errno

__all__ = ["event_filter"]

Predicate = Callable[[Mapping[str, Any]], bool]
_TOKEN = re.compile(r"\s*(&&|\|\||==|!=|<=|>=|[<>&~!()]|\"[^\"]*\"|'[^']*'|[\w.:|*?-]+)")
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "==": int.__eq__, "!=": int.__ne__, "<": int.__lt__, "<=": int.__le__, ">": int.__gt__, ">=": int.__ge__,
    "&": lambda one, other: bool(one & other),
}
_STRINGS: dict[str, Callable[[str, str], bool]] = {"==": str.__eq__, "!=": str.__ne__, "~": fnmatchcase}
_DEEPEST = 50


class _Parser:
    """Reads ``or``, ``and``, ``not`` and comparisons, each binding tighter than the one before."""

    def __init__(self, text: str, fields: Set[str]):
        self.fields, self.words, at, text = fields, [], 0, text.strip()
        while at < len(text):
            if not (found := _TOKEN.match(text, at)):
                raise Errno("EINVAL", f"filter: cannot read {text[at:at + 20]!r}")
            self.words.append(found[1])
            at = found.end()
        self.place = self.depth = 0

    def next(self) -> str:
        """The next word, or nothing."""
        return self.words[self.place] if self.place < len(self.words) else ""

    def take(self) -> str:
        """The next word, which must be there."""
        word = self.next()
        if not word:
            raise Errno("EINVAL", "filter: it ends too early")
        self.place += 1
        return word

    def either(self) -> Predicate:
        """One or more parts joined by ``||``."""
        parts = [self.both()]
        while self.next() == "||":
            self.take()
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else lambda fields: any(part(fields) for part in parts)

    def both(self) -> Predicate:
        """One or more parts joined by ``&&``."""
        parts = [self.one()]
        while self.next() == "&&":
            self.take()
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else lambda fields: all(part(fields) for part in parts)

    def one(self) -> Predicate:
        """A comparison, a part in parentheses, or the opposite of one."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Errno("EINVAL", "filter: too many parentheses")
        word = self.take()
        if word == "!":
            inner = self.one()
            found: Predicate = lambda fields: not inner(fields)     # noqa: E731
        elif word == "(":
            found = self.either()
            if self.take() != ")":
                raise Errno("EINVAL", "filter: a parenthesis is not closed")
        else:
            found = self.comparison(word)
        self.depth -= 1
        return found

    def comparison(self, field: str) -> Predicate:
        """``field operator value``."""
        if field not in self.fields:
            raise Errno("EINVAL", f"filter: the event has no field {field!r}")
        operator, word = self.take(), self.take()
        try:
            number = int(word, 0)
        except ValueError:
            value = word.strip("\"'")
            if operator not in _STRINGS:
                raise Errno("EINVAL", f"filter: {operator} does not compare text") from None
            return lambda fields: _STRINGS[operator](str(fields.get(field, "")), value)
        if operator not in _NUMBERS:
            raise Errno("EINVAL", f"filter: {operator} does not compare numbers")
        return lambda fields: isinstance(got := fields.get(field), int) and _NUMBERS[operator](got, number)


def event_filter(text: str, fields: Set[str]) -> Predicate:
    """A function that says whether an event's fields pass. Raise EINVAL where tracefs does: unknown field, bad operator, bad form."""
    parser = _Parser(text, fields)
    found = parser.either()
    if parser.next():
        raise Errno("EINVAL", f"filter: {parser.next()!r} is too much")
    return found
