"""The figures of chapter 19, Early memory management: one module a subject."""

from mmsim.figures.ch19.direct_map_ladder import direct_map_ladder
from mmsim.figures.ch19.e820_surgery import e820_surgery
from mmsim.figures.ch19.memblock_sandbox import memblock_sandbox

__all__ = ["direct_map_ladder", "e820_surgery", "memblock_sandbox"]
