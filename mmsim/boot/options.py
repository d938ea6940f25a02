"""The command line, as far as memory management reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mmsim.boot.zones import CoreOptions
from mmsim.units import memparse

__all__ = ["BootOptions", "KNOWN_OPTIONS"]

_HASH_OPTIONS = {"dhash_entries": "Dentry cache", "ihash_entries": "Inode-cache"}
#: Options that the recorded kernels know, and what the kernel prints about no more. What is not known goes to init.
KNOWN_OPTIONS = frozenset("""
    acpi cgroup.memory cgroup_disable console crashkernel debug default_hugepagesz dhash_entries earlyprintk hashdist
    highres hugepages hugepagesz hugetlb_free_vmemmap ignore_loglevel ihash_entries init initrd iommu isolcpus
    kernelcore kexec_load_disabled log_buf_len loglevel lpj maxcpus mce mem memblock memhp_default_state memmap
    memory_corruption_check memtest mitigations mminit_loglevel movable_node movablecore nmi_watchdog
    no_console_suspend noapic noexec nohz nokaslr nolapic nomodule nopat nosmp nox2apic nr_cpus numa numa_balancing
    numa_zonelist_order page_owner panic pci percpu_alloc possible_cpus printk.devkmsg printk.time psi quiet
    random.trust_cpu rdinit reserve ro root rootdelay rootflags rootfstype rootwait rw slab_max_order slab_min_objects
    slab_nomerge slub_debug slub_max_order slub_min_objects slub_min_order swapaccount swiotlb transparent_hugepage
    tsc vmalloc workqueue.power_efficient
    """.split())


@dataclass(slots=True)
class BootOptions:
    """What the command line asks for. ``numa`` is the text after ``numa=``; ``cma`` is (size, base, limit) in bytes."""

    memblock_debug: bool = False
    movable_node: bool = False
    numa: str = ""
    core: CoreOptions = field(default_factory=CoreOptions)
    cma: tuple[int, int, int] = (0, 0, 0)
    transparent_hugepage: str = ""
    swiotlb_slabs: int = 0
    swiotlb_force: str = ""
    iommu: str = ""
    #: Spread large hash tables over the nodes, which needs vmalloc (the default on x86-64).
    hashdist: bool = True
    #: Buckets asked for by dhash_entries= and ihash_entries=, by the name of the table.
    hash_entries: dict[str, int] = field(default_factory=dict)
    #: Settings of /proc/sys/vm: (name, value) of every ``sysctl.vm.name=value``.
    sysctls: list[tuple[str, str]] = field(default_factory=list)
    #: Options for init, as the kernel lists them: first those without a value, then those with one.
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, command_line: str, unknown_names: tuple[str, ...] | None = None) -> "BootOptions":
        """Read a command line; of an option that comes twice the last counts.

        ``unknown_names`` are the options that this kernel does not know, if that is recorded.

        >>> BootOptions.parse("numa=fake=4 memblock=debug nopti scenario=boot", ("nopti", "scenario")).unknown
        ['nopti', 'scenario=boot']
        """
        options = cls()
        flags: list[str] = []
        settings: list[str] = []
        for word in command_line.split():
            if word == "--":
                break
            name, equals, value = word.partition("=")
            if name == "memblock":
                options.memblock_debug = value == "debug"
            elif name == "movable_node":
                options.movable_node = True
            elif name == "numa":
                options.numa = value
            elif name in ("kernelcore", "movablecore"):
                options.core.set(name, value)
            elif name == "cma":
                options.cma = _parse_cma(value)
            elif name == "transparent_hugepage":
                options.transparent_hugepage = value
            elif name == "swiotlb":
                slabs, _, force = value.partition(",")
                options.swiotlb_slabs = int(slabs) if slabs.isdigit() else 0
                options.swiotlb_force = force or ("" if slabs.isdigit() else slabs)
            elif name == "iommu":
                options.iommu = value
            elif name == "hashdist":
                options.hashdist = value != "0"
            elif name in _HASH_OPTIONS and value.isdigit():
                options.hash_entries[_HASH_OPTIONS[name]] = int(value)
            elif re.match(r"sysctl[./]vm[./]", name):
                options.sysctls.append((name[len("sysctl.vm."):], value))
            unknown = name in unknown_names if unknown_names is not None else name not in KNOWN_OPTIONS and "." not in name
            if unknown:
                (settings if equals else flags).append(word)
        options.unknown = flags + settings
        return options


def _parse_cma(value: str) -> tuple[int, int, int]:
    """``size[@base[-limit]]``; with a base but no limit the place is fixed (5.17: kernel/dma/contiguous.c,
    early_cma()).
    """
    size, rest = memparse(value)
    if not rest.startswith("@"):
        return size, 0, 0
    base, rest = memparse(rest[1:])
    return size, base, memparse(rest[1:])[0] if rest.startswith("-") else 0
