"""The index of kernel symbols: where the book explains each, its file in 5.17, and which of four releases have it.

Made anew by each build from the chapters and the symbol indices: every name in code font of a chapter's prose that a kernel has. A chapter
that is added is in it.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from tools.kernel_symbols import BASELINE, FUNCTIONS, KINDS, RELEASES, Symbol, files, index, main_place, releases_of

CHAPTER = re.compile(r"book/(\d\d)-")
TAGGED = re.compile(r"\b(struct|union|enum) (\w+)")
TOKEN = re.compile(r"(?<![\w$.>-])([A-Za-z_]\w*)(\(\))?(?!\w)")
FILE = re.compile(r"[a-z]\w*/[\w./-]+\.[chS]")
CALLED = (*FUNCTIONS, "d")
TAGS = {"struct": ("s",), "union": ("u",), "enum": ("g",)}
STRONG = ("f", "f-gen", "syscall", "s", "u", "g", "d", "v", "t", "e", "tracepoint")     # a plain word counts as one of these only
MEMBERS = ("mm/", "include/linux/", "arch/x86/include/")        # where structures are that the book means
# Sections that repeat or ask, and don't explain.
ASIDE = ("Predict", "Since 5.17", "Exercises", "Summary", "Terms", "Reading", "References", "War story")
EXPLAINS = "What Linux does"
SHOWN = 3                               # code that is quoted explains a function as well as three mentions


@dataclass(frozen=True)
class Place:
    """A section of a chapter that names a symbol."""

    docname: str
    section: str                        # its id
    title: str
    anchor: str                         # the id of the first such name in it
    path: tuple[str, ...]               # the titles from the chapter's down to the section's
    in_title: bool = False
    count: int = 1                      # how often the section names it

    @property
    def chapter(self) -> int:
        return int(CHAPTER.match(self.docname).group(1))        # type: ignore[union-attr]

    @property
    def weight(self) -> int:
        """How likely the section is the one that explains what it names: the lower the better."""
        if any(title.startswith(ASIDE) for title in self.path):
            return 3
        return 0 if self.in_title else 1 if EXPLAINS in self.path else 2


def names_in(span: str, own: frozenset[str] = frozenset()) -> Iterator[str]:
    """The kernel's symbols in a piece of code font, as they are shown: ``struct page``, ``alloc_pages()``, ``GFP_KERNEL``.

    ``own`` holds what the page's own code defines: a plain word among these is not the kernel's.
    """
    tagged = {match[2]: match[0] for match in TAGGED.finditer(span) if find(match[2], TAGS[match[1]])}
    yield from tagged.values()
    for match in TOKEN.finditer(span):
        name, call = match[1], bool(match[2])
        plain = not call and "_" not in name
        if name in tagged or (name in own and "_" not in name.strip("_")):
            continue
        if plain and span == name and find(f"sys_{name}", ("syscall",)):
            call = True                                # `mmap`: the system call
        elif plain and (span != name or not is_plain_symbol(name)):
            continue
        symbol = find_call(name) if call else find(name)
        if symbol is not None and (symbol.kind != "member" or symbol.file.startswith(MEMBERS)):
            yield f"{symbol.name.removeprefix('sys_')}()" if call or symbol.kind in FUNCTIONS else shown(symbol)


def find(name: str, kinds: tuple[str, ...] = tuple(KINDS)) -> Symbol | None:
    """The symbol in the oldest release that has it."""
    return next((symbol for release in RELEASES if (symbol := main_place(name, release, kinds))), None)


def is_plain_symbol(name: str) -> bool:
    """Whether a word without underscore, alone in code font, means the kernel's: not a member, nor a file's own abbreviation."""
    symbol = main_place(name, BASELINE, STRONG)
    return symbol is not None and (symbol.kind != "d" or symbol.file.endswith(".h"))


def find_call(name: str) -> Symbol | None:
    """What a name with parentheses stands for: a function, a macro that is used like one, or a system call."""
    return find(f"sys_{name}", ("syscall",)) or find(name, CALLED)


def shown(symbol: Symbol) -> str:
    """The name of what is no function, as text writes it."""
    before = {kinds[0]: f"{tag} " for tag, kinds in TAGS.items()}.get(symbol.kind, "")
    return f"{before}{symbol.name}"


def bare(text: str) -> str:
    """The symbol's name alone."""
    return text.rpartition(" ")[2].removesuffix("()")


