"""Where the parts of a process lie: the program, the heap, the mmap area and the stack, with and without ASLR.

The stack hangs from the top of the 128 TiB. Below it a gap is left for its growth, and from ``mmap_base`` down lie the
mappings. Without randomisation every number is fixed; with it, each is moved by random pages, which come from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mmsim.constants import BRK_RND_RANGE, DEFAULT_MAP_WINDOW, MMAP_RND_BITS, STACK_RND_MASK
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, align_down, align_up, u64

__all__ = ["Layout", "STACK_GUARD_GAP", "draw_layout", "fixed_layout", "mmap_base"]

#: The default distance that a growing stack keeps from its neighbour: 256 pages (stack_guard_gap=).
STACK_GUARD_GAP = 256 << PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class Layout:
    """The anchors of an address space, in bytes."""

    mmap_base: int
    mmap_legacy_base: int
    stack_top: int
    #: Where a position-independent program is loaded.
    pie_base: int
    #: By how much the heap's start is moved up from the end of the program's data.
    brk_offset: int
    #: sysctl vm.legacy_va_layout or the personality ADDR_COMPAT_LAYOUT: mappings go upwards from mmap_legacy_base.
    legacy: bool = False


def mmap_base(stack_limit: int, rnd: int = 0, randomize: bool = False, stack_guard_gap: int = STACK_GUARD_GAP) -> int:
    """The upper end of the mmap area, for a RLIMIT_STACK in bytes and ``rnd`` bytes of randomisation.

    The gap for the stack is its limit, the guard gap and, with ASLR, the most that the stack itself may be moved;
    at least 128 MiB and at most 5/6 of the address space. 5.17: arch/x86/mm/mmap.c, mmap_base().

    >>> from mmsim.constants import RLIM_INFINITY
    >>> hex(mmap_base(8 * MIB)), hex(mmap_base(RLIM_INFINITY))
    ('0x7ffff7fff000', '0x155555556000')
    """
    pad = (STACK_RND_MASK << PAGE_SHIFT if randomize else 0) + stack_guard_gap
    gap = stack_limit
    if u64(gap + pad) > gap:
        gap = u64(gap + pad)
    gap = min(max(gap, 128 * MIB), DEFAULT_MAP_WINDOW // 6 * 5)
    return align_up(DEFAULT_MAP_WINDOW - gap - rnd, PAGE_SIZE)


def _pie_base(rnd: int) -> int:
    """5.17: arch/x86/include/asm/elf.h, ELF_ET_DYN_BASE; fs/binfmt_elf.c adds the randomisation and takes whole pages."""
    return align_down(DEFAULT_MAP_WINDOW // 3 * 2 + rnd, PAGE_SIZE)


def fixed_layout(stack_limit: int = 8 * MIB, legacy: bool = False) -> Layout:
    """The layout without ASLR (ADDR_NO_RANDOMIZE, or randomize_va_space = 0).

    >>> hex(fixed_layout().pie_base)
    '0x555555554000'
    """
    legacy_base = align_up(DEFAULT_MAP_WINDOW // 3, PAGE_SIZE)
    return Layout(legacy_base if legacy else mmap_base(stack_limit), legacy_base, DEFAULT_MAP_WINDOW, _pie_base(0), 0, legacy)


def draw_layout(random: Random, stack_limit: int = 8 * MIB, legacy: bool = False) -> Layout:
    """One draw of ASLR from the caller's generator: the same seed gives the same layout.

    5.17: arch/x86/mm/mmap.c, arch_pick_mmap_layout(); fs/binfmt_elf.c, randomize_stack_top(); arch/x86/kernel/process.c,
    arch_randomize_brk(). Left out: the few bytes by which the stack pointer is moved within its page.
    """
    def pages(bits: int) -> int:
        return random.getrandbits(bits) << PAGE_SHIFT
    rnd = pages(MMAP_RND_BITS)
    legacy_base = align_up(DEFAULT_MAP_WINDOW // 3, PAGE_SIZE) + rnd
    base = legacy_base if legacy else mmap_base(stack_limit, rnd, randomize=True)
    stack_top = DEFAULT_MAP_WINDOW - ((random.getrandbits(22) & STACK_RND_MASK) << PAGE_SHIFT)
    return Layout(base, legacy_base, stack_top, _pie_base(pages(MMAP_RND_BITS)),
                  random.randrange(BRK_RND_RANGE >> PAGE_SHIFT) << PAGE_SHIFT, legacy)
