"""Finding figures in pages, and asking them what they show."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.book.pages import code as code_cells
from tests.book.pages import figures_in, source_of, toc_entries

PYTHON_STARTS_WITHIN_MS = 120_000

ENTRIES = toc_entries()


def has_figures(entry: str) -> bool:
    path = source_of(entry)
    return path.suffix == ".ipynb" and any(figures_in(cell) for cell in code_cells(path))


WITH_FIGURES = [entry for entry in ENTRIES if has_figures(entry)]
on_pages_with_figures = pytest.mark.parametrize("entry", WITH_FIGURES)


def figure_ids(page: Page) -> list[str]:
    found = page.evaluate("[...document.querySelectorAll('mm-figure')].map((f) => f.id)")
    assert found
    return list(found)


def drawing(page: Page, identity: str) -> str:
    """What is drawn: every shape with its attributes, in their order in the drawing."""
    return str(page.evaluate(
        """(id) => [...document.getElementById(id).querySelectorAll('.mm-stage svg [data-key]')].map((node) => node.localName + ' '
             + [...node.attributes].map((a) => `${a.name}=${a.value}`).sort().join(' ')
             + (node.localName === 'text' ? ` ${node.textContent}` : '')).join('\\n')""", identity))


def frame(page: Page, identity: str) -> int:
    return int(page.evaluate("(id) => document.getElementById(id).frame", identity))


def frames(page: Page, identity: str) -> list[dict[str, Any]]:
    return list(page.evaluate("(id) => document.getElementById(id).payload.frames", identity))


def said(page: Page, identity: str) -> str:
    return page.locator(f"mm-figure[id='{identity}'] .mm-say").inner_text()


def press(page: Page, identity: str, key: str) -> None:
    page.locator(f"mm-figure[id='{identity}'] .mm-stage").press(key)


def wait_until_shown(page: Page, identity: str, number: int | None, values: dict[str, str]) -> None:
    page.wait_for_function(
        """([id, number, values]) => {
             const f = document.getElementById(id);
             return (number === null || f.frame === number)
               && Object.entries(values).every(([k, v]) => f.payload.values[k] === v)
               && !f.querySelector('[aria-busy]');
           }""",
        arg=[identity, number, values], timeout=PYTHON_STARTS_WITHIN_MS,
    )
