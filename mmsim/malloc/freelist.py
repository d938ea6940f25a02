"""A free list with boundary tags: the allocator of the textbooks, with the placement policies to choose from.

    block ->  | size | used |  header
    memory -> | next free   |  in a free block; else its user's
              | prev free   |
              | …           |
              | size | used |  footer: the same word again, so that the block above finds this one's start
    block above ->

The heap begins with a block that is always in use and whose memory is the head of the list, and ends with a header of size 0
that is in use: so no block lacks a neighbour, and no case is special.

    >>> from mmsim.malloc.program import PlainProgram
    >>> heap = FreeList(PlainProgram())
    >>> a, b, c = (heap.malloc(100) for _ in range(3))
    >>> heap.free(a); heap.free(b)                      # joined at once
    >>> [(block.size, block.state) for block in heap.walk()]
    [(256, 'free'), (128, 'used'), (3712, 'free')]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mmsim.errors import InputError, InvariantError
from mmsim.malloc.allocator import ALIGNMENT, PTRDIFF_MAX, Allocator, Block
from mmsim.malloc.program import Abort, Program
from mmsim.units import PAGE_SIZE, align_up

__all__ = ["FreeList", "POLICIES"]

_WORD = 8
_USED = 1
_MINIMUM = 32
_PROLOGUE = 32


class FreeList(Allocator):
    """Explicit free list, immediate coalescing. ``policy`` says which free block serves a request:

    ``first``, the first that fits; ``next``, the first after the one that was taken last; ``best``, the smallest; ``worst``, the
    largest. ``order`` says where a freed block goes in the list: ``lifo``, to its front; ``address``, to its place.

    free costs O(1) with ``lifo``, else O(free blocks); malloc O(free blocks). Nobody else may move the heap's end.
    """

    def __init__(self, program: Program, policy: str = "first", order: str = "lifo", grow: int = PAGE_SIZE):
        if policy not in POLICIES:
            raise InputError(f"{policy!r} is no placement policy: {', '.join(POLICIES)}")
        if order not in ("lifo", "address"):
            raise InputError(f"{order!r} is no order of a free list: lifo, address")
        self.program, self.policy, self.order, self.grow = program, policy, order, grow
        self.load, self.store = program.read_word, program.write_word
        #: Blocks looked at by all searches so far: what placement costs.
        self.steps = 0
        self.start = 0
        self.end = 0
        self.list = 0
        self.rover = 0

    # -- blocks ------------------------------------------------------------------------------------------------

    def _size(self, block: int) -> int:
        return self.load(block) & ~0xF

    def _used(self, block: int) -> bool:
        return bool(self.load(block) & _USED)

    def _mark(self, block: int, size: int, used: int) -> None:
        """Write header and footer."""
        self.store(block, size | used)
        self.store(block + size - _WORD, size | used)

    def _next(self, block: int) -> int:
        return self.load(block + _WORD)

    def _prev(self, block: int) -> int:
        return self.load(block + 2 * _WORD)

    def _link(self, block: int) -> None:
        """Put a free block into the list."""
        before = self.list
        if self.order == "address":
            while self._next(before) != self.list and self._next(before) < block:
                before = self._next(before)
        after = self._next(before)
        self.store(block + _WORD, after)
        self.store(block + 2 * _WORD, before)
        self.store(before + _WORD, block)
        self.store(after + 2 * _WORD, block)

    def _unlink(self, block: int) -> None:
        """Take a block out of the list."""
        if self.rover == block:
            self.rover = self._next(block)
        before, after = self._prev(block), self._next(block)
        self.store(before + _WORD, after)
        self.store(after + 2 * _WORD, before)

    # -- the heap's end ----------------------------------------------------------------------------------------

    def _start_heap(self) -> bool:
        base = align_up(self.program.sbrk(0), ALIGNMENT)
        length = base + _WORD + _PROLOGUE + _WORD - self.program.sbrk(0)
        if self.program.sbrk(length) < 0:
            return False
        self.list = self.rover = base + _WORD           # headers lie 8 before a multiple of 16
        self._mark(self.list, _PROLOGUE, _USED)
        self.store(self.list + _WORD, self.list)
        self.store(self.list + 2 * _WORD, self.list)
        self.start = self.end = self.list + _PROLOGUE
        self.store(self.end, _USED)
        return True

    def _extend(self, size: int) -> int:
        """Add a free block at the end, joined with a free one before it; the block, or 0."""
        length = align_up(size, self.grow)
        here = self.program.sbrk(length)
        if here < 0:
            return 0
        if here != self.end + _WORD:
            raise Abort("somebody else moved the heap's end")
        block, self.end = self.end, self.end + length
        self._mark(block, length, 0)
        self.store(self.end, _USED)
        return self._join(block)

    # -- malloc and free ---------------------------------------------------------------------------------------

    def malloc(self, size: int) -> int:
        needed = max(_MINIMUM, align_up(size + 2 * _WORD, ALIGNMENT))
        if size > PTRDIFF_MAX or not (self.start or self._start_heap()):
            self.errno = "ENOMEM"
            return 0
        block = POLICIES[self.policy](self, needed)
        if not block:
            last = self.load(self.end - _WORD)          # the footer below the end: a free last block need only be completed
            block = self._extend(needed - (0 if last & _USED else last & ~0xF))
            if not block:
                self.errno = "ENOMEM"
                return 0
        self._place(block, needed)
        return block + _WORD

    def _place(self, block: int, needed: int) -> None:
        """Use the beginning of a free block; the rest stays free if it can be a block."""
        rest = self._size(block) - needed
        self._unlink(block)
        if rest < _MINIMUM:
            self._mark(block, needed + rest, _USED)
            return
        self._mark(block, needed, _USED)
        self._mark(block + needed, rest, 0)
        self._link(block + needed)
        if self.program.trace.enabled:
            self.program.trace.emit("mmsim:split", chunk=block, size=needed, rest=rest)
        if self.policy == "next":
            self.rover = block + needed

    def _join(self, block: int) -> int:
        """Join a block that has become free with its free neighbours and list it; the block that results."""
        alone = size = self._size(block)
        below, above = self.load(block - _WORD), block + size
        if not self._used(above):
            self._unlink(above)
            size += self._size(above)
        if not below & _USED:
            block -= below & ~0xF
            self._unlink(block)
            size += below & ~0xF
        self._mark(block, size, 0)
        self._link(block)
        if size != alone and self.program.trace.enabled:
            self.program.trace.emit("mmsim:coalesce", chunk=block, size=size)
        return block

    def _block_of(self, memory: int) -> int:
        """The used block of a pointer; abort if the tags deny it."""
        block = memory - _WORD
        if memory % ALIGNMENT or not self.start <= block < self.end:
            raise Abort("free(): invalid pointer")
        word = self.load(block)
        size = word & ~0xF
        if not word & _USED:
            raise Abort("free(): block is not in use")
        if size < _MINIMUM or block + size > self.end or self.load(block + size - _WORD) != word:
            raise Abort("free(): header and footer differ")
        return block

    def free(self, memory: int) -> None:
        if memory:
            block = self._block_of(memory)
            self._mark(block, self._size(block), 0)
            self._join(block)

    def realloc(self, memory: int, size: int) -> int:
        """In place if the block above is free and large enough, else by a copy."""
        if memory and 0 < size <= PTRDIFF_MAX:
            block = self._block_of(memory)
            needed = max(_MINIMUM, align_up(size + 2 * _WORD, ALIGNMENT))
            have, above = self._size(block), block + self._size(block)
            if have < needed and not self._used(above) and have + self._size(above) >= needed:
                self._unlink(above)
                have += self._size(above)
            if have >= needed:
                rest = have - needed
                self._mark(block, needed if rest >= _MINIMUM else have, _USED)
                if rest >= _MINIMUM:
                    self._mark(block + needed, rest, 0)
                    self._join(block + needed)
                return memory
        return super().realloc(memory, size)

    def usable_size(self, memory: int) -> int:
        return self._size(memory - _WORD) - 2 * _WORD if memory else 0

    # -- looking -----------------------------------------------------------------------------------------------

    def free_blocks(self) -> Iterator[int]:
        """The free list from its head."""
        block = self._next(self.list) if self.list else 0
        while block != self.list:
            yield block
            block = self._next(block)

    def walk(self) -> Iterator[Block]:
        block = self.start
        while block < self.end:
            size = self._size(block)
            yield Block(block, size, "used" if self._used(block) else "free", block + _WORD)
            block += max(size, ALIGNMENT)

    def check(self) -> None:
        """Tiling, equal tags, nothing free beside free, and the list holds exactly the free blocks."""
        self._check_tiling(self.start, self.end)
        free, before = set(), True
        for block in self.walk():
            if self.load(block.address) != self.load(block.end - _WORD):
                raise InvariantError(f"{block}: header and footer differ")
            if block.is_free and not before:
                raise InvariantError(f"{block} and the one below are free and not joined")
            before = not block.is_free
            if block.is_free:
                free.add(block.address)
        listed = list(self.free_blocks())
        if set(listed) != free or len(listed) != len(free):
            raise InvariantError(f"{len(listed)} blocks are listed, {len(free)} are free")
        if self.order == "address" and listed != sorted(listed):
            raise InvariantError("the list is not in the order of addresses")
        if self.rover and self.rover != self.list and self.rover not in free:
            raise InvariantError(f"the next search would begin at {self.rover:#x}, which is not free")


# -- placement -----------------------------------------------------------------------------------------------

def _first_fit(heap: FreeList, needed: int) -> int:
    for block in heap.free_blocks():
        heap.steps += 1
        if heap._size(block) >= needed:
            return block
    return 0


def _next_fit(heap: FreeList, needed: int) -> int:
    start = block = heap.rover
    while True:
        heap.steps += 1
        if block != heap.list and heap._size(block) >= needed:
            heap.rover = block
            return block
        block = heap._next(block)
        if block == start:
            return 0


def _best_fit(heap: FreeList, needed: int) -> int:
    best = best_size = 0
    for block in heap.free_blocks():
        heap.steps += 1
        size = heap._size(block)
        if size >= needed and (not best or size < best_size):
            best, best_size = block, size
    return best


def _worst_fit(heap: FreeList, needed: int) -> int:
    worst, worst_size = 0, needed - 1
    for block in heap.free_blocks():
        heap.steps += 1
        if heap._size(block) > worst_size:
            worst, worst_size = block, heap._size(block)
    return worst


#: How a free block is chosen, by name.
POLICIES: dict[str, Callable[[FreeList, int], int]] = {
    "first": _first_fit, "next": _next_fit, "best": _best_fit, "worst": _worst_fit}
