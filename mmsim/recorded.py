"""Recordings of real kernels, and the text that any kernel prints about its memory, as small objects.

The parsers take text, not paths, so that the text of a recording, of the reader's own /proc and of the simulated
machine go through the same door. What a kernel prints is read leniently where releases differ (unknown fields are
skipped), and refused with an :class:`~mmsim.errors.InputError` of one sentence where a needed field is missing or
broken.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmsim.errors import InputError

__all__ = [
    "Recording", "read_recording", "read_snapshot", "kernel_messages", "strip_kernel_lines",
    "ZoneInfo", "BuddyRow", "PageTypeInfo", "IomemRange",
    "parse_zoneinfo", "parse_buddyinfo", "parse_pagetypeinfo", "parse_meminfo", "parse_vmstat", "parse_iomem",
]

_TIMESTAMP = re.compile(r"\[ *\d+\.\d{6}\] ")
_KERNEL_LINE = re.compile(r"\[ *\d+\.\d{6}\] [^\n]*(?:\n|\Z)")
_RANGE = re.compile(r"^( *)([0-9a-f]{8,16})-([0-9a-f]{8,16}) : (.*)$")


# -- the scenario file ---------------------------------------------------------------------------------------

@dataclass(slots=True)
class Recording:
    """One recorded run: the command that made it, what the console showed before the scenario, and the files read in
    it.
    """

    path: str
    command: str
    scenario: str
    #: Everything printed before the scenario began: firmware, boot loader, kernel.
    console: str
    #: Section title (``/proc/zoneinfo``, ``dmesg``) to its text. A title that comes again gets ``#2``, ``#3``…
    #: appended.
    sections: dict[str, str] = field(default_factory=dict)

    def section(self, title: str) -> str:
        """The text of a section. Raise InputError if it is not there."""
        if title not in self.sections:
            raise InputError(f"{self.path}: the recording has no section '=== {title}'")
        return self.sections[title]

    def messages(self) -> list[str]:
        """The kernel's messages up to the scenario, without their times."""
        return kernel_messages(self.console)


