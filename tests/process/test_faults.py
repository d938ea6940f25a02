"""Demand faults: what each kind of access finds, what it costs, and what it leaves in the page table."""

from __future__ import annotations

import pytest

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_RW,
    _PAGE_SPECIAL,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MREMAP_MAYMOVE,
    OVERCOMMIT_ALWAYS,
)
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.paging.pte import pte_pfn
from mmsim.paging.walk import Control, PageFault, hardware_walk
from mmsim.physical.frames import PG
from mmsim.process.populate import Access, Outcome
from mmsim.process.shmem import memfd_create, truncate_setsize
from mmsim.process.stack import setup_stack
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile
from mmsim.reference import ref256, toy16
from mmsim.units import PAGE_SIZE

P, RW = PAGE_SIZE, 3
ANON, SHARED = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
A = 0x3000_0000


def process(machine: Machine | None = None) -> Process:
    return (machine or ref256()).spawn("test")


def anon(p: Process, pages: int, at: int = A, prot: int = RW, flags: int = ANON) -> int:
    return p.mmap(at, pages * P, prot, flags | MAP_FIXED)


def checked(p: Process) -> None:
    p.table.check()


def test_a_first_read_maps_the_zero_page_and_a_write_then_a_page_of_its_own() -> None:
    p = process()
    anon(p, 2)
    assert p.touch(A).faults == ("zero page",) and p.mm.rss == [0, 0, 0, 0]
    word = p.space.pte(A)
    assert pte_pfn(word) == p.user.zero_pfn and word & _PAGE_SPECIAL and not word & _PAGE_RW
    assert p.touch(A, Access.WRITE).faults == ("copy of the zero page",) and p.mm.rss[MM_ANONPAGES] == 1
    assert p.touch(A + P, Access.WRITE).faults == ("new page",)
    assert p.space.pte(A + P) & (_PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED) == _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED
    assert (p.minflt, p.majflt, p.user.counters["pgfault"]) == (3, 0, 3)
    checked(p)


def test_what_was_written_is_read_across_pages_and_untouched_memory_reads_as_zeros() -> None:
    p = process()
    anon(p, 3)
    assert p.write(A + P - 2, b"page").outcome is Outcome.OK and p.minflt == 2
    assert p.read(A + P - 3, 6) == b"\0page\0" and p.read(A + 2 * P, 3) == b"\0\0\0"


def test_a_page_that_another_process_used_comes_back_as_zeros() -> None:
    p = process()
    anon(p, 64)
    for page in range(64):
        p.write(A + page * P, b"secret")
    p.munmap(A, 64 * P)
    anon(p, 200)
    assert all(p.write(A + page * P + 9, b"x").outcome is Outcome.OK and p.read(A + page * P, 6) == bytes(6) for page in range(200))


@pytest.mark.parametrize(("prot", "access", "code"), [
    (1, Access.WRITE, "SEGV_ACCERR"), (0, Access.READ, "SEGV_ACCERR"), (3, Access.EXEC, "SEGV_ACCERR")])
def test_an_access_that_the_area_forbids_ends_in_a_signal_with_its_address(prot: int, access: Access, code: str) -> None:
    p = process()
    anon(p, 1, prot=prot)
    touch = p.touch(A + 5, access)
    assert touch.signal is not None and str(touch.signal) == f"SIGSEGV ({code}) at {A + 5:#x}"


def test_nothing_mapped_the_kernels_half_and_an_address_that_is_none_end_in_signals() -> None:
    p = process()
    assert p.touch(A).code == p.touch(0xFFFF_8880_0000_0000).code == "SEGV_MAPERR" and p.minflt == 0
    assert str(p.touch(1 << 63).signal) == "SIGSEGV (SI_KERNEL) at 0x0"


def test_a_fetch_from_memory_that_is_not_executable_faults_twice_the_first_brings_the_page() -> None:
    p = process()
    anon(p, 1)
    assert p.touch(A, Access.EXEC).faults == ("zero page",) and p.minflt == 1


def test_a_stack_grows_under_a_write_and_the_page_is_there() -> None:
    p = process()
    setup_stack(p.mm)
    low = p.mm.tree.last.vm_start                                   # type: ignore[union-attr]
    assert p.write(low - 5 * P, b"deep").outcome is Outcome.OK and p.read(low - 5 * P, 4) == b"deep"
    assert p.mm.tree.last.vm_start == low - 5 * P                   # type: ignore[union-attr]
    checked(p)


