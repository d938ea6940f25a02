"""The pin: all objects but one are freed, and where that one lies decides what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from mmsim.draw import AddressBar, Ask, Axis, Bar, Choice, Entry, Frame, Ledger, Legend, Range, Scene, Span, figure
from mmsim.figures.ch04.stage import Logged, count, glibc, heap_spans, kib
from mmsim.units import PAGE_SIZE

__all__ = ["Pinned", "pinned", "the_pin"]

HEAP_BYTES = 2_000_000
ORDERS = {"up": "first to last", "down": "last to first", "any": "in any order"}
#: Where the pin stands in the curve, in percent.
PLACES = tuple(range(0, 101, 5))


@dataclass(frozen=True, slots=True)
class Pinned:
    """A heap at one moment: its blocks as spans, resident pages as runs, and sums in bytes."""

    what: str
    spans: tuple[Span, ...]
    pages: tuple[tuple[int, int], ...]
    heap: int
    rss: int
    calls: tuple[tuple[str, int], ...]


@lru_cache(maxsize=64)
def pinned(size: int, place: int, order: str, spare: bool = True) -> tuple[Pinned, ...]:
    """Allocate 2 MB of objects, write to them, free all but the one at ``place`` percent (all, if not ``spare``), trim, free it.

    The states: allocated, freed, trimmed, all freed.
    """
    program = Logged()
    libc = glibc(program)
    number = HEAP_BYTES // size
    held = [libc.malloc(size) for _ in range(number)]
    for memory in held:
        program.fill(memory, size, 1)
    start = program.mm.start_brk
    pin = held[min(place * number // 100, number - 1)] if spare else 0
    states: list[Pinned] = []

    def note(what: str) -> None:
        end = program.mm.brk
        pages = sorted(page for page in (*program._pages, *program._guarded) if start <= page << 12 < end)
        runs: list[tuple[int, int]] = []
        for page in pages:
            if runs and runs[-1][1] == page << 12:
                runs[-1] = (runs[-1][0], page + 1 << 12)
            else:
                runs.append((page << 12, page + 1 << 12))
        spans = heap_spans(libc.walk(), {pin: "pin"} if pin else None, pin)
        states.append(Pinned(what, tuple(spans), tuple(runs), end - start, len(pages) * PAGE_SIZE, tuple(program.log)))
        program.log.clear()

    note("allocated")
    queue = list(held) if order == "up" else held[::-1]
    if order == "any":
        Random(1).shuffle(queue)
    for memory in queue:
        if memory != pin:
            libc.free(memory)
    note("freed")
    libc.malloc_trim(0)
    note("trimmed")
    if pin:
        libc.free(pin)
        note("all freed")
    libc.check()
    return tuple(states)


def curve(size: int, order: str) -> list[int]:
    """RSS in bytes after the frees, by place of the pin."""
    return [pinned(size, place, order)[1].rss for place in PLACES]


class _Curve:
    """Bars: the resident memory that is left, for each place of the pin."""

    def __init__(self, values: list[int], place: int):
        self.values, self.place = values, place

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        high, top, left = 74.0, max(max(self.values), 1), x + 52
        room = width - 52
        step = room / len(self.values)
        nearest = min(range(len(PLACES)), key=lambda i: abs(PLACES[i] - self.place))
        for number, value in enumerate(self.values):
            tall = max(value / top * high, 1)
            role = "anon" if number == nearest else "level"
            scene.rect(f"{key}/{PLACES[number]}", left + number * step + 1, y + high - tall, step - 2, tall,
                       f"{role}{' focus' if number == nearest else ''}", f"pin at {PLACES[number]} %: {kib(value)} stay resident")
        scene.line(f"{key}/axis", left, y + high, left + room, y + high, "axis")
        scene.text(f"{key}/high", left - 6, y + 10, f"{top / 1e6:.1f} MB", "small", "muted", "end")
        scene.text(f"{key}/low", left - 6, y + high, "0", "small", "muted", "end")
        scene.text(f"{key}/first", left, y + high + 14, "first", "small", "muted")
        scene.text(f"{key}/last", left + room, y + high + 14, "last", "small", "muted", "end")
        scene.text(f"{key}/words", left + room / 2, y + high + 14, "place of the object that is kept", "small", "muted", "middle")
        scene.height = max(scene.height, round(y + high + 18, 1))
        return high + 18


def _draw(state: Pinned, values: list[int], place: int, axis: Axis, width: float, say: str, before: Pinned | None,
          ask: Ask | None = None) -> Frame:
    scene = Scene(width)
    pin = next((span.start for span in state.spans if span.label == "pin"), None)
    spans = [Span(a, b, "anon", "", f"{kib(b - a)} resident", key=f"{a:x}") for a, b in state.pages]
    scene.add(AddressBar([Bar("chunks", list(state.spans)), Bar("in RAM", spans)], axis, thick=30, cursor=pin), "bars",
              "The heap", "the line through both marks the pin" if pin is not None else "")
    scene.add(Legend({"anon": "in use; pages in RAM", "free": "free", "hot": "free, in the thread's cache", "kernel": "the cache itself"}),
              "legend", gap=6)
    calls = [f"{name}({'' if name != 'brk' else '−' if size < 0 else '+'}{kib(abs(size))})" for name, size in state.calls]
    told = "many calls" if len(calls) > 6 else ", ".join(calls) or "none"
    used = sum(span.end - span.start for span in state.spans if span.role == "anon")
    old = before or state
    entries = [Entry("in use (KiB)", used >> 10), Entry("heap (KiB)", state.heap >> 10, (state.heap - old.heap) >> 10),
               Entry("in RAM (KiB)", state.rss >> 10, (state.rss - old.rss) >> 10)]
    scene.add(Ledger(entries, columns=1 if scene.narrow else 3), "ledger")
    scene.note(f"system calls in this step: {told if state.what != 'allocated' else count(len(calls), 'call')}", "calls")
    scene.add(_Curve(values, place), "curve", "What stays in RAM, by the pin's place", "after the frees, before any trimming")
    return Frame(scene, say, ask=ask)


@figure(
    "The pin",
    alt="A heap of 2 MB from which all objects but one are freed: chunks above, pages in RAM below, and a bar chart of what stays "
        "in RAM for every place of the object that is kept.",
    params=[
        Range("place", 0, 100, 60, unit="%", help="which object is kept: 0 the first, 100 the last"),
        Choice("size", [100, 1000, 5000, 60000], 5000, label="object size"),
        Choice("order", ORDERS, "up", label="freed"),
    ],
)
def the_pin(place: int, size: int, order: str, width: float) -> Iterator[Frame]:
    """glibc's malloc as :mod:`mmsim.malloc.glibc` has it, in a program without frames."""
    states = pinned(size, place, order)
    allocated, freed, trimmed, gone = states
    values = curve(size, order)
    start = min(span.start for span in allocated.spans)
    axis = Axis(start, start + allocated.heap, show=lambda address: f"{(address - start) / 1e6:.1f} MB" if address > start else "0")
    number = HEAP_BYTES // size
    share = freed.rss / allocated.rss
    yield _draw(freed, values, place, axis, width, f"{count(number, 'object')} of {size} bytes, all freed but one, the pin. "
                f"{share:.0%} of the memory stays in RAM, {kib(freed.rss)} for an object of {size} bytes.", allocated)
    yield _draw(allocated, values, place, axis, width, f"From the start: {count(number, 'object')} of {size} bytes, all written to. "
                f"The heap has {kib(allocated.heap)}, and nearly all of it is in RAM.", None,
                Ask(f"All are freed {ORDERS[order]}, except the one at {place} %. How much of the {kib(allocated.heap)} stays in RAM?",
                    _answer(share), f"Only what lies above the pin can be cut off the heap's end: {share:.0%} stays.",
                    ["next to nothing", "about a quarter", "about half", "most of it"]))
    cached = sum(span.role == "hot" for span in freed.spans)
    above = any(span.role == "hot" and span.label != "pin" for span in freed.spans[-8:])
    why = ("But freed objects in the thread's cache count as used and pin the heap, too" if cached and above and share > 0.9 else
           "What lies above it was joined with top and given back")
    yield _draw(freed, values, place, axis, width, f"All but the pin are freed, {ORDERS[order]}. {why}; {kib(freed.rss)} stay in RAM, and "
                "nobody uses them.", allocated)
    note = "pages inside of free chunks go by madvise, the end by brk" if trimmed.rss < freed.rss else "there was nothing to find"
    yield _draw(trimmed, values, place, axis, width, f"malloc_trim(0): {note}. The heap still spans {kib(trimmed.heap)} of "
                f"addresses, but only {kib(trimmed.rss)} are in RAM.", freed)
    yield _draw(gone, values, place, axis, width, f"The pin is freed at last: the heap has {kib(gone.heap)}, in RAM are {kib(gone.rss)}.",
                trimmed)


def _answer(share: float) -> str:
    if share < 0.15:
        return "next to nothing"
    return "about a quarter" if share < 0.38 else "about half" if share < 0.65 else "most of it"
