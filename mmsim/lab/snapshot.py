"""What the lab shows after each step: areas, page tables, frames and counters of every process, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmsim.constants import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES
from mmsim.paging.pte import pte_pfn, pte_present, pte_special
from mmsim.process.task import Process
from mmsim.process.user_memory import UserMemory
from mmsim.process.vma import vm_flag_names
from mmsim.procfs.maps import AreaLine, area_line

__all__ = ["AreaState", "FrameState", "ProcessState", "Snapshot", "TableState", "take_snapshot"]


@dataclass(frozen=True, slots=True)
class AreaState:
    """An area: its line in maps, the letters of its flags, its page offset, and how many anon_vmas it is linked to."""

    line: AreaLine
    flags: str
    pgoff: int
    anon_vmas: int


@dataclass(frozen=True, slots=True)
class TableState:
    """A page table: its frame, its level (1 is the last), and the first address that it translates."""

    pfn: int
    level: int
    address: int


@dataclass(frozen=True, slots=True)
class FrameState:
    """A frame that processes map: how often, who holds references, what it is, and which entries map it.

    ``kind`` is anon, file, shmem or zero (the page of zeros, which is not counted). ``mapped_at`` are (process name, address).
    """

    pfn: int
    mapcount: int
    refcount: int
    kind: str
    index: int
    in_pagevec: bool
    mapped_at: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process: ``entries`` are the words of its last tables by page address; RSS by kind and tables in pages and bytes."""

    name: str
    pid: int
    parent: str
    alive: bool
    areas: tuple[AreaState, ...]
    entries: Mapping[int, int]
    tables: tuple[TableState, ...]
    minflt: int
    majflt: int
    rss_anon: int
    rss_file: int
    rss_shmem: int
    pgtables_bytes: int
    total_vm: int
    locked_vm: int
    brk: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes, the frames that they map, and the machine's counters."""

    processes: tuple[ProcessState, ...]
    frames: Mapping[int, FrameState]
    free_pages: int
    committed: int
    pgfault: int
    pgmajfault: int
    pgreuse: int

    def process(self, name: str) -> ProcessState:
        """A process by name. Raise KeyError if there is none."""
        for state in self.processes:
            if state.name == name:
                return state
        raise KeyError(name)


def _process_state(name: str, process: Process, names: Mapping[int, str]) -> ProcessState:
    parent = names.get(process.parent.pid, "") if process.parent is not None else ""
    if not process.alive:
        return ProcessState(name, process.pid, parent, False, (), {}, (), process.minflt, process.majflt, 0, 0, 0, 0, 0, 0, 0)
    mm, tables = process.mm, process.page_tables
    lockonfault = "lf" if mm.rules.smaps_names_lockonfault else "??"
    areas = tuple(AreaState(area_line(mm, vma), vm_flag_names(vma.vm_flags, lockonfault), vma.vm_pgoff, len(vma.anon_vma_chain))
                  for vma in mm)
    rss = [one + other for one, other in zip(mm.rss, process.rss_stat)]
    return ProcessState(name, process.pid, parent, True, areas, dict(process.space.entries()),
                        tuple(TableState(pfn, level, base) for level, pfn, base in tables.tables()), process.minflt, process.majflt,
                        rss[MM_ANONPAGES], rss[MM_FILEPAGES], rss[MM_SHMEMPAGES], mm.pgtables_bytes, mm.total_vm, mm.locked_vm, mm.brk)


def _frames(user: UserMemory, processes: Iterable[ProcessState]) -> dict[int, FrameState]:
    found: dict[int, list[tuple[str, int]]] = {}
    for state in processes:
        for address, word in state.entries.items():
            if pte_present(word):
                found.setdefault(user.zero_pfn if pte_special(word) else pte_pfn(word), []).append((state.name, address))
    waiting = set(user.lru.waiting())
    frames = user.frames
    kinds = {MM_ANONPAGES: "anon", MM_FILEPAGES: "file", MM_SHMEMPAGES: "shmem"}
    states = {}
    for pfn in sorted(found):
        kind = kinds[user.mm_counter(pfn)] if pfn in user.mapping else "zero"
        states[pfn] = FrameState(pfn, frames.mapcount[pfn], frames.refcount[pfn], kind, user.index[pfn] if kind != "zero" else 0,
                                 pfn in waiting, tuple(found[pfn]))
    return states


def take_snapshot(user: UserMemory, processes: Mapping[str, Process]) -> Snapshot:
    """The state of these processes. Cost: every table of theirs."""
    names = {process.pid: name for name, process in processes.items()}
    states = tuple(_process_state(name, process, names) for name, process in processes.items())
    counters = user.counters
    return Snapshot(states, _frames(user, states), user.memory.nr_free_pages, user.overcommit.committed, counters["pgfault"],
                    counters["pgmajfault"], counters["pgreuse"])
