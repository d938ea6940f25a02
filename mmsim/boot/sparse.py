"""The memory map: a struct page for every frame, allocated out of the memory that it describes.

Physical memory is cut into sections of 128 MiB. A section that has any memory gets a ``struct mem_section``, bits for
its pageblocks (the *usemap*), and 2 MiB of struct pages (the *memmap*): 64 bytes for 4096, or 1.5625 %. The memmap is
mapped at one virtual address for all sections, so that ``pfn_to_page()`` is an addition; as 2 MiB of it are one page
middle directory entry, its page tables cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmsim.boot.image import KernelImage
from mmsim.boot.memblock import Memblock
from mmsim.constants import MAX_DMA_PFN, PAGES_PER_SECTION, PFN_SECTION_SHIFT, SIZEOF_STRUCT_PAGE
from mmsim.errors import KernelPanic
from mmsim.units import MIB, PAGE_SIZE, align_down, align_up, pfn_to_phys

__all__ = ["SECTION_MEMMAP_SIZE", "SparseMap", "sparse_init"]

SECTION_SIZE = PAGES_PER_SECTION * PAGE_SIZE
#: The struct pages of one section: exactly one 2 MiB page.
SECTION_MEMMAP_SIZE = align_up(PAGES_PER_SECTION * SIZEOF_STRUCT_PAGE, 2 * MIB)
#: Frames whose struct pages one page of PMD entries, and one page of PUD entries, can map.
PFNS_PER_PMD_TABLE = 512 * SECTION_MEMMAP_SIZE // SIZEOF_STRUCT_PAGE
PFNS_PER_PUD_TABLE = 512 * PFNS_PER_PMD_TABLE


@dataclass(slots=True)
class SparseMap:
    """The sections with memory: ``nid`` of each by number, where its memmap lies, and the vmemmap's page tables.

    A section in ``base_pages`` found no free 2 MiB for its struct pages: they lie in the 512 frames named there.
    """

    nid: dict[int, int] = field(default_factory=dict)
    memmap: dict[int, int] = field(default_factory=dict)
    base_pages: dict[int, list[int]] = field(default_factory=dict)
    tables: list[int] = field(default_factory=list)

    def pfn_valid(self, pfn: int) -> bool:
        """Tell whether a frame has a struct page: all frames of a section with memory do (5.17: pfn_valid())."""
        return pfn >> PFN_SECTION_SHIFT in self.memmap

    @property
    def memmap_bytes(self) -> int:
        """Memory spent on struct pages."""
        return len(self.memmap) * SECTION_MEMMAP_SIZE


def sparse_init(memblock: Memblock, image: KernelImage, node_data: dict[int, int]) -> SparseMap:
    """Register all sections that have memory and give each its usemap and memmap, node by node.

    Raise KernelPanic if the section table finds no memory. 5.17: mm/sparse.c, sparse_init(), memblocks_present(),
    sparse_init_nid().
    """
    sparse = SparseMap()
    if not memblock.alloc(8 * image.section_roots, 64, caller="sparse_init"):
        raise KernelPanic(f"memblocks_present: Failed to allocate {8 * image.section_roots} bytes align=0x40")
    roots: set[int] = set()
    for start, end, nid in memblock.for_each_mem_pfn_range():
        for section in range(start >> PFN_SECTION_SHIFT, (end - 1 >> PFN_SECTION_SHIFT) + 1):
            root = section // image.sections_per_root
            if root not in roots:
                roots.add(root)
                size = image.sections_per_root * image.sizeof_mem_section
                if not memblock.alloc_node(size, 64, nid, caller="sparse_index_alloc"):
                    raise KernelPanic(f"sparse_index_alloc: Failed to allocate {size} bytes nid={nid}")
            sparse.nid.setdefault(section, nid)
    mapped = _VmemmapTables(memblock, sparse)
    sections = sorted(sparse.nid)
    at = 0
    while at < len(sections):
        nid = sparse.nid[sections[at]]
        following = at
        while following < len(sections) and sparse.nid[sections[following]] == nid:
            following += 1
        _init_node(memblock, image, sparse, mapped, nid, sections[at:following], node_data[nid])
        at = following
    return sparse


def _init_node(memblock: Memblock, image: KernelImage, sparse: SparseMap, tables: "_VmemmapTables", nid: int,
               sections: list[int], node_data: int) -> None:
    """The sections of one node (5.17: mm/sparse.c, sparse_init_nid())."""
    size = image.sizeof_mem_section_usage * len(sections)
    # Near the node's own data, so that unplugging the section takes both away together.
    goal = align_down(node_data, SECTION_SIZE)
    found = memblock.search_pfn_nid(goal // PAGE_SIZE)
    goal_nid = found[0] if found else 0
    usage = memblock.alloc_try_nid(size, 64, goal, goal + SECTION_SIZE, goal_nid, caller="sparse_init_nid") \
        or memblock.alloc_try_nid(size, 64, goal, 0, goal_nid, caller="sparse_init_nid")
    if not usage:
        raise KernelPanic(f"sparse_init_nid: node[{nid}] usemap allocation failed")
    above_dma = pfn_to_phys(MAX_DMA_PFN)
    buffer = memblock.alloc_exact_nid_raw(SECTION_MEMMAP_SIZE * len(sections), SECTION_MEMMAP_SIZE, above_dma, nid=nid,
                                          caller="memmap_alloc")
    for number, section in enumerate(sections):
        memmap = tables.map_section(section, nid, buffer + number * SECTION_MEMMAP_SIZE if buffer else 0)
        if not memmap:
            # The kernel only logs this, and then faults on the first struct page that is not there.
            raise KernelPanic(f"sparse_init_nid: node[{nid}] memory map backing failed. Some memory will not be available.")
        sparse.memmap[section] = memmap


class _VmemmapTables:
    """The mapping of the memmap: 2 MiB pages, or 4 KiB ones where memory is too fragmented for that.

    5.17: arch/x86/mm/init_64.c, vmemmap_populate_hugepages(); mm/sparse-vmemmap.c, vmemmap_populate_basepages().
    """

    def __init__(self, memblock: Memblock, sparse: SparseMap):
        self.memblock = memblock
        self.sparse = sparse
        self.puds: set[int] = set()
        self.pmds: set[int] = set()

    def _block(self, size: int, nid: int) -> int:
        """Memory for a table or for struct pages, on the node if it has any (5.17: vmemmap_alloc_block())."""
        return self.memblock.alloc_try_nid_raw(size, size, pfn_to_phys(MAX_DMA_PFN), nid=nid, caller="__earlyonly_bootmem_alloc")

    def map_section(self, section: int, nid: int, memmap: int) -> int:
        """Map a section's struct pages, at ``memmap`` or, if that is 0, wherever there is room; return where, 0 for
        nowhere.
        """
        pfn = section << PFN_SECTION_SHIFT
        for present, number in ((self.puds, pfn // PFNS_PER_PUD_TABLE), (self.pmds, pfn // PFNS_PER_PMD_TABLE)):
            if number not in present:
                present.add(number)
                if not self._table(nid):
                    return 0
        memmap = memmap or self._block(SECTION_MEMMAP_SIZE, nid)
        if memmap:
            return memmap
        if not self._table(nid):
            return 0
        pages = self.sparse.base_pages[section] = []
        for _ in range(SECTION_MEMMAP_SIZE // PAGE_SIZE):
            page = self._block(PAGE_SIZE, nid)
            if not page:
                return 0
            pages.append(page)
        return pages[0]

    def _table(self, nid: int) -> int:
        table = self._block(PAGE_SIZE, nid)
        if table:
            self.sparse.tables.append(table)
        return table
