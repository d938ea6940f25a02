"""How fragmented free memory is: the numbers that tell a lack of memory from a lack of contiguous memory.

All of them are computed from the counts of free blocks per order, ``nr_free[order]``, which /proc/buddyinfo shows too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmsim.constants import MAX_ORDER, PAGEBLOCK_ORDER
from mmsim.units import c_div, c_mod, s32, u64

__all__ = [
    "ContigPageInfo", "fill_contig_page_info", "fragmentation_index", "unusable_free_index", "extfrag_for_order",
    "format_index", "fragmentation_score_zone", "fragmentation_score_zone_weighted", "fragmentation_score_node",
    "fragmentation_score_wmark", "should_proactive_compact_node",
]


class ContigPageInfo(NamedTuple):
    """Free memory seen by a request: pages in all, blocks in all, and how many blocks of its size they contain."""

    free_pages: int
    free_blocks_total: int
    free_blocks_suitable: int


def fill_contig_page_info(nr_free: Sequence[int], suitable_order: int) -> ContigPageInfo:
    """Count the free memory of a zone for a request of ``suitable_order``; a larger block counts as the blocks it
    splits into.

    5.17: mm/vmstat.c, fill_contig_page_info().

    >>> fill_contig_page_info([0, 0, 0, 1], 2)
    ContigPageInfo(free_pages=8, free_blocks_total=1, free_blocks_suitable=2)
    """
    return ContigPageInfo(
        sum(blocks << order for order, blocks in enumerate(nr_free)),
        sum(nr_free),
        sum(blocks << (order - suitable_order) for order, blocks in enumerate(nr_free) if order >= suitable_order))


def fragmentation_index(nr_free: Sequence[int], order: int) -> int:
    """Why a request of ``order`` would fail, in thousandths: towards 0 for lack of memory, towards 1000 for
    fragmentation.

    -1000 if it would not fail, 0 if nothing at all is free. With very few blocks the formula leaves 0..1000 downwards.
    5.17: mm/vmstat.c, __fragmentation_index().

    >>> fragmentation_index([1000], 4), fragmentation_index([0, 0, 0, 100], 4), fragmentation_index([0] * 8 + [1], 9)
    (937, 490, -500)
    """
    info = fill_contig_page_info(nr_free, order)
    if order >= MAX_ORDER or not info.free_blocks_total:
        return 0
    if info.free_blocks_suitable:
        return -1000
    return s32(1000 - (1000 + u64(info.free_pages * 1000) // (1 << order)) // info.free_blocks_total)


def unusable_free_index(nr_free: Sequence[int], order: int) -> int:
    """The part of free memory, in thousandths, that a request of ``order`` could not use; 1000 if nothing is free.

    5.17: mm/vmstat.c, unusable_free_index().

    >>> unusable_free_index([2, 1], 1)
    500
    """
    info = fill_contig_page_info(nr_free, order)
    if not info.free_pages:
        return 1000
    return (info.free_pages - (info.free_blocks_suitable << order)) * 1000 // info.free_pages


def extfrag_for_order(nr_free: Sequence[int], order: int) -> int:
    """External fragmentation: the percentage of free pages in blocks too small for ``order``; 0 if nothing is free.

    5.17: mm/vmstat.c, extfrag_for_order().
    """
    info = fill_contig_page_info(nr_free, order)
    if not info.free_pages:
        return 0
    return (info.free_pages - (info.free_blocks_suitable << order)) * 100 // info.free_pages


def format_index(index: int) -> str:
    """An index in thousandths as extfrag_index and unusable_index show it: ``%d.%03d`` of C.

    Both parts carry the sign, and a zero has none: -500 reads ``0.-500``, and -1000 ``-1.000``.
    5.17: mm/vmstat.c, extfrag_show_print(), unusable_show_print().

    >>> format_index(937), format_index(-1000), format_index(-500), format_index(-7)
    ('0.937', '-1.000', '0.-500', '0.-07')
    """
    # C's %03d counts the sign into the width, and so does Python's.
    return f"{c_div(index, 1000):d}.{c_mod(index, 1000):03d}"


# -- proactive compaction ----------------------------------------------------------------------------------

def fragmentation_score_zone(nr_free: Sequence[int]) -> int:
    """A zone's fragmentation for huge pages, in per cent (5.17: mm/compaction.c, fragmentation_score_zone())."""
    return extfrag_for_order(nr_free, PAGEBLOCK_ORDER)


def fragmentation_score_zone_weighted(nr_free: Sequence[int], present_pages: int, node_present_pages: int) -> int:
    """The zone's score weighted by its part of the node, so that a small zone cannot keep kcompactd busy.

    5.17: mm/compaction.c, fragmentation_score_zone_weighted().
    """
    return present_pages * fragmentation_score_zone(nr_free) // (node_present_pages + 1)


def fragmentation_score_node(zones: Iterable[tuple[Sequence[int], int]]) -> int:
    """A node's score from its zones, each as (nr_free, present pages) (5.17: mm/compaction.c,
    fragmentation_score_node())."""
    zones = list(zones)
    node_present_pages = sum(present for _, present in zones)
    return sum(fragmentation_score_zone_weighted(nr_free, present, node_present_pages) for nr_free, present in zones)


def fragmentation_score_wmark(proactiveness: int, low: bool) -> int:
    """The score at which proactive compaction stops (``low``) or starts, for vm.compaction_proactiveness of 0..100.

    5.17: mm/compaction.c, fragmentation_score_wmark().

    >>> fragmentation_score_wmark(20, low=True), fragmentation_score_wmark(20, low=False)
    (80, 90)
    """
    wmark_low = max(100 - proactiveness, 5)
    return wmark_low if low else min(wmark_low + 10, 100)


def should_proactive_compact_node(node_score: int, proactiveness: int, kswapd_running: bool) -> bool:
    """Tell whether kcompactd compacts a node before anybody needs it: fragmented enough, wanted at all, and kswapd is
    at rest.

    5.17: mm/compaction.c, should_proactive_compact_node().
    """
    return proactiveness > 0 and not kswapd_running and node_score > fragmentation_score_wmark(proactiveness, low=False)
