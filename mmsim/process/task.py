"""A process: an address space with its pages, a parent and children, and counts of its faults.

System calls are methods that return what the kernel returns (an address, 0, a pid, or a negative errno). An access of memory goes
through the page tables as the CPU goes, and faults are handled until it succeeds or ends in a signal, which is a value
(:class:`~mmsim.process.populate.Touch`)::

    access ─► entry allows it ─► frame
                 │ no: error code ─► exc_page_fault ─► again, or signal

5.17: kernel/fork.c, include/linux/sched.h. Left out: threads, scheduling, everything of a process that is not memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_RW,
    PTE_PFN_MASK,
)
from mmsim.errors import Errno, InputError, KernelBug
from mmsim.paging.address import is_canonical
from mmsim.paging.mmu import Mmu
from mmsim.paging.tables import PageTables
from mmsim.paging.walk import PageFault
from mmsim.process.address_space import AddressSpace
from mmsim.process.bulk import first_write, touch_range
from mmsim.process.exit import mmput
from mmsim.process.fault import exc_page_fault, user_error_code
from mmsim.process.fork import dup_mm
from mmsim.process.mm import Mm
from mmsim.process.populate import Access, Outcome, Touch
from mmsim.process.signal import Signal, segv_kernel
from mmsim.process.syscalls import SystemCalls
from mmsim.process.user_memory import UserMemory
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, u64

__all__ = ["Process", "ProcessTable"]

P = ParamSpec("P")
_FINE = Touch(Outcome.OK)
_FIRST_WRITE = Touch(Outcome.OK, faults=("new page",), error_code=6)
# Members of an Enum are looked up by a function of Python; a name of the module is not.
_READ, _WRITE, _EXEC = Access.READ, Access.WRITE, Access.EXEC
_KIND = {_READ: "r", _WRITE: "w", _EXEC: "x"}
#: An access that needs more faults than this is none that any kernel would survive.
_MOST_FAULTS = 8


class Process(SystemCalls):
    """One process. ``mm`` are its areas, ``page_tables`` the tables; after vfork a child has those of its parent.

    ``minflt`` and ``majflt`` are what getrusage() says. ``cpu`` is the number of the CPU whose MMU translates its accesses; None:
    the tables are asked directly, with the same result but no TLB.
    """

    def __init__(self, table: ProcessTable, name: str, mm: Mm, parent: Process | None = None):
        super().__init__(mm)
        self.table = table
        self.user: UserMemory = table.user
        self.machine = table.user.machine
        self.pid = table.new_pid()
        self.name = name
        self.parent = parent
        self.children: list[Process] = []
        self.alive = True
        self.exit_code = 0
        #: The signal that ended it, or None.
        self.exit_signal: Signal | None = None
        self.minflt = self.majflt = 0
        #: What it counted of its RSS and the mm does not know yet (SPLIT_RSS_COUNTING), by kind; and faults since.
        self.rss_stat = [0, 0, 0, 0]
        self.rss_events = 0
        self._cpu: int | None = None
        self._waits_for: Process | None = None
        assert mm.pages is not None
        self.space: AddressSpace = mm.pages
        self._ptes = self.space.tables.ptes
        #: Whether accesses may look at the entries themselves: no CPU with a TLB, and nobody to wait for.
        self._direct = True
        table.processes[self.pid] = self
        self.user.tasks.append(self)
        if parent is not None:
            parent.children.append(self)

    @property
    def cpu(self) -> int | None:
        """The CPU on whose TLB it runs, or None."""
        return self._cpu

    @cpu.setter
    def cpu(self, number: int | None) -> None:
        if number is not None and (self.user.tlb is None or self.space.context is None):
            raise InputError("the machine's processes were made without TLBs (UserMemory.use_tlbs())")
        self._cpu = number
        self._direct = number is None and self._waits_for is None

    @property
    def page_tables(self) -> PageTables:
        """The page tables."""
        return self.space.tables

    def __repr__(self) -> str:
        state = "" if self.alive else f", ended with {self.exit_signal or self.exit_code}"
        return f"<Process {self.pid} {self.name!r}: {self.mm.map_count} areas, {sum(self.mm.rss)} pages{state}>"

    def _run(self, call: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
        self._must_live()
        self.user.current = self
        return super()._run(call, *args, **kwargs)

    def _must_live(self) -> None:
        if not self.alive:
            raise InputError(f"process {self.pid} has ended")
        if self._waits_for is not None:
            raise InputError(f"process {self.pid} waits until its vfork child {self._waits_for.pid} ends")

    # -- accesses --------------------------------------------------------------------------------------------

    def touch(self, addr: int, access: Access = Access.READ) -> Touch:
        """Access the byte at ``addr``: what came of it, and the faults on the way."""
        if self._direct and self.alive:
            # The common cases, without detours: an entry that allows the access, and the first write to a page.
            table = self._ptes.get(addr >> 21)
            if table is not None:
                index = addr >> 12 & 511
                word = table[index]
                if access is _WRITE:
                    if word & 3 == 3:
                        if word & 0x60 != 0x60:
                            table[index] = word | 0x60
                        return _FINE
                    if not word and first_write(self, addr, table, index):
                        return _FIRST_WRITE
                elif word & 1 and access is _READ:
                    if not word & 0x20:
                        table[index] = word | 0x20
                    return _FINE
        self._must_live()
        return self._translate(u64(addr), access)[0]

    def _translate(self, addr: int, access: Access) -> tuple[Touch, int]:
        """Make an access; return its outcome and the physical address (-1 if there is none)."""
        if addr >> 47 and not is_canonical(addr, self.space.tables.levels):
            return self._signal(segv_kernel(), (), 0), -1
        self.user.current = self
        faults: tuple[str, ...] = ()
        code = 0
        mmu = self._mmu()
        while True:
            found = self._walk(addr, access) if mmu is None else self._hardware(mmu, addr, access)
            if found >= 0:
                return Touch(Outcome.OK, "", None, faults, code) if faults else _FINE, found
            code = ~found
            self.space.what = ""
            result = exc_page_fault(self, addr, code)
            if isinstance(result, Signal):
                return self._signal(result, faults, code), -1
            if result is not None:
                return Touch(Outcome.OOM, "", None, faults, code), -1
            faults += (self.space.what,)
            if len(faults) > _MOST_FAULTS:
                raise KernelBug(f"an access of {addr:#x} faults again and again: {', '.join(faults)}")

    def _signal(self, signal: Signal, faults: tuple[str, ...], code: int) -> Touch:
        return Touch(Outcome(signal.signo), signal.code, self.mm.tree.lookup(signal.address), faults, code, signal.address)

    def _mmu(self) -> Mmu | None:
        """The MMU of the CPU that it runs on, with its tables loaded; None without one."""
        tlb = self.user.tlb
        if tlb is None or self.cpu is None or self.space.context is None:
            return None
        if tlb.states[self.cpu].loaded_mm is not self.space.context or tlb.states[self.cpu].is_lazy:
            tlb.switch_mm(self.cpu, self.space.context)
        return tlb.cpus[self.cpu]

    @staticmethod
    def _hardware(mmu: Mmu, addr: int, access: Access) -> int:
        try:
            return mmu.translate(addr, _KIND[access])
        except PageFault as fault:
            return ~fault.error_code

    def _walk(self, addr: int, access: Access) -> int:
        """The physical address, with A and D set as the CPU does; or the error code, inverted.

        The walk of :func:`mmsim.paging.walk.hardware_walk` where no page is large: the last table alone decides.
        """
        write = access is _WRITE
        table = self.space.tables.ptes.get(addr >> 21)
        index = addr >> PAGE_SHIFT & 511
        word = table[index] if table is not None else 0
        needed = _PAGE_PRESENT | _PAGE_RW if write else _PAGE_PRESENT
        if table is None or word & needed != needed or access is _EXEC and word & _PAGE_NX:
            return ~user_error_code(write, access is _EXEC, word)
        used = word | _PAGE_ACCESSED
        if write:
            # Where soft-dirty is tracked, a writable entry is soft-dirty already.
            used |= 0x40
        if used != word:
            table[index] = used
        return word & PTE_PFN_MASK | addr & PAGE_SIZE - 1

    def touch_range(self, addr: int, pages: int, write: bool = True) -> int:
        """Access one byte of each page of a range; how many were accessed before one could not be (:mod:`mmsim.process.bulk`)."""
        self._must_live()
        return touch_range(self, u64(addr), pages, write)

    def read(self, addr: int, size: int = 1) -> bytes:
        """Read bytes; fewer than ``size`` where an access ends in a signal."""
        self._must_live()
        found = b""
        while len(found) < size:
            at = addr + len(found)
            _, physical = self._translate(at, _READ)
            if physical < 0:
                break
            found += self.user.contents.read(physical, min(size - len(found), PAGE_SIZE - (at & PAGE_SIZE - 1)))
        return found

    def write(self, addr: int, data: bytes) -> Touch:
        """Write bytes, page by page; the outcome is that of the last access, the faults are those of all."""
        self._must_live()
        done, faults = 0, ()
        touch = Touch(Outcome.OK)
        while done < len(data):
            at = addr + done
            touch, physical = self._translate(at, _WRITE)
            faults += touch.faults                      # type: ignore[assignment]
            if physical < 0:
                break
            part = data[done:done + PAGE_SIZE - (at & PAGE_SIZE - 1)]
            self.user.contents.write(physical, part)
            done += len(part)
        return Touch(touch.outcome, touch.code, touch.vma, faults, touch.error_code, touch.address)

    def copy_to_user(self, addr: int, data: bytes) -> bool:
        """Write for a system call; False if that faults (5.17: arch/x86/include/asm/uaccess_64.h, copy_to_user())."""
        return self.write(addr, data).outcome is Outcome.OK

    # -- children ----------------------------------------------------------------------------------------------

    def fork(self) -> int:
        """Make a child with a copy of everything; return its pid, or -ENOMEM (5.17: kernel/fork.c, kernel_clone())."""
        return self._run(self._fork)

    def _fork(self) -> int:
        return Process(self.table, self.name, dup_mm(self.mm), self).pid

    def vfork(self) -> int:
        """Make a child that runs in this very address space, while this process waits until it ends (CLONE_VM | CLONE_VFORK).

        5.17: kernel/fork.c, vfork().
        """
        return self._run(self._vfork)

    def _vfork(self) -> int:
        child = Process(self.table, self.name, self.mm, self)
        self.space.users += 1
        self._waits_for, self._direct = child, False
        return child.pid

    def exit(self, code: int = 0, signal: Signal | None = None) -> None:
        """End: the memory goes at once, the process when its parent waits (5.17: kernel/exit.c, do_exit(), exit_mm())."""
        self._must_live()
        self.user.current = self
        self.space.sync_mm_rss()
        self.alive = False
        self.exit_code, self.exit_signal = code, signal
        self.user.tasks.remove(self)
        self.user.current = None                                # current->mm is gone before the memory
        mmput(self.mm)
        if self.parent is not None and self.parent._waits_for is self:
            self.parent._waits_for, self.parent._direct = None, self.parent.cpu is None
        for child in self.children:
            child.parent = None
            if not child.alive:
                self.table.processes.pop(child.pid, None)
        if self.parent is None:
            self.table.processes.pop(self.pid, None)

    def wait(self) -> int:
        """The pid of a child that has ended, which is gone then; -ECHILD if there is none (5.17: kernel/exit.c, wait4())."""
        self._must_live()
        for child in self.children:
            if not child.alive:
                self.children.remove(child)
                self.table.processes.pop(child.pid, None)
                return child.pid
        self.why = "no child has ended"
        return -Errno("ECHILD").number

    # -- checking ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Verify its areas, tables and counts (:meth:`AddressSpace.check`). Raise InvariantError."""
        if self.alive:
            self.space.check()


