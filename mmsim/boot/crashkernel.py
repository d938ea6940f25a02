"""``crashkernel=``: memory kept for a second kernel that takes over when this one dies.

    crashkernel=128M                    size; the place is searched for, below 4 GiB if possible
    crashkernel=128M@512M               size and place
    crashkernel=512M-2G:64M,2G-:256M    the size depends on how much RAM there is
    crashkernel=1G,high                 may lie above 4 GiB; then 256 MiB are taken below for devices,
    crashkernel=72M,low                 or as much as this says
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmsim.boot.memblock import Memblock
from mmsim.errors import Errno
from mmsim.klog import KernelLog
from mmsim.rules import Rules
from mmsim.units import GIB, MIB, TIB, U64_MAX, memparse

__all__ = ["CRASH_ALIGN", "CrashKernel", "parse_crashkernel", "reserve_crashkernel"]

CRASH_ALIGN = 16 * MIB
CRASH_ADDR_LOW_MAX = 4 * GIB
CRASH_ADDR_HIGH_MAX = 64 * TIB
#: What the software I/O TLB takes by default: devices that cannot address more than 32 bits need it in the second kernel, too.
SWIOTLB_DEFAULT_SIZE = 64 * MIB


@dataclass(frozen=True, slots=True)
class CrashKernel:
    """What was reserved: base and size in bytes, and the same for the part below 4 GiB (size 0: none)."""

    base: int
    size: int
    low_base: int = 0
    low_size: int = 0


def _last_option(command_line: str, suffix: str | None) -> str | None:
    """The value of the last ``crashkernel=`` with this suffix (None: with neither), up to the next space.

    5.17: kernel/crash_core.c, get_last_crashkernel().
    """
    found = None
    for match in re.finditer(r"crashkernel=([^ ]*)", command_line):
        value = match[1]
        if value.endswith(suffix) if suffix else not value.endswith((",high", ",low")):
            found = value
    return found


def parse_crashkernel(command_line: str, system_ram: int, suffix: str | None = None,
                      rules: Rules | None = None) -> tuple[int, int]:
    """The size and base that the command line asks for; base 0 means anywhere, size 0 that no range fits.

    ``suffix`` is None, ``",high"`` or ``",low"``. Raise Errno: ENOENT if there is no such option, EINVAL if it makes no
    sense; its text is what the kernel logs. 5.17: kernel/crash_core.c, __parse_crashkernel().

    >>> parse_crashkernel("quiet crashkernel=512M-2G:64M,2G-:128M", 2047 << 20)[0] >> 20
    64
    """
    value = _last_option(command_line, suffix)
    if value is None:
        raise Errno("ENOENT", "no crashkernel= on the command line")
    if suffix:
        size, rest = memparse(value)
        if rest == value:
            raise Errno("EINVAL", "crashkernel: memory value expected")
        if rest != suffix:
            odd = rest.removeprefix(suffix) if rest.startswith(suffix) else rest
            raise Errno("EINVAL", f"crashkernel: unrecognized char: {odd[:1]}")
        return size, 0
    if ":" in value:
        return _parse_ranges(value, system_ram, rules or Rules())
    size, rest = memparse(value)
    if rest == value:
        raise Errno("EINVAL", "crashkernel: memory value expected")
    if rest.startswith("@"):
        return size, memparse(rest[1:])[0]
    if rest:
        raise Errno("EINVAL", f"crashkernel: unrecognized char: {rest[0]}")
    return size, 0


def _parse_ranges(value: str, system_ram: int, rules: Rules) -> tuple[int, int]:
    """``start-[end]:size[,…][@base]``: the first range that holds the amount of RAM decides.

    5.17: kernel/crash_core.c, parse_crashkernel_mem().
    """
    if rules.crashkernel_rounds_up:
        system_ram = -(-system_ram // (128 * MIB)) * 128 * MIB
    rest = value
    found = 0
    while True:
        start, rest = _size(rest, "crashkernel: Memory value expected")
        rest = _expect(rest, "-", "crashkernel: '-' expected")
        end = U64_MAX
        if not rest.startswith(":"):
            end, rest = _size(rest, "crashkernel: Memory value expected")
            if end <= start:
                raise Errno("EINVAL", "crashkernel: end <= start")
        rest = _expect(rest, ":", "crashkernel: ':' expected")
        size, rest = _size(rest, "Memory value expected")
        if size >= system_ram:
            raise Errno("EINVAL", "crashkernel: invalid size")
        if start <= system_ram < end:
            found = size
            break
        if not rest.startswith(","):
            break
        rest = rest[1:]
    if not found or "@" not in rest:
        return found, 0
    return found, _size(rest.partition("@")[2], "Memory value expected after '@'")[0]


def _size(text: str, otherwise: str) -> tuple[int, str]:
    size, rest = memparse(text)
    if rest == text:
        raise Errno("EINVAL", otherwise)
    return size, rest


def _expect(text: str, sign: str, otherwise: str) -> str:
    if not text.startswith(sign):
        raise Errno("EINVAL", otherwise)
    return text[1:]


def _parse_logged(command_line: str, system_ram: int, suffix: str | None, memblock: Memblock) -> tuple[int, int] | None:
    """Parse; log a syntax error; None if nothing was asked for or understood."""
    try:
        size, base = parse_crashkernel(command_line, system_ram, suffix, memblock.rules)
    except Errno as error:
        if error.name == "EINVAL":
            _printk(memblock.klog, error.why)
        return None
    if not size and ":" in (_last_option(command_line, suffix) or ""):
        _printk(memblock.klog, "crashkernel size resulted in zero bytes")
    return size, base


def reserve_crashkernel(memblock: Memblock, command_line: str) -> CrashKernel | None:
    """Reserve what ``crashkernel=`` asks for, if it fits; return where, or None. The outcome is logged as the kernel
    does.

    Top-down like any allocation, so usually just below the top of RAM under 4 GiB.
    5.17: arch/x86/kernel/setup.c, reserve_crashkernel().
    """
    total = memblock.phys_mem_size()
    high = False
    asked = _parse_logged(command_line, total, None, memblock)
    if asked is None or not asked[0]:
        asked = _parse_logged(command_line, total, ",high", memblock)
        if asked is None or not asked[0]:
            return None
        high = True
    size, base = asked
    if not base:
        if not high:
            base = memblock.phys_alloc_range(size, CRASH_ALIGN, CRASH_ALIGN, CRASH_ADDR_LOW_MAX, "reserve_crashkernel")
        if not base:
            base = memblock.phys_alloc_range(size, CRASH_ALIGN, CRASH_ALIGN, CRASH_ADDR_HIGH_MAX, "reserve_crashkernel")
        if not base:
            _printk(memblock.klog, "crashkernel reservation failed - No suitable area found.")
            return None
    elif memblock.phys_alloc_range(size, MIB, base, base + size, "reserve_crashkernel") != base:
        _printk(memblock.klog, "crashkernel reservation failed - memory is in use.")
        return None
    low = _reserve_low(memblock, command_line) if base >= CRASH_ADDR_LOW_MAX else (0, 0)
    if low is None:
        memblock.phys_free(base, size, "reserve_crashkernel")
        return None
    _printk(memblock.klog, f"Reserving {size >> 20}MB of memory at {base >> 20}MB for crashkernel (System RAM: {total >> 20}MB)")
    return CrashKernel(base, size, *low)


def _reserve_low(memblock: Memblock, command_line: str) -> tuple[int, int] | None:
    """The part below 4 GiB: (base, size), size 0 if the command line wants none, None if there is no room.

    5.17: arch/x86/kernel/setup.c, reserve_crashkernel_low().
    """
    limit = min(memblock.phys_mem_size(), CRASH_ADDR_LOW_MAX)
    asked = _parse_logged(command_line, limit, ",low", memblock)
    size = asked[0] if asked else max(SWIOTLB_DEFAULT_SIZE + 8 * MIB, 256 * MIB)
    if not size:
        return 0, 0
    base = memblock.phys_alloc_range(size, CRASH_ALIGN, 0, CRASH_ADDR_LOW_MAX, "reserve_crashkernel_low")
    if not base:
        _printk(memblock.klog, f"Cannot reserve {size >> 20}MB crashkernel low memory, please try smaller size.")
        return None
    _printk(memblock.klog, f"Reserving {size >> 20}MB of low memory at {base >> 20}MB for crashkernel "
                           f"(low RAM limit: {limit >> 20}MB)")
    return base, size


def _printk(klog: KernelLog | None, text: str) -> None:
    if klog is not None:
        klog.printk(text)
