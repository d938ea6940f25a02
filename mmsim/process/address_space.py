"""The pages of one address space: its tables, what they map, and the changes that system calls make to them.

:class:`~mmsim.process.mm.Mm` decides about areas; where it has one of these, each of its changes is carried out in the page
tables as well: entries are emptied, moved, given other permissions, or filled before anybody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmsim.constants import (
    _PAGE_DIRTY,
    _PAGE_SPECIAL,
    SOFTDIRTY_BIT,
    TLB_FLUSH_ALL,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
)
from mmsim.errors import InvariantError
from mmsim.paging.pte import PAGE_SOFT_DIRTY, PROTECTION_MAP, pte_pfn, pte_present, pte_write
from mmsim.paging.tables import PageTables
from mmsim.paging.tlbflush import MmContext
from mmsim.process.user_memory import UserMemory
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmsim.process.mm import Mm

__all__ = ["AddressSpace", "vma_wants_writenotify"]


def vma_wants_writenotify(vma: Vma, soft_dirty: bool) -> bool:
    """Whether pages of a shared writable area are mapped read-only until somebody writes, so that the kernel hears of it.

    5.17: mm/mmap.c, vma_wants_writenotify(). A file with page_mkwrite is one whose pages are written back.
    """
    if vma.vm_flags & (VM_WRITE | VM_SHARED) != VM_WRITE | VM_SHARED:
        return False
    if vma.vm_file is not None and vma.vm_file.page_mkwrite:
        return True
    return soft_dirty and not vma.vm_flags & (SOFTDIRTY_BIT | VM_PFNMAP)


class AddressSpace:
    """Tables and pages of an mm. ``users`` counts the processes that run in it (more than one after vfork).

    5.17: the page-table side of struct mm_struct.
    """

    def __init__(self, mm: Mm, user: UserMemory):
        self.mm = mm
        self.user = user
        self.tables = PageTables(user.tables, user.kernel)
        self.rss = mm.rss
        self.users = 1
        self.soft_dirty = mm.soft_dirty
        #: What a write sets in an entry.
        self.dirty_bits = _PAGE_DIRTY | PAGE_SOFT_DIRTY if mm.soft_dirty else _PAGE_DIRTY
        #: What the flushes of TLBs know of it.
        self.context: MmContext | None = user.tlb.new_context(self.tables) if user.tlb is not None else None
        #: How the last fault was handled, in words.
        self.what = ""
        mm.pages = self

    def vm_page_prot(self, vma: Vma) -> int:
        """The protection of new entries of an area; the kernel keeps it in vma->vm_page_prot."""
        flags = vma.vm_flags
        if flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED and vma_wants_writenotify(vma, self.soft_dirty):
            return PROTECTION_MAP[flags & 7]
        return PROTECTION_MAP[flags & 15]

    # -- counting ----------------------------------------------------------------------------------------------

    def add_mm_counter(self, member: int, pages: int) -> None:
        """Count pages in RSS (5.17: include/linux/mm.h, add_mm_counter())."""
        self.rss[member] += pages
        trace = self.user.trace
        if trace.enabled:
            trace.emit("kmem:rss_stat", mm_id=self.tables.pgd, curr=1, member=member, size=self.rss[member] << PAGE_SHIFT)

    def add_mm_counter_fast(self, member: int, pages: int) -> None:
        """Count a page that a fault brought: in the task, if it batches (5.17: mm/memory.c, add_mm_counter_fast())."""
        user = self.user
        task = user.current
        if user.split_rss and task is not None and task.mm is self.mm:
            task.rss_stat[member] += pages
        else:
            self.add_mm_counter(member, pages)

    def sync_mm_rss(self) -> None:
        """What the current task counted for itself goes to the mm (5.17: mm/memory.c, sync_mm_rss())."""
        task = self.user.current
        if self.user.split_rss and task is not None and task.mm is self.mm:
            for member, pages in enumerate(task.rss_stat):
                if pages:
                    self.add_mm_counter(member, pages)
                    task.rss_stat[member] = 0
            task.rss_events = 0

    # -- flushing ----------------------------------------------------------------------------------------------

    def flush_tlb_range(self, start: int, end: int, freed_tables: bool = False) -> None:
        """Make the CPUs forget a range (5.17: flush_tlb_range(); freed_tables as tlb_flush() says it)."""
        tlb = self.user.tlb
        if tlb is not None and self.context is not None:
            tlb.flush_tlb_mm_range(self.user.memory.cpu, self.context, start, end, freed_tables=freed_tables)

    def flush_tlb_page(self, address: int) -> None:
        """Make the CPUs forget one page (5.17: flush_tlb_page())."""
        address &= -PAGE_SIZE
        self.flush_tlb_range(address, address + PAGE_SIZE)

    def flush_tlb_mm(self) -> None:
        """Make the CPUs forget everything (5.17: flush_tlb_mm())."""
        self.flush_tlb_range(0, TLB_FLUSH_ALL)

    def ptep_clear_flush(self, address: int, table: object, index: int) -> None:
        """Empty an entry that a CPU may have in its TLB (5.17: mm/pgtable-generic.c, ptep_clear_flush())."""
        table[index] = 0                                # type: ignore[index]
        self.flush_tlb_page(address)

    # -- looking -----------------------------------------------------------------------------------------------

    def pte(self, address: int) -> int:
        """The entry of an address, 0 if there is none."""
        table = self.tables.ptes.get(address >> 21)
        return table[address >> 12 & 511] if table is not None else 0

    def entries(self) -> Iterator[tuple[int, int]]:
        """All entries that are not empty, as (address, word), in no particular order of tables. Cost: every table."""
        for number, table in self.tables.ptes.items():
            for index, word in enumerate(table):
                if word:
                    yield number << 21 | index << 12, word

    def mapped_pages(self) -> Iterator[tuple[int, int]]:
        """(address, frame) of every entry that maps a page with a count: present, or hidden by PROT_NONE; not the zero page."""
        for address, word in self.entries():
            if pte_present(word) and not word & _PAGE_SPECIAL:
                yield address, pte_pfn(word)

    # -- checking ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """RSS is what the tables map, by kind; every entry lies in an area, and a writable one of private memory maps a page that
        is nobody else's. Raise InvariantError.
        """
        self.tables.check()
        self.mm.check()
        user, counted = self.user, [0, 0, 0, 0]
        for address, word in self.entries():
            vma = self.mm.tree.lookup(address)
            if vma is None:
                raise InvariantError(f"{address:#x} maps {word:#x}, and no area is there")
            if not pte_present(word) or word & _PAGE_SPECIAL:
                continue
            pfn = pte_pfn(word)
            counted[user.mm_counter(pfn)] += 1
            if pfn not in user.mapping:
                raise InvariantError(f"{address:#x} maps frame {pfn:#x}, which belongs to nobody")
            if pte_write(word):
                if not vma.vm_flags & VM_WRITE:
                    raise InvariantError(f"{address:#x} is writable in {vma}")
                if not vma.vm_flags & VM_SHARED and (user.frames.mapcount[pfn] != 1 or not user.page_anon(pfn)):
                    raise InvariantError(f"{address:#x} is writable and private, frame {pfn:#x} is mapped "
                                         f"{user.frames.mapcount[pfn]} times")
        rss = self.rss[:]
        for task in user.tasks:
            if task.space is self:
                rss = [one + other for one, other in zip(rss, task.rss_stat)]
        if rss != counted:
            raise InvariantError(f"RSS by kind is {rss}, the tables map {counted}")
