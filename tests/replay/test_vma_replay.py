"""The replays of areas and promises: all of what the kernels recorded, and what is wrong with a file is said."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from mmsim.replay.driver import replay_file
from mmsim.replay.registry import load_handlers

GOLDEN = Path(__file__).parents[1] / "golden"
load_handlers()


@pytest.mark.parametrize(("name", "comparisons"), [
    ("vma/vma_merge_5.17.jsonl.gz", 4200), ("vma/place-5.17.jsonl.gz", 3346), ("vma/fuzz-maps-5.17.jsonl.gz", 5600),
    ("vma/fuzz-smaps-5.17.jsonl.gz", 5600), ("vma/fuzz-maps-6.1.jsonl.gz", 5600), ("vma/fuzz-maps-6.12.jsonl.gz", 5600),
    ("vma/fuzz-maps-6.18.jsonl.gz", 5600), ("overcommit/vm_enough_memory.jsonl.gz", 1750)])
def test_every_recorded_answer_is_the_models(name: str, comparisons: int) -> None:
    report = replay_file(GOLDEN / name)
    assert report.agree == report.total == comparisons and not report.known and not report.error, report.text()


@pytest.mark.parametrize(("name", "agree", "not_covered"), [
    ("ch07_stack", 15, 6), ("ch07_stack_aslr", 45, 18)])
def test_stacks_agree_and_what_is_not_covered_is_named(name: str, agree: int, not_covered: int) -> None:
    report = replay_file(GOLDEN / "recordings" / "linux-5.17-userland" / f"{name}.jsonl")
    assert (report.agree, sum(report.known.values()), report.total) == (agree, not_covered, agree + not_covered), report.text()
    assert all(text.startswith("not covered: ") for text in report.known) and report.status == 0


@pytest.mark.parametrize(("name", "record", "message"), [
    ("ch07_rlimit-x.jsonl", {"kind": "rlimit", "group": "CPU", "call": "x"}, "unknown group 'CPU'"),
    ("ch07_rlimit-y.jsonl", {"kind": "mapcount", "call": "x"}, "was not said before"),
    ("ch07_stack-x.jsonl", {"kind": "stackjump"}, "no stack was described"),
    ("ch07_stack-y.jsonl", {"kind": "queue"}, "unknown kind 'queue'"),
    ("ch07_steps-x.jsonl", {"kind": "errno", "call": "mmap with three hands"}, "unknown call"),
    ("ch07_over-x.jsonl", {"kind": "charge"}, "machine was not described")])
def test_a_step_that_nobody_knows_is_refused_in_words(tmp_path: Path, name: str, record: object, message: str) -> None:
    (tmp_path / "linux-5.17-userland").mkdir()
    path = tmp_path / "linux-5.17-userland" / name
    path.write_text(json.dumps(record) + "\n")
    report = replay_file(path)
    assert report.status == 2 and message in report.text()


def test_errno_numbers_are_those_of_linux_wherever_the_model_runs() -> None:
    import errno

    from mmsim.errors import Errno, errno_name
    assert [Errno(name).number for name in ("EPERM", "ENOMEM", "EINVAL", "EOVERFLOW", "EOPNOTSUPP")] == [1, 12, 22, 75, 95]
    assert errno_name(-95) == "EOPNOTSUPP" and errno_name(-9999) == "errno 9999"
    if sys.platform == "linux":
        assert all(Errno(errno_name(number)).number == number for number in errno.errorcode if number <= 40)


def sequence(number: int = 0) -> dict[str, object]:
    with gzip.open(GOLDEN / "vma" / "fuzz-maps-5.17.jsonl.gz", "rt") as file:
        return json.loads(file.read().split("\n")[number])      # type: ignore[no-any-return]


def write(tmp_path: Path, name: str, record: object) -> Path:
    (tmp_path / "vma").mkdir()
    path = tmp_path / "vma" / name
    path.write_text(json.dumps(record) + "\n")
    return path


def test_a_sequence_ends_with_its_first_disagreement(tmp_path: Path) -> None:
    record = sequence()
    record["ops"][5]["maps"][0][1] += 1                          # type: ignore[index]
    report = replay_file(write(tmp_path, "fuzz-maps-5.17-new.jsonl", record))
    assert (report.agree, report.total, report.status) == (5, 6, 1) and "call 5: {'op': 'mmap'" in report.text()


def test_other_rules_do_not_reproduce_5_17(tmp_path: Path) -> None:
    """The positive EFAULT, seen in the recording's mremap results of a huge page number."""
    for number in range(140):
        record = sequence(number)
        if any(step["ret"] > 1 << 40 for step in record["ops"]):      # type: ignore[attr-defined]
            break
    assert replay_file(write(tmp_path, "fuzz-maps-6.1-x.jsonl", record)).status == 1


@pytest.mark.parametrize(("name", "change", "message"), [
    ("fuzz-maps-3.0.jsonl", {}, "known release"), ("fuzz-maps-5.17-b.jsonl", {"ops": [{"op": "explode", "page": 0, "len": 1}]},
                                                   "unknown operation 'explode'"),
    ("fuzz-maps-5.17-c.jsonl", {"ops": [{"op": "mmap"}]}, "record that cannot be used"),
    ("fuzz-maps-5.17-d.jsonl", {"ops": []}, "nothing to compare"), ("place-5.17-e.jsonl", {}, "no field 'start_maps'")])
def test_a_broken_recording_is_one_message(tmp_path: Path, name: str, change: dict[str, object], message: str) -> None:
    report = replay_file(write(tmp_path, name, sequence() | change))
    assert report.status == 2 and message in report.text()
