"""The slow path: what the allocator does when no zone is above its low watermark, as a machine of named steps.

    first_attempt ── kswapd is woken, the watermark drops to min
    compact_first ── a costly or unmovable high order tries compaction before reclaim
    retry ◄───────┐  attempt once more, with reserves for those who free memory
    reclaim       │  direct reclaim; after progress without a page: reserves given back, per-CPU lists drained
    compact       │  compaction, synchronous now
    should_reclaim_retry / should_compact_retry ──► retry
    oom           │  a last attempt at the high watermark, then the OOM killer, unless it could not help
    nofail        └─ __GFP_NOFAIL never gives up
    failed           the report "page allocation failure" in the kernel log

Each step yields a :class:`Step`: its name, what was decided, and the numbers of that decision. Reclaim, compaction
and the OOM killer are hooks, which report no progress until the machine fills them.
5.17: mm/page_alloc.c, __alloc_pages_slowpath().
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from mmsim import constants as c
from mmsim.errors import KernelPanic
from mmsim.physical.fallback import unreserve_highatomic_pageblock
from mmsim.physical.freelist import AllocContext, get_page_from_freelist
from mmsim.physical.gfp import alloc_flag_names, gfp_names, gfp_to_alloc_flags, gfp_to_alloc_flags_cma
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page import prep_new_page
from mmsim.physical.pcp import drain_all_pages
from mmsim.physical.show_mem import RateLimit, warn_alloc
from mmsim.physical.watermark import low_wmark_pages, min_wmark_pages, wmark_pages, zone_watermark_ok
from mmsim.physical.zone import Zone

__all__ = ["STEPS", "SlowPath", "SlowPathHooks", "Step", "zone_verdicts"]

#: Every step's name and what it is for, in the order in which they can first happen.
STEPS: dict[str, str] = {
    "wake_kswapd": "wake the reclaim thread of every node that could serve the request",
    "first_attempt": "try again with the watermark at min and the reserves that the flags allow",
    "compact_first": "costly or unmovable high order: move pages together before any page is reclaimed",
    "retry": "begin a round: an attempt with the flags as they are now",
    "reclaim": "free memory oneself, and try again",
    "drain": "reclaim succeeded but gave no block: give reserves back, empty the per-CPU lists, try once more",
    "compact": "move pages together, and try again",
    "should_reclaim_retry": "would the request succeed if everything reclaimable were reclaimed?",
    "should_compact_retry": "is compaction worth another try, perhaps with more effort?",
    "oom": "a last attempt at the high watermark; then somebody may have to die",
    "nofail": "the caller forbids failure: go on from the reserves",
    "failed": "give up and report the failure",
    "allocated": "a block was found",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the slow path: its ``name`` in :data:`STEPS`, the decision in words, and the numbers it rests on."""

    name: str
    decision: str
    numbers: dict[str, Any] = field(default_factory=dict)


def _no_reclaim(context: AllocContext, order: int, gfp_mask: int) -> int:
    """The hook of a machine without reclaim: no page is freed."""
    return 0


def _no_compaction(context: AllocContext, order: int, gfp_mask: int, alloc_flags: int, priority: int) -> tuple[int, int | None]:
    """The hook of a machine without compaction: every zone is skipped."""
    return c.COMPACT_SKIPPED, None


def _no_oom_killer(context: AllocContext, order: int, gfp_mask: int) -> bool:
    """The hook of a machine without an OOM killer: nobody is killed."""
    return False


def _nothing_reclaimable(zone: Zone) -> int:
    """The hook of a machine without LRU lists: a zone has no page that reclaim could free."""
    return 0


