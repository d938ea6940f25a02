"""Memory types: how an access through an entry may be cached.

An entry has three bits for it, PAT, PCD and PWT: together the number of one of eight slots of the PAT register, which the
kernel fills when it starts a CPU. The numbers were chosen so that the old two bits keep their meaning::

    PAT PCD PWT    0: WB   1: WC   2: UC-   3: UC   4: WB   5: WP   6: UC-   7: WT

*Write-back* is ordinary memory. A device's registers must not be cached: each load must reach the device. *Write-combining*
lets stores wait and go out together, which suits a frame buffer.

5.17: arch/x86/mm/pat/memtype.c, pat_init(), __init_cache_modes(). Left out: MTRRs, which have a word of their own in it
(UC- gives way to a write-combining MTRR, UC does not).
"""

from __future__ import annotations

from enum import Enum

from mmsim.constants import _PAGE_CACHE_MASK, _PAGE_PAT, _PAGE_PAT_LARGE, _PAGE_PCD, _PAGE_PWT
from mmsim.errors import InputError

__all__ = ["PAT_SLOTS", "CacheMode", "cachemode2protval", "pgprot2cachemode", "pgprot_4k_2_large", "pgprot_large_2_4k"]

#: What the kernel writes into the PAT register, by slot, as its log says it.
PAT_SLOTS = ("WB", "WC", "UC-", "UC", "WB", "WP", "UC-", "WT")


class CacheMode(Enum):
    """The memory types, with the bits of a 4 KiB entry that ask for them (5.17: enum page_cache_mode)."""

    WB = 0
    WC = _PAGE_PWT
    UC_MINUS = _PAGE_PCD
    UC = _PAGE_PCD | _PAGE_PWT
    WP = _PAGE_PAT | _PAGE_PWT
    WT = _PAGE_PAT | _PAGE_PCD | _PAGE_PWT

    @property
    def words(self) -> str:
        """As /sys/kernel/debug/x86/pat_memtype_list calls it (5.17: cattr_name())."""
        return {"UC": "uncached", "UC_MINUS": "uncached-minus", "WB": "write-back", "WC": "write-combining",
                "WT": "write-through", "WP": "write-protected"}[self.name]


def cachemode2protval(mode: CacheMode) -> int:
    """The bits of a 4 KiB entry for a type (5.17: cachemode2protval()).

    >>> hex(cachemode2protval(CacheMode.UC_MINUS))
    '0x10'
    """
    return int(mode.value)


def pgprot2cachemode(prot: int) -> CacheMode:
    """The type that the bits of a 4 KiB entry ask for (5.17: pgprot2cachemode()).

    >>> pgprot2cachemode(0x8000000000000163).words
    'write-back'
    """
    bits = prot & _PAGE_CACHE_MASK
    slot = bool(bits & _PAGE_PAT) << 2 | bool(bits & _PAGE_PCD) << 1 | bool(bits & _PAGE_PWT)
    return CacheMode[PAT_SLOTS[slot].replace("-", "_MINUS")]


def pgprot_4k_2_large(prot: int) -> int:
    """Protection bits as a large page has them: PAT moves from bit 7 to bit 12 (5.17: pgprot_4k_2_large())."""
    return prot & ~(_PAGE_PAT | _PAGE_PAT_LARGE) | (_PAGE_PAT_LARGE if prot & _PAGE_PAT else 0)


def pgprot_large_2_4k(prot: int) -> int:
    """Protection bits of a large page as a 4 KiB one has them; PSE is gone (5.17: pgprot_large_2_4k())."""
    return prot & ~(_PAGE_PAT | _PAGE_PAT_LARGE) | (_PAGE_PAT if prot & _PAGE_PAT_LARGE else 0)


def parse_cache_mode(text: str) -> CacheMode:
    """A type by its short name, as in :data:`PAT_SLOTS`. Raise InputError."""
    if text not in PAT_SLOTS:
        raise InputError(f"no memory type {text!r}; there are {', '.join(dict.fromkeys(PAT_SLOTS))}")
    return CacheMode[text.replace("-", "_MINUS")]
