"""A simulated process as a host of the faults program, and the comparison of a recording with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsim.constants import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    TASK_SIZE,
    VM_STACK_FLAGS,
)
from mmsim.machine import Machine
from mmsim.process.mm import Mm
from mmsim.process.populate import Access, Outcome
from mmsim.process.task import Process
from mmsim.process.vma import MappedFile, Vma
from mmsim.process.zap import unmap_mapping_range
from mmsim.procfs.process import smaps
from mmsim.reference import REF256_COMMAND_LINE, REF256_MAP, qemu_platform
from mmsim.replay.faults_program import REGIONS_END, FaultProgram
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.replay.vma import release_in
from mmsim.rules import Rules, rules_for
from mmsim.units import KIB, MIB, PAGE_SHIFT, PAGE_SIZE

__all__ = ["ModelHost", "compare_faults", "own_faults", "run_on_model"]

P = PAGE_SIZE
#: The rules that decide about pages, with all their values.
_PAGE_RULES: dict[str, tuple[object, ...]] = {
    "cow_reuse": ("page_count", "drained", "exclusive"), "mprotect_maps_writable": (False, True),
    "dirtying_fault_retries": (False, True), "lru_batch": (15, 31), "unmap_drains": (False, True),
    "smaps_names_lockonfault": (False, True)}
_HEAP, _STACK = 0x5555_5555_9000, 132 * KIB


class ModelHost:
    """A process of a machine of 256 MiB, with a heap and a stack."""

    def __init__(self, rules: Rules):
        self.machine = Machine.boot(REF256_MAP, REF256_COMMAND_LINE, platform=qemu_platform(256 * MIB), rules=rules)
        mm = Mm(rules=rules, overcommit=self.machine.overcommit, trace=self.machine.trace, privileged=True)
        self.process: Process = self.machine.process_table.spawn("faults", mm)
        self.files: dict[int, MappedFile] = {}
        mm.start_brk = mm.brk = _HEAP
        stack = Vma(TASK_SIZE - _STACK, TASK_SIZE, VM_STACK_FLAGS, (TASK_SIZE - _STACK) >> PAGE_SHIFT)
        mm.charge(stack.pages)
        mm.link(stack)
        mm.vm_stat_account(stack.vm_flags, stack.pages)

    def call(self, name: str, *arguments: int) -> int:
        process = self.process
        if name == "sbrk":
            before = process.mm.brk
            process.brk(before + arguments[0])
            return before
        if name == "brk":
            return 0 if process.brk(arguments[0]) == arguments[0] else -12
        if name == "mmap":
            addr, length, prot, flags, fd, offset = arguments
            return process.mmap(addr, length, prot, flags, self.files.get(fd), offset)
        method: Callable[..., int] = getattr(process, name)
        return method(*arguments)

    def reads(self, start: int, pages: int) -> None:
        for address in range(start, start + pages * P, P):
            self.process.touch(address, Access.READ)

    def writes(self, start: int, pages: int) -> None:
        for address in range(start, start + pages * P, P):
            self.process.touch(address, Access.WRITE)

    def reads_badly(self, address: int) -> bool:
        return self.process.touch(address, Access.READ).outcome is not Outcome.OK

    def faults(self) -> tuple[int, int]:
        return self.process.minflt, self.process.majflt

    def smaps(self) -> str:
        return smaps(self.process)

    def stack_bottom(self) -> int:
        return max(vma.vm_start for vma in self.process.mm)

    def memfd(self, name: str, pages: int, written: bool) -> int:
        file = MappedFile(f"/memfd:{name} (deleted)", pages, shmem=True)
        self.files[len(self.files) + 3] = file
        if written:
            user = self.process.user
            for index in range(pages):
                pfn = user.add_to_page_cache(file, index, self.process.mm)
                if pfn is not None:
                    user.contents.write(pfn << PAGE_SHIFT, bytes([index & 255]) * P)
                    user.set_page_dirty(pfn)
        return len(self.files) + 2

    def truncate(self, fd: int, pages: int) -> None:
        """5.17: mm/truncate.c, truncate_setsize(): unmap, then drop the pages."""
        file = self.files[fd]
        unmap_mapping_range(file.i_mmap, pages, file.pages, even_cows=True)
        self.process.user.truncate(file, pages)
        file.pages = pages

    def fork(self, child: Callable[[], None], parent: Callable[[], None]) -> None:
        here = self.process
        there = here.table.processes[here.fork()]
        self.process = there
        child()
        self.process = here
        parent()
        there.exit()
        here.wait()

    def prepare(self, own: bool) -> None:
        """The real host's rehearsal, once: it ends with an munmap, which may empty the pagevecs."""
        region = self.call("mmap", REGIONS_END - (1 << 30), 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        self.writes(region, 4)
        self.call("madvise", region, 4 * P, MADV_DONTNEED)
        self.call("munmap", region, 4 * P)


def _words(smaps_: dict[str, Any] | None) -> dict[str, Any] | None:
    """The sums, with the flags as words and without soft-dirty, which a configuration decides."""
    if smaps_ is None:
        return None
    flags = [[word for word in area.split() if word != "sd"] for area in smaps_["VmFlags"].split(";")]
    return smaps_ | {"VmFlags": flags}


def run_on_model(rules: Rules) -> list[dict[str, Any]]:
    """The lines that the program prints on a simulated process under some rules."""
    lines: list[dict[str, Any]] = []
    host = ModelHost(rules)
    FaultProgram(host, lambda line: lines.append(json.loads(line))).run()
    host.machine.process_table.check()
    return lines


def _variants(rules: Rules) -> Iterator[tuple[str, Rules]]:
    """Each rule about pages the other way, with its name."""
    for name, values in _PAGE_RULES.items():
        for value in values:
            if value != getattr(rules, name):
                yield f"{name} = {value}", rules.replace(**{name: value})


def _parts(line: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is compared of a step."""
    yield "minor and major faults", (line["minflt"], line["majflt"])
    if "smaps" in line:
        yield "smaps", _words(line["smaps"])
    for signal in ("segv", "sigbus"):
        if signal in line:
            yield signal, line[signal]


def compare_faults(path: Path, rules: Rules) -> Iterator[Check]:
    """Run the same program on the model, and compare each step's fault counts and smaps; what differs is looked for under other
    rules, and named by the rule that makes it agree."""
    recorded, lines = list(read_jsonl(path)), run_on_model(rules)
    others: dict[str, list[dict[str, Any]]] = {}
    yield same("the steps", [record["step"] for record in recorded], [line["step"] for line in lines])
    for number, (record, line) in enumerate(zip(recorded, lines)):
        for (what, expected), (_, got) in zip(_parts(record), _parts(line)):
            at = f"line {record.line}: {record['step']}: {what}"
            if expected == got:
                yield same(at, expected, got)
                continue
            others = others or {name: run_on_model(variant) for name, variant in _variants(rules)}
            known = next((name for name, variant in others.items() if dict(_parts(variant[number])).get(what) == expected), "")
            yield Check(at, False, expected, got, f"the rule {known}" if known else "")


@replays("faults/faults-*.jsonl*")
def own_faults(path: Path) -> Iterator[Check]:
    """What ``record faults`` recorded: each step's fault counts and smaps, under the release in the file's name."""
    yield from compare_faults(path, rules_for(release_in(path, "faults-5.17")))
