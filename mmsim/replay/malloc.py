"""recordings/linux-5.17-userland, chapter 4: glibc 2.36's malloc, operation by operation, with the system calls it makes.

Where the program's heap and libraries lie is taken from the record, for nothing in malloc decides it; all the rest is the model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsim.constants import VM_ACCOUNT, VM_DATA_DEFAULT_FLAGS
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.malloc.glibc.params import M_MMAP_THRESHOLD, M_MXFAST, M_TOP_PAD, M_TRIM_THRESHOLD
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.process_program import ProcessProgram
from mmsim.malloc.program import ProgramSignal
from mmsim.process.layout import fixed_layout
from mmsim.process.mm import Mm
from mmsim.process.task import Process
from mmsim.process.vma import Vma
from mmsim.reference import qemu_map, qemu_platform
from mmsim.replay.malloc_bugs import BUGS
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.units import MIB, PAGE_SHIFT, PAGE_SIZE, align_down, u64

__all__ = ["MAIN_ARENA", "bugs", "sequences"]

#: Without ASLR, the libraries of the recorded program begin here, and mappings are made below.
_LIBRARIES = 0x7FFFF7DDD000
#: The recorded program's heap without ASLR.
_HEAP = 0x55555556B000
_IMAGE = 0x17000
#: How far above the libraries' lower end the recorded libc (Debian 12's, 2.36-9) has its main_arena.
MAIN_ARENA = 0x1D6C60
#: What the program says by "mallopt" in a record's first operation: its number for a parameter.
_MALLOPT = {1: M_MMAP_THRESHOLD, 2: M_TRIM_THRESHOLD, 3: M_TOP_PAD, 4: M_MXFAST}
#: The recorded program notes each operation in 80 bytes of a mapped file: at these offsets before it reads its own count of
#: faults, at 72 afterwards. The first touch of a page of the file is a fault of its own.
_NOTE, _NOTED_BEFORE, _NOTED_AFTER = 80, (4, 16, 48), 72
_CALLS = {"brk": 1, "mmap": 4, "munmap": 2, "mremap": 4, "madvise": 3, "mprotect": 3}


class _Traced(ProcessProgram):
    """A process whose system calls are written down as the recorder writes them: name, arguments, result."""

    def __init__(self, process: Process, heap: int):
        super().__init__(process, heap)
        self.log: list[tuple[int | str, ...]] = []

    def _logged(self, name: str, result: int, *args: int) -> int:
        self.log.append((name, *args, u64(result)))
        return result

    def brk(self, addr: int) -> int:
        return self._logged("brk", super().brk(addr), addr)

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        return self._logged("mmap", super().mmap(addr, length, prot, flags), addr, length, prot, flags)

    def munmap(self, addr: int, length: int) -> int:
        return self._logged("munmap", super().munmap(addr, length), addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        return self._logged("mprotect", super().mprotect(addr, length, prot), addr, length, prot)

    def mremap(self, addr: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0) -> int:
        return self._logged("mremap", super().mremap(addr, old_len, new_len, flags), addr, old_len, new_len, flags)

    def madvise(self, addr: int, length: int, advice: int) -> int:
        return self._logged("madvise", super().madvise(addr, length, advice), addr, length, advice)


def _number(value: str | int) -> int:
    return u64(int(value, 16) if isinstance(value, str) else value)


def _recorded_calls(sys: list[list[Any]]) -> list[tuple[int | str, ...]]:
    """The memory calls of an operation. The recorder prints four arguments of every call: those it has are kept."""
    return [(name, *map(_number, rest[:_CALLS[name]]), _number(rest[-1])) for name, *rest in sys if name in _CALLS]


def _boot() -> Machine:
    """A machine of 512 MiB like the recorded one."""
    return Machine.boot(qemu_map(512 * MIB), platform=qemu_platform(512 * MIB))


def _start(machine: Machine, heap: int, libraries: int, tunables: dict[str, int]) -> tuple[_Traced, Ptmalloc]:
    """A process whose libraries fill the mmap area down to an address, and whose data end where the heap begins."""
    layout = fixed_layout()
    mm = Mm(layout, rules=machine.rules, overcommit=machine.overcommit, trace=machine.trace, privileged=True)
    for start, end in ((heap - _IMAGE, heap), (libraries, layout.mmap_base)):
        area = Vma(start, end, VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT, start >> PAGE_SHIFT)
        mm.link(area)
        mm.vm_stat_account(area.vm_flags, area.pages)
    program = _Traced(machine.spawn("mal", mm), heap)
    return program, Ptmalloc(program, main_arena=libraries + MAIN_ARENA, tunables=tunables)


def _tunables(config: str) -> dict[str, int]:
    """The tunables that a configuration's name says: ``tcache_count_0``, ``tunable_mmap_max_0``."""
    found = re.fullmatch(r"(?:tunable_)?([a-z_]+)_(\d+)", config)
    return {found[1]: int(found[2])} if found else {}


