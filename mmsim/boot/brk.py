"""The kernel's own heap of the first instants: a fixed area behind its image, handed out from the bottom and never
freed.

It is there before memblock may allocate: the first page tables of the direct map come from it. Code reserves its share
at build time (RESERVE_BRK) and takes it at run time (extend_brk); what nobody took is not reserved and becomes free
memory.
"""

from __future__ import annotations

from mmsim.boot.memblock import Memblock
from mmsim.errors import InvariantError, KernelBug
from mmsim.units import is_power_of_two

__all__ = ["BrkArea"]


class BrkArea:
    """The .brk section: ``start <= address < limit``, of which the part below ``end`` is taken. Physical addresses.

    >>> brk = BrkArea(0x2000000, 0x2010000)
    >>> hex(brk.extend(0x6000, 0x1000)), hex(brk.end)
    ('0x2000000', '0x2006000')

    5.17: arch/x86/kernel/setup.c, extend_brk(). Left out: the memory is cleared (frames have no contents yet).
    """

    def __init__(self, start: int, limit: int):
        if not 0 < start <= limit:
            raise InvariantError(f"brk: no area from {start:#x} to {limit:#x}")
        self.start = start
        self.end = start
        self.limit = limit
        #: Set by :meth:`reserve`: memblock knows the area's size from then on, so it cannot grow any more.
        self.closed = False
        #: Who took what: (address, size, name).
        self.taken: list[tuple[int, int, str]] = []

    def extend(self, size: int, align: int, who: str = "") -> int:
        """Take ``size`` bytes; return their physical address. BUG if the area is closed or has no room, or for a bad
        alignment.

        5.17: arch/x86/kernel/setup.c, extend_brk().
        """
        if self.closed:
            raise KernelBug("extend_brk: _brk_start is 0: the area was handed to memblock already")
        if not is_power_of_two(align):
            raise KernelBug(f"extend_brk: alignment {align} is no power of two")
        address = (self.end + align - 1) & ~(align - 1)
        if address + size > self.limit:
            raise KernelBug(f"extend_brk: {size} bytes at {address:#x} pass __brk_limit {self.limit:#x}")
        self.end = address + size
        self.taken.append((address, size, who))
        return address

    def reserve(self, memblock: Memblock) -> None:
        """Reserve what was taken, and close the area. 5.17: arch/x86/kernel/setup.c, reserve_brk().

        The compiler puts the function into its caller, so the log says setup_arch.
        """
        if self.end > self.start:
            memblock.reserve(self.start, self.end - self.start, "setup_arch", who="brk")
        self.closed = True

    def check(self) -> None:
        """Raise InvariantError unless the pieces taken lie in the area, one behind the other."""
        reach = self.start
        for address, size, who in self.taken:
            if address < reach or address + size > self.end:
                raise InvariantError(f"brk: {who or 'piece'} at {address:#x} lies outside [{reach:#x}, {self.end:#x})")
            reach = address + size
        if not self.start <= self.end <= self.limit:
            raise InvariantError(f"brk: end {self.end:#x} outside [{self.start:#x}, {self.limit:#x}]")
