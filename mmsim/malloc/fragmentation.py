"""How much memory an allocator wastes, and where: inside blocks, between them, and at the worst moment.

    >>> from mmsim.malloc.freelist import FreeList
    >>> from mmsim.malloc.program import PlainProgram
    >>> meter = Meter(FreeList(PlainProgram(), policy="best"))
    >>> play(meter, random_trace(seed=1, operations=300))[-1].requested == meter.requested
    True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from mmsim.malloc.allocator import Allocator

__all__ = ["Fragmentation", "Meter", "Operation", "fragmentation", "play", "random_trace"]

#: ("malloc", name, size) or ("free", name, 0).
Operation = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """A heap at one moment, in bytes. ``used``, ``free`` and ``other`` add up to ``heap``."""

    requested: int
    used: int
    free: int
    other: int
    largest_free: int

    @property
    def heap(self) -> int:
        """All that the allocator has from the system, but for blocks with a mapping of their own."""
        return self.used + self.free + self.other

    @property
    def internal(self) -> float:
        """The part of used blocks that nobody asked for: headers and rounding."""
        return 1 - self.requested / self.used if self.used else 0.0

    @property
    def external(self) -> float:
        """The part of free memory that a single request cannot have: 1 - largest / free."""
        return 1 - self.largest_free / self.free if self.free else 0.0

    @property
    def utilisation(self) -> float:
        """What was asked for, of what the system gave."""
        return self.requested / self.heap if self.heap else 1.0


def fragmentation(allocator: Allocator, requested: int) -> Fragmentation:
    """Walk a heap and sum it up. ``requested``: bytes asked for by those who hold its used blocks.

    Neighbouring blocks that are free but not joined count apart: no single request could have both.
    """
    used = free = other = largest = 0
    for block in allocator.walk():
        if block.is_free:
            free += block.size
            largest = max(largest, block.size)
        elif block.state == "used":
            used += block.size
        else:
            other += block.size
    return Fragmentation(requested, used, free, other, largest)


class Meter:
    """An allocator with an account of what was asked for: ``requested`` now, ``peak_requested`` and ``peak_heap`` at most.

    A block that its allocator does not walk over (one with a mapping of its own) counts with its usable size.
    """

    def __init__(self, allocator: Allocator):
        self.allocator = allocator
        self.sizes: dict[int, int] = {}
        self.requested = self.peak_requested = self.peak_heap = 0

    def malloc(self, size: int) -> int:
        memory = self.allocator.malloc(size)
        if memory:
            self._count(memory, size)
        return memory

    def free(self, memory: int) -> None:
        self.allocator.free(memory)
        self.requested -= self.sizes.pop(memory, 0)

    def realloc(self, memory: int, size: int) -> int:
        new = self.allocator.realloc(memory, size)
        if new or not size:
            self.requested -= self.sizes.pop(memory, 0)
        if new:
            self._count(new, size)
        return new

    def _count(self, memory: int, size: int) -> None:
        self.sizes[memory] = size
        self.requested += size
        self.peak_requested = max(self.peak_requested, self.requested)

    def now(self) -> Fragmentation:
        """The heap's state; remembers its peak. Cost: a walk over the heap."""
        walked = {block.memory for block in self.allocator.walk() if block.state == "used"}
        apart = [(size, self.allocator.usable_size(memory)) for memory, size in self.sizes.items() if memory not in walked]
        state = fragmentation(self.allocator, self.requested)
        if apart:
            state = Fragmentation(state.requested, state.used + sum(usable for _size, usable in apart), state.free,
                                  state.other, state.largest_free)
        self.peak_heap = max(self.peak_heap, state.heap)
        return state

    @property
    def peak_overhead(self) -> float:
        """The largest heap against the most that was asked for at a time: 1.0 is perfect."""
        return self.peak_heap / self.peak_requested if self.peak_requested else 1.0


def random_trace(seed: int, operations: int, sizes: Sequence[int] | Callable[[Random], int] = (16, 24, 40, 100, 300, 1000, 5000),
                 live: int = 100) -> list[Operation]:
    """A seeded sequence of malloc and free with about ``live`` objects at a time; sizes from a list or a function."""
    random = Random(seed)
    held: list[int] = []
    trace: list[Operation] = []
    for name in range(operations):
        if held and random.random() < len(held) / (2 * live):
            position = random.randrange(len(held))
            held[position], held[-1] = held[-1], held[position]
            trace.append(("free", held.pop(), 0))
        else:
            held.append(name)
            trace.append(("malloc", name, sizes(random) if callable(sizes) else random.choice(sizes)))
    return trace


def play(meter: Meter, trace: Iterable[Operation], every: int = 1) -> list[Fragmentation]:
    """Run a trace; the heap's state after each operation, or after every so many. A refused request is passed over."""
    held: dict[int, int] = {}
    states = []
    for number, (kind, name, size) in enumerate(trace, 1):
        if kind == "malloc":
            held[name] = meter.malloc(size)
        else:
            meter.free(held.pop(name, 0))
        if number % every == 0:
            states.append(meter.now())
    return states
