"""What a machine's own files say of kernel memory, computed again: slab orders, areas of vmalloc, lines of meminfo."""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass
from random import Random

from mmsim.errors import InputError
from mmsim.figures.ch06.slub_machine import Board
from mmsim.host import Host
from mmsim.kernel.slab_layout import calculate_order, order_objects
from mmsim.units import PAGE_SIZE

__all__ = ["CacheRow", "caches_of", "cpus_of", "meminfo_lines", "orders_table", "remote_frees", "vmalloc_table"]


@dataclass(frozen=True, slots=True)
class CacheRow:
    """A line of /proc/slabinfo, and the slab that :func:`calculate_order` would give such objects."""

    name: str
    active: int
    total: int
    size: int
    objects: int
    pages: int
    order: int

    @property
    def agrees(self) -> bool:
        """Whether printed and computed slabs are the same."""
        return self.pages == 1 << self.order and self.objects == order_objects(self.order, self.size)

    @property
    def bytes(self) -> int:
        """All memory of the cache's slabs."""
        return self.total // max(self.objects, 1) * self.pages * PAGE_SIZE


def cpus_of(source: Host) -> int:
    """The number of CPUs that the machine's orders were computed for, as far as it can be known."""
    found = re.search(r"SLUB: .*\bCPUs=(\d+)", source.texts.get("dmesg", ""))
    return int(found[1]) if found else os.cpu_count() or 1


def caches_of(source: Host, cpus: int = 0) -> list[CacheRow]:
    """Every cache of a machine's slabinfo, the largest first. Raise InputError if it cannot be read (only root may)."""
    cpus = cpus or cpus_of(source)
    rows = []
    for line in source.text("slabinfo").splitlines():
        words = line.split()
        if len(words) < 6 or not all(word.isdigit() for word in words[1:6]):
            continue
        active, total, size, objects, pages = map(int, words[1:6])
        rows.append(CacheRow(words[0], active, total, size, objects, pages, calculate_order(size, cpus)))
    if not rows:
        raise InputError(f"{source.source}: no cache in slabinfo")
    return sorted(rows, key=lambda row: (-row.bytes, row.name))


def orders_table(source: Host, most: int = 8) -> str:
    """The largest caches with their slabs as printed and as computed, and how many of all agree."""
    cpus = cpus_of(source)
    rows = caches_of(source, cpus)
    lines = [f"{'cache':<22} {'KiB':>6} {'in use':>7} {'size':>6} {'printed':>9} {'computed':>9}"]
    for row in rows[:most]:
        used = row.active / row.total if row.total else 0
        lines.append(f"{row.name:<22} {row.bytes >> 10:>6} {used:>7.0%} {row.size:>6} {row.pages:>4}/{row.objects:<4} "
                     f"{1 << row.order:>4}/{order_objects(row.order, row.size):<4}{'' if row.agrees else '  differs'}")
    agree = sum(row.agrees for row in rows)
    return "\n".join([*lines, f"pages/objects of {agree} of {len(rows)} caches agree, for {cpus} CPU{'' if cpus == 1 else 's'}"])


def vmalloc_table(source: Host) -> str:
    """Who has areas of vmalloc, by caller: areas, pages, and whether the sizes are pages plus guard; VmallocUsed beside the sum."""
    areas: dict[str, list[int]] = {}
    pages, right, sized = 0, 0, 0
    for line in source.text("vmallocinfo").splitlines():
        found = re.match(r"0x\S+-0x\S+ +(\d+) (\S+)", line)
        if not found:
            continue
        count = re.search(r" pages=(\d+)", line)
        name = found[2].split("+")[0]
        entry = areas.setdefault(name, [0, 0])
        entry[0] += 1
        if count:
            entry[1] += int(count[1])
            pages += int(count[1])
            sized += 1
            right += int(found[1]) == (int(count[1]) + 1) * PAGE_SIZE
    rows = sorted(areas.items(), key=lambda item: (-item[1][1], item[0]))[:6]
    lines = [f"{'caller':<24} {'areas':>6} {'pages':>7}"] + [f"{name:<24} {count:>6} {held:>7}" for name, (count, held) in rows]
    used = source.meminfo().get("VmallocUsed", 0)
    lines.append(f"{right} of {sized} sizes are pages and one guard page")
    return "\n".join([*lines, f"{pages} pages are {pages * 4} kB; VmallocUsed says {used} kB"])


def meminfo_lines(source: Host) -> str:
    """The lines of /proc/meminfo that this chapter explains."""
    values = source.meminfo()
    names = ("Slab", "SReclaimable", "SUnreclaim", "KernelStack", "PageTables", "VmallocUsed", "Percpu", "DirectMap4k", "DirectMap2M",
             "DirectMap1G")
    return "\n".join(f"{name + ':':<14} {values[name]:>9} kB" for name in names if name in values)


def remote_frees(chain: int, size: int = 256, live: int = 600, frees: int = 3000, fifo: bool = False, seed: int = 1) -> tuple[float, float]:
    """One CPU allocates, another frees: how often the node's lock is taken for 1000 frees, and which part of the slabs' memory is in use.

    ``live`` objects exist at a time; the one to be freed is the oldest (``fifo``) or any.
    """
    board = Board.of(size, 2, chain)
    cache, slub, random = board.cache, board.slub, Random(seed)
    held: deque[int] = deque()

    def take() -> None:
        slub.memory.run_on(0)
        held.append(slub.kmem_cache_alloc(cache) or 0)

    for _ in range(live):
        take()
    start, emptied = cache.stats(), 0
    for _ in range(frees):
        if not fifo:
            held.rotate(random.randrange(len(held)))
        slub.memory.run_on(1)
        obj = held.popleft()
        slab = slub.slab_of(obj)
        assert slab is not None
        # 5.17, __slab_free(): a slab of the node that becomes empty takes the lock, whether it goes or stays.
        emptied += not slab.frozen and slab.inuse == 1
        slub.kmem_cache_free(cache, obj)
        take()
    slub.check()
    moved = {name: count - start[name] for name, count in cache.stats().items()}
    # A drained chain takes the lock once for all its slabs, each of which counts as free_add_partial.
    full = 0 if cache.has_cpu_partial else moved["free_add_partial"]
    locks = (moved["alloc_from_partial"] + moved["cpu_partial_drain"] + full + emptied) * 1000 / frees
    slabs = [slab for slab in slub.slabs.values() if slab.cache is cache]
    return locks, live * size / sum(slab.size for slab in slabs)
