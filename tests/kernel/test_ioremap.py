"""Devices at kernel addresses, mappings for a moment, the tree of physical addresses, and the lines of meminfo these move."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.errors import InputError, InvariantError, KernelBug
from mmsim.kernel.ioremap import Memtypes
from mmsim.kernel.kmap import KM_MAX_IDX, KmapLocal
from mmsim.kernel.layout import Layout
from mmsim.kernel.resource import IomemTree
from mmsim.kernel.vmap_block import VMAP_BBMAP_BITS, VMAP_MAX_ALLOC
from mmsim.machine import Machine
from mmsim.paging.memtype import CacheMode, pgprot2cachemode
from mmsim.reference import qemu_map, qemu_platform, ref256
from mmsim.units import GIB, MIB

START = 0xFFFF_C900_0000_0000


@pytest.fixture
def machine():
    return ref256()


def said(machine, text):
    return any(text in line for line in machine.dmesg_lines())


def meminfo(machine):
    return {name: int(value) for name, value in re.findall(r"^(\S+): +(\d+)", machine.proc("meminfo"), re.MULTILINE)}


def test_registers_appear_page_by_page_uncached_with_a_guard_page_behind(machine):
    io = machine.ioremap
    at = io.ioremap(0xFED00010, 0x20, caller="hpet_enable")
    assert at == START + 0x10 and io.phys(at) == 0xFED00010
    assert pgprot2cachemode(machine.init_mm.lookup(at).word) is CacheMode.UC_MINUS
    second = io.ioremap(0xFEC00FFF, 2)                              # two bytes on two pages
    assert machine.init_mm.lookup(second).addr % 0x2000 == 0 and io.phys(second + 1) == 0xFEC01000
    assert machine.proc("vmallocinfo").splitlines()[0] == (
        "0xffffc90000000000-0xffffc90000002000    8192 hpet_enable phys=0x00000000fed00000 ioremap")
    machine.check()


def test_a_large_device_is_mapped_by_large_pages_where_both_addresses_allow(machine):
    at = machine.ioremap.ioremap(0xFD000000, 16 * MIB)
    assert at % (16 * MIB) == 0 and machine.init_mm.lookup(at).level == 2 and machine.ioremap.phys(at + 5 * MIB + 3) == 0xFD500003
    odd = machine.ioremap.ioremap(0xFD100000, 4 * MIB)
    assert [machine.init_mm.lookup(odd + page).level for page in (0, MIB, 3 * MIB + MIB - 1)] == [1, 1, 1]
    machine.check()
    machine.ioremap.iounmap(at)
    assert machine.init_mm.lookup(at) is None and machine.init_mm.lookup(at + 14 * MIB) is None
    machine.check()


def test_gigabyte_pages_serve_devices_too():
    machine = Machine.boot(qemu_map(256 * MIB), platform=qemu_platform(256 * MIB).replace(gbpages=True))
    at = machine.ioremap.ioremap(256 * GIB, 2 * GIB)
    assert machine.init_mm.lookup(at).level == 3 and machine.ioremap.phys(at + GIB + 7) == 257 * GIB + 7
    machine.check()


def test_memory_of_the_kernel_is_not_a_device_but_reserved_memory_may_be(machine):
    pfn = machine.alloc_pages()
    assert machine.ioremap.ioremap(pfn << 12, 4096) is None and said(machine, f"ioremap on RAM at 0x{pfn << 12:016x}")
    table = machine.ioremap.ioremap(0xFFE1000, 4096, CacheMode.WB, "acpi_os_map_iomem")
    assert pgprot2cachemode(machine.init_mm.lookup(table).word) is CacheMode.WB
    machine.check()


@pytest.mark.parametrize(("phys", "size"), [(0xFED00000, 0), (0xFED00000, -1), (2**64 - 4096, 8192), (-4096, 4096), (1 << 50, 4096)])
def test_requests_that_make_no_sense_get_nothing_and_leave_nothing(machine, phys, size):
    machine.vmalloc.check()
    before = machine.proc("vmallocinfo")
    assert machine.ioremap.ioremap(phys, size) is None
    assert machine.proc("vmallocinfo") == before and not machine.ioremap.memtypes.entries
    assert said(machine, "invalid physical address") == (phys == 1 << 50)
    machine.check()


def test_one_page_is_never_mapped_as_two_types(machine):
    io = machine.ioremap
    io.ioremap(0xFED00000, 1024)
    # A cached mapping beside it becomes uncached: the driver can live with that.
    second = io.ioremap(0xFED00000, 1024, CacheMode.WB)
    assert pgprot2cachemode(machine.init_mm.lookup(second).word) is CacheMode.UC_MINUS
    # The other way round it cannot: stores to registers would stay in the cache.
    io.ioremap(0xFFE0000, 8192, CacheMode.WB)
    assert io.ioremap(0xFFE1000, 4096) is None and said(machine, "requested 0x2, got 0x0")
    assert io.memtypes.text() == ("PAT memtype list:\nPAT: [mem 0x000000000ffe0000-0x000000000ffe2000] write-back\n"
                                  + "PAT: [mem 0x00000000fed00000-0x00000000fed01000] uncached-minus\n" * 2)
    types = Memtypes()
    types.reserve(0, 0x1000, CacheMode.WB)
    types.reserve(0x1000, 0x2000, CacheMode.WC)
    assert types.reserve(0, 0x2000, CacheMode.WB) is None and not types.free(0, 0x2000)
    machine.check()


def test_unmapping_what_is_no_device_is_told(machine):
    io = machine.ioremap
    area = machine.vmalloc.vmalloc(4096)
    at = io.ioremap(0xFED00000, 64)
    for addr in (area, START + GIB, 0xFFFF_8000_0000_0000 + 2**46, 1):
        io.iounmap(addr)
    assert sum("iounmap: bad address" in line for line in machine.dmesg_lines()) == 3
    io.iounmap(at + 17)
    io.iounmap(at)
    assert not io.memtypes.entries and said(machine, f"iounmap: bad address {at:016x}")
    machine.check()


# -- mappings for a moment -----------------------------------------------------------------------------------------

def test_pieces_of_a_block_are_powers_of_two_and_never_used_again(machine):
    blocks = machine.vmap_blocks
    pages = [machine.alloc_pages() for _ in range(5)]
    first = blocks.map_ram(pages)
    assert first % (4 * MIB) == 0 and machine.vmalloc.vmalloc_to_pfn(first + 0x4000) == pages[4]
    second = blocks.map_ram(pages[:2])
    assert second == first + 8 * 4096
    blocks.unmap_ram(second, 2)
    assert blocks.map_ram(pages[:2]) == second + 2 * 4096
    assert "vm_map_ram\n" in machine.proc("vmallocinfo")
    machine.check()


def test_a_block_goes_back_when_all_of_it_is_dirty_or_nothing_of_it_is_in_use(machine):
    blocks = machine.vmap_blocks
    pages = [machine.alloc_pages() for _ in range(VMAP_MAX_ALLOC)]
    mapped = [blocks.map_ram(pages) for _ in range(VMAP_BBMAP_BITS // VMAP_MAX_ALLOC)]
    assert len(blocks.blocks) == 1 and not blocks.queue[0]
    for addr in mapped:
        blocks.unmap_ram(addr, VMAP_MAX_ALLOC)
    assert not blocks.blocks
    blocks.unmap_ram(blocks.map_ram(pages[:3]), 3)
    assert len(blocks.blocks) == 1
    machine.vmalloc.purge()
    assert not blocks.blocks and not blocks.queue[0] and not machine.vmalloc.areas.lazy_nr
    machine.check()


def test_more_than_64_pages_get_an_area_of_their_own(machine):
    blocks = machine.vmap_blocks
    pages = [machine.alloc_pages() for _ in range(VMAP_MAX_ALLOC + 1)]
    at = blocks.map_ram(pages)
    assert not blocks.blocks and machine.vmalloc.find_vm_area(at) is None
    blocks.unmap_ram(at, len(pages))
    assert blocks.map_ram([]) is None and said(machine, "WARNING: CPU: 0 PID: 1 at mm/vmalloc.c vb_alloc")
    machine.check()


def test_unmapping_pages_that_are_not_mapped_is_a_bug(machine):
    blocks = machine.vmap_blocks
    at = blocks.map_ram([machine.alloc_pages()])
    for addr, count in ((at + 1, 1), (at, 2), (at + 4096, 1), (0xFFFF_8880_0000_0000, 1), (START - 4096, 1)):
        with pytest.raises(KernelBug, match="vm_unmap_ram"):
            blocks.unmap_ram(addr, count)
    blocks.unmap_ram(at, 1)
    with pytest.raises(KernelBug):
        blocks.unmap_ram(at, 1)
    machine.check()
    blocks.mapped[at + 4096 * 50] = 1
    with pytest.raises(InvariantError, match="pages in use"):
        blocks.check()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 80), st.integers(0, 1 << 20)), max_size=40))
def test_any_series_of_short_mappings_shows_the_right_frames(steps):
    machine = ref256()
    blocks, live = machine.vmap_blocks, {}
    frames = [machine.alloc_pages() for _ in range(80)]
    for make, count, pick in steps:
        if make or not live:
            at = blocks.map_ram(frames[80 - count:])
            live[at] = count
        else:
            at = sorted(live)[pick % len(live)]
            blocks.unmap_ram(at, live.pop(at))
        blocks.check()
    for at, count in live.items():
        assert [machine.vmalloc.vmalloc_to_pfn(at + 4096 * number) for number in range(count)] == frames[80 - count:]
    machine.vmalloc.check()


def test_kmap_local_is_an_addition_where_all_memory_has_an_address():
    task = KmapLocal(Layout(65536))
    assert task.map(5) == 0xFFFF_8880_0000_5000
    task.unmap(task.map(5))
    task.check()


def test_where_it_has_none_slots_are_a_stack_of_sixteen():
    task = KmapLocal(Layout(1 << 20), lowmem_pfn=229376)
    slots = [task.map(300000 + number) for number in range(KM_MAX_IDX)]
    assert slots == sorted(slots, reverse=True)
    with pytest.raises(KernelBug, match="KM_MAX_IDX"):
        task.map(400000)
    with pytest.raises(KernelBug, match="not the last page"):
        task.unmap(slots[0])
    for slot in reversed(slots):
        task.unmap(slot + 100)
    task.check()
    with pytest.raises(KernelBug):
        task.unmap(slots[0])


# -- physical addresses --------------------------------------------------------------------------------------------

def test_a_driver_claims_its_registers_within_the_bus_and_only_one_does(machine):
    tree = machine.iomem
    claim = tree.request_region(0xFEBF0000, 0xFEBF1000, "bochs-drm")
    assert "    febf0000-febf0fff : bochs-drm\n" in machine.proc("iomem")
    assert tree.request_region(0xFEBF0800, 0xFEBF0900, "other") is None
    assert tree.request_region(0x9F000, 0xA1000, "crosses") is None
    assert [found.name for found in tree.find(0xFEBF0010)] == ["PCI Bus 0000:00", "0000:00:02.0", "bochs-drm"]
    assert tree.release_region(0xFEBF0000, 0xFEBF1000) and not tree.release_region(0xFEBF0000, 0xFEBF1000)
    assert claim is not None
    machine.check()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(["insert", "claim", "release", "fill"]), st.integers(0, 40), st.integers(1, 20)), max_size=30))
def test_the_tree_never_has_ranges_across_a_border(steps):
    tree = IomemTree()
    for what, start, size in steps:
        if what == "insert":
            tree.insert(start, start + size, "bus")
        elif what == "claim":
            tree.request_region(start, start + size, "driver")
        elif what == "release":
            tree.release_region(start, start + size)
        else:
            tree.fill(start, start + size, "RAM buffer")
        tree.check()
    with pytest.raises(InputError):
        tree.insert(5, 5, "nothing")


# -- what meminfo says ---------------------------------------------------------------------------------------------

def test_meminfo_knows_limits_and_regions_from_the_start_and_the_rest_when_it_is_used(machine):
    before = meminfo(machine)
    # As recorded on the same machine.
    assert (before["CommitLimit"], before["VmallocTotal"], before["VmallocChunk"]) == (121740, 34359738367, 0)
    assert before["Percpu"] == 196 and before["VmallocUsed"] == before["Committed_AS"] == 0 and "Slab" not in before
    machine.percpu.alloc(8)
    first = machine.percpu.first_chunk
    while machine.percpu.alloc(32768, 8) is not None and len(machine.percpu.chunks) == 1 and first is not None:
        pass
    machine.vmalloc.vmalloc(5 * 4096)
    stack = machine.stacks.alloc()
    now = meminfo(machine)
    assert now["VmallocUsed"] == 4 * (5 + 4) and now["KernelStack"] == 16 and now["Percpu"] > before["Percpu"]
    assert now["Slab"] == now["SReclaimable"] + now["SUnreclaim"] > 0 and now["KReclaimable"] == now["SReclaimable"]
    machine.stacks.free(stack)
    assert meminfo(machine)["KernelStack"] == 0
    assert f"nr_slab_unreclaimable {now['SUnreclaim'] // 4}\n" in machine.proc("vmstat")
    machine.check()


def test_processes_show_in_meminfo_and_in_the_counters_of_node_and_zone(machine):
    task = machine.spawn("a.out")
    at = task.mmap(0, 64 * 4096, 3, 0x22)
    for page in range(40):
        task.write(at + 4096 * page, b"x")
    task.mlock(at, 8 * 4096)
    values = meminfo(machine)
    assert values["AnonPages"] == 160 and values["Committed_AS"] == 256 and values["Mlocked"] == 32
    assert values["PageTables"] >= 8 and values["Inactive(anon)"] + values["Active(anon)"] + values["Unevictable"] <= 160
    assert "nr_anon_pages 40\n" in machine.proc("vmstat") and "      nr_anon_pages 40\n" in machine.proc("zoneinfo")
    task.munmap(at, 64 * 4096)
    assert meminfo(machine)["AnonPages"] == meminfo(machine)["Mlocked"] == 0
    machine.check()
