"""Five kinds of "not present": what stands in an entry whose P bit is clear, for the CPU and for the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.constants import _PAGE_BIT_PROTNONE, _PAGE_PRESENT, SWP_MIGRATION_WRITE
from mmsim.draw import Ask, Bits, Field, Frame, Scene, Text, figure
from mmsim.errors import InputError
from mmsim.figures.ch03.error_code_machine import error_code
from mmsim.paging.pagemap import pagemap_entry
from mmsim.paging.pte import (
    PAGE_COPY,
    PAGE_NONE,
    describe,
    kind,
    mk_pte,
    pte_mkdirty,
    pte_mkwrite,
    pte_modify,
    pte_pfn,
    swp_entry,
    swp_entry_to_pte,
)
from mmsim.paging.tables import Leaf
from mmsim.paging.walk import Control
from mmsim.units import U64_MAX

__all__ = ["KINDS", "Kind", "not_present"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the five: its name, the entry, the level it stands at, what the kernel makes of it, and who handles the fault."""

    name: str
    word: int
    means: str
    handler: str
    level: int = 1


_PAGE = pte_mkwrite(pte_mkdirty(mk_pte(0x12345, PAGE_COPY)))
KINDS: tuple[Kind, ...] = (
    Kind("no table", 0, "nothing was ever touched nearby", "makes the tables, then as below", 2),
    Kind("empty", 0, "nothing is there yet", "do_anonymous_page(), or do_fault() for a file"),
    Kind("swap", swp_entry_to_pte(swp_entry(1, 0x1234)), "the page was written out", "do_swap_page() reads it back"),
    Kind("migration", swp_entry_to_pte(swp_entry(SWP_MIGRATION_WRITE, 0x12345)), "the page is being moved",
         "migration_entry_wait() sleeps till it has moved"),
    Kind("PROT_NONE", pte_modify(_PAGE, PAGE_NONE), "the page is here, nobody may use it",
         "SIGSEGV; do_numa_page() if the area allows access"),
)


def _reads(one: Kind) -> str:
    """An entry in the kernel's words."""
    return "no PTE to look at" if one.level > 1 else describe(one.word)


class _Overview:
    """All five, one below the other."""

    def __init__(self, chosen: int | None):
        self.chosen = chosen

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Name, word, the CPU's code, the kernel's reading."""
        narrow = width < 480
        high, top = (84.0 if narrow else 46.0), y
        if not narrow:
            for at, text in ((104, "the entry"), (262, "the CPU"), (356, "the kernel reads, and does")):
                scene.text(f"{key}/head{at}", x + at, top + 11, text, "small", "muted")
            top += 17
        for number, one in enumerate(KINDS):
            code = error_code("r", True, one.word, Control(), one.level)
            if number == self.chosen:
                scene.rect(f"{key}/{one.name}.mark", x, top - 3, width, high - 4, "mark", rx=3)
            role = "table" if one.level > 1 else "anon" if one.word else "free"
            scene.box(f"{key}/{one.name}", x + 2, top + 2, 92, 24, one.name, role, style="label")
            if narrow:
                scene.text(f"{key}/{one.name}.word", x + 102, top + 18, f"{one.word:#018x}", "code", width=width - 160)
                scene.text(f"{key}/{one.name}.code", x + width - 4, top + 18, f"code {code:#x}", "small", "strong", "end")
                scene.text(f"{key}/{one.name}.reads", x + 6, top + 44, _reads(one), "small", "strong", width=width - 8)
                scene.text(f"{key}/{one.name}.does", x + 6, top + 62, one.handler, "small", width=width - 8)
            else:
                tip = "the PMD entry" if one.level > 1 else ""
                scene.text(f"{key}/{one.name}.word", x + 104, top + 18, f"{one.word:#018x}", "mono", tip=tip)
                scene.text(f"{key}/{one.name}.code", x + 262, top + 18, f"#PF {code:#x}", "label", "strong")
                scene.text(f"{key}/{one.name}.reads", x + 356, top + 12, _reads(one), "small", "strong", width=width - 358)
                scene.text(f"{key}/{one.name}.does", x + 356, top + 29, one.handler, "small", width=width - 358)
            top += high
        return top - y


def _kernel_fields(word: int) -> list[Field]:
    """How the kernel cuts a word, by its kind."""
    what = kind(word)
    if what in ("swap", "migration", "other"):
        return [Field("type", 63, 59, "anon", "which swap area; 30 and 31 are no areas but pages on the move"),
                Field("offset, inverted", 58, 9, "anon", "which page of it: all bits are flipped"),
                Field("NONE", 8, 8, "", "bit 8 is clear: no PROT_NONE"),
                Field("zero", 7, 3), Field("uffd", 2, 2, "", "uffd-wp"), Field("soft", 1, 1, "", "soft-dirty"), Field("P", 0, 0, "moving")]
    if what == "none":
        return [Field("nothing", 63, 1), Field("P", 0, 0, "moving")]
    frame = "frame, inverted" if what == "protnone" else "frame"
    bit_8 = Field("NONE", 8, 8, "moving", "PROT_NONE") if what == "protnone" else Field("G", 8, 8, "", "global")
    return [Field("NX", 63, 63), Field("pkey", 62, 52), Field(frame, 51, 12, "anon"),
            Field("soft", 11, 9, "", "soft-dirty, uffd-wp, special"), bit_8, Field("D A", 7, 1), Field("P", 0, 0, "moving")]


class _Word:
    """One entry, as the CPU reads it and as the kernel does."""

    def __init__(self, word: int):
        self.word = word

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Two rows of fields."""
        top = y
        if not self.word & _PAGE_PRESENT:
            scene.text(f"{key}/cpu.t", x, top + 12, "the CPU looks at one bit", "small", "muted")
            ignored = Field("ignored", 63, 1, "", "the CPU reads none of these", "ghost")
            top += 18 + Bits(self.word, [ignored, Field("P", 0, 0, "moving")]).draw(scene, f"{key}/cpu", x, top + 18, width) + 8
        scene.text(f"{key}/kernel.t", x, top + 12, "the kernel looks at all of them", "small", "muted")
        top += 18 + Bits(self.word, _kernel_fields(self.word)).draw(scene, f"{key}/kernel", x, top + 18, width)
        return top - y


