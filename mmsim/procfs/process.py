"""The files of /proc/PID about memory, from a simulated process: what its areas promise and its page tables hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mmsim.constants import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MM_SWAPENTS,
    SOFTDIRTY_BIT,
    TASK_SIZE_MAX,
    VM_LOCKED,
)
from mmsim.errors import InputError
from mmsim.paging.pagemap import pagemap_entry
from mmsim.paging.pte import (
    is_migration_entry,
    pte_dirty,
    pte_pfn,
    pte_present,
    pte_special,
    pte_to_swp_entry,
    pte_young,
)
from mmsim.paging.tables import Leaf
from mmsim.physical.frames import PG
from mmsim.process.mm import Mm
from mmsim.process.user_memory import UserMemory
from mmsim.process.vma import Vma, vm_flag_names
from mmsim.procfs.maps import area_line, maps
from mmsim.procfs.smaps import MemSizeStats, SmapsArea, format_rollup
from mmsim.procfs.status import Statm, StatusMemory
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, align_down, align_up

__all__ = ["PROCESS_FILES", "kpagecount", "kpageflags", "pagemap", "process_file", "smap_gather_stats", "smaps", "smaps_area",
           "smaps_rollup", "statm", "status", "status_memory"]


class HasMm(Protocol):
    """What a file of /proc/PID needs of a process."""

    @property
    def pid(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def mm(self) -> Mm: ...


# -- smaps -------------------------------------------------------------------------------------------------------

def smap_gather_stats(mm: Mm, vma: Vma) -> MemSizeStats:
    """Count what an area's entries map. The page of zeros is no page of anybody, and counts as nothing.

    A page counts as shared if more than one entry maps it, even two of the same process. Cost: the tables of the range.
    5.17: fs/proc/task_mmu.c, smap_gather_stats(), smaps_pte_entry(). Left out: huge pages.
    """
    stats = MemSizeStats()
    if mm.pages is None:
        return stats
    user = mm.pages.user
    frames, locked = user.frames, bool(vma.vm_flags & VM_LOCKED)
    swap_backed, page_dirty, accessed = PG["swapbacked"], PG["dirty"], PG["referenced"] | PG["young"]
    for leaf in mm.pages.tables.leaves(vma.vm_start, vma.vm_end):
        word = leaf.word
        if not pte_present(word):
            entry = pte_to_swp_entry(word)
            if not is_migration_entry(entry):
                stats.account_swap(1)
            continue
        if pte_special(word):
            continue
        pfn = pte_pfn(word)
        flags, anon = frames.flags[pfn], user.page_anon(pfn)
        dirty = pte_dirty(word) or bool(flags & page_dirty)
        stats.account(mapcount=frames.mapcount[pfn], anon=anon, swap_backed=bool(flags & swap_backed), dirty=dirty,
                      young=pte_young(word) or bool(flags & accessed), locked=locked,
                      lazyfree=anon and not dirty and not flags & swap_backed)
    return stats


def smaps_area(mm: Mm, vma: Vma) -> SmapsArea:
    """One area of smaps. THPeligible is 0: the processes here have small pages only."""
    lockonfault = "lf" if mm.rules.smaps_names_lockonfault else "??"
    return SmapsArea(area_line(mm, vma), smap_gather_stats(mm, vma), flags=vm_flag_names(vma.vm_flags, lockonfault))


def smaps(process: HasMm) -> str:
    """The text of /proc/PID/smaps (5.17: fs/proc/task_mmu.c, show_smap())."""
    return "".join(smaps_area(process.mm, vma).text() for vma in process.mm)


def smaps_rollup(process: HasMm) -> str:
    """The text of /proc/PID/smaps_rollup: one area for all, with the share by kind. Raise InputError (ESRCH) without areas.

    5.17: fs/proc/task_mmu.c, show_smaps_rollup().
    """
    areas = list(process.mm)
    if not areas:
        raise InputError(f"process {process.pid} has no memory: ESRCH")
    total = MemSizeStats()
    for vma in areas:
        total.add(smap_gather_stats(process.mm, vma))
    return format_rollup(areas[0].vm_start, areas[-1].vm_end, total)


# -- status and statm ----------------------------------------------------------------------------------------------

def _text_bytes(mm: Mm) -> int:
    """The pages that hold the program's code, in bytes."""
    return align_up(mm.end_code, PAGE_SIZE) - align_down(mm.start_code, PAGE_SIZE)


def status_memory(mm: Mm) -> StatusMemory:
    """The memory lines of status; VmLib is all code that isn't the program's own.

    With the counts of each task apart (``split_rss``), RSS lags behind smaps, as in 5.17. 5.17: fs/proc/task_mmu.c, task_mem().
    """
    anon, file, shmem = mm.rss[MM_ANONPAGES], mm.rss[MM_FILEPAGES], mm.rss[MM_SHMEMPAGES]
    total_rss = anon + file + shmem
    text = min(_text_bytes(mm) >> PAGE_SHIFT, mm.exec_vm)

    def kib(pages: int) -> int:
        return pages << PAGE_SHIFT - 10
    return StatusMemory(
        vm_peak=kib(max(mm.hiwater_vm, mm.total_vm)), vm_size=kib(mm.total_vm), vm_lck=kib(mm.locked_vm), vm_pin=0,
        vm_hwm=kib(max(mm.hiwater_rss, total_rss)), vm_rss=kib(total_rss), rss_anon=kib(anon), rss_file=kib(file),
        rss_shmem=kib(shmem), vm_data=kib(mm.data_vm), vm_stk=kib(mm.stack_vm), vm_exe=kib(text), vm_lib=kib(mm.exec_vm - text),
        vm_pte=mm.pgtables_bytes >> 10, vm_swap=kib(mm.rss[MM_SWAPENTS]), hugetlb_pages=0)


