"""Forms under exercises: right, wrong, no number, hints; progress that stays in the browser and goes to a file and back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from mmsim.errors import InputError
from mmsim.exercises import exercises
from mmsim.exercises.answers import read_number
from tests.book.pages import chapters

CHAPTER = "book/05-physical-memory"
PROGRESS = "book/appendix/progress"
CHAPTERS = [(f"book/{path.stem}", int(path.stem[:2])) for path in chapters() if exercises(int(path.stem[:2]))]
OF_5 = len(exercises(5))
NO_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied', 'SecurityError'); } })"


def answer(page: Any, label: str, *answers: str) -> Any:
    """Fill in a form and press Enter."""
    form = page.locator(f"#{label} form")
    form.wait_for()
    inputs = form.locator("input")
    assert inputs.count() == len(answers)
    for number, text in enumerate(answers):
        inputs.nth(number).fill(text)
    inputs.last.press("Enter")
    return form


def verdict(form: Any) -> str:
    return str(form.locator(".mm-ex-result").inner_text())


def solved(page: Any) -> str:
    return str(page.locator(".mm-ex-progress span").inner_text())


@pytest.mark.parametrize(("entry", "chapter"), CHAPTERS)
def test_what_the_mechanism_computes_is_right_in_the_page(open_page, entry: str, chapter: int) -> None:  # type: ignore[no-untyped-def]
    page = open_page(entry, ready=False)
    page.locator("form.mm-ex").first.wait_for()
    assert page.locator("form.mm-ex").count() == len(exercises(chapter))
    for one in exercises(chapter):
        assert one.number in str(page.locator(f"#{one.label} .caption-number").first.inner_text())
        form = answer(page, one.label, *(part.show(value).removesuffix(part.unit) for part, value in zip(one.parts, one.expected())))
        assert verdict(form) == "✓ Right.", one.number
    assert solved(page) == f"{len(exercises(chapter))} of {len(exercises(chapter))} solved"


def test_a_wrong_number_is_marked_and_the_right_one_beside_it_too(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False)
    form = answer(page, "ex05-atomic", "375", "400")
    assert verdict(form) == "✗ Not yet: 1 of 2 right."
    assert form.locator(".mm-ex-mark").all_inner_texts() == ["✓ right", "✗ not yet"]
    assert [form.locator("input").nth(at).get_attribute("aria-invalid") for at in (0, 1)] == ["false", "true"]
    assert form.locator("input").nth(1).evaluate("(input) => document.activeElement === input")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("500")
    page.keyboard.press("Tab")                                  # to Check
    page.keyboard.press("Space")
    assert verdict(form) == "✓ Right." and solved(page) == f"1 of {OF_5} solved"


@pytest.mark.parametrize("text", ["", "abc", "<img src=x onerror=alert(1)>", "64 KiB", "9" * 90])
def test_what_is_no_number_is_explained(open_page, text: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False)
    form = answer(page, "ex05-index-singles", text)
    with pytest.raises(InputError) as error:
        read_number(text, "thousandths")
    said = form.locator(".mm-ex-mark").inner_text()
    assert said == f"✗ {error.value}".replace("✗ '", "✗ “").replace("' is", "” is")
    assert page.locator("img[src=x]").count() == 0 and verdict(form) == "✗ Not yet."


WRITTEN = [
    "375", " 375 ", "0x240", "0XFFFF888100000000", "0xffff_8881_0000_0000", "1 939", "1\u202f939", "65,530", "65'530",
    "65_530", "-500", "\u2212500",
    "+7", "2.5", "1 939.5", "64 KiB", "64k", "64kB", "0x10 KiB", "7 GiB", "1.5 GiB", "8192 bytes", "8 192 B", "2 TiB",
    "3000 B", "0x3000B", "-2 MiB",
    "", "abc", "1,5", "1 93", "0x", "12 34 567", "5 pages", "1e400", "1.", ".5", "--5", "0x-5", "5 KiB KiB", "0x 5",
    "\uff11\uff12", "9" * 81, "NaN", "Infinity",
]


@pytest.mark.parametrize("unit", ["", "pages", "bytes", "KiB", "MiB"])
def test_the_page_reads_numbers_as_mmsim_does(open_page, unit: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page("book/appendix/glossary", ready=False)
    read = page.evaluate(
        """async ([texts, unit]) => {
             const { readNumber } = await import('/_static/mm/mm-exercises.js');
             return texts.map((text) => {
               try { return String(readNumber(text, unit)); } catch (error) { return `no: ${error.message}`; }
             });
           }""", [WRITTEN, unit])
    for text, given in zip(WRITTEN, read):
        try:
            expected = read_number(text, unit)
        except InputError as error:
            assert given.replace("“", "'").replace("”", "'") == f"no: {error}", text
        else:
            assert not given.startswith("no: ") and float(given) == float(expected), text
            assert not isinstance(expected, int) or int(given) == expected, text


def test_large_numbers_differ_in_their_last_digit(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page("book/06-kernel-virtual-memory", ready=False)
    assert "1 of 2" in verdict(answer(page, "ex06-vmemmap", "0x100000", "0xffff888100000001"))
    assert verdict(answer(page, "ex06-vmemmap", "0x100000", "0xffff888100000000")) == "✓ Right."


def test_hints_come_one_by_one_and_then_the_solution(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False)
    form = page.locator("#ex05-atomic form")
    form.wait_for()
    page.locator("#ex05-atomic .toggle-button").first.wait_for(state="attached")
    hint = page.locator("#ex05-atomic .admonition.dropdown p:not(.admonition-title)")
    solution = page.locator(".solution", has_text="500 − 125 = 375")
    more = form.locator("button").nth(1)
    assert more.inner_text() == "Hint" and not hint.is_visible()
    more.press("Enter")
    assert hint.is_visible() and more.inner_text() == "Next hint" and not form.locator(".mm-ex-hints p").count()
    for count, text in enumerate(exercises(5)[2].hints[1:], 1):
        more.press("Enter")
        assert form.locator(".mm-ex-hints p").nth(count - 1).inner_text() == f"Hint: {text}"
    assert more.inner_text() == "Solution" and "toggle-hidden" in str(solution.get_attribute("class"))
    more.press("Enter")
    assert "toggle-hidden" not in str(solution.get_attribute("class"))


def test_progress_outlives_a_reload_and_is_shown_on_other_pages(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False)
    answer(page, "ex05-index-singles", "937")
    answer(page, "ex05-index-eights", "490")
    page.reload()
    page.locator("#ex05-index-singles.mm-solved form").wait_for()
    assert solved(page) == f"2 of {OF_5} solved" and verdict(page.locator("#ex05-index-eights form")) == "✓ Solved."
    page.get_by_role("link", name="Progress").last.click()
    page.wait_for_url("**/progress.html")
    row = page.locator(".mm-ex-chapters li", has_text="5. Physical memory")
    assert f"2 of {OF_5} solved" in row.inner_text() and row.locator("progress").evaluate("(bar) => bar.value") == 2
    page.goto(page.url.replace("appendix/progress", "index"))
    page.locator(".mm-ex-count").first.wait_for(state="attached")
    assert page.locator(".mm-ex-count:visible").all_inner_texts() == [f"2 of {OF_5} solved"]


def test_progress_goes_to_a_file_and_into_another_browser(open_page, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False)
    answer(page, "ex05-index-singles", "937")
    page.goto(page.url.replace("05-physical-memory", "appendix/progress"))
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "mm-progress.json"
    assert json.loads(file.read_text()) == {"format": "mm-progress", "version": 1, "solved": ["ex05-index-singles"]}

    other = open_page(PROGRESS, ready=False)
    other.get_by_label("Import").set_input_files(file)
    result = other.locator(".mm-ex-result")
    result.filter(has_text="Read: 1 solved, 1 of them new here").wait_for()
    assert f"1 of {OF_5} solved" in other.locator(".mm-ex-chapters").inner_text()
    other.goto(other.url.replace("appendix/progress", "05-physical-memory"))
    other.locator("#ex05-index-singles.mm-solved").wait_for()


@pytest.mark.parametrize(("text", "says"), [
    ("no json", "The file is no JSON."),
    ("[]", "holds no progress"),
    ("null", "holds no progress"),
    ('{"format": "mm-progress", "version": 2, "solved": []}', "holds no progress"),
    ('{"format": "mm-progress", "version": 1, "solved": "ex05-buddy"}', "holds no progress"),
    ('{"format": "mm-progress", "version": 1, "solved": ["ex05-buddy", "<img src=x onerror=document.title=1>"]}',
     "nothing of it was taken"),
    ('{"format": "mm-progress", "version": 1, "solved": ["ex05-buddy", {"__proto__": 1}]}', "nothing of it was taken"),
    (json.dumps({"format": "mm-progress", "version": 1, "solved": ["ex05-buddy"] * 2001}), "nothing of it was taken"),
    (" " * 200_001, "too large"),
])
def test_a_hostile_file_is_refused_and_nothing_of_it_gets_into_the_page(  # type: ignore[no-untyped-def]
        open_page, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "<img src=x>.json"
    file.write_text(text)
    page = open_page(PROGRESS, ready=False)
    before = page.locator(".mm-ex-chapters").inner_html()
    page.get_by_label("Import").set_input_files(file)
    page.locator(".mm-ex-result", has_text="✗").wait_for()
    assert says in page.locator(".mm-ex-result").inner_text()
    assert page.locator(".mm-ex-chapters").inner_html() == before and page.locator("img[src=x]").count() == 0
    assert page.evaluate("localStorage.getItem('mm-progress')") is None


def test_unknown_exercises_in_a_file_are_passed_over(open_page, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "progress.json"
    file.write_text('{"format": "mm-progress", "version": 1, "solved": ["ex99-nothing", "ex05-buddy"]}')
    page = open_page(PROGRESS, ready=False)
    page.get_by_label("Import").set_input_files(file)
    page.locator(".mm-ex-result", has_text="Read: 1 solved").wait_for()
    assert json.loads(page.evaluate("localStorage.getItem('mm-progress')"))["solved"] == ["ex05-buddy"]


def test_forgetting_asks_first(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(PROGRESS, ready=False)
    stored = json.dumps({"format": "mm-progress", "version": 1, "solved": ["ex05-buddy"]})
    page.evaluate("(text) => localStorage.setItem('mm-progress', text)", stored)
    page.reload()
    answers = iter((False, True))
    page.on("dialog", lambda dialog: dialog.accept() if next(answers) else dialog.dismiss())
    for left in (1, 0):
        page.get_by_role("button", name="Forget").click()
        assert f"{left} of {OF_5} solved" in page.locator(".mm-ex-chapters").inner_text()


def test_what_others_wrote_into_the_storage_does_no_harm(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False)
    page.evaluate("localStorage.setItem('mm-progress', '{\"solved\": [\"<img src=x>\"]')")
    page.reload()
    assert verdict(answer(page, "ex05-index-singles", "937")) == "✓ Right." and solved(page) == f"1 of {OF_5} solved"


@pytest.mark.parametrize("entry", [CHAPTER, PROGRESS])
def test_without_storage_the_page_works_and_says_so_once(open_page, entry: str) -> None:  # type: ignore[no-untyped-def]
    theme = ("denied", "invalid theme mode")                    # what the theme's own script says without storage
    page = open_page(entry, ready=False, before=lambda page: page.add_init_script(NO_STORAGE), allowed=theme)
    note = page.locator(".mm-ex-note:visible")
    note.wait_for()
    assert note.count() == 1 and "keeps nothing" in note.inner_text()
    if entry == CHAPTER:
        assert verdict(answer(page, "ex05-index-singles", "937")) == "✓ Right." and solved(page) == f"1 of {OF_5} solved"
        assert note.count() == 1


def test_without_the_script_there_are_no_forms(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False, java_script_enabled=False)
    assert page.locator("form.mm-ex").count() == 0 and page.locator("#ex05-buddy").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_forms_fit_a_phone_and_verdicts_can_be_read(open_page, scheme: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False, width=360, scheme=scheme)
    answer(page, "ex05-atomic", "375", "a number that is none, and rather long")
    for form in page.locator("form.mm-ex, .mm-ex-progress").all():
        box = form.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360
    found = Axe().run(page, context="#exercises", options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    assert [(one["id"], node["html"][:120]) for one in found for node in one["nodes"] if "mm-ex" in str(node)] == []


def test_the_script_and_its_styles_are_small(site: Path) -> None:
    folder = site / "_static" / "mm"
    assert sum(len(gzip.compress((folder / f"mm-exercises.{ending}").read_bytes())) for ending in ("js", "css")) < 6000
