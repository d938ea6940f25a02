"""The walk: how the CPU finds the frame of an address, and what it says when it may not.

Nothing here knows a kernel. The CPU reads one word a level from physical memory, beginning at the frame in CR3, ANDs the
RW and US bits of all levels and ORs their NX; where it may go on, it sets A in each word it used, and D in the leaf on a
write. Where it may not, it says so in an error code (Intel SDM volume 3, "Paging" and "Page-Fault Exceptions")::

      5    4      3     2     1     0
    +----+------+-----+-----+-----+------+
    | PK | INSTR| RSVD| USER|WRITE| PROT |     PROT = 0: some level was not present; the code does not say which
    +----+------+-----+-----+-----+------+
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_BIT_PKEY_BIT0,
    _PAGE_DIRTY,
    _PAGE_GLOBAL,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_RW,
    _PAGE_USER,
    PTE_PFN_MASK,
    X86_PF_INSTR,
    X86_PF_PK,
    X86_PF_PROT,
    X86_PF_RSVD,
    X86_PF_USER,
    X86_PF_WRITE,
)
from mmsim.errors import InputError
from mmsim.paging.address import LEVEL_SHIFT, PAGE_LEVEL_SIZE
from mmsim.paging.contents import FrameContents
from mmsim.units import PAGE_SHIFT, U64_MAX

__all__ = ["ACCESSES", "Control", "GeneralProtection", "PageFault", "Passed", "Step", "TlbEntry", "base_code", "denied",
           "error_code_names", "hardware_walk", "loads", "reserved_bits", "walk_rights", "walk_steps"]

#: Kinds of access: a data read, a data write, an instruction fetch.
ACCESSES = ("r", "w", "x")


class PageFault(Exception):
    """#PF: the CPU stops the instruction and calls the kernel, with the address in CR2 and an error code."""

    def __init__(self, cr2: int, error_code: int):
        self.cr2 = cr2
        self.error_code = error_code
        #: In a bulk run, how many accesses were done before the one that faulted.
        self.index = 0
        super().__init__(f"page fault at {cr2:#x}, error code {error_code:#x} ({error_code_names(error_code)})")


class GeneralProtection(Exception):
    """#GP: the address is not canonical. The CPU walks nothing and leaves CR2 alone."""

    def __init__(self, addr: int):
        self.addr = addr
        super().__init__(f"general protection fault: {addr:#x} is not canonical")


def error_code_names(code: int) -> str:
    """An error code in words, as the kernel's oops text orders it.

    >>> error_code_names(7), error_code_names(4)
    ('PROT WRITE USER', 'not present USER')
    """
    names = ("PROT", "WRITE", "USER", "RSVD", "INSTR", "PK")
    found = [name for bit, name in enumerate(names) if code >> bit & 1]
    return " ".join(found if code & X86_PF_PROT else ["not present", *found])


@dataclass(slots=True)
class Control:
    """The bits of the control registers that decide about accesses; the default is how Linux 5.17 runs a CPU of today."""

    #: CR0.WP: supervisor writes respect RW.
    wp: bool = True
    #: CR4.SMEP: the supervisor may not execute user pages. CR4.SMAP: nor read or write them, unless EFLAGS.AC is set.
    smep: bool = True
    smap: bool = True
    ac: bool = False
    #: EFER.NXE: bit 63 forbids execution; without it that bit is reserved.
    nxe: bool = True
    #: CR4.PGE: global pages survive a CR3 write. CR4.PCIDE: entries of several address spaces stay side by side.
    pge: bool = True
    pcide: bool = True
    #: CR4.PKE and the rights register: bit 2k forbids access to pages of key k, bit 2k+1 forbids writes.
    pke: bool = False
    pkru: int = 0
    #: Bits of a physical address; higher ones in an entry are reserved.
    maxphyaddr: int = 46
    #: Levels of tables: 4, or 5 with CR4.LA57.
    levels: int = 4


#: A table that a walk passed: its level, its frame, RW and US of the levels above together, NX of any of them.
Passed = tuple[int, int, int, int]


class TlbEntry(NamedTuple):
    """The result of a walk, which is what a TLB keeps: the page and its rights, not the way there."""

    base: int           # physical address of the page
    level: int
    rw: bool
    us: bool
    nx: bool
    dirty: bool
    is_global: bool
    pkey: int


class Step(NamedTuple):
    """One load of a walk: which word of which table, and what it held."""

    level: int
    table: int
    slot: int
    word: int


def loads(guest_levels: int = 4, host_levels: int = 0) -> int:
    """How many words a walk without any cache reads: one a level; in a virtual machine each guest level needs a walk of the
    host's tables first, and so does the page itself.

    >>> loads(4), loads(4, 4), loads(5, 5)
    (4, 24, 35)
    """
    return (guest_levels + 1) * (host_levels + 1) - 1


def reserved_bits(word: int, level: int, control: Control) -> int:
    """The bits set in a present entry that must be 0 there (SDM volume 3, table "Format of ..." of each entry).

    Address bits above the CPU's width; address bits inside a large page, but for PAT; bit 63 without NXE; PSE where no
    page can end the walk.
    """
    reserved = PTE_PFN_MASK & -1 << control.maxphyaddr
    if not control.nxe:
        reserved |= _PAGE_NX
    if word & _PAGE_PSE and level > 1:
        reserved |= _PAGE_PSE if level >= 4 else PAGE_LEVEL_SIZE[level] - 1 & PTE_PFN_MASK & ~(1 << 12)
    return word & reserved


