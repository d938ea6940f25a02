"""The choices of a kernel configuration that change what memory management does.

Linux is compiled for a machine: with or without NUMA, contiguous areas, transparent huge pages. A few numbers follow from
that, above all those of the mobility types: with CONFIG_CMA the type *CMA* takes number 4 and *Isolate* moves to 5.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Config"]


@dataclass(frozen=True, slots=True)
class Config:
    """One kernel configuration; the default is that of the recorded 5.17 (``Config(cma=False)`` is the harness' one).

    >>> Config().migratetype_names
    ('Unmovable', 'Movable', 'Reclaimable', 'HighAtomic', 'CMA', 'Isolate')
    >>> Config(cma=False).migrate_isolate
    4
    """

    #: CONFIG_CMA: contiguous memory areas that movable pages may use while their owner does not.
    cma: bool = True
    #: CONFIG_NUMA: several nodes, and counters that tell local pages from remote ones.
    numa: bool = True
    #: CONFIG_MEMCG: a page knows the cgroup that it is charged to.
    memcg: bool = True
    #: CONFIG_PAGE_TABLE_ISOLATION, on a CPU that needs it: user space runs on tables from which the kernel is all but gone.
    pti: bool = False
    #: CONFIG_RANDOMIZE_BASE and _MEMORY, without nokaslr: the random number by which the kernel's regions are moved.
    kaslr: int | None = None

    @property
    def migrate_cma(self) -> int:
        """MIGRATE_CMA, or -1 where the kernel has no such type."""
        return 4 if self.cma else -1

    @property
    def migrate_isolate(self) -> int:
        """MIGRATE_ISOLATE: the last type."""
        return 5 if self.cma else 4

    @property
    def migrate_types(self) -> int:
        """MIGRATE_TYPES: how many types there are."""
        return 6 if self.cma else 5

    @property
    def migratetype_names(self) -> tuple[str, ...]:
        """The names in /proc/pagetypeinfo, by number (5.17: mm/page_alloc.c, migratetype_names[])."""
        return ("Unmovable", "Movable", "Reclaimable", "HighAtomic") + (("CMA",) if self.cma else ()) + ("Isolate",)
