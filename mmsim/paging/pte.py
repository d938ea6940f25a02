"""Page-table entries: 64-bit words, and the functions by which the kernel makes, reads and changes them.

A present entry (bit 0 set) is what the CPU reads::

     63  62..59  58    51            12  11   10    9     8  7    6  5  4    3    2   1   0
    +---+------+-----+-----------------+----+-----+------+--+----+--+--+----+----+---+---+--+
    |NX | pkey | dev | frame number    | SD |uffd | spec |G |PSE |D |A |PCD |PWT |US |RW |P |
    +---+------+-----+-----------------+----+-----+------+--+----+--+--+----+----+---+---+--+

Bit 7 ends the walk in a PMD or PUD entry (PSE) and belongs to the cache type in a PTE (PAT), where a large page has PAT
in bit 12. SD (soft-dirty), uffd, special and devmap are the kernel's own; the CPU ignores them.

With P = 0 the CPU reads nothing else, so the kernel keeps what it likes there::

    none        0
    PROT_NONE   bit 8 set; the frame number is stored *inverted*, so that no speculative load through it can hit a
                cache line of existing memory (L1TF)
    swap        type in bits 63..59, offset inverted in 58..9; bits 1 and 2 keep soft-dirty and uffd-wp. Migration
                entries are swap entries of two types that no swap device has, with the frame number as the offset.
"""

from __future__ import annotations

from typing import NamedTuple

from mmsim import constants as c
from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_BIT_PKEY_BIT0,
    _PAGE_BIT_PROTNONE,
    _PAGE_BIT_SOFT_DIRTY,
    _PAGE_CHG_MASK,
    _PAGE_DEVMAP,
    _PAGE_DIRTY,
    _PAGE_GLOBAL,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_PSE,
    _PAGE_RW,
    _PAGE_SPECIAL,
    _PAGE_USER,
    MAX_SWAPFILES,
    MAX_SWAPFILES_SHIFT,
    PTE_PFN_MASK,
    SWP_MIGRATION_READ,
    SWP_MIGRATION_WRITE,
)
from mmsim.errors import InputError
from mmsim.units import PAGE_SHIFT, U64_MAX

__all__ = [
    "PAGE_SOFT_DIRTY", "PAGE_NONE", "PAGE_SHARED", "PAGE_SHARED_EXEC", "PAGE_COPY", "PAGE_COPY_EXEC", "PAGE_READONLY",
    "PAGE_READONLY_EXEC", "PAGE_KERNEL", "PAGE_KERNEL_EXEC", "PAGE_KERNEL_RO", "PAGE_KERNEL_ROX", "PROTECTION_MAP",
    "SwapEntry", "describe", "is_migration_entry", "is_swap_pte", "kind", "mk_pte", "pfn_pmd", "pfn_pte", "pfn_pud", "pfn_word",
    "pmd_bad", "pmd_large", "pmd_mkhuge", "pmd_modify", "pmd_present", "pmd_trans_huge", "pte_clear_flags",
    "pte_clear_soft_dirty", "pte_dirty", "pte_exec", "pte_flags", "pte_mkclean", "pte_mkdirty", "pte_mkexec",
    "pte_mkold", "pte_mkspecial", "pte_mkwrite", "pte_mkyoung", "pte_modify", "pte_none", "pte_pfn", "pte_pkey",
    "pte_present", "pte_protnone", "pte_set_flags", "pte_soft_dirty", "pte_special", "pte_swp_clear_soft_dirty",
    "pte_swp_mksoft_dirty", "pte_swp_soft_dirty", "pte_to_swp_entry", "pte_write", "pte_wrprotect", "pte_young",
    "swp_entry", "swp_entry_to_pte", "vm_get_page_prot",
]

#: Bit 11: written since soft-dirty bits were last cleared. Only a kernel with CONFIG_MEM_SOFT_DIRTY has it.
PAGE_SOFT_DIRTY = 1 << _PAGE_BIT_SOFT_DIRTY
_PAGE_SWP_SOFT_DIRTY = _PAGE_RW
_ERRATUM_MASK = _PAGE_DIRTY | _PAGE_ACCESSED        # some CPUs set A and D in entries that are not present
_PFN_MASK = {1: PTE_PFN_MASK, 2: PTE_PFN_MASK & ~((1 << 21) - 1), 3: PTE_PFN_MASK & ~((1 << 30) - 1)}

