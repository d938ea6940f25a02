"""Paging-structure caches: where the walks of before came through, so that the next one can skip the upper levels.

A TLB knows pages; these know tables: "addresses that begin so are below the PTE table in frame 5, with these rights so far".
The deepest that fits is used, so a walk after a TLB miss mostly reads one word instead of four.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.paging.address import LEVEL_SHIFT
from mmsim.paging.walk import Passed

__all__ = ["WalkCache"]

_PCID_BITS = 12


class WalkCache:
    """The caches of one CPU: by the level of the table found, how many there are; the least recently used is given up.

    The default remembers 32 PTE tables, 4 PMD tables, 2 PUD tables (and 2 P4D ones); ``sizes={}`` is a CPU without.
    """

    def __init__(self, sizes: dict[int, int] | None = None):
        self.sizes = {1: 32, 2: 4, 3: 2, 4: 2} if sizes is None else sizes
        self._tables: dict[int, dict[int, Passed]] = {level: {} for level in sorted(self.sizes)}
        #: Walks that began below the top, and those that did not.
        self.hits = self.misses = 0

    def lookup(self, addr: int, pcid: int) -> Passed | None:
        """The deepest table known for an address, where the walk can begin, or None for the top."""
        for level, known in self._tables.items():
            key = addr >> LEVEL_SHIFT[level + 1] << _PCID_BITS | pcid
            found = known.get(key)
            if found is not None:
                del known[key]
                known[key] = found
                self.hits += 1
                return found
        self.misses += 1
        return None

    def fill(self, addr: int, pcid: int, passed: list[Passed]) -> None:
        """Remember the tables that a walk passed."""
        for entry in passed:
            level = entry[0]
            known = self._tables.get(level)
            if known is None or not self.sizes[level]:
                continue
            key = addr >> LEVEL_SHIFT[level + 1] << _PCID_BITS | pcid
            known.pop(key, None)
            if len(known) >= self.sizes[level]:
                del known[next(iter(known))]
            known[key] = entry

    def flush(self, pcid: int | None = None) -> None:
        """Forget the tables of one address space, or all. INVLPG does the former, whatever its address is."""
        for known in self._tables.values():
            if pcid is None:
                known.clear()
            else:
                for key in [key for key in known if key & (1 << _PCID_BITS) - 1 == pcid]:
                    del known[key]

    def entries(self) -> Iterator[tuple[int, int, Passed]]:
        """Every entry as (first address, PCID, the table)."""
        for level, known in self._tables.items():
            for key, table in known.items():
                yield key >> _PCID_BITS << LEVEL_SHIFT[level + 1], key & (1 << _PCID_BITS) - 1, table

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))
