"""Single system calls of the recorded 5.17, and what they answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsim.replay.driver import replay_file
from mmsim.replay.registry import load_handlers

MADVISE = Path(__file__).parents[1] / "golden" / "recordings" / "linux-5.17-pressure" / "api" / "madvise"
load_handlers()


@pytest.mark.parametrize(("name", "agree", "not_covered"), [("others.jsonl", 29, 34), ("mincore.jsonl", 28, 5),
                                                            ("madvise.jsonl.gz", 3255, 136)])
def test_every_answer_is_the_models_and_what_is_not_covered_is_named(name: str, agree: int, not_covered: int) -> None:
    report = replay_file(MADVISE / name)
    assert (report.agree, sum(report.known.values()), report.total) == (agree, not_covered, agree + not_covered), report.text()
    assert all(text.startswith("not yet covered: ") for text in report.known)


@pytest.mark.parametrize(("name", "record", "status"), [("others-x.jsonl", {"call": "msync dance", "ret": 0, "errno": 0}, 2),
                                                        ("mincore-x.jsonl", {"mincore": "fog", "ret": 0, "errno": 0, "vec": ""}, 1),
                                                        ("mincore-y.jsonl", {"mincore": "anon", "ret": 0, "errno": 0, "vec": "00 "}, 1)])
def test_another_answer_disagrees(tmp_path: Path, name: str, record: object, status: int) -> None:
    folder = tmp_path / "linux-5.17-pressure" / "api" / "madvise"
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(record) + "\n")
    assert replay_file(folder / name).status == status
