"""The walk: one address through four tables of real words, what each level allows, and what all levels allow together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_GLOBAL,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_RW,
    _PAGE_USER,
    GFP_HIGHUSER_MOVABLE,
)
from mmsim.draw import Ask, Choice, Frame, Operations, Scene, Text, figure
from mmsim.draw.params import OperationList
from mmsim.errors import Errno, InputError, KernelBug
from mmsim.paging.address import PAGE_LEVEL_SIZE, from_indexes, indexes, is_canonical, level_name
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_COPY
from mmsim.paging.tables import PageTables
from mmsim.paging.walk import (
    Control,
    GeneralProtection,
    PageFault,
    Step,
    error_code_names,
    hardware_walk,
    walk_rights,
    walk_steps,
)
from mmsim.reference import toy16
from mmsim.units import PAGE_SHIFT, U64_MAX

__all__ = ["ACCESS", "BITS", "CPUS", "PAGE_SIZES", "SMALL_SIZES", "Space", "read_address", "the_walk"]

#: The bits that a reader can change, highest last; ``rsvd`` is bit 51, above the physical addresses of this CPU.
BITS: dict[str, int] = {
    "P": _PAGE_PRESENT, "RW": _PAGE_RW, "US": _PAGE_USER, "A": _PAGE_ACCESSED, "D": _PAGE_DIRTY, "PS": _PAGE_PSE,
    "G": _PAGE_GLOBAL, "rsvd": 1 << 51, "NX": _PAGE_NX,
}
_CHIPS = ("P", "RW", "US", "A", "D", "PS", "G", "NX")
_MEANING = {
    "P": "present: the rest of the word counts", "RW": "writing is allowed", "US": "user mode is allowed", "A": "accessed: set by the CPU",
    "D": "dirty: set by the CPU on the first write", "PS": "a large page: the walk ends here (PAT in a PTE)",
    "G": "global: outlives a change of address space", "NX": "no execution",
}
CPUS: dict[str, tuple[str, Control]] = {
    "linux": ("as Linux runs it", Control()),
    "no-smap": ("without SMEP and SMAP", Control(smep=False, smap=False)),
    "no-wp": ("with CR0.WP off", Control(wp=False)),
    "no-nx": ("without NX", Control(nxe=False)),
}
#: Page sizes by the level of their entry.
PAGE_SIZES: dict[str | int, str] = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB"}
#: The two that most CPUs keep in one TLB.
SMALL_SIZES: dict[str | int, str] = {1: "4 KiB", 2: "2 MiB"}
ACCESS = {"r": "read", "w": "write", "x": "execute"}
_DONE = {"r": "reads", "w": "writes", "x": "executes"}
_LEVELS = {"pgd": 4, "pud": 3, "pmd": 2, "pte": 1}
_TEXT = b"mmsim\0"


def read_address(text: str) -> int:
    """An address as typed: hexadecimal, or four table indexes such as ``255 511 447 509``. Raise InputError."""
    words = text.replace(",", " ").split()
    if len(words) == 4 and all(word.isdigit() for word in words):
        return from_indexes(*map(int, words))
    try:
        return int(text.strip(), 16) & U64_MAX if text.strip() else 0
    except ValueError:
        raise InputError(f"{text[:40]!r} is neither an address such as 0x7ffff7ffde06 nor four indexes such as 255 511 447 509") from None


class Space:
    """One address space on a machine of 16 MiB, with one page mapped, and a CPU that runs it.

    ``level`` is that of the page: 1, 2 or 3 for 4 KiB, 2 MiB, 1 GiB. An address of the kernel's half finds the kernel's own
    tables, in which nothing is mapped anew.
    """

    def __init__(self, addr: int, level: int, control: Control):
        machine = toy16()
        self.addr, self.level, self.control = addr, level, control
        self.contents = machine.contents
        self.tables = PageTables(machine.tables, machine.init_mm)
        self.cpu = Mmu(self.contents, control)
        self.cpu.write_cr3(self.tables.pgd << PAGE_SHIFT)
        if addr < 1 << 47:                          # the other half is the kernel's
            pfn = machine.alloc_pages(GFP_HIGHUSER_MOVABLE, 9 if level == 2 else 0)
            if pfn is None:
                raise Errno("ENOMEM", "no frame is left for the page")
            if level == 3:
                pfn = 1 << 18                       # a frame of a larger machine: this one has not a whole GiB
            self.tables.map_page(addr & -PAGE_LEVEL_SIZE[level], pfn, PAGE_COPY if control.nxe else PAGE_COPY & ~_PAGE_NX, level)
            if level < 3:
                self.contents.write((pfn << PAGE_SHIFT) + (addr & PAGE_LEVEL_SIZE[level] - 1) - addr % 8, _TEXT)

    def edit(self, operations: OperationList) -> None:
        """Set and clear bits as the reader asks; a level without an entry refuses."""
        for operation in operations:
            level = _LEVELS[operation["level"]]
            found = self.tables.entry(self.addr, level) if is_canonical(self.addr) else None
            if found is None:
                operation.fail(f"the walk of {self.addr:#x} reaches no {operation['level'].upper()} entry")
                continue
            words, index = found
            if operation.verb == "write":
                try:
                    words[index] = int(operation["word"], 0) & U64_MAX
                except ValueError:
                    operation.fail(f"{operation['word'][:40]!r} is no number such as 0x8000000012345867")
            elif operation.verb == "set":
                words[index] |= BITS[operation["bit"]]
            else:
                words[index] &= ~BITS[operation["bit"]] & U64_MAX

    def steps(self) -> list[Step]:
        """What a walk reads now."""
        return walk_steps(self.contents, self.tables.pgd, self.addr)

    def outcome(self, access: str, user: bool) -> int:
        """The error code of an access, -1 if it succeeds, -2 for #GP; tables and TLB stay as they are."""
        if not is_canonical(self.addr):
            return -2
        kept = {step.table: self.contents.frames[step.table][:] for step in self.steps() if step.table in self.contents.frames}
        try:
            hardware_walk(self.contents, self.tables.pgd, self.addr, access, user, self.control)
        except PageFault as fault:
            return fault.error_code
        finally:
            for pfn, words in kept.items():
                self.contents.frames[pfn][:] = words
        return -1