def test_a_mapping_beyond_the_files_end_is_sigbus() -> None:
    p = process()
    p.mmap(A, 4 * P, RW, MAP_PRIVATE | MAP_FIXED, MappedFile("f", 2))
    assert p.touch(A + P).outcome is Outcome.OK
    assert str(p.touch(A + 2 * P, Access.WRITE).signal) == f"SIGBUS (BUS_ADRERR) at {A + 2 * P:#x}"
    checked(p)


def test_a_read_of_a_cached_file_maps_the_64_kib_around() -> None:
    p = process()
    file = memfd_create(p.mm, "f", 64)
    p.mmap(A, 64 * P, RW, MAP_SHARED | MAP_FIXED, file)
    assert p.touch_range(A, 64) == 64
    p.madvise(A, 64 * P, MADV_DONTNEED)
    faults = p.minflt
    assert p.touch(A + 20 * P).faults == ("file page, with those around it",) and p.mm.rss[MM_SHMEMPAGES] == 16
    assert p.touch_range(A + 16 * P, 16, write=False) == 16 and p.minflt == faults + 1
    checked(p)


def test_the_first_store_to_a_clean_shared_page_is_tried_again_and_counts_as_major() -> None:
    p = process()
    anon(p, 4, flags=SHARED)
    assert p.touch(A, Access.WRITE).outcome is Outcome.OK and (p.minflt, p.majflt) == (0, 1)
    assert p.user.counters["pgmajfault"] == 0 and p.user.counters["pgfault"] == 2
    # A read maps the page writable; so the store after it needs no fault.
    p.touch(A + P)
    assert p.touch(A + P, Access.WRITE).faults == () and (p.minflt, p.majflt) == (1, 1)


def test_a_private_write_to_a_file_copies_and_the_file_keeps_what_it_has() -> None:
    p = process()
    file = MappedFile("f", 4, content=lambda index: bytes([65 + index]) * P)
    p.mmap(A, 4 * P, RW, MAP_PRIVATE | MAP_FIXED, file)
    assert p.read(A + P, 2) == b"BB" and p.mm.rss[MM_FILEPAGES] == 1 and p.majflt == 1
    p.write(A + P, b"x")
    assert p.read(A + P, 2) == b"xB" and (p.mm.rss[MM_FILEPAGES], p.mm.rss[MM_ANONPAGES]) == (0, 1)
    p.mmap(A + 64 * P, 4 * P, 1, MAP_SHARED | MAP_FIXED, file)
    assert p.read(A + 65 * P, 2) == b"BB"
    checked(p)


def test_a_shared_write_is_seen_through_every_mapping() -> None:
    p = process()
    file = memfd_create(p.mm, "f", 2)
    for place in (A, A + 64 * P):
        p.mmap(place, 2 * P, RW, MAP_SHARED | MAP_FIXED, file)
    p.write(A + P, b"both")
    assert p.read(A + 65 * P, 4) == b"both"
    checked(p)


def test_truncating_a_file_takes_its_pages_from_everybody_and_private_copies_too() -> None:
    p = process()
    file = memfd_create(p.mm, "f", 4)
    p.mmap(A, 4 * P, RW, MAP_SHARED | MAP_FIXED, file)
    p.mmap(A + 64 * P, 4 * P, RW, MAP_PRIVATE | MAP_FIXED, file)
    p.touch_range(A, 4)
    p.touch_range(A + 64 * P, 4)
    truncate_setsize(p.user, file, 1)
    assert p.mm.rss[MM_SHMEMPAGES] == p.mm.rss[MM_ANONPAGES] == 1 and len(file.cache) == 1
    assert p.touch(A + P).outcome is p.touch(A + 65 * P).outcome is Outcome.SIGBUS
    checked(p)


def test_punching_a_hole_leaves_private_copies_alone() -> None:
    p = process()
    file = memfd_create(p.mm, "f", 4)
    p.mmap(A, 4 * P, RW, MAP_SHARED | MAP_FIXED, file)
    p.mmap(A + 64 * P, 4 * P, RW, MAP_PRIVATE | MAP_FIXED, file)
    p.write(A, b"old")
    p.write(A + 64 * P, b"mine")
    assert p.madvise(A, 4 * P, MADV_REMOVE) == 0
    assert p.read(A, 3) == bytes(3) and p.read(A + 64 * P, 4) == b"mine"
    checked(p)


