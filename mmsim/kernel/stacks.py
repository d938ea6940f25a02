"""Kernel stacks: 16 KiB for each task, from vmalloc (CONFIG_VMAP_STACK).

In the direct map a stack that grows too far would write into whatever frame lies below. In the vmalloc region a page that is
never mapped lies there, so it faults. The price is four page-table entries a task; so each CPU keeps two stacks of tasks that
ended, and most new tasks take one of these.

5.17: kernel/fork.c, alloc_thread_stack_node(), free_thread_stack().
"""

from __future__ import annotations

from mmsim import constants as c
from mmsim.errors import InputError, InvariantError, KernelPanic
from mmsim.kernel.vmalloc import Vmalloc
from mmsim.units import PAGE_SIZE

__all__ = ["NR_CACHED_STACKS", "THREAD_SIZE", "ThreadStacks"]

THREAD_SIZE = 4 * PAGE_SIZE
THREAD_ALIGN = THREAD_SIZE
NR_CACHED_STACKS = 2
_THREADINFO_GFP = c.GFP_KERNEL | c._GFP_ZERO


class ThreadStacks:
    """The kernel stacks of a machine's tasks, by their lowest address."""

    def __init__(self, region: Vmalloc):
        self.region = region
        #: Each CPU's stacks of ended tasks; None: the place is empty.
        self.cached: list[list[int | None]] = [[None] * NR_CACHED_STACKS for _ in range(region.memory.nr_cpus)]
        self.in_use: set[int] = set()

    def alloc(self, nid: int | None = None) -> int | None:
        """A stack of zeros: one that the CPU has kept, or a new one; None without memory."""
        region = self.region
        places = self.cached[region.memory.cpu]
        for index, stack in enumerate(places):
            if stack is not None:
                places[index] = None
                # Pointers of the last owner must not be found there.
                region.write(stack, bytes(THREAD_SIZE))
                break
        else:
            stack = region.vmalloc(THREAD_SIZE, _THREADINFO_GFP, nid, THREAD_ALIGN, caller="dup_task_struct")
            if stack is None:
                return None
        self.in_use.add(stack)
        self._account(stack, 1)
        return stack

    def free(self, stack: int) -> None:
        """Give a task's stack up: into an empty place of the CPU, else back. Raise InputError for what is no stack in use."""
        if stack not in self.in_use:
            raise InputError(f"{stack:#x} is no stack of a task")
        self.in_use.remove(stack)
        self._account(stack, -1)
        places = self.cached[self.region.memory.cpu]
        for index, place in enumerate(places):
            if place is None:
                places[index] = stack
                return
        self.region.vfree(stack)

    def _account(self, stack: int, sign: int) -> None:
        """KernelStack in /proc/meminfo, in KiB (5.17: account_kernel_stack())."""
        area = self.region.find_vm_area(stack)
        assert area is not None
        for pfn in area.pages:
            nid = self.region.memory.frames.page_zone(pfn).nid
            self.region.slub.count_pages(nid, "nr_kernel_stack", sign * (PAGE_SIZE >> 10))

    def cpu_offline(self, cpu: int) -> None:
        """Free what a CPU keeps when it goes away (5.17: free_vm_stack_cache())."""
        for index, stack in enumerate(self.cached[cpu]):
            if stack is not None:
                self.cached[cpu][index] = None
                self.region.vfree(stack)

    def push(self, stack: int, pointer: int, size: int) -> int:
        """Take ``size`` bytes of a stack below ``pointer``, as a function's frame does, and write there; return the new
        pointer. Raise KernelPanic when that leaves the stack. 5.17: arch/x86/kernel/traps.c, handle_stack_overflow().
        """
        if stack not in self.in_use or not stack <= pointer <= stack + THREAD_SIZE or size < 0:
            raise InputError(f"{pointer:#x} is not in the stack {stack:#x}")
        lowest = pointer - size
        if lowest < stack:
            # The first write below the stack; frames larger than a page might jump over the guard page.
            fault = min(pointer, stack) - 8
            self.region.slub.klog.printk(f"BUG: TASK stack guard page was hit at {fault:016x} (stack is {stack:016x}.."
                                         f"{stack + THREAD_SIZE:016x})")
            raise KernelPanic("TASK stack guard hit")
        self.region.write(lowest, bytes(size))
        return lowest

    def check(self) -> None:
        """Verify that each stack is an aligned area of its own with nothing mapped below. Raise InvariantError."""
        kept = [stack for places in self.cached for stack in places if stack is not None]
        if len(set(kept)) != len(kept) or self.in_use & set(kept):
            raise InvariantError("a stack is kept twice, or kept and in use")
        for stack in [*self.in_use, *kept]:
            area = self.region.find_vm_area(stack)
            if area is None or area.addr != stack or area.usable != THREAD_SIZE or stack % THREAD_ALIGN:
                raise InvariantError(f"stack {stack:#x} is no aligned area of {THREAD_SIZE} bytes")
            if self.region.vmalloc_to_pfn(stack - PAGE_SIZE) is not None:
                raise InvariantError(f"the page below stack {stack:#x} is mapped")
