"""Signals that an access of memory raises, as values.

5.17: include/uapi/asm-generic/siginfo.h; arch/x86/mm/fault.c. Left out: handlers, queues, and everything else about signals: the
program's access ends with the signal, and the program decides what then happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsim.constants import SIGBUS, SIGSEGV

__all__ = ["Signal", "bus_adrerr", "segv_accerr", "segv_kernel", "segv_maperr"]

_NAMES = {SIGSEGV: "SIGSEGV", SIGBUS: "SIGBUS"}


@dataclass(frozen=True, slots=True)
class Signal:
    """``signo`` with ``si_code`` (its name) and ``si_addr``.

    >>> print(segv_maperr(0x123))
    SIGSEGV (SEGV_MAPERR) at 0x123
    """

    signo: int
    code: str
    address: int

    @property
    def name(self) -> str:
        """SIGSEGV or SIGBUS."""
        return _NAMES[self.signo]

    def __str__(self) -> str:
        return f"{self.name} ({self.code}) at {self.address:#x}"


def segv_maperr(address: int) -> Signal:
    """Nothing is mapped there (5.17: bad_area())."""
    return Signal(SIGSEGV, "SEGV_MAPERR", address)


def segv_accerr(address: int) -> Signal:
    """The area forbids it (5.17: bad_area_access_error())."""
    return Signal(SIGSEGV, "SEGV_ACCERR", address)


def segv_kernel() -> Signal:
    """An address that is not canonical: the CPU tells no address (5.17: arch/x86/kernel/traps.c, exc_general_protection())."""
    return Signal(SIGSEGV, "SI_KERNEL", 0)


def bus_adrerr(address: int) -> Signal:
    """The file ends before the page (5.17: do_sigbus())."""
    return Signal(SIGBUS, "BUS_ADRERR", address)
