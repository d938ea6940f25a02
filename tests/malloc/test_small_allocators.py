"""The small allocators: what each design does, and what it says to a bad pointer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmsim.errors import InputError, InvariantError
from mmsim.malloc.allocator import Allocator
from mmsim.malloc.buddy import UserBuddy
from mmsim.malloc.bump import Bump
from mmsim.malloc.fragmentation import Fragmentation, Meter, fragmentation, play, random_trace
from mmsim.malloc.freelist import POLICIES, FreeList
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import Abort, PlainProgram
from mmsim.malloc.segregated import CLASSES, RUN, SizeClasses, size_class
from mmsim.process.mm import Limits, Mm
from mmsim.process.overcommit import Overcommit
from mmsim.units import MIB, PAGE_SIZE

ALL: list[Callable[[PlainProgram], Allocator]] = [Bump, FreeList, UserBuddy, SizeClasses, Ptmalloc]
SMALL = ALL[:4]


def holes(heap: Allocator, sizes: list[int]) -> list[int]:
    """Free blocks of these sizes, apart from each other, made in this order and freed in the opposite one."""
    held = [(heap.malloc(size), heap.malloc(1))[0] for size in sizes]
    for memory in reversed(held):
        heap.free(memory)
    return held


# -- all of them ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make", ALL)
def test_no_memory_is_enomem_and_what_was_there_stays(make: Callable[[PlainProgram], Allocator]) -> None:
    heap = make(PlainProgram(Mm(overcommit=Overcommit(totalram_pages=400))))
    memory = heap.malloc(100)
    heap.program.write(memory, b"kept")
    assert heap.malloc(8 * MIB) == 0 and heap.errno == "ENOMEM"
    assert heap.realloc(memory, 8 * MIB) == 0
    assert heap.program.read(memory, 4) == b"kept"
    heap.check()


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("size", [2**63, 2**64 - 1])
def test_no_size_overflows(make: Callable[[PlainProgram], Allocator], size: int) -> None:
    heap = make(PlainProgram())
    assert heap.malloc(size) == 0 and heap.errno == "ENOMEM"
    assert heap.calloc(size, 2) == 0
    memory = heap.malloc(10)
    assert heap.realloc(memory, size) == 0 and heap.usable_size(memory) >= 10
    heap.check()


@pytest.mark.parametrize("make", ALL)
def test_a_program_at_its_limit_gets_memory_again_after_it_gave_some_back(make: Callable[[PlainProgram], Allocator]) -> None:
    heap = make(PlainProgram(Mm(limits=Limits(address_space=4 * MIB))))
    held = []
    while memory := heap.malloc(3000):
        held.append(memory)
    assert len(held) > 300
    heap.check()
    for memory in reversed(held):
        heap.free(memory)
    heap.check()
    assert heap.malloc(3000)


@pytest.mark.parametrize("make", SMALL)
@pytest.mark.parametrize("wild", ["freed", "inside", "elsewhere", "misaligned"])
def test_a_wild_pointer_is_noticed(make: Callable[[PlainProgram], Allocator], wild: str) -> None:
    heap = make(PlainProgram())
    first, memory, _pin = heap.malloc(100), heap.malloc(100), heap.malloc(100)
    heap.program.fill(memory, 100, 0x5A)
    if wild == "freed":
        heap.free(memory)
    with pytest.raises(Abort):
        heap.free({"freed": memory, "inside": memory + 32, "elsewhere": 0x1000_0000, "misaligned": first + 1}[wild])


@pytest.mark.parametrize("make", ALL)
def test_null_is_freed_and_resized_like_nothing(make: Callable[[PlainProgram], Allocator]) -> None:
    heap = make(PlainProgram())
    heap.free(0)
    heap.check()
    assert heap.usable_size(0) == 0 and list(heap.walk()) in ([], list(heap.walk()))
    assert heap.realloc(heap.realloc(0, 10), 0) == 0


# -- bump ----------------------------------------------------------------------------------------------------

def test_a_bump_allocator_uses_again_only_the_last_block() -> None:
    heap = Bump(PlainProgram())
    a, b = heap.malloc(100), heap.malloc(100)
    heap.free(a)
    assert heap.malloc(100) > b
    c = heap.malloc(10)
    heap.free(c)
    assert heap.malloc(50) == c


# -- free list -----------------------------------------------------------------------------------------------

def test_the_policy_decides_which_hole_is_used() -> None:
    where = {}
    for policy in POLICIES:
        heap = FreeList(PlainProgram(), policy=policy, order="address", grow=64)
        places = holes(heap, [500, 200, 300, 800])
        where[policy] = places.index(heap.malloc(150))
        heap.check()
    assert where == {"first": 0, "next": 0, "best": 1, "worst": 3}


def test_next_fit_goes_on_where_it_stopped() -> None:
    heap = FreeList(PlainProgram(), policy="next", order="address", grow=64)
    places = holes(heap, [500, 500, 500])
    assert heap.malloc(480) == places[0]
    assert heap.malloc(480) == places[1]
    heap.free(places[0])
    assert heap.malloc(480) == places[2]
    heap.check()


def test_best_fit_can_fail_where_first_fit_succeeds() -> None:
    """Holes of 20 and 15 units; requests for 10, 15, 10: the best fit for the first leaves two slivers."""
    grown = {}
    for policy in ("first", "best"):
        heap = FreeList(PlainProgram(), policy=policy, order="address", grow=64)
        holes(heap, [20 * 64 - 16, 15 * 64 - 16])
        end = heap.end
        for units in (10, 10, 15):
            heap.malloc(units * 64 - 16)
        grown[policy] = heap.end - end
    assert grown["first"] == 0 < grown["best"]


def test_freed_neighbours_become_one_block_in_any_order() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)):
        heap = FreeList(PlainProgram())
        held = [heap.malloc(100) for _ in range(3)]
        heap.malloc(1)
        for number in order:
            heap.free(held[number])
            heap.check()
        assert next(block.size for block in heap.walk()) == 3 * 128


def test_a_block_grows_into_the_hole_behind_it() -> None:
    heap = FreeList(PlainProgram())
    a, b, _pin = heap.malloc(100), heap.malloc(100), heap.malloc(1)
    heap.free(b)
    assert heap.realloc(a, 200) == a and heap.usable_size(a) == 208
    assert heap.realloc(a, 50) == a
    heap.check()
    assert heap.malloc(100) > a


def test_an_overflow_is_noticed_when_the_tags_are_compared() -> None:
    heap = FreeList(PlainProgram())
    a, b = heap.malloc(24), heap.malloc(24)
    heap.program.fill(a, heap.usable_size(a) + 8, 0x41)
    with pytest.raises(InvariantError):
        heap.check()
    with pytest.raises(Abort, match="header and footer differ"):
        heap.free(a)
    heap.free(b)


def test_a_break_that_somebody_else_moved_stops_a_free_list() -> None:
    program = PlainProgram()
    heap = FreeList(program)
    heap.malloc(10)
    program.sbrk(PAGE_SIZE)
    with pytest.raises(Abort, match="somebody else"):
        heap.malloc(2 * PAGE_SIZE)


@pytest.mark.parametrize("arguments", [{"policy": "fastest"}, {"order": "size"}])
def test_a_policy_must_be_one(arguments: dict[str, str]) -> None:
    with pytest.raises(InputError):
        FreeList(PlainProgram(), **arguments)


# -- buddy ---------------------------------------------------------------------------------------------------

def test_a_buddy_block_is_cut_in_halves_and_joined_only_with_its_other_half() -> None:
    heap = UserBuddy(PlainProgram(), area=4096)
    a, b, c = (heap.malloc(1000) for _ in range(3))
    heap.free(b)
    heap.free(c)
    heap.check()
    assert [(block.size, block.state) for block in heap.walk()] == [(1024, "used"), (1024, "free"), (2048, "free")]
    heap.free(a)
    assert heap.areas == {} and list(heap.walk()) == []


def test_a_buddy_allocator_wastes_a_quarter_of_what_it_gives_for_uniform_sizes() -> None:
    meter = Meter(UserBuddy(PlainProgram()))
    play(meter, [("malloc", number, size) for number, size in enumerate(range(1000, 8000, 7))], every=1000)
    assert 0.2 < meter.now().internal < 0.35


# -- size classes --------------------------------------------------------------------------------------------

def test_classes_waste_at_most_a_fifth() -> None:
    assert tuple(sorted(set(CLASSES))) == CLASSES and all(size % 16 == 0 for size in CLASSES)
    for size in range(129, CLASSES[-1] + 1):
        assert size <= CLASSES[size_class(size)] <= size * 1.25
    assert CLASSES[size_class(0)] == 16


def test_objects_of_a_class_lie_side_by_side_and_are_used_again_lowest_first() -> None:
    heap = SizeClasses(PlainProgram())
    held = [heap.malloc(100) for _ in range(10)]
    assert [b - a for a, b in zip(held, held[1:])] == [112] * 9
    heap.free(held[7])
    heap.free(held[3])
    assert heap.malloc(97) == held[3]


def test_an_empty_run_gives_its_pages_back_and_serves_another_class() -> None:
    program = PlainProgram()
    heap = SizeClasses(program)
    held = [heap.malloc(4096) for _ in range(15)]
    for memory in held:
        program.write_word(memory, 1)
    resident = program.rss_pages
    run = held[0] & -RUN
    for memory in held:
        heap.free(memory)
    assert program.rss_pages < resident - 10
    assert heap.malloc(16) & -RUN == run
    heap.check()


def test_an_overflow_harms_a_neighbour_but_no_list() -> None:
    heap = SizeClasses(PlainProgram())
    a, b = heap.malloc(64), heap.malloc(64)
    heap.program.fill(a, 100, 0x41)
    heap.check()
    assert heap.program.read(b, 4) == b"AAAA"
    heap.free(a)
    heap.free(b)


# -- measures ------------------------------------------------------------------------------------------------

def test_fragmentation_is_measured_inside_and_between_blocks() -> None:
    heap = FreeList(PlainProgram(), grow=64)
    holes(heap, [496, 1008])
    state = fragmentation(heap, requested=2)
    assert state == Fragmentation(requested=2, used=64, free=state.free, other=0, largest_free=1024)
    assert state.internal == 1 - 2 / 64 and state.external == 1 - 1024 / state.free
    assert Fragmentation(0, 0, 0, 0, 0).utilisation == 1.0


def test_the_meter_knows_what_was_asked_for_and_the_worst_moment() -> None:
    meter = Meter(Ptmalloc(PlainProgram()))
    a = meter.malloc(1000)
    a = meter.realloc(a, 3000)
    b = meter.malloc(300_000)
    assert meter.requested == meter.peak_requested == 303_000
    assert meter.now().used >= 303_000                          # the mapped chunk counts too
    meter.free(b)
    meter.free(a)
    meter.free(0)
    assert meter.requested == 0 and meter.peak_requested == 303_000 and meter.peak_overhead > 1


@pytest.mark.parametrize("make", ALL)
def test_a_trace_leaves_every_allocator_sound(make: Callable[[PlainProgram], Allocator]) -> None:
    meter = Meter(make(PlainProgram()))
    trace = random_trace(seed=7, operations=600, sizes=lambda random: int(random.paretovariate(1.1) * 16), live=60)
    assert trace == random_trace(seed=7, operations=600, sizes=lambda random: int(random.paretovariate(1.1) * 16), live=60)
    states = play(meter, trace, every=50)
    meter.allocator.check()
    assert len(states) == 12
    for state in states:
        assert 0 <= state.internal < 1 and 0 <= state.external < 1 and 0 < state.utilisation <= 1
    assert max(state.heap for state in states) == meter.peak_heap
