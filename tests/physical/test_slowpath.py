"""The slow path: which steps a request goes through, and that it always ends."""

import json
from pathlib import Path

import pytest

from mmsim import constants as c
from mmsim.errors import KernelPanic
from mmsim.physical.freelist import AllocContext
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.show_mem import show_mem
from mmsim.physical.slowpath import STEPS, SlowPathHooks, Step
from mmsim.physical.zone import Zone
from tests.physical.test_page_alloc import allocator_of, two_zones


def exhausted() -> tuple[PageAllocator, list[int]]:
    """A machine with all memory taken that an ordinary request can get, in single pages."""
    allocator = two_zones()
    taken = []
    while (pfn := allocator.alloc_pages(c.GFP_USER | c._GFP_NOWARN)) is not None:
        taken.append(pfn)
    return allocator, taken


def steps(allocator: PageAllocator, gfp: int, order: int) -> list[Step]:
    return list(allocator.alloc_steps(gfp | c._GFP_NOWARN, order))


def names(allocator: PageAllocator, gfp: int, order: int) -> list[str]:
    return [step.name for step in steps(allocator, gfp, order)]


def test_a_request_that_the_fast_path_serves_has_two_steps():
    assert names(two_zones(), c.GFP_KERNEL, 0) == ["fast_path", "allocated"]


def test_without_reclaim_an_ordinary_request_ends_after_one_round():
    allocator, _ = exhausted()
    assert names(allocator, c.GFP_KERNEL, 0) == [
        "fast_path", "wake_kswapd", "first_attempt", "retry", "reclaim", "should_reclaim_retry", "oom", "failed"]
    assert set(names(allocator, c.GFP_KERNEL, 2)) <= {"fast_path", *STEPS}


def test_an_atomic_request_takes_from_the_reserve_that_others_must_leave():
    allocator, _ = exhausted()
    assert names(allocator, c.GFP_ATOMIC, 0) == ["fast_path", "wake_kswapd", "first_attempt", "allocated"]


def test_an_atomic_request_fails_without_reclaim_once_its_reserve_is_used_up():
    allocator, _ = exhausted()
    while allocator.alloc_pages(c.GFP_ATOMIC | c._GFP_NOWARN) is not None:
        pass
    last = steps(allocator, c.GFP_ATOMIC, 0)[-1]
    assert (last.name, last.decision) == ("failed", "the caller may not sleep, so it cannot reclaim")
    # Those who free memory may take the very last page.
    assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_MEMALLOC) is not None


@pytest.mark.parametrize(("gfp", "order", "reason"), [
    (c.GFP_KERNEL, 4, "order 4 is costly"),
    (c.GFP_KERNEL | c._GFP_NORETRY, 1, "one round is all"),
    (c.GFP_KERNEL | c._GFP_NORETRY, 9, "compaction cannot help"),
    (c.GFP_KERNEL | c._GFP_RETRY_MAYFAIL, 0, "something better to do than to kill"),
    (c.GFP_KERNEL | c._GFP_RETRY_MAYFAIL, 5, "does not make blocks of order 5"),
    (c.GFP_KERNEL | c._GFP_THISNODE, 0, "may not free memory of this node"),
    (c.GFP_KERNEL | c._GFP_DMA32, 0, "a low zone is wanted"),
    (c.GFP_KERNEL, 0, "made no progress"),
    (c.GFP_DMA | c._GFP_DIRECT_RECLAIM, 0, "no zone of this machine"),
])
def test_a_failed_request_says_why(gfp, order, reason):
    allocator, _ = exhausted()
    # DMA32 still has what it keeps from requests for Normal.
    while allocator.alloc_pages(c.GFP_USER | c._GFP_DMA32 | c._GFP_NOWARN) is not None:
        pass
    last = steps(allocator, gfp, order)[-1]
    assert last.name == "failed" and reason in last.decision


def test_memory_that_is_free_but_in_single_pages_fails_a_high_order_for_want_of_a_block():
    allocator, taken = exhausted()
    while (pfn := allocator.alloc_pages(c.GFP_USER | c._GFP_MEMALLOC | c._GFP_NOWARN)) is not None:
        taken.append(pfn)
    for pfn in taken:
        if pfn & 1:
            allocator.free_pages(pfn)
    failed = steps(allocator, c.GFP_KERNEL, 4)[-1]
    assert [zone["verdict"] for zone in failed.numbers["zones"]] == ["no free block of order 4 or more"] * 2


def test_the_oom_killer_is_asked_for_low_orders_only_and_what_it_frees_is_used():
    allocator, taken = exhausted()
    asked: list[int] = []

    def kill(context: AllocContext, order: int, gfp: int) -> bool:
        asked.append(order)
        for _ in range(512):
            allocator.free_pages(taken.pop())
        return True

    allocator.hooks.oom = kill
    assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN, 4) is None and asked == []
    assert allocator.alloc_pages(c.GFP_KERNEL, 0) is not None and asked == [0]