# -- protections: the bits of an entry without its frame (5.17: arch/x86/include/asm/pgtable_types.h) ----------
PAGE_NONE = _PAGE_ACCESSED | _PAGE_PROTNONE
PAGE_SHARED = _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_NX
PAGE_SHARED_EXEC = PAGE_SHARED & ~_PAGE_NX
PAGE_COPY = PAGE_READONLY = _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED | _PAGE_NX
PAGE_COPY_EXEC = PAGE_READONLY_EXEC = PAGE_COPY & ~_PAGE_NX
PAGE_KERNEL = _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY | _PAGE_GLOBAL | _PAGE_NX
PAGE_KERNEL_EXEC = PAGE_KERNEL & ~_PAGE_NX
PAGE_KERNEL_RO = PAGE_KERNEL & ~_PAGE_RW
PAGE_KERNEL_ROX = PAGE_KERNEL_EXEC & ~_PAGE_RW

#: The protection of an area, by VM_READ 1 | VM_WRITE 2 | VM_EXEC 4 | VM_SHARED 8. A private area never starts with RW,
#: whatever it allows: the first write faults and gets its own copy. 5.17: mm/mmap.c, protection_map[].
PROTECTION_MAP: tuple[int, ...] = (
    PAGE_NONE, PAGE_READONLY, PAGE_COPY, PAGE_COPY, PAGE_READONLY_EXEC, PAGE_READONLY_EXEC, PAGE_COPY_EXEC, PAGE_COPY_EXEC,
    PAGE_NONE, PAGE_READONLY, PAGE_SHARED, PAGE_SHARED,
    PAGE_READONLY_EXEC, PAGE_READONLY_EXEC, PAGE_SHARED_EXEC, PAGE_SHARED_EXEC)


def vm_get_page_prot(vm_flags: int, pkey: int = 0) -> int:
    """The protection with which pages of an area are mapped (5.17: mm/mmap.c, vm_get_page_prot()).

    ``pkey`` is the area's protection key, which the kernel has in bits 32..35 of vm_flags where the CPU knows keys.

    >>> hex(vm_get_page_prot(c.VM_READ | c.VM_WRITE))          # private: no RW yet
    '0x8000000000000025'
    >>> hex(vm_get_page_prot(c.VM_READ | c.VM_WRITE | c.VM_SHARED))
    '0x8000000000000027'
    """
    return PROTECTION_MAP[vm_flags & 15] | pkey << _PAGE_BIT_PKEY_BIT0


# -- frame and flags -------------------------------------------------------------------------------------------

def _inverted(word: int) -> bool:
    """Whether the frame number is stored inverted: not present, and not empty (5.17: pgtable-invert.h,
    __pte_needs_invert()).
    """
    return word != 0 and not word & _PAGE_PRESENT


def pfn_word(pfn: int, prot: int, mask: int) -> int:
    """A frame number under ``mask``, inverted if the protection is not present, with the protection."""
    frame = pfn << PAGE_SHIFT
    return (~frame if _inverted(prot) else frame) & mask | prot


def pfn_pte(pfn: int, prot: int) -> int:
    """The entry that maps a frame with a protection (5.17: arch/x86/include/asm/pgtable.h, pfn_pte()).

    >>> hex(pfn_pte(0x12345, PAGE_READONLY))
    '0x8000000012345025'
    >>> hex(pfn_pte(0x12345, PAGE_NONE))                       # inverted: bit 8 instead of P
    '0xfffffedcba120'
    """
    return pfn_word(pfn, prot, PTE_PFN_MASK)


def pfn_pmd(pfn: int, prot: int) -> int:
    """The word of a 2 MiB page; ``prot`` contains PSE (see :func:`pmd_mkhuge`). 5.17: pfn_pmd()."""
    return pfn_word(pfn, prot, _PFN_MASK[2])


def pfn_pud(pfn: int, prot: int) -> int:
    """The word of a 1 GiB page (5.17: pfn_pud())."""
    return pfn_word(pfn, prot, _PFN_MASK[3])


#: The kernel's mk_pte() takes a struct page where pfn_pte() takes its number.
mk_pte = pfn_pte


