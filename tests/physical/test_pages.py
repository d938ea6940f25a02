"""Frames, pages, folios; what the kernel says of a page that is not as it should be; isolation."""

from __future__ import annotations

import pytest

from mmsim.constants import MIGRATE_MOVABLE
from mmsim.errors import Errno, InputError, InvariantError, KernelBug
from mmsim.physical.frames import Frames
from mmsim.physical.free import free_pages, put_page
from mmsim.physical.isolation import set_migratetype_isolate, unset_migratetype_isolate
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.page import Folio, Page, flag_names, folio_of, format_page_flags, prep_compound_page
from mmsim.physical.pcp import drain_all_pages

from .machines import lists, machine, take


def test_a_new_frame_is_free_of_flags_references_and_mappings():
    memory, _ = machine()
    page = Page(memory.frames, 5)
    assert (page.refcount, page.mapcount, page.flags, page.order) == (0, 0, [], 0)


def test_a_hole_has_no_frame():
    memory, zone = machine(1024, 1024)
    memory.frames.unassign(1500, 1510)
    for pfn in (0, 1505, 2048, 99999, -1):
        with pytest.raises(InputError, match="no frame"):
            Page(memory.frames, pfn)
        with pytest.raises(InputError, match="no frame"):
            free_pages(memory, pfn)
    assert Page(memory.frames, 1510).zone is zone


def test_a_machine_needs_a_frame_and_a_cpu():
    with pytest.raises(InputError):
        Frames(0)
    with pytest.raises(InputError):
        PhysicalMemory(16, nr_cpus=0)


def test_frames_beyond_the_machine_belong_to_no_zone():
    memory, zone = machine(0, 1024)
    with pytest.raises(InputError, match="outside"):
        memory.frames.assign_zone(zone, 0, 1025)


def test_the_tails_of_a_compound_page_find_their_head():
    memory, zone = machine()
    pfn = take(zone, 3, compound=True)
    head, tail = Page(memory.frames, pfn), Page(memory.frames, pfn + 5)
    assert head.is_head and not head.is_tail and head.order == 3
    assert tail.is_tail and tail.head == head
    assert folio_of(tail).nr_pages == 8
    assert [page.pfn for page in folio_of(tail).pages()] == list(range(pfn, pfn + 8))
    with pytest.raises(KernelBug, match="tail page"):
        Folio(memory.frames, pfn + 5)


def test_a_reference_to_a_tail_counts_at_the_head():
    memory, zone = machine(batch=1, high=0)
    pfn = take(zone, 2, compound=True)
    folio_of(Page(memory.frames, pfn + 3)).refcount += 1
    put_page(memory, pfn + 3)
    assert Page(memory.frames, pfn).refcount == 1
    put_page(memory, pfn + 1)
    drain_all_pages(memory)
    assert zone.nr_free_pages == 4096
    memory.check()


def test_a_block_that_is_not_compound_frees_its_other_pages_while_somebody_holds_the_first():
    memory, zone = machine(batch=1, high=0)
    pfn = take(zone, 2)
    memory.frames.refcount[pfn] += 1
    free_pages(memory, pfn, 2)
    drain_all_pages(memory)
    assert zone.nr_free_pages == 4095
    put_page(memory, pfn)
    drain_all_pages(memory)
    assert zone.nr_free_pages == 4096
    memory.check()


def test_flags_are_printed_with_node_and_zone():
    memory, _ = machine()
    page = Page(memory.frames, 7)
    page.set("lru", "uptodate")
    page.clear("uptodate")
    assert page.test("lru") and flag_names(memory.frames.flags[7]) == ["lru"]
    assert format_page_flags(memory.frames, 7) == "0x200000000000010(lru|node=0|zone=2)"


def test_the_view_of_a_page_reads_like_a_sentence():
    memory, zone = machine()
    assert repr(Page(memory.frames, 0)) == \
        "<Page 0x0: free block of order 10, refcount 0, mapcount 0, no flags, Normal of node 0>"
    pfn = take(zone, 1, compound=True)
    assert "head, order 1, refcount 1" in repr(Page(memory.frames, pfn))
    assert f"tail of {pfn:#x}" in repr(Page(memory.frames, pfn + 1))


# -- misuse ------------------------------------------------------------------------------------------------

def report_of(memory):
    return memory.klog.lines()


def test_a_double_free_is_reported_and_frees_nothing():
    memory, zone = machine(batch=1, high=0)
    pfn = take(zone)
    free_pages(memory, pfn)
    free_pages(memory, pfn)
    assert report_of(memory)[:3] == [
        f"BUG: Bad page state in process swapper  pfn:{pfn:05x}",
        f"page:ffffea000000{pfn * 64:04x} refcount:-1 mapcount:0 mapping:0000000000000000 index:0x0 pfn:{pfn:#x}",
        "flags: 0x200000000000000(node=0|zone=2)"]
    assert report_of(memory)[-1] == "page dumped because: nonzero _refcount"
    assert zone.nr_free_pages == 4096
    memory.check()


