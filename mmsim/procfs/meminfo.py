"""/proc/meminfo and /proc/vmstat: the machine's memory in a page of numbers.

Both files are written from a mapping of names to numbers: each part of the machine adds what it knows, and a name that
nobody knows is left out, rather than shown with a number that means nothing. The order is always the kernel's.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.watermark import low_wmark_pages, si_mem_available
from mmsim.procfs.zoneinfo import NODE_STATS, NUMA_STATS, ZONE_STATS, zone_stat
from mmsim.units import pages_to_kib

__all__ = ["MEMINFO_NAMES", "VMSTAT_NAMES", "format_meminfo", "format_vmstat", "meminfo_values", "vmstat_values"]

#: The lines of meminfo in order (5.17: fs/proc/meminfo.c, meminfo_proc_show(), with the configuration of the recorded
#: kernels).
MEMINFO_NAMES = tuple("""
    MemTotal MemFree MemAvailable Buffers Cached SwapCached Active Inactive Active(anon) Inactive(anon) Active(file)
    Inactive(file) Unevictable Mlocked SwapTotal SwapFree Dirty Writeback AnonPages Mapped Shmem KReclaimable Slab
    SReclaimable SUnreclaim KernelStack PageTables NFS_Unstable Bounce WritebackTmp CommitLimit Committed_AS VmallocTotal
    VmallocUsed VmallocChunk Percpu HardwareCorrupted AnonHugePages ShmemHugePages ShmemPmdMapped FileHugePages
    FilePmdMapped CmaTotal CmaFree HugePages_Total HugePages_Free HugePages_Rsvd HugePages_Surp Hugepagesize Hugetlb
    DirectMap4k DirectMap2M DirectMap1G""".split())

#: The lines of vmstat in order (5.17: mm/vmstat.c, vmstat_text[], with the configuration of the recorded kernels).
VMSTAT_NAMES = ZONE_STATS + NUMA_STATS + NODE_STATS + tuple("""
    nr_dirty_threshold nr_dirty_background_threshold
    pgpgin pgpgout pswpin pswpout pgalloc_dma pgalloc_dma32 pgalloc_normal pgalloc_movable allocstall_dma allocstall_dma32
    allocstall_normal allocstall_movable pgskip_dma pgskip_dma32 pgskip_normal pgskip_movable pgfree pgactivate
    pgdeactivate pglazyfree pgfault pgmajfault pglazyfreed pgrefill pgreuse pgsteal_kswapd pgsteal_direct pgdemote_kswapd
    pgdemote_direct pgscan_kswapd pgscan_direct pgscan_direct_throttle pgscan_anon pgscan_file pgsteal_anon pgsteal_file
    zone_reclaim_failed pginodesteal slabs_scanned kswapd_inodesteal kswapd_low_wmark_hit_quickly
    kswapd_high_wmark_hit_quickly pageoutrun pgrotated drop_pagecache drop_slab oom_kill numa_pte_updates
    numa_huge_pte_updates numa_hint_faults numa_hint_faults_local numa_pages_migrated pgmigrate_success pgmigrate_fail
    thp_migration_success thp_migration_fail thp_migration_split compact_migrate_scanned compact_free_scanned
    compact_isolated compact_stall compact_fail compact_success compact_daemon_wake compact_daemon_migrate_scanned
    compact_daemon_free_scanned htlb_buddy_alloc_success htlb_buddy_alloc_fail cma_alloc_success cma_alloc_fail
    unevictable_pgs_culled unevictable_pgs_scanned unevictable_pgs_rescued unevictable_pgs_mlocked
    unevictable_pgs_munlocked unevictable_pgs_cleared unevictable_pgs_stranded thp_fault_alloc thp_fault_fallback
    thp_fault_fallback_charge thp_collapse_alloc thp_collapse_alloc_failed thp_file_alloc thp_file_fallback
    thp_file_fallback_charge thp_file_mapped thp_split_page thp_split_page_failed thp_deferred_split_page thp_split_pmd
    thp_scan_exceed_none_pte thp_scan_exceed_swap_pte thp_scan_exceed_share_pte thp_split_pud thp_zero_page_alloc
    thp_zero_page_alloc_failed thp_swpout thp_swpout_fallback balloon_inflate balloon_deflate swap_ra swap_ra_hit
    direct_map_level2_splits direct_map_level3_splits nr_unstable""".split())


def _check_names(values: Mapping[str, int], known: tuple[str, ...], file: str) -> None:
    unknown = values.keys() - set(known)
    if unknown:
        raise ValueError(f"{file} has no line {', '.join(sorted(unknown))}")


def format_meminfo(values: Mapping[str, int]) -> str:
    """The text of /proc/meminfo for ``values`` in KiB (the HugePages_ lines: in pages). Raise ValueError for an
    unknown name.

    >>> print(format_meminfo({"MemFree": 219440, "MemTotal": 243480, "HugePages_Total": 0}), end="")
    MemTotal:         243480 kB
    MemFree:          219440 kB
    HugePages_Total:       0
    """
    _check_names(values, MEMINFO_NAMES, "meminfo")
    return "".join(f"{name + ':':<16}{values[name]:8d}{'' if name.startswith('HugePages_') else ' kB'}\n"
                   for name in MEMINFO_NAMES if name in values)


def format_vmstat(values: Mapping[str, int]) -> str:
    """The text of /proc/vmstat for ``values``. Raise ValueError for a name that vmstat doesn't have.

    >>> print(format_vmstat({"pgfree": 3, "nr_free_pages": 54860}), end="")
    nr_free_pages 54860
    pgfree 3
    """
    _check_names(values, VMSTAT_NAMES, "vmstat")
    return "".join(f"{name} {values[name]}\n" for name in VMSTAT_NAMES if name in values)


def meminfo_values(memory: PhysicalMemory) -> dict[str, int]:
    """What physical memory knows of meminfo, in KiB: MemTotal, MemFree, MemAvailable, and CmaTotal and CmaFree with
    CONFIG_CMA.

    MemFree counts the free lists only: what per-CPU lists hold is not free. 5.17: fs/proc/meminfo.c,
    meminfo_proc_show().
    """
    zones = list(memory.zones())
    stats = [node.vm_stat for node in memory.nodes.values()]

    def total(*names: str) -> int:
        return sum(stat.get(name, 0) for stat in stats for name in names)

    available = si_mem_available(
        memory.nr_free_pages, sum(node.totalreserve_pages for node in memory.nodes.values()), sum(map(low_wmark_pages, zones)),
        total("nr_active_file", "nr_inactive_file"), total("nr_slab_reclaimable", "nr_kernel_misc_reclaimable"))
    values = {"MemTotal": sum(zone.managed_pages for zone in zones), "MemFree": memory.nr_free_pages, "MemAvailable": available}
    if memory.config.cma:
        values["CmaTotal"] = sum(zone.cma_pages for zone in zones)
        values["CmaFree"] = sum(zone.nr_free_cma_pages for zone in zones)
    return {name: pages_to_kib(pages) for name, pages in values.items()}


def vmstat_values(memory: PhysicalMemory) -> dict[str, int]:
    """What physical memory knows of vmstat: the sums over zones and nodes, and the events counted (5.17:
    mm/vmstat.c)."""
    zones = list(memory.zones())
    values = {name: sum(zone_stat(zone, name) for zone in zones) for name in ZONE_STATS}
    if memory.config.numa:
        values |= {name: sum(zone.numa_stat[name] for zone in zones) for name in NUMA_STATS}
    values |= {name: sum(node.vm_stat.get(name, 0) for node in memory.nodes.values()) for name in NODE_STATS}
    return values | {name: count for name, count in memory.counters.items() if name in VMSTAT_NAMES}
