"""Chunks in the program's memory: their headers and links, read and written where they lie.

2.36: malloc/malloc.c, the macros chunksize(), set_head(), prev_chunk() …
"""

from __future__ import annotations

from mmsim.malloc.glibc.layout import CHUNK_HDR_SZ, IS_MMAPPED, NON_MAIN_ARENA, PREV_INUSE, SIZE_BITS
from mmsim.malloc.program import Abort, Program
from mmsim.units import U64_MAX

__all__ = ["Chunks", "assertion", "chunk2mem", "malloc_printerr", "mem2chunk"]

_SIZE = ~SIZE_BITS & U64_MAX


def chunk2mem(chunk: int) -> int:
    """The user's memory of a chunk."""
    return chunk + CHUNK_HDR_SZ


def mem2chunk(memory: int) -> int:
    """The chunk of the user's memory."""
    return memory - CHUNK_HDR_SZ & U64_MAX


def malloc_printerr(message: str) -> None:
    """Say what is corrupt and abort. 2.36: malloc/malloc.c, malloc_printerr()."""
    raise Abort(message)


def assertion(holds: bool, function: str, text: str) -> None:
    """assert() as malloc has it. 2.36: malloc/malloc.c, __malloc_assert()."""
    if not holds:
        raise Abort(f"Fatal glibc error: malloc assertion failure in {function}: {text}")


class Chunks:
    """Access to chunks. A chunk is the address of its header, 16 below the user's pointer; an access may be a fault, or
    the end of the program (:class:`~mmsim.malloc.program.Segfault`)."""

    def __init__(self, program: Program):
        self.program = program
        self.load = program.read_word
        self.store = program.write_word

    # -- sizes and flags ---------------------------------------------------------------------------------------

    def chunksize(self, chunk: int) -> int:
        """Its size in bytes, without the flags."""
        return self.load(chunk + 8) & _SIZE

    def chunksize_nomask(self, chunk: int) -> int:
        """Its size field as it is."""
        return self.load(chunk + 8)

    def prev_size(self, chunk: int) -> int:
        """The size of the chunk below, if that one is free."""
        return self.load(chunk)

    def prev_inuse(self, chunk: int) -> bool:
        """Is the chunk below in use (or in a fastbin or the thread cache)?"""
        return bool(self.load(chunk + 8) & PREV_INUSE)

    def is_mmapped(self, chunk: int) -> bool:
        """Has it a mapping of its own?"""
        return bool(self.load(chunk + 8) & IS_MMAPPED)

    def in_main_arena(self, chunk: int) -> bool:
        """Does it belong to the main arena?"""
        return not self.load(chunk + 8) & NON_MAIN_ARENA

    def next_chunk(self, chunk: int) -> int:
        """The chunk above."""
        return chunk + self.chunksize(chunk) & U64_MAX

    def inuse(self, chunk: int) -> bool:
        """Is this chunk in use? Its neighbour above knows."""
        return self.prev_inuse(self.next_chunk(chunk))

    def memsize(self, chunk: int) -> int:
        """Bytes for its user: it borrows the prev_size of the chunk above."""
        return self.chunksize(chunk) - 8

    def set_head(self, chunk: int, size_and_flags: int) -> None:
        """Set the size field, flags and all."""
        self.store(chunk + 8, size_and_flags)

    def set_head_size(self, chunk: int, size: int) -> None:
        """Set the size and leave the flags."""
        self.store(chunk + 8, self.load(chunk + 8) & SIZE_BITS | size)

    def set_prev_size(self, chunk: int, size: int) -> None:
        """Tell a chunk how large the free one below it is."""
        self.store(chunk, size)

    def set_foot(self, chunk: int, size: int) -> None:
        """Repeat a free chunk's size at its end: the boundary tag."""
        self.store(chunk + size, size)

    def inuse_bit_at_offset(self, chunk: int, offset: int) -> bool:
        """Is the chunk that ends ``offset`` bytes further in use?"""
        return bool(self.load(chunk + offset + 8) & PREV_INUSE)

    def set_inuse_bit_at_offset(self, chunk: int, offset: int) -> None:
        """Mark the chunk that ends there as in use."""
        self.store(chunk + offset + 8, self.load(chunk + offset + 8) | PREV_INUSE)

    def clear_inuse_bit_at_offset(self, chunk: int, offset: int) -> None:
        """Mark the chunk that ends there as free."""
        self.store(chunk + offset + 8, self.load(chunk + offset + 8) & ~PREV_INUSE)

    def set_non_main_arena(self, chunk: int) -> None:
        """Mark a chunk as another arena's."""
        self.store(chunk + 8, self.load(chunk + 8) | NON_MAIN_ARENA)

    # -- links -------------------------------------------------------------------------------------------------

    def fd(self, chunk: int) -> int:
        """The next chunk in its bin."""
        return self.load(chunk + 16)

    def bk(self, chunk: int) -> int:
        """The previous chunk in its bin."""
        return self.load(chunk + 24)

    def fd_nextsize(self, chunk: int) -> int:
        """The next smaller size's first chunk (large bins)."""
        return self.load(chunk + 32)

    def bk_nextsize(self, chunk: int) -> int:
        """The next larger size's first chunk (large bins)."""
        return self.load(chunk + 40)

    def set_fd(self, chunk: int, to: int) -> None:
        self.store(chunk + 16, to)

    def set_bk(self, chunk: int, to: int) -> None:
        self.store(chunk + 24, to)

    def set_fd_nextsize(self, chunk: int, to: int) -> None:
        self.store(chunk + 32, to)

    def set_bk_nextsize(self, chunk: int, to: int) -> None:
        self.store(chunk + 40, to)
