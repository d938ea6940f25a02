"""The rules that hold for all source: types, style, layers, and the standard library only."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The one module of the core that may use other packages: the widget for notebooks with a kernel.
WIDGET = {"mmsim/draw/widget.py"}


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "--no-cache", ".")


def test_mypy_strict_finds_nothing_in_mmsim() -> None:
    run("mypy", "--strict", "--no-incremental", "mmsim")


def test_imports_point_downwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def modules() -> list[Path]:
    return sorted((ROOT / "mmsim").rglob("*.py"))


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_the_standard_library_only(module: Path) -> None:
    if str(module.relative_to(ROOT)) in WIDGET:
        return
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            assert top == "mmsim" or top in sys.stdlib_module_names, f"line {node.lineno}: {name}"


def test_the_mechanism_does_not_know_the_wall_clock_or_chance() -> None:
    for module in modules():
        if module.parent.name in ("replay", "draw"):
            continue
        tree = ast.parse(module.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        sources = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not (imported | sources) & {"time", "datetime", "secrets", "uuid", "threading"}, module
        for node in ast.walk(tree):                # random.random() and its like share one hidden generator
            if "random" in imported and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
                assert node.attr == "Random", f"{module}, line {node.lineno}: random.{node.attr} has no seed"


def test_mmsim_alone_needs_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []


def test_every_requirement_is_pinned_and_names_no_host() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.!+]+", line) for line in lines), lines


def test_the_wheel_holds_every_module_and_nothing_else_of_the_tree(tmp_path: Path) -> None:
    run("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), ".")
    (wheel,) = tmp_path.glob("mmsim-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert {str(module.relative_to(ROOT)) for module in modules()} <= names
    assert all(name.startswith(("mmsim/", "mmsim-")) for name in names)
    assert not [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]


def test_the_core_runs_in_an_isolated_python() -> None:
    """As in the browser: no site-packages at all."""
    names = [
        ".".join(module.relative_to(ROOT).with_suffix("").parts) for module in modules()
        if str(module.relative_to(ROOT)) not in WIDGET and module.name not in ("__main__.py", "__init__.py")
    ]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import importlib; [importlib.import_module(n) for n in {names!r}]"
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
