"""The lab's language: from text to statements, or to an error that says where and what was expected.

One statement a line, or several with ``;`` between::

    script     = { line }
    line       = [ NAME ":" ] body [ "#" comment ]          NAME ":" says which process it is about; else it is main
    body       = statement { ";" statement } | "repeat" expression ":" body
    statement  = NAME "=" ( call | expression )
               | call
               | "write" expression [ expression ] [ STRING ]
               | "read" expression [ expression ] | "exec" expression
               | ( "fork" | "vfork" ) "->" NAME
               | "exit" [ NAME ] | "drain"
               | ( "rlimit" | "sysctl" ) NAME expression
    call       = NAME "(" [ argument { "," argument } ] ")"
    argument   = [ NAME "=" ] ( STRING | expression )
    expression = [ "-" | "+" ] term { ( "+" | "-" | "|" ) term }
    term       = NUMBER | NAME | "(" expression ")"

Numbers are decimal or hexadecimal, with K, M, G or T behind them: ``64K``, ``0x1000``. Only ``+``, ``-`` and ``|`` are
calculated, from left to right. Nothing of a script is ever given to Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from mmsim.errors import InputError

__all__ = ["Access", "Argument", "Assign", "Call", "Drain", "Exit", "Expression", "Fork", "LabError", "Repeat", "Setting", "Statement",
           "Term", "Token", "parse", "tokens"]

#: How long a script, and how deep its brackets and repeats, may be.
MAX_LINES, MAX_LINE, MAX_DEPTH = 2000, 1000, 20
_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_TOKEN = re.compile(r"""
    (?P<space>[ \t]+) | (?P<comment>\#.*) | (?P<number>0[xX][0-9a-fA-F]+[KkMmGgTt]?(?![\w])|[0-9]+[KkMmGgTt]?(?:i?B)?(?![\w]))
    | (?P<name>[A-Za-z_][A-Za-z_0-9]*) | (?P<string>"(?:[^"\\]|\\.)*") | (?P<op>->|[()+\-|=,:;])""", re.VERBOSE)
_ESCAPES = {"n": "\n", "t": "\t", "0": "\0", "\\": "\\", '"': '"'}


class LabError(InputError):
    """A script that can't be run: where (line and column from 1, 0 if nowhere in the text), why, and what was expected there."""

    def __init__(self, line: int, column: int, why: str, expected: str = ""):
        self.line, self.column, self.why, self.expected = line, column, why, expected
        where = f"line {line}, column {column}: " if line and column else f"line {line}: " if line else ""
        super().__init__(where + why + (f"; expected {expected}" if expected else ""))


class Token(NamedTuple):
    """A word of a script: kind (number, name, string, op, end), its text, and where it stands."""

    kind: str
    text: str
    line: int
    column: int

    def describe(self) -> str:
        """How an error names it."""
        return "the line ends" if self.kind == "end" else f"{self.text!r} stands here"


# -- statements --------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Term:
    """A number, a name or an expression in brackets, with the sign or ``|`` before it; a first one may have none."""

    operator: str
    value: int | str | Expression
    token: Token


@dataclass(frozen=True, slots=True)
class Expression:
    """Terms from left to right."""

    terms: tuple[Term, ...]

    @property
    def token(self) -> Token:
        """Where it begins."""
        return self.terms[0].token


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a call; ``keyword`` may be empty."""

    keyword: str
    value: Expression | str
    token: Token


@dataclass(frozen=True, slots=True)
class Call:
    """A call, with its text for the list of steps."""

    name: str
    arguments: tuple[Argument, ...]
    token: Token


@dataclass(frozen=True, slots=True)
class Assign:
    """A name for a result."""

    name: str
    value: Call | Expression
    token: Token


@dataclass(frozen=True, slots=True)
class Access:
    """An access to memory: ``kind`` is read, write or exec. Without data, one byte of each page is touched."""

    kind: str
    address: Expression
    size: Expression | None
    data: bytes | None
    token: Token


@dataclass(frozen=True, slots=True)
class Fork:
    """fork or vfork; the child's name."""

    kind: str
    child: str
    token: Token


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a process; without a name, of the one the line is about."""

    name: str
    token: Token


@dataclass(frozen=True, slots=True)
class Drain:
    """lru_add_drain(): pages that wait in the CPU's pagevec go to their lists."""

    token: Token


