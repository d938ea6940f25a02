"""The heap's bins: where glibc keeps what was freed, and where it looks first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Frame,
    Legend,
    Operation,
    Operations,
    Range,
    Scene,
    Span,
    figure,
    grouped,
)
from mmsim.draw.measure import text_width
from mmsim.errors import InputError, KernelError
from mmsim.figures.ch04.stage import Logged, count, glibc, heap_spans
from mmsim.malloc.glibc.layout import NBINS, NFASTBINS
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.glibc.tcache import tcache_entries
from mmsim.malloc.program import ProgramSignal

__all__ = ["heap_bins", "lists_of"]

DEFAULT = """\
malloc a 24 9       # nine objects a0 … a8
malloc b 1500
malloc s 24
malloc c 2000
malloc t 24
malloc u 2600
malloc v 24
free b
free c
free u
malloc h 3000       # too large for all three
free a              # all nine
malloc d 24
malloc e 500
malloc f 400
malloc g 700
free h
malloc i 4000
"""
VERBS = {
    "malloc": "name:word size:size [count:int] -- one object, or several: a0, a1, …",
    "free": "name:word -- one object, or all of that name",
    "trim": "-- malloc_trim(0)",
}
MOST = 40
#: The kinds of lists, in the order of the search.
KINDS = ("tcache", "fastbin", "small bin", "unsorted", "large bin")


def lists_of(libc: Ptmalloc) -> dict[tuple[str, int], list[int]]:
    """All lists that hold chunks: (kind, chunk size or bin) → chunks, the next to be taken first."""
    found: dict[tuple[str, int], list[int]] = {}
    if not libc.initialised:
        return found
    arena = libc.main_arena
    if libc.thread.tcache:
        for index in range(64):
            entries = tcache_entries(libc, index)
            if entries:
                found["tcache", 32 + 16 * index] = [memory - 16 for memory in entries]
    for index in range(NFASTBINS):
        chunks = list(arena.chunks_in_fastbin(index))
        if chunks:
            found["fastbin", 32 + 16 * index] = chunks
    for index in range(1, NBINS):
        chunks = list(arena.chunks_in_bin(index))
        if chunks:
            kind = "unsorted" if index == 1 else "small bin" if index < 64 else "large bin"
            found[kind, 0 if index == 1 else index * 16 if index < 64 else index] = chunks
    return found


@dataclass(slots=True)
class _Shot:
    say: str
    chunks: list[Span]
    lists: dict[tuple[str, int], list[int]]
    sizes: dict[int, int]
    top: int
    hot: set[int]
    ask: Ask | None = None


@dataclass
class _Heap:
    tcache: int
    names: dict[str, int] = field(default_factory=dict)
    shots: list[_Shot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.program = Logged()
        self.libc = glibc(self.program, tunables={"tcache_count": self.tcache})

    def lists(self) -> dict[tuple[str, int], list[int]]:
        return lists_of(self.libc)

    def place(self, chunk: int, lists: dict[tuple[str, int], list[int]]) -> str:
        """The list that holds a chunk, in words."""
        for (kind, size), chunks in lists.items():
            if chunk in chunks:
                return kind if kind == "unsorted" else f"{kind} {size}" if kind == "large bin" else f"{kind} of {size}"
        return ""

    def shot(self, say: str, hot: set[int] | None = None, ask: Ask | None = None) -> None:
        libc = self.libc
        names = {memory: name for name, memory in self.names.items()}
        spans = heap_spans(libc.walk(), names) if libc.initialised else []
        lists = self.lists()
        sizes = {chunk: libc.chunksize(chunk) for chunks in lists.values() for chunk in chunks}
        top = libc.chunksize(libc.main_arena.top) if libc.initialised else 0
        self.shots.append(_Shot(say, spans, lists, sizes, top, hot or set(), ask))

    def run(self, op: Operation) -> None:
        if op.verb == "trim":
            self.program.log.clear()
            self.libc.malloc_trim(0)
            self.shot(f"malloc_trim(0): the fastbins are emptied, free neighbours joined; {count(len(self.program.log), 'system call')}.")
            return
        name = op["name"]
        if op.verb == "malloc":
            self._malloc(op, name)
        else:
            self._free(name)
        self.libc.check()

    def _malloc(self, op: Operation, name: str) -> None:
        number = op.get("count", 1)
        if not 1 <= number <= MOST:
            raise InputError(f"count is 1 to {MOST}")
        wanted = [name] if number == 1 else [f"{name}{i}" for i in range(number)]
        if any(each in self.names for each in wanted):
            raise InputError(f"there is a {name} already")
        said, hot = [], set()
        for each in wanted:
            before = self.lists()
            old_top = self.libc.main_arena.top if self.libc.initialised else 0
            sizes = {chunk: self.libc.chunksize(chunk) for chunks in before.values() for chunk in chunks}
            self.program.log.clear()
            memory = self.libc.malloc(op["size"])
            if not memory:
                raise InputError(f"NULL, {self.libc.errno}")
            self.names[each] = memory
            hot.add(memory - 16)
            said.append(self._source(memory - 16, before, sizes, old_top))
        size = self.libc.chunksize(memory - 16)
        what = f"{name} = malloc({grouped(op['size'])})" if number == 1 else f"{number} × malloc({grouped(op['size'])})"
        how = said[-1] if len(set(said)) == 1 or number == 1 else f"the first {said[0]}, the last {said[-1]}"
        moved = self._moved(before) if number == 1 else ""
        self.shot(f"{what}: a chunk of {grouped(size)} bytes, {how}.{moved}", hot)

    def _source(self, chunk: int, before: dict[tuple[str, int], list[int]], sizes: dict[int, int], old_top: int) -> str:
        libc = self.libc
        if libc.is_mmapped(chunk):
            return "mapped for it alone"
        size = libc.chunksize(chunk)
        place = self.place(chunk, before)
        if place:
            rest = sizes[chunk] - size
            cut = f", cut from {grouped(sizes[chunk])}; the rest of {grouped(rest)} is unsorted" if rest else ""
            return f"from the {place}{' list' if place == 'unsorted' else ''}{cut}"
        inside = next((c for c, s in sizes.items() if c < chunk < c + s), 0)
        if inside:
            return "cut from free chunks that were joined"
        grown = any(call == "brk" for call, _ in self.program.log)
        return "from top" + (", after brk made it longer" if grown else "") if chunk == old_top or grown else "from joined chunks"

    def _moved(self, before: dict[tuple[str, int], list[int]]) -> str:
        after = self.lists()
        moves = []
        for kind, key in before:
            for chunk in before[kind, key]:
                now = self.place(chunk, after)
                was = self.place(chunk, before)
                if now and now != was:
                    moves.append(f"the chunk of {grouped(self.libc.chunksize(chunk))} went from {was} to {now}")
        gone = [1 for kind, key in before if kind == "fastbin" and (kind, key) not in after]
        if gone and len(moves) > 1:
            return " The fastbins were emptied."
        return f" On the way {moves[0]}{f', {len(moves) - 1} more moved' if len(moves) > 1 else ''}." if moves else ""

    def _free(self, name: str) -> None:
        group = [name] if name in self.names else [each for each in self.names if each.rstrip("0123456789") == name]
        if not group:
            raise InputError(f"there is no {name}; there are {', '.join(list(self.names)[:12]) or 'none'}")
        places: dict[str, int] = {}
        hot = set()
        for each in group:
            memory = self.names.pop(each)
            chunk = memory - 16
            if self.libc.is_mmapped(chunk):
                self.libc.free(memory)
                places["the kernel, by munmap"] = places.get("the kernel, by munmap", 0) + 1
                continue
            top = self.libc.main_arena.top
            self.libc.free(memory)
            lists = self.lists()
            where = self.place(chunk, lists)
            if where:
                hot.add(chunk)
            elif self.libc.main_arena.top != top or chunk >= self.libc.main_arena.top:
                where = "top"
            else:
                hot |= {c for c in lists.get(("unsorted", 0), []) if c <= chunk}
                where = "unsorted, joined with a free neighbour"
            places[where] = places.get(where, 0) + 1
        parts = [f"{number} to {where}" if len(group) > 1 else f"to {where}" for where, number in places.items()]
        self.shot(f"free({name}){f', {len(group)} objects' if len(group) > 1 else ''}: {', '.join(parts)}.", hot)


class _Lists:
    """A row for each list that holds chunks."""

    def __init__(self, shot: _Shot, names: dict[int, str]):
        self.shot, self.names = shot, names

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        left = x + 132
        top = y
        rows: list[tuple[str, str, list[int], str]] = []
        for kind in KINDS:
            held = [(size, chunks) for (k, size), chunks in sorted(self.shot.lists.items()) if k == kind]
            if not held:
                rows.append((kind, "", [], kind))
            rows += [(kind, "" if kind == "unsorted" else f"{size}" if kind != "large bin" else f"no. {size}", chunks, f"{kind}{size}")
                     for size, chunks in held]
        last = ""
        for kind, size, chunks, name in rows:
            if kind != last:
                scene.line(f"{key}.rule:{kind}", x, top, x + width, top, "grid")
                scene.text(f"{key}.kind:{kind}", x, top + 15, kind, "small", "strong" if chunks else "muted")
            if size:
                scene.text(f"{key}.size:{name}", left - 12, top + 15, size, "small", "muted", "end")
            if not chunks:
                scene.text(f"{key}.none:{name}", left, top + 15, "empty", "small", "muted")
            at = left
            for number, chunk in enumerate(chunks):
                label = grouped(self.shot.sizes[chunk])
                wide = text_width(label, "small") + 12
                if at + wide > x + width - (30 if number + 1 < len(chunks) else 0):
                    scene.text(f"{key}.more:{name}", at + 2, top + 15, f"+{len(chunks) - number}", "small", "muted")
                    break
                role = "hot" if kind in ("tcache", "fastbin") else "free"
                scene.box(f"{key}/{chunk:x}", at, top + 3, wide, 17, label, "moving" if chunk in self.shot.hot else role,
                          f"chunk at {chunk:#x}, {label} bytes; number {number + 1} to be taken", rx=2)
                at += wide + 4
            top += 23
            last = kind
        scene.line(f"{key}.rule:top", x, top, x + width, top, "grid")
        scene.text(f"{key}.kind:top", x, top + 15, "top", "small", "strong")
        scene.text(f"{key}.top", left, top + 15, f"{grouped(self.shot.top)} bytes", "small")
        top += 22
        scene.height = max(scene.height, round(top, 1))
        return top - y


def _draw(shot: _Shot, axis: Axis | None, width: float) -> Frame:
    scene = Scene(width)
    if axis is not None:
        spans = [Span(s.start, s.end, "moving" if s.start in shot.hot else s.role, s.label, s.tip, s.mark, s.key) for s in shot.chunks]
        scene.add(AddressBar([Bar("", spans)], axis, thick=34), "heap", "The heap's first chunks", "top goes on to the right")
        scene.add(Legend({"anon": "in use", "hot": "free, not to be joined", "free": "free", "moving": "this step",
                          "kernel": "the tcache"}), "legend", gap=6)
    scene.add(_Lists(shot, {}), "lists", "Free chunks, by list, in the order of the search", "a box is a chunk with its size; left: next")
    return Frame(scene, shot.say, ask=shot.ask)


@figure(
    "Bins of the heap",
    alt="The heap of glibc's malloc as a bar of chunks, and below it the lists of free chunks: tcache, fastbins, small bins, the unsorted "
        "list, large bins, and the size of top.",
    params=[
        Operations("ops", DEFAULT, VERBS, label="requests"),
        Range("tcache", 0, 16, 7, label="tcache count", help="how many chunks of a size a thread keeps; 0: none"),
    ],
)
def heap_bins(ops: list[Operation], tcache: int, width: float) -> Iterator[Frame]:
    """Runs :mod:`mmsim.malloc.glibc` and checks its heap after every request."""
    heap = _Heap(tcache)
    heap.shot("A new program: no list holds anything, and there is no heap yet.")
    for op in ops:
        if op.verb == "free" and heap.shots and not any(shot.ask for shot in heap.shots):
            group = [each for each in heap.names if each.rstrip("0123456789") == op["name"] and each != op["name"]]
            small = group and all(heap.libc.chunksize(heap.names[each] - 16) <= 128 for each in group)
            if small and len(group) > tcache and not any(kind in ("tcache", "fastbin") for kind, _ in heap.lists()):
                left = len(group) - tcache
                heap.shots[-1].ask = Ask(f"All {len(group)} small objects are freed now. How many of them go to a fastbin?", left,
                                         f"The thread's cache takes {tcache} of a size, the others go to the fastbin.")
        try:
            heap.run(op)
        except (KernelError, ValueError, ProgramSignal) as error:
            op.fail(error)
            heap.shot(f"{op.text}: refused. {error}")
    shots = heap.shots
    ends = [span.start for shot in shots for span in shot.chunks if span.label == "top"]
    axis = None
    if ends:
        start = heap.program.mm.start_brk
        axis = Axis(start, max(ends) + max(600, (max(ends) - start) // 10), show=lambda address: f"+{address - start}")
    best = max(range(len(shots)), key=lambda number: (len({kind for kind, _ in shots[number].lists}), number))
    overview = shots[best]
    held = sum(len(chunks) for chunks in overview.lists.values())
    yield _draw(_Shot(f"The heap after {count(best, 'request line')}: {count(held, 'free chunk')} in "
                      f"{count(len(overview.lists), 'list')}, each list with rules of its own. Step on to see how they got there.",
                      overview.chunks, overview.lists, overview.sizes, overview.top, set()), axis, width)
    for shot in shots:
        yield _draw(shot, axis, width)
