"""The worked numbers of chapter 7, and the numbers in the solutions of its exercises."""

from __future__ import annotations

from collections import Counter
from itertools import count
from random import Random

from mmsim.constants import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    OVERCOMMIT_NEVER,
    PROT_READ,
    PROT_WRITE,
    RLIM_INFINITY,
    VM_MAYREAD,
    VM_READ,
    VM_SHARED,
)
from mmsim.errors import Errno
from mmsim.lab import Lab
from mmsim.process.layout import draw_layout, mmap_base
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.populate import Access
from mmsim.process.syscalls import SystemCalls
from mmsim.process.task import Process
from mmsim.process.vma import Vma
from mmsim.reference import ref256
from mmsim.units import GIB, MIB, PAGE_SIZE

RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
BASE = 0x10000000


def program() -> tuple[Process, range]:
    process = ref256().spawn("program")
    base = process.mmap(0, 64 * PAGE_SIZE, RW, ANON)
    return process, range(base, base + 64 * PAGE_SIZE, PAGE_SIZE)


def faults(process: Process, pages: range) -> tuple[int, int]:
    counters = process.machine.counters
    before = process.minflt, counters["pgreuse"]
    for address in pages:
        process.write(address, b"x")
    return process.minflt - before[0], counters["pgreuse"] - before[1]


# -- worked numbers ---------------------------------------------------------------------------------------------

def test_the_middle_page_read_only_makes_three_areas_and_back_one() -> None:
    for written in (False, True):
        mm = Mm()
        calls = SystemCalls(mm)
        base = calls.mmap(0, 3 * PAGE_SIZE, RW, ANON)
        if written:
            calls.touch(base + PAGE_SIZE, Access.WRITE)
        calls.mprotect(base + PAGE_SIZE, PAGE_SIZE, PROT_READ)
        assert mm.map_count == 3
        calls.mprotect(base + PAGE_SIZE, PAGE_SIZE, RW)
        assert mm.map_count == 1


def test_64_pages_forked_are_copied_by_the_child_and_reused_by_the_parent() -> None:
    parent, pages = program()
    assert faults(parent, pages) == (64, 0)
    child = parent.table.processes[parent.fork()]
    assert faults(child, pages) == (64, 0)
    assert faults(parent, pages) == (64, 64)


def test_64_pages_after_an_mprotect_round_trip_are_60_reuses_and_4_copies_or_64_reuses_after_a_drain() -> None:
    for drained, reused in ((False, 60), (True, 64)):
        process, pages = program()
        faults(process, pages)
        process.mprotect(pages[0], 64 * PAGE_SIZE, PROT_READ)
        process.mprotect(pages[0], 64 * PAGE_SIZE, RW)
        if drained:
            process.machine.user.lru.lru_add_drain()
        assert faults(process, pages) == (64, reused)


def test_a_childs_heap_grows_in_a_second_area() -> None:
    lab = Lab()
    lab.run("brk(+40K)\nwrite 0x555555559000 40K\nfork -> child\nchild: brk(+160K)\nbrk(+160K)")
    assert [sum(area.line.name == "[heap]" for area in process.areas) for process in lab.snapshot().processes] == [1, 2]


def test_the_base_of_mappings_with_and_without_randomisation() -> None:
    top = ((1 << 28) - 1) << 12
    assert [hex(mmap_base(8 * MIB, rnd, randomize=True)) for rnd in (top, 0)] == ["0x7efbff701000", "0x7ffbff700000"]
    assert hex(mmap_base(8 * MIB)) == "0x7ffff7fff000"


def test_the_index_of_an_anonymous_page_is_its_address_at_birth() -> None:
    process = ref256().spawn("program")
    address = process.mmap(0x7ffff7dff000, PAGE_SIZE, RW, ANON | MAP_FIXED)
    process.write(address, b"x")
    ((_, pfn),) = process.space.mapped_pages()
    assert process.user.index[pfn] == 0x7ffff7dff
    moved = process.mremap(address, PAGE_SIZE, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, BASE)
    assert moved == BASE and process.user.index[pfn] == 0x7ffff7dff


