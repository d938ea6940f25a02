"""The exercises here are those of the notebooks: the same number, label and title, and the solutions say the same numbers."""

from __future__ import annotations

import re
from functools import cache

import pytest

from mmsim.exercises import Exercise, exercises
from mmsim.exercises.answers import SIZES
from tests.book.pages import chapters, markdown

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
"thirteen", "fourteen", "fifteen")
each = pytest.mark.parametrize("one", exercises(), ids=lambda one: one.label)


@cache
def of_chapter(number: int) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(title, label) of every exercise of a chapter in order, and the solutions by label."""
    text = next(markdown(path) for path in chapters() if path.name.startswith(f"{number:02}-"))
    found = re.findall(r"(?m)^:{3,}\{exercise\} (.+)\n:label: (\S+)", text)
    solutions = dict(re.findall(r"(?ms)^:{3,}\{solution\} (\S+)\n:class: dropdown\n(.*?)^:{3,}$", text))
    return found, solutions


@each
def test_number_label_and_title_are_those_of_the_notebook(one: Exercise) -> None:
    found, _ = of_chapter(one.chapter)
    assert (one.title, one.label) in found
    assert one.number == f"{one.chapter}.{found.index((one.title, one.label)) + 1}"


@each
def test_the_folded_solution_names_every_expected_number(one: Exercise) -> None:
    solution = of_chapter(one.chapter)[1][one.label]
    plain = re.sub(r"(?<=\d)[\u202f\u00a0 ](?=\d{3})", "", solution).replace("`", "").replace("\u2212", "-").lower()
    numbers = set(re.findall(r"(?:(?<!\w)-)?(?:0x[0-9a-f]+|\d+(?:\.\d+)?)", plain))
    values = {int(number, 16) if "x" in number else float(number) for number in numbers}
    said = values | {number for number, word in enumerate(WORDS) if re.search(rf"\b{word}\b", plain)}
    said |= {2.0 ** int(power) for power in re.findall(r"2\^\{?(\d+)", plain)}
    for part, value in zip(one.parts, one.expected()):
        for number in value if isinstance(value, tuple) else (value,):
            # "about" may be a round number; a size may stand there in the next larger or smaller unit
            scales = (1, 1024, 1 / 1024) if part.unit in SIZES else (1,)
            assert any(abs(number * scale - known) <= part.within for scale in scales for known in said), f"{part.name}: {number}"


def test_every_chapter_with_a_module_is_in_the_book() -> None:
    numbers = {int(path.name[:2]) for path in chapters()}
    assert {one.chapter for one in exercises()} <= numbers
