"""recordings/linux-5.17-pressure/api/madvise/mincore: what mincore() says about every kind of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmsim.replay.memory_kinds import NOT_COVERED, MemoryKinds
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays, same

__all__ = ["mincore_answers"]

_SHOWN = 8
_UNTOUCHED = 0xEE                   # what the program fills its vector with
_OTHER_USER = "same mapping as uid 1000 (cannot write the file)"


@replays("linux-5.17-pressure/api/madvise/mincore*.jsonl*")
def mincore_answers(path: Path) -> Iterator[Check]:
    """What mincore() answers for each kind of memory: result, errno, and the first eight bytes of its vector."""
    memory = MemoryKinds()
    for record in read_jsonl(path):
        name = record["mincore"]
        if name in NOT_COVERED or name == _OTHER_USER:
            yield Check(name, False, known=f"not yet covered: {NOT_COVERED.get(name, 'files of another user')}")
            continue
        memory.fresh()
        start = memory.kind(name)
        if start is None:
            yield Check(f"line {record.line}: {name}", False, "a kind of memory", "unknown")
            continue
        vector = bytearray()
        if name == "vec=NULL":
            result = memory.process.mincore(start, memory.length, 0)
        else:
            result = memory.process.mincore(start, memory.length, vector)
        shown = (bytes(vector) + bytes([_UNTOUCHED] * _SHOWN))[:_SHOWN]
        memory.table.check()
        yield same(f"line {record.line}: mincore of {name}: result, errno, vector",
                   (record["ret"], record["errno"], record.get("vec", "").strip()),
                   (-1 if result < 0 else result, max(-result, 0), shown.hex(" ") if "vec" in record else ""))
