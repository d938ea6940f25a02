"""Faults on pages of files and of shared memory.

A page that is in the page cache is mapped, and on a read up to 15 around it that are there as well (*fault-around*: the aligned
64 KiB, cut at the ends of the area and of its page table). A private write gets a copy at once, a shared one makes the page dirty.

5.17: mm/memory.c, mm/filemap.c, mm/shmem.c. Left out: readahead (a page that is not cached is read alone, as a major fault), locks
and waiting, what is behind page_mkwrite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsim.constants import (
    FAULT_AROUND_BYTES,
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_TRIED,
    FAULT_FLAG_WRITE,
    MM_ANONPAGES,
    VM_FAULT_ERROR,
    VM_FAULT_MAJOR,
    VM_FAULT_NOPAGE,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_SHARED,
)
from mmsim.errors import Errno
from mmsim.physical.frames import PG
from mmsim.process import cow, fault
from mmsim.process.rmap import anon_vma_prepare
from mmsim.units import PAGE_SHIFT

if TYPE_CHECKING:
    from mmsim.process.fault import VmFault

__all__ = ["do_cow_fault", "do_fault", "do_fault_around", "do_read_fault", "do_shared_fault", "fault_dirty_shared_page"]

_UPTODATE = PG["uptodate"]
_AROUND = FAULT_AROUND_BYTES >> PAGE_SHIFT


def do_fault(vmf: VmFault) -> int:
    """An empty entry of an area with something behind it (5.17: mm/memory.c, do_fault())."""
    if vmf.vma.vm_file is None:
        return VM_FAULT_SIGBUS                  # a special mapping: its pages are there from the start
    if not vmf.flags & FAULT_FLAG_WRITE:
        return do_read_fault(vmf)
    if not vmf.vma.vm_flags & VM_SHARED:
        return do_cow_fault(vmf)
    return do_shared_fault(vmf)


def _file_page(vmf: VmFault) -> int:
    """Find or make the file's page and take a reference to it: vmf.page (5.17: mm/memory.c, __do_fault(); filemap_fault(),
    shmem_fault()).
    """
    file, user, index = vmf.vma.vm_file, vmf.space.user, vmf.pgoff
    assert file is not None
    # The table comes first: with the page locked, no memory may be asked for.
    if vmf.prealloc_pte() is None:
        return VM_FAULT_OOM
    if index >= file.pages:
        return VM_FAULT_SIGBUS
    result = 0
    pfn = file.cache.get(index)
    if pfn is None:
        try:
            pfn = user.add_to_page_cache(file, index, vmf.space.mm)
        except Errno:
            return VM_FAULT_SIGBUS              # no promise for a page of shared memory: ENOSPC
        if pfn is None:
            return VM_FAULT_OOM
        if not file.is_shmem:
            user.counters["pgmajfault"] += 1
            result = VM_FAULT_MAJOR
    user.frames.refcount[pfn] += 1
    vmf.page = pfn
    return result


def _do_set_pte(vmf: VmFault, pfn: int, address: int) -> None:
    """Map a page that the caller holds a reference to (5.17: mm/memory.c, do_set_pte())."""
    space, vma, user = vmf.space, vmf.vma, vmf.space.user
    write = vmf.flags & FAULT_FLAG_WRITE
    word = pfn << PAGE_SHIFT | space.vm_page_prot(vma)
    if write:
        word = cow.maybe_mkwrite(word | space.dirty_bits, vma)
    if write and not vma.vm_flags & VM_SHARED:
        space.add_mm_counter_fast(MM_ANONPAGES, 1)
        user.page_add_new_anon_rmap(pfn, vma, address)
        fault.lru_cache_add_inactive_or_unevictable(space, pfn, vma)
    else:
        space.add_mm_counter_fast(user.mm_counter(pfn), 1)
        user.page_add_file_rmap(pfn)
    assert vmf.table is not None
    vmf.table[address >> PAGE_SHIFT & 511] = word


def _finish_fault(vmf: VmFault) -> int:
    """Map the page that was found, or the copy of it (5.17: mm/memory.c, finish_fault())."""
    if vmf.pte_alloc() is None:
        return VM_FAULT_OOM
    _do_set_pte(vmf, vmf.cow_page if vmf.cow_page >= 0 else vmf.page, vmf.address)
    return 0


def do_fault_around(vmf: VmFault) -> int:
    """Map what is cached around the address; VM_FAULT_NOPAGE if that was enough.

    5.17: mm/memory.c, do_fault_around(); mm/filemap.c, filemap_map_pages().
    """
    vma, user, file = vmf.vma, vmf.space.user, vmf.vma.vm_file
    assert file is not None
    address = max(vmf.address & -FAULT_AROUND_BYTES, vma.vm_start)
    start = vmf.pgoff - (vmf.address - address >> PAGE_SHIFT & 511)
    end = min(start - (address >> PAGE_SHIFT & 511) + 511, vma.vm_pgoff + vma.pages - 1, start + _AROUND - 1, file.pages - 1)
    table = vmf.prealloc_pte()
    if table is None:
        return VM_FAULT_OOM
    result = 0
    for index in range(start, end + 1):
        pfn = file.cache.get(index)
        at = address + (index - start << PAGE_SHIFT)
        if pfn is None or not user.frames.flags[pfn] & _UPTODATE or table[at >> PAGE_SHIFT & 511]:
            continue
        user.frames.refcount[pfn] += 1
        _do_set_pte(vmf, pfn, at)
        if at == vmf.address:
            result = VM_FAULT_NOPAGE
    if result:
        vmf.space.what = "file page, with those around it"
    return result


def do_read_fault(vmf: VmFault) -> int:
    """Read or execute: map the file's page (5.17: mm/memory.c, do_read_fault())."""
    file, user = vmf.vma.vm_file, vmf.space.user
    assert file is not None
    if file.map_pages:
        result = do_fault_around(vmf)
        if result:
            return result
    result = _file_page(vmf)
    if result & VM_FAULT_ERROR:
        return result
    result |= _finish_fault(vmf)
    if result & VM_FAULT_ERROR:
        user.put_page(vmf.page)
    vmf.space.what = "file page"
    return result


