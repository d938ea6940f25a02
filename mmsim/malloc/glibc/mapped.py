"""Chunks with a mapping of their own: mmap, munmap and mremap of single large requests."""

from __future__ import annotations

from mmsim.constants import MAP_ANONYMOUS, MAP_PRIVATE, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE
from mmsim.malloc.glibc.chunks import assertion, chunk2mem, malloc_printerr
from mmsim.malloc.glibc.layout import DEFAULT_MMAP_THRESHOLD_MAX, IS_MMAPPED, SIZE_SZ, aligned_OK
from mmsim.malloc.glibc.library import Library
from mmsim.units import PAGE_SIZE, U64_MAX, align_up, u64

__all__ = ["adjust_thresholds", "mremap_chunk", "munmap_chunk", "sysmalloc_mmap"]


def sysmalloc_mmap(lib: Library, nb: int) -> int:
    """Map memory for one chunk; its user's pointer, or 0.

    8 bytes more than in the heap, since no chunk follows whose prev_size could be borrowed; rounded up to pages. The chunk's
    prev_size says how far it begins within its mapping. 2.36: malloc/malloc.c, sysmalloc_mmap().
    """
    size = u64(align_up(nb + SIZE_SZ, PAGE_SIZE))
    if size <= nb:
        return 0
    chunk = lib.program.mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    if chunk < 0:
        return 0
    lib.set_prev_size(chunk, 0)
    lib.set_head(chunk, size | IS_MMAPPED)
    mp = lib.mp
    mp.n_mmaps += 1
    mp.max_n_mmaps = max(mp.max_n_mmaps, mp.n_mmaps)
    mp.mmapped_mem += size
    mp.max_mmapped_mem = max(mp.max_mmapped_mem, mp.mmapped_mem)
    return chunk2mem(chunk)


def adjust_thresholds(lib: Library, chunk: int) -> None:
    """A mapped chunk is freed: requests of its size seem to come and go, so from now on the heap serves them.

    The mmap threshold becomes the chunk's size (up to 32 MiB), the trim threshold twice that, unless the user chose either.
    2.36: malloc/malloc.c, __libc_free().
    """
    mp, size = lib.mp, lib.chunksize_nomask(chunk)
    if not mp.no_dyn_threshold and mp.mmap_threshold < size <= DEFAULT_MMAP_THRESHOLD_MAX:
        mp.mmap_threshold = lib.chunksize(chunk)
        mp.trim_threshold = 2 * mp.mmap_threshold


def _mapping(lib: Library, chunk: int, message: str) -> tuple[int, int, int]:
    """The mapping's start, its size and the chunk's offset in it; abort if they cannot be a mapping's."""
    offset, size = lib.prev_size(chunk), lib.chunksize(chunk)
    block, total = chunk - offset & U64_MAX, u64(offset + size)
    within = chunk2mem(chunk) & PAGE_SIZE - 1
    if (block | total) & PAGE_SIZE - 1 or within & within - 1:
        malloc_printerr(message)
    return block, total, offset


def munmap_chunk(lib: Library, chunk: int) -> None:
    """Unmap a chunk. 2.36: malloc/malloc.c, munmap_chunk()."""
    assertion(lib.is_mmapped(chunk), "munmap_chunk", "chunk_is_mmapped (p)")
    block, total, _offset = _mapping(lib, chunk, "munmap_chunk(): invalid pointer")
    lib.mp.n_mmaps -= 1
    lib.mp.mmapped_mem -= total
    lib.program.munmap(block, total)


def mremap_chunk(lib: Library, chunk: int, new_size: int) -> int:
    """Resize a chunk's mapping, wherever the kernel finds room: pages move by their table entries; 0 if that fails.

    2.36: malloc/malloc.c, mremap_chunk().
    """
    assertion(lib.is_mmapped(chunk), "mremap_chunk", "chunk_is_mmapped (p)")
    block, total, offset = _mapping(lib, chunk, "mremap_chunk(): invalid pointer")
    new_size = u64(align_up(new_size + offset + SIZE_SZ, PAGE_SIZE))
    if total == new_size:
        return chunk
    moved = lib.program.mremap(block, total, new_size, MREMAP_MAYMOVE)
    if moved < 0:
        return 0
    chunk = moved + offset
    assertion(aligned_OK(chunk2mem(chunk)), "mremap_chunk", "aligned_OK (chunk2mem (p))")
    assertion(lib.prev_size(chunk) == offset, "mremap_chunk", "prev_size (p) == offset")
    lib.set_head(chunk, new_size - offset | IS_MMAPPED)
    lib.mp.mmapped_mem += new_size - total
    lib.mp.max_mmapped_mem = max(lib.mp.max_mmapped_mem, lib.mp.mmapped_mem)
    return chunk