def test_direct_reclaim_is_followed_by_a_drain_when_its_pages_hide_on_per_cpu_lists():
    allocator, taken = exhausted()
    # Free what reclaim frees, without lists that overflow: it stays on the CPU's lists.
    for zone in allocator.memory.zones():
        zone.pageset[0].high = 1 << 20

    def reclaim(context: AllocContext, order: int, gfp: int) -> int:
        for _ in range(600):
            allocator.free_pages(taken.pop())
        return 600

    allocator.hooks.reclaim = reclaim
    assert names(allocator, c.GFP_KERNEL, 0)[-3:] == ["reclaim", "drain", "allocated"]


def test_compaction_comes_first_for_costly_orders_and_its_captured_block_is_handed_out():
    allocator, taken = exhausted()
    victim = max(pfn for pfn in taken if pfn % 16 == 0)
    block = list(range(victim, victim + 16))
    if not set(block) <= set(taken):
        pytest.skip("the frames of one block went to different users")
    priorities: list[int] = []

    def compact(context: AllocContext, order: int, gfp: int, alloc_flags: int, priority: int) -> tuple[int, int | None]:
        priorities.append(priority)
        for pfn in block:
            allocator.memory.frames.refcount[pfn] = 0
        return c.COMPACT_SUCCESS, victim

    allocator.hooks.compact = compact
    assert allocator.alloc_pages(c.GFP_KERNEL, 4) == victim
    assert priorities == [c.COMPACT_PRIO_ASYNC]
    assert (allocator.memory.counters["compact_stall"], allocator.memory.counters["compact_success"]) == (1, 1)


def test_compaction_that_keeps_failing_is_tried_with_more_effort_and_then_given_up():
    allocator, _ = exhausted()
    priorities: list[int] = []

    def compact(context: AllocContext, order: int, gfp: int, alloc_flags: int, priority: int) -> tuple[int, int | None]:
        priorities.append(priority)
        return c.COMPACT_COMPLETE, None

    allocator.hooks.compact = compact
    allocator.hooks.reclaim = lambda context, order, gfp: 1
    assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN, 2) is None
    assert priorities == [c.COMPACT_PRIO_ASYNC, c.COMPACT_PRIO_SYNC_LIGHT, c.COMPACT_PRIO_SYNC_FULL]


def test_without_progress_a_retry_happens_at_most_16_times():
    allocator, _ = exhausted()
    rounds: list[int] = []
    allocator.hooks.reclaim = lambda context, order, gfp: rounds.append(order) or 0  # type: ignore[func-returns-value]
    # Everything seems reclaimable, so it always looks worth another try.
    allocator.hooks.reclaimable = lambda zone: zone.managed_pages
    assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN) is None
    assert len(rounds) == c.MAX_RECLAIM_RETRIES + 1


def test_progress_that_never_leads_anywhere_is_reported_as_a_livelock():
    allocator, _ = exhausted()
    allocator.hooks = SlowPathHooks(reclaim=lambda context, order, gfp: 1, reclaimable=lambda zone: zone.managed_pages,
                                    max_rounds=50)
    with pytest.raises(KernelPanic, match="livelock: 50 rounds"):
        allocator.alloc_pages(c.GFP_KERNEL)


def test_nofail_uses_the_reserves_and_panics_only_when_nothing_is_left():
    allocator, _ = exhausted()
    got = 0
    with pytest.raises(KernelPanic, match="__GFP_NOFAIL request of order 0"):
        for _ in range(10_000):
            assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOFAIL) is not None
            got += 1
    assert got > 0
    assert sum(zone.nr_free_pages for zone in allocator.memory.zones()) == 0


def test_nofail_without_sleeping_fails_with_a_warning():
    allocator, _ = exhausted()
    while allocator.alloc_pages(c.GFP_ATOMIC | c._GFP_NOWARN) is not None:
        pass
    assert allocator.alloc_pages(c.GFP_NOWAIT | c._GFP_NOFAIL | c._GFP_NOWARN) is None
    assert any("__GFP_NOFAIL without __GFP_DIRECT_RECLAIM" in line for line in allocator.memory.klog.lines())


def test_a_victim_of_the_oom_killer_gets_half_of_the_reserve():
    allocator, _ = exhausted()
    assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN) is None
    allocator.hooks.oom_victim = True
    assert allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN) is not None


