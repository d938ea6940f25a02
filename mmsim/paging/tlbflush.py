"""How the kernel keeps TLBs true: address-space numbers for the CPUs, generations for the address spaces, and flushes.

Each change of an mm's tables that takes something away raises the mm's ``tlb_gen``. A CPU remembers up to which generation
it has flushed, for each of the six address spaces whose entries it keeps (:class:`CpuTlbState`). CPUs that run the mm are
told at once by an interrupt; those that only borrow it (*lazy*: they run a kernel thread) and those that ran it before
find out by comparing generations when they come back to it.

With page-table isolation each ASID is two PCIDs, one for the kernel's tables and one for user space's; both are flushed.

5.17: arch/x86/mm/tlb.c. Left out: mitigations that flush on a switch, CPU hot-plug.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from mmsim.constants import TLB_FLUSH_ALL, TLB_NR_DYN_ASIDS, TLB_SINGLE_PAGE_FLUSH_CEILING
from mmsim.errors import InputError, InvariantError
from mmsim.paging.kernel_tables import InitMm
from mmsim.paging.mmu import CR3_NOFLUSH, INVPCID_ADDRESS, INVPCID_ALL_GLOBAL, INVPCID_SINGLE, Mmu
from mmsim.paging.tables import PageTables, kernel_to_user_pgd
from mmsim.trace import Trace
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["TLB_FLUSH_REASONS", "CpuTlbState", "MmContext", "TlbFlush"]

#: The bit by which user space's PCID differs (5.17: X86_CR3_PTI_PCID_USER_BIT).
PTI_USER_PCID = 1 << 11
#: Reasons in the event tlb:tlb_flush (5.17: include/trace/events/tlb.h).
TLB_FLUSH_REASONS = ("flush on task switch", "remote shootdown", "local shootdown", "local mm shootdown", "remote ipi send")
(TLB_FLUSH_ON_TASK_SWITCH, TLB_REMOTE_SHOOTDOWN, TLB_LOCAL_SHOOTDOWN, TLB_LOCAL_MM_SHOOTDOWN,
 TLB_REMOTE_SEND_IPI) = range(5)


class MmContext:
    """What flushing must know of an address space: its tables, a number that is never used again, the generation of its
    tables, and the CPUs that may keep entries of it (5.17: mm_context_t, mm_cpumask()).
    """

    __slots__ = ("tables", "ctx_id", "tlb_gen", "cpumask")

    def __init__(self, tables: PageTables, ctx_id: int):
        self.tables = tables
        self.ctx_id = ctx_id
        self.tlb_gen = 1
        self.cpumask: set[int] = set()

    def __repr__(self) -> str:
        return f"<MmContext {self.ctx_id}: generation {self.tlb_gen}, on CPUs {sorted(self.cpumask)}>"


class CpuTlbState:
    """What a CPU knows of its own TLB (5.17: struct tlb_state): the mm in CR3, and for each of six slots (ASIDs) whose
    entries they are and up to which generation they are true.
    """

    __slots__ = ("loaded_mm", "loaded_mm_asid", "next_asid", "is_lazy", "ctxs")

    def __init__(self, init_mm: MmContext):
        self.loaded_mm = init_mm
        self.loaded_mm_asid = 0
        self.next_asid = 1
        self.is_lazy = False
        #: [ctx_id, tlb_gen] by ASID; ctx_id 0 is nobody.
        self.ctxs: list[list[int]] = [[init_mm.ctx_id, init_mm.tlb_gen], *([0, 0] for _ in range(TLB_NR_DYN_ASIDS - 1))]


class TlbFlush:
    """The TLBs of a machine. ``cpus`` are its MMUs; ``kernel`` the kernel's own tables (init_mm).

    An interrupt to another CPU is handled on the spot, unless that CPU is put in ``held`` (it has interrupts off): then
    it waits in ``pending``, as the CPU that flushes would, until :meth:`deliver`. ``counts`` has the kernel's
    CONFIG_DEBUG_TLBFLUSH names.

    >>> from mmsim.reference import toy16
    >>> from mmsim.paging.tables import TableMemory
    >>> memory = TableMemory(toy16().allocator)
    >>> kernel = PageTables(memory, user=False)
    >>> flush = TlbFlush([Mmu(memory.contents)], kernel)
    >>> processes = [flush.new_context(PageTables(memory, kernel)) for _ in range(7)]
    >>> [flush.switch_mm(0, mm) for mm in processes]           # ASIDs: the seventh takes the first one's
    [1, 2, 3, 4, 5, 0, 1]
    """

    def __init__(self, cpus: Sequence[Mmu], kernel: PageTables, trace: Trace | None = None):
        if not cpus:
            raise InputError("a machine without CPUs has no TLB")
        self.cpus = cpus
        self.trace = trace or Trace()
        self._ctx_ids = count(1)
        self.init_mm = self.new_context(kernel)
        self.states = [CpuTlbState(self.init_mm) for _ in cpus]
        #: More pages than that are not flushed one by one (5.17: tlb_single_page_flush_ceiling, in debugfs).
        self.single_page_flush_ceiling = TLB_SINGLE_PAGE_FLUSH_CEILING
        self.counts = dict.fromkeys(("nr_tlb_remote_flush", "nr_tlb_remote_flush_received", "nr_tlb_local_flush_all",
                                     "nr_tlb_local_flush_one"), 0)
        self.held: set[int] = set()
        #: Interrupts not yet taken: (CPU, what :meth:`_flush_tlb_func` is to be told), in the order sent.
        self.pending: list[tuple[int, tuple[int, MmContext, int, int, int, int]]] = []
        for mmu in cpus:
            mmu.write_cr3(self._build_cr3(mmu, self.init_mm, 0))
        if isinstance(kernel, InitMm):
            # vfree() and set_memory_*() tell through the kernel's tables what is to be forgotten.
            kernel.on_flush.append(self.flush_tlb_kernel_range)

    def new_context(self, tables: PageTables) -> MmContext:
        """Make an address space known (5.17: init_new_context())."""
        return MmContext(tables, next(self._ctx_ids))

    @staticmethod
    def _build_cr3(mmu: Mmu, mm: MmContext, asid: int) -> int:
        """The PGD's address and the PCID, which is the ASID plus 1: 0 stays free (5.17: build_cr3(), kern_pcid())."""
        return mm.tables.pgd << PAGE_SHIFT | (asid + 1 if mmu.control.pcide else 0)

    def _event(self, cpu: int, reason: int, pages: int) -> None:
        if self.trace.enabled:
            self.trace.emit("tlb:tlb_flush", pages=-1 if pages == TLB_FLUSH_ALL else pages, reason=reason,
                            why=TLB_FLUSH_REASONS[reason], on_cpu=cpu)

    @staticmethod
    def _flush_user(mmu: Mmu, asid: int, addr: int | None = None) -> None:
        """Flush a page, or all, of user space's PCID (5.17: native_flush_tlb_one_user(), invalidate_user_asid(); the kernel
        puts a full flush off until it returns to user space).
        """
        if mmu.control.pcide:
            pcid = asid + 1 | PTI_USER_PCID
            mmu.invpcid(INVPCID_SINGLE if addr is None else INVPCID_ADDRESS, pcid, addr or 0)

    # -- switching ---------------------------------------------------------------------------------------------

    def choose_new_asid(self, cpu: int, next_mm: MmContext) -> tuple[int, bool]:
        """A slot for an mm, and whether it must be flushed: its own if the CPU still has it (flushed only if its generation
        is behind), else the next in turn (5.17: choose_new_asid()).
        """
        state = self.states[cpu]
        if not self.cpus[cpu].control.pcide:
            return 0, True
        for asid, (ctx_id, tlb_gen) in enumerate(state.ctxs):
            if ctx_id == next_mm.ctx_id:
                return asid, tlb_gen < next_mm.tlb_gen
        asid = state.next_asid
        state.next_asid += 1
        if asid >= TLB_NR_DYN_ASIDS:
            asid, state.next_asid = 0, 1
        return asid, True

    def switch_mm(self, cpu: int, next_mm: MmContext) -> int:
        """Let a CPU run an mm; return its ASID there (5.17: switch_mm_irqs_off())."""
        state, mmu = self.states[cpu], self.cpus[cpu]
        previous, was_lazy = state.loaded_mm, state.is_lazy
        state.is_lazy = False
        if previous is next_mm:
            if not was_lazy or state.ctxs[state.loaded_mm_asid][1] == next_mm.tlb_gen:
                return state.loaded_mm_asid
            # What it borrowed went out of date while it was lazy.
            asid, need_flush = state.loaded_mm_asid, True
        else:
            if previous is not self.init_mm:
                previous.cpumask.discard(cpu)
            if next_mm is not self.init_mm:
                next_mm.cpumask.add(cpu)
            asid, need_flush = self.choose_new_asid(cpu, next_mm)
        cr3 = self._build_cr3(mmu, next_mm, asid)
        mmu.isolated = next_mm.tables.isolated
        if need_flush:
            state.ctxs[asid] = [next_mm.ctx_id, next_mm.tlb_gen]
            mmu.write_cr3(cr3)
            if next_mm.tables.isolated:
                self._flush_user(mmu, asid)
        else:
            mmu.write_cr3(cr3 | CR3_NOFLUSH)
        self._event(cpu, TLB_FLUSH_ON_TASK_SWITCH, TLB_FLUSH_ALL if need_flush else 0)
        state.loaded_mm, state.loaded_mm_asid = next_mm, asid
        return asid

    def enter_lazy_tlb(self, cpu: int) -> None:
        """A kernel thread runs: it needs no user half, so the CPU keeps the one it has and ignores flushes of it
        (5.17: enter_lazy_tlb()).
        """
        if self.states[cpu].loaded_mm is not self.init_mm:
            self.states[cpu].is_lazy = True

    def leave_mm(self, cpu: int) -> None:
        """Load init_mm instead of what the CPU only borrows (5.17: leave_mm())."""
        if self.states[cpu].loaded_mm is not self.init_mm:
            self.switch_mm(cpu, self.init_mm)

    def drop_context(self, mm: MmContext) -> None:
        """An mm is about to go: no CPU may have its PGD in CR3. Entries left behind are harmless, as its ctx_id never comes
        again (5.17: exit_mmap() flushes; mmdrop() waits for lazy users).
        """
        for cpu, state in enumerate(self.states):
            if state.loaded_mm is mm:
                self.leave_mm(cpu)
        mm.cpumask.clear()

    # -- flushing ----------------------------------------------------------------------------------------------

    def flush_tlb_mm_range(self, cpu: int, mm: MmContext, start: int, end: int, stride_shift: int = PAGE_SHIFT,
                           freed_tables: bool = False) -> int:
        """Make every CPU forget a range of an mm; return how many pages are flushed singly, -1 for all.

        Called on ``cpu`` after the tables were changed and before frames or tables are reused. ``freed_tables`` reaches lazy
        CPUs too, as these may still walk there. More than 33 pages are flushed as a whole. 5.17: flush_tlb_mm_range().
        """
        if end == TLB_FLUSH_ALL or end - start >> stride_shift > self.single_page_flush_ceiling:
            start, end = 0, TLB_FLUSH_ALL
        mm.tlb_gen += 1
        if mm.cpumask - {cpu}:
            self.counts["nr_tlb_remote_flush"] += 1
            self._event(cpu, TLB_REMOTE_SEND_IPI, TLB_FLUSH_ALL if end == TLB_FLUSH_ALL else end - start >> PAGE_SHIFT)
        for target in sorted(mm.cpumask):
            if target == cpu or freed_tables or not self.states[target].is_lazy:
                if target in self.held and target != cpu:
                    self.pending.append((target, (cpu, mm, start, end, stride_shift, mm.tlb_gen)))
                else:
                    self._flush_tlb_func(target, cpu, mm, start, end, stride_shift, mm.tlb_gen)
        return -1 if end == TLB_FLUSH_ALL else end - start >> stride_shift

    def deliver(self, cpu: int, newest_first: bool = False) -> int:
        """Let a CPU take the interrupts that wait for it; return how many. Those of several senders may come in any order,
        which is why generations are compared.
        """
        waiting = [info for target, info in self.pending if target == cpu]
        self.pending = [(target, info) for target, info in self.pending if target != cpu]
        self.held.discard(cpu)
        for info in reversed(waiting) if newest_first else waiting:
            self._flush_tlb_func(cpu, *info)
        return len(waiting)

    def flush_tlb_page(self, cpu: int, mm: MmContext, addr: int) -> int:
        """Flush one page (5.17: flush_tlb_page())."""
        return self.flush_tlb_mm_range(cpu, mm, addr, addr + PAGE_SIZE)

    def flush_tlb_mm(self, cpu: int, mm: MmContext) -> int:
        """Flush all of an mm (5.17: flush_tlb_mm())."""
        return self.flush_tlb_mm_range(cpu, mm, 0, TLB_FLUSH_ALL)

    def _flush_tlb_func(self, cpu: int, initiator: int, mm: MmContext, start: int, end: int, stride_shift: int,
                        new_tlb_gen: int) -> None:
        """What one CPU does about a flush (5.17: flush_tlb_func())."""
        state, mmu = self.states[cpu], self.cpus[cpu]
        local = cpu == initiator
        if not local:
            self.counts["nr_tlb_remote_flush_received"] += 1
        if mm is not state.loaded_mm or state.loaded_mm is self.init_mm:
            return
        if state.is_lazy:
            self.switch_mm(cpu, self.init_mm)
            return
        slot = state.ctxs[state.loaded_mm_asid]
        pages = 0
        if slot[1] != mm.tlb_gen:
            if end != TLB_FLUSH_ALL and new_tlb_gen == slot[1] + 1 and new_tlb_gen == mm.tlb_gen:
                pages = end - start >> stride_shift
                for addr in range(start, end, 1 << stride_shift):
                    mmu.invlpg(addr)
                    if mm.tables.isolated:
                        self._flush_user(mmu, state.loaded_mm_asid, addr)
                self.counts["nr_tlb_local_flush_one"] += pages if local else 0
            else:
                # Generations are missing between: only a full flush catches up.
                pages = TLB_FLUSH_ALL
                mmu.write_cr3(mmu.cr3)
                if mm.tables.isolated:
                    self._flush_user(mmu, state.loaded_mm_asid)
                self.counts["nr_tlb_local_flush_all"] += local
            slot[1] = mm.tlb_gen
        self._event(cpu, TLB_LOCAL_MM_SHOOTDOWN if local else TLB_REMOTE_SHOOTDOWN, pages)

    def flush_tlb_all(self) -> None:
        """Everything on all CPUs, global entries too (5.17: flush_tlb_all())."""
        self.counts["nr_tlb_remote_flush"] += 1
        for mmu in self.cpus:
            self.counts["nr_tlb_remote_flush_received"] += 1
            mmu.invpcid(INVPCID_ALL_GLOBAL)

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Kernel addresses on all CPUs: page by page up to the ceiling, else everything (5.17: flush_tlb_kernel_range())."""
        if end == TLB_FLUSH_ALL or end - start > self.single_page_flush_ceiling << PAGE_SHIFT:
            for mmu in self.cpus:
                self.counts["nr_tlb_remote_flush_received"] += 1
                mmu.invpcid(INVPCID_ALL_GLOBAL)
            return
        for addr in range(start, end, PAGE_SIZE):
            for mmu in self.cpus:
                mmu.invlpg(addr)

    # -- checking ----------------------------------------------------------------------------------------------

    def true_pcids(self, cpu: int, contexts: Sequence[MmContext]) -> dict[int, int]:
        """The PGDs by PCID of which a CPU claims that its entries are up to date."""
        state = self.states[cpu]
        if not self.cpus[cpu].control.pcide:
            # One address space at a time; a lazy CPU may be behind.
            behind = state.is_lazy and state.ctxs[0][1] != state.loaded_mm.tlb_gen
            return {} if behind else {0: state.loaded_mm.tables.pgd}
        by_id = {mm.ctx_id: mm for mm in contexts}
        true = {}
        for asid, (ctx_id, tlb_gen) in enumerate(state.ctxs):
            if ctx_id in by_id and tlb_gen == by_id[ctx_id].tlb_gen:
                tables = by_id[ctx_id].tables
                true[asid + 1] = tables.pgd
                if tables.isolated:
                    true[asid + 1 | PTI_USER_PCID] = kernel_to_user_pgd(tables.pgd)
        return true

    def check(self, contexts: Sequence[MmContext]) -> None:
        """Verify that no TLB grants more than the tables of ``contexts`` do, wherever a CPU claims to be up to date; a
        violation names the missing flush. Raise InvariantError.
        """
        for cpu, (mmu, state) in enumerate(zip(self.cpus, self.states)):
            mmu.tlb.check()
            if mmu.pgd != state.loaded_mm.tables.pgd:
                raise InvariantError(f"CPU {cpu} has PGD {mmu.pgd:#x} in CR3 and believes {state.loaded_mm.tables.pgd:#x}")
            if state.loaded_mm is not self.init_mm and cpu not in state.loaded_mm.cpumask:
                raise InvariantError(f"CPU {cpu} runs {state.loaded_mm!r} but would not be told of its flushes")
            stale = mmu.stale(self.true_pcids(cpu, contexts))
            if stale:
                raise InvariantError(f"CPU {cpu} lacks a flush: {stale[0]}")
