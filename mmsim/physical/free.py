"""Giving pages back: references are dropped, the page is checked, and its block goes to a per-CPU list or the free lists.

The checks are those of a kernel with CONFIG_DEBUG_VM, which makes all of them when the page is freed.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmsim.constants import MAX_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from mmsim.errors import InputError
from mmsim.physical.buddy import free_one_page, set_pageblock_migratetype
from mmsim.physical.debug import bad_page, page_bad_reason, vm_bug_on_page
from mmsim.physical.frames import COMPOUND_TAIL, PAGE_FLAGS_CHECK_AT_FREE, PG
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.pcp import free_unref_page_commit, pcp_allowed_order
from mmsim.physical.zone import Zone

__all__ = [
    "free_pages", "free_pages_core", "free_pages_ok", "free_pages_prepare", "free_unref_page", "free_unref_page_list",
    "init_cma_reserved_pageblock", "put_page",
]


def free_pages_prepare(memory: PhysicalMemory, pfn: int, order: int) -> bool:
    """Check a block whose last reference is gone and clear its fields. Return False if it must not be freed.

    A page that is still mapped, referenced, reserved, on an LRU list or locked is reported (:func:`.bad_page`) and the whole
    block stays out of the allocator. 5.17: mm/page_alloc.c, free_pages_prepare().
    """
    frames = memory.frames
    trace = memory.trace
    if trace.enabled:
        trace.emit("kmem:mm_page_free", pfn=pfn, order=order)
    if not order:
        if frames.flags[pfn] & PAGE_FLAGS_CHECK_AT_FREE or frames.mapcount[pfn] or frames.refcount[pfn] or \
                frames.free_block[pfn]:
            bad_page(memory, pfn, page_bad_reason(memory, pfn))
            return False
        frames.flags[pfn] = 0
        return True
    end = pfn + (1 << order)
    compound = frames.compound[pfn]
    if compound:
        if compound != order:
            raise vm_bug_on_page(memory, pfn, "compound && compound_order(page) != order")
        frames.compound[pfn:end] = bytes(1 << order)
    bad = False
    if not frames.is_clear(pfn, order):
        for page in range(pfn, end):
            reason = page_bad_reason(memory, page)
            if reason:
                bad_page(memory, page, reason)
                bad = True
            elif page > pfn:
                frames.flags[page] = 0
    if not bad:
        frames.flags[pfn] = 0
    return not bad


def free_pages_ok(memory: PhysicalMemory, pfn: int, order: int, to_tail: bool = False) -> None:
    """Check a block and give it to the free lists, past the per-CPU lists (5.17: __free_pages_ok())."""
    if free_pages_prepare(memory, pfn, order):
        zone = memory.frames.page_zone(pfn)
        free_one_page(zone, pfn, order, memory.frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER], to_tail)
        memory.counters["pgfree"] += 1 << order


def free_unref_page(memory: PhysicalMemory, pfn: int, order: int = 0) -> None:
    """Check a block without references and put it on the CPU's list (5.17: free_unref_page()).

    Isolated pageblocks take their frames back at once: nobody may allocate them.
    """
    if not free_pages_prepare(memory, pfn, order):
        return
    frames = memory.frames
    zone = frames.zones[frames.zone_of[pfn]]
    assert zone is not None
    migratetype = frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
    if migratetype == zone.migrate_isolate:
        free_one_page(zone, pfn, order, migratetype)
    else:
        free_unref_page_commit(zone, pfn, migratetype, order)


def free_unref_page_list(memory: PhysicalMemory, pfns: Iterable[int]) -> None:
    """Free many single pages whose references are gone: all are checked first, then put on the CPU's lists.

    5.17: free_unref_page_list().
    """
    frames = memory.frames
    isolate = memory.config.migrate_isolate
    prepared: list[tuple[int, int]] = []
    for pfn in pfns:
        if free_pages_prepare(memory, pfn, 0):
            migratetype = frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER]
            if migratetype == isolate:
                free_one_page(frames.page_zone(pfn), pfn, 0, migratetype)
            else:
                prepared.append((pfn, migratetype))
    trace = memory.trace
    for pfn, migratetype in prepared:
        if trace.enabled:
            trace.emit("kmem:mm_page_free_batched", pfn=pfn)
        free_unref_page_commit(frames.page_zone(pfn), pfn, migratetype, 0)


def _put_page_testzero(memory: PhysicalMemory, pfn: int) -> bool:
    """Drop a reference; True if it was the last. A page without references is reported, and stays what it is.

    A kernel without CONFIG_DEBUG_VM lets the count drop to -1 and gives this very report when the page is next allocated,
    after which the page is lost. Here the report comes at once and the count goes back to 0.
    """
    refcount = memory.frames.refcount
    count = refcount[pfn] - 1
    refcount[pfn] = count
    if count > 0:
        return False
    if count < 0:
        bad_page(memory, pfn, "nonzero _refcount")
        refcount[pfn] = 0
        return False
    return True


def free_pages(memory: PhysicalMemory, pfn: int, order: int = 0) -> None:
    """Drop the caller's reference to a block; if it was the last, free the block.

    If somebody else still holds the first page of a block that is not compound, the other pages are freed now (the holder
    knows nothing of them). Raise InputError for a PFN without a frame, KernelBug for an order that the block cannot have.
    5.17: __free_pages().
    """
    frames = memory.frames
    if not order and 0 <= pfn < frames.max_pfn and frames.refcount[pfn] == 1 and not frames.compound[pfn]:
        # The common case, without detours: the last reference to a single page.
        frames.refcount[pfn] = 0
        free_unref_page(memory, pfn)
        return
    if not frames.pfn_valid(pfn):
        raise InputError(f"there is no frame {pfn:#x}")
    if order:
        if not 0 <= order < MAX_ORDER or pfn & (1 << order) - 1:
            raise vm_bug_on_page(memory, pfn, "pfn & ((1 << order) - 1)" if 0 <= order < MAX_ORDER else "order >= MAX_ORDER")
    compound = frames.compound[pfn]
    if compound & COMPOUND_TAIL or compound and compound != order:
        raise vm_bug_on_page(memory, pfn, "PageTail(page)" if compound & COMPOUND_TAIL else
                             "compound && compound_order(page) != order")
    if frames.refcount[pfn] < 1:
        _put_page_testzero(memory, pfn)
    elif _put_page_testzero(memory, pfn):
        _free_the_page(memory, pfn, order)
    elif order and not compound:
        for part in range(order - 1, -1, -1):
            _free_the_page(memory, pfn + (1 << part), part)


def _free_the_page(memory: PhysicalMemory, pfn: int, order: int) -> None:
    """Free through the per-CPU lists if the order has them (5.17: free_the_page())."""
    if pcp_allowed_order(order):
        free_unref_page(memory, pfn, order)
    else:
        free_pages_ok(memory, pfn, order)


def put_page(memory: PhysicalMemory, pfn: int) -> None:
    """Drop a reference to a page, or to the compound page that it is part of; free it if it was the last.

    5.17: include/linux/mm.h, put_page() and mm/swap.c, __put_page(). Left out: what the destructor of a huge page does, and
    taking the page off its LRU list.
    """
    head = memory.frames.compound_head(pfn)
    if _put_page_testzero(memory, head):
        _free_the_page(memory, head, memory.frames.compound_order(head))


# -- boot --------------------------------------------------------------------------------------------------

def free_pages_core(memory: PhysicalMemory, pfn: int, order: int) -> None:
    """Hand a block of memory over to the allocator for the first time: it becomes managed, and goes to its list's tail.

    The tail, because the free lists hand out their heads: frames that were in use before come back into use first.
    5.17: mm/page_alloc.c, __free_pages_core().
    """
    frames = memory.frames
    zone = frames.page_zone(pfn)
    size = 1 << order
    if not frames.is_clear(pfn, order):
        for page in range(pfn, pfn + size):
            frames.flags[page] &= ~PG["reserved"]
            frames.refcount[page] = 0
    zone.managed_pages += size
    free_pages_ok(memory, pfn, order, to_tail=True)


def init_cma_reserved_pageblock(zone: Zone, pfn: int) -> None:
    """Hand one pageblock of a contiguous memory area over: movable pages may use it until its owner wants it.

    5.17: mm/page_alloc.c, init_cma_reserved_pageblock().
    """
    memory, frames = zone.memory, zone.frames
    for page in range(pfn, pfn + PAGEBLOCK_NR_PAGES):
        frames.flags[page] &= ~PG["reserved"]
        frames.refcount[page] = 0
    set_pageblock_migratetype(zone, pfn, memory.config.migrate_cma)
    frames.refcount[pfn] = 1
    free_pages(memory, pfn, PAGEBLOCK_ORDER)
    zone.managed_pages += PAGEBLOCK_NR_PAGES
    zone.cma_pages += PAGEBLOCK_NR_PAGES
