"""The three machines of the book.

    toy16    16 MiB, all of it in zone DMA: small enough to draw every page
    ref256   the machine of the recorded boot: 256 MiB, one CPU, qemu's firmware map
    big64    64 GiB on two nodes with four CPUs each

Each function boots a machine anew: machines change while they are used.
"""

from __future__ import annotations

from collections.abc import Callable

from mmsim.boot.e820 import E820Entry
from mmsim.boot.image import TINY_IMAGE, AcpiTable, KernelImage, Platform, SratMemory
from mmsim.constants import E820_TYPE_RAM, E820_TYPE_RESERVED
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.trace import Trace
from mmsim.units import GIB, KIB, MIB

__all__ = ["REFERENCE_MACHINES", "TOY16_MAP", "REF256_MAP", "BIG64_MAP", "REF256_COMMAND_LINE",
           "qemu_map", "qemu_platform", "qemu_resources", "reference", "toy16", "ref256", "big64"]

_INITRD_SIZE = 0x47E000


def qemu_map(memory: int) -> list[E820Entry]:
    """The firmware map that qemu's BIOS gives a machine with ``memory`` bytes: 3 GiB of it below 4 GiB, the rest
    above.
    """
    below = memory if memory < 3 * GIB + 512 * MIB else 3 * GIB
    top = below - 0x29000
    entries = [E820Entry(0, 0x9FC00, E820_TYPE_RAM), E820Entry(0x9FC00, 0x400, E820_TYPE_RESERVED),
               E820Entry(0xF0000, 0x10000, E820_TYPE_RESERVED), E820Entry(MIB, top - MIB, E820_TYPE_RAM),
               E820Entry(top, below - top, E820_TYPE_RESERVED), E820Entry(0xFFFC_0000, 0x4_0000, E820_TYPE_RESERVED)]
    if memory > below:
        entries.append(E820Entry(4 * GIB, memory - below, E820_TYPE_RAM))
    entries.append(E820Entry(0xFD_0000_0000, 12 * GIB, E820_TYPE_RESERVED))
    return entries


def qemu_resources(memory: int) -> tuple[tuple[int, int, str], ...]:
    """What the recorded qemu has at physical addresses besides memory: the PCI bus and its devices, ROMs, interrupt controllers."""
    below = memory if memory < 3 * GIB + 512 * MIB else 3 * GIB
    above = 4 * GIB + memory - below
    disks = [found for slot, low in ((3, 0), (4, 1), (5, 2)) for found in (
        (0xFE00_0000 + low * 0x4000, 0xFE00_4000 + low * 0x4000, f"0000:00:{slot:02x}.0"),
        (0xFE00_0000 + low * 0x4000, 0xFE00_4000 + low * 0x4000, "virtio-pci-modern"))]
    registers = [(0xFEBF_0000 + low * 0x1000, 0xFEBF_1000 + low * 0x1000, f"0000:00:{low + 2:02x}.0") for low in range(4)]
    return ((0xA0000, 0xC0000, "PCI Bus 0000:00"), (0xC0000, 0xC9C00, "Video ROM"), (0xCA000, 0xCA600, "Adapter ROM"),
            (0xF0000, 0x100000, "System ROM"), (below, 0xFEC0_0000, "PCI Bus 0000:00"),
            (0xFD00_0000, 0xFE00_0000, "0000:00:02.0"), *disks, (0xFEBE_0000, 0xFEBF_0000, "0000:00:02.0"), *registers,
            (0xFEC0_0000, 0xFEC0_0400, "IOAPIC 0"), (0xFED0_0000, 0xFED0_0400, "HPET 0"), (0xFED0_0000, 0xFED0_0400, "PNP0103:00"),
            (0xFEE0_0000, 0xFEE0_1000, "Local APIC"), (above, above + 2 * GIB, "PCI Bus 0000:00"))


