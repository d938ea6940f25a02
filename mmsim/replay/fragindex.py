"""golden/fragindex: fragmentation indices of zones, and the scores that start proactive compaction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmsim.constants import MAX_ORDER
from mmsim.physical.fragmentation import (
    extfrag_for_order,
    fragmentation_index,
    fragmentation_score_node,
    fragmentation_score_wmark,
    fragmentation_score_zone,
    fragmentation_score_zone_weighted,
    should_proactive_compact_node,
    unusable_free_index,
)
from mmsim.replay.readers import read_jsonl
from mmsim.replay.registry import Check, replays, same

__all__ = ["fragmentation"]


@replays("fragindex/fragmentation*.jsonl*", "fragindex/*.jsonl*")
def fragmentation(path: Path) -> Iterator[Check]:
    """For zones given by their free blocks: fragmentation_index, unusable_free_index and extfrag_for_order of each
    order, the zone's score plain and weighted; the node's score, the two thresholds, and whether proactive compaction
    starts."""
    orders = range(MAX_ORDER)
    for record in read_jsonl(path):
        zones = [(zone["nr_free"], zone["present"]) for zone in record["zones"]]
        node_present = sum(present for _, present in zones)
        for number, (recorded, (nr_free, present)) in enumerate(zip(record["zones"], zones)):
            where = f"line {record.line}: zone {number}, free blocks {nr_free}"
            yield same(f"{where}: fragmentation index", recorded["fragindex"],
                       [fragmentation_index(nr_free, order) for order in orders])
            yield same(f"{where}: unusable index", recorded["unusable"],
                       [unusable_free_index(nr_free, order) for order in orders])
            yield same(f"{where}: extfrag", recorded["extfrag"], [extfrag_for_order(nr_free, order) for order in orders])
            yield same(f"{where}: score", recorded["score"], fragmentation_score_zone(nr_free))
            yield same(f"{where}: weighted score", recorded["weighted"],
                       fragmentation_score_zone_weighted(nr_free, present, node_present))
        score, proactiveness = fragmentation_score_node(zones), record["proactiveness"]
        where = f"line {record.line}"
        yield same(f"{where}: node score", record["node_score"], score)
        yield same(f"{where}: low threshold", record["wmark_low"], fragmentation_score_wmark(proactiveness, low=True))
        yield same(f"{where}: high threshold", record["wmark_high"], fragmentation_score_wmark(proactiveness, low=False))
        yield same(f"{where}: should_compact", record["should_compact"],
                   int(should_proactive_compact_node(score, proactiveness, bool(record["kswapd_running"]))))
