"""The element alone, on a page of its own: what a reader's hands, keys and links do to a figure."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from mmsim.draw import (
    Ask,
    Choice,
    Frame,
    FrameBoard,
    Operations,
    Range,
    Run,
    Scene,
    Seed,
    TextPane,
    Toggle,
    compute,
    figure,
)
from mmsim.draw.film import decode, encode

SITE = Path(__file__).resolve().parents[2] / "site"
HOSTILE = "</script><img src=x onerror=alert(1)><b>"


@figure("Splitting", alt="One free block is halved until a block of the wanted order is left.", params=[
    Range("order", 0, 4, 1), Choice("where", ["low", "high"]), Toggle("labels", True), Seed(),
])  # fmt: skip
def splitting(order: int, where: str, labels: bool, seed: int, width: float) -> Iterator[Frame]:
    if seed == 13:
        raise ZeroDivisionError("thirteen")
    blocks = {0: 4}

    def shot(say: str, hot: int | None = None, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        runs = [Run(p, 1 << n, "moving" if p == hot else "kernel", str(n) if labels else "") for p, n in blocks.items()]
        scene.add(FrameBoard(runs, 16, columns=16), "board", caption="16 frames")
        return Frame(scene, say, ask=ask, event={"name": "mmsim:split", "order": 4})

    yield shot("One block of order 4 is free.")
    yield shot("It is asked for.", ask=Ask("How often is it halved?", 4 - order, "Once for each order between."))
    at = 0
    while blocks[at] > order:
        size = blocks.pop(at) - 1
        low, high = at, at + (1 << size)
        blocks |= {low: size, high: size}
        at = low if where == "low" else high
        yield shot(f"Halves of order {size}; the {where} one goes on.", at)


@figure("Hostile lab", alt="Operations whose text would like to be markup.", params=[
    Operations("ops", f"say {HOSTILE}\nfree 7", {"say": "what:rest -- show it", "free": "pfn:addr"}),
])  # fmt: skip
def hostile(ops: list[Any], width: float) -> Iterator[Frame]:
    scene = Scene(width)
    scene.add(TextPane([op.text for op in ops], title=HOSTILE), "pane")
    scene.rect("r", 0, scene.y, 10, 10, "error", tip=HOSTILE)
    for op in ops:
        if op.verb == "free":
            op.fail("EINVAL: frame 0x7 is not allocated")
    yield Frame(scene, HOSTILE)


def page_of(body: str) -> str:
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>t</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="/mm-figure.css"><script type="module" src="/mm-figure.js"></script>'
        "<style>body{margin:0 auto;max-width:760px;padding:0 16px;background:var(--mm-paper)}</style></head><body>"
        '<p><a id="three" href="#fig-splitting@3">3</a> <a id="zero" href="#fig-splitting@6?order=0">0</a> '
        '<a id="bad" href="#fig-splitting@2?order=99">99</a> <a id="odd" href="#fig-splitting?speed=1">odd</a> '
        f'<a id="far" href="#fig-splitting@999">999</a></p><div style="height:1500px"></div>{body}</body></html>'
    )


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    page = page_of(splitting().html() + hostile().html())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].strip("/")
            kinds = {"js": "text/javascript", "css": "text/css"}
            static = name in ("mm-figure.js", "mm-figure.css")
            self.send_response(200 if static or not name else 404)
            self.send_header("content-type", kinds[name.rsplit(".")[-1]] if static else "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((SITE / name).read_bytes() if static else page.encode() if not name else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, served: str) -> Iterator[Open]:
    contexts, errors = [], []

    def open_page(
        hash: str = "", width: int = 1200, python: bool = True, motion: str = "reduce", touch: bool = False
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion=motion, has_touch=touch)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append("a dialog: script got in"), dialog.dismiss()))
        if python:
            page.expose_function("pythonCompute", lambda name, values: compute(name, values))
            page.add_init_script(
                "window.mmCompute = (name, values) => window.pythonCompute(name, JSON.stringify(values))"
            )
        page.goto(served + hash)
        page.wait_for_selector("#fig-hostile.mm-ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def frame(page: Page) -> int:
    return page.evaluate("document.getElementById('fig-splitting').frame")


def frames(page: Page) -> int:
    return page.evaluate("document.getElementById('fig-splitting').frames")


def say(page: Page) -> str:
    return page.text_content("#fig-splitting .mm-say") or ""


def settled(page: Page, count: int) -> None:
    page.wait_for_function(f"document.getElementById('fig-splitting').frames === {count}")


def test_the_element_decodes_every_film_as_python_does(opened: Open) -> None:
    page = opened()
    rng = random.Random(5)
    films = []
    for _ in range(40):
        film = []
        for _ in range(5):
            scene = Scene(rng.choice([344, 720]))
            for key in rng.sample(["a", "b", "7", "11", "__proto__", "constructor", "é", "x/0x10"], rng.randrange(8)):
                if rng.random() < 0.5:
                    scene.rect(key, rng.randrange(99), 0, 5, 5, rng.choice(["", "free"]), rng.choice(["", "tip"]))
                else:
                    scene.text(key, rng.randrange(99), 0, rng.choice("xyz"))
            film.append(scene)
        films.append(film)
    drawn = page.evaluate(
        """async (films) => {
            const { Film } = await import('/mm-figure.js');
            return JSON.stringify(JSON.parse(films).map((steps) => {
                const film = new Film({ width: 0, steps });
                return steps.map((_, n) => [film.scene(n).w, film.scene(n).h, [...film.scene(n).shapes]]);
            }));
        }""",
        json.dumps([encode(film) for film in films]),
    )
    expected = [
        [
            [scene.width, scene.height, [[key, shape] for key, shape in scene.shapes.items()]]
            for scene in decode(encode(film))
        ]
        for film in films
    ]
    assert json.loads(drawn) == expected


def test_the_drawing_has_every_shape_of_the_frame_in_its_order(opened: Open) -> None:
    page = opened("#fig-splitting@4")
    for number, shown in ((4, splitting().frames()[3]), (5, splitting().frames()[4]), (2, splitting().frames()[1])):
        page.evaluate(f"document.getElementById('fig-splitting').show({number})")
        keys = page.evaluate(
            "[...document.querySelectorAll('#fig-splitting .mm-svg [data-key]')].map((node) => node.dataset.key)"
        )
        assert keys == list(shown.scene.shapes)


def test_keys_step_and_home_and_end_jump(opened: Open) -> None:
    page = opened()
    page.focus("#fig-splitting .mm-stage")
    page.keyboard.press("ArrowRight")
    assert (frame(page), say(page)) == (2, "It is asked for.")
    page.keyboard.press("End")
    assert frame(page) == frames(page) == 5
    page.keyboard.press("ArrowLeft")
    assert frame(page) == 4
    page.keyboard.press("Home")
    assert frame(page) == 1
    assert page.url.endswith("#fig-splitting@1")


def test_keys_typed_into_a_control_do_not_step(opened: Open) -> None:
    page = opened()
    page.focus("#fig-hostile textarea")
    for key in ("ArrowRight", " ", "End", "i"):
        page.keyboard.press(key)
    page.focus("#fig-splitting .mm-seed")
    page.keyboard.press("ArrowLeft")
    assert frame(page) == 1


def test_scrubbing_shows_any_frame(opened: Open) -> None:
    page = opened()
    page.fill("#fig-splitting .mm-scrub", "4")
    assert frame(page) == 4
    assert page.text_content("#fig-splitting .mm-count") == "4/5"


def test_a_prediction_is_asked_before_the_next_frame_and_can_be_skipped(opened: Open) -> None:
    page = opened("#fig-splitting@2")
    page.click("#fig-splitting .mm-next")
    assert frame(page) == 2
    page.click("#fig-splitting .mm-next")
    assert frame(page) == 3
    page.click("#fig-splitting .mm-back")
    page.click("#fig-splitting .mm-next")
    assert frame(page) == 3


@pytest.mark.parametrize(("answer", "verdict"), [("3", "Right"), ("2", "You said 2; it is 3")])
def test_a_prediction_gets_an_answer_with_the_reason(opened: Open, answer: str, verdict: str) -> None:
    page = opened("#fig-splitting@2")
    page.click("#fig-splitting .mm-ask button[type=submit]")
    assert page.text_content("#fig-splitting .mm-hint") == "A whole number, please."
    page.fill("#fig-splitting .mm-answer", answer)
    page.keyboard.press("Enter")
    assert page.text_content("#fig-splitting .mm-ask .mm-verdict") == f"{verdict}. Once for each order between."
    page.keyboard.press("Enter")
    assert frame(page) == 3


def test_nothing_moves_until_the_reader_asks(opened: Open) -> None:
    page = opened(motion="no-preference")
    before = page.inner_html("#fig-splitting .mm-stage")
    page.wait_for_timeout(400)
    assert page.inner_html("#fig-splitting .mm-stage") == before


def test_playing_goes_on_by_itself_and_stops_at_a_prediction(opened: Open) -> None:
    page = opened()
    page.clock.install()
    page.click("#fig-splitting .mm-play")
    page.clock.run_for(20_000)
    assert frame(page) == 2
    assert not page.evaluate("document.getElementById('fig-splitting').playing")
    page.click("#fig-splitting .mm-skip")
    page.click("#fig-splitting .mm-play")
    page.clock.run_for(60_000)
    assert frame(page) == 5


def test_a_shape_glides_and_arrives_where_it_belongs(opened: Open) -> None:
    page = opened("#fig-splitting@3", motion="no-preference")
    page.evaluate("document.getElementById('fig-splitting').show(4, true)")
    page.wait_for_timeout(700)
    wanted = splitting().frames()[3].scene.shapes["board/0x0"]
    box = page.eval_on_selector(
        "#fig-splitting [data-key='board/0x0']", "(n) => [n.getAttribute('x'), n.getAttribute('width')].map(Number)"
    )
    assert box == [wanted["x"], wanted["w"]]


def test_links_in_the_prose_set_frame_and_parameters_and_bring_the_figure_into_view(opened: Open) -> None:
    page = opened()
    page.click("#three")
    assert frame(page) == 3
    assert page.evaluate("document.getElementById('fig-splitting').getBoundingClientRect().top < innerHeight")
    page.evaluate("document.getElementById('zero').click()")
    settled(page, 6)
    assert (frame(page), page.url.split("#")[1]) == (6, "fig-splitting@6?order=0")
    page.evaluate("document.getElementById('far').click()")
    assert frame(page) == 6


@pytest.mark.parametrize(("link", "sentence"), [
    ("bad", "order: '99' is not between 0 and 4"),
    ("odd", "Splitting has no parameter 'speed'; it has: order, where, labels, seed"),
])  # fmt: skip
def test_a_link_that_cannot_be_followed_gets_one_sentence_and_the_figure_stays(
    opened: Open, link: str, sentence: str
) -> None:
    page = opened()
    page.click(f"#{link}")
    assert page.text_content("#fig-splitting .mm-status") == sentence
    page.click("#fig-splitting .mm-next")
    assert frame(page) == 2


def test_the_address_restores_the_state(opened: Open) -> None:
    page = opened("#fig-splitting@4?where=high&order=0")
    settled(page, 6)
    assert (frame(page), say(page)) == (4, "Halves of order 2; the high one goes on.")
    assert page.input_value("#fig-splitting select") == "high"


def test_a_parameter_gives_the_frames_that_python_gives(opened: Open) -> None:
    page = opened()
    page.fill("#fig-splitting .mm-kind-range input", "0")
    settled(page, 6)
    given = page.evaluate("document.getElementById('fig-splitting').payload")
    assert given == json.loads(compute(splitting.name, {"order": "0", "$layouts": ["wide"]}))
    page.click("#fig-splitting .mm-reset")
    assert frames(page) == 5


def test_of_two_answers_the_later_question_wins(opened: Open) -> None:
    page = opened(python=False)
    page.expose_function("pythonCompute", lambda name, values: compute(name, values))
    page.evaluate(
        """() => { let calls = 0;
            document.getElementById('fig-splitting').computer = async (name, values) => {
                const slow = calls++ === 0;
                if (slow) await new Promise((done) => setTimeout(done, 400));
                return window.pythonCompute(name, JSON.stringify(values));
            }; }"""
    )
    page.evaluate("document.getElementById('fig-splitting').setValues({order: '0'})")
    page.evaluate("document.getElementById('fig-splitting').setValues({order: '3'})")
    page.wait_for_timeout(700)
    assert frames(page) == 3


def test_a_figure_whose_python_raises_says_it_in_place_and_goes_on(opened: Open) -> None:
    page = opened("#fig-splitting?seed=13")
    page.wait_for_selector("#fig-splitting .mm-bad")
    assert page.text_content("#fig-splitting .mm-status") == "ZeroDivisionError: thirteen"
    page.click("#fig-splitting .mm-dice")
    page.wait_for_function("document.querySelector('#fig-splitting .mm-status').hidden")
    page.click("#fig-splitting .mm-next")
    assert frame(page) == 2


def test_without_python_the_frames_of_the_page_go_on_working(opened: Open) -> None:
    page = opened(python=False)
    page.click("#fig-splitting .mm-kind-toggle input")
    page.wait_for_selector("#fig-splitting .mm-bad")
    assert "keeps the frames it came with" in (page.text_content("#fig-splitting .mm-status") or "")
    page.click("#fig-splitting .mm-next")
    assert frame(page) == 2


def test_operations_are_edited_and_refused_line_by_line(opened: Open) -> None:
    page = opened()
    assert page.text_content("#fig-hostile .mm-problems") == "line 2 EINVAL: frame 0x7 is not allocated"
    page.fill("#fig-hostile textarea", "fry\nsay hello")
    page.click("#fig-hostile .mm-run")
    page.wait_for_function("document.querySelector('#fig-hostile .mm-problems').textContent.startsWith('line 1')")
    assert page.text_content("#fig-hostile .mm-problems") == 'line 1 no operation "fry"; there are: say, free'
    page.click("#fig-hostile .mm-problems button")
    assert page.evaluate("document.querySelector('#fig-hostile textarea').selectionEnd") == 3


def test_no_markup_enters_through_data(opened: Open) -> None:
    page = opened()
    assert page.text_content("#fig-hostile .mm-say") == HOSTILE
    page.hover("#fig-hostile [data-key=r]")
    assert page.text_content("#fig-hostile .mm-tip") == HOSTILE
    assert page.evaluate("document.querySelectorAll('#fig-hostile img, #fig-hostile b').length") == 0


def test_tooltips_are_reached_by_keyboard(opened: Open) -> None:
    page = opened("#fig-splitting@5")
    page.focus("#fig-splitting .mm-stage")
    page.keyboard.press("i")
    seen = []
    for _ in range(3):
        seen.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        assert page.text_content("#fig-splitting .mm-tip") == seen[-1]
        page.keyboard.press("ArrowRight")
    assert len(set(seen)) == 3
    assert frame(page) == 5
    page.keyboard.press("Escape")
    assert page.is_hidden("#fig-splitting .mm-tip")
    page.keyboard.press("ArrowLeft")
    assert frame(page) == 4


def test_a_touch_shows_a_tooltip_and_a_swipe_steps(opened: Open) -> None:
    page = opened(width=360, touch=True)
    page.tap("#fig-splitting [data-key='board/0x0']")
    assert "16 frames from 0x0" in (page.text_content("#fig-splitting .mm-tip") or "")
    page.evaluate(
        """() => { const stage = document.querySelector('#fig-splitting .mm-stage');
            const touch = (x) => new Touch({ identifier: 1, target: stage, clientX: x, clientY: 50 });
            stage.dispatchEvent(new TouchEvent('touchstart', { touches: [touch(200)], changedTouches: [touch(200)] }));
            stage.dispatchEvent(new TouchEvent('touchend', { touches: [], changedTouches: [touch(90)] })); }"""
    )
    assert frame(page) == 2


@pytest.mark.parametrize(("width", "layout"), [(1200, 720), (360, 344)])
def test_the_layout_fits_and_no_letter_is_too_small(opened: Open, width: int, layout: int) -> None:
    page = opened(width=width)
    assert page.get_attribute("#fig-splitting .mm-svg", "viewBox").split()[2] == str(layout + 4)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    smallest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('.mm-svg text')].map((text) =>
            parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
    )
    assert smallest >= 10


def test_colours_follow_the_theme_of_the_page(opened: Open) -> None:
    page = opened()
    colour = "getComputedStyle(document.querySelector('#fig-splitting .mm-say')).color"
    light = page.evaluate(colour)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(colour) != light
    page.emulate_media(media="print")
    assert page.evaluate(colour) == light
    assert page.is_hidden("#fig-splitting .mm-bar")


def test_a_figure_with_damaged_data_keeps_its_picture(opened: Open) -> None:
    page = opened()
    page.evaluate(
        """() => { const broken = document.createElement('mm-figure'); broken.id = 'broken';
            const script = document.createElement('script'); script.type = 'application/json'; script.textContent = '{"mm": 1,';
            broken.append(script, document.createElement('img')); document.body.append(broken); }"""
    )
    assert page.text_content("#broken .mm-status") == "The data of this figure is damaged."
    assert page.evaluate("document.querySelectorAll('#broken img').length") == 1
