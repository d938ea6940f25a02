"""vm_map_ram(): mappings that live for a moment, at the price of an addition.

Filesystems map a handful of pages, look at them, and unmap. To search the tree of areas each time, and to wait for its lock,
would cost more than the work. So each CPU takes a *block* of 4 MiB of addresses and hands out pieces from its front, never one
twice: freed pieces are *dirty* until the whole block is, and goes back at once::

    | dirty | dirty |  in use  | dirty | in use |          free           |
     ←────────────── handed out ───────────────→ ↑ the next one begins here

Above 64 pages an area of its own is made. There is no guard page.

5.17: mm/vmalloc.c, vm_map_ram(), vb_alloc(). Left out: locks, RCU, KASAN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.errors import Errno, InvariantError, KernelBug
from mmsim.kernel.vmalloc import Vmalloc
from mmsim.paging.pte import PAGE_KERNEL
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["VMAP_BBMAP_BITS", "VMAP_MAX_ALLOC", "VmapBlock", "VmapBlocks"]

#: The largest piece of a block, and the pages of a block.
VMAP_MAX_ALLOC = 64
VMAP_BBMAP_BITS = 1024
VMAP_BLOCK_SIZE = VMAP_BBMAP_BITS * PAGE_SIZE


@dataclass(slots=True)
class VmapBlock:
    """A block: pages not handed out yet, and pages handed out and freed, of those in ``dirty_min`` … ``dirty_max`` that a TLB may
    still know (5.17: struct vmap_block).
    """

    addr: int
    cpu: int
    free: int
    dirty: int = 0
    dirty_min: int = VMAP_BBMAP_BITS
    dirty_max: int = 0


def _order(count: int) -> int:
    return max(count - 1, 0).bit_length()


class VmapBlocks:
    """The blocks of a machine's CPUs.

    >>> from mmsim.reference import ref256
    >>> machine = ref256()
    >>> pages = [machine.alloc_pages() for _ in range(3)]
    >>> first, second = machine.vmap_blocks.map_ram(pages), machine.vmap_blocks.map_ram(pages[:1])
    >>> second - first >> 12                        # three pages take four
    4
    """

    def __init__(self, region: Vmalloc):
        self.region = region
        self.blocks: dict[int, VmapBlock] = {}
        #: Blocks with free pages, by CPU, oldest first (5.17: struct vmap_block_queue).
        self.queue: list[list[VmapBlock]] = [[] for _ in range(region.memory.nr_cpus)]
        #: What is mapped now: pages by address.
        self.mapped: dict[int, int] = {}
        region.before_purge.append(self._purge_fragmented_blocks)

    def map_ram(self, pages: Sequence[int], caller: str = "") -> int | None:
        """Map frames one after the other; return the address, or None without addresses or memory (5.17: vm_map_ram())."""
        count = len(pages)
        if not count:
            self.region.warn("mm/vmalloc.c vb_alloc")
            return None
        if count <= VMAP_MAX_ALLOC:
            addr = self._vb_alloc(count)
        else:
            addr = self.region.alloc_ram_area(count << PAGE_SHIFT, PAGE_SIZE)
        if addr is None:
            return None
        self.mapped[addr] = count
        try:
            for number, pfn in enumerate(pages):
                self.region.tables.map_page(addr + (number << PAGE_SHIFT), pfn, PAGE_KERNEL)
        except Errno:
            self.unmap_ram(addr, count)
            return None
        return addr

    def unmap_ram(self, addr: int, count: int) -> None:
        """Unmap what :meth:`map_ram` mapped, all of it: ``count`` decides where the kernel looks.

        BUG for an address outside of the region, unaligned, or that nothing was mapped at (5.17: vm_unmap_ram(); there a wrong
        count or a second call goes unnoticed, or hits a BUG_ON() of the block).
        """
        if not self.region.layout.is_vmalloc_addr(addr) or addr % PAGE_SIZE:
            raise KernelBug(f"kernel BUG at mm/vmalloc.c: vm_unmap_ram(): {addr:#x}")
        if self.mapped.get(addr) != count:
            raise KernelBug(f"kernel BUG at mm/vmalloc.c: vm_unmap_ram(): BUG_ON(!va): {count} pages at {addr:#x}")
        del self.mapped[addr]
        for number in range(count):
            self.region.tables.unmap_page(addr + (number << PAGE_SHIFT))
        if count > VMAP_MAX_ALLOC:
            self.region.free_ram_area(addr)
            return
        block = self.blocks[addr & -VMAP_BLOCK_SIZE]
        offset = addr - block.addr >> PAGE_SHIFT
        block.dirty_min = min(block.dirty_min, offset)
        block.dirty_max = max(block.dirty_max, offset + (1 << _order(count)))
        block.dirty += 1 << _order(count)
        if block.dirty == VMAP_BBMAP_BITS:
            self._free_block(block)

    def _vb_alloc(self, count: int) -> int | None:
        """A piece of a block of this CPU, a power of two pages; of a new block if none has so many (5.17: vb_alloc(),
        new_vmap_block()).
        """
        pages, cpu = 1 << _order(count), self.region.memory.cpu
        block = next((block for block in self.queue[cpu] if block.free >= pages), None)
        if block is None:
            addr = self.region.alloc_ram_area(VMAP_BLOCK_SIZE, VMAP_BLOCK_SIZE)
            if addr is None:
                return None
            block = self.blocks[addr] = VmapBlock(addr, cpu, VMAP_BBMAP_BITS)
            self.queue[cpu].append(block)
        addr = block.addr + (VMAP_BBMAP_BITS - block.free << PAGE_SHIFT)
        block.free -= pages
        if not block.free:
            self.queue[cpu].remove(block)
        return addr

    def _free_block(self, block: VmapBlock) -> None:
        del self.blocks[block.addr]
        self.region.free_ram_area(block.addr)

    def _purge_fragmented_blocks(self) -> None:
        """Blocks of which nothing is in use go, though some of their pages never were (5.17: purge_fragmented_blocks())."""
        for block in list(self.blocks.values()):
            if block.free + block.dirty == VMAP_BBMAP_BITS and block.dirty != VMAP_BBMAP_BITS:
                if block in self.queue[block.cpu]:
                    self.queue[block.cpu].remove(block)
                self._free_block(block)

    def unmap_aliases(self) -> None:
        """Let no TLB know anything any more of what was unmapped: before page attributes change (5.17: vm_unmap_aliases())."""
        for block in self.blocks.values():
            if block.dirty_max > block.dirty_min:
                self.region.flush(block.addr + (block.dirty_min << PAGE_SHIFT), block.addr + (block.dirty_max << PAGE_SHIFT))
                block.dirty_min, block.dirty_max = VMAP_BBMAP_BITS, 0
        self.region.purge()

    def check(self) -> None:
        """Verify that pieces lie in blocks, apart from one another, and that the counts add up. Raise InvariantError."""
        used = dict.fromkeys(self.blocks, 0)
        end = 0
        for addr, count in sorted(self.mapped.items()):
            if addr < end:
                raise InvariantError(f"two mappings at {addr:#x}")
            end = addr + (count << PAGE_SHIFT)
            if count <= VMAP_MAX_ALLOC:
                base = addr & -VMAP_BLOCK_SIZE
                if base not in used:
                    raise InvariantError(f"{addr:#x} lies in no block")
                used[base] += 1 << _order(count)
        for block in self.blocks.values():
            if used[block.addr] + block.free + block.dirty != VMAP_BBMAP_BITS:
                raise InvariantError(f"block {block.addr:#x}: {used[block.addr]} pages in use, {block.free} free, {block.dirty} dirty")
            if (block.free > 0) != (block in self.queue[block.cpu]):
                raise InvariantError(f"block {block.addr:#x} with {block.free} free pages stands on the wrong list")

    def __repr__(self) -> str:
        return f"<VmapBlocks: {len(self.blocks)} blocks of {VMAP_BLOCK_SIZE // MIB} MiB, {len(self.mapped)} mappings>"
