"""vmalloc(): contiguous addresses over frames from anywhere.

    addresses   | page | page | page | guard | page | guard | …
                   │       │      │             │
    frames       0x123   0x9a   0x77          0x4e1

Every area ends in a page that is never mapped, so that whoever runs over its end faults instead of writing into the next
one. Freeing unmaps at once; the addresses come back with the next purge (:mod:`mmsim.kernel.vmap_area`).

5.17: mm/vmalloc.c. Left out: huge pages (x86 has them from 5.18 on), charging a cgroup. Devices: :mod:`mmsim.kernel.ioremap`;
mappings for a moment: :mod:`mmsim.kernel.vmap_block`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mmsim import constants as c
from mmsim.errors import Errno, InvariantError
from mmsim.kernel.slub import Slub
from mmsim.kernel.slub_pages import GFP_RECLAIM_MASK
from mmsim.kernel.vmap_area import VmapAreas
from mmsim.paging.kernel_tables import InitMm
from mmsim.paging.pte import PAGE_KERNEL, pte_pfn
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.physical.gfp import gfp_names
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, align_up

__all__ = ["VM_ALLOC", "VM_IOREMAP", "VM_MAP", "VM_NO_GUARD", "VmStruct", "Vmalloc"]

VM_IOREMAP, VM_ALLOC, VM_MAP, VM_NO_GUARD = 0x1, 0x2, 0x4, 0x40
IOREMAP_MAX_ORDER = 30
SIZEOF_VM_STRUCT = 72
INT_MAX = 2**31 - 1


@dataclass(slots=True)
class VmStruct:
    """An area: ``size`` includes the guard page. ``pages`` are its frames in order, ``pages_at`` where the kernel keeps the
    list of them, ``va`` and ``vm`` its two structures, ``phys_addr`` the device that an area of ioremap() shows.
    5.17: struct vm_struct, struct vmap_area.
    """

    addr: int
    size: int
    flags: int
    caller: str
    pages: list[int] = field(default_factory=list)
    pages_at: int = 0
    va: int = 0
    vm: int = 0
    phys_addr: int = 0

    @property
    def usable(self) -> int:
        """Bytes without the guard page (5.17: get_vm_area_size())."""
        return self.size if self.flags & VM_NO_GUARD else self.size - PAGE_SIZE


class Vmalloc:
    """The vmalloc region of a machine. ``tables`` are the kernel's own page tables (init_mm's); made here if not given."""

    def __init__(self, slub: Slub, tables: PageTables | None = None):
        self.slub = slub
        self.memory, self.allocator, self.layout = slub.memory, slub.allocator, slub.layout
        self.tables = tables or PageTables(TableMemory(slub.allocator, slub.contents), user=False)
        self.areas = VmapAreas(self.layout.vmalloc_start, self.layout.vmalloc_end, self.memory.nr_cpus)
        cache = slub.kmem_cache_create("vmap_area", 64)
        assert cache is not None
        self._vmap_area_cache = cache
        self.vm: dict[int, VmStruct] = {}
        #: Ranges without an area, of vm_map_ram(): their structure by address.
        self.ram: dict[int, int] = {}
        #: Called before waiting ranges are purged, and with a range that every CPU must forget.
        self.before_purge: list[Callable[[], None]] = []
        #: Frames that areas hold: VmallocUsed in /proc/meminfo.
        self.nr_vmalloc_pages = 0
        #: How often all CPUs had to forget a range.
        self.nr_flushes = 0

    # -- areas ---------------------------------------------------------------------------------------------------

    def get_vm_area(self, size: int, flags: int, gfp_flags: int = c.GFP_KERNEL, align: int = 1, caller: str = "") -> VmStruct | None:
        """Reserve addresses for ``size`` bytes and a guard page; nothing is mapped yet. None: no addresses or no memory for the
        structures. 5.17: __get_vm_area_node().
        """
        size = align_up(size, PAGE_SIZE)
        if not size:
            return None
        if flags & VM_IOREMAP:
            # A device of 2 MiB may be mapped by a large page, if its address allows that too.
            align = 1 << min(max((size - 1).bit_length(), PAGE_SHIFT), IOREMAP_MAX_ORDER)
        gfp = gfp_flags & GFP_RECLAIM_MASK
        vm = self.slub.kzalloc(SIZEOF_VM_STRUCT, gfp, caller="__get_vm_area_node")
        if vm is None:
            return None
        if not flags & VM_NO_GUARD:
            size += PAGE_SIZE
        found = self._alloc_vmap_area(size, align, gfp)
        if found is None:
            self.slub.kfree(vm)
            return None
        addr, va = found
        area = self.vm[addr] = VmStruct(addr, size, flags, caller, va=va, vm=vm)
        return area

    def _alloc_vmap_area(self, size: int, align: int, gfp: int) -> tuple[int, int] | None:
        """A range of addresses and the structure for it (5.17: alloc_vmap_area())."""
        va = self.slub.kmem_cache_alloc(self._vmap_area_cache, gfp, caller="alloc_vmap_area")
        if va is None:
            return None
        addr = self.areas.alloc(size, align)
        if addr is None:
            self.purge()
            addr = self.areas.alloc(size, align)
        if addr is None:
            if not gfp & c._GFP_NOWARN:
                self.slub.klog.printk(f"vmap allocation for size {size} failed: use vmalloc=<size> to increase size")
            self.slub.kmem_cache_free(self._vmap_area_cache, va)
            return None
        return addr, va

    def register_early(self, size: int, caller: str) -> VmStruct:
        """An area at the start of the region whose pages were mapped before there was an allocator (5.17: vm_area_register_early())."""
        addr = self.areas.alloc(size)
        assert addr is not None
        area = self.vm[addr] = VmStruct(addr, size, VM_ALLOC | VM_NO_GUARD, caller)
        return area

    def alloc_ram_area(self, size: int, align: int) -> int | None:
        """Addresses for vm_map_ram(), which have no area (5.17: alloc_vmap_area())."""
        found = self._alloc_vmap_area(size, align, c.GFP_KERNEL)
        if found is None:
            return None
        self.ram[found[0]] = found[1]
        return found[0]

    def free_ram_area(self, addr: int) -> None:
        """Let addresses of :meth:`alloc_ram_area` wait for a purge (5.17: free_vmap_area_noflush())."""
        va = self.ram.pop(addr)
        if self.areas.free_lazily(addr):
            self.purge()
        self.slub.kmem_cache_free(self._vmap_area_cache, va)

    def find_vm_area(self, addr: int) -> VmStruct | None:
        """The area that an address lies in, its guard page included (5.17: find_vm_area())."""
        found = self.areas.find(addr)
        return self.vm.get(found[0]) if found else None

    def _map(self, area: VmStruct) -> bool:
        """Fill the page tables; False if there is no frame for one (5.17: vmap_pages_range())."""
        mapped = 0
        try:
            for pfn in area.pages:
                self.tables.map_page(area.addr + mapped, pfn, PAGE_KERNEL)
                mapped += PAGE_SIZE
        except Errno:
            return False
        return True

    def _remove(self, area: VmStruct) -> None:
        """Unmap an area now, and let its addresses wait (5.17: remove_vm_area(), free_unmap_vmap_area())."""
        del self.vm[area.addr]
        for addr in range(area.addr, area.addr + area.size, PAGE_SIZE):
            self.tables.unmap_page(addr)
        if self.areas.free_lazily(area.addr):
            # 5.17 makes whoever frees too much wait for the purge; from 5.18 on a work queue does it.
            self.purge()
        self.slub.kmem_cache_free(self._vmap_area_cache, area.va)

    def remove_vm_area(self, area: VmStruct) -> None:
        """Unmap an area whose pages are somebody else's, and free what describes it (5.17: remove_vm_area())."""
        self._remove(area)
        self.slub.kfree(area.vm)

    def purge(self) -> None:
        """Flush the waiting ranges from all TLBs, once for all, and make them free (5.17: purge_vmap_area_lazy())."""
        for hook in self.before_purge:
            hook()
        flush = self.areas.purge()
        if flush is not None:
            self.nr_flushes += 1
            self.flush(*flush)

    def flush(self, start: int, end: int) -> None:
        """Every CPU forgets a range (5.17: flush_tlb_kernel_range())."""
        if isinstance(self.tables, InitMm):
            self.tables.flush(start, end)
        elif self.memory.trace.enabled:
            self.memory.trace.emit("mmsim:flush_tlb_kernel_range", start=start, end=end)

    # -- memory --------------------------------------------------------------------------------------------------

    def vmalloc(self, size: int, gfp_flags: int = c.GFP_KERNEL, nid: int | None = None, align: int = 1,
                caller: str = "") -> int | None:
        """Allocate ``size`` bytes, in whole pages; return their address, or None with a reason in the log.

        The pages come one by one, up to a hundred at a time from the bulk allocator. 5.17: __vmalloc_node_range().
        """
        if size <= 0:
            self.warn("mm/vmalloc.c __vmalloc_node_range")
            return None
        if size >> PAGE_SHIFT > sum(zone.managed_pages for zone in self.memory.zones()):
            self._warn_alloc(gfp_flags, f"vmalloc error: size {size}, exceeds total pages")
            return None
        area = self.get_vm_area(size, VM_ALLOC, gfp_flags, align, caller)
        if area is None:
            self._warn_alloc(gfp_flags, f"vmalloc error: size {size}, vm_struct allocation failed")
            return None
        wanted = area.usable >> PAGE_SHIFT
        nested = gfp_flags & GFP_RECLAIM_MASK | c._GFP_ZERO
        # The list of pages is itself too long for kmalloc() when the area is large.
        array = self.vmalloc(8 * wanted, nested, nid, caller=caller) if 8 * wanted > PAGE_SIZE else \
            self.slub.kmalloc(8 * wanted, nested, nid)
        if array is None:
            self._warn_alloc(gfp_flags, f"vmalloc error: size {wanted * PAGE_SIZE}, failed to allocated page array size {8 * wanted}")
            self._free_area(area)
            return None
        area.pages_at = array
        area.pages = self._alloc_pages(gfp_flags | c._GFP_NOWARN, wanted, nid)
        self.nr_vmalloc_pages += len(area.pages)
        if len(area.pages) < wanted:
            self._warn_alloc(gfp_flags, f"vmalloc error: size {len(area.pages) * PAGE_SIZE}, page order 0, failed to allocate pages")
            self._free_area(area)
            return None
        if not self._map(area):
            self._warn_alloc(gfp_flags, f"vmalloc error: size {wanted * PAGE_SIZE}, failed to map pages")
            self._free_area(area)
            return None
        return area.addr

    def vzalloc(self, size: int, caller: str = "") -> int | None:
        """:meth:`vmalloc` of bytes that are 0 (5.17: vzalloc())."""
        return self.vmalloc(size, c.GFP_KERNEL | c._GFP_ZERO, caller=caller)

    def _alloc_pages(self, gfp_flags: int, wanted: int, nid: int | None) -> list[int]:
        """5.17: vm_area_alloc_pages()."""
        if not gfp_flags & (c._GFP_DMA | c._GFP_DMA32):
            gfp_flags |= c._GFP_HIGHMEM
        pages: list[int] = []
        while len(pages) < wanted:
            request = min(100, wanted - len(pages))
            got = self.allocator.alloc_pages_bulk(gfp_flags & ~c._GFP_NOFAIL, request, nid)
            pages += got
            if len(got) < request:
                break
        while len(pages) < wanted:
            pfn = self.allocator.alloc_pages(gfp_flags, 0, nid)
            if pfn is None:
                break
            pages.append(pfn)
        if gfp_flags & c._GFP_ZERO:
            for pfn in pages:
                self.slub.contents.drop(pfn)
        return pages

    def vfree(self, addr: int | None) -> None:
        """Free an area by any page's address in it; None is fine.

        An address that is no page's, or in no area, is warned of and nothing happens. 5.17: vfree(), __vunmap().
        """
        if addr:
            area = self._area_to_free(addr)
            if area is not None:
                self._free_area(area)

    def vunmap(self, addr: int | None) -> None:
        """Unmap what :meth:`vmap` mapped; the frames stay their owner's (5.17: vunmap())."""
        if addr:
            area = self._area_to_free(addr)
            if area is not None:
                self.remove_vm_area(area)

    def _area_to_free(self, addr: int) -> VmStruct | None:
        if addr % PAGE_SIZE:
            self.warn(f"mm/vmalloc.c __vunmap: Trying to vfree() bad address ({addr:016x})")
            return None
        area = self.find_vm_area(addr)
        if area is None:
            self.warn(f"mm/vmalloc.c __vunmap: Trying to vfree() nonexistent vm area ({addr:016x})")
        return area

    def _free_area(self, area: VmStruct) -> None:
        """Unmap, free the frames, the list of them, the structure."""
        self._remove(area)
        for pfn in area.pages:
            self.allocator.free_pages(pfn)
        self.nr_vmalloc_pages -= len(area.pages)
        self.kvfree(area.pages_at)
        self.slub.kfree(area.vm)

    def vmap(self, pages: Sequence[int], flags: int = VM_MAP, caller: str = "") -> int | None:
        """Map frames that the caller has, one after the other; return the address, or None (5.17: vmap())."""
        if not pages or len(pages) > sum(zone.managed_pages for zone in self.memory.zones()):
            return None
        area = self.get_vm_area(len(pages) << PAGE_SHIFT, flags, caller=caller)
        if area is None:
            return None
        area.pages = list(pages)
        if not self._map(area):
            self.vunmap(area.addr)
            return None
        # The kernel does not keep the list of somebody else's pages.
        area.pages = []
        return area.addr

    def kvmalloc(self, size: int, gfp_flags: int = c.GFP_KERNEL, caller: str = "") -> int | None:
        """Allocate from kmalloc() if that is easy, else from vmalloc() (5.17: mm/util.c, kvmalloc_node()).

        More than a page is asked of kmalloc() without effort and complaint; sizes above INT_MAX are refused.
        """
        easy = gfp_flags
        if size > PAGE_SIZE:
            easy |= c._GFP_NOWARN
            if not easy & c._GFP_RETRY_MAYFAIL:
                easy |= c._GFP_NORETRY
            easy &= ~c._GFP_NOFAIL
        found = self.slub.kmalloc(size, easy, caller=caller)
        if found is not None or size <= PAGE_SIZE:
            return found
        if size > INT_MAX:
            if not gfp_flags & c._GFP_NOWARN:
                self.warn("mm/util.c kvmalloc_node")
            return None
        return self.vmalloc(size, gfp_flags, caller=caller)

    def kvfree(self, addr: int | None) -> None:
        """Free what :meth:`kvmalloc` gave: the address tells from where (5.17: mm/util.c, kvfree())."""
        if addr and self.layout.is_vmalloc_addr(addr):
            self.vfree(addr)
        else:
            self.slub.kfree(addr)

    # -- access --------------------------------------------------------------------------------------------------

    def vmalloc_to_pfn(self, addr: int) -> int | None:
        """The frame behind a vmalloc address; None if none is mapped (5.17: vmalloc_to_pfn())."""
        leaf = self.tables.lookup(addr)
        return pte_pfn(leaf.word) if leaf is not None else None

    def _pieces(self, addr: int, length: int, access: str) -> Iterator[tuple[int, int]]:
        while length > 0:
            pfn = self.vmalloc_to_pfn(addr)
            if pfn is None:
                raise self.slub.oops(addr, access)
            part = min(length, PAGE_SIZE - addr % PAGE_SIZE)
            yield (pfn << PAGE_SHIFT) + addr % PAGE_SIZE, part
            addr, length = addr + part, length - part

    def read(self, addr: int, length: int) -> bytes:
        """Bytes at a vmalloc address. Raise KernelBug (a fault) at the first page that is not mapped."""
        return b"".join(self.slub.contents.read(phys, part) for phys, part in self._pieces(addr, length, "read"))

    def write(self, addr: int, data: bytes) -> None:
        """Write bytes at a vmalloc address; those before a fault are written."""
        done = 0
        for phys, part in self._pieces(addr, len(data), "write"):
            self.slub.contents.write(phys, data[done:done + part])
            done += part

    # -- reports -------------------------------------------------------------------------------------------------

    def warn(self, text: str) -> None:
        """A WARN() of code in the file that ``text`` begins with."""
        self.slub.klog.warn(f"WARNING: CPU: {self.memory.cpu} PID: {self.slub.pid} at {text}")

    def _warn_alloc(self, gfp_flags: int, text: str) -> None:
        """5.17: mm/page_alloc.c, warn_alloc(); left out: what follows the first line."""
        if not gfp_flags & c._GFP_NOWARN:
            self.slub.klog.printk(f"{self.memory.comm}: {text}, mode:{gfp_flags:#x}({gfp_names(gfp_flags)}), nodemask=(null)")

    def check(self) -> None:
        """Verify that the ranges tile the region, that what is mapped is what areas hold, and that guard pages are not.
        Raise InvariantError. Cost: every page.
        """
        self.areas.check()
        busy = [(start, end) for start, end in self.areas.busy if start not in self.ram]
        if busy != sorted((area.addr, area.addr + area.size) for area in self.vm.values()):
            raise InvariantError("the busy ranges are not the areas")
        if len(busy) + len(self.ram) != len(self.areas.busy):
            raise InvariantError("ranges of vm_map_ram() are not busy")
        mapped = {leaf.addr: pte_pfn(leaf.word, leaf.level) for leaf in self.tables.kernel_leaves()
                  if self.layout.is_vmalloc_addr(leaf.addr)}
        for area in self.vm.values():
            for index, pfn in enumerate(area.pages):
                if mapped.get(area.addr + index * PAGE_SIZE) != pfn:
                    raise InvariantError(f"page {index} of area {area.addr:#x} is not mapped to frame {pfn:#x}")
            if not area.flags & VM_NO_GUARD and area.addr + area.usable in mapped:
                raise InvariantError(f"the guard page of area {area.addr:#x} is mapped")
            for addr in range(area.addr, area.addr + area.usable, PAGE_SIZE):
                frame = mapped.pop(addr, None)
                if area.flags & VM_IOREMAP and frame is not None and frame << PAGE_SHIFT != area.phys_addr + addr - area.addr:
                    raise InvariantError(f"{addr:#x} of the device at {area.phys_addr:#x} shows frame {frame:#x}")
        for start, end in self.areas.busy:
            for addr in range(start, end, PAGE_SIZE) if start in self.ram else ():
                mapped.pop(addr, None)
        if mapped:
            raise InvariantError(f"{min(mapped):#x} is mapped and in no area")
        if self.nr_vmalloc_pages != sum(len(area.pages) for area in self.vm.values()):
            raise InvariantError(f"{self.nr_vmalloc_pages} pages are counted")

    def __repr__(self) -> str:
        return f"<Vmalloc: {len(self.vm)} areas, {self.nr_vmalloc_pages} pages, {self.areas.lazy_nr} pages of addresses wait>"
