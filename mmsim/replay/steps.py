"""recordings/linux-5.17-userland/ch07_steps: the recorded program, call by call, with the faults that each step costs.

The program's own memory shows in a few counts. Three of its pages are modelled: the variable into which it reads (written at
every read of a page), and two of the C library's data, which fork() writes in the child and sbrk() and the program write after it. What
depends on how large the program is (mlockall of everything, the sums of its heap's area) is listed as not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmsim.constants import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_KEEPONFORK,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS,
)
from mmsim.process.mm import Mm
from mmsim.process.populate import Access
from mmsim.process.task import Process
from mmsim.process.vma import Vma
from mmsim.reference import ref256
from mmsim.units import MIB, PAGE_SIZE, U64_MAX

__all__ = ["Note", "Step", "StepProgram"]

P = PAGE_SIZE
RW = 3
ANON = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANON | MAP_FIXED
MOVE = MREMAP_MAYMOVE
A = 0x3000_0000
_SINK, _LIBC = 0x0060_0000, 0x0061_0000
_HEAP = 0x0C00_0000


@dataclass(slots=True)
class Step:
    """One line of the recording: who does what, and what it shows afterwards. ``start`` may depend on the step's result."""

    process: Process
    group: str
    name: str
    body: Callable[[], int | None]
    start: int | Callable[[], int] = 0
    pages: int = 0
    #: Why its sums (or its counts) say nothing of the model.
    no_sums: str = ""
    no_counts: str = ""


@dataclass(slots=True)
class Note:
    """A line of values: those that the model has; ``unknown`` says why the others say nothing of it."""

    values: dict[str, Any]
    unknown: str = ""
    #: Values that are compared as differences to an earlier note's of the name given here.
    relative: dict[str, str] = field(default_factory=dict)


