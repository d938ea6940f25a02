"""Kernel stacks, and the first decisions about a page fault."""

import pytest

from mmsim.constants import X86_PF_INSTR, X86_PF_PROT, X86_PF_RSVD, X86_PF_USER, X86_PF_WRITE
from mmsim.errors import InputError, KernelPanic
from mmsim.kernel.fault_entry import FaultContext, Outcome, decide_fault
from mmsim.kernel.stacks import THREAD_SIZE, ThreadStacks
from mmsim.kernel.vmalloc import Vmalloc

from .machines import slub


def stacks(cpus=1):
    return ThreadStacks(Vmalloc(slub(cpus=cpus)))


def test_a_stack_is_aligned_and_has_nothing_mapped_around_it():
    t = stacks()
    one, two = t.alloc(), t.alloc()
    assert one % THREAD_SIZE == two % THREAD_SIZE == 0 and abs(two - one) == 2 * THREAD_SIZE
    t.check()
    t.region.check()
    assert t.region.memory.nodes[0].vm_stat["nr_kernel_stack"] == 32


def test_each_cpu_keeps_two_stacks_of_ended_tasks():
    t = stacks(cpus=2)
    made = [t.alloc() for _ in range(4)]
    for stack in made:
        t.free(stack)
    assert t.cached[0] == made[:2] and len(t.region.vm) == 2
    assert t.alloc() == made[0] and t.alloc() == made[1]
    t.region.memory.run_on(1)
    t.free(made[0])
    assert t.cached[1] == [made[0], None]
    t.check()
    t.cpu_offline(1)
    assert len(t.region.vm) == 1
    with pytest.raises(InputError):
        t.free(made[0])
    t.check()


def test_a_stack_that_comes_back_is_clean():
    t = stacks()
    stack = t.alloc()
    t.region.write(stack + 100, b"secret")
    t.free(stack)
    assert t.alloc() == stack and t.region.read(stack, THREAD_SIZE) == bytes(THREAD_SIZE)


def test_running_over_the_end_hits_the_guard_page():
    t = stacks()
    stack = t.alloc()
    pointer = stack + THREAD_SIZE
    for _ in range(16):
        pointer = t.push(stack, pointer, 1000)
    with pytest.raises(KernelPanic, match="TASK stack guard hit"):
        t.push(stack, pointer, 1000)
    assert t.region.slub.klog.lines()[-1] == (f"BUG: TASK stack guard page was hit at {stack - 8:016x} (stack is {stack:016x}.."
                                              f"{stack + THREAD_SIZE:016x})")
    t.check()


KERNEL, USER = 0xFFFF_C900_0000_1000, 0x40_0000


@pytest.mark.parametrize(("addr", "code", "context", "outcome"), [
    (KERNEL, 0, {}, Outcome.OOPS),
    (KERNEL, 0, {"exception_table": True}, Outcome.FIXUP),
    (KERNEL, X86_PF_USER, {"user_mode": True}, Outcome.SIGSEGV),
    (KERNEL, 0, {"user_mode": True}, Outcome.OOPS),
    (KERNEL, X86_PF_WRITE | X86_PF_PROT, {"leaf_allows": True}, Outcome.SPURIOUS),
    (KERNEL, X86_PF_INSTR | X86_PF_PROT, {"leaf_allows": True}, Outcome.SPURIOUS),
    (KERNEL, X86_PF_WRITE | X86_PF_PROT, {"leaf_allows": False}, Outcome.OOPS),
    (KERNEL, X86_PF_WRITE, {"leaf_allows": True}, Outcome.OOPS),
    (USER, X86_PF_INSTR, {"exception_table": True}, Outcome.OOPS),
    (USER, X86_PF_USER | X86_PF_RSVD | X86_PF_PROT, {"user_mode": True}, Outcome.PGTABLE_BAD),
    (USER, X86_PF_WRITE, {"exception_table": True}, Outcome.OOPS),
    (USER, X86_PF_WRITE, {"ac": True}, Outcome.HANDLE_MM_FAULT),
    (USER, X86_PF_WRITE, {"smap": False}, Outcome.HANDLE_MM_FAULT),
    (USER, 0, {"ac": True, "faults_disabled": True, "exception_table": True}, Outcome.FIXUP),
    (USER, 0, {"ac": True, "has_mm": False}, Outcome.OOPS),
    (USER, X86_PF_USER, {"user_mode": True}, Outcome.HANDLE_MM_FAULT),
    # The vsyscall page is high up, and user space all the same; so the hole below the kernel's half is not.
    (0xFFFF_FFFF_FF60_0400, X86_PF_USER | X86_PF_INSTR, {"user_mode": True}, Outcome.HANDLE_MM_FAULT),
    (0x7FFF_FFFF_F000, X86_PF_USER, {"user_mode": True}, Outcome.SIGSEGV),
    (0x7FFF_FFFF_EFFF, X86_PF_USER, {"user_mode": True}, Outcome.HANDLE_MM_FAULT)])
def test_what_becomes_of_a_fault(addr, code, context, outcome):
    verdict = decide_fault(addr, code, FaultContext(**context))
    assert verdict.outcome is outcome and verdict.steps


def test_what_is_no_address_has_no_fault():
    with pytest.raises(InputError):
        decide_fault(1 << 64, 0)
