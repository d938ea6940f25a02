"""The machine as a whole: it boots, serves, adds up, and prints what a kernel prints."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmsim.boot.e820 import E820Entry
from mmsim.boot.image import TINY_IMAGE, Platform, SratMemory
from mmsim.constants import GFP_ATOMIC, GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from mmsim.errors import InputError, InvariantError, KernelPanic
from mmsim.machine import Machine
from mmsim.paging.mmu import Mmu
from mmsim.recorded import parse_buddyinfo, parse_iomem, parse_meminfo, parse_zoneinfo
from mmsim.reference import REFERENCE_MACHINES, big64, qemu_map, qemu_platform, ref256, reference, toy16
from mmsim.trace import Trace
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE


@pytest.fixture(scope="module")
def booted():
    return ref256()


def line(machine, start):
    return next(message for message in machine.dmesg_lines() if message.startswith(start))


# -- the reference machines ----------------------------------------------------------------------------------

def test_ref256_prints_the_recorded_balance(booted):
    assert line(booted, "Memory:") == (
        "Memory: 234932K/261588K available (8197K kernel code, 1144K rwdata, 1400K rodata, 980K init, 1904K bss, "
        "26400K reserved, 0K cma-reserved)")


def test_ref256_has_the_worked_numbers_of_chapter_5(booted):
    dma, dma32 = booted.zones
    assert (dma.managed_pages, dma.watermark, dma32.watermark) == (3840, [31, 38, 45], [452, 565, 678])
    assert [(pageset.batch, pageset.high) for zone in booted.zones for pageset in zone.pageset] == [(1, 38), (15, 565)]
    # 235 212 kB are managed then: 24 kB of SMP alternatives, and the page tables of vmalloc, count.
    assert booted.reserves.min_free_kbytes == 1939
    assert parse_meminfo(booted.proc("meminfo"))["MemTotal"] == 243480


def test_zone_dma_is_untouched_and_its_first_pageblock_unmovable(booted):
    assert parse_buddyinfo(booted.proc("buddyinfo"))[0].counts == (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3)
    assert list(booted.frames.pageblock_mt[:8]) == [0, 1, 1, 1, 1, 1, 1, 1]


def test_present_less_managed_is_what_the_boot_keeps(booted):
    for zone in booted.zones:
        assert booted.census(zone).reserved == zone.present_pages - zone.managed_pages


def test_available_is_short_of_free_by_the_page_tables_of_vmalloc(booted):
    start = booted.start
    assert start.totalram_pages * 4 - 234932 == 64 * 4
    assert len(start.vmalloc_tables) == 64
    assert all(booted.frames.refcount[pfn] == 1 for pfn in start.vmalloc_tables)


def test_toy16_is_one_zone_of_four_thousand_frames():
    machine = toy16()
    assert [zone.name for zone in machine.zones] == ["DMA"]
    assert machine.frames.max_pfn == 4096
    machine.check()


def test_big64_has_two_nodes_and_its_memory():
    machine = big64()
    assert [(zone.nid, zone.name) for zone in machine.zones] == [(0, "DMA"), (0, "DMA32"), (0, "Normal"), (1, "Normal")]
    assert sum(zone.present_pages for zone in machine.zones) * PAGE_SIZE > 63 * GIB
    assert len(machine.setup.sparse.memmap) == 64 * GIB // (128 * MIB)
    assert machine.nodes[1].zonelist[0].nid == 1
    assert line(machine, "Fallback order for Node 1") == "Fallback order for Node 1: 1 0 "


def test_the_memory_map_of_16_gib_takes_65536_pages():
    machine = Machine.boot(qemu_map(16 * GIB), platform=qemu_platform(16 * GIB))
    assert machine.setup.sparse.memmap_bytes // PAGE_SIZE == 65536


def test_the_same_input_gives_the_same_machine_byte_for_byte():
    first, second = ref256(), ref256()
    assert first.dmesg() == second.dmesg()
    for name in ("zoneinfo", "buddyinfo", "pagetypeinfo", "meminfo", "vmstat", "iomem"):
        assert first.proc(name) == second.proc(name)


def test_reference_machines_are_known_by_name():
    assert set(REFERENCE_MACHINES) == {"toy16", "ref256", "big64"}
    assert reference("toy16", "numa=off").command_line == "numa=off"
    with pytest.raises(InputError, match="no reference machine toy17"):
        reference("toy17")


# -- phases and provenance -----------------------------------------------------------------------------------

def test_the_phases_come_in_the_kernels_order(booted):
    phases = [phase.phase for phase in booted.phases]
    assert list(dict.fromkeys(phases)) == ["e820", "memblock", "mapping", "memmap", "early", "buddy", "freed"]
    assert all(phase.say.endswith(".") for phase in booted.phases)
    logs = [phase.log for phase in booted.phases]
    assert logs == sorted(logs)


def test_reserved_memory_only_grows_until_hand_over_but_for_the_probe(booted):
    sizes = [sum(region.size for region in phase.reserved) for phase in booted.phases]
    before = sizes[1:[phase.step for phase in booted.phases].index("memblock_free_all")]
    assert all(later >= earlier for earlier, later in pairwise(before))


def test_every_reserved_byte_of_ram_has_an_owner(booted):
    phase = next(phase for phase in booted.phases if phase.step == "vfs_caches_init_early")
    owned = [(run.base, run.end) for run in phase.owners]
    for region in phase.reserved:
        covered = sum(max(0, min(end, region.end) - max(base, region.base)) for base, end in owned)
        assert covered == region.size


def test_what_the_boot_freed_belongs_to_nobody_afterwards(booted):
    start, size = booted.platform.initrd
    assert list(booted.provenance.runs(start, start + size)) == []
    owners = booted.provenance.totals()
    assert {"kernel image", "brk", "first MiB", "memmap_alloc", "pcpu_fc_alloc", "alloc_node_data"} <= set(owners)
    assert owners["memmap_alloc"] == 4 * MIB


def test_boot_steps_can_be_traced():
    trace = Trace()
    with trace.recording("boot:*") as events:
        toy16(trace=trace)
    names = {event.name for event in events}
    assert {"boot:memblock_reserve", "boot:memblock_add", "boot:phase"} <= names


# -- allocation ----------------------------------------------------------------------------------------------

def test_allocated_frames_are_free_of_others_and_come_back(booted):
    machine = ref256()
    before = machine.proc("buddyinfo")
    taken = [(machine.alloc_pages(GFP_KERNEL, order), order) for order in (0, 3, 9, 10)]
    frames = [pfn + offset for pfn, order in taken for offset in range(1 << order)]
    assert len(set(frames)) == len(frames)
    machine.check()
    for pfn, order in taken:
        machine.free_pages(pfn, order)
    machine.check()
    assert sum(row.free_pages for row in parse_buddyinfo(machine.proc("buddyinfo"))) <= sum(
        row.free_pages for row in parse_buddyinfo(before)) + 64


def test_a_dma_request_gets_low_memory(booted):
    machine = ref256()
    assert machine.alloc_pages(GFP_KERNEL | 1, 5) < 4096
    assert parse_buddyinfo(machine.proc("buddyinfo"))[0].counts == (0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 3)


def test_bulk_allocation_gives_single_frames(booted):
    machine = ref256()
    pages = machine.alloc_pages_bulk(GFP_KERNEL, 100)
    assert len(set(pages)) == 100
    machine.check()


def test_a_frame_that_is_lost_is_noticed():
    machine = toy16()
    machine.zones[0].managed_pages += 1
    machine.zones[0].present_pages -= 1
    with pytest.raises(InvariantError, match="does not add up"):
        machine.check()


def test_memblock_after_hand_over_warns_and_takes_pages():
    machine = toy16()
    address = machine.memblock.alloc(8192, caller="late_driver")
    assert address % PAGE_SIZE == 0 and machine.frames.refcount[address // PAGE_SIZE] == 1
    assert any("slab_is_available" in message for message in machine.dmesg_lines())
    machine.check()


class MachineUnderLoad(RuleBasedStateMachine):
    """Random requests and frees: after each, everything adds up."""

    @initialize(seed=st.integers(0, 2**16))
    def boot(self, seed):
        self.machine = toy16()
        self.held: list[tuple[int, int]] = []
        self.random = random.Random(seed)

    @rule(order=st.integers(0, 7), gfp=st.sampled_from([GFP_KERNEL, GFP_ATOMIC, GFP_HIGHUSER_MOVABLE]))
    def allocate(self, order, gfp):
        pfn = self.machine.alloc_pages(gfp, order)
        if pfn is not None:
            assert all(not (pfn < other + (1 << size) and other < pfn + (1 << order)) for other, size in self.held)
            self.held.append((pfn, order))

    @precondition(lambda self: self.held)
    @rule()
    def free(self):
        pfn, order = self.held.pop(self.random.randrange(len(self.held)))
        self.machine.free_pages(pfn, order)

    @invariant()
    def adds_up(self):
        if hasattr(self, "machine"):
            self.machine.check()


MachineUnderLoad.TestCase.settings = settings(deadline=None, max_examples=12, stateful_step_count=25)
TestMachineUnderLoad = MachineUnderLoad.TestCase


# -- text ----------------------------------------------------------------------------------------------------

def test_every_file_of_proc_reads_back(booted):
    assert [row.free_pages for row in parse_buddyinfo(booted.proc("buddyinfo"))] == [z.nr_free_pages for z in booted.zones]
    managed = {(zone.nid, zone.name): zone.managed for zone in parse_zoneinfo(booted.proc("zoneinfo"))}
    assert managed[0, "DMA32"] == 57030
    assert {entry.name for entry in parse_iomem(booted.proc("iomem"))} >= {
        "Reserved", "System RAM", "Kernel code", "Kernel rodata", "Kernel data", "Kernel bss"}
    with pytest.raises(InputError, match="no file kcore"):
        booted.proc("kcore")


def test_dmesg_has_the_kernels_lines(booted):
    text = booted.dmesg()
    for wanted in ("] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable", "] e820: update [mem 0x00000000-0x00000fff]",
                   "] last_pfn = 0xffd7 max_arch_pfn = 0x400000000", "] Zone ranges:", "] Movable zone start for each node",
                   "] Early memory node ranges", "] Initmem setup node 0", "] On node 0, zone DMA: 97 pages in unavailable ranges",
                   "] Built 1 zonelists, mobility grouping on.  Total pages: 64215", "] Policy zone: DMA32",
                   "] Freeing initrd memory: 4600K", "] Freeing unused kernel image (initmem) memory: 980K"):
        assert wanted in text


def test_zone_and_node_are_found_by_name(booted):
    assert booted.zone("DMA32").start_pfn == 4096
    with pytest.raises(InputError, match="no zone Normal"):
        booted.zone("Normal")


# -- options of the boot -------------------------------------------------------------------------------------

def boot(memory=GIB, command_line="", **changes):
    return Machine.boot(qemu_map(memory), command_line, platform=qemu_platform(memory).replace(**changes))


def test_a_crash_kernel_is_reserved_and_shown():
    machine = boot(command_line="crashkernel=128M")
    assert line(machine, "Reserving 128MB") == "Reserving 128MB of memory at 880MB for crashkernel (System RAM: 1023MB)"
    assert "  37000000-3effffff : Crash kernel\n" in machine.proc("iomem")


def test_movablecore_makes_a_zone_that_only_movable_requests_use():
    machine = boot(command_line="movablecore=256M")
    movable = machine.zone("Movable")
    assert (movable.start_pfn, movable.managed_pages > 60000) == (0x30000, True)
    assert machine.alloc_pages(GFP_HIGHUSER_MOVABLE) >= movable.start_pfn
    assert machine.alloc_pages(GFP_KERNEL) < movable.start_pfn


@pytest.mark.parametrize("option, pages", [("kernelcore=25%", 262005 * 3 // 4), ("movablecore=25%", 262005 // 4)])
def test_zone_movable_can_be_asked_for_in_percent(option, pages):
    machine = boot(command_line=option)
    assert abs(machine.zone("Movable").present_pages - pages) < 1024


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 12))
def test_fake_nodes_share_all_memory_and_nothing_twice(count, eighths):
    machine = boot(eighths * 512 * MIB, f"numa=fake={count}")
    spans = sorted((node.start_pfn, node.end_pfn) for node in machine.nodes.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert sum(node.present for node in machine.nodes.values()) == sum(
        end - start for start, end, _ in machine.memblock.for_each_mem_pfn_range())
    assert len(machine.nodes) <= count


def test_fake_nodes_of_one_node_are_all_equally_near_and_have_all_its_cpus():
    machine = boot(2 * GIB, "numa=fake=3U", nr_cpus=2)
    assert line(machine, "Fallback order for Node 1") == "Fallback order for Node 1: 1 2 0 "
    assert all(node.cpus == [0, 1] for node in machine.nodes.values())


def test_a_node_with_processors_but_no_memory_comes_up_and_borrows():
    srat = (SratMemory(0, 0, 0xA0000), SratMemory(0, MIB, GIB))
    machine = boot(nr_cpus=2, srat=srat, cpu_to_node=(0, 1), distances=((10, 20), (20, 10)))
    assert sorted(machine.nodes) == [0, 1]
    assert "    NODE_DATA(1) on node 0" in machine.dmesg_lines()
    assert line(machine, "Fallback order for Node 1") == "Fallback order for Node 1: 1 0 "
    assert line(machine, "Fallback order for Node 0") == "Fallback order for Node 0: 0 "
    machine.memory.run_on(1)
    assert machine.alloc_pages(GFP_KERNEL) is not None
    machine.check()


def test_deferred_struct_pages_end_in_the_same_free_memory():
    plain = boot(2 * GIB)
    late = Machine.boot(qemu_map(2 * GIB), platform=qemu_platform(2 * GIB), deferred=True)
    assert [zone.managed_pages for zone in late.zones] == [zone.managed_pages for zone in plain.zones]
    assert [zone.watermark for zone in late.zones] == [zone.watermark for zone in plain.zones]
    free = [int(line(machine, "Memory:").split()[1].split("K")[0]) for machine in (plain, late)]
    assert free[1] < free[0]
    late.check()


def test_memory_above_4_gib_brings_bounce_buffers_and_zone_normal():
    machine = boot(5 * GIB)
    assert [zone.name for zone in machine.zones] == ["DMA", "DMA32", "Normal"]
    assert machine.start.swiotlb[1] == 64 * MIB
    assert machine.start.swiotlb[0] < 4 * GIB


def test_an_initrd_outside_of_the_map_is_moved():
    machine = boot(512 * MIB, "mem=300M")
    assert line(machine, "Move RAMDISK").startswith("Move RAMDISK from [mem 0x1fb52000-0x1ffcffff] to [mem 0x12782000-")


def test_a_contiguous_area_is_movable_until_its_owner_comes():
    image = ref256().image.replace(dma_cma=True)
    machine = Machine.boot(qemu_map(GIB), "cma=64M", image=image, platform=qemu_platform(GIB))
    assert line(machine, "cma: Reserved") == "cma: Reserved 64 MiB at 0x000000003b800000"
    assert machine.zone("DMA32").cma_pages == 64 * MIB // PAGE_SIZE
    assert "65536K cma-reserved" in line(machine, "Memory:")
    assert parse_meminfo(machine.proc("meminfo"))["CmaTotal"] == 65536
    machine.check()


OPTIONS = st.lists(st.sampled_from([
    "mem=200M", "mem=700M", "memmap=64M$100M", "memmap=3333K$200000K", "crashkernel=100M", "crashkernel=90M,high",
    "crashkernel=64M@256M", "crashkernel=512M-2G:64M,2G-:256M", "movablecore=300M", "movablecore=40%", "kernelcore=70%",
    "kernelcore=200M", "numa=fake=5", "numa=fake=2U", "numa=fake=300M", "numa=off", "movable_node", "swiotlb=force",
    "transparent_hugepage=never", "hashdist=0", "cma=48M"]), max_size=4, unique=True)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([128, 256, 333, 1024]), OPTIONS, st.integers(1, 5), st.lists(st.integers(1, 15), max_size=2), st.booleans())
def test_any_machine_with_any_options_adds_up(mebibytes, options, cpus, cuts, deferred):
    """Memory sizes, nodes, holes and options in any combination: no frame is lost, none is in two places."""
    memory = mebibytes * MIB
    platform = qemu_platform(memory, cpus)
    if cuts:
        edges = [MIB, *sorted({memory * cut // 16 & -(MIB * 4) for cut in cuts}), memory]
        areas = [SratMemory(nid, start, end, nid) for nid, (start, end) in enumerate(pairwise(edges))]
        platform = platform.replace(srat=(SratMemory(0, 0, 0xA0000), *areas),
                                    cpu_to_node=tuple(cpu % len(areas) for cpu in range(cpus)))
    image = ref256().image.replace(dma_cma=True)
    machine = Machine.boot(qemu_map(memory), " ".join(options), image=image, platform=platform, deferred=deferred)
    machine.check()
    assert all(zone.watermark == sorted(zone.watermark) for zone in machine.zones)
    physpages = sum(node.present for node in machine.nodes.values())
    assert f"/{physpages * 4}K available" in line(machine, "Memory:")


# -- bad input -----------------------------------------------------------------------------------------------

def test_text_without_a_map_is_refused():
    with pytest.raises(InputError, match="no BIOS-e820 lines"):
        Machine.boot("[    0.000000] Linux version 5.17.0\n")


def test_a_log_is_enough_to_boot():
    log = "\n".join(f"[    0.000000] BIOS-e820: {entry}" for entry in qemu_map(512 * MIB))
    assert Machine.boot(log, platform=qemu_platform(512 * MIB)).zone("DMA32").managed_pages == 121446


def test_no_memory_at_all_is_a_panic():
    with pytest.raises(KernelPanic):
        Machine.boot([E820Entry(0, MIB, 2), E820Entry(MIB, GIB, 2)])


def test_a_node_of_less_than_4_mib_crashes_the_kernel_and_says_so():
    srat = (SratMemory(0, 0, 1022 * MIB), SratMemory(1, 1022 * MIB, GIB))
    with pytest.raises(KernelPanic, match="node 1 has memory but no NODE_DATA"):
        boot(srat=srat, cpu_to_node=(0,))


def test_less_memory_than_the_kernel_needs_is_a_panic_with_the_kernels_words():
    with pytest.raises(KernelPanic, match=r"\w"):
        Machine.boot([E820Entry(0, 0x9FC00, 1), E820Entry(MIB, 3 * MIB, 1)], image=TINY_IMAGE)


def test_an_image_whose_sections_overlap_is_refused():
    with pytest.raises(InputError, match="section rodata"):
        Machine.boot(qemu_map(GIB), image=TINY_IMAGE.replace(rodata=(0x21_0000, 0x22_0000)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.sampled_from([1, 1, 1, 2, 3, 5])), min_size=2, max_size=8))
def test_any_firmware_map_boots_whole_or_panics(entries):
    """Overlaps, holes and odd ends: either the machine adds up, or the kernel says why it cannot."""
    table = [E820Entry(0, 0x9FC00, 1), E820Entry(MIB, 24 * MIB + 4 * KIB, 1)]
    table += [E820Entry(base * 3 * MIB + base * 512, size * 5 * MIB + 700, kind) for base, size, kind in entries]
    try:
        machine = Machine.boot(table, image=TINY_IMAGE, platform=Platform())
    except KernelPanic as panic:
        assert str(panic)
        return
    machine.check()


def test_a_node_that_lies_inside_another_is_counted_apart():
    machine = Machine.boot(qemu_map(333 * MIB), "memmap=64M$100M numa=fake=5", platform=qemu_platform(333 * MIB))
    outer = machine.zone("DMA32")
    assert outer.spanned_pages > outer.present_pages + 40_000, "node 0 has both ends, the others what is between"
    machine.check()


def test_the_kernels_own_memory_comes_into_being_when_it_is_asked_for() -> None:
    machine = ref256()
    as_booted = machine.proc("buddyinfo"), machine.memory.nr_free_pages
    machine.check()
    assert (machine.proc("buddyinfo"), machine.memory.nr_free_pages) == as_booted
    stack = machine.stacks.alloc()
    buffer = machine.percpu.alloc(64)
    assert stack is not None and buffer is not None
    assert machine.vmalloc.slub is machine.slub and machine.slub.contents is machine.contents
    # One set of tables, in the machine's own frames, maps the stack for the CPU.
    pfn = machine.vmalloc.vmalloc_to_pfn(stack)
    cpu = Mmu(machine.contents)
    cpu.write_cr3(machine.init_mm.pgd << 12)
    assert pfn is not None and cpu.translate(stack, "w", user=False) == pfn << 12
    assert "dup_task_struct" in machine.proc("vmallocinfo") and "vmap_area" in machine.proc("slabinfo")
    machine.check()


def test_the_per_cpu_first_chunk_is_the_one_that_the_boot_set_up() -> None:
    machine = ref256()
    address = machine.percpu.alloc(64)
    run = machine.provenance.at(machine.layout.pa(address)) if address is not None else None
    assert run is not None and "pcpu" in run.who
