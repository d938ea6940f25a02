"""Numbers for the chapter's measurement: what is missing from MemTotal, by kind, on machines of any size and on recorded ones."""

from __future__ import annotations

import re
from pathlib import Path

from mmsim.draw.theme import ROLES
from mmsim.errors import InputError
from mmsim.figures.ch19.accounting import totals
from mmsim.figures.ch19.firmware import boot_pc
from mmsim.recorded import Recording, parse_meminfo, read_recording
from mmsim.units import MIB, PAGE_SIZE, memparse

__all__ = ["MISSING_COLOURS", "MISSING_KINDS", "missing_by_kind", "recorded_shares"]

#: The kinds of :func:`missing_by_kind`: those that grow with RAM first.
MISSING_KINDS = ("struct pages", "hash tables", "bounce buffers", "kernel image", "everything else")
#: Their colours, those of the roles in the figures.
MISSING_COLOURS = tuple(ROLES[role].light[0] for role in ("huge", "table", "cma", "kernel", "reserved"))
_KEYS = ("memmap", "hash", "bounce", "image")
#: Parameters that take memory away for other purposes: a recording with one of them is no measure of what boot costs.
_TAKES_MEMORY = re.compile(r"\b(?:crashkernel|mem|memmap)=")


def missing_by_kind(ram: int) -> list[float]:
    """Boot a machine with ``ram`` bytes; KiB that are missing from its MemTotal, for each of :data:`MISSING_KINDS`."""
    machine = boot_pc(ram, initrd=4600 << 10)
    last = machine.phases[-1]
    sums = totals(last.owners, [(region.base, region.end) for region in last.memory])
    managed = sum(zone.managed_pages for zone in machine.zones) * PAGE_SIZE
    kinds = [sums.get(key, 0) / 1024 for key in _KEYS]
    return [*kinds, (ram - managed) / 1024 - sum(kinds)]


def _installed(recording: Recording) -> int:
    """Bytes of RAM that the recorded machine was started with (qemu's ``-m``)."""
    found = re.search(r" -m (\d+[MG])\b", recording.command)
    if not found:
        raise InputError(f"{recording.path}: the command does not say how much RAM the machine had")
    return memparse(found[1])[0]


def recorded_shares(folder: str | Path) -> tuple[list[float], list[float]]:
    """RAM in MiB and the share of it that is missing from MemTotal (%), for the recorded 5.17 boots that kept all their memory."""
    points = []
    for path in sorted([*Path(folder).glob("boots-5.17/*.txt"), Path(folder) / "linux-5.17" / "boot.txt"]):
        recording = read_recording(path)
        if _TAKES_MEMORY.search(recording.command):
            continue
        ram = _installed(recording)
        total = parse_meminfo(recording.section("/proc/meminfo"))["MemTotal"] << 10
        points.append((ram / MIB, 100 * (ram - total) / ram))
    points.sort()
    return [ram for ram, _ in points], [share for _, share in points]
