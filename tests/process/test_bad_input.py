"""Bad arguments: the kernel's errno or signal, and afterwards everything still fits together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MS_SYNC,
    OVERCOMMIT_NEVER,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    TASK_SIZE,
)
from mmsim.errors import errno_name
from mmsim.process.populate import Access, Outcome
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile
from mmsim.reference import ref256, toy16
from mmsim.units import U64_MAX

P = 4096
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
TOP = U64_MAX - P + 1


@pytest.fixture
def process() -> Process:
    return ref256().spawn("test")


def name(result: int) -> str:
    return errno_name(result) if -4096 < result < 0 else "ok"


UNALIGNED = [("munmap", (1, P)), ("mprotect", (1, P, RW)), ("mremap", (1, P, P)), ("madvise", (1, P, MADV_DONTNEED)),
             ("msync", (1, P, MS_SYNC)), ("mincore", (1, P, bytearray())), ("mmap", (16, P, RW, ANON | MAP_FIXED)),
             ("mremap", (0, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, 1))]


@pytest.mark.parametrize(("call", "arguments"), UNALIGNED)
def test_an_address_that_is_no_pages_is_invalid(process: Process, call: str, arguments: tuple[int, ...]) -> None:
    at = process.mmap(0, 4 * P, RW, ANON)
    assert name(getattr(process, call)(at + arguments[0], *arguments[1:])) == "EINVAL"
    process.check()


def test_locking_takes_any_address_and_rounds(process: Process) -> None:
    at = process.mmap(0, 4 * P, RW, ANON)
    assert process.mlock(at + 1, P) == 0 and process.mm.locked_vm == 2
    assert process.munlock(at + 5, 1) == 0 and process.mm.locked_vm == 1
    process.check()


ZERO = [("mmap", (0, RW, ANON), "EINVAL"), ("munmap", (0,), "EINVAL"), ("mprotect", (0, PROT_READ), "ok"), ("mremap", (P, 0), "EINVAL"),
        ("mremap", (0, P, MREMAP_MAYMOVE), "EINVAL"), ("madvise", (0, MADV_DONTNEED), "ok"), ("mlock", (0,), "ok"), ("munlock", (0,), "ok"),
        ("msync", (0, MS_SYNC), "ok"), ("mincore", (0, bytearray()), "ok")]


@pytest.mark.parametrize(("call", "arguments", "answer"), ZERO)
def test_a_length_of_zero_is_an_error_for_some(process: Process, call: str, arguments: tuple[int, ...], answer: str) -> None:
    at = process.mmap(0, 4 * P, RW, ANON)
    assert name(getattr(process, call)(at, *arguments)) == answer
    process.check()


WRAPS = [("mmap", (U64_MAX, RW, ANON), "ENOMEM"), ("mmap", (TASK_SIZE, RW, ANON), "ENOMEM"), ("munmap", (U64_MAX - P,), "EINVAL"),
         ("mprotect", (TOP, PROT_READ), "ENOMEM"), ("madvise", (U64_MAX, MADV_DONTNEED), "EINVAL"),
         ("madvise", (TOP, MADV_DONTNEED), "EINVAL"),
         ("mlock", (TOP,), "EINVAL"), ("munlock", (TOP,), "EINVAL"), ("msync", (TOP, MS_SYNC), "ENOMEM"),
         ("mincore", (TOP, bytearray()), "ENOMEM"), ("mremap", (P, U64_MAX), "EINVAL"), ("mremap", (P, TOP), "ENOMEM")]


@pytest.mark.parametrize(("call", "arguments", "answer"), WRAPS)
def test_a_range_that_wraps_is_refused_in_each_calls_own_way(process: Process, call: str, arguments: tuple[int, ...], answer: str) -> None:
    process.mm.privileged = True                        # no RLIMIT_MEMLOCK in the way
    at = process.mmap(0, 4 * P, RW, ANON)
    assert name(getattr(process, call)(at, *arguments)) == answer
    process.check()


FLAGS = [("mprotect", (P, 0x10), "EINVAL"), ("mremap", (P, P, 8), "EINVAL"), ("mlock2", (P, 2), "EINVAL"), ("mlockall", (), "EINVAL"),
         ("msync", (P, 8), "EINVAL"), ("madvise", (P, 999), "EINVAL"), ("madvise", (P, -1), "EINVAL")]


@pytest.mark.parametrize(("call", "arguments", "answer"), FLAGS)
def test_unknown_flags_are_invalid(process: Process, call: str, arguments: tuple[int, ...], answer: str) -> None:
    at = process.mmap(0, P, RW, ANON)
    first = (8,) if call == "mlockall" else (at,)
    assert name(getattr(process, call)(*first, *arguments)) == answer
    process.check()


def test_mmap_ignores_flags_that_it_does_not_know_but_for_shared_validate(process: Process) -> None:
    file = MappedFile("f", 4)
    assert process.mmap(0, P, PROT_READ, ANON | 1 << 40) > 0 and process.mmap(0, P, PROT_READ, MAP_SHARED | 0x8000000, file) > 0
    assert name(process.mmap(0, P, PROT_READ, 3 | 1 << 25, file)) == "EOPNOTSUPP"
    assert name(process.mmap(0, P, PROT_READ, 4 | MAP_ANONYMOUS)) == "EINVAL"
    process.check()


HOLES = [
    (0, Access.READ, "SEGV_MAPERR"), (0, Access.WRITE, "SEGV_MAPERR"), (0, Access.EXEC, "SEGV_MAPERR"),        # the null page
    (0x1000_0000 - 1, Access.READ, "SEGV_MAPERR"), (0x1000_0000 + 4 * P, Access.WRITE, "SEGV_MAPERR"),            # beside an area
    (0x1000_0000 + P, Access.READ, "SEGV_ACCERR"), (0x1000_0000 + P, Access.WRITE, "SEGV_ACCERR"),                # PROT_NONE
    (0x1000_0000 + 2 * P, Access.WRITE, "SEGV_ACCERR"), (0x1000_0000, Access.EXEC, "SEGV_ACCERR"),                # read-only; data
    (0x2000_0000 + 2 * P, Access.READ, "BUS_ADRERR"), (0x2000_0000 + 2 * P, Access.WRITE, "BUS_ADRERR"),          # after the file's end
    (0x3000_0000 - (2 << 20), Access.WRITE, "SEGV_MAPERR"),                                                    # below the stack's guard gap
    (TASK_SIZE, Access.READ, "SEGV_MAPERR"), (1 << 47, Access.READ, "SI_KERNEL"), (1 << 62, Access.WRITE, "SI_KERNEL"),
    (0xFFFF_8880_0000_0000, Access.READ, "SEGV_MAPERR"), (U64_MAX, Access.WRITE, "SEGV_MAPERR")]              # the kernel's half


@pytest.mark.parametrize(("address", "access", "code"), HOLES)
def test_every_kind_of_hole_has_its_signal(process: Process, address: int, access: Access, code: str) -> None:
    process.mmap(0x1000_0000, 4 * P, RW, ANON | MAP_FIXED)
    process.mprotect(0x1000_0000 + P, P, PROT_NONE)
    process.mprotect(0x1000_0000 + 2 * P, P, PROT_READ)
    process.mmap(0x2000_0000, 4 * P, RW, MAP_SHARED | MAP_FIXED, MappedFile("f", 2, shmem=True))
    process.mmap(0x3000_0000, 2 * P, RW, ANON | MAP_FIXED | MAP_GROWSDOWN)
    process.mmap(0x3000_0000 - (3 << 20), P, RW, ANON | MAP_FIXED)
    process.mm.limits.stack = 1 << 20
    touch = process.touch(address, access)
    assert touch.code == code and touch.outcome is (Outcome.SIGBUS if code.startswith("BUS") else Outcome.SIGSEGV)
    assert process.touch(0x1000_0000, Access.WRITE).outcome is Outcome.OK
    process.table.check()


def test_an_access_across_the_border_of_an_area_ends_there(process: Process) -> None:
    at = process.mmap(0, 2 * P, RW, ANON)
    process.munmap(at + P, P)
    touch = process.write(at + P - 4, b"12345678")
    assert touch.outcome is Outcome.SIGSEGV and touch.address == at + P and process.read(at + P - 4, 8) == b"1234"
    process.table.check()


def test_execution_needs_the_right_even_where_a_page_is_there(process: Process) -> None:
    at = process.mmap(0, P, RW, ANON)
    process.write(at, b"\xc3")
    assert process.touch(at, Access.EXEC).code == "SEGV_ACCERR"
    process.mprotect(at, P, PROT_READ | PROT_EXEC)
    assert process.touch(at, Access.EXEC).outcome is Outcome.OK


def test_fork_without_promised_memory_fails_and_leaves_nothing(process: Process) -> None:
    overcommit = process.user.overcommit
    at = process.mmap(0, 64 << 20, RW, ANON)
    process.write(at, b"x")
    overcommit.policy, overcommit.ratio = OVERCOMMIT_NEVER, 50
    committed = overcommit.committed
    process.mm.privileged = True
    results = [process.fork() for _ in range(3)]
    assert results[-1] == -12 and process.why
    alive = [child for child in process.children if child.alive]
    assert overcommit.committed == committed + len(alive) * (64 << 8)
    for child in alive:
        child.exit()
    assert overcommit.committed == committed and process.read(at) == b"x"
    process.table.check()


def test_fork_without_frames_for_its_tables_fails_and_leaves_nothing() -> None:
    machine = toy16()
    process = machine.spawn("fat")
    overcommit = process.user.overcommit
    overcommit.policy = 1
    base = 0x1000_0000_0000
    # Sparse pages: each wants a table of its own, in the child too.
    for number in range(400):
        process.mmap(base + (number << 21), P, RW, ANON | MAP_FIXED)
        assert process.write(base + (number << 21), b"x").outcome is Outcome.OK
    committed = overcommit.committed
    results, children = [], []
    for _ in range(30):
        results.append(process.fork())
        if results[-1] < 0:
            break
        children.append(machine.processes[results[-1]])
    assert results[-1] == -12
    process.table.check()
    assert all(child.read(base) == b"x" for child in children)
    for child in children:
        child.exit()
    assert overcommit.committed == committed
    process.table.check()
    assert process.fork() > 0                           # there is room again
    machine.check()


def test_a_child_at_the_limit_of_areas_splits_as_little_as_its_parent(process: Process) -> None:
    process.mm.max_map_count = 6
    at = process.mmap(0, 11 * P, RW, ANON)
    for page in (1, 3, 5):
        result = process.mprotect(at + page * P, P, PROT_READ)
    assert name(result) == "ENOMEM"
    child = process.table.processes[process.fork()]
    assert child.mm.max_map_count == 6 and name(child.munmap(at + 8 * P, P)) == "ENOMEM" and name(child.munmap(at, P)) == "ok"
    process.table.check()


_NUMBERS = st.one_of(st.sampled_from([0, 1, P - 1, P, P + 1, 4 * P, 64 * P, 0x1000_0000, 0x1000_0000 + P, 0x1000_0000 + 8 * P, 0x2000_0000,
                                      TASK_SIZE - P, TASK_SIZE, 1 << 47, 1 << 63, TOP, U64_MAX, U64_MAX - P, -1, -P]),
                     st.integers(0, 40).map(lambda page: 0x1000_0000 + page * P), st.integers(0, U64_MAX))
_SMALL = st.one_of(st.integers(0, 15), st.sampled_from([0x22, 0x32, 0x21, 0x31, 0x122, 0x8022, 0x100032, 0x40022, 1 << 31, -1]))
_CALLS = st.one_of(
    st.tuples(st.just("mmap"), st.tuples(_NUMBERS, _NUMBERS.map(lambda n: n if n > 1 << 46 else n & 0xFFFFF), _SMALL, _SMALL)),
    st.tuples(st.sampled_from(["munmap", "mlock", "munlock"]), st.tuples(_NUMBERS, _NUMBERS)),
    st.tuples(st.sampled_from(["mprotect", "mlock2", "msync"]), st.tuples(_NUMBERS, _NUMBERS, _SMALL)),
    st.tuples(st.just("madvise"), st.tuples(_NUMBERS, _NUMBERS, st.integers(-1, 30))),
    st.tuples(st.just("mincore"), st.tuples(_NUMBERS, _NUMBERS.map(lambda n: n if n > 1 << 46 else n & 0xFFFFF), _NUMBERS)),
    st.tuples(st.just("mremap"), st.tuples(_NUMBERS, _NUMBERS, _NUMBERS.map(lambda n: n if n > 1 << 46 else n & 0xFFFFF), st.integers(0, 9),
                                           _NUMBERS)),
    st.tuples(st.just("brk"), st.tuples(_NUMBERS)), st.tuples(st.just("mlockall"), st.tuples(st.integers(0, 9))),
    st.tuples(st.sampled_from(["read", "write", "exec"]), st.tuples(_NUMBERS)))
#: What these calls may return at all.
_ERRNOS = {"EINVAL", "ENOMEM", "EEXIST", "EPERM", "EAGAIN", "EACCES", "EFAULT", "EBADF", "EBUSY", "EOVERFLOW", "EOPNOTSUPP"}


@settings(max_examples=120, deadline=None)
@given(st.lists(_CALLS, max_size=25))
def test_whatever_the_arguments_a_call_returns_a_kernels_answer_and_everything_still_fits(calls: list[tuple[str, tuple[int, ...]]]) -> None:
    process = ref256().spawn("fuzz")
    process.mmap(0x1000_0000, 16 * P, RW, ANON | MAP_FIXED)
    process.mmap(0x2000_0000, 8 * P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    process.write(0x1000_0000, bytes(8 * P))
    for call, arguments in calls:
        if call in ("read", "write", "exec"):
            touch = process.touch(arguments[0], Access(call))
            assert touch.outcome in (Outcome.OK, Outcome.SIGSEGV, Outcome.SIGBUS)
            continue
        result = getattr(process, call)(*arguments)
        assert result >= 0 or errno_name(result) in _ERRNOS, (call, arguments, result)
        assert 0 <= result <= TASK_SIZE or result < 0
    process.table.check()
    process.exit()
    process.table.check()
