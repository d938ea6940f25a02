"""The TLB: results of walks, kept in sets of a few ways, the least recently used given up first.

There is no order between a TLB and the tables: it goes on saying what it once learnt until it is told otherwise. Every
entry carries the number of its address space (PCID), but for global ones, which belong to all.

Geometry differs from CPU to CPU; the default is that of a common Intel core: 64 + 32 + 4 data entries for 4 KiB, 2 MiB
and 1 GiB pages, 128 + 8 for code, and a second level of 1536 entries shared by code, data, 4 KiB and 2 MiB pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmsim.errors import InputError, InvariantError
from mmsim.paging.address import LEVEL_SHIFT
from mmsim.paging.walk import TlbEntry
from mmsim.units import is_power_of_two

__all__ = ["GLOBAL", "Geometry", "Tlb", "TlbArray", "TlbGeometry"]

#: The tag of global entries, beside the PCIDs 0..4095.
GLOBAL = 4096
# A key: page number | 1 bit, set for 2 MiB pages (two sizes share an array) | 13 bits of tag.
_KEY_BITS = 14
_LARGE = 1 << 13
_TAG_MASK = _LARGE - 1


class Geometry(NamedTuple):
    """Sets (a power of two) and ways of one array."""

    sets: int
    ways: int


class TlbGeometry(NamedTuple):
    """The arrays of a CPU. An array of 0 sets does not exist."""

    data_4k: Geometry = Geometry(16, 4)
    data_2m: Geometry = Geometry(8, 4)
    data_1g: Geometry = Geometry(1, 4)
    code_4k: Geometry = Geometry(16, 8)
    code_2m: Geometry = Geometry(1, 8)
    second: Geometry = Geometry(128, 12)
    second_1g: Geometry = Geometry(4, 4)


class TlbArray:
    """One array for pages of one size. A set is a dict, oldest use first: to use an entry moves it to the end.

    Keys are made of page number, size and tag, the tag being a PCID or :data:`GLOBAL` (see :meth:`key`).
    """

    __slots__ = ("sets", "ways", "mask", "shift", "level", "size_bit")

    def __init__(self, geometry: Geometry, level: int):
        sets, ways = geometry
        if sets and not is_power_of_two(sets) or sets < 0 or ways < 1:
            raise InputError(f"a TLB array of {sets} sets and {ways} ways")
        self.sets: list[dict[int, TlbEntry]] = [{} for _ in range(sets)]
        self.ways = ways
        self.mask = sets - 1
        self.level = level
        self.shift = LEVEL_SHIFT[level]
        self.size_bit = _LARGE if level == 2 else 0

    def key(self, page: int, tag: int) -> int:
        """Under what the translation of a page is kept."""
        return page << _KEY_BITS | self.size_bit | tag

    def lookup(self, addr: int, pcid: int) -> TlbEntry | None:
        """The entry for an address, which becomes the most recently used of its set."""
        if not self.sets:
            return None
        page = addr >> self.shift
        ways = self.sets[page & self.mask]
        if not ways:
            return None
        key = self.key(page, pcid)
        entry = ways.get(key)
        if entry is None:
            key = self.key(page, GLOBAL)
            entry = ways.get(key)
            if entry is None:
                return None
        del ways[key]
        ways[key] = entry
        return entry

    def fill(self, addr: int, pcid: int, entry: TlbEntry) -> None:
        """Put an entry in; a full set gives up its least recently used one."""
        if not self.sets:
            return
        page = addr >> self.shift
        ways = self.sets[page & self.mask]
        key = self.key(page, GLOBAL if entry.is_global else pcid)
        ways.pop(key, None)
        if len(ways) >= self.ways:
            del ways[next(iter(ways))]
        ways[key] = entry

    def invalidate(self, addr: int, pcid: int, with_global: bool = True) -> None:
        """Drop the entry of an address."""
        if self.sets:
            page = addr >> self.shift
            ways = self.sets[page & self.mask]
            ways.pop(self.key(page, pcid), None)
            if with_global:
                ways.pop(self.key(page, GLOBAL), None)

    def flush(self, pcid: int | None = None, with_global: bool = False) -> None:
        """Drop the entries of one PCID (None: of all), and on demand the global ones."""
        for ways in self.sets:
            if pcid is None and with_global:
                ways.clear()
                continue
            for key in [key for key in ways if ((tag := key & _TAG_MASK) == GLOBAL and with_global)
                        or (tag != GLOBAL and pcid in (None, tag))]:
                del ways[key]

    def __iter__(self) -> Iterator[tuple[int, int, TlbEntry]]:
        """(address of the page, tag, entry) of this size, set by set, least recently used first."""
        for ways in self.sets:
            for key, entry in ways.items():
                if entry.level == self.level:
                    yield key >> _KEY_BITS << self.shift, key & _TAG_MASK, entry

    def __len__(self) -> int:
        return sum(map(len, self.sets))


class Tlb:
    """All arrays of a CPU. ``hits``, ``second_hits`` and ``misses`` count lookups."""

    def __init__(self, geometry: TlbGeometry = TlbGeometry()):
        self.geometry = geometry
        g = geometry
        self.data = [TlbArray(g.data_4k, 1), TlbArray(g.data_2m, 2), TlbArray(g.data_1g, 3)]
        self.code = [TlbArray(g.code_4k, 1), TlbArray(g.code_2m, 2)]
        # One array for two sizes, seen through two views.
        self.second = [TlbArray(g.second, 1), TlbArray(g.second, 2), TlbArray(g.second_1g, 3)]
        self.second[1].sets = self.second[0].sets
        self.hits = self.second_hits = self.misses = 0

    def lookup(self, addr: int, pcid: int, fetch: bool = False) -> TlbEntry | None:
        """The entry for an address, or None: a miss. What the second level finds is copied to the first."""
        first = self.code if fetch else self.data
        for one in first:
            entry = one.lookup(addr, pcid)
            if entry is not None:
                self.hits += 1
                return entry
        for one in self.second:
            entry = one.lookup(addr, pcid)
            if entry is not None:
                self.second_hits += 1
                self._fill_first(first, addr, pcid, entry)
                return entry
        self.misses += 1
        return None

    @staticmethod
    def _fill_first(first: list[TlbArray], addr: int, pcid: int, entry: TlbEntry) -> None:
        if entry.level <= len(first):
            first[entry.level - 1].fill(addr, pcid, entry)

    def fill(self, addr: int, pcid: int, entry: TlbEntry, fetch: bool = False) -> None:
        """Keep the result of a walk in both levels."""
        self._fill_first(self.code if fetch else self.data, addr, pcid, entry)
        self.second[entry.level - 1].fill(addr, pcid, entry)

    def arrays(self) -> list[TlbArray]:
        """All arrays."""
        return [*self.data, *self.code, *self.second]

    def invalidate(self, addr: int, pcid: int, with_global: bool = True) -> None:
        """Drop whatever translates an address in one PCID."""
        for one in self.arrays():
            one.invalidate(addr, pcid, with_global)

    def flush(self, pcid: int | None = None, with_global: bool = False) -> None:
        """Drop the entries of one PCID or of all."""
        for one in self.arrays():
            one.flush(pcid, with_global)

    def entries(self) -> Iterator[tuple[int, int, TlbEntry]]:
        """Every entry of every array as (address, tag, entry); one that stands in two arrays comes twice."""
        for one in self.arrays():
            yield from one

    def check(self) -> None:
        """Raise InvariantError if a set holds more than its ways, or an entry where it cannot be found."""
        for one in self.arrays():
            for number, ways in enumerate(one.sets):
                if len(ways) > one.ways:
                    raise InvariantError(f"set {number} of a TLB with {one.ways} ways holds {len(ways)} entries")
                for key, entry in ways.items():
                    if bool(key & _LARGE) != (entry.level == 2) or entry.level == one.level and key >> _KEY_BITS & one.mask != number:
                        raise InvariantError(f"TLB entry {key:#x} lies in set {number}")
                    if (key & _TAG_MASK == GLOBAL) != entry.is_global:
                        raise InvariantError(f"TLB entry {key:#x} has another tag than its global bit says")

    def __repr__(self) -> str:
        return (f"<Tlb: {sum(map(len, self.data))} data, {sum(map(len, self.code))} code, {len(self.second[0])} shared entries; "
                f"{self.hits} hits, {self.second_hits} in the second level, {self.misses} misses>")
