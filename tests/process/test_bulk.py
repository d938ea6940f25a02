"""Accesses in runs, and the short way of a first write, leave exactly what one readable step after the other leaves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE
from mmsim.machine import Machine
from mmsim.process.populate import Access
from mmsim.process.task import Process
from mmsim.reference import ref256
from mmsim.units import PAGE_SIZE

P = PAGE_SIZE
A, PAGES = 0x3000_0000 + 480 * P, 96          # across the border of two page tables

steps = st.lists(st.tuples(st.sampled_from(["write", "read", "dontneed", "readonly", "writable", "fork", "drain", "single"]),
                           st.integers(0, PAGES - 1), st.integers(1, PAGES)), max_size=12)


def everything(machine: Machine, process: Process) -> tuple[object, ...]:
    user, frames = machine.user, machine.frames
    entries = sorted(process.space.entries())
    pfns = sorted(user.mapping)
    return (entries, pfns, [frames.flags[pfn] for pfn in pfns], [frames.refcount[pfn] for pfn in pfns],
            [frames.mapcount[pfn] for pfn in pfns], [user.index[pfn] for pfn in pfns], user.lru.add, dict(machine.counters),
            process.minflt, process.majflt, process.mm.rss, user.nr_anon_mapped,
            [[list(pages) for pages in pageset.lists] + [pageset.count, pageset.free_factor]
             for zone in machine.zones for pageset in zone.pageset], [dict(zone.numa_stat) for zone in machine.zones])


def run(script: list[tuple[str, int, int]], traced: bool) -> tuple[object, ...]:
    machine = ref256()
    # While somebody listens, everything takes the long way.
    stop = machine.trace.subscribe(lambda event: None, "nothing:*") if traced else (lambda: None)
    process = machine.spawn()
    process.mmap(A, PAGES * P, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    results: list[object] = []
    for what, first, count in script:
        start, count = A + first * P, min(count, PAGES - first)
        if what in ("write", "read"):
            if traced:
                done = 0
                while done < count and not process.touch(start + done * P, Access.WRITE if what == "write" else
                                                         Access.READ).outcome.value:
                    done += 1
                results.append(done)
            else:
                results.append(process.touch_range(start, count, what == "write"))
        elif what == "single":
            results.append(process.touch(start, Access.WRITE).faults)
        elif what == "dontneed":
            process.madvise(start, count * P, MADV_DONTNEED)
        elif what == "drain":
            machine.user.lru.lru_add_drain()
        elif what == "fork":
            process.fork()
        else:
            process.mprotect(start, count * P, 3 if what == "writable" else 1)
    stop()
    machine.process_table.check()
    return (results, *everything(machine, process))


@settings(max_examples=25, deadline=None)
@given(steps)
def test_runs_of_pages_and_single_steps_leave_the_same_machine(script: list[tuple[str, int, int]]) -> None:
    assert run(script, traced=False) == run(script, traced=True)


def test_a_thousand_pages_in_one_go_are_a_thousand_first_writes() -> None:
    script = [("write", 0, PAGES), ("dontneed", 10, 50), ("write", 0, PAGES), ("fork", 0, 1), ("write", 3, 40)]
    assert run(script, traced=False) == run(script, traced=True)
