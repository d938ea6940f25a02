"""The parameters of malloc: their defaults, mallopt(), and GLIBC_TUNABLES.

2.36: malloc/malloc.c, struct malloc_par and __libc_mallopt(); malloc/arena.c, ptmalloc_init().
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmsim.errors import InputError
from mmsim.malloc.glibc.layout import (
    DEFAULT_MMAP_MAX,
    DEFAULT_MMAP_THRESHOLD,
    DEFAULT_MXFAST,
    DEFAULT_TOP_PAD,
    DEFAULT_TRIM_THRESHOLD,
    MALLOC_ALIGN_MASK,
    MAX_FAST_SIZE,
    MAX_TCACHE_COUNT,
    MAX_TCACHE_SIZE,
    SIZE_SZ,
    TCACHE_FILL_COUNT,
    TCACHE_MAX_BINS,
    csize2tidx,
    request2size,
)
from mmsim.units import u64

__all__ = ["M_ARENA_MAX", "M_ARENA_TEST", "M_CHECK_ACTION", "M_MMAP_MAX", "M_MMAP_THRESHOLD", "M_MXFAST", "M_PERTURB",
           "M_TOP_PAD", "M_TRIM_THRESHOLD", "MallocPar", "parse_tunables"]

#: Numbers for mallopt(). 2.36: malloc/malloc.h.
M_MXFAST = 1
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
M_CHECK_ACTION = -5
M_PERTURB = -6
M_ARENA_TEST = -7
M_ARENA_MAX = -8

_NAMES = {M_MXFAST: "mxfast", M_TRIM_THRESHOLD: "trim_threshold", M_TOP_PAD: "top_pad", M_MMAP_THRESHOLD: "mmap_threshold",
          M_MMAP_MAX: "mmap_max", M_PERTURB: "perturb", M_ARENA_TEST: "arena_test", M_ARENA_MAX: "arena_max"}


@dataclass(slots=True)
class MallocPar:
    """struct malloc_par: one a process. Sizes in bytes."""

    trim_threshold: int = DEFAULT_TRIM_THRESHOLD
    top_pad: int = DEFAULT_TOP_PAD
    mmap_threshold: int = DEFAULT_MMAP_THRESHOLD
    arena_test: int = 8
    arena_max: int = 0
    n_mmaps: int = 0
    n_mmaps_max: int = DEFAULT_MMAP_MAX
    max_n_mmaps: int = 0
    #: Set once the user chose a threshold: from then on the library leaves them alone.
    no_dyn_threshold: bool = False
    mmapped_mem: int = 0
    max_mmapped_mem: int = 0
    sbrk_base: int = 0
    tcache_bins: int = TCACHE_MAX_BINS
    tcache_count: int = TCACHE_FILL_COUNT
    tcache_unsorted_limit: int = 0
    #: The largest chunk size for fastbins. 2.36: malloc/malloc.c, global_max_fast and set_max_fast().
    max_fast: int = DEFAULT_MXFAST + SIZE_SZ & ~MALLOC_ALIGN_MASK
    #: Memory that is handed out is filled with the complement of this byte, freed memory with the byte; 0: neither.
    perturb_byte: int = 0

    def set_max_fast(self, size: int) -> None:
        """Fastbins for requests up to ``size``; a value that no chunk reaches stands for none."""
        self.max_fast = 16 if size <= MALLOC_ALIGN_MASK - SIZE_SZ else size + SIZE_SZ & ~MALLOC_ALIGN_MASK

    def set(self, name: str, value: int) -> bool:
        """Set a parameter by its tunable's name; False if the value is refused.

        2.36: malloc/malloc.c, do_set_mmap_threshold() and its neighbours.
        """
        value = u64(value)
        if name in ("trim_threshold", "top_pad", "mmap_threshold", "mmap_max"):
            self.no_dyn_threshold = True
        match name:
            case "trim_threshold":
                self.trim_threshold = value
            case "top_pad":
                self.top_pad = value
            case "mmap_threshold":
                self.mmap_threshold = value
            case "mmap_max":
                value &= 0xFFFF_FFFF
                self.n_mmaps_max = value - (1 << 32) if value >> 31 else value
            case "arena_test":
                self.arena_test = value
            case "arena_max":
                self.arena_max = value
            case "perturb":
                self.perturb_byte = value & 0xFFFF_FFFF
            case "mxfast":
                if value > MAX_FAST_SIZE:
                    return False
                self.set_max_fast(value)
            case "tcache_count":
                if value > MAX_TCACHE_COUNT:
                    return False
                self.tcache_count = value
            case "tcache_max":
                if value > MAX_TCACHE_SIZE:
                    return False
                self.tcache_bins = csize2tidx(request2size(value)) + 1
            case "tcache_unsorted_limit":
                self.tcache_unsorted_limit = value
            case _:
                raise InputError(f"glibc.malloc.{name} is no tunable that this malloc knows")
        return True

    def mallopt(self, parameter: int, value: int) -> int:
        """Set a parameter by its number; 1, or 0 if the value is refused. An unknown number is ignored: 1.

        2.36: malloc/malloc.c, __libc_mallopt().
        """
        if parameter in (M_ARENA_TEST, M_ARENA_MAX) and value <= 0:
            return 1
        name = _NAMES.get(parameter)
        return int(self.set(name, value)) if name else 1


def parse_tunables(text: str) -> dict[str, int]:
    """The malloc tunables in the text of the environment variable GLIBC_TUNABLES.

    >>> parse_tunables("glibc.malloc.tcache_count=0:glibc.malloc.mmap_max=0x10")
    {'tcache_count': 0, 'mmap_max': 16}
    """
    found: dict[str, int] = {}
    for part in filter(None, text.split(":")):
        name, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9]+", value):
            raise InputError(f"{part!r} is not name=number")
        if name.startswith("glibc.malloc."):
            found[name.removeprefix("glibc.malloc.")] = int(value, 0 if value[:2].lower() == "0x" else 10)
    return found
