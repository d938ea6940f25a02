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
NR_PCP_LISTS = MIGRATE_PCPTYPES * (PAGE_ALLOC_COSTLY_ORDER + 2)     # orders 0..3 and, for huge pages, 9
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
SIZEOF_MEMBLOCK_REGION = 24         # base, size, flags, nid
SMP_CACHE_BYTES = 64
MEMBLOCK_NONE = 0
MEMBLOCK_HOTPLUG = 1
MEMBLOCK_MIRROR = 2
MEMBLOCK_NOMAP = 4
MEMBLOCK_DRIVER_MANAGED = 8
MEMBLOCK_ALLOC_ANYWHERE = (1 << 64) - 1
MEMBLOCK_ALLOC_ACCESSIBLE = 0       # up to the current limit
MEMBLOCK_ALLOC_NOLEAKTRACE = 1      # the same, unknown to kmemleak
ARCH_LOW_ADDRESS_LIMIT = 0xFFFF_FFFF
E820_MAX_ENTRIES_ZEROPAGE = 128
E820_MAX_ENTRIES = E820_MAX_ENTRIES_ZEROPAGE + 3 * MAX_NUMNODES
E820_TYPE_RAM = 1
E820_TYPE_RESERVED = 2
E820_TYPE_ACPI = 3
E820_TYPE_NVS = 4
E820_TYPE_UNUSABLE = 5
E820_TYPE_PMEM = 7
E820_TYPE_PRAM = 12
E820_TYPE_RESERVED_KERN = 128
E820_TYPE_SOFT_RESERVED = 0xEFFF_FFFF
BIOS_BEGIN = 0xA0000
BIOS_END = ISA_END_ADDRESS = 0x100000
MAX_ARCH_PFN = MAXMEM >> PAGE_SHIFT

# -- allocation flags: mm/internal.h (the low two bits are the index of a watermark) -------------------------
ALLOC_WMARK_MIN = WMARK_MIN
ALLOC_WMARK_LOW = WMARK_LOW
ALLOC_WMARK_HIGH = WMARK_HIGH
ALLOC_NO_WATERMARKS = 0x04
ALLOC_WMARK_MASK = ALLOC_NO_WATERMARKS - 1
ALLOC_OOM = 0x08
ALLOC_HARDER = 0x10
ALLOC_HIGH = 0x20
ALLOC_CPUSET = 0x40
ALLOC_CMA = 0x80
ALLOC_NOFRAGMENT = 0x100
ALLOC_KSWAPD = 0x800

# -- GFP flags: include/linux/gfp.h. The kernel's __GFP_X is _GFP_X here (Python mangles two underscores in classes) --
_GFP_DMA = 0x01
_GFP_HIGHMEM = 0x02
_GFP_DMA32 = 0x04
_GFP_MOVABLE = 0x08
_GFP_RECLAIMABLE = 0x10
_GFP_HIGH = 0x20
_GFP_IO = 0x40
_GFP_FS = 0x80
_GFP_ZERO = 0x100
_GFP_ATOMIC = 0x200
_GFP_DIRECT_RECLAIM = 0x400
_GFP_KSWAPD_RECLAIM = 0x800
_GFP_WRITE = 0x1000
_GFP_NOWARN = 0x2000
_GFP_RETRY_MAYFAIL = 0x4000
_GFP_NOFAIL = 0x8000
_GFP_NORETRY = 0x10000
_GFP_MEMALLOC = 0x20000
_GFP_COMP = 0x40000
_GFP_NOMEMALLOC = 0x80000
_GFP_HARDWALL = 0x100000
_GFP_THISNODE = 0x200000
_GFP_ACCOUNT = 0x400000
_GFP_ZEROTAGS = 0x800000
_GFP_SKIP_KASAN_POISON = 0x1000000
_GFP_BITS_MASK = (1 << 25) - 1
_GFP_RECLAIM = _GFP_DIRECT_RECLAIM | _GFP_KSWAPD_RECLAIM
GFP_ZONEMASK = _GFP_DMA | _GFP_HIGHMEM | _GFP_DMA32 | _GFP_MOVABLE
GFP_MOVABLE_MASK = _GFP_RECLAIMABLE | _GFP_MOVABLE

GFP_ATOMIC = _GFP_HIGH | _GFP_ATOMIC | _GFP_KSWAPD_RECLAIM
GFP_KERNEL = _GFP_RECLAIM | _GFP_IO | _GFP_FS
GFP_KERNEL_ACCOUNT = GFP_KERNEL | _GFP_ACCOUNT
GFP_NOWAIT = _GFP_KSWAPD_RECLAIM
GFP_NOIO = _GFP_RECLAIM
GFP_NOFS = _GFP_RECLAIM | _GFP_IO
GFP_USER = _GFP_RECLAIM | _GFP_IO | _GFP_FS | _GFP_HARDWALL
GFP_DMA = _GFP_DMA
GFP_DMA32 = _GFP_DMA32
GFP_HIGHUSER = GFP_USER | _GFP_HIGHMEM
GFP_HIGHUSER_MOVABLE = GFP_HIGHUSER | _GFP_MOVABLE | _GFP_SKIP_KASAN_POISON
GFP_TRANSHUGE_LIGHT = (GFP_HIGHUSER_MOVABLE | _GFP_COMP | _GFP_NOMEMALLOC | _GFP_NOWARN) & ~_GFP_RECLAIM
GFP_TRANSHUGE = GFP_TRANSHUGE_LIGHT | _GFP_DIRECT_RECLAIM

# -- compaction's answers and efforts: include/linux/compaction.h --------------------------------------------
COMPACT_NOT_SUITABLE_ZONE = 0
COMPACT_SKIPPED = 1
COMPACT_DEFERRED = 2
COMPACT_NO_SUITABLE_PAGE = 3
COMPACT_CONTINUE = 4
COMPACT_COMPLETE = 5
COMPACT_PARTIAL_SKIPPED = 6
COMPACT_CONTENDED = 7
COMPACT_SUCCESS = 8
COMPACT_RESULT_NAMES = ("not_suitable_zone", "skipped", "deferred", "no_suitable_page", "continue", "complete",
                        "partial_skipped", "contended", "success")
COMPACT_PRIO_SYNC_FULL = 0
COMPACT_PRIO_SYNC_LIGHT = 1
COMPACT_PRIO_ASYNC = 2

# -- the slow path: mm/page_alloc.c, mm/internal.h ----------------------------------------------------------
MAX_RECLAIM_RETRIES = 16
MAX_COMPACT_RETRIES = 16
