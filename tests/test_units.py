"""The arithmetic of C and the kernel's way with sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsim.units import (
    GIB,
    KIB,
    MIB,
    PAGE_SIZE,
    U64_MAX,
    align_down,
    align_up,
    c_div,
    c_mod,
    ctz,
    ffs,
    fls,
    format_bytes,
    format_mem_range,
    ilog2,
    int_sqrt,
    is_power_of_two,
    memparse,
    order_size,
    pages_to_kib,
    pfn_down,
    pfn_up,
    rounddown_pow_of_two,
    roundup_pow_of_two,
    s32,
    s64,
    shift_right,
    u32,
    u64,
)

s64_values = st.integers(-(1 << 63), (1 << 63) - 1)
u64_values = st.integers(0, U64_MAX)


@given(s64_values, s64_values.filter(bool))
def test_division_rounds_towards_zero_and_the_remainder_has_the_sign_of_the_dividend(a, b):
    quotient, remainder = c_div(a, b), c_mod(a, b)
    assert quotient * b + remainder == a
    assert abs(remainder) < abs(b)
    assert remainder == 0 or (remainder < 0) == (a < 0)


def test_division_by_zero_is_an_error():
    with pytest.raises(ZeroDivisionError):
        c_div(1, 0)


@given(st.integers())
def test_conversions_keep_the_low_bits(value):
    assert u64(value) == value % (1 << 64)
    assert u32(value) == value % (1 << 32)
    assert u64(s64(value)) == u64(value) and -(1 << 63) <= s64(value) < 1 << 63
    assert u32(s32(value)) == u32(value) and -(1 << 31) <= s32(value) < 1 << 31


@given(s64_values, st.integers(0, 63))
def test_a_signed_shift_rounds_down(value, bits):
    assert shift_right(value, bits) == value // (1 << bits)


@given(u64_values, st.integers(0, 40).map(lambda shift: 1 << shift))
def test_alignment_brackets_the_value(value, alignment):
    low, high = align_down(value, alignment), align_up(value, alignment)
    assert low <= value <= high and low % alignment == high % alignment == 0
    assert high - low == (0 if value % alignment == 0 else alignment)


@given(u64_values)
def test_a_frame_number_rounds_down_for_the_start_and_up_for_the_end(address):
    assert pfn_down(address) * PAGE_SIZE <= address <= pfn_up(address) * PAGE_SIZE
    assert pfn_up(address) - pfn_down(address) == (address % PAGE_SIZE != 0)


@given(st.integers(1, U64_MAX))
def test_bit_searches_agree_with_each_other(value):
    assert ffs(value) == ctz(value) + 1
    assert fls(value) == ilog2(value) + 1
    assert rounddown_pow_of_two(value) <= value <= roundup_pow_of_two(value)
    assert is_power_of_two(value) == (rounddown_pow_of_two(value) == roundup_pow_of_two(value))
    assert int_sqrt(value) ** 2 <= value < (int_sqrt(value) + 1) ** 2


def test_zero_has_no_bit_to_find():
    assert ffs(0) == fls(0) == 0
    with pytest.raises(ValueError, match="no lowest set bit"):
        ctz(0)
    with pytest.raises(ValueError, match="no logarithm"):
        ilog2(0)


@pytest.mark.parametrize(("text", "size", "rest"), [
    ("64M", 64 * MIB, ""),
    ("0x40k@1g", 64 * KIB, "@1g"),
    ("010", 8, ""),
    ("0", 0, ""),
    ("2GB", 2 * GIB, "B"),
    ("nonsense", 0, "nonsense"),
    ("", 0, ""),
    ("-5", 0, "-5"),
    ("16E", 0, ""),                     # 2^64 wraps to nothing
    ("0x", 0, "x"),                     # no hexadecimal digit follows: an octal zero, then an x
    ("1MM", MIB, "M"),
])
def test_sizes_on_the_command_line(text, size, rest):
    assert memparse(text) == (size, rest)


def test_sizes_in_print():
    assert [format_bytes(size) for size in (0, 1, 4096, 3 * MIB, GIB, 1025)] == [
        "0 bytes", "1 bytes", "4 KiB", "3 MiB", "1 GiB", "1025 bytes"]
    assert format_mem_range(0x100000, 0xFFD7000) == "[mem 0x0000000000100000-0x000000000ffd6fff]"
    assert format_mem_range(0, 0x1000, digits=8) == "[mem 0x00000000-0x00000fff]"
    assert pages_to_kib(1) == 4 and order_size(9) == 2 * MIB
