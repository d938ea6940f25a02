"""The kernel's half of a dumped address space: the same machine is booted, and its tables compared range by range."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mmsim.boot.e820 import E820Entry
from mmsim.constants import _PAGE_ACCESSED, _PAGE_DIRTY, E820_TYPE_RAM
from mmsim.errors import InputError
from mmsim.kernel.layout import CPU_ENTRY_AREA_BASE, Layout
from mmsim.machine import Machine
from mmsim.paging.entry_area import entry_pages
from mmsim.paging.fixmap import Fixmap
from mmsim.paging.memtype import CacheMode, cachemode2protval, pgprot2cachemode
from mmsim.paging.pte import PAGE_KERNEL, PAGE_KERNEL_RO, pte_flags
from mmsim.paging.tables import Leaf
from mmsim.reference import qemu_map, qemu_platform
from mmsim.replay.readers import Record
from mmsim.replay.registry import Check, same
from mmsim.units import MIB, PAGE_SIZE, U64_MAX

__all__ = ["kernel_half"]

#: A range of pages of one size and one protection: start, end, level, flags (A and D are the CPU's affair).
Range = tuple[str, str, int, str]
_IGNORED = _PAGE_ACCESSED | _PAGE_DIRTY


def _ranges(leaves: Iterable[Leaf]) -> list[Range]:
    """Leaves as the recordings have them: neighbours of one size and protection are one range."""
    found: list[list[int]] = []
    for leaf in leaves:
        flags = pte_flags(leaf.word) & ~_IGNORED & U64_MAX
        end = leaf.addr + (1 << (12, 21, 30)[leaf.level - 1])
        if found and found[-1][1:] == [leaf.addr, leaf.level, flags]:
            found[-1][1] = end
        else:
            found.append([leaf.addr, end, leaf.level, flags])
    return [(hex(start), hex(end), level, hex(flags)) for start, end, level, flags in found]


def _boot(record: Record, ranges: list[Range]) -> Machine:
    """The machine of the dump: the emulator's map, with RAM up to where the recorded direct map ends."""
    command: list[str] = record["command"]
    try:
        memory = int(command[command.index("-m") + 1].removesuffix("M")) * MIB
        options = command[command.index("-append") + 1]
    except (ValueError, IndexError):
        raise InputError("the command that made the dump names neither -m with megabytes nor -append") from None
    layout = Layout(memory // PAGE_SIZE)
    top = max(int(end, 16) for start, end, _, _ in ranges if layout.classify(int(start, 16)).name == "direct map") - layout.page_offset
    entries = []
    for entry in qemu_map(memory):
        if entry.type == E820_TYPE_RAM and entry.addr == MIB:
            entry = E820Entry(MIB, top - MIB, entry.type)
        elif entry.end == memory:
            entry = E820Entry(top, memory - top, entry.type)
        entries.append(entry)
    return Machine.boot(entries, options, platform=qemu_platform(memory))


def kernel_half(record: Record) -> Iterator[Check]:
    """Where each range of the kernel's half begins and ends, its page size and rights.

    5.17: the machine is booted again; all ranges must agree but those of the vmalloc region, which drivers ask for: there each
    must be ordinary memory or a device's, with the guard page behind it empty. Of other kernels the image is not known, and
    their modules split the direct map: compared are the entry area of the CPU, the fixmap and what is mapped of struct page.
    """
    recorded: list[Range] = [(one["start"], one["end"], one["level"], one["flags"]) for one in record["kernel_ranges"]]
    ours = any("vmlinuz-5.17" in word for word in record["command"])
    layout = Layout(1)

    def region(one: Range) -> str:
        return layout.classify(int(one[0], 16)).name
    decided = [one for one in recorded if region(one) not in ("vmalloc", "modules")]
    if ours:
        machine = _boot(record, decided)
        got = _ranges(machine.init_mm.kernel_leaves())
        for number, one in enumerate(decided):
            yield same(f"kernel range {number}, {region(one)}", one, got[number] if number < len(got) else None)
        yield same("kernel ranges", len(decided), len(got))
    else:
        entry = [Leaf(CPU_ENTRY_AREA_BASE, 1, PAGE_KERNEL_RO)] + [Leaf(page.addr, 1, page.prot) for page in entry_pages(0)]
        fixmap = Fixmap(vsyscall=True)
        apic = [Leaf(fixmap.virt(name), 1, PAGE_KERNEL | cachemode2protval(CacheMode.UC))
                for name in ("FIX_IO_APIC_BASE_0", "FIX_APIC_BASE")]
        for name, leaves in (("cpu_entry_area", entry), ("fixmap", apic)):
            yield same(f"kernel ranges of the {name}", [one for one in decided if region(one) == name], _ranges(leaves))
    areas = [one for one in recorded if region(one) == "vmalloc"]
    for (start, end, level, flags), following in zip(areas, [*areas[1:], ("0x0", "0x0", 1, "0x0")]):
        mode = pgprot2cachemode(int(flags, 16))
        base = PAGE_KERNEL & ~_IGNORED
        yield same(f"area {start}: protection", (1, flags),
                   (level, hex(base | cachemode2protval(mode if mode is CacheMode.UC_MINUS else CacheMode.WB))))
        yield same(f"area {start}: guard page behind it", True, end != following[0] and re.fullmatch("0x[0-9a-f]+000", end) is not None)
