"""fork, copy-on-write and exit; the worked numbers of chapter 7."""

from __future__ import annotations

import pytest

from mmsim.constants import (
    _PAGE_RW,
    MADV_DONTFORK,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MM_ANONPAGES,
    MM_SHMEMPAGES,
    OVERCOMMIT_ALWAYS,
    OVERCOMMIT_NEVER,
)
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.paging.pte import pte_pfn
from mmsim.process.populate import Access, Outcome
from mmsim.process.task import Process
from mmsim.reference import REF256_COMMAND_LINE, REF256_MAP, ref256, toy16
from mmsim.rules import Rules, rules_for
from mmsim.units import PAGE_SIZE

P, RW = PAGE_SIZE, 3
ANON, SHARED = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
A = 0x3000_0000


def machine_of(rules: Rules) -> Machine:
    return Machine.boot(REF256_MAP, REF256_COMMAND_LINE, rules=rules)


def family(pages: int = 64, machine: Machine | None = None, drained: bool = True) -> tuple[Process, Process]:
    """A process that wrote ``pages`` pages, and its child."""
    machine = machine or ref256()
    parent = machine.spawn("parent")
    parent.mmap(A, pages * P, RW, ANON | MAP_FIXED)
    for page in range(pages):
        parent.write(A + page * P, bytes([page + 1 & 255]))
    if drained:
        machine.user.lru.lru_add_drain()
    return parent, fork(parent)


def fork(parent: Process) -> Process:
    return parent.table.processes[parent.fork()]


def test_64_pages_cost_the_child_64_copies_and_the_parent_64_reuses() -> None:
    parent, child = family()
    counters = parent.user.counters
    child.touch_range(A, 64)
    assert (child.minflt, counters["pgreuse"]) == (64, 0)
    child.user.lru.lru_add_drain()
    faults = parent.minflt
    parent.touch_range(A, 64)
    assert (parent.minflt - faults, counters["pgreuse"]) == (64, 64)
    parent.table.check()


def test_after_fork_both_sides_are_read_only_and_see_the_same_frames() -> None:
    parent, child = family(3)
    for page in range(3):
        ours, theirs = parent.space.pte(A + page * P), child.space.pte(A + page * P)
        assert pte_pfn(ours) == pte_pfn(theirs) and not (ours | theirs) & _PAGE_RW
        assert parent.user.frames.mapcount[pte_pfn(ours)] == parent.user.frames.refcount[pte_pfn(ours)] == 2
    assert child.mm.rss == parent.mm.rss and child.minflt == 0
    parent.table.check()


def test_each_reads_what_it_or_its_ancestor_last_wrote() -> None:
    parent, child = family(2)
    parent.write(A, b"P")
    child.write(A + P, b"C")
    grandchild = fork(child)
    child.write(A, b"c")
    assert [p.read(A) + p.read(A + P) for p in (parent, child, grandchild)] == [b"P\2", b"cC", b"\1C"]
    parent.table.check()


def test_the_last_owner_reuses_and_does_not_copy() -> None:
    parent, child = family(1)
    assert child.touch(A, Access.WRITE).faults == ("copy",)
    parent.user.lru.lru_add_drain()
    assert parent.touch(A, Access.WRITE).faults == ("reuse",)


def test_in_5_17_the_parent_copies_once_more_while_the_page_waits_in_a_pagevec() -> None:
    parent, child = family(1, drained=False)
    assert child.touch(A, Access.WRITE).faults == ("copy",)
    assert parent.touch(A, Access.WRITE).faults == ("copy",)
    parent.table.check()


@pytest.mark.parametrize("rule", ["drained", "exclusive"])
def test_later_kernels_empty_the_pagevec_first(rule: str) -> None:
    parent, child = family(1, machine_of(Rules(cow_reuse=rule)), drained=False)
    assert child.touch(A, Access.WRITE).faults == ("copy",)
    assert parent.touch(A, Access.WRITE).faults == ("reuse",)
    parent.table.check()


def test_when_the_child_has_exited_the_parent_reuses_since_exit_empties_the_pagevec() -> None:
    parent, child = family(1, drained=False)
    child.exit()
    assert parent.touch(A, Access.WRITE).faults == ("reuse",)


def test_since_5_19_an_exclusive_page_stays_writable_through_mprotect() -> None:
    machine = machine_of(rules_for("6.1"))
    parent = machine.spawn()
    parent.mmap(A, 8 * P, RW, ANON | MAP_FIXED)
    parent.touch_range(A, 8)
    parent.mprotect(A, 8 * P, 1)
    parent.mprotect(A, 8 * P, RW)
    assert parent.touch_range(A, 8) == 8 and parent.minflt == 8
    child = fork(parent)
    parent.mprotect(A, 8 * P, 1)
    parent.mprotect(A, 8 * P, RW)
    assert parent.touch(A, Access.WRITE).faults == ("copy",) and child.read(A) == b"\0"
    parent.table.check()


def test_a_forked_heap_does_not_grow_in_the_child_but_does_in_the_parent() -> None:
    parent = ref256().spawn()
    heap = 0x0C00_0000
    parent.mm.start_brk = parent.mm.brk = heap
    parent.brk(heap + 10 * P)
    parent.touch_range(heap, 10)
    child = fork(parent)
    for process in (child, parent):
        process.brk(heap + 50 * P)
    assert (child.mm.map_count, parent.mm.map_count) == (2, 1)
    parent.table.check()