# -- exercises --------------------------------------------------------------------------------------------------

def test_exercise_1_a_hole_at_the_limit_fails_and_a_border_may_move() -> None:
    mm = Mm(privileged=True)
    calls = SystemCalls(mm)
    answer = 0
    for number in count():
        answer = calls.mmap(0, 3 * PAGE_SIZE, (RW, PROT_READ)[number % 2], ANON)
        if answer < 0:
            break
    assert (answer, mm.map_count) == (-12, 65_531)
    areas = list(mm.tree)
    calls.munmap(areas[0].vm_start, 3 * PAGE_SIZE)
    assert mm.map_count == 65_530
    assert calls.munmap(areas[9].vm_start + PAGE_SIZE, PAGE_SIZE) == -12
    assert calls.munmap(areas[9].vm_start, PAGE_SIZE) == 0
    assert calls.madvise(areas[20].vm_start + PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED) == 0


def test_exercise_2_areas_written_apart_never_merge_but_later_ones_share_their_anon_vma() -> None:
    mm = Mm()
    calls = SystemCalls(mm)
    calls.mmap(BASE, 2 * PAGE_SIZE, RW, ANON | MAP_FIXED)
    calls.mmap(BASE + 3 * PAGE_SIZE, PAGE_SIZE, RW, ANON | MAP_FIXED)
    for page in (0, 3):
        calls.touch(BASE + page * PAGE_SIZE, Access.WRITE)
    calls.mmap(BASE + 2 * PAGE_SIZE, PAGE_SIZE, RW, ANON | MAP_FIXED)
    assert mm.map_count == 2
    calls.mprotect(BASE, 4 * PAGE_SIZE, PROT_READ)
    assert mm.map_count == 2
    other = Mm()
    calls = SystemCalls(other)
    calls.mmap(BASE, 2 * PAGE_SIZE, RW, ANON | MAP_FIXED)
    calls.mprotect(BASE + PAGE_SIZE, PAGE_SIZE, PROT_READ)
    calls.touch(BASE, Access.WRITE)
    calls.mprotect(BASE + PAGE_SIZE, PAGE_SIZE, RW)
    assert other.map_count == 1


def test_exercises_3_and_4_one_page() -> None:
    lab = Lab()
    steps = lab.run('a = mmap(4K, rw, private|anon)\nwrite a "1"\ndrain\nfork -> child\nchild: write a "2"\nwrite a "3"')
    assert [step.faults for step in steps if step.faults] == [("new page",), ("copy",), ("reuse",)]
    lab = Lab()
    steps = lab.run('a = mmap(4K, rw, private|anon)\nwrite a "1"\nfork -> child\nchild: write a "2"\nwrite a "3"')
    assert [step.faults for step in steps if step.faults] == [("new page",), ("copy",), ("copy",)]
    lab = Lab()
    steps = lab.run('a = mmap(4K, rw, private|anon)\nwrite a "1"\nfork -> child\nexit child\nwrite a "3"')
    assert [step.faults for step in steps if step.faults] == [("new page",), ("reuse",)]


def test_exercise_5_what_is_left_of_16_gib() -> None:
    for privileged, most in ((False, 7128 * 256 - 1), (True, 7136 * 256 - 1)):
        for pages, fits in ((most, True), (most + 1, False)):
            account = Overcommit(16 * GIB >> 12, policy=OVERCOMMIT_NEVER, committed=GIB >> 12)
            assert account.commit_limit() == 8 * GIB >> 12
            try:
                account.charge(pages, GIB >> 12, privileged)
                done = True
            except Errno:
                done = False
            assert done == fits


def test_exercise_6_a_stack_without_limit() -> None:
    gap = 0x7ffffffff000 // 6 * 5
    assert (hex(gap), hex(0x7ffffffff000 - gap)) == ("0x6aaaaaaa9d52", "0x1555555552ae")
    assert hex(mmap_base(RLIM_INFINITY)) == "0x155555556000"


