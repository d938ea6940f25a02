"""The system calls of a process, with the kernel's return values: an address or 0, or a negative errno.

    >>> from mmsim.constants import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
    >>> calls = SystemCalls(Mm())
    >>> hex(calls.mmap(0, 0x3000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS))
    '0x7ffff7ffc000'
    >>> calls.munmap(0x123, 0x1000), calls.why
    (-22, '0x123 + 0x1000 is no range of user pages')
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from mmsim.errors import Errno
from mmsim.process import brk as _brk
from mmsim.process import madvise as _madvise
from mmsim.process import mincore as _mincore
from mmsim.process import mlock as _mlock
from mmsim.process import mmap as _mmap
from mmsim.process import mprotect as _mprotect
from mmsim.process import mremap as _mremap
from mmsim.process import msync as _msync
from mmsim.process import munmap as _munmap
from mmsim.process.mm import Mm
from mmsim.process.populate import Access, Touch, touch
from mmsim.process.vma import MappedFile
from mmsim.units import PAGE_SIZE, u64

__all__ = ["SystemCalls"]

P = ParamSpec("P")


class SystemCalls:
    """What a program can do to its address space. ``why`` says in words why the last call failed, and is empty if it
    did not. Arguments are taken as the kernel takes them: as unsigned 64-bit numbers."""

    def __init__(self, mm: Mm):
        self.mm = mm
        self.why = ""

    def _run(self, call: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
        self.why = ""
        try:
            return call(*args, **kwargs) or 0
        except Errno as error:
            self.why = error.why
            return -error.number

    def mmap(self, addr: int, length: int, prot: int, flags: int, file: MappedFile | None = None, offset: int = 0) -> int:
        """Map a file or anonymous memory (:func:`mmsim.process.mmap.mmap`)."""
        return self._run(_mmap.mmap, self.mm, u64(addr), u64(length), u64(prot), u64(flags), file, u64(offset))

    def munmap(self, addr: int, length: int) -> int:
        """Unmap a range (:func:`mmsim.process.munmap.do_munmap`)."""
        return self._run(_munmap.do_munmap, self.mm, u64(addr), u64(length))

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        """Change permissions (:func:`mmsim.process.mprotect.mprotect`)."""
        return self._run(_mprotect.mprotect, self.mm, u64(addr), u64(length), u64(prot))

    def mremap(self, addr: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0) -> int:
        """Resize or move (:func:`mmsim.process.mremap.mremap`)."""
        return self._run(_mremap.mremap, self.mm, u64(addr), u64(old_len), u64(new_len), u64(flags), u64(new_addr))

    def brk(self, addr: int) -> int:
        """Move the heap's end (:func:`mmsim.process.brk.brk`): never an error, the result says where it is."""
        return self._run(_brk.brk, self.mm, u64(addr))

    def mlock(self, addr: int, length: int) -> int:
        """Lock pages in memory (:func:`mmsim.process.mlock.mlock`)."""
        return self._run(_mlock.mlock, self.mm, u64(addr), u64(length))

    def mlock2(self, addr: int, length: int, flags: int) -> int:
        """Lock pages now or as they come (:func:`mmsim.process.mlock.mlock2`)."""
        return self._run(_mlock.mlock2, self.mm, u64(addr), u64(length), flags)

    def munlock(self, addr: int, length: int) -> int:
        """Unlock pages (:func:`mmsim.process.mlock.munlock`)."""
        return self._run(_mlock.munlock, self.mm, u64(addr), u64(length))

    def mlockall(self, flags: int) -> int:
        """Lock everything (:func:`mmsim.process.mlock.mlockall`)."""
        return self._run(_mlock.mlockall, self.mm, flags)

    def munlockall(self) -> int:
        """Unlock everything (:func:`mmsim.process.mlock.munlockall`)."""
        return self._run(_mlock.munlockall, self.mm)

    def madvise(self, addr: int, length: int, advice: int) -> int:
        """Give advice on a range (:func:`mmsim.process.madvise.madvise`)."""
        return self._run(_madvise.madvise, self.mm, u64(addr), u64(length), advice)

    def msync(self, addr: int, length: int, flags: int) -> int:
        """Write changes of shared files back (:func:`mmsim.process.msync.msync`)."""
        return self._run(_msync.msync, self.mm, u64(addr), u64(length), flags)

    def mincore(self, addr: int, length: int, vec: int | bytearray) -> int:
        """Which pages are in memory (:func:`mmsim.process.mincore.mincore`). ``vec`` is an address of the program, or a
        bytearray outside of it, which takes the answer."""
        if not isinstance(vec, bytearray):
            return self._run(_mincore.mincore, self.mm, u64(addr), u64(length), u64(vec), self.copy_to_user)
        vec.clear()

        def collect(_: int, data: bytes) -> bool:
            vec.extend(data)
            return True
        return self._run(_mincore.mincore, self.mm, u64(addr), u64(length), 0, collect)

    def copy_to_user(self, addr: int, data: bytes) -> bool:
        """Write to the program's memory as the kernel does for a system call; False if that faults.

        5.17: arch/x86/include/asm/uaccess_64.h, copy_to_user(). Here only the areas are asked; a process writes.
        """
        pages = range(addr & -PAGE_SIZE, addr + len(data), PAGE_SIZE)
        return all(self.touch(max(page, addr), Access.WRITE).outcome.value == 0 for page in pages)

    def touch(self, addr: int, access: Access = Access.READ) -> Touch:
        """An access of the program (:func:`mmsim.process.populate.touch`)."""
        return touch(self.mm, u64(addr), access)
