"""Who keeps their TLB: processes take turns on one CPU, with six slots for address spaces, or with none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from mmsim.constants import TLB_NR_DYN_ASIDS, ZONE_NORMAL
from mmsim.draw import Ask, Entry, Frame, Ledger, Legend, Range, Scene, Toggle, figure, grouped
from mmsim.figures.ch05.machines import small_memory
from mmsim.paging.contents import FrameContents
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_SHARED
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.paging.tlbflush import MmContext, TlbFlush
from mmsim.paging.walk import Control
from mmsim.physical.page_alloc import PageAllocator

__all__ = ["Turn", "Turns", "kept_share", "tlb_switch"]

_BASE = 0x7F0000000000


@dataclass(frozen=True, slots=True)
class Turn:
    """What happened when a process got the CPU: its slot, whether that was flushed, and how many of its accesses had to walk."""

    process: int
    asid: int
    flushed: bool
    walks: int
    entries: int                        # of this process in the TLB, after its turn


class Turns:
    """Processes that take turns; each touches its pages once a turn."""

    def __init__(self, processes: int, pages: int, pcid: bool):
        contents = FrameContents(1 << 20)
        memory = TableMemory(PageAllocator(small_memory((ZONE_NORMAL, 1024))), contents)
        kernel = PageTables(memory, user=False)
        self.cpu = Mmu(contents, Control(pcide=pcid))
        self.flush = TlbFlush([self.cpu], kernel)
        self.pages, self.pcid = pages, pcid
        self.processes: list[MmContext] = []
        for number in range(processes):
            tables = PageTables(memory, kernel)
            for page in range(pages):
                tables.map_page(_BASE + page * 4096, 4096 * (number + 1) + page, PAGE_SHARED)
            self.processes.append(self.flush.new_context(tables))

    def turn(self, process: int) -> Turn:
        """Switch to a process and let it touch all its pages."""
        mm = self.processes[process]
        flushed = not self.pcid or [mm.ctx_id, mm.tlb_gen] not in self.flush.states[0].ctxs
        asid = self.flush.switch_mm(0, mm)
        before = self.cpu.tlb.misses
        self.cpu.run([_BASE + page * 4096 for page in range(self.pages)])
        held = sum(tag == self.cpu.pcid for _, tag, _ in self.cpu.tlb.second[0])
        return Turn(process, asid, flushed, self.cpu.tlb.misses - before, held)

    def owners(self) -> list[int | None]:
        """Which process each slot belongs to."""
        ids = {mm.ctx_id: number for number, mm in enumerate(self.processes)}
        return [ids.get(ctx_id) for ctx_id, _ in self.flush.states[0].ctxs]


@cache
def kept_share(processes: int, pcid: bool) -> float:
    """Of the switches after the first round, the part that keeps the TLB."""
    run = Turns(processes, 1, pcid)
    turns = [run.turn(number % processes) for number in range(3 * processes)]
    return sum(not turn.flushed for turn in turns[processes:]) / (2 * processes)


def _name(process: int) -> str:
    return "ABCDEFGH"[process]


class _Slots:
    """The CPU's six slots and whose address space each holds."""

    def __init__(self, owners: list[int | None], now: Turn | None, lost: int | None):
        self.owners, self.now, self.lost = owners, now, lost

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """A box a slot; the one that is loaded has the colour of the step."""
        wide = width / len(self.owners)
        for asid, owner in enumerate(self.owners):
            mine = self.now is not None and self.now.asid == asid
            left = x + asid * wide
            middle, head = left + wide / 2 - 3, str(asid) if scene.narrow else f"ASID {asid}"
            scene.text(f"{key}/{asid}.head", middle, y + 11, head, "small", "muted", "middle")
            role = "moving" if mine else "anon" if owner is not None else ""
            label = _name(owner) if owner is not None else "–"
            cls = "" if role else "ghost"
            scene.box(f"{key}/{asid}", left, y + 16, wide - 6, 34, label, role, f"PCID {asid + 1}", style="title", cls=cls)
            if mine and self.lost is not None:
                scene.text(f"{key}/{asid}.lost", middle, y + 65, f"was {_name(self.lost)}", "small", "warn", "middle")
        return 70


