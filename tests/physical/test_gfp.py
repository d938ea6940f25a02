"""GFP flags: values, zones, names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim import constants as c
from mmsim.errors import InputError, KernelBug
from mmsim.physical.gfp import (
    GFP_FLAGS,
    alloc_flag_names,
    gfp_migratetype,
    gfp_names,
    gfp_to_alloc_flags,
    gfp_zone,
    parse_gfp,
)


def test_the_composites_have_the_values_that_logs_show():
    assert (c.GFP_KERNEL, c.GFP_ATOMIC, c.GFP_HIGHUSER_MOVABLE) == (0xCC0, 0xA20, 0x1100CCA)
    assert GFP_FLAGS["__GFP_ZERO"] == 0x100


def test_zone_movable_needs_both_highmem_and_movable():
    assert gfp_zone(c._GFP_MOVABLE) == c.ZONE_NORMAL
    assert gfp_zone(c._GFP_HIGHMEM) == c.ZONE_NORMAL
    assert gfp_zone(c._GFP_HIGHMEM | c._GFP_MOVABLE) == c.ZONE_MOVABLE


@pytest.mark.parametrize("bits", [0x3, 0x5, 0x6, 0x7, 0xB, 0xD, 0xE, 0xF])
def test_two_zones_at_once_are_a_bug(bits):
    with pytest.raises(KernelBug, match="several zones at once"):
        gfp_zone(c.GFP_KERNEL & ~c.GFP_ZONEMASK | bits)


def test_an_atomic_request_ignores_cpusets_and_dips_deeper():
    assert alloc_flag_names(gfp_to_alloc_flags(c.GFP_ATOMIC)) == "ALLOC_WMARK_MIN|ALLOC_HARDER|ALLOC_HIGH|ALLOC_KSWAPD"
    assert not gfp_to_alloc_flags(c.GFP_ATOMIC | c._GFP_NOMEMALLOC) & c.ALLOC_HARDER


def test_only_movable_requests_may_use_cma_areas():
    assert gfp_to_alloc_flags(c.GFP_HIGHUSER_MOVABLE, cma=True) & c.ALLOC_CMA
    assert not gfp_to_alloc_flags(c.GFP_HIGHUSER_MOVABLE) & c.ALLOC_CMA
    assert not gfp_to_alloc_flags(c.GFP_KERNEL, cma=True) & c.ALLOC_CMA
    assert gfp_migratetype(c._GFP_RECLAIMABLE) == c.MIGRATE_RECLAIMABLE


@pytest.mark.parametrize(("mask", "names"), [
    (c.GFP_HIGHUSER_MOVABLE | c._GFP_ZERO, "GFP_HIGHUSER_MOVABLE|__GFP_ZERO"),
    (c.GFP_KERNEL_ACCOUNT | c._GFP_ZERO, "GFP_KERNEL_ACCOUNT|__GFP_ZERO"),
    (c.GFP_NOWAIT | c._GFP_NOWARN, "GFP_NOWAIT|__GFP_NOWARN"),
    (c._GFP_IO | c._GFP_FS | c._GFP_NOWARN | c._GFP_NORETRY | c._GFP_COMP | c._GFP_NOMEMALLOC | c._GFP_RECLAIMABLE,
     "__GFP_IO|__GFP_FS|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP|__GFP_NOMEMALLOC|__GFP_RECLAIMABLE"),
    (0, "none"), (c._GFP_SKIP_KASAN_POISON, "0x1000000")])
def test_masks_are_printed_as_recorded_traces_print_them(mask, names):
    assert gfp_names(mask) == names


@given(st.integers(0, c._GFP_BITS_MASK))
@settings(deadline=None)
def test_printed_names_read_back_as_the_same_mask(mask):
    assert parse_gfp(gfp_names(mask)) == mask


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="'GFP_KERNAL' is no GFP flag"):
        parse_gfp("GFP_KERNAL|__GFP_ZERO")
