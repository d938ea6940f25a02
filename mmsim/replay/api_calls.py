"""recordings/linux-5.17-pressure/api/madvise/others: single calls with good and bad arguments, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mmsim.constants import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    PROT_GROWSDOWN,
    PROT_READ,
    PROT_WRITE,
)
from mmsim.errors import InputError
from mmsim.process.mm import Mm
from mmsim.process.syscalls import SystemCalls
from mmsim.process.vma import MappedFile
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays, same
from mmsim.units import PAGE_SIZE

__all__ = ["other_calls"]

P = PAGE_SIZE
#: What else the program did, by the field that its lines begin with.
_NOT_COVERED = {"remap_file_pages": "remap_file_pages()", "clear_refs": "writing to clear_refs"}


def _calls() -> dict[str, Callable[[], int]]:
    """The calls by name, to be made in the order of the recording: 16 pages of memory, of which the ninth is unmapped later."""
    c = SystemCalls(Mm(privileged=True))
    p = c.mmap(0, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    ro = c.mmap(0, P, PROT_READ, MAP_SHARED, MappedFile("/mnt/f1", 16, writable=False))

    def mlock_hole() -> int:
        c.munmap(p + 8 * P, P)
        return c.mlock(p + 7 * P, 3 * P)

    def invalidate_locked() -> int:
        c.mlock(p, P)
        result = c.msync(p, P, MS_INVALIDATE)
        c.munlock(p, P)
        return result
    return {
        "mlock": lambda: c.mlock(p, 4 * P), "mlock unaligned": lambda: c.mlock(p + 1, P), "mlock hole": mlock_hole,
        "mlock2 ONFAULT": lambda: c.mlock2(p, P, MLOCK_ONFAULT), "mlock2 flags 2": lambda: c.mlock2(p, P, 2),
        "mlock wrap": lambda: c.mlock(p, -P), "munlock": lambda: c.munlock(p, 4 * P), "mlockall 0": lambda: c.mlockall(0),
        "mlockall 4": lambda: c.mlockall(4), "mlockall 8": lambda: c.mlockall(8), "munlockall": c.munlockall,
        "msync both": lambda: c.msync(p, P, MS_ASYNC | MS_SYNC), "msync 8": lambda: c.msync(p, P, 8),
        "msync hole": lambda: c.msync(p + 7 * P, 3 * P, MS_ASYNC), "msync unaligned": lambda: c.msync(p + 1, P, MS_ASYNC),
        "msync INVALIDATE locked": invalidate_locked, "mprotect unaligned": lambda: c.mprotect(p + 1, P, 1),
        "mprotect hole": lambda: c.mprotect(p + 7 * P, 3 * P, 1), "mprotect 0x100": lambda: c.mprotect(p, P, 0x100),
        "mprotect growsdown on plain": lambda: c.mprotect(p, P, 1 | PROT_GROWSDOWN), "mprotect len0": lambda: c.mprotect(p, 0, 1),
        "mprotect write on ro shared": lambda: c.mprotect(ro, P, 3), "mremap old unaligned": lambda: c.mremap(p + 1, P, P),
        "mremap new 0": lambda: c.mremap(p, P, 0), "mremap flags 8": lambda: c.mremap(p, P, P, 8),
        "mremap unmapped": lambda: c.mremap(0x1000_0000, P, 2 * P, MREMAP_MAYMOVE),
        "mremap grow no move blocked": lambda: c.mremap(p, 4 * P, 64 * P),
        "mremap old 0 private": lambda: c.mremap(p, 0, P, MREMAP_MAYMOVE),
        "mremap fixed overlap": lambda: c.mremap(p, 2 * P, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED, p + P),
    }


@replays("linux-5.17-pressure/api/madvise/others*.jsonl*")
def other_calls(path: Path) -> Iterator[Check]:
    """What mlock, msync, mprotect and mremap answer to single calls: result and errno."""
    calls = _calls()
    for record in read_jsonl(path):
        where = f"line {record.line}"
        if "call" not in record:
            yield Check(where, False, known="not yet covered: scores of the out-of-memory killer")
            continue
        name = record["call"]
        if name in calls:
            result = calls[name]()
            got = (-1, -result) if result < 0 else (result, 0)
            yield same(f"{where}: {name}: result, errno", (record["ret"], record["errno"]), got)
            continue
        reason = next((text for word, text in _NOT_COVERED.items() if name.startswith(word)), "")
        if not reason:
            raise InputError(f"{where}: unknown call {name!r}")
        yield Check(where, False, known=f"not yet covered: {reason}")
