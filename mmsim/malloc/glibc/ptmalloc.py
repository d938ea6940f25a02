"""malloc, free and their family, as a program calls them.

    >>> from mmsim.malloc.program import PlainProgram
    >>> program = PlainProgram()
    >>> libc = Ptmalloc(program)
    >>> memory = libc.malloc(24)
    >>> memory - program.mm.start_brk, libc.usable_size(memory), libc.usable_size(libc.malloc(25))
    (672, 24, 40)
    >>> libc.free(memory)
    >>> libc.free(memory)
    Traceback (most recent call last):
    mmsim.malloc.program.Abort: free(): double free detected in tcache 2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mmsim.errors import InputError
from mmsim.malloc.allocator import Allocator, Block
from mmsim.malloc.glibc.arenas import arena_get, arena_get_retry, arena_thread_freeres, current_arena, leave_arenas
from mmsim.malloc.glibc.bins import malloc_consolidate
from mmsim.malloc.glibc.check import check_arena, walk_arena
from mmsim.malloc.glibc.chunks import assertion, chunk2mem, malloc_printerr, mem2chunk
from mmsim.malloc.glibc.heaps import heap_for
from mmsim.malloc.glibc.info import MallInfo2, int_mallinfo
from mmsim.malloc.glibc.int_free import int_free
from mmsim.malloc.glibc.int_malloc import int_malloc
from mmsim.malloc.glibc.layout import (
    MALLOC_ALIGNMENT,
    MINSIZE,
    PTRDIFF_MAX,
    SIZE_SZ,
    aligned_OK,
    checked_request2size,
    csize2tidx,
)
from mmsim.malloc.glibc.library import Library, Thread
from mmsim.malloc.glibc.mapped import adjust_thresholds, mremap_chunk, munmap_chunk
from mmsim.malloc.glibc.memalign import int_memalign
from mmsim.malloc.glibc.realloc import int_realloc
from mmsim.malloc.glibc.state import SIZEOF_MALLOC_STATE, Arena
from mmsim.malloc.glibc.tcache import SIZEOF_TCACHE, tcache_count, tcache_get, tcache_thread_shutdown
from mmsim.malloc.glibc.trim import mtrim
from mmsim.malloc.program import Program, map_anonymous
from mmsim.units import PAGE_SIZE, U64_MAX, align_up, u64

__all__ = ["Ptmalloc"]

_OF_THIS_ARENA = "!victim || chunk_is_mmapped (mem2chunk (victim)) || &main_arena == arena_for_chunk (mem2chunk (victim))"


class Ptmalloc(Library, Allocator):
    """glibc's malloc in one process.

    ``main_arena`` is where the library's data lie (two pages are mapped for them if it is not given), ``tunables`` what
    GLIBC_TUNABLES sets, by name without ``glibc.malloc.``. Left out: memory tagging, huge pages, hooks, locks.
    """

    def __init__(self, program: Program, main_arena: int = 0, tunables: Mapping[str, int] | None = None, cores: int = 1,
                 tcache_key: int = 0x9E3779B97F4A7C15):
        if not main_arena:
            main_arena = map_anonymous(program, align_up(SIZEOF_MALLOC_STATE, PAGE_SIZE))
            if main_arena < 0:
                raise InputError("the program has no room for the library's data")
        super().__init__(program, main_arena, cores, tcache_key)
        self.threads = [self.thread]
        self.initialised = False
        self.tunables = dict(tunables or {})
        for name, value in self.tunables.items():
            self.mp.set(name, value)

    def _ptmalloc_init(self) -> None:
        """At the first call of any function. 2.36: malloc/arena.c, ptmalloc_init()."""
        self.initialised = True
        self.main_arena.next = self.main_arena.address
        self.main_arena.attached_threads = 1
        self.main_arena.initialise(main=True)
        self.thread.arena = self.main_arena

    def _tcache_init(self) -> None:
        """Give the thread its cache: 640 bytes from its arena. 2.36: malloc/malloc.c, tcache_init()."""
        if self.thread.tcache_shutting_down:
            return
        arena = arena_get(self, SIZEOF_TCACHE)
        memory = int_malloc(self, arena, SIZEOF_TCACHE)
        if not memory and arena is not None:
            memory = int_malloc(self, arena_get_retry(self, arena, SIZEOF_TCACHE), SIZEOF_TCACHE)
        if memory:
            self.program.fill(memory, SIZEOF_TCACHE)
            self.thread.tcache = memory

    def _begin(self, tcache: bool = True) -> None:
        if not self.initialised:
            self._ptmalloc_init()
        if tcache and not self.thread.tcache:
            self._tcache_init()

    # -- malloc and free ---------------------------------------------------------------------------------------

    def malloc(self, size: int) -> int:
        """Memory for ``size`` bytes. 2.36: malloc/malloc.c, __libc_malloc()."""
        size = u64(size)
        self._begin(tcache=False)
        nb = checked_request2size(size)
        if not nb:
            self.errno = "ENOMEM"
            return 0
        if not self.thread.tcache:
            self._tcache_init()
        index = csize2tidx(nb)
        if index < self.mp.tcache_bins and self.thread.tcache and tcache_count(self, index) > 0:
            memory = tcache_get(self, index)
        else:
            memory = self._allocate(size)
        if self.trace.enabled:
            self.trace.emit("mmsim:malloc", size=size, memory=memory)
        return memory

    def _allocate(self, size: int) -> int:
        """Past the thread cache; with several threads a second arena is tried before giving up."""
        arena = current_arena(self, size)
        memory = int_malloc(self, arena, size)
        if not memory and arena is not None and not self.single_thread:
            arena = arena_get_retry(self, arena, size)
            memory = int_malloc(self, arena, size)
        self._check_arena_of(memory, "__libc_malloc")
        return memory

    def _check_arena_of(self, memory: int, function: str) -> None:
        if memory and self.single_thread:
            chunk = mem2chunk(memory)
            assertion(self.is_mmapped(chunk) or self.is_main(self.arena_for_chunk(chunk)), function, _OF_THIS_ARENA)

    def free(self, memory: int) -> None:
        """Give memory back. 2.36: malloc/malloc.c, __libc_free()."""
        memory = u64(memory)
        if not memory:
            return
        if self.trace.enabled:
            self.trace.emit("mmsim:free", memory=memory)
        chunk = mem2chunk(memory)
        if self.is_mmapped(chunk):
            adjust_thresholds(self, chunk)
            munmap_chunk(self, chunk)
        else:
            self._begin()
            int_free(self, self.arena_for_chunk(chunk), chunk, False)

    def calloc(self, count: int, size: int) -> int:
        """Zeroed memory for an array. It never comes from the thread cache, and what the kernel gave for this very request is
        not cleared again: Linux builds glibc with MORECORE_CLEARS=2, for what sbrk() returns is always fresh.

        2.36: malloc/malloc.c, __libc_calloc(); sysdeps/unix/sysv/linux/Makefile.
        """
        count, size = u64(count), u64(size)
        total = count * size
        if total > PTRDIFF_MAX:
            self.errno = "ENOMEM"
            return 0
        self._begin()
        arena = current_arena(self, total)
        old_top = used_top = 0
        if arena is not None:
            old_top, used_top = arena.top, self.chunksize(arena.top)
            if not self.is_main(arena):
                heap = heap_for(self, old_top)
                used_top = max(used_top, heap.address + heap.mprotect_size - old_top)
        memory = int_malloc(self, arena, total)
        if not memory and arena is not None and not self.single_thread:
            arena = arena_get_retry(self, arena, total)
            memory = int_malloc(self, arena, total)
        if not memory:
            return 0
        chunk = mem2chunk(memory)
        self._check_arena_of(memory, "__libc_calloc")
        if self.is_mmapped(chunk):
            if self.mp.perturb_byte:
                self.program.fill(memory, total)
        else:
            dirty = self.chunksize(chunk)
            if not self.mp.perturb_byte and chunk == old_top and dirty > used_top:
                dirty = used_top
            dirty = u64(dirty - SIZE_SZ)                # a corrupted size may be smaller: then to the end of all memory
            assertion(dirty >> 3 >= 3, "__libc_calloc", "nclears >= 3")
            self.program.fill(memory, dirty)
        if self.trace.enabled:
            self.trace.emit("mmsim:malloc", size=total, memory=memory)
        return memory

    def realloc(self, memory: int, size: int) -> int:
        """Another size, maybe at another place. 2.36: malloc/malloc.c, __libc_realloc()."""
        memory, size = u64(memory), u64(size)
        self._begin(tcache=False)
        if not size and memory:
            self.free(memory)
            return 0
        if not memory:
            return self.malloc(size)
        chunk = mem2chunk(memory)
        old_size = self.chunksize(chunk)
        mapped = self.is_mmapped(chunk)
        arena: Arena | None = None
        if not mapped:
            self._begin()
            arena = self.arena_for_chunk(chunk)
        if chunk > u64(-old_size) or not aligned_OK(chunk):
            malloc_printerr("realloc(): invalid pointer")
        nb = checked_request2size(size)
        if not nb:
            self.errno = "ENOMEM"
            return 0
        if arena is None:
            new = self._realloc_mapped(chunk, old_size, nb, size)
        else:
            new = int_realloc(self, arena, chunk, old_size, nb)
            if not new and not self.single_thread:
                new = self.malloc(size)
                if new:
                    self.program.copy(new, memory, self.memsize(chunk))
                    int_free(self, arena, chunk, False)
        if self.trace.enabled:
            self.trace.emit("mmsim:realloc", old=memory, size=size, memory=new)
        return new

    def _realloc_mapped(self, chunk: int, old_size: int, nb: int, size: int) -> int:
        moved = mremap_chunk(self, chunk, nb)
        if moved:
            return chunk2mem(moved)
        if old_size - SIZE_SZ >= nb:
            return chunk2mem(chunk)
        new = self.malloc(size)
        if new:
            self.program.copy(new, chunk2mem(chunk), old_size - 2 * SIZE_SZ)
            munmap_chunk(self, chunk)
        return new

    # -- aligned memory ----------------------------------------------------------------------------------------

    def memalign(self, alignment: int, size: int) -> int:
        """Memory at a multiple of ``alignment``, which is rounded up to a power of two.

        2.36: malloc/malloc.c, _mid_memalign(). aligned_alloc() is the same function there.
        """
        alignment, size = u64(alignment), u64(size)
        self._begin(tcache=False)
        if alignment <= MALLOC_ALIGNMENT:
            return self.malloc(size)
        alignment = max(alignment, MINSIZE)
        if alignment > U64_MAX // 2 + 1:
            self.errno = "EINVAL"
            return 0
        alignment = 1 << (alignment - 1).bit_length()
        arena = current_arena(self, u64(size + alignment + MINSIZE))
        memory = int_memalign(self, arena, alignment, size)
        if not memory and arena is not None and not self.single_thread:
            memory = int_memalign(self, arena_get_retry(self, arena, size), alignment, size)
        if self.trace.enabled:
            self.trace.emit("mmsim:malloc", size=size, memory=memory)
        return memory

    aligned_alloc = memalign

    def posix_memalign(self, alignment: int, size: int) -> tuple[str, int]:
        """The error's name, or empty, and the memory. 2.36: malloc/malloc.c, __posix_memalign()."""
        if not alignment or alignment % 8 or alignment & alignment - 1:
            return "EINVAL", 0
        memory = self.memalign(alignment, size)
        return ("", memory) if memory else ("ENOMEM", 0)

    def valloc(self, size: int) -> int:
        """Memory at the start of a page (2.36: malloc/malloc.c, __libc_valloc())."""
        return self.memalign(PAGE_SIZE, size)

    def pvalloc(self, size: int) -> int:
        """Whole pages (2.36: malloc/malloc.c, __libc_pvalloc())."""
        rounded = align_up(u64(size), PAGE_SIZE)
        if rounded > U64_MAX:
            self.errno = "ENOMEM"
            return 0
        return self.memalign(PAGE_SIZE, rounded)

    # -- questions and settings --------------------------------------------------------------------------------

    def usable_size(self, memory: int) -> int:
        """malloc_usable_size(). 2.36: malloc/malloc.c, musable()."""
        if not memory:
            return 0
        chunk = mem2chunk(memory)
        if self.is_mmapped(chunk):
            return self.chunksize(chunk) - 2 * SIZE_SZ
        return self.memsize(chunk) if self.inuse(chunk) else 0

    def malloc_trim(self, pad: int = 0) -> int:
        """Return what can be returned, all arenas; 1 if anything was. 2.36: malloc/malloc.c, __malloc_trim()."""
        self._begin(tcache=False)
        return max([int(mtrim(self, arena, pad)) for arena in list(self.arenas())])

    def mallopt(self, parameter: int, value: int) -> int:
        """Set a parameter (:mod:`mmsim.malloc.glibc.params`); 1 if it was accepted. 2.36: malloc/malloc.c, __libc_mallopt()."""
        self._begin(tcache=False)
        malloc_consolidate(self, self.main_arena)
        return self.mp.mallopt(parameter, value)

    def mallinfo2(self) -> MallInfo2:
        """Sums over all arenas. 2.36: malloc/malloc.c, __libc_mallinfo2()."""
        self._begin(tcache=False)
        return int_mallinfo(self)

    def walk(self) -> Iterator[Block]:
        """All chunks of all arenas; chunks with their own mapping are not among them."""
        if self.initialised:
            for arena in self.arenas():
                yield from walk_arena(self, arena, self.threads)

    def check(self) -> None:
        """Verify every arena and every thread's cache; raise InvariantError."""
        if self.initialised:
            for arena in self.arenas():
                check_arena(self, arena, self.threads)

    # -- threads -----------------------------------------------------------------------------------------------

    def pthread_create(self) -> Thread:
        """A new thread, without arena or cache until it allocates. It is not yet the one that runs.

        Left out: what pthread_create() itself allocates.
        """
        self._begin(tcache=False)
        self.single_thread = False
        thread = Thread(self.threads[-1].number + 1)
        self.threads.append(thread)
        return thread

    def switch_to(self, thread: Thread) -> None:
        """From now on calls are this thread's."""
        if thread not in self.threads:
            raise InputError(f"thread {thread.number} has ended")
        self.thread = thread

    def pthread_exit(self) -> None:
        """The running thread ends: its cache is freed chunk by chunk, its arena left to others; the first thread runs on.

        2.36: malloc/arena.c, __malloc_arena_thread_freeres().
        """
        thread = self.thread
        if thread is self.threads[0]:
            raise InputError("the first thread ends with the process")
        tcache_thread_shutdown(self, self.free)
        arena_thread_freeres(self)
        self.threads.remove(thread)
        self.thread = self.threads[0]

    def fork(self, program: Program) -> Ptmalloc:
        """The library in a forked child, whose memory ``program`` is: the running thread is its only one.

        2.36: malloc/arena.c, __malloc_fork_unlock_child().
        """
        child = Ptmalloc(program, self.main_arena.address, self.tunables, self.cores, self.tcache_key)
        child.mp = replace(self.mp)
        child.initialised, child.single_thread, child.regions = self.initialised, self.single_thread, self.regions[:]
        child.narenas, child.narenas_limit = self.narenas, self.narenas_limit
        child.next_to_use, child.aligned_heap_area = self.next_to_use, self.aligned_heap_area
        own = self.thread.arena
        child.thread = replace(self.thread, arena=child.arena(own.address) if own is not None else None)
        child.threads = [child.thread]
        program.curbrk = self.program.curbrk
        if child.initialised:
            leave_arenas(child)
        return child
