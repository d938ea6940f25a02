"""Virtual addresses: which are possible, and how they are cut into table indexes.

With four levels an address has 48 bits that mean something; bits 63..47 must all be equal (it is *canonical*), so the
possible addresses are two halves with a hole between them::

     63        48 47     39 38     30 29     21 20     12 11        0
    +------------+---------+---------+---------+---------+-----------+
    | sign       | PGD     | PUD     | PMD     | PTE     | offset    |
    +------------+---------+---------+---------+---------+-----------+

Five levels (LA57) put nine more bits on top, so that the halves have 56 bits each. Levels are numbered from below: 1 PTE,
2 PMD, 3 PUD, then 4 PGD, or 4 P4D and 5 PGD.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mmsim.errors import InputError
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX

__all__ = ["LEVEL_SHIFT", "PAGE_LEVEL_SIZE", "TableCost", "from_indexes", "indexes", "is_canonical", "level_name",
           "page_size", "sign_extend", "table_cost"]

#: How far an address is shifted to give the index into a table of this level (in bits 8..0).
LEVEL_SHIFT = (0, 12, 21, 30, 39, 48)
#: Bytes that one entry of a level maps, by level.
PAGE_LEVEL_SIZE = tuple(1 << shift for shift in LEVEL_SHIFT)


def _valid(levels: int) -> int:
    if levels not in (4, 5):
        raise InputError(f"x86-64 pages have four or five levels of tables, not {levels}")
    return levels


def page_size(level: int) -> int:
    """Bytes of a page whose entry stands at ``level``: 4 KiB, 2 MiB or 1 GiB."""
    if level not in (1, 2, 3):
        raise InputError(f"no page ends the walk at level {level}")
    return PAGE_LEVEL_SIZE[level]


def level_name(level: int, levels: int = 4) -> str:
    """PTE, PMD, PUD, P4D or PGD; with four levels the fourth is the PGD (the kernel folds its P4D away)."""
    return "PGD" if level == _valid(levels) else ("", "PTE", "PMD", "PUD", "P4D")[level]


def is_canonical(addr: int, levels: int = 4) -> bool:
    """Whether the upper bits of an address are all equal; the CPU answers any other address with #GP, not with a page
    fault (Intel SDM volume 1, "Canonical Addressing").

    >>> is_canonical(0x7fff_ffff_ffff), is_canonical(0x8000_0000_0000), is_canonical(0xffff_8000_0000_0000)
    (True, False, True)
    """
    top = addr >> 9 * _valid(levels) + 11
    return top in (0, (1 << 53 - 9 * levels) - 1)


def sign_extend(addr: int, levels: int = 4) -> int:
    """The canonical address with these lower bits."""
    bit = 1 << 9 * _valid(levels) + 11
    return ((addr & (bit << 1) - 1) ^ bit) - bit & U64_MAX


def indexes(addr: int, levels: int = 4) -> tuple[int, ...]:
    """The index into each table, from the top.

    5.17: pgd_index(), pud_index(), pmd_index(), pte_index().

    >>> indexes(0x7ffff7fff000)
    (255, 511, 447, 511)
    """
    return tuple(addr >> LEVEL_SHIFT[level] & 511 for level in range(_valid(levels), 0, -1))


def from_indexes(*index: int, offset: int = 0) -> int:
    """The address with these table indexes, from the top; four or five.

    >>> hex(from_indexes(273, 0, 0, 0))
    '0xffff888000000000'
    """
    levels = _valid(len(index))
    if not all(0 <= one < 512 for one in index) or not 0 <= offset < PAGE_SIZE:
        raise InputError(f"indexes {index} with offset {offset:#x}: an index is below 512, an offset below 4096")
    addr = 0
    for one in index:
        addr = addr << 9 | one
    return sign_extend(addr << PAGE_SHIFT | offset, levels)


class TableCost(NamedTuple):
    """How many tables of each kind some pages need, without the PGD."""

    pte: int
    pmd: int
    pud: int
    p4d: int = 0

    @property
    def pages(self) -> int:
        """Frames in all; times 4 KiB it is VmPTE."""
        return sum(self)


def table_cost(addrs: Iterable[int], level: int = 1, levels: int = 4) -> TableCost:
    """The tables that pages of one size at these addresses need. Cost: linear.

    >>> table_cost(range(0, 513 * 4096, 4096))
    TableCost(pte=2, pmd=1, pud=1, p4d=0)
    """
    addrs = list(addrs)
    return TableCost(*(len({addr >> LEVEL_SHIFT[above] for addr in addrs}) if level < above <= _valid(levels) else 0
                       for above in (2, 3, 4, 5)))
