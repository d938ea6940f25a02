"""Pages as people look at them: views on the columns, made when somebody asks.

A :class:`Page` has no state of its own; it reads and writes the frame columns at its PFN. A :class:`Folio` is a page that is
no tail: the unit that is mapped, read or written as one.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.errors import InputError, KernelBug
from mmsim.physical.frames import COMPOUND_TAIL, PAGE_FLAG_NAMES, PG, Frames
from mmsim.physical.zone import Zone

__all__ = [
    "VMEMMAP_START", "Folio", "Page", "flag_names", "folio_of", "format_page_flags", "page_flags_word", "page_to_virt",
    "prep_compound_page", "prep_new_page", "set_page_refcounted", "split_compound_page",
]

#: Where the kernel sees the array of struct page (4-level paging, nokaslr).
VMEMMAP_START = 0xFFFF_EA00_0000_0000
SIZEOF_STRUCT_PAGE = 64

# The flags word of 5.17 on x86-64, beside the PG_* bits (CONFIG_NODES_SHIFT=6, four zone types, NUMA balancing):
#   63      58 57  56 55              42          25            0
#   |  NODE  | ZONE |  LAST_CPUPID    |    unused   |  PG_*      |
NODES_PGSHIFT, ZONES_PGSHIFT = 58, 56


def flag_names(flags: int) -> list[str]:
    """The names of the set PG_* bits, lowest first.

    >>> flag_names(PG["dirty"] | PG["uptodate"])
    ['uptodate', 'dirty']
    """
    return [name for bit, name in enumerate(PAGE_FLAG_NAMES) if flags >> bit & 1]


def page_flags_word(frames: Frames, pfn: int) -> int:
    """The whole flags word of a frame: PG_* bits, zone and node. The CPU and task that last touched it are left out."""
    zone = frames.zones[frames.zone_of[pfn]]
    word = frames.flags[pfn]
    return word if zone is None else word | zone.index << ZONES_PGSHIFT | zone.nid << NODES_PGSHIFT


def format_page_flags(frames: Frames, pfn: int) -> str:
    """A frame's flags as ``%pGp`` prints them: the word, then its parts (5.17: lib/vsprintf.c, format_page_flags())."""
    zone = frames.zones[frames.zone_of[pfn]]
    parts = flag_names(frames.flags[pfn])
    if zone is not None:
        parts += [f"node={zone.nid}", f"zone={zone.index}"]
    return f"{page_flags_word(frames, pfn):#x}({'|'.join(parts)})"


def page_to_virt(pfn: int) -> int:
    """The kernel address of a frame's struct page: ``vmemmap + pfn`` (5.17: include/asm-generic/memory_model.h)."""
    return VMEMMAP_START + pfn * SIZEOF_STRUCT_PAGE


# -- references and compound pages ---------------------------------------------------------------------------

def set_page_refcounted(frames: Frames, pfn: int) -> None:
    """Give a free frame its first reference (5.17: mm/internal.h, set_page_refcounted())."""
    if frames.refcount[pfn]:
        raise KernelBug(f"VM_BUG_ON_PAGE(page_ref_count(page)): frame {pfn:#x} has {frames.refcount[pfn]} references")
    frames.refcount[pfn] = 1


def prep_compound_page(frames: Frames, pfn: int, order: int) -> None:
    """Join 2^order frames to one compound page: its head carries the state, its tails point to the head.

    Cost: one slice. 5.17: mm/page_alloc.c, prep_compound_page().
    """
    if order < 1 or pfn & (1 << order) - 1:
        raise KernelBug(f"frame {pfn:#x} cannot head a compound page of order {order}")
    frames.compound[pfn:pfn + (1 << order)] = bytes((order,)) + bytes((COMPOUND_TAIL | order,)) * ((1 << order) - 1)
    frames.flags[pfn] |= PG["head"]


def split_compound_page(frames: Frames, pfn: int) -> None:
    """Dissolve the compound page that begins at ``pfn`` into single frames (5.17: destroy_compound part of freeing)."""
    order = frames.compound[pfn]
    if order:
        frames.compound[pfn:pfn + (1 << order)] = bytes(1 << order)
        frames.flags[pfn] &= ~PG["head"]


def prep_new_page(frames: Frames, pfn: int, order: int, compound: bool = False) -> None:
    """Make a block that comes from the allocator ready for its user: one reference, and compound if ``__GFP_COMP``.

    5.17: mm/page_alloc.c, prep_new_page(). Zeroing is left to whoever gives frames contents.
    """
    if frames.refcount[pfn]:
        set_page_refcounted(frames, pfn)
    frames.refcount[pfn] = 1
    if compound and order:
        prep_compound_page(frames, pfn, order)