def pte_pfn(word: int, level: int = 1) -> int:
    """The frame of an entry, also of a PROT_NONE one; ``level`` 2 and 3 are those of 2 MiB and 1 GiB pages.

    5.17: arch/x86/include/asm/pgtable.h, pte_pfn(), pmd_pfn(), pud_pfn().
    """
    return ((~word if _inverted(word) else word) & _PFN_MASK.get(level, PTE_PFN_MASK)) >> PAGE_SHIFT


def pte_flags(word: int) -> int:
    """All bits but the frame number (5.17: pte_flags())."""
    return word & ~PTE_PFN_MASK & U64_MAX


def pte_set_flags(word: int, flags: int) -> int:
    """Set bits (5.17: pte_set_flags())."""
    return word | flags


def pte_clear_flags(word: int, flags: int) -> int:
    """Clear bits (5.17: pte_clear_flags())."""
    return word & ~flags


# -- questions -------------------------------------------------------------------------------------------------

def pte_none(word: int) -> bool:
    """Nothing is there; A and D do not count, some CPUs set them by mistake (5.17: pte_none())."""
    return not word & ~_ERRATUM_MASK


def pte_present(word: int) -> bool:
    """A frame belongs to the entry, even if PROT_NONE hides it from the CPU (5.17: pte_present())."""
    return bool(word & (_PAGE_PRESENT | _PAGE_PROTNONE))


def pte_protnone(word: int) -> bool:
    """A frame is there that nobody may access (5.17: pte_protnone())."""
    return word & (_PAGE_PRESENT | _PAGE_PROTNONE) == _PAGE_PROTNONE


def pte_write(word: int) -> bool:
    """RW is set (5.17: pte_write())."""
    return bool(word & _PAGE_RW)


def pte_dirty(word: int) -> bool:
    """D is set: written through this entry (5.17: pte_dirty())."""
    return bool(word & _PAGE_DIRTY)


def pte_young(word: int) -> bool:
    """A is set: used through this entry (5.17: pte_young())."""
    return bool(word & _PAGE_ACCESSED)


def pte_exec(word: int) -> bool:
    """NX is clear (5.17: pte_exec())."""
    return not word & _PAGE_NX


def pte_special(word: int) -> bool:
    """The frame is nobody's to count, as the zero page (5.17: pte_special())."""
    return bool(word & _PAGE_SPECIAL)


def pte_soft_dirty(word: int) -> bool:
    """Written since soft-dirty bits were cleared (5.17: pte_soft_dirty())."""
    return bool(word & PAGE_SOFT_DIRTY)


def pte_pkey(word: int) -> int:
    """The protection key (5.17: pte_flags_pkey())."""
    return word >> _PAGE_BIT_PKEY_BIT0 & 15


# -- changes ---------------------------------------------------------------------------------------------------

def pte_mkwrite(word: int) -> int:
    """Allow writing (5.17: pte_mkwrite())."""
    return word | _PAGE_RW


def pte_wrprotect(word: int) -> int:
    """Forbid writing (5.17: pte_wrprotect())."""
    return word & ~_PAGE_RW


def pte_mkdirty(word: int, soft_dirty: bool = True) -> int:
    """Mark as written; with CONFIG_MEM_SOFT_DIRTY as soft-dirty too (5.17: pte_mkdirty()).

    >>> hex(pte_mkwrite(pte_mkdirty(mk_pte(0x12345, PAGE_COPY), soft_dirty=False)))
    '0x8000000012345067'
    """
    return word | (_PAGE_DIRTY | PAGE_SOFT_DIRTY if soft_dirty else _PAGE_DIRTY)


def pte_mkclean(word: int) -> int:
    """Forget that it was written (5.17: pte_mkclean())."""
    return word & ~_PAGE_DIRTY


def pte_mkyoung(word: int) -> int:
    """Mark as used (5.17: pte_mkyoung())."""
    return word | _PAGE_ACCESSED


def pte_mkold(word: int) -> int:
    """Forget that it was used, to learn whether it will be (5.17: pte_mkold())."""
    return word & ~_PAGE_ACCESSED


def pte_mkexec(word: int) -> int:
    """Allow execution (5.17: pte_mkexec())."""
    return word & ~_PAGE_NX


