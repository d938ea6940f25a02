"""Page tables of one address space: a radix tree whose nodes are frames.

Each table is a frame of 512 words, taken from the page allocator when the first page below it is mapped, and given back
when nothing is left there. A word of an upper table holds the frame number of the table below, or maps a large page
itself. The upper half of the top table is the kernel's and the same for all::

    pgd ──► pud ──► pmd ──► pte ──► page of 4 KiB
                     │       (or, with PSE in the pmd entry, a page of 2 MiB; in the pud entry 1 GiB)
    256..511: the kernel's, copied from its own pgd

With page-table isolation the PGD is a pair of frames (:mod:`mmsim.paging.pti`).

5.17: mm/memory.c, arch/x86/mm/pgtable.c. Left out: locks, the quick list of mmu_gather (tables are freed at once).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mmsim.constants import (
    _GFP_ZERO,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_TABLE,
    _PAGE_USER,
    GFP_KERNEL,
    GFP_KERNEL_ACCOUNT,
    PTE_PFN_MASK,
)
from mmsim.errors import Errno, InputError, InvariantError, KernelBug
from mmsim.paging.address import LEVEL_SHIFT, PAGE_LEVEL_SIZE, is_canonical, level_name, sign_extend
from mmsim.paging.contents import WORDS, FrameContents
from mmsim.paging.pte import pfn_word, pmd_present, pte_none
from mmsim.physical.page_alloc import PageAllocator
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["GFP_PGTABLE_KERNEL", "GFP_PGTABLE_USER", "Leaf", "PageTables", "TableMemory", "check_tables"]

#: Tables are unmovable memory; those of a process are charged to its cgroup. 5.17: include/asm-generic/pgalloc.h.
GFP_PGTABLE_KERNEL = GFP_KERNEL | _GFP_ZERO
GFP_PGTABLE_USER = GFP_KERNEL_ACCOUNT | _GFP_ZERO

KERNEL_PGD_BOUNDARY = WORDS // 2
_ZERO_TABLE = array("Q", bytes(PAGE_SIZE))


class Leaf(NamedTuple):
    """An entry that is not empty and no table: a page, or what the kernel keeps where none is."""

    addr: int
    level: int
    word: int


class TableMemory:
    """Where tables come from: the machine's page allocator, and the contents of its frames. One for a machine.

    ``nr_page_table_pages`` counts what /proc/meminfo shows as PageTables: PTE and PMD tables (5.17 does not count PUD and
    PGD tables there), but for the kernel's PTE tables and those that the boot made.
    """

    def __init__(self, allocator: PageAllocator, contents: FrameContents | None = None):
        self.allocator = allocator
        self.contents = contents or FrameContents(allocator.memory.frames.max_pfn)
        self.nr_page_table_pages = 0
        #: The frames that are tables now, with their level; and those of them that are PTE tables of the kernel.
        self.level_of: dict[int, int] = {}
        self.kernel_ptes: set[int] = set()

    def alloc(self, level: int, gfp_mask: int = GFP_PGTABLE_USER, order: int = 0) -> int:
        """A zeroed frame for a table of ``level``, or with ``order`` 1 a pair of them. Raise Errno ENOMEM if there is none."""
        pfn = self.allocator.alloc_pages(gfp_mask, order)
        if pfn is None:
            raise Errno("ENOMEM", "no frame is left for a page table")
        for frame in range(pfn, pfn + (1 << order)):
            self.contents.zero(frame)
        self.level_of[pfn] = level
        if level == 1 and gfp_mask == GFP_PGTABLE_KERNEL:
            self.kernel_ptes.add(pfn)
        else:
            self.nr_page_table_pages += level <= 2
        return pfn

    def counted(self) -> Iterator[int]:
        """The frames that ``nr_page_table_pages`` counts."""
        return (pfn for pfn, level in self.level_of.items() if level <= 2 and pfn not in self.kernel_ptes)

    def pte_alloc_one(self, gfp_mask: int) -> int:
        """A PTE table (5.17: arch/x86/mm/pgtable.c, pte_alloc_one())."""
        return self.alloc(1, gfp_mask)

    def pmd_alloc_one(self, gfp_mask: int) -> int:
        """A PMD table (5.17: include/asm-generic/pgalloc.h, pmd_alloc_one())."""
        return self.alloc(2, gfp_mask)

    def pud_alloc_one(self, gfp_mask: int) -> int:
        """A PUD table (5.17: include/asm-generic/pgalloc.h, pud_alloc_one())."""
        return self.alloc(3, gfp_mask)

    def p4d_alloc_one(self, gfp_mask: int) -> int:
        """A P4D table, with five levels (5.17: arch/x86/include/asm/pgalloc.h, p4d_alloc_one())."""
        return self.alloc(4, gfp_mask)

    def free(self, pfn: int, level: int, order: int = 0) -> None:
        """Give a table's frame back (5.17: pte_free(), pmd_free(), pud_free())."""
        self.forget(pfn, level, order)
        self.allocator.free_pages(pfn, order)

    def forget(self, pfn: int, level: int, order: int = 0) -> None:
        """A frame is no table any more; the caller gives it back."""
        if self.level_of.pop(pfn, None) != level:
            raise KernelBug(f"frame {pfn:#x} is no table of level {level}")
        for frame in range(pfn, pfn + (1 << order)):
            self.contents.drop(frame)
        if pfn in self.kernel_ptes:
            self.kernel_ptes.remove(pfn)
        else:
            self.nr_page_table_pages -= level <= 2


