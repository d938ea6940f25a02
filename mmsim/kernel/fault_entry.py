"""What the kernel makes of a page fault before it looks at any VMA: the decision tree at the entry.

    address in the kernel's half ──► spurious? ─► fine
                                     else user mode: SIGSEGV; kernel mode: exception table, or oops
    address in the user half     ──► kernel executes or touches it without permission: oops
                                     no mm, or faults disabled (an interrupt, get_user() in an atomic section): exception table, or oops
                                     else: look at the VMAs

On x86-64 no fault fetches entries for the vmalloc region: all 64 of its PGD entries are filled at boot.

5.17: arch/x86/mm/fault.c, handle_page_fault(), do_kern_addr_fault(), do_user_addr_fault(). Left out: kprobes, KFENCE, EFI, CPU
errata, emulation of vsyscalls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mmsim.constants import X86_PF_INSTR, X86_PF_PROT, X86_PF_RSVD, X86_PF_USER, X86_PF_WRITE
from mmsim.errors import InputError
from mmsim.kernel.layout import USER_END, VSYSCALL_ADDR
from mmsim.units import PAGE_SIZE, U64_MAX

__all__ = ["FaultContext", "FaultVerdict", "Outcome", "decide_fault", "fault_in_kernel_space", "spurious_kernel_fault"]

#: The first address above user space, less a page that the CPU's SYSRET needs empty.
TASK_SIZE_MAX = USER_END - PAGE_SIZE


class Outcome(Enum):
    """How the entry decides."""

    HANDLE_MM_FAULT = "look for a VMA"
    SPURIOUS = "spurious: the access is allowed by now, run the instruction again"
    SIGSEGV = "signal SIGSEGV, SEGV_MAPERR"
    FIXUP = "the exception table says where to go on: the access returns -EFAULT"
    OOPS = "oops: the task dies"
    PGTABLE_BAD = "oops: corrupted page table"


@dataclass(frozen=True, slots=True)
class FaultContext:
    """What else the entry looks at. ``leaf_allows``: whether the kernel's own tables allow the access now, None if nothing is
    mapped there. ``ac`` is EFLAGS.AC: between STAC and CLAC the kernel may touch user pages.
    """

    user_mode: bool = False
    has_mm: bool = True
    faults_disabled: bool = False
    exception_table: bool = False
    smap: bool = True
    ac: bool = False
    leaf_allows: bool | None = None


@dataclass(slots=True)
class FaultVerdict:
    """The outcome, and the questions on the way with their answers."""

    outcome: Outcome
    steps: list[tuple[str, bool]] = field(default_factory=list)


def is_vsyscall_vaddr(addr: int) -> bool:
    """Whether an address is in the one page of the upper half that belongs to user space (5.17: is_vsyscall_vaddr())."""
    return addr & -PAGE_SIZE == VSYSCALL_ADDR


def fault_in_kernel_space(addr: int) -> bool:
    """5.17: arch/x86/mm/fault.c, fault_in_kernel_space()."""
    return not is_vsyscall_vaddr(addr) and addr >= TASK_SIZE_MAX


def spurious_kernel_fault(error_code: int, leaf_allows: bool | None) -> bool:
    """Whether a fault came from a TLB that had not heard yet that the page became writable or executable.

    Only a write to a read-only page or a fetch from a no-execute page can be such; permissions are tightened with a flush
    and loosened without. 5.17: spurious_kernel_fault().
    """
    return error_code in (X86_PF_WRITE | X86_PF_PROT, X86_PF_INSTR | X86_PF_PROT) and bool(leaf_allows)


def decide_fault(addr: int, error_code: int, context: FaultContext | None = None) -> FaultVerdict:
    """Walk down the tree for a fault at ``addr``. Raise InputError for what is no address.

    >>> decide_fault(0xffffc90000001000, 0, FaultContext()).outcome.name
    'OOPS'
    >>> decide_fault(0x400000, X86_PF_USER | X86_PF_WRITE, FaultContext(user_mode=True)).outcome.name
    'HANDLE_MM_FAULT'
    """
    if not 0 <= addr <= U64_MAX:
        raise InputError(f"{addr:#x} is no address of 64 bits")
    context = context or FaultContext()
    verdict = FaultVerdict(Outcome.OOPS)

    def ask(question: str, answer: bool) -> bool:
        verdict.steps.append((question, answer))
        return answer

    def done(outcome: Outcome) -> FaultVerdict:
        verdict.outcome = outcome
        return verdict

    def bad_area_nosemaphore() -> FaultVerdict:
        if ask("did user code run?", context.user_mode):
            # A fault of user code without the user bit: the CPU itself read a table of the kernel's for it.
            return done(Outcome.SIGSEGV if ask("was it a user access?", bool(error_code & X86_PF_USER)) else Outcome.OOPS)
        return done(Outcome.FIXUP if ask("is the instruction in the exception table?", context.exception_table)
                    else Outcome.OOPS)

    if ask("is the address in the kernel's half?", fault_in_kernel_space(addr)):
        if ask("do the tables allow the access by now?", spurious_kernel_fault(error_code, context.leaf_allows)):
            return done(Outcome.SPURIOUS)
        return bad_area_nosemaphore()
    if ask("does the kernel execute user memory?", error_code & (X86_PF_USER | X86_PF_INSTR) == X86_PF_INSTR):
        return done(Outcome.OOPS)
    if ask("is a reserved bit set in an entry?", bool(error_code & X86_PF_RSVD)):
        return done(Outcome.PGTABLE_BAD)
    if ask("does the kernel touch user memory outside of STAC/CLAC?",
           context.smap and not error_code & X86_PF_USER and not context.ac):
        return done(Outcome.OOPS)
    if ask("are faults disabled, or is there no mm?", context.faults_disabled or not context.has_mm):
        return bad_area_nosemaphore()
    return done(Outcome.HANDLE_MM_FAULT)
