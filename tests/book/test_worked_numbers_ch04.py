"""Every number that chapter 4 works out by hand, computed by the mechanism."""

from __future__ import annotations

import json
import re

import pytest

from mmsim.constants import MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_NONE
from mmsim.figures import ch04
from mmsim.malloc.fragmentation import Meter, play, random_trace
from mmsim.malloc.freelist import FreeList
from mmsim.malloc.glibc.params import MallocPar
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.process_program import ProcessProgram
from mmsim.malloc.program import Abort, PlainProgram
from mmsim.reference import toy16
from mmsim.units import KIB, MIB, PAGE_SIZE, U64_MAX
from tests.book.pages import BOOK, cells, code

CHAPTER = BOOK / "04-allocators.ipynb"


def fresh(**options: object) -> tuple[ch04.Logged, Ptmalloc]:
    program = ch04.Logged()
    return program, ch04.glibc(program, **options)


def printed(beginning: str) -> str:
    """What the cell shows whose code contains this."""
    cell = next(cell for cell in code(CHAPTER) if beginning in cell.text)
    output = cell.outputs[0]
    return "".join(output.get("text") or output["data"]["text/plain"])


def test_chunk_sizes() -> None:
    _, libc = fresh()
    sizes = {size: libc.chunksize(libc.malloc(size) - 16) for size in (1, 24, 25, 1032, 131048)}
    assert sizes == {1: 32, 24: 32, 25: 48, 1032: 1040, 131048: 131056}
    assert [libc.usable_size(libc.malloc(size)) for size in (1, 24, 25)] == [24, 24, 40]


def test_the_first_request_gets_132_kib_and_one_page() -> None:
    program = ProcessProgram(toy16().spawn("a.out"))
    libc = ch04.glibc(program)
    program.write_word(libc.main_arena.address, 0)
    faults = program.minflt
    memory = libc.malloc(1)
    assert program.process.mm.brk - program.process.mm.start_brk == 132 * KIB == 0x21000
    assert program.minflt - faults == 1 and memory % 16 == 0
    program, libc = fresh()
    libc.calloc(1, 1)
    assert libc.chunksize(libc.main_arena.top) == 135168 - 656 - 32 == 134480


def test_the_borders_in_a_new_program() -> None:
    for size, calls in ((134472, [("brk", 135168)]), (134473, [("brk", 135168), ("mmap", 135168)]), (131049, [("brk", 135168)])):
        program, libc = fresh()
        libc.malloc(size)
        assert program.log == calls


def test_exercise_threshold() -> None:
    program, libc = fresh()
    libc.malloc(130000)
    program.log.clear()
    memory = libc.malloc(200000)
    assert program.log == [("mmap", 200704)] and 49 * PAGE_SIZE == 200704 and memory % 16 == 0
    assert [(size + 8 + 15) & ~15 for size in (131048, 131049, 200000)] == [131056, 128 * KIB, 200016]


