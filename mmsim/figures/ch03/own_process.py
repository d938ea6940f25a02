"""A process seen from outside: which of its pages are there, what its tables must cost, and what its CPU can do.

The reader's own process on Linux (no root needed: everyone may read their own pagemap, only the frame numbers are hidden), else
the recorded one, whose page tables were dumped from the memory of a stopped machine.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mmsim.errors import InputError
from mmsim.paging.address import TableCost, table_cost
from mmsim.units import KIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["CPU_FEATURES", "OwnProcess", "own_process"]

#: What the chapter speaks of, by its name in /proc/cpuinfo, and what it is for.
CPU_FEATURES: dict[str, str] = {
    "nx": "no-execute bit", "pge": "global pages", "pdpe1gb": "1 GiB pages", "pcid": "several address spaces in the TLB",
    "invpcid": "flush one of them", "smep": "kernel may not execute user pages", "smap": "nor touch them", "pku": "protection keys",
    "la57": "five levels", "pti": "a second set of tables for user mode (Meltdown)",
}
#: The bit of CR4 that switches a feature on; EFER bit 11 for nx.
_CR4 = {"pge": 7, "la57": 12, "pcid": 17, "smep": 20, "smap": 21, "pku": 22}
#: Bytes of pagemap read at once: words for 512 MiB of addresses.
_CHUNK = 1 << 20
#: A mapping larger than this (a sanitiser's shadow) is left out.
_LARGEST = 1 << 40


@dataclass(slots=True)
class OwnProcess:
    """Addresses of the pages that are there, VmPTE in KiB, and the CPU's features; ``problems`` says what could not be read.

    ``features`` has a name only where it is known whether the CPU uses it.
    """

    source: str
    live: bool
    present: list[int]
    vmpte_kib: int
    features: dict[str, bool]
    shown_frames: bool
    problems: list[str] = field(default_factory=list)

    @property
    def cost(self) -> TableCost:
        """The tables that these pages need, if all were pages of 4 KiB; a huge page has a PTE table put by, so that counts the same."""
        return table_cost(self.present)

    def tables_text(self) -> str:
        """The tables that must be there, against what the kernel counts."""
        cost = self.cost
        must = cost.pages * PAGE_SIZE // KIB
        more = self.vmpte_kib - must
        verdict = "the same" if not more else f"{abs(more)} kB {'more: tables with nothing present in them' if more > 0 else 'less'}"
        return (f"{len(self.present)} pages present\n{cost.pte} PTE + {cost.pmd} PMD + {cost.pud} PUD tables = {must} kB\n"
                f"VmPTE says {self.vmpte_kib} kB: {verdict}")

    def features_text(self) -> str:
        """The CPU's features, a line each."""
        said = {True: "yes", False: "no", None: "?"}
        return "\n".join(f"{name:8} {said[self.features.get(name)]:4} {words}" for name, words in CPU_FEATURES.items())


def own_process(root: str | Path, recording: str | Path) -> OwnProcess:
    """This process, read from ``root``/proc on Linux; elsewhere, or where it cannot be read, the recorded one (a pt.json)."""
    if sys.platform == "linux":
        try:
            return _live(Path(root) / "proc")
        except (OSError, InputError) as error:
            return _recorded(Path(recording), [str(error)])
    return _recorded(Path(recording), [f"this is {sys.platform}, not Linux"])


def _status_value(lines: list[str], name: str) -> int:
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise InputError(f"status has no line {name}")


def _live(proc: Path) -> OwnProcess:
    problems: list[str] = []
    status = (proc / "self/status").read_text().splitlines()
    info = (proc / "cpuinfo").read_text().splitlines()
    words: set[str] = set()
    for line in info:
        if line.startswith(("flags", "bugs")):
            words |= set(line.partition(":")[2].split())
        if not line.strip():
            break
    present: list[int] = []
    shown = False
    with (proc / "self/pagemap").open("rb", buffering=0) as pagemap:
        for line in (proc / "self/maps").read_text().splitlines():
            start, _, end = line.split()[0].partition("-")
            low, high = int(start, 16), int(end, 16)
            if high - low > _LARGEST or low >= 1 << 63:
                problems.append(f"left out: {line.split()[0]}")
                continue
            shown = _present(pagemap, low, high, present) or shown
    return OwnProcess("this process", True, present, _status_value(status, "VmPTE"), {name: name in words for name in CPU_FEATURES}, shown,
                      problems)


def _present(pagemap: BinaryIO, low: int, high: int, found: list[int]) -> bool:
    """Note the addresses whose pagemap word has bit 63; return whether any word shows a frame number."""
    shown = False
    addr = low
    while addr < high:
        pagemap.seek(addr >> PAGE_SHIFT << 3)
        words = pagemap.read(min((high - addr >> PAGE_SHIFT) * 8, _CHUNK))
        if not words:
            break
        for number in range(0, len(words) - 7, 8):
            if words[number + 7] & 0x80:
                found.append(addr + (number >> 3 << PAGE_SHIFT))
                shown = shown or any(words[number:number + 6])
        addr += len(words) // 8 << PAGE_SHIFT
    return shown


def _recorded(path: Path, problems: list[str]) -> OwnProcess:
    record: dict[str, Any] = json.loads(path.read_text())
    present: list[int] = []
    for leaf in record["user_leaves"]:
        pages = 512 if leaf["level"] == 2 else 1
        present += [int(leaf["va"], 16) + (number << PAGE_SHIFT) for number in range(pages)]
    cr4, efer = int(record["regs"]["CR4"], 16), int(record["regs"]["EFER"], 16)
    # The control registers tell what is in use; 1 GiB pages and INVPCID have no switch there.
    features = {name: bool(cr4 >> bit & 1) for name, bit in _CR4.items()}
    features |= {"nx": bool(efer >> 11 & 1), "pti": "nopti" not in " ".join(record["command"])}
    return OwnProcess("a recorded process on Linux 5.17 (qemu)", False, sorted(present), _status_value(record["status"], "VmPTE"), features,
                      True, problems)