def do_cow_fault(vmf: VmFault) -> int:
    """Write to a private mapping: map a copy of the file's page at once (5.17: mm/memory.c, do_cow_fault())."""
    user = vmf.space.user
    anon_vma_prepare(vmf.vma)
    copy = user.alloc_page()
    if copy is None:
        return VM_FAULT_OOM
    result = _file_page(vmf)
    if result & VM_FAULT_ERROR:
        user.put_page(copy)
        return result
    user.contents.copy(copy, vmf.page)
    user.frames.flags[copy] |= _UPTODATE
    vmf.cow_page = copy
    result |= _finish_fault(vmf)
    user.put_page(vmf.page)
    if result & VM_FAULT_ERROR:
        user.put_page(copy)
    vmf.space.what = "copy of the file's page"
    return result


def do_shared_fault(vmf: VmFault) -> int:
    """Write to a shared mapping: map the file's page writable and dirty (5.17: mm/memory.c, do_shared_fault())."""
    user = vmf.space.user
    result = _file_page(vmf)
    if result & VM_FAULT_ERROR:
        return result
    result |= _finish_fault(vmf)
    if result & VM_FAULT_ERROR:
        user.put_page(vmf.page)
        return result
    vmf.space.what = "shared page"
    return result | fault_dirty_shared_page(vmf, vmf.page)


def fault_dirty_shared_page(vmf: VmFault, pfn: int) -> int:
    """A shared page was written. If it was clean, or the file system wants to hear of each write, the writer is throttled
    without the mmap_lock, and the fault tried again: VM_FAULT_RETRY. That is why the task counts it as major.

    5.17: mm/memory.c, fault_dirty_shared_page(). Since 6.0 the fault is complete then.
    """
    user, file = vmf.space.user, vmf.vma.vm_file
    assert file is not None
    dirtied = user.set_page_dirty(pfn)
    if (dirtied or file.page_mkwrite) and user.rules.dirtying_fault_retries:
        if vmf.flags & FAULT_FLAG_ALLOW_RETRY and not vmf.flags & FAULT_FLAG_TRIED:
            return VM_FAULT_RETRY
    return 0
