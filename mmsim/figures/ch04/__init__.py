"""The figures of chapter 4, Allocators: one module a subject."""

from mmsim.figures.ch04.allocator_race import ALLOCATORS, Lap, allocator_race, race
from mmsim.figures.ch04.brk_or_mmap import brk_or_mmap, limits, outcome
from mmsim.figures.ch04.heap_bins import heap_bins, lists_of
from mmsim.figures.ch04.heap_bug import heap_bug, run_bug
from mmsim.figures.ch04.own import arena_sizes, own_malloc
from mmsim.figures.ch04.stage import Logged, glibc
from mmsim.figures.ch04.the_pin import pinned, the_pin
from mmsim.figures.ch04.three_layers import three_layers

__all__ = [
    "ALLOCATORS", "Lap", "Logged", "allocator_race", "arena_sizes", "brk_or_mmap", "glibc", "heap_bins", "heap_bug", "limits", "lists_of",
    "outcome", "own_malloc", "pinned", "race", "run_bug", "the_pin", "three_layers",
]  # fmt: skip
