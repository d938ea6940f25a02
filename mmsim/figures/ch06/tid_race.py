"""The tid race: the fast path reads three words, is interrupted, and tries to write; what a transaction number is for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmsim.draw import Ask, Frame, Item, Legend, Operation, Operations, Scene, Tape, TextPane, Toggle, figure
from mmsim.errors import InputError, InvariantError, KernelError
from mmsim.figures.ch06.machines import small_kernel
from mmsim.kernel.slab import KmemCache
from mmsim.kernel.slub import Slub
from mmsim.kernel.slub_alloc import FastPath, fastpath_commit, fastpath_read

__all__ = ["tid_race"]

DEFAULT = """\
read            # the task looks: first object, next object, tid
irq alloc       # an interrupt takes the first one
irq alloc       # and the next
irq free 0      # and gives the first one back
commit          # the list begins with object 0, as before
"""
VERBS = {
    "read": "-- the task reads CPU, tid, the first free object and the one behind it",
    "commit": "-- the task compares and exchanges; if it fails, it begins again at once",
    "irq": "what:alloc|free [object:int] -- an interrupt on the task's CPU allocates, or frees an object",
    "move": "cpu:int -- the scheduler moves the task to another CPU",
}
SIZE, OBJECTS, CPUS = 1024, 8, 2


@dataclass(slots=True)
class _Race:
    """A cache of two CPUs, one task in the middle of its fast path, and who was given which object."""

    slub: Slub
    cache: KmemCache
    checked: bool
    read: FastPath | None = None
    owners: dict[int, list[str]] = field(default_factory=dict)
    broken: str = ""

    @classmethod
    def start(cls, checked: bool) -> _Race:
        slub = small_kernel(1024, CPUS, nomerge=True)
        cache = slub.kmem_cache_create("race", SIZE)
        assert cache is not None
        for cpu in range(CPUS):
            slub.memory.run_on(cpu)
            slub.kmem_cache_free(cache, slub.kmem_cache_alloc(cache) or 0)
        slub.memory.run_on(0)
        return cls(slub, cache, checked)

    def name(self, obj: int) -> str:
        """An object's number; those of CPU 1's slab begin at 100."""
        if not obj:
            return "none"
        slab = self.slub.slab_of(obj)
        assert slab is not None
        first = min(each.pfn for each in self.slub.slabs.values() if each.cache is self.cache)
        return str((obj - slab.address) // SIZE + (0 if slab.pfn == first else 100))

    def give(self, obj: int, who: str) -> None:
        self.owners.setdefault(obj, []).append(who)

    def commit_unchecked(self, read: FastPath) -> bool:
        """What a compare of the list's head alone would do: the rule that the figure breaks on purpose."""
        cpu = self.cache.this_cpu
        if cpu.freelist != read.obj:
            return False
        cpu.freelist = read.following
        return True

    def check(self) -> str:
        """What is wrong with the cache now, or nothing: the mechanism's own check, and objects with two owners."""
        twice = [obj for obj, who in self.owners.items() if len(who) > 1]
        if twice:
            return f"object {self.name(twice[0])} has two owners: {' and '.join(self.owners[twice[0]])}"
        try:
            self.slub.check()
            free = [obj for objects in self.slub.free_of(self.cache).values() for obj in objects]
            both = [obj for obj in free if obj in self.owners]
            if both:
                return f"object {self.name(both[0])} is on the free list, and {self.owners[both[0]][0]} has it"
        except (InvariantError, KernelError) as error:
            return str(error)
        return ""


