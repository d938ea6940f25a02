"""Which release the machine runs: single, named behaviours that differ between kernels.

The book describes 5.17. A rule exists only where a figure or a test uses it; each says what changed and when.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from mmsim.errors import InputError

__all__ = ["RELEASES", "Rules", "nearest_release", "rules_for"]

RELEASES = ("5.17", "6.1", "6.12", "6.18")


@dataclass(frozen=True, slots=True)
class Rules:
    """The behaviours of one release. ``rules_for("6.1")`` gives the set of a release; ``replace()`` switches a single one.

    >>> rules_for("6.1").crashkernel_rounds_up
    True
    """

    release: str = "5.17"

    #: memblock: one insert pass when the array surely has room, instead of count and insert (6.1).
    memblock_single_pass: bool = False
    #: memblock: a change merges only around the range it touched, not the whole list (in 6.12).
    memblock_merges_locally: bool = False
    #: memblock: a full array that may not grow yet is a panic instead of -ENOMEM (in 6.12).
    memblock_full_array_panics: bool = False
    #: Zone Movable is dropped where rounding its start up to 4 MiB leaves nothing of the node (5.18).
    movable_zone_within_node: bool = False
    #: vmalloc() of 2 MiB and more may use huge pages on x86 (5.18).
    huge_vmalloc: bool = False
    #: Nodes without memory get their data when zones are laid out, and all possible nodes a zonelist (5.18).
    memoryless_nodes_early: bool = False
    #: Memory of a node smaller than 4 MiB does not bring the node online (until 6.8 and 6.1's stable updates).
    node_min_size: bool = True
    #: crashkernel=range:size compares the amount of RAM rounded up to 128 MiB instead of the exact total (6.1).
    crashkernel_rounds_up: bool = False
    #: mremap() of an address with nothing mapped returns +14 instead of -EFAULT (until 5.18-rc7).
    mremap_positive_efault: bool = True
    #: mremap() that grows an area in place joins it with the area it then touches (in 6.1).
    mremap_growth_merges: bool = False
    #: mremap(MREMAP_DONTUNMAP) leaves the emptied area its page offset instead of resetting it (until 6.1's stable updates).
    mremap_dontunmap_keeps_pgoff: bool = True
    #: mremap(MREMAP_DONTUNMAP) of part of a locked area unlocks that part only; before the stable updates of 6.1 and 6.12
    #: the whole area lost its lock, and VmLck went on counting what was not moved.
    mremap_dontunmap_splits_locked: bool = False
    #: mremap(MREMAP_DONTUNMAP) may join an untouched area with its own copy (until the stable updates of 6.1 and 6.12).
    mremap_copy_joins_source: bool = True
    #: Where it may not, the copy still joins the area on its other side (in 6.12).
    mremap_copy_joins_others: bool = False
    #: mlock2(MLOCK_ONFAULT) fails on an inaccessible area, as mlock() does (5.17; not in 6.1).
    mlock_onfault_needs_access: bool = True
    #: mmap() looks at the following area first, and asks whether the preceding one fits to that (in 6.1, not in 6.12).
    mmap_merges_next_first: bool = False
    #: brk() may join the heap with the area above it (5.17; not in 6.1).
    brk_merges_next: bool = True
    #: mprotect() that takes write permission from untouched anonymous memory takes the promise back too (in 6.12).
    mprotect_returns_promise: bool = False
    #: mmap(MAP_FIXED) that is refused leaves what was there (in 6.12); before, it was unmapped already.
    mmap_failure_keeps_old: bool = False
    #: mmap() without a hint puts private anonymous memory of whole 2 MiB units at a multiple of 2 MiB (in 6.12; not in 6.1).
    mmap_aligns_huge: bool = False
    #: An untouched area may take in a touched neighbour, unless a fork lies between (6.18; not in 6.12).
    merge_into_untouched: bool = False
    #: What makes a write to a shared anonymous page keep the page: "page_count" (5.17: exactly one reference), "drained" (5.18:
    #: the same, after the CPU's batch of new pages was emptied), "exclusive" (5.19: a flag says that no fork lies between).
    cow_reuse: str = "page_count"
    #: mprotect() that makes private memory writable maps pages that are this process' alone writable at once (in 6.1).
    mprotect_maps_writable: bool = False
    #: The first write fault on a clean page of a shared file lets go of the mmap_lock to throttle the writer, and is tried again,
    #: which counts as major (until 6.0: then such a fault is complete).
    dirtying_fault_retries: bool = True
    #: How many new pages wait for their LRU list together (15; 31 since 6.8).
    lru_batch: int = 15
    #: munmap() and MADV_DONTNEED empty the CPU's batches first (in 6.12; measured: not in 6.18).
    unmap_drains: bool = True
    #: mremap() checks the source before it unmaps the destination, and moves several areas at once (6.18; not in 6.12).
    mremap_moves_several: bool = False

    #: VmFlags in smaps names VM_LOCKONFAULT "lf" instead of "??" (in 6.12; not in 6.1).
    smaps_names_lockonfault: bool = False

    def replace(self, **changes: object) -> "Rules":
        """These rules with single behaviours changed. Raise InputError for a name that is no rule."""
        unknown = set(changes) - {field.name for field in fields(self)}
        if unknown:
            raise InputError(f"no such rule: {', '.join(sorted(unknown))}")
        return replace(self, **changes)  # type: ignore[arg-type]

    def differences(self, other: "Rules") -> list[str]:
        """The names of the rules in which two releases differ."""
        return [f.name for f in fields(self) if f.name != "release" and getattr(self, f.name) != getattr(other, f.name)]


def rules_for(release: str = "5.17") -> Rules:
    """The rules of a release. Raise InputError for one that the model does not know."""
    if release not in RELEASES:
        raise InputError(f"no rules for Linux {release}; known releases: {', '.join(RELEASES)}")
    since_6_1 = release != "5.17"
    since_6_12 = release in ("6.12", "6.18")
    return Rules(release=release, memblock_single_pass=since_6_1, movable_zone_within_node=since_6_1, huge_vmalloc=since_6_1,
                 memblock_merges_locally=since_6_12, memblock_full_array_panics=since_6_12, crashkernel_rounds_up=since_6_1,
                 memoryless_nodes_early=since_6_1, node_min_size=not since_6_1,
                 mremap_positive_efault=not since_6_1, mremap_growth_merges=since_6_1,
                 mremap_dontunmap_keeps_pgoff=release in ("5.17", "6.18"), mlock_onfault_needs_access=not since_6_1,
                 mmap_merges_next_first=release == "6.1", brk_merges_next=not since_6_1,
                 mprotect_returns_promise=since_6_12, mmap_failure_keeps_old=since_6_12,
                 mmap_aligns_huge=since_6_12,
                 mremap_dontunmap_splits_locked=release in ("6.1", "6.12"),
                 mremap_copy_joins_source=release in ("5.17", "6.18"), mremap_copy_joins_others=release == "6.12",
                 cow_reuse="exclusive" if since_6_1 else "page_count", mprotect_maps_writable=since_6_1,
                 dirtying_fault_retries=not since_6_1, lru_batch=31 if since_6_12 else 15,
                 unmap_drains=release != "6.18",
                 merge_into_untouched=release == "6.18", mremap_moves_several=release == "6.18",
                 smaps_names_lockonfault=since_6_12)


def nearest_release(running: str) -> str:
    """The known release whose rules fit a running kernel best: the newest that is not newer, or else the oldest.

    Raise InputError for a text that is no release.

    >>> nearest_release("6.6.51-generic"), nearest_release("4.19"), nearest_release("6.18.3")
    ('6.1', '5.17', '6.18')
    """
    def number(text: str) -> tuple[int, int]:
        found = re.match(r"(\d+)\.(\d+)", text)
        if not found:
            raise InputError(f"no release of Linux: {text!r}")
        return int(found[1]), int(found[2])
    older = [release for release in RELEASES if number(release) <= number(running)]
    return max(older, key=number) if older else RELEASES[0]
