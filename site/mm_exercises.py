"""Exercises on the pages: numbered by chapter, with a form where the answer is a number.

``mmsim.exercises`` computes the numbers when the book is built; each chapter carries those of its own exercises, and
``mm-exercises.js`` compares in the page. The page "Progress" and the book's first page carry which exercises there are.
Without the script the exercises are as in print: a question, a hint, a solution.
"""

from __future__ import annotations

import json
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from mmsim.exercises import Exercise, exercises

PAGE = "book/appendix/progress"
CHAPTER = re.compile(r"book/(\d\d)-")


def chapters(env: BuildEnvironment) -> dict[int, str]:
    """The page of each chapter in the book, by number."""
    return {int(found[1]): name for name in sorted(env.found_docs) if (found := CHAPTER.match(name))}


def number_by_chapter(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Call the third exercise of chapter 5 Exercise 5.3, not by its position in the book: such numbers stay when chapters are added."""
    for docname, kinds in env.toc_fignumbers.items():
        if found := CHAPTER.match(docname):
            numbers = kinds.get("exercise", {})
            for position, label in enumerate(sorted(numbers, key=lambda label: numbers[label]), 1):
                numbers[label] = (int(found[1]), position)
    return []


def as_data(one: Exercise) -> dict[str, Any]:
    """What a page needs to check the answers; whole numbers as text, since a script's numbers end at 2^53."""
    parts = []
    for part, value in zip(one.parts, one.expected()):
        expected = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        data = {"ask": part.ask, "unit": part.unit, "kind": part.kind, "within": part.within, "expected": expected.removesuffix(".0")}
        parts.append({name: field for name, field in data.items() if field})
    # The first hint stands in the page.
    return {"number": one.number, "parts": parts, "hints": list(one.hints[1:])}


def page_data(app: Sphinx, pagename: str) -> dict[str, Any] | None:
    """What ``mm-exercises.js`` finds on a page, or None if it has nothing to do there."""
    known = chapters(app.env)
    data: dict[str, Any] = {"exercises": {}, "chapters": [], "progress": ""}
    if PAGE in app.env.found_docs:
        data["progress"] = app.builder.get_relative_uri(pagename, PAGE)
    if found := CHAPTER.match(pagename):
        data["exercises"] = {one.label: as_data(one) for one in exercises(int(found[1]))}
    elif pagename in (PAGE, "book/index"):
        for number, docname in known.items():
            labels = [one.label for one in exercises(number)]
            if labels:
                title = f"{number}. {app.env.titles[docname].astext()}"
                data["chapters"].append({"title": title, "href": app.builder.get_relative_uri(pagename, docname), "labels": labels})
    return data if data["exercises"] or data["chapters"] else None


def add_exercises(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Give a page its data and the script."""
    if doctree is None or app.builder.name != "html":
        return
    data = page_data(app, pagename)
    if data is None:
        return
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    context["body"] += f'\n<script type="application/json" id="mm-exercises">{text}</script>\n'
    app.add_css_file("mm/mm-exercises.css", priority=900)
    app.add_js_file("mm/mm-exercises.js", type="module")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("env-get-updated", number_by_chapter, priority=900)         # after Sphinx has numbered them
    app.connect("html-page-context", add_exercises)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
