"""SLUB machine: CPUs, slabs and lists of one cache, and what every request moves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mmsim.draw import (
    Ask,
    Choice,
    Entry,
    Frame,
    Ledger,
    Legend,
    Operation,
    Operations,
    Range,
    Scene,
    Toggle,
    figure,
    text_width,
)
from mmsim.errors import InputError, KernelError
from mmsim.figures.ch06.machines import small_kernel
from mmsim.kernel.slab import KmemCache, Slab
from mmsim.kernel.slub import Slub

__all__ = ["Board", "slub_machine"]

DEFAULT = """\
alloc 0
alloc 0
free A0 cpu=0
alloc 0             # last in, first out
alloc 0 count=7     # the slab runs out
free A3 cpu=1       # another CPU frees
free A4 cpu=0       # and the first one
alloc 1
alloc 0 count=32
free B0 cpu=1
free C0 cpu=1
free D0 cpu=1       # the chain is long enough
alloc 0 count=7
alloc 0             # own slab used up, no chain
free F cpu=0        # empty, and nobody notices
shrink
"""
VERBS = {
    "alloc": "cpu:int [count:int] -- this CPU allocates so many objects",
    "free": "object:word [cpu:int] -- a CPU frees an object such as A3, or all of slab A",
    "flush": "-- take from all CPUs what they hold",
    "shrink": "-- flush, give empty slabs back, sort the node's list",
}
#: What the ledger shows of the counters, in this order.
COUNTERS = ("alloc_fastpath", "alloc_slowpath", "alloc_refill", "alloc_slab", "cpu_partial_alloc", "alloc_from_partial",
            "free_fastpath", "free_slowpath", "free_frozen", "cpu_partial_free", "cpu_partial_drain", "free_slab")
SHOWN_CPUS = 4
MOST_COUNT = 2000
#: So many allocations of one line are told one by one; more in one sentence.
TOLD = 2


def letters(number: int) -> str:
    """A, B, … Z, AA, AB, …"""
    text = ""
    while True:
        number, rest = divmod(number, 26)
        text = chr(65 + rest) + text
        if not number:
            return text
        number -= 1


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _on(place: str) -> str:
    return f"the slab of {place}" if place.startswith("CPU") else f"on {place}"


@dataclass(slots=True)
class Board:
    """One cache of a small kernel, with names for its slabs and objects, and a count of what took the node's lock."""

    slub: Slub
    cache: KmemCache
    names: dict[Slab, str] = field(default_factory=dict)
    ever: int = 0
    given_back: int = 0
    locked: int = 0

    @classmethod
    def of(cls, size: int, cpus: int, chain: int = -1, hardened: bool = False) -> Board:
        """A new cache of ``size`` bytes; ``chain`` is how many slabs a CPU may keep (-1: what the kernel computes)."""
        slub = small_kernel(8192, cpus, hardened=hardened, nomerge=True)
        cache = slub.kmem_cache_create("figure", size)
        assert cache is not None
        if chain >= 0:
            cache.layout = replace(cache.layout, cpu_partial_slabs=chain)
            cache.has_cpu_partial = chain > 0
        return cls(slub, cache)

    def look(self) -> None:
        """Name the slabs that are new, and count those that are gone."""
        now = [slab for slab in self.slub.slabs.values() if slab.cache is self.cache]
        for slab in now:
            if slab not in self.names:
                self.names[slab] = letters(self.ever)
                self.ever += 1
        gone = [slab for slab in self.names if slab not in now]
        self.given_back += len(gone)
        for slab in gone:
            del self.names[slab]

    @property
    def slabs(self) -> list[Slab]:
        """The cache's slabs, each with a name, oldest first."""
        self.look()
        return sorted(self.names, key=lambda slab: (len(self.names[slab]), self.names[slab]))

    def name(self, obj: int) -> str:
        """An object's name: its slab's letter and its place."""
        slab = self.slub.slab_of(obj)
        assert slab is not None
        return f"{self.names[slab]}{(obj - slab.address) // self.cache.size}"

    def find(self, word: str) -> tuple[Slab, int | None]:
        """The slab and place that a name such as A3 or A stands for. Raise InputError for an unknown one."""
        letter = word.rstrip("0123456789")
        slab = next((slab for slab in self.slabs if self.names[slab] == letter.upper()), None)
        if slab is None:
            raise InputError(f"there is no slab {letter or word}; there are {', '.join(self.names.values()) or 'none yet'}")
        digits = word[len(letter):]
        if digits and int(digits) >= slab.objects:
            raise InputError(f"slab {letter} has the objects 0 to {slab.objects - 1}")
        return slab, int(digits) if digits else None

    def used(self, slab: Slab) -> list[int]:
        """The objects of a slab that are given out."""
        free = set(self.slub.free_of(self.cache)[slab.pfn])
        return [obj for obj in self.cache.objects(slab) if obj not in free]

    def place(self, slab: Slab) -> str:
        """Where a slab is, in words."""
        for cpu in self.cache.cpu_slab:
            if cpu.slab is slab:
                return f"CPU {cpu.cpu}"
            if cpu.partial is not None and slab in cpu.partial.chain():
                return f"the chain of CPU {cpu.cpu}"
        return "the node's list" if any(slab in n.partial for n in self.cache.node.values()) else "no list"

    # -- requests --------------------------------------------------------------------------------------------

    def alloc(self, cpu: int) -> str:
        """Allocate one object on a CPU; say how."""
        cache = self.cache
        self.slub.memory.run_on(cpu)
        own, before, listed = cache.cpu_slab[cpu].slab, cache.stats(), cache.node[0].nr_partial
        waiting = len(list(cache.free_objects(own, own.freelist))) if own is not None else 0
        obj = self.slub.kmem_cache_alloc(cache)
        if obj is None:
            raise InputError("the page allocator has no block left for a slab")
        self.look()
        moved = {key: value - before[key] for key, value in cache.stats().items()}
        what = f"CPU {cpu} allocates {self.name(obj)}"
        if moved["alloc_fastpath"]:
            return f"{what}: it was the first free object on the CPU's own list. No lock, one instruction that compares and exchanges."
        used_up = f"slab {self.names[own]} is used up and now on no list; " if own is not None and moved["deactivate_bypass"] else ""
        slab = self.names[self.slub.slabs[cache.cpu_slab[cpu].slab.pfn]]  # type: ignore[union-attr]
        if moved["alloc_slab"]:
            how = f"there is no partial slab anywhere, so slab {slab}, {self.cache.layout.objects} objects, comes from the page allocator"
        elif moved["cpu_partial_alloc"]:
            how = f"the head of its chain, slab {slab}, becomes its slab"
        elif moved["alloc_from_partial"]:
            self.locked += bool(listed)
            more = moved["cpu_partial_node"]
            how = f"under the lock it takes slab {slab} from the node's list" + (f", and {more} more for its chain" if more else "")
        else:
            how = f"its own list was empty, but others had freed {_plural(waiting, 'object')} of its slab {slab}, and it takes those over"
        return f"{what} on the slow path: {used_up}{how}."

    def free(self, slab: Slab, place: int, cpu: int) -> str:
        """Free an object on a CPU; say what happens to its slab. Raise InputError if nobody has it."""
        cache, obj = self.cache, self.cache.objects(slab)[place]
        name = self.names[slab]
        if obj not in self.used(slab):
            raise InputError(f"{name}{place} is free already: a kernel without slub_debug would put it on a list twice")
        self.slub.memory.run_on(cpu)
        before, frozen, prior, inuse = cache.stats(), slab.frozen, slab.freelist, slab.inuse
        place_now, listed = self.place(slab), cache.node[0].nr_partial
        where = _on(place_now)
        self.slub.kmem_cache_free(cache, obj)
        self.look()
        moved = {key: value - before[key] for key, value in cache.stats().items()}
        what = f"CPU {cpu} frees {name}{place}"
        if moved["free_fastpath"]:
            return f"{what}, an object of its own slab: it becomes the first on the CPU's list."
        # 5.17, __slab_free(): the lock is taken for a slab of the node that was full or is now empty.
        if not frozen and (inuse == 1 or not prior and not cache.has_cpu_partial) and not moved["cpu_partial_free"]:
            self.locked += 1
        if moved["free_frozen"]:
            return f"{what}: slab {name} is frozen, it is {where}. The object goes on the slab's own list, and nothing else happens."
        keep = cache.layout.min_partial
        if moved["cpu_partial_free"]:
            text = f"{what}: slab {name} was full, on no list. It is frozen and becomes the head of the chain of CPU {cpu}"
            if moved["cpu_partial_drain"]:
                self.locked += 1
                limit = self.cache.layout.cpu_partial_slabs
                return (f"{text}; the {_plural(limit, 'slab')} that the chain had already, as many as it may, move to the "
                        "node's list under the lock.")
            return f"{text}. The node's list is not touched."
        if moved["free_slab"]:
            return (f"{what}: slab {name} is empty, and the node has {listed} partial slabs, no fewer than it must keep "
                    f"({keep}). Its pages go back.")
        if moved["free_add_partial"]:
            return f"{what}: slab {name} was full; under the lock it goes to the tail of the node's list."
        if slab.inuse == 0:
            return f"{what}: slab {name} is empty, but the node has only {_plural(listed, 'slab')} and keeps up to {keep}."
        return f"{what}: slab {name} stays on the node's list. Only the slab itself was written."


