"""What a simulated process has in a range of addresses, in the words of the recorded programs: sums of smaps, lines of maps."""

from __future__ import annotations

from typing import Any

from mmsim.constants import SOFTDIRTY_BIT
from mmsim.process.task import Process
from mmsim.process.vma import prot_text, vm_flag_names
from mmsim.procfs.process import smap_gather_stats
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["maps_of", "smaps_sums"]

_SUMS = (("Rss", "resident"), ("Pss", "pss"), ("Shared_Clean", "shared_clean"), ("Shared_Dirty", "shared_dirty"),
         ("Private_Clean", "private_clean"), ("Private_Dirty", "private_dirty"), ("Referenced", "referenced"),
         ("Anonymous", "anonymous"), ("LazyFree", "lazyfree"), ("Swap", "swap"), ("SwapPss", "swap_pss"), ("Locked", "pss_locked"))


def smaps_sums(process: Process, start: int, pages: int, *, size: bool = True) -> dict[str, Any]:
    """Sums in KiB over the areas that overlap a range, those that are not 0; how many areas, and the flags of each."""
    areas = list(process.mm.tree.overlapping(start, start + pages * PAGE_SIZE))
    sums: dict[str, Any] = {"vmas": len(areas)}
    if size and areas:
        sums["Size"] = sum(vma.pages for vma in areas) << PAGE_SHIFT - 10
    gathered = [smap_gather_stats(process.mm, vma) for vma in areas]
    for label, name in _SUMS:
        total = sum(stats.kib(name) for stats in gathered)
        if total:
            sums[label] = total
    soft_dirty = 0 if process.mm.soft_dirty else SOFTDIRTY_BIT
    letters = "lf" if process.mm.rules.smaps_names_lockonfault else "??"
    sums["VmFlags"] = "; ".join(vm_flag_names(vma.vm_flags & ~soft_dirty, letters) for vma in areas)
    return sums


def maps_of(process: Process, start: int, pages: int) -> list[list[Any]]:
    """The areas that overlap a range, in pages from its beginning, as the recorded programs print them."""
    return [[(vma.vm_start - start) // PAGE_SIZE, (vma.vm_end - start) // PAGE_SIZE, prot_text(vma.vm_flags),
             f"{vma.vm_pgoff << PAGE_SHIFT if vma.vm_file is not None else 0:#x}"]
            for vma in process.mm.tree.overlapping(start, start + pages * PAGE_SIZE)]