def status(process: HasMm) -> str:
    """The memory lines of /proc/PID/status, with the name and number before them. Left out: all other lines."""
    return f"Name:\t{process.name[:15]}\nPid:\t{process.pid}\n" + status_memory(process.mm).text()


def statm(process: HasMm) -> str:
    """The text of /proc/PID/statm (5.17: fs/proc/task_mmu.c, task_statm())."""
    mm = process.mm
    shared = mm.rss[MM_FILEPAGES] + mm.rss[MM_SHMEMPAGES]
    return Statm(mm.total_vm, shared + mm.rss[MM_ANONPAGES], shared, _text_bytes(mm) >> PAGE_SHIFT,
                 data=mm.data_vm + mm.stack_vm).text()


# -- pagemap -------------------------------------------------------------------------------------------------------

def pagemap(process: HasMm, start: int, pages: int, *, admin: bool = False) -> list[int]:
    """The words of /proc/PID/pagemap for ``pages`` pages from the address ``start`` (a file offset of ``start >> 9``).

    Without CAP_SYS_ADMIN (``admin``) frame numbers read as 0. Raise InputError for an address that is no page's. Reading ends at
    the end of user space. 5.17: fs/proc/task_mmu.c, pagemap_read().
    """
    if start & PAGE_SIZE - 1:
        raise InputError(f"{start:#x} is not the address of a page: EINVAL")
    mm = process.mm
    found: list[int] = []
    for address in range(start, min(start + pages * PAGE_SIZE, TASK_SIZE_MAX), PAGE_SIZE):
        vma, leaf, file, mapcount = mm.tree.lookup(address), None, False, 0
        if mm.pages is not None and vma is not None:
            word = mm.pages.pte(address)
            if word:
                leaf = Leaf(address, 1, word)
                if pte_present(word) and not pte_special(word):
                    pfn = pte_pfn(word)
                    file, mapcount = not mm.pages.user.page_anon(pfn), mm.pages.user.frames.mapcount[pfn]
        soft_dirty = vma is not None and bool(vma.vm_flags & SOFTDIRTY_BIT)
        found.append(pagemap_entry(leaf, address, vma_soft_dirty=soft_dirty, file=file, mapcount=mapcount, show_pfn=admin))
    return found


def kpagecount(user: UserMemory, pfn: int) -> int:
    """A word of /proc/kpagecount: how many entries map a frame (5.17: fs/proc/page.c, kpagecount_read())."""
    frames = user.frames
    return frames.mapcount[pfn] if 0 <= pfn < frames.max_pfn and not frames.flags[pfn] & PG["slab"] else 0


#: Bits of /proc/kpageflags: the page flag that each shows (5.17: include/uapi/linux/kernel-page-flags.h).
_KPF = {0: "locked", 1: "error", 2: "referenced", 3: "uptodate", 4: "dirty", 5: "lru", 6: "active", 7: "slab", 8: "writeback",
        9: "reclaim", 14: "swapbacked", 18: "unevictable", 25: "idle", 32: "reserved", 33: "mlocked", 34: "mappedtodisk",
        35: "private", 36: "private_2", 37: "owner_priv_1", 38: "arch_1", 39: "uncached"}
_KPF_BUDDY, _KPF_MMAP, _KPF_ANON, _KPF_NOPAGE, _KPF_ZERO_PAGE, _KPF_PGTABLE = (1 << bit for bit in (10, 11, 12, 20, 24, 26))


def kpageflags(user: UserMemory, pfn: int) -> int:
    """A word of /proc/kpageflags: the flags of a frame, and what else the kernel knows of it.

    5.17: fs/proc/page.c, stable_page_flags(). Left out: compound and huge pages, pages of KSM; from 5.19 on the bit of exclusive
    anonymous pages is no mappedtodisk.
    """
    frames = user.frames
    if not frames.pfn_valid(pfn):
        return _KPF_NOPAGE
    flags = frames.flags[pfn]
    word = sum(1 << bit for bit, name in _KPF.items() if flags & PG[name])
    if user.page_anon(pfn):
        word |= _KPF_ANON
        if user.rules.cow_reuse == "exclusive":
            word &= ~(1 << 34)
    if frames.mapcount[pfn] and not flags & PG["slab"]:
        word |= _KPF_MMAP
    if pfn == user.zero_pfn:
        word |= _KPF_ZERO_PAGE
    if frames.buddy_order(pfn) >= 0:
        word |= _KPF_BUDDY
    return word | (_KPF_PGTABLE if pfn in user.tables.level_of else 0)


# -- all together --------------------------------------------------------------------------------------------------

#: The files of /proc/PID that are text.
PROCESS_FILES: dict[str, Callable[[HasMm], str]] = {
    "maps": lambda process: maps(process.mm), "smaps": smaps, "smaps_rollup": smaps_rollup, "statm": statm, "status": status}


def process_file(process: HasMm, name: str) -> str:
    """The text of /proc/PID/NAME. Raise InputError for an unknown name (pagemap is binary: :func:`pagemap`)."""
    if name not in PROCESS_FILES:
        raise InputError(f"no file {name} in /proc/PID; there are {', '.join(sorted(PROCESS_FILES))}")
    return PROCESS_FILES[name](process)

