"""/proc/zoneinfo: every zone's marks, sizes, reserves, counters and per-CPU lists."""

from __future__ import annotations

from mmsim.constants import WMARK_HIGH, WMARK_LOW, WMARK_MIN
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.node import Node
from mmsim.physical.watermark import wmark_pages
from mmsim.physical.zone import Zone

__all__ = ["NODE_STATS", "ZONE_STATS", "NUMA_STATS", "MAX_RECLAIM_RETRIES", "zoneinfo"]

#: Counters of a node, in the kernel's order (5.17: include/linux/mmzone.h, enum node_stat_item).
NODE_STATS = tuple("""
    nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable nr_slab_reclaimable nr_slab_unreclaimable
    nr_isolated_anon nr_isolated_file workingset_nodes workingset_refault_anon workingset_refault_file
    workingset_activate_anon workingset_activate_file workingset_restore_anon workingset_restore_file
    workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback nr_writeback_temp nr_shmem
    nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages nr_file_pmdmapped nr_anon_transparent_hugepages
    nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied nr_written nr_throttled_written nr_kernel_misc_reclaimable
    nr_foll_pin_acquired nr_foll_pin_released nr_kernel_stack nr_page_table_pages nr_swapcached""".split())

#: Counters of a zone, in the kernel's order (5.17: include/linux/mmzone.h, enum zone_stat_item).
ZONE_STATS = tuple("""
    nr_free_pages nr_zone_inactive_anon nr_zone_active_anon nr_zone_inactive_file nr_zone_active_file nr_zone_unevictable
    nr_zone_write_pending nr_mlock nr_bounce nr_zspages nr_free_cma""".split())

#: Where a zone's pages went, in the kernel's order (5.17: include/linux/mmzone.h, enum numa_stat_item).
NUMA_STATS = ("numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other")

#: After so many runs of kswapd without success a node counts as unreclaimable.
MAX_RECLAIM_RETRIES = 16


def zone_stat(zone: Zone, name: str) -> int:
    """One counter of a zone. What no part of the machine counts yet did not happen: 0."""
    if name == "nr_free_pages":
        return zone.nr_free_pages
    if name == "nr_free_cma":
        return zone.nr_free_cma_pages
    return zone.vm_stat.get(name, 0)


def _zone(node: Node, zone: Zone, first: bool) -> str:
    lines = [f"Node {node.nid}, zone {zone.name:>8}"]
    if first:
        lines.append("  per-node stats")
        lines += [f"      {name:<12} {node.vm_stat.get(name, 0)}" for name in NODE_STATS]
    lines += [f"  pages free     {zone.nr_free_pages}",
              f"        boost    {zone.watermark_boost}",
              f"        min      {wmark_pages(zone, WMARK_MIN)}",
              f"        low      {wmark_pages(zone, WMARK_LOW)}",
              f"        high     {wmark_pages(zone, WMARK_HIGH)}",
              f"        spanned  {zone.spanned_pages}",
              f"        present  {zone.present_pages}",
              f"        managed  {zone.managed_pages}",
              f"        cma      {zone.cma_pages}",
              f"        protection: ({', '.join(map(str, zone.lowmem_reserve))})"]
    if not zone.populated:
        return "\n".join(lines) + "\n"
    lines += [f"      {name:<12} {zone_stat(zone, name)}" for name in ZONE_STATS]
    if zone.memory.config.numa:
        lines += [f"      {name:<12} {zone.numa_stat[name]}" for name in NUMA_STATS]
    lines.append("  pagesets")
    for cpu, pcp in enumerate(zone.pageset):
        lines += [f"    cpu: {cpu}", f"              count: {pcp.count}", f"              high:  {pcp.high}",
                  f"              batch: {pcp.batch}"]
        lines.append(f"  vm stats threshold: {zone.stat_threshold}")
    lines += [f"  node_unreclaimable:  {int(node.kswapd_failures >= MAX_RECLAIM_RETRIES)}",
              f"  start_pfn:           {zone.start_pfn}"]
    return "\n".join(lines) + "\n"


def zoneinfo(memory: PhysicalMemory) -> str:
    """/proc/zoneinfo: all zones of all online nodes, empty ones too; the first populated zone of a node carries the node's
    counters.

    5.17: mm/vmstat.c, zoneinfo_show_print().
    """
    text = []
    for node in memory.nodes.values():
        first = next(iter(node.populated_zones), None)
        text += [_zone(node, zone, zone is first) for zone in node.zones if node.online]
    return "".join(text)
