"""The numbers that chapter 6 states."""

import pytest

from mmsim.kernel.kmalloc_caches import kmalloc_layout, kmalloc_size_roundup
from mmsim.kernel.layout import Layout
from mmsim.kernel.slab_layout import calculate_sizes, get_order
from mmsim.units import PAGE_SHIFT


@pytest.mark.parametrize(("cpus", "size", "order", "objects"), [
    (4, 8, 0, 512), (4, 96, 0, 42), (4, 192, 0, 21), (4, 256, 0, 16), (4, 512, 1, 16), (4, 1024, 2, 16), (4, 2048, 3, 16),
    (4, 4096, 3, 8), (4, 8192, 3, 4), (8, 256, 1, 32), (8, 1024, 3, 32)])
def test_kmalloc_orders_and_objects(cpus, size, order, objects):
    layout = kmalloc_layout(size, 0, cpus)
    assert (layout.order, layout.objects) == (order, objects)


@pytest.mark.parametrize(("size", "slabs"), [(8, 1), (64, 4), (192, 12), (256, 7), (1024, 3), (4096, 2)])
def test_how_many_partial_slabs_a_cpu_keeps(size, slabs):
    assert kmalloc_layout(size, 0, 4).cpu_partial_slabs == slabs


def test_how_many_partial_slabs_a_node_keeps():
    assert [kmalloc_layout(size, 0, 4).min_partial for size in (2048, 4096)] == [5, 6]


def test_where_the_free_pointer_stands():
    assert [kmalloc_layout(size, 0, 4).offset for size in (192, 8)] == [96, 0]


def test_inode_cache_of_624_bytes_on_two_cpus():
    layout = calculate_sizes(624, 8, 0, nr_cpus=2)
    assert (layout.order, layout.objects) == (1, 13)


def test_exercises_on_sizes():
    assert (kmalloc_size_roundup(100), kmalloc_size_roundup(193), kmalloc_size_roundup(8193)) == (128, 256, 16384)
    assert get_order(8193) == 2
    layout = calculate_sizes(680, 8, 0, nr_cpus=4)
    assert (layout.objects, layout.order) == (24, 2)


def test_the_regions_are_where_the_manual_says():
    layout = Layout(65536)
    layout.check()
    starts = {region.name: region.start for region in layout.regions()}
    assert starts["guard hole"] == 0xFFFF_8000_0000_0000 and starts["LDT remap"] == 0xFFFF_8800_0000_0000
    assert starts["direct map"] == 0xFFFF_8880_0000_0000 and starts["vmalloc"] == 0xFFFF_C900_0000_0000
    assert starts["vmemmap"] == 0xFFFF_EA00_0000_0000 and starts["kernel image"] == 0xFFFF_FFFF_8000_0000
    assert starts["direct map"] >> 39 & 511 == 273
    region = layout.classify(0xFFFF_EA00_0400_0000)
    assert region.name == "vmemmap" and layout.struct_to_pfn(0xFFFF_EA00_0400_0000) == 0x100000


def test_modules_begin_later_where_kaslr_is_compiled_in():
    with_kaslr, without = Layout(65536), Layout(65536, randomize_base=False)
    module = {name: {region.name: region for region in layout.regions()}["modules"]
              for name, layout in (("with", with_kaslr), ("without", without))}
    assert (module["with"].start, module["with"].end) == (0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_FF00_0000)
    assert module["without"].start == 0xFFFF_FFFF_A000_0000 and module["without"].size == 1520 << 20


def test_image_and_direct_map_have_their_own_offsets():
    layout = Layout(65536)
    assert layout.pa(layout.va(0x1234)) == 0x1234
    assert layout.pa(0xFFFF_FFFF_8100_0000) == 0x100_0000
    assert layout.virt_to_pfn(layout.page_address(77)) == 77 == layout.page_address(77) - layout.page_offset >> PAGE_SHIFT
