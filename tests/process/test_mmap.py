"""mmap and munmap: errno by the order of the checks, places, limits, and what stays behind when they fail."""

from __future__ import annotations

from errno import EACCES, EAGAIN, EBADF, EEXIST, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM

import pytest

from mmsim.constants import (
    MAP_32BIT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_SYNC,
    OVERCOMMIT_NEVER,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_MAYEXEC,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_SHARED,
)
from mmsim.process.layout import fixed_layout
from mmsim.process.mm import Limits, Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.populate import Access
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import MappedFile
from mmsim.rules import rules_for

P = 4096
A = 0x1000_0000
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS


def calls(**options: object) -> SystemCalls:
    return SystemCalls(Mm(fixed_layout(), **options))      # type: ignore[arg-type]


def rows(c: SystemCalls) -> list[tuple[int, int]]:
    c.mm.check()
    return [((vma.vm_start - A) // P, (vma.vm_end - A) // P) for vma in c.mm]


@pytest.mark.parametrize(("addr", "length", "prot", "flags", "offset", "error"), [
    (0, 0, RW, ANON, 0, EINVAL),
    (0, P, RW, MAP_ANONYMOUS, 0, EINVAL),
    (0, P, RW, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, 0, EINVAL),
    (0, 2**64 - 1, RW, ANON, 0, ENOMEM),
    (0, TASK_SIZE + P, RW, ANON, 0, ENOMEM),
    (TASK_SIZE, P, RW, ANON | MAP_FIXED, 0, ENOMEM),
    (A + 1, P, RW, ANON | MAP_FIXED, 0, EINVAL),
    (P, P, RW, ANON | MAP_FIXED, 0, EPERM),
    (0, P, RW, ANON, 100, EINVAL),
    (0, P, RW, MAP_PRIVATE, 0, EBADF),
    (0, P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, 0, EINVAL),
    (0, P, RW, ANON | MAP_HUGETLB, 0, ENOMEM),
])
def test_bad_arguments_have_the_kernels_errno(addr: int, length: int, prot: int, flags: int, offset: int, error: int) -> None:
    c = calls()
    assert c.mmap(addr, length, prot, flags, None, offset) == -error
    assert c.why and not rows(c)


@pytest.mark.parametrize(("file", "prot", "flags", "error"), [
    (MappedFile("ro", 9, writable=False), RW, MAP_SHARED, EACCES),
    (MappedFile("wo", 9, readable=False), PROT_WRITE, MAP_PRIVATE, EACCES),
    (MappedFile("log", 9, append_only=True), PROT_READ, MAP_SHARED, EACCES),
    (MappedFile("noexec", 9, noexec=True), PROT_READ | PROT_EXEC, MAP_PRIVATE, EPERM),
    (MappedFile("pipe", 9, can_mmap=False), PROT_READ, MAP_PRIVATE, ENODEV),
    (MappedFile("f", 9), PROT_READ, MAP_PRIVATE | MAP_GROWSDOWN, EINVAL),
    (MappedFile("f", 9), PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, EOPNOTSUPP),
    (MappedFile("f", 9), PROT_READ, MAP_PRIVATE | MAP_HUGETLB, EINVAL),
    (MappedFile("f", 9), PROT_READ, 0, EINVAL),
])
def test_how_a_file_was_opened_decides_what_may_be_mapped(file: MappedFile, prot: int, flags: int, error: int) -> None:
    c = calls()
    assert c.mmap(0, P, prot, flags, file) == -error and not rows(c)


def test_an_offset_beyond_the_largest_file_is_refused_and_ignored_where_there_is_no_file() -> None:
    c = calls()
    assert c.mmap(0, 2 * P, RW, MAP_PRIVATE, MappedFile("f", 9), 2**64 - P) == -EOVERFLOW
    assert c.mmap(0, 2 * P, RW, ANON, None, 2**64 - P) > 0


def test_map_shared_ignores_what_map_shared_validate_refuses() -> None:
    assert calls().mmap(0, P, RW, MAP_SHARED | MAP_SYNC, MappedFile("f", 1)) > 0


def test_a_shared_mapping_of_a_read_only_file_can_never_become_writable_and_counts_as_private_inside() -> None:
    c = calls()
    address = c.mmap(0, P, PROT_READ, MAP_SHARED, MappedFile("ro", 1, writable=False))
    vma = c.mm.tree.lookup(address)
    assert vma is not None and vma.vm_flags & VM_MAYSHARE and not vma.vm_flags & (VM_SHARED | VM_MAYWRITE)
    assert c.mprotect(address, P, RW) == -EACCES


def test_a_file_on_noexec_can_never_become_executable() -> None:
    c = calls()
    address = c.mmap(0, P, PROT_READ, MAP_PRIVATE, MappedFile("f", 1, noexec=True))
    assert not c.mm.tree.lookup(address).vm_flags & VM_MAYEXEC      # type: ignore[union-attr]
    assert c.mprotect(address, P, PROT_EXEC) == -EACCES


def test_noreplace_takes_a_free_range_and_refuses_a_taken_one() -> None:
    c = calls()
    assert c.mmap(A, 4 * P, RW, ANON | MAP_FIXED_NOREPLACE) == A
    assert c.mmap(A + 3 * P, 2 * P, RW, ANON | MAP_FIXED_NOREPLACE) == -EEXIST
    assert rows(c) == [(0, 4)]


def test_the_first_mapping_ends_at_mmap_base_and_the_next_lies_below() -> None:
    c = calls()
    assert c.mmap(0, 3 * P, RW, ANON) == 0x7FFFF7FFF000 - 3 * P
    assert c.mmap(0, P, PROT_READ, ANON) == 0x7FFFF7FFF000 - 4 * P


def test_a_hint_is_taken_where_it_fits_and_forgotten_where_not() -> None:
    c = calls()
    assert c.mmap(A + 123, P, RW, ANON) == A
    assert c.mmap(A, P, PROT_READ, ANON) == 0x7FFFF7FFF000 - P
    assert c.mmap(P, P, PROT_READ, ANON) == 0x10000            # a hint below mmap_min_addr is moved up to it


def test_map_32bit_looks_upwards_from_one_gib() -> None:
    c = calls()
    assert c.mmap(0, P, RW, ANON | MAP_32BIT) == 0x4000_0000
    assert c.mmap(0, P, PROT_READ, ANON | MAP_32BIT) == 0x4000_1000
    assert c.mmap(0, 2 << 30, RW, ANON | MAP_32BIT) == -ENOMEM


def test_6_12_puts_whole_huge_pages_of_anonymous_memory_at_a_multiple_of_2_mib() -> None:
    huge = 2 << 20
    c = calls(rules=rules_for("6.12"))
    assert c.mmap(0, huge, RW, ANON) == 0x7FFFF7C00000
    assert c.mmap(0, huge + P, RW, ANON) % huge
    assert c.mmap(0, huge, RW, MAP_SHARED | MAP_ANONYMOUS) % huge
    assert calls().mmap(0, huge, RW, ANON) == 0x7FFFF7FFF000 - huge


def test_a_search_for_room_hits_its_tracepoint_and_a_fixed_address_does_not() -> None:
    c = calls()
    with c.mm.trace.recording("mmap:*") as events:
        address = c.mmap(0, 2 * P, RW, ANON)
        c.mmap(A, P, RW, ANON | MAP_FIXED)
        assert c.mmap(0, 2 << 30, RW, ANON | MAP_32BIT) == -ENOMEM
    assert [(event["addr"], event["length"], event["flags"]) for event in events] == \
        [(address, 2 * P, 1), (-ENOMEM, 2 << 30, 0)]


def test_if_nothing_fits_below_mmap_base_the_search_goes_upwards_above_it() -> None:
    c = SystemCalls(Mm(fixed_layout(2**64 - 1)))                # unlimited stack: mmap_base is low
    base = c.mm.layout.mmap_base
    assert base == 0x155555556000
    assert c.mmap(0, base, PROT_READ, ANON | MAP_NORESERVE) == c.mm.layout.mmap_legacy_base


def test_the_legacy_layout_goes_upwards_from_a_third_of_the_address_space() -> None:
    c = SystemCalls(Mm(fixed_layout(legacy=True)))
    assert c.mmap(0, P, RW, ANON) == 0x2AAAAAAAA000 + P
    assert c.mmap(0, P, PROT_READ, ANON) == 0x2AAAAAAAA000 + 2 * P


def test_unmapping_the_middle_splits_and_a_hole_is_no_error() -> None:
    c = calls()
    c.mmap(A, 8 * P, RW, ANON | MAP_FIXED)
    assert c.munmap(A + 2 * P, P + 1) == 0 and rows(c) == [(0, 2), (4, 8)]
    assert c.munmap(A + 2 * P, 2 * P) == 0
    assert c.munmap(A, 0) == c.munmap(A + 1, P) == c.munmap(TASK_SIZE, P) == -EINVAL


def test_65531_areas_can_be_made_by_mmap_but_not_by_splitting() -> None:
    c = calls(max_map_count=6)
    for number in range(7):
        assert c.mmap(A + 2 * number * P, P, RW, ANON | MAP_FIXED) > 0
    assert c.mm.map_count == 7
    assert c.mmap(A + P, P, RW, ANON | MAP_FIXED) == -ENOMEM    # although it would merge
    c.munmap(A, P)
    assert c.mm.map_count == 6
    assert c.mmap(A + 0x100 * P, 3 * P, RW, ANON | MAP_FIXED) > 0
    assert c.munmap(A + 0x101 * P, P) == -ENOMEM                # unmapping can fail
    assert c.mprotect(A + 0x101 * P, P, PROT_READ) == -ENOMEM
    assert c.madvise(A + 0x101 * P, P, 10) == -EAGAIN
    assert c.munmap(A + 0x100 * P, P) == 0                      # not a hole: no area more


def test_a_fixed_mapping_that_is_refused_leaves_a_hole_until_6_12() -> None:
    for release, left in (("5.17", []), ("6.1", []), ("6.12", [(0, 4)])):
        c = calls(rules=rules_for(release), overcommit=Overcommit(totalram_pages=100))
        c.mmap(A, 4 * P, PROT_READ, ANON | MAP_FIXED)
        assert c.mmap(A, 200 * P, RW, ANON | MAP_FIXED) == -ENOMEM
        assert rows(c) == left, release


def test_rlimit_as_counts_what_map_fixed_replaces() -> None:
    c = calls(limits=Limits(address_space=8 * P))
    assert c.mmap(A, 8 * P, RW, ANON | MAP_FIXED) == A
    assert c.mmap(0, P, RW, ANON) == -ENOMEM
    assert c.mmap(A + 7 * P, P, PROT_READ, ANON | MAP_FIXED) == A + 7 * P


def test_rlimit_data_counts_private_writable_memory_only() -> None:
    c = calls(limits=Limits(data=4 * P))
    assert c.mmap(A, 64 * P, PROT_READ, ANON | MAP_FIXED) == A
    assert c.mmap(0, 64 * P, RW, MAP_SHARED | MAP_ANONYMOUS) > 0
    assert c.mprotect(A, 5 * P, RW) == -ENOMEM and c.mprotect(A, 4 * P, RW) == 0
    assert c.mmap(0, P, RW, ANON) == -ENOMEM
    # a soft limit of 0 counts as none, as long as the hard one is kept
    assert calls(limits=Limits(data=0)).mmap(0, P, RW, ANON) > 0


def test_map_locked_needs_the_right_and_the_room() -> None:
    assert calls(limits=Limits(memlock=0)).mmap(0, P, RW, ANON | MAP_LOCKED) == -EPERM
    c = calls(limits=Limits(memlock=4 * P))
    assert c.mmap(0, 4 * P, RW, ANON | MAP_LOCKED) > 0 and c.mmap(0, P, RW, ANON | MAP_LOCKED) == -EAGAIN
    assert c.mm.locked_vm == 4
    assert calls(limits=Limits(memlock=0), privileged=True).mmap(0, P, RW, ANON | MAP_LOCKED) > 0


def test_noreserve_is_ignored_where_nothing_may_be_overcommitted() -> None:
    for policy, charged in ((0, 0), (OVERCOMMIT_NEVER, 8)):
        c = calls(overcommit=Overcommit(policy=policy))
        vma = c.mm.tree.lookup(c.mmap(0, 8 * P, RW, ANON | MAP_NORESERVE))
        assert vma is not None
        assert c.mm.overcommit.committed == charged
        assert bool(vma.vm_flags & VM_NORESERVE) != bool(vma.vm_flags & VM_ACCOUNT) == bool(charged)


def test_shared_anonymous_memory_is_promised_once_whatever_its_permissions_and_until_the_last_mapping_goes() -> None:
    c = calls()
    address = c.mmap(0, 8 * P, PROT_READ, MAP_SHARED | MAP_ANONYMOUS)
    assert c.mm.overcommit.committed == 8
    c.mprotect(address, 4 * P, RW)
    c.munmap(address, 4 * P)
    assert c.mm.overcommit.committed == 8
    c.munmap(address + 4 * P, 4 * P)
    assert c.mm.overcommit.committed == 0


def test_shared_anonymous_neighbours_never_merge_since_each_has_its_own_object() -> None:
    c = calls()
    c.mmap(A, P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    c.mmap(A + P, P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    assert rows(c) == [(0, 1), (1, 2)]


def test_6_1_merges_with_the_following_area_where_5_17_takes_the_preceding_one() -> None:
    for release, expected in (("5.17", [(0, 2), (2, 3)]), ("6.1", [(0, 1), (1, 3)])):
        c = calls(rules=rules_for(release))
        for page in (0, 2):                                     # both touched, apart: two anon_vmas
            c.mmap(A + page * P, P, RW, ANON | MAP_FIXED)
            c.touch(A + page * P, Access.WRITE)
        c.mmap(A + P, P, RW, ANON | MAP_FIXED)
        assert rows(c) == expected
