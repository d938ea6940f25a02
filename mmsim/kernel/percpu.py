"""Per-CPU memory: one offset, a private copy for each CPU.

A *chunk* has a *unit* for each CPU, all alike; an allocation takes the same place in every unit, and its address is that place in
the first CPU's. The CPU's own copy is one unit size further for each CPU before it::

    chunk   | unit of CPU 0   | unit of CPU 1   | unit of CPU 2   |
               ^ x               ^ x               ^ x            one allocation

Each chunk keeps a bitmap with a bit for four bytes. Chunks are sorted by the largest free run that they have, and the fullest that
may do is asked first, so that others can run empty. The first chunk was made at boot from memory of the image's size; later ones
take addresses from the top of the vmalloc region, and frames only where something is allocated.

5.17: mm/percpu.c. Left out: the block hints that spare the kernel most of the search (they may place an allocation later in a
chunk than the first gap that fits), the reserve of empty populated pages, accounting to cgroups.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmsim import constants as c
from mmsim.errors import InputError, InvariantError
from mmsim.kernel.vmalloc import VM_ALLOC, VM_NO_GUARD, Vmalloc, VmStruct
from mmsim.paging.pte import PAGE_KERNEL, pte_pfn
from mmsim.units import KIB, MIB, PAGE_SIZE, align_up, fls

__all__ = ["Chunk", "PCPU_MIN_ALLOC_SIZE", "PerCpu", "pcpu_size_to_slot"]

PCPU_MIN_ALLOC_SIZE = 4
PCPU_MIN_UNIT_SIZE = 32 * KIB       # the largest allocation
PCPU_SLOT_BASE_SHIFT = 5
ATOM_SIZE = 2 * MIB
_GFP = c.GFP_KERNEL


def pcpu_size_to_slot(size: int) -> int:
    """The list on which a chunk with a free run of ``size`` bytes stands (5.17: __pcpu_size_to_slot()).

    >>> [pcpu_size_to_slot(size) for size in (4, 16, 64, 4096)]
    [1, 2, 4, 10]
    """
    return max(fls(size) - PCPU_SLOT_BASE_SHIFT + 2, 1)


class Chunk:
    """One chunk: ``base`` is the address of the first CPU's unit, ``used`` the bytes from ``start`` on that each unit may give
    out; ``areas`` has the size of each allocation by its offset.
    """

    __slots__ = ("base", "start", "end", "bits", "areas", "first", "populated")

    def __init__(self, base: int, start: int, end: int, first: bool = False):
        self.base = base
        self.start, self.end = start, end
        #: One byte for each four of a unit: 1 if it is taken.
        self.bits = bytearray(b"\1" * (start // 4) + b"\0" * ((end - start) // 4))
        self.areas: dict[int, int] = {}
        self.first = first
        #: Pages of a unit that have frames, for every CPU.
        self.populated: set[int] = set()

    @property
    def free_bytes(self) -> int:
        """Bytes of each unit that are free."""
        return self.bits.count(0) * 4

    @property
    def contig_hint(self) -> int:
        """The longest free run in bytes (5.17: chunk_md.contig_hint)."""
        return max(map(len, self.bits.split(b"\1"))) * 4

    @property
    def slot(self) -> int:
        """The list the chunk stands on; 0: it is full (5.17: pcpu_chunk_slot())."""
        contig = self.contig_hint
        return pcpu_size_to_slot(contig) if contig else 0

    def find(self, size: int, align: int) -> int | None:
        """The first free offset that fits, or None."""
        bits, step = size // 4, max(align, 4)
        want, offset = bytes(bits), 0
        while (found := self.bits.find(want, offset)) >= 0:
            aligned = align_up(found * 4, step) // 4
            if aligned == found:
                return found * 4
            offset = aligned if aligned > found else found + 1
        return None


class PerCpu:
    """A machine's per-CPU memory; sizes in bytes as the boot log has them (``percpu: Embedded … s… r… d… u…``).

    ``base`` is where the first chunk lies: memory of the direct map that the boot took; it has frames already. On a machine of
    several nodes each CPU's unit is in memory of its own (``unit_offsets``), and later chunks keep the distances.
    """

    def __init__(self, region: Vmalloc, *, static_size: int, reserved_size: int, dynamic_size: int, unit_size: int, base: int,
                 unit_offsets: Sequence[int] = (), areas: Sequence[tuple[int, int]] = ()):
        if static_size % 4 or static_size + reserved_size + dynamic_size > unit_size or unit_size % PAGE_SIZE:
            raise InputError(f"a unit of {unit_size} bytes does not hold {static_size} + {reserved_size} + {dynamic_size}")
        self.region = region
        self.nr_cpus = region.memory.nr_cpus
        self.unit_size = unit_size
        #: Where each CPU's unit lies in a chunk, and the ranges that a chunk consists of: one for each node (offset, bytes).
        self.unit_offsets = list(unit_offsets) or [cpu * unit_size for cpu in range(self.nr_cpus)]
        self.areas = list(areas) or [(0, align_up(unit_size * self.nr_cpus, ATOM_SIZE))]
        used = static_size + reserved_size + dynamic_size
        # Static variables and what modules may have stand before the dynamic part, and are never given out here.
        self.first_chunk = Chunk(base, align_up(static_size + reserved_size, 4), used & -4, first=True)
        self.chunks = [self.first_chunk]
        #: Frames that later chunks have taken; with the first chunk's it is Percpu in /proc/meminfo.
        self.nr_populated = 0

    def alloc(self, size: int, align: int = 1) -> int | None:
        """Allocate ``size`` bytes for each CPU; return the first CPU's address, or None. The bytes are 0.

        More than 32 KiB, or an alignment above a page, is refused with a warning. 5.17: pcpu_alloc().
        """
        align = max(align, PCPU_MIN_ALLOC_SIZE)
        size = align_up(size, PCPU_MIN_ALLOC_SIZE)
        if not 0 < size <= PCPU_MIN_UNIT_SIZE or align > PAGE_SIZE or align & align - 1:
            self.region.slub.klog.warn(f"WARNING: CPU: {self.region.memory.cpu} PID: {self.region.slub.pid} at mm/percpu.c "
                                       f"pcpu_alloc: illegal size ({size}) or align ({align}) for percpu allocation")
            return None
        slot = pcpu_size_to_slot(size)
        for chunk in sorted((chunk for chunk in self.chunks if chunk.slot >= slot), key=lambda chunk: chunk.slot):
            offset = chunk.find(size, align)
            if offset is not None:
                return self._take(chunk, offset, size)
        new = self._create_chunk()
        if new is None:
            return None
        return self._take(new, 0, size)

    def _create_chunk(self) -> Chunk | None:
        """Addresses for a unit of each CPU, without frames yet (5.17: mm/percpu-vm.c, pcpu_create_chunk())."""
        base = self.region.areas.alloc_areas(self.areas, ATOM_SIZE)
        if base is None:
            return None
        for offset, size in self.areas:
            self.region.vm[base + offset] = VmStruct(base + offset, size, VM_ALLOC | VM_NO_GUARD, "pcpu_get_vm_areas")
        chunk = Chunk(base, 0, self.unit_size)
        self.chunks.append(chunk)
        return chunk

    def _take(self, chunk: Chunk, offset: int, size: int) -> int | None:
        if not chunk.first and not self._populate(chunk, offset, size):
            return None
        chunk.bits[offset // 4:(offset + size) // 4] = b"\1" * (size // 4)
        chunk.areas[offset] = size
        for cpu in range(self.nr_cpus):
            self.write(self.per_cpu_ptr(chunk.base + offset, cpu), bytes(size))
        return chunk.base + offset

    def _populate(self, chunk: Chunk, offset: int, size: int) -> bool:
        """Give every CPU's copy of the pages frames; all or none (5.17: pcpu_populate_chunk())."""
        missing = [page for page in range(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE + 1)
                   if page not in chunk.populated]
        taken: list[tuple[int, int]] = []
        for page in missing:
            for cpu in range(self.nr_cpus):
                pfn = self.region.allocator.alloc_pages(_GFP | c._GFP_NOWARN | c._GFP_HIGHMEM,
                                                        0, self.region.memory.cpu_to_node[cpu])
                if pfn is None:
                    for addr, old in taken:
                        self.region.tables.unmap_page(addr)
                        self.region.allocator.free_pages(old)
                    return False
                addr = chunk.base + self.unit_offsets[cpu] + page * PAGE_SIZE
                self.region.tables.map_page(addr, pfn, PAGE_KERNEL)
                taken.append((addr, pfn))
        chunk.populated.update(missing)
        self.nr_populated += len(taken)
        return True

    def free(self, addr: int | None) -> None:
        """Free an allocation by its first CPU's address; None is fine. Raise InputError for any other address: the kernel would
        clear whatever bits stand there. 5.17: free_percpu().
        """
        if not addr:
            return
        chunk = self._chunk_of(addr)
        size = chunk.areas.pop(addr - chunk.base, 0) if chunk is not None else 0
        if chunk is None or not size:
            raise InputError(f"{addr:#x} is no per-CPU allocation")
        offset = addr - chunk.base
        chunk.bits[offset // 4:(offset + size) // 4] = bytes(size // 4)

    def _chunk_of(self, addr: int) -> Chunk | None:
        return next((chunk for chunk in self.chunks if chunk.base <= addr < chunk.base + self.unit_size), None)

    def balance(self) -> None:
        """Give all empty chunks but one back (5.17: pcpu_balance_free(), on a work queue)."""
        empty = [chunk for chunk in self.chunks if not chunk.areas and not chunk.first]
        for chunk in empty[1:]:
            self.chunks.remove(chunk)
            for page in chunk.populated:
                for cpu in range(self.nr_cpus):
                    leaf = self.region.tables.unmap_page(chunk.base + self.unit_offsets[cpu] + page * PAGE_SIZE)
                    assert leaf is not None
                    self.region.allocator.free_pages(pte_pfn(leaf.word))
                    self.nr_populated -= 1
            for offset, _ in self.areas:
                del self.region.vm[chunk.base + offset]
                if self.region.areas.free_lazily(chunk.base + offset):
                    self.region.purge()

    def per_cpu_ptr(self, addr: int, cpu: int) -> int:
        """A CPU's own copy (5.17: per_cpu_ptr(); the CPU itself adds the base of %gs)."""
        return addr + self.unit_offsets[cpu]

    def read(self, addr: int, length: int) -> bytes:
        """Bytes of one CPU's copy."""
        return (self.region if self.region.layout.is_vmalloc_addr(addr) else self.region.slub).read(addr, length)

    def write(self, addr: int, data: bytes) -> None:
        """Write bytes of one CPU's copy."""
        (self.region if self.region.layout.is_vmalloc_addr(addr) else self.region.slub).write(addr, data)

    def check(self) -> None:
        """Verify that the bitmaps are what is allocated, and that it has frames. Raise InvariantError."""
        for chunk in self.chunks:
            bits = bytearray(b"\1" * (chunk.start // 4) + b"\0" * ((chunk.end - chunk.start) // 4))
            for offset, size in chunk.areas.items():
                place = slice(offset // 4, (offset + size) // 4)
                if offset < chunk.start or offset + size > chunk.end or any(bits[place]):
                    raise InvariantError(f"allocation {offset:#x} of {size} bytes overlaps another one of chunk {chunk.base:#x}")
                bits[place] = b"\1" * (size // 4)
                pages = set(range(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE + 1))
                if not chunk.first and pages - chunk.populated:
                    raise InvariantError(f"allocation {offset:#x} of chunk {chunk.base:#x} has no frames")
            if bits != chunk.bits:
                raise InvariantError(f"the bitmap of chunk {chunk.base:#x} is not what is allocated")
