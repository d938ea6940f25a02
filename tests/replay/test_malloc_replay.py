"""The replays of chapter 4: glibc's malloc in processes of the simulated machine."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mmsim.replay.driver import replay_file
from mmsim.replay.registry import load_handlers

RECORDED = Path(__file__).parents[1] / "golden" / "recordings" / "linux-5.17-userland"
load_handlers()


@pytest.mark.parametrize(("name", "comparisons"), [
    ("ch04_seq_default.jsonl.gz", 4620), ("ch04_seq_options.jsonl.gz", 5600), ("ch04_scripts.jsonl", 203), ("ch04_bugs.jsonl", 31)])
def test_every_operation_is_the_recorded_one(name: str, comparisons: int) -> None:
    report = replay_file(RECORDED / name)
    assert report.agree == report.total == comparisons and not report.known and not report.error, report.text()


@pytest.mark.parametrize(("name", "comparisons"), [("corrupt-2.36.jsonl.gz", 300), ("threads-2.36.jsonl.gz", 3200)])
def test_corrupt_heaps_end_and_threads_allocate_as_recorded(name: str, comparisons: int) -> None:
    report = replay_file(RECORDED.parents[1] / "malloc" / name)
    assert report.agree == report.total == comparisons and not report.known and not report.error, report.text()


def _record(**changes: Any) -> dict[str, Any]:
    with gzip.open(RECORDED / "ch04_seq_default.jsonl.gz", "rt") as lines:
        record: dict[str, Any] = json.loads(next(lines))
    record["ops"] = record["ops"][:5]
    return record | changes


def _replay(tmp_path: Path, name: str, record: dict[str, Any], folder_name: str = "linux-5.17-userland") -> Any:
    folder = tmp_path / folder_name
    folder.mkdir()
    (folder / name).write_text(json.dumps(record) + "\n")
    return replay_file(folder / name)


@pytest.mark.parametrize(("field", "value"), [("off", 688), ("usable", 40), ("sbrk", 0), ("minflt", 999), ("sys", [])])
def test_a_changed_answer_is_a_disagreement(tmp_path: Path, field: str, value: object) -> None:
    record = _record()
    record["ops"][3][field] = value
    report = _replay(tmp_path, "ch04_seq_x.jsonl", record)
    assert report.total == 5 and report.agree == (3 if field == "minflt" else 4)


@pytest.mark.parametrize(("name", "record", "message"), [
    ("ch04_seq_x.jsonl", _record(ops=[{"op": "strdup", "slot": 0, "sys": [], "sbrk": 0, "minflt": 0}]), "unknown operation 'strdup'"),
    ("ch04_seq_x.jsonl", _record(config="tcache_colour_3"), "no tunable"),
    ("ch04_bugs_x.jsonl", {"kind": "bug", "config": "default", "n": 22, "bug": "?"}, "there is no bug 22"),
    ("ch04_bugs_x.jsonl", {"kind": "bug", "config": "default"}, "has no field 'n'")])
def test_a_record_that_cannot_be_played_is_named(tmp_path: Path, name: str, record: dict[str, Any], message: str) -> None:
    report = _replay(tmp_path, name, record)
    assert message in report.error


_CORRUPT = {"seed": 1, "tunables": "", "heap_start": "0x5555556dc000", "main_arena": "0x7ffff7fa7c60", "signal": 0, "stderr": ""}


@pytest.mark.parametrize(("name", "record", "message"), [
    ("corrupt-x.jsonl", _CORRUPT | {"ops": ["strdup 1 0 0"]}, "unknown operation 'strdup'"),
    ("corrupt-x.jsonl", _CORRUPT | {"ops": ["malloc many 0 0"]}, "'many' is no hexadecimal number"),
    ("corrupt-x.jsonl", _CORRUPT | {"ops": [], "tunables": "glibc.malloc.tcache_count"}, "is not name=number"),
    ("threads-x.jsonl", {"seed": 1, "ops": [{"thread": 0, "op": "strdup", "slot": 0, "size": 1}]}, "unknown operation 'strdup'")])
def test_a_live_record_that_cannot_be_played_is_named(tmp_path: Path, name: str, record: dict[str, Any], message: str) -> None:
    report = _replay(tmp_path, name, record, "malloc")
    assert message in report.error


def test_another_end_of_a_corrupt_heap_is_a_disagreement(tmp_path: Path) -> None:
    record = _CORRUPT | {"ops": ["malloc 18 0 5555556dc2a0", "free 5555556dc2a0 0 0", "free 5555556dc2a0 0"],
                         "signal": 6, "stderr": "free(): double free detected in tcache 2"}
    assert _replay(tmp_path, "corrupt-x.jsonl", record, "malloc").agree == 1
    (tmp_path / "changed").mkdir()
    assert _replay(tmp_path / "changed", "corrupt-x.jsonl", record | {"stderr": ""}, "malloc").agree == 0
