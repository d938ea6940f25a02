"""Wrong use: what SLUB notices, in the kernel's own words, and what it doesn't."""

import pytest

from mmsim import constants as c
from mmsim.errors import InputError, InvariantError, KernelBug, KernelPanic
from mmsim.kernel import slab_layout as sl
from mmsim.kernel.slab import swab64

from .machines import free_frames, slub


def report(k):
    return k.klog.lines()


def test_kfree_of_nothing_is_fine():
    k = slub()
    for nothing in (None, 0, 16):
        k.kfree(nothing)
    assert k.kmalloc(0) == 16 and k.ksize(16) == k.ksize(None) == 0 and not report(k)


def test_freeing_twice_in_a_row_is_a_bug_where_the_list_is_hardened():
    k = slub(hardened=True)
    a = k.kmalloc(64)
    k.kfree(a)
    with pytest.raises(KernelBug, match="double free"):
        k.kfree(a)
    k.check()


def test_only_the_neighbour_on_the_list_is_compared():
    k = slub(hardened=True)
    a, b = k.kmalloc(64), k.kmalloc(64)
    for obj in (a, b, a):
        k.kfree(obj)
    with pytest.raises(InvariantError, match=r"circle|twice"):
        k.check()
    assert [k.kmalloc(64) for _ in range(3)] == [a, b, a]       # Given out twice.


def test_without_hardening_a_double_free_goes_unnoticed_and_the_object_has_two_owners():
    k = slub()
    a = k.kmalloc(64)
    k.kfree(a)
    k.kfree(a)
    assert k.kmalloc(64) == k.kmalloc(64) == a
    assert not report(k)


def test_a_checked_cache_refuses_a_double_free_and_says_who_freed_it_first():
    k = slub(slub_debug="FU")
    a = k.kmalloc(64, caller="open_thing")
    k.kfree(a, caller="close_thing")
    k.kfree(a, caller="close_again")
    text = "\n".join(report(k))
    assert "BUG kmalloc-64 (Not tainted): Object already free" in text
    assert "Allocated in open_thing age=0 cpu=0 pid=1\nFreed in close_thing age=0 cpu=0 pid=1" in text
    assert text.endswith(f"FIX kmalloc-64: Object at 0x{a:016x} not freed")
    k.check()
    k.kfree(a)
    assert "BUG kmalloc-64 (Tainted: G    B            ): Object already free" in report(k)


def test_the_whole_report_of_an_overrun():
    k = slub(slub_debug="FZ,kmalloc-16")
    a = k.kmalloc(16)
    slab = k.slab_of(a)
    k.write(a, b"sixteen bytes ok" + b"!")
    k.kfree(a)
    fp = slab.freelist
    offset, page = a - slab.address, k.layout.page_struct(slab.pfn)
    assert report(k) == [
        "=" * 77,
        "BUG kmalloc-16 (Not tainted): Right Redzone overwritten",
        "-" * 77,
        "",
        f"0x{a + 16:016x}-0x{a + 16:016x} @offset={offset + 16}. First byte 0x21 instead of 0xcc",
        f"Slab 0x{page:016x} objects=85 used=1 fp=0x{fp:016x} flags=0x200000000000200(slab|node=0|zone=2)",
        f"Object 0x{a:016x} @offset={offset} fp=0x{int.from_bytes(b'bytes ok', 'little'):016x}",
        "",
        f"Redzone  {a - 16:016x}: {'cc ' * 16} {'.' * 16}",
        f"Object   {a:016x}: 73 69 78 74 65 65 6e 20 62 79 74 65 73 20 6f 6b  sixteen bytes ok",
        f"Redzone  {a + 16:016x}: 21 cc cc cc cc cc cc cc                          !.......",
        f"Padding  {a + 24:016x}: 00 00 00 00 00 00 00 00                          ........",
        f"FIX kmalloc-16: Restoring Right Redzone 0x{a + 16:016x}-0x{a + 16:016x}=0xcc",
        f"FIX kmalloc-16: Object at 0x{a:016x} not freed"]
    k.check()


@pytest.mark.parametrize(("debug", "where", "what"), [
    ("Z", -1, None), ("FZ", -1, "Left Redzone overwritten"), ("FZ", 64, "Right Redzone overwritten"),
    ("FP", 10, "Poison overwritten"), ("FP", 63, "End Poison overwritten")])
