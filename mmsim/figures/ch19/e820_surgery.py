"""e820 surgery: overlapping entries of a firmware map, a sweep line that resolves them, and the kernel's own cuts."""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.boot.e820 import E820Entry, E820Table, SweepStep, sweep, type_text
from mmsim.clock import Clock
from mmsim.constants import (
    BIOS_BEGIN,
    BIOS_END,
    E820_TYPE_ACPI,
    E820_TYPE_NVS,
    E820_TYPE_PMEM,
    E820_TYPE_RAM,
    E820_TYPE_RESERVED,
    E820_TYPE_SOFT_RESERVED,
    E820_TYPE_UNUSABLE,
)
from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Frame,
    Legend,
    Operation,
    Operations,
    Scene,
    Span,
    TextPane,
    Toggle,
    figure,
    short_size,
    text_width,
)
from mmsim.klog import KernelLog
from mmsim.units import PAGE_SIZE, U64_MAX

__all__ = ["e820_surgery"]

TYPES = {
    "usable": E820_TYPE_RAM, "reserved": E820_TYPE_RESERVED, "acpi": E820_TYPE_ACPI, "nvs": E820_TYPE_NVS,
    "unusable": E820_TYPE_UNUSABLE, "pmem": E820_TYPE_PMEM, "soft": E820_TYPE_SOFT_RESERVED,
}  # fmt: skip

DEFAULT = """\
usable 0 5M          # forgets the hole below 1 MiB
reserved 3M 4M
acpi 3584K 4608K
usable 4M 7M
unusable 6M 6400K
reserved 7M 8M
"""

VERBS = {
    "usable": "start:addr end:addr -- type 1: RAM",
    "reserved": "start:addr end:addr -- type 2: the firmware keeps it",
    "acpi": "start:addr end:addr -- type 3: ACPI tables",
    "nvs": "start:addr end:addr -- type 4: kept by ACPI over a sleep",
    "unusable": "start:addr end:addr -- type 5: broken RAM",
    "pmem": "start:addr end:addr -- type 7: persistent memory",
    "soft": "start:addr end:addr -- soft reserved: a driver's; never merged",
}


def _role(kind: int) -> str:
    return "free" if kind == E820_TYPE_RAM else "error" if kind == E820_TYPE_UNUSABLE else "reserved"


def _name(kind: int) -> str:
    return f"{type_text(kind)} ({kind})" if kind < 16 else type_text(kind)


def _span(entry: E820Entry, label: str = "", key: str = "", mark: str = "") -> Span:
    tip = f"{type_text(entry.type)}, type {entry.type:#x}: {entry.addr:#x}-{entry.end - 1:#x}"
    return Span(entry.addr, entry.end, _role(entry.type), label, tip, mark, key)


def _entries(ops: list[Operation]) -> list[E820Entry]:
    """The entries of the list; one that ends before it starts is refused at its line."""
    entries = []
    for op in ops:
        if op["end"] <= op["start"]:
            op.fail(f"it ends at {op['end']:#x}, not above its start {op['start']:#x}")
        else:
            entries.append(E820Entry(op["start"], op["end"] - op["start"], TYPES[op.verb]))
    return entries


class _Board:
    """Draws the given map, the map made so far, and the log, for any moment of the sweep."""

    def __init__(self, given: list[E820Entry], rows: int, width: float):
        self.given, self.rows, self.width = given, rows, width
        spans = [_span(entry) for entry in given]
        low, high = min(entry.addr for entry in given), max(entry.end for entry in given)
        smallest = min(entry.size for entry in given)
        linear = smallest * 60 >= high - low
        self.axis = Axis(low, high) if linear else Axis(low, high, spans, scale="broken")

    def _span(self, entry: E820Entry, key: str = "", mark: str = "") -> Span:
        """The span with the longest label that fits: words and number, the number, or nothing."""
        room = self.width if self.width < 480 else self.width - 72
        wide = (self.axis.place(entry.end) - self.axis.place(entry.addr)) * room
        labels = [_name(entry.type), f"{entry.type}" if entry.type < 16 else "", ""]
        label = next(label for label in labels if text_width(label, "small") < wide - 7 or not label)
        return _span(entry, label, key, mark)

    def _lines(self, entries: list[E820Entry], who: str) -> list[str]:
        """The entries as the kernel logs them, or shorter where there is no room."""
        if self.width >= 480:
            return [f"{who}: {entry}" for entry in entries]
        return [f"{entry.addr:08x}-{entry.end - 1:08x} {type_text(entry.type)}" for entry in entries]

    def frame(
        self,
        say: str,
        made: list[E820Entry],
        cursor: int | None = None,
        active: tuple[int, ...] | None = None,
        state: str = "",
        log: list[str] | None = None,
        entries: list[E820Entry] | None = None,
        who: str = "BIOS-e820",
        title: str = "the new map",
        ask: Ask | None = None,
    ) -> Frame:
        """One frame: entries the line is inside of are outlined, all others faded while the line moves."""
        scene = Scene(self.width)
        marks = ["" if active is None else "focus" if i in active else "dim" for i in range(len(self.given))]
        bars = [
            Bar(f"entry {i}", [self._span(entry, f"given{i}", marks[i])], key=f"given{i}")
            for i, entry in enumerate(self.given)
        ]
        bars.append(
            Bar("new map", [self._span(entry) for entry in made], "what e820__update_table() makes of them", "made")
        )
        scene.add(AddressBar(bars, self.axis, thick=20, gap=7, cursor=cursor), "map")
        if state:
            scene.note(state, "state", gap=4)
        else:
            scene.note("\u00a0", "state", gap=4)
        lines = self._lines(made if entries is None else entries, who)
        if log and not scene.narrow:
            lines = log + lines
        scene.add(TextPane(lines, rows=self.rows, title=title), "log", gap=6)
        scene.add(Legend({"free": "usable", "reserved": "not for the kernel", "error": "unusable"}), "legend", gap=8)
        return Frame(scene, say, ask=ask)


