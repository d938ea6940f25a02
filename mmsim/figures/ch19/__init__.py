"""The figures of chapter 19, Early memory management: one module a subject."""

from mmsim.figures.ch19.boot_film import boot_film
from mmsim.figures.ch19.direct_map_ladder import direct_map_ladder
from mmsim.figures.ch19.e820_surgery import e820_surgery
from mmsim.figures.ch19.measure import MISSING_COLOURS, MISSING_KINDS, missing_by_kind, recorded_shares
from mmsim.figures.ch19.memblock_sandbox import memblock_sandbox
from mmsim.figures.ch19.memory_cost import memory_cost

__all__ = [
    "boot_film",
    "direct_map_ladder",
    "e820_surgery",
    "memblock_sandbox",
    "memory_cost",
    "MISSING_COLOURS",
    "MISSING_KINDS",
    "missing_by_kind",
    "recorded_shares",
]