def pte_mkspecial(word: int) -> int:
    """Mark a frame that is not to be counted (5.17: pte_mkspecial())."""
    return word | _PAGE_SPECIAL


def pte_clear_soft_dirty(word: int) -> int:
    """Clear the soft-dirty bit (5.17: pte_clear_soft_dirty())."""
    return word & ~PAGE_SOFT_DIRTY


def _modify(word: int, prot: int, keep: int, pfn_mask: int) -> int:
    changed = word & keep | prot & ~keep
    if _inverted(word) != _inverted(changed):
        changed ^= pfn_mask
    return changed


def pte_modify(word: int, prot: int) -> int:
    """Give a present entry another protection; frame, A, D and the kernel's bits stay. To PROT_NONE and back inverts the
    frame number. The cache type of a 4 KiB page loses its PAT bit in 5.17. 5.17: pte_modify().

    >>> hidden = pte_modify(0x8000000012345067, PAGE_NONE)
    >>> hex(hidden), hex(pte_pfn(hidden)), hex(pte_modify(hidden, PAGE_COPY))
    ('0xfffffedcba160', '0x12345', '0x8000000012345065')
    """
    return _modify(word, prot, _PAGE_CHG_MASK | PAGE_SOFT_DIRTY, PTE_PFN_MASK)


# -- large pages -----------------------------------------------------------------------------------------------

def pmd_mkhuge(word: int) -> int:
    """Make it the word of a large page (5.17: pmd_mkhuge())."""
    return word | _PAGE_PSE


def pmd_modify(word: int, prot: int) -> int:
    """:func:`pte_modify` for a 2 MiB page, which keeps PSE (5.17: pmd_modify())."""
    return _modify(word, prot, _PAGE_CHG_MASK | PAGE_SOFT_DIRTY | _PAGE_PSE, _PFN_MASK[2])


def pmd_present(word: int) -> bool:
    """Something is mapped, be it a table or a page; PSE alone counts, as a page being split has P clear for a moment.

    5.17: pmd_present().
    """
    return bool(word & (_PAGE_PRESENT | _PAGE_PROTNONE | _PAGE_PSE))


def pmd_large(word: int) -> bool:
    """A large page that the CPU can use (5.17: pmd_large())."""
    return word & (_PAGE_PSE | _PAGE_PRESENT) == _PAGE_PSE | _PAGE_PRESENT


def pmd_trans_huge(word: int) -> bool:
    """A transparent huge page, and no device memory (5.17: pmd_trans_huge())."""
    return word & (_PAGE_PSE | _PAGE_DEVMAP) == _PAGE_PSE


def pmd_bad(word: int) -> bool:
    """Neither empty nor a table as the kernel makes them (5.17: pmd_bad())."""
    return pte_flags(word) & ~_PAGE_USER != c._KERNPG_TABLE


# -- swap entries ----------------------------------------------------------------------------------------------

_SWP_TYPE_SHIFT = 63 - MAX_SWAPFILES_SHIFT          # in the portable form: a value that fits an xarray entry
_ARCH_TYPE_SHIFT = 64 - MAX_SWAPFILES_SHIFT
_ARCH_OFFSET_FIRST_BIT = _PAGE_BIT_PROTNONE + 1
_ARCH_OFFSET_BITS = _ARCH_TYPE_SHIFT - _ARCH_OFFSET_FIRST_BIT


class SwapEntry(NamedTuple):
    """Where a page is that no frame holds: which swap area (``type``) and which page of it (``offset``)."""

    type: int
    offset: int

    @property
    def val(self) -> int:
        """The portable form, ``swp_entry_t`` (5.17: include/linux/swapops.h, swp_entry())."""
        return self.type << _SWP_TYPE_SHIFT | self.offset

    @classmethod
    def from_val(cls, val: int) -> SwapEntry:
        """Read the portable form (5.17: swp_type(), swp_offset())."""
        return cls(val >> _SWP_TYPE_SHIFT, val & (1 << _SWP_TYPE_SHIFT) - 1)


def swp_entry(type: int, offset: int) -> SwapEntry:
    """A swap entry. Raise InputError for a type of more than 5 bits or an offset of more than 50."""
    if not 0 <= type < 1 << MAX_SWAPFILES_SHIFT or not 0 <= offset < 1 << _ARCH_OFFSET_BITS:
        raise InputError(f"no swap entry of type {type}, offset {offset:#x}: there are 5 and {_ARCH_OFFSET_BITS} bits")
    return SwapEntry(type, offset)