class _Words:
    """Two columns of words: what the task read, and what is there now; equal or not."""

    def __init__(self, race: _Race):
        self.race = race

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        race = self.race
        cpu, read = race.cache.this_cpu, race.read
        now = (str(cpu.cpu), race.name(cpu.freelist), str(cpu.tid))
        was = (str(read.cpu), race.name(read.obj), str(read.tid)) if read else ("–", "–", "–")
        first, step = width * 0.34, 27.0
        column = (width - first) / 3
        for place, words in enumerate(("it read", "now", "same?") if scene.narrow else ("the task read", "is there now", "the same?")):
            scene.text(f"{key}.head{place}", x + first + column * (place + 0.5), y + 12, words, "small", "muted", "middle")
        top = y + 18
        for row, (label, before, after) in enumerate(zip(("CPU", "first object", "tid"), was, now, strict=True)):
            name = f"{key}/{row}"
            compared = row == 1 or row == 2 and race.checked
            same = before == after
            bad = compared and read is not None and not same
            scene.text(f"{name}.name", x, top + 17, label, "label", "strong" if compared else "muted")
            for place, words in enumerate((before, after)):
                scene.box(f"{name}.{place}", x + first + column * place + 4, top + 1, column - 8, 22, words,
                          "error" if bad else "", cls="" if bad else "panel", style="mono")
            verdict = "" if read is None else ("yes" if same else "NO") if compared else "–" if scene.narrow else "not compared"
            scene.text(f"{name}.verdict", x + first + column * 2.5, top + 17, verdict, "small",
                       "warn" if verdict == "NO" else "strong" if verdict == "yes" else "muted", "middle", column)
            top += step
        if read is not None:
            words = f"If all compared words are the same, the list will begin with {race.name(read.following)}."
            top += 4 + scene.paragraph(f"{key}.next", x, top + 4, words, width, "small", "muted")
        scene.height = max(scene.height, round(top, 1))
        return top - y


def _frame(race: _Race, story: list[str], say: str, width: float, ask: Ask | None = None, bad: bool = False) -> Frame:
    scene = Scene(width)
    cpu = race.cache.this_cpu
    try:
        free = list(race.cache.free_objects(cpu.slab, cpu.freelist)) if cpu.slab else []
    except KernelError:
        free = []
    items = []
    for obj in dict.fromkeys(free):
        taken = race.owners.get(obj)
        items.append(Item(race.name(obj), race.name(obj) + (" !" if taken else ""), "error" if taken else "hot",
                          f"object {race.name(obj)} at {obj:#x}" + (f": on the list, but {taken[0]} has it" if taken else "")))
    scene.add(Tape(items, shared="object", tail="end", most=12), "list", f"Free list of CPU {cpu.cpu}",
              "numbers are objects" if scene.narrow else "numbers are objects; the fast path takes the first one")
    owned = [f"object {race.name(obj)}: {', '.join(who)}" for obj, who in sorted(race.owners.items())]
    scene.add(_Words(race), "words", "this_cpu_cmpxchg_double()", "one instruction")
    scene.row([("story", TextPane(story, title="what happened"), "", 3),
               ("owners", TextPane(owned or ["nobody has any"], title="who was given what"), "", 2)])
    if race.broken:
        top = scene.y + 12
        scene.rect("broken", 0, top, width, 8, "error")
        scene.y = top + 12 + scene.paragraph("broken.t", 0, top + 12, f"Broken: {race.broken}.", width, "label", "warn")
        scene.height = max(scene.height, round(scene.y, 1))
    else:
        scene.add(Legend({"hot": "free", "error": "wrong, or not equal"}), "legend", gap=10)
    return Frame(scene, say, ask=ask)


def _read(race: _Race) -> str:
    race.read = fastpath_read(race.cache)
    if race.read is None:
        raise InputError("the CPU's list is empty: the slow path would run, with interrupts off")
    r = race.read
    return (f"The task on CPU {r.cpu} reads the first free object, {race.name(r.obj)}, the one behind it, {race.name(r.following)}, and "
            f"tid {r.tid}. It has written nothing yet.")


def _commit(race: _Race) -> tuple[str, bool]:
    """Try to write; the sentence, and whether it worked."""
    read = race.read
    if read is None:
        raise InputError("nothing was read yet: the task must read before it can compare")
    cpu = race.cache.this_cpu
    if not race.checked:
        ok = race.commit_unchecked(read)
        words = "the first object is the one that it read"
    else:
        head_same = cpu.freelist == read.obj
        ok = fastpath_commit(race.cache, read)
        words = "first object and tid are what it read"
        if not ok and head_same:
            words = f"object {race.name(read.obj)} is first again, but the tid went from {read.tid} to {cpu.tid}"
    if not ok:
        if "again" not in words:
            words = f"the list begins with {race.name(cpu.freelist)} now, the tid is {cpu.tid}"
        return f"The task compares, and fails: {words}. It begins again.", False
    race.give(read.obj, "the task")
    race.read = None
    race.broken = race.check()
    return (f"The task compares: {words}. It exchanges both, has object {race.name(read.obj)}, and the list begins with "
            f"{race.name(cpu.freelist)}.", True)


