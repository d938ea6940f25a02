"""The kernel's half of the address space under KASLR."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.boot.ioremap import SLOT_BASE
from mmsim.errors import InputError
from mmsim.kernel.layout import CPU_ENTRY_AREA_BASE, PAGE_OFFSET_BASE, Layout
from mmsim.paging.fixmap import Fixmap, virt_to_fix
from mmsim.units import GIB, TIB, U64_MAX


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**64 - 1), max_pfn=st.integers(1, 1 << 34), padding=st.sampled_from([0, 10]))
def test_kaslr_keeps_the_order_of_the_regions_and_moves_them_by_gibibytes(seed, max_pfn, padding):
    layout = Layout(max_pfn, seed=seed, padding_tb=padding)
    layout.check()
    bases = [layout.page_offset, layout.vmalloc_start, layout.vmemmap_start]
    assert bases == sorted(bases) and all(base % GIB == 0 for base in bases)
    assert bases[0] >= PAGE_OFFSET_BASE and bases[2] < CPU_ENTRY_AREA_BASE
    assert layout.direct_map_size == min(64, -(-max_pfn * 4096 // TIB) + padding) * TIB
    assert layout.kernel_offset % (2 << 20) == 0 and layout.kernel_offset < GIB


@settings(deadline=None, max_examples=60)
@given(addr=st.integers(0, U64_MAX), seed=st.none() | st.integers(0, 99))
def test_every_address_lies_in_exactly_one_region(addr, seed):
    layout = Layout(1 << 20, seed=seed)
    assert sum(addr in region for region in layout.regions()) == 1
    assert addr in layout.classify(addr)


def test_seeds_give_different_places_and_the_same_seed_the_same():
    assert len({Layout(65536, seed=seed).page_offset for seed in range(50)}) > 45
    assert Layout(65536, seed=5).regions() == Layout(65536, seed=5).regions()


def test_the_fixmap_grows_downwards():
    layout = Layout(16)
    assert layout.fix_to_virt(0) == 0xFFFF_FFFF_FF7F_F000 and layout.fix_to_virt(1) == layout.fix_to_virt(0) - 4096
    assert layout.classify(layout.fix_to_virt(511)).name == "fixmap"


def test_what_is_no_address_is_refused():
    layout = Layout(16)
    for bad in (-1, 1 << 64):
        with pytest.raises(InputError, match="no address"):
            layout.classify(bad)
    with pytest.raises(InputError):
        layout.fix_to_virt(100_000)
    with pytest.raises(InputError):
        Layout(0)
    with pytest.raises(InputError):
        Layout(16, seed=1, randomize_base=False)


def test_slots_are_numbered_downwards_and_the_early_windows_share_one_table():
    for vsyscall, slot_base in ((False, 0xFFFF_FFFF_FF40_0000), (True, SLOT_BASE)):
        fixmap = Fixmap(vsyscall=vsyscall)
        assert fixmap.virt("FIX_BTMAP_BEGIN") == slot_base
        first, last = fixmap.virt("FIX_BTMAP_BEGIN"), fixmap.virt("FIX_BTMAP_END")
        assert first >> 21 == last >> 21 and last - first == 511 * 4096
        assert all(virt_to_fix(fixmap.virt(name) + 4095) == index for name, index in fixmap.index.items())
        assert fixmap.name(fixmap.index["FIX_BTMAP_BEGIN"] - 65) == "FIX_BTMAP window 1, page 1"
        assert fixmap.name(fixmap.index["FIX_IO_APIC_BASE_0"] + 3) == "FIX_IO_APIC_BASE_3"
    with pytest.raises(InputError, match="no FIX_NOTHING"):
        Fixmap().virt("FIX_NOTHING")
