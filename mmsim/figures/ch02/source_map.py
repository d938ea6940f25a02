"""The C files of mm/ as areas: how large each is, and what it is about, in four releases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mmsim import ftrace
from mmsim.draw import Ask, Choice, Frame, Legend, Scene, figure, fit_text, grouped

__all__ = ["AREAS", "RELEASES", "area_of", "lines_of", "largest", "source_treemap"]

DATA = Path(ftrace.__file__).parents[1] / "data" / "source-map.tsv"
RELEASES = ("5.17", "6.1", "6.12", "6.18")


class Area(NamedTuple):
    """A subject: its role (its colour), the words for it, the chapters that own it, and the beginnings of its files' names."""

    role: str
    words: str
    chapters: str
    files: tuple[str, ...]


AREAS: dict[str, Area] = {
    "space": Area("table", "address spaces, faults", "3, 7", (
        "memory", "mmap", "mprotect", "mremap", "gup", "pagewalk", "madvise", "mlock", "mincore", "msync", "vma", "util", "pgtable",
        "mmu_", "interval_tree", "nommu", "init-mm", "process_vm", "page_vma", "userfaultfd", "mseal", "debug_vm", "page_table",
        "ptdump", "rmap", "secretmem", "hmm", "pt_reclaim", "mmap_lock")),
    "pages": Area("free", "page frames, boot", "5, 19", (
        "page_alloc", "compaction", "page_isolation", "vmstat", "mm_init", "memblock", "sparse", "memory_hotplug", "page_owner",
        "page_ext", "cma", "debug_page", "show_mem", "mmzone", "page_reporting", "shuffle", "fail_page", "memtest", "bootmem",
        "page_poison", "page_frag", "debug.c", "memory-failure", "memremap", "hwpoison")),
    "kernel": Area("kernel", "slab, vmalloc, per CPU", "6", (
        "slub", "slab", "slob", "vmalloc", "percpu", "mempool.", "kmemleak", "dmapool", "highmem", "early_ioremap", "ioremap", "execmem",
        "failslab", "usercopy", "maccess", "io-mapping", "rodata")),
    "files": Area("file", "page cache, shmem", "10, 15", (
        "filemap", "shmem", "page-writeback", "readahead", "truncate", "backing-dev", "fadvise", "memfd", "mapping_dirty", "page_io",
        "folio-compat")),
    "reclaim": Area("anon", "reclaim, swap, OOM", "13, 17", (
        "vmscan", "swap", "workingset", "zswap", "z3fold", "zbud", "zsmalloc", "zpool", "oom_kill", "vmpressure", "list_lru",
        "frontswap", "page_idle", "shrinker")),
    "huge": Area("huge", "huge pages", "16", ("huge", "khugepaged")),
    "cgroup": Area("cma", "control groups", "8", ("memcontrol", "page_counter")),
    "moving": Area("hot", "NUMA, migration, KSM", "12", ("migrate", "mempolicy", "memory-tiers", "ksm", "numa", "balloon")),
}
_REST = Area("reserved", "the rest", "", ())


@cache
def lines_of(release: str) -> dict[str, int]:
    """Lines of each C file of mm/ itself; for 5.17 and 6.18 up to the last symbol, a line or a few short of the end."""
    found = {}
    for line in DATA.read_text(encoding="utf-8").splitlines():
        which, _, file, lines = line.split("\t")
        if which == release:
            found[file] = int(lines)
    return found


def area_of(file: str) -> str:
    """The subject of a file by the longest beginning of its name, or nothing."""
    name = file.removeprefix("mm/")
    fits = [(len(start), key) for key, area in AREAS.items() for start in area.files if name.startswith(start)]
    return max(fits)[1] if fits else ""


def largest(lines: dict[str, int], share: float) -> list[str]:
    """The fewest files that together hold this share of all lines."""
    total = sum(lines.values())
    chosen: list[str] = []
    for file in sorted(lines, key=lambda file: -lines[file]):
        if sum(lines[one] for one in chosen) >= share * total:
            break
        chosen.append(file)
    return chosen


def _squarify(sizes: Sequence[float], x: float, y: float, w: float, h: float) -> list[tuple[float, float, float, float]]:
    """Rectangles for sizes in falling order, as near to squares as rows allow (Bruls, Huizing, van Wijk)."""
    scale = w * h / sum(sizes)
    rest, out = [size * scale for size in sizes], []
    while rest:
        short = min(w, h)
        count, best = 1, float("inf")
        for number in range(1, len(rest) + 1):
            row = rest[:number]
            thick = sum(row) / short
            worst = max(max(thick * thick / size, size / thick / thick) for size in row)
            if worst > best:
                break
            count, best = number, worst
        row = rest[:count]
        thick, at = sum(row) / short, 0.0
        for size in row:
            out.append((x, y + at, thick, size / thick) if w >= h else (x + at, y, size / thick, thick))
            at += size / thick
        x, y, w, h = (x + thick, y, w - thick, h) if w >= h else (x, y + thick, w, h - thick)
        rest = rest[count:]
    return out


