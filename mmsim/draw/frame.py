"""A frame: what a figure shows at one moment, and the sentence that says what just happened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmsim.draw.scene import Scene
from mmsim.errors import InputError

__all__ = ["Ask", "Frame"]

#: A page beside the one the figure is on: nothing that leaves the book can be written so.
_PAGE = re.compile(r"[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)*")


class Ask:
    """A prediction that the reader commits to before the next frame is shown.

    ``choices`` for one of several answers; without them the answer is a whole number (``unit`` names what is counted).
    ``why`` explains the answer afterwards.

    >>> Ask("Which order is split?", answer="4", choices=["3", "4", "5"], why="Order 3 is empty.").right("4")
    True
    """

    __slots__ = ("question", "choices", "answer", "why", "unit")

    def __init__(
        self, question: str, answer: str | int, why: str, choices: Sequence[str] | None = None, unit: str = ""
    ):
        if choices is not None and answer not in choices:
            raise ValueError(f"the answer {answer!r} is not among the choices")
        if choices is None and not isinstance(answer, int):
            raise ValueError("without choices the answer is a whole number")
        self.question, self.answer, self.why, self.unit = question, answer, why, unit
        self.choices = list(choices) if choices is not None else None

    def right(self, answer: str | int) -> bool:
        """Whether the reader's answer is right. Raise InputError where a number is expected and none is given."""
        if self.choices is not None:
            return answer == self.answer
        try:
            return int(str(answer), 0) == self.answer
        except ValueError:
            raise InputError(f"{answer!r} is not a whole number") from None

    def spec(self) -> dict[str, Any]:
        """As sent to the page."""
        spec: dict[str, Any] = {"question": self.question, "answer": self.answer, "why": self.why}
        if self.choices is not None:
            spec["choices"] = self.choices
        if self.unit:
            spec["unit"] = self.unit
        return spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ask) and self.spec() == other.spec()

    __hash__ = None  # type: ignore[assignment]


class Frame:
    """A scene, one sentence ``say``, and optionally the trace ``event`` behind it and a prediction ``ask``.

    ``say`` must stand alone: it is the caption, what a screen reader speaks, and the text output that tests compare.
    The scene is copied, so a figure may go on drawing into its own. ``event`` is a mapping or text such as
    ``"kmem:mm_page_alloc"``. ``more`` is (words, page): a link, shown after the sentence, to the page of the book that
    explains this step; the page is its file's name without the ending.
    """

    __slots__ = ("scene", "say", "event", "ask", "more")

    def __init__(
        self, scene: Scene, say: str, event: Mapping[str, Any] | str | None = None, ask: Ask | None = None,
        more: tuple[str, str] | None = None,
    ):  # fmt: skip
        if not say.strip():
            raise ValueError("a frame needs a sentence")
        if more is not None and not _PAGE.fullmatch(more[1]):
            raise ValueError(f"not a page of the book: {more[1]!r}")
        self.more = more
        self.scene = scene.copy()
        # Line breaks of the source go; no-break spaces within a number stay.
        self.say = re.sub(r"[ \t\n]+", " ", say).strip()
        self.event = dict(event) if isinstance(event, Mapping) else event
        self.ask = ask

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and (self.scene, self.say, self.event, self.ask, self.more) == (
            other.scene, other.say, other.event, other.ask, other.more,
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Frame {self.say!r}, {len(self.scene.shapes)} shapes>"

    def spec(self) -> dict[str, Any]:
        """The words of the frame, as sent to the page (drawings travel apart, one for each width)."""
        spec: dict[str, Any] = {"say": self.say}
        if self.event is not None:
            spec["event"] = self.event
        if self.ask is not None:
            spec["ask"] = self.ask.spec()
        if self.more is not None:
            spec["more"] = list(self.more)
        return spec
