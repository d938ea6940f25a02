"""What the reader's kernel lets one trace: from tracefs and kallsyms on Linux, elsewhere from the recorded 5.17."""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LANDMARKS", "OwnKernel", "own_kernel", "record_script"]

#: Functions of the path of a fault, whose presence differs from release to release and from compiler to compiler.
LANDMARKS = ("handle_mm_fault", "__handle_mm_fault", "handle_pte_fault", "do_anonymous_page", "do_wp_page", "wp_page_copy",
             "alloc_pages_vma", "vma_alloc_folio", "vmacache_find", "lock_vma_under_rcu")
_TRACING = ("sys/kernel/tracing", "sys/kernel/debug/tracing")


@dataclass(slots=True)
class OwnKernel:
    """``functions`` are the names that can be traced, or, where tracefs cannot be read, all names of functions in kallsyms."""

    source: str
    live: bool
    functions: set[str]
    listing: str
    tracers: list[str] = field(default_factory=list)
    events: int | None = None
    addresses_hidden: bool | None = None
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """A line for each landmark, and what else is known; what could not be read only of the reader's own kernel."""
        lines = [f"{len(self.functions)} functions in {self.listing}", f"tracers: {' '.join(self.tracers) or 'not to be read'}"]
        if self.events is not None:
            lines.append(f"{self.events} tracepoints")
        if self.addresses_hidden is not None:
            lines.append(f"addresses in /proc/kallsyms: {'all zero (not privileged)' if self.addresses_hidden else 'shown'}")
        lines += [f"  {'yes' if name in self.functions else 'no ':3} {name}" for name in LANDMARKS]
        return "\n".join([*lines, *(self.problems if self.live else ())])


def _names(lines: Iterable[str]) -> set[str]:
    """First words, without what the compiler put behind them and without modules' functions."""
    return {line.split()[0].partition(".")[0] for line in lines if line.strip() and "[" not in line}


def _recorded(folder: Path, problems: list[str]) -> OwnKernel:
    with gzip.open(folder / "ch02_available_filter_functions.txt.gz", "rt", encoding="utf-8") as lines:
        functions = _names(lines)
    events = (folder / "ch02_available_events.txt").read_text(encoding="utf-8").split()
    return OwnKernel("the recorded Linux 5.17", False, functions, "available_filter_functions", ["function_graph", "function", "nop"],
                     len(events), None, problems)


def _live(root: Path) -> OwnKernel:
    problems: list[str] = []
    symbols = (root / "proc/kallsyms").read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split() for line in symbols if "[" not in line]
    hidden = all(not row[0].strip("0") for row in rows)
    own = OwnKernel("this machine", True, {row[2].partition(".")[0] for row in rows if len(row) > 2 and row[1] in "tT"}, "/proc/kallsyms",
                    addresses_hidden=hidden, problems=problems)
    for place in _TRACING:
        try:
            own.tracers = (root / place / "available_tracers").read_text().split()
            own.events = len((root / place / "available_events").read_text().split())
            own.functions = _names((root / place / "available_filter_functions").read_text().splitlines())
            own.listing = "available_filter_functions"
            return own
        except OSError as error:
            problems.append(f"/{place}: {error.strerror}")
    return own


def own_kernel(root: str | Path, recording: str | Path) -> OwnKernel:
    """The kernel below ``root``, or the recording in the folder ``recording`` where that is no Linux or cannot be read."""
    if sys.platform == "linux":
        try:
            return _live(Path(root))
        except OSError as error:
            return _recorded(Path(recording), [f"{error.filename}: {error.strerror}"])
    return _recorded(Path(recording), [f"this is {sys.platform}, not Linux"])


def record_script(function: str = "handle_mm_fault") -> str:
    """A shell script that records one first write under ``function`` on the reader's kernel; it must be run by root."""
    if not re.fullmatch(r"[A-Za-z_]\w*", function):
        raise ValueError(f"{function!r} is no function's name")
    return f"""\
cd /sys/kernel/tracing || exit 1
echo nop > current_tracer; echo > trace
echo {function} > set_graph_function
python3 - <<'END'
import mmap, os
area = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
open("set_ftrace_pid", "w").write(str(os.getpid()))
open("current_tracer", "w").write("function_graph")
area[2 << 20] = 1
open("tracing_on", "w").write("0")
END
cat trace; echo > set_ftrace_pid; echo > set_graph_function
echo nop > current_tracer; echo 1 > tracing_on
"""