@dataclass(slots=True)
class SlowPathHooks:
    """What the allocator asks of parts above it, and what it must know of the current task.

    ``reclaim`` frees pages and says how many (5.17: try_to_free_pages()); ``compact`` answers with a COMPACT_* result
    and perhaps a captured block (try_to_compact_pages()); ``oom`` kills somebody and says whether it did
    (out_of_memory()); ``reclaimable`` is zone_reclaimable_pages(). kswapd is woken through
    ``PhysicalMemory.wakeup_kswapd``.
    """

    reclaim: Callable[[AllocContext, int, int], int] = _no_reclaim
    compact: Callable[[AllocContext, int, int, int, int], tuple[int, int | None]] = _no_compaction
    oom: Callable[[AllocContext, int, int], bool] = _no_oom_killer
    reclaimable: Callable[[Zone], int] = _nothing_reclaimable
    #: PF_MEMALLOC: the current task frees memory itself, so it may use all of it and must not reclaim again.
    pf_memalloc: bool = False
    #: The current task was chosen by the OOM killer: it may use half of the reserve to get out.
    oom_victim: bool = False
    #: Rounds after which a request that makes "progress" but never gets a block is called a livelock (the kernel has
    #: no limit).
    max_rounds: int = 10_000
    #: At most one failure report in ten seconds.
    nopage_rs: RateLimit = field(default_factory=RateLimit)


def zone_verdicts(context: AllocContext, order: int, mark: int, alloc_flags: int) -> list[dict[str, Any]]:
    """For each zone that the request may use: its free pages against the ``mark`` (0..2), and what is missing, in
    words."""
    verdicts = []
    for zone in context.zones():
        pages = wmark_pages(zone, mark)
        reserve = zone.lowmem_reserve[context.highest_zoneidx]
        if alloc_flags & c.ALLOC_NO_WATERMARKS or zone_watermark_ok(zone, order, pages, context.highest_zoneidx, alloc_flags):
            verdict = "ok"
        elif zone_watermark_ok(zone, 0, pages, context.highest_zoneidx, alloc_flags):
            verdict = f"no free block of order {order} or more"
        else:
            verdict = "below the watermark"
        verdicts.append({"node": zone.nid, "zone": zone.name, "free": zone.nr_free_pages, "mark": pages, "reserve": reserve,
                         "verdict": verdict})
    return verdicts


