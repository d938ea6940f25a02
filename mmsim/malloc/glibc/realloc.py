"""realloc: in place if the neighbour allows it, by mremap for a mapped chunk, by a copy otherwise."""

from __future__ import annotations

from mmsim.malloc.glibc.bins import unlink_chunk
from mmsim.malloc.glibc.chunks import assertion, chunk2mem, malloc_printerr, mem2chunk
from mmsim.malloc.glibc.int_free import int_free
from mmsim.malloc.glibc.int_malloc import int_malloc
from mmsim.malloc.glibc.layout import CHUNK_HDR_SZ, MALLOC_ALIGN_MASK, MINSIZE, PREV_INUSE
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.state import Arena

__all__ = ["int_realloc"]


def int_realloc(lib: Library, av: Arena, old: int, old_size: int, nb: int) -> int:
    """Give a chunk of the heap the size ``nb``; the user's pointer, or 0 and the chunk as it was.

    2.36: malloc/malloc.c, _int_realloc().
    """
    if lib.chunksize_nomask(old) <= CHUNK_HDR_SZ or old_size >= av.system_mem:
        malloc_printerr("realloc(): invalid old size")
    assertion(not lib.is_mmapped(old), "_int_realloc", "!chunk_is_mmapped (oldp)")
    above = old + old_size
    above_size = lib.chunksize(above)
    if lib.chunksize_nomask(above) <= CHUNK_HDR_SZ or above_size >= av.system_mem:
        malloc_printerr("realloc(): invalid next size")
    chunk, size = old, old_size
    if old_size < nb:
        if above == av.top and old_size + above_size >= nb + MINSIZE:
            lib.set_head_size(old, nb | lib.arena_flag(av))
            av.top = old + nb
            lib.set_head(old + nb, old_size + above_size - nb | PREV_INUSE)
            return chunk2mem(old)
        if above != av.top and not lib.inuse(above) and old_size + above_size >= nb:
            unlink_chunk(lib, above)
            size = old_size + above_size
        else:
            memory = int_malloc(lib, av, nb - MALLOC_ALIGN_MASK)
            if not memory:
                return 0
            chunk = mem2chunk(memory)
            size = lib.chunksize(chunk)
            if chunk != above:
                lib.program.copy(memory, chunk2mem(old), lib.memsize(old))
                int_free(lib, av, old, True)
                return memory
            chunk, size = old, size + old_size      # the new chunk is the one above: nothing need be copied
    assertion(size >= nb, "_int_realloc", "(unsigned long) (newsize) >= (unsigned long) (nb)")
    if size - nb < MINSIZE:
        lib.set_head_size(chunk, size | lib.arena_flag(av))
        lib.set_inuse_bit_at_offset(chunk, size)
    else:
        lib.set_head_size(chunk, nb | lib.arena_flag(av))
        lib.set_head(chunk + nb, size - nb | PREV_INUSE | lib.arena_flag(av))
        lib.set_inuse_bit_at_offset(chunk + nb, size - nb)
        int_free(lib, av, chunk + nb, True)
    return chunk2mem(chunk)
