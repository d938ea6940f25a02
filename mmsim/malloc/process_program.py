"""A process of the machine as the program in which an allocator runs.

    >>> from mmsim.process.task import ProcessTable
    >>> from mmsim.process.user_memory import UserMemory
    >>> from mmsim.reference import ref256
    >>> program = ProcessProgram(ProcessTable(UserMemory(ref256())).spawn("a.out"))
    >>> heap = program.sbrk(8192)
    >>> program.write_word(heap, 42)
    >>> program.read_word(heap), program.minflt, program.process.mm.rss
    (42, 1, [0, 1, 0, 0])
"""

from __future__ import annotations

from mmsim.constants import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PRESENT, _PAGE_RW, PTE_PFN_MASK
from mmsim.malloc.program import DEFAULT_HEAP, Calls, OomKill, ProgramSignal, Segfault
from mmsim.process.populate import Access, Outcome, Touch
from mmsim.process.task import Process
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, u64

__all__ = ["ProcessProgram"]

_WRITABLE = _PAGE_PRESENT | _PAGE_RW
_WRITTEN = _PAGE_ACCESSED | _PAGE_DIRTY

class ProcessProgram(Calls):
    """A process as :class:`~mmsim.malloc.program.Program`: its faults take frames from the buddy allocator, and can fail for
    want of them. An access that a signal ends raises it as an exception, for the program is at its end."""

    def __init__(self, process: Process, heap_start: int = DEFAULT_HEAP):
        self.process = self.calls = process
        if not process.mm.start_brk:
            process.mm.start_brk = process.mm.brk = heap_start
        self.trace = process.mm.trace

    @property
    def minflt(self) -> int:
        return self.process.minflt

    @staticmethod
    def _killed(result: Touch, address: int, access: Access) -> ProgramSignal:
        """What ends an access that did not come through."""
        if result.outcome is Outcome.OOM:
            return OomKill(f"no frame for {address:#x}")
        return Segfault(result.address or address, access.value, result.code, result.outcome.value)

    def read(self, address: int, size: int) -> bytes:
        data = self.process.read(u64(address), size)
        if len(data) < size:
            address = u64(address + len(data))
            raise self._killed(self.process.touch(address, Access.READ), address, Access.READ)
        return data

    def write(self, address: int, data: bytes) -> None:
        result = self.process.write(u64(address), data)
        if result.outcome is not Outcome.OK:
            raise self._killed(result, u64(address), Access.WRITE)

    def _resident(self, address: int, needed: int, used: int) -> int:
        """The physical address of a word if its page-table entry allows the access, with the bits set that the CPU sets; else
        -1. Words are most of what an allocator touches: this spares them the way through the process."""
        if address & 7 or self.process.cpu is not None or not self.process.alive:
            return -1
        table, index = self.process.page_tables.ptes.get(address >> 21), address >> PAGE_SHIFT & 511
        if table is None or table[index] & needed != needed:
            return -1
        table[index] |= used
        return table[index] & PTE_PFN_MASK | address & PAGE_SIZE - 1

    def read_word(self, address: int) -> int:
        physical = self._resident(address, _PAGE_PRESENT, _PAGE_ACCESSED)
        if physical >= 0:
            return self.process.user.contents.read_word(physical)
        return int.from_bytes(self.read(address, 8), "little")

    def write_word(self, address: int, value: int) -> None:
        physical = self._resident(address, _WRITABLE, _WRITTEN)
        if physical >= 0:
            self.process.user.contents.write_word(physical, u64(value))
        else:
            self.write(address, u64(value).to_bytes(8, "little"))
