"""Areas that grow down: a touch below them extends them, as long as the limits and the guard gap allow."""

from __future__ import annotations

from mmsim.constants import VM_GROWSDOWN, VM_LOCKED, VM_STACK_FLAGS
from mmsim.errors import Errno
from mmsim.process.mm import Mm
from mmsim.process.vma import Vma
from mmsim.units import KIB, PAGE_SHIFT, PAGE_SIZE, align_down, align_up

__all__ = ["expand_stack", "setup_stack"]


def expand_stack(mm: Mm, vma: Vma, address: int) -> None:
    """Extend a growing area down to the page of ``address``, in one step whatever the distance.

    Raise ENOMEM: closer than the guard gap to an accessible neighbour (PROT_NONE does not count), RLIMIT_AS,
    RLIMIT_STACK, RLIMIT_MEMLOCK, no promise of memory; EPERM below mmap_min_addr. Nothing asks how far ``address`` lies
    below the stack pointer. 5.17: mm/mmap.c, expand_downwards() and acct_stack_growth().
    """
    if not vma.vm_flags & VM_GROWSDOWN:
        raise Errno("EFAULT", f"{vma} does not grow")
    address = align_down(address, PAGE_SIZE)
    if address < mm.mmap_min_addr:
        raise Errno("EPERM", f"{address:#x} is below mmap_min_addr")
    prev = vma.vm_prev
    if prev is not None and not prev.vm_flags & VM_GROWSDOWN and prev.is_accessible \
            and address - prev.vm_end < mm.stack_guard_gap:
        raise Errno("ENOMEM", f"{address:#x} is within the guard gap above {prev}")
    mm.anon_vma_prepare(vma)
    if address >= vma.vm_start:
        return
    size, grow = vma.vm_end - address, (vma.vm_start - address) >> PAGE_SHIFT
    if grow > vma.vm_pgoff:
        raise Errno("ENOMEM", "the page offset would go below 0")
    if not mm.may_expand_vm(vma.vm_flags, grow):
        raise Errno("ENOMEM", "RLIMIT_AS")
    if size > mm.limits.stack:
        raise Errno("ENOMEM", f"a stack of {size >> 10} KiB exceeds RLIMIT_STACK")
    try:
        mm.mlock_future_check(vma.vm_flags, grow << PAGE_SHIFT)
    except Errno as error:
        raise Errno("ENOMEM", error.why) from None
    mm.charge(grow)
    if vma.vm_flags & VM_LOCKED:
        mm.locked_vm += grow
    mm.vm_stat_account(vma.vm_flags, grow)
    mm.tree.resize(vma, address, vma.vm_end)
    vma.vm_pgoff -= grow


def setup_stack(mm: Mm, used: int = PAGE_SIZE) -> Vma:
    """The stack of a new program: one area below the layout's stack top, with ``used`` bytes of arguments in it.

    It is made 128 KiB larger than it need be, within RLIMIT_STACK. 5.17: fs/exec.c, setup_arg_pages().
    """
    top = mm.layout.stack_top
    size = align_up(used, PAGE_SIZE)
    limit = align_down(mm.limits.stack, PAGE_SIZE)
    expand = 128 * KIB
    size = limit if size + expand > limit else size + expand
    size = max(size, align_up(used, PAGE_SIZE))
    mm.charge(size >> PAGE_SHIFT)
    vma = Vma(top - size, top, VM_STACK_FLAGS | mm.def_flags, (top - size) >> PAGE_SHIFT)
    mm.link(vma)
    mm.vm_stat_account(vma.vm_flags, vma.pages)
    mm.anon_vma_prepare(vma)
    mm.start_stack = top - align_up(used, PAGE_SIZE)
    return vma
