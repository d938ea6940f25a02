"""The large hash tables of a boot: how many buckets for how much memory.

The caches of directory entries and inodes are hash tables whose size is fixed at boot, from the amount of memory. They
are allocated as one piece, so they come from memblock, before the buddy allocator could refuse so large a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmsim.units import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, ilog2, roundup_pow_of_two

__all__ = ["LargeHash", "large_system_hash", "EARLY_HASHES", "hash_line"]

# Above 64 GiB the tables grow by half only when memory doubles.
ADAPT_SCALE_NPAGES = 64 * GIB >> PAGE_SHIFT
ADAPT_SCALE_SHIFT = 2
#: (name, bytes a bucket, one bucket for 2^scale bytes): dcache_init_early() and inode_init_early().
EARLY_HASHES: tuple[tuple[str, int, int], ...] = (("Dentry cache", 8, 13), ("Inode-cache", 8, 14))


@dataclass(frozen=True, slots=True)
class LargeHash:
    """One table: its name, buckets, bytes, address, and how it was allocated (``linear`` or ``vmalloc``)."""

    name: str
    entries: int
    size: int
    address: int
    how: str = "linear"


def _entries(nr_kernel_pages: int, nr_all_pages: int, bucket_size: int, scale: int, asked: int = 0) -> int:
    """How many buckets a table gets: a power of two, at most a 16th of memory.

    >>> _entries(64215, 64215, 8, 13)
    32768
    """
    entries = -(-nr_kernel_pages // (MIB // PAGE_SIZE)) * (MIB // PAGE_SIZE)
    adapt = ADAPT_SCALE_NPAGES
    while adapt < entries:
        scale += 1
        adapt <<= ADAPT_SCALE_SHIFT
    entries = entries >> scale - PAGE_SHIFT if scale > PAGE_SHIFT else entries << PAGE_SHIFT - scale
    entries = roundup_pow_of_two(asked or max(entries, PAGE_SIZE // bucket_size))
    limit = min((nr_all_pages << PAGE_SHIFT >> 4) // bucket_size, 0x8000_0000)
    return 1 << ilog2(max(min(entries, limit), 1))


def large_system_hash(name: str, bucket_size: int, scale: int, nr_kernel_pages: int, nr_all_pages: int,
                      allocate: Callable[[int], int], asked: int = 0) -> LargeHash:
    """Size a table from memory (or as ``asked`` for on the command line) and allocate it; halve it while
    ``allocate(size)`` gives 0.

    5.17: mm/page_alloc.c, alloc_large_system_hash().
    """
    entries = _entries(nr_kernel_pages, nr_all_pages, bucket_size, scale, asked)
    while True:
        size = entries * bucket_size
        address = allocate(size)
        if address or size <= PAGE_SIZE:
            return LargeHash(name, entries, size, address)
        entries >>= 1


def hash_line(table: LargeHash) -> str:
    """The line of the kernel log.

    >>> hash_line(LargeHash("Dentry cache", 32768, 262144, 0xfb05ac0))
    'Dentry cache hash table entries: 32768 (order: 6, 262144 bytes, linear)'
    """
    order = ilog2(max(table.size, PAGE_SIZE)) - PAGE_SHIFT
    return f"{table.name} hash table entries: {table.entries} (order: {order}, {table.size} bytes, {table.how})"
