"""The landing page's figure: a machine of 16 MiB, every frame of it drawn, from power-on until a request fails."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mmsim.boot.setup import Phase
from mmsim.constants import E820_TYPE_RAM, GFP_ATOMIC, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, WMARK_LOW, WMARK_MIN
from mmsim.draw import Entry, Frame, FrameBoard, Ledger, Legend, Range, Scene, Seed, figure, runs_of
from mmsim.draw.ledger import grouped
from mmsim.figures.ch19.accounting import coalesce
from mmsim.machine import Machine
from mmsim.reference import toy16
from mmsim.units import PAGE_SIZE

__all__ = ["memory_fills"]

EARLY = ("Chapter 19: early memory management", "19-early-memory-management")
PHYSICAL = ("Chapter 5: physical memory", "05-physical-memory")

#: What the figure shows of a boot: the step of the boot, and what happened.
STEPS = {
    "sanitised map": "Power on. The firmware says which addresses are RAM. The kernel image, the RAM disk and the BIOS are in it already.",
    "reserve_real_mode": "The kernel notes what is taken. Its first allocator, memblock, knows only two lists: RAM, and reserved RAM.",
    "sparse_init": "Every frame gets a struct page, the record in which the kernel keeps who uses it. They take {memmap} KiB of this RAM.",
    "vfs_caches_init_early": "Page tables, per-CPU areas and hash tables come from memblock as well. No page allocator exists yet.",
    "memblock_free_all": "The hand-over: {free} frames that nobody reserved go to the page allocator, in blocks as large as possible.",
    "free_initmem": "What only the boot needed is freed. The machine is up, and {free} of its 4 096 frames are free.",
}  # fmt: skip
ROLES = {
    "free": "free", "reserved": "first MiB", "kernel": "kernel", "file": "RAM disk", "huge": "struct pages", "table": "page tables",
    "hot": "per-CPU areas", "anon": "pages of processes",
}  # fmt: skip
ROUNDS = 8


def _boot_roles(machine: Machine, phase: Phase) -> list[str]:
    """The role of every frame at a step of the boot; "" where there is no RAM."""
    roles = [""] * machine.setup.max_pfn
    ram = [(region.base, region.end) for region in phase.memory] or [
        (entry.addr, entry.end) for entry in machine.e820 if entry.type == E820_TYPE_RAM]
    for start, end in ram:
        for pfn in range(-(-start // PAGE_SIZE), end // PAGE_SIZE):
            roles[pfn] = "free"
    for start, end, kind in coalesce(phase.owners):
        for pfn in range(start // PAGE_SIZE, min(end // PAGE_SIZE, len(roles))):
            roles[pfn] = kind.role
    return roles


class _Workload:
    """Requests as processes and the kernel make them: single frames, movable or not; some are given back."""

    def __init__(self, machine: Machine, kernel_percent: int, seed: int):
        self.machine, self.percent, self.random = machine, kernel_percent, Random(seed)
        self.taken: list[tuple[int, str]] = []
        self.served = 0

    def one(self) -> bool:
        """One request; False if the page allocator had nothing for it."""
        if self.taken and self.random.random() < 0.3:
            pfn, _ = self.taken.pop(self.random.randrange(len(self.taken)))
            self.machine.free_pages(pfn)
            return True
        kernel = self.random.randrange(100) < self.percent
        got = self.machine.alloc_pages(GFP_KERNEL if kernel else GFP_HIGHUSER_MOVABLE)
        if got is None:
            return False
        self.taken.append((got, "kernel" if kernel else "anon"))
        self.served += 1
        return True

    def fill_to(self, free: int) -> bool:
        """Go on until at most ``free`` frames are left; False as soon as a request fails."""
        while self.machine.zone("DMA").nr_free_pages > free:
            if not self.one():
                return False
        return True


class _Film:
    """The board, the ledger and the legend, the same in every frame."""

    def __init__(self, machine: Machine, width: float):
        self.machine, self.width = machine, width
        self.booted = _boot_roles(machine, machine.phases[-1])

    def frame(self, roles: list[str], say: str, marks: bool = True, more: tuple[str, str] = PHYSICAL) -> Frame:
        """One frame. ``marks``: the allocator is up, so its watermarks mean something. ``more``: the chapter on this step."""
        scene = Scene(self.width)
        runs = [run for run in runs_of(roles) if run.role]
        scene.add(FrameBoard(runs, len(roles), columns=64 if scene.narrow else 128), "board", gap=8)
        zone = self.machine.zone("DMA")
        free = roles.count("free")
        entries = [Entry("frames", grouped(len(roles))), Entry("free", grouped(free)),
                   Entry("low watermark", grouped(zone.watermark[WMARK_LOW]) if marks else "none yet"),
                   Entry("min watermark", grouped(zone.watermark[WMARK_MIN]) if marks else "none yet")]
        scene.add(Ledger(entries), "ledger", gap=8)
        scene.add(Legend(ROLES), "legend", gap=6)
        return Frame(scene, say, more=more)

    def running(self, load: _Workload, say: str) -> Frame:
        """A frame of the running machine."""
        roles = list(self.booted)
        for pfn, role in load.taken:
            roles[pfn] = role
        return self.frame(roles, say)


def _filling(machine: Machine, load: _Workload, film: _Film) -> Iterator[Frame]:
    """From the booted machine to a request that fails."""
    zone = machine.zone("DMA")
    start, low = zone.nr_free_pages, zone.watermark[WMARK_LOW]
    for number in range(1, ROUNDS + 1):
        if not load.fill_to(start - (start - low) * number // ROUNDS):
            break
        if number == 1:
            words = ("Processes and the kernel ask for memory. A page of a process may move later, one of the kernel may not: "
                     "they are kept apart.")  # fmt: skip
        elif number < ROUNDS:
            words = f"{grouped(load.served)} requests served, {grouped(zone.nr_free_pages)} frames free."
        else:
            words = (f"{grouped(zone.nr_free_pages)} frames are left: the low watermark. From here on a real machine "
                     "gets memory back in the background, with kswapd.")
        yield film.running(load, words)
    load.fill_to(0)
    urgent = machine.alloc_pages(GFP_ATOMIC)
    answer = "gets none either" if urgent is None else "still gets one"
    if urgent is not None:
        load.taken.append((urgent, "kernel"))
    yield film.running(load, f"An ordinary request fails although {grouped(zone.nr_free_pages)} frames are free: they are the reserve "
                             f"below the min watermark. An interrupt handler, which cannot wait, {answer}.")  # fmt: skip


@figure(
    "A machine boots, and its memory fills",
    alt="A board of 4 096 cells, one for each frame of a machine of 16 MiB, coloured by owner: first the kernel's own at boot, then "
        "pages of processes and the kernel, until only the reserve is left.",
    params=[
        Range("kernel", 0, 100, default=20, unit="%", step=5, label="requests of the kernel", help="the others come from processes"),
        Seed(),
    ],
)  # fmt: skip
def memory_fills(kernel: int, seed: int, width: float) -> Iterator[Frame]:
    """Boots :func:`mmsim.reference.toy16`, then allocates until the page allocator refuses. Nothing reclaims memory here."""
    machine = toy16()
    machine.memory.watermark_boost_factor = 0           # vm.watermark_boost_factor=0: only kswapd takes a boost back
    film, load = _Film(machine, width), _Workload(machine, kernel, seed)
    by_step = {phase.step: phase for phase in machine.phases}
    facts = {"memmap": machine.setup.sparse.memmap_bytes >> 10}
    boot = []
    for step, words in STEPS.items():
        roles = _boot_roles(machine, by_step[step])
        boot.append((roles, words.format(**facts, free=grouped(roles.count("free"))), step == "free_initmem"))
    filled = list(_filling(machine, load, film))
    yield Frame(filled[ROUNDS // 2].scene, "Every cell is one page frame of 4 KiB, all 4 096 of a machine of 16 MiB. Press play to see "
                                           "where each went: the machine boots, then processes and the kernel fill it.")  # fmt: skip
    for roles, words, up in boot:
        yield film.frame(roles, words, up, PHYSICAL if up else EARLY)
    yield from filled
