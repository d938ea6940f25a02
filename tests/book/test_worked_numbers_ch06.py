"""Every number that chapter 6 works out by hand, computed by the mechanism."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from mmsim.errors import InvariantError, KernelBug
from mmsim.figures import ch06
from mmsim.kernel.kmalloc_caches import KMALLOC_SIZES, ZERO_SIZE_PTR, kmalloc_layout, kmalloc_size_roundup
from mmsim.kernel.layout import Layout
from mmsim.kernel.slab_layout import calculate_sizes, cpu_partial_limits, get_order
from mmsim.kernel.slub import Slub
from mmsim.kernel.vmap_area import VmapAreas
from mmsim.reference import ref256, toy16
from mmsim.units import MIB, PAGE_SIZE
from tests.book.pages import BOOK, cells, markdown

CHAPTER = BOOK / "06-kernel-virtual-memory.ipynb"


def test_the_report_at_the_beginning_decodes_as_the_solution_says() -> None:
    layout = Layout(1 << 24)
    assert layout.struct_to_pfn(0xFFFF_EA00_0424_3200) == 0x1090C8
    frame = (0xFFFF_8801_090C_C800 - 0xFFFF_8800_0000_0000) >> 12
    assert frame == 0x1090CC and frame & -8 == 0x1090C8
    word = 0x0000_0001_0010_0001
    assert (word & 0xFFFF, word >> 16 & 0x7FFF, word >> 31 & 1, word >> 32) == (1, 16, 0, 1)
    assert (PAGE_SIZE << 3) // 16 == 2048 and 0xC800 % 2048 == 0
    # 16 objects of 2 KiB in order 3: what SLUB chooses on 4 to 8 CPUs.
    assert (kmalloc_layout(2048, 0, 4).order, kmalloc_layout(2048, 0, 4).objects) == (3, 16)


def test_exercise_vmemmap() -> None:
    layout = Layout(1 << 24)
    assert layout.classify(0xFFFF_EA00_0400_0000).name == "vmemmap" and layout.struct_to_pfn(0xFFFF_EA00_0400_0000) == 0x100000
    assert layout.page_address(0x100000) == 0xFFFF_8881_0000_0000


def test_exercise_kmalloc() -> None:
    assert [kmalloc_size_roundup(size) for size in (100, 193)] == [128, 256]
    assert get_order(8193) == 2 and kmalloc_size_roundup(8193) - 8193 == 8191
    assert len(KMALLOC_SIZES) - 1 == 13 and ZERO_SIZE_PTR == 16


def test_exercise_vmalloc() -> None:
    machine = toy16()
    one, two = machine.vmalloc.vmalloc(1), machine.vmalloc.vmalloc(4097)
    assert one is not None and two is not None
    areas = [machine.vmalloc.find_vm_area(addr) for addr in (one, two)]
    assert [area.size for area in areas if area] == [8192, 12288]
    start = machine.layout.vmalloc_start
    assert VmapAreas(start, start + (1 << 45), 8).lazy_max_pages() * PAGE_SIZE == 128 * MIB
    assert ch06.vmalloc_cost(1) == 4096 + 178


def test_exercise_order() -> None:
    layout = calculate_sizes(680, 8, 0, nr_cpus=4)
    assert (layout.order, layout.objects, layout.wasted) == (2, 24, 64)
    assert 2 * PAGE_SIZE // 680 == 12 and 2 * PAGE_SIZE % 680 == 32 and 16 * 680 == 10_880


def test_exercise_chain() -> None:
    layout = calculate_sizes(256, 8, 0, nr_cpus=2)
    assert (layout.order, layout.objects, cpu_partial_limits(256, 16)) == (0, 16, (52, 7))
    ops = "alloc 0 count=240\n" + "\n".join(f"free {letter}0 cpu=1" for letter in "ABCDEFGH")
    sentences = [frame.say for frame in ch06.slub_machine(size=256, ops=ops).frames()]
    drained = [number for number, sentence in enumerate(sentences, 1) if "move to the node's list" in sentence]
    assert drained == [11] and "CPU 1 frees H0" in sentences[10] and "the 7 slabs" in sentences[10]


@pytest.mark.parametrize("hardened", [False, True])
def test_exercise_break(hardened: bool) -> None:
    slub = Slub.of(toy16(), hardened=hardened)
    a, b = slub.kmalloc(64), slub.kmalloc(64)
    assert a and b
    slub.kfree(a)
    if hardened:
        with pytest.raises(KernelBug, match="double free"):
            slub.kfree(a)
        slub.kfree(b)
        slub.kfree(a)               # a, b, a: nobody notices
    else:
        slub.kfree(a)
        assert slub.kmalloc(64) == slub.kmalloc(64) == a
    with pytest.raises(InvariantError, match=r"circle|free twice|cannot be followed"):
        if not hardened:
            slub.kfree(a)
        slub.check()


def test_exercise_build_two_cpus() -> None:
    """The solution, made from the chapter's own cells."""
    new_slab = next(cell.text for cell in cells(CHAPTER) if cell.kind == "code" and "def new_slab" in cell.text)
    scope: dict[str, Any] = {"toy16": toy16}
    exec(new_slab.split("\ndata = new_slab()")[0], scope)
    slabs, end = scope["slabs"], scope["END"]
    cpus: list[dict[str, Any]] = [{"slab": None, "free": end} for _ in range(2)]

    def take(number: int) -> int:
        cpu = cpus[number]
        if cpu["free"] == end and cpu["slab"] is not None:
            slab = slabs[cpu["slab"]]
            cpu["free"], slab["free"] = slab["free"], end
        if cpu["free"] == end:
            owned = {each["slab"] for each in cpus}
            found = next((pfn for pfn, slab in slabs.items() if slab["free"] != end and pfn not in owned), None)
            if found is None:
                scope["new_slab"]()
                found = max(slabs, key=list(slabs).index)
            cpu["slab"] = found
            cpu["free"], slabs[found]["free"] = slabs[found]["free"], end
        place = cpu["free"]
        data = slabs[cpu["slab"]]["data"]
        cpu["free"] = int.from_bytes(data[place:place + 2], "little")
        slabs[cpu["slab"]]["inuse"] += 1
        return int(cpu["slab"] << 12) + place

    def give(address: int, number: int) -> None:
        pfn, place = address >> 12, address & 0xFFF
        head = cpus[number] if cpus[number]["slab"] == pfn else slabs[pfn]
        slabs[pfn]["data"][place:place + 2] = head["free"].to_bytes(2, "little")
        head["free"] = place
        slabs[pfn]["inuse"] -= 1
        if not slabs[pfn]["inuse"] and pfn not in {each["slab"] for each in cpus}:
            scope["machine"].free_pages(pfn)
            del slabs[pfn]

    dice, out = random.Random(6), set[int]()
    for _ in range(10_000):
        if len(out) < 40 or dice.random() < 0.5 and len(out) < 400:
            address = take(dice.randrange(2))
            assert address not in out
            out.add(address)
        else:
            address = dice.choice(sorted(out))
            out.remove(address)
            give(address, dice.randrange(2))