def test_exercise_trace() -> None:
    program, libc = fresh()
    libc.malloc(130000)
    assert libc.chunksize(libc.main_arena.top) == 134512 - 130016 == 4496
    libc.free(libc.malloc(131049))
    assert (libc.mp.mmap_threshold, libc.mp.trim_threshold) == (135168, 270336)
    libc.malloc(131049)
    assert program.log == [("brk", 135168), ("mmap", 135168), ("munmap", 135168), ("brk", 258048)] and 258048 == 0x3F000
    assert -(-(131072 + 131072 + 32 - 4496) // PAGE_SIZE) * PAGE_SIZE == 258048


@pytest.mark.parametrize("requests, winner", [((1000, 1100, 250), "first"), ((1200, 1250), "best")])
def test_exercise_bestfit(requests: tuple[int, ...], winner: str) -> None:
    def served(policy: str) -> bool:
        program = ch04.Logged()
        heap = FreeList(program, policy, "address")
        holes = []
        for size in (1300, 1200):                       # a block of the list is 16 more than its memory, rounded to 16
            holes.append(heap.malloc(size - 4))
            heap.malloc(16)
        rest = [block for block in heap.walk() if block.is_free][-1]
        heap.malloc(rest.size - 16)
        for hole in holes:
            heap.free(hole)
        program.log.clear()
        for size in requests:
            heap.malloc(size - 16)
        return not program.log

    assert served(winner) and not served({"first": "best", "best": "first"}[winner])


def test_exercise_realloc() -> None:
    program, libc = fresh()
    memory = libc.malloc(1 << 30)
    for page in range(8):
        program.write_word(memory + page * PAGE_SIZE, page)
    faults = program.minflt
    program.log.clear()
    new = libc.realloc(memory, 2 << 30)
    assert [name for name, _ in program.log] == ["mremap"] and program.minflt == faults
    assert [program.read_word(new + page * PAGE_SIZE) for page in range(8)] == list(range(8))
    assert (1 << 30) // PAGE_SIZE == 262144


def test_exercise_pin() -> None:
    assert 2_000_000 // 60_000 == 33
    assert ch04.pinned(60000, 60, "up")[1].rss // KIB == 1304
    assert [state.rss // KIB for state in ch04.pinned(100, 60, "any")][1:3] == [2192, 36]
    first, middle, last = (ch04.pinned(100, place, "any")[1].rss for place in (0, 50, 100))
    assert first == middle == last


def test_the_fourth_prediction_and_the_exercise_on_a_real_system() -> None:
    held, freed, trimmed = ch04.pinned(1000, 0, "down", spare=False)
    assert freed.rss == held.rss == 1972 * KIB and trimmed.rss == 16 * KIB
    assert ch04.pinned(1000, 0, "up", spare=False)[1].rss == 136 * KIB
    calls = [name for name, _ in trimmed.calls]
    assert calls.count("madvise") == 1


def test_exercise_break() -> None:
    _, libc = fresh()
    memory = libc.malloc(24)
    libc.store(memory + 24, U64_MAX)
    with pytest.raises(Abort, match="corrupted top size"):
        libc.malloc(4000)
    assert libc.malloc(1 << 63) == 0 and libc.errno == "ENOMEM"


def test_exercise_build() -> None:
    looked = {}
    for policy in ("first", "next"):
        heap = FreeList(PlainProgram(), policy, "address")
        play(Meter(heap), random_trace(1, 1000, live=50))
        looked[policy] = heap.steps
    assert looked == {"first": ch04.race("first fit", "mixed", 50, 1)[-1].steps, "next": ch04.race("next fit", "mixed", 50, 1)[-1].steps}
    assert looked == {"first": 2753, "next": 997}


def test_thresholds_follow_freed_mappings_up_to_32_mib_and_never_fall() -> None:
    _, libc = fresh()
    seen = []
    for size in (200_000, 33_550_000, 140_000, 40_000_000):
        libc.free(libc.malloc(size))
        seen.append(libc.mp.mmap_threshold)
    assert seen == sorted(seen) and seen[-1] <= 32 * MIB and libc.mp.trim_threshold == 2 * libc.mp.mmap_threshold
    assert MallocPar().mmap_threshold == 128 * KIB


def test_a_second_part_of_the_heap_is_a_mib_the_first_time_and_then_pages() -> None:
    """2.36 passes page size and least size in each other's place."""
    program, libc = fresh()
    libc.mp.set("mmap_max", 0)
    libc.malloc(130000)
    program.mmap(program.mm.brk + PAGE_SIZE, PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE)
    program.log.clear()
    libc.malloc(130000)
    first = [size for name, size in program.log if name == "mmap"]
    program.log.clear()
    libc.malloc(2 * MIB)
    second = [size for name, size in program.log if name == "mmap"]
    assert first == [MIB] and second and second[0] % MIB


def test_threads_cost_addresses_and_a_page_each() -> None:
    assert ch04.arena_sizes(0) == (1, 0, 8)
    assert ch04.arena_sizes(1) == (2, 64, 12) and ch04.arena_sizes(8) == (9, 512, 40)
    assert ch04.arena_sizes(31)[0] == ch04.arena_sizes(100)[0] == 8 * 4
    assert ch04.arena_sizes(100, cores=4)[1] == 31 * 64


def test_memory_of_a_cached_chunk_keeps_all_but_its_first_16_bytes() -> None:
    program, libc = fresh()
    first = libc.malloc(100)
    program.write(first, bytes(range(100)))
    libc.free(first)
    assert libc.malloc(100) == first
    assert program.read(first, 100)[16:] == bytes(range(16, 100)) and program.read(first, 16) != bytes(range(16))


def test_some_of_the_22_bugs_end_in_silence() -> None:
    from mmsim.figures.ch04.heap_bug import BY_NAME

    silent = [name for name in BY_NAME if ch04.run_bug(name).number == 0]
    assert len(BY_NAME) == 22 and 1 <= len(silent) < 11
    twice = ch04.run_bug("free_a_b_a", tcache=False)
    assert twice.number == 0


def test_the_mappings_of_the_story() -> None:
    assert 4632 == 2 * 2048 + 536 and 2048 - 536 == 1512


def test_everything_recorded_agrees() -> None:
    lines = printed("driver.replay_file").splitlines()
    pairs = [tuple(map(int, re.findall(r"\d+", line)[:2])) for line in lines]
    assert len(pairs) == 5 and all(agree == total > 0 for agree, total in pairs)


def test_what_the_chapter_says_of_its_measurement() -> None:
    shares = json.loads(printed("shares = {sizes").replace("'", '"'))
    for values in shares.values():
        lists = {name: values[name] for name in ("first fit", "next fit", "best fit", "worst fit")}
        assert min(lists, key=lambda name: lists[name]) == "worst fit"
        assert abs(values["best fit"] - values["first fit"]) <= 5
    assert min(shares["uniform"], key=lambda name: shares["uniform"][name]) == "size classes"


def test_the_small_model_coalesces_and_fragments_as_the_text_says() -> None:
    scope: dict[str, object] = {}
    for cell in cells(CHAPTER):
        if cell.kind == "code" and any(word in cell.text for word in ("bytearray", "def malloc", "def free", "malloc(300)")):
            exec(cell.text, scope)
    assert printed("def free(address)") == "896"
    assert scope["word"](int(scope["b"]) - 8) == 224                     # type: ignore[operator, call-overload]


def test_trimming_a_top_of_32_bytes_makes_the_heap_a_page_longer() -> None:
    program, libc = fresh()
    libc.malloc(134464)
    assert libc.chunksize(libc.main_arena.top) == 32
    program.log.clear()
    libc.malloc_trim(0)
    assert program.log == [("brk", PAGE_SIZE)]
    libc.check()
