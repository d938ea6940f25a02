"""What the library knows beside the chunks: parameters, threads, arenas; one object a process.

2.36: malloc/malloc.c and malloc/arena.c, their static variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.constants import OVERCOMMIT_NEVER
from mmsim.malloc.glibc.chunks import Chunks, chunk2mem
from mmsim.malloc.glibc.layout import HEAP_MAX_SIZE, NON_MAIN_ARENA, SIZE_SZ
from mmsim.malloc.glibc.params import MallocPar
from mmsim.malloc.glibc.state import Arena
from mmsim.malloc.program import Program

__all__ = ["Library", "Thread"]


@dataclass(slots=True)
class Thread:
    """What a thread has of its own: the arena it used last and the address of its cache, 0 until it is needed."""

    number: int
    arena: Arena | None = None
    tcache: int = 0
    tcache_shutting_down: bool = False


class Library(Chunks):
    """The allocator's state. ``main_arena`` is the address of 2200 bytes in the library's data; ``cores`` bounds how many
    arenas there may be; ``tcache_key`` is the random word that marks cached chunks."""

    def __init__(self, program: Program, main_arena: int, cores: int = 1, tcache_key: int = 0x9E3779B97F4A7C15):
        super().__init__(program)
        self.trace = program.trace
        self.cores = cores
        self.mp = MallocPar()
        self.main_arena = Arena(self, main_arena)
        self.tcache_key = tcache_key
        #: The name of the last failure, as in the variable errno.
        self.errno = ""
        self.thread = Thread(0)
        #: As long as the process never had a second thread, the main arena is used without looking for another.
        self.single_thread = True
        #: Where the main arena's stretches of memory begin; for walks only.
        self.regions: list[int] = []
        # -- malloc/arena.c ------------------------------------------------------------------------------------
        self.narenas = 1
        self.narenas_limit = 0
        #: Arenas whose threads have ended, linked by next_free.
        self.free_list = 0
        self.next_to_use = 0
        self.aligned_heap_area = 0
        self._may_shrink_heap: bool | None = None

    def check_may_shrink_heap(self) -> bool:
        """Where promises are counted (overcommit mode 2), a heap that shrinks must give its promise back; asked once.

        2.36: sysdeps/unix/sysv/linux/malloc-sysdep.h, check_may_shrink_heap().
        """
        if self._may_shrink_heap is None:
            self._may_shrink_heap = self.program.overcommit_memory == OVERCOMMIT_NEVER
        return self._may_shrink_heap

    def arena(self, address: int) -> Arena:
        """The arena at an address."""
        return self.main_arena if address == self.main_arena.address else Arena(self, address)

    def arenas(self) -> Iterator[Arena]:
        """All arenas, the main one first."""
        yield self.main_arena
        address = self.main_arena.next
        while address != self.main_arena.address:
            yield self.arena(address)
            address = self.arena(address).next

    def arena_for_chunk(self, chunk: int) -> Arena:
        """Whose is it? The flag A sends us to the start of the 64 MiB around it, where a heap says.

        2.36: malloc/arena.c, arena_for_chunk() and heap_for_ptr().
        """
        if self.in_main_arena(chunk):
            return self.main_arena
        return self.arena(self.load(chunk & -HEAP_MAX_SIZE))

    def arena_flag(self, av: Arena) -> int:
        """The flag that chunks of an arena carry."""
        return 0 if av.address == self.main_arena.address else NON_MAIN_ARENA

    def is_main(self, av: Arena) -> bool:
        """Is it the main arena?"""
        return av.address == self.main_arena.address

    # -- filling, for those who look for bugs (M_PERTURB) ------------------------------------------------------

    def alloc_perturb(self, memory: int, size: int) -> None:
        """2.36: malloc/malloc.c, alloc_perturb()."""
        if self.mp.perturb_byte:
            self.program.fill(memory, size, (self.mp.perturb_byte ^ 0xFF) & 0xFF)

    def free_perturb(self, chunk: int, size: int) -> None:
        """2.36: malloc/malloc.c, free_perturb()."""
        if self.mp.perturb_byte:
            self.program.fill(chunk2mem(chunk), size - 2 * SIZE_SZ, self.mp.perturb_byte & 0xFF)
