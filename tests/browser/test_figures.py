"""Every figure in a real browser: it moves, follows links, and keeps its state in the address.

The figures are discovered in the pages, so a new chapter is tested without a change here.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page

from tests.book.pages import code as code_cells
from tests.book.pages import figures_in, source_of
from tests.browser.figures import (
    drawing,
    figure_ids,
    frame,
    frames,
    on_pages_with_figures,
    press,
    said,
    wait_until_shown,
)

# -- every figure moves ----------------------------------------------------------------------------------------

@on_pages_with_figures
def test_every_figure_of_the_source_is_on_the_page_and_drawn(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    expected = [identity for cell in code_cells(source_of(entry)) for identity in figures_in(cell)]
    assert figure_ids(page) == expected
    for identity in expected:
        box = page.locator(f"mm-figure[id='{identity}'] .mm-stage svg").bounding_box()
        assert box and box["width"] > 200 and box["height"] > 20, identity
        shapes = page.evaluate("(id) => document.getElementById(id).querySelectorAll('.mm-stage svg [data-key]').length", identity)
        assert shapes >= 3, identity
        assert said(page, identity) == frames(page, identity)[0]["say"]


@on_pages_with_figures
def test_nothing_moves_unasked(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry, motion="no-preference")
    page.wait_for_timeout(1500)
    for identity in figure_ids(page):
        assert frame(page, identity) == 1
        assert page.evaluate("(id) => document.getElementById(id).playing", identity) is False


@on_pages_with_figures
def test_every_figure_steps_by_keyboard_and_changes_its_drawing(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    for identity in figure_ids(page):
        story = frames(page, identity)
        if len(story) < 2:
            continue
        first = drawing(page, identity)
        drawings = {first}
        for number in range(2, len(story) + 1):
            press(page, identity, "ArrowRight")
            if frame(page, identity) < number:           # a question: the second press skips it
                assert story[number - 2].get("ask"), f"{identity}: the arrow key does not step"
                press(page, identity, "ArrowRight")
            assert frame(page, identity) == number, identity
            assert said(page, identity) == story[number - 1]["say"], identity
            drawings.add(drawing(page, identity))
        assert len(drawings) > 1, f"{identity}: the drawing never changes"
        press(page, identity, "ArrowLeft")
        assert frame(page, identity) == len(story) - 1, identity
        press(page, identity, "End")
        assert frame(page, identity) == len(story), identity
        press(page, identity, "Home")
        assert frame(page, identity) == 1, identity
        assert drawing(page, identity) == first, f"{identity}: the first frame looks different the second time"


@on_pages_with_figures
def test_every_figure_scrubs_and_has_working_buttons(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    for identity in figure_ids(page):
        count = len(frames(page, identity))
        if count < 2:
            continue
        home = page.locator(f"mm-figure[id='{identity}']")
        for number in {count, (count + 1) // 2, 1}:
            home.locator(".mm-scrub").evaluate("(s, n) => { s.value = n; s.dispatchEvent(new Event('input', {bubbles: true})); }", number)
            assert frame(page, identity) == number, identity
        page.evaluate("(id) => document.getElementById(id).show(2)", identity)
        home.locator(".mm-back").click()
        assert frame(page, identity) == 1, identity
        if not frames(page, identity)[0].get("ask"):
            home.locator(".mm-next").click()
            assert frame(page, identity) == 2, identity


@on_pages_with_figures
def test_play_goes_on_and_space_stops_it(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry, motion="no-preference")
    for identity in figure_ids(page):
        story = frames(page, identity)
        start = next((n for n, one in enumerate(story[:-1], 1) if not one.get("ask")), None)
        if start is None:
            continue
        page.evaluate("([id, n]) => document.getElementById(id).show(n)", [identity, start])
        press(page, identity, "Space")
        page.wait_for_function("([id, n]) => document.getElementById(id).frame > n", arg=[identity, start], timeout=8000)
        if page.evaluate("(id) => document.getElementById(id).playing", identity):
            press(page, identity, "Space")
        assert page.evaluate("(id) => document.getElementById(id).playing", identity) is False
        break                                            # one a page: playing takes real seconds


# -- prose and the address ---------------------------------------------------------------------------------------

def parsed(page: Page, href: str) -> dict[str, Any]:
    return dict(page.evaluate(
        """async (href) => (await import(document.querySelector('script[src*="mm-figure"]').src))
             .parseLink(new URL(href, location.href).hash)""", href))


@on_pages_with_figures
def test_prose_links_move_figures(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    links = page.locator("a.mm-figure-link[href^='#']")
    assert links.count() > 0, "no prose drives a figure on this page"
    for number in range(links.count()):
        link = links.nth(number)
        target = parsed(page, str(link.get_attribute("href")))
        link.dispatch_event("click")                     # a link may stand in a folded hint
        wait_until_shown(page, target["id"], target["frame"], target["values"])
        assert page.locator(f"mm-figure[id='{target['id']}'] .mm-bad").count() == 0


@on_pages_with_figures
def test_the_address_keeps_figure_and_frame(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    identity = next(i for i in figure_ids(page) if len(frames(page, i)) > 1)
    press(page, identity, "End")
    last = len(frames(page, identity))
    assert page.evaluate("decodeURIComponent(location.hash)") == f"#{identity}@{last}"
    again = open_page(entry, hash=f"#{identity}@{last}")
    wait_until_shown(again, identity, last, {})


@on_pages_with_figures
def test_a_hand_edited_link_gets_one_clear_message(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    for identity in figure_ids(page):
        params = page.evaluate("(id) => document.getElementById(id).payload.params", identity)
        bad = [("no_such_parameter", "1")]
        for param in params:
            if param["kind"] in ("range", "seed"):
                bad += [(param["name"], "999999999999"), (param["name"], "<b>many</b>")]
            elif param["kind"] in ("choice", "toggle"):
                bad += [(param["name"], "<script>no</script>")]
        before = drawing(page, identity)
        for name, text in bad:
            page.evaluate("(hash) => { location.hash = hash; }", f"#{identity}@1?{name}={quote(text)}")
            message = page.locator(f"mm-figure[id='{identity}'] .mm-status.mm-bad")
            message.wait_for(timeout=5000)
            assert 10 < len(message.inner_text()) < 300
            assert drawing(page, identity) == before
            page.evaluate("(id) => document.getElementById(id).reset()", identity)
