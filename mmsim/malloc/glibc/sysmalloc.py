"""More memory from the kernel: a mapping for one large chunk, or a longer top."""

from __future__ import annotations

from mmsim.malloc.glibc.chunks import assertion, chunk2mem, malloc_printerr
from mmsim.malloc.glibc.heaps import SIZEOF_HEAP_INFO, grow_heap, heap_for, new_heap
from mmsim.malloc.glibc.int_free import int_free
from mmsim.malloc.glibc.layout import (
    CHUNK_HDR_SZ,
    MALLOC_ALIGN_MASK,
    MALLOC_ALIGNMENT,
    MINSIZE,
    MMAP_AS_MORECORE_SIZE,
    NON_MAIN_ARENA,
    PREV_INUSE,
)
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.mapped import sysmalloc_mmap
from mmsim.malloc.glibc.state import Arena
from mmsim.malloc.program import map_anonymous
from mmsim.units import PAGE_SIZE, U64_MAX, align_up, s64, u64

__all__ = ["sysmalloc"]

_TOP_IS_SOUND = ("(old_top == initial_top (av) && old_size == 0) || ((unsigned long) (old_size) >= MINSIZE && prev_inuse (old_top) "
                 "&& ((unsigned long) old_end & (pagesize - 1)) == 0)")
_TOP_IS_SHORT = "(unsigned long) (old_size) < (unsigned long) (nb + MINSIZE)"


def sysmalloc(lib: Library, nb: int, av: Arena | None) -> int:
    """Serve a chunk size that nothing in the arena can; the user's pointer, or 0 with ENOMEM.

    2.36: malloc/malloc.c, sysmalloc(). Left out: huge pages (the tunable hugetlb).
    """
    mp = lib.mp
    tried_mmap = False
    if av is None or (nb >= mp.mmap_threshold and mp.n_mmaps < mp.n_mmaps_max):
        memory = sysmalloc_mmap(lib, nb)
        if memory:
            return memory
        tried_mmap = True
    if av is None:
        lib.errno = "ENOMEM"
        return 0
    old_top = av.top
    old_size = lib.chunksize(old_top)
    old_end = u64(old_top + old_size)
    assertion((old_top == av.unsorted and old_size == 0) or
              (old_size >= MINSIZE and lib.prev_inuse(old_top) and not old_end & PAGE_SIZE - 1), "sysmalloc", _TOP_IS_SOUND)
    assertion(old_size < nb + MINSIZE, "sysmalloc", _TOP_IS_SHORT)
    if lib.is_main(av):
        _extend_main(lib, av, nb, old_top, old_size)
    else:
        memory = _extend_heap(lib, av, nb, old_top, old_size, tried_mmap)
        if memory:
            return memory
    av.max_system_mem = max(av.max_system_mem, av.system_mem)
    chunk = av.top
    size = lib.chunksize(chunk)
    if size < nb + MINSIZE:
        lib.errno = "ENOMEM"
        return 0
    av.top = chunk + nb
    lib.set_head(chunk, nb | PREV_INUSE | lib.arena_flag(av))
    lib.set_head(chunk + nb, size - nb | PREV_INUSE)
    return chunk2mem(chunk)


# -- the main arena ------------------------------------------------------------------------------------------

def _extend_main(lib: Library, av: Arena, nb: int, old_top: int, old_size: int) -> None:
    """Move the heap's end by what is missing and 128 KiB more, rounded up to pages; if the kernel refuses, map instead.

    2.36 calls sysmalloc_mmap_fallback() with the page size and the least size of 1 MiB in each other's place: so the mapping is
    rounded up to 1 MiB the first time, and is as small as a page from then on.
    """
    size = nb + lib.mp.top_pad + MINSIZE - (old_size if av.contiguous else 0)
    size = s64(align_up(size, PAGE_SIZE) & U64_MAX)
    brk = end = -1
    if size > 0:
        brk = lib.program.sbrk(size)
    if brk < 0:
        if av.contiguous:
            size = align_up(size + old_size, MMAP_AS_MORECORE_SIZE)
        size = s64(max(size & U64_MAX, PAGE_SIZE))
        if size & U64_MAX > nb:
            brk = map_anonymous(lib.program, size & U64_MAX)
            if brk >= 0:
                av.set_noncontiguous()
                end = brk + size
    if brk < 0:
        return
    lib.mp.sbrk_base = lib.mp.sbrk_base or brk
    av.system_mem += size
    old_end = old_top + old_size
    if brk == old_end and end < 0:
        lib.set_head(old_top, size + old_size | PREV_INUSE)
    elif av.contiguous and old_size and brk < old_end:
        malloc_printerr("break adjusted to free malloc space")
    else:
        _new_top(lib, av, brk, end, size, old_top, old_size)


