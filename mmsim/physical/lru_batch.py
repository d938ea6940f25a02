"""The pagevecs before the LRU lists: new pages wait in batches of 15, one for each CPU, and each holds a reference.

Putting a page on an LRU list takes a lock that all CPUs share, so it is done for 15 at a time. Until then nobody else can know
that one of the page's references is only the batch's: a kernel that asks whether it is the only user of a page (5.17's
copy-on-write) is told no. A batch is emptied when it is full, when memory is unmapped, and when a process ends::

    lru_cache_add ─► lru_add        ─► PG_lru set           (every new page)
    mark_page_lazyfree ─► lru_lazyfree ─► PG_swapbacked off (MADV_FREE)
    deactivate_page ─► lru_deactivate ─► PG_active off      (MADV_COLD)

5.17: mm/swap.c. Left out: the lists themselves (a page on one has PG_lru), the batches for rotation and for files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mmsim.constants import PAGEVEC_SIZE
from mmsim.errors import InvariantError
from mmsim.physical.frames import PG
from mmsim.physical.memory import PhysicalMemory

__all__ = ["LruBatches"]

_LRU, _ACTIVE, _REFERENCED, _SWAPBACKED = PG["lru"], PG["active"], PG["referenced"], PG["swapbacked"]
_UNEVICTABLE, _MLOCKED, _SWAPCACHE = PG["unevictable"], PG["mlocked"], PG["owner_priv_1"]


class LruBatches:
    """The batches of all CPUs. ``release`` drops a reference that a batch held, and frees the page if it was the last.

    ``enabled`` False puts each page on its list at once. 5.17: mm/swap.c, struct lru_pvecs.
    """

    def __init__(self, memory: PhysicalMemory, release: Callable[[int], None], size: int = PAGEVEC_SIZE):
        self.memory = memory
        self.release = release
        self.size = size
        self.enabled = True
        self.add: list[list[int]] = [[] for _ in range(memory.nr_cpus)]
        self.lazyfree: list[list[int]] = [[] for _ in range(memory.nr_cpus)]
        self.deactivate: list[list[int]] = [[] for _ in range(memory.nr_cpus)]

    def lru_cache_add(self, pfn: int) -> None:
        """A new page waits for its list (5.17: mm/swap.c, lru_cache_add(), folio_add_lru())."""
        batch = self.add[self.memory.cpu]
        self.memory.frames.refcount[pfn] += 1
        batch.append(pfn)
        if len(batch) >= self.size or not self.enabled:
            self._flush_add(batch)

    def until_flush(self) -> int:
        """How many pages may be added at once: up to the next time the batch is emptied, or very many if nothing of it could be
        freed then."""
        batch = self.add[self.memory.cpu]
        refcount = self.memory.frames.refcount
        return self.size - len(batch) if any(refcount[pfn] == 1 for pfn in batch) else 1 << 30

    def lru_cache_add_mapped(self, pfns: list[int]) -> int:
        """:meth:`lru_cache_add` for many new pages with a reference besides the batch's; return how many of them, from the first on,
        do not wait: their batches are full, and the caller sets PG_lru for them.
        """
        frames, batch = self.memory.frames, self.add[self.memory.cpu]
        size = self.size if self.enabled else 1
        full = (len(batch) + len(pfns)) // size * size - len(batch)         # how many of them do not wait
        if full > 0:
            self._flush_add(batch)
        for pfn in pfns[max(full, 0):]:
            frames.refcount[pfn] += 1
            batch.append(pfn)
        return max(full, 0)

    def _flush_add(self, batch: list[int]) -> None:
        """Put a batch on the lists and let go of its pages (5.17: mm/swap.c, __pagevec_lru_add())."""
        flags, refcount = self.memory.frames.flags, self.memory.frames.refcount
        pages = batch[:]
        batch.clear()
        for pfn in pages:
            word, count = flags[pfn], refcount[pfn]
            flags[pfn] = word | (_LRU | _UNEVICTABLE if word & _MLOCKED else _LRU)
            if count > 1:
                refcount[pfn] = count - 1
            else:
                self.release(pfn)

    def _later(self, batch: list[int], pfn: int, flush: Callable[[list[int]], None]) -> None:
        self.memory.frames.refcount[pfn] += 1
        batch.append(pfn)
        if len(batch) >= self.size or not self.enabled:
            flush(batch)

    def mark_page_lazyfree(self, pfn: int) -> None:
        """An anonymous page may be dropped instead of swapped, unless it is written again (5.17: mm/swap.c, mark_page_lazyfree())."""
        if self.memory.frames.flags[pfn] & (_LRU | _SWAPBACKED | _SWAPCACHE | _UNEVICTABLE) == _LRU | _SWAPBACKED:
            self._later(self.lazyfree[self.memory.cpu], pfn, self._flush_lazyfree)

    def _flush_lazyfree(self, batch: list[int]) -> None:
        """5.17: mm/swap.c, lru_lazyfree_fn()."""
        flags, pages = self.memory.frames.flags, batch[:]
        batch.clear()
        for pfn in pages:
            if flags[pfn] & (_LRU | _SWAPBACKED | _SWAPCACHE | _UNEVICTABLE) == _LRU | _SWAPBACKED:
                flags[pfn] &= ~(_ACTIVE | _REFERENCED | _SWAPBACKED)
                self.memory.counters["pglazyfree"] += 1
            self.release(pfn)

    def deactivate_page(self, pfn: int) -> None:
        """A page of the active list goes to the inactive one (5.17: mm/swap.c, deactivate_page())."""
        if self.memory.frames.flags[pfn] & (_LRU | _ACTIVE | _UNEVICTABLE) == _LRU | _ACTIVE:
            self._later(self.deactivate[self.memory.cpu], pfn, self._flush_deactivate)

    def _flush_deactivate(self, batch: list[int]) -> None:
        """5.17: mm/swap.c, lru_deactivate_fn()."""
        flags, pages = self.memory.frames.flags, batch[:]
        batch.clear()
        for pfn in pages:
            if flags[pfn] & (_LRU | _ACTIVE | _UNEVICTABLE) == _LRU | _ACTIVE:
                flags[pfn] &= ~(_ACTIVE | _REFERENCED)
                self.memory.counters["pgdeactivate"] += 1
            self.release(pfn)

    def lru_add_drain(self, cpu: int | None = None) -> None:
        """Empty the batches of one CPU, the current one by default (5.17: mm/swap.c, lru_add_drain(), lru_add_drain_cpu())."""
        cpu = self.memory.cpu if cpu is None else cpu
        if self.add[cpu]:
            self._flush_add(self.add[cpu])
        if self.deactivate[cpu]:
            self._flush_deactivate(self.deactivate[cpu])
        if self.lazyfree[cpu]:
            self._flush_lazyfree(self.lazyfree[cpu])

    def lru_add_drain_all(self) -> None:
        """Empty the batches of all CPUs (5.17: mm/swap.c, lru_add_drain_all())."""
        for cpu in range(self.memory.nr_cpus):
            self.lru_add_drain(cpu)

    def waiting(self) -> Iterable[int]:
        """The pages in batches, one time for each reference that a batch holds."""
        for batches in (self.add, self.lazyfree, self.deactivate):
            for batch in batches:
                yield from batch

    def check(self) -> None:
        """No batch is full, and each page in one is referenced; a new page has no list yet. Raise InvariantError."""
        frames = self.memory.frames
        for pfn in self.waiting():
            if frames.refcount[pfn] < 1:
                raise InvariantError(f"frame {pfn:#x} waits for an LRU list and is free")
        for batch in self.add:
            if any(frames.flags[pfn] & _LRU for pfn in batch):
                raise InvariantError(f"a page on an LRU list waits for one: {batch}")
        for batches in (self.add, self.lazyfree, self.deactivate):
            if any(len(batch) >= self.size for batch in batches):
                raise InvariantError(f"a batch of {self.size} pages was not emptied")
