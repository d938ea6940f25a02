"""``python3 -m mmsim.replay PATH…``: replay recordings and print, per file, how much of it the model agrees with.

``python3 -m mmsim.replay record KIND`` makes a recording of the running kernel and replays that (:mod:`mmsim.replay.record`).

Exit status 0: everything compared agrees; 1: something differs; 2: a file cannot be used, or nothing was compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmsim.errors import InputError
from mmsim.replay.driver import FileReport, find_files, replay_file
from mmsim.replay.record import record
from mmsim.replay.registry import load_handlers, registrations

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m mmsim.replay", description="Replay recorded kernel runs in the model.",
        epilog="'record vma|faults|place' records the running kernel instead (record --help); "
        "exit status: 0 all agrees, 1 something differs, 2 a file cannot be used or nothing was compared")
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="a recorded file, or a directory to search for them")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--list", action="store_true", help="list the files that are recognised, and what is compared in them")
    parser.add_argument("--debug", action="store_true", help="let an error in a record end in a traceback")
    return parser


def _list() -> None:
    for registration in registrations():
        print(f"{registration.pattern}\n    {registration.compares}")


def _summary(reports: Sequence[FileReport]) -> str:
    covered = [report for report in reports if report.covered]
    agree, total = sum(report.agree for report in covered), sum(report.total for report in covered)
    text = f"agree {agree} of {total} in {len(covered)} file{'s' if len(covered) != 1 else ''}"
    unusable = sum(bool(report.error) for report in covered)
    if unusable:
        text += f", {unusable} cannot be used"
    if len(covered) < len(reports):
        text += f", {len(reports) - len(covered)} not covered"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["record"]:
        return record(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    load_handlers()
    if options.list:
        _list()
        return 0
    if not options.paths:
        parser.error("name a recorded file or a directory (or --list)")
    reports: list[FileReport] = []
    try:
        for path in find_files(options.paths):
            report = replay_file(path, debug=options.debug)
            reports.append(report)
            # What is not covered is named at the end, so that it doesn't hide what is.
            if report.covered and not options.json:
                print(report.text(), flush=True)
    except InputError as error:
        print(f"mmsim.replay: {error}", file=sys.stderr)
        return 2
    status = max((report.status for report in reports), default=2)
    if not any(report.covered for report in reports):
        status = 2
    if options.json:
        print(json.dumps({"status": status, "summary": _summary(reports), "files": [r.as_json() for r in reports]}, indent=1))
    else:
        for report in reports:
            if not report.covered:
                print(report.text())
        if len(reports) > 1:
            print(_summary(reports))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
