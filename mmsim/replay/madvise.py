"""recordings/linux-5.17-pressure/api/madvise/madvise: every advice on every kind of memory.

The recorded program makes a kind of memory, looks at smaps and at the flags of its pages, gives the advice, and looks again; after
advice on forks it looks at a child too.

Of a page's flags two say whether it still waits in a pagevec (LRU, and with it UNEVICTABLE), which follows from all that the program
did before: they are not compared. Of pages of files, which earlier lines used too, only whether they are mapped is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsim.constants import MADV_DONTFORK, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_WIPEONFORK
from mmsim.process.task import Process
from mmsim.procfs.process import kpageflags, pagemap
from mmsim.replay.memory_kinds import NOT_COVERED, MemoryKinds
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.replay.usage import smaps_sums
from mmsim.units import PAGE_SIZE, s32

__all__ = ["advice_on_memory"]

P = PAGE_SIZE
#: Bits of /proc/kpageflags that the recorded lines show; LRU and UNEVICTABLE; those of the page of zeros, which all share.
_SHOWN = (1 << 33) - 1
_IN_LRU, _ZERO_PAGE, _REFERENCED = 1 << 5 | 1 << 18, 1 << 24, 1 << 2
_PRESENT, _SWAP, _PFN = 1 << 63, 1 << 62, (1 << 55) - 1


def _range(start: int, length: int) -> tuple[int, int]:
    """The pages that the program looks at: first address and bytes."""
    size = 8 * P if length > 2 << 20 or not length else max(length, P)
    return start & -P, size


def _without_soft_dirty(smaps: dict[str, Any]) -> dict[str, Any]:
    """The sums, with the flags of each area as words; soft-dirty is the recorded kernel's configuration."""
    flags = [[word for word in area.split() if word != "sd"] for area in smaps["VmFlags"].split(";")] if smaps["VmFlags"] else []
    return {name: value for name, value in smaps.items() if name != "Size"} | {"VmFlags": flags}


def _smaps(process: Process, start: int, size: int) -> dict[str, Any]:
    return _without_soft_dirty(smaps_sums(process, start, size // P, size=False))


def _pages(process: Process, start: int, size: int) -> str:
    """The flags of up to eight pages, as the program prints them."""
    shown = []
    for word in pagemap(process, start, min(size // P, 8), admin=True):
        flags = kpageflags(process.user, word & _PFN) if word & _PRESENT else 0
        shown.append(f"{flags & _SHOWN:x}" if word & _PRESENT else "swap" if word & _SWAP else "-")
    return " ".join(shown)


def _compared(kind: str, pages: str) -> list[str]:
    """What is compared of the flags of pages."""
    if "file" in kind or kind == "shmem_private":
        return ["-" if word == "-" else "mapped" for word in pages.split()]
    found = []
    for word in pages.split():
        flags = int(word, 16) & ~_IN_LRU if word not in ("-", "swap") else word
        found.append(f"{flags & ~_REFERENCED if flags & _ZERO_PAGE else flags:x}" if isinstance(flags, int) else flags)
    return found


def _same_pages(label: str, kind: str, recorded: str, modelled: str) -> Check:
    return same(label, _compared(kind, recorded), _compared(kind, modelled))


def _not_covered(record: Record) -> str:
    """What the model lacks for this line, or an empty text."""
    kind, advice = record["kind"], record["advice"]
    if kind in NOT_COVERED:
        return NOT_COVERED[kind]
    if kind == "vdso" and advice == MADV_POPULATE_READ:
        return "the page of the vdso"
    return "reclaim of single pages" if advice == MADV_PAGEOUT else ""


@replays("linux-5.17-pressure/api/madvise/madvise*.jsonl*")
def advice_on_memory(path: Path) -> Iterator[Check]:
    """For each kind of memory and each advice: result and errno, smaps and the flags of pages before and after, and what a child
    has after MADV_DONTFORK and MADV_WIPEONFORK."""
    memory = MemoryKinds()
    for record in read_jsonl(path):
        at = f"line {record.line}: advice {record['advice']} on {record['kind']}"
        missing = _not_covered(record)
        if missing:
            yield Check(at, False, known=f"not yet covered: {missing}")
            continue
        process = memory.fresh()
        start = memory.kind(record["kind"])
        if start is None:
            yield Check(at, False, "a kind of memory", "unknown")
            continue
        low, size = _range(start, memory.length)
        yield same(f"{at}: smaps before", _without_soft_dirty(record["before"]), _smaps(process, low, size))
        yield _same_pages(f"{at}: pages before", record["kind"], record["pages_before"], _pages(process, low, size))
        result = process.madvise(start, memory.length, s32(record["advice"]))
        memory.table.check()
        yield same(f"{at}: result, errno", (record["ret"], record["errno"]), (-1 if result < 0 else result, max(-result, 0)))
        yield same(f"{at}: smaps after", _without_soft_dirty(record["after"]), _smaps(process, low, size))
        yield _same_pages(f"{at}: pages after", record["kind"], record["pages_after"], _pages(process, low, size))
        # The program reads through /proc/self/mem, which asks no area for permission.
        if "byte0_after" in record and record["kind"] not in ("prot_none", "vdso"):
            found = process.read(low)
            yield same(f"{at}: the first byte", record["byte0_after"], found[0] if found else -1)
        if record["advice"] in (MADV_DONTFORK, MADV_WIPEONFORK) and "child" in record:
            child = memory.table.processes[process.fork()]
            yield same(f"{at}: smaps of a child", _without_soft_dirty(record["child"]), _smaps(child, low, size))
            yield _same_pages(f"{at}: pages of a child", record["kind"], record["child_pages"], _pages(child, low, size))
