"""The state of memory as the kernel log shows it after a failed allocation or an OOM kill (sysrq-m prints the same)."""

from __future__ import annotations

from collections.abc import Collection

from mmsim.clock import HZ, Clock
from mmsim.constants import _GFP_DMA, _GFP_NOWARN, MAX_RECLAIM_RETRIES, WMARK_HIGH, WMARK_LOW, WMARK_MIN, ZONE_DMA
from mmsim.klog import KernelLog
from mmsim.physical.gfp import gfp_names
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.node import Node
from mmsim.physical.watermark import wmark_pages
from mmsim.physical.zone import Zone
from mmsim.units import pages_to_kib

__all__ = ["RateLimit", "show_free_areas", "show_mem", "warn_alloc"]

# The letters of the migratetypes behind a count of free blocks; CMA takes its place before Isolate where it exists.
_TYPE_LETTERS = {"Unmovable": "U", "Movable": "M", "Reclaimable": "E", "HighAtomic": "H", "CMA": "C", "Isolate": "I"}


class RateLimit:
    """At most ``burst`` messages in ``interval`` jiffies (5.17: lib/ratelimit.c, ___ratelimit())."""

    __slots__ = ("interval", "burst", "begin", "printed", "missed")

    def __init__(self, interval: int = 10 * HZ, burst: int = 1):
        self.interval = interval
        self.burst = burst
        self.begin: int | None = None
        self.printed = 0
        self.missed = 0

    def allows(self, clock: Clock, klog: KernelLog, function: str) -> bool:
        """Tell whether a message may be printed now; after an interval, say first how many were not."""
        if self.begin is None:
            self.begin = clock.jiffies
        if clock.jiffies > self.begin + self.interval:
            if self.missed:
                klog.printk(f"{function}: {self.missed} callbacks suppressed")
                self.missed = 0
            self.begin, self.printed = clock.jiffies, 0
        if self.printed < self.burst:
            self.printed += 1
            return True
        self.missed += 1
        return False


def _kib(pages: int) -> str:
    return f"{pages_to_kib(pages)}kB"


def _node_line(node: Node) -> str:
    stat = node.vm_stat.get
    fields = [f"{label}:{_kib(stat(f'nr_{name}', 0))}" for label, name in (
        ("active_anon", "active_anon"), ("inactive_anon", "inactive_anon"), ("active_file", "active_file"),
        ("inactive_file", "inactive_file"), ("unevictable", "unevictable"), ("isolated(anon)", "isolated_anon"),
        ("isolated(file)", "isolated_file"), ("mapped", "mapped"), ("dirty", "dirty"), ("writeback", "writeback"),
        ("shmem", "shmem"), ("shmem_thp", " shmem_hugepages"), ("shmem_pmdmapped", " shmem_pmdmapped"),
        ("anon_thp", " anon_transparent_hugepages"), ("writeback_tmp", "writeback_temp"))]
    # Three fields have a blank before their number.
    fields = [field.replace(":", ": ", 1) if field.startswith(("shmem_", "anon_thp")) else field for field in fields]
    unreclaimable = "yes" if node.kswapd_failures >= MAX_RECLAIM_RETRIES else "no"
    return (f"Node {node.nid} {' '.join(fields)} kernel_stack:{stat('nr_kernel_stack', 0)}kB "
            f"pagetables:{_kib(stat('nr_page_table_pages', 0))} all_unreclaimable? {unreclaimable}")


def _zone_lines(zone: Zone, cpu: int) -> list[str]:
    stat = zone.vm_stat.get
    return [
        f"Node {zone.nid} {zone.name} free:{_kib(zone.nr_free_pages)} boost:{_kib(zone.watermark_boost)} "
        f"min:{_kib(wmark_pages(zone, WMARK_MIN))} low:{_kib(wmark_pages(zone, WMARK_LOW))} "
        f"high:{_kib(wmark_pages(zone, WMARK_HIGH))} reserved_highatomic:{pages_to_kib(zone.nr_reserved_highatomic)}KB "
        + " ".join(f"{name}:{_kib(stat(f'nr_zone_{key}', 0))}" for name, key in (
            ("active_anon", "active_anon"), ("inactive_anon", "inactive_anon"), ("active_file", "active_file"),
            ("inactive_file", "inactive_file"), ("unevictable", "unevictable"), ("writepending", "write_pending")))
        + f" present:{_kib(zone.present_pages)} managed:{_kib(zone.managed_pages)} mlocked:{_kib(stat('nr_mlock', 0))} "
        f"bounce:{_kib(stat('nr_bounce', 0))} free_pcp:{_kib(sum(pcp.count for pcp in zone.pageset))} "
        f"local_pcp:{_kib(zone.pageset[cpu].count)} free_cma:{_kib(zone.nr_free_cma_pages)}",
        "lowmem_reserve[]: " + " ".join(map(str, zone.lowmem_reserve)),
    ]


