"""The built book: every page is there, leads somewhere, says what it shows, loads little, and loads nothing from elsewhere."""

from __future__ import annotations

import gzip
import importlib
import json
import pkgutil
import re
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag
from fontTools.ttLib import TTFont

import mmsim.figures
from mmsim.draw.figure import figures, find
from tests.book.pages import ROOT, toc_entries

HEAVIEST_PAGE = 1_500_000           # bytes, gzip, with everything it loads but Pyodide
HTML = ROOT / "_build" / "html"
ENTRIES = toc_entries()
LOADING_LINKS = {
    "stylesheet", "preload", "icon", "modulepreload", "prefetch", "shortcut", "manifest", "preconnect", "dns-prefetch",
}
NO_ICON = {"fa-solid", "fa-regular", "fa-brands", "fa-lg", "fa-fw"}


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def page_of(site: Path, entry: str) -> Path:
    return site / f"{entry}.html"


@cache
def ids(path: Path) -> frozenset[str]:
    return frozenset(str(tag.get(key)) for key in ("id", "name") for tag in soup(path).find_all(attrs={key: True}))


def payloads(path: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    """What the figures of a page carry, by id."""
    return {str(tag["id"]): json.loads(tag.find("script").string) for tag in soup(path).find_all("mm-figure")}  # type: ignore[union-attr]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_page_exists_and_says_something(site: Path, entry: str) -> None:
    article = soup(page_of(site, entry)).find("article")
    assert article is not None and len(article.get_text().split()) >= 100


def test_the_site_has_its_entrance_search_and_404(site: Path) -> None:
    forward = re.search(r'url=([^"]+)"', (site / "index.html").read_text())
    assert forward and (site / forward.group(1)).exists()
    for name in ("search.html", "404.html", "genindex.html"):
        assert soup(site / name).find("h1") is not None
    index = (site / "searchindex.js").read_text()
    assert all(entry in index for entry in ENTRIES)


# -- links ------------------------------------------------------------------------------------------------------

def check_figure_link(page: Path, fragment: str) -> str | None:
    """What is wrong with `#fig-…@frame?parameters`, or None."""
    rest, _, query = fragment.partition("?")
    identity, _, frame = rest.partition("@")
    shown = payloads(page)
    if identity not in shown:
        return f"no figure {identity} on {page.name}; there are {sorted(shown)}"
    payload = shown[identity]
    values = dict(parse_qsl(query, keep_blank_values=True))
    try:
        frames = len(find(payload["name"]).bind({**payload["values"], **values}).frames()) if values else len(payload["frames"])
    except Exception as error:
        return f"{fragment}: {error}"
    if frame and not (frame.isdigit() and 1 <= int(frame) <= frames):
        return f"{fragment}: the figure has frames 1 to {frames}"
    return None


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_internal_link_resolves(site: Path, entry: str) -> None:
    page = page_of(site, entry)
    wrong = []
    for link in soup(page).find_all("a", href=True):
        href = str(link["href"])
        parts = urlsplit(href)
        if parts.scheme or parts.netloc or not href or href == "#":
            continue
        path, _, fragment = href.partition("#")
        path = path.split("?")[0]
        target = (page.parent / unquote(path)).resolve() if path else page
        if target.is_dir():
            target /= "index.html"
        if not target.exists():
            wrong.append(href)
        elif fragment.startswith("fig-"):
            problem = check_figure_link(target, unquote(fragment))
            if problem:
                wrong.append(problem)
        elif fragment and target.suffix == ".html" and unquote(fragment) not in ids(target):
            wrong.append(f"{href}: nothing has that id")
    assert wrong == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_id_is_given_twice(site: Path, entry: str) -> None:
    given = [str(tag["id"]) for tag in soup(page_of(site, entry)).find_all(id=True)]
    assert sorted(set(given)) == sorted(given)


# -- what is shown ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("entry", ENTRIES)
def test_every_picture_says_what_it_shows(site: Path, entry: str) -> None:
    for image in soup(page_of(site, entry)).find_all("img"):
        assert isinstance(image, Tag)
        alt = str(image.get("alt", ""))
        assert 3 <= len(alt) <= 250, f"{str(image)[:120]}: alt {alt!r}"
        assert not re.fullmatch(r"(?i)[\w./-]+\.(png|svg|jpg)", alt)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_figure_is_whole(site: Path, entry: str) -> None:
    for identity, payload in payloads(page_of(site, entry)).items():
        assert "error" not in payload, f"{identity}: {payload['error']}"
        assert set(payload["layouts"]) == {"wide", "narrow"}, identity
        assert payload["frames"] and all(frame["say"].strip() for frame in payload["frames"]), identity
        assert 10 <= len(payload["alt"]) <= 250, identity
        assert payload == json.loads(json.dumps(find(payload["name"]).bind(payload["values"]).named(identity).payload())), (
            f"{identity} shows what an older mmsim computed: run `make notebooks`")


def test_every_figure_stands_on_a_page(site: Path) -> None:
    for module in pkgutil.walk_packages(mmsim.figures.__path__, "mmsim.figures."):
        importlib.import_module(module.name)
    shown = {payload["name"] for entry in ENTRIES for payload in payloads(page_of(site, entry)).values()}
    assert {each.name for each in figures() if each.name.startswith("mmsim.figures.")} <= shown


# -- what is loaded ---------------------------------------------------------------------------------------------

def loads(page: Path) -> list[str]:
    """The addresses that a page loads by itself."""
    found = []
    for tag in soup(page).find_all(["script", "img", "iframe", "source", "video", "audio", "embed", "object", "link"]):
        if tag.name == "link":
            if set(tag.get("rel") or []) & LOADING_LINKS:
                found.append(str(tag.get("href", "")))
        else:
            found += [str(tag[key]) for key in ("src", "data", "srcset") if tag.get(key)]
    return [address for address in found if address and not address.startswith("data:")]


def loaded_files(page: Path) -> set[Path]:
    """Every local file that a page loads: what it names, what style sheets name (fonts too), what modules import."""
    todo = [(page.parent / unquote(urlsplit(address).path)).resolve() for address in loads(page)]
    found: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in found:
            continue
        assert path.exists(), f"{page.name} loads {path}, which is missing"
        found.add(path)
        if path.suffix == ".css":
            for address in re.findall(r"url\(\s*[\"']?([^\"')]+)", path.read_text(encoding="utf-8")):
                target = (path.parent / urlsplit(address).path).resolve()
                if not address.startswith(("data:", "#")) and target.suffix not in (".ttf", ".eot"):
                    todo.append(target)
        elif path.suffix in (".js", ".mjs") and path.parent.name == "mm":
            for address in re.findall(r"(?:from|import)\s*\(?\s*[\"'](\.[^\"']+)[\"']", path.read_text(encoding="utf-8")):
                todo.append((path.parent / address).resolve())
    return found


def zipped(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 6))


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_page_loads_nothing_from_another_host(site: Path, entry: str) -> None:
    page = page_of(site, entry)
    assert [address for address in loads(page) if urlsplit(address).netloc] == []
    for path in loaded_files(page):
        if path.suffix == ".css":
            assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\"')]+", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_page_is_light_with_all_it_loads(site: Path, entry: str) -> None:
    page = page_of(site, entry)
    weights = {path.name: zipped(path) for path in {page, *loaded_files(page)}}
    heavy = sorted(weights.items(), key=lambda item: -item[1])[:6]
    assert sum(weights.values()) <= HEAVIEST_PAGE, heavy


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_icon_of_the_theme_is_drawn(site: Path, entry: str) -> None:
    drawn = (site / "_static/mm/mm-icons.css").read_text()
    for icon in soup(page_of(site, entry)).find_all(["i", "span"], class_=re.compile(r"^fa-")):
        names = [name for name in icon["class"] if name.startswith("fa-") and name not in NO_ICON]
        assert any(f".fa-{name.removeprefix('fa-')}{{" in drawn for name in names), names


