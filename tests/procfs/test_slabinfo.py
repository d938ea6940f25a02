"""/proc/slabinfo and /sys/kernel/slab of a simulated machine."""

import re
from pathlib import Path

from mmsim.kernel.slub import Slub
from mmsim.procfs.slabinfo import slab_sysfs, slabinfo
from mmsim.reference import ref256

RECORDED = (Path(__file__).parents[1] / "golden/recordings/linux-5.17/buddy.out/slabinfo.txt").read_text().splitlines()


def test_the_caches_of_boot_are_the_recorded_ones_in_their_order_and_form():
    slub = Slub.of(ref256())
    text = slabinfo(slub).splitlines()
    assert text[:2] == RECORDED[:2]
    boot = RECORDED[-54:]
    assert boot[0].startswith("dma-kmalloc-8k") and len(text) == 56

    def form(line):
        """A line without its counts of objects and slabs."""
        name, _, _, *rest = line[:40].split()
        return name, rest, line[40:line.index("slabdata")]
    assert [form(line) for line in text[2:]] == [form(line) for line in boot]
    # Where the counts agree too, so does every character.
    empty = [line for line in boot if re.search(r" 0      0 +\d+ +\d+ +\d+ :", line)]
    assert len(empty) > 20 and set(empty) <= set(text)


def test_sysfs_tells_what_slabinfo_does_not():
    slub = Slub.of(ref256())
    s = slub.cache("kmalloc-64")
    objects = [slub.kmalloc(64) for _ in range(129)]
    slub.kfree(objects[0])
    files = slab_sysfs(s)
    recorded = {"align": "64", "cpu_partial": "120", "min_partial": "5", "objs_per_slab": "64", "order": "0", "object_size": "64",
                "slab_size": "64", "usersize": "64", "red_zone": "0", "remote_node_defrag_ratio": "100", "aliases": "0"}
    assert recorded.items() <= files.items()
    assert (files["slabs"], files["cpu_slabs"], files["slabs_cpu_partial"]) == ("3 N0=3", "2 N0=2", "32(1) C0=32(1)")
    assert files["total_objects"] == files["objects"] == "192 N0=192"
