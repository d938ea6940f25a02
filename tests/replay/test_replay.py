"""The command ``python3 -m mmsim.replay``: all golden files that it covers agree in full, and broken files are told apart."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from mmsim.replay.__main__ import main
from mmsim.replay.driver import replay_file
from mmsim.replay.registry import Check, handler_for, load_handlers, registrations, replays, same

GOLDEN = Path(__file__).parents[1] / "golden"
load_handlers()

#: Files whose replays this module runs; those of the other mechanisms stand beside it.
FILES = ["watermark/config.jsonl.gz", "watermark/watermark_ok.jsonl.gz", "watermark/stat_thresholds.csv.gz", "gfp/gfp.json",
         "zonelist/node_order.jsonl.gz", "fragindex/fragmentation.jsonl.gz",
         "recordings/linux-5.17/buddy.out/kmem-trace.txt.gz", "recordings/linux-6.1/buddy.out/kmem-trace.txt.gz"]

#: How many comparisons each file holds at least: none may fall silent.
AT_LEAST = {"watermark/config.jsonl.gz": 8000, "watermark/watermark_ok.jsonl.gz": 8400, "watermark/stat_thresholds.csv.gz": 1400,
            "gfp/gfp.json": 200, "zonelist/node_order.jsonl.gz": 1200, "fragindex/fragmentation.jsonl.gz": 14_000,
            "recordings/linux-5.17/buddy.out/kmem-trace.txt.gz": 20_000,
            "recordings/linux-6.1/buddy.out/kmem-trace.txt.gz": 20_000}


@pytest.mark.parametrize("name", FILES)
def test_the_model_agrees_with_every_recorded_value(name, capsys):
    assert main([str(GOLDEN / name)]) == 0
    words = capsys.readouterr().out.split()
    assert words[0] == "agree" and words[1] == words[3] and int(words[3]) >= AT_LEAST[name]


def test_every_golden_file_that_issue_names_is_covered():
    names = {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file() and handler_for(path)}
    assert names >= set(FILES)
    for folder in ("memblock", "buddy", "recordings/boots-5.17"):
        assert any(name.startswith(folder) for name in names), folder


def test_a_directory_is_searched_and_what_no_replay_covers_is_listed(tmp_path, capsys):
    (tmp_path / "gfp").mkdir()
    shutil.copy(GOLDEN / "gfp" / "gfp.json", tmp_path / "gfp" / "gfp-new.json")
    (tmp_path / "gfp" / "notes.txt").write_text("?")
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"agree 211 of 211  {tmp_path}/gfp/gfp-new.json" in out
    assert f"not covered      {tmp_path}/gfp/notes.txt" in out
    assert out.rstrip().endswith("agree 211 of 211 in 1 file, 1 not covered")


def test_nothing_compared_is_no_success(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("?")
    assert main([str(tmp_path)]) == 2
    assert "not covered" in capsys.readouterr().out
    assert main([str(tmp_path / "missing")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "new"), [
    ("watermark/config.jsonl.gz", "watermark/large.jsonl.gz"), ("watermark/watermark_ok.jsonl.gz", "watermark/more.jsonl.gz"),
    ("watermark/stat_thresholds.csv.gz", "watermark/drift.csv.gz"), ("zonelist/node_order.jsonl.gz", "zonelist/eight.jsonl.gz"),
    ("fragindex/fragmentation.jsonl.gz", "fragindex/b.jsonl.gz"), ("gfp/gfp.json", "gfp/flags.json")])
def test_a_new_recording_is_known_by_its_folder_whatever_its_name(name, new, tmp_path, capsys):
    (tmp_path / new).parent.mkdir()
    shutil.copy(GOLDEN / name, tmp_path / new)
    assert main([str(tmp_path / new)]) == 0
    assert capsys.readouterr().out.startswith("agree ")


def copy_of(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / Path(name).parent
    folder.mkdir(parents=True)
    for path in (GOLDEN / name).parent.iterdir():
        if path.name in (Path(name).name, "before.txt"):
            shutil.copy(path, folder / path.name)
    return folder / Path(name).name


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_gives_one_clear_message(name, tmp_path, capsys):
    path = copy_of(name, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) * 2 // 3])
    assert main([str(path)]) == 2
    out = capsys.readouterr().out
    assert out.startswith("cannot be used   ") and out.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".gz")])
def test_an_unpacked_file_that_ends_in_the_middle_of_a_record_gives_one_clear_message(name, tmp_path, capsys):
    path = copy_of(name, tmp_path)
    text = gzip.decompress(path.read_bytes())
    path.unlink()
    path = path.with_suffix("")
    cut = text[:len(text) // 2]
    path.write_bytes(cut[:cut.rindex(b",") + 1] if b"," in cut else cut[:-7])
    assert main([str(path)]) == 2
    out = capsys.readouterr().out
    assert out.startswith("cannot be used   ") and out.count("\n") == 1


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08garbage", b"\xff\xfe{}", b"[1, 2]\n", b'{"managed": 7}\n', b"{}\n", b"null\n",
                                  b'{"managed":["a",0,0,0],"cpus":1,"scale_factor":10,"ratio":[1,1,1,1]}\n', b"[" * 100_000])
def test_corrupt_records_are_reported_without_a_traceback(data, tmp_path, capsys):
    folder = tmp_path / "watermark"
    folder.mkdir()
    path = folder / "config.jsonl"
    path.write_bytes(data)
    assert main([str(path)]) == 2
    out = capsys.readouterr().out
    assert out.startswith("cannot be used   ") and out.count("\n") == 1


def test_the_line_of_a_broken_record_is_named(tmp_path):
    folder = tmp_path / "fragindex"
    folder.mkdir()
    lines = gzip.decompress((GOLDEN / "fragindex" / "fragmentation.jsonl.gz").read_bytes()).decode().split("\n")
    lines[6] = lines[6][:40]
    path = folder / "fragmentation.jsonl"
    path.write_text("\n".join(lines))
    assert "line 7 is not JSON" in replay_file(path).error


def test_a_disagreement_is_shown_with_both_values_and_fails_the_run(tmp_path, capsys):
    folder = tmp_path / "gfp"
    folder.mkdir()
    record = json.loads((GOLDEN / "gfp" / "gfp.json").read_text())
    record["flags"]["GFP_KERNEL"]["v"] = 12345
    (folder / "gfp.json").write_text(json.dumps(record))
    assert main([str(folder / "gfp.json")]) == 1
    out = capsys.readouterr().out
    assert "GFP_KERNEL: value" in out and "recorded: 12345" in out and "model:    3264" in out
    assert main(["--json", str(folder / "gfp.json")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == 1 and report["files"][0]["agree"] < report["files"][0]["total"]


def change_one_event(tmp_path: Path, event: str, old: str, new: str) -> str:
    """Replay a copy of the recorded trace in which one event was changed; return the first disagreement."""
    path = copy_of("recordings/linux-5.17/buddy.out/kmem-trace.txt.gz", tmp_path)
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    matching = [number for number, line in enumerate(lines) if f" {event}: " in line and old in line]
    number = matching[len(matching) // 2]
    lines[number] = lines[number].replace(old, new)
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    report = replay_file(path)
    assert report.status == 1
    return report.disagreements[0]


@pytest.mark.parametrize(("event", "old", "new", "problem"), [
    ("mm_page_alloc_zone_locked", "percpu_refill=1", "percpu_refill=0", "percpu_refill of order 0"),
    ("mm_page_alloc", "migratetype=1", "migratetype=0", "asks for type 1"),
    ("mm_page_pcpu_drain", "order=0", "order=1", "not aligned|part of a block|not on a per-CPU"),
    ("mm_page_alloc", "pfn=0x", "pfn=0xfff", "does not lie in one zone"),
    ("mm_page_free_batched", "order=0", "order=2", "only single pages"),
])
def test_a_changed_event_of_a_trace_is_found(tmp_path, event, old, new, problem):
    assert re.search(problem, change_one_event(tmp_path, event, old, new))


def test_an_allocation_of_a_frame_that_is_in_use_is_found(tmp_path):
    path = copy_of("recordings/linux-5.17/buddy.out/kmem-trace.txt.gz", tmp_path)
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    number = next(number for number, line in enumerate(lines) if " mm_page_alloc: " in line)
    lines.insert(number + 1, lines[number])
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    report = replay_file(path)
    assert report.status == 1 and "in use, not on a per-CPU list" in report.disagreements[0]


def test_an_allocation_that_does_not_take_the_head_of_its_list_is_found(tmp_path):
    path = copy_of("recordings/linux-5.17/buddy.out/kmem-trace.txt.gz", tmp_path)
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    # Two allocations one after the other from one list, exchanged.
    first = next(number for number in range(5000, len(lines)) if all(
        " mm_page_alloc: " in line and "order=0 migratetype=1" in line for line in lines[number:number + 2]))
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    report = replay_file(path)
    assert report.status == 1 and "the head of the CPU's list is" in report.disagreements[0]


def test_an_order_that_no_block_can_have_is_an_unusable_file_and_not_an_endless_loop(tmp_path):
    path = copy_of("recordings/linux-5.17/buddy.out/kmem-trace.txt.gz", tmp_path)
    text = gzip.decompress(path.read_bytes()).decode().replace("order=2", "order=60", 1)
    path.write_bytes(gzip.compress(text.encode()))
    assert "no blocks of order 60" in replay_file(path).error


def test_the_list_names_every_pattern_and_says_what_is_compared(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for registration in registrations():
        assert registration.pattern in out
        assert len(registration.compares) > 20, f"{registration.pattern} does not say what it compares"


def test_the_longest_pattern_wins_and_a_pattern_has_one_handler():
    @replays("oddly/named*.txt")
    def general(path):
        """Everything that is oddly named."""
        yield same("one", 1, 1)

    @replays("oddly/named-more*.txt")
    def special(path):
        """What is named even more oddly, with a known difference."""
        yield Check("two", False, 1, 2, known="a documented difference")

    chosen = handler_for(Path("/somewhere/oddly/named-more-x.txt"))
    assert chosen is not None and chosen.handler is special
    assert handler_for(Path("/somewhere/evenly/named-more-x.txt")) is None
    report = replay_file(Path("/somewhere/oddly/named-more-x.txt"))
    assert report.status == 0 and "1 known difference: a documented difference" in report.text()
    with pytest.raises(ValueError, match="already replayed"):
        @replays("oddly/named*.txt")
        def other(path):
            """Another."""
            yield same("three", 3, 3)
