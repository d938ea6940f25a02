"""The memory management unit of one CPU: CR3, the TLB, the walk, and the instructions that flush.

An access asks the TLB; on a miss the tables are walked and the result is kept. What a TLB entry allows is not checked
against the tables again: that is why the kernel must flush when it takes a right away, and need not when it grants one.

    access ─► canonical? ─► TLB ─► hit: rights? ─► address
                 │ #GP       └► miss ─► walk (from a cached table) ─► rights? ─► set A, D; keep it ─► address
                                          │ not present                │ no
                                          └──────────► #PF ◄───────────┘

Left out: speculative and out-of-order accesses (a real CPU may fill its TLB with anything that the tables allow, at any
time), memory types, the caches of a virtual machine's two-level walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from operator import rshift

from mmsim.errors import InputError
from mmsim.paging.address import LEVEL_SHIFT, is_canonical
from mmsim.paging.contents import FrameContents
from mmsim.paging.tlb import GLOBAL, Tlb, TlbGeometry
from mmsim.paging.walk import (
    ACCESSES,
    Control,
    GeneralProtection,
    PageFault,
    Passed,
    TlbEntry,
    base_code,
    denied,
    hardware_walk,
    walk_rights,
)
from mmsim.paging.walk_cache import WalkCache
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["CR3_NOFLUSH", "Mmu", "INVPCID_ADDRESS", "INVPCID_SINGLE", "INVPCID_ALL_GLOBAL", "INVPCID_ALL"]

#: Bit 63 of a value written to CR3: keep the entries of the address space that is loaded.
CR3_NOFLUSH = 1 << 63
_CR3_PCID = PAGE_SIZE - 1
_USER_PCID = 1 << 11
#: The four forms of INVPCID (5.17: arch/x86/include/asm/invpcid.h).
INVPCID_ADDRESS, INVPCID_SINGLE, INVPCID_ALL_GLOBAL, INVPCID_ALL = range(4)
_FIRST_CHUNK = 64
_LARGEST_CHUNK = 1 << 16


class Mmu:
    """One CPU's translation. ``contents`` are the frames, where the tables lie.

    >>> from mmsim.reference import toy16
    >>> from mmsim.paging.pte import PAGE_READONLY
    >>> from mmsim.paging.tables import PageTables, TableMemory
    >>> memory = TableMemory(toy16().allocator)
    >>> tables = PageTables(memory)
    >>> tables.map_page(0x400000, 0x123, PAGE_READONLY)
    >>> cpu = Mmu(memory.contents)
    >>> cpu.write_cr3(tables.pgd << 12)
    >>> hex(cpu.translate(0x400abc)), cpu.tlb.misses, hex(cpu.translate(0x400def)), cpu.tlb.hits
    ('0x123abc', 1, '0x123def', 1)
    >>> cpu.translate(0x400abc, "w")
    Traceback (most recent call last):
    mmsim.paging.walk.PageFault: page fault at 0x400abc, error code 0x7 (PROT WRITE USER)
    """

    def __init__(self, contents: FrameContents, control: Control | None = None, geometry: TlbGeometry = TlbGeometry(),
                 walk_cache: WalkCache | None = None):
        self.contents = contents
        self.control = control or Control()
        self.tlb = Tlb(geometry)
        self.walk_cache = walk_cache or WalkCache()
        self.cr3 = 0
        self.cr2 = 0
        #: Whether there is a TLB at all: without, each access walks (to compare).
        self.use_tlb = True
        #: Page-table isolation: accesses of user mode are made with user space's PGD and PCID, to which the kernel has switched
        #: by then (:mod:`mmsim.paging.pti`).
        self.isolated = False
        #: Words read by walks, and faults raised.
        self.loads = self.faults = 0

    @property
    def pgd(self) -> int:
        """The frame of the top table."""
        return self.cr3 >> PAGE_SHIFT & (1 << 40) - 1

    @property
    def pcid(self) -> int:
        """The number of the address space, 0 without PCIDs."""
        return self.cr3 & _CR3_PCID if self.control.pcide else 0

    # -- accesses ----------------------------------------------------------------------------------------------

    def translate(self, addr: int, access: str = "r", user: bool = True) -> int:
        """The physical address that one access reaches. Raise PageFault or GeneralProtection.

        ``access`` is r, w or x. Sets A and D in the tables as the CPU does. A fault forgets what was kept of the address, so
        that after a kernel has granted a right, the access that is tried again finds it (the fault was *spurious*).
        """
        if self.isolated and user and not self.cr3 & PAGE_SIZE:
            with self._user_tables():
                return self.translate(addr, access, user)
        if not is_canonical(addr, self.control.levels):
            raise GeneralProtection(addr)
        if access not in ACCESSES:
            raise InputError(f"an access is one of {', '.join(ACCESSES)}, not {access!r}")
        pcid, control = self.pcid, self.control
        if self.use_tlb:
            entry = self.tlb.lookup(addr, pcid, access == "x")
            if entry is not None:
                refused = denied(entry, access, user, control)
                if refused:
                    raise self._fault(PageFault(addr, base_code(access, user, control) | refused))
                # The first write through a clean entry walks again, to set D in the table.
                if access != "w" or entry.dirty:
                    return entry.base | addr & (1 << LEVEL_SHIFT[entry.level]) - 1
                self.tlb.invalidate(addr, pcid)
        entry = self._walk(addr, access, user)
        return entry.base | addr & (1 << LEVEL_SHIFT[entry.level]) - 1

    @contextmanager
    def _user_tables(self) -> Iterator[None]:
        """While user mode runs: the other PGD of the pair, the other PCID. No entry is lost (5.17: SWITCH_TO_USER_CR3)."""
        kernel = self.cr3
        self.cr3 = kernel | PAGE_SIZE | (_USER_PCID if self.pcid else 0)
        try:
            yield
        finally:
            self.cr3 = kernel

    def _walk(self, addr: int, access: str, user: bool) -> TlbEntry:
        pcid = self.pcid
        start = self.walk_cache.lookup(addr, pcid) if self.use_tlb else None
        passed: list[Passed] = []
        first = start[0] if start else self.control.levels
        try:
            entry = hardware_walk(self.contents, self.pgd, addr, access, user, self.control, start=start, passed=passed)
        except PageFault as fault:
            self.loads += len(passed) + 1
            raise self._fault(fault) from None
        self.loads += first - entry.level + 1
        if self.use_tlb:
            self.walk_cache.fill(addr, pcid, passed)
            self.tlb.fill(addr, pcid, entry, access == "x")
        return entry

    def _fault(self, fault: PageFault) -> PageFault:
        """#PF: CR2 tells the address; the CPU drops its entries for it (SDM volume 3, "Invalidation of TLBs and
        Paging-Structure Caches").
        """
        self.cr2 = fault.cr2
        self.faults += 1
        self.invlpg(fault.cr2)
        return fault

    def run(self, addrs: Sequence[int], access: str = "r", user: bool = True,
            on_fault: Callable[[PageFault], bool] | None = None) -> int:
        """Make one access to each address, in order; return how many were made. The bulk form of :meth:`translate`: TLB,
        tables and counts end up exactly the same.

        ``on_fault`` is the kernel: called with each fault, it returns True if the access is to be tried again. A fault that
        it does not handle is raised, with ``index`` saying how many accesses went before.

        Cost: where all pages of a stretch are in the first-level data TLB with enough rights, a few dozen ns an access: all are
        hits then, none can push another out, and only the order of last use is left to note.
        """
        if self.isolated and user and not self.cr3 & PAGE_SIZE and on_fault is None:
            with self._user_tables():
                return self.run(addrs, access, user)
        done, total, chunk = 0, len(addrs), _FIRST_CHUNK
        while done < total:
            part = addrs[done:done + chunk]
            if access != "x" and self._all_hit(part, access, user):
                done += len(part)
                chunk = min(2 * chunk, _LARGEST_CHUNK)
                continue
            chunk = _FIRST_CHUNK
            for addr in part[:chunk]:
                while True:
                    try:
                        self.translate(addr, access, user)
                    except PageFault as fault:
                        fault.index = done
                        if on_fault is None or not on_fault(fault):
                            raise
                        continue
                    break
                done += 1
        return done

    def _all_hit(self, addrs: Sequence[int], access: str, user: bool) -> bool:
        """Make a stretch of accesses if all of them hit the first level; else change nothing and return False."""
        if not self.use_tlb:
            return False
        # In order of last use, the latest first: two passes in C.
        pages = dict.fromkeys(map(rshift, reversed(addrs), repeat(PAGE_SHIFT)))
        pcid, control = self.pcid, self.control
        used: list[tuple[dict[int, TlbEntry], int, TlbEntry]] = []
        for page in pages:
            for array in self.tlb.data:
                if not array.sets:
                    continue
                number = page << PAGE_SHIFT >> array.shift
                ways = array.sets[number & array.mask]
                key = array.key(number, pcid)
                entry = ways.get(key)
                if entry is None:
                    key = array.key(number, GLOBAL)
                    entry = ways.get(key)
                if entry is not None:
                    break
            else:
                return False
            if denied(entry, access, user, control) or access == "w" and not entry.dirty:
                return False
            used.append((ways, key, entry))
        for ways, key, entry in reversed(used):
            ways.pop(key, None)
            ways[key] = entry
        self.tlb.hits += len(addrs)
        return True

    # -- flushing ----------------------------------------------------------------------------------------------

    def write_cr3(self, value: int) -> None:
        """Load another address space: frame of the PGD, PCID, and :data:`CR3_NOFLUSH`.

        Without that bit all entries of the new PCID go, but the global ones; with it none does.
        """
        noflush = value & CR3_NOFLUSH and self.control.pcide
        self.cr3 = value & ~CR3_NOFLUSH
        if not noflush:
            pcid = self.pcid if self.control.pcide else None
            self.tlb.flush(pcid)
            self.walk_cache.flush(pcid)

    def invlpg(self, addr: int) -> None:
        """Forget one page of the current address space, be it global or not, and all tables of the current PCID."""
        self.tlb.invalidate(addr, self.pcid)
        self.walk_cache.flush(self.pcid)

    def invpcid(self, kind: int, pcid: int = 0, addr: int = 0) -> None:
        """The four forms of INVPCID: one page of an address space, all of one, everything, everything but global."""
        if kind == INVPCID_ADDRESS:
            self.tlb.invalidate(addr, pcid, with_global=False)
            self.walk_cache.flush(pcid)
        elif kind == INVPCID_SINGLE:
            self.tlb.flush(pcid)
            self.walk_cache.flush(pcid)
        elif kind in (INVPCID_ALL_GLOBAL, INVPCID_ALL):
            self.tlb.flush(None, with_global=kind == INVPCID_ALL_GLOBAL)
            self.walk_cache.flush()
        else:
            raise GeneralProtection(addr)

    # -- checking ----------------------------------------------------------------------------------------------

    def stale(self, pgds: dict[int, int]) -> list[str]:
        """The entries that grant more, or another frame, than the tables do now: each is a flush that is missing.

        ``pgds`` says which PGD each PCID in use belongs to; entries of other PCIDs wait to be flushed when theirs is given
        out again. An entry that grants less is no mistake.
        """
        found = []
        for addr, tag, entry in self.tlb.entries():
            for pgd in {pgds[tag]} if tag in pgds else set(pgds.values()) if tag == GLOBAL else ():
                problem = self._outdated(addr, entry, pgd)
                if problem:
                    found.append(f"{addr:#x} of {'all address spaces' if tag == GLOBAL else f'PCID {tag}'}: {problem}")
        return found

    def _outdated(self, addr: int, entry: TlbEntry, pgd: int) -> str:
        now = walk_rights(self.contents, pgd, addr, self.control)
        if now is None:
            return "the tables map nothing there"
        if entry.base != now.base | addr & (1 << LEVEL_SHIFT[now.level]) - 1 & -(1 << LEVEL_SHIFT[entry.level]) \
                and entry.level <= now.level or entry.level > now.level:
            return f"the TLB says {entry.base:#x}, the tables {now.base:#x}"
        for right, more in (("write", entry.rw and not now.rw), ("user", entry.us and not now.us),
                            ("execute", now.nx and not entry.nx)):
            if more:
                return f"the TLB still allows {right}"
        return ""

    def __repr__(self) -> str:
        return f"<Mmu: PGD in frame {self.pgd:#x}, PCID {self.pcid}, {self.tlb!r}, {self.loads} words read by walks>"
