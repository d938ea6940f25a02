"""A running program as an allocator sees it: system calls, and memory that is read and written.

:class:`Program` is the interface. :class:`PlainProgram` fulfils it with an address space alone: pages come into being at their first
access and faults are counted, but no frame stands behind them. :class:`~mmsim.malloc.process_program.ProcessProgram` is a process of the
machine, all the way down to page tables and buddy blocks.

    >>> program = PlainProgram()
    >>> heap = program.sbrk(8192)
    >>> program.write(heap + 4090, b"across the page's end")
    >>> program.read_word(heap), program.read(heap + 4097, 8), program.minflt
    (0, b'the page', 2)
    >>> program.write_word(heap + 8192, 1)
    Traceback (most recent call last):
    mmsim.malloc.program.Segfault: SIGSEGV at 0x55555556d000 (write, SEGV_MAPERR)
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Protocol

from mmsim.constants import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from mmsim.process.mm import Mm
from mmsim.process.populate import Access, Outcome, touch
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import Vma
from mmsim.trace import Trace
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, align_up, u64

__all__ = ["Abort", "Calls", "DEFAULT_HEAP", "Hang", "OomKill", "PlainProgram", "Program", "ProgramSignal", "Segfault", "map_anonymous"]

_WORD = Struct("<Q")
_OFFSET = PAGE_SIZE - 1
_LAST_WORD = PAGE_SIZE - 8
_ZERO_PAGE = bytes(PAGE_SIZE)

#: Where a position-independent program of a few pages has its heap without address-space randomisation.
DEFAULT_HEAP = 0x55555556B000


class ProgramSignal(Exception):
    """The program is killed by signal ``number``; ``message`` is what it wrote to stderr before."""

    number = 0
    message = ""


class Abort(ProgramSignal):
    """abort(): SIGABRT, after the library wrote why. 2.36: malloc/malloc.c, malloc_printerr()."""

    number = 6

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class Segfault(ProgramSignal):
    """SIGSEGV (or SIGBUS): an access to ``address`` that its mapping does not allow."""

    def __init__(self, address: int, access: str = "", code: str = "", number: int = 11):
        self.address, self.number = address, number
        what = ", ".join(part for part in (access, code) if part)
        super().__init__(f"{'SIGSEGV' if number == 11 else 'SIGBUS'} at {address:#x}" + (f" ({what})" if what else ""))


class OomKill(ProgramSignal):
    """SIGKILL: an access needed a frame and none was to be had; of all processes the OOM killer chose this one."""

    number = 9


class Hang(ProgramSignal):
    """No signal: the program follows a ring of corrupt links for ever."""


class Program(Protocol):
    """What an allocator needs. System calls return the kernel's values: an address, 0, or a negative errno."""

    trace: Trace
    curbrk: int

    def brk(self, addr: int) -> int: ...
    def sbrk(self, increment: int) -> int: ...
    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int: ...
    def munmap(self, addr: int, length: int) -> int: ...
    def mprotect(self, addr: int, length: int, prot: int) -> int: ...
    def mremap(self, addr: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0) -> int: ...
    def madvise(self, addr: int, length: int, advice: int) -> int: ...
    def read_word(self, address: int) -> int: ...
    def write_word(self, address: int, value: int) -> None: ...
    def read(self, address: int, size: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def fill(self, address: int, size: int, byte: int = 0) -> None: ...
    def copy(self, to: int, source: int, size: int) -> None: ...

    @property
    def minflt(self) -> int: ...
    @property
    def overcommit_memory(self) -> int: ...


def map_anonymous(program: Program, length: int) -> int:
    """Map ``length`` bytes of private anonymous memory, readable and writable; the address or a negative errno."""
    return program.mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)


class _Sbrk:
    """sbrk(), which is the library's and not the kernel's: shared by all kinds of program."""

    #: Where the library believes the heap's end to be; 0: it has not asked yet.
    curbrk = 0

    def brk(self, addr: int) -> int:
        raise NotImplementedError

    def sbrk(self, increment: int) -> int:
        """Move the heap's end by ``increment`` bytes; its former address, or -12.

        The library remembers where the end is and asks the kernel only once. 2.36: misc/sbrk.c, __sbrk();
        sysdeps/unix/sysv/linux/brk.c, __brk().
        """
        if not self.curbrk:
            self.curbrk = self.brk(0)
        old = self.curbrk
        if increment == 0:
            return old
        if not 0 <= old + increment <= U64_MAX:
            return -12
        self.curbrk = self.brk(old + increment)
        return old if self.curbrk >= old + increment else -12


