"""memblock with many regions against sorting the whole table anew, and whole boots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Row, median, median_ns
from mmsim.boot.memblock import Memblock
from mmsim.units import MIB

ROOT = Path(__file__).resolve().parent.parent
REGIONS = 10_000
BOOT = """
import json, re, sys, time
from mmsim import reference
def peak():                             # of this program alone: ru_maxrss also remembers the parent's peak
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
before = peak()
begin = time.process_time()
machine = getattr(reference, sys.argv[1])()
spent = time.process_time() - begin
after = peak()
print(json.dumps([spent, after / 1024, (after - before) / 1024, machine.memory.frames.nr_frames
                  if hasattr(machine.memory.frames, "nr_frames") else sum(z.present_pages for z in machine.zones)]))
"""


def boots(name: str, times: int) -> tuple[float, float, float, float]:
    """(CPU seconds, MiB resident, MiB more than before the boot, frames), medians over fresh processes."""
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", BOOT, name], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(times)
    ]
    seconds, resident, grown, frames = (median([run[i] for run in runs]) for i in range(4))
    return seconds, resident, grown, frames


def run() -> list[Row]:
    memblock = Memblock()
    memblock.add(0, (REGIONS + 1000) * 2 * MIB)
    memblock.allow_resize()
    for number in range(REGIONS):
        memblock.reserve(number * 2 * MIB, MIB)
    extra = iter(range(REGIONS, REGIONS + 1000))

    def reserve() -> int:
        for _ in range(100):
            memblock.reserve(next(extra) * 2 * MIB, MIB)
        return 100

    ours = median_ns(reserve)
    table = [(number * 2 * MIB, MIB) for number in range(REGIONS)]

    def naive() -> int:
        for number in range(10):
            table.append(((REGIONS + number) * 2 * MIB, MIB))
            table.sort()
            merged: list[tuple[int, int]] = []
            for base, size in table:
                if merged and merged[-1][0] + merged[-1][1] >= base:
                    merged[-1] = (merged[-1][0], max(merged[-1][1], base + size - merged[-1][0]))
                else:
                    merged.append((base, size))
        del table[REGIONS:]
        return 10

    other = median_ns(naive)
    rows = [Row("memblock", f"one `memblock_reserve` beside {REGIONS} regions", ours / 1000, other / 1000, "sorting and merging all", "µs")]
    for name, times, seconds_target, resident_target in (("ref256", 5, 0.2, 0.0), ("big64", 3, 2.0, 600.0)):
        seconds, resident, grown, frames = boots(name, times)
        rows.append(Row("boot", f"{name}, CPU time", seconds, seconds_target, "the target", "s", "≤ 1"))
        if resident_target:
            rows.append(Row("boot", f"{name}, memory of the process", resident, resident_target, "the target", "MiB", "≤ 1"))
            rows.append(Row("boot", f"{name}, simulated frames per MiB of host memory", frames / max(grown, 0.1), 25_000, "the target",
                            "frames", "≥ 1"))
    return rows
