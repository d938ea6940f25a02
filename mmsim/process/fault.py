"""What the kernel does about a page fault: find the area, ask what it allows, and fill the entry.

::

    exc_page_fault ─► do_user_addr_fault ─► find_vma ─► no area, or forbidden ─► SIGSEGV
                                                └► handle_mm_fault ─► handle_pte_fault
       entry empty    private anonymous ─► do_anonymous_page    zero page on a read, a page of its own on a write
                      file ─► do_read_fault, do_cow_fault, do_shared_fault
       not present    swap marker ─► do_swap_page
       write to a read-only entry ─► do_wp_page                 (mmsim.process.cow)
       else           set A (and D), as another CPU or an earlier try may have done already

5.17: mm/memory.c, arch/x86/mm/fault.c. Left out: huge pages, userfaultfd, NUMA hinting, protection keys, cgroups' charges.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_BIT_PROTNONE,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_RW,
    _PAGE_SPECIAL,
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_INSTRUCTION,
    FAULT_FLAG_TRIED,
    FAULT_FLAG_USER,
    FAULT_FLAG_WRITE,
    MM_ANONPAGES,
    TASK_RSS_EVENTS_THRESH,
    TASK_SIZE_MAX,
    VM_FAULT_ERROR,
    VM_FAULT_MAJOR,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_SHARED,
    VM_SPECIAL,
    VM_WRITE,
    X86_PF_INSTR,
    X86_PF_PROT,
    X86_PF_RSVD,
    X86_PF_USER,
    X86_PF_WRITE,
)
from mmsim.errors import Errno, KernelBug
from mmsim.kernel.fault_entry import FaultContext, Outcome, decide_fault
from mmsim.paging.pte import describe
from mmsim.paging.walk import error_code_names
from mmsim.physical.frames import PG
from mmsim.process import cow, file_fault
from mmsim.process.address_space import AddressSpace
from mmsim.process.rmap import anon_vma_prepare
from mmsim.process.signal import Signal, bus_adrerr, segv_accerr, segv_maperr
from mmsim.process.stack import expand_stack
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmsim.process.task import Process

__all__ = ["VmFault", "access_error", "do_anonymous_page", "do_user_addr_fault", "exc_page_fault", "handle_mm_fault",
           "lru_cache_add_inactive_or_unevictable", "mm_account_fault"]

_UPTODATE = PG["uptodate"]
_PROTNONE = 1 << _PAGE_BIT_PROTNONE


class VmFault:
    """One fault on its way through the handlers (5.17: include/linux/mm.h, struct vm_fault).

    ``table`` and ``index`` say where the entry stands (None until there is a table), ``orig_pte`` what it held; ``page`` is the
    file's page, ``cow_page`` the private copy of it, once there are such.
    """

    __slots__ = ("space", "vma", "address", "flags", "table", "index", "orig_pte", "page", "cow_page")

    def __init__(self, space: AddressSpace, vma: Vma, address: int, flags: int):
        self.space = space
        self.vma = vma
        self.address = address & -PAGE_SIZE
        self.flags = flags
        self.table: array[int] | None = space.tables.ptes.get(address >> 21)
        self.index = address >> PAGE_SHIFT & 511
        self.orig_pte = self.table[self.index] if self.table is not None else 0
        self.page = self.cow_page = -1

    @property
    def write(self) -> bool:
        """Whether the access is a write."""
        return bool(self.flags & FAULT_FLAG_WRITE)

    @property
    def pgoff(self) -> int:
        """The page of the file, or the index of the anonymous page, that the address shows."""
        return self.vma.vm_pgoff + (self.address - self.vma.vm_start >> PAGE_SHIFT)

    def pte_alloc(self) -> array[int] | None:
        """The PTE table, made if need be; None without memory (5.17: pte_alloc(), mm/memory.c, __pte_alloc())."""
        if self.table is None:
            try:
                self.table = self.space.tables.pte_alloc(self.address)[0]
            except Errno:
                return None
        return self.table

    def prealloc_pte(self) -> array[int] | None:
        """:meth:`pte_alloc` for pages of files, which make the table ahead (vmf->prealloc_pte)."""
        if self.table is None:
            try:
                self.table = self.space.tables.pte_install(self.address)
            except Errno:
                return None
        return self.table


# -- the entry ---------------------------------------------------------------------------------------------------

def exc_page_fault(task: Process, address: int, error_code: int) -> Signal | int | None:
    """The CPU's exception, from user mode. Return None if the access is to be tried again, a signal, or VM_FAULT_OOM.

    5.17: arch/x86/mm/fault.c, exc_page_fault(), handle_page_fault().
    """
    trace = task.user.trace
    if trace.enabled:
        trace.emit("exceptions:page_fault_user", address=address, ip=0, error_code=error_code, why=error_code_names(error_code))
    if address >= TASK_SIZE_MAX or error_code & X86_PF_RSVD:
        outcome = decide_fault(address, error_code, FaultContext(user_mode=True)).outcome
        if outcome is not Outcome.HANDLE_MM_FAULT:
            if outcome is Outcome.SIGSEGV:
                return segv_maperr(address)
            raise KernelBug(f"{outcome.value}: {address:#x}, error code {error_code:#x}")
    return do_user_addr_fault(task, address, error_code)


def access_error(error_code: int, vma: Vma) -> bool:
    """Whether the area forbids the access (5.17: arch/x86/mm/fault.c, access_error())."""
    if error_code & X86_PF_WRITE:
        return not vma.vm_flags & VM_WRITE
    # A read of what is present faults only where nobody may read, or execute.
    return bool(error_code & X86_PF_PROT) or not vma.is_accessible


def do_user_addr_fault(task: Process, address: int, error_code: int) -> Signal | int | None:
    """A fault in the user half: the area decides (5.17: arch/x86/mm/fault.c, do_user_addr_fault()).

    The result is that of :func:`exc_page_fault`. A fault that let go of the mmap_lock is tried again, once.
    """
    mm, space = task.mm, task.space
    flags = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_USER
    flags |= (FAULT_FLAG_WRITE if error_code & X86_PF_WRITE else 0) | (FAULT_FLAG_INSTRUCTION if error_code & X86_PF_INSTR else 0)
    while True:
        vma = mm.tree.find_vma(address)
        if vma is None:
            return segv_maperr(address)
        if vma.vm_start > address:
            if not vma.vm_flags & VM_GROWSDOWN:
                return segv_maperr(address)
            try:
                expand_stack(mm, vma, address)
            except Errno:
                return segv_maperr(address)
        if access_error(error_code, vma):
            return segv_accerr(address)
        fault = handle_mm_fault(space, vma, address, flags)
        mm_account_fault(task, fault, flags)
        if not fault & VM_FAULT_RETRY:
            break
        flags |= FAULT_FLAG_TRIED
    if fault & VM_FAULT_OOM:
        return VM_FAULT_OOM
    if fault & VM_FAULT_SIGBUS:
        return bus_adrerr(address)
    return None


def mm_account_fault(task: Process, fault: int, flags: int) -> None:
    """Count a fault for the task: not if it failed or is to be tried again; as major if it waited, or was tried again.

    5.17: mm/memory.c, mm_account_fault().
    """
    if fault & (VM_FAULT_ERROR | VM_FAULT_RETRY):
        return
    if fault & VM_FAULT_MAJOR or flags & FAULT_FLAG_TRIED:
        task.majflt += 1
    else:
        task.minflt += 1


# -- the fault ---------------------------------------------------------------------------------------------------

def handle_mm_fault(space: AddressSpace, vma: Vma, address: int, flags: int) -> int:
    """Handle a fault that the area allows; return VM_FAULT_* bits (5.17: mm/memory.c, handle_mm_fault())."""
    user = space.user
    user.counters["pgfault"] += 1
    if user.split_rss and user.current is not None:
        user.current.rss_events += 1
        if user.current.rss_events > TASK_RSS_EVENTS_THRESH:
            space.sync_mm_rss()
    return handle_pte_fault(VmFault(space, vma, address, flags))


def handle_pte_fault(vmf: VmFault) -> int:
    """Look at the entry, and go to whoever can fill it (5.17: mm/memory.c, __handle_mm_fault(), handle_pte_fault())."""
    vma, word = vmf.vma, vmf.orig_pte
    if not word & ~(_PAGE_ACCESSED | _PAGE_DIRTY):
        if vma.is_anonymous:
            return do_anonymous_page(vmf)
        return file_fault.do_fault(vmf)
    if not word & (_PAGE_PRESENT | _PROTNONE):
        return do_swap_page(vmf)
    if vmf.flags & FAULT_FLAG_WRITE:
        if not word & _PAGE_RW:
            return cow.do_wp_page(vmf)
        word |= vmf.space.dirty_bits
    assert vmf.table is not None
    word |= _PAGE_ACCESSED
    if word != vmf.orig_pte:
        vmf.table[vmf.index] = word                             # ptep_set_access_flags()
    vmf.space.what = "spurious"
    return 0


def do_anonymous_page(vmf: VmFault) -> int:
    """Nothing is behind the page: map the page of zeros for a read, a page of its own for a write.

    5.17: mm/memory.c, do_anonymous_page().
    """
    vma, space, user = vmf.vma, vmf.space, vmf.space.user
    if vma.vm_flags & VM_SHARED:
        return VM_FAULT_SIGBUS
    table = vmf.pte_alloc()
    if table is None:
        return VM_FAULT_OOM
    prot = space.vm_page_prot(vma)
    if not vmf.flags & FAULT_FLAG_WRITE:
        table[vmf.index] = user.zero_pfn << PAGE_SHIFT | prot | _PAGE_SPECIAL
        space.what = "zero page"
        return 0
    anon_vma_prepare(vma)
    pfn = user.alloc_zeroed_page()
    if pfn is None:
        return VM_FAULT_OOM
    user.frames.flags[pfn] |= _UPTODATE
    word = pfn << PAGE_SHIFT | prot
    if vma.vm_flags & VM_WRITE:
        word |= space.dirty_bits | _PAGE_RW
    space.add_mm_counter_fast(MM_ANONPAGES, 1)
    user.page_add_new_anon_rmap(pfn, vma, vmf.address)
    lru_cache_add_inactive_or_unevictable(space, pfn, vma)
    table[vmf.index] = word
    space.what = "new page"
    return 0


def lru_cache_add_inactive_or_unevictable(space: AddressSpace, pfn: int, vma: Vma) -> None:
    """A new page waits for its LRU list; in a locked area it is mlocked (5.17: mm/swap.c)."""
    if vma.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED:
        space.user.set_mlocked(pfn)
    space.user.lru.lru_cache_add(pfn)


def do_swap_page(vmf: VmFault) -> int:
    """The page is in swap, or on the move. Raise KernelBug: nothing of the model puts it there yet (5.17: mm/memory.c, do_swap_page())."""
    raise KernelBug(f"{vmf.address:#x}: {describe(vmf.orig_pte)}; reading pages back from swap is not modelled")


def user_error_code(write: bool, fetch: bool, word: int) -> int:
    """The error code with which the CPU refuses an access of user mode to an entry."""
    code = X86_PF_USER | (X86_PF_WRITE if write else X86_PF_INSTR if fetch else 0)
    return code | X86_PF_PROT if word & _PAGE_PRESENT else code