def kernel_to_user_pgd(pgd: int) -> int:
    """The frame of the user PGD that belongs to a kernel PGD (5.17: kernel_to_user_pgdp())."""
    return pgd | 1


def set_user_pgd(word: int) -> int:
    """What the kernel's PGD gets where the user's gets ``word``: the same, but not executable (5.17: __pti_set_user_pgtbl()).

    >>> hex(set_user_pgd(0x123067))
    '0x8000000000123067'
    """
    return word | _PAGE_NX if word & (_PAGE_USER | _PAGE_PRESENT) == _PAGE_USER | _PAGE_PRESENT else word


class PageTables:
    """The tables of one mm, beginning with ``pgd``, a frame number.

    ``kernel`` are the kernel's own tables (init_mm's), whose upper half a new PGD copies. ``levels`` is 4, or 5 with LA57.
    ``pgtables_bytes`` is what ``VmPTE`` in /proc/PID/status shows: all tables but the PGD.
    ``ptes`` finds the PTE table of an address without a walk (``ptes[addr >> 21]``): the model's shortcut for the
    kernel's own accesses; :meth:`check` holds it equal to the tree.

    >>> from mmsim.reference import toy16
    >>> from mmsim.paging.pte import PAGE_SHARED, describe
    >>> tables = PageTables(TableMemory(toy16().allocator))
    >>> tables.map_page(0x555555554000, 0x123, PAGE_SHARED)
    >>> describe(tables.lookup(0x555555554000).word)
    'frame 0x123: P RW US A NX'
    >>> tables.pgtables_bytes
    12288
    """

    def __init__(self, memory: TableMemory, kernel: PageTables | None = None, *, levels: int = 4, user: bool = True,
                 pgd: int | None = None):
        is_canonical(0, levels)
        if kernel is not None and kernel.levels != levels:
            raise InputError(f"tables of {levels} levels beside a kernel with {kernel.levels}")
        self.memory = memory
        self.levels: int = levels
        self.kernel = kernel
        self.gfp_mask = GFP_PGTABLE_USER if user else GFP_PGTABLE_KERNEL
        #: How a missing table is made, by its level.
        self._missing = {1: self._pte_alloc, 2: self._pmd_alloc, 3: self._pud_alloc, 4: self._p4d_alloc}
        #: Tables below the PGD: their level, by frame number.
        self.table_level: dict[int, int] = {}
        self.ptes: dict[int, array[int]] = {}
        #: PTE tables kept for the moment a huge page must be split, by the frame of the PMD table that maps it.
        self.deposited: dict[int, list[int]] = {}
        self.pgtables_bytes = 0
        # A PGD that is there already (the kernel's own, or a recorded one) is not taken from the allocator, nor freed.
        self._own_pgd = pgd is None
        #: Page-table isolation: the PGD has a second frame, with what user space sees.
        self.isolated = kernel is not None and memory.allocator.memory.config.pti
        self.pgd = memory.alloc(levels, self.gfp_mask, int(self.isolated)) if pgd is None else pgd
        #: Of the kernel's tables: the PGDs that copied its half (5.17: pgd_list).
        self.pgd_list: list[int] = []
        if kernel is not None:
            # pgd_ctor(): the kernel half is the same in all PGDs.
            kernel.pgd_list.append(self.pgd)
            for half in range(1 + self.isolated):
                memory.contents.words(self.pgd | half)[KERNEL_PGD_BOUNDARY:] = \
                    memory.contents.words(kernel.pgd | half)[KERNEL_PGD_BOUNDARY:]

    @classmethod
    def adopt(cls, memory: TableMemory, pgd: int, *, levels: int = 4, user: bool = True, kernel: PageTables | None = None
              ) -> PageTables:
        """The tables that stand in the frames already, from ``pgd`` on: a recorded dump, or what the boot built."""
        tables = cls(memory, None, levels=levels, user=user, pgd=pgd)
        tables.kernel = kernel
        for level, pfn, addr in tables.tables():
            tables.table_level[pfn] = level
            tables.pgtables_bytes += PAGE_SIZE
            if level == 1:
                tables.ptes[addr >> 21] = memory.contents.words(pfn)
        return tables

    # -- walking in software -----------------------------------------------------------------------------------

    def _canonical(self, addr: int) -> None:
        if not is_canonical(addr, self.levels):
            raise InputError(f"{addr:#x} is no canonical address with {self.levels} levels")

    def entry(self, addr: int, level: int = 1) -> tuple[array[int], int] | None:
        """The place of the entry of ``level`` for an address, as (table, index), or None if a table is missing on the way or
        a large page covers it.

        5.17: pgd_offset(), p4d_offset(), pud_offset(), pmd_offset(), pte_offset_map().
        """
        frames = self.memory.contents.frames
        table = frames[self.pgd]
        for above in range(self.levels, level, -1):
            word = table[addr >> LEVEL_SHIFT[above] & 511]
            if not word & _PAGE_PRESENT or word & _PAGE_PSE:
                return None
            table = frames[(word & PTE_PFN_MASK) >> PAGE_SHIFT]
        return table, addr >> LEVEL_SHIFT[level] & 511

    def alloc(self, addr: int, level: int = 1) -> tuple[array[int], int]:
        """:meth:`entry`, making the tables that are missing. Raise Errno ENOMEM if memory for them is, KernelBug where a
        large page is in the way.

        Tables that were made before memory ran out stay, empty; :meth:`free_pgtables` finds them.
        5.17: include/linux/mm.h, p4d_alloc(), pud_alloc(), pmd_alloc().
        """
        frames = self.memory.contents.frames
        pfn = self.pgd
        for above in range(self.levels, level, -1):
            table = frames[pfn]
            index = addr >> LEVEL_SHIFT[above] & 511
            word = table[index]
            if word & _PAGE_PRESENT and not word & _PAGE_PSE:
                pfn = (word & PTE_PFN_MASK) >> PAGE_SHIFT
            elif word:
                raise KernelBug(f"{level_name(above, self.levels)} entry {word:#x} at {addr:#x} is no table")
            else:
                pfn = self._missing[above - 1](addr)
                table[index] = pfn << PAGE_SHIFT | _PAGE_TABLE
                if above == self.levels:
                    self._pgd_populate(index)
        return frames[pfn], addr >> LEVEL_SHIFT[level] & 511

    def pte_alloc(self, addr: int) -> tuple[array[int], int]:
        """The PTE table and index for an address, made if need be.

        One dictionary access where the table is there. 5.17: include/linux/mm.h, pte_alloc_map().
        """
        table = self.ptes.get(addr >> 21)
        if table is None:
            self._canonical(addr)
            return self.alloc(addr)
        return table, addr >> 12 & 511

    def pte_install(self, addr: int) -> array[int]:
        """A PTE table where there is none, as a fault of a file's page makes it ahead; the kernel puts it in its place,
        with pmd_install(), when the page is there.
        """
        directory, index = self.alloc(addr, 2)
        pfn = self._new_table(self.memory.pte_alloc_one(self.gfp_mask), 1, addr)
        directory[index] = pfn << PAGE_SHIFT | _PAGE_TABLE
        return self.memory.contents.frames[pfn]

    def _pgd_populate(self, index: int) -> None:
        """An entry of the PGD was filled: with page-table isolation user space's PGD gets it too, and the kernel's may not be
        executed.
        """
        words = self.memory.contents.words
        word = words(self.pgd)[index]
        if self.isolated and index < KERNEL_PGD_BOUNDARY:
            words(kernel_to_user_pgd(self.pgd))[index] = word
            words(self.pgd)[index] = set_user_pgd(word)

    def _pte_alloc(self, addr: int) -> int:
        """A missing PTE table (5.17: mm/memory.c, __pte_alloc(); for the kernel's own tables __pte_alloc_kernel())."""
        return self._new_table(self.memory.pte_alloc_one(self.gfp_mask), 1, addr)

    def _pmd_alloc(self, addr: int) -> int:
        """A missing PMD table (5.17: mm/memory.c, __pmd_alloc())."""
        return self._new_table(self.memory.pmd_alloc_one(self.gfp_mask), 2, addr)

    def _pud_alloc(self, addr: int) -> int:
        """A missing PUD table (5.17: mm/memory.c, __pud_alloc())."""
        return self._new_table(self.memory.pud_alloc_one(self.gfp_mask), 3, addr)

    def _p4d_alloc(self, addr: int) -> int:
        """A missing P4D table (5.17: mm/memory.c, __p4d_alloc())."""
        return self._new_table(self.memory.p4d_alloc_one(self.gfp_mask), 4, addr)

    def _new_table(self, pfn: int, level: int, addr: int) -> int:
        self.table_level[pfn] = level
        self.pgtables_bytes += PAGE_SIZE
        if level == 1:
            self.ptes[addr >> 21] = self.memory.contents.frames[pfn]
        return pfn

    # -- pages -------------------------------------------------------------------------------------------------

    def set_entry(self, addr: int, word: int, level: int = 1) -> None:
        """Write an entry, making the tables above it (5.17: set_pte_at(), set_pmd_at(), set_pud_at())."""
        self._canonical(addr)
        table, index = self.alloc(addr, level) if level > 1 else self.pte_alloc(addr)
        if level > 1 and table[index] & _PAGE_PRESENT and not table[index] & _PAGE_PSE:
            raise KernelBug(f"{level_name(level, self.levels)} entry {table[index]:#x} at {addr:#x} points to a table")
        table[index] = word

    def map_page(self, addr: int, pfn: int, prot: int, level: int = 1) -> None:
        """Map a frame with a protection; at level 2 or 3 a large page, which must be aligned to its size.

        Raise KernelBug if something stands there: the kernel checks that first, under the table's lock.
        """
        size = PAGE_LEVEL_SIZE[level] if level in (1, 2, 3) else 0
        if not size or addr & size - 1 or pfn << PAGE_SHIFT & size - 1:
            raise InputError(f"no page of level {level} maps {addr:#x} to frame {pfn:#x}")
        self._canonical(addr)
        table, index = self.alloc(addr, level) if level > 1 else self.pte_alloc(addr)
        if not pte_none(table[index]):
            raise KernelBug(f"BUG_ON(!pte_none(*pte)): {addr:#x} holds {table[index]:#x}")
        table[index] = pfn_word(pfn, prot if level == 1 else prot | _PAGE_PSE, PTE_PFN_MASK & -size)

    def lookup(self, addr: int) -> Leaf | None:
        """The leaf that stands for an address, or None if it is empty there. The leaf's ``addr`` is where its page begins."""
        frames = self.memory.contents.frames
        table = frames[self.pgd]
        for level in range(self.levels, 0, -1):
            word = table[addr >> LEVEL_SHIFT[level] & 511]
            if level == 1 or not word & _PAGE_PRESENT or word & _PAGE_PSE:
                return Leaf(addr & -PAGE_LEVEL_SIZE[level], level, word) if not pte_none(word) else None
            table = frames[(word & PTE_PFN_MASK) >> PAGE_SHIFT]
        raise KernelBug("a walk has an end")

    def unmap_page(self, addr: int) -> Leaf | None:
        """Empty the entry of an address and return what it held; whoever does so flushes the TLB before the frame is reused.

        5.17: ptep_get_and_clear(), pmdp_huge_get_and_clear().
        """
        leaf = self.lookup(addr)
        if leaf is not None:
            found = self.entry(addr, leaf.level)
            assert found is not None
            found[0][found[1]] = 0
        return leaf

    def leaves(self, start: int = 0, end: int | None = None) -> Iterator[Leaf]:
        """All leaves whose pages touch ``start <= addr < end`` (default: the lower half), in order. Empty tables cost one
        comparison.
        """
        if end is None:
            end = 1 << 9 * self.levels + 11
        return self._leaves(self.pgd, self.levels, 0, start, end)

    def kernel_leaves(self) -> Iterator[Leaf]:
        """All leaves of the upper half."""
        top = 1 << 9 * self.levels + 12
        for leaf in self._leaves(self.pgd, self.levels, 0, top >> 1, top):
            yield leaf._replace(addr=sign_extend(leaf.addr, self.levels))

    def _leaves(self, pfn: int, level: int, base: int, start: int, end: int) -> Iterator[Leaf]:
        table = self.memory.contents.frames[pfn]
        if table == _ZERO_TABLE:
            return
        size = PAGE_LEVEL_SIZE[level]
        for index in range(max(start - base, 0) // size, min(-(-(end - base) // size), WORDS)):
            word = table[index]
            if not word:
                continue
            if level > 1 and word & _PAGE_PRESENT and not word & _PAGE_PSE:
                yield from self._leaves((word & PTE_PFN_MASK) >> PAGE_SHIFT, level - 1, base + index * size, start, end)
            elif not pte_none(word):
                yield Leaf(base + index * size, level, word)

    # -- the kernel half ---------------------------------------------------------------------------------------

    def preallocate(self, start: int, end: int) -> None:
        """Make the PUD tables of a range now, so that all PGDs copied later share them and nothing need be copied when the
        range is used.

        5.17: arch/x86/mm/init_64.c, preallocate_vmalloc_pages().
        """
        for addr in range(start & -PAGE_LEVEL_SIZE[self.levels], end, PAGE_LEVEL_SIZE[self.levels]):
            self.alloc(addr, self.levels - 1)

    def sync_global_pgds(self, spaces: Iterable[PageTables]) -> None:
        """Copy the kernel half of these, the kernel's own tables, into other PGDs (5.17: sync_global_pgds())."""
        words = self.memory.contents.words
        for space in spaces:
            words(space.pgd)[KERNEL_PGD_BOUNDARY:] = words(self.pgd)[KERNEL_PGD_BOUNDARY:]

    # -- large pages and their spare tables --------------------------------------------------------------------

    def deposit(self, addr: int) -> None:
        """Put a PTE table by for the transparent huge page at ``addr``, so that splitting it can never lack memory. It counts
        in VmPTE.

        5.17: mm/pgtable-generic.c, pgtable_trans_huge_deposit().
        """
        self.deposited.setdefault(self._pmd_table(addr), []).append(self._spare_table())

    def _spare_table(self) -> int:
        pfn = self.memory.alloc(1, self.gfp_mask)
        self.pgtables_bytes += PAGE_SIZE
        return pfn

    def withdraw(self, addr: int) -> int:
        """Take a table that was put by, the newest first; return its frame.

        5.17: pgtable_trans_huge_withdraw() (which takes from the head of the list, where deposits go after the first).
        """
        spare = self.deposited.get(self._pmd_table(addr))
        if not spare:
            raise KernelBug(f"no table was put by for the huge page at {addr:#x}")
        return spare.pop()

    def free_deposit(self, addr: int) -> None:
        """Give a table back that was put by: the huge page is gone (5.17: mm/huge_memory.c, zap_deposited_table())."""
        self.memory.free(self.withdraw(addr), 1)
        self.pgtables_bytes -= PAGE_SIZE

    def pmd_populate(self, addr: int, pte_table: int) -> array[int]:
        """Make a table that was put by the PTE table of an address, in place of what the PMD entry held; return its words.

        5.17: arch/x86/include/asm/pgalloc.h, pmd_populate().
        """
        found = self.entry(addr, 2)
        if found is None:
            raise KernelBug(f"no PMD table at {addr:#x}")
        words = self.memory.contents.words(pte_table)
        found[0][found[1]] = pte_table << PAGE_SHIFT | _PAGE_TABLE
        self.table_level[pte_table] = 1
        self.ptes[addr >> 21] = words
        return words

    def _pmd_table(self, addr: int) -> int:
        found = self.entry(addr, 3)
        word = found[0][found[1]] if found else 0
        if not word & _PAGE_PRESENT or word & _PAGE_PSE:
            raise KernelBug(f"no PMD table at {addr:#x}")
        return (word & PTE_PFN_MASK) >> PAGE_SHIFT

    # -- giving tables back ------------------------------------------------------------------------------------

    def free_pgtables(self, start: int, end: int, floor: int = 0, ceiling: int = 0, gather: list[int] | None = None) -> int:
        """Free the tables that ``start <= addr < end`` used and that nothing between ``floor`` and ``ceiling`` (the
        neighbouring areas; 0 as ceiling is the end of the address space) may still use. Return how many went.

        All pages there must be unmapped. Raise KernelBug if one isn't: the kernel would leak it. The caller flushes the TLB
        with ``freed_tables``, and then gives back what was put into ``gather``; without one, the frames are freed at once.
        5.17: mm/memory.c, free_pgd_range().
        """
        if start >= end:
            return 0
        top = ceiling or 1 << 9 * self.levels + 11
        return self._free_below(self.pgd, self.levels, 0, start, end, floor, top, gather)

    def _free_below(self, pfn: int, level: int, base: int, start: int, end: int, floor: int, ceiling: int,
                    gather: list[int] | None) -> int:
        table = self.memory.contents.frames[pfn]
        size = PAGE_LEVEL_SIZE[level]
        freed = 0
        for index in range(max(start - base, 0) // size, min(-(-(end - base) // size), WORDS)):
            word = table[index]
            if not word & _PAGE_PRESENT or word & _PAGE_PSE:
                continue
            low = base + index * size
            below = (word & PTE_PFN_MASK) >> PAGE_SHIFT
            if level > 2:
                freed += self._free_below(below, level - 1, low, start, end, floor, ceiling, gather)
            # The whole range of the table must lie between the neighbours: else they may still need it.
            if low >= floor and low + size <= ceiling:
                if self.memory.contents.frames[below] != _ZERO_TABLE:
                    raise KernelBug(f"{level_name(level - 1, self.levels)} table for {low:#x} is freed while it is in use")
                table[index] = 0
                if self.isolated and level == self.levels:
                    self.memory.contents.words(kernel_to_user_pgd(self.pgd))[index] = 0
                self._free_table(below, level - 1, low, gather)
                freed += 1
        return freed

    def _free_table(self, pfn: int, level: int, addr: int, gather: list[int] | None) -> None:
        if self.deposited.pop(pfn, None):
            raise KernelBug(f"PMD table {pfn:#x} is freed with tables put by in it")
        del self.table_level[pfn]
        if level == 1:
            del self.ptes[addr >> 21]
        self.pgtables_bytes -= PAGE_SIZE
        if gather is None:
            self.memory.free(pfn, level)
        else:
            self.memory.forget(pfn, level)
            gather.append(pfn)

    def destroy(self) -> None:
        """Free all tables and the PGD; pages must be unmapped before (5.17: kernel/fork.c, __mmdrop())."""
        top = 1 << 9 * self.levels + 11
        self._free_below(self.pgd, self.levels, 0, 0, top, 0, top, None)
        if self.kernel is not None and self.pgd in self.kernel.pgd_list:
            self.kernel.pgd_list.remove(self.pgd)
        if self._own_pgd:
            self.memory.free(self.pgd, self.levels, int(self.isolated))

    # -- checking ----------------------------------------------------------------------------------------------

    def tables(self) -> Iterator[tuple[int, int, int]]:
        """Every table below the PGD as (level, frame, first address), each before those below it; the kernel half only in
        the kernel's own tables.
        """
        def below(pfn: int, level: int, base: int, last: int) -> Iterator[tuple[int, int, int]]:
            words = self.memory.contents.words(pfn)
            if words == _ZERO_TABLE:
                return
            for index, word in enumerate(words[:last]):
                if word & _PAGE_PRESENT and not word & _PAGE_PSE:
                    frame, low = (word & PTE_PFN_MASK) >> PAGE_SHIFT, base + index * PAGE_LEVEL_SIZE[level]
                    yield level - 1, frame, sign_extend(low, self.levels)
                    if level > 2:
                        yield from below(frame, level - 1, low, WORDS)
        return below(self.pgd, self.levels, 0, WORDS if self.kernel is None else KERNEL_PGD_BOUNDARY)

    def check(self) -> None:
        """Verify the tree. Raise InvariantError that says which table is leaked, shared, free or of the wrong kind.

        Every table is reached exactly once, all that were made are reached, each frame is allocated once, upper entries
        point to tables or map aligned pages, and the kernel's half is the kernel's.
        """
        frames = self.memory.allocator.memory.frames
        reached: dict[int, int] = {}
        for level, pfn, addr in self.tables():
            name = level_name(level, self.levels)
            if pfn in reached or pfn == self.pgd:
                raise InvariantError(f"{name} table {pfn:#x} for {addr:#x} is reached twice")
            reached[pfn] = level
            if self.table_level.get(pfn) != level:
                raise InvariantError(f"{name} table {pfn:#x} for {addr:#x} is none that this address space made")
            if frames.refcount[pfn] != 1 or frames.free_block[pfn]:
                raise InvariantError(f"{name} table {pfn:#x} for {addr:#x} lies in a frame with {frames.refcount[pfn]} references")
            if level == 1 and self.ptes.get(addr >> 21) is not self.memory.contents.frames[pfn]:
                raise InvariantError(f"the shortcut to the PTE table {pfn:#x} for {addr:#x} leads elsewhere")
            if level in (2, 3):
                self._check_large(pfn, level, addr)
        leaked = set(self.table_level) - set(reached)
        if leaked:
            raise InvariantError(f"tables that nothing points to: {', '.join(f'{pfn:#x}' for pfn in sorted(leaked))}")
        if len(self.ptes) != sum(level == 1 for level in reached.values()):
            raise InvariantError("shortcuts to PTE tables that are no more")
        spare = sum(map(len, self.deposited.values()))
        if self.pgtables_bytes != (len(reached) + spare) * PAGE_SIZE:
            raise InvariantError(f"VmPTE says {self.pgtables_bytes} bytes, there are {len(reached)} + {spare} tables")
        words = self.memory.contents.words(self.pgd)
        if self.kernel is not None and words[KERNEL_PGD_BOUNDARY:] != \
                self.memory.contents.words(self.kernel.pgd)[KERNEL_PGD_BOUNDARY:]:
            raise InvariantError(f"the kernel half of PGD {self.pgd:#x} is not the kernel's")
        if self.isolated:
            self._check_isolated()

    def _check_isolated(self) -> None:
        """User space's PGD has the same lower half, but that only there it may be executed, and the kernel's user half."""
        assert self.kernel is not None
        words = self.memory.contents.words
        mine, user = words(self.pgd), words(kernel_to_user_pgd(self.pgd))
        for index in range(KERNEL_PGD_BOUNDARY):
            if mine[index] != set_user_pgd(user[index]):
                raise InvariantError(f"entry {index}: the kernel's PGD has {mine[index]:#x}, user space's {user[index]:#x}")
        if user[KERNEL_PGD_BOUNDARY:] != words(kernel_to_user_pgd(self.kernel.pgd))[KERNEL_PGD_BOUNDARY:]:
            raise InvariantError(f"user space's PGD {self.pgd | 1:#x} shows more or less of the kernel than init_mm's")

    def _check_large(self, pfn: int, level: int, base: int) -> None:
        for index, word in enumerate(self.memory.contents.frames[pfn]):
            if word & _PAGE_PSE and word & _PAGE_PRESENT and word & PTE_PFN_MASK & PAGE_LEVEL_SIZE[level] - 1 & ~PAGE_SIZE:
                raise InvariantError(f"the large page at {base + index * PAGE_LEVEL_SIZE[level]:#x} is not aligned: {word:#x}")
            if word and level == 3 and not pmd_present(word):
                raise InvariantError(f"PUD entry {index} at {base:#x} is neither a table nor a page: {word:#x}")

    def __repr__(self) -> str:
        counts = [0] * 6
        for level in self.table_level.values():
            counts[level] += 1
        parts = ", ".join(f"{counts[level]} {level_name(level, self.levels)}" for level in range(self.levels - 1, 0, -1))
        return f"<PageTables: PGD in frame {self.pgd:#x}; {parts} tables>"


def check_tables(spaces: Iterable[PageTables]) -> None:
    """Check several address spaces, and that no frame is a table in two of them. Raise InvariantError."""
    owner: dict[int, int] = {}
    for space in spaces:
        space.check()
        for pfn in [space.pgd, *space.table_level, *(pfn for spare in space.deposited.values() for pfn in spare)]:
            if pfn in owner:
                raise InvariantError(f"frame {pfn:#x} is a table below PGD {owner[pfn]:#x} and below {space.pgd:#x}")
            owner[pfn] = space.pgd
