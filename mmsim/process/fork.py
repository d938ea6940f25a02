"""fork: a second address space with the same contents, of which nothing is copied but page tables.

Private pages are mapped read-only on both sides, so that the first write of either makes a copy. Areas that a fault can fill again
(shared memory, files never written to) get no tables at all.

5.17: kernel/fork.c, dup_mmap(); mm/memory.c, copy_page_range().
"""

from __future__ import annotations

from array import array
from dataclasses import replace

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    _PAGE_SPECIAL,
    LOCKED_MASK,
    PTE_PFN_MASK,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_SHARED,
    VM_WIPEONFORK,
)
from mmsim.errors import Errno, KernelBug
from mmsim.paging.pte import describe, pte_pfn
from mmsim.process.address_space import AddressSpace
from mmsim.process.exit import exit_mmap
from mmsim.process.mm import Mm
from mmsim.process.rmap import anon_vma_fork
from mmsim.process.user_memory import ANON_EXCLUSIVE
from mmsim.process.vma import AnonVma, Vma
from mmsim.units import PAGE_SHIFT, U64_MAX

__all__ = ["copy_page_range", "dup_mm"]

_PRESENT = _PAGE_PRESENT | _PAGE_PROTNONE


def dup_mm(old: Mm) -> Mm:
    """A copy of an address space. Raise ENOMEM if its memory cannot be promised once more, or there is none for its tables; then
    nothing of the copy is left.

    5.17: kernel/fork.c, dup_mm(), mm_init().
    """
    space = old.pages
    if space is None:
        raise KernelBug("an address space without page tables is not copied")
    new = Mm(old.layout, rules=old.rules, limits=replace(old.limits), overcommit=old.overcommit, trace=old.trace,
             privileged=old.privileged, max_map_count=old.max_map_count, mmap_min_addr=old.mmap_min_addr,
             stack_guard_gap=old.stack_guard_gap, soft_dirty=old.soft_dirty)
    for name in ("start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack"):
        setattr(new, name, getattr(old, name))
    # Locked pages are not inherited, nor is mlockall(MCL_FUTURE).
    new.def_flags = old.def_flags & VM_NOHUGEPAGE
    try:
        AddressSpace(new, space.user)
        _dup_mmap(new, old)
    except Errno:
        if new.pages is not None:
            exit_mmap(new)
        raise
    new.update_hiwater()
    return new


def _dup_mmap(mm: Mm, oldmm: Mm) -> None:
    """Copy the areas, charging each promise again, and the entries of those that need it (5.17: kernel/fork.c, dup_mmap())."""
    new, old = mm.pages, oldmm.pages
    assert new is not None and old is not None
    mm.total_vm, mm.data_vm, mm.exec_vm, mm.stack_vm = oldmm.total_vm, oldmm.data_vm, oldmm.exec_vm, oldmm.stack_vm
    try:
        for parent in oldmm.tree:
            if parent.vm_flags & VM_DONTCOPY:
                mm.vm_stat_account(parent.vm_flags, -parent.pages)
                continue
            if parent.vm_flags & VM_ACCOUNT:
                oldmm.charge(parent.pages)
            vma = parent.duplicate()
            if vma.vm_flags & VM_WIPEONFORK:
                vma.anon_vma = None
            else:
                anon_vma_fork(vma, parent)
            vma.vm_flags &= ~LOCKED_MASK
            mm.get_file(vma)
            mm.insert_vm_struct(vma)
            if not vma.vm_flags & VM_WIPEONFORK:
                copy_page_range(new, old, vma, parent)
    finally:
        old.flush_tlb_mm()


def copy_page_range(new: AddressSpace, old: AddressSpace, vma: Vma, parent: Vma) -> None:
    """Copy the entries of an area; nothing if it has no anonymous pages, since faults can fill the copy as well. An area whose
    entries nobody could fill again, because no struct pages or no file are behind them, is always copied.

    Raise ENOMEM without memory for tables. Cost: a few steps a table, and one a page. 5.17: mm/memory.c, copy_page_range().
    """
    if parent.anon_vma is None and not parent.vm_flags & (VM_PFNMAP | VM_MIXEDMAP):
        return
    start, end = vma.vm_start, vma.vm_end
    for number in range(start >> 21, (end - 1 >> 21) + 1):
        source = old.tables.ptes.get(number)
        if source is None:
            continue
        base = number << 21
        target = new.tables.pte_alloc(max(start, base))[0]
        _copy_pte_range(new, old, parent, source, target, max(start - base, 0) >> PAGE_SHIFT, min(end - base >> PAGE_SHIFT, 512))


def _copy_pte_range(new: AddressSpace, old: AddressSpace, parent: Vma, source: array[int], target: array[int], first: int,
                    last: int) -> None:
    """Copy part of one table: write-protect both sides of private memory, count pages; the child's entries are old, and clean
    if the memory is shared. 5.17: mm/memory.c, copy_pte_range(), copy_present_pte().
    """
    user = new.user
    words = source[first:last]
    cow = parent.vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
    keep = U64_MAX & ~(_PAGE_ACCESSED | (_PAGE_RW if cow else 0) | (_PAGE_DIRTY if parent.vm_flags & VM_SHARED else 0))
    frames = user.frames
    refcount, mapcount, mapping, flags = frames.refcount, frames.mapcount, user.mapping, frames.flags
    exclusive = user.anon_exclusive
    rss = [0, 0, 0, 0]
    anon = 0
    for word in words:
        if not word & _PRESENT:
            if word & ~(_PAGE_ACCESSED | _PAGE_DIRTY):
                raise KernelBug(f"{describe(word)}: copying entries of swapped pages is not modelled")
            continue
        if word & _PAGE_SPECIAL:
            continue
        pfn = (word & PTE_PFN_MASK) >> PAGE_SHIFT if word & _PAGE_PRESENT else pte_pfn(word)
        refcount[pfn] += 1
        mapcount[pfn] += 1
        if type(mapping[pfn]) is AnonVma:
            anon += 1
            if exclusive:
                flags[pfn] &= ~ANON_EXCLUSIVE
        else:
            rss[user.mm_counter(pfn)] += 1
    target[first:last] = array("Q", [word & keep for word in words])
    if cow:
        source[first:last] = array("Q", [word & ~_PAGE_RW for word in words])
    rss[1] += anon
    for member, pages in enumerate(rss):
        if pages:
            new.add_mm_counter(member, pages)
