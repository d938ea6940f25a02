"""Vmalloc gaps: areas with their guard pages, addresses that only wait to be free, and the purge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmsim.draw import (
    AddressBar,
    Ask,
    Axis,
    Bar,
    Frame,
    Legend,
    Operation,
    Operations,
    Range,
    RegionList,
    Scene,
    Seed,
    Span,
    figure,
    grouped,
)
from mmsim.draw import Region as Row
from mmsim.errors import InputError, KernelError
from mmsim.figures.ch06.kernel_atlas import size_text
from mmsim.figures.ch06.machines import scatter, small_kernel
from mmsim.kernel.stacks import ThreadStacks
from mmsim.kernel.vmalloc import VM_NO_GUARD, Vmalloc
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["vmalloc_gaps"]

DEFAULT = """\
vmalloc a 10000
vmalloc b 1
vmalloc c 8K
vfree b
vmalloc d 1         # b's addresses are free, are they?
vmalloc e 12K
vfree c
purge
vmalloc f 1         # now they are
vmalloc g 8K
write e 12K         # one byte too far
reserve big 32M
vfree big
"""
VERBS = {
    "vmalloc": "name:word size:size -- addresses, a guard page, and a frame for each page",
    "reserve": "name:word size:size -- addresses only, as for a device's memory",
    "stack": "name:word -- a task's kernel stack, 16 KiB, aligned to 16 KiB",
    "vfree": "name:word -- unmap now, give the addresses back later",
    "write": "name:word offset:size -- the kernel writes a byte there",
    "purge": "-- all CPUs forget what waits, then it is free",
}
FRAMES = 2048


def _count(number: int, word: str) -> str:
    return f"{grouped(number)} {word}{'' if number == 1 else 's'}"


@dataclass(slots=True)
class _Shot:
    """One step in plain data; frames are drawn when the axis is known."""

    say: str
    busy: list[tuple[str, int, int, int, list[int]]]
    lazy: list[tuple[int, int]]
    waiting: int
    flushes: int
    used: int
    at: int | None = None
    hot: str = ""
    bad: bool = False
    ask: Ask | None = None


@dataclass(slots=True)
class _Lab:
    region: Vmalloc
    stacks: ThreadStacks
    names: dict[str, int] = field(default_factory=dict)
    is_stack: set[str] = field(default_factory=set)
    shots: list[_Shot] = field(default_factory=list)

    def shot(self, say: str, hot: str = "", at: int | None = None, bad: bool = False) -> None:
        region = self.region
        named = {addr: name for name, addr in self.names.items()}
        busy = [(named.get(vm.addr, "kept"), vm.addr, vm.usable, vm.size, vm.pages)
                for vm in sorted(region.vm.values(), key=lambda vm: vm.addr)]
        self.shots.append(_Shot(say, busy, list(region.areas.lazy), region.areas.lazy_nr, region.nr_flushes, region.nr_vmalloc_pages, at,
                                hot, bad))

    def offset(self, addr: int) -> str:
        return f"+{(addr - self.region.areas.start) >> PAGE_SHIFT}"

    def run(self, op: Operation) -> None:
        region = self.region
        if op.verb == "purge":
            waiting = region.areas.lazy_nr
            region.purge()
            self.shot(f"purge: {grouped(waiting)} pages of addresses waited. One flush of all TLBs serves for all of them; now they "
                      "are free, and neighbours are one range." if waiting else "purge: nothing waits, so no CPU is bothered.")
            return
        name = op["name"]
        if op.verb in ("vmalloc", "reserve", "stack"):
            self._make(op, name)
            return
        if name not in self.names:
            raise InputError(f"there is no area {name}; there are {', '.join(self.names) or 'none'}")
        addr = self.names[name]
        vm = region.find_vm_area(addr)
        assert vm is not None
        if op.verb == "write":
            self._write(name, addr, op["offset"])
            return
        flushes = region.nr_flushes
        pages, frames = vm.size >> PAGE_SHIFT, len(vm.pages)
        del self.names[name]
        if name in self.is_stack:
            self.stacks.free(addr)
            kept = region.find_vm_area(addr) is not None
        else:
            (region.vfree if vm.pages else region.vunmap)(addr)
            kept = False
        if kept:
            self.shot(f"The task of {name} ends: the CPU keeps the stack, mapped as it is, for the next task.")
        elif region.nr_flushes > flushes:
            self.shot(f"vfree({name}): {grouped(pages)} pages more wait, and that is over the limit of "
                      f"{grouped(region.areas.lazy_max_pages())}. Whoever frees must purge now: one flush for everything.")
        else:
            now = f"its {_count(frames, 'frame')} {'is' if frames == 1 else 'are'} free at once, " if frames else ""
            self.shot(f"vfree({name}): {now}its {pages} pages of addresses are not free yet: a TLB may still know them. "
                      f"{grouped(region.areas.lazy_nr)} pages wait.")

    def _make(self, op: Operation, name: str) -> None:
        region = self.region
        if name in self.names:
            raise InputError(f"there is an area {name} already")
        size = 16384 if op.verb == "stack" else op["size"]
        logged = len(region.slub.klog)
        addr: int | None
        if op.verb == "stack":
            addr = self.stacks.alloc()
            self.is_stack.add(name)
        elif op.verb == "reserve":
            area = region.get_vm_area(size, 0, caller="ioremap")
            addr = area.addr if area is not None else None
        else:
            addr = region.vmalloc(size, caller=name)
        if addr is None:
            lines = region.slub.klog.lines()[logged:]
            raise InputError(lines[-1] if lines else "NULL")
        self.names[name] = addr
        vm = region.find_vm_area(addr)
        assert vm is not None
        fit = region.areas.last_fit.value if region.areas.last_fit else ""
        pages = vm.usable >> PAGE_SHIFT
        what = {"vmalloc": f"vmalloc({grouped(size)})", "reserve": f"{size_text(size)} of addresses", "stack": "a kernel stack"}[op.verb]
        guard = "" if vm.flags & VM_NO_GUARD else " and a guard page"
        words = {"left edge": "the lower end of a free range", "right edge": "the upper end of a free range", "full": "exactly the hole",
                 "no edge": "the middle of a free range, which becomes two"}.get(fit, "")
        some = ", ".join(hex(pfn) for pfn in vm.pages[:3]) + (" …" if pages > 3 else "")
        frames = "" if not vm.pages else f" {_count(pages, 'frame')} from anywhere: {some}."
        self.shot(f"{what} → {name}: {_count(pages, 'page')}{guard} at page {self.offset(addr)} of the region, {words}.{frames}", name)

    def _write(self, name: str, addr: int, offset: int) -> None:
        try:
            self.region.write(addr + offset, b"!")
        except KernelError as bug:
            first = str(bug).splitlines()[0]
            self.shot(f"A write to {name} + {offset}: {first}. The guard page stopped it.", name, addr + offset, True)
            return
        self.shot(f"A write to {name} + {offset} goes to frame {self.region.vmalloc_to_pfn(addr + offset):#x}.", name, addr + offset)


class _Waiting:
    """How much waits, against the limit."""

    def __init__(self, waiting: int, limit: int):
        self.waiting, self.limit = waiting, limit

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        scene.rect(f"{key}.bed", x, y, width, 16, "panel")
        part = min(self.waiting / self.limit, 1) * width
        scene.rect(f"{key}.level", x, y, max(part, 1.5 if self.waiting else 0), 16, "reserved", f"{self.waiting} pages wait")
        words = f"{grouped(self.waiting)} pages wait; {grouped(self.limit)} may ({size_text(self.limit << PAGE_SHIFT)})"
        scene.text(f"{key}.t", x, y + 30, words, "small", "muted", width=width)
        scene.height = max(scene.height, round(y + 36, 1))
        return 36


def _draw(shot: _Shot, axis: Axis, base: int, limit: int, width: float) -> Frame:
    scene = Scene(width)
    spans = []
    for name, addr, usable, size, _ in shot.busy:
        mark = "focus" if name == shot.hot else ""
        tip = f"{name}: {addr:#x}, {usable >> PAGE_SHIFT} pages"
        spans.append(Span(addr, addr + usable, "kernel", name, tip, mark, f"{name}:{addr:x}"))
        if size > usable:
            spans.append(Span(addr + usable, addr + size, "error", "", f"guard page of {name}: never mapped", key=f"guard:{addr:x}"))
    spans += [Span(start, end, "reserved", "", f"waits for a purge: {(end - start) >> PAGE_SHIFT} pages", key=f"lazy:{start:x}")
              for start, end in shot.lazy]
    taken = sorted((span.start, span.end) for span in spans)
    at = base
    for start, end in [*taken, (axis.high, axis.high)]:
        if start > at:
            spans.append(Span(at, min(start, axis.high), "free", "", f"free: from page {(at - base) >> PAGE_SHIFT} on", key=f"free:{at:x}"))
        at = max(at, end)
    bar = AddressBar([Bar("", spans)], axis, thick=34, cursor=shot.at)
    scene.add(bar, "bar", "Addresses from the start of the region", "numbers are pages")
    scene.add(Legend({"kernel": "in use", "error": "guard page", "reserved": "waits for a purge", "free": "free"}), "legend", gap=6)
    scene.add(_Waiting(shot.waiting, limit), "waiting", "What waits")
    rows = []
    for name, addr, usable, _, pages in shot.busy:
        frames = ", ".join(f"{pfn:#x}" for pfn in pages[:4]) + (", …" if len(pages) > 4 else "") if pages else "none of ours"
        rows.append(Row(f"{name}:{addr:x}", [name, f"+{(addr - base) >> PAGE_SHIFT}", f"{usable >> PAGE_SHIFT}", frames], "kernel",
                        f"{addr:#x}", "moving" if name == shot.hot else ""))
    scene.add(RegionList(rows, ["area", "page", "pages", "frames"], most=10, empty="no area"), "areas", "Areas",
              f"VmallocUsed: {shot.used * 4} kB; flushes so far: {shot.flushes}")
    return Frame(scene, shot.say, ask=shot.ask)


@figure(
    "Vmalloc gaps",
    alt="The beginning of the vmalloc region as a bar: areas, their guard pages, ranges that wait for a purge, free ranges; below, how "
        "much waits, and the frames of each area.",
    params=[Operations("ops", DEFAULT, VERBS, label="requests"), Range("cpus", 1, 64, 1, log=True, label="CPUs"), Seed()],
)
def vmalloc_gaps(ops: list[Operation], cpus: int, seed: int, width: float) -> Iterator[Frame]:
    """Runs :mod:`mmsim.kernel.vmalloc`, with real page tables, on a machine whose free frames are scattered."""
    slub = small_kernel(FRAMES, cpus)
    scatter(slub, 600, seed)
    region = Vmalloc(slub)
    lab = _Lab(region, ThreadStacks(region))
    lab.shot("The region is empty: one free range of 32 TiB. What limits the kernel here is not addresses but frames and TLBs.")
    asked = False
    for op in ops:
        if not asked and op.verb in ("vmalloc", "reserve") and region.areas.lazy_nr and lab.shots:
            asked = _ask(lab, op)
        try:
            lab.run(op)
        except (KernelError, ValueError) as error:
            op.fail(error)
            lab.shot(f"{op.text}: refused. {error}", bad=True)
        region.check()
    base = region.areas.start
    spans = [(addr, addr + size) for shot in lab.shots for _, addr, _, size, _ in shot.busy]
    high = max([end for _, end in spans], default=base) + 4 * PAGE_SIZE
    # Every page of the small areas gets a width of its own, so that one large area does not squeeze them.
    small = max([end for start, end in spans if end - start <= 32 * PAGE_SIZE], default=base)
    cuts = {edge for span in spans for edge in span} | set(range(base, min(small, base + 96 * PAGE_SIZE), PAGE_SIZE))
    linear = high - base <= 64 * PAGE_SIZE

    def show(addr: int) -> str:
        return f"+{(addr - base) >> PAGE_SHIFT}"

    axis = Axis(base, high, show=show) if linear else \
        Axis(base, high, [Span(start, end, "") for start, end in spans], cuts, scale="broken", show=show)
    limit = region.areas.lazy_max_pages()
    def worth(shot: _Shot) -> tuple[bool, bool, int]:
        return bool(shot.lazy) and len(shot.busy) > 2, shot.at is None, -abs(len(shot.busy) - 4)

    best = max(lab.shots[1:] or lab.shots, key=worth)
    intro = _draw(best, axis, base, limit, width)
    yield Frame(intro.scene, f"{len(ops)} requests, seen in the middle. {best.say} Every area ends in a page that is never mapped.")
    for shot in lab.shots:
        yield _draw(shot, axis, base, limit, width)


def _ask(lab: _Lab, op: Operation) -> bool:
    """Ask whether the waiting addresses are used again, once."""
    areas = lab.region.areas
    hole = any(end - start >= op["size"] + PAGE_SIZE for start, end in areas.lazy)
    if not hole:
        return False
    lab.shots[-1].ask = Ask(
        f"{op.text}: the hole is large enough. Does the new area get those addresses?", "no", "They only wait to be free: until all "
        "CPUs have flushed their TLBs, an old translation may lead to a frame that belongs to somebody else now.", ["yes", "no"])
    return True


