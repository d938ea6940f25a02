"""Which allocator? One request, five ways to serve it: what each takes, what it gives, and where it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import log2

from mmsim.constants import _GFP_NORETRY, _GFP_NOWARN, GFP_ATOMIC, GFP_KERNEL, MIGRATE_MOVABLE, ZONE_NORMAL
from mmsim.draw import Ask, Choice, Frame, Legend, Range, Scene, figure, grouped
from mmsim.figures.ch06.kernel_atlas import size_text
from mmsim.kernel.kmalloc_caches import KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, kmalloc_layout, kmalloc_size_roundup
from mmsim.kernel.percpu import PCPU_MIN_UNIT_SIZE, PerCpu
from mmsim.kernel.slab_layout import get_order
from mmsim.kernel.slub import Slub
from mmsim.kernel.vmalloc import Vmalloc
from mmsim.physical.free import free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.zone import Zone
from mmsim.physical.zonelist import build_all_zonelists
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, align_up

__all__ = ["Offer", "offers", "share_of_slab", "vmalloc_cost", "which_allocator"]

CPUS = 4
STATES = {"whole": "in large blocks", "fragmented": "in single frames"}
NAMES = ("kmalloc", "alloc_pages", "vmalloc", "kvmalloc", "alloc_percpu")
MARGIN = 6 * MIB
BOOT_FRAMES = 1024


@dataclass(frozen=True, slots=True)
class Offer:
    """What one allocator does with the request: bytes of memory taken (0: refused), and why or how."""

    name: str
    taken: int
    how: str
    short: str = ""


def _machine(frames: int, fragmented: bool) -> Slub:
    """One zone of free frames, in large blocks or, fragmented, every second frame only."""
    frames = align_up(frames, 512)
    memory = PhysicalMemory(frames, nr_cpus=CPUS)
    node = memory.add_node(0, 0, frames, frames)
    node.zones[ZONE_NORMAL] = Zone(memory, 0, ZONE_NORMAL, 0, frames, frames)
    memory.frames.pageblock_mt[:] = bytes((MIGRATE_MOVABLE,)) * len(memory.frames.pageblock_mt)
    # The kernel comes up with memory in one piece; that it is fragmented is the work of later days.
    whole = frames if not fragmented else BOOT_FRAMES
    for pfn in range(0, whole, 512):
        free_pages_core(memory, pfn, 9)
    build_all_zonelists(memory)
    slub = Slub(memory, PageAllocator(memory))
    if fragmented:
        for order in range(10, -1, -1):
            while slub.allocator.alloc_pages(GFP_KERNEL | _GFP_NOWARN | _GFP_NORETRY, order) is not None:
                pass
        for pfn in range(whole, frames, 2):
            free_pages_core(memory, pfn, 0)
    return slub


def share_of_slab(size: int, cpus: int = CPUS) -> int:
    """The bytes of its slab that an object of kmalloc() costs, what no object can use shared among all; rounded up."""
    layout = kmalloc_layout(kmalloc_size_roundup(size), 0, cpus)
    return -(-(PAGE_SIZE << layout.order) // layout.objects)


def vmalloc_cost(size: int) -> int:
    """Bytes of memory for an area: its pages, their list, the two structures, an entry of a page table for each page."""
    pages = -(-size // PAGE_SIZE)
    listed = align_up(8 * pages, PAGE_SIZE) if 8 * pages > PAGE_SIZE else share_of_slab(8 * pages)
    return pages * PAGE_SIZE + listed + share_of_slab(72) + 64 + 8 * pages


@lru_cache(maxsize=64)
def offers(size: int, context: str, state: str) -> tuple[Offer, ...]:
    """Ask all five for ``size`` bytes on a machine of that state, each on a machine of its own."""
    gfp = GFP_KERNEL if context == "GFP_KERNEL" else GFP_ATOMIC
    atomic, fragmented = gfp == GFP_ATOMIC, state == "fragmented"
    pages = -(-size // PAGE_SIZE)
    frames = (pages + (pages >> 6) + (MARGIN >> PAGE_SHIFT)) * (2 if fragmented else 1) + BOOT_FRAMES
    slub = _machine(frames, fragmented)
    found = []
    if size > KMALLOC_MAX_SIZE:
        found.append(Offer("kmalloc", 0, f"refused: more than {size_text(KMALLOC_MAX_SIZE)}, the largest block", "over 4 MiB"))
    else:
        addr = slub.kmalloc(size, gfp)
        order = get_order(size)
        if addr is None:
            why = f"NULL: no free block of order {order}, and nobody here reclaims or compacts"
            found.append(Offer("kmalloc", 0, why, f"no block of order {order}"))
        elif size <= KMALLOC_MAX_CACHE_SIZE:
            cache = slub.cache_of(addr)
            slab = slub.slab_of(addr)
            assert slab is not None
            short = " of the lowest order, as memory is fragmented" if slab.order < cache.layout.order else ""
            found.append(Offer("kmalloc", share_of_slab(size),
                               f"an object of {cache.name}; {slab.objects} in a slab of order {slab.order}{short}", cache.name))
        else:
            found.append(Offer("kmalloc", PAGE_SIZE << order, f"above 8 KiB: a block of order {order} straight from the page allocator",
                               f"block of order {order}"))
    order = get_order(size)
    pfn = slub.allocator.alloc_pages(gfp, order) if order <= 10 else None
    if order > 10:
        found.append(Offer("alloc_pages", 0, f"refused: order {order}, and the largest is 10", "order over 10"))
    elif pfn is None:
        found.append(Offer("alloc_pages", 0, f"NULL: no free block of order {order}", f"no block of order {order}"))
    else:
        found.append(Offer("alloc_pages", PAGE_SIZE << order, f"a block of order {order}: contiguous for a device, too", f"order {order}"))
    if atomic:
        found += [Offer("vmalloc", 0, "not in an interrupt: it allocates page tables with GFP_KERNEL and may sleep", "may sleep"),
                  Offer("kvmalloc", 0, "not for GFP_ATOMIC: it may have to call vmalloc()", "may sleep"),
                  Offer("alloc_percpu", 0, "takes a mutex and may sleep; alloc_percpu_gfp() can try without", "may sleep")]
        return tuple(found)
    region = Vmalloc(_machine(frames, fragmented))
    got = region.vmalloc(size)
    frames_text = f"{grouped(pages)} {'frame' if pages == 1 else 'frames'}"
    found.append(Offer("vmalloc", vmalloc_cost(size), f"{frames_text} from anywhere, mapped in a row, and a guard page of addresses",
                       frames_text) if got is not None
                 else Offer("vmalloc", 0, "NULL: not enough frames", "no frames"))
    mixed = Vmalloc(_machine(frames, fragmented))
    both = mixed.kvmalloc(size)
    if both is None:
        found.append(Offer("kvmalloc", 0, "NULL from both", "NULL"))
    elif mixed.layout.is_vmalloc_addr(both):
        found.append(Offer("kvmalloc", vmalloc_cost(size), "kmalloc() failed without a fight, so vmalloc() did it", "from vmalloc"))
    else:
        found.append(Offer("kvmalloc", found[0].taken, "kmalloc() had it", "from kmalloc"))
    found.append(_percpu(size))
    return tuple(found)


def _percpu(size: int) -> Offer:
    """alloc_percpu() on a machine of its own, whose first chunk is that of the recorded kernel."""
    if size > PCPU_MIN_UNIT_SIZE:
        return Offer("alloc_percpu", 0, f"refused with a warning: more than {size_text(PCPU_MIN_UNIT_SIZE)} for each CPU", "over 32 KiB")
    region = Vmalloc(_machine(2048, False))
    base = region.allocator.alloc_pages(GFP_KERNEL, 8)
    assert base is not None
    percpu = PerCpu(region, static_size=170048, reserved_size=0, dynamic_size=30656, unit_size=49 * PAGE_SIZE,
                    base=region.layout.page_address(base))
    addr = percpu.alloc(size)
    if addr is None:
        return Offer("alloc_percpu", 0, "NULL", "NULL")
    where = "the first chunk" if not region.layout.is_vmalloc_addr(addr) else "a new chunk at the top of the vmalloc region"
    return Offer("alloc_percpu", align_up(size, 4) * CPUS, f"a copy for each of {CPUS} CPUs, in {where}", f"{CPUS} copies")


class _Rows:
    """A bar for each allocator: what it takes; a line: what was asked for."""

    def __init__(self, found: tuple[Offer, ...], size: int, hot: str):
        self.found, self.size, self.hot = found, size, hot

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        above = width < 480
        left = x if above else x + 112
        room = x + width - left - (0 if above else 196)
        most = max([offer.taken for offer in self.found] + [self.size])
        line = left + room * self.size / most
        top = y + 16
        asked = f"asked for: {_bytes(self.size)}"
        scene.text(f"{key}.asked", min(max(line, left + 60), left + room - 40) if not above else x, y + 11, asked, "small", "strong",
                   "start" if above else "middle")
        start = top
        for offer in self.found:
            name = f"{key}/{offer.name}"
            hot = offer.name == self.hot
            if hot:
                scene.rect(f"{name}.mark", x, top, width, 30 if not above else 50, "mark", rx=2)
            scene.text(f"{name}.name", x + 2, top + 19 if not above else top + 13, f"{offer.name}()", "code", "strong" if hot else "")
            bar = top + 5 if not above else top + 22
            if offer.taken:
                wide = room * offer.taken / most
                use = room * min(self.size, offer.taken) / most
                scene.rect(f"{name}.bar", left, bar, max(wide, 1.5), 20, "reserved", f"takes {grouped(offer.taken)} bytes")
                asked_for = f"of which {grouped(min(self.size, offer.taken))} were asked for"
                scene.rect(f"{name}.use", left, bar, max(use, 1), 20, "kernel", asked_for)
                words = f"{_bytes(offer.taken)}, {offer.short}"
            else:
                scene.rect(f"{name}.bar", left, bar, room, 20, "panel", offer.how)
                words = offer.short
            if above:
                scene.line(f"{name}.line", line, bar - 2, line, bar + 22, "wire lit", asked)
            cls = "" if offer.taken else "warn"
            if above:
                scene.text(f"{name}.words", x + width, top + 13, words, "small", cls, "end", width=width - 112)
                top += 52
            else:
                scene.text(f"{name}.words", left + room + 10, top + 19, words, "small", cls, width=186)
                top += 34
        if not above:
            scene.line(f"{key}.line", line, start, line, top - 4, "wire lit", asked)
        scene.height = max(scene.height, round(top, 1))
        return top - y


def _bytes(size: int) -> str:
    return f"{grouped(size)} bytes" if size < 10_000 else size_text(size)


class _Loss:
    """Which part of what is taken was not asked for, by the size of the request, for three allocators."""

    KINDS = (("kmalloc", "kernel", "wire lit"), ("vmalloc", "hot", "wire accent"))

    def __init__(self, size: int):
        self.size = size

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        left, room, high = x + 44, width - 52, 110.0
        sizes = sorted({round(2 ** (step / 8)) for step in range(0, 26 * 8 + 1)})

        def at(size: int) -> float:
            return left + room * log2(size) / 26

        for part in (0, 0.5, 1):
            level = y + 4 + high * (1 - part)
            scene.line(f"{key}.grid{part}", left, level, left + room, level, "grid")
            scene.text(f"{key}.label{part}", left - 6, level + 4, f"{part:.0%}", "small", "muted", "end")
        for power, label in ((0, "1"), (6, "64"), (12, "4K"), (18, "256K"), (22, "4M"), (26, "64M")):
            scene.line(f"{key}.tick{power}", at(1 << power), y + 4 + high, at(1 << power), y + 8 + high, "axis")
            anchor = "start" if not power else "end" if power == 26 else "middle"
            scene.text(f"{key}.at{power}", at(1 << power), y + 21 + high, label, "small", "muted", anchor)
        for name, _, cls in self.KINDS:
            points = []
            for size in sizes:
                if name == "kmalloc":
                    if size > KMALLOC_MAX_SIZE:
                        break
                    taken = share_of_slab(size) if size <= KMALLOC_MAX_CACHE_SIZE else PAGE_SIZE << get_order(size)
                else:
                    taken = vmalloc_cost(size)
                points.append(f"{at(size):.4g} {y + 4 + high * (size / taken):.4g}")
            scene.path(f"{key}/{name}", "M" + "L".join(points), cls, f"{name}: part of what it takes that was not asked for", y + high)
        scene.text(f"{key}/kmalloc.t", left + room, y + 34, "kmalloc()", "small", "strong", "end")
        scene.text(f"{key}/vmalloc.t", at(12), y + 24, "vmalloc()", "small", "accent")
        scene.line(f"{key}.now", at(self.size), y, at(self.size), y + 8 + high, "wire warn", f"{self.size} bytes")
        scene.height = max(scene.height, round(y + 28 + high, 1))
        return high + 28


def _advice(size: int, context: str, found: tuple[Offer, ...]) -> str:
    usable = {offer.name: offer for offer in found if offer.taken}
    if not {"kmalloc", "vmalloc", "alloc_pages"} & set(usable):
        return "Nobody can serve this; the caller must do with less, or do it where it may sleep."
    if size <= KMALLOC_MAX_CACHE_SIZE and "kmalloc" in usable:
        lost = usable["kmalloc"].taken - size
        return (f"kmalloc() serves it from a slab and loses {grouped(lost)} byte{'' if lost == 1 else 's'}; vmalloc() would take "
                "whole pages.")
    if "kmalloc" not in usable:
        return "No block is large enough, so only scattered frames can do it: vmalloc(), or kvmalloc(), which finds out by itself."
    if context == "GFP_ATOMIC":
        return "Where nobody may sleep, only blocks in one piece are to be had, and a failure must be expected."
    lost = usable["kmalloc"].taken - size
    return (f"kmalloc() gives a whole block and loses {size_text(lost) if lost >= 1024 else _bytes(lost)}; vmalloc() takes single "
            "frames. kvmalloc() tries the first, and falls back.")


@figure(
    "Which allocator?",
    alt="For one request a bar for each of kmalloc, alloc_pages, vmalloc, kvmalloc and alloc_percpu: bytes taken against bytes asked for; "
        "below, the part lost by request size.",
    params=[Range("size", 1, 64 * MIB, 20_000, log=True, unit="bytes", label="request"),
            Choice("context", {"GFP_KERNEL": "GFP_KERNEL, may sleep", "GFP_ATOMIC": "GFP_ATOMIC, may not"}, label="caller"),
            Choice("state", STATES, "fragmented", label="free memory")],
)
def which_allocator(size: int, context: str, state: str, width: float) -> Iterator[Frame]:
    """Asks :mod:`mmsim.kernel` on small machines of four CPUs; :func:`offers` does the work."""
    found = offers(size, context, state)
    refused = [offer for offer in found if not offer.taken]

    def shot(say: str, hot: str = "", ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        scene.add(_Rows(found, size, hot), "rows", f"{_bytes(size)}, {context}", f"free memory {STATES[state]}, {CPUS} CPUs")
        scene.add(Legend({"kernel": "asked for", "reserved": "taken besides"}), "legend", gap=4)
        scene.add(_Loss(size), "loss", "Part of what is taken that nobody asked for", "by the size of the request; red line: this one")
        return Frame(scene, say, ask=ask)

    who = " and ".join(f"{offer.name}()" for offer in refused[:-1][:2] + refused[-1:]) if len(refused) < 4 else "most of them"
    yield shot(f"{_bytes(size)}, {context}, free memory {STATES[state]}. {_advice(size, context, found)}"
               + (f" Refused by {who}." if refused else ""))
    for place, offer in enumerate(found):
        ask = None
        if place + 1 < len(found) and found[place + 1].name == "kvmalloc" and found[place + 1].taken:
            taken = found[place + 1]
            source = "vmalloc()" if taken.short == "from vmalloc" else "kmalloc()"
            ask = Ask(f"kvmalloc({grouped(size)}): from where does it take the memory?", source, taken.how, ["kmalloc()", "vmalloc()"])
        cost = f" It takes {_bytes(offer.taken)}." if offer.taken else ""
        yield shot(f"{offer.name}(): {offer.how}.{cost}", offer.name, ask)
