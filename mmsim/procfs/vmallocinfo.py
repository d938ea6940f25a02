"""/proc/vmallocinfo: every area of the vmalloc region, lowest address first."""

from __future__ import annotations

from collections import Counter

from mmsim.kernel.layout import Layout
from mmsim.kernel.vmalloc import VM_ALLOC, VM_IOREMAP, VM_MAP, Vmalloc

__all__ = ["vmallocinfo", "vmalloc_meminfo"]


def vmallocinfo(region: Vmalloc) -> str:
    """The text of /proc/vmallocinfo; sizes include the guard page. Ranges that wait for a purge come last.

    Addresses are printed as root sees them with ``kernel.kptr_restrict`` 0 and ``no_hash_pointers``; a caller without its offset
    in the function. 5.17: mm/vmalloc.c, s_show(), show_numa_info(), show_purge_info().
    """
    lines = []
    for start, end in region.areas.busy:
        if start in region.ram:
            lines.append(f"0x{start:016x}-0x{end:016x} {end - start:7d} vm_map_ram\n")
            continue
        area = region.vm[start]
        line = f"0x{area.addr:016x}-0x{area.addr + area.size:016x} {area.size:7d}"
        if area.caller:
            line += f" {area.caller}"
        if area.pages:
            line += f" pages={len(area.pages)}"
        if area.flags & VM_IOREMAP:
            line += f" phys=0x{area.phys_addr:016x} ioremap"
        line += " vmalloc" * bool(area.flags & VM_ALLOC) + " vmap" * bool(area.flags & VM_MAP)
        if region.layout.is_vmalloc_addr(area.pages_at):
            line += " vpages"
        nodes = Counter(region.memory.frames.page_zone(pfn).nid for pfn in area.pages)
        lines.append(line + "".join(f" N{nid}={nodes[nid]}" for nid in sorted(nodes)) + "\n")
    if lines:
        lines += [f"0x{start:016x}-0x{end:016x} {end - start:7d} unpurged vm_area\n" for start, end in region.areas.lazy]
    return "".join(lines)


def vmalloc_meminfo(region: Vmalloc | None, layout: Layout) -> dict[str, int]:
    """The lines of /proc/meminfo that the region knows, in KiB. VmallocChunk is 0: nobody counts it any more.

    >>> vmalloc_meminfo(None, Layout(65536))["VmallocTotal"]
    34359738367
    """
    used = region.nr_vmalloc_pages << 2 if region is not None else 0
    return {"VmallocTotal": layout.vmalloc_end - layout.vmalloc_start >> 10, "VmallocUsed": used, "VmallocChunk": 0}
