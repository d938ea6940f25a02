"""The page "How faithful is it?": what the replays found, from book/appendix/how-faithful.json, and what each chapter's card leaves out.

`tools/faithful.py` makes the file; a test compares it with a new run. No number on the page is written by hand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

CHAPTER = re.compile(r"book/(\d\d)-")
THIN = "\u202f"                         # between thousands
Result = dict[str, Any]


def number(value: int) -> str:
    """A number as the book prints it."""
    return f"{value:,}".replace(",", THIN)


def agreement(results: list[Result]) -> str:
    """*1 750 of 1 750*"""
    return f"{number(sum(one['agree'] for one in results))} of {number(sum(one['total'] for one in results))}"


def known_differences(results: list[Result]) -> Counter[str]:
    """The differences that have a name, with how often each occurs."""
    found: Counter[str] = Counter()
    for one in results:
        found.update(one["known"])
    return found


class Cards(SphinxTransform):
    """Note what each chapter's card says is left out of the model."""

    default_priority = 880

    def apply(self, **kwargs: Any) -> None:
        found = CHAPTER.match(self.env.docname)
        if not found:
            return
        for card in self.document.findall(nodes.admonition):
            for paragraph in card.findall(nodes.paragraph):
                if "model-card" in card["classes"] and paragraph.astext().startswith("Left out:"):
                    self.env.mm_cards[int(found[1])] = plain(paragraph)     # type: ignore[attr-defined]


def plain(paragraph: nodes.paragraph) -> nodes.paragraph:
    """A copy without ids and links, which belong to the page it is from."""
    copy = paragraph.deepcopy()
    for link in list(copy.findall(lambda node: isinstance(node, addnodes.pending_xref | nodes.reference))):
        link.replace_self(nodes.Text(link.astext()))
    for element in copy.findall(nodes.Element):
        element["ids"] = []
    return copy


class HowFaithful(SphinxDirective):
    """``{how-faithful}`` with the part to show: ``summary``, ``chapters`` or ``waiting``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(data_file(self.env)))
        result = json.loads(data_file(self.env).read_text(encoding="utf-8"))
        part = self.arguments[0]
        if part == "summary":
            return summary(result["files"])
        if part == "waiting":
            return [bullets([[file_name(path)] for path in result["not replayed"]])]
        ordered = sorted(result["files"], key=lambda one: (one["chapter"] or 99, one["mechanism"], one["kernel"], one["path"]))
        made: list[nodes.Node] = []
        for chapter, group in groupby(ordered, key=lambda one: int(one["chapter"])):
            made.append(self.chapter(chapter, list(group)))
        return made

    def chapter(self, chapter: int, results: list[Result]) -> nodes.section:
        """A section: the mechanisms of a chapter one after the other, and what its card leaves out."""
        docname = next((name for name in sorted(self.env.titles) if re.match(rf"book/{chapter:02d}-", name)), None)
        title = f"Chapter {chapter}" if chapter else "Not yet in a chapter"
        section = nodes.section(ids=[f"faithful-{chapter}"])
        if docname is None:
            section += nodes.title("", title)
        else:
            section += nodes.title("", f"{title}: {self.env.titles[docname].astext()}")
        self.state.document.note_explicit_target(section)
        for mechanism, group in groupby(results, key=lambda one: one["mechanism"]):
            section += mechanism_part(mechanism, list(group))
        if docname is not None and chapter in self.env.mm_cards:             # type: ignore[attr-defined]
            section += self.env.mm_cards[chapter].deepcopy()                 # type: ignore[attr-defined]
            link = addnodes.pending_xref(
                "", nodes.inline("", "The chapter"), refdomain="std", reftype="doc", reftarget=f"/{docname}", refdoc=self.env.docname,
                refexplicit=True, refwarn=True)
            section += nodes.paragraph("", "", link, nodes.Text(" says more on its card."))
        return section


def mechanism_part(mechanism: str, results: list[Result]) -> list[nodes.Node]:
    """What was compared of one mechanism, each kind of recording a row; below it the differences that are known."""
    head = nodes.paragraph(classes=["mm-mechanism"])
    head += [nodes.strong("", mechanism), nodes.Text(f": {agreement(results)} agree.")]
    table = nodes.table(classes=["mm-faithful", "colwidths-auto"])
    group = nodes.tgroup(cols=3)
    table += group
    group += [nodes.colspec(colwidth=width) for width in (50, 35, 15)]
    heads = nodes.thead()
    heads += row(*([nodes.paragraph("", text)] for text in ("what is compared", "with", "agree")))
    body = nodes.tbody()
    group += [heads, body]
    for (compares, kernel, made), found in grouped(results):
        recording = nodes.paragraph("", "", *source(kernel, made, found))
        body += row([nodes.paragraph("", compares)], [recording], [nodes.paragraph("", agreement(found))])
    parts: list[nodes.Node] = [head, table]
    differences = known_differences(results)
    if differences:
        parts.append(nodes.paragraph("", "Known differences:"))
        parts.append(bullets([[nodes.Text(f"{name} ({number(count)})")] for name, count in sorted(differences.items())]))
    return parts


def grouped(results: list[Result]) -> list[tuple[tuple[str, str, str], list[Result]]]:
    """Recordings of one kind together, in the order in which they come."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for one in results:
        found.setdefault((one["compares"], one["kernel"], one["made"]), []).append(one)
    return list(found.items())


