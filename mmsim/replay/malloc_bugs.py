"""Twenty-two programs with a heap bug, as the recorded program has them: what each does to its heap, one function a bug.

Each gets the library, the program's memory and the address of 64 static bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import Program
from mmsim.units import MIB, U64_MAX

__all__ = ["BUGS"]

Bug = Callable[[Ptmalloc, Program, int], None]
BUGS: list[Bug] = []


def _bug(function: Bug) -> Bug:
    BUGS.append(function)
    return function


def _many(libc: Ptmalloc, count: int, size: int = 24) -> list[int]:
    return [libc.malloc(size) for _ in range(count)]


@_bug
def double_free_small(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(24)
    libc.free(a)
    libc.free(a)


@_bug
def double_free_fastbin(libc: Ptmalloc, program: Program, static: int) -> None:
    cached = _many(libc, 8)
    a = libc.malloc(24)
    for memory in cached[:7]:
        libc.free(memory)
    libc.free(a)
    libc.free(a)


@_bug
def double_free_large(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(2000)
    libc.malloc(24)
    libc.free(a)
    libc.free(a)


@_bug
def free_of_static_memory(libc: Ptmalloc, program: Program, static: int) -> None:
    libc.free(static + 8)


@_bug
def free_of_misaligned_pointer(libc: Ptmalloc, program: Program, static: int) -> None:
    libc.free(libc.malloc(24) + 8)


@_bug
def overflow_into_next_size(libc: Ptmalloc, program: Program, static: int) -> None:
    a, b = _many(libc, 2, 2000)
    libc.malloc(24)
    program.write_word(b - 8, 0x21)
    libc.free(b)
    libc.free(a)


@_bug
def top_size_zero(libc: Ptmalloc, program: Program, static: int) -> None:
    program.write_word(libc.malloc(24) + 24, 0)
    for size in (MIB, 200000, 130000):
        libc.malloc(size)


@_bug
def top_size_all_ones(libc: Ptmalloc, program: Program, static: int) -> None:
    program.write_word(libc.malloc(24) + 24, U64_MAX)
    for size in (140000 - 5000, 4000):
        libc.malloc(size)


@_bug
def links_of_an_unsorted_chunk(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(1100)
    libc.malloc(24)
    libc.free(a)
    program.write_word(a, 0x4141414141410000)
    program.write_word(a + 8, 0x4141414141410000)
    libc.malloc(1200)
    libc.malloc(1100)


@_bug
def forged_previous_chunk(libc: Ptmalloc, program: Program, static: int) -> None:
    _a, b = _many(libc, 2, 2000)
    libc.malloc(24)
    program.write_word(b - 8, program.read_word(b - 8) & ~1)
    program.write_word(b - 16, 0x30)
    libc.free(b)


@_bug
def size_of_a_mapped_chunk(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(200000)
    program.write_word(a - 8, 0x1234562)
    libc.free(a)


@_bug
def realloc_of_the_header(libc: Ptmalloc, program: Program, static: int) -> None:
    libc.realloc(libc.malloc(24) - 16, 100)


@_bug
def link_of_a_cached_chunk(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(24)
    libc.free(a)
    program.write_word(a, 0x123)
    _many(libc, 3)


@_bug
def link_of_a_fast_chunk(libc: Ptmalloc, program: Program, static: int) -> None:
    memories = _many(libc, 9)
    for memory in memories:
        libc.free(memory)
    program.write_word(memories[8], 0x4141)
    _many(libc, 9)


@_bug
def size_of_an_unsorted_chunk(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(1100)
    libc.malloc(24)
    libc.free(a)
    program.write_word(a - 8, 0x91)
    libc.malloc(2000)


@_bug
def size_after_a_free_chunk(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(1100)
    libc.malloc(24)
    libc.free(a)
    program.write_word(a + 1104, 0x51)
    libc.malloc(1100)


@_bug
def free_a_b_a(libc: Ptmalloc, program: Program, static: int) -> None:
    a, b = _many(libc, 2)
    for memory in (a, b, a):
        libc.free(memory)


@_bug
def next_size_zero(libc: Ptmalloc, program: Program, static: int) -> None:
    a, _b = _many(libc, 2, 2000)
    libc.malloc(24)
    program.write_word(a + 2008, 0)
    libc.free(a)


@_bug
def size_of_eight_mib(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(2000)
    program.write_word(a - 8, 0x800001)
    libc.free(a)


@_bug
def free_inside_aligned_memory(libc: Ptmalloc, program: Program, static: int) -> None:
    libc.free(libc.memalign(4096, 100) + 16)


@_bug
def size_too_small(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(24)
    program.write_word(a - 8, 0x11)
    libc.free(a)


@_bug
def size_beyond_top(libc: Ptmalloc, program: Program, static: int) -> None:
    a = libc.malloc(2000)
    libc.malloc(24)
    program.write_word(a - 8, 0x20001)
    libc.free(a)
