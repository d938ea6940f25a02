"""Page-table isolation: two top tables for each process, one for the kernel and one for user space.

On CPUs with the Meltdown flaw a user program can read, by side effects of speculation, whatever its tables map, US bit or
not. So user space runs on tables that map next to nothing of the kernel. Each PGD is a pair of frames; bit 12 of CR3 says
which one is used, so the entry code switches by setting or clearing one bit, and bit 11 does the same for the PCID::

    CR3   ...pgd pair...|0|0|PCID     kernel: all of user space (without execution) and all of the kernel
    CR3   ...pgd pair...|1|1|PCID     user: all of user space; of the kernel the CPU entry areas, the entry code, the TSS

User tables below the PGD are shared: an entry of the lower half is written into both PGDs, into the kernel's with NX, so that
a kernel that forgot to switch back cannot run user code. The kernel half of the user PGD is made once, at boot.

The price: hardly any kernel page may be global, each system call writes CR3 twice, and each flush is for two PCIDs.

5.17: arch/x86/mm/pti.c, arch/x86/entry/calling.h. Left out: ESPFIX, the vsyscall page, PTI without PCIDs (where the kernel's
text stays global).
"""

from __future__ import annotations

from mmsim.boot.start import StartKernel
from mmsim.constants import (
    _GFP_ZERO,
    _KERNPG_TABLE,
    _PAGE_GLOBAL,
    _PAGE_PRESENT,
    _PAGE_PSE,
    GFP_KERNEL,
    PTE_PFN_MASK,
)
from mmsim.errors import KernelPanic
from mmsim.paging.address import LEVEL_SHIFT, PAGE_LEVEL_SIZE
from mmsim.paging.entry_area import CPU_ENTRY_AREA_BASE, tss_offset
from mmsim.paging.kernel_tables import InitMm
from mmsim.paging.mmu import CR3_NOFLUSH, Mmu
from mmsim.paging.pte import PAGE_KERNEL, pfn_pte
from mmsim.paging.set_memory import set_memory_nonglobal
from mmsim.paging.tables import kernel_to_user_pgd
from mmsim.paging.tlbflush import PTI_USER_PCID
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, align_up

__all__ = ["PTI_USER_PGTABLE", "kernel_cr3", "pti_finalize", "pti_init",
           "switch_to_kernel_cr3", "switch_to_user_cr3", "user_cr3", "visible_kernel_pages"]

#: The bit of CR3 that says which PGD of the pair; for the PCIDs it is :data:`mmsim.paging.tlbflush.PTI_USER_PCID`.
PTI_USER_PGTABLE = 1 << PAGE_SHIFT


def user_cr3(cr3: int) -> int:
    """CR3 as user space has it (5.17: SWITCH_TO_USER_CR3)."""
    return cr3 | PTI_USER_PGTABLE | (PTI_USER_PCID if cr3 & PAGE_SIZE - 1 else 0)


def kernel_cr3(cr3: int) -> int:
    """CR3 as the kernel has it (5.17: ADJUST_KERNEL_CR3)."""
    return cr3 & ~(PTI_USER_PGTABLE | PTI_USER_PCID)


def switch_to_user_cr3(mmu: Mmu) -> None:
    """What the last instructions before user space do; with PCIDs no entry is flushed."""
    mmu.write_cr3(user_cr3(mmu.cr3) | (CR3_NOFLUSH if mmu.control.pcide else 0))


def switch_to_kernel_cr3(mmu: Mmu) -> None:
    """What the first instructions after user space do."""
    mmu.write_cr3(kernel_cr3(mmu.cr3) | (CR3_NOFLUSH if mmu.control.pcide else 0))


# -- the kernel's part of user space's tables --------------------------------------------------------------------

