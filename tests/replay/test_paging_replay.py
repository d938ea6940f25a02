"""The replays of page tables agree in full with what was recorded, and find what was changed."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from mmsim.replay.driver import replay_file
from mmsim.replay.registry import load_handlers

GOLDEN = Path(__file__).parents[1] / "golden"
load_handlers()
FILES = {"pte/swp_entry.csv.gz": 5250, "consts/consts-5.17.json": 190, "recordings/linux-5.17/pt.json": 442,
         "recordings/linux-6.1/pt.json": 516, "recordings/linux-5.17/pt-info-mem.txt": 56,
         "recordings/linux-6.1/pt-info-mem.txt": 187}


@pytest.mark.parametrize("name", FILES)
def test_the_model_agrees_with_every_recorded_value(name):
    report = replay_file(GOLDEN / name)
    assert report.status == 0, report.text()
    assert report.agree == report.total >= FILES[name] and not report.known


def changed(tmp_path: Path, change) -> Path:
    folder = tmp_path / "linux-5.17"
    folder.mkdir()
    record = json.loads((GOLDEN / "recordings/linux-5.17/pt.json").read_text())
    change(record)
    path = folder / "pt-new.json"
    path.write_text(json.dumps(record))
    return path


def first_leaf(record):
    return record["user_leaves"][0]


@pytest.mark.parametrize(("change", "status", "text"), [
    (lambda r: first_leaf(r).update(pte="0x2333025"), 1, "protection of its area"),
    (lambda r: r["pagemap_compare"][0].update(pagemap="0x8180000000001bce"), 1, "pagemap of 0x10000000000"),
    (lambda r: r.update(status=["VmPTE:\t      68 kB"]), 1, "VmPTE"),
    (lambda r: r["tables"].pop(2), 2, "has none above it"),
    (lambda r: first_leaf(r).update(va="0x7000000000"), 2, "has no table of level 1"),
    (lambda r: r.pop("regs"), 2, "no field 'regs'"),
    (lambda r: r["user_leaves"].pop(), 1, "number"),
    (lambda r: r["kernel_ranges"][5].update(flags="0x8000000000000183"), 1, "kernel range 5, direct map"),
    (lambda r: r["kernel_ranges"].pop(30), 1, "kernel range 17, cpu_entry_area"),
    (lambda r: r["kernel_ranges"][18].update(end="0xffffc90000007000"), 1, "guard page behind it"),
    (lambda r: r.update(command=["qemu", "vmlinuz-5.17.0"]), 2, "neither -m with megabytes"),
])
def test_a_changed_dump_disagrees_or_cannot_be_used(tmp_path, change, status, text):
    path = changed(tmp_path, change)
    if text == "number":
        # A page fewer: the emulator's own list of ranges is what notices it.
        path.rename(path.with_name("pt.json"))
        path = path.with_name("pt-info-mem.txt")
        shutil.copy(GOLDEN / "recordings/linux-5.17/pt-info-mem.txt", path)
    report = replay_file(path)
    assert report.status == status and text in report.text()


def test_the_ranges_of_the_emulator_need_the_dump_beside_them(tmp_path):
    (tmp_path / "linux-5.17").mkdir()
    path = tmp_path / "linux-5.17" / "pt-info-mem.txt"
    shutil.copy(GOLDEN / "recordings/linux-5.17/pt-info-mem.txt", path)
    assert "needs pt.json beside it" in replay_file(path).error


def test_a_swap_entry_with_one_other_bit_disagrees(tmp_path):
    (tmp_path / "pte").mkdir()
    lines = gzip.decompress((GOLDEN / "pte/swp_entry.csv.gz").read_bytes()).decode().split("\n")
    fields = lines[5].split(",")
    fields[3] = str(int(fields[3]) ^ 512)
    lines[5] = ",".join(fields)
    path = tmp_path / "pte" / "entries.csv"
    path.write_text("\n".join(lines))
    report = replay_file(path)
    assert report.status == 1 and report.total - report.agree == 2 and "line 6" in report.text()


def test_a_changed_constant_disagrees(tmp_path):
    (tmp_path / "consts").mkdir()
    record = json.loads((GOLDEN / "consts/consts-5.17.json").read_text())
    record["values"]["page_bits"]["_PAGE_BIT_DIRTY"] = 5
    record["values"]["pgprot"]["__P011"] ^= 2
    path = tmp_path / "consts" / "consts.json"
    path.write_text(json.dumps(record))
    report = replay_file(path)
    assert report.total - report.agree == 2 and "page_bits: _PAGE_BIT_DIRTY" in report.text()
