"""golden/vma: areas against the kernel's: merge decisions, places chosen by mmap, and random sequences of system calls.

``fuzz-maps`` and ``fuzz-smaps`` come from a program that works in one range of 64 pages and prints, after every
operation, its result and the areas in the range; ``place`` lets the kernel choose the addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmsim import constants
from mmsim.constants import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS,
    VM_MAYSHARE,
    VM_SHARED,
    VM_STACK_FLAGS,
)
from mmsim.errors import InputError
from mmsim.process.layout import fixed_layout
from mmsim.process.merge import MergeRequest, decide_merge
from mmsim.process.mm import Mm
from mmsim.process.populate import Access
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import AnonVma, MappedFile, Vma, prot_text, vm_flag_names
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.rules import RELEASES, Rules, rules_for
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, u64

__all__ = ["fuzz", "fuzz_sequence", "merge_decisions", "place_sequence", "places"]


# -- vma_merge -----------------------------------------------------------------------------------------------

def _link(areas: list[Vma]) -> None:
    for low, high in zip(areas, areas[1:]):
        low.vm_next, high.vm_prev = high, low


@replays("vma/vma_merge*.jsonl*")
def merge_decisions(path: Path) -> Iterator[Check]:
    """For a range between two areas, with all their attributes: which of the eight merge cases applies, which area stays,
    and what __vma_adjust() is told."""
    for record in read_jsonl(path):
        anon_vmas: dict[int, AnonVma] = {}
        files: dict[int, MappedFile] = {}

        def anon_vma(number: int, known: dict[int, AnonVma] = anon_vmas) -> AnonVma | None:
            return known.setdefault(number, AnonVma()) if number else None

        def file(number: int, close: int, known: dict[int, MappedFile] = files) -> MappedFile | None:
            if not number:
                return None
            found = known.setdefault(number, MappedFile(f"file {number}"))
            found.has_close |= bool(close)
            return found

        areas: dict[str, Vma] = {}
        for name in ("prev", "area", "next"):
            given = record[name]
            if given is not None:
                vma = Vma(given["s"] << PAGE_SHIFT, given["e"] << PAGE_SHIFT, given["flags"], given["pgoff"],
                          file(given["file"], 0), anon_vma(given["anon_vma"]), [AnonVma() for _ in range(given["chain"])],
                          "", str(given["name"]) if given["name"] else None, given["policy"], given["uffd"])
                if given["close"]:
                    vma.special = vma.special or "close"
                areas[name] = vma
        _link(list(areas.values()))
        asked = record["req"]
        request = MergeRequest(asked["s"] << PAGE_SHIFT, asked["e"] << PAGE_SHIFT, asked["flags"], asked["pgoff"],
                               file(asked["file"], 0), anon_vma(asked["anon_vma"]), asked["policy"], asked["uffd"],
                               str(asked["name"]) if asked["name"] else None)
        merge = decide_merge(areas.get("prev"), areas.get("area", areas.get("next")), request)
        names = {id(vma): name for name, vma in areas.items()}
        expected = (record["case"], record["ret"], record.get("adjust"))
        got: tuple[Any, ...] = (0, None, None)
        if merge is not None:
            got = (merge.case, names[id(merge.expand)],
                   {"vma": names[id(merge.vma)], "s": merge.start >> PAGE_SHIFT, "e": merge.end >> PAGE_SHIFT,
                    "pgoff": merge.pgoff, "expand": names[id(merge.expand)]})
        yield same(f"line {record.line} ({record['geom']}): case, area that stays, adjustment", expected, got)


# -- random sequences ----------------------------------------------------------------------------------------

_BASE = 0x1000_0000_0000
_BRK = 0x55_0000_0000


class _Fuzzer:
    """The program vmafuzz on the model: two files of 256 pages, a range at a fixed address, a heap."""

    def __init__(self, record: Record, rules: Rules, with_flags: bool):
        self.mm = Mm(fixed_layout(), rules=rules, privileged=True)
        self.calls = SystemCalls(self.mm)
        self.files = {name: MappedFile(f"/memfd:{name} (deleted)", 256, inode=inode) for inode, name in enumerate(("fA", "fB"), 1)}
        self.pages, self.with_flags = record["npages"], with_flags
        self.mm.start_brk, self.mm.brk = _BRK - 16 * PAGE_SIZE, _BRK
        self.mm.link(Vma(self.mm.start_brk, _BRK, VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT, self.mm.start_brk >> PAGE_SHIFT))
        self.mm.vm_stat_account(VM_DATA_DEFAULT_FLAGS, 16)

    def run(self, step: dict[str, Any]) -> tuple[int, int]:
        """Make one recorded call; return what the program printed as result and errno."""
        op, calls = step["op"], self.calls
        if op == "write":
            return calls.touch(_BASE + step["page"] * PAGE_SIZE, Access.WRITE).outcome.value, 0
        if op == "brk":
            calls.brk(_BRK + step["to"] * PAGE_SIZE)
            return (0 if self.mm.brk == _BRK + step["to"] * PAGE_SIZE else -1), 0
        start, length = _BASE + step["page"] * PAGE_SIZE, step["len"] * PAGE_SIZE
        if op == "mmap":
            flags = MAP_FIXED | (MAP_SHARED if "SHARED" in step["flags"] else MAP_PRIVATE)
            flags |= (MAP_ANONYMOUS if "ANON" in step["flags"] else 0) | (MAP_NORESERVE if "NORESERVE" in step["flags"] else 0)
            result = calls.mmap(start, length, step["prot"], flags, self.files.get(step["file"]), step["pgoff"] * PAGE_SIZE)
            return (-1, -result) if result < 0 else (0, 0)
        if op == "mremap":
            flags = sum(bit for name, bit in (("MAYMOVE", MREMAP_MAYMOVE), ("FIXED", MREMAP_FIXED), ("DONTUNMAP", MREMAP_DONTUNMAP))
                        if name in step["flags"])
            result = calls.mremap(start, length, step["newlen"] * PAGE_SIZE, flags, _BASE + step.get("to", 0) * PAGE_SIZE)
            # The program divides the distance from its range by an unsigned page size.
            return (-1, -result) if result < 0 else (u64(result - _BASE) >> PAGE_SHIFT, 0)
        if op == "madvise":
            result = calls.madvise(start, length, getattr(constants, f"MADV_{step['advice']}"))
        elif op == "mprotect":
            result = calls.mprotect(start, length, step["prot"])
        elif op == "mlock2_onfault":
            result = calls.mlock2(start, length, MLOCK_ONFAULT)
        elif op in ("munmap", "mlock", "munlock"):
            result = getattr(calls, op)(start, length)
        else:
            raise InputError(f"unknown operation {op!r}")
        return (-1, -result) if result < 0 else (0, 0)

    def _kind(self, vma: Vma) -> str:
        for name, file in self.files.items():
            if vma.vm_file is file:
                return name
        return "anon" if vma.vm_file is None else "shm"

    def areas(self) -> list[list[Any]]:
        """The areas in the range, as the program prints them."""
        rows = []
        for vma in self.mm.tree.overlapping(_BASE, _BASE + self.pages * PAGE_SIZE):
            start, end = max(vma.vm_start - _BASE, 0), min(vma.vm_end - _BASE, self.pages * PAGE_SIZE)
            row: list[Any] = [start >> PAGE_SHIFT, end >> PAGE_SHIFT, prot_text(vma.vm_flags),
                              vma.vm_pgoff if vma.vm_file is not None else 0, self._kind(vma)]
            lockonfault = "lf" if self.mm.rules.smaps_names_lockonfault else "??"
            rows.append(row + [vm_flag_names(vma.vm_flags, lockonfault)] if self.with_flags else row)
        return rows

    def heap(self) -> list[list[Any]]:
        """The areas of the heap above the recorded start."""
        return [[max(vma.vm_start - _BRK, 0) >> PAGE_SHIFT, (vma.vm_end - _BRK) >> PAGE_SHIFT, prot_text(vma.vm_flags)]
                for vma in self.mm.tree.overlapping(_BRK, _BRK + (64 << 20))]


def release_in(path: Path, example: str) -> str:
    """The release that a file's name says. Raise InputError where it says none that has rules."""
    named = re.search(r"-(\d+\.\d+)", path.name)
    if not named or named[1] not in RELEASES:
        raise InputError(f"the name does not say a known release ({example}): {path.name}")
    return named[1]


