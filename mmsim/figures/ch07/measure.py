"""Numbers for the chapter's measurement: pages that an mprotect round trip copies, and the page tables of a forked child."""

from __future__ import annotations

from collections.abc import Iterable

from mmsim.constants import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from mmsim.errors import InputError
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile
from mmsim.reference import ref256
from mmsim.rules import rules_for
from mmsim.units import MIB, PAGE_SIZE

__all__ = ["fork_tables", "mprotect_copies"]

_RW = PROT_READ | PROT_WRITE


def _program(release: str = "5.17") -> Process:
    machine = ref256()
    machine.rules = rules_for(release)
    return machine.spawn("program")


def mprotect_copies(sizes: Iterable[int], release: str) -> list[int]:
    """For each number of pages: written, made read-only, made writable, written again: how many were copied?"""
    found = []
    for size in sizes:
        program = _program(release)
        length = int(size) * PAGE_SIZE
        base = program.mmap(0, length, _RW, MAP_PRIVATE | MAP_ANONYMOUS)
        pages = range(base, base + length, PAGE_SIZE)
        for address in pages:
            program.write(address, b"1")
        program.mprotect(base, length, PROT_READ)
        program.mprotect(base, length, _RW)
        faults, reused = program.minflt, program.machine.counters["pgreuse"]
        for address in pages:
            program.write(address, b"2")
        found.append(program.minflt - faults - (program.machine.counters["pgreuse"] - reused))
        program.exit()
    return found


def fork_tables(mib: Iterable[int], kind: str) -> list[int]:
    """KiB of page tables of a new child whose parent has so many MiB ``written`` (anonymous) or read of a ``file``."""
    found = []
    for size in mib:
        program = _program()
        length = int(size) * MIB
        if kind == "written":
            base = program.mmap(0, length, _RW, MAP_PRIVATE | MAP_ANONYMOUS)
        elif kind == "file":
            base = program.mmap(0, length, PROT_READ, MAP_PRIVATE, MappedFile("/data", length // PAGE_SIZE))
        else:
            raise InputError(f"kind is written or file, not {kind}")
        for address in range(base, base + length, PAGE_SIZE):
            if kind == "written":
                program.write(address, b"1")
            else:
                program.read(address)
        child = program.table.processes[program.fork()]
        found.append(child.mm.pgtables_bytes >> 10)
    return found
