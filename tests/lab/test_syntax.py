"""The lab's language: every statement is read as it is meant, and every mistake is answered with its place."""

from __future__ import annotations

import pytest

from mmsim.lab import words
from mmsim.lab.syntax import (
    MAX_LINE,
    MAX_LINES,
    Access,
    Assign,
    Call,
    Drain,
    Exit,
    Expression,
    Fork,
    LabError,
    Repeat,
    Setting,
    number,
    parse,
)


def one(text: str) -> object:
    (statement,) = parse(text)
    return statement.action


@pytest.mark.parametrize(("text", "kind"), [
    ("a = mmap(64K, rw, private|anon)", Assign), ("b = a + 4K", Assign), ("munmap(a, 4K)", Call), ('write a+4K "hello"', Access),
    ("read a 8", Access), ("exec a", Access), ("fork -> child", Fork), ("vfork -> c", Fork), ("exit child", Exit), ("exit", Exit),
    ("drain", Drain), ("rlimit memlock 64K", Setting), ("sysctl max_map_count 8", Setting), ("repeat 3: read a", Repeat),
    ("child: read a", Access), ("drain = 3", Assign), ("read = 3", Assign)])
def test_every_kind_of_statement_is_known(text: str, kind: type) -> None:
    assert isinstance(one(text), kind)


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("0x1000", 4096), ("4K", 4096), ("4k", 4096), ("2MiB", 2 << 20),
                                             ("1G", 1 << 30), ("3TB", 3 << 40), ("0x10K", 16384), ("0XFF", 255)])
def test_numbers_have_suffixes(text: str, value: int) -> None:
    assert number(text) == value


def test_comments_and_empty_lines_are_nothing() -> None:
    statements = parse("\n# nothing\n\n  read a   # one byte\n")
    assert [(statement.text, statement.line) for statement in statements] == [("read a", 4)]


def test_a_hash_inside_a_string_is_no_comment() -> None:
    action = one('write a "no # comment"')
    assert isinstance(action, Access) and action.data == b"no # comment"


@pytest.mark.parametrize(("text", "data"), [(r'"a\n"', b"a\n"), (r'"\x00\xff"', b"\x00\xff"), (r'"\"\\"', b'"\\'), ('"é"', "é".encode()),
                                            ('""', b"")])
def test_strings_are_bytes(text: str, data: bytes) -> None:
    action = one(f"write a {text}")
    assert isinstance(action, Access) and action.data == data


def test_statements_of_one_line_belong_to_its_process() -> None:
    assert [(s.process, s.text) for s in parse("child: read a; write a \"x\"")] == [("child", "read a"), ("child", 'write a "x"')]
    repeat = one("child: repeat 2: read a; read b")
    assert isinstance(repeat, Repeat) and [(s.process, s.text) for s in repeat.body] == [("child", "read a"), ("child", "read b")]


def test_an_explicit_sign_is_kept() -> None:
    call = one("brk(+64K)")
    assert isinstance(call, Call) and isinstance(call.arguments[0].value, Expression)
    assert call.arguments[0].value.terms[0].operator == "+"


@pytest.mark.parametrize(("text", "column", "why", "expected"), [
    ("a = mmap(64K, rw", 17, "the line ends", "',' or ')'"), ("a =", 4, "the line ends", "a call or an expression"),
    ("write", 6, "the line ends", "an address"), ("fork child", 6, "'child' stands here", "'->'"), ("fork ->", 8, "the line ends", "name"),
    ("child:", 7, "the line ends", "a statement"), ("x y", 3, "'y' stands here", "'(' or '='"), ("repeat: read a", 7, "':'", "how often"),
    ("repeat 3 read a", 10, "'read'", "':'"), ("read 12Q", 6, "no number", "digits"), ('write a "x', 9, "does not end", 'closing "'),
    ("mmap(,)", 6, "','", "an argument"), ("a == 3", 4, "'='", "a call"), ("read é", 6, "means nothing", ""),
    ("read a b c", 10, "'c'", "';'"),
    (r'write a "\q"', 10, r"no escape \q", "xNN"), ("read " + "9" * 30, 6, "64 bits", ""), ("read " + "(" * 30, 27, "nested", ""),
    ("read (a", 8, "the line ends", "')'"), ("f(a b)", 5, "'b'", "','"), ("x" * (MAX_LINE + 1), MAX_LINE, "characters", ""),
    ("; read a", 1, "';'", "a statement"), ("3 = a", 1, "'3'", "a statement")])
def test_a_mistake_is_answered_with_its_place_and_what_was_expected(text: str, column: int, why: str, expected: str) -> None:
    with pytest.raises(LabError) as error:
        parse("read a\n" + text)
    assert (error.value.line, error.value.column) == (2, column) and why in error.value.why and expected in error.value.expected
    assert str(error.value).startswith(f"line 2, column {column}: ")


def test_a_script_has_an_end() -> None:
    with pytest.raises(LabError, match=f"at most {MAX_LINES}"):
        parse("read a\n" * (MAX_LINES + 1))


def test_short_names_are_those_of_linux() -> None:
    assert words.PROTECTION == {"none": 0, "r": 1, "w": 2, "rw": 3, "x": 4, "rx": 5, "wx": 6, "rwx": 7}
    assert (words.MAP_FLAGS["private"], words.MAP_FLAGS["anon"], words.MAP_FLAGS["fixed_noreplace"]) == (2, 0x20, 0x100000)
    assert (words.ADVICE["dontneed"], words.ADVICE["wipeonfork"], words.MREMAP_FLAGS["dontunmap"]) == (4, 18, 4)
    assert (words.MSYNC_FLAGS["sync"], words.MCL_FLAGS["future"], words.CONSTANTS["PROT_READ"]) == (4, 2, 1)
