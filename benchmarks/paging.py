"""Accesses through the TLB and walks, against an empty loop over the same addresses."""

from __future__ import annotations

import random

from benchmarks.measure import Row, median_ns
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_SHARED
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.reference import ref256

PAGES = 48              # within the first-level TLB
ADDRESSES = 500_000


def run() -> list[Row]:
    memory = TableMemory(ref256().allocator)
    tables = PageTables(memory)
    for page in range(4096):
        tables.map_page(page << 12, 4096 + page, PAGE_SHARED)
    cpu = Mmu(memory.contents)
    cpu.write_cr3(tables.pgd << 12 | 1)
    dice = random.Random(1)
    near = [dice.randrange(PAGES) << 12 | dice.randrange(4096) for _ in range(ADDRESSES)]
    far = [dice.randrange(4096) << 12 for _ in range(20_000)]

    def empty() -> int:
        for _ in near:
            pass
        return len(near)

    def walks() -> int:
        cpu.use_tlb = False
        for addr in far:
            cpu.translate(addr)
        cpu.use_tlb = True
        return len(far)

    loop = median_ns(empty)
    cpu.run(near, "w")
    resident = median_ns(lambda: cpu.run(near))
    written = median_ns(lambda: cpu.run(near, "w"))
    plain = median_ns(walks)
    missing = median_ns(lambda: cpu.run(far))
    against = "an empty loop over the addresses"
    return [
        Row("paging", f"a read that hits the TLB, in bulk ({1000 / resident:.0f} M/s)", resident, loop, against, "ns", "15 M/s"),
        Row("paging", f"a write that hits the TLB, in bulk ({1000 / written:.0f} M/s)", written, loop, against, "ns", "15 M/s"),
        Row("paging", "an access to one of 4096 pages, most not in the TLB", missing, loop, against, "ns"),
        Row("paging", "a walk of four levels, one access at a time", plain, loop, against, "ns"),
    ]
