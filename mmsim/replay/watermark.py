"""golden/watermark: marks, reserves, per-CPU list sizes, MemAvailable, watermark checks and counter thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsim.constants import WMARK_LOW
from mmsim.errors import InputError
from mmsim.physical.vmstat import calculate_normal_threshold, calculate_pressure_threshold
from mmsim.physical.watermark import (
    Reserves,
    low_wmark_pages,
    si_mem_available,
    wmark_pages,
    zone_batchsize,
    zone_highsize,
    zone_watermark_fast,
    zone_watermark_ok,
)
from mmsim.replay.readers import read_csv, read_jsonl
from mmsim.replay.registry import Check, replays, same

__all__ = ["config", "other_records", "stat_thresholds", "watermark_ok"]


@dataclass(slots=True)
class PlainZone:
    """A zone of numbers only."""

    index: int
    managed_pages: int
    lowmem_reserve: list[int]
    watermark: list[int] = field(default_factory=lambda: [0, 0, 0])
    watermark_boost: int = 0

    @property
    def present_pages(self) -> int:
        """The harness has no holes and reserves nothing."""
        return self.managed_pages


def _config_state(zones: Sequence[PlainZone], reserves: Reserves, cpus: int) -> dict[str, Any]:
    pcp: list[list[int] | None] = []
    for zone in zones:
        batch = max(1, zone_batchsize(zone.managed_pages))
        high = zone_highsize(zone.watermark[WMARK_LOW], zone.managed_pages, batch, cpus, cpus)
        pcp.append([batch, high] if zone.managed_pages else None)
    return {"min_free_kbytes": reserves.min_free_kbytes, "totalreserve": reserves.totalreserve_pages,
            "wmark": [zone.watermark for zone in zones], "lowmem_reserve": [zone.lowmem_reserve for zone in zones], "pcp": pcp}


def _compare(label: str, recorded: Mapping[str, Any], got: Mapping[str, Any]) -> Iterator[Check]:
    for name in sorted(recorded.keys() | got.keys()):
        yield same(f"{label}: {name}", recorded.get(name), got.get(name))


@replays("watermark/config*.jsonl*")
def config(path: Path) -> Iterator[Check]:
    """min_free_kbytes, watermarks, lowmem reserves, totalreserve and per-CPU batch and high of a machine given by its
    managed pages: at boot, after a write to vm.min_free_kbytes, after khugepaged starts; then MemAvailable of four
    states."""
    for record in read_jsonl(path):
        managed, cpus, where = record["managed"], record["cpus"], f"line {record.line}: managed {record['managed']}"
        zones = [PlainZone(index, pages, [0] * len(managed)) for index, pages in enumerate(managed)]
        reserves = Reserves([zones], watermark_scale_factor=record["scale_factor"], lowmem_reserve_ratio=record["ratio"])
        reserves.init_per_zone_wmark_min()
        yield from _compare(f"{where} boot", record["boot"], _config_state(zones, reserves, cpus))
        if "sysctl" in record:
            reserves.write_min_free_kbytes(record["user_min_free_kbytes"])
            yield from _compare(f"{where} sysctl", record["sysctl"], _config_state(zones, reserves, cpus))
        reserves.set_recommended_min_free_kbytes()
        yield from _compare(f"{where} thp", record["thp"], _config_state(zones, reserves, cpus))
        for number, sample in enumerate(record["memavail"]):
            _, _, inactive_file, active_file, _ = sample["lru"]
            available = si_mem_available(sample["free"], reserves.totalreserve_pages, sum(map(low_wmark_pages, zones)),
                                         inactive_file + active_file, sample["slab_reclaimable"] + sample["misc"])
            yield same(f"{where} MemAvailable {number}", sample["r"], available)


@dataclass(slots=True)
class PlainFreeArea:
    """The free lists of one order, of which only emptiness is known."""

    nr_free: int
    free_list: list[str]


@dataclass(slots=True)
class CheckedZone:
    """What a watermark check sees of a zone."""

    watermark: list[int]
    watermark_boost: int
    lowmem_reserve: list[int]
    nr_reserved_highatomic: int
    nr_free_pages: int
    nr_free_cma_pages: int
    free_area: list[PlainFreeArea]


@replays("watermark/watermark_ok*.jsonl*")
def watermark_ok(path: Path) -> Iterator[Check]:
    """zone_watermark_ok() and zone_watermark_fast() of a zone given by its marks, boost, reserves, free pages and
    non-empty lists."""
    for record in read_jsonl(path):
        areas = [PlainFreeArea(mask.bit_count(), ["x" * (mask >> migratetype & 1) for migratetype in range(5)])
                 for mask in record["ne"]]
        zone = CheckedZone(record["wm"], record["boost"], record["lr"], record["ha"], record["free"], 0, areas)
        mark, order, highest, flags = wmark_pages(zone, record["wi"]), record["o"], record["hi"], record["fl"]
        ok = int(zone_watermark_ok(zone, order, mark, highest, flags))
        fast = int(zone_watermark_fast(zone, order, mark, highest, flags | record["wi"], record["gfp"]))
        yield same(f"line {record.line}: zone_watermark_ok {dict(record)}", record["ok"], ok)
        yield same(f"line {record.line}: zone_watermark_fast {dict(record)}", record["fast"], fast)


@replays("watermark/stat_thresholds*.csv*", "watermark/*.csv*")
def stat_thresholds(path: Path) -> Iterator[Check]:
    """The per-CPU counter thresholds, normal and under pressure, for a number of CPUs, a zone size and its marks."""
    for row in read_csv(path):
        where = f"line {row.line}: {dict(row)}"
        yield same(f"{where} normal", row["normal"], calculate_normal_threshold(row["managed"], row["cpus"]))
        yield same(f"{where} pressure", row["pressure"],
                   calculate_pressure_threshold(row["wmark_min"], row["wmark_low"], row["cpus"]))


@replays("watermark/*.jsonl*")
def other_records(path: Path) -> Iterator[Check]:
    """A file of another name: as config or as watermark_ok, by the fields of its first record."""
    first = next(read_jsonl(path), None)
    if first is None:
        return
    if "managed" in first:
        yield from config(path)
    elif "wm" in first:
        yield from watermark_ok(path)
    else:
        raise InputError("holds neither machines (field 'managed') nor watermark checks (field 'wm')")
