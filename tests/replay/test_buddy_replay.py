"""The recorded sequences of golden/buddy, frame by frame; and that a wrong model is found out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmsim.errors import InputError
from mmsim.physical import pcp
from mmsim.replay.buddy import kernel_traces, traces

GOLDEN = Path(__file__).parents[1] / "golden" / "buddy"


@pytest.mark.parametrize("handler, name, at_least", [
    (traces, "traces-5.17.jsonl.gz", 15_000), (kernel_traces, "kernel-traces-5.17.jsonl.gz", 20_000)])
def test_every_recorded_frame_agrees(handler, name, at_least):
    checks = list(handler(GOLDEN / name))
    assert [check.describe() for check in checks if not check.agrees] == []
    assert len(checks) >= at_least


def test_a_drain_in_another_order_is_found_out(monkeypatch, tmp_path):
    with gzip.open(GOLDEN / "traces-5.17.jsonl.gz", "rt") as lines:
        record = next(line for line in lines if '"kind":"pcp"' in line.replace(" ", ""))
    path = tmp_path / "traces-one.jsonl"
    path.write_text(record)
    assert all(check.agrees for check in traces(path))
    monkeypatch.setattr(pcp, "nr_pcp_free", lambda lists, high, batch: high)
    assert not all(check.agrees for check in traces(path))


def test_a_machine_of_absurd_size_is_an_input_error(tmp_path):
    with gzip.open(GOLDEN / "traces-5.17.jsonl.gz", "rt") as lines:
        record = json.loads(next(lines))
    record["zones"][0][2] = 1 << 50
    path = tmp_path / "traces-huge.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="256 GiB"):
        list(traces(path))


def test_an_operation_that_nobody_knows_is_an_input_error(tmp_path):
    with gzip.open(GOLDEN / "traces-5.17.jsonl.gz", "rt") as lines:
        record = json.loads(next(lines))
    record["ops"] = [{"op": ["melt", 2], "z": 2, "r": 0}]
    path = tmp_path / "traces-odd.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="melt"):
        list(traces(path))