def test_the_icon_font_holds_the_glyphs_of_the_style_sheet_and_no_others(site: Path) -> None:
    sheet = (site / "_static/styles/pydata-sphinx-theme.css").read_text(encoding="utf-8")
    wanted = {ord(one) for one in re.findall(r'--pst-icon-[\w-]+:"(.)"', sheet)}
    fonts = [TTFont(path) for path in (site / "_static/vendor/fontawesome/webfonts").iterdir()]
    glyphs = set().union(*(font.getBestCmap() for font in fonts))
    assert len(wanted) > 10 and wanted <= glyphs and len(glyphs) < 60


def test_pyodide_and_the_wheel_are_there_and_as_large_as_the_manifest_says(site: Path) -> None:
    folder = site / "_static" / "mm"
    manifest = json.loads((folder / "mm-python.json").read_text())
    assert manifest["wheel"] in manifest["bytes"]
    for name, size in manifest["bytes"].items():
        assert (folder / name).stat().st_size == size
    sizes = {name: zipped(folder / name) for name in manifest["bytes"]}
    wheel = sizes.pop(manifest["wheel"])
    # Pyodide's core, and the book's own part: twenty chapters must fit.
    assert sum(sizes.values()) <= 6_500_000 and wheel <= 2_500_000, (sizes, wheel)


def test_no_page_names_the_machine_that_built_it(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path
