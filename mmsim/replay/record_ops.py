"""The random sequences of system calls that recordings of areas and places are made of: the same seed, the same calls.

Each sequence comes from one number. What a call answers decides about later ones in two places only: brk() counts from where
the heap ends, and a mapping whose place the kernel chose is unmapped where it is. So the generators take those two answers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from mmsim.units import U64_MAX

__all__ = ["FUZZ_ADVICE", "Random", "fuzz_ops", "place_ops"]

#: The advice that the fuzzer gives, in the order from which it draws.
FUZZ_ADVICE = ("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED", "FREE", "DONTFORK", "DOFORK", "MERGEABLE", "UNMERGEABLE",
               "HUGEPAGE", "NOHUGEPAGE", "DONTDUMP", "DODUMP", "WIPEONFORK", "KEEPONFORK", "COLD")
#: The number by which a seed is spread over 64 bits: 2^64 divided by the golden ratio.
_SPREAD = 0x9E37_79B9_7F4A_7C15
#: The longest range of one call, in pages.
_LONGEST = 16


class Random:
    """The generator of the recorded programs: xorshift with 13, 7 and 17, of which the bits from 11 on are used.

    >>> random = Random(1)
    >>> [random.below(100) for _ in range(5)]
    [3, 69, 24, 0, 50]
    """

    def __init__(self, seed: int):
        self._state = (seed * _SPREAD + 1) & U64_MAX
        for _ in range(8):
            self.below(2)

    def below(self, n: int) -> int:
        """The next number from 0 to n - 1."""
        state = self._state
        state ^= state << 13 & U64_MAX
        state ^= state >> 7
        state ^= state << 17 & U64_MAX
        self._state = state
        return (state >> 11 & U64_MAX) % n


def _mmap_op(random: Random, page: int, length: int) -> dict[str, Any]:
    prot = (3, 1, 0, 5)[random.below(4)] if random.below(4) else 3
    kind = random.below(6)
    flags = ("PRIVATE|ANON", "PRIVATE|ANON", "PRIVATE|ANON", "SHARED|ANON", "PRIVATE", "SHARED")[kind]
    file, pgoff = "", 0
    if kind >= 4:
        file = "fB" if random.below(2) else "fA"
        pgoff = page if random.below(3) else random.below(32)
    if not random.below(10):
        flags += "|NORESERVE"
    return {"op": "mmap", "page": page, "len": length, "prot": prot, "flags": flags, "file": file, "pgoff": pgoff}


def _mremap_op(random: Random, page: int, length: int, pages: int) -> dict[str, Any]:
    new_length, how = 1 + random.below(12), random.below(3)
    op: dict[str, Any] = {"op": "mremap", "page": page, "len": length, "newlen": new_length, "flags": ""}
    if how == 0:
        return op                                       # grow or shrink in place
    to, flags = random.below(pages), "MAYMOVE|FIXED"
    new_length = min(new_length, pages - to)
    if how == 2 and not random.below(3):
        flags, new_length = "MAYMOVE|FIXED|DONTUNMAP", length
        to = min(to, pages - new_length)
    return op | {"newlen": new_length, "flags": flags, "to": to}


def fuzz_ops(seed: int, count: int, pages: int, heap_pages: Callable[[], int]) -> Iterator[dict[str, Any]]:
    """The calls of one sequence of fuzz-maps in a range of ``pages`` pages: first four mappings that fill it, then
    ``count`` - 4 random calls.

    ``heap_pages`` is asked for the heap's end, in pages above its start, before each brk().
    """
    random = Random(seed)
    for number in range(count):
        kind, page = random.below(100), random.below(pages)
        length = 1 + random.below(min(pages - page, _LONGEST))
        if number < 4:
            kind, page, length = 0, number * pages // 4, pages // 4
        elif kind >= 30 and random.below(4):
            length = 1 + random.below(min(length, 4))
        where: dict[str, Any] = {"page": page, "len": length}
        if kind < 30:
            yield _mmap_op(random, page, length)
        elif kind < 42:
            yield {"op": "munmap"} | where
        elif kind < 62:
            yield {"op": "mprotect"} | where | {"prot": (3, 1, 0, 5, 3)[random.below(5)]}
        elif kind < 72:
            yield _mremap_op(random, page, length, pages)
        elif kind < 80:
            yield {"op": "madvise"} | where | {"advice": FUZZ_ADVICE[random.below(len(FUZZ_ADVICE))]}
        elif kind < 85:
            yield {"op": ("mlock", "munlock", "mlock2_onfault")[random.below(3)]} | where
        elif kind < 95:
            yield {"op": "write", "page": page}
        else:
            yield {"op": "brk", "to": max(heap_pages() + random.below(9) - 2, 0)}


def place_ops(seed: int, count: int) -> Generator[dict[str, Any], int, None]:
    """The calls of one sequence of place: mappings for which the kernel chooses the place, and partial unmappings.

    After each mmap the generator must be sent the page where it came to lie.
    """
    random = Random(seed)
    areas: list[list[int]] = []
    for _ in range(count):
        if areas and random.below(5) < 2:
            which = random.below(len(areas))
            start, length = areas[which]
            first = random.below(length)
            gone = 1 + random.below(length - first)
            yield {"op": "munmap", "page": start + first, "len": gone}
            if first == 0 and gone == length:
                areas[which] = areas[-1]
                areas.pop()
            elif first == 0:
                areas[which] = [start + gone, length - gone]
            else:
                if first + gone < length:
                    areas.append([start + first + gone, length - first - gone])
                areas[which][1] = first
        else:
            if random.below(6):
                length = 1 + random.below(64)
            elif random.below(2):
                length = 512 * (1 + random.below(3))
            else:
                length = 512 + random.below(1024)
            hint = 0
            if areas and not random.below(4):
                start, known = areas[random.below(len(areas))]
                hint = start + random.below(3 * known) - known
            areas.append([(yield {"op": "mmap", "hint": hint, "len": length}), length])
