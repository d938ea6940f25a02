"""Recording the running kernel: the sequences are those of the recordings that come with the project, and what was recorded
is compared with the model."""

from __future__ import annotations

import gzip
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsim.errors import InputError
from mmsim.replay import record as recorder
from mmsim.replay.__main__ import main
from mmsim.replay.faults_model import compare_faults, run_on_model
from mmsim.replay.faults_program import smaps_sums
from mmsim.replay.readers import Record, read_jsonl
from mmsim.replay.record_ops import fuzz_ops, place_ops
from mmsim.replay.vma import fuzz_sequence
from mmsim.rules import RELEASES, nearest_release, rules_for

GOLDEN = Path(__file__).parents[1] / "golden" / "vma"
HERE = sys.platform == "linux" and not recorder.why_not()


def golden(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(GOLDEN / name, "rt") as file:
        yield from map(json.loads, file)


@pytest.mark.parametrize("release", RELEASES)
def test_a_seed_gives_the_calls_that_were_recorded(release: str) -> None:
    for record in golden(f"fuzz-maps-{release}.jsonl.gz"):
        heap = [0]
        calls = fuzz_ops(record["seed"], len(record["ops"]), record["npages"], lambda heap=heap: heap[0])    # type: ignore[misc]
        for call, recorded in zip(calls, record["ops"], strict=True):
            assert call == {name: recorded[name] for name in call}, record["seed"]
            assert set(recorded) - set(call) <= {"ret", "errno", "maps", "heap", "signal"}
            heap[0] = call.get("to", heap[0]) if call["op"] == "brk" else heap[0]


def test_a_seed_gives_the_places_that_were_recorded() -> None:
    for record in golden("place-5.17.jsonl.gz"):
        calls = place_ops(record["seed"], len(record["ops"]))
        call = next(calls)
        for number, recorded in enumerate(record["ops"]):
            assert call == {name: recorded[name] for name in call}, (record["seed"], number)
            if number + 1 < len(record["ops"]):
                call = calls.send(recorded["page"]) if recorded["op"] == "mmap" else next(calls)


def test_a_difference_of_the_kernel_is_found_by_its_rule() -> None:
    """The recordings of 5.17 under the rules of 6.1 without one: that rule, and no other, is named."""
    names = set()
    run = lambda record, rules: fuzz_sequence(record, rules, False)         # noqa: E731
    wrong = rules_for("5.17").replace(mremap_positive_efault=False)
    for text in golden("fuzz-maps-5.17.jsonl.gz"):
        record = Record(text)
        if not all(check.agrees for check in run(record, wrong)):
            found = recorder.explain(record, wrong, run)
            assert found is not None
            names.add(tuple(found[1]))
    assert names == {("mremap_positive_efault = True",)}


def test_a_recording_under_other_rules_is_explained_or_shown(tmp_path: Path) -> None:
    path = tmp_path / "fuzz-maps-x.jsonl"
    records = list(golden("fuzz-maps-5.17.jsonl.gz"))[:40]
    records[0]["ops"][3]["maps"] = [[0, 64, "rwxp", 0, "anon"]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    checks = list(recorder.compare(path, rules_for("5.17").replace(mremap_positive_efault=False)))
    assert {check.known for check in checks if check.known} == {"the rule mremap_positive_efault = True"}
    shown = [check for check in checks if not check.agrees and not check.known]
    assert len(shown) == 1 and shown[0].label.startswith("seed 1, call 3")      # type: ignore[union-attr]


@pytest.mark.parametrize(("running", "nearest"), [("5.17.0", "5.17"), ("5.4.0-generic", "5.17"), ("6.5", "6.1"), ("6.12.9+deb", "6.12"),
                                                  ("7.1.3", "6.18"), ("6.1.0-18-amd64", "6.1")])
def test_the_nearest_rules_are_the_newest_that_are_not_newer(running: str, nearest: str) -> None:
    assert nearest_release(running) == nearest


def test_a_text_that_is_no_release_is_refused() -> None:
    with pytest.raises(InputError, match="no release"):
        nearest_release("linux")


@pytest.mark.parametrize("system", ["darwin", "win32", "emscripten"])
def test_elsewhere_the_command_says_what_is_missing(system: str, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert main(["record", "vma"]) == 2
    assert "a kernel of Linux is needed" in capsys.readouterr().err


def test_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "x86-64" in recorder.why_not()


@pytest.mark.parametrize("arguments", [["record"], ["record", "slabs"], ["record", "vma", "--calls", "2"],
                                       ["record", "vma", "--sequences", "0"], ["record", "place", "--seed", "-1"]])
def test_a_wrong_command_line_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage:" in capsys.readouterr().err


def test_sums_of_smaps_are_those_of_the_areas_in_the_range() -> None:
    area = "{}-{} rw-p 00000000 00:00 0 \nSize: 8 kB\nRss: 4 kB\nPss: 2 kB\nSwap: 0 kB\nVmFlags: rd wr \n"
    text = area.format("1000", "3000") + area.format("3000", "4000") + area.format("9000", "a000")
    assert smaps_sums(text, 0x2000, 0x9000) == {"vmas": 2, "Rss": 8, "Pss": 4, "VmFlags": "rd wr ; rd wr "}


def test_the_program_of_faults_runs_on_the_model_and_a_difference_is_named_by_its_rule(tmp_path: Path) -> None:
    lines = run_on_model(rules_for("5.17"))
    counts = {line["step"]: (line["minflt"], line["majflt"]) for line in lines}
    assert counts["anon_read_zero_page"] == counts["write_after_mprotect_rw"] == counts["fork_child_write"] == (32, 0)
    assert counts["shanon_write_after_remove"] == counts["memfd_write"] == (0, 32) and counts["madv_free"] == (0, 0)
    path = tmp_path / "faults-x.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert all(check.agrees for check in compare_faults(path, rules_for("5.17")))
    checks = list(compare_faults(path, rules_for("5.17").replace(lru_batch=31, dirtying_fault_retries=False)))
    named = {check.known for check in checks if not check.agrees}
    assert named == {"the rule lru_batch = 15", "the rule dirtying_fault_retries = True"}
    lines[7]["minflt"] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wrong = [check for check in compare_faults(path, rules_for("5.17")) if not check.agrees]
    assert len(wrong) == 1 and not wrong[0].known


if HERE:
    def test_faults_of_the_running_kernel_are_recorded_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status = main(["record", "faults", "--json", "--output", str(tmp_path)])
        report = json.loads(capsys.readouterr().out)
        assert status in (0, 1) and not report["error"] and report["total"] > 150
        records = list(read_jsonl(Path(report["path"])))
        assert [record["step"] for record in records] == [line["step"] for line in run_on_model(rules_for("5.17"))]
        assert main([report["path"]]) == status
        capsys.readouterr()
        assert all(set(record) <= {"step", "minflt", "majflt", "smaps", "segv", "sigbus"} for record in records)
        # So much is the same on every kernel: one fault for each page, and none for one that is there.
        counts = {record["step"]: record["minflt"] + record["majflt"] for record in records}
        assert counts["anon_read_zero_page"] >= 32 and counts["file_populate_then_read"] == counts["write_after_mlock"] == 0

    @pytest.mark.parametrize("kind", ["vma", "place", "smaps"])
    def test_the_running_kernel_is_recorded_and_compared(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The recording has the format of the others; whether an unknown kernel agrees is not for the test to say."""
        arguments = ["place"] if kind == "place" else ["vma"] + ["--smaps"] * (kind == "smaps")
        status = main(["record", *arguments, "--seed", "7", "--sequences", "3", "--calls", "30", "--json", "--output", str(tmp_path)])
        report = json.loads(capsys.readouterr().out)
        assert status in (0, 1) and report["status"] == status and not report["error"] and report["seed"] == 7
        assert report["rules"] in RELEASES and report["total"] > 30
        path = Path(report["path"])
        records = list(read_jsonl(path))
        assert [record["seed"] for record in records] == [7, 8, 9] and path.parent == tmp_path / "vma"
        sample = next(golden({"vma": "fuzz-maps-6.18", "smaps": "fuzz-smaps-5.17", "place": "place-5.17"}[kind] + ".jsonl.gz"))
        assert set(records[0]) <= set(sample) | {"mmap_base"}
        shapes = {op["op"]: set(op) for op in sample["ops"]}
        for record in records:
            assert len(record["ops"]) == 30
            for op in record["ops"]:
                assert op["op"] not in shapes or op["op"] == "mremap" or set(op) == shapes[op["op"]]
        if kind != "place":
            # The first four calls cover the range: that much every kernel does alike.
            first = records[0]["ops"][3]["maps"]
            assert first[0][0] == 0 and first[-1][1] == 64 and len(first[0]) == (6 if kind == "smaps" else 5)
        # And the file can be replayed later by its name.
        assert main([str(path)]) in (0, 1)
        assert "cannot be used" not in capsys.readouterr().out

    def test_two_recordings_of_one_seed_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a", "b"):
            main(["record", "vma", "--seed", "3", "--sequences", "2", "--output", str(tmp_path / name)])
        capsys.readouterr()
        first, second = (next((tmp_path / name / "vma").iterdir()).read_bytes() for name in ("a", "b"))
        assert first == second
