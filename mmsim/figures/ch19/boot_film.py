"""Boot film: one machine from the firmware's map to a free list, in about a dozen frames; colour says who has the memory."""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.boot.setup import Boot, Phase
from mmsim.constants import E820_TYPE_RAM
from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Choice,
    Entry,
    Frame,
    Ledger,
    Legend,
    Range,
    Scene,
    Span,
    Text,
    TextPane,
    figure,
    text_width,
)
from mmsim.draw.ledger import grouped
from mmsim.figures.ch19.accounting import CATEGORIES, Category, coalesce, totals
from mmsim.figures.ch19.firmware import boot_pc
from mmsim.machine import Machine
from mmsim.units import PAGE_SIZE, format_bytes, memparse

__all__ = ["boot_film"]

SIZES = ("64M", "128M", "256M", "512M", "1G", "2G", "5G", "8G", "64G")
PHASES = {
    "e820": "firmware map", "memblock": "memblock", "mapping": "direct map", "memmap": "memory map",
    "early": "early users", "buddy": "hand-over", "freed": "clearing up",
}  # fmt: skip
#: What the legend says where one role stands for several kinds of owners.
SHARED_WORDS = {"kernel": "kernel image and other kernel data", "cma": "contiguous areas: crash kernel, bounce buffers"}
SAYS = {
    "firmware map":
        "The firmware reports {entries} ranges. The kernel image, the initial RAM disk and the BIOS area are reserved at once, "
        "before anyone knows what is RAM.",
    "sanitised map": "The map is sanitised and trimmed: RAM ends at {end:#x}. Nothing has been allocated yet.",
    "e820__memblock_setup": "memblock learns of {ram} of RAM, in {regions}, and what of it is taken already.",
    "reserve_real_mode":
        "The first MiB is reserved whole, after 24 KiB were taken there for the code that starts other CPUs.",
    "init_mem_mapping":
        "The direct map is built from the top down. From here on every byte of RAM has an address that the kernel can use.",
    "initmem_init": "{nodes}, as high as possible in its own memory.",
    "reserve_crashkernel":
        "crashkernel= takes {crash} for a second kernel: the highest free place below 4 GiB, aligned to 16 MiB.",
    "sparse_init": "Every frame gets a struct page of 64 bytes: {memmap} in all, in whole blocks of 2 MiB.",
    "free_area_init":
        "Zones are laid out and each struct page is initialised. No frame is in any list: the page allocator still has nothing.",
    "setup_per_cpu_areas":
        "Each CPU gets its copy of the per-CPU variables; most of the 2 MiB taken for that is given back.",
    "vfs_caches_init_early":
        "{hashes}, and page tables for the CPU entry area are taken as well.",
    "memblock_free_all":
        "What is not reserved goes to the page allocator, range by range, in the largest aligned blocks.",
    "mem_init":
        "64 pages are the first that the page allocator gives out, for page tables. Then the kernel prints its balance.",
    "init_per_zone_wmark_min": "The zones get their watermarks, and the code that only several CPUs need goes.",
    "free_initmem":
        "The RAM disk, the init sections and the gaps of the image are free as well. What is still coloured is gone for good.",
}  # fmt: skip


