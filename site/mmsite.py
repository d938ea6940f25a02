"""What this book's pages need beyond Jupyter Book: a Sphinx extension.

- the figure element, its styles and the Python that runs in the page (Pyodide's core, a wheel of mmsim), all served from the book's
  own static files: no page makes a request to another host;
- links that drive figures: ``[split down to order 3](#fig-buddy-board@7)``;
- formulas as MathML, which browsers draw without a script;
- the theme put right: no scripts that nothing uses, icons as CSS instead of a 1.5 MB script.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pydata_sphinx_theme
from docutils import nodes
from docutils.utils.math import latex2mathml
from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
STATIC = ("mm-figure.js", "mm-figure.css", "mm-python.js", "mm-worker.js", "mm-theme.css", "mm-book.css", "mm-terms.js",
          "mm-exercises.js", "mm-exercises.css")
FOLDER = "mm"                       # the static files stand in _static/mm/
PARTS = ("mm_glossary", "mm_symbols", "mm_bibliography", "mm_faithful", "mm_exercises")     # extensions beside this one

# The icons that sphinx-book-theme and pydata-sphinx-theme put into their buttons.
ICONS = (
    "angle-left", "angle-right", "arrow-up", "bars", "circle-half-stroke", "code", "download", "expand", "file", "file-lines",
    "file-pdf", "home", "lightbulb", "list", "magnifying-glass", "moon", "outdent", "pencil", "play", "sun", "xmark",
)
ICON_ALIASES = {"home": "house", "pencil-alt": "pencil"}

logger = logging.getLogger(__name__)


def _tool(name: str) -> Any:
    """A module of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# -- static files ---------------------------------------------------------------------------------------------

def icon_styles(script: str) -> str:
    """CSS that draws the theme's `<i class="fa-solid fa-bars">` icons, from the shapes in its fontawesome.js.

    The shapes are Font Awesome Free's (CC BY 4.0). Raise KeyError for an icon that the script doesn't hold.
    """
    rules = [
        "/* Icons: Font Awesome Free, https://fontawesome.com/license/free, CC BY 4.0 */",
        '[class*="fa-"]:is(i,span){display:inline-block;flex:none;width:1.1em;height:1em;vertical-align:-.125em;background:currentColor;'
        "-webkit-mask:var(--mm-icon) center/contain no-repeat;mask:var(--mm-icon) center/contain no-repeat}",
        ".fa-lg{font-size:1.25em}",
    ]
    for name in (*ICONS, *ICON_ALIASES):
        real = ICON_ALIASES.get(name, name)
        shapes = re.findall(rf'[{{,]"?{re.escape(real)}"?:\[(\d+),(\d+),\[[^\]]*\],"[^"]*","([^"]+)"\]', script)
        if not shapes:
            raise KeyError(f"the theme's fontawesome.js holds no icon {real!r}")
        width, height, path = shapes[-1]          # the solid style comes last
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><path d="{path}"/></svg>'
        rules.append(f'.fa-{name}{{--mm-icon:url("data:image/svg+xml,{quote(svg, safe=" /:=")}")}}')
    return "\n".join(rules) + "\n"


def build_wheel(target: Path) -> Path:
    """The wheel of mmsim that the page unpacks, built in place (no environment, no network)."""

    from flit_core.buildapi import build_wheel as flit_build_wheel

    with contextlib.chdir(ROOT):
        return target / flit_build_wheel(str(target))


def prepare_static(app: Sphinx) -> None:
    """Collect the static files in one folder and hand it to Sphinx."""
    if app.builder.format != "html":
        return
    base = Path(app.outdir).parent / "mm-static"
    target = base / FOLDER
    shutil.rmtree(base, ignore_errors=True)
    target.mkdir(parents=True)
    for name in STATIC:
        if (SITE / name).exists():
            shutil.copy2(SITE / name, target / name)
        else:
            logger.warning("site/%s is missing", name, type="mmsite")
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static/scripts/fontawesome.js"
    (target / "mm-icons.css").write_text(icon_styles(theme.read_text(encoding="utf-8")))

    pyodide = _tool("fetch_pyodide").fetch()
    shutil.copytree(pyodide, target / "pyodide")
    wheel = build_wheel(target)
    sizes = {f"pyodide/{path.name}": path.stat().st_size for path in sorted(pyodide.iterdir())}
    sizes[wheel.name] = wheel.stat().st_size
    (target / "mm-python.json").write_text(json.dumps({"wheel": wheel.name, "bytes": sizes}, indent=1))
    app.config.html_static_path.append(str(base))


def add_assets(app: Sphinx) -> None:
    """The element and the styles, once a page."""
    app.add_css_file(f"{FOLDER}/mm-icons.css")
    app.add_css_file(f"{FOLDER}/mm-figure.css")
    app.add_css_file(f"{FOLDER}/mm-theme.css", priority=900)
    app.add_css_file(f"{FOLDER}/mm-book.css", priority=900)
    app.add_js_file(f"{FOLDER}/mm-figure.js", type="module")


