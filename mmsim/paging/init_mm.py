"""The kernel's own page tables, as they are when the boot is over: init_mm, whose upper half every process shares.

The direct map's tables were built by the boot, in frames of the brk area and of memblock; here they get their place in the
frames' contents, below a top table, so that the CPU can walk them::

    init_top_pgt (in the image's .data)
      273..   ──► the direct map: address 0xffff888000000000 + x is byte x of memory
      511     ──► level3_kernel_pgt [510] ──► level2_kernel_pgt: the image at 0xffffffff80000000 + x, in pages of 2 MiB

Left out: the fixmap, the memory map and per-CPU areas (their owners map them), KASLR, and that text and read-only data lose
their write permission at the end of the boot. That these tables are the first pages of .data is a guess.
"""

from __future__ import annotations

from mmsim.boot.direct_map import DirectMap
from mmsim.boot.image import KernelImage
from mmsim.constants import _KERNPG_TABLE, _PAGE_OFFSET_BASE_L4, _PAGE_PSE, _PAGE_TABLE, _START_KERNEL_map
from mmsim.errors import InputError
from mmsim.paging.address import indexes
from mmsim.paging.pte import PAGE_KERNEL_EXEC, pfn_pmd
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.units import MIB, PAGE_SHIFT, align_down, align_up

__all__ = ["init_mm_tables"]


def init_mm_tables(memory: TableMemory, direct_map: DirectMap, image: KernelImage) -> PageTables:
    """The kernel's tables of a booted machine. Once for a machine: the boot's tables and these are the same words.

    5.17: arch/x86/kernel/head_64.S, init_top_pgt; arch/x86/mm/init_64.c, kernel_physical_mapping_init(), cleanup_highmap().

    >>> from mmsim.reference import ref256
    >>> from mmsim.paging.mmu import Mmu
    >>> machine = ref256()
    >>> memory = TableMemory(machine.allocator)
    >>> kernel = init_mm_tables(memory, machine.setup.direct_map, machine.image)
    >>> cpu = Mmu(memory.contents)
    >>> cpu.write_cr3(kernel.pgd << 12)
    >>> hex(cpu.translate(0xffff888001234567, user=False)), hex(cpu.translate(0xffffffff81000000, "x", user=False))
    ('0x1234567', '0x1000000')
    """
    contents = memory.contents
    if image.data[1] - image.data[0] < 3 << PAGE_SHIFT:
        raise InputError("the image has no room for three tables in .data")
    for address, table in direct_map.tables.items():
        contents.frames[address >> PAGE_SHIFT] = table.entries
    pgd = align_up(image.data[0], 1 << PAGE_SHIFT) >> PAGE_SHIFT
    level3, level2 = pgd + 1, pgd + 2
    top = contents.zero(pgd)
    first = indexes(_PAGE_OFFSET_BASE_L4)[0]
    for index, word in enumerate(direct_map.pgd.entries):
        if word:
            top[first + index] = word
    top[511] = level3 << PAGE_SHIFT | _PAGE_TABLE
    contents.zero(level3)[indexes(_START_KERNEL_map)[1]] = level2 << PAGE_SHIFT | _KERNPG_TABLE
    words = contents.zero(level2)
    for addr in range(align_down(image.start, 2 * MIB), direct_map.brk.end, 2 * MIB):
        words[addr >> 21] = pfn_pmd(addr >> PAGE_SHIFT, PAGE_KERNEL_EXEC | _PAGE_PSE)
    return PageTables.adopt(memory, pgd, user=False)