def test_exercise_9_birthdays_of_stacks() -> None:
    assert 19_300 < 1.18 * 2**14 < 19_400 and 2_400 < 1.18 * 2**11 < 2_420
    tries = []
    for seed in range(12):
        random, seen = Random(seed), set()
        while (top := draw_layout(random).stack_top) not in seen:
            seen.add(top)
        tries.append(len(seen))
    assert 1_200 < sorted(tries)[6] < 4_800


def test_exercise_10_calls_that_fail_and_change_something() -> None:
    mm = Mm(overcommit=Overcommit(1 << 20, policy=OVERCOMMIT_NEVER))
    calls = SystemCalls(mm)
    calls.mmap(BASE, PAGE_SIZE, PROT_READ, ANON | MAP_FIXED)
    mm.overcommit.committed = 1 << 20
    assert calls.mmap(BASE, PAGE_SIZE, RW, ANON | MAP_FIXED) == -12 and mm.map_count == 0

    mm = Mm()
    calls = SystemCalls(mm)
    calls.mmap(BASE, PAGE_SIZE, RW, ANON | MAP_FIXED)
    mm.link(Vma(BASE + PAGE_SIZE, BASE + 2 * PAGE_SIZE, VM_READ | VM_MAYREAD | VM_SHARED, 0))
    assert calls.mprotect(BASE, 2 * PAGE_SIZE, PROT_READ) == 0
    assert calls.mprotect(BASE, 2 * PAGE_SIZE, RW) == -13
    first = mm.tree.lookup(BASE)
    assert first is not None and first.vm_flags & 2

    mm = Mm()
    calls = SystemCalls(mm)
    calls.mmap(BASE, PAGE_SIZE, RW, ANON | MAP_FIXED)
    calls.mmap(BASE + 8 * PAGE_SIZE, PAGE_SIZE, RW, ANON | MAP_FIXED)
    answer = calls.mremap(BASE, 2 * PAGE_SIZE, 2 * PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + 8 * PAGE_SIZE)
    assert answer == -14 and mm.tree.lookup(BASE + 8 * PAGE_SIZE) is None
    assert calls.madvise(BASE, 2 * PAGE_SIZE, MADV_DONTNEED) == -12


def test_exercise_11_the_small_model_with_exit_against_a_dictionary() -> None:
    memory: dict[int, str] = {}
    users: dict[int, int] = {}
    numbers = count()

    def new_frame(contents: str) -> int:
        frame = next(numbers)
        memory[frame], users[frame] = contents, 1
        return frame

    def fork(table: dict[int, tuple[int, bool]]) -> dict[int, tuple[int, bool]]:
        for page, (frame, _) in table.items():
            users[frame] += 1
            table[page] = frame, False
        return dict(table)

    def write(table: dict[int, tuple[int, bool]], page: int, value: str) -> None:
        frame, writable = table.get(page, (None, False))
        if frame is None:
            frame = new_frame(value)
        elif not writable and users[frame] > 1:
            users[frame] -= 1
            frame = new_frame(value)
        memory[frame], table[page] = value, (frame, True)

    def leave(table: dict[int, tuple[int, bool]]) -> None:
        for frame, _ in table.values():
            users[frame] -= 1
            if not users[frame]:
                del users[frame], memory[frame]
        table.clear()

    random = Random(7)
    tables: list[dict[int, tuple[int, bool]]] = [{}]
    values: list[dict[int, str]] = [{}]
    for step in range(3000):
        who, what = random.randrange(len(tables)), random.random()
        if what < 0.8:
            page = random.randrange(6)
            write(tables[who], page, str(step))
            values[who][page] = str(step)
        elif what < 0.9 and len(tables) < 5:
            tables.append(fork(tables[who]))
            values.append(dict(values[who]))
        elif len(tables) > 1:
            leave(tables.pop(who))
            values.pop(who)
        for table, known in zip(tables, values):
            assert {page: memory[frame] for page, (frame, _) in table.items()} == known
        assert Counter(frame for table in tables for frame, _ in table.values()) == users
