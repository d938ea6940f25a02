"""Recorded boots against the model's: the same firmware map, command line, kernel image and platform, booted again.

Compared, all exactly:

* the kernel log, line by line: the firmware's map, the map after mem=/memmap= and after sanitising, last_pfn; **every
  memblock call** with its arguments and, for every allocation, the address that came out; both MEMBLOCK configuration
  dumps; where the RAM disk, the crash kernel and contiguous areas were put; ACPI reservations; nodes (SRAT, fake,
  NODE_DATA, distance tables); zone ranges, start of zone Movable, node ranges, pages in unavailable ranges; per-CPU
  areas; fallback order, zonelists, total pages, policy zone; hash tables; the Memory: line with all its numbers; every
  Freeing line;
* /proc/zoneinfo: spanned, present, managed, start_pfn, cma, watermarks (without boost), protection, high and batch of every
  CPU's lists, the counters' threshold, of every zone of every node;
* /proc/meminfo: MemTotal, CmaTotal, the sum of the DirectMap lines, and of 5.17 each of them (of other kernels only the sum:
  how far large pages have been split depends on what modules did to page attributes);
* /proc/iomem: each range of the firmware, the kernel's sections and the crash kernel;
* /proc/buddyinfo and /proc/pagetypeinfo: the rows of every zone in which all managed frames are free, for there the log
  decides them. In other zones hundreds of thousands of allocations by drivers and init, which no log shows, lie between
  hand-over and the moment of the snapshot; of them it is checked that no more is free than is managed;
* /proc/sys/vm: min_free_kbytes and its neighbours, where they were read.

What a recording does not have is not compared: /proc in the recordings of other scenarios, memblock's calls in a log
made without ``memblock=debug``.

Known limits, found on machines chosen to break the model: kernels with five levels of page tables are refused (``-cpu
max``); so are logs whose first lines are gone, which happens when ``memblock=debug`` says more than the 128 KiB that the
log has before memory can be allocated; a reserved range that meets a PCI window is widened in /proc/iomem when devices
are found, which the model does not follow.

Not compared: times; the offset in and the inlining of a caller's name (``sparse_init+0x85/0x1c7``: the compiler's
choice; the request is compared, and which function made it is not); messages of parts that are not memory management.
Taken from the log: what :mod:`mmsim.bootlog` names. Sizes of drivers' requests (ACPI, IO-APIC and whatever else the
model does not know) are input, their addresses output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from mmsim.bootlog import BootInputs, boot_inputs
from mmsim.errors import KernelError
from mmsim.machine import Machine
from mmsim.physical.tunables import VmTunables
from mmsim.recorded import (
    Recording,
    ZoneInfo,
    parse_buddyinfo,
    parse_iomem,
    parse_meminfo,
    parse_pagetypeinfo,
    parse_zoneinfo,
    read_recording,
    read_snapshot,
)
from mmsim.replay.registry import Check, replays, same
from mmsim.units import KIB, MIB, PAGE_SIZE, int_sqrt

__all__ = ["boot_recording", "GROUPS", "boot_again", "compare_log", "compared_lines"]

#: The groups of log lines that are compared, each as a sequence of its own, so that one missing line does not shift the
#: others.
GROUPS: tuple[tuple[str, re.Pattern[str]], ...] = tuple((name, re.compile(pattern)) for name, pattern in (
    ("map", r"^(BIOS-\S+: \[mem|user: \[mem|e820: (update|remove|reserve RAM buffer)|last_pfn = |\S+ physical RAM map:"
            r"|\[mem \S+\] available for PCI devices|Command line: )"),
    ("memblock", r"^memblock_\w+: "),
    ("dump", r"^(MEMBLOCK configuration:| memory (size|\.?)| memory\.cnt| memory\[| reserved\.cnt| reserved\[)"),
    ("placement", r"^(RAMDISK: |Allocated new RAMDISK|Move RAMDISK|ACPI: Reserving|cma: (Reserved|Failed)|Reserving \d+MB of"
                  r"|crashkernel|Cannot reserve \d+MB crashkernel|PM: hibernation: Registered nosave)"),
    ("nodes", r"^(SRAT: PXM|ACPI: SRAT: Node|NUMA: |NUMA turned off|No NUMA configuration|Faking |Fake node size"
              r"|NODE_DATA\(|    NODE_DATA\(|Not enough memory for each node|numa=fake)"),
    ("zones", r"^(Zone ranges:|  (DMA|DMA32|Normal|HighMem|Device) +(\[mem|empty)|Movable zone start for each node"
              r"|  Node \d+: 0x|Early memory node ranges|  node +\d+: \[mem|Initmem setup node|Initializing node \d+ as mem"
              r"|On node \d+, zone)"),
    ("percpu", r"^(setup_percpu: |percpu: |pcpu-alloc: )"),
    ("start", r"^(Fallback order for Node|Built \d+ zonelists|Policy zone:|Kernel command line:|Unknown kernel command line"
              r"|(Dentry cache|Inode-cache) hash table|Memory: \d+K)"),
    ("freed", r"^Freeing [^:]*: \d+K"),
))

_CALLER = re.compile(r"(\]|max_addr=0x[0-9a-f]+)(?: nid=\S+ flags=\S+)? [^\]]*$")


def compared_lines(messages: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """The messages of one group, without trailing blanks and, for memblock, without the caller's name."""
    lines = [message.rstrip() for message in messages if pattern.match(message)]
    return [_CALLER.sub(r"\1", line) if line.startswith("memblock_") else line for line in lines]


