"""Every allocator under random use: what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from mmsim.malloc.allocator import ALIGNMENT, Allocator
from mmsim.malloc.buddy import UserBuddy
from mmsim.malloc.bump import Bump
from mmsim.malloc.freelist import POLICIES, FreeList
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import PlainProgram
from mmsim.malloc.segregated import SizeClasses

SIZES = st.one_of(st.integers(0, 64), st.integers(0, 1200), st.integers(1000, 70_000), st.integers(130_000, 300_000))


class Machine(RuleBasedStateMachine):
    """Objects filled with a pattern of their own, so that any byte the allocator or another object writes is noticed."""

    make: Callable[[PlainProgram], Allocator]
    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.program = PlainProgram()
        self.heap = type(self).make(self.program)
        self.live: dict[int, bytes] = {}
        self.count = 0

    def _fill(self, memory: int, size: int) -> None:
        self.count += 1
        pattern = (self.count * 2654435761 & 0xFFFF_FFFF).to_bytes(4, "little")
        data = (pattern * (size // 4 + 1))[:size]
        self.program.write(memory, data)
        self.live[memory] = data

    def _got(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        assert memory not in self.live
        assert self.heap.usable_size(memory) >= size
        for other, data in self.live.items():
            assert memory + max(size, 1) <= other or other + max(len(data), 1) <= memory, "two objects overlap"

    @rule(target=blocks, size=SIZES)
    def malloc(self, size: int) -> int:
        memory = self.heap.malloc(size)
        assert memory
        self._got(memory, size)
        self._fill(memory, size)
        return memory

    @rule(target=blocks, count=st.integers(0, 300), size=st.integers(1, 40))
    def calloc(self, count: int, size: int) -> int:
        memory = self.heap.calloc(count, size)
        assert memory
        self._got(memory, count * size)
        assert not any(self.program.read(memory, count * size))
        self._fill(memory, count * size)
        return memory

    @rule(target=blocks, memory=consumes(blocks), size=SIZES)
    def realloc(self, memory: int, size: int) -> object:
        old = self.live.pop(memory)
        new = self.heap.realloc(memory, size)
        if not size:
            assert new == 0
            return multiple()
        assert new
        self._got(new, size)
        kept = min(size, len(old))
        assert self.program.read(new, kept) == old[:kept]
        self._fill(new, size)
        return new

    @rule(memory=consumes(blocks))
    def free(self, memory: int) -> None:
        assert self.program.read(memory, len(self.live[memory])) == self.live.pop(memory)
        self.heap.free(memory)

    @invariant()
    def sound(self) -> None:
        self.heap.check()

    @invariant()
    def every_object_is_a_used_block(self) -> None:
        used = {block.memory for block in self.heap.walk() if block.state == "used"}
        assert used == {memory for memory in self.live if not self.has_own_mapping(memory)}

    def has_own_mapping(self, memory: int) -> bool:
        return False

    def teardown(self) -> None:
        for memory, data in self.live.items():
            assert self.program.read(memory, len(data)) == data
        for memory in list(self.live):
            self.heap.free(memory)
            self.heap.check()
        assert not [block for block in self.heap.walk() if block.state == "used"]


class GlibcMachine(Machine):
    """The same, with what only glibc's malloc has: aligned memory, trimming, threads that come and go."""

    heap: Ptmalloc

    def has_own_mapping(self, memory: int) -> bool:
        return self.heap.is_mmapped(memory - 16)

    @rule(target=Machine.blocks, alignment=st.sampled_from([8, 16, 32, 64, 256, 4096, 65536]), size=SIZES)
    def memalign(self, alignment: int, size: int) -> int:
        memory = self.heap.memalign(alignment, size)
        assert memory and memory % alignment == 0
        self._got(memory, size)
        self._fill(memory, size)
        return memory

    @rule(pad=st.sampled_from([0, 4096, 100_000]))
    def malloc_trim(self, pad: int) -> None:
        self.heap.malloc_trim(pad)

    @invariant()
    def sums_agree(self) -> None:
        info = self.heap.mallinfo2()
        assert info.uordblks + info.fordblks == info.arena
        assert info.hblks == self.heap.mp.n_mmaps >= 0


class ThreadsMachine(GlibcMachine):
    """Each call by a random thread: objects are freed by others than those who allocated them."""

    @rule(number=st.integers(0, 3))
    def switch(self, number: int) -> None:
        while len(self.heap.threads) <= number:
            self.heap.pthread_create()
        self.heap.switch_to(self.heap.threads[number])

    @rule()
    def end(self) -> None:
        if self.heap.thread is not self.heap.threads[0]:
            self.heap.pthread_exit()


HEAPS = {
    "bump": (Machine, Bump),
    **{f"{policy} fit, {order}": (Machine, partial(FreeList, policy=policy, order=order))
       for policy in POLICIES for order in ("lifo", "address")},
    "buddy": (Machine, UserBuddy),
    "size classes": (Machine, SizeClasses),
    "glibc": (GlibcMachine, Ptmalloc),
    "glibc without thread cache": (GlibcMachine, partial(Ptmalloc, tunables={"tcache_count": 0})),
    "glibc without mmap": (GlibcMachine, partial(Ptmalloc, tunables={"mmap_max": 0, "top_pad": 0})),
    "glibc that mixes": (GlibcMachine, partial(Ptmalloc, tunables={"tcache_count": 2, "tcache_unsorted_limit": 1, "perturb": 85})),
    "glibc with threads": (ThreadsMachine, Ptmalloc),
    "glibc with threads, two arenas": (ThreadsMachine, partial(Ptmalloc, tunables={"arena_max": 2, "tcache_count": 1})),
}


@pytest.mark.parametrize("name", HEAPS)
def test_objects_keep_apart_and_keep_their_bytes(name: str) -> None:
    base, make = HEAPS[name]
    machine = type(f"Machine of {name}", (base,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=40, deadline=None))