def _new_top(lib: Library, av: Arena, brk: int, end: int, size: int, old_top: int, old_size: int) -> None:
    """Begin a new top at ``brk``: the first one, or one behind memory that somebody else took.

    Its start is aligned, its end extended to a page. What is left of the old top is fenced off by two chunks too small to be
    freed, and freed itself.
    """
    correction = 0
    aligned = brk
    if av.contiguous:
        if old_size:
            av.system_mem += brk - (old_top + old_size)
        misaligned = chunk2mem(brk) & MALLOC_ALIGN_MASK
        if misaligned:
            correction = MALLOC_ALIGNMENT - misaligned
            aligned += correction
        correction += old_size
        correction += -(brk + size + correction) % PAGE_SIZE
        end = lib.program.sbrk(correction)
        if end < 0:
            correction = 0
            end = lib.program.sbrk(0)
    else:
        assertion(not chunk2mem(brk) & MALLOC_ALIGN_MASK, "sysmalloc",
                  "((unsigned long) chunk2mem (brk) & MALLOC_ALIGN_MASK) == 0")
        if end < 0:
            end = lib.program.sbrk(0)
    if end < 0:
        return
    av.top = aligned
    lib.regions.append(aligned)
    lib.set_head(aligned, end - aligned + correction | PREV_INUSE)
    av.system_mem += correction
    if old_size:
        old_size = old_size - 2 * CHUNK_HDR_SZ & ~MALLOC_ALIGN_MASK
        lib.set_head(old_top, old_size | PREV_INUSE)
        lib.set_head(old_top + old_size, CHUNK_HDR_SZ | PREV_INUSE)
        lib.set_head(old_top + old_size + CHUNK_HDR_SZ, CHUNK_HDR_SZ | PREV_INUSE)
        if old_size >= MINSIZE:
            int_free(lib, av, old_top, True)


# -- other arenas --------------------------------------------------------------------------------------------

def _extend_heap(lib: Library, av: Arena, nb: int, old_top: int, old_size: int, tried_mmap: bool) -> int:
    """Open more of the heap that top lies in, or begin another heap; as the last resort map the chunk, and return it."""
    heap = heap_for(lib, old_top)
    before = heap.size
    if MINSIZE + nb - old_size > 0 and grow_heap(lib, heap, MINSIZE + nb - old_size):
        av.system_mem += heap.size - before
        lib.set_head(old_top, heap.end - old_top | PREV_INUSE)
        return 0
    another = new_heap(lib, nb + MINSIZE + SIZEOF_HEAP_INFO, lib.mp.top_pad)
    if another is None:
        return 0 if tried_mmap else sysmalloc_mmap(lib, nb)
    another.ar_ptr, another.prev = av.address, heap.address
    av.system_mem += another.size
    av.top = another.address + SIZEOF_HEAP_INFO
    lib.set_head(av.top, another.size - SIZEOF_HEAP_INFO | PREV_INUSE)
    # The old top is freed up to a fencepost, which may become the top again when the new heap goes.
    old_size = old_size - MINSIZE & ~MALLOC_ALIGN_MASK
    lib.set_head(old_top + old_size + CHUNK_HDR_SZ, PREV_INUSE)
    if old_size >= MINSIZE:
        lib.set_head(old_top + old_size, CHUNK_HDR_SZ | PREV_INUSE)
        lib.set_foot(old_top + old_size, CHUNK_HDR_SZ)
        lib.set_head(old_top, old_size | PREV_INUSE | NON_MAIN_ARENA)
        int_free(lib, av, old_top, True)
    else:
        lib.set_head(old_top, old_size + CHUNK_HDR_SZ | PREV_INUSE)
        lib.set_foot(old_top, old_size + CHUNK_HDR_SZ)
    return 0