class SlowPath:
    """One request on the slow path. :meth:`run` is a generator of steps that returns the block's PFN, or None.

    ``reason`` says in the end why the request failed. With ``explain`` the steps that attempt an allocation carry the
    verdict on every zone (:func:`zone_verdicts`).
    """

    def __init__(self, memory: PhysicalMemory, gfp_mask: int, order: int, context: AllocContext, hooks: SlowPathHooks, *,
                 explain: bool = False):
        self.memory = memory
        self.gfp_mask = gfp_mask
        self.order = order
        self.context = context
        self.hooks = hooks
        self.explain = explain
        self.alloc_flags = 0
        self.did_some_progress = 0
        self.no_progress_loops = 0
        self.compaction_retries = 0
        self.compact_result = c.COMPACT_SKIPPED
        self.compact_priority = c.COMPACT_PRIO_SYNC_LIGHT
        self.rounds = 0
        self.reason = ""
        self._progress_since_nofail = False

    # -- the frame ---------------------------------------------------------------------------------------------

    def run(self) -> Generator[Step, None, int | None]:
        """Go through the steps until a block is found or the request fails.

        Raise KernelPanic where the kernel would loop for ever: a ``__GFP_NOFAIL`` request that nothing can satisfy,
        or endless progress that leads nowhere.
        """
        gfp = self.gfp_mask
        if gfp & c._GFP_ATOMIC and gfp & c._GFP_DIRECT_RECLAIM:
            self.memory.klog.warn("WARNING: mm/page_alloc.c __alloc_pages_slowpath: an atomic request may not sleep, "
                                  f"but allows direct reclaim: {gfp_names(gfp)}")
            self.gfp_mask = gfp = gfp & ~c._GFP_ATOMIC
        pfn = yield from self._before_the_loop()
        while pfn is None:
            if not self.reason:
                pfn = yield from self._round()
            elif gfp & c._GFP_NOFAIL and gfp & c._GFP_DIRECT_RECLAIM:
                pfn = yield from self._nofail()
            else:
                if gfp & c._GFP_NOFAIL:
                    self.memory.klog.warn("WARNING: mm/page_alloc.c __alloc_pages_slowpath: __GFP_NOFAIL without "
                                          f"__GFP_DIRECT_RECLAIM fails: {gfp_names(gfp)}")
                warn_alloc(self.memory, gfp, self.context.nodemask, f"page allocation failure: order:{self.order}",
                           self.hooks.nopage_rs)
                yield Step("failed", self.reason, {"rounds": self.rounds, "zones": self._verdicts(c.WMARK_MIN)})
                return None
        yield Step("allocated", f"block {pfn:#x} of order {self.order}", {"pfn": pfn, "order": self.order})
        return pfn

    def _verdicts(self, mark: int) -> list[dict[str, Any]]:
        return zone_verdicts(self.context, self.order, mark, self.alloc_flags) if self.explain else []

    def _attempt(self, name: str, alloc_flags: int | None = None, **numbers: Any) -> Generator[Step, None, int | None]:
        """An attempt as a step: the verdicts are those of the moment before."""
        flags = self.alloc_flags if alloc_flags is None else alloc_flags
        verdicts = zone_verdicts(self.context, self.order, flags & c.ALLOC_WMARK_MASK, flags) if self.explain else []
        pfn = get_page_from_freelist(self.memory, self.gfp_mask, self.order, flags, self.context)
        yield Step(name, "no zone can serve it" if pfn is None else "a zone can serve it",
                   {**numbers, "alloc_flags": alloc_flag_names(flags), "zones": verdicts})
        return pfn

    # -- the steps ---------------------------------------------------------------------------------------------

    def _before_the_loop(self) -> Generator[Step, None, int | None]:
        gfp, order, context = self.gfp_mask, self.order, self.context
        self.alloc_flags = gfp_to_alloc_flags(gfp, cma=self.memory.config.cma)
        context.reset_preferred_zone()
        if context.preferred_zone is None:
            self.reason = "no zone of this machine may serve the request"
            return None
        if self.alloc_flags & c.ALLOC_KSWAPD:
            yield self._wake_all_kswapds()
        pfn = yield from self._attempt("first_attempt")
        if pfn is not None:
            return pfn
        costly_order = order > c.PAGE_ALLOC_COSTLY_ORDER
        # Not for requests that may ignore watermarks: that attempt is still to come.
        if (gfp & c._GFP_DIRECT_RECLAIM and not self._pfmemalloc_flags()
                and (costly_order or order > 0 and context.migratetype != c.MIGRATE_MOVABLE)):
            pfn = yield from self._compact("compact_first", c.COMPACT_PRIO_ASYNC)
            if pfn is None and costly_order and gfp & c._GFP_NORETRY:
                if self.compact_result in (c.COMPACT_SKIPPED, c.COMPACT_DEFERRED):
                    self.reason = "__GFP_NORETRY, and compaction cannot help: it was " + \
                        c.COMPACT_RESULT_NAMES[self.compact_result]
                # Reclaim and compaction seem worth a try, but a costly one is not: stay asynchronous.
                self.compact_priority = c.COMPACT_PRIO_ASYNC
        return pfn

    def _wake_all_kswapds(self) -> Step:
        """Wake the kswapd of each node, with the first of its zones that the request may use (5.17:
        wake_all_kswapds())."""
        woken: list[int] = []
        for zone in self.context.zones():
            if zone.managed_pages and zone.nid not in woken[-1:]:
                self.memory.wakeup_kswapd(zone, self.gfp_mask, self.order, self.context.highest_zoneidx)
                woken.append(zone.nid)
        return Step("wake_kswapd", "kswapd of node " + ", ".join(map(str, woken)), {"nodes": woken, "order": self.order})

    def _pfmemalloc_flags(self) -> int:
        """Flags for those who free memory or are about to exit (5.17: __gfp_pfmemalloc_flags())."""
        if self.gfp_mask & c._GFP_NOMEMALLOC:
            return 0
        if self.gfp_mask & c._GFP_MEMALLOC or self.hooks.pf_memalloc:
            return c.ALLOC_NO_WATERMARKS
        return c.ALLOC_OOM if self.hooks.oom_victim else 0

    def _round(self) -> Generator[Step, None, int | None]:
        """One round of the loop that begins at the kernel's label ``retry``. Sets ``reason`` where the kernel goes to
        ``nopage``."""
        gfp, order = self.gfp_mask, self.order
        self.rounds += 1
        if self.rounds > self.hooks.max_rounds:
            raise KernelPanic(f"livelock: {self.rounds - 1} rounds of the allocation slow path reported progress but gave no "
                              f"block of order {order} ({gfp_names(gfp)}); the kernel would go on for ever")
        if self.rounds > 1 and self.alloc_flags & c.ALLOC_KSWAPD:
            # kswapd must not go to sleep while somebody is waiting for memory.
            yield self._wake_all_kswapds()
        reserve_flags = self._pfmemalloc_flags()
        if reserve_flags:
            self.alloc_flags = gfp_to_alloc_flags_cma(gfp, reserve_flags, cma=self.memory.config.cma)
        if reserve_flags or not self.alloc_flags & c.ALLOC_CPUSET:
            # An urgent request is the system's, not a user's: memory policies do not bind it.
            self.context.nodemask = None
            self.context.reset_preferred_zone()
        pfn = yield from self._attempt("retry", round=self.rounds)
        if pfn is not None:
            return pfn
        if not gfp & c._GFP_DIRECT_RECLAIM:
            self.reason = "the caller may not sleep, so it cannot reclaim"
            return None
        if self.hooks.pf_memalloc:
            self.reason = "the caller is reclaiming memory already"
            return None
        pfn = yield from self._reclaim()
        if pfn is None:
            pfn = yield from self._compact("compact", self.compact_priority)
        if pfn is not None:
            return pfn
        if gfp & c._GFP_NORETRY:
            self.reason = "__GFP_NORETRY: one round is all"
            return None
        if order > c.PAGE_ALLOC_COSTLY_ORDER and not gfp & c._GFP_RETRY_MAYFAIL:
            self.reason = f"order {order} is costly (more than {c.PAGE_ALLOC_COSTLY_ORDER}): better to fail than to try harder"
            return None
        if (yield from self._should_reclaim_retry()):
            return None
        if self.did_some_progress and (yield from self._should_compact_retry()):
            return None
        pfn = yield from self._may_oom()
        if pfn is not None:
            return pfn
        if self.hooks.oom_victim and (self.alloc_flags & c.ALLOC_OOM or gfp & c._GFP_NOMEMALLOC):
            self.reason = "the task is being killed: it may not wait for its own memory"
        elif self.did_some_progress:
            self.no_progress_loops = 0
        else:
            self.reason = self.reason or "reclaim, compaction and the OOM killer made no progress"
        return None

    def _reclaim(self) -> Generator[Step, None, int | None]:
        """Direct reclaim, then an attempt; after a failed one, reserves and per-CPU lists give back what they hold.

        5.17: __alloc_pages_direct_reclaim().
        """
        self.did_some_progress = self.hooks.reclaim(self.context, self.order, self.gfp_mask)
        if not self.did_some_progress:
            yield Step("reclaim", "nothing was freed", {"reclaimed": 0})
            return None
        self._progress_since_nofail = True
        pfn = yield from self._attempt("reclaim", reclaimed=self.did_some_progress)
        if pfn is None:
            unreserved = unreserve_highatomic_pageblock(list(self.context.zones()), self.context.migratetype, False)
            drain_all_pages(self.memory)
            pfn = yield from self._attempt("drain", unreserved=unreserved)
        return pfn

    def _compact(self, name: str, priority: int) -> Generator[Step, None, int | None]:
        """Compaction, then an attempt; nothing for order 0 (5.17: __alloc_pages_direct_compact())."""
        if not self.order:
            return None
        self.compact_result, pfn = self.hooks.compact(self.context, self.order, self.gfp_mask, self.alloc_flags, priority)
        numbers: dict[str, Any] = {"result": c.COMPACT_RESULT_NAMES[self.compact_result], "priority": priority}
        if self.compact_result == c.COMPACT_SKIPPED:
            yield Step(name, "no zone has enough free memory to compact, or there is no compaction", numbers)
            return None
        counters = self.memory.counters
        counters["compact_stall"] += 1
        if pfn is not None:
            prep_new_page(self.memory.frames, pfn, self.order, bool(self.gfp_mask & c._GFP_COMP))
            yield Step(name, "compaction made the block", numbers)
        else:
            pfn = yield from self._attempt(name, **numbers)
        if pfn is None:
            counters["compact_fail"] += 1
        else:
            self._progress_since_nofail = True
            counters["compact_success"] += 1
        return pfn

    def _should_reclaim_retry(self) -> Generator[Step, None, bool]:
        """Go on reclaiming while some zone could serve the request if all that is reclaimable were free; at most 16
        times without progress. Then the HIGHATOMIC reserve is given up. 5.17: should_reclaim_retry().
        """
        context, order, trace = self.context, self.order, self.memory.trace
        if self.did_some_progress and order <= c.PAGE_ALLOC_COSTLY_ORDER:
            self.no_progress_loops = 0
        else:
            # A costly order gains little from single reclaimed pages: progress doesn't count.
            self.no_progress_loops += 1
        loops = {"no_progress_loops": self.no_progress_loops, "limit": c.MAX_RECLAIM_RETRIES}
        if self.no_progress_loops > c.MAX_RECLAIM_RETRIES:
            unreserved = unreserve_highatomic_pageblock(list(context.zones()), context.migratetype, True)
            yield Step("should_reclaim_retry", "yes: a reserved pageblock was given back" if unreserved else "no: too many loops",
                       loops)
            return unreserved
        for zone in context.zones():
            reclaimable = self.hooks.reclaimable(zone)
            available = reclaimable + zone.nr_free_pages
            min_wmark = min_wmark_pages(zone)
            ok = zone_watermark_ok(zone, order, min_wmark, context.highest_zoneidx, self.alloc_flags, available)
            if trace.enabled:
                trace.emit("oom:reclaim_retry_zone", node=zone.nid, zone=zone.name, order=order, reclaimable=reclaimable,
                           available=available, min_wmark=min_wmark, no_progress_loops=self.no_progress_loops,
                           wmark_check=int(ok))
            if ok:
                yield Step("should_reclaim_retry", f"yes: zone {zone.name} of node {zone.nid} could serve it",
                           {**loops, "available": available, "min_wmark": min_wmark})
                return True
        yield Step("should_reclaim_retry", "no: not even if everything reclaimable were free", loops)
        return False

    def _should_compact_retry(self) -> Generator[Step, None, bool]:
        """Compact again while that made progress, up to 16 times (4 for costly orders), then with more effort.

        5.17: should_compact_retry().
        """
        order, result = self.order, self.compact_result
        if not order:
            return False
        max_retries, retries, priority = c.MAX_COMPACT_RETRIES, self.compaction_retries, self.compact_priority
        costly_order = order > c.PAGE_ALLOC_COSTLY_ORDER
        if result == c.COMPACT_SUCCESS:
            self.compaction_retries += 1
        again = False
        if result == c.COMPACT_SKIPPED:
            # Too little free memory to move pages into: again only if reclaim can change that.
            again = compaction_zonelist_suitable(self.context, order, self.alloc_flags, self.hooks.reclaimable)
            raise_effort = False
        else:
            raise_effort = result in (c.COMPACT_COMPLETE, c.COMPACT_DEFERRED, c.COMPACT_CONTENDED, c.COMPACT_PARTIAL_SKIPPED)
            if not raise_effort:
                max_retries = max_retries // 4 if costly_order else max_retries
                again = self.compaction_retries <= max_retries
                raise_effort = not again
        min_priority = c.COMPACT_PRIO_SYNC_LIGHT if costly_order else c.COMPACT_PRIO_SYNC_FULL
        if raise_effort and self.compact_priority > min_priority:
            self.compact_priority -= 1
            self.compaction_retries = 0
            again = True
        trace = self.memory.trace
        if trace.enabled:
            trace.emit("oom:compact_retry", order=order, priority=priority, result=c.COMPACT_RESULT_NAMES[result],
                       retries=retries, max_retries=max_retries, ret=int(again))
        yield Step("should_compact_retry", "yes" if again else "no",
                   {"result": c.COMPACT_RESULT_NAMES[result], "retries": retries, "max_retries": max_retries,
                    "priority": self.compact_priority})
        return again

    def _may_oom(self) -> Generator[Step, None, int | None]:
        """A last attempt, at the high watermark: perhaps somebody else has just killed. Then kill, unless that cannot
        help.

        5.17: __alloc_pages_may_oom(). Left out: the oom lock (the machine has one task at a time), core dumps.
        """
        self.did_some_progress = 0
        gfp, order, context = self.gfp_mask, self.order, self.context
        pfn = get_page_from_freelist(self.memory, (gfp | c._GFP_HARDWALL) & ~c._GFP_DIRECT_RECLAIM, order,
                                     c.ALLOC_WMARK_HIGH | c.ALLOC_CPUSET, context)
        if pfn is not None:
            yield Step("oom", "no need: a zone is above its high watermark", {})
            return pfn
        spared = ""
        if order > c.PAGE_ALLOC_COSTLY_ORDER:
            spared = f"killing does not make blocks of order {order}"
        elif gfp & c._GFP_RETRY_MAYFAIL:
            spared = "__GFP_RETRY_MAYFAIL: the caller has something better to do than to kill"
        elif gfp & c._GFP_THISNODE:
            spared = "__GFP_THISNODE: killing may not free memory of this node"
        elif context.highest_zoneidx < c.ZONE_NORMAL:
            spared = "a low zone is wanted: killing does not free that"
        if spared:
            self.reason = spared
            yield Step("oom", f"nobody is killed: {spared}", {})
            return None
        killed = self.hooks.oom(context, order, gfp)
        if killed or gfp & c._GFP_NOFAIL:
            self.did_some_progress = 1
            self._progress_since_nofail |= killed
        yield Step("oom", "the OOM killer freed memory" if killed else "the OOM killer found nobody", {"killed": killed})
        if not killed and gfp & c._GFP_NOFAIL:
            return (yield from self._nofail_attempt(c.ALLOC_NO_WATERMARKS))
        if killed and gfp & c._GFP_NOFAIL:
            return get_page_from_freelist(self.memory, gfp, order, c.ALLOC_NO_WATERMARKS, context)
        return None

    def _nofail_attempt(self, alloc_flags: int) -> Generator[Step, None, int | None]:
        """Serve a request that must not fail from the reserves, or stop where the kernel would loop for ever."""
        pfn = yield from self._attempt("nofail", alloc_flags)
        if pfn is None and not self._progress_since_nofail:
            raise KernelPanic(
                f"a __GFP_NOFAIL request of order {self.order} ({gfp_names(self.gfp_mask)}) cannot be satisfied: reclaim, "
                "compaction and the OOM killer free nothing; the kernel would try for ever")
        self._progress_since_nofail = False
        return pfn

    def _nofail(self) -> Generator[Step, None, int | None]:
        """A caller that must not fail gets half of the reserves, and then begins again (5.17: the end of the slow
        path)."""
        if self.hooks.pf_memalloc or self.order > c.PAGE_ALLOC_COSTLY_ORDER:
            self.memory.klog.warn(f"WARNING: mm/page_alloc.c __alloc_pages_slowpath: __GFP_NOFAIL for order {self.order}"
                                  + (" while reclaiming" if self.hooks.pf_memalloc else ""))
        self.reason = ""
        return (yield from self._nofail_attempt(c.ALLOC_HARDER))


def compaction_zonelist_suitable(context: AllocContext, order: int, alloc_flags: int,
                                 reclaimable: Callable[[Zone], int]) -> bool:
    """Tell whether compaction could work in some zone if a part of its reclaimable pages were free.

    5.17: mm/compaction.c, compaction_zonelist_suitable() and __compaction_suitable().
    """
    for zone in context.zones():
        available = reclaimable(zone) // order + zone.nr_free_pages
        if zone_watermark_ok(zone, order, wmark_pages(zone, alloc_flags & c.ALLOC_WMARK_MASK), context.highest_zoneidx,
                             alloc_flags):
            continue
        # Room for the pages that are moved and for those isolated meanwhile: twice the block.
        mark = low_wmark_pages(zone) if order > c.PAGE_ALLOC_COSTLY_ORDER else min_wmark_pages(zone)
        if zone_watermark_ok(zone, 0, mark + (2 << order), context.highest_zoneidx, c.ALLOC_CMA, available):
            return True
    return False
