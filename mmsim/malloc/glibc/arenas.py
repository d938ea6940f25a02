"""Arenas of threads: each thread uses its own as long as there may be more of them, 8 a core.

2.36: malloc/arena.c. Threads of the model take turns, so no lock is ever found taken.
"""

from __future__ import annotations

from mmsim.malloc.glibc.heaps import SIZEOF_HEAP_INFO, new_heap
from mmsim.malloc.glibc.layout import CHUNK_HDR_SZ, MALLOC_ALIGN_MASK, MALLOC_ALIGNMENT, PREV_INUSE
from mmsim.malloc.glibc.library import Library
from mmsim.malloc.glibc.state import SIZEOF_MALLOC_STATE, Arena

__all__ = ["arena_get", "arena_get_retry", "arena_thread_freeres", "current_arena", "leave_arenas"]


def current_arena(lib: Library, size: int) -> Arena | None:
    """The arena to allocate from: the main one in a process that never had a second thread, else the thread's."""
    return lib.main_arena if lib.single_thread else arena_get(lib, size)


def arena_get(lib: Library, size: int) -> Arena | None:
    """The thread's arena; one is found for it if it has none yet. 2.36: malloc/arena.c, arena_get()."""
    return lib.thread.arena or arena_get2(lib, size, None)


def arena_get2(lib: Library, size: int, avoid: Arena | None) -> Arena | None:
    """An arena that a thread left behind, or a new one, or, if there are enough, the next in turn.

    2.36: malloc/arena.c, arena_get2(); the limit is 8 arenas a core.
    """
    arena = _get_free_list(lib)
    if arena is not None:
        return arena
    if not lib.narenas_limit:
        if lib.mp.arena_max:
            lib.narenas_limit = lib.mp.arena_max
        elif lib.narenas > lib.mp.arena_test:
            lib.narenas_limit = 8 * lib.cores
    # A limit of 0 (not yet known) is none: in C it underflows.
    if lib.narenas_limit and lib.narenas > lib.narenas_limit - 1:
        return _reused_arena(lib, avoid)
    lib.narenas += 1
    arena = _int_new_arena(lib, size)
    if arena is None:
        lib.narenas -= 1
    return arena


def arena_get_retry(lib: Library, av: Arena, size: int) -> Arena | None:
    """Another arena after one could not serve a request. 2.36: malloc/arena.c, arena_get_retry()."""
    return lib.main_arena if not lib.is_main(av) else arena_get2(lib, size, av)


def _attach(lib: Library, arena: Arena) -> None:
    """The thread changes arenas. 2.36: malloc/arena.c, detach_arena()."""
    if lib.thread.arena is not None:
        lib.thread.arena.attached_threads -= 1
    lib.thread.arena = arena


def _int_new_arena(lib: Library, size: int) -> Arena | None:
    """Make an arena at the start of a new heap, for a first request of ``size`` bytes.

    2.36: malloc/arena.c, _int_new_arena().
    """
    overhead = SIZEOF_HEAP_INFO + SIZEOF_MALLOC_STATE + MALLOC_ALIGNMENT
    heap = new_heap(lib, size + overhead, lib.mp.top_pad) or new_heap(lib, overhead, lib.mp.top_pad)
    if heap is None:
        return None
    arena = Arena(lib, heap.address + SIZEOF_HEAP_INFO)
    heap.ar_ptr = arena.address
    arena.initialise(main=False)
    arena.attached_threads = 1
    arena.system_mem = arena.max_system_mem = heap.size
    top = arena.address + SIZEOF_MALLOC_STATE
    top += -(top + CHUNK_HDR_SZ) & MALLOC_ALIGN_MASK
    arena.top = top
    lib.set_head(top, heap.end - top | PREV_INUSE)
    arena.next = lib.main_arena.next
    lib.main_arena.next = arena.address
    _attach(lib, arena)
    return arena


def _get_free_list(lib: Library) -> Arena | None:
    """An arena whose threads have all ended (2.36: malloc/arena.c, get_free_list())."""
    if not lib.free_list:
        return None
    arena = lib.arena(lib.free_list)
    lib.free_list = arena.next_free
    arena.attached_threads = 1
    _attach(lib, arena)
    return arena


def _reused_arena(lib: Library, avoid: Arena | None) -> Arena:
    """The next arena in turn (2.36: malloc/arena.c, reused_arena()). The one to avoid is locked, and so passed over."""
    arena = lib.arena(lib.next_to_use) if lib.next_to_use else lib.main_arena
    if avoid is not None and arena == avoid:
        arena = lib.arena(arena.next)
    if lib.thread.arena is not None:
        lib.thread.arena.attached_threads -= 1
    previous, address = 0, lib.free_list
    while address:                              # it may be on the list of those that nobody uses
        if address == arena.address:
            if previous:
                lib.arena(previous).next_free = arena.next_free
            else:
                lib.free_list = arena.next_free
            break
        previous, address = address, lib.arena(address).next_free
    arena.attached_threads += 1
    lib.thread.arena = arena
    lib.next_to_use = arena.next
    return arena


def arena_thread_freeres(lib: Library) -> None:
    """A thread ends: an arena that nobody uses any more goes to the list from which the next thread takes.

    2.36: malloc/arena.c, __malloc_arena_thread_freeres(), without the thread cache, which its caller empties.
    """
    arena, lib.thread.arena = lib.thread.arena, None
    if arena is not None:
        arena.attached_threads -= 1
        if arena.attached_threads == 0:
            arena.next_free = lib.free_list
            lib.free_list = arena.address


def leave_arenas(lib: Library) -> None:
    """Threads did not come along into a forked child: their arenas are free for threads to come.

    2.36: malloc/arena.c, __malloc_fork_unlock_child().
    """
    lib.free_list = 0
    for arena in lib.arenas():
        arena.attached_threads = int(arena == lib.thread.arena)
        if arena != lib.thread.arena:
            arena.next_free = lib.free_list
            lib.free_list = arena.address
