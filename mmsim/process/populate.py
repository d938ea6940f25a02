"""What touching a page does to its area: permission, growth of a stack, the end of a file, and the anon_vma.

The pages themselves come with the fault handler, which takes over from here; whether an access ends in a signal, and
whether it gives the area its ``anon_vma``, is decided by the area alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mmsim.constants import (
    TASK_SIZE,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_IO,
    VM_LOCKONFAULT,
    VM_MAYREAD,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from mmsim.errors import Errno
from mmsim.process.gup import faultin_range
from mmsim.process.mm import Mm
from mmsim.process.signal import Signal
from mmsim.process.stack import expand_stack
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SIZE, align_down

__all__ = ["Access", "Outcome", "Touch", "touch", "mm_populate", "populate_range", "populate_vma_page_range"]


class Access(Enum):
    """What an instruction wants of a page."""

    READ = "read"
    WRITE = "write"
    EXEC = "exec"


class Outcome(Enum):
    """How an access ends. The value is the signal's number, 0 for none; OOM: no frame was left for it (VM_FAULT_OOM)."""

    OK = 0
    OOM = -1
    SIGBUS = 7
    SIGSEGV = 11


@dataclass(frozen=True, slots=True)
class Touch:
    """The result of an access: ``code`` is the si_code of the signal (SEGV_MAPERR, SEGV_ACCERR, BUS_ADRERR) or empty.

    Where there are pages, ``faults`` says in words how each fault on the way was handled ("zero page", "copy"…; none: the
    entry allowed the access), ``error_code`` is that of the last one, and ``address`` what the signal tells.
    """

    outcome: Outcome
    code: str = ""
    vma: Vma | None = None
    faults: tuple[str, ...] = ()
    error_code: int = 0
    address: int = 0

    @property
    def signal(self) -> Signal | None:
        """The signal that the access raised."""
        return Signal(self.outcome.value, self.code, self.address) if self.outcome.value > 0 else None


def touch(mm: Mm, address: int, access: Access = Access.READ) -> Touch:
    """An access of the program to one byte.

    5.17: arch/x86/mm/fault.c, do_user_addr_fault() and access_error().
    """
    vma = mm.tree.find(address)
    if vma is None or address >= TASK_SIZE:
        return Touch(Outcome.SIGSEGV, "SEGV_MAPERR")
    if vma.vm_start > address:
        if not vma.vm_flags & VM_GROWSDOWN:
            return Touch(Outcome.SIGSEGV, "SEGV_MAPERR")
        try:
            expand_stack(mm, vma, address)
        except Errno:
            return Touch(Outcome.SIGSEGV, "SEGV_MAPERR")
    # A readable page is not executable, but a writable or executable one can always be read: x86 has no such bit.
    needed = {Access.READ: VM_READ | VM_WRITE | VM_EXEC, Access.WRITE: VM_WRITE, Access.EXEC: VM_EXEC}[access]
    if not vma.vm_flags & needed:
        return Touch(Outcome.SIGSEGV, "SEGV_ACCERR", vma)
    if not fault_in(mm, vma, address, access is Access.WRITE):
        return Touch(Outcome.SIGBUS, "BUS_ADRERR", vma)
    return Touch(Outcome.OK, "", vma)


def fault_in(mm: Mm, vma: Vma, address: int, write: bool) -> bool:
    """A permitted access to a page of an area; False if the file ends before it (SIGBUS).

    A write to private memory prepares the anon_vma, before the file is asked. 5.17: mm/memory.c, handle_pte_fault().
    """
    if write and not vma.vm_flags & VM_SHARED:
        mm.anon_vma_prepare(vma)
    return vma.vm_file is None or vma.pgoff_at(align_down(address, PAGE_SIZE)) < vma.vm_file.pages


def populate_vma_page_range(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """Touch every page of a part of one area, as its owner would; private writable ones with a write.

    Raise EFAULT where that is impossible: an inaccessible area, a file that ends too early. 5.17: mm/gup.c,
    populate_vma_page_range() and check_vma_flags().
    """
    if vma.vm_flags & VM_LOCKONFAULT and not mm.rules.mlock_onfault_needs_access:
        return
    if vma.vm_flags & (VM_IO | VM_PFNMAP):
        raise Errno("EFAULT", "memory without struct pages")
    if not vma.is_accessible or not vma.vm_flags & (VM_WRITE | VM_MAYREAD):
        raise Errno("EFAULT", f"{vma} is inaccessible")
    if vma.vm_flags & VM_LOCKONFAULT and mm.pages is None:
        return                          # looks at the pages that are there, and brings in none
    write = vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    fault_in_range(mm, vma, start, end, write)


def fault_in_range(mm: Mm, vma: Vma, start: int, end: int, write: bool) -> None:
    """Bring in every page of a part of one area; where there are only areas, see whether that would be possible.

    Raise EFAULT where a file ends too early, ENOMEM without a frame. 5.17: mm/gup.c, __get_user_pages().
    """
    if mm.pages is not None:
        faultin_range(mm.pages, vma, start, end, write)
    elif not fault_in(mm, vma, start, write) or not fault_in(mm, vma, end - PAGE_SIZE, write):
        raise Errno("EFAULT", f"{vma} is longer than its file")


def populate_range(mm: Mm, start: int, end: int, ignore_errors: bool) -> None:
    """Populate all areas in a range; holes are passed over. 5.17: mm/gup.c, __mm_populate()."""
    for vma in list(mm.tree.overlapping(start, end)):
        if vma.vm_flags & (VM_IO | VM_PFNMAP):
            continue
        try:
            populate_vma_page_range(mm, vma, max(start, vma.vm_start), min(end, vma.vm_end))
        except Errno:
            if not ignore_errors:
                raise


def mm_populate(mm: Mm, start: int, length: int) -> None:
    """Populate after a call that has succeeded already: what fails now is not reported (5.17: include/linux/mm.h)."""
    populate_range(mm, start, start + length, ignore_errors=True)
