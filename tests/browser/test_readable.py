"""Every page is readable: on a phone, in the dark, with assistive technology, and without JavaScript."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.book.pages import code as code_cells
from tests.book.pages import figures_in, source_of
from tests.browser.figures import ENTRIES, on_pages_with_figures

SMALLEST_TEXT = 10.0                # CSS pixels



@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("entry", ENTRIES)
def test_nothing_overflows_and_no_text_is_too_small(open_page, entry: str, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for last in (False, True):
        if last:
            page.evaluate("document.querySelectorAll('mm-figure').forEach((f) => f.show(f.frames))")
            page.wait_for_timeout(100)
        small = page.evaluate(
            """(least) => [...document.querySelectorAll('mm-figure')].flatMap((f) => {
                 const svg = f.querySelector('.mm-stage svg');
                 const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
                 return [...svg.querySelectorAll('text')].filter((t) => t.textContent.trim() &&
                     parseFloat(getComputedStyle(t).fontSize) * scale < least - 0.05)
                   .map((t) => `${f.id}: ${t.textContent} ${parseFloat(getComputedStyle(t).fontSize) * scale}`);
               })""", SMALLEST_TEXT)
        assert small == []
        outside = page.evaluate(
            """() => [...document.querySelectorAll('mm-figure')].flatMap((f) => {
                 const svg = f.querySelector('.mm-stage svg').getBoundingClientRect();
                 return [...f.querySelectorAll('.mm-stage svg text')].filter((t) => t.textContent.trim()).filter((t) => {
                     const box = t.getBoundingClientRect();
                     return box.left < svg.left - 2 || box.right > svg.right + 2 || box.bottom > svg.bottom + 2;
                   }).map((t) => `${f.id}: ${t.textContent}`);
               })""")
        assert outside == [], "text outside its drawing"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_axe_finds_no_serious_violation(open_page, entry: str, scheme: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry, scheme=scheme)
    found = Axe().run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    serious = [
        f"{one['id']}: {one['help']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"][:3]
    ]
    assert serious == []


@on_pages_with_figures
def test_without_javascript_a_picture_and_its_words_stand_there(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry, ready=False, java_script_enabled=False)
    pictures = page.locator("mm-figure img")
    expected = [identity for cell in code_cells(source_of(entry)) for identity in figures_in(cell)]
    assert pictures.count() == len(expected)
    for number in range(pictures.count()):
        box = pictures.nth(number).bounding_box()
        assert box and box["height"] > 20
        assert len(str(pictures.nth(number).get_attribute("alt"))) >= 10
