"""Building the direct map: all of RAM at one virtual offset, with tables that must themselves lie in mapped memory.

That is a puzzle, as nothing but the kernel image is mapped at first. It is solved from the top of memory down, in steps
that grow: the first 2 MiB need three or four tables, which the brk area has; in those 2 MiB there is room for the
tables of the next step, 256 times as large, and so on.

    step     2 MiB      512 MiB                   128 GiB
              |##|<-------########|<- - - - - - - - - - - -
             tables from          tables from what is mapped already
             brk

The widest page that fits is used: 4 KiB up to the next 2 MiB boundary, 2 MiB up to the next GiB, and back down again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmsim.boot.brk import BrkArea
from mmsim.boot.memblock import Memblock
from mmsim.constants import ISA_END_ADDRESS
from mmsim.errors import InvariantError, KernelPanic
from mmsim.units import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, align_down, align_up, pfn_down

__all__ = ["PG_LEVEL_4K", "PG_LEVEL_2M", "PG_LEVEL_1G", "MapRange", "MapStep", "PageTable", "DirectMap", "split_mem_range",
           "add_range_with_merge"]

PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G = 1, 2, 3
PMD_SIZE, PUD_SIZE = 2 * MIB, GIB
PTRS = 512
_SHIFT = {PG_LEVEL_4K: 12, PG_LEVEL_2M: 21, PG_LEVEL_1G: 30, 4: 39}
_TABLE_NAME = {PG_LEVEL_4K: "PTE", PG_LEVEL_2M: "PMD", PG_LEVEL_1G: "PUD", 4: "PGD"}
_SIZE_NAME = {PG_LEVEL_4K: "4k", PG_LEVEL_2M: "2M", PG_LEVEL_1G: "1G"}

# Bits of an entry: 63 NX | 8 global | 7 large page (PSE) | 6 dirty | 5 accessed | 2 user | 1 writable | 0 present.
# Without page-table isolation (nopti) kernel pages are global.
PAGE_KERNEL = 0x8000_0000_0000_0163
_PAGE_PSE = 0x80
_KERNPG_TABLE = 0x63
_PAGE_PRESENT = 1
_ADDRESS = 0x000F_FFFF_FFFF_F000


class MapRange(NamedTuple):
    """A piece to map with pages of one size: ``start <= address < end``, and the largest page level allowed."""

    start: int
    end: int
    level: int

    def __str__(self) -> str:
        return f" [mem 0x{self.start:08x}-0x{self.end - 1:08x}] page {_SIZE_NAME[self.level]}"


class MapStep(NamedTuple):
    """One step of the map's growth: the range, the step size then, and the tables that it took."""

    start: int
    end: int
    step_size: int
    tables: tuple[PageTable, ...]


class PageTable:
    """One table of 512 entries, in a frame of its own at ``address``; ``base`` is the first address it maps.

    ``level`` is that of its entries (4: PGD, 1: PTE). ``source`` says where its frame came from: ``brk`` or
    ``memblock``, or ``image`` for the top table, which is part of the kernel.
    """

    __slots__ = ("level", "base", "address", "source", "entries")

    def __init__(self, level: int, base: int, address: int, source: str):
        self.level = level
        self.base = base
        self.address = address
        self.source = source
        self.entries = array("Q", bytes(8 * PTRS))

    @property
    def name(self) -> str:
        """PGD, PUD, PMD or PTE."""
        return _TABLE_NAME[self.level]

    def __repr__(self) -> str:
        used = PTRS - self.entries.count(0)
        return f"<{self.name} table at {self.address:#x} from {self.source}: maps from {self.base:#x}, {used} of {PTRS} entries>"


