"""check, hint and solution: verdicts, hints before the answer, and what is said to those who mistype."""

from __future__ import annotations

from typing import Any

import pytest

import mmsim.exercises
from mmsim.errors import InputError
from mmsim.exercises import Exercise, Session, exercises, find
from mmsim.exercises.answers import Answer
from mmsim.exercises.registry import exercise

ALL = exercises()
each = pytest.mark.parametrize("one", ALL, ids=lambda one: one.label)


@pytest.fixture
def session() -> Session:
    return Session()


@each
def test_what_the_mechanism_computes_is_right_and_anything_else_is_not(one: Exercise, session: Session) -> None:
    right: tuple[Answer, ...] = one.expected()  # type: ignore[assignment]
    assert session.check(one.number, *right)
    assert session.check(one.label, *(part.show(value).removesuffix(part.unit) for part, value in zip(one.parts, one.expected())))
    for number, value in enumerate(right):
        wrong: Any = (*value, 99) if isinstance(value, tuple) else value + one.parts[number].within + 1  # type: ignore[operator]
        verdict = session.check(one.number, *right[:number], wrong, *right[number + 1:])
        assert not verdict
        assert [outcome.right for outcome in verdict.outcomes] == [at != number for at in range(len(right))]
        assert one.parts[number].asked in repr(verdict)


@each
def test_hints_come_before_the_answer_and_give_no_answer_away(one: Exercise, session: Session) -> None:
    assert session.solution(one.number).startswith("First ")
    hints = [session.hint(one.number) for _ in one.hints]
    assert len(hints) >= 2 and hints[0].startswith(f"Hint 1 of {len(hints)}: ") and len(set(hints)) == len(hints)
    assert "no further hint" in session.hint(one.number)
    solution = session.solution(one.number)
    for part, value in zip(one.parts, one.expected()):
        assert part.show(value) in solution
        if isinstance(value, tuple) or abs(value) > 999:
            assert not any(part.show(value) in hint for hint in hints)
    assert "\ndef " in solution


def test_a_solved_exercise_shows_its_solution_without_hints(session: Session) -> None:
    assert session.check("5.3", 375, "500")
    assert "375 pages" in session.solution("ex05-atomic")


def test_the_verdict_says_what_is_asked_with_its_unit(session: Session) -> None:
    verdict = session.check("ex05-atomic", 375, 500)
    assert repr(verdict) == "5.3 How deep may an interrupt handler go? right. atomic 375 pages, victim 500 pages"
    assert repr(session.check("5.3", 375, 400)).splitlines() == [
        "5.3 How deep may an interrupt handler go? not yet",
        "  atomic: right, 375 pages",
        "  victim: not yet: free memory at which the OOM killer's victim is refused, in pages; you said 400 pages",
    ]
    assert "pte: right" in repr(session.check("3.9", 32, 40)) and "pud: right (about), 31" in repr(session.check("3.9", 3, 31))


def test_parts_can_be_answered_by_name_and_one_at_a_time(session: Session) -> None:
    verdict = session.check("5.3", victim=500)
    assert not verdict and [outcome.right for outcome in verdict.outcomes] == [False, True]
    assert "atomic: not answered" in repr(verdict) and "ex05-atomic" not in session.solved
    assert session.check("5.3", victim=500, atomic="375") and "ex05-atomic" in session.solved


def test_a_list_can_be_given_as_one_answer_or_as_many(session: Session) -> None:
    for answers in (([0, 2, 3, 4, 6, 7],), ("0, 2, 3, 4, 6, 7",), (0, 2, 3, 4, 6, 7), ("0", "2", "3", "4", "6", "7")):
        assert session.check("5.2", *answers)  # type: ignore[arg-type]
    assert not session.check("5.2", 0) and not session.check("5.2", [7, 6, 4, 3, 2, 0])


@pytest.mark.parametrize(("name", "answers", "parts", "says"), [
    ("5.3", (), {}, "asks for 2 numbers: atomic (free memory"), ("5.3", (375,), {}, "got 1 answer; it asks for 2 numbers"),
    ("5.3", (1, 2, 3), {}, "got 3 answers; it asks for 2 numbers"), ("5.3", ("x", 500), {}, "GFP_ATOMIC is refused: 'x' is no number"),
    ("5.3", ("64 KiB", 500), {}, "a size, but the answer is a number of pages"), ("5.3", ([375], 500), {}, "list [375] is no number"),
    ("5.3", (), {"nothing": 1}, "has no part 'nothing'"), ("5.3", (375, 500), {"atomic": 375}, "is answered twice"),
    ("5.10", (1,), {}, "in chapter 5 these have: 5.1, 5.2"), ("99.1", (1,), {}, "no exercise '99.1'"),
    ("<script>", (1,), {}, "no exercise '<script>'"),
    (5.3, (375, 500), {}, "in quotes: '5.3'"), (None, (1,), {}, "in quotes"), ("5.2", (None,), {}, "no list of numbers"),
])  # fmt: skip
def test_what_cannot_be_checked_is_said_in_one_sentence(session: Session, name: Any, answers: Any, parts: Any, says: str) -> None:
    with pytest.raises(InputError) as error:
        session.check(name, *answers, **parts)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_numbers_labels_and_parts_are_given_once() -> None:
    for names in ([one.number for one in ALL], [one.label for one in ALL]):
        assert len(set(names)) == len(names) >= 36
    for one in ALL:
        names = [part.name for part in one.parts]
        assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
        assert one is find(one.label) is find(f"#{one.label}") is find(one.number)
    with pytest.raises(AssertionError, match="two exercises"):
        exercise("5.3", "ex05-other", "Another", hints=())(lambda: 1)


def test_the_functions_of_the_package_share_one_session() -> None:
    assert mmsim.exercises.solution("5.1").startswith("First 2 hints")
    mmsim.exercises.hint("5.1")
    assert mmsim.exercises.solution("5.1").startswith("First the last hint")
    assert mmsim.exercises.check("5.1", "0x200", 512, 6) and "0x200" in mmsim.exercises.solution("5.1")
