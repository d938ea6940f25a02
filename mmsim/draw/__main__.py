"""``python -m mmsim.draw``: write the colours and patterns of the theme into site/mm-figure.css and site/mm-figure.js."""

from pathlib import Path

from mmsim.draw.theme import rewrite_site

rewrite_site(Path(__file__).resolve().parents[2] / "site")
