"""Run all benchmarks, print the table, and keep it in benchmarks/RESULTS.md: `make bench`, or `python -m benchmarks drawing early`."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import sys
from pathlib import Path

from benchmarks.measure import Row

SUBJECTS = ("allocator", "early", "paging", "process", "malloc", "drawing", "page")
HEADINGS = ("subject", "what", "ours", "other", "against", "ratio", "target")


def table(rows: list[Row]) -> str:
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row.cells())} |" for row in rows])


def main(subjects: list[str]) -> None:
    rows: list[Row] = []
    for subject in subjects or SUBJECTS:
        print(f"measuring: {subject}", flush=True)
        rows += importlib.import_module(f"benchmarks.{subject}").run()
    print(table(rows))
    if subjects:
        return
    where = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs"
    text = f"""# Results of `make bench`

Medians of one run on {datetime.date.today()}: {where}. What counts is the ratio of two numbers of the same run; absolute times say
little about another machine.

{table(rows)}
"""
    (Path(__file__).parent / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
