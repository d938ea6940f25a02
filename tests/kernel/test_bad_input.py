"""Wrong use of the kernel's own memory on a whole machine: the kernel's words, and a machine that is sound afterwards."""

import pytest

from mmsim.errors import InputError, KernelBug
from mmsim.reference import ref256

DIRECT_MAP = 0xFFFF_8880_0000_0000


@pytest.fixture
def machine():
    return ref256()


def log_of(machine, action):
    """The messages of an action."""
    before = len(machine.dmesg_lines())
    action()
    return "\n".join(machine.dmesg_lines()[before:])


@pytest.mark.parametrize(("addr", "text"), [
    (0xFFFF_C900_0000_1001, "Trying to vfree() bad address (ffffc90000001001)"),
    (0xFFFF_C900_0010_0000, "Trying to vfree() nonexistent vm area (ffffc90000100000)"),
    (0xFFFF_8880_0000_1000, "Trying to vfree() nonexistent vm area (ffff888000001000)"),
    (0x8000_0000_0000_0000, "Trying to vfree() nonexistent vm area (8000000000000000)"),
    (0x1000, "Trying to vfree() nonexistent vm area (0000000000001000)"),
])
def test_vfree_and_vunmap_of_what_is_no_area_warn_and_do_nothing(machine, addr, text):
    area = machine.vmalloc.vmalloc(4096)
    for free in (machine.vmalloc.vfree, machine.vmalloc.vunmap):
        assert text in log_of(machine, lambda free=free: free(addr))
    machine.vmalloc.write(area, b"still there")
    machine.check()


def test_a_second_vunmap_finds_no_area_and_frames_stay_their_owners(machine):
    frames = [machine.alloc_pages() for _ in range(4)]
    at = machine.vmalloc.vmap(frames)
    machine.vmalloc.vunmap(at)
    assert "nonexistent vm area" in log_of(machine, lambda: machine.vmalloc.vunmap(at))
    assert all(machine.frames.refcount[pfn] == 1 for pfn in frames)
    machine.check()


def test_a_second_vfree_finds_no_area(machine):
    at = machine.vmalloc.vmalloc(10000)
    machine.vmalloc.vfree(at)
    free = machine.memory.nr_free_pages
    assert f"Trying to vfree() nonexistent vm area ({at:016x})" in log_of(machine, lambda: machine.vmalloc.vfree(at))
    assert machine.memory.nr_free_pages == free
    machine.check()


@pytest.mark.parametrize(("addr", "what"), [
    (0x8000_0000_0000_0000, "non-canonical|page fault"),
    (0x0000_8000_0000_0000, "non-canonical|page fault"),
    (0xFFFF_8880_F000_0000, "unable to handle page fault for address: ffffea000"),
    (0x100, "page fault|NULL pointer"),
])
def test_kfree_of_an_address_that_is_no_memory_is_a_fault_of_the_kernel(machine, addr, what):
    keep = machine.slub.kmalloc(64)
    with pytest.raises(KernelBug, match=what):
        machine.slub.kfree(addr)
    assert machine.slub.ksize(keep) == 64
    machine.check()


def test_kfree_of_a_page_that_is_no_slab_frees_the_page_with_a_warning(machine):
    pfn = machine.alloc_pages()
    machine.slub.kmalloc(8)
    text = log_of(machine, lambda: machine.slub.kfree(machine.layout.page_address(pfn)))
    assert "free_large_kmalloc" in text and f"object pointer: 0x{machine.layout.page_address(pfn):016x}" in text
    assert machine.frames.refcount[pfn] == 0


def test_kfree_of_vmalloc_memory_is_a_fault(machine):
    at = machine.vmalloc.vmalloc(4096)
    with pytest.raises(KernelBug, match="page fault"):
        machine.slub.kfree(at)
    machine.vmalloc.kvfree(at)
    machine.check()


@pytest.mark.parametrize("addr", [0x8000_0000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, -1 << 63])
def test_no_page_is_mapped_at_an_address_that_is_not_canonical(machine, addr):
    with pytest.raises(InputError, match="canonical"):
        machine.init_mm.map_page(addr & -4096 if addr > 0 else addr, 5, 0x8000000000000163)
    machine.init_mm.check()


def test_a_slot_of_the_fixmap_that_does_not_exist_is_refused(machine):
    for index in (-1, 10_000):
        with pytest.raises(InputError, match="no slot"):
            machine.layout.fix_to_virt(index)


def test_per_cpu_memory_is_freed_once(machine):
    at = machine.percpu.alloc(64)
    machine.percpu.free(at)
    for wrong in (at, at + 8, DIRECT_MAP, 0x8000_0000_0000_0000):
        with pytest.raises(InputError, match="no per-CPU allocation"):
            machine.percpu.free(wrong)
    machine.check()


def test_a_stack_that_is_none_is_not_freed(machine):
    stack = machine.stacks.alloc()
    machine.stacks.free(stack)
    for wrong in (stack, 0, DIRECT_MAP):
        with pytest.raises(InputError, match="no stack of a task"):
            machine.stacks.free(wrong)
    machine.check()
