"""The smallest allocator: a pointer that only moves up.

    heap ->  | size | memory … | size | memory … |  next ->

    >>> from mmsim.malloc.program import PlainProgram
    >>> heap = Bump(PlainProgram())
    >>> a, b = heap.malloc(24), heap.malloc(1)
    >>> b - a, heap.usable_size(a)
    (48, 32)
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.errors import InvariantError
from mmsim.malloc.allocator import ALIGNMENT, PTRDIFF_MAX, Allocator, Block
from mmsim.malloc.program import Abort, Program
from mmsim.units import PAGE_SIZE, align_up

__all__ = ["Bump"]

_HEADER = 16
_FREED = 1


class Bump(Allocator):
    """Memory is handed out from the heap's end; a freed block is marked and never used again, but for the last one.

    malloc and free cost O(1); the heap grows with all that was ever asked for.
    """

    def __init__(self, program: Program):
        self.program = program
        self.start = self.next = self.end = align_up(program.sbrk(0), ALIGNMENT)

    def malloc(self, size: int) -> int:
        block, length = self.next, _HEADER + max(align_up(size, ALIGNMENT), ALIGNMENT)
        if size > PTRDIFF_MAX or not self._reach(block + length):
            self.errno = "ENOMEM"
            return 0
        self.program.write_word(block, length)
        self.next = block + length
        return block + _HEADER

    def _reach(self, address: int) -> bool:
        """Move the heap's end up, by whole pages."""
        while address > self.end:
            missing = align_up(address, PAGE_SIZE) - self.program.sbrk(0)
            if self.program.sbrk(missing) < 0:
                return False
            self.end = self.program.sbrk(0)
        return True

    def free(self, memory: int) -> None:
        if not memory:
            return
        block = memory - _HEADER
        if not self.start <= block < self.next or memory % ALIGNMENT:
            raise Abort("free(): not a block of this heap")
        length = self.program.read_word(block)
        if length & _FREED:
            raise Abort("free(): freed before")
        if length % ALIGNMENT or not _HEADER < length <= self.next - block:
            raise Abort("free(): not a block of this heap")
        if block + length == self.next:
            self.next = block
        else:
            self.program.write_word(block, length | _FREED)

    def usable_size(self, memory: int) -> int:
        return (self.program.read_word(memory - _HEADER) & ~_FREED) - _HEADER if memory else 0

    def walk(self) -> Iterator[Block]:
        block = self.start
        while block < self.next:
            word = self.program.read_word(block)
            # A freed block serves nobody any more: it counts as the allocator's own.
            yield Block(block, word & ~_FREED, "other" if word & _FREED else "used", block + _HEADER)
            block += max(word & ~_FREED, ALIGNMENT)
        if self.next < self.end:
            yield Block(self.next, self.end - self.next, "top", self.next + _HEADER)

    def check(self) -> None:
        self._check_tiling(self.start, self.end)
        for block in self.walk():
            if block.state != "top" and (block.size % ALIGNMENT or block.size < 2 * ALIGNMENT):
                raise InvariantError(f"{block}: no size that malloc() gives")
