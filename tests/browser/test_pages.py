"""The pages in a real browser: every figure moves, follows links and recomputes; every page fits, is readable and accessible.

The figures are discovered in the pages, so a new chapter is tested without a change here.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from mmsim.draw.figure import compute
from tests.book.pages import figures_in, source_of, toc_entries
from tests.book.pages import code as code_cells

PYTHON_STARTS_WITHIN_MS = 120_000
SMALLEST_TEXT = 10.0                # CSS pixels

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
    return str(page.evaluate("(id) => document.getElementById(id).querySelector('.mm-stage svg').outerHTML", identity))


def frame(page: Page, identity: str) -> int:
    return int(page.evaluate("(id) => document.getElementById(id).frame", identity))


def frames(page: Page, identity: str) -> list[dict[str, Any]]:
    return list(page.evaluate("(id) => document.getElementById(id).payload.frames", identity))


def said(page: Page, identity: str) -> str:
    return page.locator(f"mm-figure[id='{identity}'] .mm-say").inner_text()


def press(page: Page, identity: str, key: str) -> None:
    page.locator(f"mm-figure[id='{identity}'] .mm-stage").press(key)


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


def parsed(page: Page, href: str) -> dict[str, Any]:
    return dict(page.evaluate(
        "async (href) => (await import(document.querySelector('script[src*=\"mm-figure\"]').src)).parseLink(new URL(href, location.href).hash)", href,
    ))


@on_pages_with_figures
def test_prose_links_move_figures(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    links = page.locator("a.mm-figure-link[href^='#']")
    assert links.count() > 0, "no prose drives a figure on this page"
    for number in range(links.count()):
        link = links.nth(number)
        target = parsed(page, str(link.get_attribute("href")))
        link.click()
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


# -- Python in the page -------------------------------------------------------------------------------------------

def other_value(param: dict[str, Any]) -> str | None:
    """A legal value that is not the default, or None."""
    default = param["default"]
    match param["kind"]:
        case "range":
            value = param["min"] if str(param["min"]) != default else min(param["max"], param["min"] + param.get("step", 1))
            return str(value)
        case "seed":
            return str(int(default) + 1)
        case "toggle":
            return "off" if default in ("on", "1", "true", "yes") else "on"
        case "choice":
            return next((str(value) for value, _ in param["options"] if value != default), None)
        case _:
            lines = default.rstrip("\n").split("\n")
            return "\n".join(lines[:-1]) if len(lines) > 1 else None


def change_control(page: Page, identity: str, param: dict[str, Any], text: str) -> None:
    """Change a parameter as a reader does, through its control."""
    home = page.locator(f"mm-figure[id='{identity}']")
    label = home.locator(".mm-param").nth(
        [p["name"] for p in page.evaluate("(id) => document.getElementById(id).payload.params", identity)].index(param["name"]))
    control = label.locator("input, select, textarea").first
    if param["kind"] == "choice":
        control.select_option(text)
    elif param["kind"] == "toggle":
        control.click()
    elif param["kind"] == "range":
        control.evaluate(
            """(slider, [value, log, min]) => { slider.value = log ? Math.round(Math.log2(value / min)) : value;
                                                slider.dispatchEvent(new Event('input', {bubbles: true})); }""",
            [float(text), bool(param.get("log")), float(param["min"])])
    else:
        control.fill(text)
        if label.locator(".mm-run").count():
            label.locator(".mm-run").click()
        else:
            control.press("Enter")


@on_pages_with_figures
def test_a_parameter_change_recomputes_in_the_page_and_equals_cpython(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry)
    page.evaluate("""() => {
        window.told = new Set();
        for (const status of document.querySelectorAll('mm-figure .mm-status'))
            new MutationObserver(() => window.told.add(status.textContent)).observe(status, {childList: true, subtree: true, characterData: true});
    }""")
    changed = 0
    for identity in figure_ids(page):
        payload = page.evaluate("(id) => document.getElementById(id).payload", identity)
        for param in payload["params"]:
            text = other_value(param)
            if text is None:
                continue
            page.evaluate("""(id) => { const f = document.getElementById(id); f.reset(); window.answer = null;
                const take = (event) => { window.answer = event.detail.payload ?? {error: event.detail.message}; };
                f.addEventListener('mm-payload', take, {once: true}); f.addEventListener('mm-error', take, {once: true}); }""", identity)
            change_control(page, identity, param, text)
            page.wait_for_function("window.answer !== null", timeout=PYTHON_STARTS_WITHIN_MS)
            got = page.evaluate("window.answer")
            values = page.evaluate("(id) => document.getElementById(id).values", identity)
            assert values[param["name"]] != payload["values"][param["name"]], f"{identity}: {param['name']} did not change"
            layouts = list(got.get("layouts", ["wide"]))         # the page asks for the layout it shows
            expected = json.loads(compute(payload["name"], {**values, "$layouts": layouts}))
            if "frames" not in expected:
                assert got == {"error": expected["error"]}
            else:
                assert got == expected, f"{identity} with {param['name']}={text!r}"
            changed += 1
    assert changed > 0, "no figure of this page has a parameter"
    assert any("Loading Python" in text for text in page.evaluate("[...window.told]")), "no progress was shown"


def test_where_python_cannot_load_the_figure_says_so_and_goes_on(open_page) -> None:  # type: ignore[no-untyped-def]
    def broken(page: Page) -> None:
        page.context.route("**/pyodide.asm.wasm", lambda route: route.abort())

    page = open_page("book/appendix/figures", before=broken, allowed=("Failed to load resource", "ERR_FAILED", "wasm", "Failed to fetch"))
    page.evaluate("void document.getElementById('fig-splitting').setValues({order: '0'})")
    message = page.locator("#fig-splitting .mm-status.mm-bad")
    message.wait_for(timeout=PYTHON_STARTS_WITHIN_MS)
    assert "Python could not be" in message.inner_text() and "pyodide.asm.wasm" in message.inner_text()
    press(page, "fig-splitting", "End")
    assert frame(page, "fig-splitting") == len(frames(page, "fig-splitting"))


def test_one_worker_serves_all_figures_and_no_page_starts_it_unasked(open_page) -> None:  # type: ignore[no-untyped-def]
    seen: list[str] = []
    page = open_page("book/appendix/figures", before=lambda page: page.on("request", lambda r: seen.append(r.url)))
    press(page, "fig-splitting", "End")
    page.wait_for_timeout(300)
    assert not any("pyodide" in url or "mm-worker" in url for url in seen), "Python is loaded before anybody asked for it"
    for order in ("0", "2", "3"):
        page.evaluate("(order) => void document.getElementById('fig-splitting').setValues({order})", order)
        wait_until_shown(page, "fig-splitting", None, {"order": order})
    assert len(page.workers) == 1
    assert sum("pyodide.asm.wasm" in url for url in seen) == 1


# -- readable everywhere ------------------------------------------------------------------------------------------

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
    found = Axe().run(page).response["violations"]
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
