"""The figures of chapter 5, Physical memory: one module a subject."""

from mmsim.figures.ch05.buddy_board import buddy_board
from mmsim.figures.ch05.e820_to_buddy import e820_to_buddy
from mmsim.figures.ch05.order_failed import why_order_failed
from mmsim.figures.ch05.stealing import stealing
from mmsim.figures.ch05.watermark_tank import watermark_tank

__all__ = ["buddy_board", "e820_to_buddy", "stealing", "watermark_tank", "why_order_failed"]