class Calls(_Sbrk):
    """The system calls of a program that has :class:`~mmsim.process.syscalls.SystemCalls`."""

    calls: SystemCalls

    @property
    def overcommit_memory(self) -> int:
        """What /proc/sys/vm/overcommit_memory says."""
        return self.calls.mm.overcommit.policy

    def brk(self, addr: int) -> int:
        return self.calls.brk(addr)

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        return self.calls.mmap(addr, length, prot, flags)

    def munmap(self, addr: int, length: int) -> int:
        return self.calls.munmap(addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        return self.calls.mprotect(addr, length, prot)

    def mremap(self, addr: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0) -> int:
        return self.calls.mremap(addr, old_len, new_len, flags, new_addr)

    def madvise(self, addr: int, length: int, advice: int) -> int:
        return self.calls.madvise(addr, length, advice)

    def read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def write(self, address: int, data: bytes) -> None:
        raise NotImplementedError

    def fill(self, address: int, size: int, byte: int = 0) -> None:
        """memset(): cost in proportion to the pages."""
        while size > 0:
            room = min(PAGE_SIZE - (address & _OFFSET), size)
            self.write(address, bytes([byte]) * room)
            address, size = address + room, size - room

    def copy(self, to: int, source: int, size: int) -> None:
        """memcpy(): cost in proportion to the pages."""
        while size > 0:
            room = min(PAGE_SIZE - (source & _OFFSET), size)
            self.write(to, self.read(source, room))
            to, source, size = to + room, source + room, size - room


class PlainProgram(Calls):
    """A program with nothing but an address space: no frames, no other processes.

    ``minflt`` counts what the kernel would count: the first read of an anonymous page (it shows the zero page) and the first
    write. Left out: files (an area with a file reads as zeros), copy-on-write, swap.
    """

    def __init__(self, mm: Mm | None = None, heap_start: int = DEFAULT_HEAP):
        self.mm = mm or Mm()
        if not self.mm.start_brk:
            self.mm.start_brk = self.mm.brk = heap_start
        self.calls = SystemCalls(self.mm)
        self.trace = self.mm.trace
        self.minflt = 0
        #: Pages with bytes of their own, by page number.
        self._pages: dict[int, bytearray] = {}
        #: Pages that were read but never written: the zero page is mapped there.
        self._zero: dict[int, bytes] = {}
        #: Pages whose permissions changed; each access is checked until one may write.
        self._guarded: dict[int, bytearray] = {}
        self._tables: tuple[dict[int, Any], ...] = (self._pages, self._zero, self._guarded)
        self.mm.on_unmap, self.mm.on_move, self.mm.on_protect, self.mm.on_advice = (
            self._unmap, self._move, self._protect, self._advise)

    # -- what the calls do to pages ----------------------------------------------------------------------------

    @staticmethod
    def _present(pages: dict[int, Any], start: int, end: int) -> list[int]:
        """The pages of a range that are in a table; cost in proportion to the smaller of the two."""
        first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        if last - first <= len(pages):
            return [page for page in range(first, last) if page in pages]
        return [page for page in pages if first <= page < last]

    def _unmap(self, vma: Vma, start: int, end: int) -> None:
        for pages in self._tables:
            for page in self._present(pages, start, end):
                del pages[page]

    def _move(self, vma: Vma, start: int, new: Vma, new_start: int, length: int) -> None:
        for pages in self._tables:
            moving = {page: pages.pop(page) for page in self._present(pages, start, start + length)}
            pages.update({page + (new_start - start >> PAGE_SHIFT): data for page, data in moving.items()})

    def _protect(self, vma: Vma, start: int, end: int) -> None:
        for page in self._present(self._pages, start, end):
            self._guarded[page] = self._pages.pop(page)
        for page in self._present(self._zero, start, end):
            del self._zero[page]

    def _advise(self, vma: Vma, start: int, end: int, advice: int) -> None:
        if advice == MADV_DONTNEED:
            self._unmap(vma, start, end)

    @property
    def rss_pages(self) -> int:
        """Anonymous pages of the program's own: those it wrote to."""
        return len(self._pages) + len(self._guarded)

    # -- memory ------------------------------------------------------------------------------------------------

    def _fault(self, address: int, access: Access) -> None:
        result = touch(self.mm, address, access)
        if result.outcome is not Outcome.OK:
            raise Segfault(address, access.value, result.code, result.outcome.value)

    def _page(self, address: int, write: bool) -> bytes | bytearray:
        """The page of an address, faulted in as the access demands; raise Segfault."""
        number = address >> PAGE_SHIFT
        page = self._pages.get(number)
        if page is not None:
            return page
        if not write and number in self._zero:
            return self._zero[number]
        self._fault(address, Access.WRITE if write else Access.READ)
        if number in self._guarded:
            if not write:
                return self._guarded[number]
            page = self._pages[number] = self._guarded.pop(number)
            return page
        self.minflt += 1
        if not write:
            self._zero[number] = _ZERO_PAGE
            return self._zero[number]
        self._zero.pop(number, None)
        page = self._pages[number] = bytearray(PAGE_SIZE)
        return page

    def read_word(self, address: int) -> int:
        """The 8 bytes at an address as a number, least significant byte first."""
        page = self._pages.get(address >> PAGE_SHIFT)
        if page is not None and address & _OFFSET <= _LAST_WORD:
            word: int = _WORD.unpack_from(page, address & _OFFSET)[0]
            return word
        return int.from_bytes(self.read(address, 8), "little")

    def write_word(self, address: int, value: int) -> None:
        """Write a number, of which the lower 64 bits count, as 8 bytes."""
        page = self._pages.get(address >> PAGE_SHIFT)
        if page is not None and address & _OFFSET <= _LAST_WORD:
            _WORD.pack_into(page, address & _OFFSET, value & U64_MAX)
        else:
            self.write(address, u64(value).to_bytes(8, "little"))

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address."""
        address, parts = u64(address), []
        while size > 0:
            offset = address & _OFFSET
            part = self._page(address, write=False)[offset:offset + size]
            parts.append(bytes(part))
            address, size = address + len(part), size - len(part)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes; what lies before a page that cannot be written is written."""
        address, done = u64(address), 0
        while done < len(data):
            offset = address & _OFFSET
            room = min(PAGE_SIZE - offset, len(data) - done)
            page = self._page(address, write=True)
            assert isinstance(page, bytearray)
            page[offset:offset + room] = data[done:done + room]
            address, done = address + room, done + room

    def map_region(self, start: int, length: int, flags: int) -> None:
        """Put an area of private anonymous memory at an address, as execve() and the loader leave them."""
        vma = Vma(start, start + align_up(length, PAGE_SIZE), flags, start >> PAGE_SHIFT)
        self.mm.link(vma)
        self.mm.vm_stat_account(flags, vma.pages)
