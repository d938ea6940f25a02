"""Running a script of the lab, statement by statement: what its names and numbers mean, and which call they go to.

======================================  ==========================================================================
``a = mmap(64K, rw, private|anon)``     length, protection, flags [, file [, offset]]; ``at=`` is the address or hint.
                                        With six arguments they are those of C: address first
``f = file("name", 64K)``               a file in memory; ``file("name", 64K, ro)`` opened for reading only (or wo)
``munmap(a, 4K)`` ``mprotect(a, 4K, r)``  and mremap, mlock, mlock2, munlock, mlockall, munlockall, madvise, msync,
                                        mincore with Linux's arguments; flags by name, long or short
``brk(+64K)`` ``brk(b)``                the heap's end moves by, or to
``write a "text"`` ``write a 64K``      bytes; or one byte in each page of a range (``write a 64K "x"`` fills it)
``read a`` ``read a 8`` ``exec a``      one byte, or as many as are said
``fork -> child`` ``child: read a``     a second process, and what it does; ``vfork`` too
``exit child``                          the end of a process
``rlimit memlock 64K``                  as, data, stack, memlock: a limit of the process, which then is not privileged
``sysctl max_map_count 8``              max_map_count, overcommit_memory, overcommit_ratio
``repeat 8: write a "x"; a = a + 4K``   bounded, as everything here is
======================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from mmsim.lab import words
from mmsim.lab.lab import Lab, LabProcess
from mmsim.lab.syntax import (
    Access,
    Argument,
    Assign,
    Call,
    Drain,
    Exit,
    Expression,
    Fork,
    LabError,
    Repeat,
    Setting,
    Statement,
    Token,
    parse,
)
from mmsim.process.vma import MappedFile
from mmsim.units import U64_MAX, s64

__all__ = ["CALLS", "Script"]

#: Statements that a script may execute in all, steps or not.
MAX_WORK = 20_000
Value = int | MappedFile


class Parameter(NamedTuple):
    """A parameter of a call: its name, the short names that it knows, and whether it may be left out."""

    name: str
    names: Mapping[str, int] = {}
    optional: bool = False


_ADDR, _LENGTH = Parameter("addr"), Parameter("length")
_FILE_MODES = {"rw": 0, "ro": 1, "wo": 2}
#: The calls, with their parameters in order.
CALLS: dict[str, tuple[Parameter, ...]] = {
    "munmap": (_ADDR, _LENGTH), "mprotect": (_ADDR, _LENGTH, Parameter("prot", words.PROTECTION)),
    "mremap": (_ADDR, Parameter("old_length"), Parameter("new_length"), Parameter("flags", words.MREMAP_FLAGS, True),
               Parameter("new_addr", {}, True)),
    "brk": (_ADDR,), "sbrk": (Parameter("increment"),), "mlock": (_ADDR, _LENGTH),
    "mlock2": (_ADDR, _LENGTH, Parameter("flags", {"onfault": 1})), "munlock": (_ADDR, _LENGTH),
    "mlockall": (Parameter("flags", words.MCL_FLAGS),), "munlockall": (),
    "madvise": (_ADDR, _LENGTH, Parameter("advice", words.ADVICE)), "msync": (_ADDR, _LENGTH, Parameter("flags", words.MSYNC_FLAGS)),
    "mincore": (_ADDR, _LENGTH)}
_MMAP = (_LENGTH, Parameter("prot", words.PROTECTION), Parameter("flags", words.MAP_FLAGS), Parameter("file", {}, True),
         Parameter("offset", {}, True), Parameter("at", {}, True))
_MMAP_C = (Parameter("at"), *_MMAP[:5])
_FILE = (Parameter("name"), Parameter("size"), Parameter("mode", _FILE_MODES, True))


def _suggest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, 3, 0.5)
    return " or ".join(close) if close else ", ".join(known)


class Script:
    """A script at work: its variables and where it is."""

    def __init__(self, lab: Lab, variables: dict[str, Value]):
        self.lab, self.variables = lab, variables
        self.work = 0

    def run(self, text: str) -> None:
        """Parse the script as a whole, then run it."""
        for statement in parse(text):
            self.execute(statement)

    # -- values --------------------------------------------------------------------------------------------------

    def name(self, token: Token, names: Mapping[str, int]) -> Value:
        """What a name means: as a short name of the argument, as a variable, as one of Linux's constants."""
        for known in (names, self.variables, words.CONSTANTS):
            if token.text in known:
                return known[token.text]
        raise LabError(token.line, token.column, f"no variable or constant {token.text!r}",
                       _suggest(token.text, sorted({*names, *self.variables}) or ["a number"]))

    def value(self, expression: Expression, names: Mapping[str, int] | None = None) -> Value:
        """A number, from left to right in 64 bits; or a file, if the expression is only its name."""
        names = names or {}
        total = 0
        for number, term in enumerate(expression.terms):
            value: Value = (term.value if isinstance(term.value, int) else self.name(term.token, names)
                            if isinstance(term.value, str) else self.value(term.value, names))
            if isinstance(value, MappedFile):
                if len(expression.terms) == 1 and not term.operator:
                    return value
                raise LabError(term.token.line, term.token.column, f"{term.token.text!r} is a file", "a number")
            if term.operator == "|":
                total |= value
            else:
                total = total - value if term.operator == "-" else total + value
            if not -(1 << 63) <= total <= U64_MAX:
                total = s64(total)
            del number
        return total

    def number(self, expression: Expression, names: Mapping[str, int] | None = None) -> int:
        """A number; a file is an error."""
        value = self.value(expression, names)
        if isinstance(value, MappedFile):
            raise LabError(expression.token.line, expression.token.column, f"{expression.token.text!r} is a file", "a number")
        return value

    # -- calls ---------------------------------------------------------------------------------------------------

    def bind(self, call: Call, parameters: tuple[Parameter, ...]) -> dict[str, Value | str]:
        """Arguments by parameter. Raise LabError for too many, too few, or unknown ones."""
        bound: dict[str, Value | str] = {}
        by_name = {parameter.name: parameter for parameter in parameters}
        order = [parameter for parameter in parameters if parameter.name != "at" or parameters[0].name == "at"]
        signature = f"{call.name}({', '.join(f'[{p.name}]' if p.optional else p.name for p in parameters)})"
        positional = 0
        for argument in call.arguments:
            token = argument.token
            if argument.keyword:
                parameter = by_name.get(argument.keyword)
                if parameter is None:
                    raise LabError(token.line, token.column, f"{call.name} has no argument {argument.keyword!r}", signature)
            else:
                if positional >= len(order):
                    raise LabError(token.line, token.column, "one argument too many", signature)
                parameter = order[positional]
                positional += 1
            if parameter.name in bound:
                raise LabError(token.line, token.column, f"{parameter.name} is given twice", signature)
            bound[parameter.name] = self.argument(argument, parameter)
        missing = [parameter.name for parameter in parameters if not parameter.optional and parameter.name not in bound]
        if missing:
            raise LabError(call.token.line, call.token.column, f"{call.name} needs {' and '.join(missing)}", signature)
        return bound

    def argument(self, argument: Argument, parameter: Parameter) -> Value | str:
        token = argument.token
        if isinstance(argument.value, str):
            if parameter.name != "name":
                raise LabError(token.line, token.column, "a string", "a number")
            return argument.value
        if parameter.name == "name":
            raise LabError(token.line, token.column, f"{token.text!r}", 'a name in quotes, as "data"')
        if parameter.name == "file":
            value = self.value(argument.value)
            if isinstance(value, MappedFile) or value in (-1, 0xFFFF_FFFF, U64_MAX):
                return value
            raise LabError(token.line, token.column, "no file", 'a variable made by file("name", size), or -1')
        return self.number(argument.value, parameter.names)

    def call(self, process: LabProcess, call: Call, text: str) -> Value:
        """Make a call; return its result."""
        if call.name == "mmap":
            c_order = len(call.arguments) == 6 and not any(argument.keyword for argument in call.arguments)
            given = self.bind(call, _MMAP_C if c_order else _MMAP)
            file = given.pop("file", None)
            numbers = {name: value for name, value in given.items() if isinstance(value, int)}
            return process.mmap(numbers["length"], numbers["prot"], numbers["flags"], file if isinstance(file, MappedFile) else None,
                                numbers.get("offset", 0), at=numbers.get("at", 0), text=text)
        if call.name == "file":
            given = self.bind(call, _FILE)
            size, mode = given["size"], given.get("mode", 0)
            assert isinstance(size, int)
            return self.lab.file(str(given["name"]), size, writable=mode != 1, readable=mode != 2)
        if call.name not in CALLS:
            token = call.token
            raise LabError(token.line, token.column, f"no call {call.name!r}", _suggest(call.name, ["mmap", "file", *CALLS]))
        given = self.bind(call, CALLS[call.name])
        arguments = [value for parameter in CALLS[call.name] if isinstance(value := given.get(parameter.name), int)]
        if call.name == "mremap":
            arguments = [value if isinstance(value := given.get(parameter.name, 0), int) else 0 for parameter in CALLS["mremap"]]
        name = call.name
        if name == "brk" and isinstance(call.arguments[0].value, Expression) and call.arguments[0].value.terms[0].operator:
            arguments[0] += process.process.mm.brk      # brk(+64K)
        method: Callable[..., int | bytes] = getattr(process, name)
        result = method(*arguments, text=text)
        return result if isinstance(result, int) else self.lab.steps[-1].result

    # -- statements ------------------------------------------------------------------------------------------------

    def execute(self, statement: Statement) -> None:
        """Execute one statement. Raise LabError where that can't be done."""
        self.work += 1
        if self.work > MAX_WORK:
            raise LabError(statement.line, 0, f"the script has executed {MAX_WORK} statements, and no more are")
        self.lab.line = statement.line
        action, text = statement.action, statement.text
        if isinstance(action, Repeat):
            self.repeat(action)
            return
        if isinstance(action, Assign) and isinstance(action.value, Expression):
            self.variables[action.name] = self.value(action.value)
            return
        process = self.lab[statement.process] if statement.process else self.lab.main
        if isinstance(action, Call):
            self.call(process, action, text)
        elif isinstance(action, Assign) and isinstance(action.value, Call):
            self.variables[action.name] = self.call(process, action.value, text)
        elif isinstance(action, Access):
            self.access(process, action, text)
        elif isinstance(action, Fork):
            process.fork(action.child, vfork=action.kind == "vfork", text=text)
        elif isinstance(action, Exit):
            (self.lab[action.name] if action.name else process).exit(text=text)
        elif isinstance(action, Drain):
            self.lab.drain()
        elif isinstance(action, Setting):
            self.setting(process, action)

    def repeat(self, action: Repeat) -> None:
        """The body as often as is said, or until the script is stopped."""
        for _ in range(min(max(self.number(action.times), 0), MAX_WORK + 1)):
            self.work += 1
            if self.work > MAX_WORK:
                raise LabError(action.token.line, action.token.column, f"the script has executed {MAX_WORK} statements, and no more are")
            for statement in action.body:
                self.execute(statement)

    def access(self, process: LabProcess, action: Access, text: str) -> None:
        address = self.number(action.address) & U64_MAX
        size = None if action.size is None else self.number(action.size)
        if size is not None and not 0 < size < 1 << 40:
            token = action.size.token if action.size is not None else action.token
            raise LabError(token.line, token.column, f"a size of {size}", "a number from 1 on")
        if action.kind == "exec":
            process.execute(address, text=text)
        elif action.kind == "read":
            process.read(address, size or 1, text=text)
        elif size is not None:
            process.fill(address, size, action.data or b"", text=text)
        else:
            process.write(address, action.data or b"\1", text=text)

    def setting(self, process: LabProcess, action: Setting) -> None:
        """A limit; that is no step, but the next one shows what it does."""
        value = self.number(action.value)
        if action.kind == "rlimit":
            process.rlimit(action.name, value)
            return
        if action.name == "max_map_count":
            for other in self.lab.processes.values():
                other.process.mm.max_map_count = min(max(value, 0), (1 << 31) - 1)
        elif action.name == "overcommit_memory" and value in (0, 1, 2):
            self.lab.user.overcommit.policy = value
        elif action.name == "overcommit_ratio" and 0 <= value < 1 << 31:
            self.lab.user.overcommit.ratio = value
        else:
            raise LabError(action.token.line, action.token.column, f"no sysctl {action.name} = {value}",
                           "max_map_count, overcommit_memory (0, 1, 2) or overcommit_ratio")
