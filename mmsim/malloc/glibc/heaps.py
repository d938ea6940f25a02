"""Heaps of non-main arenas: 64 MiB of address space each, reserved without access and opened page by page by mprotect.

A heap is aligned to its size, so that the arena of any chunk is found by rounding its address down. It begins with

    offset 0  ar_ptr, the arena     16  size in use                  32  pagesize
           8  prev, its last heap   24  mprotect_size, ever opened   40  padding

and in an arena's first heap, struct malloc_state follows.  2.36: malloc/arena.c, struct _heap_info.
"""

from __future__ import annotations

from mmsim.constants import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from mmsim.malloc.glibc.bins import unlink_chunk
from mmsim.malloc.glibc.chunks import assertion
from mmsim.malloc.glibc.layout import HEAP_MAX_SIZE, HEAP_MIN_SIZE, MALLOC_ALIGN_MASK, MINSIZE, PREV_INUSE, SIZE_SZ
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.state import Arena
from mmsim.units import PAGE_SIZE, align_down, align_up

__all__ = ["Heap", "SIZEOF_HEAP_INFO", "grow_heap", "heap_for", "heap_trim_arena", "new_heap", "shrink_heap"]

SIZEOF_HEAP_INFO = 48
_PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
_FENCEPOST = MINSIZE - 2 * SIZE_SZ


class _Word:
    def __init__(self, offset: int):
        self.offset = offset

    def __get__(self, heap: Heap, owner: type[Heap]) -> int:
        return heap.lib.load(heap.address + self.offset)

    def __set__(self, heap: Heap, value: int) -> None:
        heap.lib.store(heap.address + self.offset, value)


class Heap:
    """The struct heap_info at an address."""

    __slots__ = ("address", "lib")

    ar_ptr = _Word(0)
    prev = _Word(8)
    size = _Word(16)
    mprotect_size = _Word(24)
    pagesize = _Word(32)

    def __init__(self, lib: Library, address: int):
        self.lib, self.address = lib, address

    @property
    def end(self) -> int:
        """Where the part in use ends."""
        return self.address + self.size


def heap_for(lib: Library, chunk: int) -> Heap:
    """The heap that a chunk of a non-main arena lies in (2.36: malloc/arena.c, heap_for_ptr())."""
    return Heap(lib, chunk & -HEAP_MAX_SIZE)


def _reserve(lib: Library) -> int:
    """64 MiB of aligned address space, inaccessible; 0 if there is none.

    128 MiB are mapped and what lies outside is returned; if nothing lies before, what lies behind is tried first next time.
    """
    program = lib.program
    if lib.aligned_heap_area:
        place = program.mmap(lib.aligned_heap_area, HEAP_MAX_SIZE, PROT_NONE, _PRIVATE | MAP_NORESERVE)
        lib.aligned_heap_area = 0
        if place >= 0:
            if not place & HEAP_MAX_SIZE - 1:
                return place
            program.munmap(place, HEAP_MAX_SIZE)
    area = program.mmap(0, 2 * HEAP_MAX_SIZE, PROT_NONE, _PRIVATE | MAP_NORESERVE)
    if area >= 0:
        place = align_up(area, HEAP_MAX_SIZE)
        before = place - area
        if before:
            program.munmap(area, before)
        else:
            lib.aligned_heap_area = place + HEAP_MAX_SIZE
        program.munmap(place + HEAP_MAX_SIZE, HEAP_MAX_SIZE - before)
        return place
    place = program.mmap(0, HEAP_MAX_SIZE, PROT_NONE, _PRIVATE | MAP_NORESERVE)
    if place >= 0 and place & HEAP_MAX_SIZE - 1:
        program.munmap(place, HEAP_MAX_SIZE)
        return 0
    return max(place, 0)


