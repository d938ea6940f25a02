"""Chapter 5, Physical memory."""

from __future__ import annotations

import re

from mmsim import constants as c
from mmsim.boot.handover import blocks_of
from mmsim.exercises.answers import Part
from mmsim.exercises.registry import exercise
from mmsim.figures.ch05 import buddy_board
from mmsim.figures.ch05.watermark_tank import TankZone
from mmsim.physical.buddy import find_buddy_pfn
from mmsim.physical.fragmentation import fragmentation_index
from mmsim.physical.gfp import gfp_to_alloc_flags
from mmsim.physical.watermark import zone_watermark_ok
from mmsim.physical.zonelist import build_node_orders
from mmsim.units import ctz


@exercise(
    "5.1", "ex05-buddy", "A buddy by hand",
    Part("buddy", "the buddy's PFN", kind="hex"), Part("pair", "the PFN at which the pair begins", kind="hex"),
    Part("largest", "the largest order of a block that begins at 0x240"),
    hints=("A buddy differs in one bit of the PFN: the bit with the number of the order.",
           "The pair begins at the lower of the two. The largest order is the number of trailing zero bits."))
def buddy_by_hand() -> tuple[int, ...]:
    buddy = find_buddy_pfn(0x240, 6)
    return buddy, min(buddy, 0x240), ctz(0x240)


@exercise(
    "5.2", "ex05-staircase", "A staircase of blocks",
    Part("orders", "the orders of the blocks, from the bottom up", kind="list"),
    hints=("A block can be as large as its first PFN is aligned, and must end at 0x200 or before.",
           "After a block, go on behind it: the PFN there has more trailing zeros."))
def staircase() -> tuple[list[int]]:
    return ([order for _, order in blocks_of(0x123, 0x200)],)


@exercise(
    "5.3", "ex05-atomic", "How deep may an interrupt handler go?",
    Part("atomic", "free memory at which GFP_ATOMIC is refused", "pages"),
    Part("victim", "free memory at which the OOM killer's victim is refused", "pages"),
    hints=("ALLOC_HIGH takes half of the mark away; what is left is lowered by a quarter (ALLOC_HARDER) or by half (ALLOC_OOM).",
           "GFP_ATOMIC: half of 1 000, less a quarter of that. The victim has no ALLOC_HIGH."))
def how_deep() -> tuple[int, ...]:
    zone = TankZone(c.ZONE_NORMAL, 100_000, watermark=[1000, 1250, 1500])

    def refused(flags: int) -> int:
        return max(free for free in range(1001) if not zone_watermark_ok(zone, 0, 1000, c.ZONE_NORMAL, flags, free))

    return refused(gfp_to_alloc_flags(c.GFP_ATOMIC)), refused(c.ALLOC_OOM)


@exercise(
    "5.4", "ex05-index-singles", "Lack or fragmentation? (1)",
    Part("index", "the index for order 4", "thousandths"),
    hints=("There are as many free blocks as free pages.",
           "1000 pages in thousandths, divided by 16, plus 1000, divided by the blocks."))
def index_of_singles() -> int:
    return fragmentation_index([1000], 4)


@exercise(
    "5.5", "ex05-index-eights", "Lack or fragmentation? (2)",
    Part("index", "the index for order 4", "thousandths"),
    hints=("100 blocks of order 3 are 800 pages.", "800 times 1000, divided by 16; plus 1000; divided by 100."))
def index_of_eights() -> int:
    return fragmentation_index([0, 0, 0, 100], 4)


@exercise(
    "5.6", "ex05-index-negative", "A number that cannot be",
    Part("index", "the index for order 9", "thousandths"),
    hints=("One block of order 8 has 256 pages; order 9 needs 512.",
           "256 times 1000, divided by 512; plus 1000; divided by one block. Subtract it from 1000."))
def index_below_zero() -> int:
    return fragmentation_index([0] * 8 + [1], 9)


@exercise(
    "5.7", "ex05-nodes", "Three nodes",
    Part("node0", "the fallback order of node 0", kind="list"), Part("node1", "the fallback order of node 1", kind="list"),
    Part("node2", "the fallback order of node 2", kind="list"),
    hints=("A node tries itself first. All others are 20 away, so the small additions decide.",
           "A lower number than one's own costs 1. Between equals the one that fewer nodes have chosen wins."))
def three_nodes() -> tuple[list[int], ...]:
    return tuple(build_node_orders([1] * 3, [1] * 3, [[10, 20, 20], [20, 10, 20], [20, 20, 10]]))


@exercise(
    "5.8", "ex05-design", "A fourth type (design)",
    Part("free", "more free lists in each zone"), Part("percpu", "more lists for each CPU and zone"),
    hints=("free_area has one list for each order and type.", "The per-CPU lists are for orders 0 to 3, and one for huge pages."))
def a_fourth_type() -> tuple[int, ...]:
    return c.MAX_ORDER, c.NR_PCP_LISTS // c.MIGRATE_PCPTYPES


@exercise(
    "5.9", "ex05-seed", "Predict a board (seeded)",
    Part("used", "blocks in use with seed 3"), Part("free", "free blocks with seed 3"),
    hints=("Freed frames merge, so free blocks are few.", "The figure's first sentence says both."))
def a_seeded_board() -> tuple[int, ...]:
    said = buddy_board(ops="random 40", seed=3).frames()[0].say
    found = re.search(r"(\d+) blocks are in use.* in (\d+) blocks", said)
    assert found is not None
    return int(found[1]), int(found[2])
