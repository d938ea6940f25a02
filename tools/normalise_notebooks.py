"""Run the notebooks of book/ again and write them in one form, so that `git diff` shows what changed and nothing else.

    python tools/normalise_notebooks.py [--check] [--no-run] [NOTEBOOK…]

--check writes nothing: it names the notebooks that would change and exits with status 1 if there are any. --no-run keeps the stored
outputs and normalises the form only.

The form: cell ids stay (new cells get one from their source), metadata holds the kernel's name and what the book reads (tags, mystnb),
execution counts run from 1, streams are joined, widget views and other transient data are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
KEPT_CELL_METADATA = ("tags", "mystnb", "jupyter")
DROPPED_OUTPUT_TYPES = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
TIMEOUT_SECONDS = 300


def notebooks() -> list[Path]:
    """Every notebook of the book."""
    return sorted(path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def run(notebook: Any, folder: Path) -> None:
    """Run all cells in a fresh kernel; the outputs replace the stored ones. Raise CellExecutionError for a cell that fails."""
    from nbclient import NotebookClient

    # The kernel finds mmsim in the tree, draws without a screen and hashes alike each time.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ["PYTHONHASHSEED"] = "0"
    NotebookClient(
        notebook, timeout=TIMEOUT_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        record_timing=False, store_widget_state=False,
    ).execute()


def normal_outputs(outputs: list[Any], count: int) -> list[Any]:
    """Outputs without transient parts, neighbouring pieces of one stream joined."""
    kept: list[Any] = []
    for output in outputs:
        output = dict(output)
        output.pop("transient", None)
        if output["output_type"] in ("execute_result", "display_data"):
            data = {kind: value for kind, value in output["data"].items() if kind not in DROPPED_OUTPUT_TYPES}
            if not data:
                continue
            output["data"] = data
            output["metadata"] = {}
        if "execution_count" in output:
            output["execution_count"] = count
        if kept and output["output_type"] == "stream" == kept[-1]["output_type"] and output["name"] == kept[-1]["name"]:
            kept[-1]["text"] += output["text"]
            continue
        kept.append(output)
    return [nbformat.from_dict(output) for output in kept]


def normalise(notebook: Any) -> str:
    """The notebook's text in the book's form."""
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    seen: set[str] = set()
    for cell in notebook.cells:
        identity = cell.get("id") or ""
        if not identity or identity in seen:
            base = hashlib.sha256(f"{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:8]
            identity = next(name for name in [base, *(f"{base}-{n}" for n in range(2, 1000))] if name not in seen)
        seen.add(identity)
        cell["id"] = identity
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT_CELL_METADATA if cell.metadata.get(key)})
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = normal_outputs(cell.outputs, count)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def fresh_text(path: Path, execute: bool = True) -> str:
    """What the file should hold: run again (unless not), in the book's form."""
    notebook = nbformat.read(path, as_version=4)
    if execute:
        run(notebook, path.parent)
    return normalise(notebook)


def main() -> int:
    """Normalise the notebooks named, or all; 1 if --check found a difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a notebook would change")
    parser.add_argument("--no-run", action="store_true", help="keep the stored outputs")
    parser.add_argument("notebook", nargs="*", type=Path)
    arguments = parser.parse_args()
    changed = []
    for path in arguments.notebook or notebooks():
        text = fresh_text(path.resolve(), execute=not arguments.no_run)
        if text != path.read_text(encoding="utf-8"):
            changed.append(path)
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    for path in changed:
        print(f"{'would change' if arguments.check else 'changed'}: {path}")
    return 1 if arguments.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
