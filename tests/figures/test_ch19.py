"""The figures of chapter 19 show what the mechanism does, in both widths, for any input a reader may give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.brk import BrkArea
from mmsim.boot.direct_map import DirectMap
from mmsim.boot.e820 import E820Entry, E820Table
from mmsim.boot.memblock import Memblock
from mmsim.draw import BoundFigure
from mmsim.figures import ch19
from mmsim.figures.ch19.accounting import CATEGORIES, coalesce, totals
from mmsim.figures.ch19.firmware import boot_pc, pc_map, pc_memblock
from mmsim.figures.ch19.memory_cost import hvo_saving, leaf_table_pages
from mmsim.recorded import read_recording
from mmsim.units import GIB, MIB
from tests.figures.whole import named, nothing_outside_of_the_sheet, one_story_in_both_widths

RECORDINGS = Path(__file__).resolve().parents[1] / "golden" / "recordings"
VARIANTS: list[BoundFigure] = [
    ch19.boot_film(ram="64M", initrd="0"), ch19.boot_film(ram="5G", holes=2, nodes=3, crashkernel="512M-2G:64M,2G-:128M"),
    ch19.boot_film(ram="8G", nodes=4, crashkernel="1G,high"), ch19.boot_film(ram="1G", crashkernel="nonsense"),
    ch19.memblock_sandbox(direction="bottom-up", each="on"),
    ch19.memblock_sandbox(slots="4", calls="add 0 2G\nreserve 0x7fff0000 64K\nalloc 20K align=4K"),
    ch19.memblock_sandbox(calls=""),
    ch19.memblock_sandbox(calls="add 0 1G node=0\nadd 1G 1G node=1\nalloc 2M align=2M node=1\nalloc 1G node=0 align=4K"),
    ch19.e820_surgery(entries="usable 0 1G"), ch19.e820_surgery(entries=""), ch19.e820_surgery(trim="off"),
    ch19.e820_surgery(entries="usable 0 4G\nsoft 1G 2G\npmem 1G 2G\nnvs 0 0xffffffffffffffff"),
    ch19.direct_map_ladder(pages="2M"), ch19.direct_map_ladder(pages="1G", ram="512G"), ch19.direct_map_ladder(ram="256M", pages="2M"),
    ch19.memory_cost(ram="256M"), ch19.memory_cost(ram="64G", hvo="off"),
]  # fmt: skip


@pytest.mark.parametrize("figure", VARIANTS, ids=named)
def test_a_readers_parameters_make_a_whole_figure_too(figure: BoundFigure) -> None:
    one_story_in_both_widths(figure)
    nothing_outside_of_the_sheet(figure)


# -- the boot film ---------------------------------------------------------------------------------------------


def recorded(path: str) -> tuple[str, int]:
    recording = read_recording(RECORDINGS / path)
    line = next(line for line in recording.messages() if line.startswith("Memory:"))
    found = re.search(r"MemTotal: +(\d+) kB", recording.section("/proc/meminfo"))
    assert found
    return line, int(found[1])


@pytest.mark.parametrize("ram, path", [
    ("64M", "boots-5.17/m64.txt"), ("256M", "linux-5.17/boot.txt"), ("512M", "boots-5.17/m512.txt"), ("5G", "boots-5.17/m5g.txt"),
    ("8G", "boots-5.17/m8g.txt"),
])  # fmt: skip
def test_the_film_prints_the_balance_of_the_recorded_machine_and_reaches_its_memtotal(ram: str, path: str) -> None:
    line, total = recorded(path)
    frames = ch19.boot_film(ram=ram).frames()
    shown = {shape["s"] for frame in frames for shape in frame.scene.shapes.values() if shape["t"] == "text"}
    available = line.split(" available")[0]
    assert any(text.startswith(available) for text in shown)
    assert f"MemTotal is {total} kB" in frames[-1].say
    assert f"MemTotal says {total} kB" in frames[0].say


def test_the_film_says_how_much_the_hand_over_gives() -> None:
    ask = next(
        frame.ask for frame in ch19.boot_film().frames() if frame.ask and "page allocator get" in frame.ask.question
    )
    assert str(ask.answer).replace("\u202f", "") == "235188 KiB"


@pytest.mark.parametrize("values, words", [
    ({"ram": "64M", "initrd": "32M"}, "does not fit"), ({"crashkernel": "64M quiet"}, "without spaces"),
])  # fmt: skip
def test_the_film_answers_impossible_machines_with_a_sentence(values: dict[str, str], words: str) -> None:
    assert words in ch19.boot_film(**values).payload()["error"]


def test_the_crash_kernel_lies_as_high_as_possible_below_4_gib() -> None:
    machine = boot_pc(5 * GIB, crashkernel="256M")
    assert machine.crashkernel is not None
    assert machine.crashkernel.base == 2800 * MIB  # as in the recorded crashrange boot, which has the same memory


def test_every_byte_of_ram_has_one_owner_or_none() -> None:
    for ram, nodes in ((256 * MIB, 1), (2 * GIB, 3)):
        machine = boot_pc(ram, nodes=nodes, initrd=4 * MIB)
        last = machine.phases[-1]
        spans = [(region.base, region.end) for region in last.memory]
        owned = coalesce(last.owners)
        assert all(a[1] <= b[0] for a, b in zip(owned, owned[1:], strict=False))
        managed = sum(zone.managed_pages for zone in machine.zones) * 4096
        tables = len(machine.start.vmalloc_tables) * 4096
        known = sum(end - start for start, end in spans)
        lent = known - sum(totals(last.owners, spans).values())
        assert managed - tables == lent


def test_no_kind_of_owner_of_the_recorded_machine_is_left_to_others_by_mistake() -> None:
    kinds = {kind.key for _, _, kind in coalesce(boot_pc(5 * GIB, crashkernel="64M", initrd=MIB).phases[-2].owners)}
    assert kinds >= {kind.key for kind in CATEGORIES} - {"cma"}


# -- memblock --------------------------------------------------------------------------------------------------


def test_the_sandbox_gives_the_kernels_addresses() -> None:
    says = [frame.say for frame in ch19.memblock_sandbox().frames()]
    assert any("is 0xfc0000" in say for say in says)
    assert any("is 0xd00000" in say for say in says)
    assert any("is 0xca0000" in say for say in says)
    assert any("is 0x780000" in say for say in says)


def test_exercise_1_in_the_sandbox() -> None:
    figure = ch19.memblock_sandbox(calls="add 0 2G\nreserve 0x7fff0000 64K\nalloc 20K align=4K\nalloc 1M align=2M")
    says = " ".join(frame.say for frame in figure.frames())
    assert "is 0x7ffeb000" in says and "is 0x7fe00000" in says


def test_a_full_array_is_enomem_until_it_may_grow() -> None:
    calls = "add 1M 15M\n" + "".join(f"reserve {n}M 64K\n" for n in (1, 2, 3, 4, 6)) + "resize\nreserve 6M 64K\n"
    figure = ch19.memblock_sandbox(slots="4", calls=calls)
    figure.frames()
    problems = figure.payload()["problems"]["calls"]
    assert [problem["line"] for problem in problems] == [6]
    assert "-ENOMEM" in problems[0]["text"]
    last = figure.frames()[-1].scene.shapes
    texts = [shape["s"] for shape in last.values() if shape["t"] == "text"]
    assert "reserved: 6 of 8" in texts and "memory: 1 of 4" in texts  # five reservations and the array itself


def test_the_sandbox_reports_bad_lines_and_goes_on() -> None:
    figure = ch19.memblock_sandbox(calls="add 1M 15M\nmalloc 3\nalloc\nalloc 1G\nadd 2M zero\nalloc 1M")
    frames = figure.frames()
    assert [problem["line"] for problem in figure.payload()["problems"]["calls"]] == [2, 3, 4, 5]
    assert "is 0xf00000" in frames[-1].say


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(
    st.sampled_from(["add", "remove", "reserve", "free", "nomap", "hotplug", "alloc", "limit", "resize"]),
    st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 26), st.integers(0, 1 << 25),
    st.sampled_from(["", "align=64K", "node=1", "max=4M"]),
), max_size=25), st.sampled_from(["top-down", "bottom-up"]), st.sampled_from(["4", "8", "128"]))  # fmt: skip
def test_no_list_of_calls_breaks_the_sandbox(
    calls: list[tuple[str, int, int, str]], direction: str, slots: str
) -> None:
    lines = []
    for verb, base, size, option in calls:
        lines.append(
            {"alloc": f"alloc {size} {option}", "limit": f"limit {base}", "resize": "resize"}.get(
                verb, f"{verb} {base} {size}"
            )
        )
    figure = ch19.memblock_sandbox(calls="\n".join(lines), direction=direction, slots=slots)
    assert "error" not in figure.payload(["narrow"])


# -- e820 ------------------------------------------------------------------------------------------------------


def test_the_surgery_ends_with_the_map_that_the_kernel_makes() -> None:
    frames = ch19.e820_surgery().frames()
    texts = [shape["s"] for shape in frames[-2].scene.shapes.values() if shape["t"] == "text"]
    table = E820Table(
        [
            E820Entry(a, b - a, t)
            for a, b, t in (
                (0, 5 * MIB, 1),
                (3 * MIB, 4 * MIB, 2),
                (0x380000, 0x480000, 3),
                (4 * MIB, 7 * MIB, 1),
                (6 * MIB, 6400 * 1024, 5),
                (7 * MIB, 8 * MIB, 2),
            )
        ]
    )
    table.update_table()
    assert [text for text in texts if text.startswith("BIOS-e820")] == table.text("BIOS-e820").splitlines()
    assert "640 KiB" in frames[-1].say


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["usable", "reserved", "acpi", "nvs", "unusable", "pmem", "soft"]),
            st.integers(0, 64),
            st.integers(0, 64),
        ),
        max_size=12,
    )
)
def test_no_map_breaks_the_surgery(entries: list[tuple[str, int, int]]) -> None:
    text = "\n".join(f"{kind} {min(a, b)}M {max(a, b)}M" for kind, a, b in entries)
    figure = ch19.e820_surgery(entries=text)
    payload = figure.payload(["wide"])
    assert "error" not in payload
    empty = [line for line, (_, a, b) in enumerate(entries, 1) if a == b]
    assert [problem["line"] for problem in payload.get("problems", {}).get("entries", [])] == empty


# -- the ladder ------------------------------------------------------------------------------------------------


def test_the_ladders_tables_lie_where_the_recorded_machine_logged_them() -> None:
    log = read_recording(RECORDINGS / "boots-5.17/m5g.txt").messages()
    logged = [
        re.search(r"\[0x0*([0-9a-f]+)-", log[n + 1])
        for n, line in enumerate(log)
        if "alloc_low_pages" in line and "phys_alloc" in line
    ]
    spans = [shape.get("tip", "") for shape in ch19.direct_map_ladder(pages="2M").frames()[-1].scene.shapes.values()]
    lowest, highest = min(found[1] for found in logged if found), max(found[1] for found in logged if found)
    assert len(logged) == 3
    assert any(tip == f"3 page tables: 0x{lowest}-{int(highest, 16) + 4095:#x}" for tip in spans)


def test_the_ladder_refuses_what_would_take_too_long() -> None:
    assert "4 KiB pages for so much RAM" in ch19.direct_map_ladder(pages="4k", ram="64G").payload()["error"]


def test_a_step_never_takes_more_tables_than_the_steps_before_it_have_room_for() -> None:
    for pages, ram in (("4k", 3 * GIB), ("4k", 1 * GIB), ("2M", 64 * GIB), ("1G", 512 * GIB)):
        memblock = pc_memblock(ram)
        memblock.reserve(16 * MIB, 16 * MIB)
        brk = BrkArea(32 * MIB, 32 * MIB + 65536)
        direct = DirectMap(memblock, brk, gbpages=pages == "1G", pse=pages != "4k")
        brk.reserve(memblock)
        direct.init_mem_mapping(memblock.end_of_DRAM() >> 12)
        room = 0
        for step in direct.steps[1:]:
            assert sum(table.source == "memblock" for table in step.tables) <= room // 4096
            room += sum(
                max(0, min(end, step.end) - max(start, step.start)) for start, end, _ in memblock.for_each_mem_range()
            )


# -- what it costs ---------------------------------------------------------------------------------------------


def test_the_cost_adds_up_and_the_memmap_is_a_sixty_fourth() -> None:
    assert [leaf_table_pages(16 * GIB, size) for size in (4096, 2 * MIB, GIB)] == [8192, 16, 1]
    assert hvo_saving(16 * GIB) == 192 * MIB
    frames = ch19.memory_cost().frames()
    assert "256 MiB of that are struct pages" in frames[0].say
    assert "4194304 of them, in 65536 frames" in frames[1].say


def test_the_machines_of_the_figures_have_the_recorded_firmware_map() -> None:
    for ram, path in (
        (64 * MIB, "boots-5.17/m64.txt"),
        (256 * MIB, "linux-5.17/boot.txt"),
        (8 * GIB, "boots-5.17/m8g.txt"),
    ):
        logged = E820Table.from_dmesg(read_recording(RECORDINGS / path).console)
        assert [str(entry) for entry in pc_map(ram)] == [str(entry) for entry in logged]


def test_holes_are_cut_out_of_ram_and_do_not_touch_each_other() -> None:
    table, _ = E820Table.from_firmware(pc_map(GIB, 3))
    usable = [entry for entry in table if entry.type == 1 and entry.addr >= MIB]
    assert len(usable) == 4
    memblock = Memblock()
    for entry in usable:
        memblock.add(entry.addr, entry.size)
    assert len(memblock.memory) == 4


# -- the measurement -------------------------------------------------------------------------------------------


def test_the_measured_shares_are_those_of_the_recorded_machines() -> None:
    ram, share = ch19.recorded_shares(RECORDINGS)
    assert len(ram) == 10 and ram == sorted(ram)
    for size, recorded_share in zip(ram, share, strict=True):
        if size not in (2048, 4096):  # several nodes, several CPUs
            modelled = 100 * sum(ch19.missing_by_kind(int(size) * MIB)) / (size * 1024)
            assert modelled == pytest.approx(recorded_share, abs=1e-9)