def symbol_of(text: str) -> Symbol:
    """What a name as it is shown stands for. Raise LookupError for one that no index has."""
    tag, name = text.rpartition(" ")[0], bare(text)
    symbol = find(name, TAGS[tag]) if tag else find_call(name) if text.endswith("()") else find(name)
    if symbol is None:
        raise LookupError(text)
    return symbol


def own_names(path: Path) -> frozenset[str]:
    """What the code of a notebook defines."""
    if path.suffix != ".ipynb":
        return frozenset()
    found: set[str] = set()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    found.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found.add(node.id)
    return frozenset(found)


class Occurrences(SphinxTransform):
    """Note where a chapter names kernel symbols and files, and give the first of each section an id to lead to."""

    default_priority = 875

    def apply(self, **kwargs: Any) -> None:
        if not CHAPTER.match(self.env.docname):
            return
        own = own_names(Path(self.env.doc2path(self.env.docname)))
        places: dict[str, list[Place]] = {}
        for literal in self.document.findall(nodes.literal):
            span = literal.astext()
            found = {name: f"sym-{bare(name)}" for name in names_in(span, own)}
            if FILE.fullmatch(span.split(":")[0]) and any(span.split(":")[0] in files(release) for release in RELEASES):
                found = {span.split(":")[0]: "file-" + re.sub(r"\W", "-", span.split(":")[0])}
            for name, identity in found.items():
                self.note(literal, name, identity, places.setdefault(name, []))
        for block in self.document.findall(nodes.literal_block):     # the model's code, quoted: its functions bear the kernel's names
            head = re.match(r"\s*(?:@\w+\s+)*def (\w+)\(", block.astext())
            if block.get("source", "").endswith(".py") and head and (symbol := find(head[1], FUNCTIONS)):
                self.note(block, f"{symbol.name}()", f"code-{symbol.name}", places.setdefault(f"{symbol.name}()", []), SHOWN)
        self.env.mm_symbol_places[self.env.docname] = places         # type: ignore[attr-defined]

    def note(self, literal: nodes.Element, name: str, identity: str, known: list[Place], count: int = 1) -> None:
        """Add the section that a name stands in, if it isn't known yet."""
        sections = []
        title, node = False, literal.parent
        while node is not None:
            title = title or isinstance(node, nodes.title)
            if isinstance(node, nodes.section) and isinstance(node[0], nodes.title):     # an exercise is a section, too
                sections.append(node)
            node = node.parent
        section = sections[0]
        for number, place in enumerate(known):
            if place.section == section["ids"][0]:
                known[number] = replace(place, count=place.count + count)
                return
        anchor = section["ids"][0]
        if not title:
            anchor = identity if not known else f"{identity}-{len(known) + 1}"
            literal["ids"].append(anchor)
        path = tuple(one[0].astext() for one in reversed(sections))
        known.append(Place(self.env.docname, section["ids"][0], path[-1], anchor, path, title, count))


class symbol_index(nodes.General, nodes.Element):
    """Where the index goes."""


class file_index(nodes.General, nodes.Element):
    """Where the index of source files goes."""


class SymbolIndex(SphinxDirective):
    """``{kernel-symbols}``"""

    def run(self) -> list[nodes.Node]:
        return [symbol_index()]


class FileIndex(SphinxDirective):
    """``{kernel-files}``"""

    def run(self) -> list[nodes.Node]:
        return [file_index()]


def places_of(env: BuildEnvironment) -> dict[str, list[Place]]:
    """Every symbol with the sections that name it, the one that explains it first, the others in reading order."""
    everywhere: dict[str, list[Place]] = {}
    for _, places in sorted(env.mm_symbol_places.items()):           # type: ignore[attr-defined]
        for name, found in places.items():
            everywhere.setdefault(name, []).extend(found)
    return {name: [main := explains(found), *(one for one in found if one is not main)] for name, found in everywhere.items()}


def explains(found: list[Place]) -> Place:
    """The section that most likely explains: no aside, rather of "What Linux does", and there the one that names it most often."""
    sections = Counter(place.chapter for place in found)
    return min(found, key=lambda place: (place.weight, -place.count, -sections[place.chapter], place.chapter))


