"""Sizes, addresses and the arithmetic of C.

Addresses are plain integers in bytes; a PFN (page frame number) is an address divided by the page size.
Python's integers never overflow and its ``//`` rounds down, C's do and round towards zero: where the kernel
depends on either, the functions below do what C does.
"""

from __future__ import annotations

from math import isqrt

__all__ = [
    "PAGE_SHIFT", "PAGE_SIZE", "KIB", "MIB", "GIB", "TIB", "U64_MAX", "ULONG_MAX",
    "align_down", "align_up", "is_aligned", "is_power_of_two",
    "pfn_down", "pfn_up", "pfn_to_phys", "pages_to_kib", "order_size",
    "u32", "u64", "s32", "s64", "c_div", "c_mod", "shift_right",
    "ffs", "fls", "ctz", "ilog2", "int_sqrt", "roundup_pow_of_two", "rounddown_pow_of_two",
    "memparse", "format_bytes", "format_mem_range",
]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
U64_MAX = ULONG_MAX = (1 << 64) - 1


# -- alignment ---------------------------------------------------------------------------------------------

def align_down(value: int, alignment: int) -> int:
    """Round ``value`` down to a multiple of ``alignment``, a power of two.

    5.17: include/linux/math.h, round_down().

    >>> hex(align_down(0x12345, 0x1000))
    '0x12000'
    """
    return value & ~(alignment - 1)


def align_up(value: int, alignment: int) -> int:
    """Round ``value`` up to a multiple of ``alignment``, a power of two.

    5.17: include/linux/math.h, round_up(). Unlike C it cannot wrap at 2^64: wrap with :func:`u64` where the kernel would.

    >>> hex(align_up(0x12345, 0x1000))
    '0x13000'
    """
    return (value + alignment - 1) & ~(alignment - 1)


def is_aligned(value: int, alignment: int) -> bool:
    """Tell whether ``value`` is a multiple of ``alignment``, a power of two (5.17: include/linux/align.h, IS_ALIGNED())."""
    return not value & (alignment - 1)


def is_power_of_two(value: int) -> bool:
    """Tell whether exactly one bit of ``value`` is set (5.17: include/linux/log2.h, is_power_of_2())."""
    return value > 0 and not value & (value - 1)


# -- pages -------------------------------------------------------------------------------------------------

def pfn_down(address: int) -> int:
    """The frame that holds ``address`` (5.17: include/linux/pfn.h, PFN_DOWN())."""
    return address >> PAGE_SHIFT


def pfn_up(address: int) -> int:
    """The first frame that starts at or above ``address`` (5.17: include/linux/pfn.h, PFN_UP())."""
    return (address + PAGE_SIZE - 1) >> PAGE_SHIFT


def pfn_to_phys(pfn: int) -> int:
    """The address of a frame's first byte (5.17: include/linux/pfn.h, PFN_PHYS())."""
    return pfn << PAGE_SHIFT


def pages_to_kib(pages: int) -> int:
    """Pages in KiB: the ``K(x)`` that many kernel files define for their printed sizes.

    >>> pages_to_kib(58733)
    234932
    """
    return pages << (PAGE_SHIFT - 10)


def order_size(order: int) -> int:
    """Bytes in a block of ``order``.

    >>> order_size(10) == 4 * MIB
    True
    """
    return PAGE_SIZE << order


# -- the integers of C -------------------------------------------------------------------------------------

def u32(value: int) -> int:
    """``value`` as an unsigned 32-bit number."""
    return value & 0xFFFF_FFFF


def u64(value: int) -> int:
    """``value`` as an unsigned 64-bit number.

    >>> u64(-1) == U64_MAX
    True
    """
    return value & U64_MAX


def s32(value: int) -> int:
    """The low 32 bits of ``value`` as a signed number."""
    return ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000


def s64(value: int) -> int:
    """The low 64 bits of ``value`` as a signed number.

    >>> s64(U64_MAX)
    -1
    """
    return ((value & U64_MAX) ^ (1 << 63)) - (1 << 63)


def c_div(dividend: int, divisor: int) -> int:
    """Divide as C does, towards zero. Raise ZeroDivisionError for a zero divisor.

    >>> c_div(-7, 2), -7 // 2
    (-3, -4)
    """
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


