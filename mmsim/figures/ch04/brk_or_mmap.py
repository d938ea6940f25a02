"""brk or mmap: what a request of some size makes the library ask of the kernel, in five states of the heap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import log2

from mmsim.draw import Ask, Frame, Legend, Range, Scene, figure, grouped
from mmsim.draw.measure import text_width
from mmsim.figures.ch04.stage import Logged, glibc
from mmsim.malloc.glibc.params import M_MMAP_THRESHOLD
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.units import KIB, MIB

__all__ = ["STATES", "Outcome", "brk_or_mmap", "limits", "outcome"]

#: The states: name → what happened before, as the program has it.
STATES = {
    "new program": "",
    "top used up": "malloc(130000);",
    "mapping freed": "malloc(130000); free(malloc(131049));",
    "32 MiB freed": "malloc(130000); free(malloc(33550000));",
    "mallopt": "mallopt(M_MMAP_THRESHOLD, 65536); malloc(130000);",
}
LARGEST = 64 * MIB


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request did: ``kind`` is none, brk or mmap; ``calls`` with their bytes; threshold and top before it, chunk after."""

    kind: str
    calls: tuple[tuple[str, int], ...]
    threshold: int
    top: int
    chunk: int


def _prepare(state: str) -> tuple[Logged, Ptmalloc]:
    program = Logged()
    libc = glibc(program)
    if state == "mallopt":
        libc.mallopt(M_MMAP_THRESHOLD, 64 * KIB)
        libc.mp.set("mmap_max", 0)                  # so that this one comes from the heap in every state
        libc.malloc(130000)
        libc.mp.set("mmap_max", 65536)
    elif state != "new program":
        libc.malloc(130000)
    if state == "mapping freed":
        libc.free(libc.malloc(131049))
    elif state == "32 MiB freed":
        libc.free(libc.malloc(33550000))
    program.log.clear()
    return program, libc


@lru_cache(maxsize=4096)
def outcome(state: str, size: int) -> Outcome:
    """Request ``size`` bytes in a state."""
    program, libc = _prepare(state)
    top = libc.chunksize(libc.main_arena.top) if libc.initialised else 0
    threshold = libc.mp.mmap_threshold
    memory = libc.malloc(size)
    calls = tuple(program.log)
    names = {name for name, _ in calls}
    kind = "mmap" if "mmap" in names else "brk" if "brk" in names else "none"
    return Outcome(kind, calls, threshold, top, libc.chunksize(memory - 16) if memory else 0)


@lru_cache(maxsize=64)
def limits(state: str) -> tuple[int, int]:
    """The smallest request that needs brk (or mmap), and the smallest that needs mmap."""
    found = []
    for kinds in (("brk", "mmap"), ("mmap",)):
        low, high = 1, LARGEST
        while low < high:
            middle = (low + high) // 2
            if outcome(state, middle).kind in kinds:
                high = middle
            else:
                low = middle + 1
        found.append(low)
    return found[0], found[1]


def told(result: Outcome) -> str:
    """The calls, in words."""
    if not result.calls:
        return "no system call"
    return ", ".join(f"brk({'+' if size > 0 else '−'}{grouped(abs(size))})" if name == "brk" else f"{name}({grouped(size)})"
                     for name, size in result.calls)


