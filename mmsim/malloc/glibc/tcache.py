"""The thread cache: up to seven freed chunks of each of 64 sizes, taken and returned without a look at any arena.

struct tcache_perthread_struct lies in the heap, in a chunk of 656 bytes that is the first of most programs: 64 counts of two
bytes and 64 pointers. A cached chunk holds the next one's address (masked) in its first word, and in its second a key by
which a second free is noticed.  2.36: malloc/malloc.c, tcache_put(), tcache_get() and _int_free().
"""

from __future__ import annotations

from collections.abc import Callable

from mmsim.malloc.glibc.chunks import chunk2mem, malloc_printerr
from mmsim.malloc.glibc.layout import TCACHE_MAX_BINS, aligned_OK, protect_ptr
from mmsim.malloc.glibc.library import Library

__all__ = ["SIZEOF_TCACHE", "tcache_count", "tcache_entries", "tcache_free", "tcache_get", "tcache_next", "tcache_put",
           "tcache_set_entry", "tcache_thread_shutdown"]

SIZEOF_TCACHE = TCACHE_MAX_BINS * (2 + 8)
_ENTRIES = TCACHE_MAX_BINS * 2


def tcache_count(lib: Library, index: int) -> int:
    """How many chunks a bin says it holds."""
    return lib.load(lib.thread.tcache + (index >> 2) * 8) >> 16 * (index & 3) & 0xFFFF


def _add(lib: Library, index: int, change: int) -> None:
    address, shift = lib.thread.tcache + (index >> 2) * 8, 16 * (index & 3)
    word = lib.load(address)
    count = (word >> shift) + change & 0xFFFF
    lib.store(address, word & ~(0xFFFF << shift) | count << shift)


def _entry(lib: Library, index: int) -> int:
    return lib.load(lib.thread.tcache + _ENTRIES + 8 * index)


def tcache_set_entry(lib: Library, index: int, memory: int) -> None:
    """Make ``memory`` the first chunk of a bin."""
    lib.store(lib.thread.tcache + _ENTRIES + 8 * index, memory)


def tcache_next(lib: Library, memory: int) -> int:
    """The chunk after a cached one: its first word, revealed."""
    return protect_ptr(memory, lib.load(memory))


def tcache_put(lib: Library, chunk: int, index: int) -> None:
    """Cache a chunk; the bin must have room. 2.36: malloc/malloc.c, tcache_put()."""
    memory = chunk2mem(chunk)
    lib.store(memory + 8, lib.tcache_key)
    lib.store(memory, protect_ptr(memory, _entry(lib, index)))
    tcache_set_entry(lib, index, memory)
    _add(lib, index, 1)


def tcache_get(lib: Library, index: int) -> int:
    """Take the chunk that was cached last; the bin must not be empty. 2.36: malloc/malloc.c, tcache_get()."""
    memory = _entry(lib, index)
    if not aligned_OK(memory):
        malloc_printerr("malloc(): unaligned tcache chunk detected")
    tcache_set_entry(lib, index, tcache_next(lib, memory))
    _add(lib, index, -1)
    lib.store(memory + 8, 0)
    return memory


def tcache_free(lib: Library, chunk: int, index: int) -> bool:
    """Cache a chunk that is freed, if there is room; abort if it is cached already.

    The key alone proves nothing, so the list is searched when it is found. 2.36: malloc/malloc.c, _int_free().
    """
    memory = chunk2mem(chunk)
    if lib.load(memory + 8) == lib.tcache_key:
        entry, count = _entry(lib, index), 0
        while entry:
            if count >= lib.mp.tcache_count:
                malloc_printerr("free(): too many chunks detected in tcache")
            if not aligned_OK(entry):
                malloc_printerr("free(): unaligned chunk detected in tcache 2")
            if entry == memory:
                malloc_printerr("free(): double free detected in tcache 2")
            entry, count = tcache_next(lib, entry), count + 1
    if tcache_count(lib, index) < lib.mp.tcache_count:
        tcache_put(lib, chunk, index)
        return True
    return False


def tcache_entries(lib: Library, index: int) -> list[int]:
    """The chunks' memory in a bin, the next to be taken first; as long as the counts say, to survive a loop."""
    found: list[int] = []
    memory = _entry(lib, index)
    while memory and len(found) <= tcache_count(lib, index):
        found.append(memory)
        memory = tcache_next(lib, memory)
    return found


def tcache_thread_shutdown(lib: Library, free: Callable[[int], None]) -> None:
    """The thread ends: free what it has cached, chunk by chunk, and the cache itself.

    2.36: malloc/malloc.c, tcache_thread_shutdown().
    """
    thread, cache = lib.thread, lib.thread.tcache
    cached = [memory for index in range(TCACHE_MAX_BINS) for memory in tcache_entries(lib, index)] if cache else []
    thread.tcache, thread.tcache_shutting_down = 0, True
    for memory in cached:
        if not aligned_OK(memory):
            malloc_printerr("tcache_thread_shutdown(): unaligned tcache chunk detected")
        free(memory)
    free(cache)
