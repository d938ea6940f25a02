"""The symbol indices of the four releases (tests/golden/symbols-*.tsv.gz): which names there are, of what kind, in which file."""

from __future__ import annotations

import gzip
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ("5.17", "6.1", "6.12", "6.18")
BASELINE = RELEASES[0]
# The kinds of the index, the most telling first: where a name is several things, or in several files, this decides.
KINDS = {
    "f": "function", "f-gen": "function, made by a macro", "syscall": "system call", "s": "structure", "u": "union", "g": "enumeration",
    "v": "variable", "d": "macro", "t": "type", "e": "constant", "tracepoint": "tracepoint", "p": "function",
    "member": "member of a structure",
}
FUNCTIONS = ("f", "f-gen", "syscall", "p")
# The book's kernel has SLUB, an MMU and 64 bits: what these files define of the same name isn't meant.
OTHERS = re.compile(r"mm/(?:slab|slob|nommu|percpu-km)\.c$|include/linux/sl[ao]b_def\.h$|_32[._]|-[23]level|include/asm-generic/")
# What the indices leave out and the book names: a header that ctags was not given.
MORE = {
    "5.17": (("kmem_cache_cpu", "s", "include/linux/slub_def.h"), ("kmem_cache", "s", "include/linux/slub_def.h")),
    "6.1": (("kmem_cache_cpu", "s", "include/linux/slub_def.h"), ("kmem_cache", "s", "include/linux/slub_def.h")),
}
FOLDERS = ("include/linux/slub_def.h", "mm/", "include/linux/", "arch/x86/", "kernel/", "fs/", "include/")


class Symbol(NamedTuple):
    """One line of an index."""

    name: str
    kind: str                           # a key of KINDS
    file: str
    line: int                           # 0 where it isn't known


@cache
def index(release: str) -> dict[str, tuple[Symbol, ...]]:
    """Every name of a release with all places where it is defined or declared."""
    found: dict[str, list[Symbol]] = {}
    with gzip.open(ROOT / "tests" / "golden" / f"symbols-{release}.tsv.gz", "rt") as lines:
        for line in lines:
            if not line.startswith("#"):
                name, kind, file, number, *_ = line.rstrip("\n").split("\t")
                found.setdefault(name, []).append(Symbol(name, kind, file, int(number)))
    for name, kind, file in MORE.get(release, ()):
        found.setdefault(name, []).insert(0, Symbol(name, kind, file, 0))
    return {name: tuple(places) for name, places in found.items()}


def releases_of(name: str) -> list[str]:
    """The releases that have a name."""
    return [release for release in RELEASES if name in index(release)]


@cache
def files(release: str) -> frozenset[str]:
    """The files of a release that define something."""
    return frozenset(place.file for places in index(release).values() for place in places)


def rank(symbol: Symbol) -> tuple[int, bool, int, str, int]:
    """What sorts the place that a reader means before the others."""
    folder = next((number for number, start in enumerate(FOLDERS) if symbol.file.startswith(start)), len(FOLDERS))
    return list(KINDS).index(symbol.kind), bool(OTHERS.search(symbol.file)), folder, symbol.file, symbol.line


def main_place(name: str, release: str = BASELINE, kinds: tuple[str, ...] = tuple(KINDS)) -> Symbol | None:
    """The place that a reader of the book means by a name, or None."""
    return min((place for place in index(release).get(name, ()) if place.kind in kinds), key=rank, default=None)
