"""The firmware's memory map: reading it, making it consistent, editing it, and telling memblock where RAM is.

Firmware may list ranges in any order, and they may overlap. The kernel sorts that out with a sweep line: it walks the
addresses at which any entry begins or ends, keeps the set of entries it is inside of, and lets the largest type number
win, so that whatever anybody calls reserved is not used as RAM.

    given      1111111111        usable
                  22222          reserved
                       3333      ACPI data
    swept      111222223333
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mmsim.boot.e820_sweep import TYPE_STRING, TYPE_TEXT, E820Entry, SweepStep, sweep, type_string, type_text
from mmsim.boot.memblock import Memblock
from mmsim.constants import (
    BIOS_BEGIN,
    BIOS_END,
    E820_MAX_ENTRIES,
    E820_MAX_ENTRIES_ZEROPAGE,
    E820_TYPE_PRAM,
    E820_TYPE_RAM,
    E820_TYPE_RESERVED,
    E820_TYPE_RESERVED_KERN,
    E820_TYPE_SOFT_RESERVED,
    MAX_ARCH_PFN,
    MAXMEM,
)
from mmsim.errors import InputError, InvariantError, KernelBug
from mmsim.klog import KernelLog
from mmsim.units import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, U64_MAX, align_up, format_mem_range, u64

__all__ = ["E820Entry", "E820Table", "SweepStep", "sweep", "type_text", "type_string"]

#: 640 KiB less the extended BIOS data area: what a kernel assumes that got no map (LOWMEMSIZE()).
LOWMEM_SIZE = 0x9F000
#: No x86-64 processor can address more (MAXPHYADDR is 52 at most).
MAX_PHYSICAL_ADDRESS = 1 << 52


class E820Table:
    """A memory map: a list of entries, at most 320 (128 from the boot protocol and three for each possible node).

    ``klog`` gets the lines that the kernel prints about it.

    >>> table = E820Table([E820Entry(0, 0x100000, 1), E820Entry(0x9fc00, 0x400, 2)])
    >>> table.update_table()
    0
    >>> print(table.text("BIOS-e820"))
    BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
    BIOS-e820: [mem 0x000000000009fc00-0x000000000009ffff] reserved
    BIOS-e820: [mem 0x00000000000a0000-0x00000000000fffff] usable

    5.17: arch/x86/include/asm/e820/types.h, struct e820_table.
    """

    def __init__(self, entries: Iterable[E820Entry] = (), klog: KernelLog | None = None, max_entries: int = E820_MAX_ENTRIES):
        self.klog = klog
        self.max_entries = max_entries
        self.entries: list[E820Entry] = []
        #: Set once ``mem=`` or ``memmap=`` has touched the map.
        self.userdef = False
        for entry in entries:
            self.range_add(entry.addr, entry.size, entry.type)

    # -- where maps come from ------------------------------------------------------------------------------

    @classmethod
    def from_firmware(cls, entries: list[E820Entry], klog: KernelLog | None = None, alt_mem_kib: int = 0,
                      ext_mem_kib: int = 0) -> tuple[E820Table, str]:
        """Take over the firmware's map and sanitise it; return it with the name of its source.

        A map of fewer than two entries, or with one that runs over 2^64, is thrown away whole: the kernel then makes up
        a map from what older BIOS calls said (KiB above 1 MiB). Entries beyond the 128 of the boot protocol's page come
        by another way (EFI setup data) and are taken as long as the table has room.

        5.17: arch/x86/kernel/e820.c, e820__memory_setup_default().
        """
        table, who = cls(klog=klog), "BIOS-e820"
        usable = len(entries) >= 2
        for entry in entries if usable else ():
            if entry.size and entry.addr > u64(entry.addr + entry.size - 1):
                usable = False
                break
            table.range_add(entry.addr, entry.size, entry.type)
        if not usable:
            who = "BIOS-88" if alt_mem_kib < ext_mem_kib else "BIOS-e801"
            table.entries.clear()
            table.range_add(0, LOWMEM_SIZE, E820_TYPE_RAM)
            table.range_add(MIB, max(alt_mem_kib, ext_mem_kib) * KIB, E820_TYPE_RAM)
        table.update_table()
        return table, who

    @classmethod
    def from_dmesg(cls, text: str, who: str = "BIOS-e820", klog: KernelLog | None = None) -> E820Table:
        """The map of a kernel log: its ``BIOS-e820: [mem …] …`` lines (or those of another ``who``), as they stand
        there.

        Raise InputError if there is none, or if one makes no sense.
        """
        table = cls(klog=klog)
        line_of = re.compile(rf"(?:^|\s|\]){re.escape(who)}: \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] (.*?)\s*$", re.IGNORECASE)
        names = {text: kind for kind, text in reversed(TYPE_TEXT.items())}
        for line in text.splitlines():
            found = line_of.search(line)
            if not found:
                continue
            kind = names.get(found[3])
            if kind is None:
                numbered = re.fullmatch(r"(?:type|persistent \(type) (\d+)\)?", found[3])
                if not numbered:
                    raise InputError(f"unknown memory type in: {line.strip()}")
                kind = int(numbered[1])
            table._append(int(found[1], 16), int(found[2], 16), kind, line.strip())
        if not table.entries:
            raise InputError(f"no {who} lines found: paste the beginning of a kernel log (dmesg)")
        return table

    @classmethod
    def from_memmap(cls, text: str, klog: KernelLog | None = None) -> E820Table:
        """The map in /sys/firmware/memmap, as ``grep . /sys/firmware/memmap/*/*`` prints it.

        Raise InputError if there is none, or if one entry is not complete.
        """
        parts: dict[int, dict[str, str]] = {}
        for number, name, value in re.findall(r"(\d+)/(start|end|type):[ \t]*(.*?)[ \t]*$", text, re.MULTILINE):
            parts.setdefault(int(number), {})[name] = value
        if not parts:
            raise InputError("no memory map found: paste the output of  grep . /sys/firmware/memmap/*/*")
        kinds = {text: kind for kind, text in reversed(TYPE_STRING.items())}
        table = cls(klog=klog)
        for number, entry in sorted(parts.items()):
            where = f"memmap entry {number}"
            if set(entry) != {"start", "end", "type"}:
                raise InputError(f"{where} has only {', '.join(sorted(entry))}")
            try:
                start, last = int(entry["start"], 16), int(entry["end"], 16)
            except ValueError:
                raise InputError(f"{where}: {entry['start']!r} or {entry['end']!r} is no hexadecimal number") from None
            if entry["type"] not in kinds:
                raise InputError(f"{where}: unknown memory type {entry['type']!r}")
            table._append(start, last, kinds[entry["type"]], where)
        return table

    def _append(self, start: int, last: int, kind: int, where: str) -> None:
        if not 0 <= start <= last <= U64_MAX:
            raise InputError(f"the range ends before it starts, or beyond 2^64: {where}")
        if len(self.entries) >= self.max_entries:
            raise InputError(f"more than {self.max_entries} entries: no kernel could hold this map")
        self.range_add(start, last - start + 1, kind)

    # -- editing -------------------------------------------------------------------------------------------

    def range_add(self, start: int, size: int, kind: int) -> None:
        """Append an entry; if the table is full, say so and drop it.

        5.17: arch/x86/kernel/e820.c, __e820__range_add().
        """
        if len(self.entries) >= self.max_entries:
            self._printk(f"too many entries; ignoring {format_mem_range(start, start + size, 8)}")
            return
        self.entries.append(E820Entry(start, size, kind))

    def range_update(self, start: int, size: int, old: int, new: int) -> int:
        """Turn what is of type ``old`` in a range into ``new``; return the bytes turned. The table needs sanitising
        after that.

        5.17: arch/x86/kernel/e820.c, __e820__range_update().
        """
        if old == new:
            raise KernelBug("__e820__range_update: old_type == new_type")
        end = start + min(size, U64_MAX - start)
        self._printk(f"e820: update {format_mem_range(start, end, 8)} {type_text(old)} ==> {type_text(new)}")
        updated = 0
        index = 0
        while index < len(self.entries):        # entries added on the way are looked at, too
            entry = self.entries[index]
            index += 1
            if entry.type != old:
                continue
            if start <= entry.addr and entry.end <= end:
                entry.type = new
                updated += entry.size
                continue
            if entry.addr < start and entry.end > end:
                self.range_add(start, end - start, new)
                self.range_add(end, entry.end - end, old)
                entry.size = start - entry.addr
                updated += end - start
                continue
            updated += self._cut(entry, start, end, new)
        return updated

    def range_remove(self, start: int, size: int, kind: int | None = None) -> int:
        """Cut a range out of all entries, or only of those of one type; return the bytes cut.

        An entry that is cut away whole stays as an empty one until the next :meth:`update_table`.
        5.17: arch/x86/kernel/e820.c, e820__range_remove().
        """
        end = start + min(size, U64_MAX - start)
        self._printk(f"e820: remove {format_mem_range(start, end, 8)} {type_text(kind) if kind is not None else ''}")
        removed = 0
        index = 0
        while index < len(self.entries):
            entry = self.entries[index]
            index += 1
            if kind is not None and entry.type != kind:
                continue
            if start <= entry.addr and entry.end <= end:
                removed += entry.size
                entry.addr = entry.size = entry.type = 0
                continue
            if entry.addr < start and entry.end > end:
                self.range_add(end, entry.end - end, entry.type)
                entry.size = start - entry.addr
                removed += end - start
                continue
            removed += self._cut(entry, start, end, None)
        return removed

    def _cut(self, entry: E820Entry, start: int, end: int, new: int | None) -> int:
        """Take the overlap with a range off one end of an entry, as an entry of type ``new`` if that is given."""
        low, high = max(start, entry.addr), min(end, entry.end)
        if low >= high:
            return 0
        if new is not None:
            self.range_add(low, high - low, new)
        entry.size -= high - low
        if entry.addr >= low:
            entry.addr = high
        return high - low

    def update_table(self) -> int:
        """Sanitise: sort, resolve overlaps in favour of the larger type, merge neighbours of one type, drop empty
        entries.

        Return -1 and leave the table alone if it has fewer than two entries or one that runs over 2^64. What does not
        fit in the table any more is lost. 5.17: arch/x86/kernel/e820.c, e820__update_table().
        """
        if len(self.entries) < 2 or any(u64(entry.end) < entry.addr for entry in self.entries):
            return -1
        merged = [step.finished for step in sweep(self.entries) if step.finished]
        self.entries = merged[:self.max_entries]
        return 0

    def trim_bios_range(self) -> None:
        """Take the first page and 640 KiB to 1 MiB from RAM: they belong to the BIOS even where it forgot to say so.

        5.17: arch/x86/kernel/setup.c, trim_bios_range().
        """
        self.range_update(0, PAGE_SIZE, E820_TYPE_RAM, E820_TYPE_RESERVED)
        self.range_remove(BIOS_BEGIN, BIOS_END - BIOS_BEGIN, E820_TYPE_RAM)
        self.update_table()

    def add_kernel_range(self, start: int, size: int) -> None:
        """Force the kernel image to be RAM, with a warning, if the map does not say so.

        5.17: arch/x86/kernel/setup.c, e820_add_kernel_range().
        """
        if self.mapped_all(start, start + size, E820_TYPE_RAM):
            return
        self._printk(".text .data .bss are not marked as E820_TYPE_RAM!")
        self.range_remove(start, size)
        self.range_add(start, size, E820_TYPE_RAM)

    # -- asking --------------------------------------------------------------------------------------------

    def mapped_any(self, start: int, end: int, kind: int = 0) -> bool:
        """Whether any byte of ``start <= address < end`` is in the map, of type ``kind`` unless that is 0.

        5.17: arch/x86/kernel/e820.c, e820__mapped_any().
        """
        return any((not kind or entry.type == kind) and entry.addr < end and entry.end > start for entry in self.entries)

    def mapped_all(self, start: int, end: int, kind: int = 0) -> bool:
        """Whether every byte of a range is in the (sanitised) map. 5.17: arch/x86/kernel/e820.c, e820__mapped_all()."""
        for entry in self.entries:
            if (kind and entry.type != kind) or entry.addr >= end or entry.end <= start:
                continue
            if entry.addr <= start:
                start = entry.end
            if start >= end:
                return True
        return False

    def end_pfn(self, limit_pfn: int = MAX_ARCH_PFN, kind: int = E820_TYPE_RAM) -> int:
        """The frame behind the last one of a type, below a limit; never above what the kernel can map (64 TiB).

        5.17: arch/x86/kernel/e820.c, e820_end_pfn().
        """
        last_pfn = 0
        for entry in self.entries:
            if entry.type != kind or entry.addr >> PAGE_SHIFT >= limit_pfn:
                continue
            if entry.end >> PAGE_SHIFT > limit_pfn:
                last_pfn = limit_pfn
                break
            last_pfn = max(last_pfn, entry.end >> PAGE_SHIFT)
        last_pfn = min(last_pfn, MAX_ARCH_PFN)
        self._printk(f"last_pfn = {last_pfn:#x} max_arch_pfn = {MAX_ARCH_PFN:#x}")
        return last_pfn

    def end_of_ram_pfn(self) -> int:
        """The frame behind the end of RAM: ``max_pfn``. 5.17: arch/x86/kernel/e820.c, e820__end_of_ram_pfn()."""
        return self.end_pfn()

    def end_of_low_ram_pfn(self) -> int:
        """The frame behind the end of RAM below 4 GiB. 5.17: arch/x86/kernel/e820.c, e820__end_of_low_ram_pfn()."""
        return self.end_pfn(4 * GIB >> PAGE_SHIFT)

    def pci_gap(self, max_pfn: int) -> tuple[int, int]:
        """The largest hole below 4 GiB, where PCI devices get their addresses: (start, size).

        5.17: arch/x86/kernel/e820.c, e820__setup_pci_gap().
        """
        gap_start, gap_size, last = 0, 0x400000, 4 * GIB
        found = False
        for entry in reversed(self.entries):
            if last > entry.end and last - entry.end >= gap_size:
                gap_start, gap_size, found = entry.end, last - entry.end, True
            last = min(last, entry.addr)
        if not found:
            gap_start = (max_pfn << PAGE_SHIFT) + MIB
            self._printk("Cannot find an available gap in the 32-bit address range")
            self._printk("PCI devices with unassigned 32-bit BARs may not work!")
        self._printk(f"{format_mem_range(gap_start, gap_start + gap_size, 8)} available for PCI devices")
        return gap_start, gap_size

    def ram_buffers(self) -> list[tuple[int, int]]:
        """What is kept from devices behind each end of RAM, in case the firmware uses it silently: (start, end).

        Up to 64 KiB in the first MiB, 1 MiB below 16 MiB, 64 MiB above.

        5.17: arch/x86/kernel/e820.c, e820__reserve_resources_late().
        """
        buffers = []
        for entry in self.entries:
            if entry.type != E820_TYPE_RAM:
                continue
            mib = entry.end >> 20
            end = align_up(entry.end, 64 * KIB if not mib else MIB if mib < 16 else 64 * MIB)
            if entry.end < end - 1:
                self._printk(f"e820: reserve RAM buffer {format_mem_range(entry.end, end, 8)}")
                buffers.append((entry.end, end))
        return buffers

    def problems(self) -> list[str]:
        """What is wrong with the map as firmware gave it, in words, for whoever typed it in. Empty if nothing is."""
        found = []
        if len(self.entries) < 2:
            found.append(f"{len(self.entries)} entries: the kernel ignores a map of fewer than two")
        if len(self.entries) > E820_MAX_ENTRIES_ZEROPAGE:
            found.append(f"{len(self.entries)} entries: only {E820_MAX_ENTRIES_ZEROPAGE} fit in the boot protocol's page")
        before: E820Entry | None = None
        for entry in self.entries:
            if not entry.size:
                found.append(f"{entry.addr:#x}: an empty entry")
            if entry.end > U64_MAX:
                found.append(f"{entry}: runs over 2^64, so the kernel ignores the whole map")
            elif entry.end > MAX_PHYSICAL_ADDRESS:
                found.append(f"{entry}: ends above 2^52, where no x86-64 processor can address memory")
            elif entry.type == E820_TYPE_RAM and entry.end > MAXMEM:
                found.append(f"{entry}: RAM above 64 TiB, which a kernel with four levels of page tables does not use")
            if before and entry.addr < before.addr:
                found.append(f"{entry}: not in order")
            before = entry
        ordered = sorted((entry for entry in self.entries if entry.size), key=lambda entry: entry.addr)
        reach = 0
        for entry in ordered:
            if entry.addr < reach:
                found.append(f"{entry}: overlaps an entry that begins below it")
            reach = max(reach, entry.end)
        return found

    # -- handing on ----------------------------------------------------------------------------------------

    def memblock_setup(self, memblock: Memblock) -> None:
        """Tell memblock where RAM is; from here on its arrays may grow. Partial pages are dropped.

        5.17: arch/x86/kernel/e820.c, e820__memblock_setup().
        """
        memblock.allow_resize()
        for entry in self.entries:
            if entry.type == E820_TYPE_SOFT_RESERVED:
                memblock.reserve(entry.addr, entry.size, "e820__memblock_setup")
            if entry.type in (E820_TYPE_RAM, E820_TYPE_RESERVED_KERN):
                memblock.add(entry.addr, entry.size, "e820__memblock_setup")
        memblock.trim_memory(PAGE_SIZE)
        memblock.dump_all()

    def copy(self) -> E820Table:
        """An independent copy: the kernel keeps the firmware's map, one for kexec, and the one it works with."""
        table = E820Table(klog=self.klog, max_entries=self.max_entries)
        table.entries = [E820Entry(entry.addr, entry.size, entry.type) for entry in self.entries]
        table.userdef = self.userdef
        return table

    def text(self, who: str = "BIOS-e820") -> str:
        """The table as dmesg shows it (5.17: arch/x86/kernel/e820.c, e820__print_table())."""
        return "\n".join(f"{who}: {entry}" for entry in self.entries)

    def print_table(self, who: str = "BIOS-e820") -> None:
        """Log the table."""
        for entry in self.entries:
            self._printk(f"{who}: {entry}")

    def _printk(self, text: str) -> None:
        if self.klog is not None:
            self.klog.printk(text.rstrip())

    def check(self) -> None:
        """Raise InvariantError unless the table is as :meth:`update_table` leaves it: sorted, disjoint, not empty,
        merged.
        """
        if len(self.entries) > self.max_entries:
            raise InvariantError(f"e820: {len(self.entries)} entries in a table of {self.max_entries}")
        for index, entry in enumerate(self.entries):
            if entry.size <= 0 or entry.type <= 0:
                raise InvariantError(f"e820[{index}]: {entry} is empty")
            if not index:
                continue
            before = self.entries[index - 1]
            if before.end > entry.addr:
                raise InvariantError(f"e820[{index}]: {entry} overlaps or precedes {before}")
            separate = entry.type in (E820_TYPE_PRAM, E820_TYPE_SOFT_RESERVED)
            if before.end == entry.addr and before.type == entry.type and not separate:
                raise InvariantError(f"e820[{index}]: {entry} is not merged with {before}")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[E820Entry]:
        return iter(self.entries)

    def __repr__(self) -> str:
        ram = sum(entry.size for entry in self.entries if entry.type == E820_TYPE_RAM)
        return f"<E820Table: {len(self.entries)} entries, {ram // KIB} KiB usable>"
