"""mmap: check the arguments in the kernel's order, find a place, and make or extend an area."""

from __future__ import annotations

from mmsim.constants import (
    LEGACY_MAP_MASK,
    LOCKED_MASK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_SYNC,
    MAP_TYPE,
    OVERCOMMIT_NEVER,
    PROT_WRITE,
    SOFTDIRTY_BIT,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_SHARED,
    VM_SPECIAL,
    VM_SYNC,
    VM_WRITE,
)
from mmsim.errors import Errno
from mmsim.process.merge import Merge, MergeRequest, can_vma_merge_after, can_vma_merge_before
from mmsim.process.mm import Mm
from mmsim.process.munmap import do_munmap
from mmsim.process.populate import mm_populate
from mmsim.process.shmem import shmem_file_setup
from mmsim.process.unmapped_area import get_unmapped_area
from mmsim.process.vma import MappedFile, Vma
from mmsim.units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, align_down, align_up, is_aligned, u64

__all__ = ["do_mmap", "mmap", "mmap_region", "accountable_mapping"]

_MAX_LFS_FILESIZE = (1 << 63) - 1


def accountable_mapping(vm_flags: int) -> bool:
    """Is it a promise of memory? A private writable mapping without VM_NORESERVE is (5.17: mm/mmap.c, accountable_mapping())."""
    return vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


def mmap(mm: Mm, addr: int, length: int, prot: int, flags: int, file: MappedFile | None = None, offset: int = 0) -> int:
    """Map ``length`` bytes of ``file`` from byte ``offset``, or anonymous memory; return the address.

    ``file`` is None for a bad descriptor: EBADF unless MAP_ANONYMOUS. 5.17: arch/x86/kernel/sys_x86_64.c, mmap();
    mm/mmap.c, ksys_mmap_pgoff(). MAP_HUGETLB finds an empty pool of huge pages (ENOMEM).
    """
    if not is_aligned(offset, PAGE_SIZE):
        raise Errno("EINVAL", f"the offset {offset:#x} is not a multiple of the page size")
    if flags & MAP_ANONYMOUS:
        file = None
        if flags & MAP_HUGETLB:
            raise Errno("ENOMEM", "no huge pages are reserved")
    elif file is None:
        raise Errno("EBADF", "neither a file nor MAP_ANONYMOUS")
    elif flags & MAP_HUGETLB:
        raise Errno("EINVAL", "MAP_HUGETLB of a file that is not on hugetlbfs")
    address = do_mmap(mm, file, addr, length, prot, flags, u64(offset) >> PAGE_SHIFT)
    if mm.tree.find(address).vm_flags & VM_LOCKED or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE:  # type: ignore[union-attr]
        mm_populate(mm, address, align_up(length, PAGE_SIZE))
    return address


