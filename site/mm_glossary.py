"""The glossary: the first use of a word in each chapter becomes a link to it, which shows the explanation.

The words stand in ``book/appendix/glossary.md`` as in any Sphinx glossary. A comment above an entry, which Sphinx skips, says more::

    .. 5; also: free lists; only: *order, orders? (?=[0-9])

- the number is the chapter that explains the word;
- ``also`` names forms that the plural rules don't make;
- ``only`` replaces the forms of the first name, where that is a word of ordinary English: regular expressions, and behind a ``*`` those
  that count only where the whole text is emphasised, as it is where a word is explained.

Chapters are read first. Words that no chapter uses stay out of the page, so that the glossary grows with the book.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

PAGE = "book/appendix/glossary"
CHAPTER = re.compile(r"book/(\d\d)-")
# Where no word becomes a link: what is no prose, what leads elsewhere, and the chapter's own list of terms and references.
NO_PROSE = (
    nodes.title, nodes.reference, addnodes.pending_xref, nodes.literal, nodes.literal_block, nodes.raw, nodes.math, nodes.math_block,
    nodes.figure, nodes.image, nodes.caption, nodes.term, nodes.citation, nodes.footnote, nodes.comment, nodes.rubric, nodes.system_message,
)


@dataclass
class Entry:
    """One word of the glossary with its other names."""

    names: list[str]
    home: int = 0                                               # the chapter that explains it
    forms: list[str] = field(default_factory=list)              # regular expressions
    emphasised: list[str] = field(default_factory=list)         # those for text that is emphasised as a whole
    lines: tuple[int, int] = (0, 0)                             # where it stands in the file, comment included

    @property
    def name(self) -> str:
        """What it is called first."""
        return self.names[0]


def plurals(name: str) -> str:
    """A regular expression for a name and its plural; a first letter may be a capital."""
    if re.search(r"[^aeiou]y$", name):
        ending = re.escape(name[:-1]) + "(?:y|ies)"
    elif re.search(r"(?:s|x|ch|sh)$", name):
        ending = re.escape(name) + "(?:es)?"
    else:
        ending = re.escape(name) + "s?"
    first = name[0]
    return f"[{first.upper()}{first}]{ending[1:]}" if first.islower() else ending


def entries(text: str) -> list[Entry]:
    """The entries of the page's source."""
    found: list[Entry] = []
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("```{glossary}")) + 1
    end = next(number for number in range(start, len(lines)) if lines[number].startswith("```"))
    number = start
    while number < end:
        line = lines[number]
        if not line.strip() or line.startswith(":"):
            number += 1
            continue
        begin, options = number, ""
        if line.startswith(".. "):
            options = line[3:]
            number += 1
        names = []
        while lines[number].strip() and not lines[number][0].isspace():
            names.append(lines[number].strip())
            number += 1
        while number < end and (not lines[number].strip() or lines[number][0].isspace()):
            number += 1
        entry = Entry(names, lines=(begin, number))
        parts = dict(part.split(": ", 1) for part in options.split("; ")[1:])
        entry.home = int(options.split(";")[0] or 0)
        only = parts["only"].split(", ") if "only" in parts else [plurals(entry.name)]
        entry.emphasised = [form[1:] for form in only if form.startswith("*")]
        entry.forms = [form for form in only if not form.startswith("*")]
        entry.forms += [plurals(name) for name in names[1:]]
        entry.forms += [plurals(name) for name in parts["also"].split(", ")] if "also" in parts else []
        found.append(entry)
    return found


class Matcher:
    """Finds the words in running text: the longest where several begin, whole words only."""

    def __init__(self, known: list[Entry]) -> None:
        self.entries = known
        self.forms = [(re.compile(rf"(?<![\w-])(?:{form})(?![\w-])"), entry) for entry in known for form in entry.forms]
        self.emphasised = [(re.compile(form), entry) for entry in known for form in (*entry.emphasised, *entry.forms)]

    def find(self, text: str) -> list[tuple[int, int, Entry]]:
        """Non-overlapping (begin, end, entry), in order."""
        hits = [(m.start(), -m.end(), entry.name, entry) for form, entry in self.forms for m in form.finditer(text)]
        found: list[tuple[int, int, Entry]] = []
        for begin, end, _, entry in sorted(hits, key=lambda hit: hit[:3]):
            if not found or begin >= found[-1][1]:
                found.append((begin, -end, entry))
        return found

    def whole(self, text: str) -> Entry | None:
        """The entry that an emphasised text is a name of."""
        return next((entry for form, entry in self.emphasised if form.fullmatch(text.rstrip(".,:;"))), None)


