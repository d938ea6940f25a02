"""The kernel's own page tables: what it has mapped besides user space, each region where the boot left memory for it.

Here they are built; :mod:`mmsim.paging.init_mm` then takes away the rights that a running kernel does not need.

5.17: arch/x86/kernel/head_64.S, init_top_pgt; arch/x86/mm/init_64.c. Left out: modules, the tables of the first instants, and
the mapping of EFI. That the first tables are the first pages of .data is a guess.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Protocol

from mmsim.boot.direct_map import DirectMap
from mmsim.boot.percpu import PerCpuLayout
from mmsim.boot.setup import Boot
from mmsim.boot.start import StartKernel
from mmsim.constants import (
    _GFP_ZERO,
    _KERNPG_TABLE,
    _PAGE_GLOBAL,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_TABLE,
    GFP_KERNEL,
    PAGES_PER_SECTION,
    PTE_PFN_MASK,
    SIZEOF_STRUCT_PAGE,
    _START_KERNEL_map,
)
from mmsim.errors import InputError, InvariantError, KernelPanic
from mmsim.paging.address import LEVEL_SHIFT, PAGE_LEVEL_SIZE
from mmsim.paging.entry_area import CPU_ENTRY_AREA_BASE, ENTRY_AREA_PAGES, entry_pages
from mmsim.paging.fixmap import Fixmap
from mmsim.paging.memtype import CacheMode, cachemode2protval
from mmsim.paging.pte import PAGE_KERNEL, PAGE_KERNEL_EXEC, PAGE_KERNEL_RO, pfn_pmd, pfn_pte, pte_pfn
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, align_up

__all__ = ["InitMm", "KernelBases"]

_PMD, _PGDIR = 2 * MIB, 1 << 39
_EARLY_TABLES = 5           # level3_kernel_pgt, level2_kernel_pgt, level2_fixmap_pgt, level1_fixmap_pgt (two)
_APIC, _IO_APIC = 0xFEE0_0000, 0xFEC0_0000


class KernelBases(Protocol):
    """Where the kernel's regions begin (:class:`mmsim.kernel.layout.Layout` knows)."""

    page_offset: int
    vmalloc_start: int
    vmemmap_start: int
    kernel_offset: int