def read_snapshot(path: str | Path) -> Recording:
    """Read an archive of dmesg (without times) and files of /proc, each named as in /proc with ``.txt`` behind.

    Raise InputError for an archive that cannot be read, or that has no dmesg.
    """
    name, texts = str(path), {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    texts[Path(member.name).stem] = content.read().decode("utf-8", "replace")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{name}: cannot be read, or truncated: {error}") from error
    if "dmesg" not in texts:
        raise InputError(f"{name}: the archive holds no dmesg.txt")
    console = "".join(f"[    0.000000] {line}\n" for line in texts.pop("dmesg").splitlines())
    return Recording(name, "", "snapshot", console, {f"/proc/{title}": text for title, text in texts.items()})


def strip_kernel_lines(text: str) -> str:
    """Remove messages of the kernel that the console printed in between, wherever in a line they begin.

    >>> strip_kernel_lines("MemTotal: 24[    1.442558] random: fast init done\\n3480 kB\\n")
    'MemTotal: 243480 kB\\n'
    """
    return _KERNEL_LINE.sub("", text)


def kernel_messages(text: str) -> list[str]:
    """The messages in a console log or in dmesg output, without their times; lines without a time are not the kernel's.

    >>> kernel_messages("Booting from ROM..[    0.000000] Linux version 5.17.0\\n[    0.1] no time\\n")
    ['Linux version 5.17.0']
    """
    messages = []
    for line in text.splitlines():
        match = _TIMESTAMP.search(line)
        if match:
            messages.append(line[match.end():])
    return messages


def read_recording(path: str | Path) -> Recording:
    """Read a scenario file: ``# command:`` first, ``@@@ scenario NAME start`` and ``end`` around ``=== TITLE``
    sections.

    Raise InputError for a file that cannot be read, is no such recording, or was cut off before the scenario's end.
    """
    name = str(path)
    try:
        raw = Path(path).read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    text = text.replace("\r", "")
    if not text.startswith("# command:"):
        raise InputError(f"{name}: not a recording: the first line must begin with '# command:'")
    start = text.find("@@@ scenario ")
    if start < 0:
        raise InputError(f"{name}: truncated: the scenario never starts (no '@@@ scenario … start' line)")
    command, _, console = text[:start].partition("\n")
    # The console mixes kernel messages into what the scenario prints, even into titles; only dmesg's own text has them
    # by right.
    printed, dmesg, log = text[start:].partition("\n=== dmesg")
    lines = (strip_kernel_lines(printed) + dmesg + log).split("\n")
    words = lines[0].split()
    if len(words) < 4 or words[3] != "start":
        raise InputError(f"{name}: the scenario's first line is broken: {lines[0]!r}")
    recording = Recording(name, command.removeprefix("# command:").strip(), words[2], console)
    title: str | None = None
    body: list[str] = []

    def close() -> None:
        if title is None:
            return
        key, count = title, 1
        while key in recording.sections:
            count += 1
            key = f"{title}#{count}"
        recording.sections[key] = "\n".join(body) + "\n"

    for line in lines[1:]:
        if line.startswith("=== "):
            close()
            title, body = line[4:].strip(), []
        elif line.startswith(f"@@@ scenario {words[2]}") and " end" in line:
            close()
            return recording
        else:
            body.append(line)
    raise InputError(f"{name}: truncated: scenario {words[2]} has no end line")


# -- /proc ---------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class ZoneInfo:
    """One zone of /proc/zoneinfo. Sizes and marks in pages; ``stats`` has the ``nr_`` lines, ``node_stats`` the
    node's.
    """

    nid: int
    name: str
    free: int = 0
    boost: int = 0
    min: int = 0
    low: int = 0
    high: int = 0
    spanned: int = 0
    present: int = 0
    managed: int = 0
    cma: int = 0
    protection: tuple[int, ...] = ()
    start_pfn: int = 0
    #: "vm stats threshold", the same for every CPU.
    stat_threshold: int = 0
    #: One (cpu, count, high, batch) per CPU.
    pagesets: list[tuple[int, int, int, int]] = field(default_factory=list)
    stats: dict[str, int] = field(default_factory=dict)
    node_stats: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class BuddyRow:
    """One line of /proc/buddyinfo: free blocks of each order."""

    nid: int
    zone: str
    counts: tuple[int, ...]

    @property
    def free_pages(self) -> int:
        """Free pages in the row's blocks.

        >>> BuddyRow(0, "DMA", (1, 0, 2)).free_pages
        9
        """
        return sum(count << order for order, count in enumerate(self.counts))


@dataclass(slots=True)
class PageTypeInfo:
    """/proc/pagetypeinfo: free blocks by (nid, zone, type) and order; pageblocks by (nid, zone) and type."""

    pageblock_order: int
    free: dict[tuple[int, str, str], tuple[int, ...]]
    blocks: dict[tuple[int, str], dict[str, int]]


@dataclass(slots=True)
class IomemRange:
    """One line of /proc/iomem: the last byte is ``end - 1``; ``depth`` counts the resources around it."""

    start: int
    end: int
    name: str
    depth: int


def _number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{what}: {text!r} is not a number") from None


def parse_zoneinfo(text: str) -> list[ZoneInfo]:
    """Read /proc/zoneinfo. Raise InputError if it has no zone or a number is broken."""
    zones: list[ZoneInfo] = []
    marks = ("boost", "min", "low", "high", "spanned", "present", "managed", "cma")
    in_node_stats = in_pagesets = False
    cpu = count = high = 0
    for line in text.splitlines():
        head = re.match(r"Node (\d+), zone +(\S+)", line)
        if head:
            zones.append(ZoneInfo(int(head[1]), head[2]))
            in_node_stats = in_pagesets = False
            continue
        words = line.replace(":", " : ").split()
        if not zones or not words:
            continue
        zone, key, value = zones[-1], words[0], words[-1]
        if line.strip() == "per-node stats":
            in_node_stats = True
        elif words[:2] == ["pages", "free"]:
            in_node_stats = False
            zone.free = _number(value, "zoneinfo, pages free")
        elif key == "protection":
            inside = line[line.index("(") + 1:line.rindex(")")] if "(" in line and ")" in line else ""
            zone.protection = tuple(_number(part.strip(), "zoneinfo, protection") for part in inside.split(",") if part.strip())
        elif key == "pagesets":
            in_pagesets = True
        elif in_pagesets and key == "cpu":
            cpu = _number(value, "zoneinfo, cpu")
        elif in_pagesets and key == "count":
            count = _number(value, "zoneinfo, count")
        elif in_pagesets and key == "high":
            high = _number(value, "zoneinfo, pageset high")
        elif in_pagesets and key == "batch":
            zone.pagesets.append((cpu, count, high, _number(value, "zoneinfo, batch")))
        elif line.startswith("  vm stats threshold:"):
            zone.stat_threshold = _number(value, "zoneinfo, vm stats threshold")
        elif key == "start_pfn":
            zone.start_pfn = _number(value, "zoneinfo, start_pfn")
        elif not in_pagesets and key in marks and len(words) == 2:
            setattr(zone, key, _number(value, f"zoneinfo, {key}"))
        elif len(words) == 2 and value.lstrip("-").isdigit():
            (zone.node_stats if in_node_stats else zone.stats)[key] = int(value)
    if not zones:
        raise InputError("zoneinfo: no line 'Node N, zone NAME'")
    return zones


def parse_buddyinfo(text: str) -> list[BuddyRow]:
    """Read /proc/buddyinfo. Raise InputError if it has no row.

    >>> parse_buddyinfo("Node 0, zone      DMA      0      1      3")[0].counts
    (0, 1, 3)
    """
    rows = []
    for line in text.splitlines():
        match = re.match(r"Node (\d+), zone +(\S+)((?: +\d+)+) *$", line)
        if match:
            rows.append(BuddyRow(int(match[1]), match[2], tuple(map(int, match[3].split()))))
    if not rows:
        raise InputError("buddyinfo: no line 'Node N, zone NAME' with counts")
    return rows


def parse_pagetypeinfo(text: str) -> PageTypeInfo:
    """Read /proc/pagetypeinfo. Counts printed as ``>100000`` are read as 100000."""
    order = re.search(r"^Page block order: (\d+)", text, re.MULTILINE)
    if not order:
        raise InputError("pagetypeinfo: no line 'Page block order: N'")
    free: dict[tuple[int, str, str], tuple[int, ...]] = {}
    blocks: dict[tuple[int, str], dict[str, int]] = {}
    types: list[str] = []
    for line in text.splitlines():
        if line.startswith("Number of blocks type"):
            types = line.removeprefix("Number of blocks type").split()
            continue
        row = re.match(r"Node +(\d+), zone +(\S+), type +(\S+)((?: +>?\d+)+) *$", line)
        if row:
            free[int(row[1]), row[2], row[3]] = tuple(int(word.lstrip(">")) for word in row[4].split())
            continue
        row = re.match(r"Node +(\d+), zone +(\S+)((?: +\d+)+) *$", line)
        if row and types:
            blocks[int(row[1]), row[2]] = dict(zip(types, map(int, row[3].split()), strict=False))
    return PageTypeInfo(int(order[1]), free, blocks)


def parse_meminfo(text: str) -> dict[str, int]:
    """Read /proc/meminfo: name to KiB (or to a plain count where the line has no unit).

    >>> parse_meminfo("MemTotal:         243480 kB\\nHugePages_Total:       0\\n")
    {'MemTotal': 243480, 'HugePages_Total': 0}
    """
    fields = {m[1]: int(m[2]) for m in re.finditer(r"^([^:\s][^:\n]*):\s+(\d+)(?: kB)?\s*$", text, re.MULTILINE)}
    if not fields:
        raise InputError("meminfo: no line 'Name: N kB'")
    return fields


def parse_vmstat(text: str) -> dict[str, int]:
    """Read /proc/vmstat: name to count."""
    fields = {m[1]: int(m[2]) for m in re.finditer(r"^([a-z]\w*) (\d+)$", text, re.MULTILINE)}
    if not fields:
        raise InputError("vmstat: no line 'name N'")
    return fields


def parse_iomem(text: str) -> list[IomemRange]:
    """Read /proc/iomem. Without privilege every address is 0: then all ranges are [0, 1) and the caller must notice.

    >>> parse_iomem("00001000-0009fbff : System RAM")[0].end == 0x9fc00
    True
    """
    ranges = []
    for line in text.splitlines():
        match = _RANGE.match(line)
        if match:
            ranges.append(IomemRange(int(match[2], 16), int(match[3], 16) + 1, match[4], len(match[1]) // 2))
    if not ranges:
        raise InputError("iomem: no line 'START-END : NAME'")
    return ranges


def matching(messages: Iterable[str], pattern: str) -> Iterator[re.Match[str]]:
    """Every message in which ``pattern`` is found, as a match."""
    expression = re.compile(pattern)
    for message in messages:
        match = expression.search(message)
        if match:
            yield match
