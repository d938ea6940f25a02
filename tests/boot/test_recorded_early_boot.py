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
    # later the kernel splits the 2 MiB pages around its text and data; the sum stays
    total = sum(int(kib) for kib in re.findall(r"^DirectMap\w+: +(\d+) kB", text, re.MULTILINE))
    assert total == sum(int(line.split()[1]) for line in direct_map.meminfo())
