"""Replays of golden/slub and of what running kernels say of their caches."""

import gzip
import json
from pathlib import Path

import pytest

from mmsim.replay.__main__ import main
from mmsim.replay.driver import replay_file
from mmsim.replay.registry import load_handlers

GOLDEN = Path(__file__).parents[1] / "golden"
load_handlers()

AT_LEAST = {"slub/cache_layout.jsonl.gz": 30_329, "slub/kmalloc_caches.jsonl.gz": 3066,
            "slub/kmalloc_index_0_8192.json.gz": 8193,
            "recordings/linux-5.17/buddy.out/slab-geometry.txt": 258, "recordings/linux-6.1/buddy.out/slab-geometry.txt": 258,
            "recordings/linux-5.17/buddy.out/slabinfo.txt": 124, "recordings/linux-6.1/buddy.out/slabinfo.txt": 154,
            "recordings/linux-5.17/buddy.out/kmalloc-req-alloc.txt": 9,
            "recordings/linux-6.1/buddy.out/kmalloc-req-alloc.txt": 13,
            "recordings/linux-5.17-pressure/api/files/f/sys_kernel_slab_two.txt": 14,
            "recordings/linux-5.17-pressure/api/files/f/proc_vmallocinfo": 37,
            "recordings/linux-5.17-memory/ch18/vmallocinfo.txt": 41, "recordings/linux-5.17-memory/ch18/vmalloc-ioremap.txt": 25}


@pytest.mark.parametrize("name", AT_LEAST)
def test_the_layout_of_caches_agrees_with_the_kernel(name, capsys):
    assert main([str(GOLDEN / name)]) == 0
    words = capsys.readouterr().out.split()
    assert words[0] == "agree" and words[1] == words[3] and int(words[3]) >= AT_LEAST[name]


def test_a_changed_number_is_a_disagreement(tmp_path):
    folder = tmp_path / "slub"
    folder.mkdir()
    first = json.loads(gzip.decompress((GOLDEN / "slub/cache_layout.jsonl.gz").read_bytes()).splitlines()[0])
    (folder / "new.jsonl").write_text(json.dumps(first | {"objects": first["objects"] + 1}) + "\n")
    report = replay_file(folder / "new.jsonl")
    assert (report.agree, report.total, report.status) == (12, 13, 1)
    assert "objects" in report.disagreements[0]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("slub/kmalloc_index.json", "[0, 3", "not JSON"), ("slub/kmalloc_index.json", "{}", "no list"),
    ("slub/cache_layout.jsonl", '{"object_size": 8}', "no field"), ("slub/cache_layout.jsonl", "", "nothing to compare"),
    ("files/f/sys_kernel_slab.txt", "/sys/kernel/slab/dentry/order 0", "lacks a file"),
    ("files/f/sys_kernel_slab.txt", "order 0", "is no file of"),
    ("buddy.out/slab-geometry.txt", "kmalloc-8 size", "names no sizes"),
    ("buddy.out/kmalloc-req-alloc.txt", "bytes_req=11", "is no request")])
def test_a_broken_file_ends_in_one_message(tmp_path, name, text, message):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    report = replay_file(path)
    assert report.status == 2 and message in report.error
