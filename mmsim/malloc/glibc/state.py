"""An arena: struct malloc_state, in the program's memory.

    offset 0  mutex     16  fastbinsY[10]    104  last_remainder    2144  binmap[4]          2176  attached_threads
           4  flags     96  top              112  bins[254]         2160  next, next_free    2184  system_mem, max_system_mem
           8  have_fastchunks

A bin is two words in ``bins``, addressed as if they were the links of a chunk that begins 16 bytes before. Bin 1 is the unsorted
one, 2 to 63 hold one size each, 64 to 126 a range.  2.36: malloc/malloc.c, struct malloc_state.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.malloc.glibc.chunks import Chunks
from mmsim.malloc.glibc.layout import NBINS, NFASTBINS, protect_ptr

__all__ = ["Arena", "SIZEOF_MALLOC_STATE"]

SIZEOF_MALLOC_STATE = 2200

_FASTBINS, _TOP, _LAST_REMAINDER, _BINS, _BINMAP = 16, 96, 104, 112, 2144
_NEXT, _NEXT_FREE, _ATTACHED, _SYSTEM_MEM, _MAX_SYSTEM_MEM = 2160, 2168, 2176, 2184, 2192
_NONCONTIGUOUS_BIT = 2 << 32            # bit 1 of ``flags``, the upper half of the first word


class _Word:
    """A field of struct malloc_state as an attribute: 8 bytes of the program's memory."""

    def __init__(self, offset: int):
        self.offset = offset

    def __get__(self, arena: Arena, owner: type[Arena]) -> int:
        return arena.chunks.load(arena.address + self.offset)

    def __set__(self, arena: Arena, value: int) -> None:
        arena.chunks.store(arena.address + self.offset, value)


class Arena:
    """The arena at an address. Objects for one address are equal; they hold nothing but it."""

    __slots__ = ("chunks", "address", "unsorted")

    top = _Word(_TOP)
    last_remainder = _Word(_LAST_REMAINDER)
    next = _Word(_NEXT)
    next_free = _Word(_NEXT_FREE)
    attached_threads = _Word(_ATTACHED)
    #: Bytes that this arena has from the system, and the most it ever had.
    system_mem = _Word(_SYSTEM_MEM)
    max_system_mem = _Word(_MAX_SYSTEM_MEM)
    have_fastchunks = _Word(8)

    def __init__(self, chunks: Chunks, address: int):
        self.chunks, self.address = chunks, address
        #: Bin 1, through which all freed chunks go.
        self.unsorted = self.bin_at(1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arena) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __repr__(self) -> str:
        return f"<Arena at {self.address:#x}>"

    def initialise(self, main: bool) -> None:
        """All bins empty, top a chunk of size 0. 2.36: malloc/malloc.c, malloc_init_state()."""
        for index in range(1, NBINS):
            head = self.bin_at(index)
            self.chunks.set_fd(head, head)
            self.chunks.set_bk(head, head)
        if not main:
            self.set_noncontiguous()
        self.have_fastchunks = 0
        self.top = self.unsorted

    @property
    def contiguous(self) -> bool:
        """Does sbrk() give memory that follows what we have?"""
        return not self.chunks.load(self.address) & _NONCONTIGUOUS_BIT

    def set_noncontiguous(self) -> None:
        self.chunks.store(self.address, self.chunks.load(self.address) | _NONCONTIGUOUS_BIT)

    # -- bins --------------------------------------------------------------------------------------------------

    def bin_at(self, index: int) -> int:
        """The head of a bin, as a chunk. 2.36: malloc/malloc.c, bin_at()."""
        return self.address + _BINS + (index - 1) * 16 - 16

    def fastbin(self, index: int) -> int:
        """The first chunk of a fastbin, or 0."""
        return self.chunks.load(self.address + _FASTBINS + 8 * index)

    def set_fastbin(self, index: int, chunk: int) -> None:
        self.chunks.store(self.address + _FASTBINS + 8 * index, chunk)

    def binmap(self, block: int) -> int:
        """Which of 32 bins may hold chunks (a set bit may be wrong, a clear one is not)."""
        return self.chunks.load(self.address + _BINMAP + (block >> 1) * 8) >> 32 * (block & 1) & 0xFFFF_FFFF

    def set_binmap(self, block: int, bits: int) -> None:
        address, shift = self.address + _BINMAP + (block >> 1) * 8, 32 * (block & 1)
        self.chunks.store(address, self.chunks.load(address) & ~(0xFFFF_FFFF << shift) | bits << shift)

    def mark_bin(self, index: int) -> None:
        """Note that a bin holds a chunk."""
        self.set_binmap(index >> 5, self.binmap(index >> 5) | 1 << (index & 31))

    def chunks_in_bin(self, index: int) -> Iterator[int]:
        """The chunks of a bin from its last (the next to be taken) to its first."""
        head = self.bin_at(index)
        chunk = self.chunks.bk(head)
        while chunk != head:
            yield chunk
            chunk = self.chunks.bk(chunk)

    def chunks_in_fastbin(self, index: int) -> Iterator[int]:
        """The chunks of a fastbin, the next to be taken first."""
        chunk = self.fastbin(index)
        while chunk:
            yield chunk
            chunk = protect_ptr(chunk + 16, self.chunks.fd(chunk))

    def free_chunks(self) -> Iterator[int]:
        """All chunks in bins and fastbins."""
        for index in range(NFASTBINS):
            yield from self.chunks_in_fastbin(index)
        for index in range(1, NBINS):
            yield from self.chunks_in_bin(index)
