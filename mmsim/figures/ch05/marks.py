"""The marks of a real machine, computed again from its own /proc/zoneinfo, and compared with what it prints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmsim.constants import MAX_NR_ZONES, WMARK_HIGH, WMARK_LOW, WMARK_MIN, ZONE_NAMES
from mmsim.figures.ch05.watermark_tank import TankZone
from mmsim.host import Host
from mmsim.physical.watermark import Reserves
from mmsim.recorded import ZoneInfo
from mmsim.units import PAGE_SIZE

__all__ = ["MarkRow", "marks_of", "marks_table"]


@dataclass(frozen=True, slots=True)
class MarkRow:
    """One number of one zone: as printed, and as computed."""

    zone: str
    name: str
    printed: int
    computed: int

    @property
    def agrees(self) -> bool:
        """Whether both are equal."""
        return self.printed == self.computed


def _freed_later(source: Host) -> int:
    """Pages that became managed after the marks were computed, as far as a kernel log tells; 0 without one."""
    lines = re.findall(r"Freeing (?:initrd|unused [^:]*) memory: (\d+)K", source.texts.get("dmesg", ""))
    return sum(map(int, lines)) * 1024 // PAGE_SIZE


def marks_of(source: Host, freed_later: int | None = None) -> list[MarkRow]:
    """Watermarks and lowmem reserves of every zone with memory.

    ``freed_later`` pages are taken off the largest zone first: the kernel computes its marks before it frees its init
    memory, and zoneinfo shows the managed pages of today. None: what the kernel log says, if there is one. min_free_kbytes
    is that of the machine if it can be read, else the boot's formula.
    """
    printed = [zone for zone in source.zoneinfo() if zone.name in ZONE_NAMES[:MAX_NR_ZONES]]
    late = _freed_later(source) if freed_later is None else freed_later
    nodes: dict[int, list[TankZone]] = {}
    by_zone: list[tuple[ZoneInfo, TankZone]] = []
    largest = max(printed, key=lambda zone: zone.managed)
    for zone in printed:
        managed = zone.managed - (late if zone is largest else 0)
        made = TankZone(ZONE_NAMES.index(zone.name), managed)
        by_zone.append((zone, made))
        nodes.setdefault(zone.nid, []).append(made)
    for nid, zones in nodes.items():
        present = {zone.index for zone in zones}
        nodes[nid] = sorted([*zones, *(TankZone(i, 0) for i in range(MAX_NR_ZONES) if i not in present)], key=lambda zone: zone.index)
    reserves = Reserves(list(nodes.values()), watermark_scale_factor=source.sysctl.get("watermark_scale_factor", 10))
    reserves.init_per_zone_wmark_min()
    if "min_free_kbytes" in source.sysctl:
        reserves.write_min_free_kbytes(source.sysctl["min_free_kbytes"])
    rows = []
    for zone, made in by_zone:
        if not zone.managed:
            continue
        name = f"{zone.nid}/{zone.name}"
        for word, mark, shown in (("min", WMARK_MIN, zone.min), ("low", WMARK_LOW, zone.low), ("high", WMARK_HIGH, zone.high)):
            rows.append(MarkRow(name, word, shown - zone.boost, made.watermark[mark]))
        rows += [MarkRow(name, f"reserve against {ZONE_NAMES[i]}", shown, made.lowmem_reserve[i])
                 for i, shown in enumerate(zone.protection[:MAX_NR_ZONES]) if shown or made.lowmem_reserve[i]]
    return rows


def marks_table(source: Host, freed_later: int | None = None) -> str:
    """:func:`marks_of` as text, one line a number; what differs is marked."""
    rows = marks_of(source, freed_later)
    lines = [f"{'zone':<10} {'':<24} {'printed':>9} {'computed':>9}"]
    lines += [f"{row.zone:<10} {row.name:<24} {row.printed:>9} {row.computed:>9}{'' if row.agrees else '   differs'}" for row in rows]
    return "\n".join([*lines, f"{sum(row.agrees for row in rows)} of {len(rows)} agree"])
