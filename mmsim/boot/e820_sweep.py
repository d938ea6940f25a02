"""Entries of a firmware map, and the sweep line that makes a consistent map of them.

    address    0   4   8   12      the line meets the edges of entries from left to right;
    RAM        ########            ``active`` is the set it is inside of, and the largest type
    reserved       ########        among them holds until the next edge
    result     111122222222
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mmsim.constants import (
    E820_TYPE_ACPI,
    E820_TYPE_NVS,
    E820_TYPE_PMEM,
    E820_TYPE_PRAM,
    E820_TYPE_RAM,
    E820_TYPE_RESERVED,
    E820_TYPE_RESERVED_KERN,
    E820_TYPE_SOFT_RESERVED,
    E820_TYPE_UNUSABLE,
)
from mmsim.units import format_mem_range

__all__ = ["TYPE_STRING", "TYPE_TEXT", "E820Entry", "SweepStep", "sweep", "type_string", "type_text"]

TYPE_TEXT = {
    E820_TYPE_RAM: "usable", E820_TYPE_RESERVED_KERN: "usable", E820_TYPE_RESERVED: "reserved",
    E820_TYPE_SOFT_RESERVED: "soft reserved", E820_TYPE_ACPI: "ACPI data", E820_TYPE_NVS: "ACPI NVS",
    E820_TYPE_UNUSABLE: "unusable", E820_TYPE_PMEM: "persistent (type 7)", E820_TYPE_PRAM: "persistent (type 12)",
}
TYPE_STRING = {
    E820_TYPE_RAM: "System RAM", E820_TYPE_RESERVED_KERN: "System RAM", E820_TYPE_ACPI: "ACPI Tables",
    E820_TYPE_NVS: "ACPI Non-volatile Storage", E820_TYPE_UNUSABLE: "Unusable memory",
    E820_TYPE_PRAM: "Persistent Memory (legacy)", E820_TYPE_PMEM: "Persistent Memory", E820_TYPE_RESERVED: "Reserved",
    E820_TYPE_SOFT_RESERVED: "Soft Reserved",
}


def type_text(kind: int) -> str:
    """A type as dmesg prints it (5.17: arch/x86/kernel/e820.c, e820_print_type()).

    >>> type_text(1), type_text(4), type_text(20)
    ('usable', 'ACPI NVS', 'type 20')
    """
    return TYPE_TEXT.get(kind, f"type {kind}")


def type_string(kind: int) -> str:
    """A type as /proc/iomem and /sys/firmware/memmap name it (5.17: arch/x86/kernel/e820.c, e820_type_to_string())."""
    return TYPE_STRING.get(kind, "Unknown E820 type")


@dataclass(slots=True)
class E820Entry:
    """One entry of a map: first byte, bytes, type (5.17: arch/x86/include/asm/e820/types.h, struct e820_entry)."""

    addr: int
    size: int
    type: int

    @property
    def end(self) -> int:
        """The first address behind the entry."""
        return self.addr + self.size

    def __str__(self) -> str:
        return f"{format_mem_range(self.addr, self.end)} {type_text(self.type)}"


class SweepStep(NamedTuple):
    """The sweep line at one change point: which entry begins or ends there, and what holds from here on."""

    addr: int
    entry: int                  # its index in the map given
    begins: bool
    active: tuple[int, ...]     # the indices of all entries the line is inside of now
    type: int                   # the largest of their types, 0 for none
    finished: E820Entry | None  # the entry of the new map that ends here, if one does


def sweep(entries: list[E820Entry]) -> Iterator[SweepStep]:
    """Walk the change points of a map upwards. At one address entries begin before others end.

    O(n log n) to sort, then O(n) a step. 5.17: arch/x86/kernel/e820.c, the loop of e820__update_table().

    >>> steps = sweep([E820Entry(0, 8, 1), E820Entry(4, 8, 2)])
    >>> [(step.addr, step.type, step.finished and step.finished.size) for step in steps]
    [(0, 1, None), (4, 2, 4), (8, 2, None), (12, 0, 8)]
    """
    points = []
    for index, entry in enumerate(entries):
        if entry.size:
            points += [(entry.addr, False, index), (entry.end, True, index)]
    points.sort()
    active: list[int] = []
    last_type, last_addr = 0, 0
    for addr, ends, index in points:
        if ends:
            active.remove(index)
        else:
            active.append(index)
        current = max((entries[i].type for i in active), default=0)
        finished = None
        if current != last_type or current in (E820_TYPE_PRAM, E820_TYPE_SOFT_RESERVED):
            if last_type and addr > last_addr:
                finished = E820Entry(last_addr, addr - last_addr, last_type)
            if current:
                last_addr = addr
            last_type = current
        yield SweepStep(addr, index, not ends, tuple(active), current, finished)