def do_mmap(mm: Mm, file: MappedFile | None, addr: int, length: int, prot: int, flags: int, pgoff: int) -> int:
    """The checks of mmap, in the order that decides which errno is returned; then :func:`mmap_region`.

    Raise EINVAL (length 0, no or unknown type, a growing file), ENOMEM (wrap, no room, max_map_count, limits), EOVERFLOW
    (file offset), EEXIST (MAP_FIXED_NOREPLACE), EPERM (MAP_LOCKED, noexec), EAGAIN (RLIMIT_MEMLOCK), EACCES (file mode),
    ENODEV, EOPNOTSUPP. 5.17: mm/mmap.c, do_mmap(). Left out: READ_IMPLIES_EXEC, protection keys, swap files.
    """
    if not length:
        raise Errno("EINVAL", "a length of 0")
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    if not flags & MAP_FIXED:
        addr = align_down(addr, PAGE_SIZE)                                      # round_hint_to_min()
        if addr and addr < mm.mmap_min_addr:
            addr = align_up(mm.mmap_min_addr, PAGE_SIZE)
    length = u64(align_up(length, PAGE_SIZE))
    if not length:
        raise Errno("ENOMEM", "the length wraps when it is rounded up")
    if pgoff + (length >> PAGE_SHIFT) > U64_MAX:
        raise Errno("EOVERFLOW", "the offset wraps")
    if mm.map_count > mm.max_map_count:
        raise Errno("ENOMEM", f"more than {mm.max_map_count} areas")
    addr = get_unmapped_area(mm, addr, length, flags, file is None and flags & MAP_TYPE == MAP_PRIVATE)
    if flags & MAP_FIXED_NOREPLACE and mm.tree.intersection(addr, addr + length) is not None:
        raise Errno("EEXIST", "MAP_FIXED_NOREPLACE, and something is there")
    vm_flags = (prot & 7 | (VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0) | (VM_LOCKED if flags & MAP_LOCKED else 0) |
                (VM_SYNC if flags & MAP_SYNC else 0) | mm.def_flags | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC)
    if flags & MAP_LOCKED and not mm.can_do_mlock():
        raise Errno("EPERM", "MAP_LOCKED without the right to lock memory")
    mm.mlock_future_check(vm_flags, length)
    if file is not None:
        vm_flags = _file_flags(file, length, prot, flags, pgoff, vm_flags)
    elif flags & MAP_TYPE == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            raise Errno("EINVAL", "shared memory does not grow")
        pgoff = 0
        vm_flags |= VM_SHARED | VM_MAYSHARE
    elif flags & MAP_TYPE == MAP_PRIVATE:
        pgoff = addr >> PAGE_SHIFT
    else:
        raise Errno("EINVAL", "neither MAP_SHARED nor MAP_PRIVATE")
    if flags & MAP_NORESERVE and mm.overcommit.policy != OVERCOMMIT_NEVER:
        vm_flags |= VM_NORESERVE
    mmap_region(mm, file, addr, length, vm_flags, pgoff)
    return addr


def _file_flags(file: MappedFile, length: int, prot: int, flags: int, pgoff: int, vm_flags: int) -> int:
    """What the file and how it was opened allow (the part for files of do_mmap())."""
    if length > _MAX_LFS_FILESIZE or pgoff > (_MAX_LFS_FILESIZE - length) >> PAGE_SHIFT:
        raise Errno("EOVERFLOW", "beyond the largest file")
    kind = flags & MAP_TYPE
    if kind == MAP_SHARED:
        flags &= LEGACY_MAP_MASK            # what is unknown is ignored; MAP_SHARED_VALIDATE exists to complain
    if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
        if flags & ~LEGACY_MAP_MASK & ~MAP_TYPE:
            raise Errno("EOPNOTSUPP", "MAP_SHARED_VALIDATE with a flag that the file does not support")
        if prot & PROT_WRITE and not file.writable:
            raise Errno("EACCES", "a shared writable mapping of a file open for reading")
        if file.append_only and file.writable:
            raise Errno("EACCES", "a shared mapping of an append-only file")
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if not file.writable:
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    elif kind != MAP_PRIVATE:
        raise Errno("EINVAL", "neither MAP_SHARED nor MAP_PRIVATE")
    if not file.readable:
        raise Errno("EACCES", "the file is not open for reading")
    if file.noexec:
        if vm_flags & VM_EXEC:
            raise Errno("EPERM", "PROT_EXEC on a file system mounted noexec")
        vm_flags &= ~VM_MAYEXEC
    if not file.can_mmap:
        raise Errno("ENODEV", "this file cannot be mapped")
    if vm_flags & VM_GROWSDOWN:
        raise Errno("EINVAL", "a file mapping does not grow")
    return vm_flags


