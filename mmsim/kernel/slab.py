"""What SLUB keeps: caches, their slabs, and who has which slab.

A slab is in exactly one of four places::

    kmem_cache ─┬─ cpu_slab[cpu] ─┬─ slab ──────► the slab that this CPU allocates from (frozen)
                │                 ├─ freelist ──► its free objects: the CPU's own, nobody else takes from here
                │                 └─ partial ───► a chain of further slabs with free objects (frozen)
                └─ node[nid] ──── partial ──────► slabs with free objects that no CPU owns
    a slab without a free object that no CPU owns is on no list: it comes back when one of its objects is freed

*Frozen* means: it belongs to a CPU, the node's list has nothing to do with it. A slab of the CPU counts the objects on the
CPU's own list as in use.

5.17: include/linux/slub_def.h, mm/slab.h (struct slab overlays struct page since 5.17).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mmsim.errors import KernelBug
from mmsim.kernel.slab_layout import SLAB_DEBUG_FLAGS, CacheLayout
from mmsim.units import PAGE_SIZE

if TYPE_CHECKING:
    from mmsim.kernel.slub import Slub

__all__ = ["STAT_ITEMS", "KmemCache", "KmemCacheCpu", "KmemCacheNode", "Slab", "swab64"]

#: What SLUB counts for each CPU with CONFIG_SLUB_STATS, in the kernel's order (5.17: enum stat_item).
STAT_ITEMS: tuple[str, ...] = tuple("""
    alloc_fastpath alloc_slowpath free_fastpath free_slowpath free_frozen free_add_partial free_remove_partial
    alloc_from_partial alloc_slab alloc_refill alloc_node_mismatch free_slab cpuslab_flush deactivate_full
    deactivate_empty deactivate_to_head deactivate_to_tail deactivate_remote_frees deactivate_bypass order_fallback
    cmpxchg_double_cpu_fail cmpxchg_double_fail cpu_partial_alloc cpu_partial_free cpu_partial_node
    cpu_partial_drain""".split())


def swab64(value: int) -> int:
    """The bytes of a 64-bit word in reverse order (5.17: swab()).

    >>> hex(swab64(0x0102030405060708))
    '0x807060504030201'
    """
    return int.from_bytes(value.to_bytes(8, "little"), "big")


class Slab:
    """2^order frames that hold the objects of one cache.

    ``freelist`` is the address of the first free object (0: none), ``inuse`` how many of the ``objects`` are given out or on
    a CPU's own list. On a CPU's partial chain ``next`` is the slab behind, and ``slabs`` how many the chain has from here on.
    5.17: mm/slab.h, struct slab.
    """

    __slots__ = ("cache", "pfn", "order", "nid", "address", "freelist", "inuse", "objects", "frozen", "next", "slabs")

    def __init__(self, cache: KmemCache, pfn: int, order: int, nid: int, address: int, objects: int):
        self.cache = cache
        self.pfn = pfn
        self.order = order
        self.nid = nid
        self.address = address
        self.objects = objects
        self.freelist = 0
        self.inuse = 0
        self.frozen = False
        self.next: Slab | None = None
        self.slabs = 0

    @property
    def size(self) -> int:
        """Bytes of all its frames."""
        return PAGE_SIZE << self.order

    def chain(self) -> Iterator[Slab]:
        """This slab and those behind it on a CPU's partial chain."""
        slab: Slab | None = self
        while slab is not None:
            yield slab
            slab = slab.next

    def __repr__(self) -> str:
        return (f"<Slab {self.pfn:#x} of {self.cache.name}: {self.inuse} of {self.objects} in use"
                f"{', frozen' if self.frozen else ''}>")


class KmemCacheCpu:
    """What one CPU has of a cache: a slab to allocate from, its free objects, and a chain of further slabs.

    ``tid`` changes with every operation: it tells a CPU that was interrupted between reading and writing that somebody was
    here in between. 5.17: struct kmem_cache_cpu.
    """

    __slots__ = ("cpu", "freelist", "tid", "slab", "partial", "stat")

    def __init__(self, cpu: int):
        self.cpu = cpu
        self.freelist = 0
        # TIDs of different CPUs never meet: they begin at the CPU's number and go on in steps of NR_CPUS.
        self.tid = cpu
        self.slab: Slab | None = None
        self.partial: Slab | None = None
        self.stat = dict.fromkeys(STAT_ITEMS, 0)


class KmemCacheNode:
    """What one node has of a cache: the slabs with free objects that no CPU owns, head first.

    ``full`` has the slabs without free objects, but only where SLAB_STORE_USER wants every object to be found.
    5.17: mm/slab.h, struct kmem_cache_node.
    """

    __slots__ = ("nid", "partial", "full", "nr_slabs", "total_objects", "address")

    def __init__(self, nid: int, address: int = 0):
        self.nid = nid
        self.address = address
        self.partial: OrderedDict[Slab, None] = OrderedDict()
        self.full: OrderedDict[Slab, None] = OrderedDict()
        self.nr_slabs = 0
        self.total_objects = 0

    @property
    def nr_partial(self) -> int:
        """How many slabs are on the partial list."""
        return len(self.partial)

    def add_partial(self, slab: Slab, tail: bool) -> None:
        """Put a slab at the head or the tail of the partial list (5.17: add_partial())."""
        self.partial[slab] = None
        if not tail:
            self.partial.move_to_end(slab, last=False)

    def remove_partial(self, slab: Slab) -> None:
        """Take a slab off the partial list (5.17: remove_partial())."""
        del self.partial[slab]


