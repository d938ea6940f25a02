"""Chapter 6, Virtual memory in the kernel."""

from __future__ import annotations

from mmsim.exercises.answers import Part
from mmsim.exercises.registry import exercise
from mmsim.kernel.kmalloc_caches import kmalloc_size_roundup
from mmsim.kernel.layout import Layout
from mmsim.kernel.slab_layout import calculate_sizes, cpu_partial_limits, get_order
from mmsim.kernel.vmap_area import VmapAreas
from mmsim.reference import toy16
from mmsim.units import KIB, MIB, PAGE_SHIFT, PAGE_SIZE, fls


@exercise(
    "6.1", "ex06-vmemmap", "A vmemmap address",
    Part("frame", "the frame's number", kind="hex"), Part("address", "where its contents are in the direct map", kind="hex"),
    hints=("Subtract the begin of the region, 0xffffea0000000000, and divide by the size of a struct page.",
           "The direct map begins at 0xffff888000000000; a frame has 4096 bytes."))
def vmemmap_address() -> tuple[int, ...]:
    layout = Layout(1 << 24)
    frame = layout.struct_to_pfn(0xFFFF_EA00_0400_0000)
    return frame, layout.page_address(frame)


@exercise(
    "6.2", "ex06-kmalloc", "What kmalloc gives",
    Part("first", "the size of the cache for kmalloc(100)", "bytes"), Part("lost", "what is lost there", "bytes"),
    Part("second", "the size of the cache for kmalloc(193)", "bytes"), Part("pages", "what kmalloc(8193) takes", "pages"),
    hints=("The sizes are powers of two, and two more: 96 and 192.",
           "193 is just more than 192. Above 8192 a request gets a block of a power of two of pages."))
def what_kmalloc_gives() -> tuple[int, ...]:
    first = kmalloc_size_roundup(100)
    return first, first - 100, kmalloc_size_roundup(193), 1 << get_order(8193)


@exercise(
    "6.3", "ex06-vmalloc", "One byte of vmalloc",
    Part("one", "address space of vmalloc(1)", "KiB"), Part("two", "address space of vmalloc(4097)", "KiB"),
    Part("waiting", "what may wait before a purge, with 8 CPUs", "MiB"),
    hints=("Sizes are rounded up to pages, and each area has a guard page.",
           "The number 8 has four bits; for each bit 32 MiB may wait."))
def one_byte_of_vmalloc() -> tuple[int, ...]:
    machine = toy16()
    sizes = []
    for size in (1, 4097):
        addr = machine.vmalloc.vmalloc(size)
        area = machine.vmalloc.find_vm_area(addr) if addr is not None else None
        assert area is not None
        sizes.append(area.size // KIB)
    start = machine.layout.vmalloc_start
    return *sizes, VmapAreas(start, start + (1 << 45), 8).lazy_max_pages() * PAGE_SIZE // MIB


@exercise(
    "6.4", "ex06-order", "A cache of 680 bytes",
    Part("wanted", "objects that a slab should have at least"), Part("order", "the order that SLUB takes"),
    Part("objects", "objects that fit"), Part("lost", "what is lost", "bytes"),
    hints=("4 CPUs are a number of three bits: four times (3 + 1) objects.",
           "Begin at the order that holds that many, and take it if at most a sixteenth is lost."))
def a_cache_of_680_bytes() -> tuple[int, ...]:
    layout = calculate_sizes(680, 8, 0, nr_cpus=4)
    return 4 * (fls(4) + 1), layout.order, layout.objects, layout.wasted


@exercise(
    "6.6", "ex06-chain", "Predict a chain (seeded)",
    Part("objects", "objects in a slab"), Part("slabs", "slabs that a chain may have"),
    hints=("12 objects of 256 bytes are wanted with 2 CPUs: which order holds them?",
           "52 objects may be on a chain. Each slab counts as half full: divide by that, and round up."))
def a_chain() -> tuple[int, ...]:
    objects = calculate_sizes(256, 8, 0, nr_cpus=2).objects
    return objects, cpu_partial_limits(256, objects)[1]


@exercise(
    "6.8", "ex06-report", "Read the report",
    Part("frame", "the frame that RBX is in", kind="hex"), Part("inuse", "inuse in RDX"), Part("objects", "objects in RDX"),
    Part("references", "the reference count in RDX"), Part("size", "the size of an object", "KiB"),
    hints=("Subtract the begin of the direct map of 4.10, and drop the last three digits. RDX: 16 bits, 15 bits, 1 bit, and the count.",
           "A block of order 3 has 32 KiB. How many objects share it?"))
def read_the_report() -> tuple[float, ...]:
    frame = (0xFFFF_8801_090C_C800 - 0xFFFF_8800_0000_0000) >> PAGE_SHIFT
    word = 0x0000_0001_0010_0001
    objects = word >> 16 & 0x7FFF
    return frame, word & 0xFFFF, objects, word >> 32, (PAGE_SIZE << 3) // objects // KIB
