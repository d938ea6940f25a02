"""free: into the thread cache, a fastbin, or joined with its neighbours into the unsorted bin or top."""

from __future__ import annotations

from mmsim.malloc.glibc.bins import insert_unsorted, malloc_consolidate, unlink_chunk
from mmsim.malloc.glibc.chunks import malloc_printerr
from mmsim.malloc.glibc.heaps import heap_trim_arena
from mmsim.malloc.glibc.layout import (
    CHUNK_HDR_SZ,
    FASTBIN_CONSOLIDATION_THRESHOLD,
    MINSIZE,
    PREV_INUSE,
    aligned_OK,
    csize2tidx,
    fastbin_index,
    protect_ptr,
)
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.mapped import munmap_chunk
from mmsim.malloc.glibc.state import Arena
from mmsim.malloc.glibc.tcache import tcache_free
from mmsim.malloc.glibc.trim import systrim
from mmsim.units import U64_MAX, u64

__all__ = ["int_free"]


def int_free(lib: Library, av: Arena, chunk: int, have_lock: bool) -> None:
    """Free a chunk of an arena. ``have_lock`` only widens the checks of a fastbin.

    2.36: malloc/malloc.c, _int_free().
    """
    size = lib.chunksize(chunk)
    if chunk > u64(-size) or not aligned_OK(chunk):
        malloc_printerr("free(): invalid pointer")
    if size < MINSIZE or not aligned_OK(size):
        malloc_printerr("free(): invalid size")
    if lib.thread.tcache:
        index = csize2tidx(size)
        if index < lib.mp.tcache_bins and tcache_free(lib, chunk, index):
            return
    if size <= lib.mp.max_fast:
        _free_to_fastbin(lib, av, chunk, size, have_lock)
    elif not lib.is_mmapped(chunk):
        size = _free_and_join(lib, av, chunk, size)
        if size >= FASTBIN_CONSOLIDATION_THRESHOLD:
            _free_large(lib, av)
    else:
        munmap_chunk(lib, chunk)


def _free_to_fastbin(lib: Library, av: Arena, chunk: int, size: int, have_lock: bool) -> None:
    """Push a chunk on its fastbin. It stays marked as in use, so nobody joins with it."""
    above = chunk + size
    if lib.chunksize_nomask(above) <= CHUNK_HDR_SZ or lib.chunksize(above) >= av.system_mem:
        malloc_printerr("free(): invalid next size (fast)")
    lib.free_perturb(chunk, size)
    av.have_fastchunks = 1
    index = fastbin_index(size)
    first = av.fastbin(index)
    if first == chunk:
        malloc_printerr("double free or corruption (fasttop)")
    lib.set_fd(chunk, protect_ptr(chunk + 16, first))
    av.set_fastbin(index, chunk)
    if have_lock and first and fastbin_index(lib.chunksize(first)) != index:
        malloc_printerr("invalid fastbin entry (free)")


def _free_and_join(lib: Library, av: Arena, chunk: int, size: int) -> int:
    """Join a chunk with its free neighbours, then put it into the unsorted bin or let top have it; the size it has then."""
    above, top = chunk + size, av.top
    if chunk == top:
        malloc_printerr("double free or corruption (top)")
    if av.contiguous and above >= u64(top + lib.chunksize(top)):
        malloc_printerr("double free or corruption (out)")
    if not lib.prev_inuse(above):
        malloc_printerr("double free or corruption (!prev)")
    above_size = lib.chunksize(above)
    if lib.chunksize_nomask(above) <= CHUNK_HDR_SZ or above_size >= av.system_mem:
        malloc_printerr("free(): invalid next size (normal)")
    lib.free_perturb(chunk, size)
    alone = size
    if not lib.prev_inuse(chunk):
        below_size = lib.prev_size(chunk)
        size = u64(size + below_size)
        chunk = chunk - below_size & U64_MAX
        if lib.chunksize(chunk) != below_size:
            malloc_printerr("corrupted size vs. prev_size while consolidating")
        unlink_chunk(lib, chunk)
    if above == top:
        size += above_size
        lib.set_head(chunk, size | PREV_INUSE)
        av.top = chunk
    else:
        if lib.inuse_bit_at_offset(above, above_size):
            lib.clear_inuse_bit_at_offset(above, 0)
        else:
            unlink_chunk(lib, above)
            size += above_size
        insert_unsorted(lib, av, chunk, size, "free(): corrupted unsorted chunks")
        lib.set_head(chunk, size | PREV_INUSE)
        lib.set_foot(chunk, size)
    if size != alone and lib.trace.enabled:
        lib.trace.emit("mmsim:coalesce", chunk=chunk, size=size)
    return size


def _free_large(lib: Library, av: Arena) -> None:
    """A large piece is free: gather the fastbins, and give back the heap's end if it has grown beyond the threshold."""
    if av.have_fastchunks:
        malloc_consolidate(lib, av)
    if not lib.is_main(av):
        heap_trim_arena(lib, av, lib.mp.top_pad)
    elif lib.chunksize(av.top) >= lib.mp.trim_threshold:
        systrim(lib, av, lib.mp.top_pad)
