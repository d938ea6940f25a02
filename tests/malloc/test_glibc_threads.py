"""glibc's malloc with several threads: arenas, their heaps, and what a fork makes of them."""

from __future__ import annotations

import pytest

from mmsim.constants import OVERCOMMIT_GUESS, OVERCOMMIT_NEVER, PROT_READ, PROT_WRITE
from mmsim.errors import InputError
from mmsim.malloc.glibc.layout import HEAP_MAX_SIZE
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.process_program import ProcessProgram
from mmsim.malloc.program import PlainProgram
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.reference import ref256
from mmsim.units import MIB


class Calls(PlainProgram):
    """A program that remembers how much it mapped and unmapped."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, int]] = []

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        self.made.append(("mmap", length))
        return super().mmap(addr, length, prot, flags)

    def munmap(self, addr: int, length: int) -> int:
        self.made.append(("munmap", length))
        return super().munmap(addr, length)


@pytest.fixture
def program() -> Calls:
    return Calls()


def test_a_second_thread_gets_an_arena_at_a_multiple_of_64_mib_opened_by_132_kib(program: Calls) -> None:
    libc = Ptmalloc(program)
    libc.malloc(1)
    libc.switch_to(libc.pthread_create())
    program.made.clear()
    memory = libc.malloc(1)
    assert program.made[0] == ("mmap", 128 * MIB)
    assert sum(size for name, size in program.made if name == "munmap") in (64 * MIB, 0)
    assert memory % HEAP_MAX_SIZE == 48 + 2200 + 8 + 656 + 16
    (area,) = [vma for vma in program.mm if vma.vm_start == memory & -HEAP_MAX_SIZE]
    assert area.vm_end - area.vm_start == 135_168 and area.vm_flags & 3 == PROT_READ | PROT_WRITE
    assert not libc.in_main_arena(memory - 16)
    libc.check()


def test_an_arenas_heap_grows_by_mprotect_and_a_second_heap_follows_when_64_mib_are_full(program: Calls) -> None:
    libc = Ptmalloc(program, tunables={"mmap_threshold": 32 * MIB})
    libc.switch_to(libc.pthread_create())
    held = [libc.malloc(20 * MIB) for _ in range(4)]
    bases = [memory & -HEAP_MAX_SIZE for memory in held]
    assert bases[0] == bases[1] == bases[2] != bases[3]
    libc.check()
    unmapped = program.made.count(("munmap", HEAP_MAX_SIZE))
    libc.free(held[3])
    assert program.made.count(("munmap", HEAP_MAX_SIZE)) == unmapped + 1        # a heap that holds nothing goes
    libc.check()
    for memory in held[:3]:
        libc.free(memory)
        libc.check()


@pytest.mark.parametrize(("policy", "kept"), [(OVERCOMMIT_GUESS, True), (OVERCOMMIT_NEVER, False)])
def test_a_heap_that_shrinks_gives_its_promise_back_only_where_promises_are_counted(policy: int, kept: bool) -> None:
    program = PlainProgram(Mm(overcommit=Overcommit(policy=policy)))
    libc = Ptmalloc(program, tunables={"mmap_threshold": 32 * MIB})
    libc.switch_to(libc.pthread_create())
    libc.malloc(1)
    memory = libc.malloc(8 * MIB)
    program.fill(memory, 8 * MIB, 1)
    promised, resident = program.mm.overcommit.committed, program.rss_pages
    libc.free(memory)
    assert program.rss_pages < resident - 1900
    assert (program.mm.overcommit.committed == promised) == kept
    assert libc.malloc(8 * MIB) == memory and program.read_word(memory + MIB) == 0
    libc.check()


def test_a_chunk_returns_to_the_arena_it_came_from(program: Calls) -> None:
    libc = Ptmalloc(program, tunables={"tcache_count": 0})
    first, second = libc.thread, libc.pthread_create()
    mine = libc.malloc(2000)
    libc.switch_to(second)
    theirs = libc.malloc(2000)
    libc.free(mine)
    libc.switch_to(first)
    libc.free(theirs)
    libc.check()
    assert libc.mallinfo2().fordblks == libc.mallinfo2().arena - libc.mallinfo2().uordblks
    assert [block.state for block in libc.walk()].count("used") == 0


def test_a_thread_that_ends_leaves_its_arena_to_the_next() -> None:
    libc = Ptmalloc(PlainProgram())
    libc.switch_to(libc.pthread_create())
    memory = libc.malloc(100)
    libc.free(memory)
    libc.pthread_exit()
    libc.check()
    assert [block.state for block in libc.walk() if block.address > libc.main_arena.top].count("cached") == 0
    libc.switch_to(libc.pthread_create())
    assert libc.malloc(100) & -HEAP_MAX_SIZE == memory & -HEAP_MAX_SIZE
    assert len(list(libc.arenas())) == 2
    with pytest.raises(InputError):
        libc.switch_to(libc.threads[0])
        libc.pthread_exit()


def test_there_are_8_arenas_a_core_and_then_threads_share() -> None:
    libc = Ptmalloc(PlainProgram(), cores=1)
    libc.malloc(1)
    for _ in range(12):
        libc.switch_to(libc.pthread_create())
        libc.malloc(1)
    assert libc.narenas == len(list(libc.arenas())) == 9
    assert sum(arena.attached_threads for arena in libc.arenas()) == 13
    libc.check()


def test_a_forked_child_shares_the_pages_and_goes_its_own_way() -> None:
    machine = ref256()
    parent = machine.spawn("parent")
    libc = Ptmalloc(ProcessProgram(parent))
    shared, freed = libc.malloc(1000), libc.malloc(1000)
    libc.program.write(shared, b"before")
    libc.free(freed)
    child = libc.fork(ProcessProgram(machine.processes[parent.fork()]))
    assert child.malloc(1000) == freed == libc.malloc(1000)        # each took it from a cache of its own
    child.program.write(shared, b"child ")
    assert libc.program.read(shared, 6) == b"before"
    child.free(freed)
    child.malloc(100_000)
    child.check()
    libc.check()
    assert child.program.sbrk(0) == libc.program.sbrk(0)
    child.malloc(100_000)
    assert child.program.sbrk(0) > libc.program.sbrk(0)


def test_threads_stay_behind_when_a_process_forks() -> None:
    machine = ref256()
    parent = machine.spawn("parent")
    libc = Ptmalloc(ProcessProgram(parent))
    first = libc.thread
    libc.malloc(1)
    libc.switch_to(libc.pthread_create())
    theirs = libc.malloc(1)
    libc.switch_to(first)
    child = libc.fork(ProcessProgram(machine.processes[parent.fork()]))
    assert len(child.threads) == 1 and len(libc.threads) == 2
    child.switch_to(child.pthread_create())
    assert child.malloc(1) & -HEAP_MAX_SIZE == theirs & -HEAP_MAX_SIZE      # the arena that nobody had any more
    assert len(list(child.arenas())) == 2
    child.check()
    libc.check()
