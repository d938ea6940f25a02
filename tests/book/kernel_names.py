"""Which names are real: the kernels' symbol indices, what recorded kernels printed, mmsim's own names, and a short list by hand."""

from __future__ import annotations

import ast
import gzip
import json
import re
from functools import cache
from pathlib import Path

from tools import kernel_symbols

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
INDEXED = kernel_symbols.RELEASES
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@cache
def index(release: str) -> tuple[frozenset[str], frozenset[str]]:
    """The symbols and the files of a release."""
    return frozenset(kernel_symbols.index(release)), kernel_symbols.files(release)


def index_for(release: str) -> str:
    """The index that holds a symbol which `release` introduced: that release's, or the next later one there is."""
    wanted = tuple(int(part) for part in release.split("."))
    return next((known for known in INDEXED if tuple(int(part) for part in known.split(".")) >= wanted), INDEXED[-1])


@cache
def printed_by_kernels() -> frozenset[str]:
    """Every identifier that a running 5.17 kernel printed (/proc fields, parameters, log words) or its compiler was asked for."""
    found: set[str] = set()
    for path in sorted((GOLDEN / "recordings").glob("*5.17*/**/*")):
        if path.is_file():
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")
            found.update(IDENTIFIER.findall(text))
    constants = json.loads((GOLDEN / "consts" / "consts-5.17.json").read_text())

    def names(node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                found.update(IDENTIFIER.findall(key))
                names(value)

    names(constants["values"])
    return frozenset(found)


def names_in_python(source: str) -> set[str]:
    """Every name that Python source defines or takes: functions, classes, arguments, attributes, variables, keywords, imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.arg(arg=name):
                found.add(name)
            case ast.keyword(arg=str(name)):
                found.add(name)
            case ast.alias(name=name):
                found.update(name.split("."))
            case _:
                pass
    return found


@cache
def mmsim_names() -> frozenset[str]:
    """Every name that mmsim defines, and its modules."""
    found: set[str] = set()
    for path in (ROOT / "mmsim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name, args=arguments):
                    found.add(name)
                    found.update(a.arg for a in [*arguments.args, *arguments.kwonlyargs, *arguments.posonlyargs])
                case ast.ClassDef(name=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    found.add(name)
                case _:
                    pass
        found.add(path.stem)
    return frozenset(found)


@cache
def by_hand() -> frozenset[str]:
    """Names that no index has: tests/book/known-names.txt, one a line, with the reason after a #."""
    lines = (Path(__file__).parent / "known-names.txt").read_text().splitlines()
    return frozenset(line.split("#")[0].strip() for line in lines if line.split("#")[0].strip())
