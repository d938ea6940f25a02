"""The slab allocator of a machine: caches by name, kmalloc() and kfree() by size.

    >>> from mmsim.reference import toy16
    >>> slub = Slub.of(toy16())
    >>> buffer = slub.kmalloc(100)
    >>> slub.ksize(buffer), slub.cache_of(buffer).name, slub.cache_of(buffer).layout.objects
    (128, 'kmalloc-128', 32)
    >>> slub.kfree(buffer)
    >>> slub.check()

5.17: mm/slub.c, mm/slab_common.c.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

from mmsim import constants as c
from mmsim.errors import InputError, KernelBug, KernelError
from mmsim.kernel.kmalloc_caches import KMALLOC_INDEX, KMALLOC_MAX_CACHE_SIZE, ZERO_SIZE_PTR, kmalloc_type
from mmsim.kernel.layout import Layout
from mmsim.kernel.slab import KmemCache, Slab
from mmsim.kernel.slab_layout import (
    SLAB_CONSISTENCY_CHECKS,
    SLAB_POISON,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    SLAB_TYPESAFE_BY_RCU,
    get_order,
)
from mmsim.kernel.slub_alloc import slab_alloc
from mmsim.kernel.slub_caches import Caches
from mmsim.kernel.slub_check import check_slub
from mmsim.kernel.slub_debug import print_tracking
from mmsim.kernel.slub_free import slab_free
from mmsim.kernel.slub_lists import flush_all, shrink
from mmsim.kernel.slub_pages import GFP_SLAB_BUG_MASK, free_slab_now, kmalloc_fix_flags
from mmsim.kernel.symbols import Symbols
from mmsim.paging.contents import FrameContents
from mmsim.physical.gfp import gfp_names
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["Slub"]

#: What %s prints of a kernel's health: a G and, once a report was made, a B (bad page).
_TAINT_FLAGS = 18


class _Machine(Protocol):
    @property
    def memory(self) -> PhysicalMemory: ...
    @property
    def allocator(self) -> PageAllocator: ...


class Slub:
    """All caches of one machine. Creating it makes the caches that every kernel has: two for SLUB's own structures, then
    those of kmalloc().

    ``slub_debug`` is the kernel parameter: letters of ``FZPUT``, ``-`` for none, then perhaps a comma and names of caches
    (``"FZ,kmalloc-64,dentry"``, a ``*`` at the end of a name matches the rest). ``hardened`` and ``freelist_random`` are
    CONFIG_SLAB_FREELIST_HARDENED and _RANDOM; ``seed`` stands for all random numbers. ``nomerge`` is ``slab_nomerge``.
    """

    def __init__(self, memory: PhysicalMemory, allocator: PageAllocator, *, layout: Layout | None = None,
                 contents: FrameContents | None = None, seed: int = 0, hardened: bool = False, freelist_random: bool = False,
                 nomerge: bool = False, init_on_alloc: bool = False, slub_debug: str | None = None):
        self.memory = memory
        self.allocator = allocator
        self.layout = layout or Layout(memory.frames.max_pfn)
        self.contents = contents or FrameContents(memory.frames.max_pfn)
        self.klog = memory.klog
        self.random = Random(seed)
        self.hardened = hardened
        self.init_on_alloc = init_on_alloc
        self.symbols = Symbols()
        #: The current task's PID, for reports.
        self.pid = 1
        #: Whether a report was made: the kernel's state is not to be trusted any more (TAINT_BAD_PAGE).
        self.tainted = False
        #: Slabs by the PFN of their first frame: what PG_slab and the fields of struct slab tell the kernel.
        self.slabs: dict[int, Slab] = {}
        #: Empty slabs whose pages wait for a grace period.
        self.rcu_pending: list[Slab] = []
        self._warned: set[str] = set()
        self._page_offset = self.layout.page_offset
        self._limit = memory.frames.max_pfn << PAGE_SHIFT
        self.caches = Caches(self, freelist_random=freelist_random, nomerge=nomerge, slub_debug=slub_debug)

    @classmethod
    def of(cls, machine: _Machine, **options: object) -> Slub:
        """The slab allocator of a booted machine; the options are those of the class."""
        return cls(machine.memory, machine.allocator, **options)  # type: ignore[arg-type]

    # -- caches ------------------------------------------------------------------------------------------------

    def kmem_cache_create(self, name: str, size: int, align: int = 0, flags: int = 0,
                          ctor: Callable[[KmemCache, int], None] | None = None, *, useroffset: int = 0,
                          usersize: int = 0) -> KmemCache | None:
        """Create a cache for objects of ``size`` bytes, or join one whose slabs suit as well (*merging*); None if the
        kernel refuses (its reason is in the log).

        ``ctor(cache, address)`` prepares each object once, when its slab is made. ``usersize`` bytes from ``useroffset`` on may be
        copied to user space. Raise KernelPanic instead of returning None if SLAB_PANIC is in the flags.
        5.17: mm/slab_common.c, kmem_cache_create_usercopy().
        """
        return self.caches.create(name, size, align, flags, ctor, useroffset, usersize)

    def kmem_cache_destroy(self, s: KmemCache, caller: str = "kmem_cache_destroy") -> bool:
        """Drop a name of a cache; with the last, give back all its slabs. False, and a warning, if objects are left.

        5.17: mm/slab_common.c, kmem_cache_destroy().
        """
        return self.caches.destroy(s, caller)

    def kmem_cache_shrink(self, s: KmemCache) -> bool:
        """Give empty slabs back and sort the others; return whether any are left (5.17: kmem_cache_shrink())."""
        return shrink(s)

    def cache(self, name: str) -> KmemCache:
        """The cache of a name, an alias included. Raise InputError if there is none."""
        return self.caches.find(name)

    # -- objects -------------------------------------------------------------------------------------------------

    def kmem_cache_alloc(self, s: KmemCache, gfp_flags: int = c.GFP_KERNEL, nid: int | None = None,
                         caller: str = "") -> int | None:
        """Allocate an object of a cache, on a node if ``nid`` says so; return its address, or None without memory.

        5.17: mm/slub.c, kmem_cache_alloc(), kmem_cache_alloc_node().
        """
        obj = slab_alloc(s, gfp_flags, nid, caller)
        trace = self.memory.trace
        if trace.enabled:
            self._emit("kmem:kmem_cache_alloc", caller, obj, s.object_size, s.size, gfp_flags, nid)
        return obj or None

    def kmem_cache_free(self, s: KmemCache, obj: int, caller: str = "") -> None:
        """Free an object of a cache.

        If the kernel is hardened or checks the cache, an object of another cache is noticed (a warning) and goes to its own;
        else it is pushed on a list where it does not belong. 5.17: kmem_cache_free(), cache_from_obj().
        """
        slab = self.slab_of(obj)
        if self.hardened or s.flags & SLAB_CONSISTENCY_CHECKS:
            if slab is None:
                self._warn_once("cache_from_obj", "virt_to_cache: Object is not a Slab page!")
                return
            if slab.cache is not s:
                self._warn(f"cache_from_obj: Wrong slab cache. {s.name} but object is from {slab.cache.name}")
                print_tracking(slab.cache, obj)
                s = slab.cache
        if slab is None:
            raise self._oops_of_foreign(obj)
        trace = self.memory.trace
        if trace.enabled:
            trace.emit("kmem:kmem_cache_free", call_site=caller, ptr=obj, name=s.name)
        slab_free(s, slab, obj, caller)

    def kmalloc(self, size: int, gfp_flags: int = c.GFP_KERNEL, nid: int | None = None, caller: str = "") -> int | None:
        """Allocate ``size`` bytes; return their address, or None.

        Up to 8192 bytes an object of the smallest class that holds them, above that whole pages, up to 4 MiB. 0 bytes give
        ZERO_SIZE_PTR (16): no memory, but no failure. Raise InputError for a negative size.
        5.17: mm/slub.c, __kmalloc(), __kmalloc_node().
        """
        if size < 0:
            raise InputError(f"kmalloc({size}): a size is not negative")
        if size > KMALLOC_MAX_CACHE_SIZE:
            return self._kmalloc_large(size, gfp_flags, nid, caller)
        if not size:
            return ZERO_SIZE_PTR
        s = self.caches.kmalloc[kmalloc_type(gfp_flags), KMALLOC_INDEX[size]]
        obj = slab_alloc(s, gfp_flags, nid, caller)
        if self.memory.trace.enabled:
            self._emit("kmem:kmalloc", caller, obj, size, s.size, gfp_flags, nid)
        return obj or None

    def kzalloc(self, size: int, gfp_flags: int = c.GFP_KERNEL, caller: str = "") -> int | None:
        """:meth:`kmalloc` of bytes that are 0 (5.17: include/linux/slab.h, kzalloc())."""
        return self.kmalloc(size, gfp_flags | c._GFP_ZERO, caller=caller)

    def krealloc(self, addr: int | None, size: int, gfp_flags: int = c.GFP_KERNEL, caller: str = "") -> int | None:
        """Make room for ``size`` bytes where the object is, or elsewhere with its bytes copied. None: no memory, and the old
        object is untouched. 5.17: mm/slab_common.c, krealloc().
        """
        if not size:
            self.kfree(addr, caller)
            return ZERO_SIZE_PTR
        old = self.ksize(addr)
        if addr and old >= size:
            return addr
        new = self.kmalloc(size, gfp_flags, caller=caller)
        if new is not None and addr and old:
            self.write(new, self.read(addr, min(old, size)))
            self.kfree(addr, caller)
        return new

    def kfree(self, addr: int | None, caller: str = "") -> None:
        """Free what kmalloc() gave; None, 0 and ZERO_SIZE_PTR are fine.

        The address is all that is known: its frame tells the slab, the slab the cache. An address that is no memory is a
        fault (KernelBug); one in a page that is no slab counts as a large allocation, and the page is freed, with a warning
        if it is a single one. 5.17: mm/slub.c, kfree().
        """
        addr = addr or 0
        trace = self.memory.trace
        if trace.enabled:
            trace.emit("kmem:kfree", call_site=caller, ptr=addr)
        if addr <= ZERO_SIZE_PTR:
            return
        slab = self.slab_of(addr)
        if slab is None:
            self._free_large_kmalloc(addr)
        else:
            slab_free(slab.cache, slab, addr, caller)

    def ksize(self, addr: int | None) -> int:
        """How many bytes behind an address its owner may use: often more than were asked for.

        5.17: mm/slub.c, __ksize(); mm/slab_common.c, ksize().
        """
        if not addr or addr <= ZERO_SIZE_PTR:
            return 0
        slab = self.slab_of(addr)
        if slab is None:
            return PAGE_SIZE << self.memory.frames.compound_order(self._pfn_of(addr))
        s = slab.cache
        if s.flags & (SLAB_RED_ZONE | SLAB_POISON):
            return s.object_size
        return s.inuse if s.flags & (SLAB_TYPESAFE_BY_RCU | SLAB_STORE_USER) else s.size

    def _kmalloc_large(self, size: int, gfp_flags: int, nid: int | None, caller: str) -> int | None:
        """5.17: mm/slab_common.c, kmalloc_order()."""
        if gfp_flags & GFP_SLAB_BUG_MASK:
            gfp_flags = kmalloc_fix_flags(gfp_flags, self.klog)
        order = get_order(size)
        pfn = self.allocator.alloc_pages(gfp_flags | c._GFP_COMP, order, nid)
        addr = 0
        if pfn is not None:
            addr = self.layout.page_address(pfn)
            self.count_pages(self.memory.frames.page_zone(pfn).nid, "nr_slab_unreclaimable", 1 << order)
            if gfp_flags & c._GFP_ZERO or self.init_on_alloc:
                for page in range(pfn, pfn + (1 << order)):
                    self.contents.drop(page)
        if self.memory.trace.enabled:
            self._emit("kmem:kmalloc", caller, addr, size, PAGE_SIZE << order, gfp_flags, nid)
        return addr or None

    def _free_large_kmalloc(self, addr: int) -> None:
        """5.17: mm/slub.c, free_large_kmalloc()."""
        frames = self.memory.frames
        pfn = frames.compound_head(self._pfn_of(addr))
        order = frames.compound_order(pfn)
        if not order and self._warn_once("free_large_kmalloc", "free_large_kmalloc"):
            self.klog.printk(f"object pointer: 0x{addr:016x}")
        self.count_pages(frames.page_zone(pfn).nid, "nr_slab_unreclaimable", -1 << order)
        self.allocator.free_pages(pfn, order)

    def rcu_barrier(self) -> None:
        """Let a grace period pass: the pages of slabs that waited for one are freed (5.17: rcu_barrier())."""
        waiting, self.rcu_pending = self.rcu_pending, []
        for slab in waiting:
            free_slab_now(slab.cache, slab)

    def flush_all(self) -> None:
        """Take from the CPUs what they hold of any cache (5.17: flush_all() of each cache)."""
        for s in self.caches:
            flush_all(s)

    # -- addresses and bytes ---------------------------------------------------------------------------------------

    def _pfn_of(self, addr: int) -> int:
        """The frame behind a kernel address. Raise KernelBug (the fault that the kernel takes) if there is none."""
        pfn = self.layout.virt_to_pfn(addr)
        if not self.memory.frames.pfn_valid(pfn):
            # virt_to_head_page() reads the frame's struct page, where none is mapped.
            raise self.oops(self.layout.page_struct(pfn) + 8)
        return pfn

    def slab_of(self, addr: int) -> Slab | None:
        """The slab that an address lies in, or None. Raise KernelBug for an address that is no memory (5.17:
        virt_to_slab()).
        """
        # The first frame of a slab is memory, and nobody's tail.
        slab = self.slabs.get(addr - self._page_offset >> PAGE_SHIFT)
        if slab is not None:
            return slab
        return self.slabs.get(self.memory.frames.compound_head(self._pfn_of(addr)))

    def cache_of(self, addr: int) -> KmemCache:
        """The cache of an object. Raise InputError for an address that is no object's."""
        slab = self.slab_of(addr)
        if slab is None:
            raise InputError(f"{addr:#x} is in no slab")
        return slab.cache

    def _phys(self, addr: int, access: str) -> int:
        phys = addr - self.layout.page_offset
        if not 0 <= phys < self._limit or not self.memory.frames.zone_of[phys >> PAGE_SHIFT]:
            raise self.oops(addr, access)
        return phys

    def load_word(self, addr: int) -> int:
        """The word of 8 bytes at a direct-map address. Raise KernelBug (a fault) where no memory is."""
        phys = addr - self._page_offset
        words = self.contents.frames.get(phys >> PAGE_SHIFT)
        if words is not None and not phys & 7:
            return words[phys >> 3 & 511]           # a frame that somebody wrote to: no question whether it is there
        if addr & 7:
            return int.from_bytes(self.read(addr, 8), "little")
        return self.contents.read_word(self._phys(addr, "read"))

    def store_word(self, addr: int, value: int) -> None:
        """Write a word of 8 bytes at a direct-map address."""
        phys = addr - self._page_offset
        words = self.contents.frames.get(phys >> PAGE_SHIFT)
        if words is not None and not phys & 7:
            words[phys >> 3 & 511] = value
        elif addr & 7:
            self.write(addr, value.to_bytes(8, "little"))
        else:
            self.contents.write_word(self._phys(addr, "write"), value)

    def read(self, addr: int, length: int) -> bytes:
        """Bytes at a direct-map address, as the kernel reads them: nobody asks whose they are."""
        return self.contents.read(self._phys(addr, "read"), length)

    def write(self, addr: int, data: bytes) -> None:
        """Write bytes at a direct-map address: into an object, past its end, into a free one; the hardware allows all."""
        if data:
            self._phys(addr + len(data) - 1, "write")
            self.contents.write(self._phys(addr, "write"), data)

    def memset(self, addr: int, value: int, length: int) -> None:
        """Fill bytes."""
        self.write(addr, bytes((value,)) * length)

    def oops(self, addr: int, access: str = "read") -> KernelBug:
        """The report of a kernel access that faults (5.17: arch/x86/mm/fault.c, show_fault_oops())."""
        if (addr >> 47) not in (0, 0x1FFFF):
            text = f"general protection fault, probably for non-canonical address {addr:#x}: 0000 [#1] PREEMPT SMP"
        else:
            what = ("kernel NULL pointer dereference, address" if addr < PAGE_SIZE else
                    "unable to handle page fault for address")
            code = 2 if access == "write" else 0
            text = (f"BUG: {what}: {addr:016x}\n#PF: supervisor {access} access in kernel mode\n"
                    f"#PF: error_code(0x{code:04x}) - not-present page")
        self.klog.printk(text)
        return KernelBug(text)

    def _oops_of_foreign(self, obj: int) -> KernelError:
        """kmem_cache_free() of an address in no slab, unchecked: virt_to_slab() is NULL, and its fields are read."""
        return self.oops(0x20)

    # -- reports and counts ------------------------------------------------------------------------------------------

    def _emit(self, name: str, caller: str, obj: int, requested: int, allocated: int, gfp_flags: int,
              nid: int | None) -> None:
        fields: dict[str, object] = {"call_site": caller, "ptr": obj, "bytes_req": requested, "bytes_alloc": allocated,
                                     "gfp_flags": gfp_names(gfp_flags)}
        if nid is not None:
            name, fields["node"] = name + "_node", nid
        self.memory.trace.emit(name, **fields)

    def _warn(self, text: str) -> None:
        self.klog.warn(f"WARNING: CPU: {self.memory.cpu} PID: {self.pid} at mm/slub.c {text}")

    def _warn_once(self, key: str, text: str) -> bool:
        if key in self._warned:
            return False
        self._warned.add(key)
        self._warn(text)
        return True

    def print_tainted(self) -> str:
        """What a report says of the kernel's health (5.17: kernel/panic.c, print_tainted())."""
        return "Tainted: " + "G    B".ljust(_TAINT_FLAGS) if self.tainted else "Not tainted"

    def count_pages(self, nid: int, name: str, pages: int) -> None:
        """Add to a counter of a node: ``nr_slab_reclaimable`` or ``nr_slab_unreclaimable``."""
        stat = self.memory.nodes[nid].vm_stat
        stat[name] = stat.get(name, 0) + pages

    def nodes_with_memory(self) -> list[int]:
        """The nodes that caches have lists for (5.17: N_NORMAL_MEMORY)."""
        return [nid for nid, node in self.memory.nodes.items() if node.online and node.populated_zones]

    def free_of(self, s: KmemCache) -> dict[int, list[int]]:
        """The free objects of each slab of a cache, on whatever list, by the slab's first frame. For people and tests."""
        found: dict[int, list[int]] = {}
        for pfn, slab in self.slabs.items():
            if slab.cache is s:
                found[pfn] = list(s.free_objects(slab, slab.freelist))
        for cpu in s.cpu_slab:
            if cpu.slab is not None:
                found[cpu.slab.pfn] += s.free_objects(cpu.slab, cpu.freelist)
        return found

    def check(self) -> None:
        """Verify all caches, slabs and free lists. Raise InvariantError that says which object is wrong where. Cost: every
        free object.
        """
        check_slub(self)

    def __repr__(self) -> str:
        return f"<Slub: {len(list(self.caches))} caches, {len(self.slabs)} slabs>"


