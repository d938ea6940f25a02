"""golden/malloc: corrupt heaps and threads, as ``tools/record/heap.c`` records them on a machine with glibc 2.36.

The kernel may be any: only the places of mappings of 2 MiB and more depend on it, and none are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsim.constants import VM_ACCOUNT, VM_DATA_DEFAULT_FLAGS
from mmsim.errors import InputError
from mmsim.malloc.glibc.heaps import Heap
from mmsim.malloc.glibc.layout import HEAP_MAX_SIZE, IS_MMAPPED, NON_MAIN_ARENA
from mmsim.malloc.glibc.params import parse_tunables
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import Hang, PlainProgram, ProgramSignal
from mmsim.replay.malloc import MAIN_ARENA
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same

__all__ = ["corrupt_heaps", "threads"]


def _call(libc: Ptmalloc, name: str, a: int, b: int) -> int:
    """One call of the recorded program, with its result."""
    match name:
        case "malloc":
            return libc.malloc(a)
        case "free":
            libc.free(a)
        case "realloc":
            return libc.realloc(a, b)
        case "calloc":
            return libc.calloc(a, b)
        case "memalign":
            return libc.memalign(a, b)
        case "malloc_trim":
            return libc.malloc_trim(a)
        case "store":
            libc.store(a, b)
        case _:
            raise InputError(f"unknown operation {name!r}")
    return 0


def _number(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise InputError(f"{text!r} is no hexadecimal number") from None


@replays("malloc/corrupt*.jsonl*")
def corrupt_heaps(path: Path) -> Iterator[Check]:
    """For programs that overflow, free twice and write after free: the result of every call, and the signal and the words in
    which the program ends."""
    for record in read_jsonl(path):
        arena = _number(record["main_arena"])
        program = PlainProgram(heap_start=_number(record["heap_start"]))
        program.map_region(arena - MAIN_ARENA, program.mm.layout.mmap_base - (arena - MAIN_ARENA), VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT)
        libc = Ptmalloc(program, arena, parse_tunables(record["tunables"]))
        said: list[str] = []
        ending: tuple[int, str] = (0, "")
        try:
            for line in record["ops"]:
                name, *numbers = line.split()
                a, b = (_number(number) for number in numbers[:2])
                said.append(f"{name} {numbers[0]} {numbers[1]}")
                said[-1] += f" {_call(libc, name, a, b):x}"
        except Hang as signal:
            ending = (-1, str(signal))
        except ProgramSignal as signal:
            ending = (signal.number, signal.message)
        yield same(f"seed {record['seed']} {record['tunables']}: results, signal, message",
                   (record["ops"], record["signal"], record["stderr"]), (said, *ending))


def _described(libc: Ptmalloc, memory: int) -> dict[str, int]:
    """A chunk's usable size and flags, and, if it is another arena's, its place in a heap and how far that is open."""
    if not memory:
        return {}
    flags = libc.load(memory - 8) & (IS_MMAPPED | NON_MAIN_ARENA)
    said = {"usable": libc.usable_size(memory), "flags": flags}
    if flags == NON_MAIN_ARENA:
        heap = Heap(libc, memory & -HEAP_MAX_SIZE)
        said |= {"off": memory - heap.address, "heap_size": heap.size, "heap_opened": heap.mprotect_size}
    return said


def _play(record: Record) -> Iterator[tuple[dict[str, Any], dict[str, int]]]:
    libc = Ptmalloc(PlainProgram())
    crew = [libc.pthread_create() for _ in range(1 + max((op["thread"] for op in record["ops"]), default=0))]
    slots: dict[int, int] = {}
    for op in record["ops"]:
        libc.switch_to(crew[op["thread"]])
        slot, size, name = op["slot"], op["size"], op["op"]
        if name == "free":
            libc.free(slots.pop(slot, 0))
        else:
            first, second = {"malloc": (size, 0), "realloc": (slots.get(slot, 0), size), "calloc": (size, 1),
                             "memalign": (op.get("align", 0), size)}.get(name, (0, 0))
            slots[slot] = _call(libc, name, first, second)
        yield op, _described(libc, slots.get(slot, 0))
    libc.check()


@replays("malloc/threads*.jsonl*")
def threads(path: Path) -> Iterator[Check]:
    """For calls that four threads make in turn, also on one another's memory: usable size, arena flag, the place in the
    arena's heap, and how far that heap is in use and was ever opened."""
    for record in read_jsonl(path):
        for number, (op, said) in enumerate(_play(record)):
            expected = {key: op[key] for key in ("usable", "flags", "off", "heap_size", "heap_opened") if key in op}
            yield same(f"seed {record['seed']}, operation {number} ({op['op']} by thread {op['thread']})", expected, said)
