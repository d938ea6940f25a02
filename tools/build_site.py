"""Build the book into _build/html, warnings as errors; nothing is done when it is up to date.

    python tools/build_site.py [--force]

Incremental builds do not copy changed static files, so a build is always a whole one. The hash of everything that goes in is kept
beside the pages; two callers at once (test workers) take turns.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
STAMP = ROOT / "_build" / "site.sha256"
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"      # the package has no __main__
INPUTS = ("book", "mmsim", "site", "tools", "_config.yml", "_toc.yml", "requirements.txt",
          *(f"tests/golden/symbols-{release}.tsv.gz" for release in ("5.17", "6.1", "6.12", "6.18")))


def inputs() -> list[Path]:
    """Every file that the pages depend on."""
    files: list[Path] = []
    for name in INPUTS:
        path = ROOT / name
        files += [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file())
    skip = ("__pycache__", ".ipynb_checkpoints")
    return sorted(p for p in files if not any(part in skip for part in p.parts))


def digest() -> str:
    """One hash over names and contents of the inputs."""
    total = hashlib.sha256()
    for path in inputs():
        total.update(f"{path.relative_to(ROOT)}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def up_to_date() -> bool:
    """Whether _build/html was made from the files as they are now."""
    return STAMP.exists() and (HTML / "index.html").exists() and STAMP.read_text() == digest()


def build(force: bool = False) -> int:
    """Build if needed; jupyter-book's exit status."""
    if not force and up_to_date():
        return 0
    STAMP.parent.mkdir(exist_ok=True)
    STAMP.unlink(missing_ok=True)
    wanted = digest()
    begin = time.monotonic()
    command = [sys.executable, "-c", JUPYTER_BOOK, "build", ".", "--all", "-W", "--keep-going", "--path-output", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        return done.returncode
    STAMP.write_text(wanted)
    print(f"built the book in {time.monotonic() - begin:.0f} s: _build/html", flush=True)
    return 0


def build_once() -> int:
    """Build if needed, one process at a time."""
    (ROOT / "_build").mkdir(exist_ok=True)
    with open(ROOT / "_build" / "site.lock", "w") as lock:
        try:
            import fcntl
        except ImportError:
            return build()
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build()


if __name__ == "__main__":
    sys.exit(build(force=True) if "--force" in sys.argv[1:] else build_once())
