"""Machines for the figures of this chapter: qemu's firmware map for any amount of RAM, with holes if wanted."""

from __future__ import annotations

from mmsim.boot.e820 import E820Entry, E820Table
from mmsim.boot.memblock import Memblock
from mmsim.constants import E820_TYPE_RAM, E820_TYPE_RESERVED
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.reference import qemu_map, qemu_platform
from mmsim.units import GIB, MIB, PAGE_SIZE, TIB, align_down, format_bytes

__all__ = ["pc_map", "pc_memblock", "boot_pc"]

#: Nothing may be cut out below this: the kernel image and some room for it.
HOLES_ABOVE = 64 * MIB


def pc_map(ram: int, holes: int = 0) -> list[E820Entry]:
    """What qemu's firmware says about ``ram`` bytes, with so many reserved ranges cut out of the RAM above 64 MiB.

    Each hole is a sixteenth of the RAM below 4 GiB. Raise InputError below 32 MiB.
    """
    if not 32 * MIB <= ram <= 64 * TIB:
        raise InputError(f"RAM must be 32 MiB to 64 TiB, not {format_bytes(ram)}")
    entries = qemu_map(ram)
    low = min(ram, 3 * GIB)
    size = max(align_down(low // 16, 2 * MIB), 2 * MIB)
    for number in range(1, holes + 1 if low >= 2 * HOLES_ABOVE else 0):
        start = align_down(HOLES_ABOVE + (low - HOLES_ABOVE) * number // (holes + 2), 2 * MIB)
        entries.append(E820Entry(start, size, E820_TYPE_RESERVED))
    return entries


def pc_memblock(ram: int) -> Memblock:
    """A memblock that knows the RAM of :func:`pc_map` and has reserved the first MiB."""
    table, _ = E820Table.from_firmware(pc_map(ram))
    table.trim_bios_range()
    memblock = Memblock()
    for entry in table:
        if entry.type == E820_TYPE_RAM:
            memblock.add(entry.addr, entry.size)
    memblock.trim_memory(PAGE_SIZE)
    memblock.reserve(0, MIB, who="first MiB")
    return memblock


def boot_pc(ram: int, holes: int = 0, nodes: int = 1, crashkernel: str = "", initrd: int = 0) -> Machine:
    """Boot a machine such as the recorded ones: sizes in bytes, nodes by ``numa=fake=``.

    Raise InputError for an initial RAM disk that does not fit, or for text that is not one option.
    """
    if " " in crashkernel.strip():
        raise InputError("crashkernel: one value without spaces, such as 64M or 512M-2G:64M,2G-:128M")
    words = [f"numa=fake={nodes}"] if nodes > 1 else []
    words += [f"crashkernel={crashkernel.strip()}"] if crashkernel.strip() else []
    platform = qemu_platform(ram)
    if initrd and platform.initrd:
        start = align_down(sum(platform.initrd) - initrd, PAGE_SIZE)
        if start < HOLES_ABOVE * 3 // 4:
            raise InputError(f"an initial RAM disk of {format_bytes(initrd)} does not fit beside the kernel")
        platform = platform.replace(initrd=(start, initrd))
    else:
        platform = platform.replace(initrd=None)
    return Machine.boot(pc_map(ram, holes), " ".join(words), platform=platform)
