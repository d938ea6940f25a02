"""The marks of a real machine, computed again from its own /proc/zoneinfo, and compared with what it prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.boot.image import IMAGE_5_17
from mmsim.constants import MAX_NR_ZONES, WMARK_HIGH, WMARK_LOW, WMARK_MIN, ZONE_NAMES
from mmsim.figures.ch05.watermark_tank import TankZone
from mmsim.host import Host
from mmsim.physical.fragmentation import unusable_free_index
from mmsim.physical.watermark import Reserves
from mmsim.recorded import ZoneInfo
from mmsim.units import MIB, PAGE_SIZE

__all__ = ["MarkRow", "marks_of", "marks_table", "unusable_parts"]


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


def _freed_later(source: Host) -> list[tuple[int, int]]:
    """What became managed after the marks were computed, as far as a kernel log tells: (a frame of it, pages)."""
    log = source.texts.get("dmesg", "")
    # One line a piece; the console's log may hold each line twice.
    pieces = dict(re.findall(r"Freeing (initrd|unused [^:]*) memory: (\d+)K", log))
    disks = re.findall(r"RAMDISK: \[mem 0x([0-9a-f]+)-", log)      # the last one: where it was moved, if it was
    at = {"initrd": int(disks[-1], 16) // PAGE_SIZE} if disks else {}
    return [(at.get(name, IMAGE_5_17.start // PAGE_SIZE), int(size) * 1024 // PAGE_SIZE) for name, size in pieces.items()]


def marks_of(source: Host, corrected: bool = True) -> list[MarkRow]:
    """Watermarks and lowmem reserves of every zone with memory.

    The kernel computes its marks before it frees its init memory, and zoneinfo shows the managed pages of today:
    ``corrected`` takes off again what the kernel log says was freed later, if there is a log. min_free_kbytes is that of
    the machine if it can be read, else the boot's formula.
    """
    printed = [zone for zone in source.zoneinfo() if zone.name in ZONE_NAMES[:MAX_NR_ZONES]]
    late = _freed_later(source) if corrected else []
    nodes: dict[int, list[TankZone]] = {}
    by_zone: list[tuple[ZoneInfo, TankZone]] = []
    for zone in printed:
        freed = sum(pages for pfn, pages in late if zone.start_pfn <= pfn < zone.start_pfn + zone.spanned)
        made = TankZone(ZONE_NAMES.index(zone.name), zone.managed - freed)
        by_zone.append((zone, made))
        nodes.setdefault(zone.nid, []).append(made)
    for nid, zones in nodes.items():
        present = {zone.index for zone in zones}
        nodes[nid] = sorted([*zones, *(TankZone(i, 0) for i in range(MAX_NR_ZONES) if i not in present)],
                            key=lambda zone: zone.index)
    reserves = Reserves(list(nodes.values()), watermark_scale_factor=source.sysctl.get("watermark_scale_factor", 10))
    reserves.init_per_zone_wmark_min()
    if "min_free_kbytes" in source.sysctl:
        reserves.write_min_free_kbytes(source.sysctl["min_free_kbytes"])
    elif sum(zone.managed_pages for zones in nodes.values() for zone in zones) >= 512 * MIB // PAGE_SIZE:
        reserves.set_recommended_min_free_kbytes()              # the recorded kernels have transparent huge pages
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


def marks_table(source: Host, corrected: bool = True) -> str:
    """:func:`marks_of` as text, one line a number; what differs is marked."""
    rows = marks_of(source, corrected)
    lines = [f"{'zone':<10} {'':<24} {'printed':>9} {'computed':>9}"]
    lines += [f"{row.zone:<10} {row.name:<24} {row.printed:>9} {row.computed:>9}{'' if row.agrees else '   differs'}" for row in rows]
    return "\n".join([*lines, f"{sum(row.agrees for row in rows)} of {len(rows)} agree"])


def unusable_parts(nr_free: Sequence[int]) -> list[float]:
    """For each order the part of free memory, 0 to 1, that lies in blocks too small for it."""
    return [unusable_free_index(nr_free, order) / 1000 for order in range(len(nr_free))]