def test_which_byte_is_noticed(debug, where, what):
    k = slub(slub_debug=debug)
    a = k.kmalloc(64)
    if debug == "FP":
        k.kfree(a)                  # Use after free: noticed when the object is given out again.
    k.write(a + where, b"x")
    if debug == "FP":
        assert k.kmalloc(64) != a   # The damaged slab is taken out of use.
        assert "FIX kmalloc-64: Marking all objects used" in report(k)
    else:
        k.kfree(a)
    found = [line.partition(": ")[2] for line in report(k) if line.startswith("BUG")]
    assert found == ([what] if what else [])
    k.check()


def test_a_freed_object_is_full_of_k_and_what_is_nobodys_of_z():
    k = slub(slub_debug="P")
    s = k.kmem_cache_create("thing", 100)
    a = k.kmem_cache_alloc(s)
    assert k.read(a, 100) == b"\x6b" * 99 + b"\xa5" and k.read(a + 112, s.size - 112) == b"\x5a" * (s.size - 112)


def test_a_use_after_free_can_send_the_next_allocation_anywhere():
    k = slub()
    victim = k.kmalloc(512)
    a = k.kmalloc(64)
    k.kfree(a)
    k.store_word(a + 32, victim)
    assert k.kmalloc(64) == a and k.kmalloc(64) == victim


def test_hardened_the_same_write_makes_the_kernel_fault():
    k = slub(hardened=True, seed=3)
    victim = k.kmalloc(512)
    a = k.kmalloc(64)
    k.kfree(a)
    k.store_word(a + 32, victim)
    assert k.kmalloc(64) == a
    with pytest.raises(KernelBug, match=r"general protection fault|unable to handle page fault"):
        k.kmalloc(64)


def test_a_hardened_pointer_is_xored_with_a_secret_and_the_reversed_address():
    k = slub(hardened=True, seed=5)
    s = k.cache("kmalloc-64")
    a, b = k.kmem_cache_alloc(s), k.kmem_cache_alloc(s)
    k.kfree(a)
    k.kfree(b)
    assert s.offset == 32 and k.load_word(b + 32) == a ^ s.random ^ swab64(b + 32)
    assert s.random and s.random != k.cache("kmalloc-32").random


def test_a_shuffled_list_hands_out_each_object_once_in_another_order():
    k = slub(freelist_random=True, seed=1)
    s = k.cache("kmalloc-128")
    objects = [k.kmem_cache_alloc(s) for _ in range(32)]
    slab = k.slab_of(objects[0])
    assert objects != sorted(objects) and sorted(objects) == list(s.objects(slab))
    again = slub(freelist_random=True, seed=1)
    assert [again.kmem_cache_alloc(again.cache("kmalloc-128")) for _ in range(32)] == objects
    k.check()


def test_an_address_that_is_no_memory_is_a_fault():
    k = slub()
    with pytest.raises(KernelBug, match="unable to handle page fault for address: ffffea"):
        k.kfree(k.layout.page_offset + (1 << 40))
    with pytest.raises(KernelBug, match=r"general protection|page fault"):
        k.kfree(0x7FFF_1234_5000)
    with pytest.raises(KernelBug, match=r"address: ffffc90000000000\n#PF: supervisor read access"):
        k.read(0xFFFF_C900_0000_0000, 8)
    with pytest.raises(KernelBug, match="NULL pointer dereference, address: 0000000000000008"):
        k.load_word(8)
    with pytest.raises(KernelBug, match="non-canonical address 0x6b6b6b6b6b6b6b6b"):
        k.load_word(0x6B6B_6B6B_6B6B_6B6B)
    k.check()


def test_a_page_that_is_no_slab_is_freed_as_a_large_allocation_with_a_warning():
    k = slub()
    pfn = k.allocator.alloc_pages(c.GFP_KERNEL)
    before = free_frames(k.memory)
    k.kfree(k.layout.page_address(pfn) + 8)
    assert free_frames(k.memory) == before + 1
    assert any("free_large_kmalloc" in line for line in report(k))
    assert f"object pointer: 0x{k.layout.page_address(pfn) + 8:016x}" in report(k)
    k.check()