class _Lanes:
    """The slabs, each in the lane of its place: CPUs, the node's list, no list."""

    def __init__(self, board: Board, moving: set[int], cpus: list[int]):
        self.board, self.moving, self.cpus = board, moving, cpus
        cache = board.cache
        self.slabs = board.slabs
        self.free = board.slub.free_of(cache)
        self.of_cpu = {obj for cpu in cache.cpu_slab if cpu.slab is not None for obj in cache.free_objects(cpu.slab, cpu.freelist)}
        objects = cache.layout.objects
        self.cell = 14.0 if objects <= 8 else 8.5 if objects <= 16 else 5.0 if objects <= 32 else 0.0
        self.wide = max(self.cell * objects if self.cell else 120.0, 92.0)

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        cache, names = self.board.cache, self.board.names
        above = width < 480
        left = x if above else x + 96
        room = width - (left - x)
        top = y
        lanes: list[tuple[str, str, list[Slab], str]] = []
        for number in self.cpus:
            cpu = cache.cpu_slab[number]
            chain = list(cpu.partial.chain()) if cpu.partial is not None else []
            following = [self.board.name(obj) for obj in cache.free_objects(cpu.slab, cpu.freelist)] if cpu.slab else []
            shown = " → ".join(following[:5]) + (" → …" if len(following) > 5 else "")
            lanes.append((f"CPU {number}", "its slab", [cpu.slab] if cpu.slab else [],
                          f"own list: {shown or 'empty'}   tid {cpu.tid}"))
            lanes.append(("", "its chain", chain, ""))
        node = list(cache.node[0].partial)
        owned = set(cache.slabs_of_cpus()) | set(node)
        lanes.append(("node 0", "its list", node, ""))
        lanes.append(("", "on no list", [slab for slab in self.slabs if slab not in owned], ""))
        for number, (actor, place, slabs, note) in enumerate(lanes):
            name = f"{key}/lane{number}"
            if actor and number:
                scene.line(f"{name}.rule", x, top, x + width, top, "grid")
                top += 7
            if above:
                owner = actor or lanes[number - 1][0]
                scene.text(f"{name}.name", x, top + 12, place if place == "on no list" else f"{owner}: {place}", "small", "muted")
                top += 17
            else:
                if actor:
                    scene.text(f"{name}.actor", x, top + 14, actor, "small", "strong")
                scene.text(f"{name}.name", left - 10, top + 14, place, "small", "muted", "end")
            at, start = left, top
            for slab in slabs:
                if at + self.wide > x + width and at > left:
                    at, top = left, top + 44
                self._slab(scene, f"{key}/{names[slab]}", slab, at, top)
                at += self.wide + 14
            if not slabs:
                scene.text(f"{name}.none", left, top + 14, "none", "small", "muted")
            high = 42.0 if slabs else 20.0
            if note:
                if not above and slabs and at + text_width(note, "small") < x + width:
                    scene.text(f"{name}.note", at + 4, top + 28, note, "small", "muted")
                else:
                    scene.text(f"{name}.note", left, top + high + 10, note, "small", "muted", width=room)
                    high += 16
            top += high + 4
            assert top > start
        scene.height = max(scene.height, round(top, 1))
        return top - y

    def _slab(self, scene: Scene, key: str, slab: Slab, x: float, y: float) -> None:
        cache = self.board.cache
        free = set(self.free[slab.pfn])
        out = slab.objects - len(free)
        name = self.board.names[slab]
        words = f"{name}  {out}/{slab.objects}" + ("  frozen" if slab.frozen else "")
        tip = (f"slab {name}: frame {slab.pfn:#x}, order {slab.order}, {out} of {slab.objects} objects given out; the counter inuse says "
               f"{slab.inuse}")
        scene.text(f"{key}.head", x, y + 12, words, "small", "strong", tip=tip)
        top = y + 17
        if self.cell:
            for place, obj in enumerate(cache.objects(slab)):
                role = "kernel" if obj not in free else "hot" if obj in self.of_cpu else "free"
                mark = "focus" if obj in self.moving else ""
                label = str(place) if self.cell >= 14 else ""
                scene.rect(f"{key}/{place}", x + place * self.cell, top, self.cell, 19, f"{role} {mark}".strip(),
                           f"{name}{place} at {obj:#x}: {'given out' if role == 'kernel' else 'free'}")
                if label:
                    scene.text(f"{key}/{place}.t", x + place * self.cell + self.cell / 2, top + 13.5, label, "small",
                               f"on-{role}", "middle")
            return
        own = len(free & self.of_cpu)
        parts = (("kernel", out), ("hot", own), ("free", len(free) - own))
        at = x
        for role, count in parts:
            wide = self.wide * count / slab.objects
            scene.rect(f"{key}/{role}", at, top, wide, 19, role, f"{count} objects")
            at += wide


