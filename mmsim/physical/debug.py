"""What the kernel says when a page is not as it should be."""

from __future__ import annotations

from mmsim.constants import PAGEBLOCK_ORDER
from mmsim.errors import KernelBug
from mmsim.physical.frames import PAGE_FLAGS_CHECK_AT_FREE
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page import format_page_flags, page_flags_word, page_to_virt

__all__ = ["bad_page", "dump_page", "page_bad_reason", "vm_bug_on_page"]

_LIST_POISON1, _LIST_POISON2 = 0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122


def dump_page(memory: PhysicalMemory, pfn: int, reason: str = "") -> None:
    """Print a page's fields to the kernel log.

    Pointers are printed as they are (``no_hash_pointers``). Fields that the model does not keep (mapping, index, memcg)
    are 0; lists are printed as poisoned. 5.17: mm/debug.c, dump_page().
    """
    frames, printk = memory.frames, memory.klog.printk
    head = frames.compound_head(pfn)
    order = frames.compound_order(pfn)
    buddy = frames.free_block[pfn]
    # A free block keeps PG_buddy where others have their count of mappings (page_type), and the mapcount is not printed.
    mapcount = 0 if buddy else frames.mapcount[pfn]
    printk(f"page:{page_to_virt(pfn):016x} refcount:{frames.refcount[head]} mapcount:{mapcount} "
           f"mapping:{0:016x} index:0x0 pfn:{pfn:#x}")
    if order:
        printk(f"head:{page_to_virt(head):016x} order:{order} compound_mapcount:0 compound_pincount:0")
    cma = frames.pageblock_mt[pfn >> PAGEBLOCK_ORDER] == memory.config.migrate_cma
    printk(f"flags: {format_page_flags(frames, head)}{' CMA' if cma else ''}")
    _hex_dump(memory, "raw", pfn)
    if head != pfn:
        _hex_dump(memory, "head", head)
    if reason:
        printk(f"page dumped because: {reason}")


def _hex_dump(memory: PhysicalMemory, prefix: str, pfn: int) -> None:
    """The eight words of a struct page, in two lines."""
    frames = memory.frames
    buddy, head = frames.free_block[pfn], frames.compound_head(pfn)
    page_type = 0xFFFF_FF7F if buddy else frames.mapcount[pfn] - 1 & 0xFFFF_FFFF
    words = [page_flags_word(frames, pfn), _LIST_POISON1, _LIST_POISON2, 0, 0, (buddy & 15) - 1 if buddy else 0,
             (frames.refcount[pfn] & 0xFFFF_FFFF) << 32 | page_type, 0]
    if head != pfn:
        words[1] = page_to_virt(head) | 1
    for row in range(0, 8, 4):
        memory.klog.printk(f"{prefix}: " + " ".join(f"{word:016x}" for word in words[row:row + 4]))


def page_bad_reason(memory: PhysicalMemory, pfn: int, flags: int = PAGE_FLAGS_CHECK_AT_FREE) -> str:
    """Why a page must not be freed as it is; empty if it may. The last reason found is the one that is told.

    5.17: mm/page_alloc.c, page_bad_reason().
    """
    frames = memory.frames
    reason = ""
    if frames.mapcount[pfn] or frames.free_block[pfn]:
        reason = "nonzero mapcount"
    if frames.refcount[pfn]:
        reason = "nonzero _refcount"
    if frames.flags[pfn] & flags:
        reason = "PAGE_FLAGS_CHECK_AT_FREE flag(s) set" if flags == PAGE_FLAGS_CHECK_AT_FREE else \
            "PAGE_FLAGS_CHECK_AT_PREP flag(s) set"
    return reason


def bad_page(memory: PhysicalMemory, pfn: int, reason: str) -> None:
    """Report a page whose state says that something went wrong; the kernel goes on without the page.

    Its count of mappings is reset. 5.17: mm/page_alloc.c, bad_page(). Left out: the limit of 60 reports a minute, the
    module list and the stack; and that a free block loses its mark by the reset, while it stays in its list.
    """
    memory.klog.printk(f"BUG: Bad page state in process {memory.comm}  pfn:{pfn:05x}")
    dump_page(memory, pfn, reason)
    memory.frames.mapcount[pfn] = 0


def vm_bug_on_page(memory: PhysicalMemory, pfn: int, condition: str) -> KernelBug:
    """Dump a page for a failed VM_BUG_ON_PAGE() and return the exception to raise (5.17: include/linux/mmdebug.h)."""
    dump_page(memory, pfn, f"VM_BUG_ON_PAGE({condition})")
    return KernelBug(f"VM_BUG_ON_PAGE({condition}): frame {pfn:#x}")