def slug(name: str) -> str:
    """The id that Sphinx gives to a word."""
    return "term-" + nodes.make_id(name)


def is_prose(text: nodes.Text) -> bool:
    """Whether a text may become a link."""
    node = text.parent
    while node is not None:
        if isinstance(node, NO_PROSE) or "cell" in node.get("classes", ()):
            return False
        node = node.parent
    return True


class FirstUses(SphinxTransform):
    """Make the first use of each word a link, as if ``{term}`` stood there, and note where a chapter explains or uses it."""

    default_priority = 870

    def apply(self, **kwargs: Any) -> None:
        if not CHAPTER.match(self.env.docname):
            return
        matcher: Matcher = self.env.mm_glossary          # type: ignore[attr-defined]
        uses: dict[str, str] = {}                        # the word's name, the id to lead to
        for text in list(self.document.findall(nodes.Text)):
            if not is_prose(text):
                continue
            parent = text.parent
            emphasis = isinstance(parent, nodes.emphasis | nodes.strong) and len(parent) == 1
            if emphasis and (entry := matcher.whole(str(text))):
                place = f"use-{nodes.make_id(entry.name)}"
                if entry.name not in uses:
                    text.parent.replace(text, self.link(entry, str(text), place))
                elif not uses[entry.name].startswith("def-"):
                    parent["ids"].append(place := place.replace("use-", "def-"))
                else:
                    continue
                uses[entry.name] = place
                continue
            pieces: list[nodes.Node] = []
            at = 0
            for begin, end, entry in matcher.find(str(text)):
                if entry.name in uses:
                    continue
                uses[entry.name] = place = f"use-{nodes.make_id(entry.name)}"
                pieces += [nodes.Text(text[at:begin]), self.link(entry, text[begin:end], place)]
                at = end
            if pieces:
                parent.replace(text, [*pieces, nodes.Text(text[at:])])
        for term in self.document.findall(nodes.term):   # what only the chapter's own list of terms has
            for _, _, entry in matcher.find(term.astext()):
                if entry.name not in uses:
                    uses[entry.name] = place = f"use-{nodes.make_id(entry.name)}"
                    term["ids"].append(place)
        self.env.mm_term_uses[self.env.docname] = uses   # type: ignore[attr-defined]

    def link(self, entry: Entry, text: str, place: str) -> nodes.Node:
        """What ``{term}`would` give, with an id to come back to."""
        content = nodes.inline(text, text, classes=["xref", "std", "std-term", "mm-term"], ids=[place])
        xref = addnodes.pending_xref(
            text, content, refdomain="std", reftype="term", reftarget=entry.name, refexplicit=True, refwarn=True, refdoc=self.env.docname)
        return xref


class WhereUsed(SphinxPostTransform):
    """Under each explanation: the chapters that use the word, with links to the place."""

    default_priority = 4

    def run(self, **kwargs: Any) -> None:
        if self.env.docname != PAGE:
            return
        known = {entry.name: entry for entry in self.env.mm_glossary.entries}    # type: ignore[attr-defined]
        for item in self.document.findall(nodes.definition_list_item):
            terms = [child.astext() for child in item.children if isinstance(child, nodes.term)]
            if not terms or terms[0] not in known:
                continue
            paragraph = nodes.paragraph(classes=["mm-where"])
            for docname, uses in chapters_of(self.env):
                if terms[0] not in uses:
                    continue
                number = int(CHAPTER.match(docname).group(1))                    # type: ignore[union-attr]
                title = self.env.titles[docname].astext()
                anchor = f"#{uses[terms[0]]}" if self.app.builder.format == "html" else ""      # LaTeX has no such targets
                uri = self.app.builder.get_relative_uri(PAGE, docname) + anchor
                words = f"Chapter {number}" if not len(paragraph) else str(number)
                link = nodes.reference("", "", nodes.Text(words), internal=True, refuri=uri, reftitle=title)
                paragraph += nodes.Text(", " if len(paragraph) else "")
                paragraph += nodes.strong("", "", link) if number == known[terms[0]].home else link
            item.children[-1].append(paragraph)