class StepProgram:
    """The program; :meth:`run` yields its lines in order, and carries a step out when its ``body`` is called."""

    def __init__(self, heap_pages: int = 1105):
        self.machine = ref256()
        self.machine.user.soft_dirty = True
        mm = Mm(rules=self.machine.rules, overcommit=self.machine.overcommit, trace=self.machine.trace, privileged=True,
                soft_dirty=True)
        self.main = self.machine.spawn("steps", mm)
        self.heap_pages = heap_pages
        for address in (_SINK, _LIBC):
            self.main.mmap(address, P, RW, FIXED)
        for address in (_LIBC,):
            self.main.write(address, b"\1")
        #: Whether a fork has been: from then on the program's own pages add to the reuses.
        self.forked = False

    # -- what the program's lines are made of --------------------------------------------------------------------

    def reads(self, process: Process, start: int, pages: int) -> int:
        """RD: read a byte of each page into the program's variable; the signal that ended it, or 0."""
        for page in range(pages):
            signal = process.touch(start + page * P).outcome.value
            if signal:
                return signal
            process.touch(_SINK, Access.WRITE)
        return 0

    @staticmethod
    def writes(process: Process, start: int, pages: int, bulk: bool = False) -> int:
        """WR: write the page's number plus 1."""
        for page in range(pages):
            signal = process.touch(start + page * P, Access.WRITE).outcome.value if bulk else \
                process.write(start + page * P, bytes((page + 1 & 255,))).outcome.value
            if signal:
                return signal
        return 0

    @staticmethod
    def drain(process: Process) -> None:
        process.munmap(process.mmap(0, P, RW, ANON), P)

    def fork(self, process: Process) -> Process:
        self.forked = True
        child = self.machine.processes[process.fork()]
        child.write(_LIBC, b"\2")
        return child

    @staticmethod
    def end(parent: Process, child: Process) -> None:
        child.exit()
        parent.wait()

    def sbrk(self, process: Process, pages: int) -> int:
        process.write(_LIBC, b"\3")
        wanted = process.mm.brk + pages * P
        return 0 if process.brk(wanted) == wanted else -12

    # -- the program -----------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Step | Note]:
        """All lines but those of kind errno."""
        for part in (self._mprotect_rw, self._mprotect_split, self._merge, self._mremap, self._big_mremap, self._mlock,
                     self._mlockall, self._fork_advice, self._vfork, self._cow, self._anon, self._sbrk_fork):
            yield from part()

    def _mprotect_rw(self) -> Iterator[Step | Note]:
        p = self.main
        for drained in (False, True):
            group = "mprotect_rw_drained" if drained else "mprotect_rw"
            p.mmap(A, 64 * P, RW, FIXED)
            self.drain(p)
            yield Step(p, group, "write64", lambda: self.writes(p, A, 64), A, 64)
            if drained:
                self.drain(p)
            yield Step(p, group, "mprotect_r", lambda: p.mprotect(A, 64 * P, 1), A, 64)
            yield Step(p, group, "read_r", lambda: self.reads(p, A, 64), A, 64)
            yield Step(p, group, "mprotect_rw", lambda: p.mprotect(A, 64 * P, RW), A, 64)
            if drained:
                self.drain(p)
            yield Step(p, group, "write64_again", lambda: self.writes(p, A, 64), A, 64)
            yield Step(p, group, "write64_third", lambda: self.writes(p, A, 64), A, 64)
            p.munmap(A, 64 * P)

    def _mprotect_split(self) -> Iterator[Step | Note]:
        p, group = self.main, "mprotect_split"
        p.mmap(A, 48 * P, RW, FIXED)

        def step(name: str, body: Callable[[], int | None]) -> Step:
            return Step(p, group, name, body, A, 48)
        yield step("write_48", lambda: self.writes(p, A, 48))
        self.drain(p)
        yield step("mid16_r", lambda: p.mprotect(A + 16 * P, 16 * P, 1))
        yield step("write_first16", lambda: self.writes(p, A, 16))
        yield step("write_last16", lambda: self.writes(p, A + 32 * P, 16))
        yield step("write_mid_SEGV", lambda: self.writes(p, A + 20 * P, 1))
        yield step("mid16_none", lambda: p.mprotect(A + 16 * P, 16 * P, 0))
        yield step("mid16_rw_merge", lambda: p.mprotect(A + 16 * P, 16 * P, RW))
        yield step("write_mid16", lambda: self.writes(p, A + 16 * P, 16))
        yield step("mid_exec", lambda: p.mprotect(A + 20 * P, 4 * P, 7))
        yield step("mid_rw", lambda: p.mprotect(A + 20 * P, 4 * P, RW))
        p.munmap(A, 48 * P)

    def _merge(self) -> Iterator[Step | Note]:
        p, group = self.main, "merge_untouched"
        p.mmap(A, 4 * P, RW, FIXED)
        self.writes(p, A, 1)
        yield Step(p, group, "adjacent_after_write", lambda: p.mmap(A + 4 * P, 4 * P, RW, FIXED), A, 16)
        yield Step(p, group, "gap_piece", lambda: p.mmap(A + 9 * P, 4 * P, RW, FIXED), A, 16)
        yield Step(p, group, "write_gap_piece", lambda: self.writes(p, A + 9 * P, 1), A, 16)
        yield Step(p, group, "fill_gap_both_anon_vma", lambda: p.mmap(A + 8 * P, P, RW, FIXED), A, 16)
        p.munmap(A, 16 * P)

    def _mremap(self) -> Iterator[Step | Note]:
        p, group, q = self.main, "mremap", 0x3100_0000
        p.mmap(A, 32 * P, RW, FIXED)
        yield Step(p, group, "write16", lambda: self.writes(p, A, 16), A, 32)
        yield Step(p, group, "move_fixed", lambda: p.mremap(A, 32 * P, 32 * P, MOVE | MREMAP_FIXED, q))
        yield Step(p, group, "after_move", lambda: 0, q, 32)
        yield Step(p, group, "read16_no_fault", lambda: self.reads(p, q, 16), q, 32)
        yield Step(p, group, "write16_no_fault", lambda: self.writes(p, q, 16), q, 32)
        yield Step(p, group, "write_rest16", lambda: self.writes(p, q + 16 * P, 16), q, 32)
        yield Step(p, group, "grow_in_place", lambda: p.mremap(q, 32 * P, 64 * P, MOVE), q, 64)
        yield Step(p, group, "shrink", lambda: p.mremap(q, 64 * P, 8 * P), q, 64)

        def blocked() -> int:
            p.mmap(q + 8 * P, P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
            return p.mremap(q, 8 * P, 16 * P)
        # The failed call's result is where the program looks then: at no area.
        yield Step(p, group, "grow_blocked", blocked, U64_MAX - 8 * P, 8)
        places = [0, 0]

        def move(place: int, address: Callable[[], int], old: int, new: int, flags: int) -> int:
            places[place] = p.mremap(address(), old * P, new * P, flags)
            return places[place]
        yield Step(p, group, "grow_move", lambda: move(0, lambda: q, 8, 16, MOVE))
        yield Step(p, group, "moved", lambda: 0, lambda: places[0], 16)
        yield Step(p, group, "dontunmap", lambda: move(1, lambda: places[0], 16, 16, MOVE | MREMAP_DONTUNMAP), lambda: places[0], 16)
        yield Step(p, group, "dontunmap_new", lambda: 0, lambda: places[1], 16)
        yield Step(p, group, "old_zero_again", lambda: self.reads(p, places[0], 8), lambda: places[0], 16)
        yield Step(p, group, "oldsize0_private", lambda: p.mremap(places[1], 0, 4 * P, MOVE))
        yield Step(p, group, "unmapped_source", lambda: p.mremap(0x3900_0000, P, 2 * P, MOVE))
        yield Step(p, group, "overlap_fixed", lambda: p.mremap(places[1], 16 * P, 16 * P, MOVE | MREMAP_FIXED, places[1] + 4 * P))

    def _big_mremap(self) -> Iterator[Step | Note]:
        p, group, size = self.main, "mremap", 8 * MIB
        first, second, third = 0x4000_0000, 0x5000_0000, 0x6000_1000
        pages = size // P
        p.mmap(first, size, RW, FIXED)
        yield Step(p, group, "big_write", lambda: self.writes(p, first, pages, bulk=True), first, pages)
        before = p.mm.pgtables_bytes // 1024
        yield Step(p, group, "big_move_pmd_aligned", lambda: p.mremap(first, size, size, MOVE | MREMAP_FIXED, second))
        yield Step(p, group, "big_after", lambda: self.writes(p, second, pages, bulk=True), second, pages)
        yield Note({"VmPTE_before": before, "VmPTE_after": p.mm.pgtables_bytes // 1024},
                   relative={"VmPTE_before": "VmPTE_before", "VmPTE_after": "VmPTE_before"})
        yield Step(p, group, "big_move_unaligned", lambda: p.mremap(second, size, size, MOVE | MREMAP_FIXED, third))
        yield Step(p, group, "big_after2", lambda: self.writes(p, third, pages, bulk=True), third, pages)
        yield Note({"VmPTE_unaligned": p.mm.pgtables_bytes // 1024}, relative={"VmPTE_unaligned": "VmPTE_before"})
        p.munmap(third, size)

    def _mlock(self) -> Iterator[Step | Note]:
        p, group = self.main, "mlock"
        p.mmap(A, 32 * P, RW, FIXED)
        self.writes(p, A, 8)

        def step(name: str, body: Callable[[], int | None]) -> Step:
            return Step(p, group, name, body, A, 32)
        yield step("mlock_16", lambda: p.mlock(A, 16 * P))
        yield Note({"VmLck": p.mm.locked_vm * 4, "Mlocked": self.machine.user.nr_mlock * 4},
                   "Unevictable counts pages of the boot")
        yield step("write16", lambda: self.writes(p, A, 16))
        yield step("mlock2_onfault_rest", lambda: p.mlock2(A + 16 * P, 16 * P, MLOCK_ONFAULT))
        yield step("write_rest8", lambda: self.writes(p, A + 16 * P, 8))
        child = self.fork(p)
        yield Step(child, "mlock_child", "inherited", lambda: 0, A, 32)
        yield Note({"child_VmLck": child.mm.locked_vm * 4})
        self.end(p, child)
        yield step("madv_dontneed_locked", lambda: p.madvise(A, P, MADV_DONTNEED))
        yield step("munlock_mid", lambda: p.munlock(A + 4 * P, 4 * P))
        yield step("munlock_all", lambda: p.munlock(A, 32 * P))

        def hole() -> int:
            p.munmap(A + 5 * P, P)
            return p.mlock(A, 10 * P)
        yield Step(p, group, "mlock_hole", hole)
        yield step("after_hole", lambda: 0)
        p.munlockall()

        def protected(page: int, prot: int) -> int:
            p.mprotect(A + page * P, 4 * P, prot)
            return p.mlock(A + page * P, 4 * P)
        yield Step(p, group, "mlock_ro", lambda: protected(8, 1))
        yield Step(p, group, "mlock_none", lambda: protected(12, 0))
        p.munmap(A, 32 * P)

    def _mlockall(self) -> Iterator[Step | Note]:
        child, group = self.fork(self.main), "mlockall"
        first, second = 0x3800_0000, 0x3900_0000
        own = "the program's own pages"
        yield Step(child, group, "current", lambda: child.mlockall(1), no_counts=own)
        yield Note({}, own)
        yield Step(child, group, "future", lambda: child.mlockall(MCL_FUTURE))
        yield Step(child, group, "mmap16_populated", lambda: child.mmap(first, 16 * P, RW, FIXED))
        yield Step(child, group, "populated", lambda: 0, first, 16)
        yield Step(child, group, "onfault", lambda: child.mlockall(MCL_FUTURE | MCL_ONFAULT))
        yield Step(child, group, "mmap16", lambda: child.mmap(second, 16 * P, RW, FIXED))
        yield Step(child, group, "onfault_map", lambda: 0, second, 16)
        yield Step(child, group, "munlockall", child.munlockall, second, 16)
        yield Step(child, group, "bad", lambda: child.mlockall(0))
        yield Step(child, group, "onfault_alone", lambda: child.mlockall(MCL_ONFAULT))
        self.end(self.main, child)

    def _fork_advice(self) -> Iterator[Step | Note]:
        p, group = self.main, "forkadvice"
        p.mmap(A, 32 * P, RW, FIXED)
        self.writes(p, A, 32)
        yield Step(p, group, "dontfork_0_8", lambda: p.madvise(A, 8 * P, MADV_DONTFORK), A, 32)
        yield Step(p, group, "wipe_8_16", lambda: p.madvise(A + 8 * P, 8 * P, MADV_WIPEONFORK), A, 32)

        def wipe_shared() -> int:
            return p.madvise(p.mmap(0, P, RW, MAP_SHARED | MAP_ANONYMOUS), P, MADV_WIPEONFORK)
        yield Step(p, group, "wipe_shared_EINVAL", wipe_shared)
        child = self.fork(p)
        group = "forkadvice_child"
        signal = [0]

        def read_dontfork() -> int:
            signal[0] = self.reads(child, A, 1)
            return 0
        yield Step(child, group, "child_maps", lambda: 0, A, 32)
        yield Step(child, group, "read_dontfork", read_dontfork)
        yield Note({"signal": signal[0]})
        yield Step(child, group, "read_wiped", lambda: self.reads(child, A + 8 * P, 8), A, 32)
        yield Note({"wiped_value": child.read(A + 8 * P)[0], "kept_value": child.read(A + 16 * P)[0]})
        yield Step(child, group, "write_wiped", lambda: self.writes(child, A + 8 * P, 8), A, 32)
        yield Step(child, group, "write_cow", lambda: self.writes(child, A + 16 * P, 16), A, 32)
        grandchild = self.fork(child)
        yield Step(grandchild, "forkadvice_grandchild", "maps", lambda: 0, A, 32)
        yield Note({"wiped_value": grandchild.read(A + 8 * P)[0]})
        self.end(child, grandchild)
        self.end(p, child)
        group = "forkadvice"
        yield Step(p, group, "parent_write_after", lambda: self.writes(p, A, 32), A, 32)
        yield Step(p, group, "keeponfork", lambda: p.madvise(A + 8 * P, 8 * P, MADV_KEEPONFORK), A, 32)
        yield Step(p, group, "dofork", lambda: p.madvise(A, 8 * P, MADV_DOFORK), A, 32)
        p.munmap(A, 32 * P)

    def _vfork(self) -> Iterator[Step | Note]:
        p = self.main
        p.mmap(A, 16 * P, RW, FIXED)
        self.writes(p, A, 8)
        committed = self.machine.overcommit.committed
        child = self.machine.processes[p.vfork()]
        faults = child.minflt
        self.writes(child, A, 8)
        faults = child.minflt - faults
        child.write(A + 8 * P, bytes((77,)))
        promised = self.machine.overcommit.committed
        self.end(p, child)
        yield Note({"vfork_child_minflt_8_writes": faults, "committed_delta_kB": (promised - committed) * 4,
                    "parent_sees": p.read(A + 8 * P)[0]})
        yield Note({"fork_32MB": 1}, "sums of a fork with all of the program's own memory")
        p.munmap(A, 16 * P)

    def _cow(self) -> Iterator[Step | Note]:
        p = self.main
        for group, drained in (("cow64", False), ("cow64_drained", True)):
            p.mmap(A, 64 * P, RW, FIXED)
            self.writes(p, A, 64)
            if drained:
                self.drain(p)
            child = self.fork(p)
            yield Step(child, group, "child_read64", partial(self.reads, child, A, 64), A, 64)
            yield Step(child, group, "child_write64", partial(self.writes, child, A, 64), A, 64)
            if drained:
                self.drain(child)

            def step(group: str, name: str) -> Step:
                return Step(p, group, name, lambda: self.writes(p, A, 64), A, 64)
            yield step(group, "parent_write64_child_alive")
            yield step(group, "parent_write64_again")
            self.end(p, child)
            self.end(p, self.fork(p))
            yield step(group, "parent_write64_child_exited")
            sleeping = self.fork(p)
            yield step(group, "parent_write64_child_sleeping")
            self.end(p, sleeping)
            yield step(group, "parent_write64_after_kill")
            p.munmap(A, 64 * P)
            p.mmap(A, P, RW, FIXED)
            self.writes(p, A, 1)
            if drained:
                self.drain(p)
            child = self.fork(p)
            yield Step(child, group, "one_child_write", partial(self.writes, child, A, 1), A, 1)
            if drained:
                self.drain(child)
            yield Step(p, group, "one_parent_write", lambda: self.writes(p, A, 1), A, 1)
            self.end(p, child)
            p.munmap(A, P)

    def _anon(self) -> Iterator[Step | Note]:
        p = self.main
        p.mmap(A, 64 * P, RW, FIXED)
        yield Step(p, "anon", "read64", lambda: self.reads(p, A, 64), A, 64)
        yield Step(p, "anon", "write64", lambda: self.writes(p, A, 64), A, 64)
        p.munmap(A, 64 * P)

    def _sbrk_fork(self) -> Iterator[Step | Note]:
        p, group, why = self.main, "sbrk_fork", "the program's own pages in the heap's area"
        mm, start = p.mm, _HEAP - self.heap_pages * P
        vma = Vma(start, _HEAP, VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT, start // P)
        mm.link(vma)
        mm.vm_stat_account(vma.vm_flags, vma.pages)
        mm.overcommit.committed += vma.pages
        p.write(start, b"\1")
        mm.start_brk = mm.brk = _HEAP
        self.sbrk(p, 10)
        self.writes(p, _HEAP, 10)
        child = self.fork(p)
        yield Step(child, group, "child_sbrk40", lambda: self.sbrk(child, 40), _HEAP, 80, why)
        self.writes(child, _HEAP + 10 * P, 40)
        yield Step(child, group, "child_touch_sbrk40", lambda: self.sbrk(child, 40), _HEAP, 120, why)
        self.end(p, child)
        yield Step(p, group, "parent_sbrk40", lambda: self.sbrk(p, 40), _HEAP, 80, why)