def _pagemap(one: Kind) -> str:
    leaf = Leaf(0, 1, one.word) if one.word else None
    return f"{pagemap_entry(leaf, 0, mapcount=1):#018x}"


@figure(
    'Five kinds of "not present"',
    alt="A table of five page-table entries whose P bit is clear: no table, empty, swap, migration, PROT_NONE; the CPU answers all with "
        "error code 4, the kernel tells them apart.",
    params=[Text("word", "0x07fffffffffffc00", help="a page-table entry in hexadecimal: the last step takes it apart")],
)
def not_present(word: str, width: float) -> Iterator[Frame]:
    """Makes the five entries with the functions of :mod:`mmsim.paging.pte`, lets a CPU read through each, and takes them apart."""
    try:
        own = int(word.strip() or "0", 16)
    except ValueError:
        raise InputError(f"{word[:40]!r} is no word in hexadecimal, such as 0x07fffffffffffc00") from None
    if not 0 <= own <= U64_MAX:
        raise InputError(f"{own:#x} has more than 64 bits")

    def shot(say: str, chosen: int | None, shown: int | None, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        if shown is None:
            scene.add(_Overview(chosen), "all", "A user read through each of five entries")
        else:
            scene.add(_Word(shown), "word", f"{shown:#018x}", describe(shown))
        return Frame(scene, say, ask=ask)

    codes = {error_code("r", True, one.word, Control(), one.level) for one in KINDS}
    yield shot(f"Five entries that mean five things. The CPU sees P = 0 and gives the same answer to all, error code {codes.pop():#x}; "
               "what happened to the page is the kernel's to know.", None, None,
               Ask("In which of the five is the page still in memory and complete?", "PROT_NONE",
                   "Its frame number is in the entry, inverted; bit 8 says so. (A page on the move is being copied.)",
                   choices=[one.name for one in KINDS[1:]]))
    for number, one in enumerate(KINDS):
        if one.level > 1:
            yield shot("No table: already the PMD entry is 0. The PTE table is made when the first page below it is touched.", number, None)
            continue
        more = ""
        if one.name == "PROT_NONE":
            more = f" Bit {_PAGE_BIT_PROTNONE} is set, and the frame number {pte_pfn(one.word):#x} is stored inverted."
        elif one.name in ("swap", "migration"):
            more = " The offset is stored inverted, so that no speculative load through it can find memory."
        yield shot(f"{one.name}: {one.means}. The kernel reads: {describe(one.word)}.{more} Its word in pagemap is {_pagemap(one)}.",
                   number, one.word)
    if own & _PAGE_PRESENT:
        yield shot(f"Your word {own:#x} is present: {describe(own)}.", None, own)
    else:
        yield shot(f"Your word {own:#x} is not present. The kernel reads: {describe(own)}.", None, own)
