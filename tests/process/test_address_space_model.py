"""Any sequence of system calls leaves the same address space as an array with one entry a page."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mmsim.constants import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
)
from mmsim.process.layout import fixed_layout
from mmsim.process.mm import Mm
from mmsim.process.populate import Access, Outcome
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import MappedFile
from mmsim.rules import RELEASES, rules_for

P = 4096
BASE = 0x1000_0000
PAGES = 32

pages = st.integers(0, PAGES - 1)
counts = st.integers(1, 10)
prots = st.sampled_from([0, 1, 3, 5])


@dataclass(frozen=True)
class Page:
    """What is mapped at one page: permissions, and which page of which object (None for private anonymous memory)."""

    prot: int
    shared: bool = False
    origin: int | None = None
    index: int = 0
    locked: bool = False
    dont_copy: bool = False


class AddressSpace(RuleBasedStateMachine):
    """The calls on the model and on the array; results are compared, and every page after every call."""

    @initialize(release=st.sampled_from(RELEASES))
    def start(self, release: str) -> None:
        self.release = release
        self.calls = SystemCalls(Mm(fixed_layout(), rules=rules_for(release), privileged=True))
        self.file = MappedFile("f", 256)
        self.array: list[Page | None] = [None] * (2 * PAGES)

    def range(self, page: int, count: int) -> list[int]:
        return list(range(page, min(page + count, PAGES)))

    def at(self, page: int) -> int:
        return BASE + page * P

    @rule(page=pages, count=counts, prot=prots, kind=st.sampled_from(["anon", "shared", "file", "file shared"]))
    def mmap(self, page: int, count: int, prot: int, kind: str) -> None:
        where = self.range(page, count)
        flags = MAP_FIXED | (MAP_SHARED if "shared" in kind else MAP_PRIVATE) | (0 if "file" in kind else MAP_ANONYMOUS)
        assert self.calls.mmap(self.at(page), len(where) * P, prot, flags, self.file, page * P) == self.at(page)
        vma = self.calls.mm.tree.lookup(self.at(page))
        assert vma is not None
        for number, at in enumerate(where):
            index = at if "file" in kind else number
            origin = None if kind == "anon" else id(vma.vm_file)
            self.array[at] = Page(prot, "shared" in kind, origin, index if origin else 0)

    @rule(page=pages, count=counts)
    def munmap(self, page: int, count: int) -> None:
        where = self.range(page, count)
        assert self.calls.munmap(self.at(page), len(where) * P) == 0
        for at in where:
            self.array[at] = None

    def change(self, where: list[int], **changes: object) -> bool:
        """Change pages up to the first hole; False if there is one."""
        for at in where:
            old = self.array[at]
            if old is None:
                return False
            self.array[at] = replace(old, **changes)        # type: ignore[arg-type]
        return True

    @rule(page=pages, count=counts, prot=prots)
    def mprotect(self, page: int, count: int, prot: int) -> None:
        where = self.range(page, count)
        whole = self.change(where, prot=prot)
        assert (self.calls.mprotect(self.at(page), len(where) * P, prot) == 0) == whole

    @rule(page=pages, count=counts, lock=st.booleans())
    def mlock(self, page: int, count: int, lock: bool) -> None:
        where = self.range(page, count)
        whole = self.change(where, locked=lock)
        accessible = all(entry.prot for at in where if (entry := self.array[at]) is not None)
        result = (self.calls.mlock if lock else self.calls.munlock)(self.at(page), len(where) * P)
        assert (result == 0) == (whole and (accessible or not lock))

    @rule(page=pages, count=counts, on=st.booleans())
    def advise(self, page: int, count: int, on: bool) -> None:
        where = self.range(page, count)
        holes = any(self.array[at] is None for at in where)
        for at in where:
            self.change([at], dont_copy=on)
        advice = MADV_DONTFORK if on else MADV_DOFORK
        assert (self.calls.madvise(self.at(page), len(where) * P, advice) != 0) == holes

    @rule(page=pages, count=st.integers(1, 6), to=pages, keep=st.booleans())
    def move(self, page: int, count: int, to: int, keep: bool) -> None:
        """A move within one area, to a place that doesn't overlap; what lies there goes."""
        vma = self.calls.mm.tree.lookup(self.at(page))
        if vma is None:
            return
        count = min(count, (vma.vm_end - self.at(page)) // P)
        if to < page + count and page < to + count:
            return
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if keep else 0)
        assert self.calls.mremap(self.at(page), count * P, count * P, flags, self.at(to)) == self.at(to)
        moved = self.array[page:page + count]
        self.array[to:to + count] = moved
        for at in range(page, page + count):
            old = self.array[at]
            self.array[at] = replace(old, locked=False) if keep and old is not None else None
        if keep and not self.calls.mm.rules.mremap_dontunmap_splits_locked:
            # The whole area that was left loses its lock, with what has merged into it.
            left = self.calls.mm.tree.lookup(self.at(page))
            assert left is not None
            for at in range((left.vm_start - BASE) // P, (left.vm_end - BASE) // P):
                self.change([at], locked=False)

    @rule(page=pages, count=st.integers(1, 6), new=st.integers(1, 6))
    def resize(self, page: int, count: int, new: int) -> None:
        vma = self.calls.mm.tree.lookup(self.at(page))
        if vma is None or count > (vma.vm_end - self.at(page)) // P:
            return
        grows = new > count
        room = vma.vm_end == self.at(page + count) and all(entry is None for entry in self.array[page + count:page + new])
        result = self.calls.mremap(self.at(page), count * P, new * P)
        assert (result == self.at(page)) == (not grows or room)
        if result < 0:
            return
        last = self.array[page + count - 1]
        assert last is not None
        for at in range(page + new, page + count):
            self.array[at] = None
        for at in range(page + count, page + new):
            self.array[at] = replace(last, index=last.index + at - (page + count - 1) if last.origin else 0)

    @rule(page=pages, write=st.booleans())
    def access(self, page: int, write: bool) -> None:
        entry = self.array[page]
        touch = self.calls.touch(self.at(page), Access.WRITE if write else Access.READ)
        if entry is None or not entry.prot or (write and not entry.prot & 2):
            assert touch.outcome is Outcome.SIGSEGV
            assert touch.code == ("SEGV_MAPERR" if entry is None else "SEGV_ACCERR")
        else:
            vma = touch.vma
            assert vma is not None and touch.outcome in (Outcome.OK, Outcome.SIGBUS)
            beyond = vma.vm_file is not None and entry.index >= vma.vm_file.pages
            assert (touch.outcome is Outcome.SIGBUS) == beyond
            assert not write or (vma.anon_vma is not None) == (not entry.shared)

    @invariant()
    def every_page_is_what_the_array_says(self) -> None:
        if not hasattr(self, "calls"):
            return
        mm = self.calls.mm
        mm.check()
        for at, entry in enumerate(self.array):
            vma = mm.tree.lookup(self.at(at))
            assert (vma is None) == (entry is None), at
            if vma is not None and entry is not None:
                found = Page(vma.vm_flags & 7, bool(vma.vm_flags & VM_SHARED), id(vma.vm_file) if vma.vm_file else None,
                             vma.pgoff_at(self.at(at)) if vma.vm_file else 0, bool(vma.vm_flags & VM_LOCKED),
                             bool(vma.vm_flags & VM_DONTCOPY))
                assert found == entry, at
        shared = {id(vma.vm_file): vma.vm_file.charged for vma in mm if vma.vm_file is not None and vma.vm_file.shmem_zero}
        assert mm.overcommit.committed == mm.accounted_pages() + sum(shared.values())
        assert all(vma.vm_flags & VM_ACCOUNT for vma in mm if vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE)


AddressSpace.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestAddressSpaceAgainstAnArray = AddressSpace.TestCase
