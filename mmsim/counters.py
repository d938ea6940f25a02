"""Event counters, under the names of /proc/vmstat.

Events only count up (``pgalloc_dma``, ``pgfault``). What goes up and down (``nr_free_pages``) belongs to the zones and nodes,
which know it exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["VM_EVENTS", "Counters"]

# The order of /proc/vmstat (5.17: mm/vmstat.c, vmstat_text[]), as far as mechanisms of the model count them.
VM_EVENTS: tuple[str, ...] = (
    "pgalloc_dma", "pgalloc_dma32", "pgalloc_normal", "pgalloc_movable",
    "allocstall_dma", "allocstall_dma32", "allocstall_normal", "allocstall_movable",
    "pgskip_dma", "pgskip_dma32", "pgskip_normal", "pgskip_movable",
    "pgfree", "pgactivate", "pgdeactivate", "pglazyfree", "pgfault", "pgmajfault", "pglazyfreed",
    "pgreuse", "pageoutrun", "drop_pagecache", "drop_slab", "oom_kill",
    "compact_stall", "compact_fail", "compact_success",
    "direct_map_level2_splits", "direct_map_level3_splits",
)


class Counters(dict[str, int]):
    """Counts of events since boot. Reading a name nobody counts is a KeyError, so that a misspelt counter cannot read as 0.

    Add with ``counters["pgfree"] += 1``: one dictionary update.

    >>> counters = Counters()
    >>> counters["pgfree"] += 2
    >>> counters["pgfree"]
    2
    """

    def __init__(self, names: Iterable[str] = VM_EVENTS):
        super().__init__(dict.fromkeys(names, 0))

    def since(self, before: Mapping[str, int]) -> dict[str, int]:
        """What was counted since ``before``, an earlier ``dict(counters)``: only the names that moved."""
        return {name: count - before.get(name, 0) for name, count in self.items() if count != before.get(name, 0)}
