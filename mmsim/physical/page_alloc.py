"""The page allocator's front door: from a GFP mask and an order to a block of frames.

A request names zones, a node and a mobility type. The fast path walks the node's zonelist and takes a block from the
first zone that stays above its *low* watermark. If there is none, the slow path wakes kswapd, goes down to *min*,
reclaims, compacts, and in the end may kill::

    alloc_pages ─► prepare_alloc_pages ─► get_page_from_freelist (low) ─► rmqueue ─► prep_new_page
                                               │ no zone
                                               └─► SlowPath: get_page_from_freelist (min, reserves), again and again

5.17: mm/page_alloc.c. Left out everywhere: cpusets, memory policies, deferred initialisation, node reclaim
(vm.zone_reclaim_mode), charging a cgroup, fault injection.
"""

from __future__ import annotations

from collections.abc import Collection, Generator

from mmsim import constants as c
from mmsim.physical import free
from mmsim.physical.fast import RequestPlan, alloc_more, alloc_one, free_one, plan_request
from mmsim.physical.freelist import (
    AllocContext,
    alloc_flags_nofragment,
    get_page_from_freelist,
    prepare_alloc_pages,
)
from mmsim.physical.gfp import alloc_flag_names, gfp_names
from mmsim.physical.kswapd import wakeup_kswapd
from mmsim.physical.memory import PhysicalMemory, _no_kswapd
from mmsim.physical.page import prep_new_page
from mmsim.physical.pcp import rmqueue_pcplist
from mmsim.physical.rmqueue import zone_statistics
from mmsim.physical.slowpath import SlowPath, SlowPathHooks, Step, zone_verdicts
from mmsim.physical.watermark import wmark_pages, zone_watermark_fast
from mmsim.physical.zone import Zone

__all__ = ["PageAllocator"]


