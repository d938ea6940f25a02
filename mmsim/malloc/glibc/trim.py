"""Giving memory back: the heap's end by brk, the pages inside it by madvise."""

from __future__ import annotations

from mmsim.constants import MADV_DONTNEED
from mmsim.malloc.glibc.bins import malloc_consolidate
from mmsim.malloc.glibc.chunks import assertion
from mmsim.malloc.glibc.layout import MINSIZE, NBINS, PREV_INUSE, bin_index
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.state import Arena
from mmsim.units import PAGE_SIZE, align_down, align_up, s64, u64

__all__ = ["mtrim", "systrim"]

_SIZEOF_MALLOC_CHUNK = 48


def systrim(lib: Library, av: Arena, pad: int) -> bool:
    """Return the whole pages of top except ``pad`` bytes, if the heap's end is still ours. True if the end moved.

    A top of exactly 32 bytes has an area of -1, which C compares as a large unsigned number and then rounds down to -4096: the
    heap *grows* by a page. 2.36: malloc/malloc.c, systrim().
    """
    top = av.top
    top_size = lib.chunksize(top)
    top_area = top_size - MINSIZE - 1
    if u64(top_area) <= pad:
        return False
    extra = s64(align_down(u64(top_area - pad), PAGE_SIZE))
    if not extra or lib.program.sbrk(0) != top + top_size:
        return False
    lib.program.sbrk(-extra)
    released = top + top_size - lib.program.sbrk(0)
    if not released:
        return False
    av.system_mem -= released
    lib.set_head(top, top_size - released | PREV_INUSE)
    return True


def mtrim(lib: Library, av: Arena, pad: int) -> bool:
    """Return what can be returned of an arena: whole pages inside free chunks, then the heap's end.

    Each free chunk keeps its first 48 bytes, where its links are. 2.36: malloc/malloc.c, mtrim().
    """
    malloc_consolidate(lib, av)
    result = False
    smallest = bin_index(PAGE_SIZE)
    for index in [1, *range(smallest, NBINS)]:
        for chunk in av.chunks_in_bin(index):
            size = lib.chunksize(chunk)
            if size < PAGE_SIZE + _SIZEOF_MALLOC_CHUNK:
                continue
            start = align_up(chunk + _SIZEOF_MALLOC_CHUNK, PAGE_SIZE)
            assertion(u64(chunk + size) > start, "mtrim", "(char *) p + size > paligned_mem")
            length = align_down(chunk + size - start, PAGE_SIZE)
            if length:
                lib.program.madvise(start, length, MADV_DONTNEED)
                result = True
    if lib.is_main(av) and systrim(lib, av, pad):
        result = True
    return result