def sort_key(name: str) -> tuple[str, str]:
    """By letters; underscores in front don't count."""
    return bare(name).lstrip("_").lower(), name


class Fill(SphinxPostTransform):
    """Write the indices; all chapters have been read by now."""

    default_priority = 4

    def run(self, **kwargs: Any) -> None:
        places = None
        for node in list(self.document.findall(lambda one: isinstance(one, symbol_index | file_index))):
            places = places or places_of(self.env)
            wanted = isinstance(node, file_index)
            names = sorted((name for name in places if ("/" in name) == wanted), key=sort_key)
            node.replace_self(self.files(names, places) if wanted else self.symbols(names, places))

    def symbols(self, names: list[str], places: dict[str, list[Place]]) -> list[nodes.Node]:
        """A section for each letter, behind a line of links to them."""
        letters: dict[str, list[str]] = {}
        for name in names:
            letters.setdefault(sort_key(name)[0][:1].upper(), []).append(name)
        line = nodes.paragraph(classes=["mm-letters"])
        made: list[nodes.Node] = [line]
        for letter, group in letters.items():
            line += [nodes.reference("", letter, internal=True, refid=f"symbols-{letter.lower()}"), nodes.Text(" ")]
            made.append(nodes.rubric("", letter, ids=[f"symbols-{letter.lower()}"], classes=["mm-letter"]))
            made.append(self.listing(group, places))
        return made

    def files(self, names: list[str], places: dict[str, list[Place]]) -> list[nodes.Node]:
        return [self.listing(names, places)]

    def listing(self, names: list[str], places: dict[str, list[Place]]) -> nodes.definition_list:
        """Each name, what it is and where it is from, and the sections that name it."""
        listed = nodes.definition_list(classes=["mm-symbols"])
        for name in names:
            term = nodes.term("", "", nodes.literal("", name))
            definition = nodes.definition()
            definition += nodes.paragraph("", "", *self.origin(name), classes=["mm-origin"])
            definition += self.links(places[name])
            listed += nodes.definition_list_item("", term, definition)
        return listed

    def origin(self, name: str) -> list[nodes.Node]:
        """Kind, file and releases."""
        if "/" in name:
            present = [release for release in RELEASES if name in files(release)]
            return [nodes.Text(in_releases(present))]
        symbol = symbol_of(name)
        present = releases_of(symbol.name)
        file = symbol.file if present[0] == BASELINE else f"{symbol.file} ({present[0]})"
        return [nodes.Text(f"{KINDS[symbol.kind]}, "), nodes.inline("", file, classes=["mm-file"]), nodes.Text(f", {in_releases(present)}")]

    def links(self, found: list[Place]) -> nodes.paragraph:
        """The sections, the one that explains in bold."""
        paragraph = nodes.paragraph(classes=["mm-places"])
        for number, place in enumerate(found):
            anchor = place.anchor if self.app.builder.format == "html" else place.section
            uri = self.app.builder.get_relative_uri(self.env.docname, place.docname) + f"#{anchor}"
            title = place.title if len(place.path) > 1 else "the beginning"
            link = nodes.reference("", f"{place.chapter} {title}", internal=True, refuri=uri)
            paragraph += [nodes.Text("; ")] if number else []
            paragraph += nodes.strong("", "", link) if number == 0 else link
        return paragraph


def in_releases(present: list[str]) -> str:
    """Which of the four releases have something."""
    if len(present) == 1:
        return f"{present[0]} only"
    first, last = RELEASES.index(present[0]), RELEASES.index(present[-1])
    return f"{present[0]} to {present[-1]}" if list(RELEASES[first:last + 1]) == present else ", ".join(present)


def prepare(app: Sphinx) -> None:
    """Nothing is known before the chapters are read."""
    app.env.mm_symbol_places = {}                                    # type: ignore[attr-defined]
    index(BASELINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_node(symbol_index)
    app.add_node(file_index)
    app.add_directive("kernel-symbols", SymbolIndex)
    app.add_directive("kernel-files", FileIndex)
    app.connect("builder-inited", prepare)
    app.add_transform(Occurrences)
    app.add_post_transform(Fill)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
