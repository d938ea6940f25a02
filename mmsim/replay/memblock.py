"""memblock against the kernel's own memblock.c: both region lists and the result after every call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsim.boot.memblock import Memblock
from mmsim.boot.regions import RegionList
from mmsim.errors import InputError
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.rules import RELEASES, rules_for

__all__ = ["random_calls", "unit_tests", "run_operation"]

Rows = list[list[int]]


def _rows(regions: RegionList) -> Rows:
    return [[region.base, region.size, region.nid, region.flags] for region in regions]


def _restore(regions: RegionList, rows: Rows) -> None:
    """Make a list what the recording says, so that one disagreement does not bring all later ones with it."""
    if _rows(regions) == rows:
        return
    regions.delete(0, len(regions))
    for base, size, nid, flags in rows:
        regions.bases.append(base)
        regions.ends.append(base + size)
        regions.nids.append(nid)
        regions.flags.append(flags)
    regions.total_size = sum(size for _, size, _, _ in rows)


def _done(action: Callable[..., None]) -> Callable[..., int]:
    """A call that returns nothing, recorded as 0."""
    def call(*args: int) -> int:
        action(*args)
        return 0
    return call


def _operations(memblock: Memblock) -> dict[str, Callable[..., Any]]:
    """The calls of the recordings, by the recordings' names."""
    def search_pfn_nid(pfn: int) -> list[int]:
        found = memblock.search_pfn_nid(pfn)
        return list(found) if found else [-1, 0, 0]

    def set_attribute(name: str) -> Callable[[int], int]:
        def change(value: int) -> int:
            setattr(memblock, name, bool(value))
            return 0
        return change

    return {
        "add": memblock.add, "add_node": memblock.add_node, "remove": memblock.remove, "reserve": memblock.reserve,
        "phys_free": memblock.phys_free, "free": _done(memblock.free), "set_node": memblock.set_node,
        "mark_hotplug": memblock.mark_hotplug, "clear_hotplug": memblock.clear_hotplug, "mark_mirror": memblock.mark_mirror,
        "mark_nomap": memblock.mark_nomap, "clear_nomap": memblock.clear_nomap,
        "trim": _done(memblock.trim_memory), "trim_memory": _done(memblock.trim_memory),
        "cap_range": _done(memblock.cap_memory_range), "enforce_limit": _done(memblock.enforce_memory_limit),
        "limit_remove_map": _done(memblock.mem_limit_remove_map),
        "set_current_limit": _done(memblock.set_current_limit),
        "set_bottom_up": set_attribute("bottom_up"), "movable_node": set_attribute("movable_node"),
        "phys_alloc_range": memblock.phys_alloc_range, "phys_alloc_try_nid": memblock.phys_alloc_try_nid,
        "alloc_range_nid": lambda size, align, start, end, nid, exact:
            memblock.alloc_range_nid(size, align, start, end, nid, bool(exact)),
        "alloc_try_nid": memblock.alloc_try_nid, "alloc_try_nid_raw": memblock.alloc_try_nid_raw,
        "alloc_exact_nid": memblock.alloc_exact_nid_raw, "alloc_exact_nid_raw": memblock.alloc_exact_nid_raw,
        "phys_mem_size": memblock.phys_mem_size, "reserved_size": memblock.reserved_size,
        "start_of_DRAM": memblock.start_of_DRAM, "end_of_DRAM": memblock.end_of_DRAM,
        "is_memory": memblock.is_memory, "is_map_memory": memblock.is_map_memory, "is_reserved": memblock.is_reserved,
        "is_region_memory": memblock.is_region_memory, "is_region_reserved": memblock.is_region_reserved,
        "overlaps_memory": memblock.overlaps_memory,
        "overlaps_region": lambda name, base, size:
            (memblock.memory if name == "memory" else memblock.reserved).overlaps(base, size),
        "search_pfn_nid": search_pfn_nid,
        "free_ranges": lambda nid, flags: [list(found) for found in memblock.for_each_free_mem_range(nid, flags)],
        "free_ranges_rev": lambda nid, flags: [list(found) for found in memblock.for_each_free_mem_range_reverse(nid, flags)],
    }


def run_operation(memblock: Memblock, name: str, args: list[Any]) -> Any:
    """Make one recorded call; return what it returns, as recordings write it. Raise InputError for an unknown call."""
    operation = _operations(memblock).get(name.removeprefix("memblock_"))
    if operation is None:
        raise InputError(f"unknown memblock call {name!r}")
    result = operation(*args)
    return int(result) if isinstance(result, bool) else result


def _new(release: str) -> Memblock:
    memblock = Memblock(rules_for(release))
    memblock.allow_resize()
    return memblock


def _calls(memblock: Memblock, steps: list[dict[str, Any]], where: str) -> Iterator[Check]:
    """Make the recorded calls one after the other; one check a call: its result and both lists."""
    rows: dict[str, Rows] = {"mem": _rows(memblock.memory), "res": _rows(memblock.reserved)}
    lists = {"mem": memblock.memory, "res": memblock.reserved}
    for number, step in enumerate(steps):
        if "state" in step:
            state = step["state"]
            rows = {name: state[name] for name in lists}
            for name, regions in lists.items():
                _restore(regions, rows[name])
                regions.max = state.get(f"{name}_max", regions.max)
            memblock.bottom_up, memblock.movable_node = bool(state["bottom_up"]), bool(state["movable_node"])
            memblock.current_limit = state["limit"]
            continue
        result = run_operation(memblock, step["op"], step["args"])
        memblock.check()
        rows = {name: step.get(name, rows[name]) for name in lists}
        expected = (step["r"], rows["mem"], rows["res"], *step.get("max", ()))
        got = (result, _rows(memblock.memory), _rows(memblock.reserved),
               *((memblock.memory.max, memblock.reserved.max) if "max" in step else ()))
        yield same(f"{where}, call {number}: {step['op']}{tuple(step['args'])} -> result, memory, reserved", expected, got)
        for name, regions in lists.items():
            _restore(regions, rows[name])


def _first_difference(record: Record, release: str) -> int | None:
    """The first recorded call to which another release answers differently, by the model."""
    for number, check in enumerate(_calls(_new(release), record["ops"], "")):
        if not check.agrees:
            return number
    return None


@replays("memblock/random*.jsonl*")
def random_calls(path: Path) -> Iterator[Check]:
    """After each random call: its result and both region lists; and the first call at which 6.1 and 6.12 answer
    differently.
    """
    for record in read_jsonl(path):
        where = f"line {record.line} (seed {record['seed']}, {record['kind']})"
        kernel = record.get("kernel", "5.17")
        yield from _calls(_new(kernel), record["ops"], where)
        # What came first of a call that another release answers differently was noted for these two, and where one differs.
        compared = {"6.1", "6.12"} if kernel == "5.17" else set()
        for release in RELEASES:
            if release != kernel and release in compared | set(record["differs"]):
                yield same(f"{where}: first call to which {release} answers differently",
                           record["differs"].get(release), _first_difference(record, release))


@replays("memblock/unit-*.jsonl*")
def unit_tests(path: Path) -> Iterator[Check]:
    """After each call of the kernel's memblock unit tests: its result and both region lists, under the release in the
    file's name.
    """
    named = re.match(r"unit-(\d+\.\d+)", path.name)
    if not named or named[1] not in RELEASES:
        raise InputError(f"the name does not say a known release (unit-5.17, unit-6.12): {path.name}")
    for record in read_jsonl(path):
        yield from _calls(_new(named[1]), record["steps"], f"line {record.line} ({record['test']})")
