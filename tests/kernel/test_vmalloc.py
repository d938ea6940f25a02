"""vmalloc: areas, guard pages, lazy purge."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from mmsim.errors import InvariantError, KernelBug
from mmsim.kernel.vmalloc import INT_MAX, Vmalloc
from mmsim.kernel.vmap_area import Fit, VmapAreas
from mmsim.procfs.vmallocinfo import vmalloc_meminfo, vmallocinfo

from .machines import free_frames, slub

START = 0xFFFF_C900_0000_0000


def region(pages=1024, nodes=1, cpus=1, **options):
    return Vmalloc(slub(pages, nodes, cpus, **options))


def test_one_byte_takes_two_pages_of_addresses():
    v = region()
    a = v.vmalloc(1)
    assert a == START and v.find_vm_area(a).size == 8192 and v.nr_vmalloc_pages == 1
    assert v.vmalloc(4096) == START + 8192 and v.vmalloc(4097) == START + 16384


def test_whoever_runs_over_the_end_faults_at_the_guard_page():
    v = region()
    a, b = v.vmalloc(8192), v.vmalloc(4096)
    v.write(a, b"x" * 8192)
    with pytest.raises(KernelBug, match=f"unable to handle page fault for address: {a + 8192:016x}\n#PF: supervisor write"):
        v.write(a, b"y" * 8193)
    v.write(b, b"z")
    assert v.read(a, 8192) == b"y" * 8192
    with pytest.raises(KernelBug, match="page fault"):
        v.read(b + 4096, 1)
    v.check()


def test_frames_come_from_anywhere_and_addresses_are_contiguous():
    v = region()
    holes = [v.allocator.alloc_pages(0xCC0) for _ in range(300)]
    for pfn in holes[::2]:
        v.allocator.free_pages(pfn)
    a = v.vmalloc(40 * 4096)
    frames = [v.vmalloc_to_pfn(a + page * 4096) for page in range(40)]
    assert len(set(frames)) == 40 and frames != list(range(frames[0], frames[0] + 40))
    v.check()


def test_freeing_unmaps_now_and_gives_addresses_back_later():
    v = region()
    v.vmalloc(4096)
    a = v.vmalloc(4096)
    frames = free_frames(v.memory)
    v.vfree(a)
    assert free_frames(v.memory) == frames + 1 and v.vmalloc_to_pfn(a) is None
    assert v.areas.lazy_nr == 2 and v.vmalloc(4096) == a + 8192
    v.check()
    v.purge()
    assert v.nr_flushes == 1 and v.vmalloc(4096) == a
    v.check()


@pytest.mark.parametrize(("cpus", "pages"), [(1, 8192), (2, 16384), (4, 24576), (8, 4 * 8192), (64, 7 * 8192)])
def test_how_many_pages_may_wait(cpus, pages):
    assert VmapAreas(START, START + (1 << 45), cpus).lazy_max_pages() == pages


def test_one_flush_serves_all_that_waited():
    v = region()
    assert v.areas.lazy_max_pages() == 8192
    # Large areas of addresses without frames, so that the threshold is near.
    reserved = [v.get_vm_area((4 << 20) - 4096, 0) for _ in range(9)]
    with v.memory.trace.recording("mmsim:flush*") as events:
        for area in reserved[:8]:
            v.vunmap(area.addr)
        assert v.areas.lazy_nr == 8192 and not events
        v.vunmap(reserved[8].addr)
    assert [(event["start"], event["end"]) for event in events] == [(reserved[0].addr, reserved[8].addr + (4 << 20))]
    assert v.areas.lazy_nr == 0 and v.nr_flushes == 1
    v.check()


def test_where_the_new_area_lies_in_the_free_one():
    areas = VmapAreas(0x10000, 0x20000, 1)
    assert areas.alloc(0x1000) == 0x10000 and areas.last_fit is Fit.LE_FIT_TYPE
    assert areas.alloc(0x1000, align=0x4000) == 0x14000 and areas.last_fit is Fit.NE_FIT_TYPE
    assert areas.alloc(0x3000) == 0x11000 and areas.last_fit is Fit.FL_FIT_TYPE
    assert areas.alloc(0x8000, align=0x8000) == 0x18000 and areas.last_fit is Fit.RE_FIT_TYPE
    areas.check()
    assert areas.alloc(0x4000) is None and areas.alloc(0x3000) == 0x15000
    with pytest.raises(KernelBug):
        areas.alloc(0)
    with pytest.raises(KernelBug):
        areas.alloc(100)
    assert areas.find(0x14FFF) == (0x14000, 0x15000)


def test_a_full_region_is_purged_before_it_fails():
    v = region()
    a = v.areas.alloc(v.areas.end - v.areas.start - 4096 + 1 & -4096)
    assert v.vmalloc(4096) is None
    assert any("vmap allocation for size 8192 failed: use vmalloc=<size>" in line for line in v.slub.klog.lines())
    v.areas.free_lazily(a)
    assert v.vmalloc(4096) == START
    v.check()


def test_an_interior_page_frees_the_whole_area_and_other_addresses_only_warn():
    v = region()
    a = v.vmalloc(3 * 4096)
    v.vfree(a + 5)
    v.vfree(a + (1 << 30))
    text = v.slub.klog.text()
    assert f"Trying to vfree() bad address ({a + 5:016x})" in text
    assert f"Trying to vfree() nonexistent vm area ({a + (1 << 30):016x})" in text and len(v.vm) == 1
    v.vfree(a + 4096)
    v.vfree(None)
    assert not v.vm and v.nr_vmalloc_pages == 0
    v.vfree(a)
    assert text.count("nonexistent") + 1 == v.slub.klog.text().count("nonexistent")
    v.check()


def test_sizes_that_make_no_sense_are_refused_and_nothing_is_lost():
    v = region()
    before = free_frames(v.memory)
    assert v.vmalloc(0) is None and v.vmalloc(1 << 30) is None
    assert any("vmalloc error: size 1073741824, exceeds total pages, mode:0xcc0(GFP_KERNEL)" in line
               for line in v.slub.klog.lines())
    assert free_frames(v.memory) == before
    hog = []
    while len(hog) < 900:
        hog.append(v.allocator.alloc_pages(0xCC0))
    left = free_frames(v.memory)
    assert v.vmalloc(1000 * 4096, 0xCC0 | 0x10000) is None
    assert any("failed to allocate pages" in line for line in v.slub.klog.lines())
    v.slub.flush_all()
    for s in v.slub.caches:
        v.slub.kmem_cache_shrink(s)
    assert free_frames(v.memory) >= left - 3            # Page tables stay.
    v.check()


def test_the_list_of_a_large_areas_pages_is_itself_from_vmalloc():
    v = region(pages=2048)
    a = v.vmalloc(600 * 4096, caller="big")
    lines = vmallocinfo(v).splitlines()
    assert lines[0].endswith("2461696 big pages=600 vmalloc vpages N0=600") and lines[1].endswith("  12288 big pages=2 vmalloc N0=2")
    v.vfree(a)
    assert not v.vm
    v.check()


def test_vmap_shows_frames_at_a_second_address():
    v = region()
    pages = [v.allocator.alloc_pages(0xCC0) for _ in range(4)][::-1]
    a = v.vmap(pages)
    v.write(a + 4096, b"seen twice")
    assert v.slub.read(v.layout.page_address(pages[1]), 10) == b"seen twice"
    assert vmallocinfo(v) == f"0x{a:016x}-0x{a + 5 * 4096:016x}   20480 vmap\n"
    frames = free_frames(v.memory)
    v.vunmap(a)
    assert free_frames(v.memory) == frames
    assert v.vmap([]) is None
    v.check()


def test_kvmalloc_tries_kmalloc_first():
    v = region()
    small, large, huge = v.kvmalloc(5000), v.kvmalloc(100_000), v.kvmalloc(4 << 20)
    assert not v.layout.is_vmalloc_addr(small) and not v.layout.is_vmalloc_addr(large) and huge is None
    hog = []
    while (pfn := v.allocator.alloc_pages(0x2000, 3)) is not None:
        hog.append(pfn)
    for pfn in hog[::2]:
        v.allocator.free_pages(pfn, 3)
    scattered = v.kvmalloc(100_000)
    assert v.layout.is_vmalloc_addr(scattered)
    for addr in (small, large, scattered):
        v.kvfree(addr)
    assert v.kvmalloc(INT_MAX + 1) is None and "kvmalloc_node" in v.slub.klog.text()
    v.check()


def test_vmallocinfo_ends_with_what_waits():
    v = region(nodes=2, cpus=2)
    a, b = v.vmalloc(4096, nid=1, caller="one"), v.vmalloc(8192, caller="two")
    v.vfree(b)
    assert vmallocinfo(v).splitlines() == [f"0x{a:016x}-0x{a + 8192:016x}    8192 one pages=1 vmalloc N1=1",
                                           f"0x{b:016x}-0x{b + 12288:016x}   12288 unpurged vm_area"]
    assert vmalloc_meminfo(v, v.layout)["VmallocUsed"] == 4


def test_check_finds_a_mapped_guard_page_and_a_lost_one():
    v = region()
    a = v.vmalloc(4096)
    v.tables.map_page(a + 4096, 1, 0x8000000000000163)
    with pytest.raises(InvariantError, match="guard page"):
        v.check()
    v.tables.unmap_page(a + 4096)
    leaf = v.tables.unmap_page(a)
    with pytest.raises(InvariantError, match="not mapped"):
        v.check()
    v.tables.map_page(a, 5, 0x8000000000000163)
    assert leaf is not None
    with pytest.raises(InvariantError):
        v.check()


class Areas(RuleBasedStateMachine):
    """vmalloc, vmap and vfree against a dictionary of what each area holds."""

    areas = Bundle("areas")

    @initialize(cpus=st.integers(1, 3))
    def boot(self, cpus):
        self.v = region(nodes=2, cpus=cpus)
        self.held = {}

    @rule(target=areas, size=st.integers(1, 40_000), align=st.sampled_from([1, 4096, 16384, 1 << 16]))
    def vmalloc(self, size, align):
        addr = self.v.vmalloc(size, align=align)
        if addr is None:
            return multiple()
        assert addr % max(align, 4096) == 0
        data = addr.to_bytes(8, "little") * (size // 8 + 1)
        self.v.write(addr, data[:size])
        self.held[addr] = data[:size]
        return addr

    @rule(addr=consumes(areas), page=st.integers(0, 10))
    def vfree(self, addr, page):
        size = len(self.held.pop(addr))
        self.v.vfree(addr + min(page, size - 1 >> 12) * 4096)

    @rule()
    def purge(self):
        self.v.purge()

    @invariant()
    def all_is_there(self):
        if hasattr(self, "v"):
            self.v.check()
            self.v.slub.check()
            for addr, data in self.held.items():
                assert self.v.read(addr, len(data)) == data

    def teardown(self):
        if hasattr(self, "v"):
            for addr in self.held:
                self.v.vfree(addr)
            self.v.purge()
            self.v.check()
            assert not self.v.nr_vmalloc_pages and not self.v.vm and len(self.v.areas.free) == 1


Areas.TestCase.settings = settings(deadline=None, max_examples=25, stateful_step_count=25)
TestAreas = Areas.TestCase
