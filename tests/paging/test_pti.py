"""Page-table isolation: what user space's tables show, and that they are switched by one bit."""

import pytest

from mmsim.config import Config
from mmsim.constants import _PAGE_GLOBAL, _PAGE_NX
from mmsim.errors import InvariantError
from mmsim.machine import Machine
from mmsim.paging.entry_area import CPU_ENTRY_AREA_BASE, entry_pages, tss_offset
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_SHARED, PAGE_SHARED_EXEC
from mmsim.paging.pti import switch_to_kernel_cr3, switch_to_user_cr3, visible_kernel_pages
from mmsim.paging.tables import PageTables, check_tables
from mmsim.paging.tlbflush import TlbFlush
from mmsim.paging.walk import PageFault
from mmsim.process.populate import Access
from mmsim.reference import REF256_COMMAND_LINE, REF256_MAP, qemu_platform, ref256
from mmsim.units import MIB

from .machines import error_code

DIRECT_MAP, IMAGE = 0xFFFF_8880_0000_0000, 0xFFFF_FFFF_8000_0000


@pytest.fixture
def machine():
    return Machine.boot(REF256_MAP, REF256_COMMAND_LINE, platform=qemu_platform(256 * MIB), config=Config(pti=True))


@pytest.fixture
def running(machine):
    """A process on the machine's one CPU, in the kernel."""
    flush = TlbFlush([Mmu(machine.contents)], machine.init_mm)
    mm = flush.new_context(PageTables(machine.tables, machine.init_mm))
    mm.tables.map_page(0x400000, machine.alloc_pages(), PAGE_SHARED_EXEC)
    mm.tables.map_page(0x600000, machine.alloc_pages(), PAGE_SHARED)
    flush.switch_mm(0, mm)
    return machine, flush, mm


def test_user_space_sees_of_the_kernel_the_entry_areas_the_entry_code_and_the_scratch_word(machine):
    kernel = machine.init_mm
    unit = machine.start.percpu.groups[0].base
    entry = [(page.addr, 1) for page in entry_pages(0)]
    text = [(IMAGE + addr, 2) for addr in range(*machine.image.entry_text, 2 * MIB)]
    assert visible_kernel_pages(kernel) == [(DIRECT_MAP + unit + tss_offset(), 1), (CPU_ENTRY_AREA_BASE, 1), *entry, *text]
    assert len(visible_kernel_pages(ref256().init_mm)) > 1000
    kernel.check()


def test_the_pgd_is_a_pair_of_frames_aligned_to_it(machine):
    kernel = machine.init_mm
    mine = PageTables(machine.tables, kernel)
    assert kernel.pgd % 2 == mine.pgd % 2 == 0
    assert machine.frames.refcount[mine.pgd] == 1 and mine.pgtables_bytes == 0
    mine.destroy()
    machine.check()


def test_only_entry_code_and_entry_area_stay_global(machine):
    shared = {addr for addr, _ in visible_kernel_pages(machine.init_mm)}
    tss = DIRECT_MAP + machine.start.percpu.groups[0].base + tss_offset()
    assert {leaf.addr for leaf in machine.init_mm.kernel_leaves() if leaf.word & _PAGE_GLOBAL} == shared - {tss}


def test_the_same_address_is_mapped_by_one_bit_of_cr3_and_not_by_the_other(running):
    _, flush, mm = running
    cpu = flush.cpus[0]
    cpu.translate(DIRECT_MAP + 0x5000, user=False)
    switch_to_user_cr3(cpu)
    assert cpu.pgd == mm.tables.pgd + 1 and cpu.pcid == 0x802
    assert error_code(cpu, DIRECT_MAP + 0x5000) == 4         # not present: without isolation it would be 5
    cpu.translate(0x400000, "x")
    cpu.translate(CPU_ENTRY_AREA_BASE, user=False)
    switch_to_kernel_cr3(cpu)
    assert cpu.pgd == mm.tables.pgd and cpu.pcid == 2
    cpu.translate(DIRECT_MAP + 0x5000, user=False)
    # A kernel that forgets to switch runs no user code: it faults at the first instruction.
    cpu.control.smep = cpu.isolated = False
    with pytest.raises(PageFault):
        cpu.translate(0x400000, "x")
    flush.check([mm])


def test_an_entry_of_the_lower_half_stands_in_both_pgds_and_goes_from_both(running):
    machine, _, mm = running
    words = machine.contents.words
    assert words(mm.tables.pgd)[0] == words(mm.tables.pgd + 1)[0] | _PAGE_NX
    for addr in (0x400000, 0x600000):
        mm.tables.unmap_page(addr)
    mm.tables.free_pgtables(0, 1 << 47)
    assert words(mm.tables.pgd)[0] == words(mm.tables.pgd + 1)[0] == 0
    check_tables([machine.init_mm, mm.tables])
    words(mm.tables.pgd + 1)[300] = 7
    with pytest.raises(InvariantError, match="more or less of the kernel"):
        mm.tables.check()


def test_a_flush_is_for_both_pcids(running):
    _, flush, mm = running
    cpu = flush.cpus[0]
    switch_to_user_cr3(cpu)
    cpu.translate(0x600000, "w")
    switch_to_kernel_cr3(cpu)
    mm.tables.unmap_page(0x600000)
    with pytest.raises(InvariantError, match="PCID 2050"):
        flush.check([mm])
    flush.flush_tlb_page(0, mm, 0x600000)
    flush.check([mm])
    switch_to_user_cr3(cpu)
    assert error_code(cpu, 0x600000) == 4


def test_freed_parts_of_the_image_are_gone_from_its_own_mapping(machine):
    image, kernel = machine.image, machine.init_mm
    cpu = Mmu(machine.contents)
    cpu.write_cr3(kernel.pgd << 12)
    for _, start, _ in image.gaps:
        assert error_code(cpu, IMAGE + start, user=False) == 0
        assert cpu.translate(DIRECT_MAP + start, "w", user=False) == start
    machine.check()


def test_processes_run_on_their_own_tables_through_the_tlb(machine):
    table = machine.process_table
    table.user.use_tlbs()
    shell = machine.spawn("sh")
    shell.cpu = 0
    at = shell.mmap(0, 8 * 4096, 7, 0x22)
    shell.write(at, b"hello")
    child = machine.processes[shell.fork()]
    child.cpu = 0
    assert child.write(at, b"world").faults == ("copy",) and shell.read(at, 5) == b"hello" and child.read(at, 5) == b"world"
    assert shell.touch(at + 4096, Access.WRITE).faults and not shell.touch(at, Access.EXEC).faults
    shell.munmap(at, 4096)
    assert shell.touch(at).code == "SEGV_MAPERR"
    machine.check()
    child.exit()
    shell.exit()
    machine.check()
