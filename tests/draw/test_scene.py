"""Scenes: keys are unique, classes are known, text fits, nothing from data becomes markup."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.draw import Scene, fit_text, text_width, wrap_text
from mmsim.draw.scene import MAX_SHAPES
from mmsim.draw.svg import escape, to_svg
from mmsim.draw.theme import TEXT_STYLES


@given(st.text(max_size=80), st.floats(0, 400), st.sampled_from(sorted(TEXT_STYLES)))
@settings(deadline=None)
def test_fitted_text_is_never_wider_than_its_box(text: str, width: float, style: str) -> None:
    shown = fit_text(text, width, style)
    assert text_width(shown, style) <= width or not shown
    assert shown == text or shown == "" or text.startswith(shown[:-1].rstrip())


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=120), st.floats(60, 400))
@settings(deadline=None)
def test_wrapped_lines_fit(text: str, width: float) -> None:
    assert all(text_width(line) <= width for line in wrap_text(text, width))


def test_every_font_of_the_stack_is_narrower_than_the_table() -> None:
    # Widths in Helvetica (thousandths): H 722, e 556, l 222, o 556 = 2278 for "Hello".
    assert text_width("Hello", "label") >= 2.278 * TEXT_STYLES["label"].size


def test_two_shapes_cannot_share_a_key() -> None:
    scene = Scene()
    scene.rect("a", 0, 0, 1, 1)
    with pytest.raises(ValueError, match="two shapes with the key 'a'"):
        scene.circle("a", 0, 0, 1)


def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no such shape class: freee \(roles: free, anon"):
        Scene().rect("a", 0, 0, 1, 1, "freee")


def test_a_scene_without_end_is_stopped() -> None:
    scene = Scene()
    with pytest.raises(ValueError, match="more than"):
        for number in range(MAX_SHAPES + 1):
            scene.rect(str(number), 0, 0, 1, 1)


def test_text_too_long_for_its_box_moves_into_the_tooltip() -> None:
    scene = Scene()
    scene.box("a", 0, 0, 60, 20, "crash kernel, 256 MiB", "cma")
    assert scene.shapes["a.t"]["s"].endswith("…")
    assert scene.shapes["a"]["tip"] == "crash kernel, 256 MiB"


def test_groups_move_what_is_in_them() -> None:
    scene = Scene()
    with scene.group("g", 10, 100):
        scene.rect("a", 0, 0, 5, 5)
    assert scene.shapes["a"]["in"] == "g"
    assert scene.height == 105
    assert '<g transform="translate(10 100)"><rect x="0"' in to_svg(scene)


def test_the_height_follows_what_is_drawn() -> None:
    scene = Scene(344)
    scene.caption("Frames")
    scene.note("A sentence that is long enough to need more than one line on the screen of a phone.")
    assert scene.height >= scene.y - 6
    assert scene.height > 40


@given(st.text(st.characters(), max_size=60))
@settings(deadline=None)
def test_any_text_gives_well_formed_svg(text: str) -> None:
    scene = Scene()
    scene.text("t", 0, 10, text, tip=text or "x")
    scene.box("b", 0, 20, 100, 20, text, "anon", tip=text)
    root = ElementTree.fromstring(to_svg(scene, text, text))
    assert {element.tag.split("}")[1] for element in root.iter()} <= {
        "svg", "title", "desc", "style", "defs", "pattern", "rect", "path", "circle", "text",
    }  # fmt: skip


def test_markup_in_data_stays_text() -> None:
    hostile = "</text><script>alert(1)</script>"
    scene = Scene()
    scene.text("t", 0, 10, hostile)
    assert "<script" not in to_svg(scene, hostile, hostile)
    assert escape("'\"<&>") == "&#39;&quot;&lt;&amp;&gt;"
