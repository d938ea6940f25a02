"""Heap bugs: what a wrong program writes where, and what glibc says about it, if anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmsim.draw import Ask, Choice, Frame, Scene, TextPane, Toggle, figure, grouped
from mmsim.figures.ch04.stage import Logged, glibc
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import ProgramSignal, map_anonymous
from mmsim.replay.malloc_bugs import BUGS

__all__ = ["BY_NAME", "Bug", "heap_bug", "run_bug"]

BY_NAME = {bug.__name__: bug for bug in BUGS}
SIGNALS = {6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 7: "SIGBUS"}
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the program, and the words it left in the first chunks."""

    line: str
    words: tuple[tuple[str, int], ...]


@dataclass
class Bug:
    """A recorded program as it runs: stands between it and the library, and writes down each call."""

    libc: Ptmalloc
    program: Logged
    steps: list[Step] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    watched: list[tuple[str, int]] = field(default_factory=list)
    message: str = ""
    number: int = 0

    def _name(self, memory: int) -> str:
        if memory in self.names:
            return self.names[memory]
        near = [(known, name) for known, name in self.names.items() if 0 <= memory - known + 16 < 4096]
        if not near:
            return "NULL" if not memory else "static" if memory > 1 << 46 else f"{memory:#x}"
        known, name = min(near, key=lambda pair: abs(memory - pair[0]))
        distance = memory - known
        return f"{name} {'+' if distance > 0 else '-'} {abs(distance)}"

    def _note(self, line: str) -> None:
        words = []
        for name, memory in self.watched:
            for label, offset in (
                (f"{name}: prev_size", -16), (f"{name}: size", -8), (f"{name}: word 0", 0), (f"{name}: word 1", 8)):
                words.append((label, self.program.read_word(memory + offset)))
        self.steps.append(Step(line, tuple(words)))

    def _given(self, call: str, memory: int) -> int:
        name = ""
        if memory:
            taken = set(self.names.values())
            name = next(letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in taken)
            self.names[memory] = name
            if len(self.watched) < SHOWN and memory not in (known for _, known in self.watched):
                self.watched.append((name, memory))
        self._note(f"{name or 'NULL'} = {call};")
        return memory

    def malloc(self, size: int) -> int:
        self._try(f"malloc({size});")
        return self._given(f"malloc({size})", self.libc.malloc(size))

    def memalign(self, alignment: int, size: int) -> int:
        self._try(f"memalign({alignment}, {size});")
        return self._given(f"memalign({alignment}, {size})", self.libc.memalign(alignment, size))

    def realloc(self, memory: int, size: int) -> int:
        call = f"realloc({self._name(memory)}, {size})"
        self._try(f"{call};")
        return self._given(call, self.libc.realloc(memory, size))

    def free(self, memory: int) -> None:
        line = f"free({self._name(memory)});"
        self._try(line)
        self.libc.free(memory)
        self._note(line)

    def read_word(self, address: int) -> int:
        return self.program.read_word(address)

    def write_word(self, address: int, value: int) -> None:
        line = f"*({self._name(address)}) = {value:#x};"
        self._try(line)
        self.program.write_word(address, value)
        self._note(line)

    def _try(self, line: str) -> None:
        self.last = line


def run_bug(name: str, tcache: bool = True) -> Bug:
    """Run one of the recorded programs up to its end."""
    program = Logged()
    static = map_anonymous(program, 4096)
    libc = glibc(program, tunables={} if tcache else {"tcache_count": 0})
    bug = Bug(libc, program)
    try:
        BY_NAME[name](bug, bug, static)  # type: ignore[arg-type]
    except ProgramSignal as signal:
        bug.number, bug.message = signal.number, signal.message or str(signal)
        words = bug.steps[-1].words if bug.steps else ()
        bug.steps.append(Step(bug.last, words))
    return bug


