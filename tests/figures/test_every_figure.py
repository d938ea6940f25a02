"""Every figure of the book as the page shows it at first: whole, light, the same each time, within its sheet, and with a question."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import mmsim.figures
from mmsim.draw.figure import Figure, figures
from tests.figures import whole

for module in pkgutil.walk_packages(mmsim.figures.__path__, "mmsim.figures."):
    importlib.import_module(module.name)
ALL = [figure for figure in figures() if figure.__module__.startswith("mmsim.figures.")]
CHAPTERS = [figure for figure in ALL if ".ch" in figure.__module__]
each = pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.identity)


@each
def test_both_widths_tell_one_story(figure: Figure) -> None:
    whole.one_story_in_both_widths(figure())


@each
def test_nothing_is_drawn_outside_of_the_sheet(figure: Figure) -> None:
    whole.nothing_outside_of_the_sheet(figure())


@each
def test_a_figure_is_light_and_comes_out_the_same_again(figure: Figure) -> None:
    whole.light_and_repeatable(figure())


@pytest.mark.parametrize("figure", CHAPTERS, ids=lambda figure: figure.identity)
def test_a_chapters_figure_asks_for_a_prediction(figure: Figure) -> None:
    whole.asks_something(figure())
