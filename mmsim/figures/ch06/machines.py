"""Small machines for the figures of this chapter: one zone of free frames, some CPUs, no boot."""

from __future__ import annotations

from random import Random

from mmsim.constants import GFP_KERNEL, MIGRATE_MOVABLE, ZONE_NORMAL
from mmsim.kernel.slub import Slub
from mmsim.physical.free import free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.zone import Zone
from mmsim.physical.zonelist import build_all_zonelists

__all__ = ["scatter", "small_kernel", "small_ram"]

_BLOCK = 512


def small_ram(frames: int, nr_cpus: int = 1) -> PhysicalMemory:
    """One node with one zone, Normal, whose frames are all free; ``frames`` is rounded up to whole pageblocks."""
    frames = -(-frames // _BLOCK) * _BLOCK
    memory = PhysicalMemory(frames, nr_cpus=nr_cpus)
    node = memory.add_node(0, 0, frames, frames)
    node.zones[ZONE_NORMAL] = Zone(memory, 0, ZONE_NORMAL, 0, frames, frames)
    memory.frames.pageblock_mt[:] = bytes((MIGRATE_MOVABLE,)) * len(memory.frames.pageblock_mt)
    for pfn in range(0, frames, _BLOCK):
        free_pages_core(memory, pfn, 9)
    build_all_zonelists(memory)
    return memory


def small_kernel(frames: int = 1024, nr_cpus: int = 1, **options: object) -> Slub:
    """A slab allocator on such memory; the options are those of :class:`.Slub`."""
    memory = small_ram(frames, nr_cpus)
    return Slub(memory, PageAllocator(memory), **options)  # type: ignore[arg-type]


def scatter(slub: Slub, frames: int, seed: int) -> None:
    """Take ``frames`` single frames and give a random half of them back, so that the next requests get frames from
    anywhere.
    """
    taken = [slub.allocator.alloc_pages(GFP_KERNEL) for _ in range(frames)]
    held = [pfn for pfn in taken if pfn is not None]
    for pfn in Random(seed).sample(held, len(held) // 2):
        slub.allocator.free_pages(pfn)
