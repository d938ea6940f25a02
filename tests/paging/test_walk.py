"""The walk: who may access what, what the CPU says otherwise, and what it notes in the tables."""

import itertools

import pytest

from mmsim.constants import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_NX,
    _PAGE_PAT_LARGE,
    _PAGE_PRESENT,
    _PAGE_RW,
    _PAGE_USER,
    X86_PF_INSTR,
    X86_PF_PK,
    X86_PF_PROT,
    X86_PF_RSVD,
    X86_PF_USER,
    X86_PF_WRITE,
)
from mmsim.errors import InputError
from mmsim.paging.pte import (
    PAGE_KERNEL,
    PAGE_NONE,
    PAGE_READONLY,
    PAGE_SHARED,
    PAGE_SHARED_EXEC,
    pfn_pte,
    pte_dirty,
    pte_mkold,
    pte_young,
    swp_entry,
    swp_entry_to_pte,
)
from mmsim.paging.walk import GeneralProtection, PageFault, error_code_names, walk_steps
from mmsim.units import GIB, MIB

from .machines import error_code, space

ADDR = 0x5555_5555_4000


def word_at(tables, level):
    table, index = tables.entry(ADDR, level)
    return table[index]


def change(tables, level, clear=0, add=0):
    table, index = tables.entry(ADDR, level)
    table[index] = table[index] & ~clear | add


@pytest.mark.parametrize("levels", [4, 5])
def test_four_or_five_words_lead_to_the_page_and_the_offset_is_kept(levels):
    tables, cpu = space(levels)
    tables.map_page(ADDR, 0x123, PAGE_READONLY)
    assert cpu.translate(ADDR + 0xABC) == 0x123ABC and cpu.loads == levels
    assert len(walk_steps(tables.memory.contents, tables.pgd, ADDR, levels)) == levels


@pytest.mark.parametrize(("level", "pfn", "size"), [(2, 512 * 3, 2 * MIB), (3, 512 * 512, GIB)])
def test_a_large_page_takes_its_offset_from_more_bits(level, pfn, size):
    tables, cpu = space()
    tables.map_page(4 * GIB, pfn, PAGE_SHARED | _PAGE_PAT_LARGE, level)
    assert cpu.translate(4 * GIB + size - 1) == pfn * 4096 + size - 1
    assert cpu.loads == 5 - level and pte_young(tables.lookup(4 * GIB).word)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_rights_are_anded_over_all_levels_and_nx_is_ored(level):
    for access, clear, add, code in (("w", _PAGE_RW, 0, 7), ("r", _PAGE_USER, 0, 5), ("x", 0, _PAGE_NX, 0x15)):
        tables, cpu = space()
        tables.map_page(ADDR, 0x123, PAGE_SHARED_EXEC)
        assert error_code(cpu, ADDR, access) is None
        cpu.write_cr3(cpu.cr3)
        change(tables, level, clear, add)
        assert error_code(cpu, ADDR, access) == code


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_error_code_does_not_say_which_level_was_not_present(level):
    tables, cpu = space()
    tables.map_page(ADDR, 0x123, PAGE_SHARED)
    change(tables, level, clear=_PAGE_PRESENT)
    assert [error_code(cpu, ADDR, access) for access in "rwx"] == [4, 6, 0x14]
    assert error_code(cpu, ADDR, user=False) == 0


@pytest.mark.parametrize("word", [0, pfn_pte(5, PAGE_NONE), swp_entry_to_pte(swp_entry(1, 5)), swp_entry_to_pte(swp_entry(31, 5)), 0x60])
def test_empty_swapped_moving_and_prot_none_are_all_the_same_to_the_cpu(word):
    tables, cpu = space()
    tables.set_entry(ADDR, word)
    assert error_code(cpu, ADDR) == X86_PF_USER and word_at(tables, 1) == word


def test_a_read_sets_accessed_at_every_level_and_a_write_sets_dirty_in_the_leaf_only():
    tables, cpu = space()
    tables.map_page(ADDR, 0x123, pte_mkold(PAGE_SHARED))
    for level in (2, 3, 4):
        change(tables, level, clear=_PAGE_ACCESSED | _PAGE_DIRTY)
    cpu.translate(ADDR)
    assert all(pte_young(word_at(tables, level)) and not pte_dirty(word_at(tables, level)) for level in (1, 2, 3, 4))
    cpu.translate(ADDR, "w")
    assert [pte_dirty(word_at(tables, level)) for level in (1, 2, 3, 4)] == [True, False, False, False]


def test_a_fault_marks_the_tables_it_passed_but_not_the_page():
    tables, cpu = space()
    tables.map_page(ADDR, 0x123, pte_mkold(PAGE_READONLY))
    change(tables, 4, clear=_PAGE_ACCESSED)
    assert error_code(cpu, ADDR, "w") == 7
    assert pte_young(word_at(tables, 4)) and not pte_young(word_at(tables, 1)) and not pte_dirty(word_at(tables, 1))


