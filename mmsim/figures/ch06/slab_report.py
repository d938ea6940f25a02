"""A bug, and what SLUB's debugging says of it: the bytes of one object, step by step, and the kernel log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmsim.constants import GFP_KERNEL
from mmsim.draw import Ask, Choice, Frame, Legend, Scene, TextPane, Toggle, figure
from mmsim.errors import KernelError
from mmsim.figures.ch06.machines import small_kernel
from mmsim.kernel.slab import KmemCache
from mmsim.kernel.slab_layout import SLAB_RED_ZONE, SLAB_STORE_USER
from mmsim.kernel.slub import Slub

__all__ = ["BUGS", "DEBUG", "slab_report"]

BUGS = {"use": "use after free", "overrun": "write past the end", "twice": "free twice", "inside": "free a pointer into an object"}
DEBUG = {"none": "none", "F": "F", "FZ": "FZ", "FZP": "FZP", "FZPU": "FZPU"}
SIZE = 64
CACHE = f"kmalloc-{SIZE}"
#: The step of each story in which the mistake is made.
WRONG = {"use": 3, "overrun": 2, "twice": 3, "inside": 2}
MOST_LINES = 28
LEGEND = {"kernel": "given out", "free": "free", "reserved": "red zone", "table": "free pointer", "error": "written by the bug"}


@dataclass(slots=True)
class _Crime:
    """A kernel with or without slub_debug, one object in the centre, and the log since the story began."""

    slub: Slub
    cache: KmemCache
    victim: int = 0
    logged: int = 0
    wrong: range = range(0)
    given: bool = False
    stopped: bool = False

    @classmethod
    def scene(cls, debug: str, hardened: bool) -> _Crime:
        option = None if debug == "none" else f"{debug},{CACHE}"
        slub = small_kernel(1024, 1, slub_debug=option, hardened=hardened)
        return cls(slub, slub.cache(CACHE), logged=len(slub.klog))

    def alloc(self, caller: str, pid: int) -> int:
        self.slub.pid = pid
        self.slub.memory.clock.advance(48_000_000)
        return self.slub.kmalloc(SIZE, GFP_KERNEL, caller=caller) or 0

    def free(self, addr: int, caller: str, pid: int) -> None:
        self.slub.pid = pid
        self.slub.memory.clock.advance(48_000_000)
        self.slub.kfree(addr, caller)

    @property
    def log(self) -> list[str]:
        return [part for line in self.slub.klog.lines()[self.logged:] for part in line.split("\n")]


class _Bytes:
    """The object's bytes with what lies around them, sixteen in a row."""

    def __init__(self, crime: _Crime):
        self.crime = crime

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        crime = self.crime
        cache, obj, layout = crime.cache, crime.victim, crime.cache.layout
        above = width < 480
        cell = min((width if above else width - 150) / 16, 26.0)
        parts: list[tuple[str, int, int, str]] = []
        if cache.flags & SLAB_RED_ZONE:
            parts.append(("left red zone", obj - 16, 16, "reserved"))
        parts.append(("object", obj, cache.object_size, "kernel" if crime.given else "free"))
        end = obj + cache.object_size
        if layout.inuse > cache.object_size:
            parts.append(("right red zone", end, layout.inuse - cache.object_size, "reserved"))
            end = obj + layout.inuse
        if layout.freeptr_outside_object:
            parts.append(("free pointer", obj + layout.offset, 8, "table"))
            end = obj + layout.offset + 8
        if not cache.flags & SLAB_RED_ZONE:
            parts.append(("next object", end, 16, ""))
        top = y
        for name, start, length, role in parts:
            data = crime.slub.read(start, length)
            if above:
                scene.text(f"{key}/{name}.name", x, top + 11, name, "small", "muted")
                top += 15
            for index, value in enumerate(data):
                row, column = divmod(index, 16)
                addr = start + index
                inside = not layout.freeptr_outside_object and role == "free" and 0 <= addr - obj - layout.offset < 8
                kind = "error" if addr in crime.wrong else "table" if inside else role
                left = x + (0 if above else 110) + column * cell
                at, line = f"{key}/{addr - obj}", top + row * 21
                scene.rect(at, left, line, cell, 20, kind or "panel", f"{name}, byte {addr - obj} from the object's start")
                scene.text(f"{at}.t", left + cell / 2, line + 14, f"{value:02x}", "code", f"on-{kind}" if kind else "", "middle")
            if not above:
                scene.text(f"{key}/{name}.name", x + 102, top + 14, name, "small", "muted", "end")
            top += 21 * (-(-length // 16)) + 4
        if cache.flags & SLAB_STORE_USER:
            lines = _tracks(crime)
            scene.text(f"{key}/track", x + (0 if above else 110), top + 13, lines, "code", width=width - (0 if above else 110))
            if not above:
                scene.text(f"{key}/track.name", x + 102, top + 13, "who had it", "small", "muted", "end")
            top += 20
        scene.height = max(scene.height, round(top, 1))
        return top - y


def _tracks(crime: _Crime) -> str:
    """Who allocated and who freed the object last, from its tracks."""
    cache, slub = crime.cache, crime.slub
    words = []
    for which, text in ((0, "allocated by"), (1, "freed by")):
        place = crime.victim + cache.layout.info_end + which * 152
        caller = slub.load_word(place)
        if caller:
            words.append(f"{text} {slub.symbols.name(caller)}")
    return ", ".join(words)


@dataclass(frozen=True, slots=True)
class _Step:
    title: str
    run: Callable[[_Crime], str]


def _open(crime: _Crime) -> str:
    crime.victim = crime.alloc("driver_open", 411)
    crime.slub.write(crime.victim, b"the driver's own state, 64 bytes")
    crime.given = True
    return f"driver_open() allocates {SIZE} bytes at {crime.victim:x} and writes its state there."


def _close(crime: _Crime) -> str:
    crime.free(crime.victim, "driver_close", 411)
    crime.given = False
    poison = crime.cache.layout.object_poison
    place = "behind the object" if crime.cache.layout.freeptr_outside_object else "into its middle"
    what = "SLUB fills it with 0x6b and ends it with 0xa5" if poison else \
        f"only the free pointer is written, {place}; the rest is as it was"
    return f"driver_close() frees the object: {what}."


def _late_write(crime: _Crime) -> str:
    crime.slub.write(crime.victim + 32, b"AAAAAAAA")
    crime.wrong = range(crime.victim + 32, crime.victim + 40)
    return ("A timer of the driver still has the pointer and writes 8 bytes at offset 32. The hardware allows it: this is "
            "the direct map, and the frame is there.")


def _next_alloc(crime: _Crime) -> str:
    other = crime.alloc("pipe_write", 87)
    if other == crime.victim:
        crime.given, crime.wrong = True, range(0)
        return f"pipe_write() allocates and gets the same {SIZE} bytes. Nobody noticed anything."
    crime.wrong = range(0)
    wrong = "finds bytes that are not 0x6b" if crime.cache.layout.object_poison else "finds that the free pointer leads nowhere"
    return f"pipe_write() allocates. SLUB looks at the object first, {wrong}, reports, and gives out another slab's object."


def _alloc_again(crime: _Crime) -> str:
    other = crime.alloc("inotify_read", 903)
    return f"inotify_read() allocates and gets {other:x}."


def _overrun(crime: _Crime) -> str:
    crime.slub.write(crime.victim + 60, b"BBBBBBBB")
    crime.wrong = range(crime.victim + 64, crime.victim + 68)
    return "The driver copies 8 bytes to offset 60: four of them do not belong to it any more."


def _free_overrun(crime: _Crime) -> str:
    crime.free(crime.victim, "driver_close", 411)
    crime.given = False
    if crime.log:
        crime.wrong = range(0)
        return "driver_close() frees the object. SLUB looks at the red zone, reports the bytes that are wrong, and repairs them."
    return ("driver_close() frees the object. Nothing is checked; the first bytes of the next object are wrong, and its owner "
            "will be blamed.")


def _free_again(crime: _Crime) -> str:
    crime.free(crime.victim, "driver_release", 411)
    if crime.log:
        return "driver_release() frees it again. SLUB finds the object on the free list, reports, and does not free it."
    return "driver_release() frees it again. The object now stands in the free list twice: its free pointer leads to itself."


def _take_two(crime: _Crime) -> str:
    first, second = crime.alloc("pipe_write", 87), crime.alloc("inotify_read", 903)
    crime.given = crime.victim in (first, second)
    if first == second:
        return f"pipe_write() and inotify_read() allocate, and both get {first:x}. From now on they overwrite each other."
    return "pipe_write() and inotify_read() allocate, and get two different objects."


def _free_inside(crime: _Crime) -> str:
    crime.free(crime.victim + 16, "driver_close", 411)
    if crime.log:
        return "driver_close() frees the object's address plus 16. SLUB sees that no object begins there, reports, and frees nothing."
    crime.wrong = range(crime.victim + 48, crime.victim + 56)
    crime.given = False
    return "driver_close() frees the object's address plus 16. kfree() finds slab and cache from the frame, and takes the address as it is."


def _alloc_inside(crime: _Crime) -> str:
    other = crime.alloc("pipe_write", 87)
    offset = other - crime.victim
    if 0 < offset < SIZE:
        return f"pipe_write() allocates and gets {other:x}: {offset} bytes into an object, and {offset} bytes too long for it."
    return f"pipe_write() allocates and gets {other:x}, an object of its own."


STORIES: dict[str, tuple[_Step, ...]] = {
    "use": (_Step("driver_open", _open), _Step("driver_close", _close), _Step("late write", _late_write), _Step("pipe_write", _next_alloc),
            _Step("inotify_read", _alloc_again)),
    "overrun": (_Step("driver_open", _open), _Step("overrun", _overrun), _Step("driver_close", _free_overrun)),
    "twice": (_Step("driver_open", _open), _Step("driver_close", _close), _Step("driver_release", _free_again),
              _Step("allocate", _take_two)),
    "inside": (_Step("driver_open", _open), _Step("driver_close", _free_inside), _Step("pipe_write", _alloc_inside)),
}


def _excerpt(log: list[str], narrow: bool) -> list[str]:
    """The lines that fit: on a phone without the hex dump, which is drawn above anyway."""
    kept = [line for line in log if line.strip()]
    if narrow:
        kept = [line if set(line) not in ({"="}, {"-"}) else line[:40] for line in kept
                if not line.startswith(("Object   ", "Redzone  ", "Padding  ", "Bytes b4 "))]
    return kept if len(kept) <= MOST_LINES else [*kept[:MOST_LINES], f"… {len(kept) - MOST_LINES} lines more"]


def _frame(crime: _Crime, say: str, width: float, ask: Ask | None = None) -> Frame:
    scene = Scene(width)
    words = "without slub_debug" if not crime.cache.debug else f"objects lie {crime.cache.size} bytes apart"
    if crime.victim:
        scene.add(_Bytes(crime), "bytes", f"One object of {CACHE}", words)
        scene.add(Legend(LEGEND), "legend", gap=6)
    else:
        scene.caption(f"One object of {CACHE}", note="not allocated yet")
    scene.add(TextPane(_excerpt(crime.log, scene.narrow) or ["(no message)"]), "log", "Kernel log",
              "hex dump left out" if scene.narrow else "", gap=14)
    return Frame(scene, say, ask=ask)


@figure(
    "Who wrote there?",
    alt="The bytes of a slab object with its red zones and free pointer, coloured by what they are, while a driver's bug happens; "
        "below, the kernel log with SLUB's report.",
    params=[Choice("bug", BUGS), Choice("debug", DEBUG, "FZPU", label="slub_debug"), Toggle("hardened", False)],
)
def slab_report(bug: str, debug: str, hardened: bool, width: float) -> Iterator[Frame]:
    """Runs a small crime on :mod:`mmsim.kernel.slub` and prints what :mod:`mmsim.kernel.slub_debug` makes of it."""
    crime = _Crime.scene(debug, hardened)
    option = f"with slub_debug={debug}" if debug != "none" else "without slub_debug"
    kernel = f"A kernel {option}{', hardened' if hardened else ''}"
    frames = [_frame(crime, f"{kernel}. A driver is about to make a mistake: {BUGS[bug]}.", width)]
    reported = 0
    steps = STORIES[bug]
    for number, step in enumerate(steps):
        before = len(crime.log)
        try:
            say = step.run(crime)
        except KernelError as error:
            crime.stopped = True
            first = str(error).splitlines()[0]
            say = f"{step.title}(): {first}"
            if not crime.log[before:]:
                crime.slub.klog.printk(str(error))
            say += ". The task that runs into it did nothing wrong." if bug == "use" else "."
        if not reported and len(crime.log) > before:
            reported = number + 1
            frames[-1].ask = Ask(
                f"Next comes {step.title}(). Will the kernel notice anything?", "yes",
                "The report comes when SLUB next looks at the object, not when the wrong bytes are written.", ["yes", "no"])
        frames.append(_frame(crime, say, width))
        if crime.stopped:
            break
    if reported:
        kind = next((line.split(": ", 1)[1] for line in crime.log if line.startswith("BUG ") and ": " in line), "")
        what = f'reports "{kind}"' if kind else "stops a task that did nothing wrong" if bug == "use" else "stops with a BUG"
        when = f"; the mistake was step {WRONG[bug]}" if reported > WRONG[bug] else ""
        say = f"{BUGS[bug].capitalize()} {option}: the kernel {what} in step {reported}{when}. Step on to see why."
    else:
        say = (f"{BUGS[bug].capitalize()} {option}: no message at all. "
               "Step on to see what is wrong now.")
        frames[-1].ask = None
    yield Frame(frames[reported or -1].scene, say)
    yield from frames