def source(kernel: str, made: str, found: list[Result]) -> list[nodes.Node]:
    """Which kernel, how, and which files."""
    text = nodes.Text(f"{kernel}, {made}: ")
    if len(found) == 1:
        return [text, file_name(found[0]["path"])]
    folders = sorted({str(Path(one["path"]).parent) for one in found})
    parts: list[nodes.Node] = [text, nodes.Text(f"{len(found)} files in ")]
    for position, folder in enumerate(folders):
        parts += [nodes.Text(", ") if position else nodes.Text(""), file_name(folder)]
    return parts


def summary(results: list[Result]) -> list[nodes.Node]:
    """The sum of everything, and what nobody can explain yet."""
    known = sum(known_differences(results).values())
    unknown = [one for one in results if one["differs"] or one["error"]]
    text = f"{agreement(results)} comparisons agree, in {len(results)} recorded files. "
    text += f"{number(known)} differ in ways that are known; they are listed with their mechanism. "
    text += f"{number(sum(one['differs'] for one in unknown))} differ otherwise." if unknown else "None differs otherwise."
    parts: list[nodes.Node] = [nodes.paragraph("", "", nodes.strong("", text))]
    if unknown:
        parts.append(bullets([[file_name(one["path"]), nodes.Text(f": {one['error'] or number(one['differs'])}")] for one in unknown]))
    return parts


def file_name(path: str) -> nodes.inline:
    """A path below tests/golden."""
    return nodes.inline("", path, classes=["mm-file"])


def row(*cells: list[nodes.Node]) -> nodes.row:
    """A row of a table."""
    made = nodes.row()
    made += [nodes.entry("", *cell) for cell in cells]
    return made


def bullets(items: list[list[nodes.Node]]) -> nodes.bullet_list:
    """A list, each item one paragraph."""
    return nodes.bullet_list("", *(nodes.list_item("", nodes.paragraph("", "", *item)) for item in items))


def data_file(env: BuildEnvironment) -> Path:
    """What tools/faithful.py wrote."""
    return Path(env.srcdir) / "book" / "appendix" / "how-faithful.json"


def prepare(app: Sphinx) -> None:
    """No card is known before the chapters are read."""
    app.env.mm_cards = {}                                                    # type: ignore[attr-defined]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", prepare)
    app.add_transform(Cards)
    app.add_directive("how-faithful", HowFaithful)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
