"""Running replays: one file at a time, counting what agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsim.errors import InputError, InvariantError, KernelError
from mmsim.replay.registry import Check, Handler, handler_for

__all__ = ["FileReport", "SHOWN", "find_files", "replay_checks", "replay_file"]

#: How many disagreements of a file are shown in full.
SHOWN = 5


@dataclass(slots=True)
class FileReport:
    """What came of one file. ``error`` is set when the file cannot be used, ``covered`` is False when no handler
    knows it."""

    path: Path
    covered: bool = True
    compares: str = ""
    agree: int = 0
    total: int = 0
    error: str = ""
    disagreements: list[str] = field(default_factory=list)
    known: Counter[str] = field(default_factory=Counter)

    @property
    def status(self) -> int:
        """0 all agree (or not covered), 1 something disagrees, 2 the file cannot be used."""
        if self.error:
            return 2
        return int(self.agree + sum(self.known.values()) != self.total)

    def text(self) -> str:
        """The report as the command prints it."""
        if not self.covered:
            return f"not covered      {self.path}"
        if self.error:
            return f"cannot be used   {self.path}: {self.error}"
        lines = [f"agree {self.agree} of {self.total}  {self.path}"]
        lines += [f"  {count} known difference{'s' if count > 1 else ''}: {name}" for name, count in self.known.items()]
        lines += ["  differs: " + text.replace("\n", "\n  ") for text in self.disagreements]
        unseen = self.total - self.agree - sum(self.known.values()) - len(self.disagreements)
        if unseen > 0:
            lines.append(f"  and {unseen} more")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {"path": str(self.path), "covered": self.covered, "compares": self.compares, "agree": self.agree,
                "total": self.total, "known": dict(self.known), "disagreements": self.disagreements,
                "error": self.error, "status": self.status}


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those below the directories named, in the order of their names; hidden ones are left out.

    Raise InputError for a path that does not exist.
    """
    for path in paths:
        if path.is_dir():
            below = (found for found in path.rglob("*") if found.is_file())
            yield from sorted(found for found in below
                              if not any(part.startswith(".") for part in found.relative_to(path).parts))
        elif path.exists():
            yield path
        else:
            raise InputError(f"{path}: no such file or directory")


def _count(report: FileReport, check: Check) -> None:
    report.total += 1
    if check.agrees:
        report.agree += 1
    elif check.known:
        report.known[check.known] += 1
    elif len(report.disagreements) < SHOWN:
        report.disagreements.append(check.describe())


def replay_file(path: Path, *, debug: bool = False) -> FileReport:
    """Replay one file. Whatever is wrong with it ends in the report, never in an exception, unless ``debug`` is set."""
    registration = handler_for(path)
    if registration is None:
        return FileReport(path, covered=False)
    return replay_checks(FileReport(path, compares=registration.compares), registration.handler, debug=debug)


def replay_checks(report: FileReport, handler: Handler, *, debug: bool = False) -> FileReport:
    """Count into ``report`` what a handler says of its file."""
    try:
        for check in handler(report.path):
            _count(report, check)
        if not report.total:
            report.error = "holds nothing to compare: it is empty or truncated"
    except InputError as error:
        report.error = str(error)
    except (KernelError, InvariantError) as error:
        # The real kernel went through this; a model that dies there disagrees.
        _count(report, Check("the model stopped", False, "the kernel went on", f"{type(error).__name__}: {error}"))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A record of an unexpected shape: a field of another type, a list too short.
        if debug:
            raise
        after = f" after {report.total} comparisons" if report.total else ""
        report.error = f"has a record that cannot be used{after} ({type(error).__name__}: {error})"
    return report
