"""The table of contents and the sources agree, and no page is a promise."""

import re

import pytest

from tests.book.pages import BOOK, ROOT, chapters, markdown, pages, source_of, toc_entries, words


@pytest.mark.parametrize("entry", toc_entries())
def test_every_entry_of_the_contents_has_a_source(entry: str) -> None:
    assert source_of(entry).exists()


def test_every_source_is_in_the_contents_once() -> None:
    sources = [p for p in BOOK.rglob("*") if p.suffix in (".ipynb", ".md") and ".ipynb_checkpoints" not in p.parts]
    listed = pages()
    assert sorted(set(listed)) == sorted(listed)
    assert sorted(sources) == sorted(listed)


def test_chapters_stand_in_the_order_of_their_numbers() -> None:
    numbers = [int(re.match(r"(\d\d)-", p.name).group(1)) for p in pages() if p in chapters()]  # type: ignore[union-attr]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_is_a_stub(page) -> None:  # type: ignore[no-untyped-def]
    text = markdown(page)
    assert words(text) >= 100
    promise = re.search(r"\b(TODO|FIXME|TBD|coming soon|to be written|lorem ipsum|under construction|placeholder)\b", text, re.I)
    assert promise is None, promise
