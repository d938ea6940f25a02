"""malloc's search: fastbin, small bin, the unsorted chunks, the large bins, top, the kernel, in this order."""

from __future__ import annotations

from mmsim.malloc.glibc.bins import ENDLESS, insert_sorted, insert_unsorted, malloc_consolidate, unlink_chunk
from mmsim.malloc.glibc.chunks import assertion, chunk2mem, malloc_printerr
from mmsim.malloc.glibc.layout import (
    CHUNK_HDR_SZ,
    MINSIZE,
    NBINS,
    PREV_INUSE,
    SIZE_BITS,
    aligned_OK,
    bin_index,
    checked_request2size,
    csize2tidx,
    fastbin_index,
    in_smallbin_range,
    protect_ptr,
    smallbin_index,
)
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.state import Arena
from mmsim.malloc.glibc.sysmalloc import sysmalloc
from mmsim.malloc.glibc.tcache import tcache_count, tcache_get, tcache_put
from mmsim.malloc.program import Hang
from mmsim.units import U64_MAX

__all__ = ["int_malloc"]

_MAX_ITERS = 10000
_BLOCKS = NBINS // 32


def int_malloc(lib: Library, av: Arena | None, request: int) -> int:
    """Find memory for a request in an arena (None: only a mapping of its own will do); the pointer, or 0 with ENOMEM.

    2.36: malloc/malloc.c, _int_malloc().
    """
    nb = checked_request2size(request)
    if not nb:
        lib.errno = "ENOMEM"
        return 0
    memory = sysmalloc(lib, nb, None) if av is None else _search(lib, av, nb)
    if memory:
        lib.alloc_perturb(memory, request)
    return memory


def _search(lib: Library, av: Arena, nb: int) -> int:
    """Everything in its order; the outer loop runs twice at most, if the fastbins turn out to be the last reserve."""
    if nb <= lib.mp.max_fast:
        memory = _from_fastbin(lib, av, nb)
        if memory:
            return memory
    if in_smallbin_range(nb):
        memory = _from_smallbin(lib, av, nb)
        if memory:
            return memory
    elif av.have_fastchunks:
        malloc_consolidate(lib, av)
    seen = 0
    while True:
        memory, seen = _from_unsorted(lib, av, nb, seen)
        memory = memory or _from_bins(lib, av, nb) or _from_top(lib, av, nb)
        if memory:
            return memory
        if not av.have_fastchunks:
            return sysmalloc(lib, nb, av)
        malloc_consolidate(lib, av)


def _cache_bin(lib: Library, nb: int) -> int:
    """The thread cache's bin for a chunk size, or -1."""
    index = csize2tidx(nb)
    return index if lib.thread.tcache and index < lib.mp.tcache_bins else -1


def _from_fastbin(lib: Library, av: Arena, nb: int) -> int:
    """The chunk that was freed last, of this size; the ones after it fill the thread cache."""
    index = fastbin_index(nb)
    victim = av.fastbin(index)
    if not victim:
        return 0
    if not aligned_OK(victim):
        malloc_printerr("malloc(): unaligned fastbin chunk detected 2")
    av.set_fastbin(index, protect_ptr(victim + 16, lib.fd(victim)))
    if fastbin_index(lib.chunksize(victim)) != index:
        malloc_printerr("malloc(): memory corruption (fast)")
    cache = _cache_bin(lib, nb)
    while cache >= 0 and tcache_count(lib, cache) < lib.mp.tcache_count:
        another = av.fastbin(index)
        if not another:
            break
        if not aligned_OK(another):
            malloc_printerr("malloc(): unaligned fastbin chunk detected 3")
        av.set_fastbin(index, protect_ptr(another + 16, lib.fd(another)))
        tcache_put(lib, another, cache)
    return chunk2mem(victim)


