"""Bringing pages in without an access: for mlock, MAP_POPULATE and MADV_POPULATE.

Each page is looked up, and where it is missing a fault is handled as if the process had touched it; the fault counts as its own.

5.17: mm/gup.c.
"""

from __future__ import annotations

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_PRESENT,
    _PAGE_RW,
    _PAGE_SPECIAL,
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_LOCKED,
    VM_LOCKONFAULT,
)
from mmsim.errors import Errno
from mmsim.paging.pte import pte_pfn
from mmsim.process.address_space import AddressSpace
from mmsim.process.fault import handle_mm_fault, mm_account_fault
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SIZE

__all__ = ["faultin_range"]


def faultin_range(space: AddressSpace, vma: Vma, start: int, end: int, write: bool) -> None:
    """Look at every page of a part of one area and bring in those that are missing; pages of a locked area are mlocked.

    Raise EFAULT where a file ends too early, ENOMEM without a frame. Of a VM_LOCKONFAULT area only pages that are there are
    locked. 5.17: mm/gup.c, __get_user_pages(), follow_page_pte(), faultin_page().
    """
    user = space.user
    flags = FAULT_FLAG_ALLOW_RETRY | (FAULT_FLAG_WRITE if write else 0)
    needed = _PAGE_PRESENT | (_PAGE_RW if write else 0)
    for address in range(start & -PAGE_SIZE, end, PAGE_SIZE):
        word = space.pte(address)
        broken = False
        while word & needed != needed and not (broken and word & _PAGE_PRESENT):
            if vma.vm_flags & VM_LOCKONFAULT and not word & _PAGE_PRESENT:
                break
            result = handle_mm_fault(space, vma, address, flags)
            if user.current is not None:
                mm_account_fault(user.current, result, flags)
            if result & VM_FAULT_OOM:
                raise Errno("ENOMEM", "no frame is left")
            if result & VM_FAULT_ERROR:
                raise Errno("EFAULT", f"{vma} is longer than its file")
            # A forced write to a read-only area gets its own page, and stays read-only.
            broken = not result & VM_FAULT_RETRY
            word = space.pte(address)
        if word & _PAGE_PRESENT:
            table = space.tables.ptes[address >> 21]
            table[address >> 12 & 511] |= _PAGE_ACCESSED
            if not word & _PAGE_SPECIAL:
                user.mark_page_accessed(pte_pfn(word))
                if vma.vm_flags & VM_LOCKED:
                    user.lru.lru_add_drain()
                    user.mlock_page(pte_pfn(word))