def qemu_platform(memory: int, nr_cpus: int = 1) -> Platform:
    """What qemu hands over besides: the RAM disk at the top of the lower memory (below 2 GiB), and its ACPI tables."""
    below = memory if memory < 3 * GIB + 512 * MIB else 3 * GIB
    tables = below - 0x20000
    top = 2 * GIB if below > 2 * GIB + 512 * MIB else below - 0x30000
    return Platform(
        initrd=(top - _INITRD_SIZE, _INITRD_SIZE), nr_cpus=nr_cpus, resources=qemu_resources(memory),
        acpi_tables=tuple(AcpiTable(name, tables + offset, length) for name, offset, length in (
            ("FACP", 0x198C, 0x74), ("DSDT", 0x40, 0x194C), ("FACS", 0, 0x40), ("APIC", 0x1A00, 0x78), ("HPET", 0x1A78, 0x38),
            ("WAET", 0x1AB0, 0x28))))


#: The recorded machine's map, word for word.
REF256_MAP: tuple[E820Entry, ...] = (
    E820Entry(0x0, 0x9FC00, E820_TYPE_RAM),
    E820Entry(0x9FC00, 0x400, E820_TYPE_RESERVED),
    E820Entry(0xF0000, 0x10000, E820_TYPE_RESERVED),
    E820Entry(0x100000, 0xFED7000, E820_TYPE_RAM),
    E820Entry(0xFFD7000, 0x29000, E820_TYPE_RESERVED),
    E820Entry(0xFFFC0000, 0x40000, E820_TYPE_RESERVED),
    E820Entry(0xFD00000000, 0x300000000, E820_TYPE_RESERVED),
)
REF256_COMMAND_LINE = "console=ttyS0 panic=-1 nokaslr nopti memblock=debug ignore_loglevel  scenario=boot"

TOY16_MAP: tuple[E820Entry, ...] = (
    E820Entry(0x0, 0x9FC00, E820_TYPE_RAM),
    E820Entry(0x9FC00, 0x400, E820_TYPE_RESERVED),
    E820Entry(0xF0000, 0x10000, E820_TYPE_RESERVED),
    E820Entry(0x100000, 15 * MIB, E820_TYPE_RAM),
)

BIG64_MAP: tuple[E820Entry, ...] = tuple(qemu_map(64 * GIB))


def toy16(command_line: str = "", *, trace: Trace | None = None) -> Machine:
    """16 MiB, one zone (DMA), a kernel of 1 MiB and a RAM disk of 256 KiB: 4096 frames."""
    platform = Platform(initrd=(15 * MIB, 256 * KIB))
    return Machine.boot(TOY16_MAP, command_line, image=TINY_IMAGE, platform=platform, trace=trace)


def ref256(command_line: str = REF256_COMMAND_LINE, *, trace: Trace | None = None) -> Machine:
    """The recorded boot: 256 MiB; its log and its zones equal those of the real 5.17.0."""
    return Machine.boot(REF256_MAP, command_line, platform=qemu_platform(256 * MIB), trace=trace)


def big64(command_line: str = "", *, trace: Trace | None = None) -> Machine:
    """64 GiB on two nodes of 32 GiB, eight CPUs."""
    edge = 33 * GIB
    srat = (SratMemory(0, 0, 0xA0000, 0), SratMemory(0, MIB, 3 * GIB, 0), SratMemory(0, 4 * GIB, edge, 0),
            SratMemory(1, edge, 65 * GIB, 1))
    platform = qemu_platform(64 * GIB, 8).replace(srat=srat, cpu_to_node=(0,) * 4 + (1,) * 4, distances=((10, 20), (20, 10)))
    return Machine.boot(BIG64_MAP, command_line, image=KernelImage(), platform=platform, trace=trace)


REFERENCE_MACHINES: dict[str, Callable[..., Machine]] = {"toy16": toy16, "ref256": ref256, "big64": big64}


def reference(name: str, command_line: str | None = None, *, trace: Trace | None = None) -> Machine:
    """A reference machine by name. Raise InputError for an unknown one."""
    if name not in REFERENCE_MACHINES:
        raise InputError(f"no reference machine {name}; there are {', '.join(REFERENCE_MACHINES)}")
    boot = REFERENCE_MACHINES[name]
    return boot(trace=trace) if command_line is None else boot(command_line, trace=trace)