def split_mem_range(start: int, end: int, memblock: Memblock | None = None, max_level: int = PG_LEVEL_1G) -> list[MapRange]:
    """Cut a range into pieces of one page size: 4k, 2M, 1G, 2M, 4k, as far as there are any.

    With ``memblock`` a piece gets larger pages than it fills if the whole large page around it is RAM: the rest will be
    mapped a moment later anyhow. 5.17: arch/x86/mm/init.c, split_mem_range().

    >>> for piece in split_mem_range(1 << 20, (5 << 30) + (3 << 20)):
    ...     print(piece)
     [mem 0x00100000-0x001fffff] page 4k
     [mem 0x00200000-0x3fffffff] page 2M
     [mem 0x40000000-0x13fffffff] page 1G
     [mem 0x140000000-0x1401fffff] page 2M
     [mem 0x140200000-0x1402fffff] page 4k
    """
    pieces: list[MapRange] = []
    limit = align_down(end, PAGE_SIZE)
    here = align_down(start, PAGE_SIZE)

    def save(low: int, high: int, level: int) -> int:
        if low >= high:
            return here
        pieces.append(MapRange(low, high, min(level, max_level)))
        return high

    here = save(here, min(align_up(here, PMD_SIZE), limit), PG_LEVEL_4K)
    low_2m = align_up(here, PMD_SIZE)
    here = save(low_2m, min(align_up(here, PUD_SIZE), align_down(limit, PMD_SIZE)), PG_LEVEL_2M)
    here = save(align_up(here, PUD_SIZE), align_down(limit, PUD_SIZE), PG_LEVEL_1G)
    here = save(align_up(here, PMD_SIZE), align_down(limit, PMD_SIZE), PG_LEVEL_2M)
    here = save(here, limit, PG_LEVEL_4K)
    if memblock is not None:
        pieces = [_widen(piece, memblock, max_level) for piece in pieces]
    return _merge_pieces(pieces)


def _widen(piece: MapRange, memblock: Memblock, max_level: int) -> MapRange:
    """The piece with the largest page around it that is RAM throughout (5.17: adjust_range_page_size_mask())."""
    level = piece.level
    for larger, size in ((PG_LEVEL_2M, PMD_SIZE), (PG_LEVEL_1G, PUD_SIZE)):
        low, high = align_down(piece.start, size), align_up(piece.end, size)
        if level < larger <= max_level and memblock.is_region_memory(low, high - low):
            level = larger
    return piece._replace(level=level)


def _merge_pieces(pieces: list[MapRange]) -> list[MapRange]:
    """Join neighbours of one page size."""
    merged: list[MapRange] = []
    for piece in pieces:
        if merged and merged[-1].end == piece.start and merged[-1].level == piece.level:
            piece = piece._replace(start=merged.pop().start)
        merged.append(piece)
    return merged


