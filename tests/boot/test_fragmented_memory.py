"""Firmware maps without large pieces of memory: what the boot does instead, and when it cannot go on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.e820 import E820Entry
from mmsim.boot.image import Platform, SratMemory
from mmsim.constants import E820_MAX_ENTRIES
from mmsim.errors import KernelPanic
from mmsim.machine import Machine
from mmsim.rules import rules_for
from mmsim.units import MIB, PAGE_SIZE

LOW = E820Entry(0, 0x9FC00, 1)


def islands(count, start=1, size=MIB, gap=MIB):
    """``count`` ranges of RAM, so that none holds an aligned 2 MiB block."""
    return [LOW] + [E820Entry(start * MIB + number * (size + gap), size, 1) for number in range(count)]


def test_struct_pages_fall_back_to_single_frames_and_so_do_the_per_cpu_areas():
    machine = Machine.boot(islands(500), platform=Platform(nr_cpus=2))
    machine.check()
    sparse = machine.setup.sparse
    assert sorted(sparse.base_pages) == sorted(sparse.memmap)
    assert all(len(set(pages)) == 512 for pages in sparse.base_pages.values())
    assert all(machine.memblock.is_reserved(page) for pages in sparse.base_pages.values() for page in pages)
    assert "setup_percpu: auto allocator failed (-12), falling back to page size" in machine.dmesg_lines()
    assert "percpu: 45 4K pages/cpu s170176 r0 d14144" in machine.dmesg_lines()
    # Their tables opened the vmalloc area, so that one table fewer is made beforehand.
    assert len(machine.start.vmalloc_tables) == 63


def test_entries_beyond_the_table_are_dropped_with_a_message_each():
    machine = Machine.boot(islands(500))
    lost = islands(500)[E820_MAX_ENTRIES:]
    expected = [f"too many entries; ignoring [mem 0x{entry.addr:08x}-0x{entry.end - 1:08x}]" for entry in lost]
    # What the kernel itself adds to a full table is lost, too: first frame and BIOS area.
    assert [line for line in machine.dmesg_lines() if line.startswith("too many entries")][:len(lost)] == expected
    assert machine.setup.max_pfn * PAGE_SIZE == (1 + 2 * (E820_MAX_ENTRIES - 2)) * MIB + MIB


def test_more_than_128_tables_in_unmapped_islands_overflow_the_array_that_cannot_grow_yet():
    """Each island above the mapped part gives the next table, and the array of 128 reservations may only grow below 1 MiB."""
    entries = [LOW, E820Entry(MIB, 63 * MIB, 1), *islands(300, 65)[1:]]
    with pytest.raises(KernelPanic, match="alloc_low_pages: can not alloc memory"):
        Machine.boot(entries)
    Machine.boot(entries[:100]).check()


def test_arrays_that_grew_are_freed_when_nobody_asks_memblock_any_more():
    machine = Machine.boot([LOW, E820Entry(MIB, 255 * MIB, 1), *islands(110, 257)[1:], E820Entry(600 * MIB, 64 * MIB, 1)],
                           "memblock=debug")
    machine.check()
    assert machine.memblock.array_at == {"memory": None, "reserved": None}
    freed = [line for line in machine.dmesg_lines() if line.startswith("memblock_free_late: ")]
    grown = [line for line in machine.dmesg_lines() if "is doubled to 256" in line]
    assert len(freed) == len(grown) > 0


@settings(deadline=None, max_examples=30)
@given(st.integers(20, 200), st.sampled_from([3 * MIB // 2, MIB, 2 * MIB]), st.sampled_from([PAGE_SIZE, MIB // 2, 3 * MIB]),
       st.integers(1, 4), st.sampled_from(["5.17", "6.1"]))
def test_however_memory_is_cut_every_frame_is_accounted_for(count, size, gap, cpus, release):
    entries = [LOW, E820Entry(MIB, 47 * MIB, 1), *islands(count, 49, size, gap)[1:]]
    try:
        machine = Machine.boot(entries, platform=Platform(nr_cpus=cpus), rules=rules_for(release))
    except KernelPanic as panic:
        assert "alloc_low_pages" in str(panic) and count > 100
        return
    machine.check()


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(4)), st.integers(1, 3), st.lists(st.integers(0, 3), min_size=1, max_size=6),
       st.sampled_from(["5.17", "6.1"]))
def test_nodes_without_memory_change_nothing_in_how_much_there_is(order, with_memory, cpu_nodes, release):
    """Any of four nodes may have memory, any may have processors."""
    size = 384 * MIB // with_memory // (128 * MIB) * 128 * MIB
    srat = tuple(SratMemory(nid, at * size, (at + 1) * size, nid) for at, nid in enumerate(order[:with_memory]))
    platform = Platform(nr_cpus=len(cpu_nodes), cpu_to_node=tuple(cpu_nodes), srat=srat)
    machine = Machine.boot([LOW, E820Entry(MIB, with_memory * size - MIB, 1)], platform=platform, rules=rules_for(release))
    machine.check()
    assert sorted(machine.nodes) == sorted({*order[:with_memory], *cpu_nodes})
    assert sum(node.present for node in machine.nodes.values()) == with_memory * size // PAGE_SIZE - 97 - 1
    assert all(node.zonelist for node in machine.nodes.values())
    kind = "Initializing node" if release == "6.1" else "NODE_DATA"
    assert sum(kind in line for line in machine.dmesg_lines()) >= len({*cpu_nodes} - {*order[:with_memory]})


@pytest.mark.parametrize("release, online", [("5.17", False), ("6.1", True)])
def test_a_node_of_two_mebibytes_is_only_used_since_the_lower_limit_is_gone(release, online):
    platform = Platform(srat=(SratMemory(1, 0, 2 * MIB, 0), SratMemory(0, 2 * MIB, 256 * MIB, 1)), cpu_to_node=(0,))
    entries = [LOW, E820Entry(MIB, 255 * MIB, 1)]
    if online:
        machine = Machine.boot(entries, platform=platform, rules=rules_for(release))
        machine.check()
        assert machine.nodes[1].present == 158 + 256
    else:
        with pytest.raises(KernelPanic, match="node 1 has memory but no NODE_DATA"):
            Machine.boot(entries, platform=platform, rules=rules_for(release))
