"""Layout, promises of memory, and the text of /proc/PID/maps; the numbers of chapter 7."""

from __future__ import annotations

from random import Random

import pytest

from mmsim.constants import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, RLIM_INFINITY, STACK_RND_MASK
from mmsim.errors import Errno
from mmsim.process.layout import draw_layout, fixed_layout, mmap_base
from mmsim.process.mm import Mm
from mmsim.process.overcommit import Overcommit
from mmsim.process.stack import setup_stack
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import MappedFile, Vma, vm_flag_names
from mmsim.procfs.maps import maps
from mmsim.units import GIB, MIB

P = 4096


def test_without_aslr_the_mmap_area_ends_128_mib_below_the_top() -> None:
    assert mmap_base(8 * MIB) == 0x7FFFF7FFF000
    assert mmap_base(0) == mmap_base(126 * MIB) != mmap_base(128 * MIB)


def test_the_gap_of_an_unlimited_stack_is_five_sixths_of_the_window() -> None:
    assert mmap_base(RLIM_INFINITY) == 0x155555556000


def test_with_aslr_the_base_lies_between_two_numbers_16_gib_below_the_top() -> None:
    highest = mmap_base(8 * MIB, 0, randomize=True)
    lowest = mmap_base(8 * MIB, ((1 << 28) - 1) * P, randomize=True)
    assert (lowest, highest) == (0x7EFBFF701000, 0x7FFBFF700000)
    for seed in range(200):
        assert lowest <= draw_layout(Random(seed)).mmap_base <= highest


def test_one_seed_is_one_layout_and_everything_is_a_page() -> None:
    assert draw_layout(Random(7)) == draw_layout(Random(7)) != draw_layout(Random(8))
    draws = [draw_layout(Random(seed)) for seed in range(200)]
    for layout in draws:
        assert not (layout.mmap_base | layout.stack_top | layout.pie_base | layout.brk_offset) % P
        assert layout.brk_offset < 32 * MIB
        assert 0x7FFFFFFFF000 - (STACK_RND_MASK << 12) <= layout.stack_top <= 0x7FFFFFFFF000
        assert layout.pie_base >= 0x555555554000
        assert layout.mmap_base < layout.stack_top - 8 * MIB


def test_the_legacy_layout_moves_up_from_a_third() -> None:
    layout = draw_layout(Random(1), legacy=True)
    assert layout.mmap_base == layout.mmap_legacy_base >= fixed_layout(legacy=True).mmap_base


def test_16_gib_without_swap_may_be_promised_half() -> None:
    assert Overcommit(totalram_pages=16 * GIB // P).commit_limit() * P == 8 * GIB


def test_a_boot_keeps_at_most_one_32nd_of_the_free_memory_in_reserve() -> None:
    small = Overcommit.at_boot(16384, 12000)
    assert small.user_reserve_kbytes == small.admin_reserve_kbytes == 1500
    large = Overcommit.at_boot(1 << 22, 1 << 22)
    assert (large.user_reserve_kbytes, large.admin_reserve_kbytes) == (1 << 17, 1 << 13)


def test_mode_0_refuses_only_the_single_request_beyond_ram_and_swap() -> None:
    account = Overcommit(totalram_pages=100, total_swap_pages=20)
    for _ in range(5):
        account.charge(120)
    assert account.committed == 600
    with pytest.raises(Errno, match="ENOMEM"):
        account.charge(121)
    assert account.committed == 600


def test_mode_2_keeps_a_reserve_for_root_and_one_thirty_second_of_the_process() -> None:
    for privileged, most in ((True, 4999), (False, 4999 - 2048)):
        account = Overcommit(totalram_pages=10_000, policy=2)
        account.charge(most, 0, privileged)
        with pytest.raises(Errno):
            account.charge(1, 0, privileged)
    account = Overcommit(totalram_pages=10_000, policy=2)
    account.charge(4899, 3200, True)
    with pytest.raises(Errno):
        account.charge(1, 3200, True)


def test_maps_prints_files_heap_stack_and_nameless_memory_as_the_kernel_does() -> None:
    c = SystemCalls(Mm(fixed_layout()))
    c.mmap(0x555555554000, 2 * P, 5, MAP_PRIVATE | MAP_FIXED, MappedFile("/bin/true", 8, device=(8, 1), inode=131), 2 * P)
    c.mm.start_brk = c.mm.brk = 0x555555560000
    c.brk(0x555555581000)
    c.mmap(0, P, 1, MAP_SHARED | MAP_ANONYMOUS)
    c.mmap(0, P, 3, MAP_PRIVATE | MAP_ANONYMOUS)
    setup_stack(c.mm)
    assert maps(c.mm) == (
        "555555554000-555555556000 r-xp 00002000 08:01 131                        /bin/true\n"
        "555555560000-555555581000 rw-p 00000000 00:00 0                          [heap]\n"
        "7ffff7ffd000-7ffff7ffe000 rw-p 00000000 00:00 0 \n"
        "7ffff7ffe000-7ffff7fff000 r--s 00000000 00:01 1                          /dev/zero (deleted)\n"
        "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]\n")


def test_special_mappings_have_names_and_stay_in_one_piece() -> None:
    mm = Mm(fixed_layout())
    vdso = Vma(0x7FFFF7FCA000, 0x7FFFF7FCC000, 0x75, 0, special="[vdso]")
    mm.link(vdso)
    mm.vm_stat_account(vdso.vm_flags, 2)
    assert maps(mm).endswith("[vdso]\n")
    assert SystemCalls(mm).munmap(0x7FFFF7FCB000, P) == -22
    mm.check()


def test_vm_flags_without_letters_show_as_question_marks() -> None:
    assert vm_flag_names(0x2000 | 0x80000) == "lo ??"
