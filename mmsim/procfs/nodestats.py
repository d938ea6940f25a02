"""What user pages and page tables count as in a node's statistics, brought up to date when somebody reads them.

The kernel adds to these counters at each event, in batches for each CPU, so that what /proc shows lags a little. The model
counts the pages when a file is read: the numbers are those of that moment.
"""

from __future__ import annotations

from mmsim.paging.tables import TableMemory
from mmsim.physical.frames import PG
from mmsim.physical.memory import PhysicalMemory
from mmsim.process.user_memory import UserMemory

__all__ = ["fold_node_stats", "meminfo_of_stats"]

_LRU, _ACTIVE, _UNEVICTABLE, _SWAPBACKED, _MLOCKED = (PG[name] for name in ("lru", "active", "unevictable", "swapbacked", "mlocked"))
_USER_STATS = ("nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "nr_unevictable", "nr_anon_pages",
               "nr_mapped", "nr_file_pages", "nr_shmem")
_ZONE_STATS = {"nr_inactive_anon": "nr_zone_inactive_anon", "nr_active_anon": "nr_zone_active_anon",
               "nr_inactive_file": "nr_zone_inactive_file", "nr_active_file": "nr_zone_active_file",
               "nr_unevictable": "nr_zone_unevictable"}


def fold_node_stats(memory: PhysicalMemory, tables: TableMemory, user: UserMemory | None) -> None:
    """Set the counters of nodes and zones that ``tables`` and ``user`` decide. Cost: every page table and every user page.

    5.17: include/linux/mmzone.h, enum node_stat_item and enum zone_stat_item. Page tables are PTE and PMD tables of processes and
    PMD tables of the kernel.
    """
    if tables.level_of:
        for node in memory.nodes.values():
            node.vm_stat["nr_page_table_pages"] = 0
        for pfn in tables.counted():
            memory.nodes[memory.frames.page_zone(pfn).nid].vm_stat["nr_page_table_pages"] += 1
    if user is None:
        return
    for node in memory.nodes.values():
        node.vm_stat.update(dict.fromkeys(_USER_STATS, 0))
    for zone in memory.zones():
        zone.vm_stat.update(dict.fromkeys((*_ZONE_STATS.values(), "nr_mlock"), 0))
    frames = memory.frames
    for pfn in user.mapping:
        zone, flags = frames.page_zone(pfn), frames.flags[pfn]
        stat = memory.nodes[zone.nid].vm_stat
        anon = user.page_anon(pfn)
        if frames.mapcount[pfn]:
            stat["nr_anon_pages" if anon else "nr_mapped"] += 1
        if not anon:
            stat["nr_file_pages"] += 1
            stat["nr_shmem"] += bool(flags & _SWAPBACKED)
        zone.vm_stat["nr_mlock"] += bool(flags & _MLOCKED)
        if flags & _LRU:
            name = "nr_unevictable" if flags & _UNEVICTABLE else \
                f"nr_{'active' if flags & _ACTIVE else 'inactive'}_{'anon' if flags & _SWAPBACKED else 'file'}"
            stat[name] += 1
            zone.vm_stat[_ZONE_STATS[name]] += 1


def meminfo_of_stats(memory: PhysicalMemory) -> dict[str, int]:
    """The lines of /proc/meminfo that come from the nodes' counters, as far as anybody counted: in KiB.

    5.17: fs/proc/meminfo.c, meminfo_proc_show(). Buffers, swap and writeback are not modelled, so Cached is all pages of files.
    """
    stats = [node.vm_stat for node in memory.nodes.values()]

    def kib(*names: str) -> int:
        return sum(stat.get(name, 0) for stat in stats for name in names) << 2

    values: dict[str, int] = {}
    if any("nr_slab_unreclaimable" in stat or "nr_slab_reclaimable" in stat for stat in stats):
        values |= {"KReclaimable": kib("nr_slab_reclaimable", "nr_kernel_misc_reclaimable"),
                   "Slab": kib("nr_slab_reclaimable", "nr_slab_unreclaimable"),
                   "SReclaimable": kib("nr_slab_reclaimable"), "SUnreclaim": kib("nr_slab_unreclaimable")}
    if any("nr_kernel_stack" in stat for stat in stats):
        # This one is counted in KiB.
        values["KernelStack"] = kib("nr_kernel_stack") >> 2
    if any("nr_page_table_pages" in stat for stat in stats):
        values["PageTables"] = kib("nr_page_table_pages")
    if any("nr_anon_pages" in stat for stat in stats):
        values |= {
            "Cached": kib("nr_file_pages"), "Active": kib("nr_active_anon", "nr_active_file"),
            "Inactive": kib("nr_inactive_anon", "nr_inactive_file"), "Active(anon)": kib("nr_active_anon"),
            "Inactive(anon)": kib("nr_inactive_anon"), "Active(file)": kib("nr_active_file"),
            "Inactive(file)": kib("nr_inactive_file"), "Unevictable": kib("nr_unevictable"),
            "Mlocked": sum(zone.vm_stat.get("nr_mlock", 0) for zone in memory.zones()) << 2,
            "AnonPages": kib("nr_anon_pages"), "Mapped": kib("nr_mapped"), "Shmem": kib("nr_shmem"),
        }
    return values
