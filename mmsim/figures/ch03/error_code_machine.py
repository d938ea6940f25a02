"""Error-code machine: an access and an entry give an error code, and the code decides where the kernel goes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from mmsim import constants as c
from mmsim.constants import (
    _PAGE_NX,
    _PAGE_RW,
    _PAGE_USER,
    X86_PF_INSTR,
    X86_PF_PROT,
    X86_PF_RSVD,
    X86_PF_USER,
    X86_PF_WRITE,
)
from mmsim.draw import Ask, Choice, FlowChart, Frame, Scene, Toggle, Way, figure
from mmsim.draw import Step as Box
from mmsim.figures.ch03.the_walk import ACCESS
from mmsim.kernel.fault_entry import FaultContext, FaultVerdict, Outcome, decide_fault
from mmsim.paging.contents import FrameContents
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import (
    PAGE_KERNEL,
    PAGE_NONE,
    PAGE_READONLY,
    PAGE_SHARED,
    kind,
    pfn_pte,
    pte_write,
    swp_entry,
    swp_entry_to_pte,
)
from mmsim.paging.walk import Control, PageFault, error_code_names
from mmsim.process.fault import access_error
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["AREAS", "CODES", "ENTRIES", "Decision", "decide", "error_code", "error_code_machine", "handler", "reachable_codes",
           "why_impossible"]

ADDR = 0x55555555D000
_INDEX = (170, 341, 170, 349)
#: What the last entry of the walk holds.
ENTRIES: dict[str, tuple[str, int]] = {
    "empty": ("empty", 0),
    "swap": ("a swap entry", swp_entry_to_pte(swp_entry(0, 1))),
    "protnone": ("a PROT_NONE page", pfn_pte(0x123, PAGE_NONE)),
    "readonly": ("a read-only page", pfn_pte(0x123, PAGE_READONLY)),
    "writable": ("a writable page", pfn_pte(0x123, PAGE_SHARED)),
    "code": ("a page of code", pfn_pte(0x123, PAGE_READONLY & ~_PAGE_NX)),
    "kernel": ("a page of the kernel", pfn_pte(0x123, PAGE_KERNEL)),
    "reserved": ("reserved bit 51 set", pfn_pte(0x123, PAGE_READONLY) | 1 << 51),
}
#: What the area at the address allows; None: there is no area.
AREAS: dict[str, tuple[str, int | None]] = {
    "rw": ("private, writable", c.VM_READ | c.VM_WRITE), "r": ("read-only", c.VM_READ), "w": ("write-only", c.VM_WRITE),
    "rx": ("code", c.VM_READ | c.VM_EXEC), "none": ("PROT_NONE", 0), "absent": ("there is none", None),
}
#: The five bits that every CPU has, in the order of the code.
CODES = ((X86_PF_INSTR, "INSTR"), (X86_PF_RSVD, "RSVD"), (X86_PF_USER, "USER"), (X86_PF_WRITE, "WRITE"), (X86_PF_PROT, "PROT"))
_WORDS = {
    "INSTR": ("instruction fetch", "data"), "RSVD": ("a reserved bit is set", "no reserved bit"), "USER": ("user mode", "kernel mode"),
    "WRITE": ("write", "read or fetch"), "PROT": ("present, not allowed", "not present"),
}
_TABLES = _PAGE_RW | _PAGE_USER | 0x61                          # what entries of upper levels hold: P RW US A D


def error_code(access: str, user: bool, word: int, control: Control, level: int = 1) -> int | None:
    """What a CPU says to an access through a walk whose entry at ``level`` is ``word``; None: nothing, the access is done."""
    contents = FrameContents(16)
    for pfn, index in enumerate(_INDEX[:4 - level], 1):
        contents.words(pfn)[index] = pfn + 1 << PAGE_SHIFT | _TABLES
    contents.words(5 - level)[_INDEX[4 - level]] = word
    cpu = Mmu(contents, control)
    cpu.write_cr3(1 << PAGE_SHIFT)
    try:
        cpu.translate(ADDR, access, user)
    except PageFault as fault:
        return fault.error_code
    return None


@cache
def reachable_codes() -> dict[int, str]:
    """The codes of bits 0-4 that some access can raise, each with the first that does: every access, mode, entry and CPU tried."""
    found: dict[int, str] = {}
    words = [(name, word | more) for (name, word), more in product(ENTRIES.values(), (0, 1 << 51))]
    for smap, wp, ac, access, user in product((True, False), (True, False), (False, True), ACCESS, (True, False)):
        for name, word in words:
            code = error_code(access, user, word, Control(smep=smap, smap=smap, wp=wp, ac=ac))
            if code is not None:
                found.setdefault(code, f"{'user' if user else 'kernel'} {ACCESS[access]}, {name}")
    return found


def why_impossible(code: int) -> str:
    """Why no CPU raises a code of bits 0-4."""
    if code & X86_PF_WRITE and code & X86_PF_INSTR:
        return "an access is a write or a fetch, not both"
    if code & X86_PF_RSVD and not code & X86_PF_PROT:
        return "reserved bits are checked in present entries only"
    return ""


class _Code:
    """The code as five boxes with their meaning."""

    def __init__(self, code: int | None):
        self.code = code

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """One row a bit, highest first."""
        if self.code is None:
            scene.box(f"{key}/none", x, y, width, 24, "no fault: the access is done", "free", style="label")
            return 28
        top = y
        for bit, name in CODES:
            on = bool(self.code & bit)
            scene.box(f"{key}/{name}", x, top, 70, 21, f"{name} {int(on)}", "moving" if on else "", cls="" if on else "ghost")
            scene.text(f"{key}/{name}.words", x + 80, top + 15, _WORDS[name][not on], "small", "" if on else "muted")
            top += 25
        return top - y


class _Grid:
    """All 32 codes: those that can be raised, and those that cannot."""

    def __init__(self, code: int | None):
        self.code = code

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Eight columns (USER, WRITE, PROT), four rows (INSTR, RSVD)."""
        found = reachable_codes()
        wide = width / 8
        for row in range(4):
            for column in range(8):
                code = row * 8 + column
                mine = " focus" if code == self.code else ""
                why = why_impossible(code)
                tip = f"{code:#x}: {error_code_names(code)}. " + (f"Never: {why}" if why else f"For example: {found[code]}")
                cls = "ghost" if why else "moving" if code == self.code else "level"
                left, top = x + column * wide, y + row * 29
                scene.rect(f"{key}/{code}", left, top, wide - 4, 25, cls + mine, tip, rx=2)
                scene.text(f"{key}/{code}.t", left + wide / 2 - 2, top + 17, f"{code:#x}", "small",
                           "on-moving" if code == self.code and not why else "muted" if why else "", "middle")
        note = ("Dashed: no CPU raises them. From left to right USER, WRITE and PROT count up; the second and fourth row add RSVD (0x8), "
                "the third and fourth INSTR (0x10).")
        return 4 * 29 + 6 + scene.paragraph(f"{key}/note", x, y + 4 * 29 + 6, note, width, "small", "muted")