def chapters_of(env: BuildEnvironment) -> list[tuple[str, dict[str, str]]]:
    """The chapters in the order of their numbers, each with the words it uses."""
    return sorted(env.mm_term_uses.items())              # type: ignore[attr-defined, no-any-return]


# -- the preview ----------------------------------------------------------------------------------------------

def as_html(node: nodes.Node) -> str:
    """The few kinds of text that explanations are made of."""
    if isinstance(node, nodes.Text):
        return str(node).replace("&", "&amp;").replace("<", "&lt;")
    if isinstance(node, nodes.math):
        return re.sub(r"\s*xmlns=\"[^\"]*\"|\n\s*", "", str(latex2mathml.tex2mathml(node.astext())))
    inside = "".join(as_html(child) for child in node.children)
    tag = {nodes.literal: "code", nodes.emphasis: "em", nodes.paragraph: "p"}.get(type(node))
    return f"<{tag}>{inside}</{tag}>" if tag else inside


def explanations(app: Sphinx) -> dict[str, tuple[str, str]]:
    """For each word's id its name and its explanation as HTML."""
    if not hasattr(app, "mm_explanations"):
        found: dict[str, tuple[str, str]] = {}
        for item in app.env.get_doctree(PAGE).findall(nodes.definition_list_item):
            terms = [child for child in item.children if isinstance(child, nodes.term)]
            text = "".join(as_html(child) for child in item.children[-1].children)
            for term in terms:
                for identity in term["ids"]:
                    found[identity] = (terms[0].astext(), text)
        app.mm_explanations = found                      # type: ignore[attr-defined]
    return app.mm_explanations                           # type: ignore[attr-defined, no-any-return]


def add_previews(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Give a page the explanations of the words that it links, and the script that shows them."""
    if doctree is None or app.builder.name != "html" or PAGE not in app.env.all_docs:
        return
    wanted = {
        str(link.get("refuri", "")).partition("#")[2] for link in doctree.findall(nodes.reference)
        if any("std-term" in child.get("classes", ()) for child in link.findall(nodes.inline))
    }
    known = explanations(app)
    if not wanted & set(known):
        return
    data = json.dumps({name: known[name] for name in sorted(wanted) if name in known}, ensure_ascii=False).replace("</", "<\\/")
    context["body"] += f'\n<script type="application/json" id="mm-terms">{data}</script>\n'
    app.add_js_file("mm/mm-terms.js", type="module")


# -- reading order --------------------------------------------------------------------------------------------

def read_entries(app: Sphinx) -> None:
    """Read the words before anything else is read."""
    source = Path(app.srcdir) / f"{PAGE}.md"
    app.env.mm_glossary = Matcher(entries(source.read_text(encoding="utf-8")) if source.exists() else [])   # type: ignore[attr-defined]
    app.env.mm_term_uses = {}                            # type: ignore[attr-defined]


def chapters_first(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Read the glossary after what uses it."""
    docnames.sort(key=lambda name: (name == PAGE, name))


def drop_unused(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leave out of the page what no chapter uses."""
    if docname != PAGE:
        return
    used = set().union(*app.env.mm_term_uses.values())   # type: ignore[attr-defined]
    lines = source[0].split("\n")
    for entry in reversed(app.env.mm_glossary.entries):  # type: ignore[attr-defined]
        if entry.name not in used:
            del lines[entry.lines[0]:entry.lines[1]]
    source[0] = "\n".join(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", read_entries)
    app.connect("env-before-read-docs", chapters_first)
    app.connect("source-read", drop_unused)
    app.connect("html-page-context", add_previews)
    app.add_transform(FirstUses)
    app.add_post_transform(WhereUsed)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
