"""In a notebook the kernel answers; the words stay the same for tests."""

import json
from collections.abc import Iterator

import pytest

from mmsim.draw import Frame, Range, Scene, figure
from mmsim.draw.widget import Setup, answer, asset, attended, setup


@figure("Counting down", alt="Numbers that grow smaller.", params=[Range("top", 1, 9, 2)])
def down(top: int) -> Iterator[Frame]:
    for number in range(top, 0, -1):
        yield Frame(Scene(), f"{number}")


def test_the_kernel_answers_a_changed_parameter() -> None:
    answered = answer({"turn": 4, "name": down.name, "values": {"top": "3", "$layouts": ["wide"]}})
    assert answered["turn"] == 4
    assert [frame["say"] for frame in answered["payload"]["frames"]] == ["3", "2", "1"]


@pytest.mark.parametrize(
    "content", [{}, {"turn": 1, "name": "os:system", "values": {}}, {"name": down.name, "values": {"top": "99"}}]
)
def test_a_message_that_makes_no_sense_is_answered_with_a_sentence(content: dict[str, object]) -> None:
    assert answer(content)["payload"]["error"]


def test_the_widget_carries_the_figure_and_its_words() -> None:
    widget = down(top=3).widget()
    assert json.loads(widget.payload) == down(top=3).payload()
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["text/plain"] == repr(down(top=3))
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_build_stores_a_sentence_and_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSIM_LIVE", "0")
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    assert setup()._repr_mimebundle_() == {"text/plain": "mmsim figures are ready"}
    monkeypatch.delenv("MMSIM_LIVE")
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert not attended()


def test_a_person_at_the_kernel_gets_the_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    monkeypatch.delenv("MMSIM_LIVE", raising=False)
    assert attended()
    bundle = Setup(live=True)._repr_mimebundle_()
    assert bundle["text/plain"] == "mmsim figures are ready"
    assert bundle["text/html"].count("</script>") == bundle["text/html"].count("</style>") == 1
    assert "customElements.define('mm-figure'" in bundle["text/html"]


def test_the_package_carries_what_the_page_uses() -> None:
    for name in ("mm-figure.js", "mm-figure.css"):
        assert len(asset(name)) > 5000
    with pytest.raises(FileNotFoundError, match=r"nothing\.js is neither"):
        asset("nothing.js")
