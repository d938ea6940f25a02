"""golden/buddy: free lists, stealing, per-CPU lists and whole requests, frame by frame as the kernel's own C."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmsim.config import Config
from mmsim.constants import (
    _GFP_MEMALLOC,
    ALLOC_HARDER,
    ALLOC_KSWAPD,
    ALLOC_NO_WATERMARKS,
    MIGRATE_MOVABLE,
    PAGEBLOCK_ORDER,
)
from mmsim.errors import InputError
from mmsim.physical.buddy import _free_one_page, add_to_free_list, mod_zone_freepage_state
from mmsim.physical.fallback import reserve_highatomic_pageblock, unreserve_highatomic_pageblock
from mmsim.physical.frames import PG
from mmsim.physical.free import free_pages, free_pages_core
from mmsim.physical.freelist import alloc_flags_nofragment, get_page_from_freelist, prepare_alloc_pages
from mmsim.physical.gfp import gfp_to_alloc_flags, parse_gfp
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page import prep_new_page
from mmsim.physical.pcp import drain_pages
from mmsim.physical.rmqueue import rmqueue, rmqueue_buddy
from mmsim.physical.watermark import zone_watermark_ok
from mmsim.physical.zone import Zone
from mmsim.physical.zonelist import build_zonerefs_node
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.trace import Event

__all__ = ["kernel_traces", "traces"]

def _run_lengths(pfns: Iterable[int]) -> list[list[int]]:
    """Pack PFNs as the recordings do: [first, stride, count], greedily."""
    runs: list[list[int]] = []
    for pfn in pfns:
        if runs:
            first, stride, count = runs[-1]
            if count == 1:
                runs[-1] = [first, pfn - first, 2]
                continue
            if pfn == first + stride * count:
                runs[-1][2] += 1
                continue
        runs.append([pfn, 0, 1])
    return runs


def _unpack(runs: Iterable[Iterable[int]]) -> list[int]:
    """The PFNs that [first, stride, count] runs stand for."""
    return [first + stride * index for first, stride, count in runs for index in range(count)]


def _lists(zone: Zone) -> dict[str, list[int]]:
    return {f"{order},{migratetype}": list(blocks)
            for order, area in enumerate(zone.free_area) for migratetype, blocks in enumerate(area.free_list) if blocks}


def _state(zone: Zone) -> dict[str, Any]:
    """A zone as the recordings dump it: lists from head to tail, pageblock types, the per-CPU lists of CPU 0."""
    pcp = zone.pageset[0]
    pageblocks = zone.frames.pageblock_mt[zone.start_pfn >> PAGEBLOCK_ORDER:(zone.end_pfn - 1 >> PAGEBLOCK_ORDER) + 1]
    return {"lists": _lists(zone), "pb": "".join(map(str, pageblocks)), "count": pcp.count, "ff": pcp.free_factor,
            "pcp": {str(pindex): list(pages) for pindex, pages in enumerate(pcp.lists) if pages}}


def _recorded_state(dump: dict[str, Any]) -> dict[str, Any]:
    pcp = dump["pcp"]
    return {"lists": {key: _unpack(runs) for key, runs in dump["lists"].items()}, "pb": dump["pb"], "count": pcp["count"],
            "ff": pcp["ff"], "pcp": {key: _unpack(runs) for key, runs in pcp["lists"].items()}}


def _compare(label: str, expected: dict[str, Any], got: dict[str, Any]) -> Check:
    """The check that two records are equal; a disagreement shows only the fields that differ, PFNs packed."""
    if expected == got:
        return Check(label, True)

    def differing(record: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for key, value in record.items():
            if key not in other or other[key] != value:
                if isinstance(value, dict):
                    value = differing(value, other.get(key, {}))
                elif key == "pfns" or "," in key:
                    value = _run_lengths(value)
                shown[key] = value
        return shown

    return Check(label, False, lambda: differing(expected, got), lambda: differing(got, expected))


class _Harness:
    """The machine of one recorded sequence: zones on one node without CMA, calls on CPU 0, the shortened slow path."""

    def __init__(self, max_pfn: int, nr_cpus: int = 1):
        if max_pfn > 1 << 26:
            raise InputError(f"frames up to {max_pfn:#x} are more than a replay holds (256 GiB)")
        self.memory = PhysicalMemory(max_pfn, nr_cpus=nr_cpus, config=Config(cma=False, numa=False))
        self.node = self.memory.add_node(0)
        self.zones: dict[int, Zone] = {zone.index: zone for zone in self.node.zones}
        self.kswapd = 0
        self.stolen: list[list[int]] = []
        self.memory.wakeup_kswapd = self._wakeup_kswapd
        self.memory.trace.subscribe(self._steal, "kmem:mm_page_alloc_extfrag")

    def _wakeup_kswapd(self, zone: Zone, gfp_flags: int, order: int, highest_zoneidx: int) -> None:
        self.kswapd |= 1 << zone.index

    def _steal(self, event: Event) -> None:
        count = self.stolen[-1][2] + 1 if self.stolen else 1
        self.stolen.append([event["fallback_migratetype"], event["fallback_order"], count])

    def add_zone(self, index: int, start_pfn: int, pages: int, present: int) -> Zone:
        zone = self.zones[index]
        zone.start_pfn, zone.spanned_pages, zone.present_pages = start_pfn, pages, present
        self.memory.frames.assign_zone(zone, start_pfn, start_pfn + pages)
        return zone

    def set_marks(self, zone: Zone, managed: int, wmark: list[int], reserve: list[int], batch: int, high: int) -> None:
        zone.managed_pages, zone.watermark, zone.lowmem_reserve = managed, list(wmark), list(reserve)
        for pcp in zone.pageset:
            pcp.batch, pcp.high = batch, high
        self.node.zonelist = build_zonerefs_node(self.node.zones)

    # -- the operations ------------------------------------------------------------------------------------

    def mark_lru(self, pfn: int) -> None:
        """The user puts the page on an LRU list: its first frame then counts as movable."""
        self.memory.frames.flags[pfn] |= PG["lru"]

    def balloc(self, index: int, order: int, migratetype: int, alloc_flags: int, lru: int) -> int:
        """Take a block from the free lists; an urgent one may lead to a reserved pageblock."""
        zone = self.zones[index]
        pfn = rmqueue_buddy(zone, order, migratetype, alloc_flags)
        if pfn is not None and order and alloc_flags & ALLOC_HARDER:
            reserve_highatomic_pageblock(zone, pfn)
        return self._taken(pfn, order, lru)

    def rmq(self, index: int, order: int, migratetype: int, alloc_flags: int, lru: int) -> int:
        """Take a block as get_page_from_freelist() does, per-CPU lists included."""
        zone = self.zones[index]
        pfn = rmqueue(zone, zone, order, 0, alloc_flags, migratetype)
        return self._taken(pfn, order, lru)

    def _taken(self, pfn: int | None, order: int, lru: int) -> int:
        if pfn is None:
            return -1
        prep_new_page(self.memory.frames, pfn, order)
        if lru:
            self.mark_lru(pfn)
        return pfn

    def alloc(self, gfp: int, order: int, lru: int) -> int:
        """A whole request: a pass at the low mark, one at the min mark, and one without marks for __GFP_MEMALLOC."""
        memory = self.memory
        context, alloc_flags = prepare_alloc_pages(memory, gfp, 0)
        if context.preferred_zone is None:
            return -1
        alloc_flags |= alloc_flags_nofragment(memory, context.preferred_zone, gfp)
        pfn = get_page_from_freelist(memory, gfp, order, alloc_flags, context)
        if pfn is None:
            alloc_flags = gfp_to_alloc_flags(gfp)
            if alloc_flags & ALLOC_KSWAPD:
                # The harness has no node to ask for: it notes every zone that the request may use.
                for zone in context.zones():
                    self._wakeup_kswapd(zone, gfp, order, context.highest_zoneidx)
            pfn = get_page_from_freelist(memory, gfp, order, alloc_flags, context)
        if pfn is None and gfp & _GFP_MEMALLOC:
            pfn = get_page_from_freelist(memory, gfp, order, ALLOC_NO_WATERMARKS, context)
        if pfn is None:
            return -1
        if lru:
            self.mark_lru(pfn)
        return pfn

    def bfree(self, pfn: int, order: int) -> int:
        """Give a block straight back to the free lists."""
        frames = self.memory.frames
        frames.flags[pfn] = frames.refcount[pfn] = 0
        _free_one_page(frames.page_zone(pfn), pfn, order, frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER])
        return 0

    def free(self, pfn: int, order: int) -> int:
        """Drop the last reference."""
        self.memory.frames.flags[pfn] &= ~PG["lru"]
        free_pages(self.memory, pfn, order)
        return 0

    def wok(self, index: int, order: int, mark: int, highest: int, alloc_flags: int) -> int:
        """Ask zone_watermark_ok()."""
        zone = self.zones[index]
        return int(zone_watermark_ok(zone, order, zone.watermark[mark] + zone.watermark_boost, highest, alloc_flags))

    def drain(self, index: int) -> int:
        """Empty CPU 0's lists of a zone."""
        drain_pages(self.zones[index], 0)
        return 0

    def unres(self, migratetype: int, force: int) -> int:
        """Give a reserved pageblock back."""
        zones = [zone for zone in reversed(self.node.zones) if zone.populated]
        return int(unreserve_highatomic_pageblock(zones, migratetype, bool(force)))

    OPERATIONS = ("balloc", "rmq", "alloc", "bfree", "free", "wok", "drain", "unres")

    def run(self, name: str, arguments: list[int]) -> int:
        if name not in self.OPERATIONS:
            raise InputError(f"unknown operation {name!r}")
        result: int = getattr(self, name)(*arguments)
        return result