class PageAllocator:
    """alloc_pages() and free_pages() on one machine's memory; ``hooks`` are what the slow path asks of the parts above.

    A memory whose hook ``wakeup_kswapd`` is still unset gets the one that only notes who is to be woken.

    >>> from mmsim.physical.memory import PhysicalMemory
    >>> from mmsim.physical.zone import Zone
    >>> memory = PhysicalMemory(4096)
    >>> node = memory.add_node(0, 0, 4096, 4096)
    >>> zone = node.zones[c.ZONE_NORMAL] = Zone(memory, 0, c.ZONE_NORMAL, 0, 4096, 4096)
    >>> node.zonelist = [zone]
    >>> for pfn in range(0, 4096, 1024):
    ...     free.free_pages_core(memory, pfn, 10)
    >>> allocator = PageAllocator(memory)
    >>> allocator.alloc_pages(c.GFP_KERNEL, 3), allocator.alloc_pages(c.GFP_KERNEL, 3)
    (0, 8)
    """

    def __init__(self, memory: PhysicalMemory, hooks: SlowPathHooks | None = None):
        self.memory = memory
        self.hooks = hooks or SlowPathHooks()
        if memory.wakeup_kswapd is _no_kswapd:
            memory.wakeup_kswapd = wakeup_kswapd
        self._warned_order = False
        #: Whether the common case takes :mod:`mmsim.physical.fast`; the result is the same.
        self.fast = True
        self._plans: dict[int, RequestPlan | None] = {}

    def alloc_pages(self, gfp_mask: int, order: int = 0, nid: int | None = None,
                    nodemask: Collection[int] | None = None) -> int | None:
        """Allocate 2^order frames in one block; return its first PFN, or None.

        ``nid`` is the node to begin with (default: that of the current CPU), ``nodemask`` limits the nodes. An order of
        MAX_ORDER (11) or more gives None, and a warning in the log the first time. Raise KernelBug for zone bits that
        contradict each other, KernelPanic for a ``__GFP_NOFAIL`` request that can never be satisfied.
        5.17: mm/page_alloc.c, __alloc_pages().
        """
        memory = self.memory
        if not order and nid is None and nodemask is None and self.fast:
            plan = self._plans.get(gfp_mask << 16 | memory.cpu)
            pfn = alloc_one(memory, plan) if plan is not None else self._new_plan(gfp_mask)
            if pfn is not None:
                return pfn
            if plan is not None and not plan.holds(memory):
                del self._plans[gfp_mask << 16 | memory.cpu]
        if not 0 <= order < c.MAX_ORDER:
            self._warn_order(gfp_mask, order)
            return None
        context, alloc_flags = prepare_alloc_pages(
            memory, gfp_mask, memory.cpu_to_node[memory.cpu] if nid is None else nid, nodemask)
        alloc_flags |= alloc_flags_nofragment(memory, context.preferred_zone, gfp_mask)
        pfn = get_page_from_freelist(memory, gfp_mask, order, alloc_flags, context)
        if pfn is None:
            pfn = self._slow_path(gfp_mask, order, context, nodemask)
        if memory.trace.enabled:
            memory.trace.emit("kmem:mm_page_alloc", pfn=-1 if pfn is None else pfn, order=order, migratetype=context.migratetype,
                              gfp_flags=gfp_names(gfp_mask))
        return pfn

    def _new_plan(self, gfp_mask: int) -> int | None:
        """Make a plan for this mask on this CPU, and take a page by it if that is the common case."""
        key = gfp_mask << 16 | self.memory.cpu
        if key in self._plans:
            return None
        plan = self._plans[key] = plan_request(self.memory, gfp_mask)
        return alloc_one(self.memory, plan) if plan is not None else None

    def alloc_single_pages(self, gfp_mask: int, count: int) -> list[int]:
        """Up to ``count`` single frames, at least one if there is any: the same that so many calls of :meth:`alloc_pages` give.

        The first comes the ordinary way, which fills the CPU's list; what is on it then is taken together, as long as no event
        need be told of each.
        """
        first = self.alloc_pages(gfp_mask)
        if first is None:
            return []
        plan = self._plans.get(gfp_mask << 16 | self.memory.cpu)
        if count == 1 or plan is None or not self.fast:
            return [first]
        return [first, *alloc_more(self.memory, plan, count - 1)]

    def free_pages(self, pfn: int, order: int = 0) -> None:
        """Give back a block that :meth:`alloc_pages` returned (5.17: mm/page_alloc.c, __free_pages())."""
        frames = self.memory.frames
        if not order and self.fast and 0 <= pfn < frames.max_pfn and frames.refcount[pfn] == 1 and not frames.compound[pfn]:
            frames.refcount[pfn] = 0
            if free_one(self.memory, pfn):
                return
            frames.refcount[pfn] = 1
        free.free_pages(self.memory, pfn, order)

    def alloc_steps(self, gfp_mask: int, order: int = 0, nid: int | None = None,
                    nodemask: Collection[int] | None = None) -> Generator[Step, None, int | None]:
        """:meth:`alloc_pages` one step at a time: first a step ``fast_path``, then those of the slow path, with the
        verdict on every zone. Return the PFN or None.
        """
        if not 0 <= order < c.MAX_ORDER:
            yield Step("failed", f"there are no blocks of order {order}", {})
            self._warn_order(gfp_mask, order)
            return None
        memory = self.memory
        context, alloc_flags = prepare_alloc_pages(
            memory, gfp_mask, memory.cpu_to_node[memory.cpu] if nid is None else nid, nodemask)
        alloc_flags |= alloc_flags_nofragment(memory, context.preferred_zone, gfp_mask)
        verdicts = zone_verdicts(context, order, c.WMARK_LOW, alloc_flags)
        pfn = get_page_from_freelist(memory, gfp_mask, order, alloc_flags, context)
        yield Step("fast_path", "no zone is above its low watermark" if pfn is None else "a zone can serve it",
                   {"alloc_flags": alloc_flag_names(alloc_flags), "zones": verdicts})
        if pfn is not None:
            yield Step("allocated", f"block {pfn:#x} of order {order}", {"pfn": pfn, "order": order})
            return pfn
        context.nodemask, context.spread_dirty_pages = nodemask, False
        return (yield from SlowPath(memory, gfp_mask, order, context, self.hooks, explain=True).run())

    def _warn_order(self, gfp_mask: int, order: int) -> None:
        if not gfp_mask & c._GFP_NOWARN and not self._warned_order:
            self._warned_order = True
            self.memory.klog.warn(f"WARNING: CPU: {self.memory.cpu} Comm: {self.memory.comm} at mm/page_alloc.c __alloc_pages: "
                                  f"order {order} is not below MAX_ORDER ({c.MAX_ORDER})")

    def _slow_path(self, gfp_mask: int, order: int, context: AllocContext, nodemask: Collection[int] | None) -> int | None:
        """Run the slow path to its end, each step an event ``mmsim:slowpath``."""
        trace = self.memory.trace
        context.nodemask, context.spread_dirty_pages = nodemask, False
        steps = SlowPath(self.memory, gfp_mask, order, context, self.hooks, explain=trace.enabled).run()
        try:
            while True:
                step = next(steps)
                if trace.enabled:
                    trace.emit("mmsim:slowpath", step=step.name, decision=step.decision, **step.numbers)
        except StopIteration as end:
            pfn: int | None = end.value
            return pfn

    # -- many single pages at once -------------------------------------------------------------------------------

    def alloc_pages_bulk(self, gfp_mask: int, nr_pages: int, nid: int | None = None) -> list[int]:
        """Allocate up to ``nr_pages`` single frames in one go; return those that came, in the order in which they did.

        All come from one zone of the preferred node, in which ``nr_pages`` fit above the low watermark; if there is
        none, one page is allocated the ordinary way. 5.17: mm/page_alloc.c, alloc_pages_bulk_list() (where they are
        listed in reverse).
        """
        pages: list[int | None] = [None] * max(nr_pages, 0)
        count = self.alloc_pages_bulk_array(gfp_mask, pages, nid)
        return [pfn for pfn in pages[:count] if pfn is not None]

    def alloc_pages_bulk_array(self, gfp_mask: int, pages: list[int | None], nid: int | None = None) -> int:
        """Fill the empty places (None) of ``pages`` with frames; return how many of its places are filled from the
        start on.

        5.17: mm/page_alloc.c, __alloc_pages_bulk().
        """
        nr_pages, nr_populated = len(pages), 0
        while nr_populated < nr_pages and pages[nr_populated] is not None:
            nr_populated += 1
        if nr_populated == nr_pages:
            return nr_populated
        memory = self.memory
        preferred_nid = memory.cpu_to_node[memory.cpu] if nid is None else nid
        zone: Zone | None = None
        context, alloc_flags = prepare_alloc_pages(memory, gfp_mask, preferred_nid)
        if nr_pages - nr_populated > 1:
            zone = _bulk_zone(context, alloc_flags, nr_pages, gfp_mask)
        nr_account = 0
        if zone is not None:
            pcp = zone.pageset[memory.cpu]
            while nr_populated < nr_pages:
                if pages[nr_populated] is not None:
                    nr_populated += 1
                    continue
                # The bulk allocator takes from the list without saying that allocations go on.
                free_factor = pcp.free_factor
                pfn = rmqueue_pcplist(zone, 0, context.migratetype, alloc_flags)
                pcp.free_factor = free_factor
                if pfn is None:
                    break
                prep_new_page(memory.frames, pfn, 0)
                pages[nr_populated] = pfn
                nr_populated += 1
                nr_account += 1
            if nr_account:
                memory.counters[zone.pgalloc] += nr_account
                if memory.config.numa and context.preferred_zone is not None:
                    zone_statistics(context.preferred_zone, zone, nr_account)
        if not nr_populated or zone is None:
            pfn = self.alloc_pages(gfp_mask, 0, preferred_nid)
            if pfn is not None:
                pages[nr_populated] = pfn
                nr_populated += 1
        return nr_populated


def _bulk_zone(context: AllocContext, alloc_flags: int, nr_pages: int, gfp_mask: int) -> Zone | None:
    """The zone of the preferred node that can give all pages and stay above its watermark, or None."""
    preferred = context.preferred_zone
    for zone in context.zones():
        if preferred is None or zone.nid != preferred.nid:
            return None
        mark = wmark_pages(zone, alloc_flags & c.ALLOC_WMARK_MASK) + nr_pages
        if zone_watermark_fast(zone, 0, mark, preferred.index, alloc_flags, gfp_mask):
            return zone
    return None
