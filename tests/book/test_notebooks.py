"""Notebooks store what they show, and running them again changes nothing."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

from tests.book.pages import ROOT, code, notebooks
from tools.normalise_notebooks import fresh_text

pytestmark = pytest.mark.parametrize("notebook", notebooks(), ids=lambda path: path.stem)


def test_running_it_again_leaves_the_file_as_it_is(notebook: Path) -> None:
    assert fresh_text(notebook) == notebook.read_text(encoding="utf-8"), "run `make notebooks` and look at the difference"


def test_stored_outputs_name_nothing_of_the_machine_that_made_them(notebook: Path) -> None:
    text = json.dumps([cell.outputs for cell in code(notebook)])
    for private in {str(ROOT), os.path.expanduser("~") + "/", socket.gethostname()}:
        if len(private) > 6:
            assert private not in text
    assert not re.search(r"<\w+(\.\w+)* (object )?at 0x[0-9a-f]+>", text), "an object's address"


def test_it_has_no_widget_views_and_stays_small(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert "application/vnd.jupyter.widget-view+json" not in text
    assert len(text.encode()) < 6_000_000


def test_matplotlib_pictures_have_alternative_text(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            picture = {"image/svg+xml", "image/png"} & set(data)
            if picture and "text/html" not in data:
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                assert 10 <= len(alt) <= 250, f"cell {cell['id']}: metadata mystnb.image.alt says what the picture shows"
