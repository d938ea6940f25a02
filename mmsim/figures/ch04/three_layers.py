"""Three layers: a request in the allocator's chunks, in the kernel's areas, and in frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Entry,
    Frame,
    Ledger,
    Legend,
    Operation,
    Operations,
    Scene,
    Span,
    TextPane,
    figure,
    grouped,
)
from mmsim.draw.measure import text_width
from mmsim.errors import InputError, KernelError
from mmsim.figures.ch04.stage import LoggedProcess, count, glibc, heap_spans, kib
from mmsim.malloc.program import ProgramSignal
from mmsim.reference import toy16
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["three_layers"]

DEFAULT = """\
malloc a 24
malloc b 50000
touch b 5
free b              # which layers notice?
malloc c 200000
touch c 3
free c
malloc d 200000     # the same size again
touch d 10
free d
trim
"""
VERBS = {
    "malloc": "name:word size:size -- ask the library",
    "touch": "name:word [pages:int] -- write to its first pages (all)",
    "realloc": "name:word size:size -- another size",
    "free": "name:word -- give it back to the library",
    "trim": "-- malloc_trim(0)",
}
MOST_PAGES = 400
SHOWN_FRAMES = 24


@dataclass(slots=True)
class _Shot:
    say: str
    chunks: list[Span]
    own: list[Span]
    areas: list[tuple[int, int]]
    pages: dict[int, int]
    new: set[int]
    events: list[str]
    vm: int
    faults: int
    calls: int
    free: int
    ask: Ask | None = None


@dataclass
class _Lab:
    """A process on a machine, and what each request did in each layer."""

    program: LoggedProcess
    names: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    shots: list[_Shot] = field(default_factory=list)
    calls: int = 0

    def __post_init__(self) -> None:
        self.libc = glibc(self.program)
        self.program.write_word(self.libc.main_arena.address, 0)        # the library's data are in RAM before main() runs
        self.library = {vma.vm_start for vma in self.program.process.mm}
        self.first_free = self.frames_free()
        self.first_faults = self.program.minflt
        self.before: dict[int, int] = {}

    def frames_free(self) -> int:
        census = self.program.process.machine.memory
        return sum(zone.nr_free_pages + sum(pcp.count for pcp in zone.pageset) for zone in census.zones())

    def pages(self) -> dict[int, int]:
        """Virtual page → frame of all pages in RAM, but for the library's own."""
        found = {}
        for start, end in self.areas():
            for page in range(start >> PAGE_SHIFT, end >> PAGE_SHIFT):
                table = self.program.process.page_tables.ptes.get(page >> 9)
                if table is not None and table[page & 511] & 1:
                    found[page] = table[page & 511] >> PAGE_SHIFT & (1 << 36) - 1
        return found

    def areas(self) -> list[tuple[int, int]]:
        return [(vma.vm_start, vma.vm_end) for vma in self.program.process.mm if vma.vm_start not in self.library]

    def shot(self, say: str, events: list[str], hot: int = 0, ask: Ask | None = None) -> None:
        labels = {memory: name for name, memory in self.names.items()}
        heap = heap_spans(self.libc.walk(), labels, hot) if self.libc.initialised else []
        own = []
        for name, memory in self.names.items():
            if self.libc.is_mmapped(memory - 16):
                size = self.libc.chunksize(memory - 16)
                own.append(Span(memory - 16, memory - 16 + size, "anon", name, f"{name}: {grouped(size)} bytes, mapped for it alone",
                                "focus" if memory == hot else "", f"{memory:x}"))
        pages = self.pages()
        mm = self.program.process.mm
        self.shots.append(_Shot(say, heap, own, self.areas(), pages, {page for page, pfn in pages.items() if self.before.get(page) != pfn},
                                events, mm.total_vm, self.program.minflt - self.first_faults, self.calls,
                                self.frames_free() - self.first_free, ask))
        self.before = pages

    def run(self, op: Operation) -> None:
        program = self.program
        program.log.clear()
        faults, there = program.minflt, self.pages()
        name = op.get("name", "")
        if op.verb in ("touch", "realloc", "free") and name not in self.names:
            raise InputError(f"there is no {name}; there are {', '.join(self.names) or 'none'}")
        text, hot = getattr(self, f"_{op.verb}")(op, name)
        events = [f"{call}({_amount(call, size)})" for call, size in program.log]
        self.calls += len(events)
        taken = program.minflt - faults
        pages = self.pages()
        new, old = set(pages.values()) - set(there.values()), set(there.values()) - set(pages.values())
        came, gone = len(new), len(old)
        moved = sum(page not in there or there[page] != pfn for page, pfn in pages.items() if pfn not in new)
        if taken:
            events.append(f"{taken} × page fault")
        if came:
            frames = " ".join(f"{pages[page]:#x}" for page in [page for page in sorted(pages) if pages[page] in new][:3])
            events.append(f"frames {frames}{' …' if came > 3 else ''}")
        if gone:
            events.append(f"{count(gone, 'frame')} freed")
        if moved:
            events.append(f"{count(moved, 'page')} moved")
        kernel = ", ".join(events[:len(program.log)])
        layers = (f"The kernel sees {kernel}" if kernel else "The kernel sees no system call")
        if taken:
            layers += f"; {count(taken, 'page fault')} brought {count(came, 'frame')}."
        elif gone:
            layers += f"; {count(gone, 'frame')} went back."
        elif moved:
            layers += f"; {count(moved, 'page')} got another address and kept {'its frame' if moved == 1 else 'their frames'}."
        else:
            layers += "; no frame comes or goes." if kernel else ", no fault."
        self.shot(f"{text} {layers}", events or ["nothing"], hot)

    def _malloc(self, op: Operation, name: str) -> tuple[str, int]:
        if name in self.names:
            raise InputError(f"there is a {name} already")
        memory = self.libc.malloc(op["size"])
        if not memory:
            raise InputError(f"NULL, {self.libc.errno}")
        self.names[name], self.sizes[name] = memory, op["size"]
        where = "in a mapping of its own" if self.libc.is_mmapped(memory - 16) else "in the heap"
        return f"{name} = malloc({grouped(op['size'])}): a chunk of {grouped(self.libc.chunksize(memory - 16))} bytes {where}.", memory

    def _realloc(self, op: Operation, name: str) -> tuple[str, int]:
        old = self.names[name]
        memory = self.libc.realloc(old, op["size"])
        if not op["size"]:
            del self.names[name]
            return f"realloc({name}, 0) frees it.", 0
        if not memory:
            raise InputError(f"NULL, {self.libc.errno}")
        self.names[name], self.sizes[name] = memory, op["size"]
        return f"{name} = realloc({name}, {grouped(op['size'])}): {'the same place' if memory == old else 'another place'}.", memory

    def _touch(self, op: Operation, name: str) -> tuple[str, int]:
        memory, size = self.names[name], self.sizes[name]
        first, last = memory >> PAGE_SHIFT, memory + max(size, 1) - 1 >> PAGE_SHIFT
        pages = min(op.get("pages", last - first + 1), last - first + 1)
        if not 1 <= pages <= MOST_PAGES:
            raise InputError(f"pages is 1 to {MOST_PAGES}")
        for page in range(first, first + pages):
            self.program.write(max(page << PAGE_SHIFT, memory), b"!")
        return f"The program writes to {count(pages, 'page')} of {name}.", memory

    def _free(self, op: Operation, name: str) -> tuple[str, int]:
        self.libc.free(self.names.pop(name))
        return f"free({name}).", 0

    def _trim(self, op: Operation, name: str) -> tuple[str, int]:
        self.libc.malloc_trim(0)
        return "malloc_trim(0).", 0


