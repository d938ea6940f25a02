"""/proc/PID/maps of a simulated process."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmsim.errors import InputError
from mmsim.process.mm import Mm
from mmsim.process.vma import Vma, prot_text
from mmsim.units import PAGE_SHIFT

__all__ = ["AreaLine", "area_line", "maps", "vma_header", "vma_name"]

#: Where the name begins: 25 columns and six for each byte of a pointer.
_NAME_COLUMN = 25 + 8 * 6 - 1
_LINE = re.compile(r"([0-9a-f]{8,16})-([0-9a-f]{8,16}) ([r-][w-][x-][ps]) ([0-9a-f]{8,16}) ([0-9a-f]{2,}):([0-9a-f]{2,}) (\d+) *(.*)")


@dataclass(frozen=True, slots=True)
class AreaLine:
    """One line of maps: addresses and offset in bytes.

    >>> AreaLine.parse("7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]").name
    '[stack]'
    """

    start: int
    end: int
    perms: str
    offset: int = 0
    device: tuple[int, int] = (0, 0)
    inode: int = 0
    name: str = ""

    def text(self) -> str:
        """The line, without a newline; without a name it ends in a blank.

        5.17: fs/proc/task_mmu.c, show_vma_header_prefix() and show_map_vma(). A newline in a name is printed as ``\\012``.
        """
        major, minor = self.device
        line = f"{self.start:08x}-{self.end:08x} {self.perms} {self.offset:08x} {major:02x}:{minor:02x} {self.inode} "
        name = self.name.replace("\n", "\\012")
        return line.ljust(_NAME_COLUMN) + " " + name if name else line

    @classmethod
    def parse(cls, text: str) -> "AreaLine":
        """Read a line. Raise InputError for one that is none."""
        found = _LINE.fullmatch(text)
        if not found:
            raise InputError(f"no line of maps: {text[:80]!r}")
        start, end, perms, offset, major, minor, inode, name = found.groups()
        return cls(int(start, 16), int(end, 16), perms, int(offset, 16), (int(major, 16), int(minor, 16)), int(inode),
                   name.replace("\\012", "\n"))


def vma_name(mm: Mm, vma: Vma) -> str:
    """What an area is called: its file, or what the kernel knows about it (5.17: fs/proc/task_mmu.c, show_map_vma())."""
    if vma.vm_file is not None:
        return vma.vm_file.path
    if vma.special:
        return vma.special
    if vma.vm_start <= mm.brk and vma.vm_end >= mm.start_brk and mm.start_brk:
        return "[heap]"
    if vma.vm_start <= mm.start_stack <= vma.vm_end:
        return "[stack]"
    return f"[anon:{vma.anon_name}]" if vma.anon_name is not None else ""


def area_line(mm: Mm, vma: Vma) -> AreaLine:
    """The area's line; anonymous memory shows no offset and no device (5.17: fs/proc/task_mmu.c, show_map_vma())."""
    file = vma.vm_file
    if file is None:
        return AreaLine(vma.vm_start, vma.vm_end, prot_text(vma.vm_flags), name=vma_name(mm, vma))
    return AreaLine(vma.vm_start, vma.vm_end, prot_text(vma.vm_flags), vma.vm_pgoff << PAGE_SHIFT, file.device, file.inode, file.path)


def vma_header(mm: Mm, vma: Vma) -> str:
    """The text of :func:`area_line`."""
    return area_line(mm, vma).text()


def maps(mm: Mm) -> str:
    """The text of /proc/PID/maps (5.17: fs/proc/task_mmu.c). Left out: the gate area [vsyscall]."""
    return "".join(vma_header(mm, vma) + "\n" for vma in mm)
