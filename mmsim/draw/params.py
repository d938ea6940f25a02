"""What a reader can change about a figure. Every parameter reads its value from a link and checks it.

A value travels as text that can stand in an address (``order=3``); ``read`` turns text or a Python value into the value
the figure gets, or raises InputError with one sentence for the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmsim.errors import InputError
from mmsim.units import memparse

__all__ = ["Param", "Choice", "Range", "Toggle", "Seed", "Text", "Operation", "Operations"]

#: A reader's text longer than this is refused.
MAX_TEXT = 20_000
MAX_OPERATIONS = 500


class Param:
    """What all parameters share: ``name`` (an identifier), ``label`` for people, ``help`` as a tooltip, ``default``."""

    kind = ""

    def __init__(self, name: str, default: Any, label: str = "", help: str = ""):
        if not name.isidentifier() or name in ("width", "self"):
            raise ValueError(f"{name!r} cannot name a parameter")
        self.name = name
        self.label = label or name.replace("_", " ")
        self.help = help
        self.default = self.read(default)

    def read(self, value: Any) -> Any:
        """The checked value for text from a link or a value from Python. Raise InputError if it cannot be used."""
        raise NotImplementedError

    def write(self, value: Any) -> str:
        """The value as text, without anything that Python would add."""
        return str(value)

    def spec(self) -> dict[str, Any]:
        """What the page needs to draw the control."""
        spec = {"kind": self.kind, "name": self.name, "label": self.label, "default": self.write(self.default)}
        if self.help:
            spec["help"] = self.help
        return spec

    def refuse(self, why: str) -> InputError:
        """The exception for a value that cannot be used."""
        return InputError(f"{self.label}: {why}")


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _listed(options: Iterable[object]) -> str:
    """All options; of many the first eight, so that a message stays a sentence."""
    words = list(map(str, options))
    return ", ".join(words if len(words) <= 8 else [*words[:8], f"… ({len(words)} in all)"])


class Choice(Param):
    """One of several values (text or whole numbers); a mapping gives each its label.

    >>> Choice("machine", ["toy16", "ref256"]).read("ref256")
    'ref256'
    """

    kind = "choice"

    def __init__(
        self, name: str, options: Sequence[str | int] | Mapping[str | int, str] | Mapping[str, str], default: str | int | None = None,
        label: str = "", help: str = "",
    ):  # fmt: skip
        labels = options if isinstance(options, Mapping) else {option: str(option) for option in options}
        self.options: dict[str | int, str] = {}
        for value, text in labels.items():
            self.options[value] = text
        if not self.options:
            raise ValueError(f"{name}: nothing to choose from")
        super().__init__(name, next(iter(self.options)) if default is None else default, label, help)

    def read(self, value: Any) -> str | int:
        """The option that ``value`` names."""
        for option in self.options:
            if str(option) == str(value):
                return option
        raise self.refuse(f"{_shown(value)} is not one of {_listed(self.options)}")

    def spec(self) -> dict[str, Any]:
        """With the options and their labels."""
        return super().spec() | {"options": [[str(value), text] for value, text in self.options.items()]}


class Range(Param):
    """A number from ``low`` to ``high``, on a grid of ``step``; with ``log`` the slider moves by factors of two.

    Whole numbers unless one of the bounds, the step or the default is a float. ``unit`` stands behind the number.

    >>> Range("order", 0, 10, default=3).read("0x4")
    4
    """

    kind = "range"

    def __init__(
        self, name: str, low: float, high: float, default: float | None = None, step: float = 1, unit: str = "",
        log: bool = False, label: str = "", help: str = "",
    ):  # fmt: skip
        if not low <= high or step <= 0 or (log and low <= 0):
            raise ValueError(f"{name}: not a range")
        self.low, self.high, self.step, self.unit, self.log = low, high, step, unit, log
        self.whole = all(isinstance(number, int) for number in (low, high, step, default) if number is not None)
        super().__init__(name, low if default is None else default, label, help)

    def read(self, value: Any) -> int | float:
        """The number; text may be decimal or hexadecimal."""
        if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
            raise self.refuse(f"{_shown(value)} is not a number")
        number: int | float
        try:
            number = int(value, 0) if isinstance(value, str) else value
        except ValueError:
            try:
                number = float(value)
            except ValueError:
                raise self.refuse(f"{_shown(value)} is not a number") from None
        if self.whole:
            if number != number or number in (float("inf"), float("-inf")) or number != int(number):
                raise self.refuse(f"{_shown(value)} is not a whole number")
            number = int(number)
        if not self.low <= number <= self.high:
            unit = f" {self.unit}" if self.unit else ""
            raise self.refuse(f"{_shown(value)} is not between {self.low} and {self.high}{unit}")
        return number

    def write(self, value: Any) -> str:
        """Whole numbers without a point."""
        return str(int(value)) if self.whole else repr(float(value))

    def spec(self) -> dict[str, Any]:
        """With bounds, step, unit and scale."""
        spec = super().spec() | {"min": self.low, "max": self.high, "step": self.step, "whole": self.whole}
        return spec | ({"unit": self.unit} if self.unit else {}) | ({"log": True} if self.log else {})


class Toggle(Param):
    """On or off.

    >>> Toggle("nofragment", True).read("off")
    False
    """

    kind = "toggle"
    _words = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}

    def __init__(self, name: str, default: bool = False, label: str = "", help: str = ""):
        super().__init__(name, default, label, help)

    def read(self, value: Any) -> bool:
        """True or False; text may be on/off, 1/0, true/false, yes/no."""
        word = str(value).lower()
        if word not in self._words:
            raise self.refuse(f"{_shown(value)} is neither on nor off")
        return self._words[word]

    def write(self, value: Any) -> str:
        """on or off."""
        return "on" if value else "off"


class Seed(Range):
    """The seed of everything random in the figure; the page shows a button for the next one."""

    kind = "seed"

    def __init__(self, name: str = "seed", default: int = 1, label: str = "", help: str = ""):
        super().__init__(name, 0, 2**32 - 1, default, label=label, help=help or "the same seed gives the same figure")


class Text(Param):
    """Text that the reader types or pastes; several lines if ``lines`` is above 1.

    ``usage`` explains a text that is a language: what can be written, and in a few words what it does.
    """

    kind = "text"

    def __init__(
        self, name: str, default: str = "", lines: int = 1, label: str = "", help: str = "", limit: int = MAX_TEXT,
        usage: Mapping[str, str] | None = None,
    ):  # fmt: skip
        self.lines, self.limit, self.usage = lines, limit, dict(usage or {})
        super().__init__(name, default, label, help)

    def read(self, value: Any) -> str:
        """The text, line ends made uniform."""
        if not isinstance(value, str):
            raise self.refuse(f"{_shown(value)} is not text")
        text = value.replace("\r\n", "\n").replace("\r", "\n")
        if len(text) > self.limit:
            raise self.refuse(f"the text is longer than {self.limit} characters")
        if self.lines == 1 and "\n" in text:
            raise self.refuse("one line only")
        if "\0" in text:
            raise self.refuse("the text holds a NUL character")
        return text

    def spec(self) -> dict[str, Any]:
        """With the number of lines, and the usage for the help beside the editor."""
        verbs = {"verbs": [[written, words] for written, words in self.usage.items()]} if self.usage else {}
        return super().spec() | {"lines": self.lines} | verbs


class Operation:
    """One line of an operation list: ``op.verb``, ``op["order"]``, ``op.get("type", "movable")``, ``op.line`` (from 1).

    When the kernel refuses it, the figure calls ``op.fail(error)``: the message appears at that line of the editor.
    """

    __slots__ = ("line", "verb", "args", "text", "error")

    def __init__(self, line: int, verb: str, args: dict[str, int | str], text: str):
        self.line, self.verb, self.args, self.text = line, verb, args, text
        self.error = ""

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def __contains__(self, name: str) -> bool:
        return name in self.args

    def get(self, name: str, default: Any = None) -> Any:
        """An optional argument."""
        return self.args.get(name, default)

    def fail(self, error: object) -> None:
        """Report at this line what the kernel answered (text, or an exception such as Errno)."""
        self.error = str(error)

    def __repr__(self) -> str:
        return f"<Operation {self.line}: {self.text}>"


class OperationList(list[Operation]):
    """The operations of a text, with the errors of the lines that could not be read: ``errors[line] = sentence``."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.errors: dict[int, str] = {}

    def problems(self) -> list[dict[str, Any]]:
        """What to show beside the editor: lines that could not be read, and lines that the kernel refused."""
        found = self.errors | {operation.line: operation.error for operation in self if operation.error}
        return [{"line": line, "text": found[line]} for line in sorted(found)]