def test_dontneed_forgets_the_contents_and_the_area_stays() -> None:
    p = process()
    anon(p, 4)
    p.write(A, b"gone")
    free = p.user.memory.nr_free_pages
    assert p.madvise(A, 4 * P, MADV_DONTNEED) == 0 and p.mm.rss == [0, 0, 0, 0] and p.read(A, 4) == bytes(4)
    assert p.user.memory.nr_free_pages >= free
    checked(p)


def test_madv_free_marks_thirty_of_thirty_two_pages_because_two_wait_in_a_batch() -> None:
    p = process()
    anon(p, 32)
    p.touch_range(A, 32)
    p.madvise(A, 32 * P, MADV_FREE)
    flags = [p.user.frames.flags[pte_pfn(p.space.pte(A + page * P))] & PG["swapbacked"] for page in range(32)]
    assert flags.count(0) == 30 and p.user.counters["pglazyfree"] == 30
    p.user.lru.lru_add_drain()
    assert p.user.counters["pglazyfree"] == 32
    checked(p)


def test_map_populate_and_mlock_count_their_faults_as_the_processs_own() -> None:
    p = process()
    a = p.mmap(0, 32 * P, RW, ANON | MAP_POPULATE)
    assert (p.minflt, p.mm.rss[MM_ANONPAGES]) == (32, 32)
    assert p.touch_range(a, 32) == 32 and p.minflt == 32
    b = p.mmap(0, 8 * P, RW, ANON)
    assert p.mlock(b, 8 * P) == 0 and p.minflt == 40 and p.user.nr_mlock == 8
    assert p.munlock(b, 8 * P) == 0 and p.user.nr_mlock == 0
    checked(p)


def test_populate_write_of_shared_memory_counts_no_fault_since_each_is_let_go_and_not_tried_again() -> None:
    p = process()
    anon(p, 8, flags=SHARED)
    assert p.madvise(A, 8 * P, MADV_POPULATE_WRITE) == 0
    assert (p.minflt, p.majflt, p.mm.rss[MM_SHMEMPAGES]) == (0, 0, 8)
    checked(p)


def test_read_only_and_writable_again_costs_one_reuse_fault_a_page() -> None:
    p = process()
    anon(p, 64)
    p.touch_range(A, 64)
    p.user.lru.lru_add_drain()
    p.mprotect(A, 64 * P, 1)
    assert p.touch(A, Access.WRITE).code == "SEGV_ACCERR"
    p.mprotect(A, 64 * P, RW)
    faults = p.minflt
    p.touch_range(A, 64)
    assert (p.minflt - faults, p.user.counters["pgreuse"]) == (64, 64)
    checked(p)


def test_without_a_drain_four_of_the_sixty_four_are_copied_because_they_wait_in_a_pagevec() -> None:
    p = process()
    anon(p, 64)
    p.touch_range(A, 64)
    frames = [pte_pfn(p.space.pte(A + page * P)) for page in range(64)]
    p.mprotect(A, 64 * P, 1)
    p.mprotect(A, 64 * P, RW)
    p.touch_range(A, 64)
    assert p.user.counters["pgreuse"] == 60
    assert [pte_pfn(p.space.pte(A + page * P)) == pfn for page, pfn in enumerate(frames)] == [True] * 60 + [False] * 4
    checked(p)


