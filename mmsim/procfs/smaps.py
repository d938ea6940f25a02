"""/proc/PID/smaps and smaps_rollup: each area with what is really there, page by page.

The proportional share (Pss) is counted in bytes with 12 binary places: a page that three tables map gives each
4096 * 4096 / 3, rounded down, and only the sum is cut to whole bytes. So a third of 32 pages is 42 kB, not 40.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from mmsim.errors import InputError
from mmsim.procfs.maps import AreaLine
from mmsim.units import PAGE_SIZE

__all__ = ["PSS_SHIFT", "MemSizeStats", "SmapsArea", "format_rollup", "parse_rollup", "parse_smaps"]

#: Binary places of the proportional share (5.17: fs/proc/task_mmu.c).
PSS_SHIFT = 12

#: The lines of an area after its sizes, and the field that each shows.
_LINES = (
    ("Rss", "resident"), ("Pss", "pss"), ("Shared_Clean", "shared_clean"), ("Shared_Dirty", "shared_dirty"),
    ("Private_Clean", "private_clean"), ("Private_Dirty", "private_dirty"), ("Referenced", "referenced"),
    ("Anonymous", "anonymous"), ("LazyFree", "lazyfree"), ("AnonHugePages", "anonymous_thp"), ("ShmemPmdMapped", "shmem_thp"),
    ("FilePmdMapped", "file_thp"), ("Shared_Hugetlb", "shared_hugetlb"), ("Private_Hugetlb", "private_hugetlb"),
    ("Swap", "swap"), ("SwapPss", "swap_pss"), ("Locked", "pss_locked"))
#: What smaps_rollup shows of the share besides, after Pss.
_ROLLUP_LINES = (("Pss_Anon", "pss_anon"), ("Pss_File", "pss_file"), ("Pss_Shmem", "pss_shmem"))
_SHARES = {"pss", "pss_anon", "pss_file", "pss_shmem", "pss_locked", "swap_pss"}


@dataclass(slots=True)
class MemSizeStats:
    """What the pages of a range add up to: sizes in bytes, shares (``pss…``, ``swap_pss``) in bytes << PSS_SHIFT.

    >>> stats = MemSizeStats()
    >>> for _ in range(32):
    ...     stats.account(mapcount=3, young=True)
    >>> stats.kib("resident"), stats.kib("pss"), stats.kib("shared_clean")
    (128, 42, 128)

    5.17: fs/proc/task_mmu.c, struct mem_size_stats.
    """

    resident: int = 0
    shared_clean: int = 0
    shared_dirty: int = 0
    private_clean: int = 0
    private_dirty: int = 0
    referenced: int = 0
    anonymous: int = 0
    lazyfree: int = 0
    anonymous_thp: int = 0
    shmem_thp: int = 0
    file_thp: int = 0
    swap: int = 0
    shared_hugetlb: int = 0
    private_hugetlb: int = 0
    pss: int = 0
    pss_anon: int = 0
    pss_file: int = 0
    pss_shmem: int = 0
    pss_locked: int = 0
    swap_pss: int = 0

    def account(self, *, mapcount: int, anon: bool = False, swap_backed: bool = False, young: bool = False, dirty: bool = False,
                locked: bool = False, size: int = PAGE_SIZE, lazyfree: bool = False) -> None:
        """Count one mapped page (5.17: fs/proc/task_mmu.c, smaps_account() and smaps_page_accumulate()).

        ``dirty`` and ``young`` hold if the entry or the page says so; ``locked`` is the area's VM_LOCKED. A page that is neither
        anonymous nor of a file is of shared memory, if it is backed by swap (``swap_backed``).
        """
        self.resident += size
        if anon:
            self.anonymous += size
        if lazyfree:
            self.lazyfree += size
        if young:
            self.referenced += size
        share = size << PSS_SHIFT
        if mapcount >= 2:
            share //= mapcount
        self.pss += share
        if anon:
            self.pss_anon += share
        elif swap_backed:
            self.pss_shmem += share
        else:
            self.pss_file += share
        if locked:
            self.pss_locked += share
        if mapcount >= 2:
            if dirty:
                self.shared_dirty += size
            else:
                self.shared_clean += size
        elif dirty:
            self.private_dirty += size
        else:
            self.private_clean += size

    def account_swap(self, swapcount: int) -> None:
        """Count a swapped page, to whose slot ``swapcount`` entries point (5.17: smaps_pte_entry())."""
        self.swap += PAGE_SIZE
        share = PAGE_SIZE << PSS_SHIFT
        self.swap_pss += share // swapcount if swapcount >= 2 else share

    def add(self, other: MemSizeStats) -> None:
        """Add the sums of another range."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def kib(self, name: str) -> int:
        """A field as smaps shows it: whole KiB."""
        value: int = getattr(self, name)
        return value >> (10 + PSS_SHIFT if name in _SHARES else 10)

    def text(self, rollup: bool = False) -> str:
        """The lines from Rss to Locked (5.17: fs/proc/task_mmu.c, __show_smap())."""
        lines = list(_LINES)
        if rollup:
            lines[2:2] = _ROLLUP_LINES
        return "".join(_line(label, self.kib(name)) for label, name in lines)


