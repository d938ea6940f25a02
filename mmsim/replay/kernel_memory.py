"""What a running kernel tells of its own memory in /sys/kernel/slab and /proc/vmallocinfo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mmsim.errors import InputError
from mmsim.kernel.kmalloc_caches import boot_cache_alignment, parse_kmalloc_name
from mmsim.kernel.slab_layout import SLAB_HWCACHE_ALIGN, SLAB_RECLAIM_ACCOUNT, calculate_alignment, calculate_sizes
from mmsim.paging.memtype import CacheMode
from mmsim.recorded import parse_meminfo
from mmsim.reference import ref256
from mmsim.replay.readers import read_text
from mmsim.replay.registry import Check, replays, same
from mmsim.units import PAGE_SIZE

__all__ = ["slab_sysfs", "vmallocinfo"]


@replays("files/f/sys_kernel_slab*.txt*")
def slab_sysfs(path: Path) -> Iterator[Check]:
    """The files of /sys/kernel/slab of some caches: order, objects a slab, size, alignment, cpu_partial and min_partial from the
    object size; the estimate of objects on the CPUs' partial chains from the number of slabs there."""
    caches: dict[str, dict[str, str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        found = re.match(r"/sys/kernel/slab/([^/ ]+)/(\w+) ?(.*)", line)
        if not found:
            raise InputError(f"line {number} is no file of /sys/kernel/slab: {line[:60]!r}")
        caches.setdefault(found[1], {})[found[2]] = found[3].strip()
    for name, files in caches.items():
        try:
            size = int(files["object_size"])
            flags = SLAB_HWCACHE_ALIGN * int(files["hwcache_align"]) | SLAB_RECLAIM_ACCOUNT * int(files["reclaim_account"])
            chains = re.match(r"(\d+)\((\d+)\)", files["slabs_cpu_partial"])
        except (KeyError, ValueError) as error:
            raise InputError(f"cache {name} lacks a file or has no number in it: {error}") from None
        align = boot_cache_alignment(size, flags) if parse_kmalloc_name(name) else calculate_alignment(flags, 0, size)
        layout = calculate_sizes(size, align, flags, 1)
        for file, value in (("align", align), ("slab_size", layout.size), ("order", layout.order), ("objs_per_slab", layout.objects),
                            ("cpu_partial", layout.cpu_partial), ("min_partial", layout.min_partial)):
            yield same(f"{name}: {file}", files.get(file), str(value))
        if chains:
            yield same(f"{name}: slabs_cpu_partial", int(chains[1]), int(chains[2]) * layout.objects // 2)


#: What the callers in the recordings ask ioremap() for: the firmware's tables may be cached, registers not.
_CACHED = ("acpi_os_map_iomem",)


@replays("*/proc_vmallocinfo", "*/vmallocinfo*.txt*", "*/vmalloc-ioremap*.txt*")
def vmallocinfo(path: Path) -> Iterator[Check]:
    """The size of each area that vmalloc() or ioremap() made; whether the list of its pages is from vmalloc() too; the areas in
    order with the model's own text; their pages as VmallocUsed, and the memory types of devices, where these were recorded too.
    """
    machine = ref256()
    used = devices = 0
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        found = re.match(r"0x\S+-0x\S+ +(\d+) (\w+)\S* (?:pages=(\d+))?(?:phys=0x(\w+))?", line)
        if not found:
            raise InputError(f"line {number} is no area: {line[:60]!r}")
        size, caller, pages, phys = int(found[1]), found[2], int(found[3] or 0), found[4]
        used += pages
        if pages:
            yield same(f"line {number}: size of {pages} pages", size, (pages + 1) * PAGE_SIZE)
            yield same(f"line {number}: vpages", " vpages" in line, 8 * pages > PAGE_SIZE)
        elif phys:
            devices += 1
            mode = CacheMode.WB if caller in _CACHED else CacheMode.UC_MINUS
            addr = machine.ioremap.ioremap(int(phys, 16), size - PAGE_SIZE, mode, line.split()[2])
            area = machine.vmalloc.find_vm_area(addr or 0)
            text = next((one for one in machine.proc("vmallocinfo").splitlines() if one.startswith(f"0x{area.addr:016x}-")), "") \
                if area is not None else "refused"
            yield same(f"line {number}: text", re.sub(r"0x\S+-0x\S+", "", line, count=1), re.sub(r"0x\S+-0x\S+", "", text, count=1))
    types = path.with_name("pat0.txt")
    if devices and types.exists():
        yield same("memory types", read_text(types).rstrip(), machine.ioremap.memtypes.text().rstrip())
    beside = path.with_name("proc_meminfo")
    if beside.exists():
        yield same("VmallocUsed in kB", parse_meminfo(read_text(beside)).get("VmallocUsed"), used << 2)
    if devices:
        machine.vmalloc.check()
