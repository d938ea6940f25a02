"""The figures of chapter 5, Physical memory: one module a subject."""

from mmsim.figures.ch05.buddy_board import buddy_board
from mmsim.figures.ch05.e820_to_buddy import e820_to_buddy
from mmsim.figures.ch05.marks import marks_of, marks_table, unusable_parts
from mmsim.figures.ch05.order_failed import why_order_failed
from mmsim.figures.ch05.stealing import Workload, stealing
from mmsim.figures.ch05.watermark_tank import watermark_tank

__all__ = [
    "Workload", "buddy_board", "e820_to_buddy", "marks_of", "marks_table", "stealing", "unusable_parts", "watermark_tank",
    "why_order_failed",
]  # fmt: skip
