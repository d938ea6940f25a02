"""Overcommit: how much memory may be promised.

A private writable mapping is a promise of so many pages; ``vm_committed_as`` counts them, touched or not. Mode 0
refuses only the single request that exceeds RAM and swap together, mode 1 nothing, mode 2 keeps the sum below a limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsim.constants import OVERCOMMIT_ALWAYS, OVERCOMMIT_GUESS
from mmsim.errors import Errno
from mmsim.units import PAGE_SHIFT, s64, u64

__all__ = ["Overcommit"]


@dataclass(slots=True)
class Overcommit:
    """The machine's promise account; all processes share one. Amounts in pages, but for the ``_kbytes``.

    >>> Overcommit(totalram_pages=4 << 20).commit_limit() >> 18         # 16 GiB of RAM, no swap: 8 GiB
    8

    5.17: mm/util.c. Left out: the counter's per-CPU batches (here it is exact).
    """

    totalram_pages: int = 1 << 40
    total_swap_pages: int = 0
    hugetlb_pages: int = 0
    #: vm.overcommit_memory, vm.overcommit_ratio, vm.overcommit_kbytes (which replaces the ratio unless 0).
    policy: int = OVERCOMMIT_GUESS
    ratio: int = 50
    kbytes: int = 0
    user_reserve_kbytes: int = 1 << 17
    admin_reserve_kbytes: int = 1 << 13
    #: vm_committed_as.
    committed: int = 0

    @classmethod
    def at_boot(cls, totalram_pages: int, free_pages: int, total_swap_pages: int = 0) -> "Overcommit":
        """The account with the reserves that a boot sets: at most 1/32 of the free memory.

        5.17: mm/mmap.c, init_user_reserve() and init_admin_reserve().
        """
        free_kbytes = free_pages << (PAGE_SHIFT - 10)
        return cls(totalram_pages, total_swap_pages, user_reserve_kbytes=min(free_kbytes // 32, 1 << 17),
                   admin_reserve_kbytes=min(free_kbytes // 32, 1 << 13))

    def commit_limit(self) -> int:
        """CommitLimit: what mode 2 lets processes be promised, before the reserves (5.17: mm/util.c, vm_commit_limit())."""
        if self.kbytes:
            allowed = self.kbytes >> (PAGE_SHIFT - 10)
        else:
            allowed = u64((self.totalram_pages - self.hugetlb_pages) * self.ratio) // 100
        return u64(allowed + self.total_swap_pages)

    def charge(self, pages: int, total_vm: int | None = None, privileged: bool = False) -> None:
        """Promise ``pages``, or raise ENOMEM and promise nothing.

        ``total_vm`` is the size of the process that asks (None: no process), ``privileged`` says CAP_SYS_ADMIN.
        5.17: mm/util.c, __vm_enough_memory().
        """
        self.committed += pages
        if self.policy == OVERCOMMIT_ALWAYS:
            return
        if self.policy == OVERCOMMIT_GUESS:
            # A C comparison of long and unsigned long: a negative number of pages is a huge one.
            if u64(pages) <= self.totalram_pages + self.total_swap_pages:
                return
            why = f"{pages} pages are more than all RAM and swap"
        else:
            allowed = s64(self.commit_limit())
            if not privileged:
                allowed -= self.admin_reserve_kbytes >> (PAGE_SHIFT - 10)
            if total_vm is not None:
                allowed -= min(total_vm // 32, self.user_reserve_kbytes >> (PAGE_SHIFT - 10))
            if max(self.committed, 0) < allowed:
                return
            why = f"{self.committed} pages promised would reach the limit of {allowed}"
        self.committed -= pages
        raise Errno("ENOMEM", why)

    def uncharge(self, pages: int) -> None:
        """Take a promise back (5.17: include/linux/mman.h, vm_unacct_memory())."""
        self.committed -= pages
