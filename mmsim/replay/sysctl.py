"""Writes to /proc/sys/vm on a live kernel: what was accepted, and the marks of the zones that came of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mmsim.constants import ZONE_NAMES
from mmsim.errors import Errno, InputError
from mmsim.physical.tunables import VmTunables
from mmsim.physical.watermark import Reserves
from mmsim.recorded import ZoneInfo, parse_zoneinfo
from mmsim.replay.readers import read_jsonl, read_text
from mmsim.replay.registry import Check, replays, same
from mmsim.replay.watermark import PlainZone

__all__ = ["marks", "vm_files"]

_STATE = re.compile(r"min_free_kbytes (?P<min_free_kbytes>\d+) scale (?P<watermark_scale_factor>\d+) "
                    r"boost (?P<watermark_boost_factor>\d+) ratio (?P<lowmem_reserve_ratio>[\d ]+) thp (?P<thp>.*)$")
_FILES = {"scale": "watermark_scale_factor", "ratio": "lowmem_reserve_ratio", "boost": "watermark_boost_factor"}


class RecordedZone(PlainZone):
    """A zone whose sizes are known from zoneinfo."""

    def __init__(self, index: int, info: ZoneInfo):
        super().__init__(index, info.managed, [0] * len(ZONE_NAMES))
        self.present = info.present

    @property
    def present_pages(self) -> int:
        """Frames that are memory."""
        return self.present


def _machine(zones: list[ZoneInfo]) -> tuple[dict[tuple[int, str], RecordedZone], Reserves]:
    """The zones and their reserves; zone Device, too, which has a place in the reserves but no pages."""
    made = {(zone.nid, zone.name): RecordedZone(ZONE_NAMES.index(zone.name), zone) for zone in zones}
    nodes = [[made[key] for key in made if key[0] == nid] for nid in sorted({zone.nid for zone in zones})]
    return made, Reserves(nodes, lowmem_reserve_ratio=(256, 256, 32, *(0,) * (len(nodes[0]) - 3)))


def _compare(where: str, zones: list[ZoneInfo], model: dict[tuple[int, str], RecordedZone]) -> Iterator[Check]:
    for zone in zones:
        ours = model[zone.nid, zone.name]
        name = f"{where}: node {zone.nid} {zone.name}"
        yield same(f"{name} min, low, high", [zone.min - zone.boost, zone.low - zone.boost, zone.high - zone.boost], ours.watermark)
        yield same(f"{name} protection", list(zone.protection), ours.lowmem_reserve[:len(zone.protection)])


@replays("wmark*/wm/wm.txt*")
def marks(path: Path) -> Iterator[Check]:
    """Every write to vm.min_free_kbytes, watermark_scale_factor and lowmem_reserve_ratio, and switching huge pages on and
    off: accepted or not, the values read back, and the marks and protection of every zone after it.

    Taken from the recording: the pages of each zone, and the state at the start. The marks at the start are not compared:
    the kernel computed them when less memory was managed than zoneinfo shows.
    """
    text = read_text(path)
    if not text.startswith("== boot "):
        raise InputError("does not begin with '== boot': truncated, or no such recording")
    parts = [(part.split("\n", 1)[0], part.partition("\n")[2]) for part in text[3:].split("\n== ")]
    first = parse_zoneinfo(parts[0][1])
    model, reserves = _machine(first)
    knobs = VmTunables(reserves)
    reserves.init_per_zone_wmark_min()
    for title, body in parts:
        state = _STATE.search(title)
        if state is None:
            raise InputError(f"a heading without the state of the knobs: {title[:80]!r}")
        what = title[:state.start()].strip()
        written = re.match(r"write (\w+)=(.*) rc=(\d+)$", what)
        name = _FILES.get(written[1], written[1]) if written else ""
        for other in VmTunables.NAMES[:4]:
            # What the scenario set back between two blocks, without a record of it.
            if other != name and not what.startswith("thp ") and knobs.read(other).split() != state[other].split():
                knobs.write(other, state[other])
        if written:
            try:
                knobs.write(name, written[2] + "\n")
                refused = 0
            except Errno:
                refused = 1
            yield same(f"{what}: refused", int(written[3]), refused)
        elif re.fullmatch(r"thp \w+", what):
            reserves.set_recommended_min_free_kbytes(what != "thp never")
        for name in VmTunables.NAMES[:4] if what != "boot" else ():
            yield same(f"{what}: {name}", state[name].split(), knobs.read(name).split())
        zones = parse_zoneinfo(body)
        if len(zones) != len(first):
            raise InputError(f"after {what!r}: {len(zones)} zones instead of {len(first)}: truncated")
        if what != "boot":
            yield from _compare(what, zones, model)


@replays("sysctl/sysctl-vm*.jsonl*")
def vm_files(path: Path) -> Iterator[Check]:
    """Fifty-two texts written to each file of /proc/sys/vm that moves watermarks: the result of the write, and the value read
    back. The other files belong to parts that are not modelled yet.
    """
    knobs = VmTunables(Reserves([[PlainZone(0, 0, [0] * 5)]], lowmem_reserve_ratio=(256, 256, 32, 0, 0)))
    default: dict[str, str] = {}
    for record in read_jsonl(path):
        name = record["sysctl"]
        if name not in VmTunables.NAMES:
            continue
        if "default" in record:
            default[name] = record["default"]
            if name == "min_free_kbytes":
                # The machine's own value; all others are the same on every machine.
                knobs.write(name, record["default"])
            yield same(f"{name}: default", record["default"], knobs.read(name))
            continue
        try:
            result, number = knobs.write(name, record["write"] + "\n"), 0
        except Errno as error:
            result, number = -1, error.number
        where = f"line {record.line}: {name} = {record['write']!r}"
        yield same(f"{where}: result", [record["ret"], record["errno"]], [result, number])
        yield same(f"{where}: then reads", record["now"], knobs.read(name))
        knobs.write(name, default[name] + "\n")