def swp_entry_to_pte(entry: SwapEntry) -> int:
    """The word that stands in the page table. 5.17: arch/x86/include/asm/pgtable_64.h, __swp_entry().

    >>> hex(swp_entry_to_pte(swp_entry(1, 0x1234)))
    '0xfffffffffdb9600'
    """
    offset = ~entry.offset & (1 << _ARCH_OFFSET_BITS) - 1
    return entry.type << _ARCH_TYPE_SHIFT | offset << _ARCH_OFFSET_FIRST_BIT


def pte_to_swp_entry(word: int) -> SwapEntry:
    """Read the word of a swapped page (5.17: pte_to_swp_entry(), __swp_type(), __swp_offset())."""
    return SwapEntry(word >> _ARCH_TYPE_SHIFT, ~word >> _ARCH_OFFSET_FIRST_BIT & (1 << _ARCH_OFFSET_BITS) - 1)


def is_swap_pte(word: int) -> bool:
    """Neither empty nor present (5.17: include/linux/swapops.h, is_swap_pte())."""
    return not pte_none(word) and not pte_present(word)


def is_migration_entry(entry: SwapEntry) -> bool:
    """The page is being moved; the offset is its frame number (5.17: is_migration_entry())."""
    return entry.type in (SWP_MIGRATION_READ, SWP_MIGRATION_WRITE)


def pte_swp_mksoft_dirty(word: int) -> int:
    """Remember soft-dirty in a swap entry (5.17: pte_swp_mksoft_dirty())."""
    return word | _PAGE_SWP_SOFT_DIRTY


def pte_swp_soft_dirty(word: int) -> bool:
    """Whether a swapped page was soft-dirty (5.17: pte_swp_soft_dirty())."""
    return bool(word & _PAGE_SWP_SOFT_DIRTY)


def pte_swp_clear_soft_dirty(word: int) -> int:
    """Clear it (5.17: pte_swp_clear_soft_dirty())."""
    return word & ~_PAGE_SWP_SOFT_DIRTY


# -- for people ------------------------------------------------------------------------------------------------

def kind(word: int, level: int = 1) -> str:
    """What an entry is: ``none``, ``table``, ``page``, ``protnone``, ``migration`` or ``swap``; of these the CPU can tell
    apart only the tables and pages.
    """
    if pte_none(word):
        return "none"
    if word & _PAGE_PRESENT:
        return "page" if level == 1 or word & _PAGE_PSE else "table"
    if word & _PAGE_PROTNONE:
        return "protnone"
    entry = pte_to_swp_entry(word)
    if is_migration_entry(entry):
        return "migration"
    return "swap" if entry.type < MAX_SWAPFILES else "other"


def describe(word: int, level: int = 1) -> str:
    """An entry in words.

    >>> describe(0x8000000012345867)
    'frame 0x12345: P RW US A D soft-dirty NX'
    >>> describe(0xfffffffffdb9600)
    'swap area 1, page 0x1234'
    """
    what = kind(word, level)
    if what == "none":
        return "empty"
    if what in ("swap", "migration", "other"):
        entry = pte_to_swp_entry(word)
        if what == "migration":
            return f"frame {entry.offset:#x} on the move, {'writable' if entry.type == SWP_MIGRATION_WRITE else 'read-only'}"
        return f"swap area {entry.type}, page {entry.offset:#x}"
    bit_7 = "PAT" if level == 1 else "PSE"
    bit_8 = "PROT_NONE" if what == "protnone" else "G"
    names = ("P", "RW", "US", "PWT", "PCD", "A", "D", bit_7, bit_8, "special", "uffd-wp", "soft-dirty")
    found = [name for bit, name in enumerate(names) if word >> bit & 1]
    found += ["devmap"] if word & _PAGE_DEVMAP else []
    found += [f"pkey {pte_pkey(word)}"] if word & _PAGE_PRESENT and pte_pkey(word) else []
    found += ["NX"] if word & _PAGE_NX else []
    return f"{'table in ' if what == 'table' else ''}frame {pte_pfn(word, level if what != 'table' else 1):#x}: {' '.join(found)}"
