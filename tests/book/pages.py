"""Reading the book's sources: what is in the table of contents, the cells of a notebook, its prose without code."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"


def toc_entries() -> list[str]:
    """All files of _toc.yml, without their ending, in reading order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            for key in ("root", "file"):
                if key in node:
                    found.append(str(node[key]))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(toc)
    return found


def source_of(entry: str) -> Path:
    """The file of an entry of the table of contents."""
    for ending in (".ipynb", ".md"):
        path = ROOT / (entry + ending)
        if path.exists():
            return path
    return ROOT / (entry + ".ipynb")


@dataclass
class Cell:
    kind: str                       # "markdown" or "code"
    text: str
    outputs: list[dict[str, Any]]
    number: int                     # in its notebook, from 0


def cells(path: Path) -> list[Cell]:
    """The cells of a notebook; a MyST page is one Markdown cell."""
    if path.suffix == ".md":
        return [Cell("markdown", path.read_text(), [], 0)]
    notebook = json.loads(path.read_text())
    return [
        Cell(cell["cell_type"], "".join(cell["source"]), cell.get("outputs", []), number)
        for number, cell in enumerate(notebook["cells"])
    ]


def markdown(path: Path) -> str:
    """The whole prose of a page, cells joined."""
    return "\n\n".join(cell.text for cell in cells(path) if cell.kind == "markdown")


CODE_DIRECTIVES = ("literalinclude", "code-block", "code", "code-cell", "bibliography", "figure", "image")


def without_fenced_code(text: str) -> str:
    """Markdown without fenced code blocks. Of directives that hold prose, such as ```{note}, only the fence goes."""
    holds_code = rf"(?:\{{(?:{'|'.join(CODE_DIRECTIVES)})\}}|(?!\{{))"
    text = re.sub(rf"(?ms)^[ \t]*(`{{3,}}|:{{3,}}(?=\{{)){holds_code}[^\n]*\n.*?^[ \t]*\1[ \t]*$", "", text)
    return re.sub(r"(?m)^[ \t]*(`{3,}|:{3,}).*$", "", text)


def code(path: Path) -> list[Cell]:
    """The code cells of a notebook."""
    return [cell for cell in cells(path) if cell.kind == "code"]


def figures_in(cell: Cell) -> list[str]:
    """The ids of the figures among a cell's outputs."""
    html = ["".join(output.get("data", {}).get("text/html", "")) for output in cell.outputs]
    return [identity for text in html for identity in re.findall(r'<mm-figure\b[^>]*\bid="([^"]+)"', text)]


def notebooks() -> list[Path]:
    """Every notebook of the book."""
    return sorted(path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def chapters() -> list[Path]:
    """The chapters: notebooks named NN-slug.ipynb."""
    return [path for path in notebooks() if re.match(r"\d\d-", path.name)]


def pages() -> list[Path]:
    """The sources of all pages in the table of contents."""
    return [source_of(entry) for entry in toc_entries()]


def words(text: str) -> int:
    """How many words of prose there are (directives, links' targets and code not counted)."""
    text = without_fenced_code(text)
    text = re.sub(r"(?m)^\s*(:::+|```+).*$|^:\w+:.*$", " ", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return len(re.findall(r"[A-Za-z][\w'’-]*", text))
