"""The programs in which allocators run: memory that faults, moves and goes as the kernel says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmsim.constants import MADV_DONTNEED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE
from mmsim.machine import Machine
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.process_program import ProcessProgram
from mmsim.malloc.program import OomKill, PlainProgram, Program, Segfault, map_anonymous
from mmsim.reference import ref256, toy16
from mmsim.units import MIB, PAGE_SIZE

RW = PROT_READ | PROT_WRITE


def in_a_process() -> ProcessProgram:
    return ProcessProgram(ref256().spawn("program"))


@pytest.fixture(params=[PlainProgram, in_a_process], ids=["plain", "process"])
def program(request: pytest.FixtureRequest) -> Program:
    make: Callable[[], Program] = request.param
    return make()


def test_the_first_read_maps_the_page_of_zeros_and_the_first_write_a_page_of_ones_own(program: Program) -> None:
    at = map_anonymous(program, PAGE_SIZE)
    before = program.minflt
    assert program.read_word(at) == 0 and program.minflt == before + 1
    assert program.read(at, PAGE_SIZE) == bytes(PAGE_SIZE) and program.minflt == before + 1
    program.write_word(at + 8, -1)
    assert program.read_word(at + 8) == 2**64 - 1 and program.minflt == before + 2


def test_words_need_not_be_aligned_nor_lie_in_one_page(program: Program) -> None:
    at = map_anonymous(program, 2 * PAGE_SIZE)
    program.write_word(at + PAGE_SIZE - 3, 0x1122334455667788)
    assert program.read(at + PAGE_SIZE - 3, 8) == bytes.fromhex("8877665544332211")
    assert program.read_word(at + PAGE_SIZE - 3) == 0x1122334455667788
    assert program.read_word(at + PAGE_SIZE) == 0x1122334455


def test_advice_takes_the_contents_and_mremap_takes_them_along(program: Program) -> None:
    at = map_anonymous(program, 4 * PAGE_SIZE)
    barrier = map_anonymous(program, PAGE_SIZE)
    program.write(at, b"one")
    program.write(at + PAGE_SIZE, b"two")
    assert program.madvise(at, PAGE_SIZE, MADV_DONTNEED) == 0
    assert program.read(at, 3) == b"\0\0\0"
    program.munmap(at - PAGE_SIZE, 0)
    moved = program.mremap(at, 4 * PAGE_SIZE, 64 * PAGE_SIZE, MREMAP_MAYMOVE)
    assert moved > 0 and barrier > 0
    faults = program.minflt
    assert program.read(moved + PAGE_SIZE, 3) == b"two" and program.minflt == faults


@pytest.mark.parametrize("bad", ["unmapped", "read-only", "no access", "beyond the address space"])
def test_an_access_that_is_not_allowed_ends_the_program(program: Program, bad: str) -> None:
    at = map_anonymous(program, PAGE_SIZE)
    program.write_word(at, 1)
    match bad:
        case "unmapped":
            program.munmap(at, PAGE_SIZE)
        case "read-only":
            program.mprotect(at, PAGE_SIZE, PROT_READ)
            assert program.read_word(at) == 1
        case "no access":
            program.mprotect(at, PAGE_SIZE, PROT_NONE)
        case _:
            at = 0x4141414141414140
    with pytest.raises(Segfault) as end:
        program.write_word(at, 2)
    assert end.value.number == 11
    if bad == "no access":
        with pytest.raises(Segfault):
            program.read_word(at)


def test_what_was_made_accessible_again_has_its_contents(program: Program) -> None:
    at = map_anonymous(program, PAGE_SIZE)
    program.write_word(at, 7)
    program.mprotect(at, PAGE_SIZE, PROT_NONE)
    program.mprotect(at, PAGE_SIZE, RW)
    assert program.read_word(at) == 7
    program.write_word(at, 8)


def test_a_heap_that_shrinks_and_grows_is_zeroed(program: Program) -> None:
    at = program.sbrk(2 * PAGE_SIZE)
    program.write_word(at + PAGE_SIZE, 5)
    assert program.sbrk(-PAGE_SIZE) == at + 2 * PAGE_SIZE
    with pytest.raises(Segfault):
        program.read_word(at + PAGE_SIZE)
    assert program.sbrk(PAGE_SIZE) == at + PAGE_SIZE
    assert program.read_word(at + PAGE_SIZE) == 0
    assert program.sbrk(1 << 62) == -12 and program.sbrk(0) == at + 2 * PAGE_SIZE


def test_copies_and_fills_touch_each_page_once(program: Program) -> None:
    at = map_anonymous(program, 8 * PAGE_SIZE)
    before = program.minflt
    program.fill(at + 100, 2 * PAGE_SIZE, 0xAB)
    assert program.minflt == before + 3
    program.copy(at + 4 * PAGE_SIZE, at + 100, 2 * PAGE_SIZE)
    assert program.minflt == before + 5
    assert program.read(at + 4 * PAGE_SIZE, 2 * PAGE_SIZE) == b"\xab" * (2 * PAGE_SIZE)


def test_both_kinds_of_program_give_the_same_addresses_contents_and_faults() -> None:
    plain, process = PlainProgram(), in_a_process()
    for program in (plain, process):
        libc = Ptmalloc(program)
        held = [libc.malloc(size) for size in (24, 1000, 200_000, 5_000, 70_000)]
        for memory in held:
            program.write(memory, memory.to_bytes(8, "little") * 2)
        libc.free(held[3])
        held[2] = libc.realloc(held[2], 2_000_000)
        held[3] = libc.calloc(3, 1500)
        libc.free(held[4])
        libc.malloc_trim()
    assert plain.minflt == process.minflt
    assert plain.sbrk(0) == process.sbrk(0)
    for memory in held[:4]:
        assert plain.read(memory, 16) == process.read(memory, 16)
    process.process.check()


def test_a_malloc_can_be_followed_down_to_the_buddy_allocator() -> None:
    machine: Machine = ref256()
    process = machine.spawn("program")
    libc = Ptmalloc(ProcessProgram(process))
    with machine.trace.recording("mmsim:malloc", "kmem:mm_page_alloc") as events:
        memory = libc.malloc(24)
        libc.program.fill(memory, 24, 1)
    names = [event.name for event in events]
    assert names.count("mmsim:malloc") == 1 and "kmem:mm_page_alloc" in names
    assert process.mm.rss[1] == len({memory >> 12, libc.main_arena.address >> 12})


def test_memory_that_was_promised_may_not_be_there() -> None:
    libc = Ptmalloc(ProcessProgram(toy16().spawn("greedy")))
    first, second = libc.malloc(8 * MIB), libc.malloc(8 * MIB)
    assert first and second                         # 16 MiB of promises on a machine of 16 MiB
    libc.program.fill(first, 8 * MIB, 1)
    with pytest.raises(OomKill) as end:
        libc.program.fill(second, 8 * MIB, 1)
    assert end.value.number == 9