def test_a_moved_page_table_keeps_its_frames_and_costs_no_table() -> None:
    p = process()
    size = 4 << 20
    p.mmap(0x4000_0000, size, RW, ANON | MAP_FIXED)
    p.touch_range(0x4000_0000, size // P)
    p.write(0x4000_0000 + size - 4, b"tail")
    tables, frame = p.mm.pgtables_bytes, p.space.pte(0x4000_0000)
    assert p.mremap(0x4000_0000, size, size, MREMAP_MAYMOVE | 2, 0x5000_0000) == 0x5000_0000
    assert p.mm.pgtables_bytes == tables and p.space.pte(0x5000_0000) == frame and p.space.pte(0x4000_0000) == 0
    assert p.read(0x5000_0000 + size - 4, 4) == b"tail" and p.minflt == size // P
    checked(p)
    # Not at the beginning of tables: entry by entry, over three tables instead of two.
    assert p.mremap(0x5000_0000, size, size, MREMAP_MAYMOVE | 2, 0x6000_1000) == 0x6000_1000
    assert p.mm.pgtables_bytes == tables + P and p.read(0x6000_1000 + size - 4, 4) == b"tail"
    checked(p)


def test_an_access_without_memory_says_so_and_leaves_everything_in_order() -> None:
    p = process(toy16())
    p.user.overcommit.policy = OVERCOMMIT_ALWAYS
    size = 4000
    anon(p, size)
    done = p.touch_range(A, size)
    assert 2000 < done < size and p.touch(A + done * P, Access.WRITE).outcome is Outcome.OOM
    checked(p)
    p.munmap(A, size * P)
    anon(p, 10)
    assert p.touch_range(A, 10) == 10
    checked(p)


def test_rss_lags_by_up_to_64_faults_where_tasks_count_for_themselves() -> None:
    machine = ref256()
    machine.user.split_rss = True
    p = process(machine)
    anon(p, 200)
    p.touch_range(A, 64)
    assert p.mm.rss[MM_ANONPAGES] == 0 and p.rss_stat[MM_ANONPAGES] == 64
    p.touch_range(A + 64 * P, 2)
    assert p.mm.rss[MM_ANONPAGES] == 64
    checked(p)
    p.munmap(A, P)
    assert p.mm.rss[MM_ANONPAGES] == 65 and p.rss_stat[MM_ANONPAGES] == 0
    checked(p)


def test_the_entry_decides_as_the_cpus_walk_does() -> None:
    p = process()
    anon(p, 4)
    anon(p, 4, A + 64 * P, prot=1)
    p.touch(A + P)
    p.touch(A + 2 * P, Access.WRITE)
    p.touch(A + 64 * P)
    control = Control()
    for page in (0, 1, 2, 64, 65, 5000):
        for access, letter in ((Access.READ, "r"), (Access.WRITE, "w"), (Access.EXEC, "x")):
            address = A + page * P + 8
            quick = p._walk(address, access)
            try:
                entry = hardware_walk(p.user.contents, p.page_tables.pgd, address, letter, True, control)
                slow = entry.base | 8
            except PageFault as fault:
                slow = ~fault.error_code
            assert quick == slow, (page, access)


def test_through_a_tlb_accesses_see_every_change_of_the_tables() -> None:
    machine = ref256()
    tlb = machine.user.use_tlbs()
    p = process(machine)
    p.cpu = 0
    anon(p, 8)
    for page in range(8):
        p.write(A + page * P, bytes([page]))
    child = machine.processes[p.fork()]
    child.cpu = 0
    assert p.touch(A, Access.WRITE).faults == ("copy",)             # the parent's TLB had the page writable
    assert child.read(A + P) == b"\1"
    p.mprotect(A, 8 * P, 1)
    assert p.touch(A, Access.WRITE).code == "SEGV_ACCERR"
    p.munmap(A, 8 * P)
    assert p.touch(A).code == "SEGV_MAPERR"
    contexts = [task.space.context for task in (p, child) if task.space.context is not None]
    tlb.check(contexts)
    checked(p)


def test_a_process_made_without_tlbs_cannot_run_on_one() -> None:
    p = process()
    with pytest.raises(InputError):
        p.cpu = 0


def test_events_tell_the_fault_the_page_and_rss() -> None:
    p = process()
    anon(p, 1)
    with p.user.trace.recording("exceptions:*", "kmem:mm_page_alloc", "kmem:rss_stat") as events:
        p.touch(A + 8, Access.WRITE)
    assert [event.name for event in events] == ["exceptions:page_fault_user", "kmem:mm_page_alloc", "kmem:mm_page_alloc",
                                                "kmem:mm_page_alloc", "kmem:mm_page_alloc", "kmem:rss_stat"]
    assert (events[0]["address"], events[0]["error_code"]) == (A + 8, 6) and events[-1]["size"] == P


def test_a_move_without_memory_for_tables_fails_and_the_pages_stay_where_they_were() -> None:
    machine = toy16()
    machine.overcommit.policy = OVERCOMMIT_ALWAYS
    p, hog = process(machine), process(machine)
    anon(p, 600)
    p.touch_range(A, 600)
    p.write(A + 599 * P, b"end")
    anon(hog, 4000)
    hog.touch_range(A, 4000)
    committed = machine.overcommit.committed
    assert p.mremap(A, 600 * P, 700 * P, MREMAP_MAYMOVE | 2, 0x70_0000_1000) == -12
    assert p.read(A + 599 * P, 3) == b"end" and p.mm.map_count == 1 and machine.overcommit.committed == committed
    checked(p)
    hog.exit()
    assert p.mremap(A, 600 * P, 700 * P, MREMAP_MAYMOVE | 2, 0x70_0000_1000) == 0x70_0000_1000
    assert p.read(0x70_0000_1000 + 599 * P, 3) == b"end"
    checked(p)
