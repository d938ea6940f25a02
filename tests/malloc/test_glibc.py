"""glibc 2.36's malloc: what it does with sizes, bins, thresholds and the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmsim.errors import InputError, InvariantError
from mmsim.malloc.glibc.layout import bin_index, largebin_index
from mmsim.malloc.glibc.params import (
    M_MMAP_THRESHOLD,
    M_MXFAST,
    M_PERTURB,
    M_TOP_PAD,
    M_TRIM_THRESHOLD,
    MallocPar,
    parse_tunables,
)
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import Abort, PlainProgram
from mmsim.process.mm import Limits, Mm
from mmsim.process.overcommit import Overcommit
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE


class Calls(PlainProgram):
    """A program that remembers the sizes of its calls: brk by so much, mmap and munmap of so much."""

    def __init__(self, mm: Mm | None = None):
        super().__init__(mm)
        self.made: list[tuple[str, int]] = []
        self.now = self.mm.start_brk

    def brk(self, addr: int) -> int:
        result = super().brk(addr)
        if addr:
            self.made.append(("brk", result - self.now))
        self.now = result
        return result

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        self.made.append(("mmap", length))
        return super().mmap(addr, length, prot, flags)

    def munmap(self, addr: int, length: int) -> int:
        self.made.append(("munmap", length))
        return super().munmap(addr, length)

    def mremap(self, addr: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0) -> int:
        self.made.append(("mremap", new_len))
        return super().mremap(addr, old_len, new_len, flags, new_addr)

    def madvise(self, addr: int, length: int, advice: int) -> int:
        self.made.append(("madvise", length))
        return super().madvise(addr, length, advice)


@pytest.fixture
def program() -> Calls:
    return Calls()


@pytest.fixture
def libc(program: Calls) -> Iterator[Ptmalloc]:
    libc = Ptmalloc(program)
    program.made.clear()
    yield libc
    libc.check()


def plain(**tunables: int) -> Ptmalloc:
    return Ptmalloc(PlainProgram(), tunables=tunables)


# -- sizes and places ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("request_", "usable"), [(0, 24), (1, 24), (24, 24), (25, 40), (1032, 1032), (1033, 1048)])
def test_a_chunk_has_8_bytes_more_than_its_user_and_is_a_multiple_of_16(libc: Ptmalloc, request_: int, usable: int) -> None:
    memory = libc.malloc(request_)
    assert libc.usable_size(memory) == usable and libc.chunksize(memory - 16) == usable + 8
    assert memory % 16 == 0


def test_the_first_malloc_moves_the_break_by_0x21000_and_puts_the_thread_cache_first(libc: Ptmalloc, program: Calls) -> None:
    memory = libc.malloc(1)
    assert program.made == [("brk", 0x21000)]
    assert memory == program.mm.start_brk + 16 + 656
    assert libc.chunksize(libc.main_arena.top) == 0x21000 - 656 - 32


def test_bins_are_exact_below_1024_and_ranges_above() -> None:
    assert [bin_index(size) for size in (32, 48, 1008)] == [2, 3, 63]
    assert largebin_index(1024) == largebin_index(1024 + 48) == 64
    indexes = [bin_index(size) for size in range(32, 2 * MIB, 16)]
    assert indexes == sorted(indexes) and indexes[-1] == 126


# -- brk or mmap ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("request_", "calls"), [
    (131_049, [("brk", 0x21000)]), (134_472, [("brk", 0x21000)]), (134_473, [("brk", 0x21000), ("mmap", 135_168)]),
    (200_000, [("brk", 0x21000), ("mmap", 200_704)])])
def test_a_fresh_heap_serves_what_fits_whatever_the_threshold(
        libc: Ptmalloc, program: Calls, request_: int, calls: list[tuple[str, int]]) -> None:
    libc.malloc(request_)
    assert program.made == calls


def test_a_used_up_heap_grows_below_128_kib_and_maps_from_there(libc: Ptmalloc, program: Calls) -> None:
    libc.malloc(130_000)
    program.made.clear()
    libc.malloc(131_048)
    assert program.made == [("brk", 0x3F000)]
    libc.malloc(131_049)
    assert program.made[1:] == []                   # the heap that has just grown has room for it
    program.made.clear()
    libc.malloc(131_049)
    assert program.made == [("mmap", 135_168)]


def test_freeing_a_mapped_chunk_raises_the_threshold_to_its_size(libc: Ptmalloc, program: Calls) -> None:
    libc.malloc(130_000)
    libc.free(libc.malloc(131_049))
    assert (libc.mp.mmap_threshold, libc.mp.trim_threshold) == (135_168, 270_336)
    libc.malloc(131_049)
    assert program.made[1:] == [("mmap", 135_168), ("munmap", 135_168), ("brk", 0x3F000)]


def test_the_threshold_stops_at_32_mib_and_a_user_who_set_one_keeps_it(libc: Ptmalloc) -> None:
    libc.free(libc.malloc(32 * MIB))
    assert libc.mp.mmap_threshold == 128 * KIB
    libc.mallopt(M_TOP_PAD, 0)
    libc.free(libc.malloc(MIB))
    assert libc.mp.mmap_threshold == 128 * KIB and libc.mp.no_dyn_threshold


def test_realloc_of_a_mapped_chunk_moves_page_tables_and_copies_nothing(libc: Ptmalloc, program: Calls) -> None:
    memory = libc.malloc(GIB)
    program.write_word(memory, 42)
    faults = program.minflt
    memory = libc.realloc(memory, 2 * GIB)
    assert program.made[-1] == ("mremap", 2 * GIB + PAGE_SIZE)
    assert program.minflt == faults and program.read_word(memory) == 42
    assert libc.realloc(memory, 2 * GIB - 8) == memory


def test_a_refused_break_is_replaced_by_a_mapping_rounded_up_to_a_mebibyte(program: Calls) -> None:
    program.mm.limits = Limits(data=4 * PAGE_SIZE)
    program.mm.end_data = 0
    program.mm.limits.data = 16 * MIB
    libc = Ptmalloc(program, tunables={"mmap_max": 0})
    program.made.clear()
    libc.malloc(10)
    program.map_region(program.now + 2 * PAGE_SIZE, PAGE_SIZE, 0x73)
    memory = libc.malloc(150_000)
    assert program.made == [("brk", 0x21000), ("brk", 0), ("mmap", MIB)]
    assert not libc.main_arena.contiguous and not libc.is_mmapped(memory - 16)
    libc.check()
    libc.malloc(MIB)
    assert program.made[4:] == [("mmap", 0x121000)]         # the break is tried each time; now the round figure is a page
    libc.check()


def test_a_break_that_somebody_else_moved_is_fenced_off(libc: Ptmalloc, program: Calls) -> None:
    first = libc.malloc(100)
    foreign = program.sbrk(PAGE_SIZE)
    program.fill(foreign, PAGE_SIZE, 0xEE)
    second, third = libc.malloc(100_000), libc.malloc(100_000)
    libc.check()
    assert first < second < foreign < third
    assert program.read(foreign, PAGE_SIZE) == b"\xee" * PAGE_SIZE
    assert [block.state for block in libc.walk()].count("other") == 2       # the thread cache and the fence


# -- giving back ---------------------------------------------------------------------------------------------

def test_one_object_at_the_top_pins_the_heap_and_malloc_trim_returns_the_pages_inside(libc: Ptmalloc, program: Calls) -> None:
    held = [libc.malloc(60_000) for _ in range(5)]
    pin = libc.malloc(24)
    for memory in held:
        libc.free(memory)
    program.made.clear()
    assert libc.malloc_trim() == 1
    assert [name for name, _size in program.made] == ["madvise", "brk"]
    assert program.made[0][1] == (656 + 5 * 60_016 - PAGE_SIZE) // PAGE_SIZE * PAGE_SIZE
    libc.free(pin)


def test_top_is_returned_once_it_reaches_the_trim_threshold(libc: Ptmalloc, program: Calls) -> None:
    held = [libc.malloc(60_000) for _ in range(5)]
    program.made.clear()
    for memory in reversed(held[1:]):
        libc.free(memory)
    assert program.made and {name for name, _size in program.made} == {"brk"} and all(size < 0 for _name, size in program.made)
    assert libc.chunksize(libc.main_arena.top) < 128 * KIB + 128 * KIB + PAGE_SIZE


def test_trimming_a_top_of_32_bytes_makes_the_heap_grow(program: Calls) -> None:
    libc = Ptmalloc(program, tunables={"top_pad": 0})
    libc.malloc(PAGE_SIZE - 656 - 32 - 8)
    assert libc.chunksize(libc.main_arena.top) == 32
    program.made.clear()
    assert libc.malloc_trim() == 1
    assert program.made == [("brk", PAGE_SIZE)]
    libc.check()


def test_a_hole_of_less_than_a_page_is_not_returned(libc: Ptmalloc, program: Calls) -> None:
    hole, _pin = libc.malloc(4000), libc.malloc(24)
    libc.free(hole)
    program.made.clear()
    libc.malloc_trim(pad=MIB)
    assert program.made == []


# -- caches and bins -----------------------------------------------------------------------------------------

def test_the_thread_cache_holds_seven_of_a_size_and_the_last_freed_comes_first(libc: Ptmalloc) -> None:
    held = [libc.malloc(100) for _ in range(9)]
    libc.malloc(24)
    for memory in held:
        libc.free(memory)
    states = {block.memory: block.state for block in libc.walk()}
    assert [states[memory] for memory in held] == ["cached"] * 9            # two of them in a fastbin
    assert libc.mallinfo2().smblks == 2
    assert [libc.malloc(100) for _ in range(7)] == held[6::-1]


def test_links_of_cached_chunks_are_masked_with_their_page_number(libc: Ptmalloc, program: Calls) -> None:
    a, b = libc.malloc(24), libc.malloc(24)
    libc.free(a)
    libc.free(b)
    assert program.read_word(b) == a ^ b >> 12
    assert program.read_word(a) == a >> 12
    assert program.read_word(b + 8) == libc.tcache_key


def test_fast_chunks_are_not_joined_until_a_large_request_comes() -> None:
    libc = plain(tcache_count=0)
    a, b, _pin = libc.malloc(100), libc.malloc(100), libc.malloc(24)
    libc.free(a)
    libc.free(b)
    assert [block.size for block in libc.walk() if block.state == "cached"] == [112, 112]
    libc.malloc(2000)
    assert [block.size for block in libc.walk() if block.state == "free"] == [224]
    libc.check()


def test_a_large_request_takes_the_smallest_chunk_that_fits() -> None:
    libc = plain()
    sizes = [5000, 4200, 4600, 4200, 8000]
    held = [(libc.malloc(size), libc.malloc(24))[0] for size in sizes]
    for memory in held:
        libc.free(memory)
    assert libc.malloc(4300) == held[2]
    assert libc.malloc(4200) == held[3]             # the second of two equals: the first stays on the ring of sizes
    libc.check()


def test_small_requests_are_cut_from_the_last_remainder_side_by_side() -> None:
    libc = plain(tcache_count=0)
    hole, _pin = libc.malloc(5000), libc.malloc(24)
    libc.free(hole)
    assert [libc.malloc(200) - hole for _ in range(3)] == [0, 208, 416]
    libc.check()


def test_calloc_passes_the_thread_cache_by_and_zeroes_what_was_used(libc: Ptmalloc, program: Calls) -> None:
    memory = libc.malloc(100)
    program.fill(memory, 100, 0xFF)
    libc.free(memory)
    other = libc.calloc(10, 10)
    assert other != memory and not any(program.read(other, 100))
    assert libc.malloc(100) == memory
    assert program.read(memory + 16, 84) == b"\xff" * 84       # malloc leaves what it finds, but for the link and the key


def test_perturbed_memory_shows_who_reads_what_he_did_not_write() -> None:
    libc = plain()
    libc.mallopt(M_PERTURB, 0x55)
    memory, _pin = libc.malloc(3000), libc.malloc(24)
    assert libc.program.read(memory, 3000) == b"\xaa" * 3000
    libc.free(memory)
    assert libc.program.read(memory + 32, 2900) == b"\x55" * 2900
    assert not any(libc.program.read(libc.calloc(1, 3000), 3000))


@pytest.mark.parametrize("alignment", [1, 16, 24, 32, 100, 4096, 1 << 20])
def test_memalign_rounds_the_alignment_up_to_a_power_of_two(libc: Ptmalloc, alignment: int) -> None:
    memory = libc.memalign(alignment, 100)
    assert memory % (1 << (max(alignment, 16) - 1).bit_length()) == 0
    libc.free(memory)


def test_an_aligned_chunk_with_a_mapping_of_its_own_is_unmapped_whole(libc: Ptmalloc, program: Calls) -> None:
    memory = libc.memalign(MIB, 200_000)
    assert libc.is_mmapped(memory - 16) and libc.prev_size(memory - 16) > 0
    pages = program.mm.total_vm
    libc.free(memory)
    assert program.made[-1] == ("munmap", program.made[-2][1])
    assert program.mm.total_vm == pages - program.made[-1][1] // PAGE_SIZE


def test_splits_and_joins_can_be_watched() -> None:
    libc = plain(tcache_count=0)
    with libc.trace.recording("mmsim:*") as events:
        a, b, _pin = (libc.malloc(2000) for _ in range(3))
        libc.free(a)
        libc.free(b)
    names = [event.name for event in events]
    assert names.count("mmsim:malloc") == 3 and names.count("mmsim:free") == 2
    assert [event["size"] for event in events if event.name == "mmsim:coalesce"] == [4032]
    assert sum(event.name == "mmsim:split" for event in events) == 3


# -- failure -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [2**63, 2**64 - 1, -1])
def test_a_request_beyond_ptrdiff_max_is_refused_without_a_call(libc: Ptmalloc, program: Calls, size: int) -> None:
    assert libc.malloc(size) == 0 and libc.errno == "ENOMEM"
    assert libc.calloc(1, size) == libc.memalign(64, size) == 0 and libc.posix_memalign(64, size) == ("ENOMEM", 0)
    memory = libc.malloc(10)
    assert libc.realloc(memory, size) == 0 and libc.usable_size(memory) == 24
    assert [name for name, _size in program.made if name == "mmap"] == []


def test_a_product_that_overflows_is_refused(libc: Ptmalloc) -> None:
    assert libc.calloc(2**32, 2**32) == 0 and libc.errno == "ENOMEM"
    assert libc.calloc(2**62, 2) == 0


def test_alignments_that_are_none(libc: Ptmalloc) -> None:
    assert libc.memalign(2**63 + 1, 10) == 0 and libc.errno == "EINVAL"
    assert libc.memalign(2**63, 10) == 0 and libc.errno == "ENOMEM"
    assert libc.posix_memalign(24, 10)[0] == libc.posix_memalign(4, 10)[0] == libc.posix_memalign(0, 10)[0] == "EINVAL"
    assert libc.pvalloc(2**64 - 1) == 0


def test_what_the_kernel_refuses_is_enomem_and_the_heap_goes_on(program: Calls) -> None:
    mm = Mm(overcommit=Overcommit(totalram_pages=100))
    libc = Ptmalloc(Calls(mm))
    small = libc.malloc(100)
    assert small and libc.malloc(MIB) == 0 and libc.errno == "ENOMEM"
    assert libc.realloc(small, MIB) == 0 and libc.usable_size(small) == 104
    assert libc.malloc(100)
    libc.check()


def test_under_a_limit_of_address_space_malloc_fails_and_the_heap_stays_sound() -> None:
    program = Calls(Mm(limits=Limits(address_space=3 * MIB)))
    libc = Ptmalloc(program)
    held = []
    while memory := libc.malloc(50_000):
        held.append(memory)
    assert len(held) > 50 and libc.errno == "ENOMEM"
    libc.check()
    for memory in held:
        libc.free(memory)
    libc.check()
    assert libc.malloc(100_000)


def test_null_is_freed_and_resized_like_nothing(libc: Ptmalloc) -> None:
    libc.free(0)
    assert libc.usable_size(0) == 0
    memory = libc.realloc(0, 10)
    assert memory and libc.realloc(memory, 0) == 0
    assert libc.malloc(10) == memory


# -- parameters ----------------------------------------------------------------------------------------------

def test_mallopt_accepts_what_it_knows_and_ignores_the_rest(libc: Ptmalloc) -> None:
    assert libc.mallopt(M_MXFAST, 160) == 1 and libc.mp.max_fast == 160
    assert libc.mallopt(M_MXFAST, 161) == 0
    assert libc.mallopt(M_MXFAST, 0) == 1 and libc.mp.max_fast < 32
    assert libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) == 1 and libc.mallopt(M_TRIM_THRESHOLD, -1) == 1
    assert libc.mallopt(99, 5) == 1
    assert libc.mp.trim_threshold == 2**64 - 1


def test_tunables_are_read_as_glibc_reads_them() -> None:
    assert parse_tunables("glibc.malloc.tcache_count=3:glibc.cpu.x86_ibt=1:") == {"tcache_count": 3}
    for text in ("glibc.malloc.tcache_count", "glibc.malloc.tcache_count=many"):
        with pytest.raises(InputError):
            parse_tunables(text)
    with pytest.raises(InputError):
        plain(tcache_colour=3)
    par = MallocPar()
    assert not par.set("tcache_count", 65536) and not par.set("tcache_max", 1033) and par.set("tcache_max", 500)
    assert par.tcache_bins == 31


def test_without_a_thread_cache_every_free_goes_to_the_arena() -> None:
    libc = plain(tcache_count=0, mxfast=0)
    a, _b = libc.malloc(24), libc.malloc(24)
    libc.free(a)
    assert [block.state for block in libc.walk()] == ["other", "free", "used", "top"]


# -- check() -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("damage", "message"), [
    ("used again", "in bins but not free"), ("P flag", "its P flag is wrong"), ("foot", "not repeated at its end"),
    ("bin", "do not know it"), ("count", "its list has"), ("system_mem", "system_mem is"), ("size", "has the size")])
def test_check_says_what_is_broken(damage: str, message: str) -> None:
    libc = plain()
    cached, chunk, used = libc.malloc(24), libc.malloc(2000) - 16, libc.malloc(24) - 16
    libc.free(cached)
    libc.free(chunk + 16)
    libc.check()
    match damage:
        case "used again":
            libc.set_head(used, libc.load(used + 8) | 1)
        case "P flag":
            libc.set_head(chunk, libc.load(chunk + 8) & ~1)
        case "foot":
            libc.set_prev_size(used, 96)
        case "bin":
            libc.set_bk(libc.main_arena.unsorted, chunk)
            libc.set_bk(chunk, chunk)
        case "count":
            libc.store(libc.thread.tcache, 3)
        case "system_mem":
            libc.main_arena.system_mem -= 4096
        case _:
            libc.set_head(used, 0x29)
    with pytest.raises(InvariantError, match=message):
        libc.check()


def test_a_corrupt_heap_ends_in_the_same_words_as_the_real_one() -> None:
    libc = plain()
    a, b, _c = (libc.malloc(2000) for _ in range(3))
    libc.free(a)
    libc.program.write_word(a, libc.program.read_word(a) + 16)
    with pytest.raises(Abort, match=r"malloc\(\): unsorted double linked list corrupted"):
        libc.malloc(3000)
    libc.program.write_word(b - 8, 0x7D1)
    with pytest.raises(Abort, match=r"double free or corruption|corrupted size vs\. prev_size"):
        libc.free(b)
