"""Checking answers, and handing out hints before the solution."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

from mmsim.errors import InputError
from mmsim.exercises.answers import Answer, Expected, Part
from mmsim.exercises.registry import Exercise, find

__all__ = ["Outcome", "Session", "Verdict"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one part: ``given`` is None where no answer was given."""

    part: Part
    given: Expected | None
    right: bool

    def __str__(self) -> str:
        if self.given is None:
            return f"{self.part.name}: not answered: {self.part.asked}"
        if self.right:
            about = " (about)" if self.part.within else ""
            return f"{self.part.name}: right{about}, {self.part.show(self.given)}"
        return f"{self.part.name}: not yet: {self.part.asked}; you said {self.part.show(self.given)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What :func:`mmsim.exercises.check` says; true if every part of the exercise is answered, and right."""

    exercise: Exercise
    outcomes: tuple[Outcome, ...]

    def __bool__(self) -> bool:
        return all(outcome.right for outcome in self.outcomes)

    def __repr__(self) -> str:
        title = self.exercise.title
        head = f"{self.exercise.number} {title}{'' if title.endswith('?') else ':'} "
        if self:
            return head + "right. " + ", ".join(
                f"{outcome.part.name} {outcome.part.show(outcome.given)}" for outcome in self.outcomes if outcome.given is not None)
        return "\n  ".join([head + "not yet", *map(str, self.outcomes)])


class Session:
    """One reader's way through the exercises: which hints were read, what is solved."""

    def __init__(self) -> None:
        self.solved: set[str] = set()               # labels
        self._read: dict[str, int] = {}             # label: how many hints were read

    def check(self, name: str, *answers: Answer | Iterable[Answer], **parts: Answer | Iterable[Answer]) -> Verdict:
        """Check the answers to an exercise, in the order in which it asks for them, or by the names of its parts.

        Raise InputError if there is no such exercise, if there are too many or too few answers, or if one is no number.
        """
        one = find(name)
        given = dict(zip((part.name for part in one.parts), self._in_order(one, answers), strict=False))
        for part, answer in parts.items():
            if part not in (each.name for each in one.parts):
                raise InputError(f"exercise {one.number} has no part {part[:40]!r}; {_wanted(one)}")
            if part in given:
                raise InputError(f"exercise {one.number}: part {part!r} is answered twice")
            given[part] = answer
        if not given:
            raise InputError(f"exercise {one.number} {_wanted(one)}")
        outcomes = []
        for each, expected in zip(one.parts, one.expected()):
            value = each.read(given[each.name]) if each.name in given else None
            outcomes.append(Outcome(each, value, value is not None and each.agrees(value, expected)))
        verdict = Verdict(one, tuple(outcomes))
        if verdict:
            self.solved.add(one.label)
        return verdict

    def _in_order(self, one: Exercise, answers: tuple[Answer | Iterable[Answer], ...]) -> tuple[Answer | Iterable[Answer], ...]:
        if len(one.parts) == 1 and one.parts[0].kind == "list" and len(answers) > 1:
            return (answers,)  # type: ignore[return-value]
        if answers and len(answers) != len(one.parts):
            raise InputError(f"exercise {one.number} got {len(answers)} answer{'s' * (len(answers) != 1)}; it {_wanted(one)}")
        return answers

    def hint(self, name: str) -> str:
        """The next hint to an exercise."""
        one = find(name)
        read = self._read.get(one.label, 0)
        if read == len(one.hints):
            return f"There is no further hint to {one.number}. solution('{one.number}') gives the answer."
        self._read[one.label] = read + 1
        return f"Hint {read + 1} of {len(one.hints)}: {one.hints[read]}"

    def solution(self, name: str) -> str:
        """The answers, with the code that computes them; but the hints come first, unless the exercise is solved."""
        one = find(name)
        left = len(one.hints) - self._read.get(one.label, 0)
        if left and one.label not in self.solved:
            return f"First {'the last hint' if left == 1 else f'{left} hints'}: hint('{one.number}')"
        lines = [f"{one.number} {one.title}"]
        for part, value in zip(one.parts, one.expected()):
            lines.append(f"  {part.name}: {part.show(value)}{' (about)' * bool(part.within)}: {part.ask}")
        code = inspect.getsource(one.compute)
        return "\n".join([*lines, "computed by", code[code.index("def "):].rstrip()])


def _wanted(one: Exercise) -> str:
    """What an exercise asks for."""
    asked = "; ".join(f"{part.name} ({part.asked})" for part in one.parts)
    return f"asks for {len(one.parts)} number{'s' * (len(one.parts) > 1)}: {asked}" if one.parts[0].kind != "list" else f"asks for {asked}"