class InitMm(PageTables):
    """init_mm's tables: :class:`PageTables` that know what of the kernel is where.

    ``on_flush`` are called with a range of kernel addresses (or 0 and 2^64 - 1 for all) of which every CPU must forget what it
    knows. ``running`` is False until the boot is over: pages split before are not counted in /proc/vmstat.
    """

    def __init__(self, memory: TableMemory, setup: Boot, start: StartKernel, bases: KernelBases):
        if setup.direct_map is None:
            raise InputError("this machine's boot built no direct map")
        image = self.image = setup.image
        self.pti = memory.allocator.memory.config.pti
        room = align_up(image.data[0], PAGE_SIZE << self.pti) >> PAGE_SHIFT
        if (room + 1 + self.pti + _EARLY_TABLES) << PAGE_SHIFT > image.data[1]:
            raise InputError(f"the image has no room for {1 + self.pti + _EARLY_TABLES} tables in .data")
        self.setup = setup
        self.direct_map: DirectMap = setup.direct_map
        self.page_offset, self.vmalloc_start = bases.page_offset, bases.vmalloc_start
        self.vmemmap_start, self.kernel_offset = bases.vmemmap_start, bases.kernel_offset
        self.running = False
        #: Text and read-only data are write-protected (5.17: kernel_set_to_readonly).
        self.kernel_set_to_readonly = False
        self.on_flush: list[Callable[[int, int], None]] = []
        self.fixmap = Fixmap()
        #: What each fixmap slot in use shows: physical address.
        self.fixed: dict[int, int] = {}
        #: The kernel half of the tables that user space runs on, with page-table isolation: level by frame.
        self.user_level: dict[int, int] = {}
        memory.contents.zero(room)
        if self.pti:
            memory.contents.zero(room + 1)
        super().__init__(memory, None, user=False, pgd=room)
        self._early = iter(range(room + 1 + self.pti, room + 1 + self.pti + _EARLY_TABLES))
        self._build(start)

    # -- places ----------------------------------------------------------------------------------------------

    def va(self, phys: int) -> int:
        """The direct map's address of a physical one (5.17: __va())."""
        return self.page_offset + phys

    def image_va(self, phys: int) -> int:
        """The address at which the image's own mapping has a physical one."""
        return _START_KERNEL_map + self.kernel_offset + phys

    def prot(self, prot: int) -> int:
        """A protection as this kernel may use it: with page-table isolation hardly any kernel page is global, as the entry
        would outlive the switch of tables (5.17: __default_kernel_pte_mask).
        """
        return prot & ~_PAGE_GLOBAL if self.pti else prot

    def _pgd_populate(self, index: int) -> None:
        """All PGDs get a new entry of the kernel's half, which is needed only where no tables were made beforehand (5.17:
        sync_global_pgds()).
        """
        words = self.memory.contents.words
        for pgd in self.pgd_list:
            words(pgd)[index] = words(self.pgd)[index]

    def map_page(self, addr: int, pfn: int, prot: int, level: int = 1) -> None:
        """See :meth:`PageTables.map_page`."""
        super().map_page(addr, pfn, self.prot(prot), level)

    def flush(self, start: int, end: int) -> None:
        """Every CPU forgets a range of kernel addresses."""
        trace = self.memory.allocator.memory.trace
        if trace.enabled:
            trace.emit("mmsim:flush_tlb_kernel_range", start=start, end=end)
        for hook in self.on_flush:
            hook(start, end)

    # -- building --------------------------------------------------------------------------------------------

    def _build(self, start: StartKernel) -> None:
        self._map_direct()
        self._map_image()
        self._map_vmemmap()
        if start.percpu is not None:
            self._map_percpu(start.percpu)
        self._preallocate_vmalloc_pages(start.vmalloc_tables)
        self._map_cpu_entry_areas(start)
        for level, pfn, addr in self.tables():
            self.adopt_table(level, pfn, addr)
        if any(table.name == "APIC" for table in self.setup.platform.acpi_tables):
            self.set_fixmap("FIX_APIC_BASE", _APIC)
            self.set_fixmap("FIX_IO_APIC_BASE_0", _IO_APIC)

    def adopt_table(self, level: int, pfn: int, addr: int) -> None:
        """A frame is one of these tables now; ``addr`` is the first address that it maps."""
        if pfn not in self.table_level:
            self.table_level[pfn] = level
            self.pgtables_bytes += PAGE_SIZE
            if level == 1:
                self.ptes[addr >> 21] = self.memory.contents.words(pfn)

    def _table(self, addr: int, level: int, frames: Iterator[int]) -> array[int]:
        """The table of ``level`` for an address, taking frames that the boot set aside for those that are missing."""
        contents = self.memory.contents
        words = contents.words(self.pgd)
        for above in range(self.levels, level, -1):
            index = addr >> LEVEL_SHIFT[above] & 511
            if not words[index]:
                pfn = next(frames, None)
                if pfn is None:
                    pfn = self.memory.allocator.alloc_pages(GFP_KERNEL | _GFP_ZERO)
                    if pfn is None:
                        raise KernelPanic("no frame is left for the kernel's page tables")
                contents.zero(pfn)
                words[index] = pfn << PAGE_SHIFT | _PAGE_TABLE
            words = contents.words((words[index] & PTE_PFN_MASK) >> PAGE_SHIFT)
        return words

    def _map_direct(self) -> None:
        """The boot's tables, below the entry of the direct map (5.17: kernel_physical_mapping_init()).

        KASLR moves the direct map by whole GiB, so that it may begin within a PUD table: then these are made anew, out of the
        same frames; the tables below are the boot's.
        """
        contents, direct = self.memory.contents, self.direct_map
        puds = {word & PTE_PFN_MASK: index for index, word in enumerate(direct.pgd.entries) if word}
        aligned = self.page_offset % _PGDIR == 0
        for address, table in direct.tables.items():
            if aligned or address not in puds:
                contents.frames[address >> PAGE_SHIFT] = table.entries
            if self.pti:
                for index, word in enumerate(table.entries):
                    if word & _PAGE_GLOBAL:
                        table.entries[index] = word & ~_PAGE_GLOBAL
        top = contents.words(self.pgd)
        frames = iter([address >> PAGE_SHIFT for address in puds])
        for address, index in puds.items():
            if aligned:
                top[(self.page_offset >> 39 & 511) + index] = direct.pgd.entries[index]
                continue
            for number, word in enumerate(direct.tables[address].entries):
                if word:
                    addr = self.va(index * _PGDIR + (number << 30))
                    self._table(addr, 3, frames)[addr >> 30 & 511] = word

    def _map_image(self) -> None:
        """The image in pages of 2 MiB, writable and executable for now; and the tables of the fixmap, without an entry
        (5.17: level3_kernel_pgt, level2_kernel_pgt, level2_fixmap_pgt; cleanup_highmap()).
        """
        contents = self.memory.contents
        kernel = self._table(_START_KERNEL_map, 2, self._early)
        low, high = self.image_va(self.image.start) & -_PMD, self.image_va(self.direct_map.brk.end)
        for addr in range(low, high, _PMD):
            kernel[addr >> 21 & 511] = pfn_pmd(addr - self.image_va(0) >> PAGE_SHIFT, self.prot(PAGE_KERNEL_EXEC) | _PAGE_PSE)
        top = contents.words(self.pgd)
        top[511] |= _PAGE_TABLE
        level3 = contents.words((top[511] & PTE_PFN_MASK) >> PAGE_SHIFT)
        level3[510] = level3[510] & PTE_PFN_MASK | _KERNPG_TABLE
        for addr in (self.fixmap.virt("FIX_APIC_BASE"), self.fixmap.virt("FIX_APIC_BASE") - _PMD):
            self._table(addr, 1, self._early)

    def _map_vmemmap(self) -> None:
        """The struct pages of each section that has memory (5.17: vmemmap_populate())."""
        sparse = self.setup.sparse
        frames = iter([address >> PAGE_SHIFT for address in sparse.tables])
        prot = self.prot(PAGE_KERNEL)
        for section, memmap in sparse.memmap.items():
            addr = self.vmemmap_start + section * PAGES_PER_SECTION * SIZEOF_STRUCT_PAGE
            pages = sparse.base_pages.get(section)
            if pages is None:
                self._table(addr, 2, frames)[addr >> 21 & 511] = pfn_pmd(memmap >> PAGE_SHIFT, prot | _PAGE_PSE)
                continue
            words = self._table(addr, 1, frames)
            for index, page in enumerate(pages):
                words[index] = pfn_pte(page >> PAGE_SHIFT, prot)

    def _preallocate_vmalloc_pages(self, tables: list[int]) -> None:
        """A PUD table for each PGD entry of the vmalloc region (5.17: preallocate_vmalloc_pages()).

        Copies of the PGD are made for each process. Were an entry added later, it would have to get into all of them; 32-bit
        kernels did that when a process faulted there.
        """
        frames = iter(tables)
        slots = len(tables) + bool(self.memory.contents.words(self.pgd)[self.vmalloc_start >> 39 & 511])
        for number in range(slots):
            self._table((self.vmalloc_start & -_PGDIR) + number * _PGDIR, 3, frames)

    def _map_percpu(self, percpu: PerCpuLayout) -> None:
        """A first chunk of single pages lies in the vmalloc region; one in a piece is in the direct map already."""
        frames = iter([table >> PAGE_SHIFT for table in percpu.tables])
        for number, address in enumerate(percpu.pages):
            addr = self.vmalloc_start + number * PAGE_SIZE
            self._table(addr, 1, frames)[addr >> 12 & 511] = pfn_pte(address >> PAGE_SHIFT, self.prot(PAGE_KERNEL))

    def percpu_unit(self, percpu: PerCpuLayout, cpu: int) -> int | None:
        """The physical address of a CPU's unit, or None if it is not in one piece."""
        if percpu.pages:
            return None
        for group in percpu.groups:
            if cpu in group.units:
                return group.base + group.units.index(cpu) * percpu.unit_size
        return None

    def _map_cpu_entry_areas(self, start: StartKernel) -> None:
        """5.17: setup_cpu_entry_areas(), idt_map_in_cea()."""
        percpu = start.percpu
        if percpu is None or percpu.static_size < (1 + ENTRY_AREA_PAGES) * PAGE_SIZE:
            return
        frames = iter([address >> PAGE_SHIFT for address in start.entry_area_tables])
        idt = pfn_pte(self.image.idt_table >> PAGE_SHIFT, PAGE_KERNEL_RO)
        self._table(CPU_ENTRY_AREA_BASE, 1, frames)[CPU_ENTRY_AREA_BASE >> 12 & 511] = idt
        for cpu in range(self.setup.platform.nr_cpus):
            unit = self.percpu_unit(percpu, cpu)
            if unit is None:
                continue
            for page in entry_pages(cpu):
                words = self._table(page.addr, 1, frames)
                words[page.addr >> 12 & 511] = pfn_pte((unit >> PAGE_SHIFT) + page.unit_page, page.prot)

    # -- the fixmap ------------------------------------------------------------------------------------------

    def set_fixmap(self, name: str, phys: int, mode: CacheMode = CacheMode.UC, number: int = 0) -> int:
        """Let a slot show a physical page, devices uncached; return the slot's address (5.17: __set_fixmap())."""
        addr = self.fixmap.virt(name, number)
        table, index = self.pte_alloc(addr)
        table[index] = pfn_pte(phys >> PAGE_SHIFT, self.prot(PAGE_KERNEL) | cachemode2protval(mode))
        self.fixed[self.fixmap.index[name] + number] = phys
        self.flush(addr, addr + PAGE_SIZE)
        return addr

    def clear_fixmap(self, name: str, number: int = 0) -> None:
        """Empty a slot (5.17: clear_fixmap())."""
        addr = self.fixmap.virt(name, number)
        self.fixed.pop(self.fixmap.index[name] + number, None)
        self.unmap_page(addr)
        self.flush(addr, addr + PAGE_SIZE)

    # -- checking --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """:meth:`PageTables.check`, and that direct map and image show what they should. Raise InvariantError."""
        super().check()
        for leaf in self.kernel_leaves():
            offset = None
            if self.page_offset <= leaf.addr < self.page_offset + (self.direct_map.max_pfn_mapped << PAGE_SHIFT):
                offset = self.page_offset
            elif self.image_va(self.image.start) <= leaf.addr < self.image_va(self.direct_map.brk.end):
                offset = self.image_va(0)
            if offset is not None and pte_pfn(leaf.word, leaf.level) << PAGE_SHIFT != leaf.addr - offset & -PAGE_LEVEL_SIZE[leaf.level]:
                raise InvariantError(f"{leaf.addr:#x} shows frame {pte_pfn(leaf.word, leaf.level):#x}")
        if self.pti:
            words = self.memory.contents.words
            for index, word in enumerate(words(self.pgd | 1)):
                pfn = (word & PTE_PFN_MASK) >> PAGE_SHIFT
                if word & _PAGE_PRESENT and pfn not in self.user_level and pfn not in self.table_level:
                    raise InvariantError(f"entry {index} of user space's PGD leads to frame {pfn:#x}, which is no table")
