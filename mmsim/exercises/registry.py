"""The exercises of the book that have numbers as answers: one module a chapter, one function an exercise.

A chapter's module is named ``chNN`` and is found by its name, so a new chapter adds a file and nothing else. Each function
asks the mechanism for the numbers; it is called when somebody wants an answer checked, and once.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import mmsim.exercises
from mmsim.errors import InputError
from mmsim.exercises.answers import Expected, Part

__all__ = ["Exercise", "exercise", "exercises", "find"]

Computed = Expected | list[int] | tuple[Expected | list[int], ...]
_NUMBER = re.compile(r"\d{1,2}\.\d{1,2}")


@dataclass(slots=True)
class Exercise:
    """One exercise: ``number`` is chapter.position in the chapter, ``label`` its address in the page."""

    number: str
    label: str
    title: str
    parts: tuple[Part, ...]
    hints: tuple[str, ...]
    compute: Callable[[], Computed]
    _expected: tuple[Expected, ...] | None = field(default=None, repr=False)

    @property
    def chapter(self) -> int:
        """The number of its chapter."""
        return int(self.number.partition(".")[0])

    def expected(self) -> tuple[Expected, ...]:
        """The answers, one for each part, as the mechanism computes them."""
        if self._expected is None:
            computed = self.compute()
            if len(self.parts) == 1 and not (isinstance(computed, tuple) and len(computed) == 1):
                computed = (computed,)  # type: ignore[assignment]
            values = tuple(tuple(value) if isinstance(value, list) else value for value in computed)  # type: ignore[union-attr]
            if len(values) != len(self.parts):
                raise AssertionError(f"exercise {self.number} computes {len(values)} numbers for {len(self.parts)} parts")
            self._expected = values
        assert self._expected is not None
        return self._expected


_known: dict[str, Exercise] = {}


def exercise(number: str, label: str, title: str, *parts: Part, hints: tuple[str, ...]) -> Callable[[Callable[[], Computed]], Exercise]:
    """Make a function that computes the answers an exercise of the book. ``title`` is the one in the chapter."""
    def made(compute: Callable[[], Computed]) -> Exercise:
        new = Exercise(number, label, title, parts, hints, compute)
        if any(number == old.number for old in _known.values() if old.label != label):
            raise AssertionError(f"there are two exercises {number}")
        _known[label] = new
        return new
    return made


@cache
def _load() -> None:
    """Import every chapter's module."""
    for module in pkgutil.iter_modules(mmsim.exercises.__path__):
        if re.fullmatch(r"ch\d\d", module.name):
            importlib.import_module(f"mmsim.exercises.{module.name}")


def exercises(chapter: int | None = None) -> list[Exercise]:
    """Every exercise with numbers as answers, or those of a chapter, in the book's order."""
    _load()
    found = [one for one in _known.values() if chapter in (None, one.chapter)]
    return sorted(found, key=lambda one: tuple(map(int, one.number.split("."))))


def find(name: str) -> Exercise:
    """The exercise with a number such as "5.3" or a label such as "ex05-atomic". Raise InputError if there is none."""
    if not isinstance(name, str):
        raise InputError(f"write the number of the exercise in quotes: '{name}' (5.10 without them is 5.1)")
    wanted = name.strip().removeprefix("#")
    for one in exercises():
        if wanted in (one.number, one.label):
            return one
    chapter = wanted.partition(".")[0]
    if _NUMBER.fullmatch(wanted) and (others := exercises(int(chapter))):
        numbers = ", ".join(one.number for one in others)
        raise InputError(f"exercise {wanted} has no number to check, or does not exist; in chapter {chapter} these have: {numbers}")
    raise InputError(f"there is no exercise {wanted[:40]!r}; names are as 5.3 or ex05-atomic")
