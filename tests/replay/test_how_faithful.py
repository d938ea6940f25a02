"""What the page "How faithful is it?" says is what the replays find: every recording again, against book/appendix/how-faithful.json."""

from __future__ import annotations

import json

import pytest

from mmsim.replay.registry import handler_for, load_handlers
from tools import faithful

STORED = json.loads(faithful.RESULT.read_text(encoding="utf-8"))
load_handlers()


def test_every_recording_is_in_the_list() -> None:
    replayed = {path.relative_to(faithful.GOLDEN).as_posix() for path in faithful.recordings() if handler_for(path)}
    assert {one["path"] for one in STORED["files"]} == replayed, "run `make notebooks`"
    others = {path.relative_to(faithful.GOLDEN).as_posix() for path in faithful.recordings() if not handler_for(path)}
    assert set(STORED["not replayed"]) == others, "run `make notebooks`"


@pytest.mark.parametrize("stored", STORED["files"], ids=lambda stored: stored["path"])
def test_a_new_replay_gives_the_stored_numbers(stored: dict) -> None:  # type: ignore[type-arg]
    assert faithful.compared(faithful.GOLDEN / stored["path"]) == stored, "run `make notebooks` and look at the difference"


def test_a_recording_of_each_folder_is_told_by_its_kernel_and_how_it_was_made() -> None:
    assert (faithful.kernel("recordings/boots-6.1/n5odd.txt.gz"), faithful.made("recordings/boots-6.1/n5odd.txt.gz")) == (
        "6.1", "a running kernel in QEMU")
    assert (faithful.kernel("vma/fuzz-maps-6.18.jsonl.gz"), faithful.made("vma/fuzz-maps-6.18.jsonl.gz")) == (
        "6.18", "a running kernel, one process")
    assert (faithful.kernel("gfp/gfp.json"), faithful.made("gfp/gfp.json")) == ("5.17", faithful.HARNESS)


def test_a_replay_that_no_mechanism_knows_is_named_by_its_module() -> None:
    assert faithful.mechanism("no_such_module", "x/y.jsonl", "What it compares") == (0, "What it compares")
    assert faithful.mechanism("limits", "recordings/linux-5.17-userland/ch07_over.jsonl", "") == (7, "Overcommit")
