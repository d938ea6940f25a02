"""The names that a script may use for numbers: those of Linux, and short ones where it is clear what they belong to.

``PROT_READ|PROT_WRITE`` and ``rw`` are the same protection; ``MAP_PRIVATE|MAP_ANONYMOUS`` and ``private|anon`` the same
flags. Short names mean something only as the argument they belong to, so that they can also be variables.
"""

from __future__ import annotations

from mmsim import constants

__all__ = ["ADVICE", "CONSTANTS", "MAP_FLAGS", "MCL_FLAGS", "MREMAP_FLAGS", "MSYNC_FLAGS", "PROTECTION", "short_names"]

_PREFIXES = ("PROT_", "MAP_", "MREMAP_", "MADV_", "MLOCK_", "MCL_", "MS_")
#: Linux's own names, which mean the same everywhere.
CONSTANTS: dict[str, int] = {name: value for name, value in vars(constants).items()
                             if name.startswith(_PREFIXES) and isinstance(value, int)} | {
    "MAP_ANON": constants.MAP_ANONYMOUS, "NULL": 0, "PAGE_SIZE": 4096, "TASK_SIZE": constants.TASK_SIZE}


def short_names(prefix: str) -> dict[str, int]:
    """The constants of a prefix under the rest of their names, in small letters.

    >>> short_names("MREMAP_")
    {'maymove': 1, 'fixed': 2, 'dontunmap': 4}
    """
    return {name.removeprefix(prefix).lower(): value for name, value in CONSTANTS.items() if name.startswith(prefix)}


PROTECTION = {"none": 0} | {"".join(letter for bit, letter in enumerate("rwx") if value >> bit & 1): value for value in range(1, 8)}
MAP_FLAGS = {name: value for name, value in short_names("MAP_").items() if name not in ("type", "file")}
MREMAP_FLAGS = short_names("MREMAP_")
ADVICE = short_names("MADV_")
MSYNC_FLAGS = short_names("MS_")
MCL_FLAGS = short_names("MCL_")
