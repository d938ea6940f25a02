"""Free chunks in their bins: taking one out, sorting one in, and gathering what lies in the fastbins."""

from __future__ import annotations

from mmsim.malloc.glibc.chunks import assertion, malloc_printerr
from mmsim.malloc.glibc.layout import (
    NFASTBINS,
    PREV_INUSE,
    aligned_OK,
    fastbin_index,
    in_smallbin_range,
    largebin_index,
    protect_ptr,
    smallbin_index,
)
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.state import Arena
from mmsim.malloc.program import Hang
from mmsim.units import U64_MAX, u64

__all__ = ["ENDLESS", "insert_sorted", "insert_unsorted", "malloc_consolidate", "unlink_chunk"]

#: More steps than any sound list of chunks has: the real library would never return.
ENDLESS = 1 << 17


def unlink_chunk(lib: Library, chunk: int) -> None:
    """Take a chunk out of its bin, wherever in the list it is; check that its neighbours agree.

    2.36: malloc/malloc.c, unlink_chunk().
    """
    if lib.chunksize(chunk) != lib.prev_size(lib.next_chunk(chunk)):
        malloc_printerr("corrupted size vs. prev_size")
    fd, bk = lib.fd(chunk), lib.bk(chunk)
    if lib.bk(fd) != chunk or lib.fd(bk) != chunk:
        malloc_printerr("corrupted double-linked list")
    lib.set_bk(fd, bk)
    lib.set_fd(bk, fd)
    if in_smallbin_range(lib.chunksize_nomask(chunk)) or not lib.fd_nextsize(chunk):
        return
    smaller, larger = lib.fd_nextsize(chunk), lib.bk_nextsize(chunk)
    if lib.bk_nextsize(smaller) != chunk or lib.fd_nextsize(larger) != chunk:
        malloc_printerr("corrupted double-linked list (not small)")
    if lib.fd_nextsize(fd):
        lib.set_bk_nextsize(smaller, larger)
        lib.set_fd_nextsize(larger, smaller)
    elif smaller == chunk:                      # the only size of the bin: the next chunk of this size stands for it
        lib.set_fd_nextsize(fd, fd)
        lib.set_bk_nextsize(fd, fd)
    else:
        lib.set_fd_nextsize(fd, smaller)
        lib.set_bk_nextsize(fd, larger)
        lib.set_bk_nextsize(smaller, fd)
        lib.set_fd_nextsize(larger, fd)


def insert_unsorted(lib: Library, av: Arena, chunk: int, size: int, corrupt: str = "") -> None:
    """Put a free chunk in front of the unsorted bin; abort with ``corrupt`` if the list's first chunk does not agree."""
    head = av.unsorted
    first = lib.fd(head)
    if corrupt and lib.bk(first) != head:
        malloc_printerr(corrupt)
    lib.set_fd(chunk, first)
    lib.set_bk(chunk, head)
    if not in_smallbin_range(size):
        lib.set_fd_nextsize(chunk, 0)
        lib.set_bk_nextsize(chunk, 0)
    lib.set_fd(head, chunk)
    lib.set_bk(first, chunk)


def insert_sorted(lib: Library, av: Arena, victim: int, size: int) -> None:
    """Put a chunk from the unsorted bin into the bin of its size.

    A small bin is a queue. A large one is sorted, largest first; the first chunk of each size is also on a ring of sizes
    (``fd_nextsize``), so that a search skips equals. 2.36: malloc/malloc.c, _int_malloc().
    """
    if in_smallbin_range(size):
        index = smallbin_index(size)
        back = av.bin_at(index)
        forward = lib.fd(back)
    else:
        index = largebin_index(size)
        back, forward = _place_in_largebin(lib, av.bin_at(index), victim, size)
    av.mark_bin(index)
    lib.set_bk(victim, back)
    lib.set_fd(victim, forward)
    lib.set_bk(forward, victim)
    lib.set_fd(back, victim)


