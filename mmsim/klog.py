"""The kernel log: what printk() wrote, as dmesg shows it."""

from __future__ import annotations

from mmsim.clock import Clock

__all__ = ["KernelLog"]


#: LOG_LINE_MAX, 1024 less 32 for a prefix, without the end of the string and the two characters of the log level.
LINE_MAX = 989


class KernelLog:
    """Lines of the kernel log, each with the simulated time at which it was printed.

    Bounded to the newest ``capacity`` lines like the kernel's ring buffer (5.17: kernel/printk/printk.c); ``dropped`` counts
    the lines lost. Log levels are left out.

    >>> log = KernelLog(Clock())
    >>> log.printk("Linux version 5.17.0")
    >>> print(log.text())
    [    0.000000] Linux version 5.17.0
    """

    def __init__(self, clock: Clock, capacity: int = 10_000):
        self.clock = clock
        self.capacity = capacity
        self.dropped = 0
        self._lines: list[tuple[int, str]] = []

    def printk(self, text: str) -> None:
        """Append ``text``; a text of several lines becomes several entries, as on the console."""
        for line in text.split("\n"):
            self._lines.append((self.clock.ns, line[:LINE_MAX]))
        excess = len(self._lines) - self.capacity
        if excess > self.capacity // 10:
            del self._lines[:excess]
            self.dropped += excess

    def warn(self, text: str) -> None:
        """A WARN(): the kernel reports that something is wrong, and goes on. The register dump is left out."""
        self.printk(f"------------[ cut here ]------------\n{text}\n---[ end trace 0000000000000000 ]---")

    def lines(self) -> list[str]:
        """The messages without their times."""
        return [line for _, line in self._lines]

    def text(self) -> str:
        """The log in dmesg's format: seconds and microseconds since boot in brackets."""
        return "\n".join(f"[{ns // 1_000_000_000:5d}.{ns // 1000 % 1_000_000:06d}] {line}" for ns, line in self._lines)

    def __len__(self) -> int:
        return len(self._lines)