def test_large_allocations_are_whole_pages_up_to_four_mebibytes():
    k = slub(pages=2048)
    before = free_frames(k.memory)
    a = k.kmalloc(8193)
    assert k.slab_of(a) is None and k.ksize(a) == 16384 and before - free_frames(k.memory) == 4
    assert k.memory.nodes[0].vm_stat["nr_slab_unreclaimable"] >= 4
    k.kfree(a)
    assert free_frames(k.memory) == before
    assert k.kmalloc((4 << 20) + 1) is None
    with pytest.raises(InputError):
        k.kmalloc(-1)
    assert k.ksize(k.kmalloc(4 << 20)) == 4 << 20


def test_an_object_of_another_cache_goes_home_where_the_kernel_looks():
    k = slub(hardened=True)
    one, other = k.kmem_cache_create("one", 100), k.kmem_cache_create("other", 400)
    a = k.kmem_cache_alloc(one)
    k.kmem_cache_free(other, a)
    assert any("cache_from_obj: Wrong slab cache. other but object is from one" in line for line in report(k))
    k.check()
    k.kmem_cache_free(other, k.kmalloc(9000))
    assert any("Object is not a Slab page!" in line for line in report(k))


def test_where_it_does_not_look_the_object_lands_on_the_wrong_list():
    k = slub()
    one, other = k.kmem_cache_create("one", 104), k.kmem_cache_create("other", 400)
    a, b = k.kmem_cache_alloc(one), k.kmem_cache_alloc(one)
    k.kmem_cache_free(other, a)
    assert not report(k)
    # Its free pointer was written where objects of the other cache have theirs: into a neighbour.
    assert a + other.offset >= b
    with pytest.raises(KernelBug, match="NULL pointer dereference"):
        k.kmem_cache_free(other, k.kmalloc(9000))


def test_caches_of_like_objects_share_their_slabs():
    k = slub()
    first = k.kmem_cache_create("first", 200)
    assert k.kmem_cache_create("second", 196) is first and first.refcount == 2 and first.aliases == ["second"]
    assert k.kmem_cache_create("accounted", 200, flags=sl.SLAB_ACCOUNT) is not first
    assert k.kmem_cache_create("with a region", 200, usersize=8) is not first
    assert k.kmem_cache_create("rcu", 200, flags=sl.SLAB_TYPESAFE_BY_RCU) is not first
    assert k.kmem_cache_create("ctor", 200, ctor=lambda s, obj: None) is not first
    assert k.kmem_cache_create("smaller", 190) is not first          # A word wasted in each object is too much.
    assert k.cache("second") is first
    # No kmalloc cache is shared: each may be copied to user space.
    assert k.kmem_cache_create("like kmalloc", 64).name == "like kmalloc"
    alone = slub(nomerge=True)
    assert alone.kmem_cache_create("first", 200) is not alone.kmem_cache_create("second", 200)


def test_merged_caches_clear_the_larger_object():
    k = slub()
    small = k.kmem_cache_create("small", 193)
    assert k.kmem_cache_create("large", 200) is small and (small.object_size, small.inuse) == (200, 200)
    a = k.kmem_cache_alloc(small)
    k.write(a, b"\xff" * 200)
    k.kmem_cache_free(small, a)
    assert k.kmem_cache_alloc(small, c.GFP_KERNEL | c._GFP_ZERO) == a and k.read(a, 200) == bytes(200)


def test_a_constructed_object_stays_constructed():
    k = slub()
    s = k.kmem_cache_create("inode", 64, ctor=lambda s, obj: s.slub.write(obj, b"constructed"))
    a = k.kmem_cache_alloc(s)
    k.kmem_cache_free(s, a)
    assert k.kmem_cache_alloc(s) == a and k.read(a, 11) == b"constructed" and s.offset == 64


def test_a_cache_with_objects_left_cannot_be_destroyed():
    k = slub()
    s = k.kmem_cache_create("leaky", 96, flags=sl.SLAB_RECLAIM_ACCOUNT)
    a = k.kmem_cache_alloc(s)
    assert not k.kmem_cache_destroy(s, caller="module_exit")
    text = "\n".join(report(k))
    assert "BUG leaky (Not tainted): Objects remaining in leaky on __kmem_cache_shutdown()" in text
    assert f"Object 0x{a:016x} @offset=0" in text
    assert "kmem_cache_destroy leaky: Slab cache still has objects when called from module_exit" in text
    k.check()