def test_shared_memory_and_untouched_areas_get_no_entries() -> None:
    parent = ref256().spawn()
    parent.mmap(A, 4 * P, RW, SHARED | MAP_FIXED)
    parent.mmap(A + 64 * P, 4 * P, RW, ANON | MAP_FIXED)
    parent.write(A, b"x")
    parent.touch_range(A + 64 * P, 4, write=False)
    child = fork(parent)
    assert child.mm.pgtables_bytes == 0 and child.mm.rss == [0, 0, 0, 0]
    assert child.read(A) == b"x" and child.minflt == 1 and child.mm.rss[MM_SHMEMPAGES] == 1
    child.write(A + P, b"y")
    assert parent.read(A + P) == b"y"
    parent.table.check()


def test_dontfork_is_missing_in_the_child_and_wipeonfork_is_empty() -> None:
    parent, _ = family(6)
    parent.madvise(A, 2 * P, MADV_DONTFORK)
    parent.madvise(A + 2 * P, 2 * P, MADV_WIPEONFORK)
    child = fork(parent)
    assert child.touch(A).code == "SEGV_MAPERR" and child.read(A + 2 * P) == b"\0" and child.read(A + 4 * P) == b"\5"
    assert child.mm.total_vm == parent.mm.total_vm - 2
    parent.table.check()


def test_locks_are_not_inherited() -> None:
    parent = ref256().spawn()
    parent.mmap(A, 4 * P, RW, ANON | MAP_FIXED)
    parent.mlock(A, 4 * P)
    child = fork(parent)
    assert (parent.mm.locked_vm, child.mm.locked_vm) == (4, 0)
    parent.table.check()


def test_fork_promises_everything_again_and_is_refused_where_that_cannot_be() -> None:
    parent, child = family(8)
    assert parent.user.overcommit.committed == 16
    child.exit()
    overcommit = parent.user.overcommit
    overcommit.policy, overcommit.kbytes = OVERCOMMIT_NEVER, 4 * (overcommit.admin_reserve_kbytes // 4 + 12)
    parent.mmap(A + 64 * P, P, 1, ANON | MAP_FIXED)
    before = overcommit.committed
    assert parent.fork() == -12 and overcommit.committed == before and len(parent.table.processes) == 2
    parent.table.check()


def test_a_fork_without_memory_for_tables_leaves_nothing_behind() -> None:
    machine = toy16()
    machine.overcommit.policy = OVERCOMMIT_ALWAYS
    parent = machine.spawn()
    # A page in each of many tables.
    for number in range(300):
        parent.mmap(0x1000_0000 + number * (2 << 20), P, RW, ANON | MAP_FIXED)
        parent.write(0x1000_0000 + number * (2 << 20), bytes([number & 255]))
    hog = machine.spawn()
    hog.mmap(A * 4, 4000 * P, RW, ANON | MAP_FIXED)
    hog.touch_range(A * 4, 4000)
    assert parent.fork() == -12 and len(parent.user.tasks) == 2
    machine.process_table.check()
    assert parent.read(0x1000_0000 + 5 * (2 << 20)) == b"\5"


def test_a_vfork_child_runs_in_its_parents_memory_while_the_parent_waits() -> None:
    parent, other = family(2)
    other.exit()
    committed = parent.user.overcommit.committed
    child = parent.table.processes[parent.vfork()]
    assert child.mm is parent.mm and parent.user.overcommit.committed == committed
    child.write(A, b"v")
    with pytest.raises(InputError):
        parent.touch(A)
    child.exit()
    assert parent.read(A) == b"v"
    parent.table.check()


def test_all_frames_come_back_when_the_last_process_exits() -> None:
    machine = ref256()
    machine.spawn().exit()                      # the caches of the first process are made
    census = [machine.census(zone).allocated for zone in machine.zones]
    parent, child = family(100, machine)
    child.touch_range(A, 50)
    grandchild = fork(child)
    grandchild.write(A, b"g")
    for process in (parent, grandchild, child):
        process.exit()
    assert [machine.census(zone).allocated for zone in machine.zones] == census
    assert machine.overcommit.committed == 0 and not machine.user.mapping and machine.user.nr_anon_mapped == 0
    machine.check()


def test_a_child_that_has_ended_is_there_until_its_parent_waits() -> None:
    parent, child = family(1)
    assert parent.wait() == -10
    child.exit(3)
    assert child.pid in parent.table.processes and not child.alive
    assert parent.wait() == child.pid and child.pid not in parent.table.processes
    with pytest.raises(InputError):
        child.touch(A)


def test_a_whole_table_of_pages_is_copied_with_its_parts_right() -> None:
    parent = ref256().spawn()
    parent.mmap(0x4000_0000, 1200 * P, RW, ANON | MAP_FIXED)
    parent.touch_range(0x4000_0000, 1200, write=False)
    parent.touch_range(0x4000_0000 + 100 * P, 700)
    parent.mprotect(0x4000_0000 + 200 * P, 100 * P, 0)
    child = fork(parent)
    assert child.mm.rss[MM_ANONPAGES] == 700 and child.touch(0x4000_0000 + 250 * P).outcome is Outcome.SIGSEGV
    parent.table.check()