def test_a_page_on_a_cpu_s_list_cannot_be_freed_again():
    memory, zone = machine(batch=7, high=500)
    pfn = take(zone)
    free_pages(memory, pfn)
    free_pages(memory, pfn)
    assert report_of(memory)[-1] == "page dumped because: nonzero _refcount"
    memory.check()


def test_a_reserved_page_is_not_freed():
    memory, zone = machine(0, 1024, free=False)
    memory.frames.reserve(16, 32)
    free_pages(memory, 20)
    assert report_of(memory)[0] == "BUG: Bad page state in process swapper  pfn:00014"
    assert report_of(memory)[-1] == "page dumped because: PAGE_FLAGS_CHECK_AT_FREE flag(s) set"
    assert zone.nr_free_pages == 0 and lists(zone) == {}
    memory.check()


def test_a_mapped_page_is_not_freed():
    memory, zone = machine()
    pfn = take(zone)
    Page(memory.frames, pfn).mapcount = 1
    free_pages(memory, pfn)
    assert report_of(memory)[-1] == "page dumped because: nonzero mapcount"


def test_one_bad_page_keeps_its_whole_block_out_of_the_allocator():
    memory, zone = machine(batch=1, high=0)
    pfn = take(zone, 4)
    Page(memory.frames, pfn + 9).set("locked")
    before = zone.nr_free_pages
    free_pages(memory, pfn, 4)
    assert zone.nr_free_pages == before
    assert [line for line in report_of(memory) if line.startswith("BUG")] == \
        [f"BUG: Bad page state in process swapper  pfn:{pfn + 9:05x}"]
    memory.check()


@pytest.mark.parametrize("pfn, order, text", [(1, 1, "1 << order"), (0, 11, "MAX_ORDER"), (0, -1, "MAX_ORDER")])
def test_an_order_that_the_block_cannot_have_is_a_bug(pfn, order, text):
    memory, _ = machine()
    with pytest.raises(KernelBug, match=text):
        free_pages(memory, pfn, order)
    assert "page dumped because: VM_BUG_ON_PAGE(" in report_of(memory)[-1]
    memory.check()


def test_a_compound_page_is_freed_whole():
    memory, zone = machine()
    pfn = take(zone, 3, compound=True)
    with pytest.raises(KernelBug, match="compound_order"):
        free_pages(memory, pfn, 2)
    with pytest.raises(KernelBug, match="PageTail"):
        free_pages(memory, pfn + 1)
    free_pages(memory, pfn, 3)
    memory.check()


def test_check_finds_a_tail_without_a_head():
    memory, _ = machine()
    prep_compound_page(memory.frames, 8, 2)
    memory.frames.check()
    memory.frames.compound[9] = 0
    with pytest.raises(InvariantError, match="no tail"):
        memory.frames.check()
    memory.frames.compound[8] = 0
    with pytest.raises(InvariantError, match="has no head"):
        memory.frames.check()


# -- isolation -----------------------------------------------------------------------------------------------

def test_an_isolated_pageblock_gives_nothing_and_does_not_count_as_free():
    memory, zone = machine(0, 2048)
    take(zone, 9, MIGRATE_MOVABLE, 0)
    before = lists(zone)
    assert before[9, MIGRATE_MOVABLE] == [512]
    set_migratetype_isolate(zone, 600)
    assert zone.nr_free_pages == 1024 and (9, memory.config.migrate_isolate) in lists(zone)
    with pytest.raises(Errno, match="isolated already"):
        set_migratetype_isolate(zone, 700)
    unset_migratetype_isolate(zone, 600, MIGRATE_MOVABLE)
    assert zone.nr_free_pages == 1536 and lists(zone) == before
    memory.check()


def test_a_pageblock_with_an_unmovable_frame_cannot_be_isolated():
    memory, zone = machine(0, 2048)
    pfn = take(zone)
    with pytest.raises(Errno, match="cannot be moved"):
        set_migratetype_isolate(zone, pfn)
    Page(memory.frames, pfn).set("lru")
    set_migratetype_isolate(zone, pfn)


def test_pages_freed_into_an_isolated_pageblock_stay_there_and_merge_afterwards():
    memory, zone = machine(0, 1024, batch=1, high=0)
    low, high = take(zone, 9, MIGRATE_MOVABLE, 0), take(zone, 9, MIGRATE_MOVABLE, 0)
    for pfn in (low, high):
        Page(memory.frames, pfn).set("lru")
    set_migratetype_isolate(zone, low)
    for pfn in (low, high):
        Page(memory.frames, pfn).clear("lru")
        free_pages(memory, pfn, 9)
    drain_all_pages(memory)
    assert zone.buddyinfo()[9:] == [2, 0] and zone.nr_free_pages == 512
    memory.check()
    unset_migratetype_isolate(zone, low, MIGRATE_MOVABLE)
    assert zone.buddyinfo()[9:] == [0, 1] and zone.nr_free_pages == 1024
    memory.check()