class Operations(Param):
    """A list of operations that the reader edits, one a line, ``#`` for comments.

    ``verbs`` is the figure's language: for each verb its arguments as ``name:kind``, those in brackets may be missing,
    and after ``--`` a few words of help. Kinds: ``int`` (decimal or 0x), ``size`` and ``addr`` (also K, M, G behind it),
    ``word``, ``a|b|c`` (one of these words), ``rest`` (all that is left). An argument may also be given as ``name=value``.

    >>> lab = Operations("ops", "alloc 3\\nfree 0x100", {"alloc": "order:int [type:movable|unmovable] -- take a block",
    ...                                                  "free": "pfn:int"})
    >>> lab.read("alloc 3 type=movable  # mine\\nfry 7")[0].args
    {'order': 3, 'type': 'movable'}
    >>> lab.read("alloc 3 type=movable  # mine\\nfry 7").errors
    {2: 'no operation "fry"; there are: alloc, free'}
    """

    kind = "operations"

    def __init__(self, name: str, default: str, verbs: Mapping[str, str], label: str = "operations", help: str = ""):
        self.verbs: dict[str, tuple[str, list[tuple[str, str, bool]], str]] = {}
        for verb, declared in verbs.items():
            usage, _, words = declared.partition("--")
            arguments = [(m[2], m[3], bool(m[1])) for m in re.finditer(r"(\[?)(\w+):([\w|-]+)\]?", usage)]
            plain = " ".join(f"[{n}]" if optional else n for n, _, optional in arguments)
            self.verbs[verb] = (f"{verb} {plain}".strip(), arguments, words.strip())
        super().__init__(name, default, label, help)
        if self.default.errors:
            raise ValueError(f"{name}: the default list has errors: {self.default.errors}")

    def read(self, value: Any) -> OperationList:
        """The operations; a line that cannot be read is left out and its error kept. Raise InputError for no text at all."""
        if isinstance(value, OperationList):
            value = value.text
        if not isinstance(value, str):
            raise self.refuse(f"{_shown(value)} is not a list of operations")
        if len(value) > MAX_TEXT:
            raise self.refuse(f"the list is longer than {MAX_TEXT} characters")
        text = value.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
        result = OperationList(text)
        for number, line in enumerate(text.split("\n"), 1):
            body = line.split("#")[0].strip()
            if not body:
                continue
            if len(result) >= MAX_OPERATIONS:
                result.errors[number] = f"more than {MAX_OPERATIONS} operations: the rest is left out"
                break
            try:
                result.append(self._operation(number, body))
            except InputError as error:
                result.errors[number] = str(error)
        return result

    def _operation(self, line: int, body: str) -> Operation:
        verb, *words = body.split()
        if verb not in self.verbs:
            raise InputError(f'no operation "{verb[:40]}"; there are: {", ".join(self.verbs)}')
        usage, arguments, _ = self.verbs[verb]
        named = {name: kind for name, kind, _ in arguments}
        args: dict[str, int | str] = {}
        left = list(arguments)
        for place, word in enumerate(words):
            name, equals, given = word.partition("=")
            if equals and name in named:
                args[name] = self._argument(name, named[name], given)
                left = [argument for argument in left if argument[0] != name]
            elif not left:
                raise InputError(f'"{word[:40]}" is too much; usage: {usage}')
            else:
                name, kind, _ = left.pop(0)
                if kind == "rest":
                    args[name] = " ".join(words[place:])
                    break
                args[name] = self._argument(name, kind, word)
        missing = [name for name, _, optional in left if not optional and name not in args]
        if missing:
            raise InputError(f"{missing[0]} is missing; usage: {usage}")
        return Operation(line, verb, args, body)

    @staticmethod
    def _argument(name: str, kind: str, word: str) -> int | str:
        if kind in ("word", "rest"):
            return word
        if "|" in kind:
            if word not in kind.split("|"):
                raise InputError(f'{name}: "{word[:40]}" is not one of {kind.replace("|", ", ")}')
            return word
        if kind == "int":
            try:
                if len(word) > 40:
                    raise ValueError
                return int(word, 0)
            except ValueError:
                raise InputError(f'{name}: "{word[:40]}" is not a whole number') from None
        if kind in ("size", "addr"):
            number, rest = memparse(word)
            if rest or not word[:1].isdigit():
                raise InputError(f'{name}: "{word[:40]}" is not a size such as 0x1000, 64K or 16M')
            return number
        raise ValueError(f"no such kind of argument: {kind}")

    def write(self, value: Any) -> str:
        """The text."""
        return value.text if isinstance(value, OperationList) else str(value)

    def spec(self) -> dict[str, Any]:
        """With the language, for the help beside the editor."""
        return super().spec() | {"verbs": [[usage, words] for usage, _, words in self.verbs.values()]}
