"""Zonelists: whose memory is used next."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mmsim.constants import ZONE_DMA32, ZONE_NORMAL
from mmsim.physical.memory import PhysicalMemory
from mmsim.physical.zone import Zone
from mmsim.physical.zonelist import build_all_zonelists, build_node_orders, fallback_order_line


def test_of_three_equal_nodes_the_last_falls_back_to_the_first():
    equal = [[10, 20, 20], [20, 10, 20], [20, 20, 10]]
    assert build_node_orders([1, 1, 1], [1, 1, 1], equal)[2][1] == 0


def test_recorded_fallback_orders_of_three_fake_nodes_are_printed_as_recorded():
    # numa=fake= puts the CPU into every node made from its real one, all at distance 10.
    orders = build_node_orders([1] * 3, [1] * 3, [[10] * 3] * 3)
    assert [fallback_order_line(node, order) for node, order in enumerate(orders)] == [
        "Fallback order for Node 0: 0 1 2 ", "Fallback order for Node 1: 1 2 0 ", "Fallback order for Node 2: 2 0 1 "]


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    nodes = draw(st.integers(1, 8))
    distance = [[10] * nodes for _ in range(nodes)]
    for i in range(nodes):
        for j in range(i):
            distance[i][j] = distance[j][i] = draw(st.integers(11, 254))
    flags = st.lists(st.integers(0, 1), min_size=nodes, max_size=nodes)
    return draw(flags), draw(flags), distance


@given(machines())
@settings(deadline=None)
def test_every_node_comes_first_in_its_own_order_and_each_with_memory_comes_once(machine):
    has_memory, has_cpu, distance = machine
    for node, order in enumerate(build_node_orders(has_memory, has_cpu, distance)):
        assert order[0] == node
        assert sorted(order) == sorted({node} | {n for n, memory in enumerate(has_memory) if memory})


@given(machines())
@settings(deadline=None)
def test_a_nearer_node_is_preferred_unless_cpus_or_numbers_make_up_for_two_units(machine):
    has_memory, has_cpu, distance = machine
    for node, order in enumerate(build_node_orders(has_memory, has_cpu, distance)):
        for near, far in pairwise(order[1:]):
            assert distance[node][near] <= distance[node][far] + 2


def test_a_nodes_zonelist_goes_from_its_highest_zone_down_and_then_to_the_next_node():
    memory = PhysicalMemory(8192, nr_cpus=2)
    memory.cpu_to_node = [0, 1]
    for nid in (0, 1):
        node = memory.add_node(nid)
        for index in (ZONE_DMA32, ZONE_NORMAL):
            start = 4096 * nid + 2048 * (index - 1)
            node.zones[index] = Zone(memory, nid, index, start, 2048, 2048, 2048)
    assert build_all_zonelists(memory) == {0: [0, 1], 1: [1, 0]}
    assert [(zone.nid, zone.name) for zone in memory.nodes[1].zonelist] == [
        (1, "Normal"), (1, "DMA32"), (0, "Normal"), (0, "DMA32")]
    assert [zone.nid for zone in memory.nodes[1].zonelist_thisnode] == [1, 1]