class _Machine:
    """Makes frames of a board, with the counters' changes since the last one."""

    def __init__(self, board: Board, ops: list[Operation], width: float):
        self.board, self.width = board, width
        named = {int(op.get("cpu", 0)) for op in ops if op.verb in ("alloc", "free")}
        valid = sorted(cpu for cpu in named if 0 <= cpu < board.slub.memory.nr_cpus) or [0]
        self.cpus = valid[:SHOWN_CPUS]
        self.last = {**board.cache.stats(), "list_lock": 0}

    def frame(self, say: str, moving: set[int] | None = None, ask: Ask | None = None) -> Frame:
        board = self.board
        scene = Scene(self.width)
        layout = board.cache.layout
        note = (f"{layout.objects} objects of {layout.size} bytes in a slab of order {layout.order}; a CPU's chain: up to "
                f"{layout.cpu_partial_slabs}; the node keeps {layout.min_partial}")
        scene.add(_Lanes(board, moving or set(), self.cpus), "slabs", "Where the slabs are", note)
        scene.add(Legend({"kernel": "given out", "hot": "free, on a CPU's own list", "free": "free, on the slab's list"}), "legend", gap=8)
        now = {**board.cache.stats(), "list_lock": board.locked}
        entries = [Entry(name, now[name], now[name] - self.last[name]) for name in COUNTERS]
        entries.append(Entry("list_lock taken", now["list_lock"], now["list_lock"] - self.last["list_lock"],
                             "by allocations and frees; flush and shrink take it, too"))
        entries.append(Entry("slabs given back", board.given_back))
        scene.add(Ledger(entries, columns=2 if not scene.narrow else 1), "ledger", "What SLUB counted")
        self.last = now
        return Frame(scene, say, ask=ask)

    # -- the lines -------------------------------------------------------------------------------------------

    def run(self, op: Operation, told: bool = True) -> Iterator[Frame]:
        if op.verb in ("alloc", "free"):
            cpu, cpus = op.get("cpu", 0), self.board.slub.memory.nr_cpus
            if not 0 <= cpu < cpus:
                raise InputError(f"there is no CPU {cpu}: the machine has {cpus}")
        yield from {"alloc": self._alloc, "free": self._free, "flush": self._flush, "shrink": self._shrink}[op.verb](op)

    def _alloc(self, op: Operation) -> Iterator[Frame]:
        board, count = self.board, op.get("count", 1)
        if not 1 <= count <= MOST_COUNT:
            raise InputError(f"count is 1 to {MOST_COUNT}")
        before, had = board.cache.stats(), set(board.slabs)
        if count <= TOLD:
            for _ in range(count):
                head = board.cache.cpu_slab[op["cpu"]].freelist
                say = board.alloc(op["cpu"])
                yield self.frame(say, {head})
            return
        lock = board.locked
        for _ in range(count):
            board.alloc(op["cpu"])
        moved = {key: value - before[key] for key, value in board.cache.stats().items()}
        new = [board.names[slab] for slab in board.slabs if slab not in had]
        how = [f"{moved['alloc_fastpath']} on the fast path"]
        for name, words in (("alloc_slab", "from a new slab"), ("cpu_partial_alloc", "from the chain"),
                            ("alloc_from_partial", "from the node's list")):
            if moved[name]:
                how.append(f"{moved[name]} {words}" + (f" ({', '.join(new)})" if name == "alloc_slab" else ""))
        refilled = moved["alloc_refill"] - moved["cpu_partial_alloc"]
        if refilled > 0:
            how.append(f"{refilled} by taking over what others had freed")
        locks = f" The node's lock was taken {_plural(board.locked - lock, 'time')}." if board.locked > lock else ""
        yield self.frame(f"CPU {op['cpu']} allocates {count} objects: {', '.join(how)}.{locks}")

    def _free(self, op: Operation) -> Iterator[Frame]:
        board = self.board
        slab, place = board.find(op["object"])
        cpu = op.get("cpu", 0)
        if place is not None:
            obj = board.cache.objects(slab)[place]
            say = board.free(slab, place, cpu)
            yield self.frame(say, {obj})
            return
        objects = board.used(slab)
        if not objects:
            raise InputError(f"nobody has an object of slab {op['object']}")
        name = board.names[slab]
        for obj in objects:
            board.free(slab, (obj - slab.address) // board.cache.size, cpu)
        where = "its pages went back" if slab not in board.names else f"it is now {_on(board.place(slab))}"
        yield self.frame(f"CPU {cpu} frees all {len(objects)} objects of slab {name} that were given out; {where}.")

    def _flush(self, op: Operation) -> Iterator[Frame]:
        self.board.slub.flush_all()
        self.board.look()
        yield self.frame("Every CPU gives up what it holds. Slabs with free objects go to the node's list; full ones are on no list.")

    def _shrink(self, op: Operation) -> Iterator[Frame]:
        board = self.board
        before, had = board.given_back, len(board.slabs)
        board.slub.kmem_cache_shrink(board.cache)
        left = len(board.slabs)
        gone = board.given_back - before
        order = ", ".join(board.names[slab] for slab in board.cache.node[0].partial)
        yield self.frame(f"shrink: all CPUs give up what they hold, {_plural(gone, 'empty slab')} of {had} "
                         f"{'goes' if gone == 1 else 'go'} back, and the node's list is sorted, the fullest slab first"
                         f"{': ' + order if order else ''}. {_plural(left, 'slab')} left.")


def _question(board: Board, op: Operation) -> Ask | None:
    """The prediction before an object of a full slab is freed."""
    if op.verb != "free":
        return None
    slab, place = board.find(op["object"])
    cpu = op.get("cpu", 0)
    if place is None or slab.frozen or slab.freelist or board.cache.layout.cpu_partial_slabs == 0:
        return None
    name = board.names[slab]
    choices = ["still on no list", "on the node's list", f"on the chain of CPU {cpu}", "with the CPU that filled it"]
    return Ask(f"Slab {name} is full and on no list. CPU {cpu} frees {name}{place}. Where is slab {name} then?", choices[2],
               "Whoever frees the first object of a full slab gets the slab: it is frozen to that CPU, without the node's lock.", choices)


@figure(
    "SLUB machine",
    alt="Slabs of one cache as rows of objects, in lanes for each CPU's slab and partial chain, the node's list and full slabs on no list; "
        "below them SLUB's counters.",
    params=[
        Operations("ops", DEFAULT, VERBS, label="requests"),
        Choice("size", [64, 192, 256, 512, 1024, 2048, 4096], 4096, label="object size"),
        Range("cpus", 1, 64, 2, log=True, label="CPUs"),
        Range("chain", -1, 16, -1, label="slabs on a chain", help="how many partial slabs a CPU may keep; -1: what the kernel computes"),
        Toggle("hardened", False, help="free pointers are XORed with a secret; nothing else changes"),
    ],
)
def slub_machine(ops: list[Operation], size: int, cpus: int, chain: int, hardened: bool, width: float) -> Iterator[Frame]:
    """Runs :mod:`mmsim.kernel.slub` on a cache of its own and checks it after every request."""
    yield _overview(ops, Board.of(size, cpus, chain, hardened), width)
    machine = _Machine(Board.of(size, cpus, chain, hardened), ops, width)
    board = machine.board
    layout = board.cache.layout
    last = machine.frame(f"A new cache of {size} bytes on {_plural(cpus, 'CPU')}: no slab yet. A slab will have order {layout.order} and "
                         f"{layout.objects} objects.")
    asked = False
    for op in ops:
        try:
            question = None if asked else _question(board, op)
            if question is not None:
                last.ask, asked = question, True
            for frame in machine.run(op):
                yield last
                last = frame
        except (KernelError, ValueError) as error:
            op.fail(error)
            yield last
            last = machine.frame(f"{op.text}: refused. {error}")
        board.slub.check()
    yield last


def _overview(ops: list[Operation], board: Board, width: float) -> Frame:
    """The last state in which the slabs are in most places at once: what the reader sees without a click."""
    scout = _Machine(Board.of(board.cache.object_size, board.slub.memory.nr_cpus, board.cache.layout.cpu_partial_slabs), ops, width)
    best, most = len(ops), -1
    for number, op in enumerate(ops, 1):
        try:
            for _ in scout.run(op):
                pass
        except (KernelError, ValueError):
            continue
        kinds = {re.sub(r"\d+$", "", scout.board.place(slab)) for slab in scout.board.slabs}
        if len(kinds) >= most:
            best, most = number, len(kinds)
    machine = _Machine(board, ops, width)
    for op in ops[:best]:
        try:
            for _ in machine.run(op):
                pass
        except (KernelError, ValueError):
            continue
    machine.last = {**board.cache.stats(), "list_lock": board.locked}
    stats = board.cache.stats()
    allocs = stats["alloc_fastpath"] + stats["alloc_slowpath"]
    frees = stats["free_fastpath"] + stats["free_slowpath"]
    return machine.frame(
        f"One cache after {_plural(allocs, 'allocation')} and {_plural(frees, 'free')}. Each of its "
        f"{_plural(len(board.slabs), 'slab')} is in one of four places: with a CPU, on a CPU's chain, on the node's list, or on no list. "
        f"The lock of the node's list was taken "
        f"{_plural(board.locked, 'time')}. Step on to see each slab move.")