def _inside(step: SweepStep, given: list[E820Entry]) -> str:
    if not step.active:
        return "The line is inside of no entry."
    kinds = sorted({given[i].type for i in step.active})
    words = ", ".join(f"{type_text(kind)} ({kind})" for kind in kinds)
    return f"The line is inside of: {words}. The largest number holds: {type_text(step.type)}."


def _say(step: SweepStep, given: list[E820Entry], before: int) -> str:
    entry = given[step.entry]
    at = short_size(step.addr)
    what = f"At {at}, entry {step.entry} ({type_text(entry.type)}) {'begins' if step.begins else 'ends'}"
    if step.type == before:
        holds = f"{type_text(before)} goes on" if before else "nothing holds"
        return f"{what}; {holds}."
    if not step.type:
        return f"{what}; from here on nothing is known, and the range of {type_text(before)} is complete."
    if not before:
        return f"{what}; from here on the map says {type_text(step.type)}."
    return f"{what}; from here on the map says {type_text(step.type)} (type {step.type}) instead of {type_text(before)} (type {before})."


@figure(
    "e820 surgery",
    alt="Overlapping entries of a firmware memory map, one line each. A sweep line moves up the addresses; below it grows the new map, "
    "in which the largest type number wins.",
    params=[
        Operations(
            "entries",
            DEFAULT,
            VERBS,
            label="firmware map",
            help="one entry a line: type, start, end (the first address behind it)",
        ),
        Toggle("trim", True, label="the kernel's own cuts", help="trim_bios_range(): page 0 and 640 KiB to 1 MiB"),
    ],
)
def e820_surgery(entries: list[Operation], trim: bool, width: float) -> Iterator[Frame]:
    """Steps :func:`mmsim.boot.e820.sweep` over the reader's map, then shows what trim_bios_range() cuts off."""
    given = _entries(entries)
    if not given:
        scene = Scene(width)
        scene.note("The map has no entry.")
        yield Frame(scene, "The map has no entry: the kernel would make one up from older BIOS calls.")
        return
    log = KernelLog(Clock())
    table = E820Table(given, log)
    table.update_table()
    swept = [E820Entry(entry.addr, entry.size, entry.type) for entry in table]
    if trim:
        table.trim_bios_range()
    board = _Board(given, max(len(swept), len(given), len(table) + 2 if trim else 0), width)
    overlaps = sum(1 for i, a in enumerate(given) for b in given[:i] if a.addr < b.end and b.addr < a.end)
    lists = f"The firmware lists {len(given)} entries; {overlaps} pair{'' if overlaps == 1 else 's'} of them overlap."
    yield board.frame(
        f"{lists} The lowest line is what the kernel makes of them: {len(swept)} that do not. Step on to see how.",
        swept,
        entries=given,
        who="firmware",
        title="the firmware's map",
    )
    if len(given) < 2 or any(entry.end > U64_MAX for entry in given):
        yield board.frame(
            "A map of one entry, or one that runs over the end of the address space, is left as it is.", given
        )
        return
    made: list[E820Entry] = []
    open_from, before, asked = 0, 0, False
    for step in sweep(given):
        if step.finished:
            made.append(step.finished)
        ask = None
        if not asked and len(step.active) > 1 and len({given[i].type for i in step.active}) > 1:
            asked = True
            kinds = sorted({given[i].type for i in step.active})
            ask = Ask(
                "Two entries cover the addresses from here on. Which type will the new map show?",
                type_text(step.type),
                "The larger type number wins, whatever the order of the entries: if anybody says that a range is not plain RAM, "
                "it is not used as RAM.",
                choices=[type_text(kind) for kind in kinds],
            )
        if ask:
            entry = given[step.entry]
            yield board.frame(
                f"At {short_size(step.addr)}, entry {step.entry} ({type_text(entry.type)}) begins while another entry is still open.",
                _shown(made[: len(made) - bool(step.finished)], open_from, step.addr, before),
                step.addr,
                step.active,
                " ",
                ask=ask,
            )
        say = _say(step, given, before)
        if step.type and (step.type != before or step.finished):
            open_from = step.addr
        before = step.type
        yield board.frame(say, list(made), step.addr, step.active, _inside(step, given))
    yield board.frame(
        f"The new map has {len(swept)} entries, sorted and without overlaps. This is what dmesg shows.", swept
    )
    if trim:
        yield board.frame(
            f"trim_bios_range(): page 0 ({PAGE_SIZE // 1024} KiB) becomes reserved, "
            f"and RAM from {BIOS_BEGIN >> 10} KiB to {BIOS_END >> 10} KiB goes, whatever the firmware said.",
            list(table),
            log=log.lines()[-2:],
            who="working map",
            title="kernel log, and the map that the kernel works with",
        )


def _shown(made: list[E820Entry], start: int, addr: int, kind: int) -> list[E820Entry]:
    """The new map up to the line: what is finished, and the range still open."""
    return [*made, E820Entry(start, addr - start, kind)] if kind and addr > start else list(made)