def _draw(bug: Bug, at: int, width: float, say: str, ask: Ask | None = None, ended: bool = False) -> Frame:
    scene = Scene(width)
    lines = []
    for number, step in enumerate(bug.steps):
        shown = number <= at
        lines.append(f"{'>' if number == at else ' '} {step.line}" if shown else "")
    first = max(0, at - 9)
    lines = lines[first : first + 12]
    marks = {at - first: [(0, 60)]} if at >= 0 else {}
    program = TextPane(lines or [""], marks=marks, rows=min(max(len(bug.steps), 4), 12))
    words = TextPane(_table(bug.steps[at].words), _table(bug.steps[at - 1].words) if at > 0 else None)
    scene.row([("program", program, "The program", 1.0), ("words", words, "Words of the heap", 1.2)])
    scene.note("In a size field: P, the chunk below is in use; M, mapped for itself; A, of another arena.", "bits")
    if ended:
        text = [bug.message, f"killed by {SIGNALS.get(bug.number, bug.number)}"] if bug.number else ["(nothing)", "exit status 0"]
        scene.add(TextPane(text), "end", "What glibc says")
    return Frame(scene, say, ask=ask)


def _table(words: tuple[tuple[str, int], ...]) -> list[str]:
    """A line for each word; what a size field says stands behind it."""
    lines: list[str] = []
    for name, value in words:
        if lines and name.endswith("prev_size"):
            lines.append("")
        flags = "".join(f" + {letter}" for bit, letter in ((1, "P"), (2, "M"), (4, "A")) if value & bit)
        note = f" = {value & ~7}{flags}" if name.endswith(": size") else ""
        lines.append(f"{name.replace(':', ''):<11} {value:#x}{note}")
    return lines or ["no chunk yet"]


def _meaning(name: str, value: int) -> str:
    if name.endswith("prev_size"):
        return "the size of the chunk below, if that is free; else the last word of its owner"
    if not name.endswith("size"):
        return "the first words of a free chunk are links; of one in use, its owner's"
    bits = [word for bit, word in ((1, "previous in use"), (2, "mapped"), (4, "other arena")) if value & bit]
    return f"{grouped(value & ~7)} bytes{'; ' + ', '.join(bits) if bits else ''}"


@figure(
    "Heap bugs",
    alt="A short program with a heap bug, line by line; beside it the size fields and first words of its chunks, with changes marked; "
        "at the end the message with which glibc aborts, or nothing.",
    params=[
        Choice("bug", {name: name.replace("_", " ") for name in BY_NAME}, "forged_previous_chunk"),
        Toggle("tcache", True, help="off: glibc.malloc.tcache_count=0"),
    ],
)
def heap_bug(bug: str, tcache: bool, width: float) -> Iterator[Frame]:
    """The 22 programs of the recording, run on :mod:`mmsim.malloc.glibc`."""
    ran = run_bug(bug, tcache)
    last = len(ran.steps) - 1
    end = (f"glibc aborts: \u201c{ran.message}\u201d." if ran.number == 6 else
           f"No message: {SIGNALS.get(ran.number, '')}, {ran.message}." if ran.number else
           "The program ends as if all were well, though its heap is not.")
    yield _draw(ran, last, width, f"{bug.replace('_', ' ').capitalize()}. {end}", ended=True)
    shown = list(range(len(ran.steps)))
    if len(shown) > 24:
        shown = [*shown[:8], *shown[-16:]]
    for number in shown:
        ask = None
        if number == shown[-2] if len(shown) > 1 else False:
            answer = {0: "nothing", 6: "abort with a message"}.get(ran.number, "SIGSEGV")
            ask = Ask("One line is left. What happens?", answer, end, ["nothing", "abort with a message", "SIGSEGV"])
        if number == last:
            yield _draw(ran, number, width, f"{ran.steps[number].line} {end}", ended=True)
        else:
            yield _draw(ran, number, width, _say(ran, number), ask)


def _say(ran: Bug, number: int) -> str:
    step = ran.steps[number]
    before = dict(ran.steps[number - 1].words) if number else {}
    changed = [(name, value) for name, value in step.words if before.get(name) != value]
    if step.line.startswith("*"):
        if not changed:
            return f"{step.line} The program writes where it must not, outside of the words shown."
        name, value = changed[0]
        what = f"{grouped(value)} bytes" if name.endswith("prev_size") else _meaning(name, value)
        return f"{step.line} The program overwrites {name.replace(': ', chr(39) + 's ')}: {what}."
    if " = " in step.line:
        name = step.line[0]
        size = dict(step.words).get(f"{name}: size")
        return f"{step.line} " + ("Not among the chunks shown." if size is None else f"Its size field says {_meaning(': size', size)}.")
    if not changed:
        return f"{step.line} None of the words shown changes."
    return f"{step.line} The library writes {', '.join(name for name, _ in changed[:4])}: links of the list it is in now, or sizes."
