"""One fault, two recordings: what the model runs through, beside what the function tracer of a real 5.17 wrote down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mmsim.draw import Ask, Choice, Frame, Legend, Range, Scene, Toggle, figure
from mmsim.figures.ch02.recorded import Line, beside, model_lines, read_graph, recorded_text

__all__ = ["SHOWN", "one_fault"]

#: The events that the figure offers, and what each of them does.
SHOWN = {
    "anon_write": "first write to anonymous memory", "anon_write_sameptable": "the same beside a used page",
    "anon_read": "first read", "zero_then_write": "write to the zero page", "cow_copy": "write after fork: copy",
    "cow_reuse": "write after fork, child gone", "file_minor": "read a cached file", "filew_minor_cow": "write to a private file map",
    "shmem_write": "write to shared memory", "stack_grow": "write below the stack", "segv_unmapped": "SIGSEGV: no area",
    "segv_ro": "SIGSEGV: read-only area", "mmap_anon": "mmap()", "munmap_split": "munmap() in the middle",
    "mprotect_split": "mprotect() in the middle", "mremap_move": "mremap() to elsewhere", "brk_grow": "brk() grows",
}
_STEP = 17.0


def _cut(lines: list[Line], keep: list[bool]) -> list[Line]:
    """Only the lines to keep: depths, ends and twins (of this list) follow."""
    place: dict[int, int] = {}
    left: list[Line] = []
    for number, line in enumerate(lines):
        if keep[number]:
            place[number] = len(left)
            left.append(replace(line))
    for number, line in enumerate(lines):
        if keep[number]:
            left[place[number]].end = place[number] + 1 + sum(keep[number + 1:line.end])
    return left


class _Side:
    """A graph as a window of ``rows`` lines. ``at`` is the line looked at, ``span`` the lines lit behind it."""

    def __init__(self, lines: list[Line], rows: int, at: int | None, span: tuple[int, int] | None, real: bool, notes: dict[int, str]):
        self.lines, self.rows, self.at, self.span, self.real, self.notes = lines, rows, at, span, real, notes

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the window; a line's key is ``key/<number>``."""
        look = self.at if self.at is not None else self.span[0] if self.span else 0
        first = max(min(look - self.rows // 3, len(self.lines) - self.rows), 0)
        shown = range(first, min(first + self.rows, len(self.lines)))
        indent = 9.0 if width > 320 else 6.0
        for number in shown:
            line, top = self.lines[number], y + (number - first) * _STEP
            left = x + 4 + line.depth * indent
            if number == self.at:
                scene.rect(f"{key}/at", x, top, width, _STEP - 1, "moving", rx=2)
            elif self.span and self.span[0] <= number < self.span[1]:
                scene.rect(f"{key}/{number}.mark", x, top, width, _STEP, "mark flat")
            elif line.inlined:
                scene.rect(f"{key}/{number}.ghost", left - 3, top + 1, x + width - left, _STEP - 3, "ghost", rx=2)
            same = line.twin is not None
            ink = "on-moving" if number == self.at else "strong" if same else "muted"
            text = f"{line.name}" if line.event else f"{line.name}()"
            if line.event:
                text = _short(line.name)
            if line.times > 1:
                text += f" ×{line.times}"
            if number in self.notes:
                text += f" {self.notes[number]}"
            scene.text(f"{key}/{number}", left, top + 12.5, text, "code", ink, width=x + width - left - 4, tip=line.file or line.name)
        high = self.rows * _STEP
        if first:
            scene.text(f"{key}/above", x + width - 4, y - 4, f"↑ {first} more", "small", "muted", "end")
        if shown.stop < len(self.lines):
            scene.text(f"{key}/below", x + width - 4, y + high + 11, f"↓ {len(self.lines) - shown.stop} more", "small", "muted", "end")
        scene.height = max(scene.height, round(y + high + 16, 1))
        return high + 16


def _short(event: str) -> str:
    """The fields that are worth their room."""
    name, _, fields = event.partition(": ")
    kept = [word for word in fields.split() if word.split("=")[0] in ("address", "error_code", "order", "migratetype")]
    return f"* {name} " + " ".join(kept).replace("migratetype", "type")


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _visible_span(model: list[Line], recorded: list[Line], number: int) -> tuple[int, int] | None:
    """Where in the recording a line of the model stands, or what it runs through."""
    found = [model[inner].twin for inner in range(number, model[number].end)]
    twins = [twin for twin in found if twin is not None]
    return (twins[0], max(recorded[twin].end for twin in twins)) if twins else None


def _tell(model: list[Line], recorded: list[Line], number: int) -> str:
    """One or two sentences about a line of the model."""
    line = model[number]
    if line.event:
        return f"Tracepoint {line.name.partition(':')[0]}, in both: {_short(line.name)[2:].partition(' ')[2]}."
    where = f"{line.name}(), {line.file}:" if line.file else f"{line.name}():"
    if line.twin is not None:
        inside = recorded[line.twin].end - line.twin - 1
        more = f"{_plural(inside, 'line')} inside" if inside else "nothing inside that could be traced"
        return f"{where} recorded too, with {more}."
    if line.name == "exc_page_fault":
        return f"{where} not recorded. This is entry code, where nothing may be traced; the recording begins with what it calls."
    if not line.inlined:
        return f"{where} the recording does not have it here."
    if line.depth == 0:
        return f"{where} not under this name. The entry of a system call is __x64_sys_{line.name}(), made by a macro."
    inner = _visible_span(model, recorded, number)
    more = "nothing of it is left to see"
    if inner:
        outer = next((one for one in reversed(recorded[:inner[0]]) if one.depth < recorded[inner[0]].depth), None)
        more = f"what it calls seems to be called by {outer.name}()" if outer else "what it calls has no caller in the recording"
    return f"{where} not recorded. The compiler made it part of its caller; {more}."


@figure(
    "One fault, two recordings",
    alt="Two call graphs side by side: the functions that the simulated machine runs through for one page fault, and those that ftrace "
        "recorded on Linux 5.17. Functions the compiler inlined are dashed.",
    params=[
        Choice("event", SHOWN, "anon_write"), Range("depth", 1, 14, 14, label="depth", help="max_graph_depth, for both sides"),
        Toggle("inlined", True, label="inlined functions", help="show what the compiler made part of its caller"),
        Toggle("open", False, label="everything recorded", help="unfold the recorded calls that the model does not have"),
    ],
)
def one_fault(event: str, depth: int, inlined: bool, open: bool, width: float) -> Iterator[Frame]:
    """Runs the event on a simulated machine under :class:`~mmsim.ftrace.graph.FunctionGraph` and steps through its calls."""
    recorded, model = read_graph(recorded_text(event)), model_lines(event)
    allocations = sum(line.event and line.name.startswith("mm_page_alloc") for line in model)
    if not any(line.event for line in recorded):
        # This repetition was recorded without tracepoints.
        model = _cut(model, [not line.event for line in model])
    beside(model, recorded)
    calls = sum(not line.event for line in recorded)
    hidden = sum(line.inlined for line in model)
    both = sum(line.twin is not None and not line.event for line in model)

    # What is folded away of the recording: all that lies inside of a call that has no counterpart in it.
    keep = [line.depth < depth for line in recorded]
    notes = {}
    if not open:
        for number, line in enumerate(recorded):
            if keep[number] and all(one.twin is None for one in recorded[number:line.end]) and line.end > number + 1:
                notes[number] = f"+{line.end - number - 1}"
                keep[number + 1:line.end] = [False] * (line.end - number - 1)
    real = _cut(recorded, keep)
    place = {number: sum(keep[:number]) for number in range(len(recorded) + 1)}
    levels: list[int] = []
    for number, line in enumerate(model):
        # Depth as the reader sees it: without the inlined ones where these are hidden.
        levels.append(line.depth if inlined else sum(
            not one.inlined for one in model[:number] if one.depth < line.depth and one.end > number))
    shown = [levels[number] < depth and (inlined or not line.inlined) for number, line in enumerate(model)]
    left = _cut(model, shown)
    for one, level in zip(left, (level for number, level in enumerate(levels) if shown[number]), strict=True):
        one.depth = level

    def shot(say: str, number: int | None, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        span = _visible_span(model, recorded, number) if number is not None else None
        twin = model[number].twin if number is not None else None
        at = place[twin] if twin is not None and keep[twin] else None
        lit = (place[span[0]], max(place[span[1]], place[span[0]] + 1)) if span else None
        row = sum(shown[:number]) if number is not None else None
        quiet = ask is not None
        a = _hush(left) if quiet else left
        b = _hush(real) if quiet else real
        rows = [len(left) + 1, len(real) + 1]
        high = [min(count, 14) for count in rows] if scene.narrow else [min(max(rows), 27)] * 2
        renamed = {place[number]: note for number, note in notes.items()}
        if quiet:
            renamed = {sum(not line.event for line in real[:number]): note for number, note in renamed.items()}
        scene.row([("model", _Side(a, high[0], row, None, False, {}), "the simulated machine", 0.47),
                   ("real", _Side(b, high[1], at, lit, True, renamed), "recorded on 5.17.0 (+n: n lines inside)", 0.53)], gap=16)
        scene.add(Legend({"moving": "the call looked at", "ghost": "inlined", "mark": "its span"}
                         if not quiet else {"ghost": "inlined: part of its caller; bold: in both"}), "legend", gap=8)
        return Frame(scene, say, ask=ask)

    gone = f" {_plural(hidden, 'other')} the tracer cannot see: the compiler made them part of their callers." if hidden else ""
    why = "The tracepoint mm_page_alloc fires once for each, page tables included." if allocations else \
        "The access is refused before anything is allocated. (To deliver the signal may take a page of the user's stack.)" \
        if event.startswith("segv") else "No mm_page_alloc fires: nothing new is needed."
    yield shot(f"{SHOWN[event][0].upper()}{SHOWN[event][1:]}. {_plural(both, 'call')} of the model stand in the same order among the "
               f"{calls} that were recorded.{gone}", None,
               Ask("How many pages does the kernel allocate for it?", allocations, why, unit="pages"))
    for number, _line in enumerate(model):
        if shown[number]:
            yield shot(_tell(model, recorded, number), number)


def _hush(lines: list[Line]) -> list[Line]:
    """The calls without the events among them, as long as these would give an answer away."""
    return _cut(lines, [not line.event for line in lines])
