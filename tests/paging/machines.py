"""Small machines for the tests of paging."""

from __future__ import annotations

from mmsim.constants import MIGRATE_MOVABLE, ZONE_NORMAL
from mmsim.paging.mmu import Mmu
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.paging.tlb import Geometry, TlbGeometry
from mmsim.paging.walk import Control, PageFault
from mmsim.paging.walk_cache import WalkCache
from mmsim.physical.free import free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.zone import Zone

#: A TLB so small that everything is pushed out soon.
TINY = TlbGeometry(Geometry(2, 2), Geometry(1, 2), Geometry(1, 1), Geometry(1, 2), Geometry(1, 1), Geometry(2, 3), Geometry(1, 1))


def table_memory() -> TableMemory:
    """4096 frames in one zone, all but the first 512 free."""
    memory = PhysicalMemory(4096)
    node = memory.add_node(0, 0, 4096, 4096)
    zone = node.zones[ZONE_NORMAL] = Zone(memory, 0, ZONE_NORMAL, 0, 4096, 4096)
    node.zonelist = [zone]
    memory.frames.assign_zone(zone, 0, 4096)
    memory.frames.pageblock_mt[:] = bytes((MIGRATE_MOVABLE,)) * len(memory.frames.pageblock_mt)
    memory.frames.reserve(0, 512)
    for pfn in range(512, 4096, 512):
        free_pages_core(memory, pfn, 9)
    return TableMemory(PageAllocator(memory))


def space(levels: int = 4, *, geometry: TlbGeometry = TlbGeometry(), **control: object) -> tuple[PageTables, Mmu]:
    """One address space, loaded on one CPU."""
    memory = table_memory()
    tables = PageTables(memory, levels=levels)
    cpu = Mmu(memory.contents, Control(levels=levels, **control), geometry, WalkCache({1: 2, 2: 1, 3: 1}))  # type: ignore[arg-type]
    cpu.write_cr3(tables.pgd << 12 | 1)
    return tables, cpu


def error_code(cpu: Mmu, addr: int, access: str = "r", user: bool = True) -> int | None:
    """The error code of an access, or None if it succeeds."""
    try:
        cpu.translate(addr, access, user)
    except PageFault as fault:
        assert fault.cr2 == cpu.cr2 == addr
        return fault.error_code
    return None
