"""Tables: frames that come from the allocator with the first page below them and go back with the last."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mmsim.errors import Errno, InputError, InvariantError, KernelBug
from mmsim.paging.contents import FrameContents
from mmsim.paging.pte import (
    PAGE_KERNEL,
    PAGE_READONLY,
    PAGE_SHARED,
    pfn_pte,
    pmd_mkhuge,
    pte_pfn,
    swp_entry,
    swp_entry_to_pte,
)
from mmsim.paging.tables import PageTables, TableMemory, check_tables
from mmsim.units import GIB, MIB

from .machines import table_memory


def test_the_first_page_takes_three_tables_and_its_neighbour_none():
    memory = table_memory()
    tables = PageTables(memory)
    free = memory.allocator.memory.nr_free_pages
    tables.map_page(0x5555_5555_4000, 7, PAGE_READONLY)
    assert tables.pgtables_bytes == 3 * 4096
    tables.map_page(0x5555_5555_5000, 8, PAGE_READONLY)
    assert tables.pgtables_bytes == 3 * 4096 and len(tables.ptes) == 1
    tables.map_page(0x7FFF_0000_0000, 9, PAGE_READONLY)
    assert tables.pgtables_bytes == 6 * 4096
    tables.check()
    assert free >= memory.allocator.memory.nr_free_pages


def test_with_five_levels_there_is_one_more():
    tables = PageTables(table_memory(), levels=5)
    tables.map_page(1 << 55, 7, PAGE_READONLY)
    assert tables.pgtables_bytes == 4 * 4096
    assert tables.lookup(1 << 55).word == pfn_pte(7, PAGE_READONLY)
    tables.check()


def test_tables_are_unmovable_frames_and_all_come_back():
    memory = table_memory()
    frames = memory.allocator.memory.frames
    before = frames.refcount.count(0)
    tables = PageTables(memory)
    for addr in (0, 5 * MIB, 3 * GIB, 0x7000_0000_0000):
        tables.map_page(addr, 9, PAGE_SHARED)
    assert all(frames.pageblock_mt[pfn >> 9] == 0 for pfn in tables.table_level) and memory.nr_page_table_pages == 4 + 3
    for leaf in list(tables.leaves()):
        tables.unmap_page(leaf.addr)
    tables.destroy()
    assert frames.refcount.count(0) == before and memory.nr_page_table_pages == 0 and not memory.contents.frames


def test_large_pages_end_the_walk_one_or_two_levels_up():
    tables = PageTables(table_memory())
    tables.map_page(2 * GIB, 512 * 512, PAGE_SHARED, level=3)
    tables.map_page(4 * MIB, 512, PAGE_SHARED, level=2)
    assert tables.lookup(2 * GIB + 12345).level == 3 and tables.lookup(2 * GIB + 12345).addr == 2 * GIB
    assert pte_pfn(tables.lookup(6 * MIB - 1).word, 2) == 512
    assert tables.ptes == {} and tables.entry(4 * MIB) is None
    tables.check()
    with pytest.raises(KernelBug, match="no table"):
        tables.map_page(4 * MIB + 4096, 3, PAGE_SHARED)


def test_a_page_must_be_aligned_canonical_and_alone():
    tables = PageTables(table_memory())
    for addr, pfn, level in ((1, 1, 1), (4096, 512, 2), (2 * MIB, 511, 2), (GIB, 512, 3), (0, 0, 4), (1 << 47, 1, 1)):
        with pytest.raises(InputError):
            tables.map_page(addr, pfn, PAGE_SHARED, level)
    tables.map_page(0, 1, PAGE_SHARED)
    with pytest.raises(KernelBug, match="pte_none"):
        tables.map_page(0, 2, PAGE_SHARED)
    with pytest.raises(KernelBug, match="points to a table"):
        tables.set_entry(0, pmd_mkhuge(pfn_pte(512, PAGE_SHARED)), level=2)


def test_tables_are_freed_only_where_no_neighbouring_area_may_need_them():
    tables = PageTables(table_memory())
    tables.map_page(2 * MIB, 1, PAGE_SHARED)
    tables.map_page(4 * MIB, 2, PAGE_SHARED)
    tables.unmap_page(2 * MIB)
    # An area begins at 3 MiB: it needs the PTE table of 2 MiB and everything above.
    assert tables.free_pgtables(2 * MIB, 2 * MIB + 4096, 0, 3 * MIB) == 0
    assert tables.free_pgtables(2 * MIB, 2 * MIB + 4096, 0, 4 * MIB) == 1
    assert tables.lookup(4 * MIB) is not None
    tables.check()
    with pytest.raises(KernelBug, match="in use"):
        tables.free_pgtables(4 * MIB, 6 * MIB)


def test_the_kernel_half_is_the_same_in_all_address_spaces():
    memory = table_memory()
    kernel = PageTables(memory, user=False)
    kernel.map_page(0xFFFF_8880_0000_0000, 512 * 512, PAGE_KERNEL, level=3)
    one, other = PageTables(memory, kernel), PageTables(memory, kernel)
    assert one.lookup(0xFFFF_8880_0000_0000) == other.lookup(0xFFFF_8880_0000_0000) == kernel.lookup(0xFFFF_8880_0000_0000)
    assert one.pgtables_bytes == 0 and not list(one.leaves()) and len(list(one.kernel_leaves())) == 1
    # What is mapped below an existing PUD table is seen by all at once.
    kernel.map_page(0xFFFF_8880_4000_0000, 512 * 512, PAGE_KERNEL, level=3)
    assert other.lookup(0xFFFF_8880_4000_0000) is not None
    check_tables([kernel, one, other])
    kernel.map_page(0xFFFF_C900_0000_0000, 5, PAGE_KERNEL)
    with pytest.raises(InvariantError, match="kernel half"):
        one.check()
    kernel.sync_global_pgds([one, other])
    check_tables([kernel, one, other])


def test_the_vmalloc_area_gets_its_upper_tables_beforehand_so_that_no_fault_must_copy_them():
    memory = table_memory()
    kernel = PageTables(memory, user=False)
    kernel.preallocate(0xFFFF_C900_0000_0000, 0xFFFF_C900_0000_0000 + 4 * 512 * GIB)
    assert list(kernel.table_level.values()) == [3] * 4
    one = PageTables(memory, kernel)
    kernel.map_page(0xFFFF_C900_0000_0000, 5, PAGE_KERNEL)
    assert one.lookup(0xFFFF_C900_0000_0000) is not None
    one.check()


def test_a_table_put_by_for_a_huge_page_counts_and_serves_when_the_page_is_split():
    tables = PageTables(table_memory())
    tables.map_page(4 * MIB, 512, PAGE_SHARED, level=2)
    tables.deposit(4 * MIB)
    assert tables.pgtables_bytes == 3 * 4096
    tables.check()
    spare = tables.withdraw(4 * MIB)
    tables.pmd_populate(4 * MIB, spare)[3] = pfn_pte(515, PAGE_SHARED)
    assert tables.lookup(4 * MIB + 3 * 4096).word == pfn_pte(515, PAGE_SHARED) and tables.lookup(4 * MIB) is None
    tables.check()
    with pytest.raises(KernelBug, match="put by"):
        tables.withdraw(4 * MIB)


def test_a_machine_without_frames_for_a_table_answers_enomem_and_stays_whole():
    memory = table_memory()
    tables = PageTables(memory)
    tables.map_page(0, 1, PAGE_SHARED)
    allocator = memory.allocator
    alloc = allocator.alloc_pages
    left = [1]

    def nearly_none(gfp_mask, order=0, nid=None, nodemask=None):
        left[0] -= 1
        return alloc(gfp_mask, order) if left[0] >= 0 else None
    allocator.alloc_pages = nearly_none
    with pytest.raises(Errno, match="ENOMEM"):
        tables.map_page(0x7000_0000_0000, 1, PAGE_SHARED)
    tables.check()
    assert tables.free_pgtables(0x7000_0000_0000, 0x7000_0000_1000) == 1


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda t: t.memory.contents.words(t.pgd).__setitem__(9, t.memory.contents.words(t.pgd)[0]), "reached twice"),
    (lambda t: t.memory.contents.words(t.pgd).__setitem__(0, 0), "nothing points to"),
    (lambda t: t.memory.contents.words(t.pgd).__setitem__(9, 0x5067), "none that this address space made"),
    (lambda t: t.memory.allocator.memory.frames.refcount.__setitem__(next(iter(t.table_level)), 2), "2 references"),
    (lambda t: setattr(t, "pgtables_bytes", 4096), "VmPTE"),
    (lambda t: t.ptes.clear(), "shortcut"),
    (lambda t: t.set_entry(2 * MIB, 0x5087, 2), "not aligned"),
])
def test_a_broken_tree_is_found(break_it, message):
    tables = PageTables(table_memory())
    tables.map_page(0, 1, PAGE_SHARED)
    break_it(tables)
    with pytest.raises(InvariantError, match=message):
        tables.check()


def test_one_frame_as_table_of_two_address_spaces_is_found():
    memory = table_memory()
    one, other = PageTables(memory), PageTables(memory)
    one.map_page(0, 1, PAGE_SHARED)
    memory.contents.words(other.pgd)[0] = memory.contents.words(one.pgd)[0]
    stolen = PageTables.adopt(memory, other.pgd)
    with pytest.raises(InvariantError, match="is a table below"):
        check_tables([one, stolen])


def test_frames_hold_bytes_across_their_ends_and_copies_are_equal():
    ram = FrameContents(4)
    ram.write(0xFFC, b"12345678")
    assert ram.read(0xFFC, 8) == b"12345678" and ram.read_word(0x1000) == int.from_bytes(b"5678", "little")
    ram.copy(2, 1)
    assert ram.same(1, 2) and not ram.same(0, 2) and ram.read(0x2000, 4) == b"5678"
    ram.copy(2, 3)
    assert ram.same(2, 3) and 2 not in ram.frames
    ram.write_word(0x2008, 1 << 63)
    assert ram.read(0x200F, 1) == b"\x80"
    with pytest.raises(InputError, match="no frame"):
        ram.write(0x4000, b"!")


# -- a flat dict is the same -------------------------------------------------------------------------------------

# Addresses whose tables are shared at every level.
PAGES = st.builds(lambda a, b, c, d: a << 39 | b << 30 | c << 21 | d << 12,
                  st.sampled_from([0, 1, 255]), st.sampled_from([0, 511]), st.sampled_from([0, 1, 511]), st.integers(0, 3))


class Tables(RuleBasedStateMachine):
    """Maps, changes, unmaps and frees in random order: the tree says what a dict by page says."""

    @initialize(levels=st.sampled_from([4, 4, 5]))
    def start(self, levels):
        self.memory: TableMemory = table_memory()
        self.in_use = self.memory.allocator.memory.frames.refcount.count(0)
        self.tables = PageTables(self.memory, levels=levels)
        self.flat: dict[int, tuple[int, int]] = {}

    def covering(self, addr, level):
        size = (4096, 2 * MIB, GIB)[level - 1]
        return [page for page, (other, _) in self.flat.items()
                if page < addr + size and addr < page + (4096, 2 * MIB, GIB)[other - 1]]

    @rule(addr=PAGES, pfn=st.integers(0, 4095), prot=st.sampled_from([PAGE_SHARED, PAGE_READONLY]))
    def map_page(self, addr, pfn, prot):
        if not self.covering(addr, 1):
            self.tables.map_page(addr, pfn, prot)
            self.flat[addr] = (1, pfn_pte(pfn, prot))

    @rule(addr=PAGES)
    def map_huge(self, addr):
        addr &= -2 * MIB
        # As the kernel does it: only where no table is.
        if not self.covering(addr, 2) and addr >> 21 not in self.tables.ptes:
            self.tables.map_page(addr, 1024, PAGE_SHARED, level=2)
            self.flat[addr] = (2, pmd_mkhuge(pfn_pte(1024, PAGE_SHARED)))

    @rule(addr=PAGES, offset=st.integers(0, 99))
    def swap_out(self, addr, offset):
        if self.flat.get(addr, (0, 0))[0] == 1:
            word = swp_entry_to_pte(swp_entry(0, offset))
            self.tables.set_entry(addr, word)
            self.flat[addr] = (1, word)

    @rule(addr=PAGES)
    def unmap(self, addr):
        found = self.tables.unmap_page(addr)
        pages = self.covering(addr, 1)
        assert (found is None) == (not pages)
        for page in pages:
            assert self.flat.pop(page) == (found.level, found.word) and found.addr == page

    @rule(a=PAGES, b=PAGES)
    def free(self, a, b):
        start, end = min(a, b), max(a, b) + 4096
        size = (4096, 2 * MIB, GIB)
        if any(page < start < page + size[level - 1] for page, (level, _) in self.flat.items()):
            return                       # an area that begins inside a large page would overlap the one that maps it
        for page in [page for page in self.flat if start <= page < end]:
            self.unmap(page)
        # Tables outside that nothing uses any more are their neighbours' to free.
        spans = [(addr, addr + (4096 << 9 * level)) for level, _, addr in self.tables.tables()]
        floor = max([page + size[level - 1] for page, (level, _) in self.flat.items() if page < start]
                    + [high for _, high in spans if high <= start], default=0)
        ceiling = min([page for page in self.flat if page >= end] + [low for low, _ in spans if low >= end], default=0)
        self.tables.free_pgtables(start, end, floor, ceiling)

    @invariant()
    def tree_equals_dict(self):
        if not hasattr(self, "tables"):
            return
        self.tables.check()
        assert {leaf.addr: (leaf.level, leaf.word) for leaf in self.tables.leaves()} == self.flat
        assert [leaf.addr for leaf in self.tables.leaves()] == sorted(self.flat)
        for page, (level, word) in self.flat.items():
            assert self.tables.lookup(page) == (page, level, word)

    def teardown(self):
        if hasattr(self, "tables"):
            for page in list(self.flat):
                self.unmap(page)
            self.tables.destroy()
            assert self.memory.allocator.memory.frames.refcount.count(0) == self.in_use


TestTables = Tables.TestCase
TestTables.settings = settings(deadline=None, max_examples=30, stateful_step_count=30)
