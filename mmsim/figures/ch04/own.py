"""The reader's own malloc, asked through ctypes, or the recorded one: usable sizes, and what has a mapping of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mmsim.figures.ch04.stage import Logged, glibc

__all__ = ["arena_sizes", "own_malloc"]

#: Requests in this order: the two recorded scripts that ask for them.
SCRIPTS = {"m24 m25 m1032 m1033 m1040": (24, 25, 1032, 1033, 1040),
           "m130000 m131048 m131048 m131049 m131072": (130000, 131048, 131048, 131049, 131072)}

_PROGRAM = """
import ctypes, json
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.malloc_usable_size.restype = ctypes.c_size_t
libc.malloc_usable_size.argtypes = [ctypes.c_void_p]
libc.gnu_get_libc_version.restype = ctypes.c_char_p
rows = []
for size in SIZES:
    memory = libc.malloc(size)
    rows.append([libc.malloc_usable_size(memory), bool(ctypes.c_size_t.from_address(memory - 8).value & 2)])
print(json.dumps([libc.gnu_get_libc_version().decode(), rows]))
"""


def _model(sizes: tuple[int, ...]) -> list[tuple[int, bool]]:
    libc = glibc(Logged())
    rows = []
    for size in sizes:
        memory = libc.malloc(size)
        rows.append((libc.usable_size(memory), libc.is_mmapped(memory - 16)))
    return rows


def _recorded(path: Path) -> list[tuple[int, bool]]:
    found: dict[str, list[tuple[int, bool]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["config"] == "default" and record["script"] in SCRIPTS:
            found[record["script"]] = [(op["usable"], "mmap" in op) for op in record["ops"]]
    return [row for script in SCRIPTS for row in found[script]]


def own_malloc(live: bool, recording: str | Path) -> str:
    """A table of requests: usable size and place, by the machine's malloc and by the model's.

    ``live`` runs a small Python program on this machine; where that is not glibc, and otherwise, it is the recorded 2.36.
    """
    sizes = tuple(size for script in SCRIPTS.values() for size in script)
    rows: list[tuple[int, bool]] = []
    source = "this machine"
    if live and sys.platform == "linux":
        text = _PROGRAM.replace("SIZES", str(list(sizes)))
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            version, found = json.loads(done.stdout)
            rows, source = [(usable, mapped) for usable, mapped in found], f"this machine's glibc {version}"
    if not rows:
        rows, source = _recorded(Path(recording)), "the recorded glibc 2.36"
    model = [row for script in SCRIPTS.values() for row in _model(script)]
    lines = [f"{source}", f"{'request':>8} {'usable':>8} {'where':>8} {'model':>8}"]
    for size, (usable, mapped), (expected, _) in zip(sizes, rows, model, strict=True):
        lines.append(f"{size:>8} {usable:>8} {'mapped' if mapped else 'heap':>8} {expected:>8}")
    return "\n".join(lines)


def arena_sizes(threads: int, cores: int = 4) -> tuple[int, int, int]:
    """Arenas, MiB of addresses and KiB in RAM of a program whose first thread and so many others allocate 1000 bytes each."""
    program = Logged()
    libc = glibc(program, cores=cores)
    program.fill(libc.malloc(1000), 1000, 1)
    for _ in range(threads):
        libc.switch_to(libc.pthread_create())
        memory = libc.malloc(1000)
        program.fill(memory, 1000, 1)
    libc.check()
    return len(list(libc.arenas())), program.mm.total_vm * 4 >> 10, program.rss_pages * 4