def c_mod(dividend: int, divisor: int) -> int:
    """The remainder of :func:`c_div`: it has the sign of the dividend.

    >>> c_mod(-7, 2), -7 % 2
    (-1, 1)
    """
    return dividend - divisor * c_div(dividend, divisor)


def shift_right(value: int, bits: int) -> int:
    """Shift a signed 64-bit number right, keeping its sign, as x86 compilers do.

    >>> shift_right(-5, 1), shift_right(u64(-5), 1)
    (-3, -3)
    """
    return s64(value) >> bits


# -- bits --------------------------------------------------------------------------------------------------

def ffs(value: int) -> int:
    """The lowest set bit, counted from 1; 0 if there is none (5.17: arch/x86/include/asm/bitops.h, ffs())."""
    return (value & -value).bit_length()


def fls(value: int) -> int:
    """The highest set bit, counted from 1; 0 if there is none (5.17: arch/x86/include/asm/bitops.h, fls())."""
    return value.bit_length()


def ctz(value: int) -> int:
    """Trailing zero bits: the largest order at which a PFN is aligned (5.17: ``__ffs()``). Raise ValueError for 0."""
    if value == 0:
        raise ValueError("zero has no lowest set bit")
    return (value & -value).bit_length() - 1


def ilog2(value: int) -> int:
    """The logarithm to base 2, rounded down (5.17: include/linux/log2.h, ilog2()). Raise ValueError below 1."""
    if value < 1:
        raise ValueError(f"no logarithm of {value}")
    return value.bit_length() - 1


def int_sqrt(value: int) -> int:
    """The square root, rounded down (5.17: lib/math/int_sqrt.c, int_sqrt())."""
    return isqrt(value)


def roundup_pow_of_two(value: int) -> int:
    """The smallest power of two at or above ``value`` (5.17: include/linux/log2.h, roundup_pow_of_two())."""
    return 1 << (value - 1).bit_length() if value > 1 else 1


def rounddown_pow_of_two(value: int) -> int:
    """The largest power of two at or below ``value`` (5.17: include/linux/log2.h, rounddown_pow_of_two())."""
    return 1 << ilog2(value)


# -- sizes as the kernel reads and prints them -------------------------------------------------------------

_SUFFIXES = "KMGTPE"


def memparse(text: str) -> tuple[int, str]:
    """Read a size as the kernel's command line does; return it with the text that follows.

    A number in C notation (``64``, ``0x40``, ``0100``) and at most one suffix of K, M, G, T, P, E. Text that does not
    begin with a number is size 0 and nothing read, as in the kernel. Sizes wrap at 2^64.
    5.17: lib/cmdline.c, memparse().

    >>> memparse("64M@16M")
    (67108864, '@16M')
    """
    digits, base = text, 10
    if text[:2].lower() == "0x" and text[2:3].lower() in tuple("0123456789abcdef"):
        digits, base = text[2:], 16
    elif text[:1] == "0":
        base = 8
    valid = "0123456789abcdef"[:base]
    length = 0
    while length < len(digits) and digits[length].lower() in valid:
        length += 1
    if not length:
        return 0, text
    value, rest = int(digits[:length], base), digits[length:]
    shift = _SUFFIXES.find(rest[:1].upper()) + 1 if rest else 0
    if shift:
        value, rest = value << (10 * shift), rest[1:]
    return u64(value), rest


def format_bytes(size: int) -> str:
    """A size in the largest binary unit that divides it, for people.

    >>> format_bytes(2 * MIB), format_bytes(1536), format_bytes(0)
    ('2 MiB', '1536 bytes', '0 bytes')
    """
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def format_mem_range(start: int, end: int, digits: int = 16) -> str:
    """The range ``start <= address < end`` as the kernel prints it: ``[mem 0x…-0x…]`` with the last byte, not the end.

    5.17: the ``%#018Lx-%#018Lx`` of e820__print_table() and many more.

    >>> format_mem_range(0, 0x9fc00)
    '[mem 0x0000000000000000-0x000000000009fbff]'
    """
    return f"[mem 0x{u64(start):0{digits}x}-0x{u64(end - 1):0{digits}x}]"
