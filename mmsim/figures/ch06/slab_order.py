"""How large is a slab? The search for an order: how many objects are wanted, what each order would lose, and what is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.draw import Ask, Frame, Ledger, Legend, Range, Scene, Toggle, figure, grouped
from mmsim.draw import Entry as Line
from mmsim.errors import Errno, InvariantError
from mmsim.kernel.slab_layout import (
    SLAB_HWCACHE_ALIGN,
    SLAB_POISON,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    SLUB_MAX_ORDER,
    CacheLayout,
    calculate_alignment,
    calculate_sizes,
    get_order,
    order_objects,
)
from mmsim.units import PAGE_SIZE, fls

__all__ = ["attempts", "slab_order"]

DEBUG = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER
MOST_CELLS = 128


@dataclass(frozen=True, slots=True)
class Attempt:
    """One order looked at: how many objects are wanted, which part may be lost, and whether it is taken."""

    wanted: int
    fraction: int
    order: int
    objects: int
    lost: int
    taken: bool

    def words(self) -> str:
        """In a sentence."""
        lost = f"{grouped(self.lost)} of {grouped(PAGE_SIZE << self.order)} bytes are lost"
        limit = {16: "a sixteenth", 8: "an eighth", 4: "a quarter"}[self.fraction]
        verdict = f"no more than {limit}: taken" if self.taken else f"more than {limit}: too much"
        return f"Order {self.order} holds {self.objects} objects, and {lost}, {verdict}."


def attempts(size: int, nr_cpus: int) -> list[Attempt]:
    """The orders that :func:`calculate_order` looks at, in its order; the last one is taken if any is.

    None where not even two objects fit a block of order 3: then there is no search.
    """
    found: list[Attempt] = []
    wanted = min(4 * (fls(nr_cpus) + 1), order_objects(SLUB_MAX_ORDER, size))
    while wanted > 1:
        for fraction in (16, 8, 4):
            for order in range(get_order(wanted * size), SLUB_MAX_ORDER + 1):
                slab = PAGE_SIZE << order
                good = slab % size <= slab // fraction
                found.append(Attempt(wanted, fraction, order, slab // size, slab % size, good))
                if good:
                    return found
        wanted -= 1
    return found


class _Orders:
    """The orders 0 to 3 to scale: objects, and what is left over."""

    def __init__(self, size: int, wanted: int, now: Attempt | None, chosen: int):
        self.size, self.wanted, self.now, self.chosen = size, wanted, now, chosen

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        above = width < 480
        left = x if above else x + 66
        room = width - (left - x)
        top = y
        for order in range(SLUB_MAX_ORDER + 1):
            slab = PAGE_SIZE << order
            objects, lost = slab // self.size, slab % self.size
            wide = room * slab / (PAGE_SIZE << SLUB_MAX_ORDER)
            hot = self.now is not None and self.now.order == order
            taken = order == self.chosen
            name = f"{key}/{order}"
            words = f"{grouped(objects)} object{'' if objects == 1 else 's'}, {grouped(lost)} bytes lost"
            words += ", taken" if taken else ", too few" if objects < self.wanted else ""
            if hot:
                scene.rect(f"{name}.mark", x, top, width, 40, "mark", rx=2)
            scene.text(f"{name}.name", x + 2, top + 13, f"order {order}", "small", "strong" if taken or hot else "")
            text_at = x + 58 if above else left + 4
            scene.text(f"{name}.words", text_at, top + 13, words, "small", "strong" if taken else "muted", width=x + width - text_at)
            bar = top + 18
            scene.rect(f"{name}.bed", left, bar, wide, 18, "frame", f"{grouped(slab)} bytes")
            dim = " dim" if objects < self.wanted and not taken else ""
            step = wide * self.size / slab
            if objects <= MOST_CELLS and step >= 2:
                for place in range(objects):
                    scene.rect(f"{name}/{place}", left + place * step, bar, step, 18, f"kernel{dim}", f"object {place}")
            else:
                scene.rect(f"{name}/all", left, bar, wide * objects * self.size / slab, 18, f"kernel{dim}", f"{objects} objects")
            if lost:
                rest = wide * lost / slab
                scene.rect(f"{name}.lost", left + wide - rest, bar, max(rest, 1), 18, f"reserved{dim}", f"{lost} bytes lost")
            top += 44
        scene.height = max(scene.height, round(top, 1))
        return top - y


def _facts(layout: CacheLayout) -> Ledger:
    return Ledger([
        Line("object_size", layout.object_size, tip="what was asked for"), Line("size", layout.size, tip="from one object to the next"),
        Line("offset", layout.offset, tip="where in a free object the free pointer stands"), Line("order", layout.order),
        Line("objects", layout.objects), Line("min_partial", layout.min_partial, tip="partial slabs that a node keeps even if empty"),
        Line("cpu_partial", layout.cpu_partial, tip="free objects that a CPU may keep on its chain, as an estimate"),
        Line("cpu_partial_slabs", layout.cpu_partial_slabs, tip="slabs on a chain"),
    ])


@figure(
    "How large is a slab?",
    alt="The orders 0 to 3 as bars to scale, filled with objects of one size, with the bytes left over; the one that SLUB takes is "
        "named; below, the numbers of the cache.",
    params=[Range("size", 8, 16384, 5000, unit="bytes", log=True, label="object"), Range("cpus", 1, 256, 4, log=True, label="CPUs"),
            Toggle("align", False, label="cache lines", help="SLAB_HWCACHE_ALIGN: no object lies in more cache lines than it must"),
            Toggle("debug", False, label="slub_debug=ZPU")],
)
def slab_order(size: int, cpus: int, align: bool, debug: bool, width: float) -> Iterator[Frame]:
    """Steps through what :func:`mmsim.kernel.slab_layout.calculate_order` does, and holds its result against it."""
    flags = SLAB_HWCACHE_ALIGN * align | DEBUG * debug
    try:
        layout = calculate_sizes(size, calculate_alignment(flags, 8, size), flags, cpus)
    except Errno as error:
        scene = Scene(width)
        scene.note(str(error))
        yield Frame(scene, f"Objects of {grouped(size)} bytes: {error}")
        return
    tried = attempts(layout.size, cpus)
    if tried and tried[-1].taken and tried[-1].order != layout.order:
        raise InvariantError(f"the search told ends at order {tried[-1].order}, calculate_order() at {layout.order}")
    wish = 4 * (fls(cpus) + 1)
    fits = order_objects(SLUB_MAX_ORDER, layout.size)
    wanted = min(wish, fits)

    def shot(say: str, now: Attempt | None = None, chosen: int = -1, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        note = f"{cpus} CPU{'' if cpus == 1 else 's'}; at least {now.wanted if now else wanted} objects wanted"
        bars = _Orders(layout.size, now.wanted if now else wanted, now, chosen)
        scene.add(bars, "orders", f"{grouped(layout.size)} bytes from object to object", note)
        scene.add(Legend({"kernel": "objects", "reserved": "lost"}), "legend", gap=4)
        scene.add(_facts(layout), "facts", "The cache")
        return Frame(scene, say, ask=ask)

    apart = f", {grouped(layout.size)} from one to the next" if layout.size > size else ""
    lost, machine = layout.wasted, f"{cpus} CPU{'' if cpus == 1 else 's'}"
    bits = f"{fls(cpus)} bit{'' if cpus == 1 else 's'}"
    holds = f"{layout.objects} object{'' if layout.objects == 1 else 's'}"
    yield shot(f"Objects of {grouped(size)} bytes{apart}, on {machine}: slabs of order {layout.order} with {holds}, {grouped(lost)} "
               "bytes lost.", chosen=layout.order)
    less = f", but a block of order 3 holds only {fits}" if fits < wish else ""
    yield shot(
        f"More CPUs, more objects: {cpus} has {bits}, so 4 × ({fls(cpus)} + 1) = {wish} objects are wanted{less}. "
        f"{grouped(wanted * layout.size)} bytes need order {get_order(max(wanted, 1) * layout.size)} at least.",
        ask=Ask("Which order will be taken?", layout.order, "The lowest from there on that loses little enough.") if tried else None)
    if not tried:
        yield shot(f"Not even two objects fit a block of order 3: the slab holds one, in a block of order {layout.order}.",
                   chosen=layout.order)
    seen = tried if len(tried) <= 12 else [*tried[:8], *tried[-3:]]
    for place, attempt in enumerate(seen):
        gap = "Many attempts later: " if len(tried) > 12 and place == 8 else ""
        fewer = f"With {attempt.wanted} objects wanted: " if attempt.wanted < wanted else ""
        say = gap + fewer + attempt.words()
        yield shot(say, attempt, attempt.order if attempt.taken else -1)
    inside = "behind it" if layout.freeptr_outside_object else "in its middle"
    place_of = f"at offset {layout.offset}, {inside}"
    slabs = f"{layout.cpu_partial_slabs} slab{'' if layout.cpu_partial_slabs == 1 else 's'}"
    chain = f"a CPU may keep {layout.cpu_partial} free objects on its chain, which makes {slabs} if each is half full"
    chain = chain if layout.cpu_partial else "a debugged cache has no chains"
    yield shot(f"The rest follows: the free pointer stands {place_of}; {chain}; a node keeps {layout.min_partial} partial slabs.",
               chosen=layout.order)
