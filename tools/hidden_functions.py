"""Write mmsim/ftrace/hidden.py: which cited functions the recorded kernel's tracer cannot see.

    python3 tools/hidden_functions.py tests/golden/recordings/linux-5.17-userland/ch02_available_filter_functions.txt.gz
"""

from __future__ import annotations

import ast
import gzip
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mmsim.ftrace.kfunc import kernel_function_of  # noqa: E402

HEADER = '''"""Functions that the recorded 5.17.0 runs through unseen: its compiler (gcc 12) made them part of their callers, or they are
macros, or nothing may be traced there. Made by tools/hidden_functions.py from ``available_filter_functions``.
"""

from __future__ import annotations

__all__ = ["HIDDEN"]

#: For :class:`~mmsim.ftrace.graph.FunctionGraph`: leave these out, as ftrace would.
HIDDEN = frozenset("""
'''


def cited() -> set[str]:
    """The kernel's functions that functions of mmsim stand for."""
    found = set()
    for path in sorted((ROOT / "mmsim").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                function = kernel_function_of(node.name, ast.get_docstring(node) or "")
                if function is not None:
                    found.add(function.name)
    return found


def hidden(listing: Path) -> set[str]:
    """Those of them that are not in the list of what can be traced."""
    with gzip.open(listing, "rt", encoding="utf-8") as lines:
        # gcc may leave only a part of a function by itself, or a changed copy: name.part.0, name.isra.0.
        traceable = {line.split()[0].partition(".")[0] for line in lines if line.strip()}
    return cited() - traceable


def main() -> None:
    """Write the module."""
    names = textwrap.fill(" ".join(sorted(hidden(Path(sys.argv[1])))), 118, initial_indent="    ", subsequent_indent="    ")
    (ROOT / "mmsim" / "ftrace" / "hidden.py").write_text(f'{HEADER}{names}\n""".split())\n', encoding="utf-8")


if __name__ == "__main__":
    main()
