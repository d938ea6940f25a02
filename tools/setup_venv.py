"""Make .venv with everything in requirements.txt, or bring it up to date. Runs on the system's python3, nothing else needed.

A stamp in the environment holds the hash of requirements.txt, so that a second call costs nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def main(folder: str = ".venv") -> str | None:
    """Set the environment up; the message to stop with, or None."""
    if sys.version_info < OLDEST:
        return f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 …"
    venv = (ROOT / folder).resolve()
    bin_ = venv / ("Scripts" if os.name == "nt" else "bin")
    python = bin_ / ("python.exe" if os.name == "nt" else "python")
    stamp = venv / ".requirements"
    wanted = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return None
    if not python.exists():
        print(f"setting up {folder} with Python {sys.version.split()[0]}", flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(venv)])
        if made.returncode:
            return "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"
    print("installing requirements.txt (about a minute the first time)", flush=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", str(ROOT / "requirements.txt")]
    if subprocess.run(pip).returncode:
        return "installing requirements.txt failed: pip's message above says why"
    # mmsim is used from the working tree: one line in the environment says where that is.
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()
    Path(site, "mmsim-tree.pth").write_text(f"{ROOT}\n")
    stamp.write_text(wanted)
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