def _build(record: Record) -> _Harness:
    """Boot the machine of a sequence: zones, all pageblocks movable, free ranges handed over as memblock does."""
    harness = _Harness(max(start + pages for _, start, pages in record["zones"]), record["cpus"])
    memory = harness.memory
    memory.frames.pageblock_mt[:] = bytes((MIGRATE_MOVABLE,)) * len(memory.frames.pageblock_mt)
    for index, start, pages in record["zones"]:
        harness.add_zone(index, start, pages, pages)
    for start, end in record["free_ranges"]:
        while start < end:
            order = min(10, (start & -start).bit_length() - 1)
            while start + (1 << order) > end:
                order -= 1
            free_pages_core(memory, start, order)
            start += 1 << order
    for zone, marks in zip(harness.node.zones, record["wmark"]["zones"]):
        harness.set_marks(zone, marks["managed"], marks["wmark"], marks["lowmem_reserve"], marks["pcp_batch"],
                          marks["pcp_high"])
    return harness


def _run_operation(harness: _Harness, step: dict[str, Any]) -> dict[str, Any]:
    """Do one recorded operation; the result has the recording's form."""
    name, *arguments = step["op"]
    harness.kswapd = 0
    harness.stolen = []
    got: dict[str, Any] = {}
    if name == "fill":
        inner, *arguments, count = arguments
        taken: list[int] = []
        failed = 0
        for _ in range(count):
            pfn = harness.run(inner, arguments)
            if pfn < 0:
                failed += 1
            else:
                taken.append(pfn)
        got |= {"pfns": taken, "failed": failed}
    elif name == "frees":
        inner, order = arguments
        got["pfns"] = _unpack(step["pfns"])
        for pfn in got["pfns"]:
            harness.run(inner, [pfn, order])
    else:
        got["r"] = harness.run(name, arguments)
        if harness.stolen:
            got["fb"] = harness.stolen[-1]
        if harness.kswapd:
            got["kswapd"] = harness.kswapd
    zone = harness.zones[step["z"]]
    got |= {"nf": zone.buddyinfo(), "fp": zone.nr_free_pages}
    for key, value in (("boost", zone.watermark_boost), ("ha", zone.nr_reserved_highatomic), ("pcp", zone.pageset[0].count)):
        if value:
            got[key] = value
    return got


