"""Figures in a notebook with a kernel: the same element, its parameters answered by the kernel.

``setup()``, last in a notebook's first cell, loads the element once and joins all figures of the notebook to the kernel,
so that a changed parameter recomputes there. Where nobody looks (the book is built, a test runs) it only says a
sentence, so that stored outputs stay small and change with nothing but the figures. ``figure.widget()`` makes a single
live figure. Joining needs anywidget, which is imported only then.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsim.draw.figure import BoundFigure

__all__ = ["Setup", "asset", "attended", "figure_widget", "setup"]


def asset(name: str) -> str:
    """The text of ``mm-figure.js`` or ``mm-figure.css``. Raise FileNotFoundError if this installation lacks it."""
    here = Path(__file__).resolve().parent
    for path in (here / "assets" / name, here.parents[1] / "site" / name):
        if path.is_file():
            return path.read_text("utf-8")
    raise FileNotFoundError(f"{name} is neither beside mmsim.draw nor in site/")


class Setup:
    """What ``setup()`` returns: displaying it puts the element and its styles into the notebook."""

    def __init__(self, live: bool) -> None:
        self.live = live

    def __repr__(self) -> str:
        return "mmsim figures are ready"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        if not self.live:
            return {"text/plain": repr(self)}
        style = asset("mm-figure.css").replace("</", "<\\/")
        script = asset("mm-figure.js").replace("</script", "<\\/script")
        html = f'<style>{style}</style><script type="module">{script}</script>'
        return {"text/plain": repr(self), "text/html": html}


def attended() -> bool:
    """Whether a person sits at this kernel: started by a Jupyter server, or MMSIM_LIVE=1 says so (0 says no)."""
    said = os.environ.get("MMSIM_LIVE")
    return said == "1" if said in ("0", "1") else "JPY_SESSION_NAME" in os.environ


def setup(live: bool | None = None) -> Setup:
    """Load the element into a notebook and join its figures to the kernel; ``live`` overrides :func:`attended`."""
    chosen = attended() if live is None else live
    if chosen:
        from IPython.display import display

        try:
            display(_live(""))  # type: ignore[no-untyped-call]
        except ImportError:
            if live:
                raise
    return Setup(chosen)


def figure_widget(figure: BoundFigure) -> Any:
    """The live widget of one figure. Raise ImportError, with the remedy, where anywidget is missing."""
    return _live(json.dumps(figure.payload(), ensure_ascii=False), figure.words())


def answer(content: dict[str, Any]) -> dict[str, Any]:
    """What the kernel sends back for the element's message {turn, name, values}: {turn, payload}."""
    from mmsim.draw.figure import compute

    return {
        "turn": content.get("turn"),
        "payload": json.loads(compute(str(content.get("name")), content.get("values", {}))),
    }


def _live(shown: str, words: str = "Figures recompute in this kernel.") -> Any:
    """A widget that shows the figure with the payload ``shown``; without one, the bridge of the whole notebook."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise ImportError("live figures in a notebook need anywidget: pip install 'mmsim[notebooks]'") from error

    class Live(anywidget.AnyWidget):
        _esm = asset("mm-figure.js")
        _css = asset("mm-figure.css")
        payload = traitlets.Unicode().tag(sync=True)

        def __init__(self) -> None:
            super().__init__(payload=shown)
            self.on_msg(lambda _, content, __: self.send(answer(content)))

        def _repr_mimebundle_(self, **options: Any) -> Any:
            bundle = super()._repr_mimebundle_(**options)
            data = bundle[0] if isinstance(bundle, tuple) else bundle
            if data is not None:
                data["text/plain"] = words
            return bundle

    return Live()
