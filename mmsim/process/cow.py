"""Copy-on-write: a write to a page that is mapped read-only in an area that allows writing.

5.17 keeps an anonymous page for the writer if the page has exactly one reference. A page that was shared by fork and that the
other side has left qualifies; one that still waits in a pagevec, which holds a reference, is copied, though nobody else uses it.

5.17: mm/memory.c, do_wp_page().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_RW,
    _PAGE_SPECIAL,
    MM_ANONPAGES,
    VM_FAULT_OOM,
    VM_FAULT_WRITE,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
)
from mmsim.errors import KernelBug
from mmsim.paging.pte import pte_pfn
from mmsim.physical.frames import PG
from mmsim.process import fault, file_fault
from mmsim.process.rmap import anon_vma_prepare
from mmsim.process.user_memory import ANON_EXCLUSIVE, UserMemory
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT

if TYPE_CHECKING:
    from mmsim.process.fault import VmFault

__all__ = ["can_reuse_anon_page", "do_wp_page", "maybe_mkwrite", "wp_page_copy", "wp_page_reuse"]

_LRU, _UPTODATE = PG["lru"], PG["uptodate"]


def maybe_mkwrite(word: int, vma: Vma) -> int:
    """Make an entry writable where the area is (5.17: include/linux/mm.h, maybe_mkwrite())."""
    return word | _PAGE_RW if vma.vm_flags & VM_WRITE else word


def can_reuse_anon_page(user: UserMemory, pfn: int, vma: Vma) -> bool:
    """Whether the writer may keep an anonymous page, by the rule of the release (``rules.cow_reuse``).

    5.17: mm/memory.c, do_wp_page(): one reference, one mapping. 5.18 first empties the CPU's pagevecs if the page may wait there.
    Since 5.19 a flag of the page says that it was never shared; if it was, the references decide and set the flag again.
    """
    frames, rule = user.frames, user.rules.cow_reuse
    if rule == "exclusive" and frames.flags[pfn] & ANON_EXCLUSIVE:
        return True
    if rule != "page_count":
        if frames.refcount[pfn] > 3:
            return False
        if not frames.flags[pfn] & _LRU:
            user.lru.lru_add_drain()
    if frames.refcount[pfn] != 1 or frames.mapcount[pfn] != 1:
        return False
    if rule != "page_count" and vma.anon_vma is not None:
        user.mapping[pfn] = vma.anon_vma                        # page_move_anon_rmap()
        if rule == "exclusive":
            frames.flags[pfn] |= ANON_EXCLUSIVE
    return True


def do_wp_page(vmf: VmFault) -> int:
    """Write to a read-only entry of a writable area: keep the page, copy it, or tell the file (5.17: mm/memory.c, do_wp_page())."""
    user, vma = vmf.space.user, vmf.vma
    shared_writable = vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED
    if vmf.orig_pte & _PAGE_SPECIAL:
        if shared_writable:
            raise KernelBug(f"{vmf.address:#x}: a shared mapping without struct pages")
        return wp_page_copy(vmf, -1)
    pfn = pte_pfn(vmf.orig_pte)
    if user.page_anon(pfn):
        if can_reuse_anon_page(user, pfn, vma):
            wp_page_reuse(vmf)
            return VM_FAULT_WRITE
    elif shared_writable:
        return wp_page_shared(vmf, pfn)
    user.frames.refcount[pfn] += 1
    return wp_page_copy(vmf, pfn)


def wp_page_reuse(vmf: VmFault) -> None:
    """Make the entry writable; the page stays (5.17: mm/memory.c, wp_page_reuse())."""
    assert vmf.table is not None
    vmf.table[vmf.index] = maybe_mkwrite(vmf.orig_pte | _PAGE_ACCESSED | vmf.space.dirty_bits, vmf.vma)
    vmf.space.user.counters["pgreuse"] += 1
    vmf.space.what = "reuse"


def wp_page_shared(vmf: VmFault, pfn: int) -> int:
    """A page of a shared file: the file system hears of the write, the page stays (5.17: mm/memory.c, wp_page_shared())."""
    wp_page_reuse(vmf)
    vmf.space.what = "shared page becomes dirty"
    return VM_FAULT_WRITE | file_fault.fault_dirty_shared_page(vmf, pfn)


def wp_page_copy(vmf: VmFault, old: int) -> int:
    """Give the writer a copy of frame ``old``, to which it holds a reference besides that of the entry; -1 is the zero page.

    The order is the kernel's: allocate and copy, then, under the table's lock, empty and flush the entry, make the copy known to
    the reverse map and the LRU, map it, and only then take the old page out of the reverse map: another CPU that finds it there
    no more must not still be able to write to it. 5.17: mm/memory.c, wp_page_copy().
    """
    space, vma, user = vmf.space, vmf.vma, vmf.space.user
    anon_vma_prepare(vma)
    new = user.alloc_zeroed_page() if old < 0 else user.alloc_page()
    if new is None:
        if old >= 0:
            user.put_page(old)
        return VM_FAULT_OOM
    if old >= 0:
        user.contents.copy(new, old)                            # cow_user_page()
    user.frames.flags[new] |= _UPTODATE
    if old < 0:
        space.add_mm_counter_fast(MM_ANONPAGES, 1)
    elif not user.page_anon(old):
        space.add_mm_counter_fast(user.mm_counter(old), -1)
        space.add_mm_counter_fast(MM_ANONPAGES, 1)
    word = maybe_mkwrite(new << PAGE_SHIFT | space.vm_page_prot(vma) | space.dirty_bits, vma)
    assert vmf.table is not None
    space.ptep_clear_flush(vmf.address, vmf.table, vmf.index)
    user.page_add_new_anon_rmap(new, vma, vmf.address)
    fault.lru_cache_add_inactive_or_unevictable(space, new, vma)
    vmf.table[vmf.index] = word
    if old >= 0:
        user.page_remove_rmap(old)
        if vma.vm_flags & VM_LOCKED:
            user.clear_page_mlock(old)
        user.put_page(old)                                      # the entry's reference
        user.put_page(old)                                      # ours
    space.what = "copy" if old >= 0 else "copy of the zero page"
    return VM_FAULT_WRITE
