"""golden/pte, golden/consts, and page tables that were dumped from the memory of a stopped machine (pt.json)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmsim import constants
from mmsim.constants import (
    _PAGE_GLOBAL,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_TABLE,
    _PAGE_USER,
    VM_EXEC,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    ZONE_NORMAL,
)
from mmsim.errors import InputError
from mmsim.paging.address import LEVEL_SHIFT, page_size
from mmsim.paging.contents import FrameContents
from mmsim.paging.pagemap import pagemap_entry
from mmsim.paging.pte import (
    PROTECTION_MAP,
    SwapEntry,
    kind,
    pte_present,
    pte_to_swp_entry,
    pte_write,
    swp_entry,
    swp_entry_to_pte,
    vm_get_page_prot,
)
from mmsim.paging.tables import Leaf, PageTables, TableMemory
from mmsim.paging.walk import Control, walk_rights, walk_steps
from mmsim.physical.free import free_pages_core
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page_alloc import PageAllocator
from mmsim.physical.zone import Zone
from mmsim.replay.kernel_tables import kernel_half
from mmsim.replay.readers import Record, read_csv, read_json, read_text
from mmsim.replay.registry import Check, replays, same
from mmsim.units import KIB, PAGE_SHIFT, PAGE_SIZE, U64_MAX

__all__ = ["constants_of_the_compiler", "info_mem", "page_tables", "swap_entries"]


@replays("pte/*.csv*")
def swap_entries(path: Path) -> Iterator[Check]:
    """A swap entry's portable value and its word in the page table, and both read back, against 5.17's macros compiled."""
    for row in read_csv(path):
        entry = swp_entry(row["type"], row["offset"])
        where = f"line {row.line}: type {entry.type}, offset {entry.offset:#x}"
        word = swp_entry_to_pte(entry)
        yield same(f"{where}: swp_entry_t", row["swp_entry_val"], entry.val)
        yield same(f"{where}: page-table entry", row["x86_64_pte"], word)
        yield same(f"{where}: read back", (row["back_type"], row["back_offset"]), tuple(pte_to_swp_entry(row["x86_64_pte"])))
        yield same(f"{where}: swp_entry_t read back", (entry.type, entry.offset), tuple(SwapEntry.from_val(row["swp_entry_val"])))
        yield same(f"{where}: seen as", True, not pte_present(word) and kind(word) in ("swap", "migration"))


# -- constants -------------------------------------------------------------------------------------------------

def _protections() -> dict[str, int]:
    """The names __P000 … __S111 (execute, write, read) with the model's values."""
    found = {}
    for index, prot in enumerate(PROTECTION_MAP):
        bits = "".join("1" if index & bit else "0" for bit in (VM_EXEC, VM_WRITE, VM_READ))
        found[f"__{'S' if index & VM_SHARED else 'P'}{bits}"] = prot
    return found


@replays("consts/*.json*")
def constants_of_the_compiler(path: Path) -> Iterator[Check]:
    """Every constant of the model that the kernel's own compiler was asked for: page-table bits, protections, flags."""
    groups = read_json(path)["values"]
    mine = _protections()
    for group, values in groups.items():
        for name, value in values.items():
            # Python would mangle two leading underscores in a class, so the model's names have one.
            known = mine.get(name, getattr(constants, name, getattr(constants, name.replace("__", "_", 1), None)))
            if isinstance(known, int):
                yield same(f"{group}: {name}", value & U64_MAX, known & U64_MAX)
            elif group == "page_bits":
                yield Check(f"{group}: {name}", False, value, "the model has no such constant")


# -- dumped page tables ------------------------------------------------------------------------------------------

def _number(text: Any) -> int:
    return text if isinstance(text, int) else int(text, 16)


