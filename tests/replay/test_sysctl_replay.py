"""Writes to /proc/sys/vm on a live kernel, and a snapshot of another build, done again by the model."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from mmsim.errors import InputError
from mmsim.physical.watermark import Reserves
from mmsim.recorded import read_snapshot
from mmsim.replay.boots import proc_snapshot
from mmsim.replay.driver import replay_file
from mmsim.replay.sysctl import marks, vm_files

GOLDEN = Path(__file__).parents[1] / "golden"
PRESSURE = GOLDEN / "recordings" / "linux-5.17-pressure"
SNAPSHOT = GOLDEN / "live-5.17" / "proc-512M.tar.gz"


def disagreements(checks):
    return [check.describe() for check in checks if not check.agrees]


@pytest.mark.parametrize("size", [512, 768, 1024])
def test_the_marks_after_every_write_are_those_of_the_kernel(size):
    checks = list(marks(PRESSURE / f"reclaim/wmark{size}/wm/wm.txt.gz"))
    assert disagreements(checks) == []
    assert len(checks) == 387


def test_every_file_accepts_what_the_kernel_accepts():
    checks = list(vm_files(PRESSURE / "api/sysctl/sysctl-vm.jsonl.gz"))
    assert disagreements(checks) == []
    assert len(checks) == 503


def test_a_snapshot_without_memblock_calls_is_repeated():
    checks = list(proc_snapshot(SNAPSHOT))
    assert disagreements(checks) == []
    assert len(checks) == 104


def test_other_marks_would_be_noticed(monkeypatch):
    monkeypatch.setattr(Reserves, "setup_lowmem_reserve", lambda self: None)
    assert len(disagreements(marks(PRESSURE / "reclaim/wmark512/wm/wm.txt.gz"))) > 10


def test_a_truncated_recording_of_marks_is_refused(tmp_path):
    text = gzip.decompress((PRESSURE / "reclaim/wmark512/wm/wm.txt.gz").read_bytes())
    path = tmp_path / "wmark512" / "wm" / "wm.txt"
    path.parent.mkdir(parents=True)
    for part in (text[:len(text) // 2], text[100:], b""):
        path.write_bytes(part)
        assert replay_file(path).status == 2


def test_an_archive_without_a_log_is_refused(tmp_path):
    path = tmp_path / "proc.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("meminfo.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(InputError, match="holds no dmesg"):
        read_snapshot(path)
    path.write_bytes(SNAPSHOT.read_bytes()[:9000])
    with pytest.raises(InputError, match="truncated"):
        read_snapshot(path)