def _irq(race: _Race, op: Operation) -> str:
    if op["what"] == "alloc":
        obj = race.slub.kmem_cache_alloc(race.cache)
        if obj is None:
            raise InputError("no memory")
        race.give(obj, "the interrupt")
        race.broken = race.check()
        return f"An interrupt comes and allocates: it gets object {race.name(obj)}, and the tid is {race.cache.this_cpu.tid} now."
    number = op.get("object")
    found = next((obj for obj, who in race.owners.items() if race.name(obj) == str(number) and "the interrupt" in who), None)
    if found is None:
        raise InputError(f"no interrupt has object {number}")
    race.owners[found].remove("the interrupt")
    if not race.owners[found]:
        del race.owners[found]
    race.slub.kmem_cache_free(race.cache, found)
    return f"An interrupt comes and frees object {number}: it is first in the list again, and the tid is {race.cache.this_cpu.tid}."


@figure(
    "The tid race",
    alt="The free list of a CPU, the words that a task read from it beside the words that stand there now, and who was given which object.",
    params=[Operations("ops", DEFAULT, VERBS, label="what happens"),
            Toggle("tid", True, label="compare the tid", help="off: only the first object is compared, which the kernel never does")],
)
def tid_race(ops: list[Operation], tid: bool, width: float) -> Iterator[Frame]:
    """Runs the two halves of the fast path of :mod:`mmsim.kernel.slub_alloc` with whatever comes between them."""
    race = _Race.start(tid)
    story: list[str] = []
    frames: list[Frame] = []
    decisive = 0

    def shot(say: str, ask: Ask | None = None) -> None:
        frames.append(_frame(race, story[-7:] or ["nothing yet"], say, width, ask))

    shot("Two words belong to each CPU: the first free object, and tid, a number that every operation on this CPU changes. An object is "
         "taken by exchanging both at once, if both are still what was read.")
    for op in ops:
        try:
            if op.verb == "read":
                say = _read(race)
            elif op.verb == "irq":
                say = _irq(race, op)
            elif op.verb == "move":
                race.slub.memory.run_on(op["cpu"])
                say = f"The scheduler moves the task to CPU {op['cpu']}. What it read belongs to the other CPU."
            else:
                if race.read is not None and frames:
                    good = race.cache.this_cpu.freelist == race.read.obj
                    frames[-1].ask = Ask(
                        "The task now compares and exchanges. What happens?",
                        "it fails" if not good or race.checked and race.cache.this_cpu.tid != race.read.tid else "it succeeds",
                        "With the tid in the comparison every operation in between is noticed, even one that leaves the first object "
                        "as it was." if race.checked else "Only the first object is compared, and it is the same again.",
                        ["it succeeds", "it fails"])
                say, worked = _commit(race)
                story.append(f"commit: {'done' if worked else 'failed'}")
                shot(say)
                decisive = decisive or len(frames)
                if not worked:
                    again = _read(race)
                    story.append("read again")
                    shot(again)
                    say, _ = _commit(race)
                    story.append("commit: done")
                    shot(say)
                continue
            story.append(op.text)
            shot(say)
        except (KernelError, ValueError) as error:
            op.fail(error)
            story.append(f"{op.text}: refused")
            shot(f"{op.text}: refused. {error}")
    if race.broken:
        shot(f"{race.broken[0].upper()}{race.broken[1:]}. Nothing reports it now; the next owner of the object will be surprised.")
    else:
        fails = race.cache.stats()["cmpxchg_double_cpu_fail"]
        shot(f"All objects have one owner or are free. The counter cmpxchg_double_cpu_fail stands at {fails}.")
    if decisive:
        # The comparison itself is what the reader should see without a click.
        at = frames[decisive - 1]
        yield Frame(at.scene, f"A task has read the first free object; then other things happened on its CPU. {at.say} Step on to "
                    "see how it came to this.")
    yield from frames