class _Strips:
    """A strip for each state: sizes on a logarithmic axis, and what they lead to."""

    def __init__(self, size: int, chosen: str):
        self.size, self.chosen = size, chosen

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        above = width < 480
        left = x + (0 if above else 104)
        room = x + width - left

        def at(size: int) -> float:
            return left + room * log2(max(size, 1)) / log2(LARGEST)

        top = y
        roles = {"none": "free", "brk": "anon", "mmap": "file"}
        for state in STATES:
            dim = " dim" if self.chosen and state != self.chosen else ""
            result = outcome(state, self.size)
            if above:
                scene.text(f"{key}/{state}.name", x, top + 12, state, "small", "strong")
                top += 17
            else:
                scene.text(f"{key}/{state}.name", left - 12, top + 15, state, "small", "strong", "end")
            first, second = limits(state)
            for kind, low, high in (("none", 1, first), ("brk", first, second), ("mmap", second, LARGEST)):
                if high > low:
                    scene.rect(f"{key}/{state}/{kind}", at(low), top, at(high) - at(low), 22, roles[kind] + dim,
                               f"{state}: {grouped(low)} to {grouped(high - 1)} bytes: {kind if kind != 'none' else 'no call'}")
            scene.line(f"{key}/{state}.cursor", at(self.size), top - 3, at(self.size), top + 25, "wire lit",
                       f"malloc({grouped(self.size)})")
            words = told(result)
            before = STATES[state].rstrip(";") or "nothing before"
            fits = text_width(words, "small") + text_width(before, "small") + 30 < room
            scene.text(f"{key}/{state}.told", left, top + 35, words, "small", "strong", width=room)
            scene.text(f"{key}/{state}.before", left + room if fits else left, top + (35 if fits else 50), before, "small", "muted",
                       "end" if fits else "start", room)
            top += 46 if fits else 61
        scene.line(f"{key}/axis", left, top - 4, left + room, top - 4, "axis")
        for power, name in ((0, "1 B"), (10, "1 KiB"), (17, "128 KiB"), (20, "1 MiB"), (26, "64 MiB")):
            place = left + room * power / log2(LARGEST)
            half = text_width(name, "small") / 2
            if above and power == 20:
                continue
            scene.text(f"{key}/tick{power}", min(max(place, left + half), left + room - half), top + 10, name, "small", "muted", "middle")
        scene.height = max(scene.height, round(top + 16, 1))
        return top + 16 - y


def _draw(size: int, chosen: str, width: float, say: str, ask: Ask | None = None) -> Frame:
    scene = Scene(width)
    scene.add(_Strips(size, chosen), "strips", f"malloc({grouped(size)})",
              "sizes on a logarithmic axis; the line is the request; right: what happened before")
    scene.add(Legend({"free": "no system call", "anon": "brk", "file": "mmap"}), "legend", gap=4)
    return Frame(scene, say, ask=ask)


def _why(state: str, size: int) -> str:
    result = outcome(state, size)
    before = STATES[state]
    start = f"After {before[:-1]}" if before else "In a new program"
    if result.kind == "none":
        return f"{start}: top has {grouped(result.top)} bytes, enough for a chunk of {grouped(result.chunk)}. The kernel is not asked."
    if result.kind == "brk":
        if not before:
            return (f"{start}: {told(result)}, first of all for the thread's cache of 656 bytes. What is left of these 132 KiB has room "
                    f"for the chunk of {grouped(result.chunk)} bytes, so the threshold is not even looked at.")
        return (f"{start}: top is too small, and the chunk of {grouped(result.chunk)} bytes is below the threshold of "
                f"{grouped(result.threshold)}: {told(result)}, 128 KiB more than needed.")
    return (f"{start}: top is too small, and the chunk reaches the threshold of {grouped(result.threshold)} bytes: {told(result)}."
            f"{' The brk is for the cache of the thread.' if not before else ''}")


@figure(
    "brk or mmap?",
    alt="Five states of a heap as strips over the size of a request: sizes served without a system call, by brk, or by mmap; a line marks "
        "the request, and below each strip stand the calls it leads to.",
    params=[Range("size", 1, 40 * MIB, 131049, unit="bytes", log=True, label="request")],
)
def brk_or_mmap(size: int, width: float) -> Iterator[Frame]:
    """Asks :mod:`mmsim.malloc.glibc` itself; the borders of the strips are found by bisection."""
    results = {state: outcome(state, size) for state in STATES}
    kinds = [result.kind for result in results.values()]
    words = {"none": "without a system call", "brk": "by brk", "mmap": "by mmap"}
    parts = [f"{kinds.count(kind)} of 5 states {words[kind]}" for kind in ("none", "brk", "mmap") if kind in kinds]
    yield _draw(size, "", width, f"malloc({grouped(size)}) is served in {', in '.join(parts)}. What was allocated and freed before "
                "decides.")
    states = list(STATES)
    for number, state in enumerate(states):
        ask = None
        if number == 1:
            answer = words[results[states[2]].kind]
            ask = Ask(f"Now a mapping of 131 049 bytes is made and freed first. How is malloc({grouped(size)}) served then?", answer,
                      f"The threshold is the freed chunk's size now, {grouped(results[states[2]].threshold)} bytes, and top has "
                      f"{grouped(results[states[2]].top)}.", list(words.values()))
        yield _draw(size, state, width, _why(state, size), ask)