def fuzz_sequence(record: Record, rules: Rules, with_flags: bool) -> Iterator[Check]:
    """One sequence under some rules, up to its first disagreement."""
    fuzzer = _Fuzzer(record, rules, with_flags)
    for number, step in enumerate(record["ops"]):
        got_result = fuzzer.run(step)
        fuzzer.mm.check()
        expected = (step["ret"], step["errno"], step["maps"], step["heap"])
        got = (*got_result, fuzzer.areas(), fuzzer.heap())
        told = {name: value for name, value in step.items() if name not in ("ret", "errno", "maps", "heap")}
        check = same(f"seed {record['seed']}, call {number}: {told}", expected, got)
        yield check
        if not check.agrees:
            break


@replays("vma/fuzz-maps-*.jsonl*", "vma/fuzz-smaps-*.jsonl*")
def fuzz(path: Path) -> Iterator[Check]:
    """After each of the random system calls: its result, errno, and every area in the range (start, end, permissions,
    offset, kind, and VmFlags in fuzz-smaps), and the heap; under the release in the file's name."""
    rules, with_flags = rules_for(release_in(path, "fuzz-maps-5.17")), "smaps" in path.name
    for record in read_jsonl(path):
        yield from fuzz_sequence(record, rules, with_flags)


# -- places --------------------------------------------------------------------------------------------------

