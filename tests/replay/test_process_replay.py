"""Recordings of processes: fork trees, steps, faults, overcommit. Everything that is covered agrees."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmsim.replay.driver import replay_file
from mmsim.replay.registry import load_handlers

GOLDEN = Path(__file__).parents[1] / "golden"
USERLAND = GOLDEN / "recordings/linux-5.17-userland"
load_handlers()


@pytest.mark.parametrize(("name", "agree", "known"), [
    ("ch07_steps.jsonl", 467, 7), ("ch07_over.jsonl", 91, 0), ("ch07_over_swap.jsonl", 91, 0), ("ch07_rlimit.jsonl", 78, 1)])
def test_steps_limits_and_overcommit_agree(name: str, agree: int, known: int) -> None:
    report = replay_file(USERLAND / name, debug=True)
    assert (report.agree, sum(report.known.values()), report.total) == (agree, known, agree + known), report.text()


def test_fork_trees_agree_in_faults_smaps_and_shared_frames() -> None:
    report = replay_file(USERLAND / "ch07_tree.jsonl.gz", debug=True)
    assert (report.agree, report.total) == (14194, 14194), report.text()


@pytest.mark.parametrize(("path", "agree", "known"), [
    *((f"recordings/{folder}/faults-{name}.jsonl", *counts) for folder in ("linux-5.17/progs.out", "linux-5.17/progs-1G.out",
                                                                          "linux-6.1/progs.out")
      for name, counts in (("1", (175, 10)), ("2", (175, 10)), ("tmpfs", (187, 4)))),
    ("recordings/linux-6.18-live/faults-6.18.jsonl", 175, 10), ("recordings/linux-6.18-live/faults-6.18-ra128.jsonl", 175, 10),
    ("live-5.17/faults-tmpfs.jsonl", 187, 4)])
def test_the_faults_program_agrees_on_each_kernel(path: str, agree: int, known: int) -> None:
    report = replay_file(GOLDEN / path, debug=True)
    assert (report.agree, sum(report.known.values()), report.total) == (agree, known, agree + known), report.text()


def test_a_tree_that_differs_in_one_page_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "linux-5.17-userland"
    folder.mkdir()
    with gzip.open(USERLAND / "ch07_tree.jsonl.gz", "rt") as file:
        record = json.loads(file.readline())
    record["ops"][3]["state"][0]["pages"][5][1] += 1
    (folder / "ch07_tree.jsonl").write_text(json.dumps(record) + "\n")
    report = replay_file(folder / "ch07_tree.jsonl")
    assert report.status == 1 and len(report.disagreements) == 1 and "mappings of each page" in report.disagreements[0]


@pytest.mark.parametrize("line", ['{"kind":"tree","seed":1}', '{"kind":"other"}', '{"kind":"tree"', "[]"])
def test_a_broken_tree_is_named_and_is_no_crash(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "linux-5.17-userland"
    folder.mkdir()
    (folder / "ch07_tree.jsonl").write_text(line + "\n")
    report = replay_file(folder / "ch07_tree.jsonl")
    assert report.status == 2 and "line 1" in report.error
