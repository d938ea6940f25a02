"""Reverse-map x-ray: which areas a walk visits for one page, after a line or a star of forks."""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.draw import Ask, Choice, Entry, Frame, Ledger, Legend, Node, Range, Scene, Toggle, TreeView, figure
from mmsim.errors import InvariantError
from mmsim.figures.ch07.family import Family
from mmsim.process.rmap import Visit

__all__ = ["links", "make_family", "rmap_xray", "walk"]

SHAPES = {"line": "a line: each forks the next", "star": "a star: A forks all"}
PAGES_OF = {"root": "A, before the forks", "last": "the youngest, after its fork"}


def make_family(depth: int, shape: str, written: bool) -> Family:
    """``depth`` forks; page 0 is the root's, and page 1 the youngest's own. ``written``: every child writes page 0 again."""
    family = Family(2, waiting=False)
    family.write("A", 0)
    last = "A"
    for _ in range(depth):
        last = family.fork(last if shape == "line" else "A")
        if written:
            family.write(last, 0)
    family.write(last, 1)
    return family


def links(family: Family) -> dict[str, list[int]]:
    """For each member the numbers of the anon_vmas that its area is linked to, in the order of the members that own them."""
    owners = {family.area(letter).anon_vma: number for number, letter in enumerate(family.members)}
    return {letter: sorted(owners[anon_vma] for anon_vma in family.area(letter).anon_vma_chain) for letter in family.members}


def walk(family: Family, page: int) -> list[Visit]:
    """The walk for the page that the root (0) or the youngest (1) made."""
    letter = "A" if page == 0 else list(family.members)[-1]
    entry = family.entry(letter, page)
    if entry is None:
        raise InvariantError(f"{letter} has no page {page}")
    return family.user.rmap_walk(entry.pfn)


class _Links:
    """Rows are areas, columns anon_vmas; a dot is a link. The column of the walk is lit; visited rows say hit or miss."""

    def __init__(self, chains: dict[str, list[int]], column: int, visits: dict[str, bool], now: str):
        self.chains, self.column, self.visits, self.now = chains, column, visits, now

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        count = len(self.chains)
        names, result = 26.0, 52.0
        cell = min((width - names - result) / count, 44)
        step = 24.0
        top = y + 18
        if self.column >= 0:
            scene.rect(f"{key}.column", x + names + self.column * cell, y, cell, 18 + count * step, "mark", "the anon_vma of the page")
        for number, letter in enumerate(self.chains):
            scene.text(f"{key}.av{letter}", x + names + (number + 0.5) * cell, y + 12, letter, "small", "muted", "middle",
                       tip=f"the anon_vma of {letter}'s area")
        for row, (letter, chain) in enumerate(self.chains.items()):
            middle = top + (row + 0.5) * step
            scene.text(f"{key}.area{letter}", x, middle + 4, letter, "label", "strong", tip=f"the area of process {letter}")
            if chain:
                scene.line(f"{key}.wire{letter}", x + names + (chain[0] + 0.5) * cell, middle, x + names + (chain[-1] + 0.5) * cell, middle,
                           "grid")
            for number in chain:
                visited = number == self.column and letter in self.visits
                role = ("anon" if self.visits[letter] else "error") if visited else "free"
                mark = " focus" if letter == self.now and visited else ""
                tip = f"{letter}'s area is linked to the anon_vma of {list(self.chains)[number]}"
                scene.circle(f"{key}/{letter}{number}", x + names + (number + 0.5) * cell, middle, 7, f"{role}{mark}", tip)
            if letter in self.visits:
                hit = self.visits[letter]
                scene.text(f"{key}.said{letter}", x + names + count * cell + 8, middle + 4, "hit" if hit else "miss", "small",
                           "accent" if hit else "warn")
        bottom = top + count * step
        scene.height = max(scene.height, round(bottom, 1))
        return bottom - y


@figure(
    "Reverse-map x-ray",
    alt="A triangle of dots: the areas of a family of processes against the anon_vmas they are linked to. A walk for one page goes "
        "down one column and finds hits and misses.",
    params=[
        Range("depth", 1, 12, default=5, label="forks"),
        Choice("shape", SHAPES),
        Choice("page", PAGES_OF, label="a page made by"),
        Toggle("written", True, label="every child wrote its own copy"),
    ],
)
def rmap_xray(depth: int, shape: str, page: str, written: bool, width: float) -> Iterator[Frame]:
    """Forks real processes and walks with :func:`mmsim.process.rmap.rmap_walk`."""
    family = make_family(depth, shape, written)
    number = 0 if page == "root" else 1
    visits = walk(family, number)
    letters = {id(family.area(letter)): letter for letter in family.members}
    chains = links(family)
    total = sum(len(chain) for chain in chains.values())
    column = 0 if page == "root" else len(chains) - 1
    done: dict[str, bool] = {}

    def shot(say: str, now: str = "", lit: int = -1, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        scene.text("rows", 0, 12, "rows: areas; columns: anon_vmas", "small", "muted")
        scene.y = 14
        scene.row([("links", _Links(chains, lit, dict(done), now), "", 1.25),
                   ("tree", TreeView(_tree(family, "A", number, done), indented=True), "Processes, and the frame each has there", 1)],
                  above=4, gap=40)
        hits = sum(done.values())
        scene.add(Ledger([Entry("links", total), Entry("visited", len(done)), Entry("hits", hits)], columns=1 if scene.narrow else 3),
                  "counts", gap=12)
        scene.add(Legend({"free": "a link (anon_vma_chain)", "anon": "visited, maps the page", "error": "visited for nothing"}), "legend",
                  gap=10)
        return Frame(scene, say, ask=ask)
    family_words = "forked the next" if shape == "line" else "was forked by A"
    hits = sum(visit.hit for visit in visits)
    yield shot(f"{len(chains)} processes, each {family_words}; their areas have {total} links. A dot: pages recorded in this column's "
               "anon_vma may be mapped by this row's area.",
               ask=Ask("The kernel looks for all mappings of one page, which " + ("A" if page == "root" else "the youngest") + " made. "
                       "How many areas must it ask?", len(visits), f"All that are linked to the anon_vma of the page: {len(visits)}. "
                       f"{hits} of them map{'s' if hits == 1 else ''} it."))
    owner = list(chains)[column]
    yield shot(f"The page was made by {owner}, so its mapping is the anon_vma of {owner}: only this column is searched.", lit=column)
    for visit in visits:
        letter = letters[id(visit.vma)]
        done[letter] = visit.hit
        what = "its page table has the frame: a hit" if visit.hit else "its page table has another frame there: a miss"
        yield shot(f"{letter}: the page would be at {visit.address:#x}; {what}.", letter, column)
    hits = sum(done.values())
    other = " A page that the youngest made is in its own column, with one dot." if page == "root" else ""
    yield shot(f"{len(visits)} area{'' if len(visits) == 1 else 's'} {'was' if len(visits) == 1 else 'were'} asked for {hits} "
               f"mapping{'' if hits == 1 else 's'}.{other}", "", column)


def _tree(family: Family, letter: str, page: int, done: dict[str, bool]) -> Node:
    entry = family.entry(letter, page)
    role = ("anon" if done[letter] else "error") if letter in done else "free"
    label = f"{letter}: {family.name(entry.pfn) if entry else 'none'}"
    children = [_tree(family, child, page, done) for child, parent in family.parents.items() if parent == letter]
    return Node(letter, label, role, children)
