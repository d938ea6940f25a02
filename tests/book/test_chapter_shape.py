"""Every chapter has the same twelve parts, in the same order; CONTRIBUTING.md describes them."""

import ast
import re
from pathlib import Path

import pytest

from tests.book.pages import Cell, cells, chapters, code, figures_in, markdown, words

# The second-level headings of a chapter, in order; a heading may go on after these words.
PARTS = (
    "Predict", "The smallest model", "Step it", "Where it breaks", "What Linux does", "Measure it", "On your machine",
    "War story and history", "Since 5.17", "Exercises", "Summary",
)
SUMMARY_PARTS = ("Terms", "Reading", "Handed on")
MOST_LINES = 12

pytestmark = pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)


def headings(text: str, level: int) -> list[str]:
    return re.findall(rf"(?m)^{'#' * level} (.+)$", text)


def directives(text: str, name: str) -> list[tuple[str, str, str]]:
    """(argument, options, body) of every directive `name`, written with colons or backquotes; the body includes nested ones."""
    found = []
    block = rf"(?ms)^(?P<fence>:{{3,}}|`{{3,}})\{{{name}\}}[ \t]*(?P<argument>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$"
    for match in re.finditer(block, text):
        lines = match["body"].split("\n")
        options = [line for line in lines if re.match(r":\w[\w-]*:", line)]
        found.append((match["argument"].strip(), "\n".join(options), match["body"]))
    return found


def first_figure(path: Path) -> int:
    return next((cell.number for cell in code(path) if figures_in(cell)), 10**6)


def test_has_one_title_and_the_parts_in_order(chapter: Path) -> None:
    text = markdown(chapter)
    assert len(headings(text, 1)) == 1
    seconds = headings(text, 2)
    at = -1
    for part in PARTS:
        where = next((i for i, heading in enumerate(seconds) if heading.lower().startswith(part.lower())), None)
        assert where is not None, f"no section {part!r}; there are: {seconds}"
        assert where > at, f"section {part!r} stands too early"
        at = where


def test_opens_with_the_scene_and_its_figure_then_asks_one_question(chapter: Path) -> None:
    crux = [cell.number for cell in cells(chapter) if re.search(r"(?m)^:class:.*\bcrux\b", cell.text)]
    assert len(crux) == 1, "one box with :class: crux"
    assert first_figure(chapter) < crux[0], "the hero figure stands before the crux"
    assert "?" in directives(cells(chapter)[crux[0]].text, "admonition")[0][2]


def test_has_a_model_and_kernel_card(chapter: Path) -> None:
    cards = [card for card in directives(markdown(chapter), "admonition") if "model-card" in card[1]]
    assert len(cards) == 1
    body = cards[0][2].lower()
    for word in ("modelled", "left out", "checked"):
        assert word in body, f"the card says nothing about what is {word}"


def test_has_four_figures_or_more_each_with_its_own_id(chapter: Path) -> None:
    identities = [identity for cell in code(chapter) for identity in figures_in(cell)]
    assert len(identities) >= 4
    assert sorted(set(identities)) == sorted(identities)


def test_is_of_a_chapters_length(chapter: Path) -> None:
    assert 3000 <= words(markdown(chapter)) <= 8000


def test_the_prose_drives_figures(chapter: Path) -> None:
    links = re.findall(r"\]\(#(fig-[^)]+)\)", markdown(chapter))
    assert len(links) >= 3, links


def test_has_eight_exercises_each_with_a_hint_and_a_folded_solution(chapter: Path) -> None:
    text = markdown(chapter)
    exercises = directives(text, "exercise")
    solutions = {argument: options for argument, options, _ in directives(text, "solution")}
    assert len(exercises) >= 8
    labels = [re.search(r":label:\s*(\S+)", options) for _, options, _ in exercises]
    assert all(labels), "every exercise has a :label:"
    names = [label.group(1) for label in labels if label]
    assert len(set(names)) == len(names)
    assert set(names) == set(solutions), "every exercise has a solution, and the reverse"
    for name, options in solutions.items():
        assert "dropdown" in options, f"the solution of {name} is not folded"
    for (title, _, body), name in zip(exercises, names):
        assert re.search(r"(?i)\bhint\b", body), f"{name} ({title}) has no hint"


def test_solutions_are_worked_out(chapter: Path) -> None:
    for argument, _, body in directives(markdown(chapter), "solution"):
        assert words(body) + len(re.findall(r"\d+", body)) >= 15, f"the solution of {argument} says next to nothing"


def test_ends_with_a_summary_of_five_sentences_terms_reading_and_the_state(chapter: Path) -> None:
    text = markdown(chapter)
    summary = re.split(r"(?m)^## Summary.*$", text)[1]
    thirds = headings(summary, 3)
    for part in SUMMARY_PARTS:
        assert any(heading.lower().startswith(part.lower()) for heading in thirds), f"no ### {part}: {thirds}"
    items = re.findall(r"(?m)^\d\. ", re.split(r"(?m)^### ", summary)[0])
    assert len(items) == 5, "the summary is a numbered list of five sentences"


def imports(cell: Cell) -> bool:
    return any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(cell.text)))


def test_code_cells_are_short_and_one_cell_imports(chapter: Path) -> None:
    importing = []
    for cell in code(chapter):
        lines = [line for line in cell.text.split("\n") if line.strip()]
        assert len(lines) <= MOST_LINES, f"cell {cell.number} has {len(lines)} lines"
        if imports(cell):
            importing.append(cell.number)
    assert importing == [code(chapter)[0].number], f"the first code cell imports, no other does: {importing}"


def test_every_code_cell_but_the_first_shows_a_value(chapter: Path) -> None:
    silent = [cell.number for cell in code(chapter)[1:] if not cell.outputs]
    assert silent == []
    for cell in code(chapter):
        assert not any(output["output_type"] == "error" for output in cell.outputs), f"cell {cell.number} stores an error"
        assert "<Axes" not in str(cell.outputs) and "Text(0" not in str(cell.outputs), f"cell {cell.number} prints an artist"