def _from_smallbin(lib: Library, av: Arena, nb: int) -> int:
    """The chunk that has been longest in the bin of exactly this size; the ones before it fill the thread cache."""
    head = av.bin_at(smallbin_index(nb))
    victim = lib.bk(head)
    if victim == head:
        return 0
    back = lib.bk(victim)
    if lib.fd(back) != victim:
        malloc_printerr("malloc(): smallbin double linked list corrupted")
    _take_last(lib, av, head, victim, back, nb)
    cache = _cache_bin(lib, nb)
    while cache >= 0 and tcache_count(lib, cache) < lib.mp.tcache_count:
        another = lib.bk(head)
        if another == head:
            break
        if another:
            _take_last(lib, av, head, another, lib.bk(another), nb)
            tcache_put(lib, another, cache)
    return chunk2mem(victim)


def _take_last(lib: Library, av: Arena, head: int, victim: int, back: int, size: int) -> None:
    lib.set_inuse_bit_at_offset(victim, size)
    lib.set_bk(head, back)
    lib.set_fd(back, head)
    if not lib.is_main(av):
        lib.set_non_main_arena(victim)


# -- the unsorted bin ----------------------------------------------------------------------------------------

def _check_unsorted(lib: Library, av: Arena, victim: int, size: int, back: int) -> None:
    """Is this chunk of the unsorted bin what it must be? Abort if not."""
    above = victim + size & U64_MAX
    system_mem = av.system_mem
    if size <= CHUNK_HDR_SZ or size > system_mem:
        malloc_printerr("malloc(): invalid size (unsorted)")
    if not CHUNK_HDR_SZ <= lib.chunksize_nomask(above) <= system_mem:
        malloc_printerr("malloc(): invalid next size (unsorted)")
    if lib.prev_size(above) & ~SIZE_BITS != size:
        malloc_printerr("malloc(): mismatching next->prev_size (unsorted)")
    if lib.fd(back) != victim or lib.fd(victim) != av.unsorted:
        malloc_printerr("malloc(): unsorted double linked list corrupted")
    if lib.prev_inuse(above):
        malloc_printerr("malloc(): invalid next->prev_inuse (unsorted)")


def _from_unsorted(lib: Library, av: Arena, nb: int, seen: int) -> tuple[int, int]:
    """Sort the unsorted chunks into their bins, oldest first, unless one fits exactly; (memory or 0, chunks seen).

    The remainder of the last split, if it is alone, is split again for a small request: neighbours in time become neighbours
    in memory. Exact fits fill the thread cache first.
    """
    head, cache, cached, binned = av.unsorted, _cache_bin(lib, nb), False, 0
    while binned < _MAX_ITERS:
        victim = lib.bk(head)
        if victim == head:
            break
        back = lib.bk(victim)
        size = lib.chunksize(victim)
        _check_unsorted(lib, av, victim, size, back)
        if in_smallbin_range(nb) and back == head and victim == av.last_remainder and size > nb + MINSIZE:
            return _split_last_remainder(lib, av, victim, nb, size - nb), seen
        if lib.fd(back) != victim:
            malloc_printerr("malloc(): corrupted unsorted chunks 3")
        lib.set_bk(head, back)
        lib.set_fd(back, head)
        if size == nb:
            lib.set_inuse_bit_at_offset(victim, size)
            if not lib.is_main(av):
                lib.set_non_main_arena(victim)
            if cache < 0 or tcache_count(lib, cache) >= lib.mp.tcache_count:
                return chunk2mem(victim), seen
            tcache_put(lib, victim, cache)
            cached = True
            continue
        insert_sorted(lib, av, victim, size)
        binned, seen = binned + 1, seen + 1
        if cached and 0 < lib.mp.tcache_unsorted_limit < seen:
            break
    return tcache_get(lib, cache) if cached else 0, seen


def _split_last_remainder(lib: Library, av: Arena, victim: int, nb: int, left: int) -> int:
    head, remainder = av.unsorted, victim + nb
    lib.set_fd(head, remainder)
    lib.set_bk(head, remainder)
    av.last_remainder = remainder
    lib.set_fd(remainder, head)
    lib.set_bk(remainder, head)
    if not in_smallbin_range(left):
        lib.set_fd_nextsize(remainder, 0)
        lib.set_bk_nextsize(remainder, 0)
    _set_sizes(lib, av, victim, nb, left)
    return chunk2mem(victim)


