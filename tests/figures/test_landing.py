"""The landing page's machine: what its sentences claim is what the machine does."""

import pytest

from mmsim.figures.landing import memory_fills


@pytest.mark.parametrize("kernel", [0, 20, 100])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_last_request_fails_above_an_empty_machine(kernel: int, seed: int) -> None:
    sentences = [frame.say for frame in memory_fills(kernel=kernel, seed=seed).frames()]
    assert len(sentences) == 16
    free = int(sentences[-1].split("although ")[1].split(" frames")[0])
    assert 0 < free <= 110, "the min watermark of this machine is 109 frames"
    assert sentences[-1].endswith("still gets one.")


def test_every_frame_points_to_the_chapter_that_explains_it() -> None:
    pages = [frame.more[1] for frame in memory_fills().frames() if frame.more]
    assert pages[:5] == ["19-early-memory-management"] * 5
    assert set(pages[5:]) == {"05-physical-memory"}


def test_the_sentence_counts_what_the_board_shows() -> None:
    frame = memory_fills().frames()[6]
    assert "3 113 of its 4 096 frames are free" in frame.say.replace("\u202f", " ").replace("\u2009", " ")
