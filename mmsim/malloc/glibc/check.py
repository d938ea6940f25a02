"""The heap as it lies in memory: a walk over its chunks, and whether all that must hold does.

2.36: malloc/malloc.c, do_check_malloc_state(), and more.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.errors import InvariantError
from mmsim.malloc.allocator import Block
from mmsim.malloc.glibc.chunks import chunk2mem, mem2chunk
from mmsim.malloc.glibc.heaps import SIZEOF_HEAP_INFO, Heap, heap_for
from mmsim.malloc.glibc.layout import (
    CHUNK_HDR_SZ,
    MALLOC_ALIGN_MASK,
    MINSIZE,
    NBINS,
    NFASTBINS,
    TCACHE_MAX_BINS,
    aligned_OK,
    bin_index,
    csize2tidx,
    fastbin_index,
    in_smallbin_range,
)
from mmsim.malloc.glibc.library import Library, Thread
from mmsim.malloc.glibc.state import SIZEOF_MALLOC_STATE, Arena
from mmsim.malloc.glibc.tcache import tcache_count, tcache_entries

__all__ = ["check_arena", "regions", "walk_arena"]


def regions(lib: Library, av: Arena) -> list[int]:
    """Where the stretches of memory begin that an arena's chunks fill: in the main arena one, unless somebody else moved
    the heap's end; in another, one a heap."""
    if lib.is_main(av):
        return sorted(lib.regions)
    found = []
    heap: Heap | None = heap_for(lib, av.top)
    while heap is not None and heap.address:
        start = heap.address + SIZEOF_HEAP_INFO
        if av.address == start:
            start += SIZEOF_MALLOC_STATE
            start += -(start + CHUNK_HDR_SZ) & MALLOC_ALIGN_MASK
        found.append(start)
        heap = Heap(lib, heap.prev) if heap.prev else None
    return sorted(found)


def _cached(lib: Library, threads: list[Thread]) -> set[int]:
    """The chunks in all thread caches."""
    found: set[int] = set()
    now = lib.thread
    for thread in threads:
        lib.thread = thread
        if thread.tcache:
            found.update(mem2chunk(memory) for index in range(TCACHE_MAX_BINS) for memory in tcache_entries(lib, index))
    lib.thread = now
    return found


def walk_arena(lib: Library, av: Arena, threads: list[Thread]) -> Iterator[Block]:
    """The chunks of an arena by address. The two headers of a fence are one block of kind ``other``."""
    cached = _cached(lib, threads)
    for index in range(NFASTBINS):
        cached.update(av.chunks_in_fastbin(index))
    tcaches = {thread.tcache for thread in threads}
    for chunk in regions(lib, av):
        while True:
            size = lib.chunksize(chunk)
            if chunk == av.top:
                yield Block(chunk, size, "top", chunk2mem(chunk))
                break
            if size < MINSIZE:
                yield Block(chunk, 2 * CHUNK_HDR_SZ, "other")
                break
            if not aligned_OK(size):
                raise InvariantError(f"the chunk at {chunk:#x} has the size {size:#x}")
            if chunk2mem(chunk) in tcaches:
                state = "other"
            elif chunk in cached:
                state = "cached"
            else:
                state = "used" if lib.inuse(chunk) else "free"
            yield Block(chunk, size, state, chunk2mem(chunk))
            chunk += size


