"""The reader's own process: areas, resident pages and faults from /proc/self, or those of a recorded process where there is none."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import mmsim
from mmsim.draw import grouped
from mmsim.errors import InputError
from mmsim.process.layout import fixed_layout
from mmsim.units import PAGE_SIZE

__all__ = ["Area", "OwnProcess", "own_experiment", "own_process"]

_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)$")
_PRESENT, _SHARED, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
#: Areas above this size are not looked up page by page: sanitizers and runtimes reserve terabytes.
_LARGEST = 4 << 30


@dataclass(frozen=True, slots=True)
class Area:
    """One area of smaps; sizes in KiB."""

    start: int
    end: int
    perms: str
    name: str
    size: int
    rss: int
    flags: str


@dataclass(slots=True)
class OwnProcess:
    """A process as its files under /proc describe it; ``live`` is False for the recorded one."""

    source: str
    live: bool
    smaps: str
    status: dict[str, str] = field(default_factory=dict)
    #: Present pages: of a file or shared, anonymous; and how many of all are mapped once.
    pages: dict[str, int] = field(default_factory=dict)

    def areas(self) -> list[Area]:
        """The areas, upwards. Raise InputError if the text is not that of smaps."""
        found: list[Area] = []
        values: dict[str, str] = {}
        head: re.Match[str] | None = None

        def close() -> None:
            if head:
                found.append(Area(int(head[1], 16), int(head[2], 16), head[3], head[5], int(values["Size"].split()[0]),
                                  int(values["Rss"].split()[0]), values.get("VmFlags", "").strip()))
        try:
            for line in self.smaps.splitlines():
                match = _HEAD.match(line)
                if match:
                    close()
                    head, values = match, {}
                elif ":" in line:
                    name, _, value = line.partition(":")
                    values[name] = value
            close()
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(f"{self.source}: smaps cannot be read: {error}") from None
        if not found:
            raise InputError(f"{self.source}: smaps has no area")
        return found

    def table(self, most: int = 12) -> str:
        """The largest areas in words, and the sums."""
        areas = self.areas()
        lines = [f"{'area':16} perms {'KiB':>11} {'resident':>9}"]
        for area in sorted(areas, key=lambda area: -area.size)[:most]:
            name = area.name.rpartition("/")[2] if area.name.startswith("/") else area.name or "anonymous"
            lines.append(f"{name[:16]:16} {area.perms}  {grouped(area.size):>11} {grouped(area.rss):>9}")
        size, rss = sum(area.size for area in areas), sum(area.rss for area in areas)
        lines.append(f"{f'{len(areas)} areas':22}{grouped(size):>12} {grouped(rss):>9}")
        return "\n".join(lines)

    def words(self) -> str:
        """What the numbers say: where the process lies, and what is touched of it."""
        areas, pages = self.areas(), self.pages
        size, rss = sum(area.size for area in areas), sum(area.rss for area in areas)
        fixed = any(area.end == fixed_layout().mmap_base for area in areas)
        lines = [f"{self.source}: {len(areas)} areas, {100 * rss / size:.0f} % resident, ASLR {'off' if fixed else 'on'}"]
        if pages:
            lines.append(f"present pages: {grouped(pages['file'])} of files or shared, {grouped(pages['anon'])} anonymous; "
                         f"{grouped(pages['once'])} mapped only here")
        if "VmRSS" in self.status:
            lines.append(f"smaps counts {grouped(rss)} kB resident, status says {self.status['VmRSS']}")
        return "\n".join(lines)


def _recorded() -> OwnProcess:
    path = Path(mmsim.__file__).parent / "data" / "linux-5.17-process.json.gz"
    text = json.loads(gzip.decompress(path.read_bytes()))
    pages = {"file": 0, "anon": 0, "once": 0}
    for _, runs in text["present"]:
        for _, count, kind in runs:
            if kind:
                bits = kind - 1
                pages["file" if bits & 2 else "anon"] += count
                pages["once"] += count if bits & 4 else 0
    return OwnProcess(f"a recorded process ({text['program']}, Linux 5.17)", False, text["smaps"], _fields(text["status"]), pages)


def _fields(status: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}


def _present(path: Path, areas: list[Area]) -> dict[str, int]:
    """Present pages from pagemap: without root it hides the frames' numbers, but not these flags."""
    pages = {"file": 0, "anon": 0, "once": 0}
    with path.open("rb") as file:
        for area in areas:
            if area.end - area.start > _LARGEST or area.name == "[vsyscall]":
                continue
            file.seek(area.start // PAGE_SIZE * 8)
            words = file.read((area.end - area.start) // PAGE_SIZE * 8)
            for place in range(0, len(words) - 7, 8):
                word = int.from_bytes(words[place : place + 8], "little")
                if word & _PRESENT:
                    pages["file" if word & _SHARED else "anon"] += 1
                    pages["once"] += bool(word & _EXCLUSIVE)
    return pages


def own_process(live: bool, root: str | Path = "/") -> OwnProcess:
    """This Python process if ``live`` and /proc can be read, else the recorded one."""
    if not live or sys.platform != "linux":
        return _recorded()
    folder = Path(root) / "proc" / "self"
    try:
        made = OwnProcess("this process", True, (folder / "smaps").read_text(), _fields((folder / "status").read_text()))
        made.pages = _present(folder / "pagemap", made.areas())
    except (OSError, InputError):
        return _recorded()
    return made


_PROGRAM = """
import ctypes, json, mmap, os, resource
N = 64
def faults(area):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for page in range(N):
        area[page << 12] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def fresh():
    area = mmap.mmap(-1, N << 12, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE) if hasattr(mmap, "MADV_NOHUGEPAGE") else None
    return area
warm, area, other = fresh(), fresh(), fresh()
faults(warm)
result = {"first writes": faults(area)}
source, target = os.pipe()
child = os.fork()
if not child:
    faults(warm); faults(warm)
    os.write(target, str(faults(area)).encode())
    os._exit(0)
result["the child writes"] = int(os.read(source, 20))
faults(warm); faults(warm)
result["then the parent"] = faults(area)
os.waitpid(child, 0)
faults(other)
libc = ctypes.CDLL(None)
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(other)))
libc.mprotect(address, N << 12, 1)
libc.mprotect(address, N << 12, 3)
result["after mprotect to r and rw"] = faults(other)
print(json.dumps(result))
"""
#: The same steps in ch07_steps.jsonl: group and step.
RECORDED_STEPS = {
    "first writes": ("mprotect_rw", "write64"), "the child writes": ("cow64", "child_write64"),
    "then the parent": ("cow64", "parent_write64_child_alive"), "after mprotect to r and rw": ("mprotect_rw", "write64_again"),
}


def own_experiment(live: bool, recording: str | Path) -> str:
    """Faults of 64 writes: the first ones, after a fork by child and parent, after mprotect to read-only and back.

    ``live`` runs a small Python program for it; otherwise, or where that fails, the counts are those of the recorded 5.17
    (``ch07_steps.jsonl``).
    """
    counts: dict[str, int] = {}
    source = "this machine"
    if live and sys.platform == "linux":
        done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            counts = json.loads(done.stdout)
    if not counts:
        source, counts = "the recorded 5.17", _recorded_counts(Path(recording))
    return "\n".join([f"faults of 64 writes, {source}", *(f"{name:28} {count:4}" for name, count in counts.items())])


def _recorded_counts(path: Path) -> dict[str, int]:
    steps = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record.get("kind") == "step":
            steps[record["group"], record["step"]] = record["minflt"]
    return {name: steps[key] for name, key in RECORDED_STEPS.items()}
