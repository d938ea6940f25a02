"""Physical memory: the frames, nodes and zones of one machine, and what all allocator functions share.

Every zone points back here (``zone.memory``), so the functions of the allocator take a zone, or this object, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mmsim.clock import Clock
from mmsim.config import Config
from mmsim.counters import Counters
from mmsim.errors import InputError
from mmsim.klog import KernelLog
from mmsim.physical.buddy import check_zone
from mmsim.physical.frames import Frames
from mmsim.physical.node import Node
from mmsim.physical.zone import Zone
from mmsim.rules import Rules
from mmsim.trace import Trace

__all__ = ["PhysicalMemory"]


def _no_kswapd(zone: Zone, gfp_flags: int, order: int, highest_zoneidx: int) -> None:
    """The hook of a machine that has no kswapd yet: nobody is woken."""


class PhysicalMemory:
    """The memory of one machine; ``nodes`` by node id, created with :meth:`add_node`.

    Whatever the machine does not pass in (clock, trace, counters, log) is made here, so that the allocator can be used alone.

    >>> memory = PhysicalMemory(4096)
    >>> memory.add_node(0)
    <Node 0: [0x0, 0x0), 0 present, []>
    """

    def __init__(self, max_pfn: int, *, nr_cpus: int = 1, config: Config | None = None, rules: Rules | None = None,
                 clock: Clock | None = None, trace: Trace | None = None, counters: Counters | None = None,
                 klog: KernelLog | None = None):
        if nr_cpus < 1:
            raise InputError(f"a machine with {nr_cpus} CPUs cannot allocate")
        self.config = config or Config()
        self.rules = rules or Rules()
        self.clock = clock or Clock()
        self.trace = trace or Trace(self.clock)
        self.counters = counters if counters is not None else Counters()
        self.klog = klog or KernelLog(self.clock)
        self.frames = Frames(max_pfn)
        self.nodes: dict[int, Node] = {}
        self.nr_cpus = nr_cpus
        #: The CPU on which the current call runs: its per-CPU lists are used. Set it with :meth:`run_on`.
        self.cpu = 0
        self.cpu_to_node = [0] * nr_cpus
        #: The name of the current task, for reports.
        self.comm = "swapper"
        #: vm.watermark_boost_factor, in 1/10000 of the high mark; 0: fragmentation does not boost marks.
        self.watermark_boost_factor = 15000
        #: Set on machines too small for grouping by mobility: every pageblock is UNMOVABLE then.
        self.page_group_by_mobility_disabled = False
        #: Hook: called with (zone, gfp_flags, order, highest_zoneidx) when the allocator wants kswapd to run.
        self.wakeup_kswapd: Callable[[Zone, int, int, int], None] = _no_kswapd

        #: Hook, while struct pages are still missing: called with (zone, order) when a zone cannot serve; True: it grew.
        self.deferred_grow_zone: Callable[[Zone, int], bool] | None = None

    def add_node(self, nid: int, start_pfn: int = 0, spanned: int = 0, present: int = 0) -> Node:
        """Create a node with its (empty) zones. Raise InputError if there is one of that id."""
        if nid in self.nodes:
            raise InputError(f"node {nid} exists already")
        node = self.nodes[nid] = Node(self, nid, start_pfn, spanned, present)
        return node

    def run_on(self, cpu: int) -> None:
        """Let the calls that follow run on ``cpu``. Raise InputError if there is no such CPU."""
        if not 0 <= cpu < self.nr_cpus:
            raise InputError(f"there is no CPU {cpu}; the machine has {self.nr_cpus}")
        self.cpu = self.trace.cpu = cpu

    def zones(self) -> Iterator[Zone]:
        """The populated zones, node by node, lowest first (5.17: for_each_populated_zone())."""
        for node in self.nodes.values():
            yield from node.populated_zones

    @property
    def nr_free_pages(self) -> int:
        """NR_FREE_PAGES of the machine: frames in free lists, without those in per-CPU lists."""
        return sum(zone.nr_free_pages for zone in self.zones())

    def check(self) -> None:
        """Verify frames, zones and all lists. Raise InvariantError that says what is broken where. Cost: every frame."""
        self.frames.check()
        for zone in self.zones():
            check_zone(zone)

    def __repr__(self) -> str:
        return f"<PhysicalMemory: {self.frames!r}, {self.nr_free_pages} free, {self.nr_cpus} CPUs>"
