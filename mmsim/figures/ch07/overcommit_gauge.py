"""Overcommit gauge: one program's requests under the three modes of vm.overcommit_memory, promise by promise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmsim.constants import (
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    OVERCOMMIT_NEVER,
    PROT_READ,
    PROT_WRITE,
)
from mmsim.draw import (
    Ask,
    Choice,
    Frame,
    Legend,
    Operation,
    Operations,
    Range,
    Scene,
    Toggle,
    figure,
    fit_text,
    text_width,
)
from mmsim.errors import InputError, errno_name
from mmsim.figures.ch07.strips import size_text
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.task import Process, ProcessTable
from mmsim.reference import ref256
from mmsim.units import GIB, MIB, PAGE_SHIFT, TIB

__all__ = ["RECORDED", "account", "overcommit_gauge"]

DEFAULT = """\
map 64M times=200   # and touch nothing
fork
unmap 13G
map 400M
map 64K readonly    # a fence: without it the two merge
map 400M
fork
map 64M noreserve
map 64M shared
"""
VERBS = {
    "map": "size:size [kind:private|noreserve|shared|readonly] [times:int] -- mmap() so much, so many times",
    "unmap": "size:size -- give the newest mappings back, so much at most",
    "fork": "-- the promise is made again for the child",
    "exit": "-- the newest child ends",
}
MODES = ("guess", "always", "never")
KINDS = {
    "private": (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS),
    "noreserve": (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE),
    "shared": (PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS),
    "readonly": (PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS),
}
MACHINES = {"recorded": "512 MiB, as recorded", "4": "4 GiB", "16": "16 GiB", "64": "64 GiB"}
#: A booted 5.17 machine as it described itself (recordings/linux-5.17-userland/ch07_over.jsonl), KiB.
RECORDED = {"MemTotal": 501_144, "Committed_AS": 15_092, "admin_reserve": 8_192, "user_reserve": 15_387}


def account(machine: str, mode: int, ratio: int, swap: int) -> Overcommit:
    """The promise account of one of the machines; ``swap`` in bytes."""
    if machine == "recorded":
        made = Overcommit(RECORDED["MemTotal"] >> 2, user_reserve_kbytes=RECORDED["user_reserve"],
                          admin_reserve_kbytes=RECORDED["admin_reserve"], committed=RECORDED["Committed_AS"] >> 2)
    else:
        pages = int(machine) * GIB >> PAGE_SHIFT
        made = Overcommit.at_boot(pages, pages)
        made.committed = RECORDED["Committed_AS"] >> 2
    made.policy, made.ratio, made.total_swap_pages = mode, ratio, swap >> PAGE_SHIFT
    return made


@dataclass(slots=True)
class _Side:
    """One mode: its account, the process and its children, and what the last request came to."""

    mode: int
    account: Overcommit
    root: bool
    table: ProcessTable
    process: Process = field(init=False)
    children: list[Process] = field(default_factory=list)
    result: str = ""
    failed: bool = False
    before: int = 0
    asked: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        self.process = self.table.spawn("program", Mm(overcommit=self.account, privileged=self.root))

    @property
    def mm(self) -> Mm:
        """The areas."""
        return self.process.mm

    def run(self, op: Operation) -> None:
        """Do one request; ``result`` says what came of it."""
        self.before, self.asked, self.failed = self.account.committed, 0, False
        getattr(self, f"_{op.verb}")(op)
        self.most = max(self.most, self.account.committed)

    def _map(self, op: Operation) -> None:
        prot, flags = KINDS[op.get("kind", "private")]
        done, times = 0, op.get("times", 1)
        answer = 0
        while done < times:
            answer = self.process.mmap(0, op["size"], prot, flags)
            if answer < 0:
                break
            done += 1
        if answer < 0:
            self.failed, self.asked = True, -(-op["size"] // 4096)
            self.result = f"{done} of {times}, then {errno_name(-answer)}" if times > 1 else errno_name(-answer)
        else:
            self.result = f"all {times}" if times > 1 else "ok"

    def _unmap(self, op: Operation) -> None:
        left, gone = op["size"], 0
        for vma in sorted(self.mm.tree, key=lambda vma: vma.vm_start):
            piece = min(left, vma.vm_end - vma.vm_start)
            if piece <= 0:
                break
            self.process.munmap(vma.vm_start, piece)
            left -= piece
            gone += piece
        self.result = f"{size_text(gone >> PAGE_SHIFT)} gone" if gone else "nothing there"

    def _fork(self, op: Operation) -> None:
        pid = self.process.fork()
        if pid < 0:
            self.failed, self.result = True, errno_name(-pid)
            self.asked = max(vma.pages for vma in self.mm.tree)
            return
        self.children.append(self.table.processes[pid])
        self.result = "ok"

    def _exit(self, op: Operation) -> None:
        self.result = "ok" if self.children else "no child"
        if self.children:
            self.children.pop().exit()

    def mark(self) -> tuple[int, str]:
        """The number that decides in this mode, and its name."""
        if self.mode == OVERCOMMIT_NEVER:
            return self.account.commit_limit(), "CommitLimit"
        return self.account.totalram_pages + self.account.total_swap_pages, "RAM + swap"


class _Gauge:
    """One mode as a bar: what is promised, what this request added or wanted, and the number that decides."""

    def __init__(self, side: _Side, top: int):
        self.side, self.top = side, top

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        side = self.side
        scene.text(f"{key}.mode", x, y + 12, f"{side.mode}  {MODES[side.mode]}", "head")
        cls = "warn" if side.failed else "accent"
        scene.text(f"{key}.result", x + width, y + 12, side.result, "head", cls, "end", width - 110)
        top, high = y + 20, 26.0
        scale = width / self.top

        def at(pages: int) -> float:
            return min(max(pages, 0) * scale, width)
        scene.rect(f"{key}.bed", x, top, width, high, "panel")
        old, new = min(side.before, side.account.committed), side.account.committed
        scene.rect(f"{key}.old", x, top, at(old), high, "anon", f"promised before: {size_text(old)}")
        if new > old:
            scene.rect(f"{key}.new", x + at(old), top, max(at(new) - at(old), 2), high, "moving", f"this request: {size_text(new - old)}")
        if side.failed:
            wide = max(at(new + side.asked) - at(new), 6)
            left = min(x + at(new), x + width - wide)
            scene.rect(f"{key}.asked", left, top, wide, high, "ghost", f"refused: {size_text(side.asked)} more")
            scene.path(f"{key}.cross", f"M{left + wide / 2 - 5:.5g} {top + 8:g}l10 10m0 -10l-10 10", "wire warn", "refused", top + high)
        value, name = side.mark()
        place = x + at(value)
        scene.line(f"{key}.mark", place, top - 4, place, top + high + 4, "wire lit", f"{name}: {size_text(value)}")
        label = f"{name} {size_text(value)}"
        half = text_width(label, "small") / 2
        if side.mode == 1:
            label, half = f"{label} (not asked)", text_width(f"{label} (not asked)", "small") / 2
        scene.text(f"{key}.label", min(max(place, x + half), x + width - half), top + high + 16, label, "small", "", "middle")
        areas = side.mm.map_count
        words = f"Committed_AS {size_text(new)}, {areas} area{'' if areas == 1 else 's'}"
        words += f", {len(side.children)} child{'' if len(side.children) == 1 else 'ren'}" if side.children else ""
        scene.text(f"{key}.words", x, top + high + 33, fit_text(words, width, "small"), "small", "muted")
        scene.height = max(scene.height, round(top + high + 38, 1))
        return high + 58


def _draw(width: float, op: Operation, sides: list[_Side], tops: list[int], say: str, ask: Ask | None) -> Frame:
    scene = Scene(width)
    scene.text("op", 0, 13, op.text, "mono", "strong", width=width)
    scene.y = 18
    for side, top in zip(sides, tops):
        scene.add(_Gauge(side, top), f"mode{side.mode}", gap=10)
    scene.add(Legend({"anon": "promised", "moving": "by this request"}), "legend", gap=6)
    return Frame(scene, say, ask=ask)


def _say(op: Operation, sides: list[_Side], first: bool) -> str:
    told = [f"{MODES[side.mode]}: {side.result}" for side in sides]
    say = f"{op.text}. " + "; ".join(told) + "."
    if op.verb == "fork":
        areas = {side.mm.map_count for side in sides if side.failed and side.mode == 0}
        if areas:
            say += " Mode 0 looks at each area alone, and this one is larger than RAM and swap together."
        elif sides[0].result == "ok" and sides[0].mm.accounted_pages() > sides[0].mark()[0]:
            say += " Mode 0 looks at each area alone: none is larger than RAM and swap, though together they are."
    elif op.verb == "map" and op.get("kind", "private") == "noreserve":
        say += " Modes 0 and 1 take the program's word that it needs no promise; mode 2 does not."
    elif op.verb == "map" and op.get("kind", "private") == "shared":
        say += " Shared memory is promised once, by the object behind it."
    elif op.verb == "map" and first and op.get("times", 1) > 1:
        guess = sides[0]
        if guess.mm.map_count == 1:
            say += f" The mappings lie side by side and became one area of {size_text(guess.mm.total_vm)}."
    return say


@figure(
    "Overcommit gauge",
    alt="Three bars, one for each mode of vm.overcommit_memory: how much memory has been promised after each request, the limit "
        "that decides, and which requests are refused with ENOMEM.",
    params=[
        Operations("requests", DEFAULT, VERBS, label="requests", help="one a line; sizes such as 64M or 2G"),
        Choice("machine", MACHINES),
        Range("swap", 0, 64, default=0, unit="GiB"),
        Range("ratio", 0, 100, default=50, unit="%", label="overcommit_ratio"),
        Toggle("root", True, help="CAP_SYS_ADMIN: mode 2 keeps no admin reserve from it"),
    ],
)
def overcommit_gauge(requests: list[Operation], machine: str, swap: int, ratio: int, root: bool, width: float) -> Iterator[Frame]:
    """Runs the requests on three address spaces, each with :class:`mmsim.process.overcommit.Overcommit` in another mode."""
    if not requests:
        raise InputError("no requests: write a line such as  map 64M times=200")
    for op in requests:
        if op.verb == "map" and not (0 < op["size"] <= 64 * TIB and 0 < op.get("times", 1) <= 1000):
            op.fail("a size from 1 to 64T, and at most 1000 times")
    good = [op for op in requests if not op.error]

    table = ref256().process_table

    def fresh() -> list[_Side]:
        return [_Side(mode, account(machine, mode, ratio, swap * GIB), root, table) for mode in range(3)]
    rehearsal = fresh()
    for op in good:
        for side in rehearsal:
            side.run(op)
    tops = [max(int(side.most * 1.04), int(side.mark()[0] * 1.25), 1) for side in rehearsal]
    if all(side.most * 100 < tops[2] for side in rehearsal):
        tops = [max(top, 64 * MIB >> PAGE_SHIFT) for top in tops]
    sides, asked = fresh(), False
    for number, op in enumerate(good):
        for side in sides:
            side.run(op)
        ask = None
        if not asked and number + 1 < len(good) and good[number + 1].verb == "fork":
            ask, asked = _question(good[number + 1], good[: number + 1], fresh()), True
        yield _draw(width, op, sides, tops, _say(op, sides, number == 0), ask)
        for side in sides:
            side.mm.check()


def _question(fork: Operation, before: list[Operation], sides: list[_Side]) -> Ask:
    for side in sides:
        for op in [*before, fork]:
            side.run(op)
    good = [MODES[side.mode] for side in sides if not side.failed]
    answer = ", ".join(good) or "none"
    choices = ["none", "always", "guess, always", "guess, always, never", "always, never", answer]
    return Ask("Nothing was touched yet. Under which modes can the process fork?", answer,
               "The child gets the same promise. Mode 0 refuses a single area above RAM and swap, mode 1 nothing, mode 2 what would "
               "take the sum to its limit.", choices=list(dict.fromkeys(choices)))