def _amount(call: str, size: int) -> str:
    return f"{'−' if size < 0 else '+'}{kib(abs(size))}" if call == "brk" else kib(size)


class _Frames:
    """The frames behind the pages, in the order of the pages."""

    def __init__(self, pages: dict[int, int], new: set[int]):
        self.pages, self.new = pages, new

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        wide = max([text_width(f"{pfn:x}", "small") for pfn in self.pages.values()], default=20) + 10
        at, top = x, y + 1
        shown = sorted(self.pages)[:SHOWN_FRAMES]
        for page in shown:
            if at + wide > x + width:
                at, top = x, top + 22
            pfn = self.pages[page]
            scene.box(f"{key}/{pfn:x}", at, top, wide, 18, f"{pfn:x}", "moving" if page in self.new else "anon",
                      f"frame {pfn:#x} holds page {page << PAGE_SHIFT:#x}", rx=2)
            at += wide + 3
        if not shown:
            scene.text(f"{key}.none", x, top + 13, "none", "small", "muted")
        if len(self.pages) > len(shown):
            scene.text(f"{key}.more", x, top + 36, f"and {len(self.pages) - len(shown)} more", "small", "muted")
            top += 20
        scene.height = max(scene.height, round(top + 24, 1))
        return top + 24 - y


def _draw(shot: _Shot, heap: Axis | None, mapped: Axis | None, before: _Shot | None, width: float) -> Frame:
    scene = Scene(width)
    parts = ((heap, shot.chunks, "heap", "The heap"), (mapped, shot.own, "mapped", "Below the libraries: mappings"))
    for axis, chunks, key, caption in parts:
        if axis is None:
            continue
        areas = [Span(a, b, "reserved", "[heap]" if key == "heap" else "area", f"{a:#x}-{b:#x}", key=f"{a:x}")
                 for a, b in shot.areas if axis.low <= a < axis.high]
        pages = [Span(page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT, "moving" if page in shot.new else "anon", "",
                      f"page {page << PAGE_SHIFT:#x} is in frame {pfn:#x}", key=f"{page:x}")
                 for page, pfn in sorted(shot.pages.items()) if axis.low <= page << PAGE_SHIFT < axis.high]
        bars = [Bar("library: chunks", chunks, key="chunks"), Bar("kernel: areas", areas, key="areas"),
                Bar("kernel: pages", pages, key="pages")]
        scene.add(AddressBar(bars, axis, thick=22, gap=5), key, caption)
    scene.add(_Frames(shot.pages, shot.new), "frames", "Frames behind the pages")
    scene.add(Legend({"anon": "in use; a page in RAM", "moving": "new in this step", "free": "free chunk", "hot": "free, cached",
                      "reserved": "an area", "kernel": "the library's own"}), "legend", gap=4)
    old = before or shot
    entries = [Entry("VmSize (KiB)", shot.vm * 4, (shot.vm - old.vm) * 4), Entry("RSS (KiB)", len(shot.pages) * 4,
               (len(shot.pages) - len(old.pages)) * 4), Entry("page faults", shot.faults, shot.faults - old.faults),
               Entry("system calls", shot.calls, shot.calls - old.calls)]
    scene.row([("events", TextPane(shot.events, rows=4), "What the kernel did", 1.0), ("ledger", Ledger(entries, columns=1), "Sums", 1.0)])
    return Frame(scene, shot.say, ask=shot.ask)