def walk_steps(contents: FrameContents, pgd: int, addr: int, levels: int = 4) -> list[Step]:
    """The loads of a walk, down to the page or to the first entry that is not present; nothing is changed."""
    steps: list[Step] = []
    pfn = pgd
    for level in range(levels, 0, -1):
        index = addr >> LEVEL_SHIFT[level] & 511
        word = contents.read_word(pfn << PAGE_SHIFT | index << 3)
        steps.append(Step(level, pfn, index, word))
        if not word & _PAGE_PRESENT or 1 < level < 4 and word & _PAGE_PSE:
            break
        pfn = (word & PTE_PFN_MASK) >> PAGE_SHIFT
    return steps


def walk_rights(contents: FrameContents, pgd: int, addr: int, control: Control) -> TlbEntry | None:
    """What the tables say of an address now, as a TLB would keep it; nothing is changed. None: not present, or reserved bits."""
    rw, us, nx = True, True, False
    for level, _, _, word in walk_steps(contents, pgd, addr, control.levels):
        if not word & _PAGE_PRESENT or reserved_bits(word, level, control):
            return None
        rw, us, nx = rw and bool(word & _PAGE_RW), us and bool(word & _PAGE_USER), nx or bool(word & _PAGE_NX)
    return TlbEntry(word & PTE_PFN_MASK & -PAGE_LEVEL_SIZE[level], level, rw, us, nx, bool(word & _PAGE_DIRTY),
                    bool(word & _PAGE_GLOBAL) and control.pge, word >> _PAGE_BIT_PKEY_BIT0 & 15 if control.pke else 0)


def denied(rights: TlbEntry, access: str, user: bool, control: Control) -> int:
    """0 if the access is allowed by a present page's rights, else the bits PROT and perhaps PK.

    PK is set whenever the protection key forbids it, even if RW or US do so too.
    """
    code = 0
    if access == "x":
        if rights.nx or (not rights.us if user else rights.us and control.smep):
            code = X86_PF_PROT
        return code
    if user:
        if not rights.us or access == "w" and not rights.rw:
            code = X86_PF_PROT
    elif rights.us and control.smap and not control.ac or access == "w" and not rights.rw and control.wp:
        code = X86_PF_PROT
    if control.pke and rights.us:
        key = control.pkru >> 2 * rights.pkey
        if key & 1 or access == "w" and key & 2 and (user or control.wp):
            code = X86_PF_PROT | X86_PF_PK
    return code


def base_code(access: str, user: bool, control: Control) -> int:
    """The bits of an error code that only tell of the access."""
    code = X86_PF_USER if user else 0
    if access == "w":
        return code | X86_PF_WRITE
    return code | X86_PF_INSTR if access == "x" and (control.nxe or control.smep) else code


def hardware_walk(contents: FrameContents, pgd: int, addr: int, access: str, user: bool, control: Control, *,
                  start: Passed | None = None, passed: list[Passed] | None = None) -> TlbEntry:
    """Walk as the CPU does: check, set A and D, return what the TLB keeps. Raise PageFault.

    ``start`` begins below the top, as a paging-structure cache allows. Tables passed on the way are appended to ``passed``
    in the same form. A is set in every upper entry that is used, also if the walk ends in a fault further down; in the
    leaf A and D are set only when the access is allowed.
    """
    if access not in ACCESSES:
        raise InputError(f"an access is one of {', '.join(ACCESSES)}, not {access!r}")
    # RW and US of all levels together, and NX of any.
    level, pfn, allowed, nx = start or (control.levels, pgd, _PAGE_RW | _PAGE_USER, 0)
    frames = contents.frames
    # One test for most entries: reserved at every level, or a bit that is at some.
    suspect = _PAGE_PSE | reserved_bits(U64_MAX & ~_PAGE_PSE, level, control)
    while True:
        table = frames.get(pfn)
        index = addr >> LEVEL_SHIFT[level] & 511
        word = table[index] if table is not None else 0
        if table is None or not word & _PAGE_PRESENT:
            raise PageFault(addr, base_code(access, user, control))
        if word & suspect and reserved_bits(word, level, control):
            raise PageFault(addr, base_code(access, user, control) | X86_PF_PROT | X86_PF_RSVD)
        allowed &= word
        nx |= word & _PAGE_NX
        if level == 1 or word & _PAGE_PSE:
            break
        if not word & _PAGE_ACCESSED:
            table[index] = word | _PAGE_ACCESSED
        pfn = (word & PTE_PFN_MASK) >> PAGE_SHIFT
        level -= 1
        if passed is not None:
            passed.append((level, pfn, allowed, nx))
    used = word | _PAGE_ACCESSED | (_PAGE_DIRTY if access == "w" else 0)
    entry = TlbEntry(word & PTE_PFN_MASK & -PAGE_LEVEL_SIZE[level], level, allowed & _PAGE_RW != 0, allowed & _PAGE_USER != 0,
                     nx != 0, used & _PAGE_DIRTY != 0, word & _PAGE_GLOBAL != 0 and control.pge,
                     word >> _PAGE_BIT_PKEY_BIT0 & 15 if control.pke else 0)
    refused = denied(entry, access, user, control)
    if refused:
        raise PageFault(addr, base_code(access, user, control) | refused)
    if used != word:
        table[index] = used
    return entry