def place_sequence(record: Record, rules: Rules) -> Iterator[Check]:
    """One sequence of mappings under some rules. ``mmap_base`` in a record (in pages) says that it was made with ASLR."""
    layout = fixed_layout()
    if "mmap_base" in record:
        layout = replace(layout, mmap_base=record["mmap_base"] << PAGE_SHIFT)
    mm = Mm(layout, rules=rules, privileged=True)
    calls = SystemCalls(mm)
    for start, end in record["start_maps"]:
        if end << PAGE_SHIFT <= TASK_SIZE:
            is_stack = end << PAGE_SHIFT == TASK_SIZE
            # What these areas are does not matter here, only that nothing merges with them.
            vma = Vma(start << PAGE_SHIFT, end << PAGE_SHIFT, VM_STACK_FLAGS if is_stack else VM_SHARED | VM_MAYSHARE, start)
            mm.link(vma)
            mm.vm_stat_account(vma.vm_flags, vma.pages)
    for number, step in enumerate(record["ops"]):
        if step["op"] == "munmap":
            calls.munmap(step["page"] << PAGE_SHIFT, step["len"] << PAGE_SHIFT)
            continue
        address = calls.mmap(step["hint"] << PAGE_SHIFT, step["len"] << PAGE_SHIFT, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS)
        mm.check()
        yield same(f"seed {record['seed']}, call {number}: mmap({step['hint']:#x}, {step['len']}) -> page",
                   step["page"], address >> PAGE_SHIFT)


@replays("vma/place-*.jsonl*")
def places(path: Path) -> Iterator[Check]:
    """Where mmap() puts each mapping, with and without a hint, between the areas of a real process without ASLR; under the
    release in the file's name."""
    rules = rules_for(release_in(path, "place-5.17"))
    for record in read_jsonl(path):
        yield from place_sequence(record, rules)