class _Film:
    """All frames share two axes: one to scale, one on which every range is wide enough to see."""

    def __init__(self, boot: Boot, width: float):
        self.boot, self.width = boot, width
        self.end = boot.max_pfn * PAGE_SIZE
        self.scale = Axis(0, self.end)
        spans: set[tuple[int, int]] = set()
        for phase in boot.phases:
            spans |= {(start, end) for start, end, _ in coalesce(phase.owners) if start < self.end}
        ram = {span for phase in boot.phases for span in self.ram(phase)}
        self.stretched = Axis(0, self.end, [Span(a, b, "free") for a, b in spans | ram], scale="broken")
        self.kinds: list[Category] = []
        for phase in boot.phases:
            for _, _, kind in coalesce(phase.owners):
                if kind not in self.kinds:
                    self.kinds.append(kind)
        self.kinds.sort(key=CATEGORIES.index)
        self.room = width if width < 480 else width - 76

    def _fits(self, axis: Axis, label: str, start: int, end: int) -> str:
        wide = (axis.place(end) - axis.place(start)) * self.room
        return label if text_width(label, "small") < wide - 7 else ""

    def bars(self, phase: Phase, before: Phase | None) -> list[Bar]:
        """The spans of both bars, without their axes: free RAM below, owners above it."""
        old = {(start, end, kind.key) for start, end, kind in coalesce(before.owners)} if before else None
        made = []
        for name, axis, key in (("to scale", self.scale, "scale"), ("stretched", self.stretched, "wide")):
            spans = []
            owned = coalesce(phase.owners)
            for start, end in self._unowned(phase):
                words = "free" if phase.phase in ("buddy", "freed") else "RAM"
                spans.append(Span(start, end, "free", self._fits(axis, words, start, end),
                                  f"{'in the lists of the page allocator' if words == 'free' else 'RAM, not reserved'}: "
                                  f"{start:#x}-{end - 1:#x}, {format_bytes(end - start)}", key=f"free{start:x}"))  # fmt: skip
            for start, end, kind in owned:
                if start >= self.end:
                    continue
                new = old is not None and (start, end, kind.key) not in old
                spans.append(Span(start, end, kind.role, self._fits(axis, kind.label, start, end),
                                  f"{kind.words}: {start:#x}-{end - 1:#x}, {format_bytes(end - start)}",
                                  "focus" if new else ""))  # fmt: skip
            made.append(Bar(name, spans, key=key))
        return made

    def ram(self, phase: Phase) -> list[tuple[int, int]]:
        """What is known to be RAM: by memblock, and before that by the firmware's map."""
        if not phase.memory:
            table = self.boot.e820_firmware if phase.step == "firmware map" else self.boot.e820
            return [(entry.addr, entry.end) for entry in table if entry.type == E820_TYPE_RAM]
        return [(region.base, region.end) for region in phase.memory]

    def _unowned(self, phase: Phase) -> list[tuple[int, int]]:
        """RAM that nobody has."""
        rest = []
        owned = [(start, end) for start, end, _ in coalesce(phase.owners)]
        for low, high in self.ram(phase):
            at = low
            for start, end in owned:
                if end <= at or start >= high:
                    continue
                if start > at:
                    rest.append((at, start))
                at = max(at, end)
            if at < high:
                rest.append((at, high))
        return rest

    def numbers(self, phase: Phase) -> dict[str, int]:
        """The ledger in KiB."""
        ram = self.ram(phase) if phase.memory else []
        total = sum(end - start for start, end in ram)
        taken = sum(totals(phase.owners, ram).values())
        over = phase.phase in ("buddy", "freed")
        return {"RAM known": total >> 10, "taken": taken >> 10, "free for memblock": 0 if over else (total - taken) >> 10,
                "free for the page allocator": (total - taken) >> 10 if over else 0}  # fmt: skip

    def frame(self, phase: Phase, before: Phase | None, say: str, ask: Ask | None = None) -> Frame:
        """One frame: phase strip, two bars, ledger, the new lines of the log."""
        scene = Scene(self.width)
        self._strip(scene, phase)
        for bar, axis in zip(self.bars(phase, before), (self.scale, self.stretched), strict=True):
            scene.add(AddressBar([bar], axis, thick=26, names=70), bar.key, gap=10)
        now, past = self.numbers(phase), self.numbers(before) if before else None
        entries = []
        for name, value in now.items():
            delta = value - past[name] if past else 0
            fits = text_width(f"+{grouped(abs(delta))}", "small") + 14 < (46 if scene.narrow else 56)
            entries.append(Entry(name, f"{grouped(value)} KiB", delta if fits else 0))
        scene.add(Ledger(entries), "ledger", gap=8)
        lines = self.boot.klog.lines()[: phase.log]
        old = before.log if before else 0
        new = {number: [(0, len(lines[number]))] for number in range(old, len(lines)) if lines[number]}
        scene.add(TextPane(lines[-4:], marks={number - max(len(lines) - 4, 0): mark for number, mark in new.items()}, rows=4,
                           title="kernel log" if len(lines) == old else f"kernel log: {len(lines) - old} new"), "log", gap=10)  # fmt: skip
        words = {"free": "free"}
        for kind in self.kinds:
            several = sum(other.role == kind.role for other in self.kinds) > 1
            words[kind.role] = SHARED_WORDS.get(kind.role, kind.words) if several else kind.words
        scene.add(Legend(words), "legend", gap=8)
        return Frame(scene, say, ask=ask)

    def _strip(self, scene: Scene, phase: Phase) -> None:
        """The seven phases in a row, the present one marked."""
        wide, gap = scene.width / len(PHASES), 4.0
        keys = list(PHASES)
        at = keys.index(phase.phase) if phase.phase in keys else 0
        for number, (key, words) in enumerate(PHASES.items()):
            left = number * wide
            cls = "panel focus" if number == at else "panel"
            scene.rect(f"strip/{key}", left, 1, wide - gap, 20 if not scene.narrow else 8, cls, words, rx=3)
            if not scene.narrow:
                scene.text(f"strip/{key}.t", left + (wide - gap) / 2, 15, words, "small",
                           "strong" if number == at else "muted", "middle", width=wide - gap - 6)  # fmt: skip
        if scene.narrow:
            scene.text("strip.now", 0, 24, f"{at + 1} of {len(PHASES)}: {PHASES[keys[at]]}", "small", "strong")
        scene.y = 28 if scene.narrow else 22
        scene.height = max(scene.height, scene.y)


