"""The kernel's own page tables, as they are when the boot is over: init_mm, whose upper half every process shares.

The direct map's tables were built by the boot, in frames of the brk area and of memblock; here they get their place in the
frames' contents, below a top table, so that the CPU can walk them, and everything else that the kernel has mapped joins them::

    init_top_pgt (in the image's .data)
      273..   ──► direct map       address 0xffff888000000000 + x is byte x of memory
      402..   ──► vmalloc          64 PUD tables without an entry: from now on all processes share them
      468..   ──► vmemmap          struct page of every frame, in pages of 2 MiB
      508     ──► cpu_entry_area
      511     ──► the image at 0xffffffff80000000 + x, and the fixmap

At last the kernel takes rights away: text and read-only data are not written any more, data not executed. Where such a border
does not fall on a large page's, the page is split; that is why DirectMap4k in /proc/meminfo has grown by 14 MiB when the
recorded kernel is up.

5.17: arch/x86/kernel/head_64.S, init_top_pgt; arch/x86/mm/init_64.c. The tables themselves: :mod:`mmsim.paging.kernel_tables`.
"""

from __future__ import annotations

from mmsim.boot.setup import Boot
from mmsim.boot.start import StartKernel
from mmsim.constants import _PAGE_OFFSET_BASE_L4
from mmsim.paging.kernel_tables import InitMm, KernelBases
from mmsim.paging.pti import pti_finalize, pti_init
from mmsim.paging.set_memory import set_memory_np_noalias, set_memory_nx, set_memory_ro, set_memory_rw, set_memory_x
from mmsim.paging.tables import TableMemory
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, align_up

__all__ = ["InitMm", "init_mm_tables", "protect_kernel"]

_PMD = 2 * MIB


class _WithoutKaslr:
    page_offset, kernel_offset = _PAGE_OFFSET_BASE_L4, 0
    vmalloc_start, vmemmap_start = 0xFFFF_C900_0000_0000, 0xFFFF_EA00_0000_0000


def protect_kernel(kernel: InitMm) -> None:
    """Take away what nobody needs any more: no writes to text and constants, no execution of data.

    5.17: set_memory_ro(&idt_table), set_real_mode_permissions(), free_init_pages(), mark_rodata_ro().
    """

    image, setup = kernel.image, kernel.setup

    def pages(start: int, end: int) -> int:
        return align_up(end, PAGE_SIZE) - start >> PAGE_SHIFT

    def free_init_pages(start: int, end: int, gap: bool = False) -> None:
        if end > start:
            set_memory_nx(kernel, kernel.image_va(start), pages(start, end))
            set_memory_rw(kernel, kernel.image_va(start), pages(start, end))
            if gap and kernel.pti:
                set_memory_np_noalias(kernel, kernel.image_va(start), pages(start, end))

    text_end, rodata_end = align_up(image.text[1], PAGE_SIZE), align_up(image.rodata[1], PAGE_SIZE)
    if image.idt_table < image.bss[1]:
        set_memory_ro(kernel, kernel.image_va(image.idt_table), 1)
    if setup.real_mode:
        real_mode = kernel.va(setup.real_mode)
        set_memory_ro(kernel, real_mode, image.real_mode_ro_end >> PAGE_SHIFT)
        set_memory_x(kernel, real_mode + image.real_mode_text, image.real_mode_ro_end - image.real_mode_text >> PAGE_SHIFT)
    free_init_pages(*image.smp_locks)
    free_init_pages(*image.init, gap=True)
    set_memory_ro(kernel, kernel.image_va(image.start), pages(image.start, max(image.data[0] & -_PMD, rodata_end)))
    kernel.kernel_set_to_readonly = True
    all_end = align_up(kernel.direct_map.brk.end, _PMD)
    set_memory_nx(kernel, kernel.image_va(text_end), pages(text_end, all_end))
    for _, low, high in image.gaps:
        free_init_pages(low, high, gap=True)


def init_mm_tables(memory: TableMemory, setup: Boot, start: StartKernel, bases: KernelBases | None = None) -> InitMm:
    """The kernel's tables of a booted machine. Once for a machine: the boot's tables and these are the same words.

    Takes a frame from the page allocator for each large page that is split. ``bases`` are where the regions begin (default:
    without KASLR).

    >>> from mmsim.reference import ref256
    >>> from mmsim.paging.mmu import Mmu
    >>> machine = ref256()
    >>> memory = TableMemory(machine.allocator)
    >>> kernel = init_mm_tables(memory, machine.setup, machine.start)
    >>> cpu = Mmu(memory.contents)
    >>> cpu.write_cr3(kernel.pgd << 12)
    >>> hex(cpu.translate(0xffff888001234567, user=False)), hex(cpu.translate(0xffffffff81000000, "x", user=False))
    ('0x1234567', '0x1000000')
    """
    kernel = InitMm(memory, setup, start, bases or _WithoutKaslr())
    if kernel.pti:
        pti_init(kernel, start)
    protect_kernel(kernel)
    if kernel.pti:
        pti_finalize(kernel)
    kernel.running = True
    return kernel
