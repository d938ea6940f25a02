"""Chapter 4, Allocators: from malloc to mmap."""

from __future__ import annotations

from mmsim.exercises.answers import Part
from mmsim.exercises.registry import exercise
from mmsim.malloc.fragmentation import Meter, play, random_trace
from mmsim.malloc.freelist import FreeList
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.program import PlainProgram
from mmsim.units import PAGE_SIZE


def _calls(*requests: int) -> tuple[Ptmalloc, list[tuple[str, int]]]:
    """A new program makes requests; a negative one frees its pointer at once. The library, and the calls with their sizes."""
    program = PlainProgram()
    libc = Ptmalloc(program)
    calls: list[tuple[str, int]] = []
    for request in requests:
        end, pages = program.sbrk(0), program.mm.total_vm
        memory = libc.malloc(abs(request))
        grown = program.sbrk(0) - end
        mapped = (program.mm.total_vm - pages) * PAGE_SIZE - grown
        calls += [("brk", grown)] * bool(grown) + [("mmap", mapped)] * bool(mapped)
        if request < 0:
            pages = program.mm.total_vm
            libc.free(memory)
            calls += [("munmap", (pages - program.mm.total_vm) * PAGE_SIZE)] * bool(pages > program.mm.total_vm)
    return libc, calls


@exercise(
    "4.1", "ex04-usable", "Usable sizes",
    Part("first", "usable after malloc(24)", "bytes"), Part("second", "usable after malloc(25)", "bytes"),
    Part("least", "usable after malloc(1)", "bytes"),
    hints=("A chunk is the request and 8 bytes, rounded up to a multiple of 16, at least 32.",
           "All of the chunk but 8 bytes is the user's."))
def usable_sizes() -> tuple[int, ...]:
    libc = Ptmalloc(PlainProgram())
    return tuple(libc.usable_size(libc.malloc(size)) for size in (24, 25, 1))


@exercise(
    "4.3", "ex04-threshold", "The wall that is none",
    Part("smallest", "the smallest request that gets a mapping", "bytes"), Part("mapped", "mapped for malloc(200000)", "bytes"),
    hints=("The threshold of 128 KiB is compared with the chunk, not with the request.",
           "A mapping has 8 bytes more than a chunk of the heap would have, and whole pages."))
def the_wall_that_is_none() -> tuple[int, ...]:
    low, high = 100_000, 200_000
    while low < high:
        middle = (low + high) // 2
        if _calls(130_000, middle)[1][-1][0] == "mmap":
            high = middle
        else:
            low = middle + 1
    return low, _calls(130_000, 200_000)[1][-1][1]


@exercise(
    "4.4", "ex04-trace", "Three calls",
    Part("first", "the first brk", "bytes"), Part("mapped", "the mapping", "bytes"), Part("last", "the second brk", "bytes"),
    hints=("The first brk is for the request, 128 KiB more, and the thread's cache, in whole pages.",
           "The free raises the threshold to the size of the mapping. Top has 4 496 bytes left."))
def three_calls() -> tuple[int, ...]:
    calls = _calls(130_000, -131_049, 131_049)[1]
    assert [name for name, _ in calls] == ["brk", "mmap", "munmap", "brk"]
    return calls[0][1], calls[1][1], calls[3][1]


@exercise(
    "4.11", "ex04-build", "Build it: next fit and a limit",
    Part("first", "free blocks that first fit looks at"), Part("next", "free blocks that next fit looks at"),
    hints=("random_trace(1, 1000, live=50), and play(Meter(heap), trace).", "Print heap.steps for both policies."))
def next_fit() -> tuple[int, ...]:
    found = []
    for policy in ("first", "next"):
        heap = FreeList(PlainProgram(), policy, "address")
        play(Meter(heap), random_trace(1, 1000, live=50), every=1000)
        found.append(heap.steps)
    return tuple(found)
