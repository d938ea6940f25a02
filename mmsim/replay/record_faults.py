"""The kernel of this machine as a host of the faults program.

An interpreter touches memory of its own. So all of that is written to before a step (:meth:`RealHost.prepare`), and the step's
surroundings run as a rehearsal until they cost nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
from collections.abc import Callable

from mmsim.constants import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from mmsim.replay.faults_program import REGIONS, REGIONS_END, FaultProgram, smaps_sums
from mmsim.replay.record_child import Libc, own_areas
from mmsim.units import PAGE_SIZE

__all__ = ["RealHost", "record_faults"]

P = PAGE_SIZE
#: How often the rehearsal runs at most, and how often it must have cost its own pages only.
_MOST, _QUIET = 60, 3


class RealHost:
    """This process, with the C library's system calls."""

    def __init__(self, libc: Libc):
        self.libc = libc
        self.one_byte = ctypes.create_string_buffer(1)
        self.pipe = os.pipe()

    def call(self, name: str, *arguments: int) -> int:
        return self.libc(name, *arguments)

    def reads(self, start: int, pages: int) -> None:
        for address in range(start, start + pages * P, P):
            ctypes.memmove(self.one_byte, address, 1)

    def writes(self, start: int, pages: int) -> None:
        for address in range(start, start + pages * P, P):
            ctypes.memset(address, 1, 1)

    def reads_badly(self, address: int) -> bool:
        """A read that the kernel makes for write(): a bad address is an error, not a signal."""
        return self.libc("write", self.pipe[1], address, 1) < 0

    def faults(self) -> tuple[int, int]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_minflt, usage.ru_majflt

    def smaps(self) -> str:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
            return file.read()

    def stack_bottom(self) -> int:
        return next((start for start, _, _, _, _, name, _ in own_areas() if name == "[stack]"), 0)

    def memfd(self, name: str, pages: int, written: bool) -> int:
        fd = os.memfd_create(name, 0)
        if written:
            for number in range(pages):
                os.write(fd, bytes([number]) * P)
        else:
            os.ftruncate(fd, pages * P)
        return fd

    def truncate(self, fd: int, pages: int) -> None:
        os.ftruncate(fd, pages * P)

    def fork(self, child: Callable[[], None], parent: Callable[[], None]) -> None:
        told, go = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            try:
                child()
                os.write(told[1], b"x")
                os.read(go[0], 1)
            finally:
                os._exit(0)
        os.read(told[0], 1)
        parent()
        os.write(go[1], b"x")
        os.waitpid(pid, 0)
        for end in (*told, *go):
            os.close(end)

    def own(self) -> None:
        """Write to every page of the interpreter's own memory, one byte with its own value: what a fork left to be copied is
        copied now, and what was never touched is there."""
        for start, end, perms, *_ in own_areas():
            if perms == "rw-p" and not REGIONS <= start < REGIONS_END:
                for address in range(start, end, P):
                    ctypes.memmove(address, address, 1)

    def prepare(self, own: bool) -> None:
        if own:
            self.own()
        region = self.libc("mmap", REGIONS_END - (1 << 30), 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        quiet = 0
        for _ in range(_MOST):
            self.libc("madvise", region, 4 * P, MADV_DONTNEED)
            minor, major = self.faults()
            self.writes(region, 4)
            minor_after, major_after = self.faults()
            json.dumps(smaps_sums(self.smaps(), region, region + 4 * P))
            self.reads(region, 4)
            quiet = quiet + 1 if (minor_after - minor, major_after - major) == (4, 0) else 0
            if quiet == _QUIET:
                break
        self.libc("munmap", region, 4 * P)


def record_faults(libc: Libc) -> None:
    """Print the recording of this kernel. The whole program runs once before, unseen: its first time costs more."""
    host = RealHost(libc)
    FaultProgram(host, lambda line: None, REGIONS + (1 << 40)).run()
    FaultProgram(host, lambda line: os.write(1, line.encode())).run()
