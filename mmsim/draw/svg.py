"""A scene as a stand-alone SVG file: for print, EPUB, and pages without JavaScript. Light colours, no variables."""

from __future__ import annotations

from functools import lru_cache

from mmsim.draw.scene import Scene, Shape
from mmsim.draw.theme import ROLES, css, pattern_defs

__all__ = ["to_svg", "escape"]

_ILLEGAL = dict.fromkeys([*(code for code in range(32) if code not in (9, 10, 13)), 0xFFFE, 0xFFFF], "\ufffd")
_ILLEGAL |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_PATTERNED = {name for name, role in ROLES.items() if role.pattern}


def escape(text: str) -> str:
    """``text`` for an XML text or attribute: no markup can begin in it, no character XML forbids is left.

    >>> escape('<b onclick="x">')
    '&lt;b onclick=&quot;x&quot;&gt;'
    """
    if text.isalnum() and text.isascii():
        return text
    text = text.translate(_ILLEGAL)
    return (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#39;")
    )


@lru_cache(maxsize=1024)
def _class(words: str, style: str) -> str:
    names = " ".join([f"mm-{word}" for word in words.split()] + ([f"mm-t-{style}"] if style else []))
    fill = next((f' fill="url(#mm-p-{word})"' for word in words.split() if word in _PATTERNED), "")
    return (f' class="{names}"' if names else "") + fill


_ATTRIBUTES = {
    "rect": (("x", "x"), ("y", "y"), ("w", "width"), ("h", "height"), ("rx", "rx")),
    "line": (("x", "x1"), ("y", "y1"), ("x2", "x2"), ("y2", "y2")),
    "circle": (("x", "cx"), ("y", "cy"), ("r", "r")),
}


def _element(shape: Shape) -> str:
    kind = shape["t"]
    cls = _class(shape.get("c", ""), shape.get("f", ""))
    tip = f"<title>{escape(shape['tip'])}</title>" if "tip" in shape else ""
    if kind == "text":
        anchor = f' text-anchor="{shape["a"]}"' if "a" in shape else ""
        return f'<text x="{shape["x"]}" y="{shape["y"]}"{anchor}{cls}>{tip}{escape(shape["s"])}</text>'
    if kind == "path":
        place = f' d="{escape(shape["d"])}"'
    else:
        place = "".join([f' {name}="{shape[field]}"' for field, name in _ATTRIBUTES[kind] if field in shape])
    return f"<{kind}{place}{cls}>{tip}</{kind}>" if tip else f"<{kind}{place}{cls}/>"


@lru_cache(maxsize=1)
def _head() -> str:
    return f"<style>{css(resolve=True)}</style><defs>{pattern_defs()}</defs>"


def to_svg(scene: Scene, title: str = "", description: str = "", margin: float = 2) -> str:
    """The scene as SVG text. Shapes of one group are drawn together, in the group's place."""
    width, height = scene.width + 2 * margin, scene.height + 2 * margin
    members: dict[str, list[str]] = {}
    for shape in scene.shapes.values():
        if "in" in shape:
            members.setdefault(shape["in"], []).append(_element(shape))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mm-svg" viewBox="{-margin:g} {-margin:g} {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img">',
        f"<title>{escape(title)}</title>" if title else "",
        f"<desc>{escape(description)}</desc>" if description else "",
        _head(),
        f'<rect x="{-margin:g}" y="{-margin:g}" width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    for key, shape in scene.shapes.items():
        if shape["t"] == "group":
            cls = _class(shape.get("c", ""), "")
            inner = "".join(members.get(key, ()))
            parts.append(f'<g transform="translate({shape["x"]} {shape["y"]})"{cls}>{inner}</g>')
        elif "in" not in shape:
            parts.append(_element(shape))
    parts.append("</svg>")
    return "".join(parts)