@replays("buddy/traces*.jsonl*")
def traces(path: Path) -> Iterator[Check]:
    """Sequences of requests on made-up zones: each result's frame, free blocks per order, free frames, stealing, boost, reserve, per-CPU
    count, woken kswapds; at each dump all lists in order, pageblock types and per-CPU lists."""
    for record in read_jsonl(path):
        harness = _build(record)
        where = f"sequence {record['seq']} ({record['kind']})"
        got = {index: _state(harness.zones[int(index)]) for index in record["init"]}
        yield _compare(f"{where}: after boot", {index: _recorded_state(dump) for index, dump in record["init"].items()}, got)
        for number, step in enumerate(record["ops"]):
            if "dump" in step:
                for index, dump in step["dump"].items():
                    zone = harness.zones[int(index)]
                    yield _compare(f"{where}, step {number}: lists of zone {index}", _recorded_state(dump), _state(zone))
                continue
            expected = {key: value for key, value in step.items() if key not in ("op", "z")}
            if "pfns" in expected:
                expected["pfns"] = _unpack(expected["pfns"])
            yield _compare(f"{where}, step {number}: {step['op']}", expected, _run_operation(harness, step))


def _restore(record: Record) -> _Harness:
    """A live kernel's zones as they were recorded: free lists, per-CPU lists, pageblock types, pages on LRU lists."""
    dumps: dict[str, dict[str, Any]] = record["before"]
    harness = _Harness(max(dump["start"] + dump["spanned"] for dump in dumps.values()))
    frames = harness.memory.frames
    for index, dump in dumps.items():
        zone = harness.add_zone(int(index), dump["start"], dump["spanned"], dump["present"])
        pcp = dump["pcp"]
        harness.set_marks(zone, dump["managed"], dump["wmark"], dump["lowmem_reserve"], pcp["batch"], pcp["high"])
        zone.watermark_boost, zone.nr_reserved_highatomic = dump["boost"], dump["highatomic"]
        first = zone.start_pfn >> PAGEBLOCK_ORDER
        frames.pageblock_mt[first:first + len(dump["pb"])] = bytes(map(int, dump["pb"]))
        for key, runs in dump["lists"].items():
            order, migratetype = map(int, key.split(","))
            for pfn in _unpack(runs):
                add_to_free_list(zone, pfn, order, migratetype, to_tail=True)
                mod_zone_freepage_state(zone, 1 << order, migratetype)
        for pindex, runs in pcp["lists"].items():
            zone.pageset[0].lists[int(pindex)].extend(_unpack(runs))
        zone.pageset[0].count, zone.pageset[0].free_factor = pcp["count"], pcp["ff"]
        for start, end in dump["lru"]:
            for pfn in range(start, end):
                frames.flags[pfn] |= PG["lru"]
    return harness