class _Dump:
    """A recorded dump, put into the frames of a machine: the user's tables where they were, the kernel's in frames of ours.

    Recorded of the upper tables is where they lie and what they map, of the kernel's half only what its pages allow; so
    entries that point to tables are made as the kernel makes them.
    """

    def __init__(self, record: Record):
        self.record = record
        regs = record["regs"]
        self.levels = 5 if int(regs["CR4"], 16) >> 12 & 1 else 4
        self.pgd = (int(regs["CR3"], 16) & (1 << 52) - 1) >> PAGE_SHIFT
        self.recorded_tables = [(level, _number(phys) >> PAGE_SHIFT, _number(base)) for level, phys, base in record["tables"]]
        self.recorded_leaves = [Leaf(_number(leaf["va"]), leaf["level"], _number(leaf["pte"])) for leaf in record["user_leaves"]]
        # The frames above those of the dump belong to the tables that the model makes itself.
        first = 1 + max([pfn for _, pfn, _ in self.recorded_tables] + [0xFFFF]) | 0x3FF
        self.own = PhysicalMemory(first + 1 + 4096)
        node = self.own.add_node(0, first + 1, 4096, 4096)
        zone = node.zones[ZONE_NORMAL] = Zone(self.own, 0, ZONE_NORMAL, first + 1, 4096, 4096)
        node.zonelist = [zone]
        self.own.frames.assign_zone(zone, first + 1, first + 1 + 4096)
        for pfn in range(first + 1, first + 1 + 4096, 1024):
            free_pages_core(self.own, pfn, 10)
        self.contents = FrameContents(self.own.frames.max_pfn)
        self._fill()
        self.tables = PageTables.adopt(TableMemory(PageAllocator(self.own), self.contents), self.pgd, levels=self.levels)

    def _fill(self) -> None:
        at = {(level, base >> LEVEL_SHIFT[level + 1] if level < self.levels else 0): pfn
              for level, pfn, base in self.recorded_tables}
        for level, pfn, base in self.recorded_tables:
            self.own.frames.refcount[pfn] = 1
            self.contents.words(pfn)
            if level < self.levels:
                above = at.get((level + 1, base >> LEVEL_SHIFT[level + 2] if level + 1 < self.levels else 0))
                if above is None:
                    raise InputError(f"the table of level {level} for {base:#x} has none above it")
                self.contents.words(above)[base >> LEVEL_SHIFT[level + 1] & 511] = pfn << PAGE_SHIFT | _PAGE_TABLE
        for leaf in self.recorded_leaves:
            table = at.get((leaf.level, leaf.addr >> LEVEL_SHIFT[leaf.level + 1]))
            if table is None:
                raise InputError(f"the entry for {leaf.addr:#x} has no table of level {leaf.level}")
            self.contents.words(table)[leaf.addr >> LEVEL_SHIFT[leaf.level] & 511] = leaf.word

    def map_kernel(self) -> PageTables:
        """Map the recorded ranges of the kernel's half, in tables of their own that share nothing with the user's."""
        kernel = PageTables(TableMemory(PageAllocator(self.own), self.contents), levels=self.levels, user=False)
        for one in self.record["kernel_ranges"]:
            level, flags = one["level"], _number(one["flags"])
            size = page_size(level)
            for addr in range(_number(one["start"]), _number(one["end"]), size):
                # Which frames they are is not recorded: those of the direct map would do for all.
                kernel.map_page(addr, (addr & (1 << 46) - 1) >> PAGE_SHIFT, flags & ~_PAGE_PSE, level)
        return kernel


def _vm_flags(permissions: str) -> int:
    return (VM_READ * (permissions[0] == "r") | VM_WRITE * (permissions[1] == "w") | VM_EXEC * (permissions[2] == "x")
            | VM_SHARED * (permissions[3] == "s"))


def _areas(lines: Iterable[str]) -> list[tuple[int, int, int]]:
    found = []
    for line in lines:
        addresses, permissions = line.split()[:2]
        start, _, end = addresses.partition("-")
        found.append((int(start, 16), int(end, 16), _vm_flags(permissions)))
    return found