class _Rounds:
    """Every turn so far: one row a round, one box a process."""

    def __init__(self, turns: list[Turn], processes: int, pages: int):
        self.turns, self.processes, self.pages = turns, processes, pages

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Boxes with the number of walks; a flushed slot is crossed."""
        first = 0.0 if scene.narrow else 62.0
        wide = (width - first) / self.processes
        top = y
        for process in range(self.processes):
            scene.text(f"{key}/head{process}", x + first + wide * (process + 0.5) - 2, top + 11, _name(process), "small", "muted", "middle")
        top += 16
        for turn_number, turn in enumerate(self.turns):
            row = turn_number // self.processes
            if not scene.narrow and turn_number % self.processes == 0:
                scene.text(f"{key}/round{row}", x, top + row * 30 + 17, f"round {row + 1}", "small", "muted")
            role = "error" if turn.flushed else "free"
            tip = f"{_name(turn.process)}, round {row + 1}: slot {turn.asid}, {'flushed' if turn.flushed else 'kept'}, {turn.walks} walks"
            left = x + first + wide * turn.process
            scene.box(f"{key}/{row}:{turn.process}", left, top + row * 30, wide - 4, 25, str(turn.walks), role, tip,
                      cls="focus" if turn_number == len(self.turns) - 1 else "")
        return 16 + 30 * 3


class _Cliff:
    """The share of switches that keep the TLB, by the number of processes."""

    def __init__(self, processes: int, pcid: bool):
        self.processes, self.pcid = processes, pcid

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """A bar for 2 to 8 processes; the chosen number is marked."""
        wide, high = width / 7, 44.0
        for place, number in enumerate(range(2, 9)):
            share, left = kept_share(number, self.pcid), x + place * wide
            mine = number == self.processes
            scene.rect(f"{key}/{number}.bed", left, y, wide - 6, high, "ghost")
            if share:
                scene.rect(f"{key}/{number}", left, y + high * (1 - share), wide - 6, high * share, "level focus" if mine else "level")
            middle, heavy = left + wide / 2 - 3, "strong" if mine else ""
            scene.text(f"{key}/{number}.share", middle, y + high / 2 + 4, f"{share * 100:.0f} %", "small", heavy, "middle",
                       tip=f"{number} processes: {share * 100:.0f} % of the switches keep their entries")
            scene.text(f"{key}/{number}.t", middle, y + high + 15, str(number), "small", heavy or "muted", "middle")
        return high + 20


@figure(
    "Who keeps their TLB",
    alt="Six slots of a CPU with the process that each holds, and for three rounds how many TLB misses every process had in its turn; with "
        "a seventh process every turn begins with a flushed slot.",
    params=[
        Range("processes", 2, 8, default=7),
        Toggle("pcid", True, label="PCID", help="the CPU tags TLB entries with a number for the address space"),
        Range("pages", 8, 256, default=64, step=8, label="pages a process touches"),
    ],
)
def tlb_switch(processes: int, pcid: bool, pages: int, width: float) -> Iterator[Frame]:
    """Runs :meth:`mmsim.paging.tlbflush.TlbFlush.switch_mm` for three rounds of turns."""
    run = Turns(processes, pages, pcid)
    turns: list[Turn] = []
    snapshots: list[tuple[list[int | None], int | None]] = []
    for _ in range(3):
        for process in range(processes):
            before = run.owners()
            turn = run.turn(process)
            previous = before[turn.asid]
            turns.append(turn)
            snapshots.append((run.owners(), previous if previous not in (None, process) else None))

    def shot(say: str, upto: int, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        owners, lost = snapshots[upto - 1]
        scene.add(_Slots(list(owners) if pcid else owners[:1], turns[upto - 1], lost), "slots",
                  "The CPU's slots" if pcid else "Without PCID: one address space", "what its TLB entries are tagged with" if pcid else "")
        scene.add(_Rounds(turns[:upto], processes, pages), "rounds", "TLB misses in each turn", f"of {pages} accesses")
        scene.add(Legend({"free": "entries kept", "error": "slot flushed first", "moving": "runs now"}), "legend", gap=8)
        if upto == len(turns):
            scene.add(_Cliff(processes, pcid), "cliff", "Switches that keep the TLB", "after the first round, by the number of processes")
        flushed = sum(turn.flushed for turn in turns[:upto])
        scene.add(Ledger([Entry("switches", upto), Entry("of them flushed", flushed),
                          Entry("accesses", upto * pages), Entry("walks", sum(turn.walks for turn in turns[:upto]))]), "ledger")
        return Frame(scene, say, ask=ask)

    later = turns[processes:]
    kept = sum(not turn.flushed for turn in later)
    if not pcid:
        why = "Every switch flushes, as nothing says whose an entry is."
    elif not kept:
        why = f"There are {TLB_NR_DYN_ASIDS} slots, and each process that comes takes the slot of the one that is needed next."
    else:
        why = "Who has a slot finds its entries again."
    yield shot(f"{processes} processes, {'with' if pcid else 'without'} PCID: after the first round, {kept} of {len(later)} switches keep "
               f"the TLB. {why}", len(turns))
    for number in range(1, 2 * processes + 1):
        turn = turns[number - 1]
        name, lost = _name(turn.process), snapshots[number - 1][1]
        where = f"slot {turn.asid}" if pcid else "the TLB"
        what = (f"{where} is flushed" + (f" and was {_name(lost)}'s" if lost is not None else "")) if turn.flushed else f"{where} is kept"
        ask = None
        if number == processes and pcid and processes != TLB_NR_DYN_ASIDS:
            after = turns[processes]
            ask = Ask(f"All {processes} have run once. A comes back: will it find its entries?", "no" if after.flushed else "yes",
                      f"Its slot now belongs to {_name(turns[-1].process)}." if after.flushed else f"Slot {after.asid} is still its own.",
                      choices=["yes", "no"])
        yield shot(f"{name} runs: {what}; {grouped(turn.walks)} of {pages} accesses walk.", number, ask)
    yield shot(f"After three rounds: {sum(turn.flushed for turn in turns)} of {len(turns)} switches flushed, "
               f"{grouped(sum(turn.walks for turn in turns))} of {grouped(len(turns) * pages)} accesses walked.", len(turns))
