"""Nodes that do not exist: ``numa=fake=`` cuts the real ones into pieces, to try NUMA on any machine.

    numa=fake=4      four nodes of about one size
    numa=fake=3U     each real node in three equal parts
    numa=fake=512M   as many nodes of 512 MiB as fit

5.17: arch/x86/mm/numa_emulation.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from mmsim.boot.memblock import Memblock
from mmsim.boot.numa_meminfo import NumaBlock, Printk, cleanup_meminfo
from mmsim.constants import MAX_DMA32_PFN, MAX_NUMNODES
from mmsim.units import MIB, PAGE_SIZE, align_down, align_up, format_mem_range, memparse, pfn_to_phys

__all__ = ["emulate"]

FAKE_NODE_MIN_SIZE = 32 * MIB


class _Emulation:
    """Cuts physical nodes into fake ones. Sizes in bytes; ``physical`` is eaten up from the front."""

    def __init__(self, blocks: Iterable[NumaBlock], memblock: Memblock, printk: Printk):
        self.physical = [NumaBlock(b.start, b.end, b.nid) for b in blocks]
        self.fake: list[NumaBlock] = []
        self.fake_to_physical: dict[int, int] = {}
        self.memblock = memblock
        self.printk = printk

    def hole_size(self, start: int, end: int) -> int:
        """Bytes of whole frames in the range that are no memory (5.17: mem_hole_size())."""
        first, last = -(-start // PAGE_SIZE), end // PAGE_SIZE
        if first >= last:
            return 0
        present = sum(max(0, min(high, last) - max(low, first)) for low, high, _ in self.memblock.for_each_mem_pfn_range())
        return (last - first - present) * PAGE_SIZE

    def take(self, nid: int, block: NumaBlock, size: int) -> None:
        """Make the first ``size`` bytes of a physical block the fake node ``nid`` (5.17: emu_setup_memblk())."""
        self.fake.append(NumaBlock(block.start, block.start + size, nid))
        self.fake_to_physical.setdefault(nid, block.nid)
        self.printk(f"Faking node {nid} at {format_mem_range(block.start, block.start + size)} ({size >> 20}MB)")
        block.start += size
        if block.start >= block.end:
            self.physical.remove(block)

    def _first(self, nid: int) -> NumaBlock | None:
        return next((block for block in self.physical if block.nid == nid), None)

    def _round(self, nodes: list[int], cut: Callable[[NumaBlock, int], int], modulo: int, nid: int) -> int:
        """Go over the physical nodes again and again, a piece of each, until nothing is left. Return the next node
        id.
        """
        nodes = list(nodes)
        while nodes:
            for node in list(nodes):
                block = self._first(node)
                if block is None:
                    nodes.remove(node)
                    continue
                end = cut(block, nid)
                self.take(nid % modulo, block, min(end, block.end) - block.start)
                nid += 1
        return nid

    def _dma32(self, end: int) -> int:
        """Extend to 4 GiB if what is left below is too little for a node."""
        dma32_end = pfn_to_phys(MAX_DMA32_PFN)
        if end < dma32_end and dma32_end - end - self.hole_size(end, dma32_end) < FAKE_NODE_MIN_SIZE:
            return dma32_end
        return end

    def _grow(self, start: int, end: int, limit: int, size: int) -> int:
        """Extend a node until it holds ``size`` bytes of memory, holes not counted."""
        while end - start - self.hole_size(start, end) < size:
            end += FAKE_NODE_MIN_SIZE
            if end > limit:
                return limit
        return end

    def interleave(self, nodes: list[int], max_addr: int, count: int) -> bool:
        """``numa=fake=N``: N nodes of about one size (5.17: split_nodes_interleave())."""
        if count <= 0:
            return False
        if count > MAX_NUMNODES:
            self.printk(f"numa=fake={count} too large, reducing to {MAX_NUMNODES}")
            count = MAX_NUMNODES
        size = max_addr - self.hole_size(0, max_addr)
        size = (size // PAGE_SIZE // count) * PAGE_SIZE
        big = (size & (FAKE_NODE_MIN_SIZE - 1)) * count // FAKE_NODE_MIN_SIZE
        size = align_down(size, FAKE_NODE_MIN_SIZE)
        if not size:
            self.printk("Not enough memory for each node.  NUMA emulation disabled.")
            return False

        def cut(block: NumaBlock, nid: int) -> int:
            end = block.start + size + (FAKE_NODE_MIN_SIZE if nid < big else 0)
            end = self._dma32(self._grow(block.start, end, block.end, size))
            return block.end if block.end - end - self.hole_size(end, block.end) < size else end

        self._round(nodes, cut, count, 0)
        return True

    def by_size(self, nodes: list[int], start: int, end: int, size: int, count: int, nid: int) -> int:
        """Nodes of a size, or a physical node in ``count`` equal parts; return the next node id, or -1.

        5.17: split_nodes_size_interleave_uniform().
        """
        if not size and not count:
            return -1
        uniform = count > 0
        if uniform:
            minimum = size = (end // PAGE_SIZE - start // PAGE_SIZE) // count * PAGE_SIZE
        else:
            minimum = (end // PAGE_SIZE - start // PAGE_SIZE - self.hole_size(start, end) // PAGE_SIZE) // MAX_NUMNODES * PAGE_SIZE
        minimum = align_up(max(minimum, FAKE_NODE_MIN_SIZE), FAKE_NODE_MIN_SIZE)
        if size < minimum:
            self.printk(f"Fake node size {size >> 20}MB too small, increasing to {minimum >> 20}MB")
            size = minimum
        size = align_down(size, FAKE_NODE_MIN_SIZE)

        def cut(block: NumaBlock, _: int) -> int:
            stop = block.start + size
            if not uniform:
                stop = self._grow(block.start, stop, block.end, size)
            stop = self._dma32(stop)
            if not uniform and block.end - stop - self.hole_size(stop, block.end) < size:
                stop = block.end
            return stop

        return self._round(nodes, cut, MAX_NUMNODES, nid)


def emulate(option: str, blocks: Sequence[NumaBlock], memblock: Memblock, max_pfn: int,
            printk: Printk) -> tuple[list[NumaBlock], dict[int, int], str] | None:
    """Cut nodes as ``numa=fake=`` says: ``N``, ``NU`` (each physical node in N equal parts) or a size with M or G.

    Return the ranges, the physical node of each fake node, and the rest of the option (distances after a colon); None
    if it cannot be done. 5.17: arch/x86/mm/numa_emulation.c, numa_emulation().
    """
    work = _Emulation(blocks, memblock, printk)
    nodes = sorted({block.nid for block in blocks})
    digits = re.match(r"\d+", option)
    count, rest = (int(digits[0]), option[digits.end():]) if digits else (0, option)
    ok = True
    if "U" in option:
        nid = 0
        for node in nodes:
            if not work.physical:
                break
            block = work.physical[0]
            following = work.by_size([block.nid], block.start, block.end, 0, count, nid)
            if following < 0:
                ok = False
                break
            if following - nid < count and following != nid:
                printk(f"numa_emulation: phys: {node} only got {following - nid} of {count} nodes, failing")
                ok = False
                break
            nid = following
    elif "M" in option or "G" in option:
        size, rest = memparse(option)
        ok = work.by_size(nodes, 0, pfn_to_phys(max_pfn), size, 0, 0) >= 0
    else:
        ok = work.interleave(nodes, pfn_to_phys(max_pfn), count)
    if not ok or not cleanup_meminfo(work.fake, memblock, max_pfn, printk):
        return None
    return work.fake, work.fake_to_physical, rest.removeprefix(":")
