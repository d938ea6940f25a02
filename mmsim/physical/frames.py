"""Page frames: what the kernel knows of every frame of the machine, in columns over the PFN.

The kernel has an array of struct page, 64 bytes a frame. Here each field is an array of its own, made in one step with a
default of 0 for each frame, so that a machine of 16 million frames exists at once:

    ============  ==============  ===================================================================================
    column        struct page     0 means
    ============  ==============  ===================================================================================
    flags         flags           no PG_* bit (zone and node, which the kernel keeps in the same word, are ``zone_of``)
    refcount      _refcount       free
    mapcount      _mapcount + 1   in no page table
    free_block    PG_buddy,       not the head of a free block; else ``order + 1 | migratetype of its list << 4``
                  private
    compound      compound_head,  a single page; else the order of the compound page, with bit 7 set in its tails
                  compound_order
    zone_of       flags           no frame here (a hole); else the serial number of its zone
    ============  ==============  ===================================================================================

Rare fields come into being when somebody asks for their column (:meth:`Frames.column`).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from mmsim.constants import MAX_ORDER, PAGEBLOCK_ORDER
from mmsim.errors import InputError, InvariantError
from mmsim.units import align_up

if TYPE_CHECKING:
    from mmsim.physical.zone import Zone

__all__ = ["Frames", "PAGE_FLAG_NAMES", "PG", "COMPOUND_TAIL", "PAGE_FLAGS_CHECK_AT_FREE", "PAGE_FLAGS_CHECK_AT_PREP"]

# The bits of the flags word, lowest first, under the names that the kernel prints (5.17: include/trace/events/mmflags.h).
PAGE_FLAG_NAMES: tuple[str, ...] = (
    "locked", "referenced", "uptodate", "dirty", "lru", "active", "workingset", "waiters", "error", "slab",
    "owner_priv_1", "arch_1", "reserved", "private", "private_2", "writeback", "head", "mappedtodisk", "reclaim",
    "swapbacked", "unevictable", "mlocked", "uncached", "young", "idle", "arch_2",
)
#: ``PG["lru"]`` is the mask of PG_lru in the flags word.
PG: dict[str, int] = {name: 1 << bit for bit, name in enumerate(PAGE_FLAG_NAMES)}

# Flags that a page must not have when it is freed: somebody still uses it (5.17: include/linux/page-flags.h).
PAGE_FLAGS_CHECK_AT_FREE = sum(PG[name] for name in (
    "lru", "locked", "private", "private_2", "writeback", "reserved", "slab", "active", "unevictable", "mlocked"))
# And when it is handed out: none at all.
PAGE_FLAGS_CHECK_AT_PREP = (1 << len(PAGE_FLAG_NAMES)) - 1

# What a column of each order's length looks like when all of it is 0: comparing slices is many times faster than any().
_NO_FLAGS = [array("I", [0]) * (1 << order) for order in range(MAX_ORDER)]
_NO_COUNTS = [array("i", [0]) * (1 << order) for order in range(MAX_ORDER)]

#: Bit of the column ``compound`` that marks a tail page.
COMPOUND_TAIL = 0x80


class Frames:
    """The frames ``0 <= pfn < max_pfn`` of a machine. Creation is C-speed: about 14 bytes and 3 ns a frame.

    5.17: include/linux/mm_types.h, struct page; the pageblocks' types are those of ``usemap`` in struct mem_section.
    """

    __slots__ = ("max_pfn", "flags", "refcount", "mapcount", "free_block", "compound", "zone_of", "pageblock_mt", "zones",
                 "_columns")

    def __init__(self, max_pfn: int):
        if max_pfn < 1:
            raise InputError(f"a machine with {max_pfn} frames has no memory")
        self.max_pfn = max_pfn
        self.flags = array("I", [0]) * max_pfn
        self.refcount = array("i", [0]) * max_pfn
        self.mapcount = array("i", [0]) * max_pfn
        # Up to the end of a largest block, so that the PFN of any block's buddy is inside.
        padded = align_up(max_pfn, 1 << MAX_ORDER - 1)
        self.free_block = bytearray(padded)
        self.zone_of = bytearray(padded)
        self.compound = bytearray(max_pfn)
        #: The migratetype of each pageblock: ``pageblock_mt[pfn >> PAGEBLOCK_ORDER]``.
        self.pageblock_mt = bytearray((max_pfn - 1 >> PAGEBLOCK_ORDER) + 1)
        #: The zones by serial number; number 0 is none.
        self.zones: list[Zone | None] = [None]
        self._columns: dict[str, array[int]] = {}

    def column(self, name: str, typecode: str = "q") -> array[int]:
        """The column of a rarely used field, all 0 when it is first asked for. The typecode is that of :mod:`array`."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = array(typecode, [0]) * self.max_pfn
        return column

    def assign_zone(self, zone: Zone, start_pfn: int, end_pfn: int) -> None:
        """Say that the frames ``start_pfn <= pfn < end_pfn`` exist and belong to ``zone``.

        Raise InputError for a range outside the machine. 5.17: include/linux/mm.h, set_page_links().
        """
        if not 0 <= start_pfn <= end_pfn <= self.max_pfn:
            raise InputError(f"frames [{start_pfn:#x}, {end_pfn:#x}) are outside of the machine's {self.max_pfn:#x}")
        if not zone.serial:
            if len(self.zones) > 255:
                raise InputError("more than 255 zones")
            zone.serial = len(self.zones)
            self.zones.append(zone)
        self.zone_of[start_pfn:end_pfn] = bytes((zone.serial,)) * (end_pfn - start_pfn)

    def unassign(self, start_pfn: int, end_pfn: int) -> None:
        """Say that there are no frames in ``start_pfn <= pfn < end_pfn``: a hole."""
        self.zone_of[start_pfn:end_pfn] = bytes(end_pfn - start_pfn)

    def page_zone(self, pfn: int) -> Zone:
        """The zone of a frame. Raise InputError for a PFN without a frame (5.17: include/linux/mm.h, page_zone())."""
        zone = self.zones[self.zone_of[pfn]] if 0 <= pfn < self.max_pfn else None
        if zone is None:
            raise InputError(f"there is no frame {pfn:#x}")
        return zone

    def pfn_valid(self, pfn: int) -> bool:
        """Tell whether there is a frame (the kernel's pfn_valid() asks for the memmap only, which may cover holes)."""
        return 0 <= pfn < self.max_pfn and self.zone_of[pfn] != 0

    def buddy_order(self, pfn: int) -> int:
        """The order of the free block that begins here, or -1 (5.17: mm/internal.h, buddy_order(); PageBuddy())."""
        return (self.free_block[pfn] & 15) - 1

    def compound_head(self, pfn: int) -> int:
        """The first frame of the compound page that ``pfn`` is in; ``pfn`` itself for a single page."""
        compound = self.compound[pfn]
        return pfn & -(1 << (compound & 31)) if compound & COMPOUND_TAIL else pfn

    def compound_order(self, pfn: int) -> int:
        """The order of the compound page that ``pfn`` is in; 0 for a single page."""
        return self.compound[pfn] & 31

    def is_clear(self, pfn: int, order: int) -> bool:
        """Tell whether no frame of a block has flags, references, mappings or a free block's mark."""
        end = pfn + (1 << order)
        return (self.flags[pfn:end] == _NO_FLAGS[order] and self.refcount[pfn:end] == _NO_COUNTS[order]
                and self.mapcount[pfn:end] == _NO_COUNTS[order] and self.free_block.count(0, pfn, end) == end - pfn)

    def reserve(self, start_pfn: int, end_pfn: int) -> None:
        """Mark frames as taken for good: PG_reserved, one reference (5.17: mm/page_alloc.c, reserve_bootmem_region())."""
        self.flags[start_pfn:end_pfn] = array("I", [PG["reserved"]]) * (end_pfn - start_pfn)
        self.refcount[start_pfn:end_pfn] = array("i", [1]) * (end_pfn - start_pfn)

    def check(self) -> None:
        """Verify that compound pages are whole and that no zone number is unknown. Raise InvariantError. Cost: every frame."""
        if max(self.zone_of) >= len(self.zones):
            raise InvariantError("a frame belongs to a zone that nobody registered")
        pfn = 0
        while pfn < self.max_pfn:
            compound = self.compound[pfn]
            if not compound:
                # Jump over single pages at C speed.
                rest = self.compound[pfn:pfn + 4096].lstrip(b"\0")
                pfn += max(1, min(4096, self.max_pfn - pfn) - len(rest))
                continue
            order = compound & 31
            if compound & COMPOUND_TAIL:
                raise InvariantError(f"tail page {pfn:#x} has no head: no compound page of order {order} begins at "
                                     f"{pfn & -(1 << order):#x}")
            if pfn & (1 << order) - 1:
                raise InvariantError(f"compound page {pfn:#x} of order {order} is not aligned to its size")
            if self.compound[pfn + 1:pfn + (1 << order)].strip(bytes((COMPOUND_TAIL | order,))):
                raise InvariantError(f"compound page {pfn:#x} of order {order} has a page that is no tail of it")
            if not self.flags[pfn] & PG["head"]:
                raise InvariantError(f"compound page {pfn:#x} lacks PG_head")
            pfn += 1 << order

    def __len__(self) -> int:
        return self.max_pfn

    def __repr__(self) -> str:
        present = len(self.zone_of) - self.zone_of.count(0)
        return f"<Frames: {present} frames below {self.max_pfn:#x} in {len(self.zones) - 1} zones>"