def add_range_with_merge(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The ranges with one more, joined with all that it touches, in order.

    5.17: kernel/range.c, add_range_with_merge() and clean_sort_range().

    >>> add_range_with_merge([(0, 4), (8, 12)], 4, 8)
    [(0, 12)]
    """
    if start >= end:
        return ranges
    apart = []
    for low, high in ranges:
        if max(low, start) <= min(high, end):
            start, end = min(low, start), max(high, end)
        else:
            apart.append((low, high))
    return sorted([*apart, (start, end)])


class DirectMap:
    """The direct map under construction, with real tables in frames from ``brk`` and ``memblock``.

    ``gbpages`` says whether the CPU has 1 GiB pages, ``pse`` whether it has 2 MiB ones. ``pgt_buf_pages`` tables are
    taken from brk beforehand: 6 (three for the first MiB, three for the first step), twice that with KASLR of memory.

    5.17: arch/x86/mm/init.c and init_64.c. Left out: five-level tables, the entries of the kernel image's own mapping,
    and page attributes other than those of PAGE_KERNEL.
    """

    def __init__(self, memblock: Memblock, brk: BrkArea, *, gbpages: bool = False, pse: bool = True,
                 pgt_buf_pages: int = 6, pgd_address: int = 0):
        self.memblock = memblock
        self.brk = brk
        self.max_level = (PG_LEVEL_1G if gbpages else PG_LEVEL_2M) if pse else PG_LEVEL_4K
        self.pgd = PageTable(4, 0, pgd_address, "image")
        #: Every table by its frame's address; the PGD's is its place in the kernel image.
        self.tables: dict[int, PageTable] = {}
        #: Pages mapped by size, as /proc/meminfo's DirectMap lines count them.
        self.direct_pages_count = {PG_LEVEL_4K: 0, PG_LEVEL_2M: 0, PG_LEVEL_1G: 0}
        #: Mapped so far: (first PFN, PFN behind).
        self.pfn_mapped: list[tuple[int, int]] = []
        self.min_pfn_mapped = self.max_pfn_mapped = self.max_low_pfn_mapped = 0
        #: Tables of the kernel image's own mapping that came of splitting its 2 MiB pages: frame by address mapped.
        self.image_tables: dict[int, int] = {}
        #: What init_mem_mapping() did, for the ladder figure.
        self.steps: list[MapStep] = []
        #: Every piece mapped, with its page size, in order.
        self.pieces: list[MapRange] = []
        self._can_use_brk_pgt = True
        # early_alloc_pgt_buf()
        self.pgt_buf_end = brk.extend(pgt_buf_pages * PAGE_SIZE, PAGE_SIZE, "early_pgt_alloc") >> PAGE_SHIFT
        self.pgt_buf_top = self.pgt_buf_end + pgt_buf_pages

    # -- tables --------------------------------------------------------------------------------------------

    def alloc_low_page(self) -> tuple[int, str]:
        """A frame for a table, and where it came from. It is mapped already, or in the brk area.

        5.17: arch/x86/mm/init.c, alloc_low_pages(). Panics if there is none.
        """
        if self._can_use_brk_pgt and self.pgt_buf_end < self.pgt_buf_top:
            self.pgt_buf_end += 1
            return (self.pgt_buf_end - 1) << PAGE_SHIFT, "brk"
        address = 0
        if self.min_pfn_mapped < self.max_pfn_mapped:
            address = self.memblock.phys_alloc_range(PAGE_SIZE, PAGE_SIZE, self.min_pfn_mapped << PAGE_SHIFT,
                                                     self.max_pfn_mapped << PAGE_SHIFT, "alloc_low_pages")
        if address:
            return address, "memblock"
        if self._can_use_brk_pgt and not self.brk.closed:
            return self.brk.extend(PAGE_SIZE, PAGE_SIZE, "alloc_low_pages"), "brk"
        raise KernelPanic("alloc_low_pages: can not alloc memory")

    def _map(self, table: PageTable, start: int, end: int, level: int) -> int:
        """Fill the entries of a table for a range with pages of ``level`` or, where one is there, use what is; return
        the end mapped.

        5.17: arch/x86/mm/init_64.c, phys_pte_init(), phys_pmd_init(), phys_pud_init(), kernel_physical_mapping_init().
        """
        shift = _SHIFT[table.level]
        size = 1 << shift
        pages, last, addr = 0, end, start
        large = _PAGE_PSE if table.level > PG_LEVEL_4K else 0
        while addr < end:
            following = align_down(addr, size) + size
            index = addr >> shift & PTRS - 1
            entry = table.entries[index]
            if entry and table.level > PG_LEVEL_4K and not entry & _PAGE_PSE:
                last = self._map(self.tables[entry & _ADDRESS], addr, min(end, following), level)
            elif entry and (table.level == PG_LEVEL_4K or level >= table.level):
                pages += 1                      # mapped before: counted once more, as the kernel does
                last = following if table.level > PG_LEVEL_4K else last
            elif level >= table.level:
                table.entries[index] = align_down(addr, size) | PAGE_KERNEL | large
                pages += 1
                last = following
            else:
                address, source = self.alloc_low_page()
                below = PageTable(table.level - 1, align_down(addr, size), address, source)
                self.tables[address] = below
                last = self._map(below, addr, min(end, following), level)
                table.entries[index] = address | _KERNPG_TABLE
            addr = following
        if table.level in self.direct_pages_count:
            self.direct_pages_count[table.level] += pages
        return last

    # -- ranges --------------------------------------------------------------------------------------------

    def init_memory_mapping(self, start: int, end: int) -> int:
        """Map ``start <= address < end``; return the frame behind the last one mapped, which may lie further up.

        5.17: arch/x86/mm/init.c, init_memory_mapping().
        """
        last = 0
        for piece in split_mem_range(start, end, self.memblock, self.max_level):
            self.pieces.append(piece)
            last = self._map(self.pgd, piece.start, piece.end, piece.level)
        self._add_pfn_range_mapped(pfn_down(start), pfn_down(last))
        return pfn_down(last)

    def _add_pfn_range_mapped(self, start_pfn: int, end_pfn: int) -> None:
        """Remember what is mapped (5.17: arch/x86/mm/init.c, add_pfn_range_mapped())."""
        self.pfn_mapped = add_range_with_merge(self.pfn_mapped, start_pfn, end_pfn)
        self.max_pfn_mapped = max(self.max_pfn_mapped, end_pfn)
        four_gib = 4 * GIB >> PAGE_SHIFT
        if start_pfn < four_gib:
            self.max_low_pfn_mapped = max(self.max_low_pfn_mapped, min(end_pfn, four_gib))

    def pfn_range_is_mapped(self, start_pfn: int, end_pfn: int) -> bool:
        """Whether one mapped range holds all these frames. 5.17: arch/x86/mm/init.c, pfn_range_is_mapped()."""
        return any(low <= start_pfn and end_pfn <= high for low, high in self.pfn_mapped)

    def _init_range_memory_mapping(self, start: int, end: int, step_size: int) -> int:
        """Map the RAM within a range, leaving holes; return the bytes of RAM. 5.17: init_range_memory_mapping()."""
        mapped, known = 0, len(self.tables)
        for start_pfn, end_pfn, _ in self.memblock.for_each_mem_pfn_range():
            low, high = max(start_pfn << PAGE_SHIFT, start), min(end_pfn << PAGE_SHIFT, end)
            if low >= high:
                continue
            # Tables in the buffer cannot map the buffer itself: they would be written before they are mapped.
            self._can_use_brk_pgt = (max(low, self.pgt_buf_end << PAGE_SHIFT) >= min(high, self.pgt_buf_top << PAGE_SHIFT))
            self.init_memory_mapping(low, high)
            mapped += high - low
            self._can_use_brk_pgt = True
        self.steps.append(MapStep(start, end, step_size, tuple(self.tables.values())[known:]))
        return mapped

    def init_mem_mapping(self, max_pfn: int, kernel_end: int = 0) -> None:
        """Build the whole map: the first MiB, then all RAM below ``max_pfn``, from the top down (or bottom up from
        ``kernel_end``).

        5.17: arch/x86/mm/init.c, init_mem_mapping().
        """
        end = max_pfn << PAGE_SHIFT
        self.init_memory_mapping(0, ISA_END_ADDRESS)
        self.steps.append(MapStep(0, ISA_END_ADDRESS, ISA_END_ADDRESS, tuple(self.tables.values())))
        if self.memblock.bottom_up:
            # Tables come from above the kernel, so what is there is mapped first.
            self._memory_map_bottom_up(kernel_end, end)
            self._memory_map_bottom_up(ISA_END_ADDRESS, kernel_end)
        else:
            self._memory_map_top_down(ISA_END_ADDRESS, end)

    def _memory_map_top_down(self, map_start: int, map_end: int) -> None:
        """5.17: arch/x86/mm/init.c, memory_map_top_down()."""
        # Is there a free, aligned 2 MiB block near the top? It is mapped first, and holds the next tables.
        probe = self.memblock.phys_alloc_range(PMD_SIZE, PMD_SIZE, map_start, map_end, "init_mem_mapping")
        if probe:
            self.memblock.phys_free(probe, PMD_SIZE, "init_mem_mapping")
            real_end = probe + PMD_SIZE
        else:
            if self.memblock.klog is not None:
                self.memblock.klog.printk("Failed to release memory for alloc_low_pages()")
            real_end = max(map_start, align_down(map_end, PMD_SIZE))
        step_size = PMD_SIZE
        self.max_pfn_mapped = 0
        self.min_pfn_mapped = pfn_down(real_end)
        last_start, mapped = real_end, 0
        while last_start > map_start:
            start = max(align_down(last_start - 1, step_size), map_start) if last_start > step_size else map_start
            mapped += self._init_range_memory_mapping(start, last_start, step_size)
            last_start = start
            self.min_pfn_mapped = pfn_down(last_start)
            if mapped >= step_size:
                step_size = self._new_step_size(step_size)
        if real_end < map_end:
            self._init_range_memory_mapping(real_end, map_end, step_size)

    def _memory_map_bottom_up(self, map_start: int, map_end: int) -> None:
        """5.17: arch/x86/mm/init.c, memory_map_bottom_up()."""
        step_size, start, mapped = PMD_SIZE, map_start, 0
        self.min_pfn_mapped = pfn_down(start)
        while start < map_end:
            following = min(align_up(start + 1, step_size), map_end) if map_end - start > step_size else map_end
            mapped += self._init_range_memory_mapping(start, following, step_size)
            start = following
            if mapped >= step_size:
                step_size = self._new_step_size(step_size)

    @staticmethod
    def _new_step_size(step_size: int) -> int:
        """256 times as much: one less than a level's 512, so that the tables surely fit. 5.17: get_new_step_size()."""
        return step_size << (_SHIFT[PG_LEVEL_2M] - PAGE_SHIFT - 1)

    # -- afterwards ----------------------------------------------------------------------------------------

    def translate(self, addr: int) -> tuple[int, int] | None:
        """Walk the tables: (the page's level, the entry), or None if ``addr`` is not mapped."""
        table = self.pgd
        while True:
            entry = table.entries[addr >> _SHIFT[table.level] & PTRS - 1]
            if not entry & _PAGE_PRESENT:
                return None
            if table.level == PG_LEVEL_4K or entry & _PAGE_PSE:
                return table.level, entry
            table = self.tables[entry & _ADDRESS]

    def split_large_page(self, addr: int, table_address: int, source: str) -> PageTable:
        """Replace the large page at ``addr`` by a table of 512 smaller ones, in the frame given.

        That happens when part of it gets other attributes, as the kernel's text and read-only data do at the end of
        boot: it is why DirectMap4k grows later. Raise InvariantError if no large page is there.

        5.17: arch/x86/mm/pat/set_memory.c, __split_large_page(). Left out: the attributes themselves.
        """
        found = self.translate(addr)
        if found is None or found[0] == PG_LEVEL_4K:
            raise InvariantError(f"direct map: no large page at {addr:#x}")
        if not table_address or table_address in self.tables:
            raise InvariantError(f"direct map: no free frame for a table at {table_address:#x}")
        level, entry = found
        table = self.pgd
        while table.level > level:
            table = self.tables[table.entries[addr >> _SHIFT[table.level] & PTRS - 1] & _ADDRESS]
        base, smaller = entry & _ADDRESS, 1 << _SHIFT[level - 1]
        below = PageTable(level - 1, base, table_address, source)
        large = _PAGE_PSE if level - 1 > PG_LEVEL_4K else 0
        below.entries = array("Q", (base + index * smaller | PAGE_KERNEL | large for index in range(PTRS)))
        self.tables[table_address] = below
        table.entries[addr >> _SHIFT[level] & PTRS - 1] = table_address | _KERNPG_TABLE
        self.direct_pages_count[level] -= 1
        self.direct_pages_count[level - 1] += PTRS
        return below

    def change_attributes(self, start: int, end: int, alloc_page: Callable[[], int], *, alias: bool = True) -> int:
        """Give part of the kernel image other attributes; return how many large pages had to be split.

        The image is mapped twice, at its own address and, as all RAM, in the direct map. A large page that the range
        covers in part is split: in the image's mapping, and with ``alias`` in the direct map as well (write permission
        is changed in both; to forbid execution changes nothing in the direct map, which never allows it). Both kinds
        count as direct map in /proc/meminfo, which therefore shows more small pages than the direct map has.
        ``alloc_page`` gives the address of a frame for each new table.

        5.17: arch/x86/mm/pat/set_memory.c, change_page_attr_set_clr(), split_page_count().
        """
        cut = {align_down(edge, PMD_SIZE) for edge in (start, end) if edge % PMD_SIZE}
        splits = 0
        for base in sorted(cut):
            found = self.translate(base)
            if alias and found is not None and found[0] > PG_LEVEL_4K:
                self.split_large_page(base, alloc_page(), "buddy")
                splits += 1
            if base not in self.image_tables:
                self.image_tables[base] = alloc_page()
                self.direct_pages_count[PG_LEVEL_2M] -= 1
                self.direct_pages_count[PG_LEVEL_4K] += PTRS
                splits += 1
        return splits

    def walk(self) -> Iterator[PageTable]:
        """Every table, each before those below it."""
        def below(table: PageTable) -> Iterator[PageTable]:
            yield table
            if table.level > PG_LEVEL_4K:
                for entry in table.entries:
                    if entry & _PAGE_PRESENT and not entry & _PAGE_PSE:
                        yield from below(self.tables[entry & _ADDRESS])
        return below(self.pgd)

    def meminfo(self) -> list[str]:
        """The DirectMap lines of /proc/meminfo (5.17: arch/x86/mm/pat/set_memory.c, arch_report_meminfo())."""
        lines = [f"DirectMap4k:    {self.direct_pages_count[PG_LEVEL_4K] * 4:8d} kB",
                 f"DirectMap2M:    {self.direct_pages_count[PG_LEVEL_2M] * (PMD_SIZE // KIB):8d} kB"]
        if self.max_level == PG_LEVEL_1G:
            lines.append(f"DirectMap1G:    {self.direct_pages_count[PG_LEVEL_1G] * (PUD_SIZE // KIB):8d} kB")
        return lines

    def __repr__(self) -> str:
        sources = [table.source for table in self.tables.values()]
        counts = ", ".join(f"{count} × {_SIZE_NAME[level]}" for level, count in self.direct_pages_count.items() if count)
        return f"<DirectMap: {counts}; tables: {sources.count('brk')} from brk, {sources.count('memblock')} from memblock>"

    def check(self) -> None:
        """Raise InvariantError unless every table is reached once, maps what it should, and lies in reserved memory."""
        reached = list(self.walk())[1:]
        if len(reached) != len(self.tables) or len({id(table) for table in reached}) != len(reached):
            raise InvariantError(f"direct map: {len(self.tables)} tables, {len(reached)} reached from the top")
        for table in reached:
            inside = self.brk.start <= table.address < self.brk.end
            if table.source == "brk" and not inside or table.source == "memblock" and not self.memblock.is_reserved(table.address):
                raise InvariantError(f"direct map: {table!r} lies in memory that nobody reserved")
            size = 1 << _SHIFT[table.level]
            for index, entry in enumerate(table.entries):
                leaf = entry & _PAGE_PSE or table.level == PG_LEVEL_4K
                if entry & _PAGE_PRESENT and leaf and entry & _ADDRESS & ~(size - 1) != table.base + index * size:
                    raise InvariantError(f"direct map: {table!r} entry {index} maps {entry & _ADDRESS:#x}")