@dataclass(frozen=True, slots=True)
class Setting:
    """A limit of a process (``rlimit``) or of the machine (``sysctl``)."""

    kind: str
    name: str
    value: Expression
    token: Token


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same statements several times."""

    times: Expression
    body: tuple[Statement, ...]
    token: Token


Action = Call | Assign | Access | Fork | Exit | Drain | Setting | Repeat


@dataclass(frozen=True, slots=True)
class Statement:
    """What to do, in which process (by name), and how it was written."""

    process: str
    action: Action
    text: str
    line: int


# -- words -------------------------------------------------------------------------------------------------------

def _string(token: Token) -> bytes:
    """The bytes of a string: UTF-8, with the escapes \\n \\t \\0 \\\\ \\" and \\xNN."""
    text, out, at = token.text[1:-1], bytearray(), 0
    while at < len(text):
        if text[at] != "\\":
            out += text[at].encode("utf-8", errors="replace")
            at += 1
            continue
        escape = text[at + 1]
        if escape == "x" and re.fullmatch("[0-9a-fA-F]{2}", text[at + 2:at + 4]):
            out.append(int(text[at + 2:at + 4], 16))
            at += 4
        elif escape in _ESCAPES:
            out += _ESCAPES[escape].encode()
            at += 2
        else:
            raise LabError(token.line, token.column + 1 + at, f"no escape \\{escape}", r"\n, \t, \0, \\, \" or \xNN")
    return bytes(out)


def tokens(text: str, line: int = 1) -> list[Token]:
    """The words of one line, an ``end`` last. Raise LabError at a character that belongs to none."""
    if len(text) > MAX_LINE:
        raise LabError(line, MAX_LINE, f"a line of {len(text)} characters; at most {MAX_LINE} are read")
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            if text[at] == '"':
                raise LabError(line, at + 1, "the string does not end", 'a closing "')
            if text[at].isdecimal():
                raise LabError(line, at + 1, "no number", "digits, with K, M, G or T behind them")
            raise LabError(line, at + 1, f"{text[at]!r} means nothing here", "a statement of the lab's language")
        kind = str(match.lastgroup)
        if kind not in ("space", "comment"):
            found.append(Token(kind, match.group(), line, at + 1))
        at = match.end()
    return [*found, Token("end", "", line, len(text) + 1)]


def number(text: str) -> int:
    """The value of a number with its suffix.

    >>> number("64K"), number("0x10"), number("2MiB")
    (65536, 16, 2097152)
    """
    digits = text.upper().removesuffix("IB").removesuffix("B") if not text.lower().startswith("0x") else text.upper()
    suffix = digits[-1] if digits[-1] in "KMGT" else ""
    digits = digits.removesuffix(suffix) if suffix else digits
    return int(digits, 16 if digits.startswith("0X") else 10) << _SUFFIXES[suffix]