@replays("buddy/kernel-traces*.jsonl*")
def kernel_traces(path: Path) -> Iterator[Check]:
    """Requests and frees of a running kernel: the frame of each request, and at the end all lists in order, pageblock types, per-CPU
    lists, free frames, boost and reserve of each zone."""
    for record in read_jsonl(path):
        harness = _restore(record)
        where = f"seed {record['seed']} ({record['mem_mb']} MiB)"
        for index, dump in record["before"].items():
            yield same(f"{where}: free frames of zone {index} before", dump["free"], harness.zones[int(index)].nr_free_pages)
        masks = [parse_gfp(text) for text in record["gfp_by_mt"]]
        for number, (operation, order, migratetype, pfn) in enumerate(record["ops"]):
            if operation == 0:
                got = harness.alloc(masks[migratetype], order, 0)
                yield Check(f"{where}, step {number}: request of order {order}, type {migratetype}", got == pfn, pfn, got)
            else:
                harness.free(pfn, order)
        for index, dump in record["after"].items():
            zone = harness.zones[int(index)]
            yield _compare(f"{where}: lists of zone {index} at the end", _recorded_state(dump), _state(zone))
            yield same(f"{where}: free frames, boost, reserve of zone {index} at the end",
                       [dump["free"], dump["boost"], dump["highatomic"]],
                       [zone.nr_free_pages, zone.watermark_boost, zone.nr_reserved_highatomic])
