"""Sizes and indexes of ptmalloc: how a request becomes a chunk size, and a chunk size a bin.

A chunk, as it lies in memory (x86-64, one line is 8 bytes)::

    chunk ->  +-----------------------------------+
              | prev_size: size of the chunk      |  the last 8 bytes of the previous chunk: its user's while it is in use
              |            below, if that is free |
              +-----------------------------------+
              | size, multiple of 16    | A|M|P   |  P previous chunk in use, M from mmap, A not of the main arena
    memory -> +-----------------------------------+
              | fd            \\  user data,       |  free: next and previous chunk of its bin
              | bk             | if in use        |
              | fd_nextsize    |                  |  free and large: next chunk of another size
              | bk_nextsize   /                   |
              +-----------------------------------+

2.36: malloc/malloc.c, struct malloc_chunk and the macros after it.
"""

from __future__ import annotations

from mmsim.units import MIB, U64_MAX

__all__ = [
    "CHUNK_HDR_SZ", "DEFAULT_MMAP_MAX", "DEFAULT_MMAP_THRESHOLD", "DEFAULT_MMAP_THRESHOLD_MAX", "DEFAULT_MXFAST",
    "DEFAULT_TOP_PAD", "DEFAULT_TRIM_THRESHOLD", "FASTBIN_CONSOLIDATION_THRESHOLD", "HEAP_MAX_SIZE", "HEAP_MIN_SIZE",
    "IS_MMAPPED", "MALLOC_ALIGNMENT", "MALLOC_ALIGN_MASK", "MAX_FAST_SIZE", "MAX_TCACHE_COUNT", "MAX_TCACHE_SIZE", "MINSIZE",
    "MIN_LARGE_SIZE", "MMAP_AS_MORECORE_SIZE", "NBINS", "NFASTBINS", "NON_MAIN_ARENA", "PREV_INUSE", "PTRDIFF_MAX",
    "SIZE_BITS", "SIZE_SZ", "TCACHE_FILL_COUNT", "TCACHE_MAX_BINS", "aligned_OK", "bin_index", "checked_request2size",
    "csize2tidx", "fastbin_index", "in_smallbin_range", "largebin_index", "protect_ptr", "request2size", "smallbin_index",
]

SIZE_SZ = 8
CHUNK_HDR_SZ = 2 * SIZE_SZ
MALLOC_ALIGNMENT = 16
MALLOC_ALIGN_MASK = MALLOC_ALIGNMENT - 1
#: The smallest chunk: two sizes and two links.
MINSIZE = 32
PTRDIFF_MAX = (1 << 63) - 1

PREV_INUSE = 1
IS_MMAPPED = 2
NON_MAIN_ARENA = 4
SIZE_BITS = PREV_INUSE | IS_MMAPPED | NON_MAIN_ARENA

NBINS = 128
#: The first chunk size whose bins hold more than one size.
MIN_LARGE_SIZE = 1024
NFASTBINS = 10
#: The largest request that mallopt(M_MXFAST) accepts, and the default.
MAX_FAST_SIZE = 80 * SIZE_SZ // 4
DEFAULT_MXFAST = 64 * SIZE_SZ // 4
#: Freeing a (coalesced) chunk of this size empties the fastbins and may trim the heap.
FASTBIN_CONSOLIDATION_THRESHOLD = 65536

TCACHE_MAX_BINS = 64
TCACHE_FILL_COUNT = 7
MAX_TCACHE_SIZE = (TCACHE_MAX_BINS - 1) * MALLOC_ALIGNMENT + MINSIZE - SIZE_SZ
MAX_TCACHE_COUNT = 65535

DEFAULT_TOP_PAD = 131072
DEFAULT_TRIM_THRESHOLD = 128 * 1024
DEFAULT_MMAP_THRESHOLD = 128 * 1024
DEFAULT_MMAP_THRESHOLD_MAX = 32 * MIB
DEFAULT_MMAP_MAX = 65536
#: What is mapped when sbrk() fails is rounded up to this.
MMAP_AS_MORECORE_SIZE = MIB

#: A heap of a non-main arena: how much it has at least, and how much is reserved for it (and its alignment).
HEAP_MIN_SIZE = 32 * 1024
HEAP_MAX_SIZE = 2 * DEFAULT_MMAP_THRESHOLD_MAX


def request2size(request: int) -> int:
    """The chunk size for a request: 8 bytes more for the size field, a multiple of 16, at least 32.

    >>> [request2size(request) for request in (0, 24, 25, 1032, 131_048, 131_049)]
    [32, 32, 48, 1040, 131056, 131072]
    """
    return max(MINSIZE, request + SIZE_SZ + MALLOC_ALIGN_MASK & ~MALLOC_ALIGN_MASK)


def checked_request2size(request: int) -> int:
    """:func:`request2size`, or 0 for a request above PTRDIFF_MAX: no object may be so large that differences of pointers
    into it overflow."""
    return 0 if request > PTRDIFF_MAX else request2size(request)


def aligned_OK(address: int) -> bool:
    """Is it a multiple of 16, as every chunk and every pointer from malloc is?"""
    return not address & MALLOC_ALIGN_MASK


def csize2tidx(size: int) -> int:
    """The thread cache's bin for a chunk size; 64 and more: none.

    >>> [csize2tidx(size) for size in (32, 48, 1040, 1056)]
    [0, 1, 63, 64]
    """
    return (size - MINSIZE + MALLOC_ALIGNMENT - 1 & U64_MAX) // MALLOC_ALIGNMENT


def fastbin_index(size: int) -> int:
    """The fastbin for a chunk size (C's unsigned int: a corrupted size wraps)."""
    return ((size & 0xFFFF_FFFF) >> 4) - 2 & 0xFFFF_FFFF


def in_smallbin_range(size: int) -> bool:
    """Do all chunks in this chunk's bin have one size?"""
    return size < MIN_LARGE_SIZE


def smallbin_index(size: int) -> int:
    """The bin of a chunk size below 1024: 2 for 32, 3 for 48, … 63 for 1008."""
    return (size & 0xFFFF_FFFF) >> 4


def largebin_index(size: int) -> int:
    """The bin of a chunk size from 1024: 64 to 126, each range of sizes eight times as wide as the one before.

    >>> [largebin_index(size) for size in (1024, 1088, 3 << 10, 10 << 10, 40 << 10, 1 << 20)]
    [64, 65, 96, 111, 120, 126]
    """
    if size >> 6 <= 48:
        return 48 + (size >> 6)
    if size >> 9 <= 20:
        return 91 + (size >> 9)
    if size >> 12 <= 10:
        return 110 + (size >> 12)
    if size >> 15 <= 4:
        return 119 + (size >> 15)
    if size >> 18 <= 2:
        return 124 + (size >> 18)
    return 126


def bin_index(size: int) -> int:
    """The bin of a chunk size."""
    return smallbin_index(size) if size < MIN_LARGE_SIZE else largebin_index(size)


def protect_ptr(position: int, pointer: int) -> int:
    """Safe-linking: a link of a singly linked list, masked with the page number of the place where it is stored.

    The same function reveals it. Who cannot read addresses cannot forge a link: it would come out misaligned, most likely.
    2.36: malloc/malloc.c, PROTECT_PTR() and REVEAL_PTR().
    """
    return position >> 12 ^ pointer
