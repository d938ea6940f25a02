"""kmap_local_page(): an address for a page, for as long as one looks at it.

On a 32-bit machine the kernel sees 896 MiB of RAM; for any other page it needs one of a few slots of the fixmap. They belong to
the task and are a stack: what was mapped last is unmapped first. On x86-64 every page has an address already, and the call is
an addition; it is still what code must use, and in this order, for it is to run elsewhere too.

5.17: mm/highmem.c, __kmap_local_pfn_prot(), kunmap_local_indexed(); include/linux/highmem-internal.h. Left out: that the slots of a
task are emptied and filled when it is switched.
"""

from __future__ import annotations

from mmsim.errors import InvariantError, KernelBug
from mmsim.kernel.layout import Layout
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["KM_MAX_IDX", "KmapLocal"]

#: Slots of a task; twice as many with CONFIG_DEBUG_KMAP_LOCAL, every other one as a guard page.
KM_MAX_IDX = 16
_FIX_KMAP_END = 0xFFF6_0000         # where the slots of a CPU end, growing down, in the model's 32-bit kernel


class KmapLocal:
    """One task's mappings. ``lowmem_pfn``: frames below have an address of their own (all, on x86-64).

    >>> task = KmapLocal(Layout(65536))
    >>> hex(task.map(0x123)), task.slots
    ('0xffff888000123000', [])
    """

    def __init__(self, layout: Layout, lowmem_pfn: int | None = None):
        self.layout = layout
        self.lowmem_pfn = layout.max_pfn if lowmem_pfn is None else lowmem_pfn
        #: Frames in slots, the oldest first.
        self.slots: list[int] = []

    def map(self, pfn: int) -> int:
        """The address of a frame. BUG when a task has 16 slots in use (5.17: kmap_local_idx_push())."""
        if pfn < self.lowmem_pfn:
            return self.layout.page_address(pfn)
        if len(self.slots) >= KM_MAX_IDX:
            raise KernelBug("kernel BUG at mm/highmem.c: BUG_ON(current->kmap_ctrl.idx >= KM_MAX_IDX)")
        self.slots.append(pfn)
        return _FIX_KMAP_END - (len(self.slots) << PAGE_SHIFT)

    def unmap(self, addr: int) -> None:
        """Give an address back: the one mapped last. BUG for any other slot (5.17: kunmap_local_indexed(), BUG_ON(addr !=
        __fix_to_virt(FIX_KMAP_BEGIN + idx))).
        """
        addr &= -PAGE_SIZE
        if addr >= self.layout.page_offset:
            return
        if not self.slots or addr != _FIX_KMAP_END - (len(self.slots) << PAGE_SHIFT):
            raise KernelBug(f"kernel BUG at mm/highmem.c: kunmap_local(): {addr:#x} is not the last page mapped")
        self.slots.pop()

    def check(self) -> None:
        """Raise InvariantError unless the slots are used as a stack of at most 16."""
        if len(self.slots) > KM_MAX_IDX or any(pfn < self.lowmem_pfn for pfn in self.slots):
            raise InvariantError(f"kmap: {len(self.slots)} slots in use")