def _walk_user(kernel: InitMm, addr: int, level: int) -> tuple[int, int]:
    """The place of the entry of ``level`` below init_mm's user PGD, as (frame, index), making tables on the way (5.17:
    pti_user_pagetable_walk_pte()).
    """
    words = kernel.memory.contents.words
    pfn = kernel_to_user_pgd(kernel.pgd)
    for above in range(kernel.levels, level, -1):
        index = addr >> LEVEL_SHIFT[above] & 511
        if not words(pfn)[index]:
            table = kernel.memory.allocator.alloc_pages(GFP_KERNEL | _GFP_ZERO)
            if table is None:
                raise KernelPanic("no frame is left for the tables of page-table isolation")
            kernel.memory.contents.zero(table)
            kernel.user_level[table] = above - 1
            words(pfn)[index] = table << PAGE_SHIFT | _KERNPG_TABLE
        pfn = (words(pfn)[index] & PTE_PFN_MASK) >> PAGE_SHIFT
    return pfn, addr >> LEVEL_SHIFT[level] & 511


def _clone_entry_text(kernel: InitMm) -> None:
    """Map the entry code in user space too, and global: it is the same in both (5.17: pti_clone_entry_text())."""
    words = kernel.memory.contents.words
    start, end = (kernel.image_va(addr) for addr in kernel.image.entry_text)
    for addr in range(start & -2 * MIB, end, 2 * MIB):
        found = kernel.entry(addr, 2)
        if found is None:
            continue
        table, index = found
        if table[index] & _PAGE_PSE:
            table[index] |= _PAGE_GLOBAL
        pfn, place = _walk_user(kernel, addr, 2)
        words(pfn)[place] = table[index]


def pti_init(kernel: InitMm, start: StartKernel) -> None:
    """Make the kernel half of the user PGD (5.17: pti_init(), pti_clone_user_shared()).

    The CPU entry areas are shared with their tables. The entry code needs a word to save a register in before it can switch:
    it lies in the TSS, which is mapped by its address in the direct map as well.
    """
    words = kernel.memory.contents.words
    slot = CPU_ENTRY_AREA_BASE >> 39 & 511
    words(kernel_to_user_pgd(kernel.pgd))[slot] = words(kernel.pgd)[slot]
    for cpu in range(kernel.setup.platform.nr_cpus):
        unit = kernel.percpu_unit(start.percpu, cpu) if start.percpu is not None and words(kernel.pgd)[slot] else None
        if unit is not None:
            tss = unit + tss_offset()
            pfn, index = _walk_user(kernel, kernel.va(tss), 1)
            words(pfn)[index] = pfn_pte(tss >> PAGE_SHIFT, PAGE_KERNEL & ~_PAGE_GLOBAL)
    first = kernel.image_va(kernel.image.start) & -PAGE_SIZE
    set_memory_nonglobal(kernel, first, align_up(kernel.image_va(kernel.direct_map.brk.end), 2 * MIB) - first >> PAGE_SHIFT)
    _clone_entry_text(kernel)


def pti_finalize(kernel: InitMm) -> None:
    """Clone the entry code again, now that text is read-only and pages may have been split (5.17: pti_finalize())."""
    _clone_entry_text(kernel)


def visible_kernel_pages(kernel: InitMm) -> list[tuple[int, int]]:
    """What user space's tables map of the kernel: (address, level) of each page. Without isolation that is all of it."""
    words = kernel.memory.contents.words
    found: list[tuple[int, int]] = []

    def below(pfn: int, level: int, base: int) -> None:
        for index, word in enumerate(words(pfn)):
            addr = base + index * PAGE_LEVEL_SIZE[level]
            if level == kernel.levels and index < 256 or not word & _PAGE_PRESENT:
                continue
            if level == 1 or word & _PAGE_PSE:
                found.append((addr | -1 << 48 & (1 << 64) - 1, level))
            else:
                below((word & PTE_PFN_MASK) >> PAGE_SHIFT, level - 1, addr)

    below(kernel_to_user_pgd(kernel.pgd) if kernel.pti else kernel.pgd, kernel.levels, 0)
    return found
