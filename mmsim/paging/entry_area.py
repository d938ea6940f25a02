"""The CPU entry area: what a CPU needs in the first instructions after it leaves user space.

One page for all CPUs with the interrupt table, then 59 pages of addresses for each CPU, of which 15 are mapped::

    0xfffffe0000000000   IDT                                   read-only
    + CPU * 0x3b000      GDT                                   read-only: also the guard page below the entry stack
                         entry stack                           one page
                         TSS                                   five pages, read-only
                         guard | DF | guard | NMI | guard | DB | guard | MCE | guard …     stacks of two pages
                         debug store (Intel)                   not mapped elsewhere

All of it is memory that has another address too; here it is at a place that tells nothing about where the kernel is, and
with page-table isolation it is, beside the entry code, all that user space's tables keep of the kernel.

5.17: arch/x86/include/asm/cpu_entry_area.h, arch/x86/mm/cpu_entry_area.c. Left out: the debug store, stacks of encrypted
guests (#VC). In which order the per-CPU variables lie in a CPU's unit is a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmsim.constants import _PAGE_GLOBAL
from mmsim.paging.pte import PAGE_KERNEL, PAGE_KERNEL_RO
from mmsim.units import PAGE_SIZE

__all__ = ["CPU_ENTRY_AREA_BASE", "CPU_ENTRY_AREA_SIZE", "ENTRY_AREA_PAGES", "EntryPage", "entry_area_of", "entry_pages",
           "tss_offset"]

CPU_ENTRY_AREA_BASE = 0xFFFF_FE00_0000_0000
#: sizeof(struct cpu_entry_area), with the 33 pages of the debug store at its end.
CPU_ENTRY_AREA_SIZE = 0x3B000
CPU_ENTRY_AREA_PER_CPU = CPU_ENTRY_AREA_BASE + PAGE_SIZE
_TSS_PAGES, _STACK_PAGES = 5, 2
_STACKS = ("DF", "NMI", "DB", "MCE")
#: Pages of a CPU's unit that appear here; fixed_percpu_data stands in the unit's first page.
ENTRY_AREA_PAGES = 2 + _TSS_PAGES + _STACK_PAGES * len(_STACKS)
_FIRST_PAGE = 1


class EntryPage(NamedTuple):
    """One page of the area: its address, which page of the CPU's unit it is, its protection, and what it is for."""

    addr: int
    unit_page: int
    prot: int
    what: str


def entry_area_of(cpu: int) -> int:
    """Where a CPU's area begins (5.17: get_cpu_entry_area())."""
    return CPU_ENTRY_AREA_PER_CPU + cpu * CPU_ENTRY_AREA_SIZE


def tss_offset() -> int:
    """Where the TSS lies in a CPU's unit, in bytes."""
    return (_FIRST_PAGE + 2) * PAGE_SIZE


def entry_pages(cpu: int) -> Iterator[EntryPage]:
    """The mapped pages of a CPU's area in order. They are global in any case (5.17: setup_cpu_entry_area(), cea_set_pte()).

    >>> [(hex(page.addr), page.what) for page in entry_pages(0)][:3]
    [('0xfffffe0000001000', 'GDT'), ('0xfffffe0000002000', 'entry stack'), ('0xfffffe0000003000', 'TSS')]
    """
    addr, page = entry_area_of(cpu), _FIRST_PAGE
    parts = [("GDT", 1, PAGE_KERNEL_RO, 0), ("entry stack", 1, PAGE_KERNEL, 0), ("TSS", _TSS_PAGES, PAGE_KERNEL_RO, 0)]
    parts += [(f"{name} stack", _STACK_PAGES, PAGE_KERNEL, 1) for name in _STACKS]
    for what, pages, prot, guard in parts:
        addr += guard * PAGE_SIZE
        for _ in range(pages):
            yield EntryPage(addr, page, prot | _PAGE_GLOBAL, what)
            addr, page = addr + PAGE_SIZE, page + 1
