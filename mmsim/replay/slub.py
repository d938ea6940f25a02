"""golden/slub, and what running kernels say of their caches: sizes, orders, objects a slab, lengths of partial lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsim.errors import InputError
from mmsim.kernel.kmalloc_caches import (
    KMALLOC_TYPE_FLAGS,
    boot_cache_alignment,
    kmalloc_index,
    kmalloc_size_roundup,
    parse_kmalloc_name,
)
from mmsim.kernel.slab_layout import (
    CacheLayout,
    calculate_alignment,
    calculate_order,
    calculate_sizes,
    cpu_partial_limits,
    order_objects,
)
from mmsim.replay.readers import Record, read_jsonl, read_text
from mmsim.replay.registry import Check, replays, same
from mmsim.units import ilog2

__all__ = ["cache_layout", "kmalloc_caches", "kmalloc_indexes", "kmalloc_requests", "slab_geometry", "slabinfo"]

_FIELDS = ("size", "align", "inuse", "offset", "red_left_pad", "order", "objects", "min_order", "min_objects", "min_partial",
           "cpu_partial", "cpu_partial_slabs", "allocflags")


def _cpus(record: Record) -> int:
    # A machine that says it has one CPU may only not have counted the others yet.
    present: int = record["present_cpus"]
    return present if present > 1 else int(record["nr_cpu_ids"])


def _compare(record: Record, layout: CacheLayout) -> Iterator[Check]:
    where = f"line {record.line}: {record['name'] or 'cache'} of {record['object_size']} bytes, flags {record['flags']:#x}"
    for name in _FIELDS:
        yield same(f"{where}: {name}", record[name], getattr(layout, name))


@replays("slub/kmalloc_caches*.jsonl*")
def kmalloc_caches(path: Path) -> Iterator[Check]:
    """Every kmalloc cache on machines with 1 to 256 CPUs: thirteen numbers of its layout, and that its name says its size
    and kind."""
    for record in read_jsonl(path):
        size, flags = record["object_size"], record["flags"]
        kind, named = parse_kmalloc_name(record["name"]) or (-1, -1)
        yield same(f"line {record.line}: name {record['name']}", [size, flags],
                   [named, KMALLOC_TYPE_FLAGS[kind] if kind >= 0 else None])
        yield from _compare(record, calculate_sizes(size, boot_cache_alignment(size, flags), flags, _cpus(record),
                                                    bool(record["ctor"])))


@replays("slub/cache_layout*.jsonl*", "slub/*.jsonl*")
def cache_layout(path: Path) -> Iterator[Check]:
    """The layout of caches of many sizes, alignments and flags, with and without a constructor, on 1 to 256 CPUs."""
    for record in read_jsonl(path):
        size, flags = record["object_size"], record["flags"]
        align = calculate_alignment(flags, record["req_align"], size)
        yield from _compare(record, calculate_sizes(size, align, flags, _cpus(record), bool(record["ctor"])))


@replays("slub/kmalloc_index*.json*")
def kmalloc_indexes(path: Path) -> Iterator[Check]:
    """The size class of every request from 0 bytes on."""
    try:
        indexes: Any = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"is not JSON: {error}") from None
    if not isinstance(indexes, list):
        raise InputError("is JSON but no list of indexes")
    for size, index in enumerate(indexes):
        yield same(f"kmalloc_index({size})", index, kmalloc_index(size))


def _machine_cpus(path: Path) -> int:
    """The CPUs of the recorded machine: what the boot log beside the folder says; one if there is none."""
    boot = path.absolute().parent.parent / "boot.txt"
    found = re.search(r"SLUB: .*\bCPUs=(\d+)", read_text(boot)) if boot.exists() else None
    return int(found.group(1)) if found else 1


@replays("buddy.out/slab-geometry*.txt*")
def slab_geometry(path: Path) -> Iterator[Check]:
    """What /sys/kernel/slab says of each cache: order and objects a slab from its size, the object size and alignment of
    kmalloc caches from their names, cpu_partial and min_partial."""
    cpus = _machine_cpus(path)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name, _, rest = line.partition(" ")
        words = rest.split()
        try:
            got = {key: int(value) for key, value in zip(words[::2], words[1::2])}
            size = got["size"]
        except (KeyError, ValueError):
            raise InputError(f"line {number} names no sizes: {line[:60]!r}") from None
        kmalloc = parse_kmalloc_name(name)
        if kmalloc:
            kind, named = kmalloc
            layout = calculate_sizes(named, boot_cache_alignment(named, KMALLOC_TYPE_FLAGS[kind]), KMALLOC_TYPE_FLAGS[kind],
                                     cpus)
            yield same(f"line {number}: {name}: size", size, layout.size)
            yield same(f"line {number}: {name}: object", got["object"], layout.object_size)
        order = calculate_order(size, cpus)
        objects = order_objects(order, size)
        expected = {"order": order, "objs_per_slab": objects, "cpu_partial": cpu_partial_limits(size, objects)[0],
                    "min_partial": max(5, min(10, ilog2(size) // 2))}
        for key, value in expected.items():
            yield same(f"line {number}: {name}: {key}", got.get(key), value)


@replays("buddy.out/slabinfo*.txt*")
def slabinfo(path: Path) -> Iterator[Check]:
    """/proc/slabinfo of a running kernel: pages and objects a slab of every cache, from its size."""
    cpus = _machine_cpus(path)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        found = re.match(r"(\S+) +\d+ +\d+ +(\d+) +(\d+) +(\d+) : tunables", line)
        if found:
            name, (size, objects, pages) = found[1], map(int, found.groups()[1:])
            order = calculate_order(size, cpus)
            yield same(f"line {number}: {name}: objects and pages a slab", [objects, pages],
                       [order_objects(order, size), 1 << order])


@replays("buddy.out/kmalloc-req-alloc*.txt*")
def kmalloc_requests(path: Path) -> Iterator[Check]:
    """Requests of a running kernel as the tracepoint kmem:kmalloc told them: how many bytes each got."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        found = re.fullmatch(r"bytes_req=(\d+) bytes_alloc=(\d+)", line.strip())
        if not found:
            raise InputError(f"line {number} is no request: {line[:60]!r}")
        requested, allocated = map(int, found.groups())
        yield same(f"line {number}: kmalloc({requested})", allocated, kmalloc_size_roundup(requested))
