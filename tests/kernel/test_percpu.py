"""Per-CPU memory: the same place in every CPU's unit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.e820 import E820Entry
from mmsim.boot.image import Platform
from mmsim.errors import InputError, InvariantError
from mmsim.kernel.percpu import PerCpu, pcpu_size_to_slot
from mmsim.kernel.vmalloc import Vmalloc
from mmsim.kernel.vmap_area import VmapAreas
from mmsim.machine import Machine
from mmsim.procfs.vmallocinfo import vmallocinfo
from mmsim.reference import big64
from mmsim.units import MIB

from .machines import free_frames, slub


def fragmented():
    """A machine whose memory has no 2 MiB in one piece, but where the kernel itself lies."""
    islands = [number for number in range(1, 500, 2) if not 16 <= number < 34]
    return Machine.boot([E820Entry(0, 0x9FC00, 1), E820Entry(16 * MIB, 18 * MIB, 1)]
                        + [E820Entry(number * MIB, MIB, 1) for number in islands], platform=Platform(nr_cpus=2))


def percpu(cpus=2, dynamic=8192):
    k = slub(cpus=cpus)
    unit = 64 << 10
    pages = k.allocator.alloc_pages(0xCC0, 5)
    assert pages is not None and cpus * unit <= 32 * 4096
    return PerCpu(Vmalloc(k), static_size=4096, reserved_size=0, dynamic_size=dynamic, unit_size=unit,
                  base=k.layout.page_address(pages))


def test_every_cpu_has_its_own_copy():
    p = percpu()
    counter = p.alloc(8, 8)
    for cpu in range(2):
        p.write(p.per_cpu_ptr(counter, cpu), bytes([cpu + 1] * 8))
    assert p.per_cpu_ptr(counter, 1) - counter == p.unit_size
    assert [p.read(p.per_cpu_ptr(counter, cpu), 8)[0] for cpu in range(2)] == [1, 2]
    p.free(counter)
    again = p.alloc(8, 8)
    assert again == counter and p.read(p.per_cpu_ptr(again, 1), 8) == bytes(8)
    p.check()


def test_allocations_come_behind_the_static_variables_in_pieces_of_four_bytes():
    p = percpu()
    base = p.first_chunk.base
    assert [p.alloc(1) - base, p.alloc(5) - base, p.alloc(8, 64) - base, p.alloc(4) - base] == [4096, 4100, 4160, 4108]


def test_the_fullest_chunk_that_may_do_is_asked_first():
    p = percpu()
    filler = [p.alloc(4096), p.alloc(4096)]
    later = p.alloc(100)                            # The first chunk is full: a second one.
    assert len(p.chunks) == 2 and p.region.layout.is_vmalloc_addr(later)
    p.free(filler[1])
    assert p.alloc(100) == filler[1]
    assert [pcpu_size_to_slot(size) for size in (31, 32, 63, 64)] == [2, 3, 3, 4]
    p.check()


def test_a_new_chunk_lies_at_the_top_of_the_region_and_takes_frames_page_by_page():
    p = percpu()
    for _ in range(2):
        p.alloc(4096)
    before = free_frames(p.region.memory)
    a = p.alloc(16)
    assert a == 0xFFFF_E8FF_FFC0_0000
    assert p.nr_populated == 2 and before - free_frames(p.region.memory) <= 2 + 4       # Two copies, and page tables.
    assert vmallocinfo(p.region).splitlines()[-1].endswith(" 2097152 pcpu_get_vm_areas vmalloc")
    p.region.check()
    p.check()


def test_empty_chunks_but_one_go_back():
    p = percpu()
    held = [p.alloc(32 << 10) for _ in range(5)]
    assert len(p.chunks) == 4
    for addr in held:
        p.free(addr)
    p.balance()
    assert len(p.chunks) == 2
    p.region.check()
    p.check()


@pytest.mark.parametrize(("size", "align"), [(0, 4), ((32 << 10) + 4, 4), (8, 8192), (8, 24)])
def test_what_is_too_large_is_refused_with_a_warning(size, align):
    p = percpu()
    assert p.alloc(size, align) is None
    assert any("for percpu allocation" in line for line in p.region.slub.klog.lines())


def test_only_an_allocation_can_be_freed():
    p = percpu()
    a = p.alloc(64)
    p.free(None)
    for wrong in (a + 4, 0x1234):
        with pytest.raises(InputError):
            p.free(wrong)
    p.free(a)
    with pytest.raises(InputError):
        p.free(a)
    p.first_chunk.bits[5000 // 4] = 1
    with pytest.raises(InvariantError):
        p.check()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000), st.sampled_from([1, 8, 64, 4096])), max_size=40))
def test_copies_never_overlap(steps):
    p = percpu()
    held = {}
    for take, size, align in steps:
        if take or not held:
            addr = p.alloc(size, align)
            assert addr is not None and addr % align == 0
            assert all(addr + size <= other or other + length <= addr for other, length in held.items())
            held[addr] = size
        else:
            p.free(held.popitem()[0])
        p.check()
    p.region.check()


def test_units_lie_in_the_memory_of_their_nodes_and_later_chunks_keep_the_distance():
    machine = big64()
    percpu = machine.percpu
    pointer = percpu.alloc(64)
    places = [percpu.per_cpu_ptr(pointer, cpu) for cpu in range(8)]
    assert len(set(places)) == 8
    assert [machine.frames.page_zone(machine.layout.virt_to_pfn(place)).nid for place in places] == [0] * 4 + [1] * 4
    while len(percpu.chunks) == 1:
        pointer = percpu.alloc(32768)
    later = [percpu.per_cpu_ptr(pointer, cpu) for cpu in range(8)]
    assert [place - later[0] for place in later] == [place - places[0] for place in places]
    assert {machine.frames.page_zone(machine.vmalloc.vmalloc_to_pfn(place)).nid for place in later[4:]} == {1}
    assert machine.proc("vmallocinfo").count("pcpu_get_vm_areas") == 2
    machine.check()
    percpu.free(pointer)
    percpu.balance()
    machine.check()


def test_a_first_chunk_of_single_pages_lies_at_the_start_of_the_vmalloc_region():
    machine = fragmented()
    percpu = machine.percpu
    assert machine.start.percpu.pages and percpu.first_chunk.base == machine.layout.vmalloc_start
    pointer = percpu.alloc(8)
    percpu.write(percpu.per_cpu_ptr(pointer, 0), b"one page")
    assert percpu.read(pointer, 8) == b"one page" and machine.vmalloc.vmalloc_to_pfn(pointer) << 12 in machine.start.percpu.pages
    assert machine.vmalloc.vmalloc(4096) > pointer
    machine.check()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=3), st.lists(st.integers(0, 99), max_size=30))
def test_areas_at_fixed_distances_lie_as_high_as_they_fit(wanted, taken):
    unit, start = 4096, 1 << 40
    areas, end = [], 0
    for gap, size in wanted:
        areas.append(((end + gap) * unit, size * unit))
        end += gap + size
    region = VmapAreas(start, start + 100 * unit, nr_cpus=1)
    occupied = set()
    for page in taken:
        if page not in occupied:
            region._carve(start + page * unit, unit)
            occupied.add(page)
    fits = [base for base in range(100) if all(0 <= base + offset // unit + page < 100 and base + offset // unit + page not in occupied
                                               for offset, size in areas for page in range(size // unit))]
    found = region.alloc_areas(areas, unit)
    assert found == (start + max(fits) * unit if fits else None)
    region.check()
