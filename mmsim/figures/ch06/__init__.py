"""The figures of chapter 6, Virtual memory in the kernel: one module a subject."""

from mmsim.figures.ch06.gauges import caches_of, meminfo_lines, orders_table, remote_frees, vmalloc_table
from mmsim.figures.ch06.kernel_atlas import facts_of, kernel_atlas
from mmsim.figures.ch06.slab_order import slab_order
from mmsim.figures.ch06.slab_report import slab_report
from mmsim.figures.ch06.slub_machine import Board, slub_machine
from mmsim.figures.ch06.tid_race import tid_race
from mmsim.figures.ch06.vmalloc_gaps import vmalloc_gaps
from mmsim.figures.ch06.which_allocator import Offer, offers, share_of_slab, vmalloc_cost, which_allocator

__all__ = [
    "Board", "Offer", "caches_of", "facts_of", "kernel_atlas", "meminfo_lines", "offers", "orders_table", "remote_frees", "share_of_slab",
    "slab_order", "slab_report", "slub_machine", "tid_race", "vmalloc_cost", "vmalloc_gaps", "vmalloc_table", "which_allocator",
]  # fmt: skip
