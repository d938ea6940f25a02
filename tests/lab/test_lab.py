"""The lab: scripts do what the kernel does, each step shows it, and nothing that a script says breaks the machine."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsim.lab import Lab, LabError
from mmsim.lab.syntax import parse
from mmsim.reference import toy16
from mmsim.rules import rules_for


def run(script: str, **options: int) -> Lab:
    lab = Lab(**options)                                # type: ignore[arg-type]
    lab.run(script)
    lab.check()
    return lab


def outcomes(script: str) -> list[str]:
    return [step.outcome for step in run(script).steps]


def test_a_page_is_there_after_its_first_write() -> None:
    lab = run('a = mmap(64K, rw, private|anon)\nwrite a+4K "hello"\nread a+4K 5')
    before, after, read = (step.state.process("main") for step in lab.steps)
    assert (before.rss_anon, before.entries, len(before.tables)) == (0, {}, 0)
    assert after.rss_anon == 1 and len(after.entries) == 1 and [table.level for table in after.tables] == [3, 2, 1]
    assert after.pgtables_bytes == 3 * 4096 and lab.steps[1].minflt == 1 and lab.steps[2].data == b"hello"
    (frame,) = lab.steps[1].state.frames.values()
    assert (frame.kind, frame.mapcount, frame.in_pagevec, frame.refcount) == ("anon", 1, True, 2)
    assert frame.mapped_at == (("main", next(iter(after.entries))),) and read.minflt == 1


def test_fork_shares_frames_until_somebody_writes() -> None:
    lab = run("""
        a = mmap(4K, rw, private|anon)
        write a "one"
        fork -> child
        child: read a 3
        child: write a "two"
        read a 3
        child: read a 3
        exit child
    """)
    shared = lab.steps[3].state
    (frame,) = shared.frames.values()
    assert frame.mapcount == 2 and {name for name, _ in frame.mapped_at} == {"main", "child"}
    assert lab.steps[4].faults == ("copy",) and len(lab.steps[4].state.frames) == 2
    assert [step.data for step in lab.steps[5:7]] == [b"one", b"two"]
    assert not lab.steps[7].state.process("child").alive and lab.steps[7].state.process("child").parent == "main"


def test_the_page_that_waits_in_a_pagevec_is_copied_for_nothing() -> None:
    """5.17's rule: one owner, but the batch holds a reference too."""
    script = "a = mmap(4K, rw, private|anon)\nwrite a\n{}\nmprotect(a, 4K, r)\nmprotect(a, 4K, rw)\nwrite a"
    waiting, drained = run(script.format("")), run(script.format("drain"))
    assert (waiting.steps[-1].faults, waiting.steps[-1].pgreuse) == (("copy",), 0)
    assert (drained.steps[-1].faults, drained.steps[-1].pgreuse) == (("reuse",), 1)


@pytest.mark.parametrize(("statement", "outcome"), [
    ("munmap(a+1, 4K)", "-1 EINVAL"), ("munmap(a, 0)", "-1 EINVAL"), ("mmap(0, rw, private|anon)", "-1 EINVAL"),
    ("mmap(4K, rw, anon)", "-1 EINVAL"), ("mmap(4K, rw, private)", "-1 EBADF"), ("mmap(-4096, rw, private|anon)", "-1 ENOMEM"),
    ("mmap(4K, rw, private|anon|fixed, at=a+16)", "-1 EINVAL"), ("mmap(4K, rw, private|anon|fixed_noreplace, at=a)", "-1 EEXIST"),
    ("mmap(TASK_SIZE, rw, private|anon)", "-1 ENOMEM"), ("mprotect(a, 64K, r)", "-1 ENOMEM"), ("mprotect(a, 4K, 16)", "-1 EINVAL"),
    ("madvise(a, 4K, 77)", "-1 EINVAL"), ("madvise(a+64K, 4K, dontneed)", "-1 ENOMEM"), ("mremap(a, 4K, 0)", "-1 EINVAL"),
    ("mremap(0x39000000, 4K, 8K, maymove)", "= 14"), ("msync(a, 4K, sync|async)", "-1 EINVAL"), ("mincore(a+1, 1)", "-1 EINVAL"),
    ("mincore(0, 4K)", "-1 ENOMEM"), ("mlock2(a, 4K, 4)", "-1 EINVAL"), ("mlockall(8)", "-1 EINVAL"), ("brk(0)", "= 0x555555559000"),
    ("read 0", "SIGSEGV (SEGV_MAPERR) at 0x0"), ("write a+16K", None), ("exec a", None), ("read 0x800000000000",
    "SIGSEGV (SI_KERNEL) at 0x0"),
    ("read -8", "SIGSEGV (SEGV_MAPERR) at 0xfffffffffffffff8")])
