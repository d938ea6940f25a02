"""Chapter 3, Fundamentals."""

from __future__ import annotations

from mmsim.exercises.answers import Part
from mmsim.exercises.registry import exercise
from mmsim.figures.ch03.page_table_tax import PAGES, addresses, tables_of
from mmsim.figures.ch03.the_walk import BITS, Space
from mmsim.paging.address import indexes, table_cost
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import PAGE_SHARED, pte_pfn
from mmsim.paging.tables import PageTables
from mmsim.paging.walk import Control, loads
from mmsim.reference import toy16
from mmsim.units import GIB, KIB, MIB, PAGE_SHIFT, PAGE_SIZE, TIB

_MAPPED = 0x7FFFF7FFDE06                # an address of the walk figure


@exercise(
    "3.1", "ex03-indexes", "An address by hand",
    Part("pgd", "entry of the PGD"), Part("pud", "entry of the PUD table"), Part("pmd", "entry of the PMD table"),
    Part("pte", "entry of the PTE table"), Part("offset", "offset in the page", "bytes"),
    hints=("Write the address in binary and cut it from the right: 12 bits, then four times 9.",
           "The offset is the last three hexadecimal digits; nine ones in a row are the last entry of a table."))
def indexes_by_hand() -> tuple[int, ...]:
    addr = 0x7FFFF7FFF000
    return *indexes(addr), addr % PAGE_SIZE


@exercise(
    "3.2", "ex03-decode", "A word by hand",
    Part("frame", "the frame's number", kind="hex"),
    hints=("The last three hexadecimal digits are flags, and so is bit 63.", "Bits 12 to 51 are the frame's number."))
def word_by_hand() -> int:
    return pte_pfn(0x8000000012345867)


@exercise(
    "3.3", "ex03-code", "A code by hand",
    Part("present", "the error code of a write to a read-only page", kind="hex"),
    Part("swapped", "the error code of a write to a page whose entry is a swap entry", kind="hex"),
    hints=("Three bits of the code matter: was the page there, was it a write, was it a user?", "A swap entry has P clear."))
def code_by_hand() -> tuple[int, ...]:
    codes = []
    for bit in ("RW", "P"):
        space = Space(_MAPPED, 1, Control())
        found = space.tables.entry(space.addr)
        assert found is not None
        found[0][found[1]] &= ~BITS[bit]
        codes.append(space.outcome("w", True))
    return tuple(codes)


@exercise(
    "3.4", "ex03-loads", "How many loads",
    Part("four", "loads with four levels"), Part("five", "loads with five levels"),
    Part("guest", "loads in a guest, with four levels in guest and host"),
    hints=("One word for each level. In a guest, each address of a table has to be translated by the host first.",
           "A guest of four levels has five guest-physical addresses: of four tables, and of the page."))
def loads_of_a_walk() -> tuple[int, ...]:
    return loads(4), loads(5), loads(4, 4)


@exercise(
    "3.6", "ex03-513", "Tables for 513 pages",
    Part("pte", "PTE tables"), Part("pmd", "PMD tables"), Part("pud", "PUD tables"),
    Part("growth", "by how much VmPTE grows with the 513th page", "KiB"),
    hints=("A PTE table covers 512 pages.", "A page that needs a new table needs one page of memory for it."))
def tables_for_513_pages() -> tuple[float, ...]:
    pages = range(GIB, GIB + 513 * PAGE_SIZE, PAGE_SIZE)
    cost = table_cost(pages)
    before, after = (tables_of(list(pages[:count]), 1).pgtables_bytes for count in (512, 513))
    return cost.pte, cost.pmd, cost.pud, (after - before) // KIB


@exercise(
    "3.8", "ex03-design", "A machine with pages of 16 KiB (design)",
    Part("bits", "bits for each level"), Part("levels", "levels for 47 bits of addresses"),
    Part("user", "the size of user space, half of all addresses", "TiB"),
    Part("large", "the smaller size of large pages", "MiB"), Part("huge", "the larger one", "GiB"),
    hints=("A table fills one page: divide its size by that of an entry.",
           "The offset takes 14 bits. A large page is what a table of the lowest level maps; a larger one, what a table above maps."))
def pages_of_16_kib() -> tuple[int, ...]:
    page = 16 * KIB
    entries = page // 8
    bits, offset = entries.bit_length() - 1, page.bit_length() - 1
    levels = -(-(47 - offset) // bits)
    return bits, levels, (1 << offset + levels * bits - 1) // TIB, entries * page // MIB, entries ** 2 * page // GIB


@exercise(
    "3.9", "ex03-seed", "Random places (seeded)",
    Part("pte", "PTE tables to expect"), Part("pud", "PUD tables to expect", within=1),
    hints=("Two pages share a PTE table only if they lie in the same 2 MiB of 128 TiB.",
           "A box stays empty with a probability of 255/256 to the power of 32."))
def random_places() -> tuple[float, ...]:
    costs = [table_cost(addresses("random", 0, 1, seed)) for seed in range(1, 8)]
    return max(cost.pte for cost in costs), round(256 * (1 - (255 / 256) ** PAGES), 1)


@exercise(
    "3.10", "ex03-break", "Break it: three levels against one",
    Part("ways", "single bits above the PTE that take the right away (PS counted)"),
    hints=("There are three levels above the PTE. In each, try every bit that the figure offers.",
           "Four bits in each level, and one more that makes a table's address that of a large page."))
def ways_to_take_a_right_away() -> int:
    ways = 0
    for level in (2, 3, 4):
        for name in BITS:
            space = Space(_MAPPED, 1, Control())
            for at, bit in ((1, "RW"), (level, name)):
                found = space.tables.entry(space.addr, at)
                assert found is not None
                found[0][found[1]] ^= BITS[bit]
            ways += space.outcome("w", True) >= 0
    return ways


@exercise(
    "3.11", "ex03-build", "Build it: large pages",
    Part("address", "the physical address that 0x40012345 leads to", kind="hex"),
    hints=("The frame begins at 0x200000.", "The offset is 0x40012345 modulo 2 MiB."))
def through_a_large_page() -> int:
    machine = toy16()
    tables = PageTables(machine.tables, machine.init_mm)
    tables.map_page(0x40000000, 0x200000 >> PAGE_SHIFT, PAGE_SHARED, 2)
    cpu = Mmu(machine.contents)
    cpu.write_cr3(tables.pgd << PAGE_SHIFT)
    return cpu.translate(0x40012345)


@exercise(
    "3.12", "ex03-real", "On a real system: pay the tax",
    Part("growth", "by how much VmPTE grows with the 64 MiB", "KiB", within=12),
    hints=("Each 2 MiB have a PTE table of their own.", "32 tables, each one page."))
def tax_of_64_mib() -> int:
    return table_cost(range(GIB, GIB + 64 * MIB, 2 * MIB)).pte * PAGE_SIZE // KIB
