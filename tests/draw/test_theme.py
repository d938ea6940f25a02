"""Colours carry roles, are told apart without colour, and can be read in both themes."""

from pathlib import Path

import pytest

from mmsim.draw.theme import INKS, ROLES, TEXT_STYLES, contrast, css, pattern_defs, stylesheet

SITE = Path(__file__).resolve().parents[2] / "site"
THEMES = [pytest.param(0, id="light"), pytest.param(1, id="dark")]


def colours(role: str, theme: int) -> tuple[str, str, str]:
    return (ROLES[role].light, ROLES[role].dark)[theme]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("role", ROLES)
def test_a_filled_shape_stands_out_from_the_page(role: str, theme: int) -> None:
    fill, line, _ = colours(role, theme)
    assert max(contrast(fill, INKS["paper"][theme]), contrast(line, INKS["paper"][theme])) >= 3


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("role", ROLES)
def test_text_on_a_filled_shape_can_be_read(role: str, theme: int) -> None:
    fill, _, ink = colours(role, theme)
    assert contrast(ink, fill) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ink", ["ink", "muted", "accent"])
@pytest.mark.parametrize("ground", ["paper", "wash", "mark"])
def test_text_beside_shapes_can_be_read(ink: str, ground: str, theme: int) -> None:
    if (ink, ground) != ("accent", "mark"):
        assert contrast(INKS[ink][theme], INKS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_warnings_and_lines_can_be_seen(theme: int) -> None:
    for ground in ("paper", "wash"):
        assert contrast(colours("error", theme)[0], INKS[ground][theme]) >= 4.5
        assert contrast(INKS["line"][theme], INKS[ground][theme]) >= 3


def _blend(colour: str, other: str, share: float) -> str:
    mixed = [round(int(colour[i : i + 2], 16) * (1 - share) + int(other[i : i + 2], 16) * share) for i in (1, 3, 5)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("role", [name for name, role in ROLES.items() if role.pattern])
def test_a_pattern_only_helps_the_text_on_it(role: str, theme: int) -> None:
    fill, _, ink = colours(role, theme)
    line = _blend(fill, ("#000000", "#ffffff")[theme], (0.22, 0.3)[theme])
    assert contrast(ink, line) >= contrast(ink, fill)


def test_no_two_roles_differ_by_colour_alone() -> None:
    said = {(role.pattern, role.letter) for role in ROLES.values()}
    assert len(said) == len(ROLES)
    patterned = [role.pattern for role in ROLES.values() if role.pattern]
    assert len(set(patterned)) == len(patterned)


def test_letters_are_large_enough_on_a_phone() -> None:
    # 344 units are shown on at least 328 CSS pixels, 720 units on at least 640 (site/mm-figure.js, NARROW_BELOW).
    assert min(style.size for style in TEXT_STYLES.values()) * min(328 / 348, 640 / 724) >= 10


def test_the_page_uses_the_colours_of_the_package() -> None:
    assert stylesheet() in (SITE / "mm-figure.css").read_text("utf-8")
    assert f"const PATTERNS = '{pattern_defs()}';" in (SITE / "mm-figure.js").read_text("utf-8")


def test_the_element_knows_which_roles_have_patterns() -> None:
    script = (SITE / "mm-figure.js").read_text("utf-8")
    listed = script.split("const PATTERNED = new Set([")[1].split("])")[0]
    assert {word.strip(" '") for word in listed.split(",")} == {name for name, role in ROLES.items() if role.pattern}


def test_print_knows_no_variables() -> None:
    assert "var(" not in css(resolve=True)
