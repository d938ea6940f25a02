"""Shared memory objects: tmpfs files without a directory, behind MAP_SHARED|MAP_ANONYMOUS, memfd_create() and System V segments.

An object makes its own promise of memory: for all of its pages when it is made, or, if it was made with VM_NORESERVE, for each page
when it comes.

5.17: mm/shmem.c. Left out: swapping, seals, sizes in bytes, quotas of a mount.
"""

from __future__ import annotations

from mmsim.constants import OVERCOMMIT_NEVER, VM_NORESERVE
from mmsim.process.mm import Mm
from mmsim.process.user_memory import UserMemory
from mmsim.process.vma import MappedFile
from mmsim.process.zap import unmap_mapping_range

__all__ = ["memfd_create", "newseg", "shmem_evict_inode", "shmem_file_setup", "truncate_setsize"]


def shmem_file_setup(mm: Mm, path: str, pages: int, vm_flags: int) -> MappedFile:
    """An object of so many pages. Raise ENOMEM if they cannot be promised (5.17: mm/shmem.c, __shmem_file_setup())."""
    noreserve = bool(vm_flags & VM_NORESERVE)
    if not noreserve:
        mm.charge(pages)
    return MappedFile(path, pages, shmem=True, noreserve=noreserve, charged=0 if noreserve else pages)


def memfd_create(mm: Mm, name: str, pages: int = 0) -> MappedFile:
    """A file that nothing else knows (5.17: mm/memfd.c, memfd_create()); ``pages`` is what ftruncate() gave it."""
    return shmem_file_setup(mm, f"/memfd:{name} (deleted)", pages, VM_NORESERVE)


def newseg(mm: Mm, pages: int, noreserve: bool = False) -> MappedFile:
    """A System V segment, as shmget() makes one; attaching it is mapping it (5.17: ipc/shm.c, newseg())."""
    flags = VM_NORESERVE if noreserve and mm.overcommit.policy != OVERCOMMIT_NEVER else 0
    file = shmem_file_setup(mm, "/SYSV00000000 (deleted)", pages, flags)
    file.has_close, file.map_pages = True, False
    return file


def truncate_setsize(user: UserMemory, file: MappedFile, pages: int) -> None:
    """Give a file another size; pages beyond it go, wherever they are mapped, and private copies of them too.

    5.17: mm/truncate.c, truncate_setsize(), truncate_pagecache().
    """
    if pages < file.pages:
        unmap_mapping_range(file.i_mmap, pages, file.pages, even_cows=True)
        file.pages = pages
        user.truncate(file, pages)
    file.pages = pages


def shmem_evict_inode(mm: Mm, file: MappedFile) -> None:
    """Nobody has the object open or mapped any more: its pages and promises go (5.17: mm/shmem.c, shmem_evict_inode())."""
    if mm.pages is not None:
        mm.pages.user.truncate(file)
    mm.overcommit.uncharge(file.charged)
    file.charged = 0