# -- statements --------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class _Parser:
    """One line, from left to right."""

    words: list[Token]
    text: str
    at: int = 0
    depth: int = field(default=0)

    @property
    def word(self) -> Token:
        return self.words[self.at]

    def fail(self, expected: str) -> LabError:
        return LabError(self.word.line, self.word.column, self.word.describe(), expected)

    def take(self, kind: str, text: str = "", expected: str = "") -> Token:
        word = self.word
        if word.kind != kind or (text and word.text != text):
            raise self.fail(expected or repr(text))
        self.at += 1
        return word

    def accept(self, text: str) -> bool:
        if self.word.kind == "op" and self.word.text == text:
            self.at += 1
            return True
        return False

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise LabError(self.word.line, self.word.column, f"nested more than {MAX_DEPTH} deep")

    # -- expressions

    def term(self, operator: str) -> Term:
        word = self.word
        if word.kind == "number":
            self.at += 1
            if len(word.text) > 24:
                raise LabError(word.line, word.column, "a number of more than 64 bits")
            return Term(operator, number(word.text), word)
        if word.kind == "name":
            self.at += 1
            return Term(operator, word.text, word)
        if self.accept("("):
            self.deeper()
            inner = self.expression()
            self.take("op", ")", "')'")
            self.depth -= 1
            return Term(operator, inner, word)
        raise self.fail("a number, a name or '('")

    def expression(self) -> Expression:
        sign = ""
        if self.word.kind == "op" and self.word.text in "+-":
            sign = self.take("op").text
        terms = [self.term(sign)]
        while self.word.kind == "op" and self.word.text in "+-|":
            terms.append(self.term(self.take("op").text))
        return Expression(tuple(terms))

    def starts_expression(self) -> bool:
        return self.word.kind in ("number", "name") or (self.word.kind == "op" and self.word.text in "(+-")

    # -- statements

    def call(self, name: Token) -> Call:
        self.take("op", "(", "'('")
        arguments: list[Argument] = []
        while not self.accept(")"):
            if arguments:
                self.take("op", ",", "',' or ')'")
            word, keyword = self.word, ""
            if word.kind == "name" and self.words[self.at + 1].text == "=" and self.words[self.at + 1].kind == "op":
                keyword = word.text
                self.at += 2
            if self.word.kind == "string":
                arguments.append(Argument(keyword, _string(self.take("string")).decode("utf-8", errors="replace"), word))
            elif self.starts_expression():
                arguments.append(Argument(keyword, self.expression(), word))
            else:
                raise self.fail("an argument" + ("" if arguments else " or ')'"))
        return Call(name.text, tuple(arguments), name)

    def access(self, word: Token) -> Access:
        if not self.starts_expression():
            raise self.fail("an address")
        address = self.expression()
        size, data = None, None
        if word.text != "exec" and self.starts_expression():
            size = self.expression()
        if word.text == "write" and self.word.kind == "string":
            data = _string(self.take("string"))
        return Access(word.text, address, size, data, word)

    def simple(self) -> Action:
        word = self.take("name", expected="a statement: a call, an assignment, read, write, exec, fork, exit, repeat …")
        if word.text in ("read", "write", "exec") and not (self.word.kind == "op" and self.word.text == "="):
            return self.access(word)
        if word.text in ("fork", "vfork"):
            self.take("op", "->", "'->' and a name for the child")
            return Fork(word.text, self.take("name", expected="a name for the child").text, word)
        if word.text == "exit":
            return Exit(self.take("name").text if self.word.kind == "name" else "", word)
        if word.text == "drain" and not (self.word.kind == "op" and self.word.text == "="):
            return Drain(word)
        if word.text in ("rlimit", "sysctl") and self.word.kind == "name":
            return Setting(word.text, self.take("name").text, self.expression(), word)
        if self.accept("="):
            if self.word.kind == "name" and self.words[self.at + 1].text == "(" and self.words[self.at + 1].kind == "op":
                return Assign(word.text, self.call(self.take("name")), word)
            if not self.starts_expression():
                raise self.fail("a call or an expression")
            return Assign(word.text, self.expression(), word)
        if self.word.kind == "op" and self.word.text == "(":
            return self.call(word)
        raise self.fail("'(' or '='")

    def statements(self, process: str) -> list[Statement]:
        """Statements up to the end of the line."""
        found: list[Statement] = []
        while True:
            start = self.word
            if start.kind == "name" and start.text == "repeat" and self.words[self.at + 1].text not in ("=", "("):
                self.at += 1
                self.deeper()
                if not self.starts_expression():
                    raise self.fail("how often")
                times = self.expression()
                self.take("op", ":", "':'")
                action: Action = Repeat(times, tuple(self.statements(process)), start)
            else:
                action = self.simple()
            text = self.text[start.column - 1:self.word.column - 1].split("#")[0].strip() if self.word.kind == "op" \
                else self.text[start.column - 1:]
            found.append(Statement(process, action, _without_comment(text), start.line))
            if self.word.kind == "end":
                return found
            self.take("op", ";", "';' or the end of the line")
            if self.word.kind == "end":
                return found


def _without_comment(text: str) -> str:
    """A statement's text without the comment behind it."""
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup == "comment":
            return text[:at].strip()
        at = match.end()
    return text.strip()


def parse(script: str) -> list[Statement]:
    """The statements of a script. Raise LabError with line, column and what was expected.

    >>> [statement.text for statement in parse("a = mmap(64K, rw, private|anon)   # where?")]
    ['a = mmap(64K, rw, private|anon)']
    >>> parse("write a+4K 'x'")
    Traceback (most recent call last):
    mmsim.lab.syntax.LabError: line 1, column 12: "'" means nothing here; expected a statement of the lab's language
    """
    lines = script.splitlines()
    if len(lines) > MAX_LINES:
        raise LabError(MAX_LINES + 1, 1, f"a script of {len(lines)} lines; at most {MAX_LINES} are read")
    found: list[Statement] = []
    for number_, text in enumerate(lines, 1):
        words = tokens(text, number_)
        if len(words) == 1:
            continue
        parser, process = _Parser(words, text), ""
        if words[0].kind == "name" and words[0].text != "repeat" and words[1].kind == "op" and words[1].text == ":":
            process = words[0].text
            parser.at = 2
        if parser.word.kind == "end":
            raise parser.fail("a statement after the process")
        found += parser.statements(process)
    return found