def test_an_address_that_is_not_canonical_is_general_protection_and_leaves_cr2_alone():
    _, cpu = space()
    with pytest.raises(GeneralProtection, match="not canonical"):
        cpu.translate(1 << 47)
    assert cpu.cr2 == 0 and cpu.loads == 0


@pytest.mark.parametrize(("level", "bits"), [(1, 1 << 46), (2, 1 << 50), (4, 0x80)])
def test_reserved_bits_are_a_fault_of_their_own(level, bits):
    tables, cpu = space()
    tables.map_page(ADDR, 0x123, PAGE_SHARED)
    change(tables, level, add=bits)
    assert error_code(cpu, ADDR) == X86_PF_USER | X86_PF_PROT | X86_PF_RSVD


def test_a_large_page_has_reserved_bits_where_its_offset_is_and_nx_is_reserved_without_nxe():
    tables, cpu = space()
    tables.map_page(4 * MIB, 1024, PAGE_SHARED, level=2)
    tables.entry(4 * MIB, 2)[0][2] |= 1 << 13
    assert error_code(cpu, 4 * MIB) == 0xD
    tables, cpu = space(nxe=False, smep=False)
    tables.map_page(ADDR, 5, PAGE_SHARED)
    assert error_code(cpu, ADDR, "x") == X86_PF_USER | X86_PF_PROT | X86_PF_RSVD      # and no INSTR bit


def test_the_supervisor_is_kept_from_user_pages_by_smap_and_smep():
    tables, cpu = space()
    tables.map_page(ADDR, 0x123, PAGE_SHARED_EXEC)
    assert [error_code(cpu, ADDR, access, user=False) for access in "rwx"] == [1, 3, 0x11]
    cpu.control.ac = True
    assert [error_code(cpu, ADDR, access, user=False) for access in "rwx"] == [None, None, 0x11]
    cpu.control.smep = False
    assert error_code(cpu, ADDR, "x", user=False) is None


def test_the_supervisor_writes_read_only_pages_only_without_wp():
    tables, cpu = space(smap=False)
    tables.map_page(ADDR, 0x123, PAGE_READONLY)
    assert error_code(cpu, ADDR, "w", user=False) == X86_PF_PROT | X86_PF_WRITE
    cpu.control.wp = False
    assert error_code(cpu, ADDR, "w", user=False) is None and pte_dirty(tables.lookup(ADDR).word)


def test_a_protection_key_forbids_data_accesses_but_not_execution():
    tables, cpu = space(pke=True, pkru=0b10 << 2 * 3)          # key 3: no writes
    tables.map_page(ADDR, 0x123, PAGE_SHARED_EXEC | 3 << 59)
    assert [error_code(cpu, ADDR, access) for access in "rwx"] == [None, 0x27, None]
    cpu.control.pkru = 0b01 << 2 * 3                            # key 3: nothing
    assert [error_code(cpu, ADDR, access) for access in "rwx"] == [0x25, 0x27, None]
    assert error_code(cpu, ADDR, "r") == X86_PF_PK | X86_PF_USER | X86_PF_PROT


def test_user_code_never_reaches_kernel_pages():
    tables, cpu = space()
    kernel = 0xFFFF_8880_0000_0000
    tables.map_page(kernel, 0x123, PAGE_KERNEL)
    assert [error_code(cpu, kernel, access) for access in "rwx"] == [5, 7, 0x15]
    assert [error_code(cpu, kernel, access, user=False) for access in "rwx"] == [None, None, 0x11]


def test_the_codes_that_walks_produce_obey_the_rules_of_the_manual():
    seen = set()
    for levels, access, user, smep, nxe in itertools.product(
            itertools.product([0, 1, 2, 3, 4, 5], repeat=2), "rwx", (True, False), (True, False), (True, False)):
        tables, cpu = space(smep=smep, nxe=nxe)
        tables.map_page(ADDR, 0x123, PAGE_SHARED_EXEC)
        for level, what in zip((1, 3), levels):
            change(tables, level, *((0, 0), (_PAGE_PRESENT, 0), (_PAGE_RW, 0), (_PAGE_USER, 0), (0, _PAGE_NX), (0, 1 << 48))[what])
        code = error_code(cpu, ADDR, access, user)
        if code is not None:
            seen.add(code)
            assert bool(code & X86_PF_USER) == user and bool(code & X86_PF_WRITE) == (access == "w")
            assert bool(code & X86_PF_INSTR) == (access == "x" and (smep or nxe))
            assert not code & X86_PF_RSVD or code & X86_PF_PROT
    # Bits 0 to 4: reserved implies present, and nothing writes and fetches at once.
    assert seen == {code for code in range(32) if not (code & 8 and not code & 1) and code & 0x12 != 0x12}


def test_an_unknown_kind_of_access_is_refused():
    _, cpu = space()
    with pytest.raises(InputError, match="an access is one of"):
        cpu.translate(ADDR, "rw")


def test_a_fault_says_what_it_is():
    assert str(PageFault(0x1000, 0x15)) == "page fault at 0x1000, error code 0x15 (PROT USER INSTR)"
    assert error_code_names(2) == "not present WRITE"
