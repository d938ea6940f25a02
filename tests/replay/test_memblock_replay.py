"""The replays of memblock: everything recorded agrees, and what is wrong is noticed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmsim.replay import memblock as replay
from mmsim.replay.driver import replay_file

GOLDEN = Path(__file__).parent.parent / "golden" / "memblock"


@pytest.mark.parametrize("name, at_least", [("random.jsonl.gz", 13_000), ("unit-5.17.jsonl.gz", 600),
                                            ("unit-6.12.jsonl.gz", 1_100)])
def test_every_recorded_call_agrees(name: str, at_least: int) -> None:
    report = replay_file(GOLDEN / name)
    assert report.agree == report.total >= at_least and not report.error, report.text()
    assert not report.known


def write(tmp_path: Path, records: list[object], name: str = "random-x.jsonl.gz") -> Path:
    folder = tmp_path / "memblock"
    folder.mkdir()
    path = folder / name
    path.write_bytes(gzip.compress("\n".join(json.dumps(record) for record in records).encode()))
    return path


def test_a_changed_result_is_one_disagreement_and_the_rest_goes_on(tmp_path: Path) -> None:
    with gzip.open(GOLDEN / "random.jsonl.gz", "rt") as file:
        record = json.loads(file.readline())
    number, step = next((n, op) for n, op in enumerate(record["ops"]) if op["op"] == "phys_alloc_range" and op["r"])
    step["r"] += 4096
    report = replay_file(write(tmp_path, [record]))
    # the call itself, and the first difference of 6.1 and of 6.12, which is now there
    assert report.status == 1 and report.total - report.agree == 3
    assert f"call {number}: phys_alloc_range" in report.text()


def test_an_unknown_call_a_missing_field_and_an_unknown_release_are_said_in_words(tmp_path: Path) -> None:
    base = {"seed": 1, "kind": "page", "kernel": "5.17", "differs": {}}
    cases = [({**base, "ops": [{"op": "explode", "args": [], "r": 0}]}, "unknown memblock call 'explode'"),
             (base, "no field 'ops'"), ({**base, "kernel": "9.9", "ops": []}, "no rules for Linux 9.9")]
    for number, (record, message) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        report = replay_file(write(folder, [record]))
        assert report.status == 2 and message in report.text()


def test_a_unit_recording_of_a_release_without_rules_is_refused(tmp_path: Path) -> None:
    report = replay_file(write(tmp_path, [{"test": "t", "steps": []}], "unit-3.2.jsonl.gz"))
    assert report.status == 2 and "known release" in report.text()


def test_the_operations_table_covers_every_call_by_both_names() -> None:
    memblock = replay._new("5.17")
    assert replay.run_operation(memblock, "memblock_add", [0, 4096]) == 0
    assert replay.run_operation(memblock, "is_memory", [5]) == 1
