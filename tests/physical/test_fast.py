"""The short ways through the allocator end where the long ones do: every column, list and counter."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim import constants as c
from mmsim.config import Config
from mmsim.errors import KernelError
from mmsim.machine import Machine
from mmsim.physical.pcp import drain_all_pages
from mmsim.reference import REF256_MAP, big64, qemu_map, qemu_platform, ref256
from mmsim.units import GIB, MIB

MASKS = [c.GFP_KERNEL, c.GFP_HIGHUSER_MOVABLE, c.GFP_ATOMIC, c.GFP_KERNEL | c._GFP_RECLAIMABLE, c.GFP_KERNEL | c._GFP_DMA,
         c.GFP_HIGHUSER_MOVABLE | c._GFP_WRITE, c.GFP_KERNEL | c._GFP_THISNODE, c.GFP_KERNEL | c._GFP_ZERO]
MACHINES = {
    "ref256": ref256,
    "two nodes": lambda: Machine.boot(qemu_map(512 * MIB), "numa=fake=2", platform=qemu_platform(512 * MIB, 4)),
    "cma": lambda: Machine.boot(REF256_MAP, "cma=32M", image=ref256().image.replace(dma_cma=True), platform=qemu_platform(256 * MIB)),
    "without cma": lambda: Machine.boot(REF256_MAP, config=Config(cma=False), platform=qemu_platform(256 * MIB)),
    "normal": lambda: Machine.boot(qemu_map(5 * GIB), platform=qemu_platform(5 * GIB)),
}


def state(machine):
    """All that an allocation can change."""
    frames = machine.frames
    zones = [(zone.nr_free_pages, zone.nr_free_cma_pages, zone.numa_stat, zone.watermark_boost, zone.boosted_watermark,
              sorted(zone.free_blocks()), [(pcp.count, pcp.free_factor, pcp.other_types, [list(pages) for pages in pcp.lists])
                                           for pcp in zone.pageset]) for zone in machine.zones]
    return (zones, dict(machine.counters), bytes(frames.refcount), bytes(frames.flags), bytes(frames.mapcount),
            bytes(frames.compound), machine.dmesg_lines())


STEPS = st.lists(st.one_of(
    st.tuples(st.just("alloc"), st.sampled_from(MASKS), st.integers(1, 200)),
    st.tuples(st.just("free"), st.integers(0, 10**6), st.integers(1, 200)),
    st.tuples(st.just("run"), st.sampled_from(MASKS), st.integers(1, 90)),
    st.tuples(st.just("order"), st.sampled_from(MASKS), st.integers(1, 9)),
    st.tuples(st.just("bad"), st.integers(0, 10**6), st.integers(0, 3)),
    st.tuples(st.just("cpu"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("drain"), st.just(0), st.just(0)),
    st.tuples(st.just("trace"), st.just(0), st.just(0))), max_size=40)


def _run(machine, mask, count):
    """Pages for a run of faults: on the short way together, on the long one by one."""
    if not machine.allocator.fast:
        return [pfn for _ in range(count) if (pfn := machine.alloc_pages(mask)) is not None]
    pfns = []
    while len(pfns) < count and (more := machine.allocator.alloc_single_pages(mask, count - len(pfns))):
        pfns += more
    return pfns


def play(machine, steps):
    """Run a script; return what came back from each request."""
    held, results = [], []
    for what, first, second in steps:
        if what == "alloc":
            for _ in range(second):
                pfn = machine.alloc_pages(first)
                results.append(pfn)
                if pfn is not None:
                    held.append((pfn, 0))
        elif what == "run":
            pfns = _run(machine, first, second)
            results += pfns
            held += [(pfn, 0) for pfn in pfns]
        elif what == "order":
            results.append(machine.alloc_pages(first, second))
            if results[-1] is not None:
                held.append((results[-1], second))
        elif what == "free":
            for _ in range(min(second, len(held))):
                machine.free_pages(*held.pop(first % len(held)))
        elif what == "bad" and held:
            pfn, order = held[first % len(held)]
            field = (machine.frames.mapcount, machine.frames.flags, machine.frames.refcount)[second % 3]
            old, field[pfn] = field[pfn], 1
            try:
                if second == 2 and not order:
                    machine.free_pages(pfn)         # twice: the second time it has no reference
                    held.remove((pfn, order))
                    machine.free_pages(pfn)
            except KernelError as error:
                results.append(str(error))
            if (pfn, order) in held:
                field[pfn] = old
        elif what == "cpu":
            machine.memory.run_on(first % machine.memory.nr_cpus)
        elif what == "drain":
            drain_all_pages(machine.memory)
        elif what == "trace":
            machine.trace.enabled = not machine.trace.enabled
    return results


@settings(deadline=None, max_examples=60)
@given(which=st.sampled_from(sorted(MACHINES)), steps=STEPS)
def test_the_short_way_and_the_long_way_leave_the_same_machine(which, steps):
    short, long = MACHINES[which](), MACHINES[which]()
    long.allocator.fast = False
    assert play(short, steps) == play(long, steps)
    assert state(short) == state(long)
    for zone in short.zones:
        for pcp in zone.pageset:
            pcp.check()


def test_down_to_the_last_page_both_ways_give_the_same_frames():
    short, long = ref256(), ref256()
    long.allocator.fast = False
    mask = c.GFP_KERNEL | c._GFP_NORETRY | c._GFP_NOWARN
    for machine in (short, long):
        machine.pages = []
        while (pfn := machine.alloc_pages(mask & ~c._GFP_DIRECT_RECLAIM)) is not None:
            machine.pages.append(pfn)
    assert short.pages == long.pages and state(short) == state(long)
    for machine in (short, long):
        for pfn in machine.pages[::3] + machine.pages[1::3] + machine.pages[2::3]:
            machine.free_pages(pfn)
    assert state(short) == state(long)


def test_a_plan_follows_the_zonelists():
    machine = big64()
    first = machine.alloc_pages()
    node = machine.nodes[0]
    node.zonelist = machine.nodes[1].zonelist
    second = [machine.alloc_pages() for _ in range(3)][-1]
    assert machine.frames.page_zone(first).nid == 0 and machine.frames.page_zone(second).nid == 1