def _free_line(zone: Zone) -> str:
    """The free blocks of each order with the letters of the types that have some."""
    letters = [_TYPE_LETTERS[name] for name in zone.memory.config.migratetype_names]
    parts, total = [], 0
    for order, area in enumerate(zone.free_area):
        total += area.nr_free << order
        parts.append(f"{area.nr_free}*{pages_to_kib(1 << order)}kB ")
        if area.nr_free:
            parts.append(f"({''.join(letter for letter, blocks in zip(letters, area.free_list) if blocks)}) ")
    return f"Node {zone.nid} {zone.name}: {''.join(parts)}= {_kib(total)}"


def show_free_areas(memory: PhysicalMemory, nodemask: Collection[int] | None = None) -> list[str]:
    """Counters of the machine, of each node and of each zone, and the free blocks, as lines.

    5.17: mm/page_alloc.c, show_free_areas(). Left out: huge page pools and the swap cache, which come with their parts.
    """
    nodes = [node for node in memory.nodes.values() if nodemask is None or node.nid in nodemask]
    zones = [zone for node in nodes for zone in node.populated_zones]

    def total(name: str) -> int:
        return sum(node.vm_stat.get(name, 0) for node in memory.nodes.values())

    lines = [
        f"active_anon:{total('nr_active_anon')} inactive_anon:{total('nr_inactive_anon')} "
        f"isolated_anon:{total('nr_isolated_anon')}",
        f" active_file:{total('nr_active_file')} inactive_file:{total('nr_inactive_file')} "
        f"isolated_file:{total('nr_isolated_file')}",
        f" unevictable:{total('nr_unevictable')} dirty:{total('nr_dirty')} writeback:{total('nr_writeback')}",
        f" slab_reclaimable:{total('nr_slab_reclaimable')} slab_unreclaimable:{total('nr_slab_unreclaimable')}",
        f" mapped:{total('nr_mapped')} shmem:{total('nr_shmem')} pagetables:{total('nr_page_table_pages')} "
        f"bounce:{sum(zone.vm_stat.get('nr_bounce', 0) for zone in memory.zones())}",
        f" kernel_misc_reclaimable:{total('nr_kernel_misc_reclaimable')}",
        f" free:{memory.nr_free_pages} free_pcp:{sum(pcp.count for zone in zones for pcp in zone.pageset)} "
        f"free_cma:{sum(zone.nr_free_cma_pages for zone in memory.zones())}",
    ]
    lines += [_node_line(node) for node in nodes]
    for zone in zones:
        lines += _zone_lines(zone, memory.cpu)
    lines += [_free_line(zone) for zone in zones]
    lines.append(f"{total('nr_file_pages')} total pagecache pages")
    return lines


def show_mem(memory: PhysicalMemory, nodemask: Collection[int] | None = None) -> list[str]:
    """The whole report ``Mem-Info`` (5.17: lib/show_mem.c, show_mem())."""
    zones = list(memory.zones())
    present = sum(zone.present_pages for zone in zones)
    lines = ["Mem-Info:", *show_free_areas(memory, nodemask), f"{present} pages RAM", "0 pages HighMem/MovableOnly",
             f"{present - sum(zone.managed_pages for zone in zones)} pages reserved"]
    if memory.config.cma:
        lines.append(f"{sum(zone.cma_pages for zone in zones)} pages cma reserved")
    return lines


def warn_alloc(memory: PhysicalMemory, gfp_mask: int, nodemask: Collection[int] | None, text: str, limit: RateLimit) -> bool:
    """Report a failed allocation in the kernel log: who asked for what, then the state of memory. Return False if it
    is not.

    Silent for ``__GFP_NOWARN``, for a DMA request on a machine without DMA memory, and when the last report was less
    than ten seconds ago. 5.17: mm/page_alloc.c, warn_alloc(). Left out: the stack.
    """
    has_managed_dma = any(node.zones[ZONE_DMA].managed_pages for node in memory.nodes.values())
    if gfp_mask & _GFP_NOWARN or not limit.allows(memory.clock, memory.klog, "warn_alloc") \
            or gfp_mask & _GFP_DMA and not has_managed_dma:
        return False
    nodes = _node_list(memory.nodes)
    mask = "(null)" if nodemask is None else _node_list(nodemask)
    memory.klog.printk(f"{memory.comm}: {text}, mode:{gfp_mask:#x}({gfp_names(gfp_mask) if gfp_mask else ''}), "
                       f"nodemask={mask},cpuset=/,mems_allowed={nodes}")
    for line in show_mem(memory, nodemask):
        memory.klog.printk(line)
    return True


def _node_list(nodes: Collection[int]) -> str:
    """Node ids as the kernel prints a mask in list form: ``0-2,5`` (5.17: the ``%*pbl`` of lib/vsprintf.c)."""
    parts: list[str] = []
    run: list[int] = []
    for nid in [*sorted(nodes), None]:
        if run and nid == run[-1] + 1:
            run.append(nid)
            continue
        if run:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
        run = [nid] if nid is not None else []
    return ",".join(parts)
