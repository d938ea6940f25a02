"""mallinfo2: how much memory the arenas have, and how much of it is free."""

from __future__ import annotations

from typing import NamedTuple

from mmsim.malloc.glibc.layout import NFASTBINS
from mmsim.malloc.glibc.library import Library

__all__ = ["MallInfo2", "int_mallinfo"]


class MallInfo2(NamedTuple):
    """struct mallinfo2, bytes and counts. 2.36: malloc/malloc.h."""

    arena: int          # bytes from the system, mappings of single chunks apart
    ordblks: int        # free chunks, top among them
    smblks: int         # chunks in fastbins
    hblks: int          # chunks with a mapping of their own
    hblkhd: int         # bytes in those
    usmblks: int        # always 0
    fsmblks: int        # bytes in fastbins
    uordblks: int       # bytes in use (thread caches count as in use)
    fordblks: int       # bytes free
    keepcost: int       # bytes in the main arena's top


def int_mallinfo(lib: Library) -> MallInfo2:
    """Sums over all arenas. Cost: a walk over all free chunks. 2.36: malloc/malloc.c, int_mallinfo()."""
    system = free = blocks = fast_blocks = fast = 0
    for arena in lib.arenas():
        fast_sizes = [lib.chunksize(chunk) for index in range(NFASTBINS) for chunk in arena.chunks_in_fastbin(index)]
        sizes = [lib.chunksize(chunk) for chunk in arena.free_chunks()]
        system += arena.system_mem
        free += sum(sizes) + lib.chunksize(arena.top)
        blocks += len(sizes) - len(fast_sizes) + 1
        fast_blocks += len(fast_sizes)
        fast += sum(fast_sizes)
    return MallInfo2(system, blocks, fast_blocks, lib.mp.n_mmaps, lib.mp.mmapped_mem, 0, fast, system - free, free,
                     lib.chunksize(lib.main_arena.top))
