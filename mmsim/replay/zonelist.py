"""golden/zonelist: the fallback order of every node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmsim.errors import InputError
from mmsim.physical.zonelist import build_node_orders
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays, same

__all__ = ["node_order"]


@replays("zonelist/node_order*.jsonl*", "zonelist/*.jsonl*")
def node_order(path: Path) -> Iterator[Check]:
    """The fallback order of each node of a machine given by its distances and by which nodes have CPUs and memory."""
    for record in read_jsonl(path):
        nodes, has_cpu, has_mem, distance = record["nodes"], record["has_cpu"], record["has_mem"], record["distance"]
        if not len(has_cpu) == len(has_mem) == len(distance) == len(record["order"]) == nodes:
            raise InputError(f"line {record.line}: the lists do not have {nodes} nodes each")
        for node, (recorded, got) in enumerate(zip(record["order"], build_node_orders(has_mem, has_cpu, distance))):
            yield same(f"line {record.line}: node {node} of {nodes}, has_cpu {has_cpu}, has_mem {has_mem}, distance {distance}",
                       recorded, got)
