"""From the firmware's map to the finished direct map: the log lines equal those of fourteen recorded 5.17 boots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmsim.boot.brk import BrkArea
from mmsim.boot.direct_map import DirectMap
from mmsim.boot.e820 import E820Table
from mmsim.boot.e820_params import finish_early_params, parse_command_line
from mmsim.boot.memblock import Memblock
from mmsim.clock import Clock
from mmsim.klog import KernelLog

RECORDINGS = Path(__file__).parent.parent / "golden" / "recordings"
BOOTS = sorted((RECORDINGS / "boots-5.17").glob("*.txt")) + [RECORDINGS / "linux-5.17" / "boot.txt"]
COMPARED = re.compile(r"user|e820: (?:update|remove)|last_pfn|MEMBLOCK| ?(?:memory|reserved)\b|memblock_(?:add|phys)"
                      r"|memblock_reserve: .* (?:memblock_alloc_range_nid|reserve_real_mode)")


def recorded_lines(text: str) -> list[str]:
    """The compared lines up to the end of the direct map, without times and without the compiler's offsets."""
    lines = [re.sub(r"\+0x\w+/0x\w+", "", re.sub(r"^\[ *[\d.]+\] ", "", line)).rstrip() for line in text.splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("BIOS-e820"))
    last = next(number for number, line in enumerate(lines) if line.startswith("RAMDISK"))
    return [line for line in lines[first:last] if COMPARED.match(line)]


def boot(text: str) -> tuple[KernelLog, DirectMap]:
    """setup_arch() as far as this goes, on the recorded map, with the recorded first reservations."""
    log = KernelLog(Clock())
    command_line = re.search(r"Command line: (.*)", text)
    dump = re.search(r"reserved\.cnt  = .*?\n((?:.*reserved\[.*\n)+)", text)
    assert command_line and dump
    table, _ = E820Table.from_firmware(list(E820Table.from_dmesg(text)), klog=log)
    parse_command_line(table, command_line[1])
    finish_early_params(table)
    table.trim_bios_range()
    table.check()
    max_pfn = table.end_of_ram_pfn()
    if max_pfn > 0x100000:
        table.end_of_low_ram_pfn()
    memblock = Memblock(klog=log)
    for start, last in re.findall(r"reserved\[.*?\]\t\[(0x\w+)-(0x\w+)\]", dump[1]):
        memblock.reserve(int(start, 16), int(last, 16) + 1 - int(start, 16))
    direct_map = DirectMap(memblock, BrkArea(0x2000000, 0x2030000))
    memblock.debug = True
    table.memblock_setup(memblock)
    memblock.phys_alloc_range(24576, 4096, 0, 1 << 20, "reserve_real_mode")
    memblock.reserve(0, 1 << 20, "reserve_real_mode")
    memblock.set_current_limit(1 << 20)
    direct_map.init_mem_mapping(max_pfn)
    direct_map.check()
    memblock.check()
    return log, direct_map


@pytest.mark.parametrize("path", BOOTS, ids=lambda path: path.stem)
def test_map_memblock_and_page_table_allocations_are_logged_as_recorded(path: Path) -> None:
    text = path.read_text(errors="replace")
    log, direct_map = boot(text)
    assert [line.rstrip() for line in log.lines() if COMPARED.match(line)] == recorded_lines(text)
    assert direct_map_after_boot(direct_map) == re.findall(r"^DirectMap\w+: +\d+ kB", text, re.MULTILINE)


#: Sections of the recorded kernel, from its log: what is freed or made read-only is given other attributes.
TEXT_END, RODATA, RODATA_END, DATA = 0x1802000, 0x1A00000, 0x1B5E000, 0x1C00000
INIT, SMP_LOCKS, IDT = (0x1D29000, 0x1E1E000), (0x1E1E000, 0x1E24000), 0x1E25000


def direct_map_after_boot(direct_map: DirectMap) -> list[str]:
    """The DirectMap lines after the kernel protected its image, which is the same in all these recordings."""
    direct_map.memblock.set_current_limit(direct_map.max_pfn_mapped << 12)

    def frame() -> int:
        return direct_map.memblock.alloc(4096, 4096)
    direct_map.change_attributes(IDT, IDT + 4096, frame)
    direct_map.change_attributes(*SMP_LOCKS, frame, alias=False)
    direct_map.change_attributes(*INIT, frame, alias=False)
    direct_map.change_attributes(TEXT_END, RODATA, frame)
    direct_map.change_attributes(RODATA_END, DATA, frame)
    assert len(direct_map.image_tables) == 4
    return direct_map.meminfo()


def test_after_boot_the_direct_map_has_the_page_sizes_that_a_stopped_guest_had() -> None:
    """Three pages are split in the direct map and four in the image's mapping; meminfo counts seven."""
    _, direct_map = boot((RECORDINGS / "linux-5.17" / "boot.txt").read_text(errors="replace"))
    direct_map_after_boot(direct_map)
    levels = {base: found[0] if (found := direct_map.translate(base)) else 0 for base in range(0, 36 << 20, 2 << 20)}
    assert [base for base, level in levels.items() if level == 1] == [0, 0x1800000, 0x1A00000, 0x1E00000]
    assert sorted(direct_map.image_tables) == [0x1800000, 0x1A00000, 0x1C00000, 0x1E00000]
    direct_map.check()
