"""Many accesses at once: the same as one access to each page, in steps of whole runs of pages.

Untouched private memory is where programs take most of their faults, one page after the other. For a run of empty entries the
pages come from the CPU's list together, and columns, owners and entries are written as slices. Everything else, and everything
while somebody traces or a TLB is watched, goes page by page.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_RW,
    _PAGE_SPECIAL,
    MM_ANONPAGES,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
)
from mmsim.errors import Errno
from mmsim.paging.pte import PROTECTION_MAP
from mmsim.physical.frames import PG
from mmsim.process.populate import Access
from mmsim.process.rmap import anon_vma_prepare
from mmsim.process.user_memory import ANON_EXCLUSIVE, GFP_ZEROED
from mmsim.process.vma import Vma
from mmsim.units import PAGE_SHIFT

if TYPE_CHECKING:
    from mmsim.process.task import Process

__all__ = ["first_write", "touch_range"]

_NEW = PG["uptodate"] | PG["swapbacked"]
_LRU = PG["lru"]


def touch_range(process: Process, addr: int, pages: int, write: bool) -> int:
    """Access one byte of each of ``pages`` pages; return how many were accessed before one ended in a signal, or without memory.

    The result is that of :meth:`Process.touch` on each in turn. Cost: a fraction of a microsecond a page in a run.
    """
    user, access = process.user, Access.WRITE if write else Access.READ
    plain = not user.trace.enabled and not user.split_rss and (user.tlb is None or process.cpu is None)
    page, end = addr >> PAGE_SHIFT, (addr >> PAGE_SHIFT) + pages
    while page < end:
        last = min(end, (page | 511) + 1)
        run = _resident_run(process, page, last, write) if plain else 0
        if run:
            page += run
            continue
        run = _empty_run(process, page, last, write) if plain else 0
        if run:
            user.current = process
            done = _new_pages(process, page, run) if write else _zero_pages(process, page, run)
            page += done
            if done == run:
                continue
        if process.touch(page << PAGE_SHIFT, access).outcome.value:
            break
        page += 1
    return page - (addr >> PAGE_SHIFT)


def _resident_run(process: Process, page: int, end: int, write: bool) -> int:
    """Access pages whose entries allow it, from ``page`` on in the same table, and return how many there are."""
    table = process.space.tables.ptes.get(page >> 9)
    if table is None:
        return 0
    first, last = page & 511, (end - 1 & 511) + 1
    needed, used = (_PAGE_PRESENT | _PAGE_RW, _PAGE_ACCESSED | _PAGE_DIRTY) if write else (_PAGE_PRESENT, _PAGE_ACCESSED)
    if table[first] & needed != needed:
        return 0
    words = table[first:last]
    run = next((number for number, word in enumerate(words) if word & needed != needed), last - first)
    table[first:first + run] = array("Q", [word | used for word in words[:run]])
    return run


def first_write(process: Process, addr: int, table: array[int], index: int) -> bool:
    """The first write to a page of private anonymous memory, whose entry is empty: handle the fault in one piece if nothing about
    it is special, or do nothing and return False.

    The same as :func:`mmsim.process.fault.handle_mm_fault`, of which it is the common case.
    """
    user = process.user
    vma = process.mm.tree.lookup(addr)
    if vma is None or user.trace.enabled or user.split_rss or vma.anon_vma is None or vma.vm_file is not None or vma.special \
            or vma.vm_flags & (VM_WRITE | VM_SHARED | VM_LOCKED) != VM_WRITE:
        return False
    pfn = user.allocator.alloc_pages(GFP_ZEROED)
    if pfn is None:
        return False
    frames, space = user.frames, process.space
    user.current = process
    user.counters["pgfault"] += 1
    process.minflt += 1
    user.contents.frames.pop(pfn, None)
    frames.flags[pfn] = _NEW | ANON_EXCLUSIVE if user.anon_exclusive else _NEW
    frames.mapcount[pfn] = 1
    user.mapping[pfn] = vma.anon_vma
    user.index[pfn] = vma.vm_pgoff + (addr - vma.vm_start >> PAGE_SHIFT)
    user.nr_anon_mapped += 1
    space.rss[MM_ANONPAGES] += 1
    user.lru.lru_cache_add(pfn)
    table[index] = pfn << PAGE_SHIFT | PROTECTION_MAP[vma.vm_flags & 7] | space.dirty_bits | _PAGE_RW
    return True


def _empty_run(process: Process, page: int, end: int, write: bool) -> int:
    """How many empty entries of private anonymous memory there are from ``page`` on, before ``end`` in the same table."""
    vma = process.mm.tree.lookup(page << PAGE_SHIFT)
    if vma is None or not vma.is_anonymous or not vma.is_accessible or vma.vm_flags & (VM_SHARED | VM_LOCKED):
        return 0
    if write and not vma.vm_flags & VM_WRITE:
        return 0
    end = min(end, vma.vm_end >> PAGE_SHIFT)
    table = process.space.tables.ptes.get(page >> 9)
    if table is None:
        return end - page
    first, last = page & 511, (end - 1 & 511) + 1
    if table[first]:
        return 0
    words = table[first:last]
    if words.count(0) == last - first:
        return last - first
    for number, word in enumerate(words):
        if word:
            return number
    return last - first


def _zero_pages(process: Process, page: int, run: int) -> int:
    """Map the page of zeros; return how many entries were filled."""
    space, user = process.space, process.user
    vma = process.mm.tree.lookup(page << PAGE_SHIFT)
    try:
        table, index = space.tables.pte_alloc(page << PAGE_SHIFT)
    except Errno:
        return 0
    assert vma is not None
    table[index:index + run] = array("Q", [user.zero_pfn << PAGE_SHIFT | space.vm_page_prot(vma) | _PAGE_SPECIAL]) * run
    user.counters["pgfault"] += run
    process.minflt += run
    return run


def _new_pages(process: Process, page: int, run: int) -> int:
    """Map new pages; return how many there were frames for, at least."""
    space, user = process.space, process.user
    vma = process.mm.tree.lookup(page << PAGE_SHIFT)
    assert vma is not None
    try:
        table, index = space.tables.pte_alloc(page << PAGE_SHIFT)
    except Errno:
        return 0
    anon_vma_prepare(vma)
    prot = space.vm_page_prot(vma) | space.dirty_bits | _PAGE_RW
    done = 0
    while done < run:
        # What a full batch lets go of may be free again: so no more pages at once than until then.
        pfns = user.allocator.alloc_single_pages(GFP_ZEROED, min(run - done, user.lru.until_flush()))
        if not pfns:
            break
        _own(process, vma, page + done, pfns)
        table[index + done:index + done + len(pfns)] = array("Q", [pfn << PAGE_SHIFT | prot for pfn in pfns])
        done += len(pfns)
    user.counters["pgfault"] += done
    process.minflt += done
    space.rss[MM_ANONPAGES] += done
    return done


def _own(process: Process, vma: Vma, page: int, pfns: list[int]) -> None:
    """Give new pages their owner, index, flags and mapping, and put them into the CPU's batch."""
    user = process.user
    frames, contents, anon_vma = user.frames, user.contents.frames, vma.anon_vma
    assert anon_vma is not None
    count, first = len(pfns), pfns[0]
    index = vma.vm_pgoff + page - (vma.vm_start >> PAGE_SHIFT)
    flags = _NEW | ANON_EXCLUSIVE if user.anon_exclusive else _NEW
    for pfn in contents.keys() & set(pfns):
        del contents[pfn]
    user.mapping.update(dict.fromkeys(pfns, anon_vma))
    listed = user.lru.lru_cache_add_mapped(pfns)
    if pfns[-1] - first == count - 1 and pfns == list(range(first, first + count)):
        run = slice(first, first + count)
        frames.flags[run] = array("I", [flags | _LRU]) * listed + array("I", [flags]) * (count - listed)
        frames.mapcount[run] = array("i", [1]) * count
        user.index[run] = array("q", range(index, index + count))
    else:
        for number, pfn in enumerate(pfns):
            frames.flags[pfn] = flags | _LRU if number < listed else flags
            frames.mapcount[pfn] = 1
            user.index[pfn] = index + number
    user.nr_anon_mapped += count

