"""A figure: a pure function of its parameters that gives frames, and everything that carries it to a reader.

``@figure`` turns a generator function into a :class:`Figure`; calling that with parameters gives a :class:`BoundFigure`,
which notebooks and pages display. :func:`compute` is the same for the page: names and text in, JSON text out.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mmsim.draw.film import encode
from mmsim.draw.frame import Frame
from mmsim.draw.params import OperationList, Param
from mmsim.draw.scene import NARROW, WIDE
from mmsim.draw.svg import escape, to_svg
from mmsim.errors import InputError, KernelError

__all__ = ["Figure", "BoundFigure", "figure", "figures", "compute", "MAX_FRAMES", "LAYOUTS"]

#: A figure is cut after so many frames, with a sentence that says so: nothing hangs.
MAX_FRAMES = 400
LAYOUTS = {"wide": WIDE, "narrow": NARROW}

_registry: dict[str, "Figure"] = {}


def _json(made: Any) -> str:
    """JSON text without blanks; halves of surrogate pairs, which no file can hold, become U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(made, ensure_ascii=False, separators=(",", ":")))


class BoundFigure:
    """A figure with its parameters set. Display it as the last line of a cell, or ask it for ``frames()``."""

    def __init__(self, figure: "Figure", values: dict[str, Any], identity: str = ""):
        self.figure = figure
        self.values = values
        self.identity = identity or figure.identity
        self._runs: dict[float, tuple[list[Frame], str]] = {}
        self._note = ""

    def named(self, identity: str) -> "BoundFigure":
        """The same under another id, for a page that shows a figure twice (``fig-buddy-board-2``)."""
        return BoundFigure(self.figure, self.values, identity)

    def _run(self, width: float) -> tuple[list[Frame], str]:
        """The frames for a width, and the error that ended them, if one did. Computed once for each width."""
        if width not in self._runs:
            frames: list[Frame] = []
            error = ""
            try:
                source = iter(self.figure.call(self.values, width))
                frames.extend(islice(source, MAX_FRAMES))
                if len(frames) == MAX_FRAMES and next(source, None) is not None:
                    self._note = f"The figure was cut after {MAX_FRAMES} frames."
                if not frames:
                    error = "The figure has no frame."
            except (KernelError, InputError) as exception:
                error = f"{type(exception).__name__}: {exception}" if not str(exception) else str(exception)
            except Exception as exception:  # whatever it was, the page must stay usable and say it
                error = f"{type(exception).__name__}: {exception}"
            self._runs[width] = frames, error
        return self._runs[width]

    def frames(self, width: float = WIDE) -> list[Frame]:
        """All frames, laid out for ``width``. Raise RuntimeError if the figure's function raised before the end."""
        frames, error = self._run(width)
        if error:
            raise RuntimeError(f"{self.figure.name}: {error}")
        return frames

    def texts(self) -> dict[str, str]:
        """The parameter values as they stand in a link."""
        return {param.name: param.write(self.values[param.name]) for param in self.figure.params}

    def payload(self, layouts: Sequence[str] = ("wide", "narrow")) -> dict[str, Any]:
        """Everything the page needs (see :mod:`mmsim.draw`, "What travels")."""
        made: dict[str, Any] = {
            "mm": 1,
            "id": self.identity,
            "name": self.figure.name,
            "title": self.figure.title,
            "alt": self.figure.alt,
            "params": [param.spec() for param in self.figure.params],
            "values": self.texts(),
        }
        words: list[Frame] | None = None
        drawn: dict[str, Any] = {}
        error = ""
        for layout in layouts:
            frames, problem = self._run(LAYOUTS[layout])
            error = error or problem
            if words is None:
                words = frames
            elif [frame.say for frame in frames] != [frame.say for frame in words] and not error:
                error = f"The {layout} layout tells another story than the {layouts[0]} one: {len(frames)} frames."
                continue
            drawn[layout] = {"width": LAYOUTS[layout], "steps": encode(frame.scene for frame in frames)}
        made["frames"] = [frame.spec() for frame in words or ()]
        made["layouts"] = drawn
        if error:
            made["error"] = error
        if self._note:
            made["note"] = self._note
        problems = {
            name: value.problems()
            for name, value in self.values.items()
            if isinstance(value, OperationList) and value.problems()
        }
        if problems:
            made["problems"] = problems
        return made

    def svg(self, frame: int = 1, width: float = WIDE) -> str:
        """One frame, counted from 1, as a stand-alone SVG file."""
        chosen = self.frames(width)[frame - 1]
        return to_svg(chosen.scene, self.figure.title, chosen.say)

    def words(self) -> str:
        """The figure as text: title, parameters, and the numbered sentences of all frames."""
        frames, error = self._run(WIDE)
        shown = ", ".join(f"{name}={text}" for name, text in self.texts().items() if "\n" not in text)
        lines = [f"{self.figure.title} ({shown})" if shown else self.figure.title]
        for name, text in self.texts().items():
            if "\n" in text:
                lines += [f"{name}:"] + [f"    {line}" for line in text.splitlines()]
        lines += [f"{number}. {frame.say}" for number, frame in enumerate(frames, 1)]
        for name, value in self.values.items():
            if isinstance(value, OperationList):
                lines += [f"{name}, line {problem['line']}: {problem['text']}" for problem in value.problems()]
        return "\n".join(lines + ([self._note] if self._note else []) + ([f"Error: {error}"] if error else []))

    def html(self) -> str:
        """The element with its frames, and a picture of the first one for readers without JavaScript."""
        frames, error = self._run(WIDE)
        data = _json(self.payload())
        data = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        data = data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        if frames:
            picture = to_svg(frames[0].scene, self.figure.title, frames[0].say)
            source = base64.b64encode(picture.encode("utf-8", "replace")).decode("ascii")
            image = f'<img alt="{escape(self.figure.alt)}" src="data:image/svg+xml;base64,{source}">'
            image += f'<span class="mm-fallback">{escape(frames[0].say)}</span>'
        else:
            image = f'<span class="mm-fallback">{escape(error)}</span>'
        return (
            f'<mm-figure id="{escape(self.identity)}" name="{escape(self.figure.name)}">'
            f'<script type="application/json">{data}</script>{image}</mm-figure>'
        )

    def widget(self) -> Any:
        """The live widget for a notebook with a kernel (needs anywidget)."""
        from mmsim.draw.widget import figure_widget

        return figure_widget(self)

    def __repr__(self) -> str:
        return self.words()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        frames, _ = self._run(WIDE)
        bundle = {"text/plain": self.words(), "text/html": self.html()}
        if frames:
            bundle["image/svg+xml"] = to_svg(frames[0].scene, self.figure.title, frames[0].say)
        return bundle


