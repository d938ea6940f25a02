"""The files of /proc/sys/vm that move the watermarks: what a write accepts, stores, and makes the kernel compute anew.

A write that the kernel refuses fails with EINVAL and changes nothing, with one exception: ``lowmem_reserve_ratio`` says
nothing about errors, and keeps the numbers before the wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mmsim.errors import Errno
from mmsim.physical.watermark import Reserves

__all__ = ["MIN_PERCPU_PAGELIST_HIGH_FRACTION", "VmTunables", "parse_integers"]

MIN_PERCPU_PAGELIST_HIGH_FRACTION = 8
_INT_MAX = 0x7FFF_FFFF
#: proc_get_long() copies so much of a number, less the end of the string.
_NUMBER_ROOM = 21
_SPACE = " \t\n\v\f\r"


def parse_integers(text: str, room: int, low: int | None = None, high: int | None = None) -> tuple[list[int], int, bool]:
    """Read up to ``room`` ints in C notation; return them, how many characters were read, and whether all was well.

    5.17: kernel/sysctl.c, __do_proc_dointvec(), proc_get_long(), do_proc_dointvec_minmax_conv().

    >>> parse_integers("0x10 8 x", 4)
    ([16, 8], 7, False)
    """
    values: list[int] = []
    rest, fine = text, True
    while len(values) < room:
        rest = rest.lstrip(_SPACE)
        if not rest:
            break
        number = re.match(r"-?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", rest)
        if not number or number.end() > _NUMBER_ROOM or rest[number.end():number.end() + 1] not in ("", *" \t\n"):
            fine = False
            break
        digits = number[0].lstrip("-")
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
        value = -int(digits, base) if number[0].startswith("-") else int(digits, base)
        if not -_INT_MAX - 1 <= value <= _INT_MAX or low is not None and value < low or high is not None and value > high:
            fine = False
            break
        values.append(value)
        rest = rest[number.end():]
    if fine:
        rest = rest.lstrip(_SPACE)
    return values, len(text) - len(rest), fine and bool(values)


class VmTunables:
    """The knobs of one machine: :meth:`read` and :meth:`write` them as text, like the files.

    ``reserves`` computes the marks; ``changed`` is called after every write that may have moved them, so that what hangs
    on them (per-CPU lists) can follow. ``high_fraction`` is vm.percpu_pagelist_high_fraction.

    >>> knobs = VmTunables(Reserves([]))
    >>> knobs.write("min_free_kbytes", "4096")
    4
    >>> knobs.read("min_free_kbytes")
    '4096'
    """

    NAMES = ("min_free_kbytes", "watermark_scale_factor", "watermark_boost_factor", "lowmem_reserve_ratio",
             "percpu_pagelist_high_fraction")

    def __init__(self, reserves: Reserves, changed: Callable[[], None] = lambda: None):
        self.reserves = reserves
        self.changed = changed
        self.high_fraction = 0
        self.watermark_boost_factor = 15000

    def read(self, name: str) -> str:
        """The value as the file shows it, without the line's end. Raise Errno ENOENT for an unknown name."""
        return "\t".join(map(str, self._values(name)))

    def _values(self, name: str) -> Sequence[int]:
        if name == "lowmem_reserve_ratio":
            return self.reserves.lowmem_reserve_ratio
        if name == "percpu_pagelist_high_fraction":
            return (self.high_fraction,)
        if name == "watermark_boost_factor":
            return (self.watermark_boost_factor,)
        if name not in self.NAMES:
            raise Errno("ENOENT", f"no file /proc/sys/vm/{name}")
        return (getattr(self.reserves, name),)

    def write(self, name: str, text: str) -> int:
        """Write to the file; return how many characters were taken. Raise Errno EINVAL for a value that is refused.

        5.17: mm/page_alloc.c, min_free_kbytes_sysctl_handler() and its neighbours.
        """
        old = self._values(name)
        if name == "lowmem_reserve_ratio":
            values, taken, fine = parse_integers(text, len(old))
            self.reserves.lowmem_reserve_ratio = tuple(max(value, 0) for value in (*values, *old[len(values):]))
            self.reserves.setup_lowmem_reserve()
            self.changed()
            return taken if fine or values else len(text)
        low, high = (1, 3000) if name == "watermark_scale_factor" else (0, None)
        values, taken, fine = parse_integers(text, 1, low, high)
        if not fine:
            raise Errno("EINVAL", f"vm.{name} = {text.strip()!r}")
        self._store(name, values[0])
        self.changed()
        return taken

    def _store(self, name: str, value: int) -> None:
        if name == "min_free_kbytes":
            self.reserves.write_min_free_kbytes(value)
        elif name == "watermark_scale_factor":
            self.reserves.write_watermark_scale_factor(value)
        elif name == "watermark_boost_factor":
            self.watermark_boost_factor = value
        else:
            if 0 < value < MIN_PERCPU_PAGELIST_HIGH_FRACTION:
                raise Errno("EINVAL", f"vm.{name} must be 0 or at least {MIN_PERCPU_PAGELIST_HIGH_FRACTION}")
            self.high_fraction = value
