"""Reading recordings: JSON lines, CSV and text, packed with gzip or not.

Every way in which such a file can be broken ends in an :class:`~mmsim.errors.InputError` that says where.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsim.errors import InputError

__all__ = ["Record", "read_bytes", "read_text", "read_json", "read_jsonl", "read_csv"]


class Record(dict[str, Any]):
    """One record of a file, with the line on which it stands. A field that is missing is an InputError that names
    both."""

    line: int = 0

    def __missing__(self, key: str) -> Any:
        raise InputError(f"line {self.line}: the record has no field {key!r}")


def read_bytes(path: Path) -> bytes:
    """The file's contents, unpacked if they are gzip data (by their first bytes, not by the name)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from None
    if path.suffix == ".gz" and not data.startswith(b"\x1f\x8b"):
        raise InputError("is named .gz but holds no gzip data")
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except EOFError:
            raise InputError("the gzip data end too early: the file is truncated") from None
        except (OSError, zlib.error) as error:
            raise InputError(f"the gzip data are corrupt: {error}") from None
    return data


def read_text(path: Path) -> str:
    """The file as UTF-8 text with plain line ends."""
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start})") from None


def _parse(text: str, line: int) -> Record:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"line {line} is not JSON: {error}") from None
    except RecursionError:
        raise InputError(f"line {line} is JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise InputError(f"line {line} is JSON but no object: {text[:60]!r}")
    record = Record(value)
    record.line = line
    return record


def read_json(path: Path) -> Record:
    """The one JSON object that the file holds."""
    return _parse(read_text(path), 1)


def read_jsonl(path: Path) -> Iterator[Record]:
    """The JSON objects of a file, one a line; empty lines are skipped."""
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if text.strip():
            yield _parse(text, line)


def read_csv(path: Path) -> Iterator[Record]:
    """The rows of a CSV file with a header, as integers where they are numbers and else as text."""
    rows = csv.reader(io.StringIO(read_text(path)))
    header = next(rows, None)
    if not header:
        raise InputError("is empty: a CSV file begins with its column names")
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"line {rows.line_num} has {len(row)} fields where the header has {len(header)}")
        record = Record({name: int(field) if field.lstrip("-").isdecimal() else field for name, field in zip(header, row)})
        record.line = rows.line_num
        yield record