def _place_in_largebin(lib: Library, head: int, victim: int, size: int) -> tuple[int, int]:
    """Between which two chunks of its bin a large chunk belongs; put it on the ring of sizes if it is the first of one."""
    first = lib.fd(head)
    if first == head:
        lib.set_fd_nextsize(victim, victim)
        lib.set_bk_nextsize(victim, victim)
        return head, head
    size |= PREV_INUSE                          # as in every free chunk's size field, so that plain words compare
    last = lib.bk(head)
    assertion(lib.in_main_arena(last), "_int_malloc", "chunk_main_arena (bck->bk)")
    if size < lib.chunksize_nomask(last):       # smaller than all
        smallest = lib.bk_nextsize(first)
        lib.set_fd_nextsize(victim, first)
        lib.set_bk_nextsize(victim, smallest)
        lib.set_fd_nextsize(smallest, victim)
        lib.set_bk_nextsize(first, victim)
        return last, head
    forward = first
    assertion(lib.in_main_arena(forward), "_int_malloc", "chunk_main_arena (fwd)")
    steps = 0
    while size < lib.chunksize_nomask(forward):
        forward = lib.fd_nextsize(forward)
        assertion(lib.in_main_arena(forward), "_int_malloc", "chunk_main_arena (fwd)")
        steps += 1
        if steps > ENDLESS:
            raise Hang("_int_malloc() goes round a ring of sizes")
    if size == lib.chunksize_nomask(forward):   # second of its size, so that the ring can stay
        forward = lib.fd(forward)
    else:
        larger = lib.bk_nextsize(forward)
        lib.set_fd_nextsize(victim, forward)
        lib.set_bk_nextsize(victim, larger)
        if lib.fd_nextsize(larger) != forward:
            malloc_printerr("malloc(): largebin double linked list corrupted (nextsize)")
        lib.set_bk_nextsize(forward, victim)
        lib.set_fd_nextsize(larger, victim)
    back = lib.bk(forward)
    if lib.fd(back) != forward:
        malloc_printerr("malloc(): largebin double linked list corrupted (bk)")
    return back, forward


def malloc_consolidate(lib: Library, av: Arena) -> None:
    """Empty the fastbins: join each chunk with its free neighbours, and put it into the unsorted bin or into top.

    2.36: malloc/malloc.c, malloc_consolidate().
    """
    av.have_fastchunks = 0
    for index in range(NFASTBINS):
        chunk = av.fastbin(index)
        if chunk:
            av.set_fastbin(index, 0)
        while chunk:
            if not aligned_OK(chunk):
                malloc_printerr("malloc_consolidate(): unaligned fastbin chunk detected")
            if fastbin_index(lib.chunksize(chunk)) != index:
                malloc_printerr("malloc_consolidate(): invalid chunk size")
            following = protect_ptr(chunk + 16, lib.fd(chunk))
            _consolidate_one(lib, av, chunk)
            chunk = following


def _consolidate_one(lib: Library, av: Arena, chunk: int) -> None:
    size = lib.chunksize(chunk)
    above = u64(chunk + size)
    above_size = lib.chunksize(above)
    if not lib.prev_inuse(chunk):
        below_size = lib.prev_size(chunk)
        size = u64(size + below_size)
        chunk = chunk - below_size & U64_MAX
        if lib.chunksize(chunk) != below_size:
            malloc_printerr("corrupted size vs. prev_size in fastbins")
        unlink_chunk(lib, chunk)
    if above == av.top:
        lib.set_head(chunk, size + above_size | PREV_INUSE)
        av.top = chunk
        return
    if lib.inuse_bit_at_offset(above, above_size):
        lib.clear_inuse_bit_at_offset(above, 0)
    else:
        size = u64(size + above_size)
        unlink_chunk(lib, above)
    insert_unsorted(lib, av, chunk, size)
    lib.set_head(chunk, size | PREV_INUSE)
    lib.set_foot(chunk, size)