def new_heap(lib: Library, size: int, top_pad: int) -> Heap | None:
    """A heap of at least ``size`` bytes, or None. 2.36: malloc/arena.c, new_heap() and alloc_new_heap()."""
    if size + top_pad < HEAP_MIN_SIZE:
        size = HEAP_MIN_SIZE
    elif size + top_pad <= HEAP_MAX_SIZE:
        size += top_pad
    elif size > HEAP_MAX_SIZE:
        return None
    else:
        size = HEAP_MAX_SIZE
    size = align_up(size, PAGE_SIZE)
    place = _reserve(lib)
    if not place:
        return None
    if lib.program.mprotect(place, size, PROT_READ | PROT_WRITE) != 0:
        lib.program.munmap(place, HEAP_MAX_SIZE)
        return None
    heap = Heap(lib, place)
    heap.size = heap.mprotect_size = size
    heap.pagesize = PAGE_SIZE
    return heap


def grow_heap(lib: Library, heap: Heap, difference: int) -> bool:
    """Make a heap longer; False if its 64 MiB do not suffice. 2.36: malloc/arena.c, grow_heap()."""
    size, opened = heap.size + align_up(difference, PAGE_SIZE), heap.mprotect_size
    if size > HEAP_MAX_SIZE:
        return False
    if size > opened:
        if lib.program.mprotect(heap.address + opened, size - opened, PROT_READ | PROT_WRITE) != 0:
            return False
        heap.mprotect_size = size
    heap.size = size
    return True


def shrink_heap(lib: Library, heap: Heap, difference: int) -> bool:
    """Make a heap shorter: its pages go, its address space stays; in overcommit mode 2 the promise goes too.

    2.36: malloc/arena.c, shrink_heap().
    """
    size = heap.size - difference
    if size < SIZEOF_HEAP_INFO:
        return False
    if lib.check_may_shrink_heap():
        if lib.program.mmap(heap.address + size, difference, PROT_NONE, _PRIVATE | MAP_FIXED) < 0:
            return False
        heap.mprotect_size = size
    else:
        lib.program.madvise(heap.address + size, difference, MADV_DONTNEED)
    heap.size = size
    return True


def heap_trim_arena(lib: Library, av: Arena, pad: int) -> bool:
    """Unmap the last heaps of an arena if nothing of theirs is in use, then shorten the one that top lies in.

    2.36: malloc/arena.c, heap_trim().
    """
    heap = heap_for(lib, av.top)
    assertion(heap.ar_ptr == av.address, "_int_free", "heap->ar_ptr == av")
    while av.top == heap.address + SIZEOF_HEAP_INFO:
        previous = Heap(lib, heap.prev)
        fence = align_down(previous.end - _FENCEPOST, MALLOC_ALIGN_MASK + 1)
        misalign = previous.end - _FENCEPOST - fence
        assertion(lib.chunksize_nomask(fence) == PREV_INUSE, "heap_trim", "chunksize_nomask (p) == (0 | PREV_INUSE)")
        chunk = fence - lib.prev_size(fence)
        size = lib.chunksize(chunk) + _FENCEPOST + misalign
        assertion(0 < size < 2 * MINSIZE, "heap_trim", "new_size > 0 && new_size < (long) (2 * MINSIZE)")
        if not lib.prev_inuse(chunk):
            size += lib.prev_size(chunk)
        assertion(0 < size < HEAP_MAX_SIZE, "heap_trim", "new_size > 0 && new_size < max_size")
        if size + HEAP_MAX_SIZE - previous.size < pad + MINSIZE + heap.pagesize:
            break
        av.system_mem -= heap.size
        if heap.address + HEAP_MAX_SIZE == lib.aligned_heap_area:
            lib.aligned_heap_area = 0
        lib.program.munmap(heap.address, HEAP_MAX_SIZE)
        heap = previous
        if not lib.prev_inuse(chunk):
            chunk -= lib.prev_size(chunk)
            unlink_chunk(lib, chunk)
        assertion(chunk + size == heap.end, "heap_trim", "((char *) p + new_size) == ((char *) heap + heap->size)")
        av.top = chunk
        lib.set_head(chunk, size | PREV_INUSE)
    top_size = lib.chunksize(av.top)
    top_area = top_size - MINSIZE - 1
    if top_size < lib.mp.trim_threshold or top_area < 0 or top_area <= pad:
        return False
    extra = align_down(top_area - pad, PAGE_SIZE)
    if not extra or not shrink_heap(lib, heap, extra):
        return False
    av.system_mem -= extra
    lib.set_head(av.top, top_size - extra | PREV_INUSE)
    return True
