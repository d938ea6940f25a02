"""Heap bugs and the words in which glibc 2.36 notices them, or does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import Abort, Hang, PlainProgram, ProgramSignal, Segfault
from mmsim.units import U64_MAX

Bug = Callable[[Ptmalloc], None]


def _three(libc: Ptmalloc, size: int = 2000) -> list[int]:
    return [libc.malloc(size) for _ in range(3)]


def _fill_cache(libc: Ptmalloc, size: int = 24) -> list[int]:
    held = [libc.malloc(size) for _ in range(10)]
    for memory in held[:7]:
        libc.free(memory)
    return held[7:]


def too_many_in_cache(libc: Ptmalloc) -> None:
    held = [libc.malloc(24) for _ in range(9)]
    for memory in held[:8]:
        libc.free(memory)
    # A cached chunk linked to chunks outside: the list goes on beyond the count.
    libc.store(held[0], held[7] ^ held[0] >> 12)
    libc.store(held[7], held[8] ^ held[7] >> 12)
    libc.store(held[8] + 8, libc.tcache_key)
    libc.free(held[8])


def unaligned_in_cache(libc: Ptmalloc) -> None:
    a, b, c = _three(libc, 24)
    libc.free(a)
    libc.free(b)
    libc.store(b, (a + 8) ^ b >> 12)
    libc.store(c + 8, libc.tcache_key)
    libc.free(c)


def unaligned_taken_from_cache(libc: Ptmalloc) -> None:
    a, b = libc.malloc(24), libc.malloc(24)
    libc.free(a)
    libc.free(b)
    libc.store(b, 0x123 ^ b >> 12)
    libc.malloc(24)
    libc.malloc(24)


def fastbin_of_another_size(libc: Ptmalloc) -> None:
    a, _b, _c = _fill_cache(libc)
    libc.free(a)
    libc.set_head(a - 16, 0x41)
    for _ in range(8):
        libc.malloc(24)


def next_size_of_a_fast_chunk(libc: Ptmalloc) -> None:
    a, b, _c = _fill_cache(libc)
    libc.set_head(b - 16, 0)
    libc.free(a)


def fast_chunk_of_another_size_when_gathered(libc: Ptmalloc) -> None:
    a, _b, _c = _fill_cache(libc)
    libc.free(a)
    libc.set_head(a - 16, 0x31)
    libc.malloc(2000)


def unaligned_fast_chunk_when_gathered(libc: Ptmalloc) -> None:
    a, b, _c = _fill_cache(libc)
    libc.free(b)
    libc.free(a)
    libc.store(a, (b - 8) ^ a >> 12)
    libc.malloc(2000)


def top_freed(libc: Ptmalloc) -> None:
    libc.malloc(2000)
    libc.free(libc.main_arena.top + 16)


def freed_next_to_a_huge_chunk(libc: Ptmalloc) -> None:
    a, b, _c = _three(libc)
    libc.set_head(b - 16, 0x7000001)
    libc.free(a)


def unlinked_with_another_size(libc: Ptmalloc) -> None:
    a, b, _c = _three(libc)
    libc.free(b)
    libc.set_head(b - 16, 0x7C1)
    libc.free(a)


def links_of_a_neighbour(libc: Ptmalloc) -> None:
    a, b, _c = _three(libc)
    libc.free(b)
    libc.store(b, a)
    libc.free(a)


def sizes_ring_of_a_neighbour(libc: Ptmalloc) -> None:
    a, b, _c = _three(libc)
    libc.free(b)
    libc.malloc(3000)
    libc.store(b + 16, a)
    libc.free(a)


def head_of_the_unsorted_bin(libc: Ptmalloc) -> None:
    a, b, c = _three(libc)
    libc.malloc(24)
    libc.free(a)
    libc.store(a + 8, b)
    libc.free(c)


def smallbin_links(libc: Ptmalloc) -> None:
    held = [libc.malloc(500) for _ in range(9)]
    libc.malloc(24)
    for memory in held[:8]:
        libc.free(memory)
    libc.malloc(3000)
    libc.store(held[7] + 8, held[8])
    for _ in range(8):
        libc.malloc(500)


def largebin_nextsize(libc: Ptmalloc) -> None:
    held = [libc.malloc(size) for size in (5000, 24, 4700, 24, 4900, 24)]
    libc.free(held[0])
    libc.free(held[2])
    libc.malloc(9000)
    libc.store(held[2] + 24, held[4])
    libc.free(held[4])
    libc.malloc(9000)


def unsorted_size_zero(libc: Ptmalloc) -> None:
    a, _b, _c = _three(libc)
    libc.free(a)
    libc.set_head(a - 16, 1)
    libc.malloc(3000)


def unsorted_next_in_use(libc: Ptmalloc) -> None:
    a, b, _c = _three(libc)
    libc.free(a)
    libc.set_head(b - 16, libc.load(b - 8) | 1)
    libc.malloc(3000)


def realloc_size_zero(libc: Ptmalloc) -> None:
    a = libc.malloc(24)
    libc.store(a - 8, 0)
    libc.realloc(a, 100)


def realloc_small_old_size(libc: Ptmalloc) -> None:
    a = libc.malloc(24)
    libc.store(a - 8, 0x10)
    libc.realloc(a, 100)


def realloc_next_size(libc: Ptmalloc) -> None:
    a, b, _c = _three(libc)
    libc.set_head(b - 16, 0)
    libc.realloc(a, 100)


def mremap_of_an_odd_mapping(libc: Ptmalloc) -> None:
    a = libc.malloc(200_000)
    libc.store(a - 8, 0x31012)
    libc.realloc(a, 300_000)


def break_behind_our_back(libc: Ptmalloc) -> None:
    libc.malloc(100_000)
    libc.program.brk(libc.mp.sbrk_base + 0x20000)
    libc.program.curbrk = libc.mp.sbrk_base + 0x20000
    libc.malloc(100_000)


NOTICED: dict[str, list[Bug]] = {
    "free(): too many chunks detected in tcache": [too_many_in_cache],
    "free(): unaligned chunk detected in tcache 2": [unaligned_in_cache],
    "malloc(): unaligned tcache chunk detected": [unaligned_taken_from_cache],
    "malloc(): memory corruption (fast)": [fastbin_of_another_size],
    "free(): invalid next size (fast)": [next_size_of_a_fast_chunk],
    "malloc_consolidate(): invalid chunk size": [fast_chunk_of_another_size_when_gathered],
    "malloc_consolidate(): unaligned fastbin chunk detected": [unaligned_fast_chunk_when_gathered],
    "double free or corruption (top)": [top_freed],
    "free(): invalid next size (normal)": [freed_next_to_a_huge_chunk],
    "corrupted size vs. prev_size": [unlinked_with_another_size],
    "corrupted double-linked list": [links_of_a_neighbour],
    "corrupted double-linked list (not small)": [sizes_ring_of_a_neighbour],
    "free(): corrupted unsorted chunks": [head_of_the_unsorted_bin],
    "malloc(): smallbin double linked list corrupted": [smallbin_links],
    "malloc(): largebin double linked list corrupted (nextsize)": [largebin_nextsize],
    "malloc(): invalid size (unsorted)": [unsorted_size_zero],
    "malloc(): invalid next->prev_inuse (unsorted)": [unsorted_next_in_use],
    "realloc(): invalid pointer": [realloc_size_zero],
    "realloc(): invalid old size": [realloc_small_old_size],
    "realloc(): invalid next size": [realloc_next_size],
    "mremap_chunk(): invalid pointer": [mremap_of_an_odd_mapping],
    "break adjusted to free malloc space": [break_behind_our_back],
}


@pytest.mark.parametrize(("message", "bug"), [(message, bug) for message, bugs in NOTICED.items() for bug in bugs])
def test_a_corrupt_heap_aborts_with_the_librarys_words(message: str, bug: Bug) -> None:
    with pytest.raises(Abort) as end:
        bug(Ptmalloc(PlainProgram()))
    assert end.value.message == message and end.value.number == 6


def test_a_ring_of_sizes_that_leads_nowhere_is_followed_for_ever() -> None:
    libc = Ptmalloc(PlainProgram())
    held = [libc.malloc(size) for size in (5000, 24, 4700, 24)]
    libc.free(held[0])
    libc.free(held[2])
    libc.malloc(9000)
    libc.store(held[2] + 24, held[2] - 16)              # bk_nextsize of the smallest leads to itself
    with pytest.raises(Hang):
        libc.malloc(4900)


def test_a_use_after_free_is_not_noticed_and_harms_whoever_has_the_memory_now() -> None:
    libc = Ptmalloc(PlainProgram())
    stale = libc.malloc(100)
    libc.free(stale)
    fresh = libc.malloc(100)
    libc.program.write(fresh, b"mine")
    libc.program.write(stale, b"yours")
    assert libc.program.read(fresh, 5) == b"yours"
    libc.check()


def test_an_overflow_into_a_cached_chunks_link_gives_out_memory_of_the_attackers_choice() -> None:
    libc = Ptmalloc(PlainProgram())
    target = libc.malloc(100)
    overflowing, first, second = _three(libc, 24)
    libc.free(second)
    libc.free(first)
    libc.program.write(overflowing, b"A" * 24 + (0x21).to_bytes(8, "little") + (target ^ first >> 12).to_bytes(8, "little"))
    assert libc.malloc(24) == first
    assert libc.malloc(24) == target                    # who knows an address in the heap can undo the mask


@pytest.mark.parametrize("pointer", [8, 4096, 0x4141414141414141, U64_MAX, 1 << 47])
def test_a_pointer_to_nowhere_is_a_segmentation_fault(pointer: int) -> None:
    libc = Ptmalloc(PlainProgram())
    libc.malloc(10)
    with pytest.raises(Segfault):
        libc.free(pointer)


def test_whatever_is_written_over_a_header_ends_in_a_signal_or_goes_unnoticed() -> None:
    """No corruption makes the library itself fail: every word in place of a chunk's size, then ordinary use."""
    ends = set()
    for word in (0, 1, 2, 4, 7, 0x10, 0x21, 0x28, 0x71, 0x91, 0x411, 0x7E1, 0x7E5, 0x10001, 1 << 31, 1 << 40, 1 << 63, U64_MAX):
        for cache in (0, 7):
            for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
                libc = Ptmalloc(PlainProgram(), tunables={"tcache_count": cache})
                held = [libc.malloc(size) for size in (2000, 100, 2000)]
                libc.malloc(24)
                libc.store(held[1] - 8, word)
                try:
                    for number in order:
                        libc.free(held[number])
                    for size in (100, 2000, 5000, 100_000):
                        libc.realloc(libc.calloc(1, size), 2 * size)
                    ends.add("")
                except ProgramSignal as end:
                    ends.add(end.message or type(end).__name__)
    assert len(ends) >= 6 and "" in ends and "Segfault" in ends