@dataclass(slots=True)
class _Picture:
    """How much of the walk a frame shows, and what is new in it."""

    levels: int = 4                     # how many levels have been read
    address: bool = False               # mark the split of the address
    page: bool = True
    matrix: bool = True
    focus: int = 0                      # the level that is read in this step
    old: dict[int, int] = field(default_factory=dict)           # words before this step, by level


class _Split:
    """The address cut into its indexes."""

    def __init__(self, addr: int, picture: _Picture, leaf: int):
        self.addr, self.picture, self.leaf = addr, picture, leaf

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Six boxes: sign, four indexes (those below a large page's level belong to the offset), offset."""
        parts: list[tuple[str, str, str, float]] = [("sign", f"{self.addr >> 48:#x}", "63:48", 1.15)]
        for level, index in zip((4, 3, 2, 1), indexes(self.addr), strict=True):
            if level >= self.leaf:
                low = 12 + 9 * (level - 1)
                parts.append((level_name(level), str(index), f"{low + 8}:{low}", 1))
        offset = self.addr & PAGE_LEVEL_SIZE[self.leaf] - 1
        parts.append(("offset", f"{offset:#x}", f"{11 + 9 * (self.leaf - 1)}:0", 1.15 + self.leaf - 1))
        total = sum(weight for *_, weight in parts)
        left = x
        for name, text, span, weight in parts:
            wide = width * weight / total - 4
            hot = self.picture.focus and name == level_name(self.picture.focus) or self.picture.address and name not in ("sign", "offset")
            role = "moving" if hot else "table" if name not in ("sign", "offset") else ""
            scene.text(f"{key}/{name}.span", left + wide / 2, y + 10, span, "small", "muted", "middle")
            scene.box(f"{key}/{name}", left, y + 15, wide, 24, text, role, f"{name}, bits {span}", style="label")
            scene.text(f"{key}/{name}.name", left + wide / 2, y + 52, name, "small", "", "middle", width=wide)
            left += width * weight / total
        return 56


class _Levels:
    """One row for each table: the word that the CPU reads, its bits, and what all levels so far allow together."""

    def __init__(self, steps: list[Step], picture: _Picture, contents_of_page: str):
        self.steps, self.picture, self.last = steps, picture, contents_of_page

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """The rows, and the page below them."""
        narrow = width < 560
        high = 54 if narrow else 36
        top = y
        if not narrow:
            for text, at in (("table", 62), ("slot", 148), ("the word in it", 200), ("its bits", 346), ("together", 606)):
                scene.text(f"{key}/head:{text}", x + at, top + 10, text, "small", "muted")
            top += 16
        rw, us, nx = True, True, False
        for number, step in enumerate(self.steps):
            read = number < self.picture.levels
            word = step.word
            present = bool(word & _PAGE_PRESENT)
            rw, us, nx = rw and bool(word & _PAGE_RW), us and bool(word & _PAGE_USER), nx or bool(word & _PAGE_NX)
            self._row(scene, f"{key}/{level_name(step.level)}", x, top, step, read, narrow)
            if read and present:
                left, base = (x + 238, top + 26) if narrow else (x + 606, top + 3)
                self._together(scene, f"{key}/{level_name(step.level)}", left, base, rw, us, nx)
            top += high
        shown = self.picture.page and self.picture.levels >= len(self.steps)
        end = self.steps[-1]
        if end.word & _PAGE_PRESENT:
            scene.box(f"{key}/page", x, top, 54 if not narrow else 42, 24, "page", "anon" if shown else "", cls="" if shown else "ghost")
            if shown:
                scene.text(f"{key}/page.words", x + (62 if not narrow else 50), top + 16, self.last, "code", width=width - 62)
        else:
            scene.box(f"{key}/page", x, top, 54 if not narrow else 42, 24, "none", "error" if shown else "", cls="" if shown else "ghost")
            if shown:
                scene.text(f"{key}/page.words", x + (62 if not narrow else 50), top + 16,
                           f"P = 0 in the {level_name(end.level)} entry: the walk ends", "small", width=width - 62)
        return top + 28 - y

    def _row(self, scene: Scene, key: str, x: float, top: float, step: Step, read: bool, narrow: bool) -> None:
        hot = step.level == self.picture.focus
        role = "moving" if hot else "table" if read else ""
        scene.box(key, x, top, 42 if narrow else 54, 24, level_name(step.level), role, f"a table of 512 words in frame {step.table:#x}",
                  cls="" if read else "ghost")
        known = read or step.level == 4
        frame = f"frame {step.table:#x}" if known else "frame ?"
        scene.text(f"{key}.frame", x + (48 if narrow else 62), top + 16, frame, "code", "" if known else "muted")
        scene.text(f"{key}.slot", x + (126 if narrow else 148), top + 16, f"[{step.slot}]", "code", "strong")
        if not read:
            return
        at = x + (344 - 127 if narrow else 200)
        old = self.picture.old.get(step.level, step.word)
        if old != step.word:
            scene.rect(f"{key}.changed", at - 2, top + 3, 128 if narrow else 134, 18, "mark", rx=2)
        scene.text(f"{key}.word", at, top + 16, f"{step.word:#018x}", "code" if narrow else "mono")
        left, base = (x, top + 26) if narrow else (x + 346, top + 3)
        wide = 27 if narrow else 30
        for number, name in enumerate(_CHIPS):
            on = bool(step.word & BITS[name])
            changed = (old ^ step.word) & BITS[name]
            label = "PAT" if name == "PS" and step.level == 1 else name
            cls = "moving" if changed else "level" if on else "ghost"
            scene.rect(f"{key}.{name}", left + number * (wide + 1.5), base, wide, 18, cls, f"{label} = {int(on)}: {_MEANING[name]}", rx=2)
            scene.text(f"{key}.{name}.t", left + number * (wide + 1.5) + wide / 2, base + 13, label, "small",
                       "on-moving" if changed else "strong" if on else "muted", "middle")

    @staticmethod
    def _together(scene: Scene, key: str, left: float, top: float, rw: bool, us: bool, nx: bool) -> None:
        """What all levels so far allow: RW and US only if all have it, NX if any has."""
        for number, (name, on) in enumerate((("RW", rw), ("US", us), ("NX", nx))):
            scene.rect(f"{key}.all.{name}", left + number * 36, top, 33, 18, "panel focus" if on else "ghost",
                       f"{name} of all levels so far together: {int(on)}", rx=2)
            scene.text(f"{key}.all.{name}.t", left + number * 36 + 16.5, top + 13, name, "small", "strong" if on else "muted", "middle")


class _Matrix:
    """Who may do what: two modes by three accesses."""

    def __init__(self, space: Space, access: str, mode: str):
        self.space, self.access, self.mode = space, access, mode

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """The cells; that of the figure's own access has a heavy outline."""
        first = 58.0
        wide = (width - first) / 3
        for column, (_, name) in enumerate(ACCESS.items()):
            scene.text(f"{key}/head:{name}", x + first + wide * (column + 0.5), y + 11, name, "small", "muted", "middle")
        for row, mode in enumerate(("user", "kernel")):
            top = y + 17 + row * 30
            scene.text(f"{key}/{mode}", x, top + 17, mode, "label")
            for column, access in enumerate(ACCESS):
                code = self.space.outcome(access, mode == "user")
                text = "allowed" if code == -1 else "#GP" if code == -2 else f"#PF {code:#x}"
                reason = "allowed" if code == -1 else "not canonical" if code == -2 else error_code_names(code)
                tip = f"{mode} {ACCESS[access]}: {reason}"
                mine = " focus" if (access, mode) == (self.access, self.mode) else ""
                scene.box(f"{key}/{mode}:{access}", x + first + wide * column, top, wide - 5, 25, text, "free" if code == -1 else "error",
                          tip, cls=mine.strip())
        return 17 + 60


@figure(
    "The walk",
    alt="An address cut into four indexes, the four page-table words that a walk reads with their bits, the permissions of all levels "
        "together, and a table of what user and kernel may do.",
    params=[
        Text("address", "0x7ffff7ffde06", help="hexadecimal, or four indexes: 255 511 447 509"),
        Choice("access", ACCESS),
        Choice("mode", ["user", "kernel"]),
        Choice("page", PAGE_SIZES, label="page size"),
        Choice("cpu", {name: words for name, (words, _) in CPUS.items()}, label="CPU"),
        Operations("bits", "", {
            "set": "level:pgd|pud|pmd|pte bit:P|RW|US|A|D|PS|G|rsvd|NX -- set a bit of an entry on the way",
            "clear": "level:pgd|pud|pmd|pte bit:P|RW|US|A|D|PS|G|rsvd|NX -- clear it",
            "write": "level:pgd|pud|pmd|pte word:word -- put a whole word there",
        }, label="change entries"),
    ],
)
def the_walk(address: str, access: str, mode: str, page: int, cpu: str, bits: OperationList, width: float) -> Iterator[Frame]:
    """Builds tables in the frames of a machine of 16 MiB, applies the reader's changes, and lets a CPU walk them."""
    addr = read_address(address)
    space = Space(addr, page, CPUS[cpu][1])
    if not is_canonical(addr):
        yield _not_canonical(addr, width)
        return
    space.edit(bits)
    user = mode == "user"
    steps = space.steps()
    leaf = steps[-1]
    code = space.outcome(access, user)
    ends = max(leaf.level, 1) if leaf.word & _PAGE_PRESENT and leaf.level < 4 else 1
    physical = (leaf.word & ((1 << 52) - 1) & -PAGE_LEVEL_SIZE[ends]) + (addr & PAGE_LEVEL_SIZE[ends] - 1)
    where = f"frame {physical >> PAGE_SHIFT:#x} + {addr & 4095:#x} = physical address {physical:#x}"
    narrow = width < 560
    shown = f"physical address {physical:#x}" if narrow else where

    def shot(say: str, picture: _Picture, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        scene.add(_Split(addr, picture, ends), "split", f"Virtual address {addr:#x}")
        scene.add(_Levels(space.steps(), picture, shown), "levels", f"The walk, from CR3: frame {space.tables.pgd:#x}")
        if picture.matrix:
            scene.add(_Matrix(space, access, mode), "matrix", "Who may do what here", f"CPU {CPUS[cpu][0]}")
        return Frame(scene, say, ask=ask)

    rights = walk_rights(space.contents, space.tables.pgd, addr, space.control)
    who = f"{'User' if user else 'Kernel'} {ACCESS[access]}"
    ending = ("allowed" if code == -1 else f"page fault, error code {code:#x} ({error_code_names(code)})")
    target = f"physical address {physical:#x}" if leaf.word & _PAGE_PRESENT else "an entry that is not present"
    allowed = sum(space.outcome(one, other) == -1 for one in ACCESS for other in (True, False))
    yield shot(f"{len(steps)} loads lead from CR3 to {target}. {who} of {addr:#x}: {ending}. Of the six kinds of access in the table, "
               f"{allowed or 'none'} {'is' if allowed <= 1 else 'are'} allowed.", _Picture())
    cut = ", ".join(f"{level_name(step.level)} {step.slot}" for step in steps)
    yield shot(f"The address is cut into indexes of 9 bits: {cut}. The rest is the offset in the page.",
               _Picture(0, address=True, page=False, matrix=False))
    for number, step in enumerate(steps, 1):
        last = number == len(steps)
        ask = None
        name = level_name(step.level)
        if last and code >= 0 and rights:
            ask = Ask(f"All levels are read. May a {mode} {ACCESS[access]} go on?", "no", _why(steps, code), choices=["yes", "no"])
        elif last and rights and code == -1:
            may = space.outcome("w", True) == -1
            ask = Ask("All levels are read. May the user write here?", "yes" if may else "no",
                      "RW must be set in all levels: they are ANDed.", choices=["yes", "no"])
        if not step.word & _PAGE_PRESENT:
            text = f"{name}: entry {step.slot} of frame {step.table:#x} is {step.word:#x}. P is 0, and the CPU looks no further."
        elif last:
            text = f"{name}: entry {step.slot} of frame {step.table:#x} holds the page itself, {step.word:#x}."
        else:
            below = (step.word & ((1 << 52) - 1)) >> PAGE_SHIFT
            text = f"{name}: entry {step.slot} of frame {step.table:#x} says that the next table lies in frame {below:#x}."
        yield shot(text, _Picture(number, page=last, matrix=False, focus=step.level), ask)
    yield from _ends(space, access, user, steps, shot, where)


def _ends(space: Space, access: str, user: bool, steps: list[Step], shot: Callable[[str, _Picture], Frame], where: str) -> Iterator[Frame]:
    """The access itself, and the same once more."""
    before = {step.level: step.word for step in steps}
    mode = "user" if user else "kernel"
    try:
        space.cpu.translate(space.addr, access, user)
    except PageFault as fault:
        yield shot(f"The CPU raises #PF: CR2 = {fault.cr2:#x}, error code {fault.error_code:#x} ({error_code_names(fault.error_code)}). "
                   f"{_why(steps, fault.error_code)} The kernel takes over.", _Picture(old=before))
        return
    except GeneralProtection as error:                  # pragma: no cover - the address was checked
        raise KernelBug(str(error)) from error
    changed = [f"{'D' if (before[s.level] ^ s.word) & _PAGE_DIRTY else 'A'} in the {level_name(s.level)}" for s in space.steps()
               if s.word != before[s.level]]
    marks = f"On the way it set {', '.join(changed)}." if changed else "A was set in all entries already."
    yield shot(f"The {mode} {_DONE[access]}: {where}. {marks}", _Picture(old=before))
    loads = space.cpu.loads
    again = {step.level: step.word for step in space.steps()}
    space.cpu.translate(space.addr, access, user)
    yield shot(f"The same once more: the TLB has the result, and the walk reads {space.cpu.loads - loads} words instead of {loads}.",
               _Picture(old=again))


def _why(steps: list[Step], code: int) -> str:
    """Why an access ends in this code, by the first level that is against it."""
    if not code & 1:
        return f"The {level_name(steps[-1].level)} entry is not present."
    if code & 8:
        return "A reserved bit is set on the way."

    def first(test: Callable[[int], object]) -> str:
        return next((level_name(step.level) for step in steps if test(step.word)), "")

    if code & 16 and (name := first(lambda word: word & _PAGE_NX)):
        return f"NX is set in the {name} entry."
    if code & 4 and (name := first(lambda word: not word & _PAGE_USER)):
        return f"US is clear in the {name} entry."
    if code & 2 and (name := first(lambda word: not word & _PAGE_RW)):
        return f"RW is clear in the {name} entry."
    return "The page is a user page: SMEP and SMAP keep the kernel off it."


def _not_canonical(addr: int, width: float) -> Frame:
    scene = Scene(width)
    picture = _Picture(address=True)
    scene.add(_Split(addr, picture, 1), "split", f"Virtual address {addr:#x}")
    return Frame(scene, f"{addr:#x} is not canonical: bits 63 to 47 are not all equal. The CPU walks nothing and raises #GP, a general "
                 "protection fault; CR2 keeps its old value.")
