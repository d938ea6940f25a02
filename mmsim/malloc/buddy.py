"""A buddy allocator in user space: blocks of 2^k bytes, cut in halves and joined with the other half.

The kernel's own page allocator works like this (chapter 5), with pages in place of bytes and its notes outside of the blocks. Here
a block begins with a word that says its order and whether it is used, and, while it is free, links.

    >>> from mmsim.malloc.program import PlainProgram
    >>> heap = UserBuddy(PlainProgram())
    >>> memory = heap.malloc(100)                       # 116 bytes with the header: a block of 128
    >>> heap.usable_size(memory), [block.size for block in heap.walk()][:4]
    (112, [128, 128, 256, 512])
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.errors import InvariantError
from mmsim.malloc.allocator import PTRDIFF_MAX, Allocator, Block
from mmsim.malloc.program import Abort, Program, map_anonymous
from mmsim.units import MIB, PAGE_SIZE

__all__ = ["UserBuddy"]

_HEADER = 16
_USED = 1 << 8
_MIN_ORDER = 5
_MAX_ORDER = 62


class UserBuddy(Allocator):
    """Binary buddies in areas from mmap, each of ``area`` bytes or what a larger request needs.

    malloc and free cost O(orders). An empty area is unmapped. Internal fragmentation is the price: sizes are rounded up to
    the next power of two.
    """

    def __init__(self, program: Program, area: int = MIB):
        self.program = program
        self.load, self.store = program.read_word, program.write_word
        self.area_order = max(area - 1, PAGE_SIZE - 1).bit_length()
        #: The areas: address → order.
        self.areas: dict[int, int] = {}
        #: The heads of the free lists, a word for each order, in a page of their own.
        self.heads = 0

    def _head(self, order: int) -> int:
        return self.heads + 8 * order

    def _push(self, block: int, order: int) -> None:
        first = self.load(self._head(order))
        self.store(block, order)
        self.store(block + 8, first)
        self.store(block + 16, 0)
        if first:
            self.store(first + 16, block)
        self.store(self._head(order), block)

    def _remove(self, block: int, order: int) -> None:
        after, before = self.load(block + 8), self.load(block + 16)
        self.store(before + 8 if before else self._head(order), after)
        if after:
            self.store(after + 16, before)

    def malloc(self, size: int) -> int:
        order = max((size + _HEADER - 1).bit_length(), _MIN_ORDER)
        if size > PTRDIFF_MAX or order > _MAX_ORDER:
            self.errno = "ENOMEM"
            return 0
        block, found = self._take(order)
        if not block:
            self.errno = "ENOMEM"
            return 0
        while found > order:                            # the upper half goes back, the lower is cut again
            found -= 1
            self._push(block + (1 << found), found)
        self.store(block, order | _USED)
        return block + _HEADER

    def _take(self, order: int) -> tuple[int, int]:
        """A free block of at least this order, off its list; a new area if there is none; (0, 0) if that fails too."""
        if not self.heads:
            self.heads = max(map_anonymous(self.program, PAGE_SIZE), 0)
            if not self.heads:
                return 0, 0
        for found in range(order, _MAX_ORDER + 1):
            block = self.load(self._head(found))
            if block:
                self._remove(block, found)
                return block, found
        found = max(order, self.area_order)
        block = map_anonymous(self.program, 1 << found)
        if block < 0:
            return 0, 0
        self.areas[block] = found
        return block, found

    def _area(self, address: int) -> int:
        """The area that holds an address; abort if there is none."""
        for base, order in self.areas.items():
            if base <= address < base + (1 << order):
                return base
        raise Abort("free(): not in any area")

    def _order_of(self, memory: int) -> tuple[int, int]:
        """The area of a used block and its order; abort if there is no such block."""
        block = memory - _HEADER
        base = self._area(block)
        word = self.load(block)
        order = word & 0xFF
        if word != order | _USED or not _MIN_ORDER <= order <= self.areas[base] or (block - base) & (1 << order) - 1:
            raise Abort("free(): not a block in use")
        return base, order

    def free(self, memory: int) -> None:
        if not memory:
            return
        base, order = self._order_of(memory)
        block = memory - _HEADER
        while order < self.areas[base]:
            buddy = base + (block - base ^ 1 << order)
            if self.load(buddy) != order:               # used, or cut into smaller blocks
                break
            self._remove(buddy, order)
            block, order = min(block, buddy), order + 1
        if order == self.areas[base]:
            del self.areas[base]
            self.program.munmap(base, 1 << order)
        else:
            self._push(block, order)

    def usable_size(self, memory: int) -> int:
        return (1 << (self.load(memory - _HEADER) & 0xFF)) - _HEADER if memory else 0

    def walk(self) -> Iterator[Block]:
        for base in sorted(self.areas):
            block = base
            while block < base + (1 << self.areas[base]):
                word = self.load(block)
                yield Block(block, 1 << (word & 0xFF), "used" if word & _USED else "free", block + _HEADER)
                block += 1 << (word & 0xFF)

    def check(self) -> None:
        """Blocks fill the areas, lie at multiples of their size, no two free buddies remain apart, lists hold the free ones."""
        free: dict[int, int] = {}
        for base, area_order in self.areas.items():
            at = base
            for block in self.walk():
                if not base <= block.address < base + (1 << area_order):
                    continue
                if block.address != at or (block.address - base) % block.size:
                    raise InvariantError(f"{block} is not where a block of its size can be")
                at = block.end
                if block.is_free:
                    free[block.address] = block.size.bit_length() - 1
                    buddy = base + (block.address - base ^ block.size)
                    if self.load(buddy) == block.size.bit_length() - 1:
                        raise InvariantError(f"{block} and its buddy are free and not joined")
            if at != base + (1 << area_order):
                raise InvariantError(f"the blocks of the area at {base:#x} end at {at:#x}")
        for order in range(_MAX_ORDER + 1 if self.heads else 0):
            block_at = self.load(self._head(order))
            while block_at:
                if free.pop(block_at, None) != order:
                    raise InvariantError(f"the list of order {order} holds {block_at:#x}, which is not free")
                block_at = self.load(block_at + 8)
        if free:
            raise InvariantError(f"free blocks on no list: {[hex(address) for address in free]}")