class _Side:
    """The code, and below it all codes."""

    def __init__(self, code: int | None, shown: bool):
        self.code, self.shown = code, shown

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Both with their headings."""
        top = y
        if self.shown:
            name = "" if self.code is None else f" {self.code:#x}"
            scene.text(f"{key}/code.caption", x, top + 12, f"Error code{name}", "head", width=width)
            top += 20 + _Code(self.code).draw(scene, "code", x, top + 20, width) + 12
        scene.text(f"{key}/grid.caption", x, top + 12, "All codes of these five bits", "head", width=width)
        top += 20
        return top + _Grid(self.code if self.shown else None).draw(scene, "grid", x, top, width) - y


@dataclass(frozen=True, slots=True)
class Decision:
    """The kernel's questions with their answers, and what it does in the end; ``bad`` if that is a signal or an oops."""

    steps: list[tuple[str, bool]]
    outcome: str
    bad: bool


def handler(word: int, write: bool) -> str:
    """Who fills an entry that the area allows to be filled (5.17: mm/memory.c, handle_pte_fault())."""
    what = kind(word)
    if what == "none":
        return "do_anonymous_page(): a page of zeros"
    if what == "swap":
        return "do_swap_page(): read it back"
    if what == "protnone":
        return "do_numa_page(): was it a hint?"
    if write and not pte_write(word):
        return "do_wp_page(): a private copy, or the right to write"
    return "nothing to do: spurious"


def decide(code: int, word: int, area: str, verdict: FaultVerdict) -> Decision:
    """The whole way of a fault: the entry's decisions, then the area's."""
    steps = list(verdict.steps)
    if verdict.outcome is not Outcome.HANDLE_MM_FAULT:
        bad = verdict.outcome in (Outcome.OOPS, Outcome.PGTABLE_BAD, Outcome.SIGSEGV)
        return Decision(steps, verdict.outcome.value, bad)
    flags = AREAS[area][1]
    user = bool(code & X86_PF_USER)
    steps.append(("is there an area at this address?", flags is not None))
    if flags is None:
        return Decision(steps, "SIGSEGV, SEGV_MAPERR" if user else "the system call returns -EFAULT", True)
    refused = access_error(code, Vma(ADDR, ADDR + PAGE_SIZE, flags, 0))
    steps.append(("does the area forbid the access?", refused))
    if refused:
        return Decision(steps, "SIGSEGV, SEGV_ACCERR" if user else "the system call returns -EFAULT", True)
    return Decision(steps, handler(word, bool(code & X86_PF_WRITE)), False)


