"""The figures of chapter 3 tell what the mechanism does, for the reader's parameters too, and refuse nonsense in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsim.draw.figure import compute
from mmsim.errors import InputError
from mmsim.figures import ch03
from mmsim.figures.ch03.demand_paging import AREA, Live
from mmsim.figures.ch03.error_code_machine import ENTRIES, decide, error_code, why_impossible
from mmsim.figures.ch03.not_present import KINDS
from mmsim.figures.ch03.page_table_tax import STRIDES, addresses, tables_of
from mmsim.figures.ch03.the_walk import ACCESS, CPUS, Space, read_address
from mmsim.figures.ch03.tlb_switch import Turns, kept_share
from mmsim.kernel.fault_entry import FaultContext, decide_fault
from mmsim.paging.address import table_cost
from mmsim.paging.pte import kind
from mmsim.paging.walk import Control
from mmsim.process.populate import Access, Outcome
from tests.figures.whole import sentences

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "recordings"
AUTOPSY = GOLDEN / "linux-5.17-userland/ch11_autopsy.jsonl.gz"


# -- the walk ---------------------------------------------------------------------------------------------------

def test_the_walk_ends_in_the_page_and_a_second_access_needs_no_word() -> None:
    said = sentences(ch03.the_walk())
    assert said[0].startswith("4 loads lead from CR3") and said[-1].endswith("the walk reads 0 words instead of 4.")


@pytest.mark.parametrize(("page", "loads"), [(1, 4), (2, 3), (3, 2)])
def test_a_large_page_ends_the_walk_earlier(page: int, loads: int) -> None:
    assert sentences(ch03.the_walk(page=page))[0].startswith(f"{loads} loads")


@pytest.mark.parametrize(("bits", "code"), [
    ("clear pmd US", "0x5"), ("clear pud P", "0x4"), ("set pgd rsvd", "0xd"), ("write pte 0", "0x4"), ("clear pte P\nset pte G", "0x4"),
])
def test_one_bit_at_any_level_ends_a_users_read(bits: str, code: str) -> None:
    assert f"error code {code}" in sentences(ch03.the_walk(bits=bits))[0]


def test_nx_wins_from_above_and_rw_needs_all_levels() -> None:
    assert "0x15" in sentences(ch03.the_walk(access="x", bits="clear pte NX\nset pgd NX"))[0]
    assert "allowed. Of" in sentences(ch03.the_walk(access="x", bits="clear pte NX"))[0]
    assert "0x7" in sentences(ch03.the_walk(access="w", bits="set pte RW\nclear pud RW"))[0]
    assert "allowed. Of" in sentences(ch03.the_walk(access="w", bits="set pte RW"))[0]


def test_a_page_that_no_user_may_touch_is_the_kernels() -> None:
    space = Space(0x400000, 1, Control())
    assert (space.outcome("r", True), space.outcome("r", False)) == (-1, 1)
    ops = ch03.the_walk.params[-1].read("clear pmd US")
    space.edit(ops)
    assert (space.outcome("r", True), space.outcome("r", False)) == (5, -1)


def test_asking_changes_neither_tables_nor_tlb() -> None:
    space = Space(0x7FFFF7FFDE06, 1, Control())
    before = space.steps()
    for access in ACCESS:
        for user in (True, False):
            space.outcome(access, user)
    assert space.steps() == before and space.cpu.tlb.misses == 0


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("page", [1, 2, 3])
@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("mode", ["user", "kernel"])
def test_every_setting_tells_a_whole_story(cpu: str, page: int, access: str, mode: str) -> None:
    payload = json.loads(compute(ch03.the_walk.name, {"cpu": cpu, "page": page, "access": access, "mode": mode}))
    assert "error" not in payload and 5 <= len(payload["frames"]) <= 10


def test_the_kernels_own_addresses_are_walked_in_the_kernels_own_tables() -> None:
    said = sentences(ch03.the_walk(address="ffff888000200000", mode="kernel"))
    assert "physical address 0x200000" in said[0] and "allowed. Of" in said[0]


def test_an_address_in_the_gap_is_no_page_fault() -> None:
    said = sentences(ch03.the_walk(address="0x800000000000"))
    assert len(said) == 1 and "not canonical" in said[0] and "#GP" in said[0]


def test_an_address_is_typed_as_a_number_or_as_four_indexes() -> None:
    assert read_address("255 511 447 509") == read_address("0x7ffff7ffd000") == read_address("7ffff7ffd000")
    with pytest.raises(InputError):
        read_address("255 511 447")
    assert "neither an address" in json.loads(compute(ch03.the_walk.name, {"address": "here"}))["error"]


@pytest.mark.parametrize(("bits", "line", "answer"), [
    ("set pte RW\nset p4d RW", 2, "p4d"), ("clear pte X", 1, "bit"), ("write pud 0\nset pte RW", 2, "reaches no PTE"),
    ("write pte zero", 1, "no number"),
])
def test_a_change_that_cannot_be_made_is_answered_at_its_line(bits: str, line: int, answer: str) -> None:
    payload = json.loads(compute(ch03.the_walk.name, {"bits": bits}))
    problem = payload["problems"]["bits"][0]
    assert problem["line"] == line and answer in problem["text"] and payload["frames"]


# -- the error-code machine -------------------------------------------------------------------------------------

def test_eighteen_codes_of_five_bits_can_occur_and_the_others_have_a_reason() -> None:
    found = ch03.reachable_codes()
    assert len(found) == 18
    assert all(bool(why_impossible(code)) != (code in found) for code in range(32))


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("mode", ["user", "kernel"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_access_to_every_entry_has_an_outcome(access: str, mode: str, entry: str) -> None:
    for ac in (False, True):
        payload = json.loads(compute(ch03.error_code_machine.name, {"access": access, "mode": mode, "entry": entry, "ac": ac}))
        assert "error" not in payload and 2 <= len(payload["frames"]) <= 14


@pytest.mark.parametrize(("area", "access", "entry", "outcome"), [
    ("absent", "w", "empty", "SEGV_MAPERR"), ("rw", "w", "empty", "do_anonymous_page()"), ("rw", "w", "readonly", "do_wp_page()"),
    ("r", "w", "empty", "SEGV_ACCERR"), ("w", "r", "empty", "do_anonymous_page()"), ("none", "r", "protnone", "SEGV_ACCERR"),
    ("rw", "r", "swap", "do_swap_page()"), ("rw", "x", "readonly", "SEGV_ACCERR"), ("rw", "r", "kernel", "SEGV_ACCERR"),
    ("rw", "r", "reserved", "corrupted page table"),
])
def test_the_area_decides_what_the_same_code_means(area: str, access: str, entry: str, outcome: str) -> None:
    assert outcome in sentences(ch03.error_code_machine(area=area, access=access, entry=entry))[0]


@pytest.mark.parametrize(("rights", "before", "access"), [
    ("rw", (), Access.WRITE), ("rw", (), Access.READ), ("rw", (Access.READ,), Access.WRITE), ("r", (), Access.WRITE),
    ("none", (), Access.READ),
])
def test_the_machine_goes_where_a_process_goes(rights: str, before: tuple[Access, ...], access: Access) -> None:
    live = Live()
    if rights != "rw":
        live.mprotect(rights)
    for one in before:
        live.touch(0, one)
    word = live.process.space.pte(AREA)
    touch = live.touch(0, access)
    verdict = decide_fault(AREA, touch.error_code, FaultContext(user_mode=True))
    outcome = decide(touch.error_code, word, rights, verdict).outcome
    assert outcome.split(":")[0] in [call.name for call in live.calls] or touch.code and touch.code in outcome


def test_the_codes_that_the_chapter_works_out() -> None:
    entry = {name: word for name, (_, word) in ENTRIES.items()}
    codes = [error_code("r", True, 0, Control()), error_code("w", True, 0, Control()), error_code("x", True, entry["readonly"], Control()),
             error_code("w", False, 0, Control()), error_code("w", True, entry["readonly"], Control()),
             error_code("w", True, entry["swap"], Control())]
    assert codes == [4, 6, 0x15, 2, 7, 6]


def test_the_question_does_not_show_its_answer() -> None:
    frames = ch03.error_code_machine().frames()
    asked = next(frame for frame in frames if frame.ask)
    assert not any("moving" in shape.get("c", "") for shape in asked.scene.shapes.values())


# -- the tax ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("pattern", ["stride", "dense", "random"])
def test_the_tables_drawn_are_those_that_exist(stride: str, pattern: str) -> None:
    for level in (1, 2):
        addrs = addresses(pattern, max(STRIDES[stride], 2 << 20 if level == 2 else 0), level, 3)
        assert tables_of(addrs, level).pgtables_bytes == table_cost(addrs, level).pages * 4096
        payload = json.loads(compute(ch03.page_table_tax.name, {"pattern": pattern, "stride": stride, "page": level}))
        assert "error" not in payload


def test_a_distance_of_2_mib_costs_a_table_for_each_page() -> None:
    said = sentences(ch03.page_table_tax())
    assert "32 PTE, 1 PMD, 1 PUD tables, 34 in all" in said[0]
    assert "64 PTE" not in said[0] and "96 in all" in said[11]


# -- the TLB ----------------------------------------------------------------------------------------------------

def test_beyond_its_reach_a_tlb_loses_random_access_slowly_and_a_loop_at_once() -> None:
    inside, outside = ch03.measure_reach(4, 1), ch03.measure_reach(8, 1)
    assert inside.hit_rate > 0.98 and 0.7 < outside.hit_rate < 0.8
    assert ch03.measure_reach(8, 1, "loop").hit_rate == 0
    assert ch03.measure_reach(32, 2).hit_rate == 1


def test_a_cache_of_tables_leaves_one_load_of_four() -> None:
    with_it, without = ch03.measure_reach(32, 1), ch03.measure_reach(32, 1, walk_cache=False)
    assert with_it.loads == with_it.misses and without.loads == 4 * without.misses and with_it.misses == without.misses


@pytest.mark.parametrize("pattern", ["random", "loop"])
@pytest.mark.parametrize("page", [1, 2])
def test_every_working_set_is_measured(pattern: str, page: int) -> None:
    payload = json.loads(compute(ch03.tlb_reach.name, {"pattern": pattern, "page": page, "size": "32"}))
    assert "error" not in payload and len(payload["frames"]) == 13


def test_six_processes_keep_their_entries_and_seven_lose_all() -> None:
    assert [kept_share(number, True) for number in range(2, 9)] == [1, 1, 1, 1, 1, 0, 0]
    assert [kept_share(number, False) for number in range(2, 9)] == [0] * 7


def test_the_seventh_process_takes_the_first_ones_slot() -> None:
    run = Turns(7, 4, True)
    assert [run.turn(process).asid for process in range(7)] == [1, 2, 3, 4, 5, 0, 1]
    assert run.owners() == [5, 6, 1, 2, 3, 4]


@pytest.mark.parametrize("processes", range(2, 9))
@pytest.mark.parametrize("pcid", [True, False])
def test_every_number_of_processes_is_played(processes: int, pcid: bool) -> None:
    payload = json.loads(compute(ch03.tlb_switch.name, {"processes": processes, "pcid": pcid, "pages": 16}))
    assert "error" not in payload and len(payload["frames"]) == 2 * processes + 2


# -- not present ------------------------------------------------------------------------------------------------

def test_the_cpu_answers_all_five_alike_and_the_kernel_tells_them_apart() -> None:
    assert {error_code("r", True, one.word, Control(), one.level) for one in KINDS} == {4}
    assert [kind(one.word) for one in KINDS] == ["none", "none", "swap", "migration", "protnone"]


@pytest.mark.parametrize("word", ["0", "0x8000000012345867", "ffffffffffffffff", "0x0000000000000060", "0xf7fffffffdb9600"])
def test_any_word_is_taken_apart(word: str) -> None:
    payload = json.loads(compute(ch03.not_present.name, {"word": word}))
    assert "error" not in payload and len(payload["frames"]) == 7


@pytest.mark.parametrize("word", ["x", "1ffffffffffffffff"])
def test_a_word_that_is_none_is_refused_in_a_sentence(word: str) -> None:
    assert word in json.loads(compute(ch03.not_present.name, {"word": word}))["error"]


# -- demand paging ----------------------------------------------------------------------------------------------

def test_reading_costs_tables_and_writing_costs_pages() -> None:
    live = Live()
    states = [live.state()]
    for offset, access in ((0, Access.READ), (0, Access.WRITE), (4096, Access.WRITE), (4096, Access.READ), (2 << 20, Access.WRITE)):
        assert live.touch(offset, access).outcome is Outcome.OK
        states.append(live.state())
    live.process.check()
    assert [state.vmpte >> 10 for state in states] == [0, 12, 12, 12, 12, 16]
    assert [state.rss >> 10 for state in states] == [0, 0, 4, 8, 8, 12]
    assert [state.minflt for state in states] == [0, 1, 2, 3, 3, 4]


def test_the_path_is_the_kernels() -> None:
    live = Live()
    live.touch(0, Access.READ)
    path = [call.name for call in live.calls]
    wanted = ["exc_page_fault()", "do_user_addr_fault()", "access_error()", "handle_mm_fault()", "do_anonymous_page()",
              "mm_account_fault()"]
    assert [name for name in path if name in wanted] == wanted
    live.touch(0, Access.WRITE)
    assert {"do_wp_page()", "wp_page_copy()", "ptep_clear_flush()"} <= {call.name for call in live.calls}
    live.touch(0, Access.READ)
    assert live.calls == []


@pytest.mark.parametrize(("ops", "answer"), [
    ("write 16M", "SIGSEGV, SEGV_MAPERR"), ("mprotect r\nwrite 0", "SEGV_ACCERR"), ("write 0\nfetch 0", "0x15"), ("read 1G", "#GP"),
    ("mprotect none\nread 0", "0x4 (not present USER), and the area does not allow it"),
])
def test_an_access_that_ends_in_a_signal_says_why(ops: str, answer: str) -> None:
    assert answer in sentences(ch03.demand_paging(ops=ops))[-1]


@pytest.mark.parametrize(("ops", "line", "answer"), [("reed 0", 1, "no operation"), ("read 0\n" * 30, 25, "more than 24")])
def test_a_line_that_cannot_be_run_says_so(ops: str, line: int, answer: str) -> None:
    payload = json.loads(compute(ch03.demand_paging.name, {"ops": ops}))
    problem = payload["problems"]["ops"][0]
    assert "error" not in payload and problem["line"] == line and answer in problem["text"]


def test_pages_hidden_by_prot_none_are_there_afterwards() -> None:
    said = sentences(ch03.demand_paging(ops="write 0\nmprotect none\nread 0\nmprotect rw\nread 0"))
    assert "SEGV_ACCERR" in said[4] and "no fault" in said[-1]


def test_nothing_but_a_mapping_is_a_story_too() -> None:
    assert len(sentences(ch03.demand_paging(ops=""))) == 1


# -- recordings -------------------------------------------------------------------------------------------------

def test_true_faults_49_times_and_segv_once_more() -> None:
    faults = ch03.recorded_faults(AUTOPSY, "true")
    assert len(faults) == 49 and sum(not fault.user for fault in faults) == 3
    other = ch03.recorded_faults(AUTOPSY, "segv")
    assert len(other) == 50 and (other[-1].addr, other[-1].code, other[-2].code) == (0x1234, 6, 6)
    with pytest.raises(InputError):
        ch03.recorded_faults(AUTOPSY, "no-such-program")


def test_every_recorded_code_is_one_that_the_model_can_raise() -> None:
    assert ch03.recorded_codes(AUTOPSY) == {0, 2, 3, 4, 6, 7, 0x14} <= set(ch03.reachable_codes())


@pytest.mark.parametrize("release", ["5.17", "6.1"])
def test_vmpte_of_a_recorded_process_follows_from_its_pages(release: str) -> None:
    process = ch03.own_process("recording", GOLDEN / f"linux-{release}/pt.json")
    assert not process.live and process.vmpte_kib == process.cost.pages * 4 == 72
    assert process.features["nx"] and not process.features["pcid"] and "pdpe1gb" not in process.features


def test_the_readers_own_process_is_read_where_there_is_a_proc(tmp_path: Path) -> None:
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "status").write_text("Name:\tx\nVmPTE:\t      20 kB\n")
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: nx pcid\nbugs\t\t: x\n\nflags\t\t: la57\n")
    (proc / "maps").write_text("00400000-00402000 r--p 00000000 00:00 0\n7fffffffe000-7ffffffff000 rw-p 00000000 00:00 0 [stack]\n"
                               "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n")
    with (proc / "pagemap").open("wb") as pagemap:
        for addr, word in ((0x400000, 1 << 63), (0x401000, 0), (0x7FFFFFFFE000, 0x81 << 56)):
            pagemap.seek(addr >> 12 << 3)
            pagemap.write(word.to_bytes(8, "little"))
    process = ch03.own_process(tmp_path, GOLDEN / "linux-5.17/pt.json")
    assert process.live and process.present == [0x400000, 0x7FFFFFFFE000] and not process.shown_frames
    assert process.cost == (2, 2, 2, 0) and "4 kB less" in process.tables_text()
    assert process.features["pcid"] and not process.features["la57"] and len(process.problems) == 1