@replays("linux-*/pt*.json", "recordings/*/pt*.json")
def page_tables(path: Path) -> Iterator[Check]:
    """A dump of a process's page tables: the walk to every page finds the recorded entry at its level and nothing else is
    mapped; the protection is that of the area; VmPTE; the kernel's own pagemap for the same addresses; and the kernel's half, by
    ranges of one page size and protection, against the tables of a machine that is booted anew.

    Not recorded is how many processes map a page. The dumped one had forked: what it did not write since is mapped by its
    child as well, and these are the anonymous pages without RW.
    """
    record = read_json(path)
    dump = _Dump(record)
    tables = dump.tables
    areas = _areas(record["maps"])
    for leaf in dump.recorded_leaves:
        steps = walk_steps(dump.contents, dump.pgd, leaf.addr, dump.levels)
        yield same(f"walk to {leaf.addr:#x}: level and entry", (leaf.level, hex(leaf.word)), (steps[-1].level, hex(steps[-1].word)))
        flags = next((vm_flags for start, end, vm_flags in areas if start <= leaf.addr < end), None)
        shown = _PAGE_NX | _PAGE_USER | _PAGE_PRESENT | (_PAGE_GLOBAL if not leaf.word & _PAGE_PRESENT else 0)
        # PROT_NONE keeps no NX; in its word bit 63 belongs to nothing.
        yield same(f"{leaf.addr:#x}: protection of its area", hex(leaf.word & shown),
                   None if flags is None else hex(vm_get_page_prot(flags) & shown))
    yield same("all leaves, in order", [(hex(leaf.addr), leaf.level, hex(leaf.word)) for leaf in dump.recorded_leaves],
               [(hex(leaf.addr), leaf.level, hex(leaf.word)) for leaf in tables.leaves()])
    yield same("all tables", sorted(dump.recorded_tables)[:-1], sorted(tables.tables()))
    tables.check()
    huge = sum(leaf.level == 2 for leaf in tables.leaves())
    for line in record["status"]:
        name, _, value = line.partition(":")
        if name == "VmPTE":
            # One PTE table is put by for each huge page.
            yield same("VmPTE (kB)", int(value.split()[0]), (tables.pgtables_bytes + huge * PAGE_SIZE) // KIB)
    for one in record["pagemap_compare"]:
        addr = _number(one["va"])
        found = tables.lookup(addr)
        yield same(f"pagemap of {addr:#x}", hex(_number(one["pagemap"])), hex(pagemap_entry(
            found, addr, vma_soft_dirty=True, mapcount=1 if found and pte_write(found.word) else 2)))
    yield from kernel_half(record)


@replays("linux-*/pt-info-mem*.txt", "recordings/*/pt-info-mem*.txt")
def info_mem(path: Path) -> Iterator[Check]:
    """What the emulator's own walker (``info mem``) says of all pages of a stopped machine, user and kernel half: ranges of
    equal rights. The tables are those of the pt.json beside it.
    """
    beside = path.with_name(path.name.replace("-info-mem", "").removesuffix(".txt") + ".json")
    if not beside.exists():
        raise InputError(f"needs {beside.name} beside it, with the dumped tables")
    dump = _Dump(read_json(beside))
    recorded = [line.strip() for line in read_text(path).split("\n") if line[:1] in "0123456789abcdef" and line.count("-") >= 1
                and len(line.split()) == 3]
    kernel = dump.map_kernel()
    control = Control(levels=dump.levels)
    ranges: list[tuple[int, int, str]] = []
    for tables, leaves in ((dump.tables, dump.tables.leaves()), (kernel, kernel.kernel_leaves())):
        for leaf in leaves:
            now = walk_rights(dump.contents, tables.pgd, leaf.addr, control)
            if now is None:
                continue
            rights = f"{'u' if now.us else '-'}r{'w' if now.rw else '-'}"
            size = page_size(leaf.level)
            if ranges and ranges[-1][1] == leaf.addr and ranges[-1][2] == rights:
                ranges[-1] = (ranges[-1][0], leaf.addr + size, rights)
            else:
                ranges.append((leaf.addr, leaf.addr + size, rights))
    # The last range of the address space has no end that fits 64 bits.
    got = [f"{start:016x}-{end & U64_MAX:016x} {end - start:016x} {rights}" for start, end, rights in ranges]
    yield same("number of ranges", len(recorded), len(got))
    for number, line in enumerate(recorded):
        yield same(f"range {number}", line, got[number] if number < len(got) else "no such range")
