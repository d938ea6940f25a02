"""Which replay knows which recording: handlers registered by folder and file name.

A handler is a generator that reads one recorded file, runs the model on the same input and yields one :class:`Check`
for each thing it compares::

    @replays("fragindex/fragmentation*.jsonl*")
    def fragmentation(path: Path) -> Iterator[Check]:
        '''One sentence that says what is compared: ``--list`` prints it.'''
        for record in read_jsonl(path):
            yield same(f"line {record.line}: index", record["index"], fragmentation_index(...))

The pattern's parts are matched against the end of the file's absolute path, part by part, with shell wildcards. So a
new recording in the same folder and format is recognised by its name alone. A file that several patterns match goes
to the longest pattern.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

__all__ = ["Check", "Handler", "Registration", "same", "replays", "handler_for", "registrations", "load_handlers"]


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what the recording says (``expected``) against what the model does (``got``).

    ``label`` says where in the recording and what; it may be a function, called only if the text is shown, and so may
    the two values. ``known`` names a difference that is understood and documented: it is listed by that name and
    counted apart, but does not fail the replay.
    """

    label: str | Callable[[], str]
    agrees: bool
    expected: Any = None
    got: Any = None
    known: str = ""

    def describe(self) -> str:
        """The check in words, several lines."""
        def text(value: Any) -> str:
            value = value() if callable(value) else value
            shown = value if isinstance(value, str) else repr(value)
            return shown if len(shown) <= 2000 else shown[:2000] + " …"
        return f"{text(self.label)}\n    recorded: {text(self.expected)}\n    model:    {text(self.got)}"


def same(label: str | Callable[[], str], expected: Any, got: Any) -> Check:
    """The check that two values are equal."""
    return Check(label, expected == got, expected, got)


Handler = Callable[[Path], Iterator[Check]]


@dataclass(frozen=True, slots=True)
class Registration:
    """A pattern and its handler."""

    pattern: str
    handler: Handler

    @property
    def compares(self) -> str:
        """What the handler compares: the first paragraph of its docstring, on one line."""
        return " ".join((self.handler.__doc__ or "").strip().split("\n\n")[0].split())

    def matches(self, path: Path) -> bool:
        """Tell whether the end of ``path`` fits the pattern."""
        wanted = self.pattern.split("/")
        # Not resolve(): what counts is the name that was given, not what a link points to.
        given = Path(os.path.abspath(path)).parts[-len(wanted):]
        return len(given) == len(wanted) and all(fnmatchcase(part, want) for part, want in zip(given, wanted))


_registrations: dict[str, Registration] = {}


def replays(*patterns: str) -> Callable[[Handler], Handler]:
    """Register the decorated function for files that match one of ``patterns`` (``folder/name`` with shell
    wildcards)."""
    def register(handler: Handler) -> Handler:
        for pattern in patterns:
            known = _registrations.get(pattern)
            # A module run twice (python -m, a reload) registers the same function again: that is no conflict.
            if known and (known.handler.__module__, known.handler.__name__) != (handler.__module__, handler.__name__):
                raise ValueError(f"{pattern!r} is already replayed by {known.handler.__module__}.{known.handler.__name__}")
            _registrations[pattern] = Registration(pattern, handler)
        return handler
    return register


def load_handlers() -> None:
    """Import every module of :mod:`mmsim.replay`, so that all handlers are registered."""
    package = importlib.import_module("mmsim.replay")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("__"):
            importlib.import_module(f"mmsim.replay.{module.name}")


def registrations() -> list[Registration]:
    """All registrations, sorted by pattern."""
    return sorted(_registrations.values(), key=lambda registration: registration.pattern)


def handler_for(path: Path) -> Registration | None:
    """The registration with the longest pattern that matches ``path``, or None if no handler covers the file."""
    matching = [registration for registration in _registrations.values() if registration.matches(path)]
    return max(matching, key=lambda registration: (len(registration.pattern), registration.pattern), default=None)