def drop_thebe(app: Sphinx, config: Any) -> None:
    """Disconnect sphinx-thebe, which Jupyter Book always loads: this book has no such button, and it adds its script twice."""
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if listener.handler.__module__ != "sphinx_thebe"]
    app.registry.css_files[:] = [item for item in app.registry.css_files if "thebe" not in item[0]]


def mend_roles(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """docutils calls its citations a list whose items are none: no role is better than a wrong one."""
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def drop_files(app: Sphinx, exception: Exception | None) -> None:
    """Remove what no page loads from the finished site."""
    if exception is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for pattern in ("scripts/fontawesome.js*", "**/*.map", "sphinx-thebe.*", "*macros.html"):
        for path in static.glob(pattern):
            path.unlink()
    for path in (*static.glob("scripts/*.js"), *static.glob("styles/*.css")):      # the maps are gone
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"\n(//|/\*)# sourceMappingURL=[^\n]*\s*$", "\n", text), encoding="utf-8")
    shrink_icon_font(static)


def shrink_icon_font(static: Path) -> None:
    """Keep of the theme's icon font the 30 glyphs that its style sheet puts before titles and links.

    Icons in buttons are drawn by mm-icons.css, so the 1 900 rules that name a glyph for each ``fa-…`` class go too.
    """
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    fonts = static / "vendor" / "fontawesome" / "webfonts"
    text = re.sub(r'(?:\.fa-[\w-]+:{1,2}before,?)+\{content:"[^"]*"\}', "", sheet.read_text(encoding="utf-8"))
    glyphs = {ord(one) for one in text if "\ue000" <= one <= "\uf8ff"}
    glyphs |= {int(one, 16) for one in re.findall(r'"\\([ef][0-9a-f]{3})"', text)}
    for path in sorted(fonts.glob("*.ttf")):
        font = TTFont(path, recalcTimestamp=False)
        subsetter = Subsetter()
        subsetter.populate(unicodes=glyphs)
        subsetter.subset(font)
        font.flavor = "woff"
        font.save(path.with_suffix(".woff"))
        path.unlink()
        path.with_suffix(".woff2").unlink()
    text = re.sub(r'\.woff2\) format\("woff2"\),url\([^)]*\.ttf\) format\("truetype"\)', '.woff) format("woff")', text)
    sheet.write_text(text, encoding="utf-8")


# -- links that drive figures ---------------------------------------------------------------------------------

class FigureLinks(SphinxPostTransform):
    """Leave ``#fig-…`` links to the element in the page; MyST would look for a heading of that name."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("refdomain") == "doc":               # [text](05-physical-memory.ipynb#fig-…)
                page, fragment = str(node["reftarget"]), str(node.get("reftargetid") or "")
            else:                                            # [text](#fig-…)
                page, _, fragment = str(node.get("reftarget", "")).rpartition("#")
                fragment = fragment or str(node.get("reftargetid") or "")
            if not fragment.startswith("fig-"):
                continue
            html = self.app.builder.format == "html"
            uri = self.app.builder.get_relative_uri(self.env.docname, page) if page and html else ""
            link = nodes.reference("", "", refuri=f"{uri}#{fragment}", internal=True, classes=["mm-figure-link"])
            link += node.children
            node.replace_self(link)


class UniqueIds(SphinxPostTransform):
    """Take out the ids that sphinx-exercise gives to the body of every exercise and solution alike."""

    default_priority = 6

    def run(self, **kwargs: Any) -> None:
        for node in self.document.findall(nodes.Element):
            if {"exercise-content", "solution-content"} & set(node.get("ids", ())):
                node["ids"] = []


class LinkedSources(SphinxPostTransform):
    """Make the addresses in bibliography entries links: BibTeX notes are plain text."""

    default_priority = 900              # after sphinxcontrib-bibtex has written its entries

    def run(self, **kwargs: Any) -> None:
        entries = [*self.document.findall(nodes.citation), *(item for item in self.document.findall(nodes.list_item) if item["ids"])]
        for entry in entries:
            for text in list(entry.findall(nodes.Text)):
                if isinstance(text.parent, nodes.reference) or "://" not in text:
                    continue
                parts: list[nodes.Node] = []
                for number, piece in enumerate(re.split(r"(https?://[^\s<>]*[^\s<>.,;)])", str(text))):
                    parts.append(nodes.reference("", piece, refuri=piece, internal=False) if number % 2 else nodes.Text(piece))
                text.parent.replace(text, parts)


# -- formulas -------------------------------------------------------------------------------------------------

def _mathml(source: str, block: bool) -> str:
    return str(latex2mathml.tex2mathml(source.strip(), as_block=block))


def visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math notranslate">{_mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.add_post_transform(FigureLinks)
    app.add_post_transform(UniqueIds)
    app.add_post_transform(LinkedSources)
    app.connect("config-inited", drop_thebe, priority=1)
    app.connect("builder-inited", prepare_static)
    app.connect("builder-inited", add_assets)
    app.connect("html-page-context", mend_roles)
    app.connect("build-finished", drop_files)
    if str(ROOT) not in sys.path:                        # the parts share tables with tools/
        sys.path.insert(0, str(ROOT))
    for part in PARTS:
        app.setup_extension(part)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
