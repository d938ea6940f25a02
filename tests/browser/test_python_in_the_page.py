"""Python in the page: a changed parameter is computed there and equals what CPython gives; where Python can't run, the figure says so."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page

from mmsim.draw.figure import compute
from tests.browser.figures import (
    PYTHON_STARTS_WITHIN_MS,
    figure_ids,
    frame,
    frames,
    on_pages_with_figures,
    press,
    wait_until_shown,
)


def other_value(param: dict[str, Any], now: str) -> str | None:
    """A legal value that is not the present one, or None."""
    match param["kind"]:
        case "range":
            step = param["min"] if param.get("log") else param.get("step", 1)
            value = param["min"] if str(param["min"]) != now else min(param["max"], param["min"] + step)
            return str(value)
        case "seed":
            return str(int(now) + 1)
        case "toggle":
            return "off" if now in ("on", "1", "true", "yes") else "on"
        case "choice":
            return next((str(value) for value, _ in param["options"] if value != now), None)
        case _:
            lines = now.rstrip("\n").split("\n")
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
            new MutationObserver(() => window.told.add(status.textContent))
                .observe(status, {childList: true, subtree: true, characterData: true});
    }""")
    changed = 0
    for identity in figure_ids(page):
        payload = page.evaluate("(id) => document.getElementById(id).payload", identity)
        for param in payload["params"]:
            text = other_value(param, payload["values"][param["name"]])
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


def test_a_script_with_a_mistake_is_answered_with_its_place_and_the_frames_before_it(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page("book/07-user-virtual-memory")
    home = page.locator("#fig-address-space-lab")
    for script, message, shown in (
        ("a = mmap(4K, rw, private|anon)\nwrite b", "line 2, column 7: no variable or constant 'b'", 1),
        ("a = mmap(<img src=x>", "line 1, column 10", None),
    ):
        home.locator("textarea").fill(script)
        home.locator(".mm-run").click()
        answer = home.locator(".mm-status.mm-bad", has_text=message)
        answer.wait_for(timeout=PYTHON_STARTS_WITHIN_MS)
        if shown is not None:
            assert len(frames(page, "fig-address-space-lab")) == shown
    assert home.locator("img").count() == 0, "what the reader wrote became part of the page"