def test_pages_of_type_safe_objects_wait_for_a_grace_period():
    k = slub()
    s = k.kmem_cache_create("sighand", 4096, flags=sl.SLAB_TYPESAFE_BY_RCU)
    a = k.kmem_cache_alloc(s)
    k.kmem_cache_free(s, a)
    before = free_frames(k.memory)
    k.kmem_cache_shrink(s)
    assert free_frames(k.memory) == before and len(k.rcu_pending) == 1
    k.check()
    k.rcu_barrier()
    assert free_frames(k.memory) > before
    k.check()


@pytest.mark.parametrize(("name", "size", "flags"), [("", 8, 0), ("big", (4 << 20) + 1, 0), ("odd", 8, 1)])
def test_a_cache_that_makes_no_sense_is_refused(name, size, flags):
    k = slub()
    assert k.kmem_cache_create(name, size, flags=flags) is None
    assert "failed with error -22" in report(k)[-1]
    with pytest.raises(KernelPanic, match=r"Failed to create slab '.*'. Error -22"):
        k.kmem_cache_create(name, size, flags=flags | sl.SLAB_PANIC)
    k.check()
    with pytest.raises(KernelBug, match="divide error"):
        k.kmem_cache_create("nothing", 0)


def test_out_of_memory_is_told_and_gives_nothing():
    k = slub(pages=512)
    s = k.cache("kmalloc-4k")
    while k.kmem_cache_alloc(s, c.GFP_NOWAIT | c._GFP_NOWARN) is not None:
        pass
    assert not any("SLUB" in line for line in report(k))
    assert k.kmem_cache_alloc(s, c.GFP_NOWAIT) is None
    text = [line for line in report(k) if not line.startswith(("Mem", "Node"))]
    assert "SLUB: Unable to allocate memory on node -1, gfp=0x800(GFP_NOWAIT)" in text
    assert "  cache: kmalloc-4k, object size: 4096, buffer size: 4096, default order: 3, min order: 0" in text
    k.check()


def test_flags_that_make_no_sense_are_dropped_and_named():
    k = slub()
    assert k.kmalloc(64, c.GFP_KERNEL | c._GFP_HIGHMEM)
    assert report(k) == ["Unexpected gfp: 0x2 (__GFP_HIGHMEM). Fixing up to gfp: 0xcc0 (GFP_KERNEL). Fix your code!"]


def test_slub_debug_names_caches_and_skips_what_would_grow():
    k = slub(slub_debug="fzq,kmalloc-1*;-,kmalloc-64")
    assert "slub_debug option 'q' unknown. skipped" in report(k)
    assert k.cache("kmalloc-16").flags == k.cache("kmalloc-128").flags == sl.SLAB_CONSISTENCY_CHECKS | sl.SLAB_RED_ZONE
    assert not k.cache("kmalloc-64").flags and not k.cache("kmalloc-8").flags
    small = slub(slub_debug="FZPUO")
    assert small.cache("kmalloc-4k").flags == sl.SLAB_CONSISTENCY_CHECKS and small.cache("kmalloc-64").flags & sl.SLAB_POISON


def test_events_carry_the_kernels_fields():
    k = slub()
    s = k.kmem_cache_create("thing", 100)
    with k.memory.trace.recording("kmem:k*") as events:
        a = k.kmalloc(100, caller="f")
        k.kfree(a, caller="g")
        b = k.kmem_cache_alloc(s)
        k.kmem_cache_free(s, b)
        k.kmalloc(9000, nid=0)
    assert [event.name for event in events] == ["kmem:kmalloc", "kmem:kfree", "kmem:kmem_cache_alloc", "kmem:kmem_cache_free",
                                                "kmem:kmalloc_node"]
    assert events[0].fields == {"call_site": "f", "ptr": a, "bytes_req": 100, "bytes_alloc": 128, "gfp_flags": "GFP_KERNEL"}
    assert events[1].fields == {"call_site": "g", "ptr": a} and events[3]["name"] == "thing"
    assert (events[2]["bytes_req"], events[2]["bytes_alloc"]) == (100, 104)
    assert (events[4]["bytes_alloc"], events[4]["node"]) == (12288 + 4096, 0)
