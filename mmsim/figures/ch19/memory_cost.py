"""Where 1.56 % goes: what a machine pays for describing its memory, and for everything else that boot takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsim.constants import SIZEOF_STRUCT_PAGE
from mmsim.draw import Ask, Choice, Frame, Scene, Toggle, figure, text_width
from mmsim.draw.ledger import grouped
from mmsim.figures.ch19.accounting import CATEGORIES, totals
from mmsim.figures.ch19.firmware import boot_pc
from mmsim.machine import Machine
from mmsim.units import GIB, MIB, PAGE_SIZE, format_bytes, memparse

__all__ = ["memory_cost", "leaf_table_pages", "hvo_saving"]

PTRS = 512
#: hugetlb_free_vmemmap=on, 5.17: of the 8 pages of struct pages of a 2 MiB huge page, two stay (see the recording hugetlb).
HVO_PAGES_FREED = 6
HUGE_PAGE = 2 * MIB
#: Their size follows that of RAM; everything else costs about the same on any machine.
GROWING = ("memmap", "hash", "tables")


@dataclass(frozen=True, slots=True)
class _Share:
    key: str
    words: str
    label: str
    role: str
    size: int


def leaf_table_pages(ram: int, page: int) -> int:
    """Tables of the lowest level that map ``ram`` bytes with pages of ``page`` bytes, at the best alignment.

    >>> [leaf_table_pages(16 << 30, size) for size in (4096, 2 << 20, 1 << 30)]
    [8192, 16, 1]
    """
    return -(-ram // (page * PTRS))


def hvo_saving(ram: int) -> int:
    """Bytes of struct pages that come back if all of ``ram`` is 2 MiB hugetlb pages and hugetlb_free_vmemmap=on."""
    return ram // HUGE_PAGE * HVO_PAGES_FREED * PAGE_SIZE


def _shares(machine: Machine) -> list[_Share]:
    """Who has how much of RAM after boot, the largest first."""
    last = machine.phases[-1]
    sums = totals(last.owners, [(region.base, region.end) for region in last.memory])
    shares = [
        _Share(kind.key, kind.words, kind.short, kind.role, sums[kind.key]) for kind in CATEGORIES if kind.key in sums
    ]
    return sorted(shares, key=lambda share: -share.size)


def _size(size: int) -> str:
    """A size for people: MiB with one digit where it is not a round number."""
    return f"{size / MIB:.1f} MiB" if MIB <= size < 100 * GIB and size % MIB else format_bytes(size)


class _Board:
    """A bar of RAM, the part that is gone magnified below it, and one row for each owner."""

    def __init__(self, ram: int, shares: list[_Share], width: float):
        self.ram, self.shares, self.width = ram, shares, width
        self.gone = sum(share.size for share in shares)

    def frame(self, say: str, shown: int, saved: int = 0, tables: bool = False, ask: Ask | None = None) -> Frame:
        """The first ``shown`` owners in colour; ``saved`` bytes of struct pages given back; the table of page tables if wanted."""
        scene = Scene(self.width)
        scene.caption("RAM", note=f"{_size(self.ram)}; what boot took is at the right, to scale")
        top = scene.y
        scene.rect("ram", 0, top, self.width, 26, "free", f"all RAM: {_size(self.ram)}")
        gone = max(self.width * self.gone / self.ram, 2)
        scene.rect("ram.gone", self.width - gone, top, gone, 26, "reserved", f"taken by boot: {_size(self.gone)}")
        scene.text(
            "ram.t", 8, top + 17, f"{100 - 100 * self.gone / self.ram:.2f} % for the page allocator", "small", "on-free"
        )
        scene.line("zoom.a", self.width - gone, top + 26, 0, top + 48, "grid")
        scene.line("zoom.b", self.width, top + 26, self.width, top + 48, "grid")
        scene.y = top + 48
        self._magnified(scene, shown, saved)
        self._rows(scene, shown, saved)
        if tables:
            self._tables(scene)
        return Frame(scene, say, ask=ask)

    def _magnified(self, scene: Scene, shown: int, saved: int) -> None:
        at, top = 0.0, scene.y
        for number, share in enumerate(self.shares):
            wide = self.width * share.size / self.gone
            label = share.words if text_width(share.words, "small") < wide - 8 else ""
            role = share.role if number < shown else ""
            tip = f"{share.words}: {_size(share.size)}, {100 * share.size / self.ram:.4f} % of RAM"
            scene.box(
                f"part/{share.key}", at, top, max(wide - 1, 1.5), 30, label, role, tip, cls="" if role else "ghost"
            )
            if saved and share.key == "memmap":
                back = wide * saved / share.size
                scene.box(
                    "part/saved",
                    at + wide - back,
                    top,
                    back - 1,
                    30,
                    "given back",
                    "free",
                    f"given back: {_size(saved)}",
                )
            at += wide
        scene.y = top + 34

    def _rows(self, scene: Scene, shown: int, saved: int) -> None:
        """Owner, size, share of RAM, and whether it grows with RAM."""
        narrow, step = scene.narrow, 20.0
        size_at, share_at = (self.width - 64, self.width) if narrow else (self.width - 270, self.width - 190)
        top = scene.y + 4
        for name, at, anchor in (("size", size_at, "end"), ("of RAM", share_at, "end")):
            scene.text(f"head/{name}", at, top + 11, name, "small", "muted", anchor)
        scene.line("head.rule", 0, top + 16, self.width, top + 16, "axis")
        top += 16
        for number, share in enumerate(self.shares):
            key, base = f"row/{share.key}", top + number * step + 14.5
            visible = number < shown
            size = share.size - (saved if share.key == "memmap" else 0)
            scene.rect(f"{key}.swatch", 2, base - 10.5, 11, 11, share.role if visible else "ghost")
            cls = "" if visible else "muted"
            scene.text(
                f"{key}.words", 22, base, share.label if narrow else share.words, "label", cls, width=size_at - 90
            )
            if visible:
                scene.text(f"{key}.size", size_at, base, _size(size), "small", "strong", "end")
                scene.text(f"{key}.share", share_at, base, f"{100 * size / self.ram:.4f} %", "small", "", "end")
                if not narrow:
                    words = "grows with RAM" if share.key in GROWING else "does not grow"
                    scene.text(f"{key}.kind", share_at + 20, base, words, "small", "muted")
        scene.y = top + len(self.shares) * step + 4
        scene.height = max(scene.height, scene.y)

    def _tables(self, scene: Scene) -> None:
        """Leaf tables of the direct map, by page size."""
        scene.caption("Lowest-level tables of the direct map", "tables")
        top, step = scene.y, 24.0
        for number, (name, page) in enumerate((("4 KiB", PAGE_SIZE), ("2 MiB", 2 * MIB), ("1 GiB", GIB))):
            count, y = leaf_table_pages(self.ram, page), top + number * step
            scene.text(f"tables/{name}", 0, y + 15, f"{name} pages", "small")
            room = self.width - 90 - 170
            wide = max(room * count / leaf_table_pages(self.ram, PAGE_SIZE), 2)
            scene.rect(f"tables/{name}.bar", 90, y + 2, wide, 18, "table", f"{grouped(count)} tables of 4 KiB")
            words = f"{grouped(count)} table{'s' if count > 1 else ''}, {format_bytes(count * PAGE_SIZE)}"
            scene.text(f"tables/{name}.t", 90 + wide + 8, y + 15, words, "small", "muted")
        scene.y = top + 3 * step
        scene.height = max(scene.height, scene.y)


@figure(
    "Where 1.56 % goes",
    alt="A bar of RAM with the part that boot took, magnified into struct pages, page tables, kernel image, hash tables and others, and a "
        "table of their sizes and shares.",
    params=[
        Choice("ram", {"256M": "256 MiB", "1G": "1 GiB", "5G": "5 GiB", "16G": "16 GiB", "64G": "64 GiB"}, default="16G", label="RAM"),
        Toggle("hvo", True, label="huge pages give struct pages back",
               help="hugetlb_free_vmemmap=on, all of RAM as hugetlb pages of 2 MiB"),
    ],
)  # fmt: skip
def memory_cost(ram: str, hvo: bool, width: float) -> Iterator[Frame]:
    """Boots the machine and adds up its provenance map."""
    size = memparse(ram)[0]
    machine = boot_pc(size)
    shares = _shares(machine)
    board = _Board(size, shares, width)
    memmap = next(share.size for share in shares if share.key == "memmap")
    place = next(number for number, share in enumerate(shares) if share.key == "memmap")
    yield board.frame(
        f"Booting took {_size(board.gone)} of {_size(size)}, {100 * board.gone / size:.2f} %, and keeps it. "
        f"{_size(memmap)} of that are struct pages: {SIZEOF_STRUCT_PAGE} bytes for each 4 KiB.", len(shares))  # fmt: skip
    yield board.frame(
        f"struct pages: {memmap // SIZEOF_STRUCT_PAGE} of them, in {memmap // PAGE_SIZE} frames. "
        "They describe those frames, too.",
        place + 1,
        ask=Ask("What would the page tables of the direct map cost, if all of it had 4 KiB pages? Count lowest-level tables.",
                leaf_table_pages(size, PAGE_SIZE), "One table of 512 entries maps 2 MiB with 4 KiB pages: an eighth of the struct pages.",
                unit="tables"))  # fmt: skip
    direct = machine.setup.direct_map
    assert direct is not None
    yield board.frame(
        f"Page tables are cheap, as the direct map has large pages: {len(direct.tables)} tables here. "
        f"With 4 KiB pages the lowest level alone "
        f"would be {_size(leaf_table_pages(size, PAGE_SIZE) * PAGE_SIZE)}.", len(shares), tables=True)  # fmt: skip
    fixed = sum(share.size for share in shares if share.key not in GROWING)
    yield board.frame(
        f"Everything that does not grow with RAM adds up to {_size(fixed)}: the kernel image, the first MiB, per-CPU areas"
        f"{', bounce buffers' if any(share.key == 'bounce' for share in shares) else ''}. On a small machine that is the larger part.",
        len(shares))  # fmt: skip
    if hvo:
        saved = hvo_saving(size)
        yield board.frame(
            f"If all {_size(size)} were huge pages of hugetlbfs with hugetlb_free_vmemmap=on, 6 of the 8 pages of struct pages "
            f"of each could go: {_size(saved)} come back, "
            f"and {100 * (memmap - saved) / size:.2f} % are left.", len(shares), saved)  # fmt: skip
