"""Ranges of addresses by node, trimmed and joined: what the kernel gathers before memblock learns of nodes.

5.17: arch/x86/mm/numa.c, struct numa_meminfo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmsim.boot.memblock import Memblock
from mmsim.units import MIB, PAGE_SIZE, format_mem_range, pfn_to_phys

__all__ = ["NumaBlock", "Printk", "cleanup_meminfo", "covers_memory"]

Printk = Callable[[str], None]


@dataclass(slots=True)
class NumaBlock:
    """A range of addresses of one node (5.17: struct numa_memblk)."""

    start: int
    end: int
    nid: int


def cleanup_meminfo(blocks: list[NumaBlock], memblock: Memblock, max_pfn: int, printk: Printk) -> bool:
    """Trim the ranges to the memory there is and join those of one node. Return False if nodes overlap.

    5.17: arch/x86/mm/numa.c, numa_cleanup_meminfo(). Left out: the reserved ranges kept for memory hotplug.
    """
    high = pfn_to_phys(max_pfn)
    kept = []
    for block in blocks:
        if not memblock.overlaps_memory(block.start, block.end - block.start):
            continue
        block.end = min(block.end, high)
        if block.start < block.end:
            kept.append(block)
    blocks[:] = kept
    first = 0
    while first < len(blocks):
        block, second = blocks[first], first + 1
        while second < len(blocks):
            other = blocks[second]
            if block.end > other.start and block.start < other.end:
                if block.nid != other.nid:
                    printk(f"NUMA: node {block.nid} {_range(block)} overlaps with node {other.nid} {_range(other)}")
                    return False
                printk(f"NUMA: Warning: node {block.nid} {_range(block)} overlaps with itself {_range(other)}")
            start, end = min(block.start, other.start), max(block.end, other.end)
            if block.nid == other.nid and not any(
                    third.nid != block.nid and start < third.end and end > third.start for third in blocks):
                printk(f"NUMA: Node {block.nid} {_range(block)} + {_range(other)} -> "
                       f"{format_mem_range(start, end, 8)}")
                block.start, block.end = start, end
                del blocks[second]
            else:
                second += 1
        first += 1
    return True


def _range(block: NumaBlock) -> str:
    return format_mem_range(block.start, block.end, 8)


def covers_memory(blocks: Sequence[NumaBlock], memblock: Memblock, max_pfn: int, printk: Printk) -> bool:
    """Whether the ranges leave less than 1 MiB of memory without a node (5.17: numa_meminfo_cover_memory())."""
    in_nodes = 0
    for block in blocks:
        first, last = -(-block.start // PAGE_SIZE), block.end // PAGE_SIZE
        in_nodes += sum(max(0, min(high, last) - max(low, first)) for low, high, _ in memblock.for_each_mem_pfn_range())
    in_memory = sum(max(0, min(high, max_pfn) - low) for low, high, _ in memblock.for_each_mem_pfn_range())
    if in_memory - in_nodes >= MIB // PAGE_SIZE:
        printk(f"NUMA: nodes only cover {in_nodes * PAGE_SIZE >> 20}MB of your {in_memory * PAGE_SIZE >> 20}MB e820 RAM. Not used.")
        return False
    return True
