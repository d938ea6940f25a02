"""A frame's words."""

import pytest

from mmsim.draw import Frame, Scene


def test_a_frame_may_point_to_the_page_that_explains_it() -> None:
    frame = Frame(Scene(), "Booted.", more=("Chapter 19", "19-early-memory-management"))
    assert frame.spec() == {"say": "Booted.", "more": ["Chapter 19", "19-early-memory-management"]}


@pytest.mark.parametrize("page", ["javascript:alert(1)", "//elsewhere/x", "../x", "https:x", "", "x.html", "Page"])
def test_such_a_link_never_leaves_the_book(page: str) -> None:
    with pytest.raises(ValueError, match="not a page"):
        Frame(Scene(), "Booted.", more=("there", page))


def test_a_sentence_loses_line_breaks_but_keeps_numbers_whole() -> None:
    assert Frame(Scene(), "Of 4\u202f096 frames\n   all are free. ").say == "Of 4\u202f096 frames all are free."
