"""The reverse map: anon_vmas through fork, and what a walk from a page visits."""

from __future__ import annotations

from mmsim.constants import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED
from mmsim.paging.pte import pte_pfn
from mmsim.process.shmem import memfd_create
from mmsim.process.task import Process
from mmsim.process.vma import Vma
from mmsim.reference import ref256
from mmsim.units import PAGE_SIZE

P, RW = PAGE_SIZE, 3
ANON = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
A = 0x3000_0000


def root(pages: int = 2) -> Process:
    process = ref256().spawn()
    process.mmap(A, pages * P, RW, ANON)
    process.touch_range(A, pages)
    return process


def fork(parent: Process) -> Process:
    return parent.table.processes[parent.fork()]


def area(process: Process, address: int = A) -> Vma:
    vma = process.mm.tree.lookup(address)
    assert vma is not None
    return vma


def frame(process: Process, address: int = A) -> int:
    return pte_pfn(process.space.pte(address))


def test_the_index_of_an_anonymous_page_is_its_address_in_pages() -> None:
    process = ref256().spawn()
    process.mmap(0x7FFFF7DFF000, P, RW, ANON)
    process.write(0x7FFFF7DFF000, b"x")
    assert process.user.index[frame(process, 0x7FFFF7DFF000)] == 0x7FFFF7DFF


def test_a_page_of_the_root_is_looked_for_in_four_areas_of_a_chain_of_depth_three() -> None:
    processes = [root()]
    for _ in range(3):
        processes.append(fork(processes[-1]))
    visits = processes[0].user.rmap_walk(frame(processes[0]))
    assert len(visits) == 4 and all(visit.hit for visit in visits)


def test_after_a_copy_the_childs_area_is_visited_for_nothing() -> None:
    parent = root()
    child = fork(parent)
    child.write(A, b"own")
    visits = parent.user.rmap_walk(frame(parent))
    assert [visit.hit for visit in visits] == [True, False]
    # The child's own page is looked for in the child only.
    assert [visit.vma for visit in parent.user.rmap_walk(frame(child))] == [area(child)]


def test_a_childs_area_is_linked_to_all_of_its_ancestors_anon_vmas_and_its_own() -> None:
    processes = [root()]
    for _ in range(4):
        processes.append(fork(processes[-1]))
    assert [len(area(process).anon_vma_chain) for process in processes] == [1, 2, 3, 4, 5]
    assert len({id(area(process).anon_vma) for process in processes}) == 5
    assert all(area(process).anon_vma.root is area(processes[0]).anon_vma for process in processes)     # type: ignore[union-attr]


def test_in_a_line_in_which_each_parent_exits_anon_vmas_are_used_again() -> None:
    process = root()
    lengths = []
    for _ in range(12):
        child = fork(process)
        process.exit()
        process = child
        lengths.append(len(area(process).anon_vma_chain))
    assert max(lengths) <= 3
    process.table.check()


def test_only_the_part_of_a_split_area_that_holds_the_page_is_visited() -> None:
    process = root(8)
    process.mprotect(A + 2 * P, 2 * P, 1)
    assert len(area(process).anon_vma.areas) == 3                   # type: ignore[union-attr]
    assert [visit.address for visit in process.user.rmap_walk(frame(process, A + 3 * P))] == [A + 3 * P]


def test_a_moved_area_is_found_at_its_new_place() -> None:
    process = root(4)
    process.mremap(A, 4 * P, 4 * P, 3, A + 64 * P)
    pfn = frame(process, A + 65 * P)
    assert [(visit.address, visit.hit) for visit in process.user.rmap_walk(pfn)] == [(A + 65 * P, True)]
    process.table.check()


def test_a_files_page_is_found_in_every_mapping_of_it() -> None:
    process = ref256().spawn()
    file = memfd_create(process.mm, "f", 4)
    for number in range(3):
        process.mmap(A + number * 64 * P, 2 * P, RW, MAP_SHARED | MAP_FIXED, file, P if number == 2 else 0)
    process.write(A + P, b"x")
    process.read(A + 65 * P)
    visits = process.user.rmap_walk(file.cache[1])
    assert [(visit.address, visit.hit) for visit in visits] == [(A + P, True), (A + 65 * P, True), (A + 128 * P, False)]


def test_when_an_area_goes_its_anon_vma_counts_down_to_one() -> None:
    parent = root()
    anon_vma = area(parent).anon_vma
    assert anon_vma is not None and anon_vma.degree == 2            # its own area, and being its own parent
    child = fork(parent)
    assert anon_vma.degree == 3
    child.munmap(A, 2 * P)
    assert anon_vma.degree == 2 and list(anon_vma.areas) == [area(parent)]
    parent.table.check()