def test_slabs_of_224_cpus() -> None:
    assert [(layout.order, layout.objects) for layout in (kmalloc_layout(512, 0, 224), kmalloc_layout(512, 0, 1))] == [(3, 64), (0, 8)]


def test_free_pointers_stand_where_the_text_says() -> None:
    assert [kmalloc_layout(size, 0, 4).offset for size in (192, 8)] == [96, 0]


def test_an_object_of_64_bytes_takes_512_with_all_checks() -> None:
    assert Slub.of(toy16(), slub_debug="FZPU,kmalloc-64").cache("kmalloc-64").size == 512


def test_the_per_cpu_chunk_of_the_recorded_machine() -> None:
    first = ref256().start.percpu
    assert first is not None
    assert (first.static_size, first.reserved_size, first.dynamic_size) == (170_176, 0, 30_528)
    assert (170_176 + 30_528) // PAGE_SIZE == 49 and "170\u202f176 + 0 + 30\u202f528 bytes" in markdown(CHAPTER)


def test_the_card_shows_that_everything_agrees() -> None:
    shown = [json.dumps(cell.outputs) for cell in cells(CHAPTER) if "replay_file" in cell.text]
    counts = re.findall(r"agree (\d+) of (\d+)", "".join(shown))
    assert len(counts) >= 9 and all(agree == total != "0" for agree, total in counts)


def test_figures_of_the_measurement_are_those_in_the_text() -> None:
    shown = "".join(json.dumps(cell.outputs) for cell in cells(CHAPTER) if "remote_frees" in cell.text)
    for chain in (0, 1, 16):
        assert str(round(ch06.remote_frees(chain)[0])) in shown


def test_inodes_of_624_bytes_and_what_a_node_keeps() -> None:
    assert [(layout.order, layout.objects) for layout in (calculate_sizes(624, 8, 0, cpus) for cpus in (2, 4))] == [(1, 13), (2, 26)]
    assert [kmalloc_layout(size, 0, 4).min_partial for size in (2048, 4096)] == [5, 6]


def test_the_per_cpu_chunk_of_the_recorded_6_1_is_61_pages() -> None:
    boots = (BOOK.parent / "tests/golden/recordings/linux-6.1").glob("boot.txt")
    log = "".join(path.read_text() for path in boots)
    found = re.search(r"percpu: Embedded 61 pages/cpu s(\d+) r(\d+) d(\d+)", log)
    assert found and tuple(map(int, found.groups())) == (212_992, 8192, 28_672) and sum(map(int, found.groups())) == 61 * PAGE_SIZE
