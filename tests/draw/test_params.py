"""Parameters come from links that anybody may edit: each bad value gets one clear sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.draw import Choice, Operations, Range, Seed, Text, Toggle
from mmsim.errors import InputError

LAB = {
    "alloc": "order:int [type:movable|unmovable] -- take a block",
    "free": "pfn:addr",
    "mmap": "addr:addr length:size [note:rest]",
}


@pytest.mark.parametrize(("param", "text", "sentence"), [
    (Range("order", 0, 10, 3), "11", "order: '11' is not between 0 and 10"),
    (Range("order", 0, 10, 3), "-1", "order: '-1' is not between 0 and 10"),
    (Range("order", 0, 10, 3), "many", "order: 'many' is not a number"),
    (Range("order", 0, 10, 3), "3.5", "order: '3.5' is not a whole number"),
    (Range("order", 0, 10, 3), "", "order: '' is not a number"),
    (Range("order", 0, 10, 3), True, "order: 'True' is not a number"),
    (Range("order", 0, 10, 3), "nan", "order: 'nan' is not a whole number"),
    (Range("order", 0, 10, 3), "1e999", "order: '1e999' is not a whole number"),
    (Range("ram", 64, 65536, 256, unit="MiB", log=True), "1", "ram: '1' is not between 64 and 65536 MiB"),
    (Range("share", 0.0, 1.0, 0.5), "nan", "share: 'nan' is not between 0.0 and 1.0"),
    (Choice("machine", ["toy16", "ref256"]), "vax", "machine: 'vax' is not one of toy16, ref256"),
    (Choice("bug", range(20)), "x", "bug: 'x' is not one of 0, 1, 2, 3, 4, 5, 6, 7, … (20 in all)"),
    (Toggle("boost"), "maybe", "boost: 'maybe' is neither on nor off"),
    (Seed(), "-1", "seed: '-1' is not between 0 and 4294967295"),
    (Text("log"), "a\nb", "log: one line only"),
    (Text("log"), "a\0b", "log: the text holds a NUL character"),
    (Text("log", limit=3), "four", "log: the text is longer than 3 characters"),
    (Text("log"), 7, "log: '7' is not text"),
    (Operations("ops", "", LAB), ["alloc"], "operations: \"['alloc']\" is not a list of operations"),
])  # fmt: skip
def test_a_bad_value_gets_one_sentence(param: Range, text: object, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        param.read(text)
    assert str(caught.value) == sentence


@given(st.text(max_size=30))
@settings(deadline=None)
def test_no_text_does_more_than_raise_input_error(text: str) -> None:
    for param in (
        Range("a", 0, 9),
        Range("b", 0.0, 1.0),
        Choice("c", [1, 2]),
        Toggle("d"),
        Seed(),
        Text("f"),
        Operations("g", "", LAB),
    ):
        try:
            value = param.read(text)
        except InputError:
            continue
        assert param.write(param.read(param.write(value))) == param.write(value)


def test_values_survive_the_address() -> None:
    for param, value in (
        (Range("a", 0, 9), 4), (Range("b", 0.0, 1.0), 0.25), (Choice("c", {1: "one", 2: "two"}), 2), (Toggle("d"), True),
        (Seed(), 7), (Text("f", lines=3), "a\nb"),
    ):  # fmt: skip
        assert param.read(param.write(value)) == value


def test_a_default_must_be_a_possible_value() -> None:
    with pytest.raises(InputError):
        Range("order", 0, 10, 12)
    with pytest.raises(ValueError, match="default list has errors"):
        Operations("ops", "fry 1", LAB)


@pytest.mark.parametrize(("line", "error"), [
    ("fry 1", 'no operation "fry"; there are: alloc, free, mmap'),
    ("alloc", "order is missing; usage: alloc order [type]"),
    ("alloc one", 'order: "one" is not a whole number'),
    ("alloc 1 hot", 'type: "hot" is not one of movable, unmovable'),
    ("alloc 1 movable 7", '"7" is too much; usage: alloc order [type]'),
    ("free 0x10Q", 'pfn: "0x10Q" is not a size such as 0x1000, 64K or 16M'),
    ("free -4", 'pfn: "-4" is not a size such as 0x1000, 64K or 16M'),
])  # fmt: skip
def test_a_bad_operation_is_reported_at_its_line_and_the_others_stay(line: str, error: str) -> None:
    operations = Operations("ops", "", LAB).read(f"# first\nalloc 3\n{line}\nfree 16")
    assert operations.problems() == [{"line": 3, "text": error}]
    assert [operation.line for operation in operations] == [2, 4]


def test_operations_read_sizes_words_and_names() -> None:
    first, second = Operations("ops", "", LAB).read(
        "mmap 0x7f0000 64K the heap, later\nalloc type=unmovable order=0x2  # four pages"
    )
    assert (first["addr"], first["length"], first["note"]) == (0x7F0000, 65536, "the heap, later")
    assert second.args == {"type": "unmovable", "order": 2}
    assert second.get("node", 0) == 0


def test_the_kernels_answer_joins_the_errors_of_the_reader() -> None:
    operations = Operations("ops", "", LAB).read("alloc 3\nfry\nfree 7")
    operations[1].fail("EINVAL: frame 0x7 is not allocated")
    assert [problem["line"] for problem in operations.problems()] == [2, 3]


def test_a_text_that_is_a_language_says_what_can_be_written() -> None:
    spec = Text("script", "a\nb", lines=4, usage={"add 1": "adds"}).spec()
    assert spec["verbs"] == [["add 1", "adds"]] and spec["lines"] == 4
    assert "verbs" not in Text("note", "x").spec()
