"""``mem=`` and ``memmap=``: the command line edits the firmware's map.

    mem=300M            forget RAM from 300 MiB up
    memmap=300M         the same
    memmap=64M$256M     64 MiB from 256 MiB are reserved    (``@`` RAM, ``#`` ACPI data, ``!`` persistent memory)
    memmap=exactmap     forget the whole map; what follows builds a new one
    memmap=1M%4G-1+2    type 1 in 1 MiB from 4 GiB becomes type 2 (either may be left out)
"""

from __future__ import annotations

import re

from mmsim.boot.e820 import E820Table
from mmsim.constants import E820_TYPE_ACPI, E820_TYPE_PRAM, E820_TYPE_RAM, E820_TYPE_RESERVED
from mmsim.errors import KernelPanic
from mmsim.units import U64_MAX, memparse

__all__ = ["EINVAL", "parse_memopt", "parse_memmap_opt", "parse_command_line", "finish_early_params"]

EINVAL = 22
_ADDED_TYPE = {"@": E820_TYPE_RAM, "#": E820_TYPE_ACPI, "$": E820_TYPE_RESERVED, "!": E820_TYPE_PRAM}


def parse_memopt(table: E820Table, value: str) -> int:
    """``mem=value``. Return 0, or -EINVAL for a size of 0 or none. 5.17: arch/x86/kernel/e820.c, parse_memopt()."""
    if value == "nopentium":
        if table.klog is not None:
            table.klog.printk("mem=nopentium ignored! (only supported on x86_32)")
        return -EINVAL
    table.userdef = True
    size, _ = memparse(value)
    if not size:
        return -EINVAL
    table.range_remove(size, U64_MAX - size, E820_TYPE_RAM)
    return 0


def _parse_memmap_one(table: E820Table, value: str) -> int:
    """One item of ``memmap=``. 5.17: arch/x86/kernel/e820.c, parse_memmap_one()."""
    if value.startswith("exactmap"):
        table.entries.clear()
        table.userdef = True
        return 0
    size, rest = memparse(value)
    if rest == value:
        return -EINVAL
    table.userdef = True
    if rest[:1] in _ADDED_TYPE:
        start, after = memparse(rest[1:])
        table.range_add(start, size, _ADDED_TYPE[rest[0]])
        rest = after
    elif rest[:1] == "%":
        return _parse_memmap_types(table, size, rest[1:])
    else:
        table.range_remove(size, U64_MAX - size, E820_TYPE_RAM)
    return -EINVAL if rest else 0


def _parse_memmap_types(table: E820Table, size: int, rest: str) -> int:
    """``memmap=size%start-from+to``: change, add or remove a range of given types."""
    start, rest = memparse(rest)
    old = new = 0
    if rest[:1] == "-":
        old, rest = _number(rest[1:])
    if rest[:1] == "+":
        new, rest = _number(rest[1:])
    if rest:
        return -EINVAL
    if old and new:
        table.range_update(start, size, old, new)
    elif new:
        table.range_add(start, size, new)
    else:
        table.range_remove(start, size, old or None)
    return 0


def _number(text: str) -> tuple[int, str]:
    """A number in C notation without a suffix, and what follows (5.17: lib/vsprintf.c, simple_strtoull())."""
    found = re.match(r"0[xX][0-9a-fA-F]+|[0-9]+", text)
    if not found:
        return 0, text
    return memparse(found[0])[0], text[found.end():]


def parse_memmap_opt(table: E820Table, value: str) -> int:
    """``memmap=value``: items separated by commas, each taken as far as it makes sense; a wrong one is passed over
    silently.

    5.17: arch/x86/kernel/e820.c, parse_memmap_opt().
    """
    for item in value.split(","):
        _parse_memmap_one(table, item)
    return 0


def parse_command_line(table: E820Table, command_line: str) -> None:
    """Apply every ``mem=`` and ``memmap=`` of a command line, in its order; a wrong one is reported as the kernel does.

    5.17: init/main.c, do_early_param().
    """
    for word in command_line.split():
        name, equals, value = word.partition("=")
        if not equals:
            continue
        failed = 0
        if name == "mem":
            failed = parse_memopt(table, value)
        elif name == "memmap":
            failed = parse_memmap_opt(table, value)
        if failed and table.klog is not None:
            table.klog.printk(f"Malformed early option '{name}'")


def finish_early_params(table: E820Table) -> None:
    """Sanitise and print a map that the command line touched; panic if nothing usable is left.

    5.17: arch/x86/kernel/e820.c, e820__finish_early_params().
    """
    if not table.userdef:
        return
    if table.update_table() < 0:
        raise KernelPanic("Invalid user supplied memory map")
    if table.klog is not None:
        table.klog.printk("user-defined physical RAM map:")
    table.print_table("user")
