"""What the files of /proc/sys/vm accept, and what follows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.errors import Errno
from mmsim.physical.tunables import VmTunables, parse_integers
from mmsim.reference import ref256


@settings(deadline=None)
@given(st.lists(st.integers(-2**31, 2**31 - 1), min_size=1, max_size=6), st.sampled_from([" ", "\t", "\n", "  "]))
def test_numbers_come_back_as_they_were_written(numbers, between):
    text = between.join(map(str, numbers)) + "\n"
    assert parse_integers(text, len(numbers)) == (numbers, len(text), True)


@settings(deadline=None)
@given(st.text(alphabet="0123456789abcxX-+ \t\n,.", max_size=30), st.integers(1, 5))
def test_any_text_is_read_or_refused(text, room):
    values, taken, fine = parse_integers(text, room)
    assert len(values) <= room and 0 <= taken <= len(text)
    assert not fine or values


@pytest.mark.parametrize("name, text", [
    ("min_free_kbytes", "-1"), ("min_free_kbytes", "2147483648"), ("watermark_scale_factor", "0"),
    ("watermark_scale_factor", "3001"), ("percpu_pagelist_high_fraction", "7"), ("min_free_kbytes", "64k")])
def test_a_value_out_of_range_is_refused_and_changes_nothing(name, text):
    machine = ref256()
    before = machine.proc("zoneinfo"), machine.tunables.read(name)
    with pytest.raises(Errno) as refused:
        machine.tunables.write(name, text)
    assert refused.value.name == "EINVAL"
    assert (machine.proc("zoneinfo"), machine.tunables.read(name)) == before


def test_lowmem_reserve_ratio_never_complains_and_keeps_what_came_before_the_error():
    machine = ref256()
    assert machine.tunables.write("lowmem_reserve_ratio", "64 x") == len("64 ")
    assert machine.tunables.read("lowmem_reserve_ratio").split() == ["64", "256", "32", "0"]
    dma, dma32 = machine.zones
    assert dma.lowmem_reserve[1] == dma32.managed_pages // 64


def test_a_larger_part_of_the_zone_makes_longer_per_cpu_lists():
    machine = ref256()
    before = [zone.pageset[0].high for zone in machine.zones]
    machine.tunables.write("percpu_pagelist_high_fraction", "8")
    assert [zone.pageset[0].high for zone in machine.zones] == [zone.managed_pages // 8 for zone in machine.zones]
    machine.tunables.write("percpu_pagelist_high_fraction", "0")
    assert [zone.pageset[0].high for zone in machine.zones] == before


def test_an_unknown_file_does_not_exist():
    with pytest.raises(Errno, match="ENOENT"):
        VmTunables(ref256().reserves).read("nr_pages")
