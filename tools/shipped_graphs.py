"""Write mmsim/data/linux-5.17-graphs.jsonl.gz: one recorded function graph of each event that chapter 2 shows.

    python3 tools/shipped_graphs.py tests/golden/recordings/linux-5.17-userland/ch02_graphs.jsonl.gz
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mmsim.replay.graphs import EVENTS  # noqa: E402


def chosen(source: Path) -> list[dict[str, str]]:
    """Of each event the recording with tracepoints, unless an interrupt came in between; else a quiet one."""
    best: dict[str, tuple[int, str]] = {}
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            rank = 2 * (not record["cleanest"]) + (record["rep"] != "ev")
            if record["event"] in EVENTS and (record["event"] not in best or rank < best[record["event"]][0]):
                best[record["event"]] = rank, record["text"]
    # The longest are of no use in a figure.
    return [{"event": event, "text": best[event][1]} for event in EVENTS if event in best and len(best[event][1]) < 32_000]


def main() -> None:
    """Write the file; the same bytes each time."""
    text = "".join(json.dumps(record) + "\n" for record in chosen(Path(sys.argv[1])))
    target = ROOT / "mmsim" / "data" / "linux-5.17-graphs.jsonl.gz"
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
