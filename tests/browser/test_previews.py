"""A word that leads to the glossary shows its explanation to a pointer, the keyboard and a finger; without the script it is a link."""

from __future__ import annotations

import pytest

CHAPTER = "book/05-physical-memory"
WORDS = "a:has(> .std-term)"


def pfn(page):  # type: ignore[no-untyped-def]
    return page.locator(WORDS, has_text="PFN").first


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pointing_at_a_word_shows_its_explanation_until_the_pointer_leaves(open_page, scheme: str) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, scheme=scheme)
    pfn(page).hover()
    tip = page.locator("#mm-tip")
    tip.wait_for(state="visible")
    assert "divided by 4096" in tip.inner_text()
    box = tip.bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 1200
    tip.hover()                                            # it may be read, and its text selected
    page.wait_for_timeout(500)
    assert tip.is_visible()
    page.mouse.move(2, 450)
    tip.wait_for(state="hidden")


def test_the_keyboard_reaches_words_and_escape_closes_the_explanation(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER)
    pfn(page).focus()
    tip = page.locator("#mm-tip")
    tip.wait_for(state="visible")
    assert pfn(page).get_attribute("aria-describedby") == "mm-tip" and tip.get_attribute("role") == "tooltip"
    page.keyboard.press("Escape")
    tip.wait_for(state="hidden")
    assert pfn(page).get_attribute("aria-describedby") is None
    page.keyboard.press("Tab")                             # to the next link: another word, or none
    pfn(page).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html#term-PFN")


def test_the_first_tap_explains_and_the_second_follows(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, width=360, has_touch=True, is_mobile=True)
    pfn(page).tap()
    tip = page.locator("#mm-tip")
    tip.wait_for(state="visible")
    box = tip.bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert page.url.endswith("memory.html") and tip.locator("a").get_attribute("href").endswith("glossary.html#term-PFN")
    page.locator("article p").first.tap()
    tip.wait_for(state="hidden")
    pfn(page).tap()
    tip.wait_for(state="visible")
    pfn(page).tap()
    page.wait_for_url("**/glossary.html#term-PFN")


def test_without_the_script_a_word_is_a_link(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER, ready=False, java_script_enabled=False)
    pfn(page).click()
    page.wait_for_url("**/glossary.html#term-PFN")


def test_a_word_in_an_answer_that_is_still_folded_away_takes_no_focus(open_page) -> None:  # type: ignore[no-untyped-def]
    page = open_page(CHAPTER)
    hidden = page.evaluate(
        f"""() => [...document.querySelectorAll("{WORDS}")].filter((a) => !a.checkVisibility({{ visibilityProperty: true }}))
              .filter((a) => {{ a.focus(); return document.activeElement === a; }}).length""")
    assert hidden == 0