class _Machine:
    """The kernel's questions, and beside them the code."""

    def __init__(self, width: float, code: int | None, decision: Decision | None):
        self.width, self.code, self.decision = width, code, decision

    def frame(self, say: str, asked: int, code: bool = True, ask: Ask | None = None) -> Frame:
        """The first ``asked`` questions of the kernel answered."""
        scene = Scene(self.width)
        side = _Side(self.code, code)
        if self.decision is None or asked < 0:
            scene.add(side, "side")
        elif scene.narrow:
            scene.add(side, "side")
            scene.add(self._chart(asked), "chart", "What the kernel asks")
        else:
            scene.row([("chart", self._chart(asked), "What the kernel asks", 1), ("side", side, "", 1)], gap=40)
        return Frame(scene, say, ask=ask)

    def _chart(self, asked: int) -> FlowChart:
        assert self.decision is not None
        steps = self.decision.steps
        boxes, ways = [], []
        for row, (question, _) in enumerate(steps):
            state = "now" if row == asked - 1 and asked < len(steps) else "lit" if row < asked else ""
            boxes.append(Box(f"q{row}", question, 0, row, "choice", state))
            if row:
                ways.append(Way(f"q{row - 1}", f"q{row}", "yes" if steps[row - 1][1] else "no", row < asked))
        if asked >= len(steps):
            boxes.append(Box("end", self.decision.outcome, 0, len(steps), "end", "failed" if self.decision.bad else "now"))
            ways.append(Way(f"q{len(steps) - 1}", "end", "yes" if steps[-1][1] else "no", True))
        else:
            boxes.append(Box("end", "?", 0, len(steps), "end"))
        return FlowChart(boxes, ways)


@figure(
    "Error-code machine",
    alt="The five bits of a page-fault error code for a chosen access and page-table entry, the kernel's first questions about it as a "
        "flow chart, and all 32 codes with the impossible ones dashed.",
    params=[
        Choice("access", ACCESS, default="w"),
        Choice("mode", ["user", "kernel"]),
        Choice("entry", {name: words for name, (words, _) in ENTRIES.items()}, default="readonly", label="the last entry"),
        Choice("area", {name: words for name, (words, _) in AREAS.items()}, label="the area"),
        Toggle("ac", False, label="inside copy_to_user()", help="EFLAGS.AC is set: the kernel may touch user pages for a moment"),
    ],
)
def error_code_machine(access: str, mode: str, entry: str, area: str, ac: bool, width: float) -> Iterator[Frame]:
    """One access on the CPU of :mod:`mmsim.paging`, then :func:`mmsim.kernel.fault_entry.decide_fault`."""
    user = mode == "user"
    words, word = ENTRIES[entry]
    code = error_code(access, user, word, Control(ac=ac and not user))
    decision = None
    if code is not None:
        context = FaultContext(user_mode=user, ac=ac and not user, exception_table=ac and not user)
        decision = decide(code, word, area, decide_fault(ADDR, code, context))
    machine = _Machine(width, code, decision)
    who = f"{'User' if user else 'Kernel'} {ACCESS[access]}, {words} ({word:#x})"
    if code is None or decision is None:
        yield machine.frame(f"{who}: the access is allowed, and there is no fault and no code.", -1)
    else:
        yield machine.frame(f"{who}, area {AREAS[area][0]}: error code {code:#x} ({error_code_names(code)}). "
                            f"In the end: {decision.outcome}.", len(decision.steps))
        guess = sorted({code, code ^ X86_PF_PROT, code ^ X86_PF_USER, code ^ X86_PF_WRITE if access != "x" else code ^ X86_PF_INSTR})
        yield machine.frame(f"{who} at address {ADDR:#x}. The CPU walks the tables.", -1, code=False,
                            ask=Ask("Which error code does the CPU push?", f"{code:#x}",
                                    f"{error_code_names(code)}: {' + '.join(_parts(code)) or 'no bit at all'}.",
                                    choices=[f"{one:#x}" for one in guess]))
        yield machine.frame(f"The code is {code:#x}: {', '.join(_WORDS[name][not code & bit] for bit, name in reversed(CODES))}. "
                            + ("It does not tell which level was not present." if not code & X86_PF_PROT else
                               "All levels are present; a right is missing." if not code & X86_PF_RSVD else "An entry is malformed."), 0)
        for number, (question, answer) in enumerate(decision.steps, 1):
            end = f" Outcome: {decision.outcome}." if number == len(decision.steps) else ""
            yield machine.frame(f"The kernel asks: {question} {'Yes' if answer else 'No'}.{end}", number)
    found = reachable_codes()
    both = sum(bool(why_impossible(other)) for other in range(32))
    yield machine.frame(f"Of the 32 codes of five bits, {len(found)} can occur and {both} cannot: no access is a write and a fetch at "
                        "once, and a reserved bit is only looked at where P is 1.", -1)


def _parts(code: int) -> list[str]:
    return [f"{name} {bit:#x}" for bit, name in reversed(CODES) if code & bit]