def _set_sizes(lib: Library, av: Arena, victim: int, nb: int, left: int) -> None:
    """The headers of a chunk and of the free remainder that was cut off it."""
    lib.set_head(victim, nb | PREV_INUSE | lib.arena_flag(av))
    lib.set_head(victim + nb, left | PREV_INUSE)
    lib.set_foot(victim + nb, left)
    if lib.trace.enabled:
        lib.trace.emit("mmsim:split", chunk=victim, size=nb, rest=left)


# -- the sorted bins -----------------------------------------------------------------------------------------

def _from_bins(lib: Library, av: Arena, nb: int) -> int:
    """The smallest chunk that fits, or 0: in a large request's own bin, then in the next bin above that holds any."""
    index = bin_index(nb)
    if not in_smallbin_range(nb):
        head = av.bin_at(index)
        victim = lib.fd(head)
        if victim != head and lib.chunksize_nomask(victim) >= nb:
            victim = lib.bk_nextsize(victim)                # from the smallest size upwards
            steps = 0
            while lib.chunksize(victim) < nb:
                victim = lib.bk_nextsize(victim)
                steps += 1
                if steps > ENDLESS:
                    raise Hang("_int_malloc() goes round a ring of sizes")
            # The first of a size is on the ring: take its second, if there is one.
            if victim != lib.bk(head) and lib.chunksize_nomask(victim) == lib.chunksize_nomask(lib.fd(victim)):
                victim = lib.fd(victim)
            return _carve(lib, av, victim, nb, "malloc(): corrupted unsorted chunks")
    index += 1
    block = index >> 5
    bits = av.binmap(block) & -1 << (index & 31)
    while True:
        while not bits:
            block += 1
            if block >= _BLOCKS:
                return 0
            bits = av.binmap(block)
        lowest = bits & -bits
        head = av.bin_at(block * 32 + lowest.bit_length() - 1)
        victim = lib.bk(head)
        if victim == head:                                  # nothing there any more: that is noticed only now
            av.set_binmap(block, av.binmap(block) & ~lowest)
            bits &= ~lowest
            continue
        assertion(lib.chunksize(victim) >= nb, "_int_malloc", "(unsigned long) (size) >= (unsigned long) (nb)")
        return _carve(lib, av, victim, nb, "malloc(): corrupted unsorted chunks 2", in_smallbin_range(nb))


def _carve(lib: Library, av: Arena, victim: int, nb: int, corrupt: str, remember: bool = False) -> int:
    """Take a chunk out of its bin, for ``nb`` bytes; the rest becomes an unsorted chunk if it can be one."""
    left = lib.chunksize(victim) - nb
    unlink_chunk(lib, victim)
    if left < MINSIZE:
        lib.set_inuse_bit_at_offset(victim, nb + left)
        if not lib.is_main(av):
            lib.set_non_main_arena(victim)
    else:
        insert_unsorted(lib, av, victim + nb, left, corrupt)
        if remember:
            av.last_remainder = victim + nb
        _set_sizes(lib, av, victim, nb, left)
    return chunk2mem(victim)


def _from_top(lib: Library, av: Arena, nb: int) -> int:
    """The beginning of top, which must keep 32 bytes; 0 if it is too short."""
    victim = av.top
    size = lib.chunksize(victim)
    if size > av.system_mem:
        malloc_printerr("malloc(): corrupted top size")
    if size < nb + MINSIZE:
        return 0
    av.top = victim + nb
    lib.set_head(victim, nb | PREV_INUSE | lib.arena_flag(av))
    lib.set_head(victim + nb, size - nb | PREV_INUSE)
    if lib.trace.enabled:
        lib.trace.emit("mmsim:split", chunk=victim, size=nb, rest=size - nb)
    return chunk2mem(victim)
