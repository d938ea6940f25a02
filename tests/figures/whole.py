"""What is asked of any figure, whatever it is about and whatever its parameters are."""

from __future__ import annotations

import gzip
import json

from mmsim.draw import NARROW, WIDE, BoundFigure, text_width
from mmsim.draw.theme import TEXT_STYLES

#: A payload, packed as a server sends it.
HEAVIEST = 60_000
MOST_FRAMES = 60


def named(figure: BoundFigure) -> str:
    """A name for a test's parameter: title and values."""
    return figure.words().split("\n")[0][:60]


def sentences(figure: BoundFigure) -> list[str]:
    """What the frames say, without line breaks."""
    return [" ".join(frame.say.split()) for frame in figure.frames()]


def one_story_in_both_widths(figure: BoundFigure) -> None:
    """The layouts differ in drawing only."""
    wide, narrow = figure.frames(WIDE), figure.frames(NARROW)
    assert [frame.say for frame in wide] == [frame.say for frame in narrow]
    assert [frame.ask for frame in wide] == [frame.ask for frame in narrow]
    assert 1 <= len(wide) <= MOST_FRAMES


def nothing_outside_of_the_sheet(figure: BoundFigure) -> None:
    """Every rectangle and every text is within the width, and no text is smaller than 10 px."""
    for width in (WIDE, NARROW):
        for number, frame in enumerate(figure.frames(width), 1):
            for key, shape in frame.scene.shapes.items():
                if shape["t"] == "rect":
                    left, right = shape["x"], shape["x"] + shape["w"]
                elif shape["t"] == "text":
                    size = text_width(shape["s"], shape["f"])
                    left = shape["x"] - {"middle": size / 2, "end": size}.get(shape.get("a", ""), 0)
                    right = left + size
                    assert TEXT_STYLES[shape["f"]].size >= 10
                else:
                    continue
                assert shape.get("in") or (left >= -2 and right <= width + 2), f"frame {number}: {key} from {left} to {right} of {width}"


def light_and_repeatable(figure: BoundFigure) -> None:
    """The payload is small, has no error, and comes out the same again."""
    payload = figure.payload()
    assert "error" not in payload and "problems" not in payload
    assert set(payload["layouts"]) == {"wide", "narrow"}
    assert len(gzip.compress(json.dumps(payload).encode())) < HEAVIEST
    assert payload == figure.figure.bind(figure.texts()).named(figure.identity).payload()


def asks_something(figure: BoundFigure) -> None:
    """One prediction at least, and each has a right answer and a reason."""
    asks = [frame.ask for frame in figure.frames() if frame.ask]
    assert asks
    for ask in asks:
        assert ask.right(ask.answer) and ask.why
