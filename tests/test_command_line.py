"""python3 -m mmsim: what it prints, and what it says to those who mistype."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmsim.__main__ import main
from mmsim.recorded import parse_buddyinfo
from mmsim.reference import ref256, toy16


def test_boot_prints_the_kernel_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "toy16"]) == 0
    assert capsys.readouterr().out.splitlines() == toy16().dmesg_lines()


def test_boot_takes_the_firmware_map_of_any_kernel_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "dmesg.txt"
    log.write_text("\n".join(line for line in ref256().dmesg_lines() if "BIOS-e820" in line))
    assert main(["boot", str(log)]) == 0
    assert "Memory: 2" in capsys.readouterr().out


def test_the_files_of_proc_are_those_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buddyinfo", "--machine", "toy16"]) == 0
    text = capsys.readouterr().out
    assert text == toy16().proc("buddyinfo") and parse_buddyinfo(text)
    assert main(["proc", "zoneinfo", "--machine", "toy16"]) == 0
    assert capsys.readouterr().out == toy16().proc("zoneinfo")


def test_figures_are_listed_and_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert "buddy-board" in names and len(names) == len(set(names)) > 20
    assert main(["figure", "#fig-buddy-board"]) == 0
    assert capsys.readouterr().out.startswith("Buddy board")


def test_a_frame_of_a_figure_becomes_an_svg_file(tmp_path: Path) -> None:
    target = tmp_path / "board.svg"
    assert main(["figure", "buddy-board", "--svg", str(target), "--frame", "2"]) == 0
    assert target.read_text().startswith("<svg")


SCRIPT = """\
a = mmap(64K, rw, private|anon)
write a "hello"
fork -> child
child: write a "world"
munmap(a+2K, 4K)
"""


def test_a_lab_script_is_told_step_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.txt"
    script.write_text(SCRIPT)
    assert main(["lab", str(script)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith('main: write a "hello"  = 0  (new page)') and "(copy)" in lines[3] and "-1 EINVAL" in lines[4]
    assert any(line.startswith("child: ") for line in lines)


def test_maps_prints_the_areas_of_every_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maps"]) == 0
    assert capsys.readouterr().out.endswith("[stack]\n")
    script = tmp_path / "script.txt"
    script.write_text(SCRIPT)
    assert main(["maps", str(script)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("main:\n") and "child:\n" in text and text.count("[stack]") == 2


def test_an_error_in_a_script_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.txt"
    script.write_text("a = mmap(64K, rw, private|anon)\nwrite b \n")
    assert main(["lab", str(script)]) == 2
    captured = capsys.readouterr()
    assert "line 2" in captured.err and len(captured.err.splitlines()) == 1


def test_replay_has_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--list"]) == 0
    assert "memblock/" in capsys.readouterr().out


def test_answers_to_exercises_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exercise"]) == 0
    assert "5.3    How deep may an interrupt handler go?" in capsys.readouterr().out.splitlines()
    assert main(["exercise", "5.3"]) == 0
    assert "atomic: free memory at which GFP_ATOMIC is refused, in pages" in capsys.readouterr().out
    assert main(["exercise", "5.3", "375", "500"]) == 0 and main(["exercise", "ex05-index-negative", "-500"]) == 0
    assert capsys.readouterr().out.count("right") == 2
    assert main(["exercise", "5.3", "375", "400"]) == 1
    assert "victim: not yet" in capsys.readouterr().out


def test_an_exercise_has_hints_and_a_solution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exercise", "5.3", "--hint", "--hint"]) == 0
    assert [line[:11] for line in capsys.readouterr().out.splitlines()] == ["Hint 1 of 2", "Hint 2 of 2"]
    assert main(["exercise", "5.3", "--solution"]) == 0
    assert "atomic: 375 pages" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["exercise", "99.1", "5"], "there is no exercise '99.1'"),
    (["exercise", "5.3", "375"], "got 1 answer"),
    (["exercise", "5.3", "abc", "5"], "'abc' is no number"),
    (["boot", "no-such-file"], "neither a reference machine"),
    (["proc", "nothing"], "no file nothing"),
    (["figure", "nothing"], "there is no figure nothing"),
    (["figure", "buddy-board", "--set", "seed"], "is no NAME=VALUE"),
    (["figure", "buddy-board", "--set", "colour=red"], "has no parameter 'colour'"),
    (["figure", "buddy-board", "--svg", "x.svg", "--frame", "0"], "has frames 1 to"),
])
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str],
                                                 tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_a_machine_without_memory_panics_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "dmesg.txt"
    log.write_text("BIOS-e820: [mem 0x0000000000000000-0x0000000000000fff] usable\n")
    assert main(["boot", str(log)]) == 1
    assert "Kernel panic - not syncing" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    run = subprocess.run(f"{sys.executable} -m mmsim boot ref256 | head -1", shell=True, capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == 1 and not run.stderr
