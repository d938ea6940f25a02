"""Simulated time: nanoseconds since boot, and the jiffies counted from them."""

from __future__ import annotations

__all__ = ["HZ", "NSEC_PER_SEC", "NSEC_PER_JIFFY", "Clock"]

HZ = 250
NSEC_PER_SEC = 1_000_000_000
NSEC_PER_JIFFY = NSEC_PER_SEC // HZ


class Clock:
    """A clock that stands still until the machine moves it: there is no wall time in the model.

    >>> clock = Clock()
    >>> clock.advance(10_000_000)
    >>> clock.jiffies
    2
    """

    __slots__ = ("ns",)

    def __init__(self, ns: int = 0):
        self.ns = ns

    @property
    def jiffies(self) -> int:
        """Timer ticks since boot. The kernel's own counter starts five minutes before it wraps (INITIAL_JIFFIES); this one at 0."""
        return self.ns // NSEC_PER_JIFFY

    def advance(self, ns: int) -> None:
        """Let ``ns`` nanoseconds pass. Raise ValueError if they are negative."""
        if ns < 0:
            raise ValueError(f"time does not run backwards ({ns} ns)")
        self.ns += ns
