"""The lab: processes of a machine, made to do one thing after another, with a picture of everything after each step.

From Python a process of the lab has the system calls and accesses of a :class:`~mmsim.process.task.Process`, and every call is
a step. A script (:mod:`mmsim.lab.syntax`) does the same in a few words:

    >>> lab = Lab()
    >>> a = lab.main.mmap(64 << 10, "rw", "private|anon")
    >>> lab.main.write(a, b"hello").faults
    ('new page',)
    >>> _ = lab.run('''
    ... fork -> child
    ... child: write a "world"
    ... munmap(a+2K, 4K)
    ... ''', a=a)
    >>> [(step.text, step.errno, step.minflt) for step in lab.steps[-2:]]
    [('write a "world"', '', 1), ('munmap(a+2K, 4K)', 'EINVAL', 0)]

A signal does not end a process here: the program is one that catches it and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmsim.constants import TASK_SIZE, VM_STACK_FLAGS
from mmsim.errors import InputError, errno_name
from mmsim.lab import words
from mmsim.lab.snapshot import Snapshot, take_snapshot
from mmsim.lab.syntax import LabError
from mmsim.machine import Machine
from mmsim.process.populate import Access, Outcome, Touch
from mmsim.process.signal import Signal
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile, Vma
from mmsim.reference import ref256
from mmsim.trace import Event
from mmsim.units import KIB, PAGE_SHIFT, PAGE_SIZE, align_up, u64

__all__ = ["Lab", "LabProcess", "Step"]

#: What a lab allows: steps, frames that its processes hold, processes, and events kept of a step.
MAX_STEPS, MAX_FRAMES, MAX_PROCESSES, MAX_EVENTS = 400, 2048, 12, 200
#: Where the heap begins, as after a small program without ASLR, and how large the stack is at first.
_HEAP, _STACK = 0x5555_5555_9000, 132 * KIB
_EVENTS = ("mmsim:vma_merge", "exceptions:*", "kmem:mm_page_*", "kmem:rss_stat", "mmap:*", "tlb:*")


@dataclass(frozen=True, slots=True)
class Step:
    """One step and what came of it.

    ``result`` is what the kernel returned (an address, 0, a pid, a negative errno), ``errno`` the name of that errno or empty,
    ``why`` the reason in words. An access has ``data`` (what was read) or ``signal``, and ``faults``: how each fault on the way was
    handled. ``minflt``, ``majflt`` and ``pgreuse`` are what the step added.
    """

    number: int
    process: str
    text: str
    result: int
    errno: str
    why: str
    data: bytes
    signal: Signal | None
    faults: tuple[str, ...]
    minflt: int
    majflt: int
    pgreuse: int
    events: tuple[Event, ...]
    line: int
    state: Snapshot

    @property
    def outcome(self) -> str:
        """The result in a few words: ``= 0x7ffff7fef000``, ``-1 ENOMEM``, ``SIGSEGV (SEGV_MAPERR) at 0x0``."""
        if self.signal is not None:
            return str(self.signal)
        if self.errno:
            return f"-1 {self.errno}"
        if self.data:
            return repr(self.data[:32])[1:] + (" …" if len(self.data) > 32 else "")
        return f"= {self.result:#x}" if self.result > 4095 else f"= {self.result}"


def _word(value: int | str, names: dict[str, int], what: str) -> int:
    """A number, or names with ``|`` between them."""
    if isinstance(value, int):
        return value
    total = 0
    for name in filter(None, (part.strip() for part in value.split("|"))):
        if name not in names and name not in words.CONSTANTS:
            raise LabError(0, 0, f"no {what} {name!r}", ", ".join(sorted(names)))
        total |= names.get(name, words.CONSTANTS.get(name, 0))
    return total


class LabProcess:
    """A process of the lab: every call is a step. Results are the kernel's: an address, 0, or a negative errno."""

    def __init__(self, lab: Lab, name: str, process: Process):
        self.lab, self.name, self.process = lab, name, process

    def __repr__(self) -> str:
        return f"<LabProcess {self.name}: {self.process}>"

    # -- steps -------------------------------------------------------------------------------------------------

    def _call(self, text: str, run: Callable[[], int], populates: int = 0) -> int:
        return self.lab.step(self, text, run, populates)[0]

    def _access(self, text: str, run: Callable[[], tuple[Touch, bytes]], pages: int) -> tuple[Touch, bytes]:
        found: list[tuple[Touch, bytes]] = []

        def access() -> int:
            found.append(run())
            return 0
        self.lab.step(self, text, access, pages, found)
        return found[0]

    # -- system calls --------------------------------------------------------------------------------------------

    def mmap(self, length: int, prot: int | str = "rw", flags: int | str = "private|anon", file: MappedFile | None = None,
             offset: int = 0, *, at: int = 0, text: str = "") -> int:
        """mmap(at, length, prot, flags, file, offset)."""
        number = _word(flags, words.MAP_FLAGS, "flag")
        protection = _word(prot, words.PROTECTION, "protection")
        populates = number & (words.MAP_FLAGS["populate"] | words.MAP_FLAGS["locked"]) or self.process.mm.def_flags
        return self._call(text or f"mmap({at:#x}, {length:#x}, {protection}, {number:#x}, {'file' if file else -1}, {offset:#x})",
                          lambda: self.process.mmap(at, length, protection, number, file, offset), _pages(length) if populates else 0)

    def munmap(self, addr: int, length: int, *, text: str = "") -> int:
        """munmap(addr, length)."""
        return self._call(text or f"munmap({addr:#x}, {length:#x})", lambda: self.process.munmap(addr, length))

    def mprotect(self, addr: int, length: int, prot: int | str, *, text: str = "") -> int:
        """mprotect(addr, length, prot)."""
        number = _word(prot, words.PROTECTION, "protection")
        return self._call(text or f"mprotect({addr:#x}, {length:#x}, {number})", lambda: self.process.mprotect(addr, length, number))

    def mremap(self, addr: int, old_length: int, new_length: int, flags: int | str = 0, new_addr: int = 0, *, text: str = "") -> int:
        """mremap(addr, old_length, new_length, flags, new_addr)."""
        number = _word(flags, words.MREMAP_FLAGS, "flag")
        return self._call(text or f"mremap({addr:#x}, {old_length:#x}, {new_length:#x}, {number}, {new_addr:#x})",
                          lambda: self.process.mremap(addr, old_length, new_length, number, new_addr),
                          _pages(new_length) if self.process.mm.locked_vm else 0)

    def brk(self, addr: int, *, text: str = "") -> int:
        """brk(addr): the heap's end afterwards."""
        grows = max(addr - self.process.mm.brk, 0) if self.process.mm.def_flags else 0
        return self._call(text or f"brk({addr:#x})", lambda: self.process.brk(addr), _pages(grows))

    def sbrk(self, increment: int, *, text: str = "") -> int:
        """Move the heap's end by some bytes; the end before, or -ENOMEM, as the C library does it with brk()."""
        def run() -> int:
            before = self.process.mm.brk
            return before if self.process.brk(before + increment) == u64(before + increment) else -12
        return self._call(text or f"sbrk({increment:#x})", run, _pages(max(increment, 0)) if self.process.mm.def_flags else 0)

    def mlock(self, addr: int, length: int, *, text: str = "") -> int:
        """mlock(addr, length)."""
        return self._call(text or f"mlock({addr:#x}, {length:#x})", lambda: self.process.mlock(addr, length), self._mapped(addr, length))

    def mlock2(self, addr: int, length: int, flags: int | str, *, text: str = "") -> int:
        """mlock2(addr, length, flags)."""
        number = _word(flags, {"onfault": 1}, "flag")
        return self._call(text or f"mlock2({addr:#x}, {length:#x}, {number})", lambda: self.process.mlock2(addr, length, number),
                          self._mapped(addr, length))

    def munlock(self, addr: int, length: int, *, text: str = "") -> int:
        """munlock(addr, length)."""
        return self._call(text or f"munlock({addr:#x}, {length:#x})", lambda: self.process.munlock(addr, length))

    def mlockall(self, flags: int | str, *, text: str = "") -> int:
        """mlockall(flags)."""
        number = _word(flags, words.MCL_FLAGS, "flag")
        return self._call(text or f"mlockall({number})", lambda: self.process.mlockall(number), self.process.mm.total_vm)

    def munlockall(self, *, text: str = "") -> int:
        """munlockall()."""
        return self._call(text or "munlockall()", self.process.munlockall)

    def madvise(self, addr: int, length: int, advice: int | str, *, text: str = "") -> int:
        """madvise(addr, length, advice)."""
        number = _word(advice, words.ADVICE, "advice")
        populates = number in (words.ADVICE["populate_read"], words.ADVICE["populate_write"], words.ADVICE["willneed"])
        return self._call(text or f"madvise({addr:#x}, {length:#x}, {number})", lambda: self.process.madvise(addr, length, number),
                          self._mapped(addr, length) if populates else 0)

    def msync(self, addr: int, length: int, flags: int | str, *, text: str = "") -> int:
        """msync(addr, length, flags)."""
        number = _word(flags, words.MSYNC_FLAGS, "flag")
        return self._call(text or f"msync({addr:#x}, {length:#x}, {number})", lambda: self.process.msync(addr, length, number))

    def mincore(self, addr: int, length: int, *, text: str = "") -> bytes:
        """mincore(addr, length): a byte a page; fewer than asked for if the call failed."""
        vector = bytearray()
        if _pages(length) > self.lab.max_frames and self._mapped(addr, length) > self.lab.max_frames:
            raise LabError(self.lab.line, 0, f"a vector of {_pages(length)} bytes; at most {self.lab.max_frames}")

        def run() -> tuple[Touch, bytes]:
            self.lab.result = self.process.mincore(addr, length, vector)
            return Touch(Outcome.OK), bytes(vector)
        self._access(text or f"mincore({addr:#x}, {length:#x})", run, 0)
        return bytes(vector)

    def fork(self, name: str, *, vfork: bool = False, text: str = "") -> int:
        """fork() or vfork(): the child's pid, or a negative errno. The child is ``lab[name]``."""
        if name in self.lab.processes and self.lab.processes[name].process.alive:
            raise LabError(self.lab.line, 0, f"there is a process {name!r} already")
        if len(self.lab.processes) >= self.lab.max_processes:
            raise LabError(self.lab.line, 0, f"more than {self.lab.max_processes} processes")

        def run() -> int:
            pid = self.process.vfork() if vfork else self.process.fork()
            if pid > 0:
                child = self.process.table.processes[pid]
                child.name = name
                self.lab.processes[name] = LabProcess(self.lab, name, child)
            return pid
        return self._call(text or f"{'vfork' if vfork else 'fork'}()", run, 0 if vfork else self.process.mm.pgtables_bytes >> PAGE_SHIFT)

    def vfork(self, name: str, *, text: str = "") -> int:
        """vfork(): this process waits until the child ends."""
        return self.fork(name, vfork=True, text=text)

    def exit(self, *, text: str = "") -> None:
        """End; the parent asks for the status at once."""
        def run() -> int:
            self.process.exit()
            return 0
        self._call(text or "exit(0)", run)

    # -- accesses ------------------------------------------------------------------------------------------------

    def read(self, addr: int, size: int = 1, *, text: str = "") -> bytes:
        """Read bytes; fewer where an access ends in a signal."""
        def run() -> tuple[Touch, bytes]:
            return self._touch(addr, size, Access.READ)
        return self._access(text or f"read {addr:#x} {size}", run, _pages_of(addr, size))[1]

    def write(self, addr: int, data: bytes, *, text: str = "") -> Touch:
        """Write bytes."""
        def run() -> tuple[Touch, bytes]:
            return self.process.write(addr, data), b""
        return self._access(text or f"write {addr:#x} {data[:20]!r}", run, _pages_of(addr, len(data)))[0]

    def fill(self, addr: int, size: int, data: bytes = b"", *, text: str = "") -> Touch:
        """Write ``data`` (or one byte of it) again and again over a range; without data, one byte in each page."""
        def run() -> tuple[Touch, bytes]:
            if data:
                return self.process.write(addr, (data * (size // len(data) + 1))[:size]), b""
            return self._touch(addr, size, Access.WRITE)
        return self._access(text or f"write {addr:#x} {size:#x}", run, _pages_of(addr, size))[0]

    def execute(self, addr: int, *, text: str = "") -> Touch:
        """Fetch an instruction."""
        return self._access(text or f"exec {addr:#x}", lambda: (self.process.touch(addr, Access.EXEC), b""), 1)[0]

    def _touch(self, addr: int, size: int, access: Access) -> tuple[Touch, bytes]:
        """Access every page of a range once, up to the first signal; return what was read, of many pages the first."""
        faults: tuple[str, ...] = ()
        touch, at, found = Touch(Outcome.OK), addr, b""
        while at < addr + size:
            touch = self.process.write(at, b"\1") if access is Access.WRITE else self.process.touch(at, access)
            faults += touch.faults
            if touch.outcome is not Outcome.OK:
                break
            part = min(PAGE_SIZE - (at & PAGE_SIZE - 1), addr + size - at)
            if access is Access.READ and len(found) < PAGE_SIZE:
                found += self.process.read(at, part)
            at += part
        return Touch(touch.outcome, touch.code, touch.vma, faults, touch.error_code, touch.address), found

    def _mapped(self, addr: int, length: int) -> int:
        """How many pages of a range are mapped: no more can be brought in."""
        start, end = u64(addr), min(u64(addr) + min(u64(length), TASK_SIZE), TASK_SIZE)
        return sum(min(end, vma.vm_end) - max(start, vma.vm_start) for vma in self.process.mm.tree.overlapping(start, end)
                   ) >> PAGE_SHIFT if start < end else 0

    # -- settings ------------------------------------------------------------------------------------------------

    def rlimit(self, name: str, value: int) -> None:
        """Set a resource limit in bytes: as, data, stack or memlock; the process is then no longer privileged."""
        fields = {"as": "address_space", "data": "data", "stack": "stack", "memlock": "memlock"}
        if name not in fields:
            raise LabError(self.lab.line, 0, f"no limit {name!r}", ", ".join(fields))
        setattr(self.process.mm.limits, fields[name], u64(value))
        self.process.mm.privileged = False


def _pages(length: int) -> int:
    return align_up(u64(length), PAGE_SIZE) >> PAGE_SHIFT


def _pages_of(addr: int, size: int) -> int:
    return (align_up(addr + size, PAGE_SIZE) - (addr & -PAGE_SIZE)) >> PAGE_SHIFT if size > 0 else 0


class Lab:
    """A machine, processes by name, and the steps that were made.

    ``layout`` gives main a heap and a stack, as a program without ASLR has; without it the address space is empty. A step beyond
    the limits raises :class:`~mmsim.lab.syntax.LabError` and changes nothing.
    """

    def __init__(self, machine: Machine | None = None, *, name: str = "main", layout: bool = True, max_steps: int = MAX_STEPS,
                 max_frames: int = MAX_FRAMES, max_processes: int = MAX_PROCESSES):
        self.machine = machine if machine is not None else ref256()
        self.max_steps, self.max_frames, self.max_processes = max_steps, max_frames, max_processes
        self.user = self.machine.process_table.user
        self.steps: list[Step] = []
        #: The line of the script that runs, for messages; and what a call with data returned.
        self.line = 0
        self.result = 0
        process = self.machine.spawn(name)
        if layout:
            self._layout(process)
        self.processes: dict[str, LabProcess] = {name: LabProcess(self, name, process)}
        self.main = self.processes[name]
        self.start = self.snapshot()

    @staticmethod
    def _layout(process: Process) -> None:
        """The heap's start, and a stack as setup_arg_pages() leaves it (5.17: fs/exec.c)."""
        mm = process.mm
        mm.start_brk = mm.brk = _HEAP
        stack = Vma(TASK_SIZE - _STACK, TASK_SIZE, VM_STACK_FLAGS, (TASK_SIZE - _STACK) >> PAGE_SHIFT)
        mm.start_stack = TASK_SIZE - 16
        mm.charge(stack.pages)
        mm.link(stack)
        mm.vm_stat_account(stack.vm_flags, stack.pages)

    def __getitem__(self, name: str) -> LabProcess:
        """A process by name. Raise LabError for an unknown one."""
        if name not in self.processes:
            raise LabError(self.line, 0, f"no process {name!r}", ", ".join(self.processes))
        return self.processes[name]

    def snapshot(self) -> Snapshot:
        """The state now."""
        return take_snapshot(self.user, {name: process.process for name, process in self.processes.items()})

    def file(self, name: str, size: int, *, writable: bool = True, readable: bool = True, content: bytes = b"") -> MappedFile:
        """A file in memory (as on tmpfs) of ``size`` bytes, to be mapped; it holds ``content``, then zeros."""
        def page(index: int) -> bytes:
            return content[index * PAGE_SIZE:(index + 1) * PAGE_SIZE]
        return MappedFile(name, _pages(size), readable=readable, writable=writable, shmem=True, content=page if content else None)

    def drain(self) -> None:
        """Empty the CPU's pagevecs (5.17: mm/swap.c, lru_add_drain())."""
        self.step(self.main, "drain", self._drain)

    def _drain(self) -> int:
        self.user.lru.lru_add_drain()
        return 0

    # -- one step ------------------------------------------------------------------------------------------------

    def frames_held(self) -> int:
        """Frames that the processes hold: their pages and their tables."""
        pages: set[int] = set()
        tables = 0
        spaces = {id(p.process.space): p.process.space for p in self.processes.values() if p.process.alive}
        for space in spaces.values():
            pages.update(pfn for _, pfn in space.mapped_pages())
            tables += 1 + (space.tables.pgtables_bytes >> PAGE_SHIFT)
        return len(pages) + tables

    def step(self, process: LabProcess, text: str, run: Callable[[], int], populates: int = 0,
             access: Sequence[tuple[Touch, bytes]] = ()) -> tuple[int, Step]:
        """Make a step, unless it is one too many; ``populates`` says how many pages it may bring in at most."""
        if len(self.steps) >= self.max_steps:
            raise LabError(self.line, 0, f"the lab has made {self.max_steps} steps, and makes no more")
        if not process.process.alive:
            raise LabError(self.line, 0, f"process {process.name!r} has ended")
        if populates > self.max_frames:
            raise LabError(self.line, 0, f"this would bring in up to {populates} pages; the lab has {self.max_frames} frames")
        task, counters = process.process, self.user.counters
        before = task.minflt, task.majflt, counters["pgreuse"]
        self.result = 0
        try:
            with self.machine.trace.recording(*_EVENTS, capacity=MAX_EVENTS) as events:
                result = run()
        except InputError as error:
            raise error if isinstance(error, LabError) else LabError(self.line, 0, str(error)) from None
        result = self.result or result
        touch, data = access[0] if access else (Touch(Outcome.OK), b"")
        failed = -4096 < result < 0
        signal = touch.signal
        # A call that succeeded against the odds (5.17's mremap returns +14) is shown as it is.
        step = Step(len(self.steps) + 1, process.name, text, result, errno_name(result) if failed else "", task.why if failed else "",
                    data, signal, touch.faults, task.minflt - before[0], task.majflt - before[1], counters["pgreuse"] - before[2],
                    tuple(events), self.line, self.snapshot())
        self.steps.append(step)
        if touch.outcome is Outcome.OOM:
            raise LabError(self.line, 0, "the machine has no frame left")
        held = self.frames_held()
        if held > self.max_frames:
            raise LabError(self.line, 0, f"the processes hold {held} frames; the lab has {self.max_frames}")
        return result, step

    def run(self, script: str, **variables: int | MappedFile) -> list[Step]:
        """Run a script (:mod:`mmsim.lab.syntax`); return its steps. ``variables`` are names that it may use.

        Raise LabError where it can't go on; the steps made so far are in :attr:`steps`.
        """
        from mmsim.lab.script import Script

        first = len(self.steps)
        try:
            Script(self, dict(variables)).run(script)
        finally:
            self.line = 0
        return self.steps[first:]

    def check(self) -> None:
        """Verify processes and machine. Raise InvariantError."""
        self.machine.process_table.check()