def compare_log(recorded: Sequence[str], model: Sequence[str],
                groups: Sequence[tuple[str, re.Pattern[str]]] = GROUPS) -> Iterator[Check]:
    """One check a line: the two logs' lines of each group, aligned."""
    for name, pattern in groups:
        expected, got = compared_lines(recorded, pattern), compared_lines(model, pattern)
        if expected == got:
            # The usual case, without the cost of aligning.
            for number, line in enumerate(expected, 1):
                yield Check(f"log, {name} {number}", True, line, line)
            continue
        for tag, low, high, model_low, model_high in SequenceMatcher(None, expected, got, autojunk=False).get_opcodes():
            for offset in range(max(high - low, model_high - model_low)):
                left = expected[low + offset] if low + offset < high else "(no line)"
                right = got[model_low + offset] if model_low + offset < model_high else "(no line)"
                yield Check(f"log, {name} {low + offset + 1}", tag == "equal", left, right)


def boot_again(inputs: BootInputs) -> Machine:
    """Boot the model from what a recorded boot started from."""
    return Machine.boot(inputs.firmware_map, inputs.command_line, image=inputs.image, platform=inputs.platform,
                        rules=inputs.rules, config=inputs.config)


# -- /proc ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class _Field:
    """A field of zoneinfo to compare, and how to read it."""

    name: str
    read: Callable[[ZoneInfo], object]


_ZONE_FIELDS = (
    _Field("spanned", lambda z: z.spanned), _Field("present", lambda z: z.present), _Field("managed", lambda z: z.managed),
    _Field("start_pfn", lambda z: z.start_pfn), _Field("cma", lambda z: z.cma),
    # Stealing pageblocks boosts the marks for a while: that is the load's doing, not the boot's.
    _Field("min, low, high", lambda z: (z.min - z.boost, z.low - z.boost, z.high - z.boost)),
    # Zone Device, which the model leaves out, has no pages: protection against it equals that against the zone below.
    _Field("protection", lambda z: z.protection[:4]),
    _Field("high and batch of each CPU", lambda z: [(cpu, high, batch) for cpu, _, high, batch in z.pagesets]),
    _Field("vm stats threshold", lambda z: z.stat_threshold),
)


def _zones(recording: Recording, machine: Machine) -> Iterator[Check]:
    model = {(zone.nid, zone.name): zone for zone in parse_zoneinfo(machine.proc("zoneinfo"))}
    for zone in parse_zoneinfo(recording.section("/proc/zoneinfo")):
        ours = model.get((zone.nid, zone.name))
        if ours is None:
            yield Check(f"zoneinfo, node {zone.nid} {zone.name}", not zone.present, f"{zone.present} pages present", "no such zone")
            continue
        for wanted in _ZONE_FIELDS if zone.present else _ZONE_FIELDS[:3]:
            yield same(f"zoneinfo, node {zone.nid} {zone.name}: {wanted.name}", wanted.read(zone), wanted.read(ours))


