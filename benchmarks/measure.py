"""Measuring: medians of repeated runs, and rows of the results table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table. `ours` and `other` are in `unit`; what counts is their ratio."""

    subject: str
    what: str
    ours: float
    other: float
    against: str
    unit: str
    target: str = ""

    @property
    def ratio(self) -> float:
        return self.ours / self.other if self.other else float("nan")

    def cells(self) -> list[str]:
        return [self.subject, self.what, f"{self.ours:.3g} {self.unit}", f"{self.other:.3g} {self.unit}", self.against,
                f"**{self.ratio:.3g}**", self.target]


def median_ns(work: Callable[[], int], repeats: int = 5) -> float:
    """Nanoseconds of CPU time for one operation: the median over runs of `work`, which returns how many operations it did."""
    results = []
    for _ in range(repeats):
        begin = time.process_time_ns()
        operations = work()
        results.append((time.process_time_ns() - begin) / operations)
    return statistics.median(results)


def median(values: list[float]) -> float:
    return statistics.median(values)