def _line(label: str, kib: int) -> str:
    return f"{label + ':':<16}{kib:8d} kB\n"


@dataclass(slots=True)
class SmapsArea:
    """One area of smaps: its line as in maps, its size and page sizes in bytes, its sums, and the flags' letters."""

    line: AreaLine
    stats: MemSizeStats = field(default_factory=MemSizeStats)
    kernel_page_size: int = PAGE_SIZE
    mmu_page_size: int = PAGE_SIZE
    thp_eligible: bool = False
    flags: str = ""

    def text(self) -> str:
        """The area as smaps shows it (5.17: fs/proc/task_mmu.c, show_smap()). Left out: ProtectionKey, which only CPUs with
        protection keys have."""
        return (self.line.text() + "\n" + _line("Size", self.line.end - self.line.start >> 10)
                + _line("KernelPageSize", self.kernel_page_size >> 10) + _line("MMUPageSize", self.mmu_page_size >> 10)
                + self.stats.text() + f"THPeligible:    {int(self.thp_eligible)}\n"
                + "VmFlags: " + "".join(flag + " " for flag in self.flags.split()) + "\n")


def format_rollup(start: int, end: int, stats: MemSizeStats) -> str:
    """The text of smaps_rollup for an address space whose areas lie between ``start`` and ``end`` (5.17:
    fs/proc/task_mmu.c, show_smaps_rollup())."""
    return AreaLine(start, end, "---p", name="[rollup]").text() + "\n" + stats.text(rollup=True)


# -- reading ---------------------------------------------------------------------------------------------------

def _stats(values: dict[str, int]) -> MemSizeStats:
    """The sums that a text tells: whole KiB, so that shares have lost their places."""
    stats = MemSizeStats()
    for label, name in _LINES + _ROLLUP_LINES:
        if label in values:
            setattr(stats, name, values[label] << (10 + PSS_SHIFT if name in _SHARES else 10))
    return stats


def _parse(text: str, make: Callable[[AreaLine, dict[str, int], str], SmapsArea]) -> Iterable[SmapsArea]:
    line: AreaLine | None = None
    values: dict[str, int] = {}
    flags = ""
    for number, row in enumerate(text.splitlines(), 1):
        label, colon, value = row.partition(":")
        if not colon or " " in label:
            if line is not None:
                yield make(line, values, flags)
            line, values, flags = AreaLine.parse(row), {}, ""
        elif label == "VmFlags":
            flags = value.strip()
        elif value.split()[:1] and value.split()[0].isdecimal():
            values[label] = int(value.split()[0])
        else:
            raise InputError(f"line {number} of smaps is none: {row[:60]!r}")
    if line is not None:
        yield make(line, values, flags)


def parse_smaps(text: str) -> list[SmapsArea]:
    """The areas that a text of smaps shows. Raise InputError for a text that is none."""
    def make(line: AreaLine, values: dict[str, int], flags: str) -> SmapsArea:
        return SmapsArea(line, _stats(values), values.get("KernelPageSize", 4) << 10, values.get("MMUPageSize", 4) << 10,
                         bool(values.get("THPeligible", 0)), flags)
    return list(_parse(text, make))


def parse_rollup(text: str) -> tuple[int, int, MemSizeStats]:
    """What a text of smaps_rollup says: where the areas lie, and the sums. Raise InputError for a text that is none."""
    for area in islice(_parse(text, lambda line, values, flags: SmapsArea(line, _stats(values))), 1):
        if area.line.name == "[rollup]":
            return area.line.start, area.line.end, area.stats
    raise InputError("the text is no smaps_rollup")
