"""golden/gfp: every GFP flag's value, zone, migratetype and allocation flags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmsim.errors import KernelBug
from mmsim.physical.gfp import GFP_FLAGS, gfp_migratetype, gfp_names, gfp_to_alloc_flags, gfp_zone, parse_gfp
from mmsim.replay.readers import read_json
from mmsim.replay.registry import Check, replays, same

__all__ = ["gfp"]


def _zone_or_bad(gfp_mask: int) -> int:
    try:
        return gfp_zone(gfp_mask)
    except KernelBug:
        return -1


@replays("gfp/gfp*.json*", "gfp/*.json*")
def gfp(path: Path) -> Iterator[Check]:
    """The zone of all sixteen zone selectors (-1: a bug), and of every flag and composite: its value, zone,
    migratetype, slow-path allocation flags; and that its printed names read back as the same value."""
    record = read_json(path)
    for selector, zone in record["zone"].items():
        yield same(f"gfp_zone of selector {selector}", zone, _zone_or_bad(int(selector)))
    for name, entry in record["flags"].items():
        value = entry["v"]
        yield same(f"{name}: value", value, GFP_FLAGS.get(name))
        yield same(f"{name}: zone", entry["zone"], _zone_or_bad(value))
        yield same(f"{name}: migratetype", entry["mt"], gfp_migratetype(value))
        yield same(f"{name}: alloc_flags", entry["alloc_flags"], gfp_to_alloc_flags(value))
        yield same(f"{name}: names read back", value, parse_gfp(gfp_names(value)))
