"""The kernel's own tables of booted machines: all memory at one offset, in every process."""

import pytest

from mmsim.errors import InputError
from mmsim.paging.init_mm import init_mm_tables
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_SHARED
from mmsim.paging.tables import PageTables, TableMemory, check_tables
from mmsim.paging.tlbflush import TlbFlush
from mmsim.reference import ref256, toy16

from .machines import error_code

DIRECT_MAP = 0xFFFF_8880_0000_0000


@pytest.fixture(params=[toy16, ref256], ids=["toy16", "ref256"])
def booted(request):
    machine = request.param()
    memory = TableMemory(machine.allocator)
    return machine, memory, init_mm_tables(memory, machine.setup.direct_map, machine.image)


def test_every_byte_of_ram_is_at_its_place_in_the_direct_map(booted):
    machine, memory, kernel = booted
    cpu = Mmu(memory.contents)
    cpu.write_cr3(kernel.pgd << 12)
    for start, end, _ in machine.memblock.for_each_mem_pfn_range():
        for pfn in {start, end - 1, *range(start, end, 97)}:
            assert cpu.translate(DIRECT_MAP + (pfn << 12 | 0x123), "w", user=False) == pfn << 12 | 0x123
    assert error_code(cpu, DIRECT_MAP + (machine.frames.max_pfn << 12) + (1 << 30), user=False) == 0


def test_the_tables_are_those_that_the_boot_built_in_frames_that_nobody_else_gets(booted):
    machine, _, kernel = booted
    assert set(kernel.table_level) >= {address >> 12 for address in machine.setup.direct_map.tables}
    assert len(kernel.table_level) == len(machine.setup.direct_map.tables) + 2
    kernel.check()


def test_a_process_sees_the_kernel_but_may_not_touch_it(booted):
    machine, memory, kernel = booted
    flush = TlbFlush([Mmu(memory.contents)], kernel, machine.trace)
    mm = flush.new_context(PageTables(memory, kernel))
    mm.tables.map_page(0x400000, machine.alloc_pages(), PAGE_SHARED)
    flush.switch_mm(0, mm)
    cpu = flush.cpus[0]
    pfn = mm.tables.lookup(0x400000).word >> 12 & 0xFFFFFFFF
    assert cpu.translate(0x400008, "w") == cpu.translate(DIRECT_MAP + (pfn << 12) + 8, "w", user=False)
    assert error_code(cpu, DIRECT_MAP) == 5 and error_code(cpu, machine.image.start + 0xFFFF_FFFF_8000_0000, "x") == 0x15
    assert cpu.translate(machine.image.start + 0xFFFF_FFFF_8000_0000, "x", user=False) == machine.image.start
    check_tables([kernel, mm.tables])
    flush.check([mm])
    machine.check()


def test_an_image_too_small_for_its_tables_is_refused():
    machine = toy16()
    with pytest.raises(InputError, match="three tables"):
        init_mm_tables(TableMemory(machine.allocator), machine.setup.direct_map, machine.image.replace(data=(0x100000, 0x101000)))
