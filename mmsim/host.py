"""The reader's own machine: /proc and /sys, read into the same objects as a recording.

Where there is no Linux (a browser, another system) or the files cannot be read, the recorded boot that comes with the
book stands in. :attr:`Host.source` says which of the two it is, and :attr:`Host.problems` what could not be read and
why.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mmsim.boot.e820 import E820Table
from mmsim.errors import InputError
from mmsim.recorded import (
    BuddyRow,
    IomemRange,
    PageTypeInfo,
    Recording,
    ZoneInfo,
    parse_buddyinfo,
    parse_iomem,
    parse_meminfo,
    parse_pagetypeinfo,
    parse_vmstat,
    parse_zoneinfo,
    read_recording,
)

__all__ = ["Host", "host", "shipped_recording"]

#: Without these nothing in the book can be computed.
_NEEDED = ("zoneinfo", "buddyinfo", "meminfo")
_FILES = (*_NEEDED, "pagetypeinfo", "vmstat", "iomem", "cmdline", "version", "slabinfo", "vmallocinfo")


def shipped_recording() -> Recording:
    """The recorded boot of Linux 5.17 with 256 MiB that comes with the package."""
    return read_recording(Path(__file__).parent / "data" / "linux-5.17-boot.txt.gz")


@dataclass(slots=True)
class Host:
    """Texts of a machine's files by name (``zoneinfo``), and where they come from.

    ``live`` is True for the reader's own machine. ``sysctl`` has the files of /proc/sys/vm that are one number.
    """

    source: str
    live: bool
    release: str
    texts: dict[str, str]
    sysctl: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A file as it is. Raise InputError if it could not be read."""
        if name not in self.texts:
            why = next((problem for problem in self.problems if problem.startswith(f"{name}:")), f"{name}: not there")
            raise InputError(f"{self.source}: {why}")
        return self.texts[name]

    def zoneinfo(self) -> list[ZoneInfo]:
        """Every zone of every node."""
        return parse_zoneinfo(self.text("zoneinfo"))

    def buddyinfo(self) -> list[BuddyRow]:
        """Free blocks of every zone."""
        return parse_buddyinfo(self.text("buddyinfo"))

    def pagetypeinfo(self) -> PageTypeInfo:
        """Free blocks by type. Only root may read it: raise InputError otherwise."""
        return parse_pagetypeinfo(self.text("pagetypeinfo"))

    def meminfo(self) -> dict[str, int]:
        """Name to KiB."""
        return parse_meminfo(self.text("meminfo"))

    def vmstat(self) -> dict[str, int]:
        """Name to count."""
        return parse_vmstat(self.text("vmstat"))

    def iomem(self) -> list[IomemRange]:
        """The address map; all addresses are 0 for those who may not see it (:attr:`addresses_hidden`)."""
        return parse_iomem(self.text("iomem"))

    @property
    def addresses_hidden(self) -> bool:
        """Whether /proc/iomem shows only zeros, as it does without CAP_SYS_ADMIN."""
        return "iomem" in self.texts and all(entry.end == 1 for entry in self.iomem())

    def firmware_map(self) -> E820Table:
        """The firmware's map, from /sys/firmware/memmap or from the recorded log. Raise InputError if there is
        neither.
        """
        if "memmap" in self.texts:
            return E820Table.from_memmap(self.texts["memmap"])
        return E820Table.from_dmesg(self.text("dmesg"))


def _read(path: Path, problems: list[str], name: str) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{name}: {error.strerror or error}")
        return None
    return text


def _read_live(root: Path) -> Host:
    problems: list[str] = []
    texts: dict[str, str] = {}
    for name in _FILES:
        text = _read(root / "proc" / name, problems, name)
        if text:
            texts[name] = text
    entries = sorted((root / "sys/firmware/memmap").glob("*/*"), key=lambda path: (path.parent.name, path.name))
    lines = [f"{path}:{text.strip()}" for path in entries if (text := _read(path, problems, "memmap")) is not None]
    if lines:
        texts["memmap"] = "\n".join(lines)
    sysctl = {}
    for path in sorted((root / "proc/sys/vm").glob("*")):
        value = _read(path, [], path.name)
        if value is not None and value.strip().lstrip("-").isdigit():
            sysctl[path.name] = int(value)
    release = texts.get("version", "").split()[2:3] or [platform.release()]
    return Host(f"this machine (Linux {release[0]})", True, release[0], texts, sysctl, problems)


def _from_recording(recording: Recording, problems: list[str]) -> Host:
    texts = {name: recording.sections[f"/proc/{name}"] for name in _FILES if f"/proc/{name}" in recording.sections}
    texts["dmesg"] = recording.console
    release = texts.get("version", "Linux version 5.17.0").split()[2]
    return Host(f"a recorded Linux {release} (256 MiB, qemu)", False, release, texts, {}, problems)


def host(root: str | Path = "/", recording: Recording | None = None) -> Host:
    """The machine that this runs on if it is a Linux whose files make sense, else a recording (the shipped one by
    default).
    """
    if sys.platform != "linux":
        return _from_recording(recording or shipped_recording(), [f"this is {sys.platform}, not Linux"])
    live = _read_live(Path(root))
    try:
        live.zoneinfo(), live.buddyinfo(), live.meminfo()
    except InputError as error:
        return _from_recording(recording or shipped_recording(), [*live.problems, str(error)])
    if live.addresses_hidden:
        live.problems.append("iomem: all addresses are 0 (reading them needs CAP_SYS_ADMIN)")
    return live
