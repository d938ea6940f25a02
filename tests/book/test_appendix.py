"""The appendix: the glossary and the words that lead to it, the index of kernel symbols, the bibliography, what the replays found."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup, Tag

from tests.book.kernel_names import index
from tests.book.pages import BOOK, ROOT, chapters, markdown, pages, words
from tests.book.test_symbols import MARK, TOKEN, spans
from tools import faithful, kernel_symbols

sys.path.append(str(ROOT / "site"))
import mm_glossary
import mm_symbols

ENTRIES = mm_glossary.entries((BOOK / "appendix" / "glossary.md").read_text(encoding="utf-8"))
CHAPTERS = {int(path.name[:2]): path for path in pages() if path in chapters()}       # those in the contents
STORED = json.loads(faithful.RESULT.read_text(encoding="utf-8"))


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def appendix(site: Path, name: str) -> BeautifulSoup:
    return soup(site / "book" / "appendix" / f"{name}.html")


def chapter_page(site: Path, path: Path) -> BeautifulSoup:
    return soup(site / "book" / f"{path.stem}.html")


def led_to(site: Path, page: str, link: Tag) -> Tag:
    """What a link of a page of the appendix leads to."""
    path, _, fragment = str(link["href"]).partition("#")
    target = (site / "book" / "appendix" / path).resolve() if path else site / "book" / "appendix" / f"{page}.html"
    found = soup(target).find(id=unquote(fragment))
    assert isinstance(found, Tag), link["href"]
    return found


# -- the glossary ---------------------------------------------------------------------------------------------

def shown_terms(site: Path) -> dict[str, Tag]:
    """The words on the page, each with its explanation."""
    found = {}
    for term in appendix(site, "glossary").select("dl.glossary > dt"):
        found[term.find(string=True, recursive=False)] = term.find_next_sibling("dd")
    return found


def term_links(page: BeautifulSoup) -> list[Tag]:
    return [link for link in page.find_all("a") if link.find(class_="std-term")]


def test_the_glossary_has_the_words_of_the_field_each_once_with_a_short_explanation() -> None:
    assert 120 <= len(ENTRIES) <= 250
    names = Counter(name.lower() for entry in ENTRIES for name in entry.names)
    assert [name for name, count in names.items() if count > 1] == []
    assert all(1 <= entry.home <= 20 for entry in ENTRIES)


def test_every_word_of_the_glossary_is_used_and_explained_briefly(site: Path) -> None:
    for term, explanation in shown_terms(site).items():
        where = explanation.find(class_="mm-where")
        assert where is not None and where.find("a"), f"no chapter uses {term!r}"
        text = explanation.get_text().removesuffix(where.get_text())
        assert 4 <= words(text) <= 60, f"{term}: {text}"


def test_words_that_a_finished_chapter_explains_are_on_the_page(site: Path) -> None:
    missing = {entry.name for entry in ENTRIES if entry.home in CHAPTERS} - set(shown_terms(site))
    assert missing == set(), "no chapter uses them: give them the forms that the text has, or take them out"


def test_where_a_word_is_said_to_stand_it_stands(site: Path) -> None:
    forms = {entry.name: [re.compile(form, re.I) for form in (*entry.forms, *entry.emphasised)] for entry in ENTRIES}
    for term, explanation in shown_terms(site).items():
        for link in explanation.select(".mm-where a"):
            if term in forms:
                target = led_to(site, "glossary", link)
                around = target if target.name == "dt" else target.find_parent(["p", "li", "td", "dd"])
                texts = [target.get_text(), " ".join(around.get_text().split())]
                assert any(form.search(text) for form in forms[term] for text in texts), f"{term}: {link['href']} leads to {texts[0]!r}"


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda path: path.stem)
def test_a_chapter_links_the_first_use_of_a_word_and_no_other(site: Path, chapter: Path) -> None:
    page = chapter_page(site, chapter)
    links = term_links(page)
    targets = Counter(str(link["href"]) for link in links if not link.find_parent(class_="mm-hand"))
    assert len(links) >= 15
    assert [target for target, count in targets.items() if count > 1] == []
    for link in links:
        assert link.find_parent(["h1", "h2", "h3", "h4", "code", "pre", "svg", "mm-figure", "dt", "figcaption"]) is None, link
        assert link.find_parent("a") is None
        assert led_to(site, "glossary", Tag(name="a", attrs={"href": str(link["href"]).rpartition("/")[2]})).name == "dt"


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda path: path.stem)
def test_a_page_carries_the_explanations_that_it_needs_and_little_else(site: Path, chapter: Path) -> None:
    page = chapter_page(site, chapter)
    data = page.find(id="mm-terms")
    assert data is not None
    known = json.loads(str(data.string))
    assert set(known) == {str(link["href"]).partition("#")[2] for link in term_links(page)}
    assert len(str(data.string).encode()) < 20_000
    for name, text in known.values():
        assert name and text.startswith("<p>") and "<script" not in text and "://" not in text


def test_the_longest_word_wins_and_only_whole_words_count() -> None:
    matcher = mm_glossary.Matcher(ENTRIES)

    def found(text: str) -> list[tuple[str, str]]:
        return [(text[begin:end], entry.name) for begin, end, entry in matcher.find(text)]

    assert found("A page table entry maps a page.") == [("page table entry", "PTE"), ("page", "page")]
    assert found("Two TLBs, three zonelists, many per-CPU lists") == [
        ("TLBs", "TLB"), ("zonelists", "zonelist"), ("per-CPU lists", "per-CPU list")]
    assert found("pagecacheline, subzone, in this order, PFNx") == []
    assert found("a block of order 3") == [("block of order", "block")]
    assert matcher.whole("order").name == "order"                    # type: ignore[union-attr]
    assert matcher.whole("emphasis") is None
    assert re.fullmatch(mm_glossary.plurals("working set"), "Working sets")
    assert re.fullmatch(mm_glossary.plurals("buddy"), "buddies")


# -- the index of kernel symbols ------------------------------------------------------------------------------

def indexed(site: Path) -> dict[str, Tag]:
    """Every name of the index with what stands behind it."""
    return {term.get_text(): term.find_next_sibling("dd") for term in appendix(site, "symbols").select("dl.mm-symbols > dt")}


def test_every_name_of_the_index_is_a_symbol_or_file_and_its_file_and_releases_are_right(site: Path) -> None:
    names = indexed(site)
    assert len(names) >= 140
    for name, entry in names.items():
        origin = entry.find(class_="mm-origin").get_text()
        file = entry.find(class_="mm-file")
        bare = mm_symbols.bare(name)
        if file is None:
            releases = [release for release in kernel_symbols.RELEASES if name in index(release)[1]]
        else:
            place, _, mark = file.get_text().partition(" ")
            known = mm_symbols.symbol_of(name).name
            assert known.removeprefix("sys_") == bare or known == bare
            release = mark.strip("()") or "5.17"
            assert place in {symbol.file for symbol in kernel_symbols.index(release)[known]}, name
            releases = [release for release in kernel_symbols.RELEASES if known in index(release)[0]]
        assert releases, name
        assert origin.endswith(mm_symbols.in_releases(releases)), f"{name}: {origin}"


def test_every_link_of_the_index_leads_to_the_name(site: Path) -> None:
    for name, entry in indexed(site).items():
        links = entry.select(".mm-places a")
        assert links and links[0].find_parent("strong"), name
        for link in links:
            # Of two names in one piece of code the second one's mark is empty and stands inside of it.
            place = led_to(site, "symbols", link)
            assert mm_symbols.bare(name) in (place.get_text() or place.parent.get_text()), f"{name}: {link['href']}"


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda path: path.stem)
def test_every_symbol_that_a_chapter_names_is_in_the_index(site: Path, chapter: Path) -> None:
    names = {mm_symbols.bare(name) for name in indexed(site)}
    own = mm_symbols.own_names(chapter)
    missing = set()
    for span, after in spans(markdown(chapter)):
        for token in TOKEN.findall(span):
            name = token.removesuffix("()")
            symbol = kernel_symbols.main_place(name)
            marked = MARK.match(after) is not None or (name in own and "_" not in name.strip("_"))
            function = symbol is not None and symbol.kind != "member" and token.endswith("()")
            if function and name in span.split(".")[0] and not marked and name not in names:
                missing.add(name)
    assert missing == set()


def test_the_index_prefers_the_section_that_explains(site: Path) -> None:
    first = {name: entry.find("strong").get_text() for name, entry in indexed(site).items()}
    assert first["struct page"] == "5 Frames and their descriptions"
    assert first["zone_watermark_ok()"] == "5 Watermarks and reserves"
    assert first["memblock_free_all()"].startswith("19 ")


@pytest.mark.parametrize("name, file", [
    ("kfree()", "mm/slub.c"), ("vmalloc()", "mm/vmalloc.c"), ("mark_rodata_ro()", "arch/x86/mm/init_64.c"), ("brk()", "mm/mmap.c"),
    ("struct kmem_cache_cpu", "include/linux/slub_def.h"), ("struct page", "include/linux/mm_types.h"),
    ("GFP_KERNEL", "include/linux/gfp.h"),
])
def test_a_name_that_several_files_define_is_the_one_of_the_books_kernel(name: str, file: str) -> None:
    assert mm_symbols.symbol_of(name).file == file


def test_names_in_code_font_are_told_from_other_words() -> None:
    assert list(mm_symbols.names_in("struct page *")) == ["struct page"]
    assert list(mm_symbols.names_in("alloc_pages()")) == ["alloc_pages()"]
    assert list(mm_symbols.names_in("mmap")) == ["mmap()"]
    assert list(mm_symbols.names_in("take()", frozenset({"take"}))) == []
    assert list(mm_symbols.names_in("machine.free_pages()")) == []
    assert list(mm_symbols.names_in("size")) == []
    assert mm_symbols.in_releases(["5.17", "6.1", "6.12", "6.18"]) == "5.17 to 6.18"
    assert mm_symbols.in_releases(["5.17"]) == "5.17 only"
    with pytest.raises(LookupError):
        mm_symbols.symbol_of("no_such_function()")


# -- the bibliography -----------------------------------------------------------------------------------------

def cited(path: Path) -> set[str]:
    """The keys that a chapter cites, without its prefix."""
    roles = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", markdown(path))
    return {re.sub(r"^c\d\d-", "", key.strip()) for keys in roles for key in keys.split(",")}


def test_the_bibliography_holds_what_the_chapters_cite_and_nothing_else(site: Path) -> None:
    items = appendix(site, "bibliography").select("article li")
    assert len(items) == len(set().union(*map(cited, CHAPTERS.values())))
    for item in items:
        assert item.find("a", class_="external"), item.get_text()
        for link in item.select(".mm-where a"):
            entry = led_to(site, "bibliography", link)
            assert entry.name == "div" and "citation" in entry["class"], link
    for number, path in CHAPTERS.items():
        told = [item for item in items if str(number) in [link.get_text() for link in item.select(".mm-where a")]]
        assert len(told) == len(cited(path)), path.stem


def test_every_cited_work_has_the_address_that_confirms_it() -> None:
    entries = re.split(r"(?m)^@\w+\{", (BOOK / "references.bib").read_text(encoding="utf-8"))[1:]
    notes = {entry.partition(",")[0]: re.search(r"note\s*=\s*\{.*?https?://", entry, re.S) for entry in entries}
    for path in CHAPTERS.values():
        assert [key for key in sorted(cited(path)) if not notes.get(key)] == []


# -- how faithful is it? --------------------------------------------------------------------------------------

def test_every_replay_belongs_to_a_mechanism_of_a_chapter() -> None:
    assert {one["path"] for one in STORED["files"] if not one["chapter"]} == set()


def test_the_page_shows_the_stored_numbers_and_every_known_difference(site: Path) -> None:
    page = appendix(site, "how-faithful").find("article")
    text = " ".join(page.get_text().replace("\u202f", "").replace("’", "'").split())
    total, agree = (sum(one[key] for one in STORED["files"]) for key in ("total", "agree"))
    assert f"{agree} of {total} comparisons agree, in {len(STORED['files'])} recorded files" in text
    for one in STORED["files"]:
        assert one["compares"].replace("``", "") in text.replace("``", "")
        assert all(name in text for name in one["known"])
    for path in STORED["not replayed"]:
        assert path in text
    sums: Counter[str] = Counter()
    for row in page.select("table.mm-faithful tbody tr"):
        first, second = re.findall(r"\d+", row.find_all("td")[-1].get_text().replace("\u202f", ""))
        sums.update(agree=int(first), total=int(second))
    assert sums == {"agree": agree, "total": total}


def test_no_number_of_comparisons_is_typed_into_the_page() -> None:
    source = (BOOK / "appendix" / "how-faithful.md").read_text(encoding="utf-8")
    assert re.findall(r"\b\d[\d\u202f,]*\d\b", re.sub(r"\b\d\.\d+(\.\d+)?\b", "", source)) == []


def test_each_chapter_with_a_card_says_what_is_left_out(site: Path) -> None:
    page = appendix(site, "how-faithful")
    for number in sorted({one["chapter"] for one in STORED["files"]} & set(CHAPTERS)):
        section = page.find(id=f"faithful-{number}")
        assert section is not None and "Left out:" in section.get_text(), number


# -- nothing from elsewhere -----------------------------------------------------------------------------------

def test_the_preview_loads_nothing() -> None:
    script = (ROOT / "site" / "mm-terms.js").read_text(encoding="utf-8")
    assert not re.search(r"://|fetch|import|XMLHttpRequest|localStorage", script)
    assert "://" not in (ROOT / "site" / "mm-book.css").read_text(encoding="utf-8")