@figure(
    "Three layers",
    alt="A program's requests in three layers: chunks of malloc, areas of the kernel, and pages with their frames, for the heap and for "
        "mappings, with system calls and page faults of each step.",
    params=[Operations("ops", DEFAULT, VERBS, label="requests")],
)
def three_layers(ops: list[Operation], width: float) -> Iterator[Frame]:
    """glibc's malloc in a process of toy16: every step goes down to page tables and the page allocator."""
    lab = _Lab(LoggedProcess(toy16().spawn("a.out")))
    lab.shot("A new program: no heap yet, no page of it in RAM.", ["nothing"])
    asked = False
    for op in ops:
        if op.verb == "free" and not asked and op.get("name") in lab.names and not lab.libc.is_mmapped(lab.names[op["name"]] - 16):
            held = len(lab.pages())
            lab.shots[-1].ask = Ask(
                f"The next step is free({op['name']}). In how many layers does anything change?", "one: the chunks",
                f"The chunk is free, and that is all. The area keeps its size, and the {held} pages stay in RAM.",
                ["one: the chunks", "two: chunks and areas", "all three"])
            asked = True
        try:
            lab.run(op)
        except (KernelError, ValueError, ProgramSignal) as error:
            op.fail(error or "refused")
            lab.shot(f"{op.text}: refused. {error}", ["nothing"])
    if asked:
        _keep_true(lab.shots)
    shots = lab.shots
    heap_start = lab.program.process.mm.start_brk
    spans = [area for shot in shots for area in shot.areas]
    low = [area for area in spans if area[0] < heap_start + (1 << 30)]
    high = [area for area in spans if area[0] >= heap_start + (1 << 30)]
    heap = _axis(low)
    mapped = _axis(high)
    best = max(range(len(shots)), key=lambda number: (len(shots[number].own) + bool(shots[number].chunks), len(shots[number].pages)))
    first = shots[best]
    overview = _Shot(f"After {count(best, 'request')}: the library divides what the kernel gave, and only what was written to has frames: "
                     f"{kib(first.vm * 4096)} of addresses, {kib(len(first.pages) * PAGE_SIZE)} in RAM, after "
                     f"{count(first.calls, 'system call')} and {count(first.faults, 'page fault')}.",
                     first.chunks, first.own, first.areas, first.pages, set(), first.events,
                     first.vm, first.faults, first.calls, first.free)
    yield _draw(overview, heap, mapped, None, width)
    before = None
    for shot in shots:
        yield _draw(shot, heap, mapped, before, width)
        before = shot


def _keep_true(shots: list[_Shot]) -> None:
    """A question whose answer the mechanism does not bear out (the heap was trimmed, say) is taken back."""
    for shot, after in zip(shots, shots[1:], strict=False):
        if shot.ask is not None and (shot.areas, set(shot.pages)) != (after.areas, set(after.pages)):
            shot.ask = None


def _axis(areas: list[tuple[int, int]]) -> Axis | None:
    if not areas:
        return None
    low, high = min(a for a, _ in areas), max(b for _, b in areas)
    return Axis(low, high, show=lambda address: f"+{address - low >> 10}K" if address > low else f"{low:x}")
