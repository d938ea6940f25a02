"""Splitting, merging, and the anon_vma that decides: mprotect, mremap, mlock, madvise, brk and growing stacks."""

from __future__ import annotations

from errno import EAGAIN, EFAULT, EINVAL, ENOMEM, EPERM

import pytest

from mmsim.constants import (
    MADV_COLD,
    MADV_DODUMP,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_MERGEABLE,
    MADV_NORMAL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    SOFTDIRTY_BIT,
    VM_LOCKED,
    VM_LOCKONFAULT,
)
from mmsim.errors import InvariantError
from mmsim.process.layout import fixed_layout
from mmsim.process.mm import Limits, Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.populate import Access, Outcome
from mmsim.process.stack import setup_stack
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import AnonVma, MappedFile, Vma, prot_text
from mmsim.rules import rules_for

P = 4096
A = 0x1000_0000
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS


def calls(**options: object) -> SystemCalls:
    return SystemCalls(Mm(fixed_layout(), **options))      # type: ignore[arg-type]


def mapped(pages: int, prot: int = RW, **options: object) -> SystemCalls:
    c = calls(**options)
    assert c.mmap(A, pages * P, prot, ANON | MAP_FIXED) == A
    return c


def rows(c: SystemCalls) -> list[tuple[int, int, str]]:
    c.mm.check()
    return [((vma.vm_start - A) // P, (vma.vm_end - A) // P, prot_text(vma.vm_flags)) for vma in c.mm]


def write(c: SystemCalls, page: int) -> Outcome:
    return c.touch(A + page * P, Access.WRITE).outcome


# -- mprotect ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("touched", [False, True])
def test_three_pages_with_a_read_only_middle_are_three_areas_and_one_again(touched: bool) -> None:
    c = mapped(3)
    if touched:
        write(c, 0)
    assert c.mprotect(A + P, P, PROT_READ) == 0
    assert rows(c) == [(0, 1, "rw-p"), (1, 2, "r--p"), (2, 3, "rw-p")]
    assert c.mprotect(A + P, P, RW) == 0 and rows(c) == [(0, 3, "rw-p")]


def test_two_areas_written_before_they_became_neighbours_stay_two() -> None:
    c = mapped(1)
    c.mmap(A + 2 * P, P, RW, ANON | MAP_FIXED)
    write(c, 0), write(c, 2)
    c.mmap(A + P, P, RW, ANON | MAP_FIXED)
    assert rows(c) == [(0, 2, "rw-p"), (2, 3, "rw-p")]


def test_an_untouched_area_never_absorbs_a_touched_range_until_6_18() -> None:
    for release, expected in (("5.17", [(0, 2, "r--p"), (2, 4, "r--p")]), ("6.18", [(0, 4, "r--p")])):
        c = mapped(2, PROT_READ, rules=rules_for(release))
        c.mmap(A + 2 * P, 2 * P, RW, ANON | MAP_FIXED)
        c.mprotect(A, 2 * P, RW), c.mprotect(A, 2 * P, PROT_READ)       # so that both carry VM_ACCOUNT
        if release == "6.18":
            c.mm.tree.lookup(A).vm_flags |= 0x100000                    # type: ignore[union-attr]
            c.mm.overcommit.committed += 2
        write(c, 2)
        assert c.mprotect(A + 2 * P, 2 * P, PROT_READ) == 0
        assert rows(c) == expected, release


def test_a_neighbour_that_could_merge_later_shares_its_anon_vma_from_the_first_touch() -> None:
    c = mapped(2)
    c.mprotect(A + P, P, PROT_READ)
    write(c, 0)
    c.mprotect(A + P, P, RW)
    assert rows(c) == [(0, 2, "rw-p")]
    c = mapped(2)
    c.mprotect(A + P, P, PROT_READ)
    write(c, 0)
    c.mm.anon_vma_prepare(c.mm.tree.lookup(A + P))          # type: ignore[arg-type]
    assert len({vma.anon_vma for vma in c.mm}) == 1


def link_as_after_a_fork(vma: Vma) -> None:
    other = AnonVma(vma.anon_vma)
    other.areas[vma] = None
    vma.anon_vma_chain.append(other)


def test_an_area_that_has_been_through_a_fork_does_not_take_in_new_memory() -> None:
    c = mapped(1)
    write(c, 0)
    vma = c.mm.tree.lookup(A)
    assert vma is not None
    link_as_after_a_fork(vma)
    c.mmap(A + P, P, RW, ANON | MAP_FIXED)
    assert rows(c) == [(0, 1, "rw-p"), (1, 2, "rw-p")]


def test_each_of_the_eight_cases_happens_through_a_system_call() -> None:
    def fixed(c: SystemCalls, page: int, pages: int) -> None:
        c.mmap(A + page * P, pages * P, RW, ANON | MAP_FIXED)

    def read_only(c: SystemCalls, page: int, pages: int) -> None:
        c.mprotect(A + page * P, pages * P, PROT_READ)
    before = {1: [(0, 2), (4, 2)], 2: [(0, 2)], 3: [(4, 2)], 4: [(0, 8)], 5: [(0, 8)], 6: [(0, 6)], 7: [(0, 4)], 8: [(0, 6)]}
    prepared = {4: [(4, 4)], 5: [(0, 4)], 6: [(0, 2), (4, 2)], 7: [(0, 2)], 8: [(4, 2)]}
    last = {4: (2, 2), 5: (4, 2), 6: (2, 2), 7: (2, 2), 8: (2, 2)}
    after = {1: [(0, 6)], 2: [(0, 4)], 3: [(2, 6)], 4: [(0, 2), (2, 8)], 5: [(0, 6), (6, 8)], 6: [(0, 6)], 7: [(0, 4)],
             8: [(0, 2), (2, 6)]}
    for case in range(1, 9):
        c = calls()
        for page, pages in before[case]:
            fixed(c, page, pages)
        for page, pages in prepared.get(case, []):
            read_only(c, page, pages)
        if case == 8:
            c.mprotect(A, 2 * P, PROT_NONE)                     # so that only the upper neighbour fits
        with c.mm.trace.recording("mmsim:vma_merge") as events:
            if case in last:
                read_only(c, *last[case])
            else:
                fixed(c, 2, 2)
        assert [event["case"] for event in events] == [case]
        assert [row[:2] for row in rows(c)] == after[case]


@pytest.mark.parametrize(("start", "length", "prot", "error"), [
    (A + 1, P, RW, EINVAL), (A, 2**64 - 1, RW, ENOMEM), (A, P, 0x40, EINVAL), (A, P, RW | PROT_GROWSDOWN | PROT_GROWSUP, EINVAL),
    (A, P, RW | PROT_GROWSDOWN, EINVAL), (A, P, RW | PROT_GROWSUP, EINVAL), (A - P, P, RW, ENOMEM), (0x7FFFF7FFF000, P, RW, ENOMEM)])
def test_mprotect_of_nonsense(start: int, length: int, prot: int, error: int) -> None:
    c = mapped(4)
    assert c.mprotect(start, length, prot) == -error and rows(c) == [(0, 4, "rw-p")]


def test_mprotect_does_what_lies_before_a_hole_and_then_fails() -> None:
    c = mapped(2)
    assert c.mprotect(A, 4 * P, PROT_READ) == -ENOMEM and rows(c) == [(0, 2, "r--p")]
    assert c.mprotect(A, 0, PROT_NONE) == 0


def test_a_promise_is_not_taken_back_when_memory_becomes_read_only_until_6_12() -> None:
    for release, committed in (("5.17", 4), ("6.12", 0)):
        c = mapped(4, rules=rules_for(release))
        c.mprotect(A, 4 * P, PROT_READ)
        c.mm.check()
        assert c.mm.overcommit.committed == c.mm.accounted_pages() == committed


def test_mprotect_to_writable_is_refused_without_a_promise_and_changes_nothing() -> None:
    c = mapped(4, PROT_READ, overcommit=Overcommit(totalram_pages=2))
    assert c.mprotect(A, 4 * P, RW) == -ENOMEM
    assert rows(c) == [(0, 4, "r--p")] and c.mm.overcommit.committed == 0


def test_mprotect_growsdown_reaches_down_to_the_start_of_a_stack() -> None:
    c = calls()
    c.mmap(A, 4 * P, RW, ANON | MAP_FIXED | MAP_GROWSDOWN)
    assert c.mprotect(A + 3 * P, P, PROT_READ | PROT_GROWSDOWN) == 0 and rows(c) == [(0, 4, "r--p")]


# -- mremap --------------------------------------------------------------------------------------------------

def test_mremap_of_an_unmapped_address_returns_plus_14_in_5_17() -> None:
    assert mapped(1).mremap(A + 4 * P, P, 2 * P, MREMAP_MAYMOVE) == 14
    assert mapped(1, rules=rules_for("6.1")).mremap(A + 4 * P, P, 2 * P, MREMAP_MAYMOVE) == -EFAULT


@pytest.mark.parametrize(("addr", "old", "new", "flags", "to", "error"), [
    (A, P, P, 8, 0, EINVAL), (A, P, P, MREMAP_FIXED, 0, EINVAL), (A, P, 2 * P, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, EINVAL),
    (A, P, P, MREMAP_DONTUNMAP, 0, EINVAL), (A + 1, P, P, 0, 0, EINVAL), (A, P, 0, 0, 0, EINVAL), (A, 0, P, MREMAP_MAYMOVE, 0, EINVAL),
    (A, 5 * P, 6 * P, 0, 0, EFAULT), (A, 2 * P, 3 * P, 0, 0, ENOMEM),
    (A, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, A + 1, EINVAL), (A, 2 * P, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED, A + P, EINVAL),
    (A, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, 2**47, EINVAL), (A, P, 2**64 - 1, MREMAP_MAYMOVE, 0, EINVAL)])
def test_mremap_of_nonsense(addr: int, old: int, new: int, flags: int, to: int, error: int) -> None:
    c = mapped(4)
    assert c.mremap(addr, old, new, flags, to) == -error and rows(c) == [(0, 4, "rw-p")]


def test_mremap_shrinks_grows_in_place_and_moves() -> None:
    c = mapped(4)
    assert c.mremap(A, 4 * P, 2 * P) == A and rows(c) == [(0, 2, "rw-p")]
    assert c.mremap(A, 2 * P, 6 * P) == A and rows(c) == [(0, 6, "rw-p")]
    c.mmap(A + 6 * P, P, PROT_READ, ANON | MAP_FIXED)
    moved = c.mremap(A, 6 * P, 7 * P, MREMAP_MAYMOVE)
    assert moved == 0x7FFFF7FFF000 - 7 * P and c.mm.tree.lookup(A) is None
    c.mm.check()
    assert c.mm.overcommit.committed == c.mm.accounted_pages() == 7


def test_growing_in_place_meets_the_next_area_but_joins_it_only_later_than_5_17() -> None:
    for release, areas in (("5.17", 2), ("6.1", 1)):
        c = mapped(2, rules=rules_for(release))
        c.mmap(A + 4 * P, 2 * P, RW, ANON | MAP_FIXED)
        assert c.mremap(A, 2 * P, 4 * P) == A
        assert len(rows(c)) == areas


def test_a_touched_area_that_moves_keeps_its_page_offset_and_so_cannot_merge_there() -> None:
    for touch, expected in ((False, [(8, 12, "rw-p")]), (True, [(8, 10, "rw-p"), (10, 12, "rw-p")])):
        c = mapped(2)
        c.mmap(A + 8 * P, 2 * P, RW, ANON | MAP_FIXED)
        if touch:
            write(c, 0)
        assert c.mremap(A, 2 * P, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED, A + 10 * P) == A + 10 * P
        assert rows(c) == expected


def test_a_fixed_move_that_fails_has_already_unmapped_the_destination() -> None:
    c = mapped(4)
    c.mmap(A + 8 * P, 4 * P, RW, ANON | MAP_FIXED)
    assert c.mremap(A, 5 * P, 5 * P, MREMAP_MAYMOVE | MREMAP_FIXED, A + 7 * P) == -EFAULT
    assert rows(c) == [(0, 4, "rw-p")]
    c = mapped(4, rules=rules_for("6.18"))
    c.mmap(A + 8 * P, 4 * P, RW, ANON | MAP_FIXED)
    assert c.mremap(A + 3 * P, 2 * P, 3 * P, MREMAP_MAYMOVE | MREMAP_FIXED, A + 8 * P) == -EFAULT
    assert rows(c) == [(0, 4, "rw-p"), (8, 12, "rw-p")]


def test_6_18_moves_several_areas_with_the_holes_between_them() -> None:
    c = mapped(2, rules=rules_for("6.18"))
    c.mmap(A + 3 * P, P, PROT_READ, ANON | MAP_FIXED)
    assert c.mremap(A, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, A + 8 * P) == A + 8 * P
    assert rows(c) == [(8, 10, "rw-p"), (11, 12, "r--p")]


def test_a_kept_source_is_empty_and_has_no_anon_vma_and_memory_is_promised_twice() -> None:
    c = mapped(2)
    write(c, 0)
    assert c.mremap(A, 2 * P, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, A + 8 * P) == A + 8 * P
    assert rows(c) == [(0, 2, "rw-p"), (8, 10, "rw-p")]
    old, new = c.mm
    assert old.anon_vma is None and new.anon_vma is not None
    assert c.mm.overcommit.committed == c.mm.accounted_pages() == 4


def test_shared_memory_can_be_mapped_twice_by_an_old_size_of_zero() -> None:
    c = calls()
    c.mmap(A, 2 * P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    twin = c.mremap(A, 0, 2 * P, MREMAP_MAYMOVE)
    assert twin > A
    first, second = c.mm
    assert first.vm_file is second.vm_file and first.vm_pgoff == second.vm_pgoff == 0
    c.munmap(A, 2 * P)
    assert c.mm.overcommit.committed == 2
    c.munmap(twin, 2 * P)
    assert c.mm.overcommit.committed == 0
    c.mm.check()


def test_a_move_needs_room_for_three_areas_more() -> None:
    c = mapped(2, max_map_count=5)
    c.mmap(A + 8 * P, P, RW, ANON | MAP_FIXED)
    assert c.mremap(A, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, A + 16 * P) == -ENOMEM
    assert c.mremap(A, 2 * P, 0x100 * P, MREMAP_MAYMOVE) == -ENOMEM


def test_a_locked_area_grows_only_within_the_limit_and_a_move_keeps_the_count() -> None:
    c = mapped(4, limits=Limits(memlock=4 * P))
    assert c.mlock(A, 4 * P) == 0
    assert c.mremap(A, 4 * P, 5 * P, MREMAP_MAYMOVE) == -EAGAIN
    assert c.mremap(A, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, A + 8 * P) == A + 8 * P
    assert c.mm.locked_vm == 4
    assert c.mremap(A + 9 * P, P, P, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, A + 16 * P) == A + 16 * P
    rows(c)


def test_a_kept_source_loses_its_lock_as_a_whole_and_its_count_stays_until_the_stable_updates_of_6_1() -> None:
    for release, locked, areas in (("5.17", 4, 2), ("6.1", 4, 4)):
        c = mapped(4, rules=rules_for(release))
        assert c.mlock(A, 4 * P) == 0
        c.mremap(A + P, P, P, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, A + 16 * P)
        assert len(rows(c)) == areas and c.mm.locked_vm == locked
        assert sum(vma.pages for vma in c.mm if vma.vm_flags & VM_LOCKED) == (1 if release == "5.17" else 4)


# -- mlock ---------------------------------------------------------------------------------------------------

def test_mlock_rounds_outwards_splits_and_touches_private_writable_memory() -> None:
    c = mapped(4)
    assert c.mlock(A + P + 5, 10) == 0
    # Split first, touched then: only the locked page has an anon_vma.
    assert [(bool(vma.vm_flags & VM_LOCKED), vma.anon_vma is not None) for vma in c.mm] == \
        [(False, False), (True, True), (False, False)]
    assert c.mm.locked_vm == 1
    assert c.munlock(A, 4 * P) == 0 and c.mm.locked_vm == 0
    rows(c)


def test_mlock_sets_the_flag_and_then_fails_where_pages_cannot_be_brought_in() -> None:
    c = mapped(2, PROT_NONE)
    assert c.mlock(A, 2 * P) == -ENOMEM and c.mm.locked_vm == 2
    c = mapped(2)
    assert c.mlock(A, 3 * P) == -ENOMEM and c.mm.locked_vm == 2              # a hole
    c = calls()
    c.mmap(A, 2 * P, RW, MAP_SHARED | MAP_FIXED, MappedFile("f", 1))
    assert c.mlock(A, 2 * P) == -ENOMEM and c.mlock(A, P) == 0


def test_mlock_on_fault_of_an_inaccessible_area_fails_in_5_17_only() -> None:
    for release, result in (("5.17", -ENOMEM), ("6.1", 0)):
        c = mapped(1, PROT_NONE, rules=rules_for(release))
        assert c.mlock2(A, P, MLOCK_ONFAULT) == result
        assert c.mm.tree.lookup(A).vm_flags & VM_LOCKONFAULT      # type: ignore[union-attr]
    assert mapped(1).mlock2(A, P, 2) == -EINVAL


def test_what_is_locked_already_does_not_count_twice_against_the_limit() -> None:
    c = mapped(32, limits=Limits(memlock=16 * P))
    assert c.mlock(A, 17 * P) == -ENOMEM and c.mlock(A, 16 * P) == 0 and c.mlock(A, 16 * P) == 0
    assert c.mlock(A + 16 * P, P) == -ENOMEM and c.mlock(A + 8 * P, 16 * P) == -ENOMEM
    assert c.mm.locked_vm == 16
    assert calls(limits=Limits(memlock=0)).mlock(A, P) == -EPERM


def test_mlockall() -> None:
    c = mapped(4)
    for flags in (0, 8, MCL_ONFAULT):
        assert c.mlockall(flags) == -EINVAL
    assert c.mlockall(MCL_CURRENT) == 0 and c.mm.locked_vm == 4
    assert c.mlockall(MCL_FUTURE) == 0
    c.mmap(A + 8 * P, P, RW, ANON | MAP_FIXED)
    assert c.mm.locked_vm == 5
    assert c.munlockall() == 0 and c.mm.locked_vm == 0 and c.mm.def_flags == 0
    assert mapped(4, limits=Limits(memlock=P)).mlockall(MCL_CURRENT) == -ENOMEM
    assert calls(limits=Limits(memlock=0)).mlockall(MCL_CURRENT) == -EPERM
    rows(c)


# -- madvise -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("start", "length", "advice", "error"), [
    (A, P, 99, EINVAL), (A + 1, P, MADV_NORMAL, EINVAL), (A, 2**64 - 1, MADV_NORMAL, EINVAL),
    (2**64 - P, 2 * P, MADV_NORMAL, EINVAL), (A - P, 2 * P, MADV_RANDOM, ENOMEM), (A + 4 * P, P, MADV_RANDOM, ENOMEM),
    (A, P, MADV_REMOVE, EINVAL)])
def test_madvise_of_nonsense(start: int, length: int, advice: int, error: int) -> None:
    c = mapped(4)
    assert c.madvise(start, length, advice) == -error
    c.mm.check()


def test_advice_that_is_a_flag_splits_and_its_opposite_merges() -> None:
    c = mapped(4)
    for there, back in ((MADV_RANDOM, MADV_NORMAL), (MADV_SEQUENTIAL, MADV_NORMAL), (MADV_DONTDUMP, MADV_DODUMP)):
        assert c.madvise(A + P, P, there) == 0 and len(rows(c)) == 3
        assert c.madvise(A + P, P, back) == 0 and len(rows(c)) == 1


def test_advice_passes_over_holes_and_reports_them_at_the_end() -> None:
    c = mapped(8)
    c.munmap(A + 3 * P, P)
    assert c.madvise(A, 8 * P, MADV_DONTFORK) == -ENOMEM
    assert all(vma.vm_flags & 0x20000 for vma in c.mm)


def test_which_advice_fits_which_memory() -> None:
    c = mapped(4)
    c.mmap(A + 4 * P, 4 * P, RW, MAP_SHARED | MAP_FIXED, MappedFile("f", 2))
    assert c.madvise(A + 4 * P, P, MADV_WIPEONFORK) == c.madvise(A + 4 * P, P, MADV_FREE) == -EINVAL
    assert c.madvise(A + 4 * P, P, MADV_MERGEABLE) == 0 and len(rows(c)) == 2       # ignored on shared memory
    assert c.madvise(A + 4 * P, P, MADV_REMOVE) == 0
    assert c.madvise(A + 4 * P, 4 * P, MADV_POPULATE_READ) == -EFAULT               # beyond the end of the file
    c.mprotect(A, P, PROT_READ)
    assert c.madvise(A, P, MADV_POPULATE_WRITE) == -EINVAL and c.madvise(A, P, MADV_POPULATE_READ) == 0
    c.mlock(A + P, P)
    assert {c.madvise(A + P, P, advice) for advice in (MADV_DONTNEED, MADV_FREE, MADV_COLD)} == {-EINVAL}


# -- touching, the heap and stacks ---------------------------------------------------------------------------

def test_an_access_ends_as_the_area_says() -> None:
    c = mapped(2, PROT_READ)
    c.mmap(A + 2 * P, 2 * P, RW, MAP_SHARED | MAP_FIXED, MappedFile("f", 1))
    cases = [(0, Access.READ, 0, ""), (0, Access.WRITE, 11, "SEGV_ACCERR"), (0, Access.EXEC, 11, "SEGV_ACCERR"),
             (2, Access.WRITE, 0, ""), (3, Access.WRITE, 7, "BUS_ADRERR"), (9, Access.READ, 11, "SEGV_MAPERR")]
    for page, access, signal, code in cases:
        touch = c.touch(A + page * P, access)
        assert (touch.outcome.value, touch.code) == (signal, code)
    assert c.touch(2**63).code == "SEGV_MAPERR"


def test_a_read_gives_no_anon_vma_a_write_does_and_shared_memory_never_has_one() -> None:
    c = mapped(1)
    c.touch(A)
    assert next(iter(c.mm)).anon_vma is None
    write(c, 0)
    assert next(iter(c.mm)).anon_vma is not None
    c.mmap(A, P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    write(c, 0)
    assert next(iter(c.mm)).anon_vma is None


def test_brk_grows_one_area_and_says_where_it_is_when_it_cannot() -> None:
    c = calls()
    c.mm.start_brk = c.mm.brk = A
    assert c.brk(A + 40 * P) == A + 40 * P and c.brk(A + 44 * P + 1) == A + 44 * P + 1
    assert rows(c) == [(0, 45, "rw-p")]
    assert c.brk(A + 2 * P) == A + 2 * P and rows(c) == [(0, 2, "rw-p")]
    assert c.brk(A - 1) == c.brk(0) == A + 2 * P
    c.mmap(A + 8 * P, P, PROT_READ, ANON | MAP_FIXED)
    assert c.brk(A + 8 * P) == A + 2 * P                        # a page must stay free below the next area
    assert c.brk(A + 7 * P) == A + 7 * P
    c.mm.limits.data = 6 * P
    assert c.brk(A + 7 * P + 1) == A + 7 * P


def test_a_forked_heap_makes_a_second_area() -> None:
    for chain, areas in ((1, 1), (2, 2)):
        c = calls()
        c.mm.start_brk = c.mm.brk = A
        c.brk(A + P)
        write(c, 0)
        heap = c.mm.tree.first
        assert heap is not None
        for _ in range(chain - 1):
            link_as_after_a_fork(heap)
        c.brk(A + 41 * P)
        assert len(rows(c)) == areas


def stack() -> SystemCalls:
    c = calls()
    setup_stack(c.mm)
    return c


def test_a_new_stack_is_128_kib_larger_than_its_contents() -> None:
    vma = stack().mm.tree.first
    assert vma is not None and (vma.vm_start, vma.vm_end) == (0x7FFFFFFDE000, 0x7FFFFFFFF000)


def test_a_stack_grows_at_once_whatever_the_distance_up_to_its_limit() -> None:
    c = stack()
    top = c.mm.layout.stack_top
    assert c.touch(top - (4 << 20), Access.WRITE).outcome is Outcome.OK and c.mm.stack_vm == 1024
    assert c.touch(top - (8 << 20) - 1, Access.WRITE).outcome is Outcome.SIGSEGV
    assert c.touch(top - (8 << 20), Access.WRITE).outcome is Outcome.OK and c.mm.stack_vm == 2048
    c.mm.check()


@pytest.mark.parametrize(("prot", "pages"), [(RW, 256), (PROT_NONE, 0)])
def test_a_stack_keeps_256_pages_from_a_neighbour_but_not_from_an_inaccessible_one(prot: int, pages: int) -> None:
    c = stack()
    top = c.mm.layout.stack_top
    obstacle = top - (3 << 20)
    c.mmap(obstacle - 4 * P, 4 * P, prot, ANON | MAP_FIXED)
    lowest = top - 33 * P
    while c.touch(lowest - P, Access.WRITE).outcome is Outcome.OK:
        lowest -= P
    assert (lowest - obstacle) // P == pages


def test_mappings_keep_away_from_a_stack_by_the_guard_gap() -> None:
    c = calls()
    c.mmap(A, P, RW, ANON | MAP_FIXED | MAP_GROWSDOWN)
    assert c.mmap(A - 256 * P, P, RW, ANON) != A - 256 * P
    assert c.mmap(A - 257 * P, P, RW, ANON) == A - 257 * P


def test_where_soft_dirty_is_built_in_new_memory_carries_it_and_still_merges() -> None:
    c = mapped(1, soft_dirty=True)
    vma = c.mm.tree.first
    assert vma is not None
    vma.vm_flags &= ~SOFTDIRTY_BIT
    c.mmap(A + P, P, RW, ANON | MAP_FIXED)
    assert len(rows(c)) == 1 and vma.vm_flags & SOFTDIRTY_BIT


def test_check_says_which_sum_is_wrong() -> None:
    c = mapped(4)
    c.mm.total_vm += 1
    with pytest.raises(InvariantError, match="total_vm is 5, the areas add up to 4"):
        c.mm.check()


def test_the_page_index_of_anonymous_memory_is_its_address() -> None:
    c = calls()
    c.mmap(0x7FFFF7DFF000, P, RW, ANON | MAP_FIXED)
    assert c.mm.tree.first.vm_pgoff == 0x7FFFF7DFF      # type: ignore[union-attr]