class ProcessTable:
    """The processes of a machine, and what they share.

    >>> from mmsim.reference import ref256
    >>> from mmsim.constants import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
    >>> table = ProcessTable(UserMemory(ref256()))
    >>> shell = table.spawn("sh")
    >>> at = shell.mmap(0, 0x4000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    >>> shell.write(at, b"hello").faults
    ('new page',)
    >>> child = table.processes[shell.fork()]
    >>> child.write(at, b"world").faults, shell.read(at, 5), child.read(at, 5)
    (('copy',), b'hello', b'world')
    """

    def __init__(self, user: UserMemory):
        self.user = user
        self.processes: dict[int, Process] = {}
        self.last_pid = 0

    def new_pid(self) -> int:
        """The next pid. Left out: that numbers are used again."""
        self.last_pid += 1
        return self.last_pid

    def spawn(self, name: str = "a.out", mm: Mm | None = None) -> Process:
        """A process with an empty address space (or with ``mm``, which has areas only so far)."""
        if mm is None:
            mm = Mm(rules=self.user.rules, overcommit=self.user.overcommit, trace=self.user.trace,
                    soft_dirty=self.user.soft_dirty)
        AddressSpace(mm, self.user)
        return Process(self, name, mm)

    def check(self) -> None:
        """Verify all processes, and all together (:meth:`UserMemory.check`). Raise InvariantError."""
        self.user.check()