def _managed(machine: Machine) -> int:
    """MemTotal in KiB: what the page allocator has ever been given."""
    return sum(zone.managed_pages for zone in machine.zones) * PAGE_SIZE >> 10


def _symptom(machine: Machine, ram: int) -> str:
    managed = _managed(machine)
    return (f"A machine of {format_bytes(ram)}, {ram >> 10} KiB, has booted, and MemTotal says {managed} kB: "
            f"{(ram >> 10) - managed} KiB are missing. "
            "Every coloured range has an owner that took it before the page allocator existed. Step on to see them come.")  # fmt: skip


def _sentence(boot: Boot, phase: Phase) -> str:
    count = len(phase.memory)
    facts = {
        "entries": len(boot.e820_firmware), "end": boot.max_pfn * PAGE_SIZE,
        "ram": f"{sum(r.size for r in phase.memory) >> 10} KiB", "regions": f"{count} region{'' if count == 1 else 's'}",
        "nodes": "The only node gets its descriptor" if len(boot.numa.nodes) == 1 else
                 f"Each of {len(boot.numa.nodes)} nodes gets its descriptor",
        "hashes": "The hash tables of the file system come from memblock, which alone has such large pieces"
                  if len(boot.numa.nodes) == 1 else
                  "The hash tables wait for vmalloc, which spreads them over the nodes",
        "crash": format_bytes(boot.crashkernel.size) if boot.crashkernel else "nothing",
        "memmap": format_bytes(boot.sparse.memmap_bytes),
    }  # fmt: skip
    return SAYS[phase.step].format(**facts) if phase.step in SAYS else phase.say


@figure(
    "Boot film",
    alt="An address bar of a machine's RAM, to scale and stretched, coloured by owner, as it boots: firmware map, memblock, direct map, "
        "struct pages, early users, hand-over to the page allocator, and late frees.",
    params=[
        Choice("ram", {size: size.replace("M", " MiB").replace("G", " GiB") for size in SIZES}, default="256M", label="RAM"),
        Range("holes", 0, 3, help="reserved ranges in the middle of RAM"),
        Range("nodes", 1, 4, help="numa=fake="),
        Text("crashkernel", "", label="crashkernel=", help="64M, or 512M-2G:64M,2G-:128M", limit=80),
        Choice("initrd", {"0": "none", "4600K": "4600 KiB", "32M": "32 MiB", "128M": "128 MiB"}, default="4600K", label="initial RAM disk"),
    ],
)  # fmt: skip
def boot_film(ram: str, holes: int, nodes: int, crashkernel: str, initrd: str, width: float) -> Iterator[Frame]:
    """Boots :class:`mmsim.boot.setup.Boot` and shows the state after each of its steps."""
    machine = boot_pc(memparse(ram)[0], holes, nodes, crashkernel, memparse(initrd)[0])
    boot = machine.setup
    film = _Film(boot, width)
    yield film.frame(boot.phases[-1], boot.phases[-1], _symptom(machine, memparse(ram)[0]))
    before = None
    for number, phase in enumerate(boot.phases):
        ask = None
        following = boot.phases[number + 1].step if number + 1 < len(boot.phases) else ""
        if following == "sparse_init":
            megabytes = boot.sparse.memmap_bytes >> 20
            ask = Ask("Next, every frame of 4 KiB gets a struct page of 64 bytes. How much memory is that?", megabytes,
                      f"One 64th of {format_bytes(memparse(ram)[0])}, filled up to whole sections of 128 MiB: {megabytes} MiB.",
                      unit="MiB")  # fmt: skip
        if following == "memblock_free_all":
            known = film.numbers(phase)
            rest = grouped(known["free for memblock"])
            ask = Ask("What does the page allocator get in the next step?", f"{rest} KiB",
                      "Exactly what is memory and not reserved, in whole pages. Nothing that memblock gave away comes back "
                      "by itself.",
                      choices=sorted({f"{rest} KiB", f"{grouped(known['RAM known'])} KiB", f"{grouped(known['taken'])} KiB"}))  # fmt: skip
        yield film.frame(phase, before, _sentence(boot, phase), ask)
        before = phase
    managed, ram_kib = _managed(machine), sum(region.size for region in boot.phases[-1].memory) >> 10
    say = (f"MemTotal is {managed} kB: all that was ever handed over. Of the {ram_kib} KiB of RAM that memblock knew, "
           f"{ram_kib - managed} KiB stay with those who took them before there was an allocator to give them back to.")  # fmt: skip
    yield film.frame(boot.phases[-1], boot.phases[-1], say)