class Figure:
    """A figure with its title, alternative text and parameters. Call it with parameters by name; the others keep their
    defaults. Raise InputError for a value that cannot be used."""

    def __init__(self, function: Callable[..., Iterable[Frame]], title: str, alt: str, params: Sequence[Param]):
        if not 10 <= len(alt) <= 250:
            raise ValueError(f"{title}: the alternative text has {len(alt)} characters, not 10 to 250")
        self.function, self.title, self.alt, self.params = function, title, alt, list(params)
        self.name = f"{function.__module__}:{function.__name__}"
        self.identity = "fig-" + function.__name__.replace("_", "-")
        accepted = inspect.signature(function).parameters
        self.takes_width = "width" in accepted
        wanted = {param.name for param in params}
        if wanted != set(accepted) - {"width"}:
            raise ValueError(
                f"{self.name}: parameters {sorted(wanted)}, but the function takes {sorted(set(accepted) - {'width'})}"
            )
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def bind(self, values: Mapping[str, Any]) -> BoundFigure:
        """The figure with ``values``, which may be text from a link. Raise InputError for a name or value it can't have."""
        known = {param.name: param for param in self.params}
        for name in values:
            if name not in known:
                raise InputError(f"{self.title} has no parameter {name[:40]!r}; it has: {', '.join(known) or 'none'}")
        return BoundFigure(self, {
            name: param.read(values[name]) if name in values else param.read(param.default) for name, param in known.items()
        })  # fmt: skip

    def __call__(self, **values: Any) -> BoundFigure:
        return self.bind(values)

    def call(self, values: Mapping[str, Any], width: float) -> Iterable[Frame]:
        """Run the function itself. Operations are read afresh, so that no error of an earlier run stays with them."""
        fresh = dict(values)
        for value in values.values():
            if isinstance(value, OperationList):
                for operation in value:
                    operation.error = ""
        if self.takes_width:
            fresh["width"] = width
        return self.function(**fresh)

    def __repr__(self) -> str:
        return f"<Figure {self.name}: {self.title}>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return self.bind({})._repr_mimebundle_(include, exclude)


def figure(title: str, alt: str, params: Sequence[Param] = ()) -> Callable[[Callable[..., Iterable[Frame]]], Figure]:
    """Make a figure of a generator function whose arguments are the parameters, and ``width`` if it lays out for one.

    ``alt`` says in 10 to 250 characters what the figure shows. Raise ValueError where title, parameters and function
    don't fit together.
    """

    def make(function: Callable[..., Iterable[Frame]]) -> Figure:
        made = Figure(function, title, alt, params)
        _registry[made.name] = made
        return made

    return make


def figures() -> Iterator[Figure]:
    """All figures known so far, in the order of their definition."""
    yield from _registry.values()


def find(name: str) -> Figure:
    """The figure ``module:function``; modules of mmsim.figures are imported as needed. Raise InputError if there is none."""
    if name not in _registry:
        module, colon, _ = name.partition(":")
        if colon and module.startswith("mmsim.figures.") and all(part.isidentifier() for part in module.split(".")):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if not module.startswith(error.name or "?"):
                    raise
    if name not in _registry:
        raise InputError(f"there is no figure {name[:80]!r}")
    return _registry[name]


def compute(name: str, values: Mapping[str, Any] | str, layouts: Sequence[str] = ("wide", "narrow")) -> str:
    """The payload of a figure for parameter texts, as JSON; what the worker and the notebook widget call.

    ``values`` is a mapping or its JSON text; an entry ``"$layouts": ["narrow"]`` asks for less than both layouts. What
    goes wrong comes back as ``{"error": sentence}``, never as an exception.
    """
    try:
        given: Any = json.loads(values) if isinstance(values, str) else dict(values)
        if not isinstance(given, dict):
            raise InputError("the parameters are not a mapping")
        chosen = given.pop("$layouts", layouts)
        if not isinstance(chosen, list | tuple) or not chosen or any(layout not in LAYOUTS for layout in chosen):
            raise InputError(f"layouts are {', '.join(LAYOUTS)}")
        made = find(name).bind(given).payload(chosen)
    except (InputError, json.JSONDecodeError) as error:
        made = {"mm": 1, "name": name, "error": str(error)}
    except Exception as error:  # the page can show a sentence, not a traceback
        made = {"mm": 1, "name": name, "error": f"{type(error).__name__}: {error}"}
    return _json(made)
