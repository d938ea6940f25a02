"""Zonelists: in which order a node's requests try the zones of the machine.

A node first uses its own memory, then that of the nearest node, and so on. Nodes at the same distance are taken in
turns: a node that is somebody's second choice already carries a load, so that not all of its neighbours fall back to
it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from mmsim.constants import MAX_NUMNODES, NUMA_NO_NODE
from mmsim.physical.memory import PhysicalMemory

__all__ = ["LOCAL_DISTANCE", "REMOTE_DISTANCE", "PENALTY_FOR_NODE_WITH_CPUS", "find_next_best_node", "build_node_orders",
           "build_zonerefs_node", "build_zonelists", "build_all_zonelists", "fallback_order_line"]

LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20
PENALTY_FOR_NODE_WITH_CPUS = 1


class ListedZone(Protocol):
    """What a zonelist needs to know of a zone."""

    @property
    def managed_pages(self) -> int: ...


Z = TypeVar("Z", bound=ListedZone)


def find_next_best_node(node: int, used: set[int], has_memory: Sequence[int], has_cpu: Sequence[int],
                        distance: Sequence[Sequence[int]], node_load: Sequence[int]) -> int:
    """The next node of ``node``'s fallback order, which is added to ``used``; -1 when no node is left.

    The node itself comes first, even without memory. Then the nearest node with memory counts; one below ``node`` is
    as if further by 1 (so that nodes prefer the next one), one with CPUs as well (its memory is wanted at home), and
    the load decides between equals; the lowest number wins a tie. Cost: O(nodes). 5.17: mm/page_alloc.c,
    find_next_best_node().
    """
    if node not in used:
        used.add(node)
        return node
    nr_online_nodes = len(distance)
    best_node, min_val = NUMA_NO_NODE, 0
    for n in range(nr_online_nodes):
        if not has_memory[n] or n in used:
            continue
        val = distance[node][n]
        val += n < node
        if has_cpu[n]:
            val += PENALTY_FOR_NODE_WITH_CPUS
        # Large enough that the load can never outweigh a difference in distance.
        val = val * nr_online_nodes * MAX_NUMNODES + node_load[n]
        if best_node == NUMA_NO_NODE or val < min_val:
            min_val, best_node = val, n
    if best_node != NUMA_NO_NODE:
        used.add(best_node)
    return best_node


def build_node_orders(has_memory: Sequence[int], has_cpu: Sequence[int], distance: Sequence[Sequence[int]]) -> list[list[int]]:
    """The fallback order of every node, lowest node first: the loads that one leaves behind steer the next.

    The first node of a group at one distance gets a load: the more, the earlier it stands in the order.
    Cost: O(nodes^3). 5.17: mm/page_alloc.c, build_zonelists().

    >>> equal = [[10, 20, 20], [20, 10, 20], [20, 20, 10]]
    >>> build_node_orders([1, 1, 1], [1, 1, 1], equal)
    [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    nodes = range(len(distance))
    node_load = [0] * len(distance)
    orders: list[list[int]] = []
    for local_node in nodes:
        used: set[int] = set()
        order: list[int] = []
        previous, load = local_node, len(distance)
        while (node := find_next_best_node(local_node, used, has_memory, has_cpu, distance, node_load)) != NUMA_NO_NODE:
            if distance[local_node][node] != distance[local_node][previous]:
                node_load[node] += load
            order.append(node)
            previous = node
            load -= 1
        orders.append(order)
    return orders


def build_zonerefs_node(zones: Sequence[Z]) -> list[Z]:
    """A node's zones that have pages, highest first: the scarce low zones serve last. ``zones`` stand in the order of
    their types.

    5.17: mm/page_alloc.c, build_zonerefs_node().
    """
    return [zone for zone in reversed(zones) if zone.managed_pages]


def build_zonelists(nodes: Sequence[Sequence[Z]], order: Iterable[int]) -> tuple[list[Z], list[Z]]:
    """The two zonelists of the node that stands first in ``order``: with fallback to other nodes, and for
    ``__GFP_THISNODE``.

    ``nodes[nid]`` are the zones of a node in the order of their types.
    5.17: mm/page_alloc.c, build_zonelists_in_node_order(), build_thisnode_zonelists().
    """
    order = list(order)
    return [zone for nid in order for zone in build_zonerefs_node(nodes[nid])], build_zonerefs_node(nodes[order[0]])


def fallback_order_line(node: int, order: Iterable[int]) -> str:
    """The line of the kernel log that shows a node's fallback order (it ends in a space, as the kernel's does).

    >>> fallback_order_line(1, [1, 0])
    'Fallback order for Node 1: 1 0 '
    """
    return f"Fallback order for Node {node}: " + "".join(f"{nid} " for nid in order)


def build_all_zonelists(memory: PhysicalMemory, distance: Sequence[Sequence[int]] | None = None) -> dict[int, list[int]]:
    """Give every node its two zonelists; return the fallback orders by node id.

    ``distance[i][j]`` by node id (default: 10 at home, 20 elsewhere). Memory counts where a node has managed pages.
    5.17: mm/page_alloc.c, __build_all_zonelists().
    """
    ids = range(max(memory.nodes) + 1)
    if distance is None:
        distance = [[LOCAL_DISTANCE if i == j else REMOTE_DISTANCE for j in ids] for i in ids]
    zones = [memory.nodes[nid].zones if nid in memory.nodes else [] for nid in ids]
    has_memory = [int(any(zone.present_pages for zone in zones[nid])) for nid in ids]
    # With emulated nodes a CPU belongs to several (``Node.cpus``), of which cpu_to_node can only name one.
    has_cpu = [int(nid in memory.nodes and bool(memory.nodes[nid].cpus) or nid in memory.cpu_to_node) for nid in ids]
    orders = build_node_orders(has_memory, has_cpu, distance)
    for nid, node in memory.nodes.items():
        node.zonelist, node.zonelist_thisnode = build_zonelists(zones, orders[nid])
    return {nid: orders[nid] for nid in memory.nodes}
