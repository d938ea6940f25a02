"""recordings/linux-5.17-userland/ch07_tree: trees of processes that read, write, fork, exit, and change 32 private pages and 8 shared
ones, told by a process that watches.

The program itself has pages too, and two of them show in the counts: the 64 KiB of its code with the C library's calls, which
every child must map anew, and the top of its signal stack, which lies beside data that the C library's fork() writes in the
child, so that the parent's next signal takes a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsim.constants import MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED
from mmsim.errors import InputError
from mmsim.paging.pte import pte_pfn, pte_present
from mmsim.process.populate import Access
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile
from mmsim.reference import ref256
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.replay.usage import smaps_sums
from mmsim.units import PAGE_SIZE

__all__ = ["ForkTree", "fork_trees"]

P = PAGE_SIZE
_PRIVATE, _SHARED, _CODE, _SIGNAL_STACK = 0x1000_0000, 0x2000_0000, 0x0040_0000, 0x0050_0000
_FIXED = MAP_ANONYMOUS | MAP_FIXED
#: How many more pages than the tree's the watching process may reuse while it prints.
_WATCHER_REUSES = 6


class ForkTree:
    """One tree: its processes by the numbers of the recording."""

    def __init__(self, private_pages: int, shared_pages: int):
        self.machine = ref256()
        self.machine.user.soft_dirty = True
        self.private_pages, self.shared_pages = private_pages, shared_pages
        self.watcher = watcher = self.machine.spawn("watcher")
        watcher.mmap(_CODE, 16 * P, 5, MAP_PRIVATE | MAP_FIXED, MappedFile("program", 16, writable=False))
        watcher.mmap(_SIGNAL_STACK, P, 3, MAP_PRIVATE | _FIXED)
        watcher.write(_SIGNAL_STACK, b"\1")
        watcher.touch(_CODE, Access.EXEC)
        watcher.mmap(_PRIVATE, private_pages * P, 3, MAP_PRIVATE | _FIXED)
        watcher.mmap(_SHARED, shared_pages * P, 3, MAP_SHARED | _FIXED)
        self.processes = {0: self._fork(watcher)}
        #: Frames by identity, as they were first seen.
        self.identities: dict[int, int] = {}

    def _fork(self, parent: Process) -> Process:
        child = self.machine.processes[parent.fork()]
        child.write(_SIGNAL_STACK, b"\2")
        return child

    @staticmethod
    def drain(process: Process) -> None:
        """Map a page and unmap it: that empties the CPU's pagevecs."""
        process.touch(_CODE, Access.EXEC)
        process.munmap(process.mmap(0, P, 3, MAP_PRIVATE | MAP_ANONYMOUS), P)

    def run(self, op: Record) -> tuple[int, int, int, int]:
        """Carry out an operation; return the acting process' minor and major faults, its signal, and the reuses."""
        process, name = self.processes[op["p"]], op["op"]
        address = (_SHARED if op["area"] == "shared" else _PRIVATE) + op["page"] * P
        counters = self.machine.counters
        minor, major, reuse, signal = process.minflt, process.majflt, counters["pgreuse"], 0
        if name != "read" and name != "exit":
            process.touch(_CODE, Access.EXEC)
        if name in ("read", "write"):
            access = Access.WRITE if name == "write" else Access.READ
            for page in range(op["n"]):
                signal = process.touch(address + page * P, access).outcome.value
                if signal:
                    process.write(_SIGNAL_STACK, b"\3")
                    break
        elif name == "fork":
            self.drain(process)
            self.processes[op["child"]] = self._fork(process)
            minor, major = process.minflt, process.majflt
        elif name == "exit":
            process.exit()
            del self.processes[op["p"]]
        elif name == "dontneed":
            process.madvise(address, op["n"] * P, MADV_DONTNEED)
        elif name in ("mprotect_r", "mprotect_rw"):
            process.mprotect(address, op["n"] * P, 1 if name == "mprotect_r" else 3)
        else:
            raise InputError(f"unknown operation {name!r}")
        return process.minflt - minor, process.majflt - major, signal, counters["pgreuse"] - reuse

    def pages(self, process: Process) -> list[tuple[int, int] | None]:
        """The private pages of a process: frame and how often it is mapped, None where nothing is."""
        found: list[tuple[int, int] | None] = []
        for page in range(self.private_pages):
            word = process.space.pte(_PRIVATE + page * P)
            pfn = pte_pfn(word)
            found.append((pfn, self.machine.frames.mapcount[pfn]) if pte_present(word) else None)
        return found


def _numbered(frames: list[Any]) -> list[int]:
    """Frames renamed by first appearance: which of them are the same."""
    names: dict[Any, int] = {None: -1, 0: -1}
    return [names.setdefault(frame, len(names)) for frame in frames]


@replays("linux-5.17-userland/ch07_tree*.jsonl*")
def fork_trees(path: Path) -> Iterator[Check]:
    """In trees of up to six processes, after each operation: faults and signal of the one that acts, reuses of the machine, and for
    each process smaps of private and shared pages, and for each private page how often it is mapped, which processes share its
    frame, and whether it is still the frame of before."""
    for record in read_jsonl(path):
        if record["kind"] != "tree":
            raise InputError(f"line {record.line}: unknown kind {record['kind']!r}")
        tree = ForkTree(record["priv_pages"], record["shared_pages"])
        where = f"line {record.line}: seed {record['seed']}, {'drained' if record['drained'] else 'not drained'}"
        before: dict[int, list[tuple[Any, Any]]] = {}
        for number, given in enumerate(record["ops"]):
            op = Record(given)
            op.line = record.line
            at = f"{where}, operation {number} ({op['op']} by {op['p']})"
            if record["drained"]:
                tree.drain(tree.processes[min(tree.processes)])
            if op["p"] not in tree.processes:
                raise InputError(f"{at}: there is no such process")
            minor, major, signal, reuses = tree.run(op)
            yield same(f"{at}: minor and major faults, signal", (op["minflt"], op["majflt"], op["sig"]), (minor, major, signal))
            yield Check(f"{at}: pgreuse (the process that watches adds up to {_WATCHER_REUSES})",
                        0 <= op["pgreuse"] - reuses <= _WATCHER_REUSES, op["pgreuse"], reuses)
            recorded: list[Any] = []
            modelled: list[Any] = []
            kept = True
            for state in op["state"]:
                process = tree.processes.get(state["p"])
                if process is None:
                    raise InputError(f"{at}: there is no process {state['p']}")
                got = (smaps_sums(process, _PRIVATE, tree.private_pages), smaps_sums(process, _SHARED, tree.shared_pages))
                yield same(f"{at}: smaps of process {state['p']}", (state["priv"], state["shared"]), got)
                pages = tree.pages(process)
                yield same(f"{at}: mappings of each page of process {state['p']}", [page[1] if page else 0 for page in state["pages"]],
                           [page[1] if page else 0 for page in pages])
                both = [(page[0] if page else -1, own[0] if own else -1) for page, own in zip(state["pages"], pages)]
                for old, new in zip(before.get(state["p"], []), both):
                    kept = kept and (old[1] != new[1] or new[1] < 0 or old[0] == new[0])
                before[state["p"]] = both
                recorded += [page[0] + 1 if page else 0 for page in state["pages"]]
                modelled += [page[0] if page else None for page in pages]
            yield same(f"{at}: which pages are one frame", _numbered(recorded), _numbered(modelled))
            yield Check(f"{at}: pages that keep their frame in the model kept it", kept, True, kept)
        yield same(f"{where}: processes at the end", sorted(tree.processes), sorted(state["p"] for state in op["state"]))
        tree.machine.process_table.check()
