"""The visual language: what each colour, pattern and letter size of a figure means.

A colour stands for the *role* of memory and for nothing else. Every role also has a pattern or an outline of its own,
so that nothing is said by colour alone, and a light and a dark value: text on a filled shape has a contrast of at
least 4.5:1, and the fill or its outline at least 3:1 against the page (``contrast`` computes both; a test holds them).

====================  =====================================================================
role                  means
====================  =====================================================================
``free``              nobody's: in a free list, or available to memblock
``anon``              anonymous memory of a process; the MOVABLE mobility type
``file``              page cache; the RECLAIMABLE mobility type
``kernel``            the kernel's own data, slab; the UNMOVABLE mobility type
``table``             page tables
``reserved``          set aside by firmware or at boot; not given to anyone
``huge``              a huge page, a block in one piece
``moving``            being moved, split, merged or searched in this very step
``error``             what went wrong
``cma``               contiguous memory set aside: CMA, crash kernel
``hot``               in a per-CPU list; the HIGHATOMIC reserve
====================  =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ROLES",
    "MARKS",
    "TEXT_STYLES",
    "INKS",
    "FONT",
    "MONO",
    "Role",
    "TextStyle",
    "contrast",
    "css",
    "rewrite_site",
    "stylesheet",
    "pattern_defs",
]

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace'


@dataclass(frozen=True, slots=True)
class Role:
    """One role: (fill, outline, ink on the fill) in the light and in the dark theme, its letter and its pattern."""

    light: tuple[str, str, str]
    dark: tuple[str, str, str]
    letter: str
    meaning: str
    pattern: str = ""


ROLES: dict[str, Role] = {
    "free": Role(("#eef3f6", "#6d7f8c", "#1c2730"), ("#232c34", "#7f8f9b", "#e6edf2"), "", "free"),
    "anon": Role(("#3274b5", "#1f5286", "#ffffff"), ("#5ea3e6", "#9cc8f5", "#0d1317"), "A", "anonymous, movable"),
    "file": Role(
        ("#14806a", "#0b5a4a", "#ffffff"), ("#37b597", "#7fdcc5", "#0d1317"), "F", "file, reclaimable", "dots"
    ),
    "kernel": Role(
        ("#b8560f", "#8a3d06", "#ffffff"), ("#e58a3c", "#f7b97f", "#0d1317"), "K", "kernel, unmovable", "rising"
    ),
    "table": Role(("#7d55a8", "#58377d", "#ffffff"), ("#b48be0", "#d5bcf2", "#0d1317"), "T", "page table", "grid"),
    "reserved": Role(("#6c747b", "#4a5157", "#ffffff"), ("#8d979f", "#b9c2c9", "#0d1317"), "R", "reserved", "falling"),
    "huge": Role(("#1f3a68", "#10213f", "#ffffff"), ("#a9c4f0", "#d3e2fb", "#0d1317"), "H", "huge page"),
    "moving": Role(("#f0c419", "#8a6d00", "#1c2730"), ("#f2cf45", "#fae69a", "#0d1317"), "M", "changing now"),
    "error": Role(("#c22a35", "#8c1620", "#ffffff"), ("#f0666f", "#f9a6ab", "#0d1317"), "!", "error", "cross"),
    "cma": Role(
        ("#6f7a14", "#4d550b", "#ffffff"),
        ("#a9b53a", "#d2dc7c", "#0d1317"),
        "C",
        "contiguous area, crash kernel",
        "rows",
    ),
    "hot": Role(
        ("#bd3f8c", "#8a2363", "#ffffff"),
        ("#e57ab8", "#f4b3d8", "#0d1317"),
        "P",
        "per-CPU list, high-atomic",
        "columns",
    ),
}

#: Neutral colours: (light, dark).
INKS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14181e"),
    "ink": ("#1c2730", "#e6edf2"),
    "muted": ("#56636e", "#a3b0ba"),
    "line": ("#7d8a94", "#7c8a95"),
    "grid": ("#d5dce1", "#343e47"),
    "wash": ("#f4f6f8", "#1b2128"),
    "focus": ("#1c2730", "#f6fafc"),
    "accent": ("#1f5286", "#9cc8f5"),
    "mark": ("#fff0b3", "#463d10"),
    "level": ("#b3c6d4", "#465a69"),
}

#: Words that a shape's class may hold besides one role, and what they do (the style rules are in :func:`css`).
MARKS: dict[str, str] = {
    "panel": "a quiet box: wash inside, fine outline",
    "frame": "an outline without a fill",
    "wire": "a connecting line",
    "grid": "a fine line of a grid or an axis",
    "axis": "a line of an axis with weight",
    "mark": "a highlighter behind text that changed",
    "ghost": "dashed: what was or would be there",
    "focus": "a heavy outline: look here",
    "dim": "faded: not concerned",
    "strong": "text in a heavy weight",
    "muted": "text of less weight",
    "accent": "text or wire that leads the eye",
    "warn": "text or wire of an error",
    "lit": "a wire on the path taken",
    "solid": "a neutral shape filled with ink",
    "level": "the neutral filling of a tank",
    "hit": "an invisible shape that carries a tooltip",
    "flat": "no outline",
}


@dataclass(frozen=True, slots=True)
class TextStyle:
    """Size in scene units (CSS px at full size), weight, and whether all letters have one width."""

    size: float
    bold: bool = False
    mono: bool = False


TEXT_STYLES: dict[str, TextStyle] = {
    "title": TextStyle(14.5, bold=True),
    "head": TextStyle(12.5, bold=True),
    "label": TextStyle(12.5),
    "small": TextStyle(11.5),
    "mono": TextStyle(12, mono=True),
    "code": TextStyle(11.5, mono=True),
    "big": TextStyle(20, bold=True),
}


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours ``#rrggbb``, from 1 to 21 (WCAG 2.1).

    >>> round(contrast("#000000", "#ffffff"))
    21
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


_PATTERNS = {
    "dots": '<circle class="mm-pat-dot" cx="2" cy="2" r=".9"/><circle class="mm-pat-dot" cx="6" cy="6" r=".9"/>',
    "rising": '<path class="mm-pat-line" d="M-2 2L2 -2M0 8L8 0M6 10L10 6"/>',
    "falling": '<path class="mm-pat-line" d="M-2 6L2 10M0 0L8 8M6 -2L10 2"/>',
    "grid": '<path class="mm-pat-line" d="M0 4H8M4 0V8"/>',
    "rows": '<path class="mm-pat-line" d="M0 2H8M0 6H8"/>',
    "columns": '<path class="mm-pat-line" d="M2 0V8M6 0V8"/>',
    "cross": '<path class="mm-pat-line" d="M0 0L8 8M8 0L0 8"/>',
}


def pattern_defs() -> str:
    """The SVG pattern of every patterned role, to stand once in a page or in a stand-alone file."""
    return "".join(
        f'<pattern id="mm-p-{name}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<rect class="mm-base-{name}" width="8" height="8"/>{_PATTERNS[role.pattern]}</pattern>'
        for name, role in ROLES.items()
        if role.pattern
    )


def variables(dark: bool = False) -> dict[str, str]:
    """Every colour of a theme by the name of its CSS variable."""
    values = {f"--mm-{name}": pair[dark] for name, pair in INKS.items()}
    for name, role in ROLES.items():
        fill, line, ink = role.dark if dark else role.light
        values |= {f"--mm-{name}-fill": fill, f"--mm-{name}-line": line, f"--mm-{name}-ink": ink}
    values["--mm-pat"] = "rgba(255,255,255,.3)" if dark else "rgba(0,0,0,.22)"
    return values


def css(resolve: bool = False) -> str:
    """The rules for the shapes of a scene; with ``resolve``, light colours stand in the place of the variables.

    The same text is part of site/mm-figure.css (a test compares them) and of every stand-alone SVG: some programs
    that turn SVG into PDF know no variables.
    """
    rules = [
        ".mm-svg text{font-family:" + FONT + ";fill:var(--mm-ink);white-space:pre}",
        ".mm-svg .mm-panel{fill:var(--mm-wash);stroke:var(--mm-grid);stroke-width:1}",
        ".mm-svg .mm-frame{fill:none;stroke:var(--mm-line);stroke-width:1}",
        ".mm-svg .mm-wire{fill:none;stroke:var(--mm-line);stroke-width:1.25}",
        ".mm-svg .mm-grid{fill:none;stroke:var(--mm-grid);stroke-width:1}",
        ".mm-svg .mm-axis{fill:none;stroke:var(--mm-line);stroke-width:1}",
        ".mm-svg .mm-mark{fill:var(--mm-mark);stroke:none}",
        ".mm-svg .mm-solid{fill:var(--mm-ink);stroke:none}",
        ".mm-svg .mm-level{fill:var(--mm-level);stroke:var(--mm-line);stroke-width:1}",
        ".mm-svg .mm-hit{fill:transparent;stroke:none}",
    ]
    for name, role in ROLES.items():
        fill = "" if role.pattern else f"fill:var(--mm-{name}-fill);"
        dash = ";stroke-dasharray:3 2;stroke-width:1.5" if name == "moving" else ""
        dash = ";stroke-width:2.5" if name == "huge" else dash
        rules.append(f".mm-svg .mm-{name}{{{fill}stroke:var(--mm-{name}-line);stroke-width:1{dash}}}")
        rules.append(f".mm-svg text.mm-on-{name}{{fill:var(--mm-{name}-ink)}}")
        if role.pattern:
            rules.append(f".mm-base-{name}{{fill:var(--mm-{name}-fill)}}")
    rules += [
        ".mm-pat-line{stroke:var(--mm-pat);stroke-width:1.1;fill:none}.mm-pat-dot{fill:var(--mm-pat)}",
        ".mm-svg .mm-ghost{fill:none;stroke:var(--mm-line);stroke-dasharray:4 3}",
        ".mm-svg .mm-focus{stroke:var(--mm-focus);stroke-width:2.5;stroke-dasharray:none}",
        ".mm-svg .mm-dim{opacity:.38}",
        ".mm-svg .mm-flat{stroke:none}",
        ".mm-svg .mm-wire.mm-accent{stroke:var(--mm-accent);stroke-width:2}",
        ".mm-svg .mm-wire.mm-lit{stroke:var(--mm-ink);stroke-width:2.5}",
        ".mm-svg .mm-wire.mm-warn{stroke:var(--mm-error-fill);stroke-width:2}",
        ".mm-svg text.mm-muted{fill:var(--mm-muted)}.mm-svg text.mm-strong{font-weight:650}",
        ".mm-svg text.mm-accent{fill:var(--mm-accent)}.mm-svg text.mm-warn{fill:var(--mm-error-fill)}",
    ]
    for name, style in TEXT_STYLES.items():
        family = f"font-family:{MONO};" if style.mono else ""
        weight = "font-weight:650;" if style.bold else ""
        rules.append(f".mm-svg text.mm-t-{name}{{{family}{weight}font-size:{style.size:g}px}}")
    text = "\n".join(rules)
    if resolve:
        for variable, value in variables().items():
            text = text.replace(f"var({variable})", value)
    return text


def stylesheet() -> str:
    """The colours as CSS variables, light and dark, and :func:`css`: the generated part of site/mm-figure.css."""

    def block(dark: bool) -> str:
        return "{" + ";".join(f"{name}:{value}" for name, value in variables(dark).items()) + "}"

    by_system = ":root:not([data-theme=light])"
    dark = block(True)
    return "\n".join([
        f":root,body[data-jp-theme-light=true]{block(False)}",
        f"@media screen and (prefers-color-scheme: dark){{{by_system}{dark}}}",
        f"@media screen{{html[data-theme=dark],body[data-jp-theme-light=false]{dark}}}",
        css(),
        "",
    ])  # fmt: skip


def rewrite_site(folder: Path) -> None:
    """Write the generated parts of mm-figure.css and mm-figure.js in ``folder``, between their marks."""
    for name, mark, text in (
        ("mm-figure.css", "theme", stylesheet()),
        ("mm-figure.js", "patterns", f"const PATTERNS = '{pattern_defs()}';\n"),
    ):
        path = folder / name
        begin, end = f"/* {mark}: begin (generated by python -m mmsim.draw) */\n", f"/* {mark}: end */"
        before, rest = path.read_text("utf-8").split(begin)
        path.write_text(before + begin + text + end + rest.split(end)[1], "utf-8")
