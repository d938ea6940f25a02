"""Page-table tax: 32 touched pages, and the tables that they need, as a function of how far apart they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from random import Random

from mmsim.constants import ZONE_NORMAL
from mmsim.draw import Ask, Choice, Entry, Frame, Ledger, Legend, Scene, Seed, figure
from mmsim.figures.ch03.the_walk import SMALL_SIZES
from mmsim.figures.ch05.machines import small_memory
from mmsim.paging.address import LEVEL_SHIFT, PAGE_LEVEL_SIZE, TableCost, level_name, table_cost
from mmsim.paging.contents import FrameContents
from mmsim.paging.pte import PAGE_SHARED
from mmsim.paging.tables import PageTables, TableMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.units import GIB, KIB, MIB, PAGE_SIZE, TIB, format_bytes

__all__ = ["PAGES", "STRIDES", "addresses", "page_table_tax", "tables_of"]

PAGES = 32
STRIDES: dict[str, int] = {
    "4K": 4 * KIB, "16K": 16 * KIB, "64K": 64 * KIB, "256K": 256 * KIB, "2M": 2 * MIB, "16M": 16 * MIB, "128M": 128 * MIB, "1G": GIB,
    "8G": 8 * GIB, "64G": 64 * GIB, "512G": 512 * GIB,
}
_BASE = 0x10000000000                       # 1 TiB: a place that all strides fit above


def addresses(pattern: str, stride: int, level: int, seed: int) -> list[int]:
    """Where the pages lie, in order."""
    size = PAGE_LEVEL_SIZE[level]
    if pattern == "dense":
        return [_BASE + number * size for number in range(PAGES)]
    if pattern == "random":
        rng, found = Random(seed), set[int]()
        while len(found) < PAGES:
            found.add(rng.randrange(128 * TIB // size - 1) * size)
        return sorted(found)
    return [_BASE + number * max(stride, size) for number in range(PAGES)]


def tables_of(addrs: list[int], level: int) -> PageTables:
    """Real tables, in frames of a machine of 4 MiB, that map pages at these addresses (all to one frame: only tables matter)."""
    tables = PageTables(TableMemory(PageAllocator(small_memory((ZONE_NORMAL, 1024))), FrameContents(1024)))
    for addr in addrs:
        tables.map_page(addr, 0, PAGE_SHARED, level)
    return tables


class _Icicle:
    """Below the PGD a row for each level: a box is a table, as wide as the touched pages that it maps."""

    def __init__(self, addrs: list[int], level: int):
        self.addrs, self.level = addrs, level

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """From the PGD down to the pages."""
        narrow = width < 480
        indent = 0.0 if narrow else 104.0
        cell = (width - indent) / len(self.addrs)
        top = y
        for level in range(4, self.level - 2, -1):
            row = level_name(level) if level >= self.level and level > 1 or level == 1 and self.level == 1 else ""
            if level < self.level:
                name, runs = "pages", [(addr, 1) for addr in self.addrs]
            else:
                shift = LEVEL_SHIFT[level + 1] if level < 4 else 63
                runs = [(group, len(list(found))) for group, found in groupby(addr >> shift for addr in self.addrs)]
                name = f"{row} table{'s' if len(runs) > 1 else ''}"
            label = f"{len(runs)} {name}"
            if narrow:
                scene.text(f"{key}/{level}.name", x, top + 12, label, "small", "muted")
                top += 17
            else:
                scene.text(f"{key}/{level}.name", x + indent - 12, top + 19, label, "small", "", "end")
            left = x + indent
            for number, (start, count) in enumerate(runs):
                role = "anon" if level < self.level else "table"
                tip = f"{start:#x}" if level < self.level else f"{row} table for {count} page{'s' if count > 1 else ''}"
                scene.rect(f"{key}/{level}/{number}", left, top, cell * count - (2 if narrow else 3), 28, role, tip, rx=2)
                left += cell * count
            top += 34
        return top - y


def _share(cost: TableCost, data: int) -> str:
    part = cost.pages * PAGE_SIZE / data
    return f"{part:.1f} bytes" if part >= 1 else f"{part * 100:.2f} %"


@figure(
    "The page-table tax",
    alt="32 touched pages in a row and above them the PTE, PMD and PUD tables that map them, each as wide as the pages it serves; the "
        "wider the pages lie apart, the more tables there are.",
    params=[
        Choice("pattern", {"stride": "equal distances", "dense": "side by side", "random": "random places"}),
        Choice("stride", {name: format_bytes(size) for name, size in STRIDES.items()}, default="2M", label="distance"),
        Choice("page", SMALL_SIZES, label="page size"),
        Seed(),
    ],
)
def page_table_tax(pattern: str, stride: str, page: int, seed: int, width: float) -> Iterator[Frame]:
    """Maps 32 pages in real tables, for one distance after the other, and counts the tables."""

    def shot(where: str, addrs: list[int], before: int, ask: Ask | None = None) -> Frame:
        tables = tables_of(addrs, page)
        cost = table_cost(addrs, page)
        data = PAGES * PAGE_LEVEL_SIZE[page]
        assert tables.pgtables_bytes == cost.pages * PAGE_SIZE
        scene = Scene(width)
        scene.add(_Icicle(addrs, page), "tree", "Tables, and the pages they map", where)
        scene.add(Ledger([
            Entry("touched, KiB", data // KIB), Entry("VmPTE, KiB", tables.pgtables_bytes // KIB, (tables.pgtables_bytes - before) // KIB),
            Entry("tables a page", f"{cost.pages / PAGES:.2f}"), Entry("table a byte", _share(cost, data)),
        ]), "ledger")
        scene.add(Legend({"table": "a table, 4 KiB", "anon": "a touched page"}), "legend", gap=10)
        counts = [f"{count} {name}" for count, name in zip(cost, ("PTE", "PMD", "PUD"), strict=False) if count]
        return Frame(scene, f"{PAGES} pages of {format_bytes(PAGE_LEVEL_SIZE[page])}, {where}: {', '.join(counts)} tables, "
                     f"{cost.pages} in all. That is {_share(cost, data)} of table for each byte mapped.", ask=ask)

    step = max(STRIDES[stride], PAGE_LEVEL_SIZE[page])
    where = {"dense": "side by side", "random": "at random places in 128 TiB",
             "stride": f"{format_bytes(step)} apart"}[pattern]
    chosen = addresses(pattern, step, page, seed)
    yield shot(where, chosen, tables_of(chosen, page).pgtables_bytes)
    before = 0
    sizes = [size for size in STRIDES.values() if size >= PAGE_LEVEL_SIZE[page]]
    for number, size in enumerate(sizes):
        addrs = addresses("stride", size, page, seed)
        ask = None
        if size == (64 * GIB if page == 2 else 16 * MIB):
            answer = table_cost(addresses("stride", sizes[number + 1], page, seed), page)
            ask = Ask(f"Next: {format_bytes(sizes[number + 1])} apart. How many tables in all, without the PGD?", answer.pages,
                      f"{answer.pte} PTE + {answer.pmd} PMD + {answer.pud} PUD tables.", unit="tables")
        yield shot(f"{format_bytes(size)} apart", addrs, before, ask)
        before = table_cost(addrs, page).pages * PAGE_SIZE
    addrs = addresses("random", 0, page, seed)
    yield shot("at random places in 128 TiB", addrs, before)
