"""Constants of Linux 5.17 on x86-64, all in one place.

Values that a kernel configuration decides are those of the recorded kernels (SMP, NUMA, ZONE_DMA, SPARSEMEM_VMEMMAP, THP);
tests compare each with the value that the kernel's own compiler gave (tests/golden/consts).
"""

from __future__ import annotations

from mmsim.units import GIB, MIB, PAGE_SHIFT, TIB

# -- the buddy allocator: include/linux/mmzone.h ------------------------------------------------------------
MAX_ORDER = 11                      # exclusive in 5.17: orders 0..10
PAGEBLOCK_ORDER = 9                 # one huge page: HUGETLB_PAGE_ORDER
PAGEBLOCK_NR_PAGES = 1 << PAGEBLOCK_ORDER
PAGE_ALLOC_COSTLY_ORDER = 3
NUMA_NO_NODE = -1
MAX_NUMNODES = 64                   # CONFIG_NODES_SHIFT=6

MIGRATE_UNMOVABLE = 0
MIGRATE_MOVABLE = 1
MIGRATE_RECLAIMABLE = 2
MIGRATE_PCPTYPES = 3                # how many types the per-CPU lists hold
MIGRATE_HIGHATOMIC = 3
MIGRATE_ISOLATE = 4
MIGRATE_TYPES = 5
# With CONFIG_CMA (the recorded kernels have it) MIGRATE_CMA takes 4 and MIGRATE_ISOLATE 5; names come from this table.
MIGRATETYPE_NAMES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")

# -- zones -------------------------------------------------------------------------------------------------
ZONE_DMA = 0
ZONE_DMA32 = 1
ZONE_NORMAL = 2
ZONE_MOVABLE = 3
ZONE_DEVICE = 4
MAX_NR_ZONES = 4                    # without ZONE_DEVICE
ZONE_NAMES = ("DMA", "DMA32", "Normal", "Movable", "Device")
MAX_DMA_PFN = (16 * MIB) >> PAGE_SHIFT
MAX_DMA32_PFN = (4 * GIB) >> PAGE_SHIFT

WMARK_MIN = 0
WMARK_LOW = 1
WMARK_HIGH = 2
NR_WMARK = 3

# -- sparse memory: arch/x86/include/asm/sparsemem.h, include/linux/mmzone.h --------------------------------
SECTION_SIZE_BITS = 27
PFN_SECTION_SHIFT = SECTION_SIZE_BITS - PAGE_SHIFT
PAGES_PER_SECTION = 1 << PFN_SECTION_SHIFT
SUBSECTION_SHIFT = 21
SIZEOF_STRUCT_PAGE = 64
MAX_PHYSMEM_BITS = 46               # 4-level paging
MAXMEM = 64 * TIB

# -- memblock and e820 ------------------------------------------------------------------------------------
INIT_MEMBLOCK_REGIONS = 128
E820_MAX_ENTRIES_ZEROPAGE = 128
E820_MAX_ENTRIES = E820_MAX_ENTRIES_ZEROPAGE + 3 * MAX_NUMNODES
