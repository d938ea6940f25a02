"""The kernel's own tables of booted machines: all memory at one offset, in every process; rights taken and pages split."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.config import Config
from mmsim.constants import _PAGE_GLOBAL, _PAGE_NX, _PAGE_PCD, _PAGE_PRESENT, _PAGE_PWT, _PAGE_RW
from mmsim.errors import InputError
from mmsim.kernel.layout import Layout
from mmsim.machine import Machine
from mmsim.paging.entry_area import CPU_ENTRY_AREA_BASE
from mmsim.paging.init_mm import init_mm_tables
from mmsim.paging.memtype import CacheMode, pgprot2cachemode, pgprot_4k_2_large, pgprot_large_2_4k
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_KERNEL, PAGE_SHARED
from mmsim.paging.set_memory import (
    lookup_address,
    set_memory_4k,
    set_memory_np,
    set_memory_nx,
    set_memory_p,
    set_memory_ro,
    set_memory_rw,
    set_memory_type,
    set_memory_x,
    split_large_page,
)
from mmsim.paging.tables import PageTables, check_tables
from mmsim.paging.tlbflush import TlbFlush
from mmsim.reference import REF256_COMMAND_LINE, big64, qemu_map, qemu_platform, ref256, toy16
from mmsim.units import GIB, MIB, TIB

from .machines import error_code

DIRECT_MAP = 0xFFFF_8880_0000_0000
IMAGE = 0xFFFF_FFFF_8000_0000


@pytest.fixture(params=[toy16, ref256], ids=["toy16", "ref256"])
def booted(request):
    machine = request.param()
    return machine, machine.tables, machine.init_mm


@pytest.fixture
def machine():
    return ref256()


def cpu_of(machine):
    cpu = Mmu(machine.contents)
    cpu.write_cr3(machine.init_mm.pgd << 12)
    return cpu


def rights(machine, addr):
    found = lookup_address(machine.init_mm, addr)
    return found[2], bool(found[0][found[1]] & _PAGE_RW), not found[0][found[1]] & _PAGE_NX


def direct_map_lines(machine):
    return {name: int(value) for name, value in re.findall(r"DirectMap(\w+): +(\d+) kB", machine.proc("meminfo"))}


def test_every_byte_of_ram_is_at_its_place_in_the_direct_map(booted):
    machine, _, _ = booted
    cpu = cpu_of(machine)
    for start, end, _ in machine.memblock.for_each_mem_pfn_range():
        for pfn in {start, end - 1, *range(start, end, 97)}:
            assert cpu.translate(DIRECT_MAP + (pfn << 12 | 0x123), user=False) == pfn << 12 | 0x123
    assert error_code(cpu, DIRECT_MAP + (machine.frames.max_pfn << 12) + (1 << 30), user=False) == 0


def test_the_tables_are_those_that_the_boot_built_in_frames_that_nobody_else_gets(booted):
    machine, _, kernel = booted
    set_aside = [*machine.setup.direct_map.tables, *machine.setup.sparse.tables]
    if machine.frames.max_pfn > 4096:           # the toy's per-CPU units are too small for an entry area
        set_aside += machine.start.entry_area_tables
    assert set(kernel.table_level) >= {address >> 12 for address in set_aside} | set(machine.start.vmalloc_tables)
    kernel.check()
    machine.setup.direct_map.check()


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
    machine.setup.image = machine.image.replace(data=(0x100000, 0x101000))
    with pytest.raises(InputError, match="6 tables"):
        init_mm_tables(machine.tables, machine.setup, machine.start)


def test_the_direct_map_is_split_at_the_borders_of_text_constants_and_the_interrupt_table(machine):
    before = direct_map_lines(machine)
    machine.init_mm.check()
    assert before == {"4k": 3932, "2M": 258048}
    # As /proc/meminfo of the recorded kernel: seven pages of 2 MiB, three in the direct map and four in the image's mapping.
    assert direct_map_lines(machine) == {"4k": 18268, "2M": 243712}
    assert machine.counters["direct_map_level2_splits"] == 0


def test_text_is_not_written_constants_and_data_are_not_executed_in_the_image_and_in_the_direct_map(machine):
    image = machine.image
    assert rights(machine, IMAGE + image.text[0]) == (2, False, True)
    assert rights(machine, IMAGE + image.rodata[0]) == (1, False, False)
    assert rights(machine, IMAGE + image.data[0]) == (1, True, False)
    assert rights(machine, DIRECT_MAP + image.text[0])[1:] == rights(machine, DIRECT_MAP + image.rodata[0])[1:] == (False, False)
    assert rights(machine, DIRECT_MAP + image.data[0]) == (2, True, False)
    assert rights(machine, IMAGE + image.idt_table) == (1, False, False)


def test_struct_pages_are_mapped_by_large_pages_for_sections_that_have_memory(machine):
    cpu, layout = cpu_of(machine), machine.layout
    for pfn in (0, 32767, 32768, 65535):
        memmap = machine.setup.sparse.memmap[pfn >> 15]
        assert cpu.translate(layout.page_struct(pfn), "w", user=False) == memmap + (pfn & 32767) * 64
        assert machine.init_mm.lookup(layout.page_struct(pfn)).level == 2
    assert error_code(cpu, layout.page_struct(65536), user=False) == 0


def test_the_entry_area_shows_a_read_only_table_a_stack_and_guard_pages(machine):
    cpu = cpu_of(machine)
    assert cpu.translate(CPU_ENTRY_AREA_BASE, user=False) == machine.image.idt_table
    assert error_code(cpu, CPU_ENTRY_AREA_BASE, "w", user=False) == 3
    cpu.translate(CPU_ENTRY_AREA_BASE + 0x2000, "w", user=False)
    assert [error_code(cpu, CPU_ENTRY_AREA_BASE + guard, user=False) for guard in (0x8000, 0xB000, 0xE000, 0x11000, 0x14000)] == [0] * 5


def test_devices_of_the_fixmap_are_uncached(machine):
    kernel = machine.init_mm
    leaf = kernel.lookup(0xFFFF_FFFF_FF7F_D000)
    assert leaf.word & (_PAGE_PCD | _PAGE_PWT) == _PAGE_PCD | _PAGE_PWT and pgprot2cachemode(leaf.word) is CacheMode.UC
    kernel.clear_fixmap("FIX_APIC_BASE")
    assert kernel.lookup(0xFFFF_FFFF_FF7F_D000) is None
    with pytest.raises(InputError, match="no FIX_NONE"):
        kernel.set_fixmap("FIX_NONE", 0)


@pytest.mark.parametrize("seed", range(12))
def test_kaslr_moves_every_region_and_all_still_show_the_same_memory(seed):
    machine = ref256()
    layout = Layout(machine.frames.max_pfn, seed=seed)
    kernel = init_mm_tables(machine.tables, machine.setup, machine.start, layout)
    cpu = Mmu(machine.contents)
    cpu.write_cr3(kernel.pgd << 12)
    for phys in (0x5000, 0x1000000, 0x2345678, 0xF000000):
        assert cpu.translate(layout.va(phys), user=False) == phys
    text = IMAGE + layout.kernel_offset + machine.image.start
    assert cpu.translate(text, "x", user=False) == machine.image.start == layout.pa(text)
    assert cpu.translate(layout.page_struct(40000), user=False) == machine.setup.sparse.memmap[1] + (40000 - 32768) * 64
    assert error_code(cpu, DIRECT_MAP + 0x2345678, user=False) == 0 or layout.page_offset == DIRECT_MAP
    kernel.check()
    machine.check()
    # A vmalloc area may lie in any of the entries made beforehand: no process ever lacks one.
    process = PageTables(machine.tables, kernel)
    kernel.map_page(layout.vmalloc_start + 5 * TIB, machine.alloc_pages(), PAGE_KERNEL)
    assert process.lookup(layout.vmalloc_start + 5 * TIB) is not None
    check_tables([kernel, process])


def test_a_machine_with_gigabyte_pages_splits_them_too():
    platform = qemu_platform(4 * GIB).replace(gbpages=True)
    machine = Machine.boot(qemu_map(4 * GIB), REF256_COMMAND_LINE, platform=platform)
    kernel = machine.init_mm
    lines = direct_map_lines(machine)
    assert kernel.lookup(machine.layout.va(4 * GIB)).level == 3
    assert set_memory_ro(kernel, machine.layout.va(4 * GIB) + 8192, 1) == 0
    after = direct_map_lines(machine)
    assert after == {"1G": lines["1G"] - MIB, "2M": lines["2M"] + 1048576 - 2048, "4k": lines["4k"] + 2048}
    assert machine.counters["direct_map_level3_splits"] == machine.counters["direct_map_level2_splits"] == 1
    kernel.check()
    machine.setup.direct_map.check()


def test_a_page_split_is_never_joined_again_and_meminfo_and_vmstat_say_so(machine):
    kernel = machine.init_mm
    before, free = direct_map_lines(machine), machine.memory.nr_free_pages
    at = DIRECT_MAP + 0x8000000
    assert set_memory_ro(kernel, at + 0x3000, 2) == 0
    assert rights(machine, at + 0x3000) == (1, False, False) and rights(machine, at) == (1, True, False)
    assert set_memory_rw(kernel, at + 0x3000, 2) == 0
    assert direct_map_lines(machine) == {"4k": before["4k"] + 2048, "2M": before["2M"] - 2048}
    assert "direct_map_level2_splits 1\n" in machine.proc("vmstat")
    assert machine.memory.nr_free_pages <= free
    kernel.check()


def test_a_whole_large_page_changes_without_being_split(machine):
    kernel = machine.init_mm
    before = direct_map_lines(machine)
    at = DIRECT_MAP + 0x8000000
    assert set_memory_ro(kernel, at, 512) == 0 and rights(machine, at) == (2, False, False)
    assert set_memory_type(kernel, at, 512, CacheMode.WT) == 0 and rights(machine, at)[0] == 2
    assert pgprot2cachemode(pgprot_large_2_4k(kernel.lookup(at).word)) is CacheMode.WT
    assert direct_map_lines(machine) == before
    # Nothing is split for a change that changes nothing.
    assert set_memory_rw(kernel, DIRECT_MAP + 0x8200000, 3) == 0 and direct_map_lines(machine) == before


def test_the_kernel_image_keeps_its_text_executable_and_its_constants_read_only(machine):
    kernel, image = machine.init_mm, machine.image
    assert set_memory_nx(kernel, IMAGE + image.text[0], 4) == 0 and rights(machine, IMAGE + image.text[0])[2]
    assert set_memory_rw(kernel, IMAGE + image.rodata[0], 1) == 0 and not rights(machine, IMAGE + image.rodata[0])[1]
    assert set_memory_rw(kernel, IMAGE + image.text[0], 1) == 0


def test_all_addresses_of_a_page_change_together_but_for_execution(machine):
    kernel = machine.init_mm
    data = machine.image.data[0] + 0x50000
    set_memory_ro(kernel, DIRECT_MAP + data, 1)
    assert not rights(machine, IMAGE + data)[1] and not rights(machine, DIRECT_MAP + data)[1]
    set_memory_x(kernel, IMAGE + data, 1)
    assert rights(machine, IMAGE + data)[2] and not rights(machine, DIRECT_MAP + data)[2]


def test_a_page_that_is_not_present_faults_and_comes_back(machine):
    kernel, cpu = machine.init_mm, cpu_of(machine)
    kernel.on_flush.append(lambda start, end: cpu.invpcid(2))
    at = DIRECT_MAP + 0x8000000
    cpu.translate(at, "w", user=False)
    set_memory_np(kernel, at, 1)
    assert error_code(cpu, at, user=False) == 0 and cpu.translate(at + 4096, user=False) == 0x8001000
    word = lookup_address(kernel, at)
    assert not word[0][word[1]] & (_PAGE_PRESENT | _PAGE_GLOBAL)         # G would make it PROT_NONE
    set_memory_p(kernel, at, 1)
    assert cpu.translate(at, "w", user=False) == 0x8000000


def test_addresses_that_nothing_is_mapped_at_are_refused_holes_of_the_direct_map_are_passed_over(machine):
    kernel = machine.init_mm
    free = machine.memory.nr_free_pages
    assert set_memory_ro(kernel, 0xFFFF_C900_0000_0000, 1) == -14
    assert machine.dmesg_lines()[-2].startswith("CPA: called for zero pte. vaddr = ffffc90000000000")
    assert set_memory_ro(kernel, 0xFFFF_0000_0000_0000, 1) == -14       # not canonical: no table either
    assert machine.memory.nr_free_pages == free
    with pytest.raises(InputError):
        set_memory_ro(kernel, DIRECT_MAP, -1)
    with pytest.raises(InputError, match="no large page"):
        split_large_page(kernel, DIRECT_MAP)
    set_memory_ro(kernel, DIRECT_MAP + 0x8000000 + 5, 1)
    assert "WARNING" in machine.dmesg() and not rights(machine, DIRECT_MAP + 0x8000000)[1]
    kernel.check()
    machine.check()


def test_without_memory_for_a_table_a_page_stays_whole(machine):
    kernel = machine.init_mm
    while machine.alloc_pages(0x40000 | 0x2000) is not None:
        pass
    assert set_memory_4k(kernel, DIRECT_MAP + 0x8000000, 1) == -12
    assert rights(machine, DIRECT_MAP + 0x8000000) == (2, True, False)
    kernel.check()


def test_a_larger_machine_has_its_tables_where_the_boot_put_them():
    machine = big64()
    cpu = cpu_of(machine)
    for pfn in (1, 700000, machine.frames.max_pfn - 1):
        assert cpu.translate(DIRECT_MAP + (pfn << 12), user=False) == pfn << 12
    machine.init_mm.check()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from([set_memory_ro, set_memory_rw, set_memory_nx, set_memory_x, set_memory_np, set_memory_p]),
                          st.integers(0x7000, 0x8FFF), st.integers(1, 1500)), max_size=12))
def test_any_series_of_changes_leaves_each_page_what_a_flat_list_says(changes):
    machine = _machine_for_changes()
    kernel = machine.init_mm
    expect = {pfn: [True, False, True] for pfn in range(0x7000, 0x9800)}
    for change, pfn, pages in changes:
        assert change(kernel, DIRECT_MAP + (pfn << 12), pages) == 0
        for page in range(pfn, pfn + pages):
            bit, value = {set_memory_ro: (0, False), set_memory_rw: (0, True), set_memory_nx: (1, False), set_memory_x: (1, True),
                          set_memory_np: (2, False), set_memory_p: (2, True)}[change]
            expect[page][bit] = value
    for pfn, (write, execute, present) in expect.items():
        table, index, _ = lookup_address(kernel, DIRECT_MAP + (pfn << 12))
        word = table[index]
        assert (bool(word & _PAGE_RW), not word & _PAGE_NX, bool(word & _PAGE_PRESENT)) == (write, execute, present), hex(pfn)
    kernel.check()
    lines = direct_map_lines(machine)
    assert lines["4k"] + lines["2M"] == 18268 + 243712


def _machine_for_changes():
    return ref256()


def test_a_memory_type_survives_the_move_of_its_bit_in_large_pages():
    for mode in CacheMode:
        prot = PAGE_KERNEL | mode.value
        assert pgprot2cachemode(prot) is mode and pgprot_large_2_4k(pgprot_4k_2_large(prot)) == prot
    assert pgprot2cachemode(pgprot_4k_2_large(PAGE_KERNEL | CacheMode.WP.value) & ~(1 << 12)) is CacheMode.WC


@pytest.mark.parametrize("seed", range(4))
def test_a_whole_machine_runs_with_its_regions_moved(seed):
    machine = Machine.boot(qemu_map(256 * MIB), platform=qemu_platform(256 * MIB), config=Config(kaslr=seed, pti=seed % 2 == 0))
    task = machine.spawn("a.out")
    at = task.mmap(0, 1 * MIB, 3, 0x22)
    task.write(at, b"data")
    objects = [machine.slub.kmalloc(size) for size in (8, 100, 5000, 100000)]
    area = machine.vmalloc.vmalloc(3 * 4096)
    machine.vmalloc.write(area, b"vmalloc")
    device = machine.ioremap.ioremap(0xFED00000, 64)
    assert machine.layout.classify(objects[0]).name == "direct map" and machine.layout.classify(area).name == "vmalloc"
    assert machine.layout.is_vmalloc_addr(device) and machine.percpu.alloc(8) is not None and machine.stacks.alloc() is not None
    machine.check()
    for obj in objects:
        machine.slub.kfree(obj)
    machine.vmalloc.vfree(area)
    task.exit()
    machine.check()


def test_tlbs_forget_kernel_pages_whose_rights_were_taken_and_areas_that_were_purged(machine):
    cpu = Mmu(machine.contents)
    flush = TlbFlush([cpu], machine.init_mm)
    at = DIRECT_MAP + 0x8000000
    cpu.translate(at, "w", user=False)
    set_memory_ro(machine.init_mm, at, 1)
    assert error_code(cpu, at, "w", user=False) == 3
    area = machine.vmalloc.vmalloc(4096)
    cpu.translate(area, "w", user=False)
    machine.vmalloc.vfree(area)
    cpu.translate(area, user=False)                 # unmapped, but the CPU still knows it: hence the range is not used again yet
    assert machine.vmalloc.vmalloc(4096) != area
    machine.vmalloc.purge()
    assert error_code(cpu, area, user=False) == 0
    flush.check([])
