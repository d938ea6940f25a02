"""Replay everything in tests/golden and write what came of it to book/appendix/how-faithful.json, which the page of that name shows.

    python tools/faithful.py [--check]

--check writes nothing; exit status 1 if the file would change. `make notebooks` runs this, and a test compares the file with a new run.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
RESULT = ROOT / "book" / "appendix" / "how-faithful.json"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Which mechanism a replay belongs to: by the module that holds it, or a part of its file's path: chapter, name. The first that fits counts.
MECHANISMS = (
    (2, "Function graphs", r"^graphs$"),
    (3, "Page tables, entries and walks", r"^(paging|kernel_tables)$"),
    (4, "malloc of glibc 2.36", r"^malloc"),
    (5, "Free lists, per-CPU lists and stealing", r"^(buddy|kmem_trace)$"),
    (5, "Watermarks and reserves", r"^(watermark|sysctl)$"),
    (5, "GFP masks", r"^gfp$"),
    (5, "Zonelists", r"^zonelist$"),
    (5, "Fragmentation", r"^fragindex$"),
    (6, "SLUB", r"^slub$"),
    (6, "The kernel's memory, as it reports it", r"^kernel_memory$"),
    (7, "Areas of a process", r"^vma$"),
    (7, "Overcommit", r"^overcommit$|ch07_over"),
    (7, "Stacks and limits", r"^limits$"),
    (7, "Page faults, copy-on-write and fork", r"^(faults|fork_tree|steps)$"),
    (7, "Single calls, and what they refuse", r"^(api_calls|errnos|madvise|mincore)$"),
    (19, "memblock", r"^memblock$"),
    (19, "Whole boots", r"^boots$"),
)

# How a recording was made, by its path below tests/golden. tests/golden/README.md says it at length.
HARNESS = "the kernel's own C, compiled as a program"
MADE = (
    (r"^consts/", "the kernel's headers, compiled"),
    (r"^pte/", "the kernel's headers, compiled"),
    (r"^memblock/", "the kernel's memblock with the kernel's own test frame"),
    (r"^buddy/kernel-", "a running kernel, called with interrupts off"),
    (r"^vma/(fuzz|place)", "a running kernel, one process"),
    (r"^live-|^linux-6\.18-live/|^recordings/", "a running kernel in QEMU"),
    (r"", HARNESS),
)
# Files that describe others, or that tests read and nothing replays.
NO_RECORDING = re.compile(r"README\.md$|^symbols-|buddy\.out/(before|after)\.txt$")


def mechanism(module: str, path: str, purpose: str) -> tuple[int, str]:
    """The chapter and the name of what a replay is about. A replay that the list doesn't know stands under its module's own words."""
    for chapter, name, pattern in MECHANISMS:
        if re.search(pattern, module) or ("/" not in pattern and re.search(pattern, Path(path).name)):
            return chapter, name
    return 0, purpose


def made(path: str) -> str:
    """How a recording was made."""
    return next(how for pattern, how in MADE if re.search(pattern, path))


def kernel(path: str) -> str:
    """The release that a recording is of."""
    found = re.search(r"(?:linux-|boots-|-|live-)(\d+\.\d+)", path)
    return found[1] if found else "5.17"


def compared(path: Path) -> dict[str, Any] | None:
    """What came of one file; None for one that nothing replays."""
    from mmsim.replay.driver import replay_file
    from mmsim.replay.registry import handler_for

    registration = handler_for(path)
    if registration is None:
        return None
    report = replay_file(path)
    name = path.relative_to(GOLDEN).as_posix()
    module = registration.handler.__module__.rpartition(".")[2]
    purpose = (sys.modules[registration.handler.__module__].__doc__ or module).strip().split("\n")[0].rstrip(".")
    chapter, title = mechanism(module, name, purpose)
    return {
        "path": name, "chapter": chapter, "mechanism": title, "compares": registration.compares, "kernel": kernel(name), "made": made(name),
        "agree": report.agree, "total": report.total, "known": dict(sorted(report.known.items())),
        "differs": report.total - report.agree - sum(report.known.values()), "error": report.error,
    }


def recordings() -> list[Path]:
    """Every recorded file, whether a replay knows it or not."""
    paths = sorted(path for path in GOLDEN.rglob("*") if path.is_file())
    return [path for path in paths if not NO_RECORDING.search(path.relative_to(GOLDEN).as_posix())]


def everything() -> dict[str, Any]:
    """The whole result."""
    from mmsim.replay.registry import handler_for, load_handlers

    load_handlers()
    files = [result for path in recordings() if (result := compared(path))]
    waiting = [path.relative_to(GOLDEN).as_posix() for path in recordings() if handler_for(path) is None]
    return {"files": files, "not replayed": waiting}


def text() -> str:
    """The result as the file holds it."""
    return json.dumps(everything(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the result; with --check compare only."""
    new = text()
    same = RESULT.exists() and RESULT.read_text(encoding="utf-8") == new
    if "--check" not in sys.argv[1:] and not same:
        RESULT.write_text(new, encoding="utf-8")
        print(f"changed: {RESULT.relative_to(ROOT)}")
    return 1 if "--check" in sys.argv[1:] and not same else 0


if __name__ == "__main__":
    sys.exit(main())