def _libraries(record: Record) -> int:
    """The lower end of the libraries: where the first mapping that anybody made ends."""
    for op in record["ops"]:
        for name, *rest in op["sys"]:
            if name == "mmap" and _number(rest[-1]) < 1 << 47:
                return _number(rest[-1]) + _number(rest[1])
    return _LIBRARIES


class _Player:
    """Runs the operations of one record."""

    def __init__(self, machine: Machine, record: Record):
        self.heap = _number(record["heap_start"])
        ops = record["ops"]
        by_mallopt = bool(ops) and ops[0]["op"] == "mallopt"
        self.program, self.libc = _start(machine, self.heap, _libraries(record),
                                          {} if by_mallopt else _tunables(record["config"]))
        self.program.sbrk(0)                    # the recorded program asked where its heap begins
        self.program.log.clear()
        self.slots: dict[int, int] = {}
        self.number = 0
        self.noted: set[int] = set()
        self.own_faults = 0

    def _note(self, *offsets: int) -> None:
        """The recorder writes to its own file."""
        for offset in offsets:
            page = (self.number * _NOTE + offset) // PAGE_SIZE
            self.own_faults += page not in self.noted
            self.noted.add(page)

    def run(self, op: dict[str, Any]) -> dict[str, Any]:
        """Make one operation, and say what the recorder would have written."""
        libc, slot, size = self.libc, op["slot"], op.get("size", 0)
        self.program.log.clear()
        said: dict[str, Any] = {}
        memory = self.slots.get(slot, 0)
        match op["op"]:
            case "malloc":
                memory = self.slots[slot] = libc.malloc(size)
            case "calloc":
                memory = self.slots[slot] = libc.calloc(size, 1)
            case "memalign":
                memory = self.slots[slot] = libc.memalign(op["align"], size)
            case "realloc":
                memory = self.slots[slot] = libc.realloc(memory, size)
            case "free":
                libc.free(self.slots.pop(slot, 0))
            case "malloc_trim":
                said["slot"] = libc.malloc_trim(size)
            case "mallopt":
                libc.mallopt(_MALLOPT[slot], size)
            case _:
                raise InputError(f"unknown operation {op['op']!r}")
        said["sys"] = list(self.program.log)
        if op["op"] not in ("malloc_trim", "mallopt"):
            if 0 <= memory - self.heap < 1 << 32:
                said["off"] = memory - self.heap
            else:
                said["mmap"] = memory
            if memory and op["op"] != "free":
                said["usable"] = libc.usable_size(memory)
        said["sbrk"] = self.program.sbrk(0) - self.heap
        self._note(*_NOTED_BEFORE)
        said["minflt"] = self.program.minflt + self.own_faults
        self._note(_NOTED_AFTER)
        self.number += 1
        return said


def _expected(op: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {key: op[key] for key in ("off", "usable", "sbrk") if key in op}
    if "mmap" in op:
        said["mmap"] = _number(op["mmap"])
    if op["op"] == "malloc_trim":
        said["slot"] = op["slot"]
    said["sys"] = _recorded_calls(op["sys"])
    return said


@replays("linux-5.17-userland/ch04_seq*.jsonl*", "linux-5.17-userland/ch04_scripts*.jsonl*")
def sequences(path: Path) -> Iterator[Check]:
    """For every malloc, calloc, realloc, memalign, free, malloc_trim: where the memory lies, how much of it is usable, where
    the heap ends then, each brk, mmap, munmap, mremap and madvise with arguments and result, and the minor faults (from the
    second operation on: before the first, the program had those of its start)."""
    machine = _boot()
    for record in read_jsonl(path):
        player = _Player(machine, record)
        name = record["script"] or f"seed {record['seed']}"
        recorded = modelled = None
        for number, op in enumerate(record["ops"]):
            label = f"{record['config']}, {name}, operation {number} ({op['op']} {op.get('size', '')})"
            expected = _expected(op)
            try:
                said = player.run(op)
            except ProgramSignal as signal:
                yield Check(label, False, expected, str(signal))
                break
            faults = said.pop("minflt")
            if recorded is not None and modelled is not None:
                expected["faults"], said["faults"] = op["minflt"] - recorded, faults - modelled
            recorded, modelled = op["minflt"], faults
            yield same(label, expected, said)
        player.program.process.exit()


@replays("linux-5.17-userland/ch04_bugs*.jsonl*")
def bugs(path: Path) -> Iterator[Check]:
    """For every heap bug: the signal that ends the program, if any, its exit status and what it says before."""
    machine = _boot()
    for record in read_jsonl(path):
        if not 0 <= record["n"] < len(BUGS):
            raise InputError(f"line {record.line}: there is no bug {record['n']}")
        program, libc = _start(machine, _HEAP, _LIBRARIES, _tunables(record["config"]))
        signal, message = 0, ""
        try:
            BUGS[record["n"]](libc, program, align_down(_HEAP - 1, PAGE_SIZE))
        except ProgramSignal as end:
            signal, message = end.number, end.message
        expected = {key: record[key] for key in ("signal", "exit", "stderr")}
        yield same(f"{record['config']}: {record['bug']}", expected,
                   {"signal": signal, "exit": -1 if signal else 0, "stderr": message})
        program.process.exit()
