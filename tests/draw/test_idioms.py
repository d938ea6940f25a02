"""Every idiom keeps to its width, answers for its height, and names things so that they can move."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.draw import (
    AddressBar,
    Axis,
    Bar,
    Bits,
    Call,
    CallGraph,
    Entry,
    Field,
    FlowChart,
    FrameBoard,
    FreeLists,
    Item,
    Lane,
    Ledger,
    Legend,
    Level,
    Moment,
    Node,
    Region,
    RegionList,
    Run,
    Scene,
    Span,
    Step,
    Tank,
    Tape,
    TextPane,
    Timeline,
    TreeView,
    Way,
    runs_of,
    text_width,
)  # fmt: skip
from mmsim.draw.frameboard import _aligned_pieces, _hilbert
from mmsim.draw.scene import Idiom
from mmsim.draw.textpane import changed_parts
from mmsim.draw.theme import ROLES

NAMES = list(ROLES)
WORDS = ["RAM", "reserved by firmware", "x", "__alloc_pages_slowpath", "ACPI data, not to be touched by anyone", ""]


def some_runs(random: random.Random, frames: int) -> list[Run]:
    runs, at = [], 0
    while at < frames:
        count = min(random.choice([1, 2, 3, 8, 64]), frames - at)
        runs.append(Run(at, count, random.choice(NAMES), random.choice(WORDS)))
        at += count + random.choice([0, 0, 1])
    return runs


def some_spans(random: random.Random) -> list[Span]:
    edges = sorted(random.sample(range(1 << 33), 8))
    return [
        Span(a, b, random.choice(NAMES), random.choice(WORDS)) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


def some_tree(random: random.Random, depth: int = 0, key: str = "r") -> Node:
    children = random.randint(0, 3) if depth < 4 else 0
    nodes = [some_tree(random, depth + 1, f"{key}{number}") for number in range(children)]
    return Node(key, random.choice(WORDS) or "n", random.choice(NAMES), nodes, word=random.choice(["", "511"]))


def make(random: random.Random) -> Iterator[Idiom]:
    """One of each idiom, with data drawn at random."""
    frames = random.choice([16, 300, 4096, 20_000])
    yield FrameBoard(some_runs(random, frames), frames)
    yield FrameBoard(some_runs(random, 256), 256, hilbert=True, height=200)
    spans = some_spans(random)
    axis = Axis(0, 1 << 33, spans, scale=random.choice(["linear", "broken"]))
    yield AddressBar([Bar("firmware", spans), Bar("", spans[:1])], axis, cursor=1 << 30)
    lists = {
        (random.randrange(11), random.randrange(3)): random.sample(range(4096), random.randrange(40)) for _ in range(6)
    }
    taken: set[int] = set()
    for key, blocks in lists.items():
        lists[key] = [pfn for pfn in blocks if pfn not in taken]
        taken |= set(blocks)
    yield FreeLists(lists, [("Unmovable", "kernel"), ("Movable", "anon"), ("Reclaimable", "file")])
    yield Tape(
        [Item(str(n), random.choice(WORDS), random.choice(NAMES)) for n in range(random.randrange(50))], "list", most=20
    )
    yield Tank(
        "Normal",
        random.randrange(9000),
        5000,
        [Level(random.randrange(6000), f"{word} {n}") for n, word in enumerate(WORDS)],
    )
    yield Ledger(
        [Entry(f"{n}{word}", random.randrange(10**9), random.randrange(-99, 99)) for n, word in enumerate(WORDS)]
    )
    yield RegionList(
        [Region(str(n), [hex(random.randrange(1 << 40))] * 3, "free") for n in range(random.randrange(30))],
        ["base", "end", "size"],
    )
    yield TextPane(
        ["\t".join(random.choices(WORDS, k=9)) for _ in range(5)], old=["RAM"] * 5, rows=random.choice([0, 4])
    )
    yield Bits(
        random.getrandbits(64), [Field("PFN", 51, 12, "table"), Field("flags", 11, 0), Field("NX", 63, 63)], name="pte"
    )
    yield TreeView(some_tree(random))
    yield Timeline(
        [Lane("kswapd0", [Moment(1, 2, "file", "x"), Moment(3, 3, "anon")]), Lane("t", [])], 0, 10, "ms", now=4
    )
    yield CallGraph(
        [Call(random.randrange(4), word or "f", word, random.choice(["", "lit", "now", "failed"])) for word in WORDS]
    )
    steps = [
        Step("a", WORDS[4], 0, 0, "choice", "lit"),
        Step("b", "wake kswapd", 1, 0, "end"),
        Step("c", "x", 0, 1),
        Step("d", "y", 1, 2),
    ]
    yield FlowChart(steps, [Way("a", "b", "yes"), Way("a", "c", "no", True), Way("c", "d"), Way("c", "a", "again")])
    yield Legend(NAMES)


def right_edge(shape: dict[str, object]) -> float:
    kind, x = shape["t"], float(shape.get("x", 0))  # type: ignore[arg-type]
    if kind == "rect":
        return x + float(shape["w"])  # type: ignore[arg-type]
    if kind == "circle":
        return x + float(shape["r"])  # type: ignore[arg-type]
    if kind == "text":
        wide = text_width(str(shape["s"]), str(shape["f"]))
        return x + wide * {"start": 1, "middle": 0.5, "end": 0}[str(shape.get("a", "start"))]
    return x


@given(st.randoms(use_true_random=False), st.sampled_from([344.0, 720.0]))
@settings(deadline=None, max_examples=60)
def test_nothing_leaves_the_sheet_on_either_side(random: random.Random, width: float) -> None:
    for idiom in make(random):
        scene = Scene(width)
        scene.add(idiom, "i")
        for key, shape in scene.shapes.items():
            assert right_edge(shape) <= width + 1.5, (type(idiom).__name__, key, shape)
            start = float(shape.get("x", 0)) - (text_width(shape["s"], shape["f"]) if shape.get("a") == "end" else 0)
            assert start >= -4, (type(idiom).__name__, key, shape)


@given(st.randoms(use_true_random=False), st.sampled_from([344.0, 720.0]))
@settings(deadline=None, max_examples=30)
def test_the_height_returned_holds_all_shapes(random: random.Random, width: float) -> None:
    for idiom in make(random):
        scene = Scene(width)
        height = idiom.draw(scene, "i", 0, 0, width)
        lowest = max(
            (shape["y"] + shape.get("h", shape.get("r", 0)) for shape in scene.shapes.values() if "y" in shape),
            default=0,
        )
        assert lowest <= height + 2, type(idiom).__name__
        assert all(key.startswith("i") for key in scene.shapes)


@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_the_same_data_give_the_same_drawing(random: random.Random) -> None:
    for idiom in make(random):
        one, other = Scene(720), Scene(720)
        idiom.draw(one, "i", 0, 0, 720)
        idiom.draw(other, "i", 0, 0, 720)
        assert one == other


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
def test_the_hilbert_curve_visits_each_cell_once_and_only_neighbours_in_turn(side: int) -> None:
    cells = [_hilbert(side, distance) for distance in range(side * side)]
    assert len(set(cells)) == side * side
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in itertools.pairwise(cells))


@given(st.integers(0, 255), st.integers(0, 8), st.sampled_from([720.0, 344.0]))
@settings(deadline=None)
def test_an_aligned_block_covers_its_own_cells_of_the_hilbert_board(pfn: int, order: int, width: float) -> None:
    size = 1 << order
    start = pfn & ~(size - 1)
    scene = Scene(width)
    FrameBoard([Run(start, size, "free")], 256, hilbert=True, cell=10).draw(scene, "b", 0, 0, width)
    box = scene.shapes[f"b/{start:#x}"]
    inside = {
        distance for distance in range(256)
        for x, y in [_hilbert(16, distance)]
        if box["x"] <= x * 10 < box["x"] + box["w"] and box["y"] <= y * 10 < box["y"] + box["h"]
    }  # fmt: skip
    assert inside == set(range(start, start + size))


@given(st.integers(0, 5000), st.integers(1, 5000))
@settings(deadline=None)
def test_pieces_are_aligned_and_cover_the_run(start: int, count: int) -> None:
    pieces = _aligned_pieces(start, count)
    assert [frame for first, size in pieces for frame in range(first, first + size)] == list(
        range(start, start + count)
    )
    assert all(size & (size - 1) == 0 and first % size == 0 for first, size in pieces)


def area(shape: dict[str, float]) -> float:
    return shape["w"] * shape["h"]


def test_a_block_that_ends_in_the_next_row_is_drawn_as_one_shape() -> None:
    scene = Scene(720)
    FrameBoard([Run(6, 5, "anon")], 16, columns=8, cell=10).draw(scene, "b", 0, 0, 720)
    assert list(scene.shapes) == ["b/0x6"]
    assert scene.shapes["b/0x6"]["t"] == "path"


def test_a_board_too_large_for_cells_shows_what_most_frames_are() -> None:
    board = FrameBoard([Run(0, 10_000, "anon"), Run(10_000, 6384, "free")], 16_384, most=64)
    scene = Scene(720)
    board.draw(scene, "b", 0, 0, 720)
    assert board.per_cell == 256
    assert {shape["c"] for shape in scene.shapes.values()} == {"anon", "free"}


def test_runs_of_equal_roles_join() -> None:
    assert runs_of([]) == []
    assert [run.count for run in runs_of("aab")] == [2, 1]


@given(st.lists(st.integers(0, 1 << 40), min_size=2, max_size=12, unique=True), st.sampled_from(["linear", "broken"]))
@settings(deadline=None)
def test_an_axis_keeps_the_order_of_addresses(points: list[int], scale: str) -> None:
    points.sort()
    spans = [Span(a, b, "free") for a, b in zip(points[::2], points[1::2], strict=False)]
    axis = Axis(points[0], points[-1], spans, scale=scale)
    places = [axis.place(point) for point in points]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, pytest.approx(1))


def test_a_broken_axis_shows_a_small_range_beside_a_huge_one() -> None:
    spans = [Span(0, 0x9FC00, "free"), Span(0x9FC00, 0xA0000, "reserved"), Span(1 << 20, 1 << 34, "free")]
    axis = Axis(0, 1 << 34, spans, scale="broken")
    assert (axis.place(0xA0000) - axis.place(0x9FC00)) * 344 > 8


def test_labels_of_an_axis_do_not_touch() -> None:
    axis = Axis(0, 1 << 28)
    places = [(axis.place(tick) * 344, text_width(axis.show(tick), "small")) for tick in axis.ticks(344)]
    assert len(places) >= 3
    assert all(b - a >= (wide + other) / 2 - 20 for (a, wide), (b, other) in itertools.pairwise(places))


def test_a_block_keeps_its_key_when_it_changes_lists() -> None:
    drawings = []
    for lists in ({(3, 0): [0x40]}, {(4, 1): [0x40]}):
        scene = Scene(720)
        FreeLists(lists, [("Unmovable", "kernel"), ("Movable", "anon")]).draw(scene, "f", 0, 0, 720)
        drawings.append(scene.shapes["f/0x40"])
    assert drawings[0]["y"] != drawings[1]["y"]


def test_only_words_that_changed_are_marked() -> None:
    assert changed_parts("nr_free_pages 100", "nr_free_pages 99") == [(14, 16)]
    assert changed_parts("", "new line") == [(0, 3), (4, 8)]
    scene = Scene(720)
    TextPane("a 1\nb 2", old="a 1\nb 3").draw(scene, "t", 0, 0, 720)
    assert [key for key in scene.shapes if "mark" in key] == ["t/1.mark1"]


def test_a_line_too_long_for_a_phone_loses_blanks_before_it_folds_and_no_word() -> None:
    line = "Node 0, zone   Normal      1      2      3      4      5      6      7      8      9     10     11"
    scene = Scene(344)
    TextPane(line, marks={0: [(len(line) - 2, len(line))]}).draw(scene, "t", 0, 0, 344)
    shown = [shape["s"] for shape in scene.shapes.values() if shape["t"] == "text"]
    assert " ".join(shown).split() == line.split()
    assert any("mark" in key for key in scene.shapes)


@pytest.mark.parametrize("bad", [lambda: Axis(5, 5), lambda: Axis(0, 1, scale="log"), lambda: Timeline([], 1, 1)])
def test_an_impossible_axis_is_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        bad()


@pytest.mark.parametrize("width", [344, 720])
def test_a_large_change_in_a_ledger_stays_on_the_sheet(width: int) -> None:
    scene = Scene(width)
    scene.add(Ledger([Entry("free", 1_000_000_000, -999_999_999), Entry("used", 1, 1)]), "ledger")
    for key, shape in scene.shapes.items():
        if key.endswith(".mark"):
            assert shape["x"] + shape["w"] <= width


def test_the_name_of_an_address_bar_is_not_cut() -> None:
    scene = Scene(720)
    scene.add(AddressBar([Bar("memblock, memory", []), Bar("x", [])], Axis(0, 1 << 20)), "bar")
    assert "memblock, memory" in [shape.get("s") for shape in scene.shapes.values()]