def test_a_bad_call_is_answered_as_linux_answers_it(statement: str, outcome: str | None) -> None:
    lab = run(f"a = mmap(16K, rw, private|anon)\n{statement}")
    got = lab.steps[-1].outcome
    assert got == outcome if outcome else got.startswith("SIGSEGV")


def test_under_later_rules_the_quirk_is_gone() -> None:
    machine = toy16()
    machine.process_table.user.rules = machine.rules = rules_for("6.1")
    lab = Lab(machine)
    lab.run("mremap(0x39000000, 4K, 8K, maymove)")
    assert lab.steps[0].outcome == "-1 EFAULT"


def test_a_hole_is_a_signal_of_its_own_kind() -> None:
    assert outcomes("""
        f = file("data", 4K)
        a = mmap(8K, r, shared, f)
        read a
        write a
        read a+4K
        exec a
        munmap(a, 4K)
        read a
    """)[1:] == ["'\\x00'", "SIGSEGV (SEGV_ACCERR) at 0x7ffff7ffd000", "SIGBUS (BUS_ADRERR) at 0x7ffff7ffe000",
                 "SIGSEGV (SEGV_ACCERR) at 0x7ffff7ffd000", "= 0", "SIGSEGV (SEGV_MAPERR) at 0x7ffff7ffd000"]


def test_files_show_their_modes() -> None:
    assert outcomes("""
        ro = file("data", 4K, ro)
        mmap(4K, rw, shared, ro)
        mmap(4K, rw, private, ro)
        wo = file("data", 4K, wo)
        mmap(4K, r, private, wo)
    """)[0::2] == ["-1 EACCES", "-1 EACCES"]


def test_limits_and_switches_take_effect() -> None:
    lab = run("""
        a = mmap(64K, rw, private|anon)
        rlimit memlock 16K
        mlock(a, 64K)
        mlock(a, 16K)
        sysctl max_map_count 3
        munmap(a+32K, 4K)
        sysctl overcommit_memory 2
        sysctl overcommit_ratio 0
        mmap(64M, rw, private|anon)
    """)
    assert [step.errno for step in lab.steps] == ["", "ENOMEM", "", "ENOMEM", "ENOMEM"]


def test_python_calls_are_steps_too() -> None:
    lab = Lab()
    a = lab.main.mmap(16 << 10, "rw", "private|anon")
    assert lab.main.mprotect(a, 4096, "PROT_READ") == 0 and lab.main.read(a, 4) == bytes(4)
    assert lab.main.fork("c") > 0 and lab["c"].write(a + 4096, b"x").faults == ("new page",)
    assert lab.main.mincore(a, 16 << 10) == b"\1\0\0\0" and lab.main.sbrk(4096) == 0x555555559000
    assert len(lab.steps) == 7 and lab.steps[0].text.startswith("mmap(0x0, 0x4000, 3, 0x22")
    with pytest.raises(LabError, match="no flag 'shiny'"):
        lab.main.mmap(4096, "rw", "private|shiny")
    lab.check()


@pytest.mark.parametrize(("script", "message"), [
    ("read nothing", "line 1, column 6: no variable or constant 'nothing'"), ("mmapp(4K)",
    "line 1, column 1: no call 'mmapp'; expected mmap"),
    ("munmap(4K)", "munmap needs length; expected munmap(addr, length)"), ("munmap(1, 2, 3)", "line 1, column 14: one argument too many"),
    ("munmap(1, length=2, length=3)", "length is given twice"), ("munmap(1, size=2)", "munmap has no argument 'size'"),
    ("child: read 0", "line 1: no process 'child'; expected main"), ("exit\nread 0", "line 2: process 'main' has ended"),
    ('munmap("a", 1)', "column 8: a string; expected a number"), ("file(4K, 4K)", 'a name in quotes'), ("read 0 0", "a size of 0"),
    ("read 0 -4", "the machine"), ('f = file("x", 4K)\nread f', "'f' is a file"), ("mmap(4K, r, shared, 7)", "no file"),
    ("sysctl swappiness 3", "no sysctl swappiness"), ("rlimit cpu 3", "no limit 'cpu'"), ("fork -> main",
    "there is a process 'main' already"),
    ("vfork -> c\nread 0", "waits until its vfork child"), ("madvise(0, 4K, dontned)", "dontneed")])
def test_what_makes_no_sense_is_said_with_its_line(script: str, message: str) -> None:
    lab = Lab()
    if script == "read 0 -4":
        lab.run("read 0 - 4")                           # one expression: an address
        assert lab.steps[0].signal is not None
        return
    with pytest.raises(LabError) as error:
        lab.run(script)
    assert message in str(error.value)
    lab.check()


