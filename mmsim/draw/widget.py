"""The figure in a notebook with a kernel: the same element, its parameters answered by the kernel.

``setup()`` in a notebook's first cell loads the element once. Figures then show with their baked frames;
``figure.widget()`` shows one whose parameters recompute (it needs anywidget, which is imported only then).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsim.draw.figure import BoundFigure

__all__ = ["FigureWidget", "Setup", "setup", "asset"]


def asset(name: str) -> str:
    """The text of ``mm-figure.js`` or ``mm-figure.css``. Raise FileNotFoundError if this installation lacks it."""
    here = Path(__file__).resolve().parent
    for path in (here / "assets" / name, here.parents[1] / "site" / name):
        if path.is_file():
            return path.read_text("utf-8")
    raise FileNotFoundError(f"{name} is neither beside mmsim.draw nor in site/")


class Setup:
    """What ``setup()`` returns: displaying it puts the element and its styles into the notebook, once."""

    def __repr__(self) -> str:
        return "mmsim figures are ready"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        style = asset("mm-figure.css").replace("</", "<\\/")
        script = asset("mm-figure.js").replace("</script", "<\\/script")
        return {
            "text/plain": repr(self),
            "text/html": f'<style>{style}</style><script type="module">{script}</script>',
        }


def setup() -> Setup:
    """Load the element into a notebook; call it as the last line of the first cell."""
    return Setup()


def FigureWidget(figure: BoundFigure) -> Any:
    """The live widget of a figure: an instance, named like the class that can only be made once anywidget is there.

    Raise ImportError, with the remedy, where anywidget is missing."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise ImportError("live figures in a notebook need anywidget: pip install 'mmsim[notebooks]'") from error
    from mmsim.draw.figure import compute

    class Live(anywidget.AnyWidget):
        _esm = asset("mm-figure.js")
        _css = asset("mm-figure.css")
        payload = traitlets.Unicode().tag(sync=True)

        def __init__(self) -> None:
            super().__init__(payload=json.dumps(figure.payload(), ensure_ascii=False))
            self.on_msg(self._asked)

        def _asked(self, _: Any, content: Any, __: Any) -> None:
            """Answer the element: {turn, values} in, {turn, payload} out."""
            made = json.loads(compute(figure.figure.name, content.get("values", {})))
            self.send({"turn": content.get("turn"), "payload": made})

        def _repr_mimebundle_(self, **options: Any) -> Any:
            bundle = super()._repr_mimebundle_(**options)
            if bundle is not None:
                data = bundle[0] if isinstance(bundle, tuple) else bundle
                data["text/plain"] = figure.words()
            return bundle

    return Live()