class KmemCache:
    """A cache of objects of one size. Create one with :meth:`.Slub.kmem_cache_create`.

    ``layout`` is what sizes and flags decided; ``object_size`` and ``inuse`` grow when a cache with larger objects is merged
    in. ``refcount`` counts the names that share the cache (``aliases``); below 0 nobody may join.
    5.17: include/linux/slub_def.h, struct kmem_cache.
    """

    __slots__ = ("slub", "name", "aliases", "layout", "object_size", "inuse", "ctor", "useroffset", "usersize", "refcount",
                 "random", "random_seq", "cpu_slab", "node", "debug", "has_cpu_partial", "address", "size", "offset", "flags",
                 "swabbed")

    def __init__(self, slub: Slub, name: str, layout: CacheLayout, *, ctor: Callable[[KmemCache, int], None] | None = None,
                 useroffset: int = 0, usersize: int = 0, random: int = 0):
        self.slub = slub
        self.name = name
        self.aliases: list[str] = []
        self.layout = layout
        self.size, self.offset, self.flags = layout.size, layout.offset, layout.flags
        self.object_size = layout.object_size
        self.inuse = layout.inuse
        self.ctor = ctor
        self.useroffset, self.usersize = useroffset, usersize
        self.refcount = 1
        #: The secret of a hardened free list; 0 where the kernel is not hardened.
        self.random = random
        #: A random order of the objects in a slab, as offsets; None: one after the other.
        self.random_seq: list[int] | None = None
        self.debug = bool(layout.flags & SLAB_DEBUG_FLAGS)
        self.has_cpu_partial = not self.debug
        self.cpu_slab = [KmemCacheCpu(cpu) for cpu in range(slub.memory.nr_cpus)]
        self.node: dict[int, KmemCacheNode] = {}
        #: Where this structure itself lies: an object of the cache "kmem_cache".
        self.address = 0

    @property
    def this_cpu(self) -> KmemCacheCpu:
        """The current CPU's part."""
        return self.cpu_slab[self.slub.memory.cpu]

    def stat(self, item: str) -> None:
        """Count an event on the current CPU (5.17: stat(), with CONFIG_SLUB_STATS)."""
        self.cpu_slab[self.slub.memory.cpu].stat[item] += 1

    def stats(self) -> dict[str, int]:
        """All counts, summed over the CPUs."""
        return {item: sum(c.stat[item] for c in self.cpu_slab) for item in STAT_ITEMS}

    # -- free pointers -----------------------------------------------------------------------------------------

    def freelist_ptr(self, pointer: int, ptr_addr: int) -> int:
        """What stands in memory for a free pointer, and the pointer behind what stands there: the same operation.

        Hardened, it is the pointer, a secret of the cache and the byte-reversed address of the place, all XORed: who
        overwrites it without knowing the secret makes it point nowhere. 5.17: mm/slub.c, freelist_ptr().
        """
        if self.slub.hardened:
            return pointer ^ self.random ^ swab64(ptr_addr)
        return pointer

    def get_freepointer(self, obj: int) -> int:
        """The free object behind a free object, 0 at the end (5.17: get_freepointer())."""
        place, slub = obj + self.offset, self.slub
        return self.freelist_ptr(slub.load_word(place), place) if slub.hardened else slub.load_word(place)

    def set_freepointer(self, obj: int, pointer: int) -> None:
        """Chain a free object to the next.

        Raise KernelBug if that is the object itself and the kernel is hardened: the object was freed twice in a row.
        5.17: set_freepointer().
        """
        place = obj + self.offset
        if not self.slub.hardened:
            self.slub.store_word(place, pointer)
            return
        if obj == pointer:
            raise KernelBug(f"kernel BUG at mm/slub.c: set_freepointer(): BUG_ON(object == fp): {self.name}: object "
                            f"{obj:#x} is the head of its free list already (double free)")
        self.slub.store_word(place, self.freelist_ptr(pointer, place))

    # -- objects in a slab ---------------------------------------------------------------------------------------

    def objects(self, slab: Slab) -> range:
        """The addresses of a slab's objects, given out or not (5.17: for_each_object())."""
        start = slab.address + self.layout.red_left_pad
        return range(start, start + slab.objects * self.size, self.size)

    def free_objects(self, slab: Slab, first: int) -> Iterator[int]:
        """The free objects chained from ``first``. Raise KernelBug when the chain leads nowhere or in a circle."""
        steps = 0
        while first:
            if steps > slab.objects:
                raise KernelBug(f"{self.name}: the free list of slab {slab.pfn:#x} runs in a circle")
            yield first
            first = self.get_freepointer(first)
            steps += 1

    def slabs_of_cpus(self) -> Iterator[Slab]:
        """The slabs that CPUs own."""
        for c in self.cpu_slab:
            if c.slab:
                yield c.slab
            if c.partial:
                yield from c.partial.chain()

    def __repr__(self) -> str:
        return (f"<KmemCache {self.name}: objects of {self.object_size} bytes every {self.size}, {self.layout.objects} in a slab "
                f"of order {self.layout.order}>")
