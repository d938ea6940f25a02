"""Frames travel as differences and arrive as they were."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.draw import Frame, Scene
from mmsim.draw.film import decode, difference, encode

KEYS = st.sampled_from(["a", "b", "c", "7", "11", "__proto__", "constructor", "board/0x10", "é"])
NUMBERS = st.one_of(st.integers(-50, 800), st.floats(-50, 800).map(lambda number: round(number, 1)))
CLASSES = st.sampled_from(["", "free", "anon focus", "kernel dim"])
TIPS = st.sampled_from(["", "tip", "<b>&</b>"])


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    scene = Scene(draw(st.sampled_from([344, 720])))
    for key in draw(st.lists(KEYS, unique=True, max_size=8)):
        x, y, w, h = (draw(NUMBERS) for _ in range(4))
        kind = draw(st.sampled_from(["rect", "text", "line", "path", "circle", "group"]))
        cls, tip = draw(CLASSES), draw(TIPS)
        match kind:
            case "rect":
                scene.rect(key, x, y, w, h, cls, tip, rx=draw(st.sampled_from([0, 3])))
            case "text":
                scene.text(key, x, y, draw(st.text(max_size=5)), draw(st.sampled_from(["label", "code"])), cls, tip=tip)
            case "line":
                scene.line(key, x, y, w, h, cls, tip)
            case "path":
                scene.path(key, f"M{x} {y}H{w}", cls, tip)
            case "circle":
                scene.circle(key, x, y, abs(w), cls, tip)
            case _:
                with scene.group(key, x, y):
                    scene.rect(f"{key}/in", 1, 2, 3, 4)
    return scene


@given(st.lists(scenes(), max_size=6))
@settings(deadline=None, max_examples=300)
def test_decoding_gives_back_every_scene(film: list[Scene]) -> None:
    assert list(decode(encode(film))) == film


@given(st.lists(scenes(), max_size=4))
@settings(deadline=None)
def test_the_way_through_json_changes_nothing(film: list[Scene]) -> None:
    assert list(decode(json.loads(json.dumps(encode(film))))) == film


@given(scenes())
@settings(deadline=None)
def test_an_unchanged_scene_costs_nothing(scene: Scene) -> None:
    assert difference(scene, scene.copy()) == {}


def test_only_the_changed_attributes_travel() -> None:
    before, after = Scene(720), Scene(720)
    before.rect("a", 0, 0, 10, 10, "free", "free frame")
    before.rect("b", 0, 20, 10, 10, "free")
    after.rect("a", 0, 0, 10, 10, "anon")
    after.rect("b", 0, 20, 10, 10, "free")
    assert difference(before, after) == {"set": {"a": {"c": "anon", "tip": None}}}


def test_a_new_shape_needs_no_new_order_of_the_others() -> None:
    before, after = Scene(720), Scene(720)
    for key in "ac":
        before.rect(key, 0, 0, 1, 1)
    for key in "abc":
        after.rect(key, 0, 0, 1, 1)
    assert set(difference(before, after)) == {"add"}


def test_shapes_that_swap_places_bring_the_whole_order() -> None:
    before, after = Scene(720), Scene(720)
    for key in "abc":
        before.rect(key, 0, 0, 1, 1)
    for key in "cab":
        after.rect(key, 0, 0, 1, 1)
    assert difference(before, after) == {"order": ["c", "a", "b"]}


def test_a_frame_keeps_its_drawing_when_the_figure_draws_on() -> None:
    scene = Scene(720)
    scene.rect("a", 0, 0, 1, 1)
    frame = Frame(scene, "one")
    scene.rect("b", 0, 0, 1, 1)
    assert list(frame.scene.shapes) == ["a"]
