"""Numbers as readers write them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsim.errors import InputError
from mmsim.exercises.answers import Part, read_list, read_number, show


@pytest.mark.parametrize(("text", "unit", "value"), [
    (375, "", 375), (30.1, "", 30.1), ("375", "pages", 375), (" 375 ", "", 375), ("0x240", "", 0x240),
    ("0XFFFF888100000000", "", 0xFFFF888100000000),
    ("0xffff_8881_0000_0000", "", 0xFFFF888100000000), ("1 939", "", 1939), ("1\u202f939", "", 1939),
    ("1\u00a0000\u00a0000", "", 10**6),
    ("65,530", "", 65530), ("65'530", "", 65530), ("65_530", "", 65530), ("-500", "", -500), ("\u2212500", "", -500),
    ("+7", "", 7),
    ("2.5", "", 2.5), ("1 939.5", "", 1939.5), ("64 KiB", "bytes", 65536), ("64k", "bytes", 65536), ("64kB", "KiB", 64),
    ("0x10 KiB", "bytes", 16384),
    ("7 GiB", "MiB", 7168), ("512 MiB", "GiB", 0.5), ("1.5 GiB", "MiB", 1536), ("8192 bytes", "KiB", 8),
    ("8192 B", "KiB", 8), ("8 192 B", "KiB", 8),
    ("2 TiB", "GiB", 2048), ("8", "KiB", 8),
])  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: Any, unit: str, value: float) -> None:
    assert read_number(text, unit) == value


@pytest.mark.parametrize(("text", "unit", "says"), [
    ("", "", "no answer yet"), ("  ", "", "no answer yet"), ("abc", "", "'abc' is no number"),
    ("1,5", "", "2.5 with a point"),
    ("1 93", "", "is no number"), ("0x", "", "is no number"), ("12 34 567", "", "is no number"),
    ("64 KiB", "pages", "a size, but the answer is a number of pages"),
    ("64 KiB", "", "a size, but the answer is a number"), ("5 pages", "pages", "is no number"),
    ("1e400", "", "is no number"), ("9" * 100, "", "100 characters"),
    (math.nan, "", "nan is no number"), (math.inf, "", "inf is no number"), (True, "", "bool True"),
    (None, "", "NoneType None"), ([1], "", "list [1]"),
    ("<b>5</b>", "", "is no number"), ("１２", "", "is no number"),
])  # fmt: skip
def test_what_is_no_number_is_refused_in_one_sentence(text: Any, unit: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        read_number(text, unit)
    assert says in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 160


@given(st.integers(-(1 << 70), 1 << 70))
def test_what_is_shown_is_read_back(number: int) -> None:
    assert read_number(show(number)) == number
    if number >= 0:
        assert read_number(show(number, hexadecimal=True)) == number


@given(st.text(max_size=120) | st.binary() | st.none() | st.floats() | st.lists(st.integers()) | st.booleans())
def test_any_answer_is_a_number_or_an_input_error(answer: Any) -> None:
    for part in (Part("a", "something", "KiB"), Part("a", "something", kind="list")):
        try:
            value = part.read(answer)
        except InputError as error:
            assert str(error).startswith("something: ")
        else:
            assert isinstance(value, tuple if part.kind == "list" else int | float)


@pytest.mark.parametrize("answer", ["0, 2, 3", "0 2 3", "[0, 2, 3]", "(0;2;3)", [0, 2, 3], (0, 2, 3), ["0", "0x2", 3.0]])
def test_lists_are_read_in_any_form(answer: Any) -> None:
    assert read_list(answer) == (0, 2, 3)


@pytest.mark.parametrize("answer", ["", "[]", "0, two", "0 2.5", 2.5, [0, None], object(), range(10**6), [[1], 2]])
def test_what_is_no_list_is_refused(answer: Any) -> None:
    with pytest.raises(InputError):
        read_list(answer)


def test_about_means_within() -> None:
    part = Part("a", "something", within=1)
    assert part.agrees(31, 30.1) and not part.agrees(32, 30.1)
    assert not Part("a", "something").agrees(0xFFFF888100000001, 0xFFFF888100000000)
