"""The end of an address space.

5.17: mm/mmap.c, exit_mmap(); kernel/fork.c, mmput(), mmdrop().
"""

from __future__ import annotations

from mmsim.constants import VM_ACCOUNT
from mmsim.process.mm import Mm
from mmsim.process.zap import unmap_vmas

__all__ = ["exit_mmap", "mmput"]


def exit_mmap(mm: Mm) -> None:
    """Give everything back: pages, tables, areas, promises (5.17: mm/mmap.c, exit_mmap(); mmdrop() frees the PGD)."""
    space = mm.pages
    assert space is not None
    space.user.lru.lru_add_drain()
    areas = list(mm.tree)
    if areas:
        unmap_vmas(space, areas, None, None)
    accounted = 0
    for vma in areas:
        mm.tree.remove(vma)
        mm.map_count -= 1
        if vma.vm_flags & VM_ACCOUNT:
            accounted += vma.pages
        mm.put_file(vma)
    mm.overcommit.uncharge(accounted)
    mm.total_vm = mm.data_vm = mm.exec_vm = mm.stack_vm = mm.locked_vm = mm.locked_vm_lost = 0
    if space.user.tlb is not None and space.context is not None:
        space.user.tlb.drop_context(space.context)
    space.tables.destroy()


def mmput(mm: Mm) -> bool:
    """One process less uses the address space; True if it was the last, and all is gone (5.17: kernel/fork.c, mmput())."""
    assert mm.pages is not None
    mm.pages.users -= 1
    if mm.pages.users:
        return False
    exit_mmap(mm)
    return True