# -- views -------------------------------------------------------------------------------------------------

class Page:
    """One frame. Raise InputError for a PFN without a frame.

    ``refcount`` and ``mapcount`` are what the kernel's page_count() and page_mapcount() would say of this very page;
    ``flags`` are the names of its PG_* bits.
    """

    __slots__ = ("frames", "pfn")

    def __init__(self, frames: Frames, pfn: int):
        if not frames.pfn_valid(pfn):
            raise InputError(f"there is no frame {pfn:#x}")
        self.frames = frames
        self.pfn = pfn

    @property
    def refcount(self) -> int:
        """References to the page; those to a tail page count at its head (5.17: page_ref_count())."""
        return self.frames.refcount[self.pfn]

    @refcount.setter
    def refcount(self, value: int) -> None:
        self.frames.refcount[self.pfn] = value

    @property
    def mapcount(self) -> int:
        """In how many page tables the page stands: ``_mapcount + 1`` (5.17: page_mapcount())."""
        return self.frames.mapcount[self.pfn]

    @mapcount.setter
    def mapcount(self, value: int) -> None:
        self.frames.mapcount[self.pfn] = value

    @property
    def flags(self) -> list[str]:
        """The names of the page's PG_* bits."""
        return flag_names(self.frames.flags[self.pfn])

    def test(self, name: str) -> bool:
        """Tell whether a flag is set: ``page.test("lru")`` is the kernel's PageLRU(page)."""
        return bool(self.frames.flags[self.pfn] & PG[name])

    def set(self, *names: str) -> None:
        """Set flags by name."""
        for name in names:
            self.frames.flags[self.pfn] |= PG[name]

    def clear(self, *names: str) -> None:
        """Clear flags by name."""
        for name in names:
            self.frames.flags[self.pfn] &= ~PG[name]

    @property
    def zone(self) -> Zone:
        """The zone that the frame belongs to."""
        return self.frames.page_zone(self.pfn)

    @property
    def is_buddy(self) -> bool:
        """Tell whether a free block begins here (5.17: PageBuddy())."""
        return self.frames.free_block[self.pfn] != 0

    @property
    def is_head(self) -> bool:
        """Tell whether a compound page begins here (5.17: PageHead())."""
        return 0 < self.frames.compound[self.pfn] < COMPOUND_TAIL

    @property
    def is_tail(self) -> bool:
        """Tell whether the page belongs to a compound page that begins before it (5.17: PageTail())."""
        return self.frames.compound[self.pfn] >= COMPOUND_TAIL

    @property
    def order(self) -> int:
        """The order of the free block or compound page that the page heads or is part of; 0 for a single page."""
        return self.frames.buddy_order(self.pfn) if self.is_buddy else self.frames.compound_order(self.pfn)

    @property
    def head(self) -> Page:
        """The first page of the compound page; the page itself if it is none (5.17: compound_head())."""
        return Page(self.frames, self.frames.compound_head(self.pfn))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Page) and (self.frames, self.pfn) == (other.frames, other.pfn)

    def __hash__(self) -> int:
        return hash(self.pfn)

    def _what(self) -> str:
        if self.is_buddy:
            return f"free block of order {self.order}"
        if self.is_tail:
            return f"tail of {self.head.pfn:#x}, order {self.order}"
        return f"{'head, ' if self.is_head else ''}order {self.order}"

    def __repr__(self) -> str:
        return (f"<{type(self).__name__} {self.pfn:#x}: {self._what()}, refcount {self.refcount}, mapcount {self.mapcount}, "
                f"{'|'.join(self.flags) or 'no flags'}, {self.zone.name} of node {self.zone.nid}>")


class Folio(Page):
    """A page that is no tail, with all pages up to its order. Raise KernelBug for a tail page.

    All references to any of its pages count here. 5.17: include/linux/mm_types.h, struct folio: the type says that nobody has to
    ask for the head any more.
    """

    __slots__ = ()

    def __init__(self, frames: Frames, pfn: int):
        super().__init__(frames, pfn)
        if self.is_tail:
            raise KernelBug(f"frame {pfn:#x} is a tail page: no folio begins there")

    @property
    def nr_pages(self) -> int:
        """How many pages the folio has (5.17: folio_nr_pages())."""
        return 1 << self.frames.compound_order(self.pfn)

    def pages(self) -> Iterator[Page]:
        """The pages of the folio, in order."""
        return (Page(self.frames, pfn) for pfn in range(self.pfn, self.pfn + self.nr_pages))


def folio_of(page: Page) -> Folio:
    """The folio that a page belongs to (5.17: page_folio())."""
    return Folio(page.frames, page.head.pfn)
