"""A figure gives the same frames to a notebook, a page and the worker; what goes wrong is a sentence in its place."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import mmsim.draw
from mmsim.draw import Ask, Choice, Frame, Operations, Range, Scene, Toggle, compute, figure
from mmsim.draw.figure import MAX_FRAMES, Figure
from mmsim.draw.film import decode
from mmsim.errors import Errno, InputError


def shot(width: float, say: str, **more: object) -> Frame:
    scene = Scene(width)
    scene.box("a", 0, 0, width, 20, say, "free")
    return Frame(scene, say, **more)  # type: ignore[arg-type]


@figure(
    "Counting",
    alt="Numbers from one to the wanted one.",
    params=[Range("upto", 1, 1000, 3), Choice("how", ["up", "down"])],
)
def counting(upto: int, how: str, width: float) -> Iterator[Frame]:
    for number in range(1, upto + 1):
        ask = Ask("Which comes next?", number + 1, "One more.") if number == 1 else None
        yield shot(width, f"{number} <{how}>", ask=ask, event={"name": "mmsim:count", "number": number})


@figure(
    "Failing",
    alt="A figure that fails as asked.",
    params=[Choice("how", ["errno", "input", "zero", "none", "late", "other"])],
)
def failing(how: str, width: float) -> Iterator[Frame]:
    if how == "errno":
        raise Errno("ENOMEM", "no block of order 10 is free")
    if how == "input":
        raise InputError("the map is empty")
    if how == "zero":
        print(1 // 0)
    if how == "late":
        yield shot(width, "so far, so good")
        raise Errno("EINVAL", "size is zero")
    if how == "other":
        yield shot(width, f"laid out for {width}")


@figure(
    "Lab",
    alt="Operations that the reader edits.",
    params=[Operations("ops", "free 7", {"free": "pfn:addr"}), Toggle("quiet")],
)
def lab(ops: list, quiet: bool) -> Iterator[Frame]:
    for op in ops:
        op.fail("EINVAL: not allocated")
        yield shot(720, f"free {op['pfn']:#x}")


def test_its_text_is_title_parameters_and_sentences() -> None:
    assert repr(counting(upto=2)) == "Counting (upto=2, how=up)\n1. 1 <up>\n2. 2 <up>"


def test_the_page_gets_both_layouts_of_the_same_story() -> None:
    payload = counting().payload()
    assert [frame["say"] for frame in payload["frames"]] == ["1 <up>", "2 <up>", "3 <up>"]
    assert payload["frames"][0]["ask"] == {"question": "Which comes next?", "answer": 2, "why": "One more."}
    for layout, width in (("wide", 720), ("narrow", 344)):
        assert list(decode(payload["layouts"][layout]["steps"])) == [frame.scene for frame in counting().frames(width)]


def test_the_worker_computes_what_the_page_was_built_with() -> None:
    assert json.loads(compute(f"{__name__}:counting", '{"upto": "3"}')) == counting().payload()


def test_one_layout_can_be_had_alone() -> None:
    assert list(json.loads(compute(counting.name, {"$layouts": ["narrow"]}))["layouts"]) == ["narrow"]


@pytest.mark.parametrize(("values", "sentence"), [
    ({"upto": "0"}, "upto: '0' is not between 1 and 1000"),
    ({"speed": "9"}, "Counting has no parameter 'speed'; it has: upto, how"),
    ("[1]", "the parameters are not a mapping"),
    ({"$layouts": ["huge"]}, "layouts are wide, narrow"),
    ({"upto": {"a": 1}}, "upto: \"{'a': 1}\" is not a number"),
])  # fmt: skip
def test_bad_values_come_back_as_a_sentence(values: dict[str, object] | str, sentence: str) -> None:
    assert json.loads(compute(counting.name, values))["error"] == sentence


def test_values_that_are_not_json_come_back_as_a_sentence() -> None:
    assert "error" in json.loads(compute(counting.name, "{"))


@pytest.mark.parametrize(
    "name", ["nothing", "os:system", "mmsim.figures.nowhere:none", "mmsim.figures.:x", "a:b:c", "mmsim.figures.../x:y"]
)
def test_only_figures_can_be_computed(name: str) -> None:
    assert json.loads(compute(name, {}))["error"] == f"there is no figure {name!r}"


@pytest.mark.parametrize(("how", "sentence"), [
    ("errno", "ENOMEM: no block of order 10 is free"), ("input", "the map is empty"),
    ("zero", "ZeroDivisionError: integer division or modulo by zero"), ("none", "The figure has no frame."),
    ("late", "EINVAL: size is zero"),
])  # fmt: skip
def test_a_figure_that_raises_says_so_without_a_traceback(how: str, sentence: str) -> None:
    payload = json.loads(compute(failing.name, {"how": how}))
    assert payload["error"] == sentence
    assert "Traceback" not in json.dumps(payload)
    assert f"Error: {sentence}" in repr(failing(how=how))
    assert sentence in json.loads(failing(how=how).html().split(">", 2)[2].split("</script>")[0])["error"]


def test_frames_before_the_failure_stay() -> None:
    assert [frame["say"] for frame in failing(how="late").payload()["frames"]] == ["so far, so good"]


def test_layouts_must_tell_the_same_story() -> None:
    assert "tells another story" in failing(how="other").payload()["error"]


def test_a_film_without_end_is_cut_and_says_so() -> None:
    payload = counting(upto=1000).payload()
    assert len(payload["frames"]) == MAX_FRAMES
    assert payload["note"] == f"The figure was cut after {MAX_FRAMES} frames."


def test_what_the_kernel_refuses_is_reported_at_its_line() -> None:
    assert lab().payload()["problems"] == {"ops": [{"line": 1, "text": "EINVAL: not allocated"}]}
    assert "ops, line 1: EINVAL: not allocated" in repr(lab())


def test_the_bundle_has_words_the_element_and_a_picture() -> None:
    bundle = counting()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/svg+xml"}
    assert bundle["text/html"].startswith('<mm-figure id="fig-counting" name="')
    assert 'alt="Numbers from one to the wanted one." src="data:image/svg+xml;base64,' in bundle["text/html"]


def test_no_script_can_enter_through_a_figure() -> None:
    @figure(
        "Hostile",
        alt="Text that would like to be markup.",
        params=[Operations("ops", "say hello", {"say": "what:rest"})],
    )
    def hostile(ops: list) -> Iterator[Frame]:
        scene = Scene()
        scene.text("t</script><script>", 0, 10, ops[0]["what"], tip=ops[0]["what"])
        yield Frame(scene, ops[0]["what"])

    page = hostile(ops="say </script><script>alert(1)</script><img src=x onerror=alert(1)>").html()
    assert page.count("<script") == page.count("</script") == 1
    assert page.count("<img") == 1
    data = json.loads(page.split(">", 2)[2].split("</script>")[0])
    assert data["frames"][0]["say"].startswith("</script>")


def test_parameters_and_arguments_must_agree() -> None:
    with pytest.raises(ValueError, match="parameters"):
        figure("Odd", alt="Parameters that do not fit.", params=[Toggle("a")])(lambda b: iter(()))


def test_the_alternative_text_has_a_length() -> None:
    with pytest.raises(ValueError, match="alternative text has 251 characters"):
        figure("Long", alt="x" * 251)(lambda: iter(()))


def test_a_figure_keeps_its_name_and_words() -> None:
    assert isinstance(counting, Figure)
    assert (counting.__name__, counting.identity) == ("counting", "fig-counting")
    assert counting(upto=2).named("fig-counting-2").payload()["id"] == "fig-counting-2"


def test_the_same_parameters_give_the_same_bytes() -> None:
    assert counting(upto=5).html() == counting(upto=5).html()


def test_a_prediction_knows_the_right_answer() -> None:
    assert Ask("How many?", 16, "2^4").right("0x10")
    assert not Ask("Which?", "low", "", choices=["min", "low"]).right("min")
    with pytest.raises(InputError, match="is not a whole number"):
        Ask("How many?", 16, "2^4").right("some")
    with pytest.raises(ValueError, match="not among the choices"):
        Ask("Which?", "high", "", choices=["min", "low"])


def test_the_example_of_the_guide_works_as_it_stands() -> None:
    guide = mmsim.draw.__doc__ or ""
    example = textwrap.dedent(guide.split("::\n\n", 1)[1].split("\n\nRules that make it good")[0])
    scope: dict[str, Any] = {"__name__": "guide"}
    exec(example, scope)
    shown = scope["splitting"](order=0)
    assert len(shown.frames()) == len(shown.frames(344)) == 5
    assert shown.payload()["id"] == "fig-splitting"
    assert "error" not in shown.payload()
