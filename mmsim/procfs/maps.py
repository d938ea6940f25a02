"""/proc/PID/maps of a simulated process."""

from __future__ import annotations

from mmsim.process.mm import Mm
from mmsim.process.vma import Vma, prot_text
from mmsim.units import PAGE_SHIFT

__all__ = ["maps", "vma_header", "vma_name"]

#: Where the name begins: 25 columns and six for each byte of a pointer.
_NAME_COLUMN = 25 + 8 * 6 - 1


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


def vma_header(mm: Mm, vma: Vma) -> str:
    """The area's line, without a newline; anonymous memory shows no offset and no device.

    5.17: fs/proc/task_mmu.c, show_vma_header_prefix() and show_map_vma(). A line without a name ends in a blank.
    """
    (major, minor), inode, offset = (0, 0), 0, 0
    if vma.vm_file is not None:
        (major, minor), inode, offset = vma.vm_file.device, vma.vm_file.inode, vma.vm_pgoff << PAGE_SHIFT
    text = (f"{vma.vm_start:08x}-{vma.vm_end:08x} {prot_text(vma.vm_flags)} {offset:08x} "
            f"{major:02x}:{minor:02x} {inode} ")
    name = vma_name(mm, vma)
    return text.ljust(_NAME_COLUMN) + " " + name if name else text


def maps(mm: Mm) -> str:
    """The text of /proc/PID/maps (5.17: fs/proc/task_mmu.c). Left out: the gate area [vsyscall]."""
    return "".join(vma_header(mm, vma) + "\n" for vma in mm)
