"""memalign: a chunk large enough to hold an aligned one, whose ends are freed again."""

from __future__ import annotations

from mmsim.malloc.glibc.chunks import assertion, chunk2mem, mem2chunk
from mmsim.malloc.glibc.int_free import int_free
from mmsim.malloc.glibc.int_malloc import int_malloc
from mmsim.malloc.glibc.layout import IS_MMAPPED, MINSIZE, PREV_INUSE, PTRDIFF_MAX, checked_request2size
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.state import Arena
from mmsim.units import align_up

__all__ = ["int_memalign"]


def int_memalign(lib: Library, av: Arena | None, alignment: int, request: int) -> int:
    """Memory at a multiple of ``alignment`` (a power of two, at least 32); the pointer, or 0 with ENOMEM.

    2.36: malloc/malloc.c, _int_memalign(), with the check that Debian's 2.36-9 took from the release branch.
    """
    nb = checked_request2size(request)
    if not nb or alignment > PTRDIFF_MAX:
        lib.errno = "ENOMEM"
        return 0
    memory = int_malloc(lib, av, nb + alignment + MINSIZE)
    if not memory:
        return 0
    chunk = mem2chunk(memory)
    if memory % alignment:
        aligned = mem2chunk(align_up(memory, alignment))
        if aligned - chunk < MINSIZE:               # what is left below must be a chunk
            aligned += alignment
        lead = aligned - chunk
        size = lib.chunksize(chunk) - lead
        if lib.is_mmapped(chunk):                   # no chunk is cut off: the header says where the mapping begins
            lib.set_prev_size(aligned, lib.prev_size(chunk) + lead)
            lib.set_head(aligned, size | IS_MMAPPED)
            return chunk2mem(aligned)
        assert av is not None                       # only a mapped chunk comes from no arena
        lib.set_head(aligned, size | PREV_INUSE | lib.arena_flag(av))
        lib.set_inuse_bit_at_offset(aligned, size)
        lib.set_head_size(chunk, lead | lib.arena_flag(av))
        int_free(lib, av, chunk, True)
        chunk = aligned
        assertion(size >= nb and not chunk2mem(chunk) % alignment, "_int_memalign",
                  "newsize >= nb && (((unsigned long) (chunk2mem (p))) % alignment) == 0")
    if not lib.is_mmapped(chunk):
        assert av is not None
        size = lib.chunksize(chunk)
        if size > nb + MINSIZE:
            lib.set_head(chunk + nb, size - nb | PREV_INUSE | lib.arena_flag(av))
            lib.set_head_size(chunk, nb)
            int_free(lib, av, chunk + nb, True)
    return chunk2mem(chunk)
