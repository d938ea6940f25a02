"""/proc/PID of simulated processes: what areas and page tables hold is what the texts say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import (
    MADV_DONTNEED,
    MADV_FREE,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.process.mm import Mm
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile
from mmsim.procfs.process import PROCESS_FILES, kpagecount, kpageflags, pagemap, process_file, smap_gather_stats
from mmsim.procfs.smaps import parse_rollup, parse_smaps
from mmsim.procfs.status import Statm, StatusMemory
from mmsim.reference import ref256

P = 4096
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS


@pytest.fixture
def machine() -> Machine:
    return ref256()


def spawn(machine: Machine, soft_dirty: bool = False) -> Process:
    return machine.process_table.spawn("test", Mm(rules=machine.rules, overcommit=machine.overcommit, soft_dirty=soft_dirty,
                                                  privileged=True))


def area(process: Process, start: int) -> dict[str, int]:
    (found,) = [entry for entry in parse_smaps(process_file(process, "smaps")) if entry.line.start == start]
    names = ("resident", "pss", "shared_clean", "shared_dirty", "private_clean", "private_dirty", "referenced", "anonymous", "lazyfree")
    return {name: found.stats.kib(name) for name in names if found.stats.kib(name)}


def test_an_untouched_area_has_nothing_and_the_page_of_zeros_counts_as_nothing(machine: Machine) -> None:
    process = spawn(machine)
    at = process.mmap(0, 8 * P, RW, ANON)
    assert area(process, at) == {}
    process.read(at, 3 * P)
    assert area(process, at) == {} and Statm.parse(process_file(process, "statm")).resident == 0


def test_written_pages_are_private_dirty_and_anonymous(machine: Machine) -> None:
    process = spawn(machine)
    at = process.mmap(0, 8 * P, RW, ANON)
    process.write(at, bytes(3 * P))
    assert area(process, at) == dict.fromkeys(("resident", "pss", "private_dirty", "referenced", "anonymous"), 12)


def test_after_fork_every_page_is_shared_and_pss_is_half(machine: Machine) -> None:
    process = spawn(machine)
    at = process.mmap(0, 8 * P, RW, ANON)
    process.write(at, bytes(8 * P))
    child = machine.processes[process.fork()]
    # The child's entries begin without the accessed bit; the page itself keeps no trace of it.
    assert area(child, at) == {"resident": 32, "pss": 16, "shared_dirty": 32, "anonymous": 32}
    assert area(process, at) == {"resident": 32, "pss": 16, "shared_dirty": 32, "referenced": 32, "anonymous": 32}
    child.write(at, b"x")
    assert area(child, at)["pss"] == 18 and area(child, at)["private_dirty"] == 4
    child.exit()
    assert area(process, at)["pss"] == 32


def test_pages_given_up_with_madv_free_are_clean_and_lazily_freed(machine: Machine) -> None:
    process = spawn(machine)
    at = process.mmap(0, 32 * P, RW, ANON)
    process.write(at, bytes(32 * P))
    process.madvise(at, 32 * P, MADV_FREE)
    # The last two wait in a batch of 15: exactly what the recorded kernel shows.
    assert area(process, at) == {"resident": 128, "pss": 128, "private_clean": 128, "anonymous": 128, "lazyfree": 120}


def test_a_file_that_two_areas_show_is_shared_even_within_one_process(machine: Machine) -> None:
    process, file = spawn(machine), MappedFile("/memfd:x (deleted)", 8, shmem=True)
    one, two = process.mmap(0, 8 * P, RW, MAP_SHARED, file), process.mmap(0, 8 * P, RW, MAP_SHARED, file)
    process.write(one, bytes(8 * P))
    assert area(process, one)["private_dirty"] == 32
    process.read(two, 8 * P)
    assert area(process, one) == area(process, two) == {"resident": 32, "pss": 16, "shared_dirty": 32, "referenced": 32}
    start, end, rollup = parse_rollup(process_file(process, "smaps_rollup"))
    assert (start, end) == (two, one + 8 * P) and rollup.kib("pss_shmem") == rollup.kib("pss") == 32 and rollup.kib("pss_anon") == 0
    status = StatusMemory.parse(process_file(process, "status"))
    assert (status.rss_shmem, status.rss_anon, status.vm_rss) == (64, 0, 64)


def test_status_and_statm_count_areas_by_kind(machine: Machine) -> None:
    process, program = spawn(machine), MappedFile("/bin/x", 16)
    code = process.mmap(0x400000, 4 * P, PROT_READ | PROT_EXEC, MAP_PRIVATE, program)
    library = process.mmap(0, 8 * P, PROT_READ | PROT_EXEC, MAP_PRIVATE, MappedFile("/lib/l.so", 8))
    process.mm.start_code, process.mm.end_code = code, code + 3 * P + 100
    data = process.mmap(0, 16 * P, RW, ANON)
    process.write(data, bytes(2 * P))
    process.read(library)
    status = StatusMemory.parse(process_file(process, "status"))
    assert (status.vm_exe, status.vm_lib, status.vm_data, status.vm_stk, status.vm_size) == (16, 32, 64, 0, 112)
    assert status.vm_pte == process.mm.pgtables_bytes >> 10 and status.rss_anon == 8
    assert process_file(process, "statm") == f"28 {2 + status.rss_file // 4} {status.rss_file // 4} 4 0 16 0\n"


def test_peaks_stay_when_memory_goes(machine: Machine) -> None:
    process = spawn(machine)
    at = process.mmap(0, 100 * P, RW, ANON)
    process.write(at, bytes(50 * P))
    process.munmap(at, 90 * P)
    status = StatusMemory.parse(process_file(process, "status"))
    assert (status.vm_peak, status.vm_size, status.vm_hwm, status.vm_rss) == (400, 40, 200, 0)
    child = machine.processes[process.fork()]
    assert StatusMemory.parse(process_file(child, "status")).vm_peak == 40


def test_dontneed_is_remembered_as_the_peak_too(machine: Machine) -> None:
    process = spawn(machine)
    at = process.mmap(0, 20 * P, RW, ANON)
    process.write(at, bytes(20 * P))
    process.madvise(at, 20 * P, MADV_DONTNEED)
    status = StatusMemory.parse(process_file(process, "status"))
    assert (status.vm_hwm, status.vm_rss) == (80, 0)


def test_pagemap_says_where_pages_are_to_root_only(machine: Machine) -> None:
    process = spawn(machine)
    at = process.mmap(0, 3 * P, RW, ANON)
    process.write(at, b"x")
    process.read(at + P)
    word, zero, nothing = pagemap(process, at, 3, admin=True)
    pfn = word & (1 << 55) - 1
    assert word >> 55 == (PM_PRESENT | PM_MMAP_EXCLUSIVE) >> 55 and kpagecount(process.user, pfn) == 1
    assert zero == PM_PRESENT | process.user.zero_pfn and nothing == 0
    assert [entry & (1 << 55) - 1 for entry in pagemap(process, at, 3)] == [0, 0, 0]
    process.fork()
    shared = pagemap(process, at, 1, admin=True)[0]
    assert shared == PM_PRESENT | pfn and kpagecount(process.user, pfn) == 2
    # UPTODATE, MMAP, ANON, SWAPBACKED; the page of zeros is a reserved one.
    assert kpageflags(process.user, pfn) & ~(1 << 5) == 0x5808 and kpageflags(process.user, process.user.zero_pfn) >> 24 & 1


def test_pagemap_shows_files_and_soft_dirty(machine: Machine) -> None:
    process = spawn(machine, soft_dirty=True)
    file = MappedFile("f", 4)
    at = process.mmap(0, 4 * P, PROT_READ, MAP_SHARED, file)
    process.read(at)
    assert pagemap(process, at, 1)[0] == PM_PRESENT | PM_FILE | PM_MMAP_EXCLUSIVE | PM_SOFT_DIRTY
    # An area that is new is soft-dirty as a whole, whatever is in it; outside of areas there is nothing.
    assert pagemap(process, at + P, 1)[0] in (PM_SOFT_DIRTY, PM_PRESENT | PM_FILE | PM_MMAP_EXCLUSIVE | PM_SOFT_DIRTY)
    assert pagemap(process, at + 4 * P, 1) == [0]


def test_pagemap_ends_with_user_space_and_refuses_half_pages(machine: Machine) -> None:
    process = spawn(machine)
    assert len(pagemap(process, 0x7FFF_FFFF_D000, 10)) == 2 and pagemap(process, 1 << 63, 4) == []
    with pytest.raises(InputError, match="EINVAL"):
        pagemap(process, 0x123, 1)


def test_files_are_reached_through_the_machine_by_pid(machine: Machine) -> None:
    process = spawn(machine)
    process.mmap(0, P, RW, ANON)
    for name in PROCESS_FILES:
        assert machine.proc(f"{process.pid}/{name}") == process_file(process, name) != ""
    for wrong in (f"{process.pid}/mem", "99/maps", "self/maps"):
        with pytest.raises(InputError):
            machine.proc(wrong)
    process.exit()
    with pytest.raises(InputError):
        machine.proc(f"{process.pid}/maps")


def test_a_process_without_areas_has_no_rollup(machine: Machine) -> None:
    with pytest.raises(InputError, match="ESRCH"):
        process_file(spawn(machine), "smaps_rollup")
    assert process_file(spawn(machine), "smaps") == process_file(spawn(machine), "maps") == ""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["write", "read", "fork", "exit", "dontneed", "free", "protect"]), st.integers(0, 3),
                          st.integers(0, 15), st.integers(1, 6)), max_size=30))
def test_whatever_processes_do_the_sums_are_right(ops: list[tuple[str, int, int, int]]) -> None:
    """Rss of smaps is RSS of status; over all processes the shares of anonymous pages add up to the frames that there are."""
    machine = ref256()
    first = spawn(machine)
    at = first.mmap(0x1000_0000, 16 * P, RW, ANON)
    for op, who, page, pages in ops:
        alive = [process for process in machine.processes.values() if process.alive]
        process = alive[who % len(alive)]
        start, pages = at + page * P, min(pages, 16 - page)
        if op == "fork" and len(alive) < 4:
            process.fork()
        elif op == "exit" and len(alive) > 1:
            process.exit()
        elif op == "write":
            process.write(start, bytes(pages * P))
        elif op == "read":
            process.read(start, pages * P)
        elif op in ("dontneed", "free"):
            process.madvise(start, pages * P, MADV_DONTNEED if op == "dontneed" else MADV_FREE)
        elif op == "protect":
            process.mprotect(start, pages * P, PROT_READ if page & 1 else RW)
    machine.process_table.check()
    shares, frames = 0, set()
    for process in machine.processes.values():
        if not process.alive:
            continue
        gathered = [smap_gather_stats(process.mm, vma) for vma in process.mm]
        status = StatusMemory.parse(process_file(process, "status"))
        assert sum(stats.resident for stats in gathered) == status.vm_rss << 10 == sum(stats.anonymous for stats in gathered)
        assert parse_rollup(process_file(process, "smaps_rollup"))[2].kib("resident") == status.vm_rss
        shares += sum(stats.pss for stats in gathered)
        frames |= {pfn for _, pfn in process.space.mapped_pages()}
        present = [word for word in pagemap(process, at, 16, admin=True) if word & PM_PRESENT]
        assert all(bool(word & PM_MMAP_EXCLUSIVE) == (kpagecount(process.user, word & (1 << 55) - 1) == 1) for word in present
                   if word & (1 << 55) - 1 != process.user.zero_pfn)
    # Thirds of a page are rounded down: less than a byte is lost for each mapping.
    assert 0 <= (len(frames) * P << 12) - shares < 4 * 16 * 4
