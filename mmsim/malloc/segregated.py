"""Size classes: objects of one size side by side in a run, what is free noted in a bitmap apart from them.

jemalloc, tcmalloc and their relatives work like this; there is no header an object's user could overwrite with his first byte
too many, and nothing is ever split or joined. A run is 64 KiB at a multiple of 64 KiB::

    run ->  | class | free | next run | bitmap, a bit an object, 1 = free … |  object 0 | object 1 | …

so that the run of any pointer is found by rounding down. A larger request is a run of its own, as long as it must be.

    >>> from mmsim.malloc.program import PlainProgram
    >>> heap = SizeClasses(PlainProgram())
    >>> [heap.usable_size(heap.malloc(size)) for size in (1, 17, 100, 1000, 1025, 20_000)]
    [16, 32, 112, 1024, 1280, 20480]
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.constants import MADV_DONTNEED
from mmsim.errors import InvariantError
from mmsim.malloc.allocator import ALIGNMENT, PTRDIFF_MAX, Allocator, Block
from mmsim.malloc.program import Abort, Program, map_anonymous
from mmsim.units import MIB, PAGE_SIZE, align_down, align_up

__all__ = ["CLASSES", "RUN", "SizeClasses", "size_class"]

#: Bytes of a run, and its alignment.
RUN = 64 * 1024
_CHUNK = MIB
_BITMAP = 24
_LARGE = 0xFFFF
_FREE_RUN = 0xFFFE

#: Object sizes: multiples of 16 up to 128, then four sizes a doubling.
CLASSES = (16, 32, 48, 64, 80, 96, 112, 128,
           *(base + step * base // 4 for base in (128, 256, 512, 1024, 2048, 4096, 8192) for step in (1, 2, 3, 4)))


def size_class(size: int) -> int:
    """The index of the smallest class that holds ``size`` bytes.

    >>> CLASSES[size_class(129)], CLASSES[size_class(4097)]
    (160, 5120)
    """
    low, high = 0, len(CLASSES) - 1
    while low < high:
        middle = (low + high) // 2
        if CLASSES[middle] < size:
            low = middle + 1
        else:
            high = middle
    return low


def _objects(size: int) -> tuple[int, int]:
    """How many objects of a size a run holds, and at which offset the first lies."""
    count = (RUN - _BITMAP) // size
    while True:
        first = align_up(_BITMAP + 8 * -(-count // 64), ALIGNMENT)
        if first + count * size <= RUN:
            return count, first
        count -= 1


class SizeClasses(Allocator):
    """Segregated storage in runs. malloc costs O(bitmap), free O(1); an empty run gives its pages back and serves any class."""

    def __init__(self, program: Program):
        self.program = program
        self.load, self.store = program.read_word, program.write_word
        self._layout = [_objects(size) for size in CLASSES]
        #: For each class the first run with room, linked through the runs; 0: none.
        self.partial = [0] * len(CLASSES)
        #: Runs that hold nothing.
        self.empty: list[int] = []
        #: Every run and its length.
        self.runs: dict[int, int] = {}

    # -- runs --------------------------------------------------------------------------------------------------

    def _map_aligned(self, length: int) -> int:
        """Map memory at a multiple of 64 KiB: more than is needed, less both ends; 0 if that fails."""
        area = map_anonymous(self.program, length + RUN)
        if area < 0:
            return 0
        start = align_up(area, RUN)
        if start > area:
            self.program.munmap(area, start - area)
        if start + length < area + length + RUN:
            self.program.munmap(start + length, area + RUN - start)
        return start

    def _new_run(self, index: int) -> int:
        if not self.empty:
            chunk = self._map_aligned(_CHUNK)
            if not chunk:
                return 0
            for run in range(chunk + _CHUNK - RUN, chunk - RUN, -RUN):
                self.empty.append(run)
                self.runs[run] = RUN
        run = self.empty.pop()
        count, _first = self._layout[index]
        self.store(run, index)
        self.store(run + 8, count)
        for word in range(-(-count // 64)):
            self.store(run + _BITMAP + 8 * word, (1 << min(64, count - 64 * word)) - 1)
        self._push(run, index)
        return run

    def _push(self, run: int, index: int) -> None:
        self.store(run + 16, self.partial[index])
        self.partial[index] = run

    def _drop(self, run: int, index: int) -> None:
        """Take a run out of the list of those with room. Cost: the runs before it."""
        before, at = 0, self.partial[index]
        while at != run:
            before, at = at, self.load(at + 16)
        if before:
            self.store(before + 16, self.load(run + 16))
        else:
            self.partial[index] = self.load(run + 16)

    # -- malloc and free ---------------------------------------------------------------------------------------

    def malloc(self, size: int) -> int:
        if size > CLASSES[-1]:
            return self._malloc_large(size)
        index = size_class(size)
        run = self.partial[index] or self._new_run(index)
        if not run:
            self.errno = "ENOMEM"
            return 0
        word = 0
        while not (bits := self.load(run + _BITMAP + 8 * word)):
            word += 1
        lowest = bits & -bits
        self.store(run + _BITMAP + 8 * word, bits ^ lowest)
        left = self.load(run + 8) - 1
        self.store(run + 8, left)
        if not left:
            self.partial[index] = self.load(run + 16)
        return run + self._layout[index][1] + (64 * word + lowest.bit_length() - 1) * CLASSES[index]

    def _malloc_large(self, size: int) -> int:
        """A run of its own: its first page says so, the memory begins with the second."""
        length = align_up(size, PAGE_SIZE) + PAGE_SIZE
        run = self._map_aligned(length) if size <= PTRDIFF_MAX else 0
        if not run:
            self.errno = "ENOMEM"
            return 0
        self.store(run, _LARGE)
        self.store(run + 8, length)
        self.runs[run] = length
        return run + PAGE_SIZE

    def _find(self, memory: int) -> tuple[int, int, int]:
        """Run, class and object number of a pointer; abort if it points at no object in use."""
        run = align_down(memory, RUN)
        if run not in self.runs:
            raise Abort("free(): not in any run")
        index = self.load(run)
        if index == _LARGE:
            if memory != run + PAGE_SIZE:
                raise Abort("free(): inside a large object")
            return run, index, 0
        if index >= len(CLASSES) or run in self.empty:
            raise Abort("free(): the run's class is corrupt" if index != _FREE_RUN else "free(): object is not in use")
        count, first = self._layout[index]
        number, inside = divmod(memory - run - first, CLASSES[index])
        if inside or not 0 <= number < count:
            raise Abort("free(): not the start of an object")
        if self.load(run + _BITMAP + 8 * (number // 64)) >> number % 64 & 1:
            raise Abort("free(): object is not in use")
        return run, index, number

    def free(self, memory: int) -> None:
        if not memory:
            return
        run, index, number = self._find(memory)
        if index == _LARGE:
            self.program.munmap(run, self.runs.pop(run))
            return
        word = run + _BITMAP + 8 * (number // 64)
        self.store(word, self.load(word) | 1 << number % 64)
        left = self.load(run + 8) + 1
        self.store(run + 8, left)
        if left == 1:
            self._push(run, index)
        if left == self._layout[index][0]:
            self._drop(run, index)
            self.store(run, _FREE_RUN)
            self.program.madvise(run + PAGE_SIZE, RUN - PAGE_SIZE, MADV_DONTNEED)
            self.empty.append(run)

    def usable_size(self, memory: int) -> int:
        if not memory:
            return 0
        run, index, _number = self._find(memory)
        return self.runs[run] - PAGE_SIZE if index == _LARGE else CLASSES[index]

    # -- looking -----------------------------------------------------------------------------------------------

    def walk(self) -> Iterator[Block]:
        empty = set(self.empty)
        for run, length in sorted(self.runs.items()):
            if run in empty:
                yield Block(run, length, "free")
                continue
            index = self.load(run)
            first, size, count = PAGE_SIZE, length - PAGE_SIZE, 1
            if index != _LARGE:
                (count, first), size = self._layout[index], CLASSES[index]
            yield Block(run, first, "other")
            for number in range(count):
                free = index != _LARGE and self.load(run + _BITMAP + 8 * (number // 64)) >> number % 64 & 1
                yield Block(run + first + number * size, size, "free" if free else "used", run + first + number * size)
            end = first + count * size
            if end < length:
                yield Block(run + end, length - end, "other")

    def check(self) -> None:
        """The bitmaps count what the runs say, and the lists hold exactly the runs with room."""
        listed: set[int] = set()
        for index, run in enumerate(self.partial):
            while run:
                if run in listed or self.load(run) != index:
                    raise InvariantError(f"the run {run:#x} is listed for class {index} and says {self.load(run)}")
                listed.add(run)
                run = self.load(run + 16)
        empty = set(self.empty)
        for run in self.runs:
            index = _FREE_RUN if run in empty else self.load(run)
            if index in (_FREE_RUN, _LARGE):
                if run in listed:
                    raise InvariantError(f"the run {run:#x} has no room for small objects and is listed")
                continue
            count = self._layout[index][0]
            free = sum(self.load(run + _BITMAP + 8 * word).bit_count() for word in range(-(-count // 64)))
            if free != self.load(run + 8):
                raise InvariantError(f"the run {run:#x} counts {self.load(run + 8)} free objects, its bitmap {free}")
            if (run in listed) != (free > 0) or free == count:
                raise InvariantError(f"the run {run:#x} has {free} of {count} objects free and is "
                                     f"{'' if run in listed else 'not '}listed")
