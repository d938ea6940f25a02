"""Changing what the kernel itself may do with its pages: set_memory_ro(), set_memory_nx() and their family.

A page of the kernel often has two addresses, one in the direct map and one in the image's mapping; a right is taken from both
(but for execution, which the direct map never allows). A large page that is to change only in part is *split* into a table of
512 smaller ones. Nothing ever joins them again, so the direct map only gets finer while a machine runs: the three DirectMap
lines of /proc/meminfo show how far that has gone.

5.17: arch/x86/mm/pat/set_memory.c. Left out: encryption, arrays of pages, the cache flush.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from mmsim.boot.direct_map import PageTable
from mmsim.constants import (
    _KERNPG_TABLE,
    _PAGE_CACHE_MASK,
    _PAGE_GLOBAL,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_RW,
    GFP_KERNEL,
    PTE_PFN_MASK,
    TLB_FLUSH_ALL,
    TLB_SINGLE_PAGE_FLUSH_CEILING,
)
from mmsim.errors import InputError
from mmsim.paging.address import LEVEL_SHIFT, PAGE_LEVEL_SIZE
from mmsim.paging.kernel_tables import InitMm
from mmsim.paging.memtype import CacheMode, cachemode2protval, pgprot_4k_2_large, pgprot_large_2_4k
from mmsim.paging.pte import pfn_word, pte_flags, pte_none, pte_pfn
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, align_up

__all__ = ["change_page_attr_set_clr", "lookup_address", "set_memory_4k", "set_memory_global", "set_memory_nonglobal",
           "set_memory_np", "set_memory_np_noalias", "set_memory_nx", "set_memory_p", "set_memory_ro", "set_memory_rw",
           "set_memory_type", "set_memory_x", "split_large_page"]

_EFAULT, _ENOMEM = -14, -12
_SPLIT_EVENT = {2: "direct_map_level2_splits", 3: "direct_map_level3_splits"}


def lookup_address(kernel: InitMm, addr: int) -> tuple[array[int], int, int] | None:
    """The entry that decides about a kernel address, as (table, index, level); None where a table is missing.

    The entry may be empty or not present. 5.17: lookup_address().
    """
    frames = kernel.memory.contents.frames
    table = frames[kernel.pgd]
    for level in range(kernel.levels, 0, -1):
        index = addr >> LEVEL_SHIFT[level] & 511
        word = table[index]
        if level == 1 or level <= 3 and (word & _PAGE_PSE or not word & _PAGE_PRESENT and not pte_none(word)):
            return table, index, level
        if not word & _PAGE_PRESENT:
            return None
        table = frames[(word & PTE_PFN_MASK) >> PAGE_SHIFT]
    return None


@dataclass(slots=True)
class _Cpa:
    """One change (5.17: struct cpa_data)."""

    mask_set: int
    mask_clr: int
    force_split: bool = False
    changed: bool = False
    split: bool = False
    aliases: bool = False


def _static_protections(kernel: InitMm, prot: int, addr: int, pfn: int, pages: int, whole: bool) -> int:
    """The protection without what the kernel's own image does not bear: text stays executable, and once it is protected,
    neither text nor constants become writable again. ``whole``: the change covers a large page entirely.

    5.17: static_protections(). Left out: the BIOS area of 32-bit kernels.
    """
    if not prot & _PAGE_PRESENT:
        return prot
    image, end = kernel.image, addr + pages * PAGE_SIZE
    text, text_end = kernel.image_va(image.text[0]), kernel.image_va(image.text[1])
    forbidden = _PAGE_NX if addr < text_end and text < end else 0
    if kernel.kernel_set_to_readonly:
        rodata, rodata_end = image.rodata[0] >> PAGE_SHIFT, align_up(image.rodata[1], PAGE_SIZE) >> PAGE_SHIFT
        if pfn < rodata_end and rodata < pfn + pages:
            forbidden |= _PAGE_RW
        if not whole and addr < text_end and text < end:
            found = lookup_address(kernel, addr)
            # Where text is mapped by small pages already, ftrace may patch it.
            if found is not None and found[2] != 1:
                forbidden |= _PAGE_RW
    return prot & ~forbidden


def _not_protnone(prot: int) -> int:
    """G means PROT_NONE in an entry that is not present (5.17: pgprot_clear_protnone_bits())."""
    return prot if prot & _PAGE_PRESENT else prot & ~_PAGE_GLOBAL


def split_large_page(kernel: InitMm, addr: int) -> int:
    """Put a table of 512 pages of the next smaller size in place of the large page of ``addr``, with the same rights; return
    0 or -ENOMEM.

    The tables above are the same for all processes, so it is done once. All TLBs are flushed: an entry of the large page and
    some of the small ones at once would confuse the CPU. 5.17: split_large_page(), __split_large_page().
    """
    found = lookup_address(kernel, addr)
    if found is None or found[2] == 1:
        raise InputError(f"no large page is mapped at {addr:#x}")
    table, index, level = found
    pfn = kernel.memory.allocator.alloc_pages(GFP_KERNEL)
    if pfn is None:
        return _ENOMEM
    word = table[index]
    prot, first = pte_flags(word & ~(word & 1 << 12)) | word & 1 << 12, pte_pfn(word, level)
    if level == 2:
        prot = pgprot_large_2_4k(prot) & ~_PAGE_PSE
        mask = PTE_PFN_MASK
    else:
        prot = prot if prot & _PAGE_PRESENT else prot & ~_PAGE_PSE
        mask = PTE_PFN_MASK & -PAGE_LEVEL_SIZE[2]
    prot = _not_protnone(prot)
    step = PAGE_LEVEL_SIZE[level - 1] >> PAGE_SHIFT
    words = kernel.memory.contents.zero(pfn)
    if prot & _PAGE_PRESENT:
        start = pfn_word(first, prot, mask)
        words[:] = array("Q", range(start, start + (512 * step << PAGE_SHIFT), step << PAGE_SHIFT))
    else:
        for number in range(512):
            words[number] = pfn_word(first + number * step, prot, mask)
    table[index] = pfn << PAGE_SHIFT | _KERNPG_TABLE
    base = addr & -PAGE_LEVEL_SIZE[level]
    kernel.adopt_table(level - 1, pfn, base)
    _count_split(kernel, level, first, base, pfn, words)
    kernel.flush(0, TLB_FLUSH_ALL)
    return 0


def _count_split(kernel: InitMm, level: int, first: int, base: int, pfn: int, words: array[int]) -> None:
    """5.17: split_page_count(), for memory that the direct map has, whichever of its two addresses was split."""
    direct = kernel.direct_map
    if base >= kernel.image_va(0):
        direct.image_tables[first << PAGE_SHIFT] = pfn << PAGE_SHIFT
    else:
        small = PageTable(level - 1, first << PAGE_SHIFT, pfn << PAGE_SHIFT, "buddy")
        small.entries = words
        direct.tables[pfn << PAGE_SHIFT] = small
    if direct.pfn_range_is_mapped(first, first + 1):
        direct.direct_pages_count[level] -= 1
        direct.direct_pages_count[level - 1] += 512
        if kernel.running:
            kernel.memory.allocator.memory.counters[_SPLIT_EVENT[level]] += 1


def _should_split(kernel: InitMm, cpa: _Cpa, place: tuple[array[int], int, int], addr: int, pages: int) -> bool:
    """Whether a large page must be split for this change; if not, it is changed as a whole, or needs no change.

    5.17: __should_split_large_page().
    """
    table, index, level = place
    size = PAGE_LEVEL_SIZE[level]
    word = table[index]
    old = word & ~(PTE_PFN_MASK & -size) & U64_MAX if word & _PAGE_PRESENT else pte_flags(word)
    wanted = pgprot_4k_2_large(pgprot_large_2_4k(old & ~_PAGE_PSE) & ~cpa.mask_clr | cpa.mask_set)
    wanted = _not_protnone(wanted)
    if wanted & _PAGE_PRESENT:
        wanted |= _PAGE_PSE
    if wanted == old:
        return False
    if addr % size or pages << PAGE_SHIFT < size:
        return True
    first = pte_pfn(word, level)
    if _static_protections(kernel, wanted, addr, first, size >> PAGE_SHIFT, True) != wanted:
        return True
    table[index] = pfn_word(first, wanted, PTE_PFN_MASK & -size)
    cpa.changed = True
    return False


def _change_one(kernel: InitMm, cpa: _Cpa, addr: int, remaining: int, primary: bool) -> tuple[int, int]:
    """Change the page at ``addr``; return how many of the remaining pages that settled (negative: an error), and the frame
    (5.17: __change_page_attr(), __cpa_process_fault()).
    """
    while True:
        place = lookup_address(kernel, addr)
        if place is None or pte_none(place[0][place[1]]):
            if not primary:
                return 1, -1
            if kernel.page_offset <= addr < kernel.va(kernel.direct_map.max_pfn_mapped << PAGE_SHIFT):
                # The direct map has holes, where no memory is.
                return 1, addr - kernel.page_offset >> PAGE_SHIFT
            kernel.memory.allocator.memory.klog.warn(f"CPA: called for zero pte. vaddr = {addr:x} cpa->vaddr = {addr:x}")
            return _EFAULT, -1
        table, index, level = place
        word = table[index]
        if level == 1:
            pfn = pte_pfn(word)
            run = _small_pages(kernel, cpa, table, index, addr, remaining)
            if run:
                return run, pfn
            prot = pte_flags(word) & ~cpa.mask_clr | cpa.mask_set
            prot = _not_protnone(_static_protections(kernel, prot, addr, pfn, 1, False))
            new = pfn_word(pfn, prot, PTE_PFN_MASK)
            if new != word:
                table[index] = new
                cpa.changed = True
            return 1, pfn
        size = PAGE_LEVEL_SIZE[level]
        inside = min(remaining, size - addr % size >> PAGE_SHIFT)
        pfn = pte_pfn(word, level) + (addr % size >> PAGE_SHIFT)
        if not cpa.force_split and not _should_split(kernel, cpa, place, addr, inside):
            return inside, pfn
        error = split_large_page(kernel, addr)
        if error:
            return error, -1
        cpa.split = True


def _small_pages(kernel: InitMm, cpa: _Cpa, table: array[int], index: int, addr: int, remaining: int) -> int:
    """Change all the pages from an entry on that show neighbouring frames and of which nothing is forbidden; return how many, 0
    if there are not two. The kernel does this page by page; the result is the same.
    """
    first = table[index]
    count, limit = 1, min(remaining, 512 - index)
    while count < limit and table[index + count] == first + (count << PAGE_SHIFT):
        count += 1
    probe = _PAGE_PRESENT | _PAGE_RW | _PAGE_NX
    if count < 2 or not first & _PAGE_PRESENT or cpa.mask_clr & _PAGE_PRESENT or \
            _static_protections(kernel, probe, addr, pte_pfn(first), count, False) != probe:
        return 0
    new = first & ~cpa.mask_clr | cpa.mask_set
    if new != first:
        table[index:index + count] = array("Q", range(new, new + (count << PAGE_SHIFT), PAGE_SIZE))
        cpa.changed = True
    return count


def _change(kernel: InitMm, cpa: _Cpa, addr: int, numpages: int, check_alias: bool, primary: bool) -> int:
    """5.17: __change_page_attr_set_clr(), cpa_process_alias()."""
    done = 0
    while done < numpages:
        here = addr + (done << PAGE_SHIFT)
        pages, pfn = _change_one(kernel, cpa, here, numpages - done, primary)
        if pages < 0:
            return pages
        if check_alias and pfn >= 0:
            error = _change_aliases(kernel, cpa, here, pfn, pages)
            if error:
                return error
        done += pages
    return 0


def _change_aliases(kernel: InitMm, cpa: _Cpa, addr: int, pfn: int, pages: int) -> int:
    direct, image = kernel.direct_map, kernel.image
    if not direct.pfn_range_is_mapped(pfn, pfn + 1):
        return 0
    in_direct_map = kernel.page_offset <= addr < kernel.va(direct.max_pfn_mapped << PAGE_SHIFT)
    if not in_direct_map:
        cpa.aliases = True
        error = _change(kernel, cpa, kernel.va(pfn << PAGE_SHIFT), pages, False, False)
        if error:
            return error
    in_image = kernel.image_va(image.start) <= addr < kernel.image_va(direct.brk.end)
    if not in_image and image.start <= pfn << PAGE_SHIFT < direct.brk.end:
        cpa.aliases = True
        _change(kernel, cpa, kernel.image_va(pfn << PAGE_SHIFT), pages, False, False)
    return 0


def change_page_attr_set_clr(kernel: InitMm, addr: int, numpages: int, mask_set: int = 0, mask_clr: int = 0, *,
                             force_split: bool = False, check_alias: bool = True) -> int:
    """Set and clear bits of the entries of ``numpages`` kernel pages, wherever else these are mapped too; return 0, -EFAULT
    with a warning where nothing is mapped, or -ENOMEM. An address within a page is warned of and rounded down.

    What was done before an error stays. 5.17: change_page_attr_set_clr().
    """
    if numpages < 0:
        raise InputError(f"a change of {numpages} pages")
    if not mask_set and not mask_clr and not force_split:
        return 0
    if addr % PAGE_SIZE:
        kernel.memory.allocator.memory.klog.warn("WARNING: CPU: 0 PID: 0 at arch/x86/mm/pat/set_memory.c change_page_attr_set_clr")
        addr &= -PAGE_SIZE
    cpa = _Cpa(mask_set, mask_clr, force_split)
    error = _change(kernel, cpa, addr, numpages, check_alias and mask_set | mask_clr != _PAGE_NX, True)
    if cpa.changed:
        if error or cpa.aliases or numpages > TLB_SINGLE_PAGE_FLUSH_CEILING:
            kernel.flush(0, TLB_FLUSH_ALL)
        else:
            kernel.flush(addr, addr + (numpages << PAGE_SHIFT))
    return error


def set_memory_ro(kernel: InitMm, addr: int, numpages: int) -> int:
    """Forbid writes (5.17: set_memory_ro())."""
    return change_page_attr_set_clr(kernel, addr, numpages, 0, _PAGE_RW)


def set_memory_rw(kernel: InitMm, addr: int, numpages: int) -> int:
    """Allow writes (5.17: set_memory_rw())."""
    return change_page_attr_set_clr(kernel, addr, numpages, _PAGE_RW)


def set_memory_x(kernel: InitMm, addr: int, numpages: int) -> int:
    """Allow execution (5.17: set_memory_x())."""
    return change_page_attr_set_clr(kernel, addr, numpages, 0, _PAGE_NX)


def set_memory_nx(kernel: InitMm, addr: int, numpages: int) -> int:
    """Forbid execution (5.17: set_memory_nx())."""
    return change_page_attr_set_clr(kernel, addr, numpages, _PAGE_NX)


def set_memory_np(kernel: InitMm, addr: int, numpages: int) -> int:
    """Let every access fault (5.17: set_memory_np())."""
    return change_page_attr_set_clr(kernel, addr, numpages, 0, _PAGE_PRESENT)


def set_memory_np_noalias(kernel: InitMm, addr: int, numpages: int) -> int:
    """The same, at this address only (5.17: set_memory_np_noalias())."""
    return change_page_attr_set_clr(kernel, addr, numpages, 0, _PAGE_PRESENT, check_alias=False)


def set_memory_p(kernel: InitMm, addr: int, numpages: int) -> int:
    """Take :func:`set_memory_np` back (5.17: set_memory_p())."""
    return change_page_attr_set_clr(kernel, addr, numpages, _PAGE_PRESENT)


def set_memory_4k(kernel: InitMm, addr: int, numpages: int) -> int:
    """Split large pages, whether or not anything else changes (5.17: set_memory_4k())."""
    return change_page_attr_set_clr(kernel, addr, numpages, force_split=True)


def set_memory_global(kernel: InitMm, addr: int, numpages: int) -> int:
    """Let TLB entries outlive a switch of address space (5.17: set_memory_global())."""
    return change_page_attr_set_clr(kernel, addr, numpages, _PAGE_GLOBAL)


def set_memory_nonglobal(kernel: InitMm, addr: int, numpages: int) -> int:
    """Take :func:`set_memory_global` back (5.17: set_memory_nonglobal())."""
    return change_page_attr_set_clr(kernel, addr, numpages, 0, _PAGE_GLOBAL)


def set_memory_type(kernel: InitMm, addr: int, numpages: int, mode: CacheMode) -> int:
    """Give pages a memory type, under all their addresses: a CPU must not see one page as two types (5.17: set_memory_uc(),
    set_memory_wc(), set_memory_wb()).
    """
    return change_page_attr_set_clr(kernel, addr, numpages, cachemode2protval(mode), _PAGE_CACHE_MASK)
