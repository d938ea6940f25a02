"""Chapter 19, Early memory management."""

from __future__ import annotations

import random

from mmsim.boot.crashkernel import parse_crashkernel
from mmsim.boot.e820 import E820Entry, E820Table
from mmsim.boot.handover import blocks_of
from mmsim.boot.image import IMAGE_5_17
from mmsim.boot.memblock import Memblock
from mmsim.boot.sparse import sparse_init
from mmsim.constants import MAX_ORDER
from mmsim.exercises.answers import Part
from mmsim.exercises.registry import exercise
from mmsim.rules import rules_for
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE, TIB

_LARGEST = MAX_ORDER - 1


@exercise(
    "19.1", "ex19-top", "Top down",
    Part("first", "where the 20 KiB go", kind="hex"), Part("second", "where the 1 MiB goes", kind="hex"),
    hints=("The free range ends where the reserved 64 KiB begin: at 0x7fff0000.",
           "The second piece must end where the first begins. Subtract 1 MiB, then round down to a multiple of 0x200000."))
def top_down() -> tuple[int, ...]:
    memblock = Memblock()
    memblock.add(0, 2 * GIB)
    memblock.reserve(2 * GIB - 64 * KIB, 64 * KIB)
    return memblock.alloc(20 * KIB, PAGE_SIZE), memblock.alloc(MIB, 2 * MIB)


@exercise(
    "19.2", "ex19-overlap", "Who wins",
    Part("type", "the type from 1 GiB to 2 GiB"), Part("entries", "entries of the new map"),
    hints=("Where entries overlap, the largest type wins.", "RAM remains on both sides."))
def who_wins() -> tuple[int, ...]:
    table = E820Table([E820Entry(0, 4 * GIB, 1)] + [E820Entry(GIB, GIB, kind) for kind in (2, 3, 4, 5, 7)])
    table.update_table()
    return next(entry.type for entry in table if entry.addr == GIB), len(list(table))


@exercise(
    "19.5", "ex19-blocks", "Blocks",
    Part("first", "the orders of the blocks of [5, 32)", kind="list"), Part("tens", "blocks of order 10 in [1, 4096)"),
    Part("most", "blocks below order 10 that one range can give, at most"),
    hints=("The order is that to which the first frame is aligned, and smaller where the range ends.",
           "A range climbs to order 10 at one end and down from it at the other, with at most one block of each order."))
def blocks() -> tuple[list[int] | int, ...]:
    ends = range(1 << _LARGEST + 1, (1 << _LARGEST + 2) + 1)
    most = max(sum(order < _LARGEST for _, order in blocks_of(1, end)) for end in ends)
    tens = sum(order == _LARGEST for _, order in blocks_of(1, 4096))
    return [order for _, order in blocks_of(5, 32)], tens, most


@exercise(
    "19.6", "ex19-crash", "Just below the line",
    Part("old", "reserved in 5.17", "MiB"), Part("new", "reserved in 6.1", "MiB"),
    Part("line", "the amount above which 6.1 reserves 128 MiB", "MiB"),
    hints=("2 047 MiB are less than 2 GiB. 6.1 rounds the memory up before it looks.", "It rounds to a multiple of 128 MiB."))
def just_below_the_line() -> tuple[int, ...]:
    option, new = "crashkernel=512M-2G:64M,2G-:128M", rules_for("6.1")
    line = max(size for size in range(512, 2048) if parse_crashkernel(option, size * MIB, rules=new)[0] < 128 * MIB)
    old = parse_crashkernel(option, 2047 * MIB)[0]
    return old // MIB, parse_crashkernel(option, 2047 * MIB, rules=new)[0] // MIB, line


@exercise(
    "19.7", "ex19-terabyte", "A terabyte",
    Part("pages", "memory for struct pages", "GiB"), Part("sections", "sections"), Part("tables", "page tables that map the memmap"),
    hints=("64 bytes for each 4096. A section has 128 MiB.",
           "Each section has an entry of 2 MiB. How many tables of 512 entries are that? One more stands above them."))
def a_terabyte() -> tuple[int, ...]:
    memblock = Memblock()
    memblock.add_node(0, TIB, 0)
    sparse = sparse_init(memblock, IMAGE_5_17, {0: TIB - PAGE_SIZE})
    return sparse.memmap_bytes // GIB, len(sparse.memmap), len(sparse.tables)


@exercise(
    "19.9", "ex19-seed", "Predict with a seed",
    Part("before", "regions before the frees"), Part("after", "regions after the frees", within=5),
    hints=("Pieces that touch are one region, and memblock hands out from the top down.",
           "Every second of 200 pieces is freed: each leaves a hole."))
def predict_with_a_seed() -> tuple[int, ...]:
    memblock = Memblock()
    memblock.add(0x1000, 0x9E000)
    memblock.add(0x100000, 0xF00000)
    memblock.reserve(0, 0x100000)
    memblock.reserve(0x200000, 0x100000)
    rng = random.Random(7)
    pieces = [(memblock.alloc(size := rng.randrange(1, 17) << 12, 4096), size) for _ in range(200)]
    before = len(memblock.reserved)
    for addr, size in pieces[::2]:
        memblock.phys_free(addr, size)
    return before, len(memblock.reserved)