def check_arena(lib: Library, av: Arena, threads: list[Thread]) -> None:
    """Tags, bins and sums of one arena; raise InvariantError that says which is wrong, and where."""
    def must(holds: bool, text: str) -> None:
        if not holds:
            raise InvariantError(f"{av}: {text}")

    blocks = list(walk_arena(lib, av, threads))
    binned = _check_bins(lib, av)
    free = {block.address for block in blocks if block.state == "free"}
    must(free == set(binned), f"free chunks outside bins: {[hex(chunk) for chunk in free - set(binned)]}, "
                              f"in bins but not free: {[hex(chunk) for chunk in set(binned) - free]}")
    for below, above in zip(blocks, blocks[1:]):
        if below.end != above.address:
            continue                                        # another region
        must(lib.prev_inuse(above.address) == (below.state != "free"), f"{above}: its P flag is wrong after {below}")
        if below.state == "free":
            must(lib.prev_size(above.address) == below.size, f"{below}: its size is not repeated at its end")
            must(above.state not in ("free", "top"), f"{below} and {above} are free and not joined")
    must(lib.prev_inuse(av.top) or not blocks, "top follows a free chunk")
    if lib.is_main(av) and av.contiguous and len(regions(lib, av)) == 1:
        must(av.system_mem == blocks[-1].end - lib.mp.sbrk_base,
             f"system_mem is {av.system_mem:#x}, the heap has {blocks[-1].end - lib.mp.sbrk_base:#x} bytes")
    _check_caches(lib, av, threads, {block.address: block.size for block in blocks})


def _check_bins(lib: Library, av: Arena) -> dict[int, int]:
    """The chunks in bins with their sizes; each list is circular both ways, sorted, and in the right bin."""
    found: dict[int, int] = {}
    for index in range(1, NBINS):
        head, sizes = av.bin_at(index), []
        for chunk in av.chunks_in_bin(index):
            if chunk in found:
                raise InvariantError(f"{av}: {chunk:#x} is in bin {index} and in another place")
            if lib.bk(lib.fd(chunk)) != chunk or lib.fd(lib.bk(chunk)) != chunk:
                raise InvariantError(f"{av}: the neighbours of {chunk:#x} in bin {index} do not know it")
            size = found[chunk] = lib.chunksize(chunk)
            if index > 1 and bin_index(size) != index:
                raise InvariantError(f"{av}: {chunk:#x} of size {size} is in bin {index}")
            sizes.append(size)
        if index == 1 or in_smallbin_range(sizes[0] if sizes else 0):
            continue
        if sizes != sorted(sizes):
            raise InvariantError(f"{av}: large bin {index} is not sorted: {sizes}")
        if sizes:
            ring: list[int] = []
            chunk = lib.fd(head)
            while not ring or chunk != lib.fd(head):
                ring.append(lib.chunksize(chunk))
                if lib.bk_nextsize(lib.fd_nextsize(chunk)) != chunk or len(ring) > len(sizes):
                    raise InvariantError(f"{av}: the ring of sizes of bin {index} is broken at {chunk:#x}")
                chunk = lib.fd_nextsize(chunk)
            if ring != sorted(set(sizes), reverse=True):
                raise InvariantError(f"{av}: the ring of sizes of bin {index} is {ring}, its sizes are {sizes}")
        if sizes and not av.binmap(index >> 5) >> (index & 31) & 1:
            raise InvariantError(f"{av}: bin {index} holds chunks, the bin map denies it")
    return found


def _check_caches(lib: Library, av: Arena, threads: list[Thread], sizes: dict[int, int]) -> None:
    """Fastbins and thread caches hold chunks of their size, and as many as they say."""
    for index in range(NFASTBINS):
        for chunk in av.chunks_in_fastbin(index):
            if chunk not in sizes or fastbin_index(sizes[chunk]) != index:
                raise InvariantError(f"{av}: fastbin {index} holds {chunk:#x}, which is no chunk of its size")
    now = lib.thread
    for thread in threads:
        lib.thread = thread
        for index in range(TCACHE_MAX_BINS if thread.tcache else 0):
            entries = tcache_entries(lib, index)
            if len(entries) != tcache_count(lib, index):
                raise InvariantError(f"thread {thread.number}: cache bin {index} counts {tcache_count(lib, index)}, "
                                     f"its list has {len(entries)}")
            for chunk in map(mem2chunk, entries):
                if chunk in sizes and csize2tidx(sizes[chunk]) != index:
                    raise InvariantError(f"thread {thread.number}: cache bin {index} holds {chunk:#x} of size {sizes[chunk]}")
    lib.thread = now