def test_the_last_resort_gives_reserved_pageblocks_back():
    allocator, _ = exhausted()
    zone: Zone = allocator.memory.nodes[0].zones[c.ZONE_NORMAL]
    # A reserve of one pageblock, all free: ordinary requests may not touch it.
    from mmsim.physical.buddy import add_to_free_list
    victims = [pfn for pfn in range(zone.start_pfn, zone.end_pfn, 512)
               if not any(allocator.memory.frames.free_block[pfn:pfn + 512])]
    start = next(pfn for pfn in victims if all(allocator.memory.frames.refcount[pfn:pfn + 512]))
    for pfn in range(start, start + 512):
        allocator.memory.frames.refcount[pfn] = 0
    allocator.memory.frames.pageblock_mt[start >> 9] = c.MIGRATE_HIGHATOMIC
    zone.nr_reserved_highatomic = 512
    zone.nr_free_pages += 512
    add_to_free_list(zone, start, 9, c.MIGRATE_HIGHATOMIC)
    allocator.hooks.reclaimable = lambda z: z.managed_pages
    found = steps(allocator, c.GFP_KERNEL, 0)
    assert found[-1].name == "allocated" and zone.nr_reserved_highatomic == 0
    assert any(step.decision == "yes: a reserved pageblock was given back" for step in found)


def test_the_answers_of_compaction_have_the_compilers_values():
    values = json.loads((Path(__file__).parents[1] / "golden" / "consts" / "consts-5.17.json").read_text())["values"]
    for name, value in (values["compact_result"] | values["compact_priority"]).items():
        if hasattr(c, name):
            assert getattr(c, name) == value, name
    assert [name.removeprefix("COMPACT_").lower() for name in sorted(values["compact_result"], key=values["compact_result"].get)] \
        == list(c.COMPACT_RESULT_NAMES)


# -- what it says ------------------------------------------------------------------------------------------

def test_kswapd_is_woken_once_and_told_the_largest_order():
    allocator, _ = exhausted()
    node = allocator.memory.nodes[0]
    assert node.kswapd_awake and node.kswapd_highest_zoneidx == c.ZONE_NORMAL
    node.kswapd_awake = False
    with allocator.memory.trace.recording("vmscan:mm_vmscan_wakeup_kswapd") as events:
        allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN, 3)
        allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN, 1)
    assert [(event["nid"], event["zid"], event["order"]) for event in events] == [(0, 2, 3)]
    assert node.kswapd_order == 3


def test_the_failure_report_has_the_kernels_format_and_comes_once_in_ten_seconds():
    allocator, _ = exhausted()
    klog, clock = allocator.memory.klog, allocator.memory.clock
    allocator.memory.comm = "hog"
    for _ in range(3):
        allocator.alloc_pages(c.GFP_KERNEL, 4)
    lines = klog.lines()
    assert lines[0] == ("hog: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL), "
                        "nodemask=(null),cpuset=/,mems_allowed=0")
    assert lines[1] == "Mem-Info:" and lines.count("Mem-Info:") == 1
    clock.advance(11_000_000_000)
    allocator.alloc_pages(c.GFP_KERNEL, 4)
    assert "warn_alloc: 2 callbacks suppressed" in klog.lines() and klog.lines().count("Mem-Info:") == 2


def test_each_step_is_an_event_of_the_trace():
    allocator, _ = exhausted()
    expected = names(allocator, c.GFP_KERNEL, 4)[1:]
    with allocator.memory.trace.recording("mmsim:slowpath") as events:
        allocator.alloc_pages(c.GFP_KERNEL | c._GFP_NOWARN, 4)
    assert [event["step"] for event in events] == expected


def test_the_memory_report_shows_zones_and_free_blocks_as_a_recorded_kernel_does():
    allocator = allocator_of((0, c.ZONE_DMA32, 4096, 8192))
    zone = allocator.memory.nodes[0].zones[c.ZONE_DMA32]
    zone.watermark, zone.watermark_boost = [452, 565, 678], 512
    lines = show_mem(allocator.memory)
    assert ("Node 0 DMA32 free:16384kB boost:2048kB min:3856kB low:4308kB high:4760kB reserved_highatomic:0KB "
            "active_anon:0kB inactive_anon:0kB active_file:0kB inactive_file:0kB unevictable:0kB writepending:0kB "
            "present:16384kB managed:16384kB mlocked:0kB bounce:0kB free_pcp:0kB local_pcp:0kB free_cma:0kB") in lines
    assert "Node 0 DMA32: 0*4kB 0*8kB 0*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 4*4096kB (M) = 16384kB" \
        in lines
    assert lines[-4:] == ["4096 pages RAM", "0 pages HighMem/MovableOnly", "0 pages reserved", "0 pages cma reserved"]
    node_line = next(line for line in lines if line.startswith("Node 0 active_anon"))
    assert node_line == (
        "Node 0 active_anon:0kB inactive_anon:0kB active_file:0kB inactive_file:0kB unevictable:0kB isolated(anon):0kB "
        "isolated(file):0kB mapped:0kB dirty:0kB writeback:0kB shmem:0kB shmem_thp: 0kB shmem_pmdmapped: 0kB anon_thp: 0kB "
        "writeback_tmp:0kB kernel_stack:0kB pagetables:0kB all_unreclaimable? no")
