"""Who has the memory: the provenance map of a boot in a dozen categories, each with the role that colours it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmsim.boot.provenance import Run
from mmsim.units import PAGE_SIZE

__all__ = ["Category", "CATEGORIES", "category", "coalesce", "totals"]


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of owner: a key, words for people, a short label, the role, and the owners' names in the provenance map."""

    key: str
    words: str
    label: str
    role: str
    owners: tuple[str, ...]

    @property
    def short(self) -> str:
        """The words without what follows a colon or "for"."""
        return self.words.split(":")[0].split(" for ")[0]


CATEGORIES = (
    Category("low", "first MiB: BIOS and real mode", "BIOS", "reserved",
             ("first 64 KiB", "first MiB", "BIOS", "reserve_real_mode", "ACPI tables")),
    Category("image", "kernel image and brk", "image", "kernel", ("kernel image", "brk")),
    Category("initrd", "initial RAM disk", "initrd", "file", ("initrd",)),
    Category("memmap", "struct pages", "struct pages", "huge", ("memmap_alloc",)),
    Category("tables", "page tables", "tables", "table",
             ("alloc_low_pages", "spp_getpage", "__earlyonly_bootmem_alloc", "preallocate_vmalloc_pages")),
    Category("percpu", "per-CPU areas", "per-CPU", "hot",
             ("pcpu_fc_alloc", "pcpu_alloc_first_chunk", "pcpu_setup_first_chunk", "pcpu_build_alloc_info", "pcpu_embed_first_chunk")),
    Category("hash", "hash tables", "hashes", "kernel", ("alloc_large_system_hash",)),
    Category("bounce", "bounce buffers for 32-bit devices", "bounce", "cma", ("swiotlb_init", "swiotlb_init_with_tbl")),
    Category("crash", "crash kernel", "crash kernel", "cma", ("reserve_crashkernel", "reserve_crashkernel_low")),
    Category("cma", "contiguous memory for devices", "CMA", "cma", ("cma_declare_contiguous_nid",)),
    Category("other", "other early allocations", "early", "kernel", ()),
)  # fmt: skip

_BY_OWNER = {owner: kind for kind in CATEGORIES for owner in kind.owners}


def category(who: str) -> Category:
    """The category of an owner; what is in none of the lists is an early allocation of the kernel.

    >>> category("memmap_alloc").words, category("io_apic_init_mappings").words
    ('struct pages', 'other early allocations')
    """
    return _BY_OWNER.get(who, CATEGORIES[-1])


def coalesce(runs: Iterable[Run]) -> list[tuple[int, int, Category]]:
    """The runs in whole pages as (start, end, category); neighbours of one category become one.

    A page that holds runs of several categories goes to the first of them, as a frame has one owner in a drawing.
    """
    made: list[tuple[int, int, Category]] = []
    for run in runs:
        kind = category(run.who)
        start, end = run.base // PAGE_SIZE * PAGE_SIZE, -(-run.end // PAGE_SIZE) * PAGE_SIZE
        if made and start < made[-1][1]:
            start = made[-1][1]
        if start >= end:
            continue
        if made and made[-1][1] == start and made[-1][2] is kind:
            made[-1] = (made[-1][0], end, kind)
        else:
            made.append((start, end, kind))
    return made


def totals(runs: Iterable[Run], ram: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Bytes of RAM by category key, whole pages, for the categories that have any; what lies outside of RAM does not count."""
    spans = list(ram)
    sums: dict[str, int] = {}
    for start, end, kind in coalesce(runs):
        size = sum(max(0, min(end, high) - max(start, low)) for low, high in spans)
        if size:
            sums[kind.key] = sums.get(kind.key, 0) + size
    return sums