class _Treemap:
    """Areas inside of the rectangle, files inside of their area. ``lit`` are the files that are not faded."""

    def __init__(self, lines: dict[str, int], lit: set[str] | None, high: float):
        self.lines, self.lit, self.high = lines, lit, high

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw it; a file's key is ``key/<file>``."""
        groups: dict[str, list[str]] = {}
        for file in sorted(self.lines, key=lambda file: (-self.lines[file], file)):
            groups.setdefault(area_of(file), []).append(file)
        sums = {group: sum(self.lines[file] for file in files) for group, files in groups.items()}
        order = sorted(groups, key=lambda group: -sums[group])
        for group, (gx, gy, gw, gh) in zip(order, _squarify([sums[g] for g in order], x, y, width, self.high), strict=True):
            area = AREAS.get(group, _REST)
            files = groups[group]
            boxes = _squarify([self.lines[file] for file in files], gx + 1, gy + 1, gw - 2, gh - 2)
            for file, (fx, fy, fw, fh) in zip(files, boxes, strict=True):
                name = file.removeprefix("mm/").removesuffix(".c")
                dim = self.lit is not None and file not in self.lit
                tip = f"{file}: {grouped(self.lines[file])} lines; {area.words}"
                scene.rect(f"{key}/{file}", fx + 0.5, fy + 0.5, fw - 1, fh - 1, f"{area.role}{' dim' if dim else ''}", tip)
                if fw < 40 or fh < 16 or dim or fit_text(name, fw - 6, "small") != name:
                    continue
                scene.text(f"{key}/{file}.t", fx + 4, fy + 13.5, name, "small", f"on-{area.role}")
                if fh >= 32 and fw > 46:
                    scene.text(f"{key}/{file}.n", fx + 4, fy + 27, grouped(self.lines[file]), "small", f"on-{area.role}")
        scene.height = max(scene.height, round(y + self.high, 1))
        return self.high


def _names(files: Sequence[str]) -> str:
    names = [file.removeprefix("mm/") for file in files]
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


@figure(
    "The map of mm/",
    alt="A treemap of the C files in the kernel's mm folder: each rectangle is a file, its area the lines, its colour the subject.",
    params=[Choice("area", {"all": "all subjects"} | {key: area.words for key, area in AREAS.items()}, "all", label="subject")],
)
def source_treemap(area: str, width: float) -> Iterator[Frame]:
    """Draws the lines of every file in four releases, from the symbol indexes and the sources."""

    def shot(say: str, release: str, lit: set[str] | None, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        lines = lines_of(release)
        size = f"{grouped(sum(lines.values()))} lines"
        scene.add(_Treemap(lines, lit, 440 if scene.narrow else 380), "map", f"mm/*.c in {release}", size)
        present = {area_of(file) for file in lines}
        legend = {one.role: one.words for key, one in AREAS.items() if key in present}
        scene.add(Legend(legend | ({_REST.role: _REST.words} if "" in present else {})), "legend", gap=8)
        return Frame(scene, say, ask=ask)

    def about(release: str) -> tuple[str, set[str] | None]:
        lines = lines_of(release)
        files = {file for file in lines if area_of(file) == area}
        if area == "all":
            return "", None
        part = sum(lines[file] for file in files)
        return (f" {AREAS[area].words[0].upper()}{AREAS[area].words[1:]}: {len(files)} of the files and "
                f"{_percent(part, sum(lines.values()))} of the lines."), files

    first = lines_of("5.17")
    total = sum(first.values())
    half, four = largest(first, 0.5), sorted(first, key=lambda file: -first[file])[:4]
    more, lit = about("5.17")
    yield shot(f"Linux 5.17 has {len(first)} C files in mm/, {grouped(total)} lines together. Each area is a file, each colour a "
               f"subject.{more}", "5.17", lit,
               Ask("Take the largest files first. How many hold half of all lines?", len(half),
                   f"Half of {grouped(total)} lines; the smallest of the {len(half)} is {half[-1].removeprefix('mm/')}.", unit="files"))
    yield shot(f"{_names(four)}: four files of {len(first)} hold {_percent(sum(first[file] for file in four), total)} of the lines.",
               "5.17", set(four))
    yield shot(f"The {len(half)} largest files hold half of it. The other {len(first) - len(half)} hold the other half.", "5.17", set(half))
    before = "5.17"
    for release in RELEASES[1:]:
        old, lines = lines_of(before), lines_of(release)
        more, lit = about(release)
        new, gone = sorted(lines.keys() - old.keys(), key=lambda file: -lines[file]), sorted(old.keys() - lines.keys())
        grown = max((file for file in lines if file in old), key=lambda file: lines[file] - old[file])
        text = f"In {release} it is {grouped(sum(lines.values()))} lines in {len(lines)} files. {grown.removeprefix('mm/')} grew most, by "
        text += f"{grouped(lines[grown] - old[grown])}"
        text += f"; {new[0].removeprefix('mm/')} is new" if new else ""
        text += f"; {_names(gone[:3])} {'is' if len(gone) == 1 else 'are'} gone." if gone else "."
        yield shot(text + more, release, lit)
        before = release
