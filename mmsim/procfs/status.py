"""/proc/PID/statm and the memory lines of /proc/PID/status: an address space in a few numbers."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

from mmsim.errors import InputError

__all__ = ["StatusMemory", "Statm"]

_LABELS = ("VmPeak", "VmSize", "VmLck", "VmPin", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmData", "VmStk", "VmExe",
           "VmLib", "VmPTE", "VmSwap", "HugetlbPages")


@dataclass(frozen=True, slots=True)
class StatusMemory:
    """The lines VmPeak to HugetlbPages of status, in KiB.

    >>> StatusMemory(vm_peak=404, vm_size=404).text()[:40]
    'VmPeak:\\t     404 kB\\nVmSize:\\t     404 kB\\n'

    5.17: fs/proc/task_mmu.c, task_mem(); mm/hugetlb.c, hugetlb_report_usage().
    """

    vm_peak: int = 0
    vm_size: int = 0
    vm_lck: int = 0
    vm_pin: int = 0
    vm_hwm: int = 0
    vm_rss: int = 0
    rss_anon: int = 0
    rss_file: int = 0
    rss_shmem: int = 0
    vm_data: int = 0
    vm_stk: int = 0
    vm_exe: int = 0
    vm_lib: int = 0
    vm_pte: int = 0
    vm_swap: int = 0
    hugetlb_pages: int = 0

    def text(self) -> str:
        """The lines."""
        return "".join(f"{label}:\t{value:8d} kB\n" for label, value in zip(_LABELS, astuple(self)))

    @classmethod
    def parse(cls, text: str) -> "StatusMemory":
        """Read the lines from a text of status. Raise InputError if one is missing; a kernel thread has none of them."""
        values: dict[str, int] = {}
        for line in text.splitlines():
            label, _, rest = line.partition(":\t")
            if label in _LABELS and rest.endswith(" kB"):
                values[label] = int(rest.removesuffix(" kB"))
        missing = [label for label in _LABELS if label not in values]
        if missing:
            raise InputError(f"the status has no line {missing[0]}")
        return cls(*(values[label] for label in _LABELS))


@dataclass(frozen=True, slots=True)
class Statm:
    """The seven numbers of statm, in pages; two of them are always 0 (5.17: fs/proc/array.c, proc_pid_statm()).

    >>> Statm(585, 250, 227, 1, data=58).text()
    '585 250 227 1 0 58 0\\n'
    """

    size: int
    resident: int
    shared: int
    text_pages: int
    lib: int = 0
    data: int = 0
    dt: int = 0

    def text(self) -> str:
        """The line."""
        return " ".join(map(str, astuple(self))) + "\n"

    @classmethod
    def parse(cls, text: str) -> "Statm":
        """Read the line. Raise InputError for another one."""
        words = text.split()
        if len(words) != len(fields(cls)) or not all(word.isdecimal() for word in words):
            raise InputError(f"no line of statm: {text[:60]!r}")
        return cls(*map(int, words))
