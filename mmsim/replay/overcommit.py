"""golden/overcommit: __vm_enough_memory against the kernel's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmsim.errors import Errno
from mmsim.process.overcommit import Overcommit
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays, same

__all__ = ["vm_enough_memory"]


@replays("overcommit/vm_enough_memory*.jsonl*", "overcommit/*.jsonl*")
def vm_enough_memory(path: Path) -> Iterator[Check]:
    """For each request under the three overcommit modes: the commit limit, whether the pages are granted, and what is
    committed afterwards."""
    for record in read_jsonl(path):
        account = Overcommit(record["totalram"], record["swap"], record["hugetlb"], record["policy"], record["ratio"],
                             record["kbytes"], committed=record["committed"])
        limit, result = account.commit_limit(), 0
        try:
            account.charge(record["pages"], record["mm_total_vm"], bool(record["cap_sys_admin"]))
        except Errno as error:
            result = -error.number
        yield same(f"line {record.line}: commit limit, result, committed after",
                   (record["commit_limit"], record["r"], record["committed_after"]), (limit, result, account.committed))
