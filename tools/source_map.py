"""Write mmsim/data/source-map.tsv: the C files of mm/ and their lines, for each release with a symbol index.

    python3 tools/source_map.py DIRECTORY-WITH-symbols-*.tsv.gz [6.1=LINUX-SOURCE-TREE ...]

Where a source tree is given its lines are counted. Else it is the last line that the index knows, a few lines short of the end.
"""

from __future__ import annotations

import gzip
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def wanted(file: str) -> bool:
    """The C files of mm/ itself, without its folders."""
    return file.startswith("mm/") and file.endswith(".c") and file.count("/") == 1


def by_index(path: Path) -> Counter[str]:
    """The last line that the index names in each file."""
    last: Counter[str] = Counter()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            if not line.startswith("#") and wanted(fields[2]):
                last[fields[2]] = max(last[fields[2]], *(int(number or 0) for number in fields[3:5]))
    return last


def by_tree(tree: Path) -> Counter[str]:
    """The lines of each file."""
    return Counter({f"mm/{path.name}": path.read_bytes().count(b"\n") for path in (tree / "mm").glob("*.c")})


def main() -> None:
    """Write the file."""
    trees = dict(word.split("=", 1) for word in sys.argv[2:])
    rows = ["#release\thow\tfile\tlines"]
    for release in ("5.17", "6.1", "6.12", "6.18"):
        how = "counted" if release in trees else "last symbol"
        lines = by_tree(Path(trees[release])) if release in trees else by_index(Path(sys.argv[1]) / f"symbols-{release}.tsv.gz")
        rows += [f"{release}\t{how}\t{file}\t{lines[file]}" for file in sorted(lines)]
    (ROOT / "mmsim" / "data" / "source-map.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