def _meminfo(recording: Recording, machine: Machine) -> Iterator[Check]:
    recorded, model = parse_meminfo(recording.section("/proc/meminfo")), parse_meminfo(machine.proc("meminfo"))
    for name in ("MemTotal", "CmaTotal"):
        if name in recorded:
            yield same(f"meminfo: {name} in kB", recorded[name], model.get(name))

    def mapped(values: dict[str, int]) -> int:
        return sum(size for name, size in values.items() if name.startswith("DirectMap"))

    yield same("meminfo: DirectMap4k + DirectMap2M + DirectMap1G in kB", mapped(recorded), mapped(model))


def _tunables(recording: Recording, machine: Machine) -> Iterator[Check]:
    for name in VmTunables.NAMES:
        text = recording.sections.get(f"/proc/sys/vm/{name}")
        if text is not None:
            # Zone Device, which the model leaves out, has a ratio, too.
            model = machine.tunables.read(name).split()
            yield same(f"/proc/sys/vm/{name}", text.split()[:len(model)], model)


def _iomem(recording: Recording, machine: Machine) -> Iterator[Check]:
    recorded = parse_iomem(recording.section("/proc/iomem"))
    if all(entry.end == 1 for entry in recorded):
        return                                      # read without privilege: every address is 0
    found = {(entry.start, entry.end, entry.name) for entry in recorded}
    # Buses and devices are input. Names that firmware and kernel give begin with one of these words.
    decided = re.compile("System RAM|Reserved|Kernel |Crash kernel|RAM buffer|ACPI |Unusable|Persistent|Soft Reserved|Unknown E820")
    machine.platform = machine.platform.replace(
        resources=tuple((entry.start, entry.end, entry.name) for entry in recorded if not decided.match(entry.name)))
    for entry in parse_iomem(machine.proc("iomem")):
        label = f"iomem: {entry.start:08x}-{entry.end - 1:08x} : {entry.name}"
        if decided.match(entry.name):
            yield Check(label, (entry.start, entry.end, entry.name) in found, "no such range", label)
    if machine.rules.release == "5.17":
        got = [(entry.start, entry.end, entry.name, entry.depth) for entry in parse_iomem(machine.proc("iomem"))]
        yield same("iomem: the whole tree", [(entry.start, entry.end, entry.name, entry.depth) for entry in recorded], got)
    for entry in recorded:
        if entry.name == "Crash kernel":
            crash = machine.crashkernel
            ours = {(crash.base, crash.size), (crash.low_base, crash.low_size)} if crash else set()
            yield Check("iomem: Crash kernel", (entry.start, entry.end - entry.start) in ours, f"{entry}", f"{crash}")


def _free_lists(recording: Recording, machine: Machine) -> Iterator[Check]:
    """Rows of zones in which everything is free; elsewhere only that no more is free than managed."""
    info = {(zone.nid, zone.name): zone for zone in parse_zoneinfo(recording.section("/proc/zoneinfo"))}
    model = {(row.nid, row.zone): row for row in parse_buddyinfo(machine.proc("buddyinfo"))}
    types, model_types = parse_pagetypeinfo(recording.section("/proc/pagetypeinfo")), parse_pagetypeinfo(machine.proc("pagetypeinfo"))
    for row in parse_buddyinfo(recording.section("/proc/buddyinfo")):
        key = row.nid, row.zone
        zone = info.get(key)
        if zone is None or row.free_pages != zone.managed or key not in model:
            managed = machine.zone(row.zone, row.nid).managed_pages if key in model else 0
            yield Check(f"buddyinfo, node {row.nid} {row.zone}: free is at most managed", row.free_pages <= managed,
                        f"{row.free_pages} free", f"{managed} managed")
            continue
        yield same(f"buddyinfo, node {row.nid} {row.zone}", row.counts, model[key].counts)
        for (nid, name, kind), counts in types.free.items():
            if (nid, name) == key:
                yield same(f"pagetypeinfo, node {nid} {name}, {kind}", counts, model_types.free.get((nid, name, kind)))
        if key in types.blocks:
            yield same(f"pagetypeinfo, node {row.nid} {row.zone}, pageblocks", types.blocks[key], model_types.blocks.get(key))