def mmap_region(mm: Mm, file: MappedFile | None, addr: int, length: int, vm_flags: int, pgoff: int) -> Vma:
    """Make [addr, addr + length) an area, or extend a neighbour over it; what was there is unmapped first.

    It stays unmapped if the promise of memory is then refused. Raise ENOMEM. 5.17: mm/mmap.c, mmap_region().
    """
    pages, end = length >> PAGE_SHIFT, addr + length
    keep_old = mm.rules.mmap_failure_keeps_old
    if keep_old and accountable_mapping(vm_flags):
        # The promise is asked for first, less what the mappings that go have been promised.
        returned = sum(min(end, vma.vm_end) - max(addr, vma.vm_start) for vma in mm.tree.overlapping(addr, end)
                       if vma.vm_flags & VM_ACCOUNT) >> PAGE_SHIFT
        mm.charge(pages - returned)
        mm.overcommit.uncharge(pages - returned)
    if not mm.may_expand_vm(vm_flags, pages):
        # MAP_FIXED may take pages away that count now.
        covered = sum(min(end, vma.vm_end) - max(addr, vma.vm_start) for vma in mm.tree.overlapping(addr, end))
        if not mm.may_expand_vm(vm_flags, pages - (covered >> PAGE_SHIFT)):
            raise Errno("ENOMEM", "RLIMIT_AS or RLIMIT_DATA")
    try:
        if mm.tree.intersection(addr, end) is not None:         # munmap_vma_range()
            do_munmap(mm, addr, length)
    except Errno as error:
        raise Errno("ENOMEM", error.why) from None
    if accountable_mapping(vm_flags):
        if keep_old:
            mm.overcommit.committed += pages
        else:
            mm.charge(pages)
        vm_flags |= VM_ACCOUNT
    prev = mm.tree.find_vma_links(addr)
    request = MergeRequest(addr, end, vm_flags, pgoff, file)
    vma = _expand_neighbour(mm, prev, request) if mm.rules.mmap_merges_next_first else mm.vma_merge(prev, request)
    if vma is None:
        if file is None and vm_flags & VM_SHARED:
            file = _shmem_zero_setup(mm, pages, vm_flags)
        vma = Vma(addr, end, vm_flags, pgoff, file)
        mm.get_file(vma)
        mm.link(vma)
    mm.vm_stat_account(vm_flags, pages)
    if vm_flags & VM_LOCKED:
        if vm_flags & VM_SPECIAL:
            vma.vm_flags &= ~LOCKED_MASK
        else:
            mm.locked_vm += pages
    if mm.soft_dirty:
        vma.vm_flags |= SOFTDIRTY_BIT
    return vma


def _shmem_zero_setup(mm: Mm, pages: int, vm_flags: int) -> MappedFile:
    """The nameless object behind shared anonymous memory, which makes its own promise (5.17: mm/shmem.c, shmem_zero_setup())."""
    file = shmem_file_setup(mm, "/dev/zero (deleted)", pages, vm_flags)
    file.shmem_zero = True
    return file


def _expand_neighbour(mm: Mm, prev: Vma | None, request: MergeRequest) -> Vma | None:
    """How 6.1 merges a new mapping: the following area first, and the preceding one if it fits to that one too.

    6.1: mm/mmap.c, mmap_region() and vma_expand().
    """
    next_ = prev.vm_next if prev is not None else mm.tree.first
    if request.vm_flags & VM_SPECIAL:
        return None
    after_next = (next_ is not None and next_.vm_start == request.end and next_.policy is None
                  and can_vma_merge_before(next_, request, None))
    anon_vma = next_.anon_vma if next_ is not None and after_next else None
    if prev is not None and prev.vm_end == request.addr and prev.policy is None \
            and can_vma_merge_after(prev, request, anon_vma):
        if next_ is not None and after_next:
            return mm.apply_merge(Merge(1, prev, prev.vm_start, next_.vm_end, prev.vm_pgoff, prev))
        return mm.apply_merge(Merge(2, prev, prev.vm_start, request.end, prev.vm_pgoff, prev))
    if next_ is not None and after_next:
        pglen = (request.end - request.addr) >> PAGE_SHIFT
        return mm.apply_merge(Merge(3, next_, request.addr, next_.vm_end, next_.vm_pgoff - pglen, next_))
    return None
