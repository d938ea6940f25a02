"""Direct map ladder: each step maps enough memory to hold the page tables of a step 256 times as large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2

from mmsim.boot.brk import BrkArea
from mmsim.boot.direct_map import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, DirectMap, MapStep
from mmsim.boot.image import IMAGE_5_17
from mmsim.boot.memblock import Memblock
from mmsim.draw import AddressBar, Ask, Axis, Bar, Choice, Frame, Legend, Scene, Span, figure, short_size, text_width
from mmsim.draw.ledger import grouped
from mmsim.errors import InputError
from mmsim.figures.ch19.firmware import pc_memblock
from mmsim.units import GIB, MIB, PAGE_SIZE, format_bytes, memparse

__all__ = ["direct_map_ladder"]

_PAGE = {PG_LEVEL_4K: "4k", PG_LEVEL_2M: "2M", PG_LEVEL_1G: "1G"}


@dataclass(slots=True)
class _Rung:
    """One step in plain data: what it mapped, with which pages, and the tables it took."""

    start: int
    end: int
    step_size: int
    mapped: list[tuple[int, int, str]]
    tables: list[tuple[int, str]]
    room: int

    @property
    def size(self) -> int:
        return sum(end - start for start, end, _ in self.mapped)


def _rungs(direct: DirectMap, memblock: Memblock) -> list[_Rung]:
    ram = [(start, end) for start, end, _ in memblock.for_each_mem_range()]
    done, rungs, brk_left = 0, [], direct.pgt_buf_top - (direct.brk.start >> 12)
    for number, step in enumerate(direct.steps):
        pieces = [(p.start, p.end, _PAGE[p.level]) for p in direct.pieces if step.start <= p.start < step.end]
        room = brk_left if number < 2 else done // PAGE_SIZE
        brk_left -= sum(1 for table in step.tables if table.source == "brk")
        rungs.append(
            _Rung(
                step.start,
                step.end,
                step.step_size,
                pieces or _clip(ram, step),
                [(t.address, t.source) for t in step.tables],
                room,
            )
        )
        done += rungs[-1].size if number else 0
    return rungs


def _clip(ram: list[tuple[int, int]], step: MapStep) -> list[tuple[int, int, str]]:
    return [(max(a, step.start), min(b, step.end), "") for a, b in ram if a < step.end and step.start < b]


def _runs(tables: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """Neighbouring frames as ranges."""
    runs: list[list[int]] = []
    for address in sorted(address for address, _ in tables):
        if runs and runs[-1][1] == address:
            runs[-1][1] += PAGE_SIZE
        else:
            runs.append([address, address + PAGE_SIZE])
    return [(start, end) for start, end in runs]


class _Board:
    """The bars on one axis, and the rungs climbed so far."""

    def __init__(
        self, memblock: Memblock, rungs: list[_Rung], kernel: tuple[int, int], brk: tuple[int, int], width: float
    ):
        self.ram = [(start, end) for start, end, _ in memblock.for_each_mem_range()]
        self.rungs, self.kernel, self.brk, self.width = rungs, kernel, brk, width
        spans = [Span(start, end, "free") for rung in rungs for start, end, _ in rung.mapped]
        spans += [Span(start, end, "table") for start, end in _runs([t for rung in rungs for t in rung.tables])]
        spans.append(Span(*kernel, "kernel"))
        self.axis = Axis(0, self.ram[-1][1], spans, scale="broken")

    def frame(self, say: str, climbed: int, probe: tuple[int, int] | None = None, ask: Ask | None = None) -> Frame:
        """The state after ``climbed`` rungs; the newest is marked."""
        scene = Scene(self.width)
        ram = [
            Span(a, b, "free", "RAM" if b - a > GIB // 8 else "", f"RAM: {a:#x}-{b - 1:#x}, {format_bytes(b - a)}")
            for a, b in self.ram
        ]
        kernel = [
            Span(*self.kernel, "kernel", "", f"kernel image and brk: {self.kernel[0]:#x}-{self.kernel[1] - 1:#x}")
        ]
        if probe:
            kernel.append(Span(*probe, "moving", "2M", f"memblock: a free, aligned 2 MiB block at {probe[0]:#x}"))
        mapped, tables = [], []
        for number, rung in enumerate(self.rungs[:climbed]):
            newest = number == climbed - 1
            for start, end, page in rung.mapped:
                mapped.append(
                    Span(
                        start,
                        end,
                        "moving" if newest else "free",
                        page,
                        f"mapped with {page} pages: {start:#x}-{end - 1:#x}",
                    )
                )
            for start, end in _runs(rung.tables):
                count = (end - start) // PAGE_SIZE
                tables.append(
                    Span(
                        start,
                        end,
                        "table",
                        grouped(count),
                        f"{count} page table{'s' if count > 1 else ''}: {start:#x}-{end - 1:#x}",
                        "focus" if newest else "",
                    )
                )
        scene.add(AddressBar([
            Bar("RAM", ram, key="ram"), Bar("image", kernel, "what the loader mapped", key="image"),
            Bar("direct map", mapped, "mapped at one virtual offset", key="map"),
            Bar("its tables", tables, "the frames that hold the tables", key="tables"),
        ], self.axis, thick=20, gap=7, names=82), "bars")  # fmt: skip
        self._ladder(scene, climbed)
        scene.add(
            Legend({"free": "RAM, mapped", "moving": "this step", "table": "page tables", "kernel": "kernel image"}),
            "legend",
            gap=8,
        )
        return Frame(scene, say, ask=ask)

    def _ladder(self, scene: Scene, climbed: int) -> None:
        """One row a rung: a bar as long as the logarithm of what it mapped, and the tables against the room for them."""
        narrow = scene.narrow
        scene.caption("The ladder", note="bars grow with the logarithm of the size")
        left, row = (0.0 if narrow else 82.0), (46.0 if narrow else 24.0)
        most = max(log2(max(rung.size, PAGE_SIZE) / PAGE_SIZE) for rung in self.rungs)
        room = (scene.width if narrow else 300.0) - 4
        top = scene.y
        for number, rung in enumerate(self.rungs):
            y, key = top + number * row, f"rung{number}"
            climbed_already = number < climbed
            label = "first MiB" if not number else f"step {short_size(rung.step_size)}"
            words = (
                f"{format_bytes(rung.size)} mapped"
                if rung.size % MIB == 0
                else f"{grouped(rung.size >> 20)} MiB mapped"
            )
            takes = f"{grouped(len(rung.tables))} table{'' if len(rung.tables) == 1 else 's'}"
            place = "brk frames" if number < 2 else "mapped frames"
            detail = f"{takes}; room: {grouped(rung.room)} {place}"
            baseline = y + (12 if narrow else 16)
            scene.text(f"{key}.step", 0, baseline, label, "small", "" if climbed_already else "muted")
            if narrow:
                scene.text(f"{key}.detail", scene.width, baseline, detail, "small", "muted", "end")
            else:
                scene.text(f"{key}.detail", left + room + 12, baseline, detail, "small", "muted")
            wide = max(room * log2(max(rung.size, PAGE_SIZE) / PAGE_SIZE) / most, 3)
            role = "moving" if number == climbed - 1 else "free"
            at = y + (18 if narrow else 2)
            if climbed_already:
                scene.rect(f"{key}.bar", left, at, wide, 20, role, f"{rung.start:#x}-{rung.end - 1:#x}")
                inside = text_width(words, "small") < wide - 8
                if inside:
                    scene.text(f"{key}.words", left + 6, at + 14.5, words, "small", f"on-{role}")
                else:
                    scene.text(f"{key}.words", left + wide + 6, at + 14.5, words, "small", "muted")
            else:
                scene.rect(f"{key}.bar", left, at, wide, 20, "ghost")
        scene.y = top + len(self.rungs) * row
        scene.height = max(scene.height, scene.y)


@figure(
    "Direct map ladder",
    alt="Bars of RAM, of what is mapped, and of the frames that hold the page tables, over a ladder whose steps grow from 2 MiB to 512 MiB "
    "and 128 GiB, each with the tables it needs and the room for them.",
    params=[
        Choice(
            "ram",
            {"256M": "256 MiB", "1G": "1 GiB", "5G": "5 GiB", "64G": "64 GiB", "512G": "512 GiB"},
            default="5G",
            label="RAM",
        ),
        Choice("pages", {"4k": "4 KiB (debug_pagealloc=on)", "2M": "2 MiB", "1G": "1 GiB"}, label="largest page"),
    ],
)
def direct_map_ladder(ram: str, pages: str, width: float) -> Iterator[Frame]:
    """Runs :meth:`mmsim.boot.direct_map.DirectMap.init_mem_mapping` on a machine with so much RAM."""
    size = memparse(ram)[0]
    if pages == "4k" and size > 8 * GIB:
        raise InputError("4 KiB pages for so much RAM take millions of entries: choose 5 GiB or less, or larger pages")
    memblock, image = pc_memblock(size), IMAGE_5_17
    memblock.reserve(image.start, image.end - image.start, who="kernel image")
    brk = BrkArea(image.end, image.end + 64 * 1024)
    direct = DirectMap(memblock, brk, gbpages=pages == "1G", pse=pages != "4k", pgt_buf_pages=image.pgt_buf_pages)
    brk.reserve(memblock)
    direct.init_mem_mapping(memblock.end_of_DRAM() >> 12)
    direct.check()
    rungs = _rungs(direct, memblock)
    board = _Board(memblock, rungs, (image.start, brk.end), (brk.start, brk.end), width)
    yield from _story(board, rungs, direct, memblock, pages)


def _story(board: _Board, rungs: list[_Rung], direct: DirectMap, memblock: Memblock, pages: str) -> Iterator[Frame]:
    total = len(direct.tables)
    yield board.frame(
        f"Only the kernel image is mapped, by tables that are part of it. Six frames of its brk area are set aside for new tables. "
        f"To map all {memblock.phys_mem_size() >> 20} MiB with pages of up to {pages} takes {total} tables.", 0,
        ask=Ask("Each table must be written before it is used, through an address that is mapped. "
                "How many of the tables can be made now?", min(6, total),
                "The frames of the brk area are all that is mapped and free. "
                "More tables can be made only when more memory is mapped.", unit="tables"),
    )  # fmt: skip
    yield board.frame(
        "The first MiB comes first, on its own: a PUD, a PMD and a PTE table, all from brk. It is always mapped, holes or not.",
        1,
    )
    probe = rungs[1]
    yield board.frame(
        f"memblock is asked for a free, aligned 2 MiB block as high as possible, and at once gives it back: "
        f"[{probe.start:#x}, {probe.end:#x}). "
        "Here the map starts.", 1, (probe.start, probe.end))  # fmt: skip
    for number, rung in enumerate(rungs[1:], 2):
        tables, taken = len(rung.tables), sum(1 for _, source in rung.tables if source == "memblock")
        where = (
            "no new table is needed"
            if not tables
            else (
                f"it takes {tables} new table{'' if tables == 1 else 's'}, "
                + (
                    "all from brk"
                    if not taken
                    else f"{tables - taken} from brk and {taken} from memory mapped before"
                    if taken < tables
                    else "all from memory mapped before"
                )
            )
        )
        behind = rung.start >= probe.end
        what = (
            "The rest above the first block"
            if behind
            else f"Step of {short_size(rung.step_size)}, downwards to {short_size(rung.start)}"
        )
        ask = None
        if number == 3 and taken:
            ask = Ask(
                "The next step is 256 times as large. Why not 512 times, when a table has 512 entries?",
                "so that the tables surely fit",
                "With 512 times the step, its lowest-level tables alone would fill everything mapped so far, "
                "with nothing left for the levels above "
                "and for what is reserved there.",
                choices=["a table covers only half", "so that the tables surely fit", "to keep the map aligned"],
            )
        yield board.frame(
            f"{what}: {format_bytes(rung.size) if rung.size % MIB == 0 else f'{rung.size >> 20} MiB'} are mapped; {where}.",
            number,
            ask=ask,
        )
    counts = ", ".join(f"{count} × {_PAGE[level]}" for level, count in direct.direct_pages_count.items() if count)
    yield board.frame(
        f"All RAM is mapped: {counts}, in {len(direct.tables)} tables. load_cr3() switches to the new tables, "
        f"and memblock may now allocate "
        f"up to {direct.max_pfn_mapped << 12:#x}.", len(rungs))  # fmt: skip
