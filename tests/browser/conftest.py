"""A real Chromium on the built book, and pages that fail a test for any error or any request to another host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WITHOUT = "no Chromium on the PATH (set CHROMIUM to one, or install it)"


def chromium() -> str | None:
    """The browser to test with."""
    return os.environ.get("CHROMIUM") or next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(WITHOUT)
        pytest.skip(WITHOUT)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        opened.close()


@dataclass
class Visit:
    """What happened while a page was open."""

    url: str
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()                # parts of messages that the test provokes

    def watch(self, page: Page) -> None:
        page.on("request", self.request)
        page.on("console", lambda m: m.type == "error" and self.error(f"console: {m.text}"))
        page.on("pageerror", lambda error: self.error(f"exception: {error}"))
        page.on("response", lambda r: r.status >= 400 and self.error(f"{r.status}: {r.url}"))

    def request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def error(self, text: str) -> None:
        if not any(part in text for part in self.allowed):
            self.errors.append(text)


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, site_url: str) -> Iterator[OpenPage]:
    """open_page(entry, hash="", width=1200, scheme="light", allowed=(), **context options) → a page with its figures ready."""
    visits: list[tuple[Any, Visit]] = []

    def opened(
        entry: str, hash: str = "", width: int = 1200, scheme: str = "light", allowed: tuple[str, ...] = (), ready: bool = True,
        before: Callable[[Page], None] | None = None, **options: Any,
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion=options.pop("motion", "reduce"), **options,
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        visit = Visit(site_url, allowed=allowed)
        visit.watch(page)
        visits.append((context, visit))
        if before:
            before(page)
        page.goto(f"{site_url}/{entry}.html{hash}")
        if ready:
            page.wait_for_function("[...document.querySelectorAll('mm-figure')].every((f) => f.classList.contains('mm-ready'))")
        return page

    yield opened
    for context, _ in visits:
        context.close()
    for _, visit in visits:
        assert visit.elsewhere == [], "requests to other hosts"
        assert visit.errors == []
