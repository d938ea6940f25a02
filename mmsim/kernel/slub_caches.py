"""Making, sharing and unmaking caches; the caches that are there from the start.

The allocator's own structures are objects too: the cache ``kmem_cache`` holds a struct kmem_cache for each cache, itself
included, and ``kmem_cache_node`` one part for each node and cache. So the first two caches have to be made by hand.

5.17: mm/slab_common.c, mm/slub.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsim import constants as c
from mmsim.errors import Errno, InputError, KernelBug, KernelPanic, errno_name
from mmsim.kernel import slab_layout as sl
from mmsim.kernel.kmalloc_caches import (
    KMALLOC_CGROUP,
    KMALLOC_DMA,
    KMALLOC_MAX_SIZE,
    KMALLOC_NORMAL,
    KMALLOC_RECLAIM,
    KMALLOC_SIZES,
    KMALLOC_TYPE_FLAGS,
    boot_cache_alignment,
    kmalloc_cache_name,
)
from mmsim.kernel.slab import KmemCache, KmemCacheNode, Slab
from mmsim.kernel.slub_alloc import slab_alloc
from mmsim.kernel.slub_debug import init_object, init_tracking, print_tracking, slab_err
from mmsim.kernel.slub_free import slab_free
from mmsim.kernel.slub_lists import flush_all, flush_cpu_slab
from mmsim.kernel.slub_pages import discard_slab, new_slab
from mmsim.units import align_up

if TYPE_CHECKING:
    from mmsim.kernel.slub import Slub

__all__ = ["Caches", "SlubDebug"]

SIZEOF_KMEM_CACHE_NODE = 64
#: Where the array of node pointers begins in struct kmem_cache.
OFFSETOF_KMEM_CACHE_NODES = 200
_DEBUG_LETTERS = {"f": sl.SLAB_CONSISTENCY_CHECKS, "z": sl.SLAB_RED_ZONE, "p": sl.SLAB_POISON, "u": sl.SLAB_STORE_USER,
                  "t": sl.SLAB_TRACE, "a": sl.SLAB_FAILSLAB}
_DEBUG_DEFAULT = sl.SLAB_CONSISTENCY_CHECKS | sl.SLAB_RED_ZONE | sl.SLAB_POISON | sl.SLAB_STORE_USER
_DEBUG_METADATA = sl.SLAB_RED_ZONE | sl.SLAB_POISON | sl.SLAB_STORE_USER
_PERMITTED = sum(sl.SLAB_FLAG_NAMES.values())


@dataclass(slots=True)
class SlubDebug:
    """The kernel parameter slub_debug=: flags for all caches, and for caches by name.

    Blocks are separated by ``;``, each has letters and, after a comma, names; ``*`` at a name's end matches the rest. A block
    without names is for all caches. 5.17: mm/slub.c, setup_slub_debug(), parse_slub_debug_flags(), kmem_cache_flags().

    >>> debug = SlubDebug.parse("FZ,kmalloc-*,dentry", print)
    >>> [hex(debug.flags_for(name, 0)) for name in ("kmalloc-64", "dentry", "filp")]
    ['0x500', '0x500', '0x0']
    """

    everywhere: int = 0
    blocks: list[tuple[int, list[str]]] | None = None
    #: Letter O: no debugging that would push a cache to a higher order.
    no_higher_order: bool = False

    @classmethod
    def parse(cls, text: str | None, printk: Callable[[str], None]) -> SlubDebug:
        """Read the parameter; None: it was not given, "": it was given without a value, which means all checks."""
        debug = cls(blocks=[])
        assert debug.blocks is not None
        if text is None:
            return debug
        if not text:
            debug.everywhere = _DEBUG_DEFAULT
            return debug
        for block in filter(None, text.split(";")):
            letters, comma, names = block.partition(",")
            flags = 0 if letters or not comma else _DEBUG_DEFAULT
            for letter in letters.lower():
                if letter == "-":
                    flags = 0
                elif letter == "o":
                    debug.no_higher_order = True
                elif letter in _DEBUG_LETTERS:
                    flags |= _DEBUG_LETTERS[letter]
                else:
                    printk(f"slub_debug option '{letter}' unknown. skipped")
            if comma:
                debug.blocks.append((flags, [name for name in names.split(",") if name]))
            else:
                debug.everywhere = flags
        return debug

    def flags_for(self, name: str, flags: int) -> int:
        """The flags of a cache that asks for ``flags``."""
        for block, names in self.blocks or ():
            for pattern in names:
                if name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern:
                    return flags | block
        # Caches of the checkers themselves do not store who used them.
        return flags | (self.everywhere & ~sl.SLAB_STORE_USER if flags & sl.SLAB_NOLEAKTRACE else self.everywhere)


class Caches:
    """The list of all caches, oldest first, and what makes new ones. Iterate over it to see each cache once."""

    def __init__(self, slub: Slub, *, freelist_random: bool, nomerge: bool, slub_debug: str | None):
        self.slub = slub
        self.freelist_random, self.nomerge = freelist_random, nomerge
        self.debug = SlubDebug.parse(slub_debug, slub.klog.printk)
        #: The kernel's list has the newest first.
        self.list: list[KmemCache] = []
        #: The kmalloc caches by kind and size index.
        self.kmalloc: dict[tuple[int, int], KmemCache] = {}
        self._boot()

    def __iter__(self) -> Iterator[KmemCache]:
        return iter(self.list)

    def find(self, name: str) -> KmemCache:
        """A cache by name or alias. Raise InputError if there is none."""
        for s in reversed(self.list):
            if s.name == name or name in s.aliases:
                return s
        raise InputError(f"there is no cache {name}; there are {', '.join(s.name for s in self.list)}")

    # -- boot --------------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        """5.17: mm/slub.c, kmem_cache_init(); mm/slab_common.c, create_kmalloc_caches()."""
        nodes = max(self.slub.memory.nodes) + 1
        self.kmem_cache_node = self._open("kmem_cache_node", SIZEOF_KMEM_CACHE_NODE, sl.SLAB_HWCACHE_ALIGN)
        self._init_nodes(self.kmem_cache_node)
        self.kmem_cache = self._open("kmem_cache", OFFSETOF_KMEM_CACHE_NODES + 8 * nodes, sl.SLAB_HWCACHE_ALIGN)
        self._init_nodes(self.kmem_cache)
        # Until now both structures were static: give each a place in the cache that holds such structures.
        for s in (self.kmem_cache, self.kmem_cache_node):
            s.address = slab_alloc(self.kmem_cache, c.GFP_NOWAIT | c._GFP_ZERO, None, "bootstrap")
            flush_cpu_slab(s, self.slub.memory.cpu)
            s.refcount = -1
            self.list.append(s)
        for kind in (KMALLOC_NORMAL, KMALLOC_CGROUP, KMALLOC_RECLAIM):
            # The two sizes in between come after the powers of two that they follow.
            for index in (3, 4, 5, 6, 1, 7, 2, *range(8, len(KMALLOC_SIZES))):
                self._new_kmalloc_cache(kind, index)
        for index in range(1, len(KMALLOC_SIZES)):
            self._new_kmalloc_cache(KMALLOC_DMA, index)
        if self.freelist_random:
            for s in reversed(self.list):
                self._init_random_seq(s)

    def _new_kmalloc_cache(self, kind: int, index: int) -> None:
        if kind == KMALLOC_CGROUP and not self.slub.memory.config.memcg:
            self.kmalloc[kind, index] = self.kmalloc[KMALLOC_NORMAL, index]
            return
        size = KMALLOC_SIZES[index]
        s = self._open(kmalloc_cache_name(kind, index), size, KMALLOC_TYPE_FLAGS[kind], usersize=size)
        s.address = slab_alloc(self.kmem_cache, c.GFP_NOWAIT | c._GFP_ZERO, None, "create_kmalloc_cache")
        self._init_nodes(s)
        if kind == KMALLOC_NORMAL and self.slub.memory.config.memcg:
            s.refcount = -1
        self.kmalloc[kind, index] = s
        self.list.append(s)

    def _open(self, name: str, size: int, flags: int, align: int | None = None,
              ctor: Callable[[KmemCache, int], None] | None = None, useroffset: int = 0, usersize: int = 0) -> KmemCache:
        """5.17: mm/slub.c, kmem_cache_open(), up to the parts for nodes."""
        slub = self.slub
        flags = self.debug.flags_for(name, flags)
        if align is None:
            align = boot_cache_alignment(size, flags)
        nr_cpus = slub.memory.nr_cpus
        random = slub.random.getrandbits(64) if slub.hardened else 0
        layout = sl.calculate_sizes(size, align, flags, nr_cpus, ctor is not None)
        if self.debug.no_higher_order and layout.min_order > sl.get_order(size):
            layout = sl.calculate_sizes(size, align, flags & ~_DEBUG_METADATA, nr_cpus, ctor is not None)
        return KmemCache(slub, name, layout, ctor=ctor, useroffset=useroffset, usersize=usersize, random=random)

    def _init_random_seq(self, s: KmemCache) -> None:
        """A random order of the slab's objects, by the shuffle of Fisher and Yates (5.17: freelist_randomize())."""
        count = s.layout.objects
        if count < 2 or s.random_seq is not None:
            return
        sequence = list(range(count))
        for index in range(count - 1, 0, -1):
            other = self.slub.random.getrandbits(32) % (index + 1)
            sequence[index], sequence[other] = sequence[other], sequence[index]
        s.random_seq = [index * s.size for index in sequence]

    def _init_nodes(self, s: KmemCache) -> bool:
        """Give the cache its part for each node. False without memory. 5.17: init_kmem_cache_nodes()."""
        for nid in self.slub.nodes_with_memory():
            if s is self.kmem_cache_node:
                if not self._early_node(s, nid):
                    return False
                continue
            address = slab_alloc(self.kmem_cache_node, c.GFP_KERNEL, nid, "init_kmem_cache_nodes")
            if not address:
                self._free_nodes(s)
                return False
            s.node[nid] = KmemCacheNode(nid, address)
        return True

    def _early_node(self, s: KmemCache, nid: int) -> bool:
        """The part of the cache that holds such parts: taken from a new slab by hand (5.17: early_kmem_cache_node_alloc())."""
        slab = new_slab(s, c.GFP_NOWAIT, nid)
        if slab is None:
            raise KernelBug("kernel BUG at mm/slub.c: early_kmem_cache_node_alloc(): BUG_ON(!slab)")
        address = slab.freelist
        slab.freelist = s.get_freepointer(address)
        if s.debug:
            init_object(s, address, True)
            init_tracking(s, address)
        slab.inuse, slab.frozen = 1, False
        n = s.node[nid] = KmemCacheNode(nid, address)
        n.nr_slabs, n.total_objects = 1, slab.objects
        n.add_partial(slab, tail=False)
        return True

    def _free_nodes(self, s: KmemCache) -> None:
        for n in s.node.values():
            self._free_structure(self.kmem_cache_node, n.address)
        s.node.clear()

    def _free_structure(self, s: KmemCache, address: int) -> None:
        slab = self.slub.slab_of(address)
        assert slab is not None
        slab_free(s, slab, address, "slab_kmem_cache_release")

    # -- create and share ----------------------------------------------------------------------------------------

    def create(self, name: str, size: int, align: int, flags: int, ctor: Callable[[KmemCache, int], None] | None,
               useroffset: int, usersize: int) -> KmemCache | None:
        """5.17: mm/slab_common.c, kmem_cache_create_usercopy()."""
        if size < 0 or align < 0 or align & align - 1:
            raise InputError(f"kmem_cache_create({name}): a size is not negative, an alignment a power of two")
        klog = self.slub.klog
        try:
            if not name or size > KMALLOC_MAX_SIZE:
                klog.printk(f"kmem_cache_create({name or '(null)'}) integrity check failed")
                raise Errno("EINVAL")
            if not size:
                raise KernelBug("divide error: 0000 [#1] PREEMPT SMP: calculate_order(): no object has 0 bytes")
            if " " in name:
                klog.warn(f"WARNING: mm/slab_common.c kmem_cache_sanity_check: the name {name!r} has a space")
            if flags & ~_PERMITTED:
                raise Errno("EINVAL")
            if not usersize and useroffset or size < usersize or size - usersize < useroffset:
                klog.warn("WARNING: mm/slab_common.c kmem_cache_create_usercopy: the region for user space is not in the object")
                usersize = useroffset = 0
            s = None if usersize else self._alias(name, size, align, flags, ctor)
            return s or self._create_cache(name, size, align, flags, ctor, useroffset, usersize)
        except Errno as error:
            text = f"kmem_cache_create_usercopy: Failed to create slab '{name}'. Error {-error.number}"
            if flags & sl.SLAB_PANIC:
                raise KernelPanic(text) from None
            klog.printk(f"kmem_cache_create_usercopy({name}) failed with error {-error.number}")
            return None

    def _create_cache(self, name: str, size: int, align: int, flags: int, ctor: Callable[[KmemCache, int], None] | None,
                      useroffset: int, usersize: int) -> KmemCache:
        """5.17: mm/slab_common.c, create_cache()."""
        address = slab_alloc(self.kmem_cache, c.GFP_KERNEL | c._GFP_ZERO, None, "create_cache")
        if not address:
            raise Errno("ENOMEM")
        try:
            s = self._open(name, size, flags, sl.calculate_alignment(flags, align, size), ctor, useroffset, usersize)
            if not self._init_nodes(s):
                raise Errno("EINVAL")
        except Errno as error:
            self._free_structure(self.kmem_cache, address)
            raise Errno("EINVAL", errno_name(error.number)) from None
        s.address = address
        if self.freelist_random:
            self._init_random_seq(s)
        self.list.append(s)
        return s

    def _alias(self, name: str, size: int, align: int, flags: int,
               ctor: Callable[[KmemCache, int], None] | None) -> KmemCache | None:
        """Let a new name share an existing cache, if one suits (5.17: mm/slub.c, __kmem_cache_alias())."""
        s = self.find_mergeable(name, size, align, flags, ctor is not None)
        if s is not None:
            s.refcount += 1
            s.aliases.append(name)
            # kzalloc() clears object_size bytes: those of the largest object that may come.
            s.object_size = max(s.object_size, size)
            s.inuse = max(s.inuse, align_up(size, sl.SIZEOF_POINTER))
        return s

    @staticmethod
    def unmergeable(s: KmemCache) -> bool:
        """Whether a cache never shares: it is checked, has a constructor, or a region for user space.

        5.17: mm/slab_common.c, slab_unmergeable().
        """
        return bool(s.flags & sl.SLAB_NEVER_MERGE) or s.ctor is not None or s.usersize > 0 or s.refcount < 0

    def find_mergeable(self, name: str, size: int, align: int, flags: int, has_ctor: bool = False) -> KmemCache | None:
        """The oldest cache whose slabs serve such objects too, with less than a word wasted; None: there is none.

        5.17: mm/slab_common.c, find_mergeable().
        """
        if self.nomerge or has_ctor:
            return None
        size = align_up(size, sl.SIZEOF_POINTER)
        align = sl.calculate_alignment(flags, align, size)
        size = align_up(size, align)
        flags = self.debug.flags_for(name, flags)
        if flags & sl.SLAB_NEVER_MERGE:
            return None
        for s in self.list:
            if (not self.unmergeable(s) and size <= s.size and not (flags ^ s.flags) & sl.SLAB_MERGE_SAME
                    and s.size % align == 0 and s.size - size < sl.SIZEOF_POINTER):
                return s
        return None

    # -- unmake --------------------------------------------------------------------------------------------------

    def destroy(self, s: KmemCache, caller: str) -> bool:
        """5.17: mm/slab_common.c, kmem_cache_destroy(); mm/slub.c, __kmem_cache_shutdown()."""
        if s not in self.list:
            raise InputError(f"cache {s.name} does not exist any more")
        s.refcount -= 1
        if s.refcount:
            return True
        flush_all(s)
        left = False
        for n in s.node.values():
            empty: list[Slab] = []
            for slab in list(n.partial):
                if slab.inuse:
                    self._list_objects(s, slab)
                else:
                    n.remove_partial(slab)
                    empty.append(slab)
            for slab in reversed(empty):
                discard_slab(s, slab)
            left = left or n.nr_partial > 0 or n.nr_slabs > 0
        if left:
            self.slub.klog.warn(f"WARNING: CPU: {self.slub.memory.cpu} PID: {self.slub.pid} at mm/slab_common.c "
                                f"kmem_cache_destroy {s.name}: Slab cache still has objects when called from {caller}")
            return False
        if s.flags & sl.SLAB_TYPESAFE_BY_RCU:
            self.slub.rcu_barrier()
        self.list.remove(s)
        self._free_nodes(s)
        self._free_structure(self.kmem_cache, s.address)
        return True

    def _list_objects(self, s: KmemCache, slab: Slab) -> None:
        """Name the objects that somebody forgot (5.17: list_slab_objects())."""
        slab_err(s, slab, f"Objects remaining in {s.name} on __kmem_cache_shutdown()")
        free = set(s.free_objects(slab, slab.freelist))
        for obj in s.objects(slab):
            if obj not in free:
                self.slub.klog.printk(f"Object 0x{obj:016x} @offset={obj - slab.address}")
                print_tracking(s, obj)
