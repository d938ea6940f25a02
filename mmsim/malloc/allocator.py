"""What every allocator offers, and what it can be asked about its heap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.errors import InvariantError
from mmsim.malloc.program import Program
from mmsim.units import U64_MAX

__all__ = ["ALIGNMENT", "Allocator", "Block", "PTRDIFF_MAX"]

#: What malloc promises on x86-64: memory for any type, so a multiple of 16.
ALIGNMENT = 16
#: No object may be larger, or differences of pointers into it would overflow.
PTRDIFF_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the heap from ``address`` on, header and all. ``memory`` is where its user's bytes begin.

    ``state``: ``used``; ``free``; ``cached`` (free, but kept for a request of the same size and joined with nothing);
    ``top`` (free, the end of the heap); ``other`` (the allocator's own).
    """

    address: int
    size: int
    state: str
    memory: int = 0

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.address + self.size

    @property
    def is_free(self) -> bool:
        """Could it serve a request?"""
        return self.state in ("free", "cached", "top")

    def __str__(self) -> str:
        return f"{self.address:#x} +{self.size} {self.state}"


class Allocator(ABC):
    """malloc and its family over a program's memory.

    A request that cannot be served returns 0 and sets ``errno`` to ``"ENOMEM"``. What a bad pointer does is each allocator's own
    affair, as in C: it may corrupt the heap, fault, or be noticed (:class:`~mmsim.malloc.program.Abort`).
    """

    program: Program
    errno: str = ""

    @abstractmethod
    def malloc(self, size: int) -> int:
        """Memory for ``size`` bytes, at a multiple of 16; 0 if there is none."""

    @abstractmethod
    def free(self, memory: int) -> None:
        """Give memory back. 0 is ignored."""

    @abstractmethod
    def usable_size(self, memory: int) -> int:
        """How many bytes its user may touch: at least what was asked for."""

    @abstractmethod
    def walk(self) -> Iterator[Block]:
        """All blocks of the heap, by address."""

    @abstractmethod
    def check(self) -> None:
        """Verify tags, lists and sums; raise InvariantError."""

    def calloc(self, count: int, size: int) -> int:
        """Memory for an array, zeroed; 0 also if the product overflows."""
        if count * size > U64_MAX:
            self.errno = "ENOMEM"
            return 0
        memory = self.malloc(count * size)
        if memory:
            self.program.fill(memory, count * size)
        return memory

    def realloc(self, memory: int, size: int) -> int:
        """Memory for ``size`` bytes with the old contents, maybe elsewhere; 0 leaves the old memory as it is."""
        if not memory:
            return self.malloc(size)
        if not size:
            self.free(memory)
            return 0
        old = self.usable_size(memory)
        if size <= old:
            return memory
        new = self.malloc(size)
        if new:
            self.program.copy(new, memory, old)
            self.free(memory)
        return new

    def _check_tiling(self, start: int, end: int) -> None:
        """The blocks lie side by side from ``start`` to ``end``."""
        at = start
        for block in self.walk():
            if block.address != at:
                raise InvariantError(f"a block begins at {block.address:#x}, the one before it ends at {at:#x}")
            at = block.end
        if at != end:
            raise InvariantError(f"the last block ends at {at:#x}, the heap at {end:#x}")
