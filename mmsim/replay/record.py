"""``python3 -m mmsim.replay record vma|faults|place``: record the kernel that runs here, and replay the recording.

The file has the format of the recordings that come with the project, so it can be replayed again later by its name. Where
the running kernel differs from the rules of the nearest known release, each rule is tried the other way: a sequence that
then agrees is reported by the rule's name.

No root and nothing but Python and the C library are needed; on another system than Linux on x86-64 the command says so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from secrets import randbelow

from mmsim.errors import InputError
from mmsim.replay.driver import FileReport, replay_checks
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.registry import Check
from mmsim.replay.vma import fuzz_sequence, place_sequence
from mmsim.rules import Rules, nearest_release, rules_for

__all__ = ["KINDS", "compare", "explain", "record", "why_not"]

KINDS = ("vma", "faults", "place")
#: The rules that decide about areas and places; only these are tried the other way.
PROCESS_RULES = tuple(field.name for field in fields(Rules) if field.name.split("_")[0] in
                      ("mremap", "mlock", "mmap", "brk", "mprotect", "merge", "smaps") and field.type == "bool")

#: After so many sequences that no two rules explain, pairs of rules are not tried any more: there are many.
_IN_VAIN = 3

Sequence_ = Callable[[Record, Rules], Iterator[Check]]


def why_not() -> str:
    """Why nothing can be recorded here, or an empty text."""
    if sys.platform != "linux":
        return f"a kernel of Linux is needed, this is {platform.system() or sys.platform}"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the model is of x86-64, this machine is {platform.machine()}"
    try:
        import ctypes
        library = ctypes.CDLL(None)
    except (ImportError, OSError) as error:
        return f"the C library can't be called: {error}"
    missing = [name for name in ("mallopt", "mlock2", "personality") if not hasattr(library, name)]
    return f"the C library has no {missing[0]}(): glibc is needed" if missing else ""


def explain(record: Record, rules: Rules, run: Sequence_, most: int = 2) -> tuple[Rules, list[str]] | None:
    """The rules, and the names of those among them to be switched (``most`` at most), under which a sequence agrees; None if there
    are none.

    >>> from mmsim.replay.registry import same
    >>> explain(Record(), Rules(), lambda record, rules: iter([same("", True, rules.mmap_aligns_huge)]))[1]
    ['mmap_aligns_huge = True']
    """
    for number in range(1, most + 1):
        for names in combinations(PROCESS_RULES, number):
            switched = {name: not getattr(rules, name) for name in names}
            tried = rules.replace(**switched)
            if all(check.agrees for check in run(record, tried)):
                return tried, [f"{name} = {value}" for name, value in switched.items()]
    return None


def compare(path: Path, rules: Rules) -> Iterator[Check]:
    """Replay a recording of areas or places under any rules, naming the rules that differ from those given."""
    flags = "smaps" in path.name

    def run(record: Record, rules: Rules) -> Iterator[Check]:
        return place_sequence(record, rules) if path.name.startswith("place") else fuzz_sequence(record, rules, flags)
    known: tuple[Rules, list[str]] | None = None
    in_vain = 0
    for record in read_jsonl(path):
        checks = list(run(record, rules))
        if all(check.agrees for check in checks):
            yield from checks
            continue
        # A kernel keeps its rules from one sequence to the next: what explained the last one is tried first.
        found = known if known is not None and all(check.agrees for check in run(record, known[0])) else explain(
            record, rules, run, 2 if in_vain < _IN_VAIN else 1)
        if found is None:
            in_vain += 1
            yield from checks
            continue
        known = found
        agreeing = [check for check in checks if check.agrees]
        yield from agreeing
        first = next(check for check in checks if not check.agrees)
        yield Check(first.label, False, first.expected, first.got, known="the rule " + " and ".join(found[1]))
        yield from list(run(record, found[0]))[len(agreeing) + 1:]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m mmsim.replay record", description="Record the running kernel, and compare it with the model.",
        epilog="exit status: 0 all agrees or differs by a rule that is named, 1 something differs, 2 nothing can be recorded here")
    parser.add_argument("kind", choices=KINDS, help="vma: random system calls and the areas after each; faults: fault counts and "
                        "smaps of a fixed program; place: where mmap puts mappings")
    parser.add_argument("--seed", type=int, metavar="N", help="the first sequence's seed (default: drawn)")
    parser.add_argument("--sequences", type=int, default=50, metavar="N", help="how many sequences (default 50)")
    parser.add_argument("--calls", type=int, default=40, metavar="N", help="calls a sequence (default 40)")
    parser.add_argument("--smaps", action="store_true", help="record the flags of areas too (vma)")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", default=Path("recorded"),
                        help="where the file goes (default: recorded)")
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    return parser


def _path(options: argparse.Namespace, release: str, seed: int) -> Path:
    """The file's name: the release whose rules are nearest comes first, so that it can be replayed by its name."""
    running = "" if platform.release().startswith(release + ".") else f"-on-{platform.release()}"
    if options.kind == "faults":
        return Path(options.output, "faults", f"faults-{release}{running}.jsonl")
    name = {"vma": "fuzz-smaps" if options.smaps else "fuzz-maps", "place": "place"}[options.kind]
    return Path(options.output, "vma", f"{name}-{release}{running}-seed{seed}.jsonl.gz")


def _run_child(options: argparse.Namespace, seed: int) -> bytes:
    """Let a process of its own make the records. Raise InputError if it can't."""
    arguments = [options.kind, seed, options.sequences, options.calls, 64, int(options.smaps)]
    environment = os.environ | {"PYTHONMALLOC": "malloc", "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([sys.executable, "-m", "mmsim.replay.record_child", *map(str, arguments)], capture_output=True,
                          env=environment, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise InputError(text.split("\n")[-1].removeprefix("mmsim.replay record: ") or f"the recorder ended with {done.returncode}")
    return done.stdout


def record(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.sequences < 1 or not 4 <= options.calls <= 1000 or (options.seed is not None and not 0 <= options.seed < 1 << 62):
        parser.error("--sequences from 1, --calls from 4 to 1000, --seed not negative")
    reason = why_not()
    if reason:
        print(f"mmsim.replay record: {reason}", file=sys.stderr)
        return 2
    release = nearest_release(platform.release())
    seed = options.seed if options.seed is not None else 1 + randbelow(1 << 31)
    path = _path(options, release, seed)
    try:
        data = _run_child(options, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except (InputError, OSError) as error:
        print(f"mmsim.replay record: {error}", file=sys.stderr)
        return 2
    rules = rules_for(release)
    if options.kind == "faults":
        from mmsim.replay.faults_model import compare_faults
        checks: Callable[[Path], Iterator[Check]] = lambda path: compare_faults(path, rules)     # noqa: E731
    else:
        checks = lambda path: compare(path, rules)                                               # noqa: E731
    report = replay_checks(FileReport(path, compares=f"Linux {platform.release()} under the rules of {release}"), checks)
    if options.json:
        print(json.dumps(report.as_json() | {"release": platform.release(), "rules": release, "seed": seed}, indent=1))
    else:
        print(f"recorded {path}: Linux {platform.release()}, {options.kind}" + (f", seed {seed}" if options.kind != "faults" else ""))
        print(f"compared under the rules of {release}:\n{report.text()}")
    return report.status