def _whole(recording: Recording, huge_pages_later: bool = False) -> Iterator[Check]:
    """Boot again, and compare the log and what there is of /proc; ``huge_pages_later``: khugepaged was started by hand."""
    inputs = boot_inputs(recording)
    try:
        machine = boot_again(inputs)
    except KernelError as error:
        yield Check("the model boots", False, "it booted", f"{type(error).__name__}: {error}")
        return
    if huge_pages_later:
        machine.reserves.set_recommended_min_free_kbytes()
        machine.start.after_wmarks()
    messages = recording.messages()
    # A kernel without memblock=debug does not log these; it logs all else.
    groups = GROUPS if machine.setup.options.memblock_debug else [group for group in GROUPS if group[0] not in ("memblock", "dump")]
    yield from compare_log(messages, machine.dmesg_lines(), groups)
    yield from _tunables(recording, machine)
    for title, compare in (("zoneinfo", _zones), ("meminfo", _meminfo), ("iomem", _iomem), ("pagetypeinfo", _free_lists)):
        if f"/proc/{title}" in recording.sections:
            yield from compare(recording, machine)
    if "/proc/meminfo" in recording.sections and machine.rules.release == "5.17":
        yield from _page_sizes(recording, machine)


def _page_sizes(recording: Recording, machine: Machine) -> Iterator[Check]:
    """The sizes of the direct map's pages, once the kernel has protected its image. The recorded 5.17 has no modules; these
    take rights from single pages, which splits more.
    """
    machine.init_mm.check()
    recorded, model = parse_meminfo(recording.section("/proc/meminfo")), parse_meminfo(machine.proc("meminfo"))
    for name in recorded:
        if name.startswith("DirectMap"):
            yield same(f"meminfo: {name} in kB", recorded[name], model.get(name))


@replays(*(f"linux-*/{scenario}.txt*" for scenario in (
    "buddy", "cg2", "compact", "dev", "huge", "huge-1G", "numa", "oom", "progs", "progs-1G", "swap")))
def boot_log(path: Path) -> Iterator[Check]:
    """The boot before another scenario: the lines of its log about memory, with every memblock call and its address; and
    of /proc what the recording has, which in these is nothing from before the scenario's own work.
    """
    yield from _whole(read_recording(path))


@replays("linux-*/boot.txt*", "boots-*/*.txt*")
def boot_recording(path: Path) -> Iterator[Check]:
    """A whole boot: every memblock call with its address, the log's lines about memory, zones, watermarks, per-CPU
    lists, iomem, and the free lists of zones that nobody has used yet.
    """
    recording = read_recording(path)
    for title in ("zoneinfo", "meminfo", "iomem", "pagetypeinfo", "buddyinfo"):
        recording.section(f"/proc/{title}")
    yield from _whole(recording)


@replays("live-*/proc-*.tar.gz")
def proc_snapshot(path: Path) -> Iterator[Check]:
    """The log and /proc of another build of 5.17 that did not log memblock's calls: all but those, from what the log says
    and the sizes of structures of the recorded build.

    A machine of less than 512 MB boots with khugepaged off. Where its marks show that somebody switched it on since, the
    model does so, too.
    """
    recording = read_snapshot(path)
    zones = [zone for zone in parse_zoneinfo(recording.section("/proc/zoneinfo")) if zone.present]
    managed, reserved = sum(zone.managed for zone in zones), sum(zone.min for zone in zones)
    small = managed < 512 * MIB // PAGE_SIZE
    yield from _whole(recording, small and reserved * PAGE_SIZE // KIB > 2 * int_sqrt(16 * managed * PAGE_SIZE // KIB))