@pytest.mark.parametrize(("script", "message"), [
    ("repeat 1000000000: read 0", "has made 30 steps"), ("a = 0\nrepeat 10T: a = a + 1", "has executed 20000 statements"),
    ("repeat 10T: repeat 0: read 0", "has executed 20000 statements"), ("a = mmap(1G, rw, private|anon|populate)", "up to 262144 pages"),
    ("a = mmap(1G, rw, private|anon|noreserve)\nmlock(a, 1G)", "up to 262144 pages"),
    ("a = mmap(1G, rw, private|anon|noreserve)\nread a 1G", "up to 262144 pages"),
    ("a = mmap(1G, rw, private|anon|noreserve)\nmlockall(current)", "pages"), ("mlockall(future)\nmmap(1G, rw, private|anon)", "pages"),
    ("mlockall(future)\nbrk(+1G)", "pages"), ("a = mmap(1G, rw, private|anon|noreserve)\nmincore(a, 1G)", "a vector of 262144 bytes"),
    ("a = mmap(1G, rw, private|anon|noreserve)\nrepeat 25: write a; a = a + 2M", "frames; the lab has 24"),
    ("\n".join(f"fork -> c{number}" for number in range(9)), "more than 4 processes")])
def test_a_script_without_end_or_measure_is_stopped(script: str, message: str) -> None:
    lab = Lab(max_steps=30, max_frames=24, max_processes=4)
    with pytest.raises(LabError, match=message):
        lab.run(script)
    lab.check()


def test_the_steps_before_a_mistake_are_kept() -> None:
    lab = Lab()
    with pytest.raises(LabError, match="line 3"):
        lab.run("a = mmap(4K, rw, private|anon)\nwrite a\nread b")
    assert [step.line for step in lab.steps] == [1, 2]


def test_a_script_is_checked_as_a_whole_before_it_runs() -> None:
    lab = Lab()
    with pytest.raises(LabError, match="line 2"):
        lab.run("a = mmap(4K, rw, private|anon)\nwrite")
    assert not lab.steps


def test_nothing_of_a_script_is_given_to_python() -> None:
    for text in ("__import__('os')", "().__class__", "lambda: 0", "a = [1]", "eval(1)", "open(0)"):
        with pytest.raises(LabError):
            Lab().run(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        parse(text)
    except LabError as error:
        assert str(error)


_NAMES = st.sampled_from(["a", "b", "f", "4K", "64K", "0", "1", "-1", "+8K", "0x7ffff7fff000", "TASK_SIZE", "rw", "r", "none",
                          "private|anon",
                          "shared|anon", "private|anon|fixed", "dontneed", "free", "wipeonfork", "maymove", "maymove|fixed",
                          "fixed", "sync",
                          "a+4K", "a-4K", "b+12K", "a+1", "onfault", "current", "future", "1G", "2M", "0xffffffffffffffff"])
_CALLS = st.sampled_from(["mmap", "munmap", "mprotect", "mremap", "brk", "sbrk", "mlock", "mlock2", "munlock", "mlockall", "munlockall",
                          "madvise", "msync", "mincore", "file"])


@st.composite
def statements(draw: st.DrawFn) -> str:
    """A line that often makes sense."""
    kind = draw(st.integers(0, 9))
    process = draw(st.sampled_from(["", "", "", "c: ", "d: "]))
    if kind < 2:
        fixed = draw(st.sampled_from(["", "|fixed, at=a", "|fixed, at=b+8K", "|populate", "|noreserve", "|growsdown"]))
        length = draw(st.sampled_from(["4K", "16K", "64K"]))
        shared = draw(st.sampled_from(["private|anon", "shared|anon"]))
        prot = draw(st.sampled_from(['rw', 'r', 'none', 'rwx']))
        return f"{process}{draw(st.sampled_from('ab'))} = mmap({length}, {prot}, {shared}{fixed})"
    if kind < 5:
        return f"{process}{draw(_CALLS)}({', '.join(draw(st.lists(_NAMES, max_size=5)))})"
    if kind < 8:
        word, size = draw(st.sampled_from(["read", "write", "exec"])), draw(st.sampled_from(["", " 8K", " 1", ' "text"', " 0"]))
        return f"{process}{word} {draw(_NAMES)}{size if word != 'exec' else ''}"
    return process + draw(st.sampled_from(["fork -> c", "fork -> d", "vfork -> d", "exit", "exit c", "drain", "repeat 3: read a",
                                           "b = a + 4K", "sysctl max_map_count 6", "rlimit memlock 32K",
                                           "sysctl overcommit_memory 2", "c ="]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(statements(), max_size=25))
def test_no_script_raises_anything_but_the_labs_own_error_and_the_machine_stays_sound(lines: list[str]) -> None:
    lab = Lab(max_steps=60, max_frames=200, max_processes=4)
    lab.run("a = mmap(64K, rw, private|anon)\nb = mmap(16K, rw, shared|anon)")
    for line in lines:
        try:
            lab.run(line, **{"a": 0x7FFFF7FEF000, "b": 0x7FFFF7FEB000})
        except LabError as error:
            assert str(error)
        lab.check()
