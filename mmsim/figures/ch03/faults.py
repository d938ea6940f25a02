"""Page faults of recorded programs: every one, in order, with its error code."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmsim.errors import InputError
from mmsim.paging.walk import error_code_names

__all__ = ["Fault", "code_table", "recorded_codes", "recorded_faults"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One page fault: in user or in kernel mode, at which address, by which instruction (an address or a kernel symbol)."""

    user: bool
    addr: int
    ip: str
    code: int


def recorded_faults(path: str | Path, program: str) -> list[Fault]:
    """The faults of one program of the recording ch11_autopsy, from its exec to its end, in order. Raise InputError if it is not there."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["prog"] == program:
                return [Fault(event[1] == "uf", int(event[2], 16), event[3], event[4]) for event in record["timeline"]
                        if event[1] in ("uf", "kf")]
    raise InputError(f"{path} has no program {program!r}")


def recorded_codes(path: str | Path) -> set[int]:
    """Every error code that any recorded program caused."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {event[4] for line in lines for event in json.loads(line)["timeline"] if event[1] in ("uf", "kf")}


def code_table(faults: list[Fault]) -> str:
    """How often each error code came, in words."""
    counts = Counter(fault.code for fault in faults)
    often = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{count:4} × {code:#4x}  {error_code_names(code)}" for code, count in often]
    return "\n".join([f"{len(faults)} page faults", *lines])
