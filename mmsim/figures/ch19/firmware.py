"""Firmware maps for the figures of this chapter: the map that the recorded machines have, for any amount of RAM."""

from __future__ import annotations

from mmsim.boot.e820 import E820Entry, E820Table
from mmsim.boot.memblock import Memblock
from mmsim.constants import E820_TYPE_RAM, E820_TYPE_RESERVED
from mmsim.errors import InputError
from mmsim.units import GIB, KIB, MIB, TIB

__all__ = ["pc_map", "pc_memblock"]

#: RAM that does not fit below the windows of PCI devices continues at 4 GiB.
LOW_RAM_END = 3 * GIB
#: The firmware keeps this much at the end of low RAM for its ACPI tables.
ACPI_SIZE = 164 * KIB


def pc_map(ram: int, holes: int = 0) -> list[E820Entry]:
    """What the firmware of the recorded machines says about ``ram`` bytes: usable and reserved ranges.

    ``holes`` cuts so many reserved ranges, each a sixteenth of RAM, out of the RAM above 64 MiB. Raise InputError below 32 MiB.
    """
    if not 32 * MIB <= ram <= 64 * TIB:
        raise InputError(f"RAM must be 32 MiB to 64 TiB, not {ram >> 20} MiB")
    low = min(ram, LOW_RAM_END)
    entries = [
        E820Entry(0, 0x9FC00, E820_TYPE_RAM), E820Entry(0x9FC00, 0x400, E820_TYPE_RESERVED),
        E820Entry(0xF0000, 0x10000, E820_TYPE_RESERVED), E820Entry(MIB, low - MIB - ACPI_SIZE, E820_TYPE_RAM),
        E820Entry(low - ACPI_SIZE, ACPI_SIZE, E820_TYPE_RESERVED), E820Entry(4 * GIB - 256 * KIB, 256 * KIB, E820_TYPE_RESERVED),
    ]  # fmt: skip
    if ram > low:
        entries.append(E820Entry(4 * GIB, ram - low, E820_TYPE_RAM))
    entries.append(E820Entry(0xFD_0000_0000, 0x3_0000_0000, E820_TYPE_RESERVED))
    size = max(low // 16 >> 21 << 21, 2 * MIB)
    for number in range(1, holes + 1):
        start = (64 * MIB + (low - 64 * MIB) * number // (holes + 1)) >> 21 << 21
        if low >= 128 * MIB and start + size < low - ACPI_SIZE:
            entries.append(E820Entry(start, size, E820_TYPE_RESERVED))
    return entries


def pc_memblock(ram: int) -> Memblock:
    """A memblock that knows the RAM of :func:`pc_map`, with the kernel image's default place and the first MiB reserved."""
    table = E820Table(pc_map(ram))
    table.update_table()
    table.trim_bios_range()
    memblock = Memblock()
    for entry in table.entries:
        if entry.type == E820_TYPE_RAM:
            memblock.add(entry.addr, entry.size)
    memblock.trim_memory(4096)
    memblock.reserve(0, MIB, who="first MiB")
    return memblock
