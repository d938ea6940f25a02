"""From the log of a real boot to what that boot started from: firmware map, command line, kernel image, platform.

Nothing that the kernel chose (an address that an allocation got, a zone's size) is read here. What is read: the
firmware's map, where the boot loader put things, the processors and nodes, and facts of the build (where sections lie,
how large structures are).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmsim.boot.e820 import E820Entry, E820Table
from mmsim.boot.image import AcpiTable, DriverRequest, KernelImage, Platform, SratMemory
from mmsim.config import Config
from mmsim.constants import MAX_PHYSMEM_BITS, SECTION_SIZE_BITS
from mmsim.errors import InputError
from mmsim.recorded import Recording, matching, parse_iomem
from mmsim.rules import RELEASES, Rules, rules_for
from mmsim.units import KIB, MIB, PAGE_SIZE, align_down, align_up

__all__ = ["BootInputs", "MemblockRequest", "boot_inputs", "memblock_requests"]

_REQUEST = re.compile(r"^(memblock_\w+): (\d+) bytes align=(0x[0-9a-f]+)(?: nid=(-?\d+))? from=(0x[0-9a-f]+) "
                      r"max_addr=(0x[0-9a-f]+) ([^+\s]+)")

#: Functions whose requests the model makes itself, and the boot step after which a driver's request then comes.
_MODELLED = {name: step for step, names in {
    "init_mem_mapping": """
        reserve_real_mode init_mem_mapping alloc_low_pages""",
    "": """
        setup_arch reserve_initrd relocate_initrd reserve_crashkernel reserve_crashkernel_low numa_set_distance
        numa_alloc_distance numa_emulation start_kernel setup_command_line pcpu_build_alloc_info pcpu_alloc_alloc_info
        pcpu_embed_first_chunk pcpu_fc_alloc pcpu_setup_first_chunk pcpu_page_first_chunk pcpu_populate_pte""",
    "acpi_boot_init": """
        free_area_init sparse_init sparse_index_alloc sparse_init_nid memmap_alloc __earlyonly_bootmem_alloc
        vmemmap_alloc_block vmemmap_alloc_block_zero vmemmap_alloc_block_buf vmemmap_populate vmemmap_populate_hugepages
        vmemmap_populate_basepages vmemmap_populate_address vmemmap_pte_populate vmemmap_pmd_populate
        vmemmap_pud_populate vmemmap_p4d_populate vmemmap_pgd_populate sparse_buffer_init
        sparse_early_usemaps_alloc_pgdat_section""",
    "e820__reserve_resources": """
        e820__reserve_resources firmware_map_add_early register_nosave_region""",
    "print_unknown_bootoptions": """
        print_unknown_bootoptions alloc_large_system_hash""",
    "pcpu_alloc_first_chunk": """
        pcpu_alloc_first_chunk""",
    "spp_getpage": """
        spp_getpage""",
    "swiotlb_init": """
        swiotlb_init swiotlb_init_with_tbl swiotlb_init_remap swiotlb_memblock_alloc""",
}.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class MemblockRequest:
    """A logged request: which function of memblock, what was asked for, and the function that asked."""

    function: str
    size: int
    align: int
    nid: int
    min_addr: int
    max_addr: int
    caller: str


@dataclass(slots=True)
class BootInputs:
    """All that :class:`mmsim.boot.setup.Boot` needs to repeat a recorded boot."""

    firmware_map: list[E820Entry]
    command_line: str
    image: KernelImage
    platform: Platform
    rules: Rules
    config: Config = field(default_factory=Config)
    #: What could not be read and was assumed instead, in words.
    assumed: list[str] = field(default_factory=list)


def memblock_requests(messages: Sequence[str]) -> list[MemblockRequest]:
    """The requests that ``memblock=debug`` logged, in their order."""
    requests = []
    for message in messages:
        match = _REQUEST.match(message)
        if match:
            requests.append(MemblockRequest(match[1], int(match[2]), int(match[3], 16), int(match[4] or -1), int(match[5], 16),
                                            int(match[6], 16), match[7].split(".")[0]))
    return requests


def boot_inputs(recording: Recording) -> BootInputs:
    """Read a recorded boot. Raise InputError if the log does not begin at the beginning or lacks the firmware's map."""
    messages = recording.messages()
    version = next(matching(messages, r"^Linux version (\d+\.\d+)"), None)
    command = next(matching(messages, r"^Command line: (.*)$"), None)
    # A line of the log holds no more than 1 KiB.
    given = recording.sections.get("/proc/cmdline", command[1] if command else "").strip("\n")
    if version is None or command is None:
        raise InputError(f"{recording.path}: the kernel log lacks its first lines (Linux version, Command line)")
    if any(matching(messages, r"^last_pfn = \S+ max_arch_pfn = 0x10000000000$")):
        raise InputError(f"{recording.path}: the kernel runs with five levels of page tables; the model has four")
    release = version[1] if version[1] in RELEASES else _nearest(version[1])
    inputs = BootInputs(E820Table.from_dmesg("\n".join(messages)).entries, given, KernelImage(), Platform(),
                        rules_for(release))
    inputs.image = _image(recording, messages, inputs)
    inputs.platform = _platform(recording, messages)
    types = recording.sections.get("/proc/pagetypeinfo")
    inputs.config = Config(cma=types is None or " CMA " in types)
    return inputs


def _nearest(release: str) -> str:
    """The newest release that the model knows and that is not newer than ``release``."""
    def key(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))
    older = [known for known in RELEASES if key(known) <= key(release)]
    return max(older, key=key) if older else RELEASES[0]


# -- the kernel image ----------------------------------------------------------------------------------------

def _image(recording: Recording, messages: Sequence[str], inputs: BootInputs) -> KernelImage:
    image = _sections(recording, messages, inputs)
    requests = memblock_requests(messages)

    def size_of(caller: str) -> int | None:
        return next((request.size for request in requests if request.caller == caller), None)

    changes: dict[str, object] = {"release": next(matching(messages, r"^Linux version (\S+)"))[1]}
    real_mode = size_of("reserve_real_mode")
    if real_mode:
        changes["real_mode_size"] = real_mode
    roots = size_of("sparse_init")
    if roots:
        changes["sizeof_mem_section"] = PAGE_SIZE // ((1 << MAX_PHYSMEM_BITS - SECTION_SIZE_BITS) // (roots // 8))
    elif not requests:
        # Not logged. With CONFIG_PAGE_EXTENSION, which page_owner brings, the structure has two words more.
        changes["sizeof_mem_section"] = 32 if any(matching(messages, "^page_owner is ")) else 16
    usemap = next((r for r in requests if r.caller == "sparse_init_nid" and r.function == "memblock_alloc_try_nid"), None)
    memmap = next((r for r in requests if r.function == "memblock_alloc_exact_nid_raw"), None)
    if usemap and memmap:
        changes["sizeof_mem_section_usage"] = usemap.size // (memmap.size // (2 * MIB))
    chunk = size_of("pcpu_alloc_first_chunk")
    if chunk:
        changes["sizeof_pcpu_chunk"] = chunk - 8
    node = next(matching(messages, r"^NODE_DATA\(\d+\) allocated \[mem (0x[0-9a-f]+)-(0x[0-9a-f]+)\]"), None)
    if node:
        changes["sizeof_pg_data_t"] = size_of("free_area_init") or int(node[2], 16) - int(node[1], 16) + 1
    percpu = next(matching(messages, r"^percpu: (?:Embedded \d+|\d+ \d+K) pages/cpu s(\d+) r(\d+)"), None)
    if percpu:
        changes |= {"percpu_static_size": int(percpu[1]), "percpu_reserved_size": int(percpu[2])}
    setup = next(matching(messages, r"^setup_percpu: NR_CPUS:(\d+)"), None)
    if setup:
        changes["nr_cpus"] = int(setup[1])
    changes["deferred_struct_page_init"] = any(matching(messages, r"^node \d+ deferred pages initialised"))
    changes["hibernation"] = any(matching(messages, r"^PM: hibernation: Registered nosave"))
    changes["numa_emulation"] = not any(matching(messages, r"^Malformed early option 'numa'"))
    changes["zone_device"] = any(matching(messages, r"^  Device +(\[mem|empty)"))
    changes["dma_cma"] = any(matching(messages, r"^cma: "))
    changes["unknown_options"] = _unknown_names(messages)
    changes["driver_requests"] = _driver_requests(messages)
    return image.replace(**changes)


def _sections(recording: Recording, messages: Sequence[str], inputs: BootInputs) -> KernelImage:
    """Where the sections lie: /proc/iomem, the brk reservation, and the sizes in the Memory: and Freeing lines."""
    image = KernelImage()
    found: dict[str, tuple[int, int]] = {}
    if "/proc/iomem" in recording.sections:
        for entry in parse_iomem(recording.section("/proc/iomem")):
            if entry.name.startswith("Kernel ") and entry.end > 1:
                found[entry.name.removeprefix("Kernel ")] = (entry.start, entry.end)
    brk = next(matching(messages, r"^memblock_reserve: \[(0x[0-9a-f]+)-(0x[0-9a-f]+)\] setup_arch"), None)
    if {"code", "rodata", "data", "bss"} - set(found):
        inputs.assumed.append("the kernel's sections (no addresses in /proc/iomem): from the first MEMBLOCK dump and the Memory: line")
        found = _sections_from_sizes(messages, int(brk[1], 16) if brk else image.bss[1])
        if not found:
            return image
    bss = found["bss"]
    locks = next(matching(messages, r"^Freeing SMP alternatives memory: (\d+)K"), None)
    locks_start = bss[0] - (int(locks[1]) * KIB if locks else 0)
    init = next(matching(messages, r"^Memory: .* (\d+)K init"), None)
    init_start = locks_start - (int(init[1]) * KIB if init else 0)
    changes: dict[str, object] = {
        "text": found["code"], "rodata": found["rodata"], "data": found["data"], "bss": bss,
        "init": (init_start, locks_start), "smp_locks": (locks_start, bss[0])}
    decrypted = next(matching(messages, r"^Freeing unused decrypted memory: (\d+)K"), None)
    if decrypted:
        # It ends with the 2 MiB page that it was given for itself, the last whole one of .bss.
        end = align_down(bss[1], 2 * MIB)
        changes["decrypted"] = (end - int(decrypted[1]) * KIB, end)
    if brk:
        start, size = int(brk[1], 16), int(brk[2], 16) + 1 - int(brk[1], 16)
        # Three tables for four levels, four for five; twice that, or four times with KASLR of memory.
        pages = next((pages for pages in (16, 12, 8) if size >= pages * PAGE_SIZE), 6)
        changes |= {"brk_start": start, "pgt_buf_pages": pages, "brk_other_bytes": size - pages * PAGE_SIZE}
    elif any(matching(messages, "^DMI: ")):
        changes["brk_other_bytes"] = PAGE_SIZE
        inputs.assumed.append("one page of .brk for DMI strings (memblock's calls are not in the log)")
    return image.replace(**changes)


def _sections_from_sizes(messages: Sequence[str], end: int) -> dict[str, tuple[int, int]]:
    """The sections as their sizes let them lie: text, rodata and data each on a 2 MiB page of its own, bss at the
    end.
    """
    sizes = next(matching(messages, r"^Memory: .*\((\d+)K kernel code, (\d+)K rwdata, (\d+)K rodata, (\d+)K init, (\d+)K bss"), None)
    start = next((int(m[1], 16) for m in matching(messages, r"^ reserved\[0x\w+\]\s+\[(0x[0-9a-f]+)-(0x[0-9a-f]+)\]")
                  if int(m[1], 16) < end <= int(m[2], 16)), None)
    if sizes is None or start is None:
        return {}
    code, rwdata, rodata, _, bss = (int(size) * KIB for size in sizes.groups())
    rodata_start = align_up(start + code, 2 * MIB)
    data_start = align_up(rodata_start + rodata, 2 * MIB)
    return {"code": (start, start + code), "rodata": (rodata_start, rodata_start + rodata),
            "data": (data_start, data_start + rwdata), "bss": (end - bss, end)}


def _unknown_names(messages: Sequence[str]) -> tuple[str, ...]:
    line = next(matching(messages, r'^Unknown kernel command line parameters "(.*)", will be passed'), None)
    return tuple(word.partition("=")[0] for word in line[1].split()) if line else ()


def _driver_requests(messages: Sequence[str]) -> tuple[DriverRequest, ...]:
    """The requests of functions that the model knows nothing of, each with the step that it comes after."""
    after, command_line_copies = "init_mem_mapping", 0
    found: list[DriverRequest] = []
    for message in messages:
        if message.startswith("ACPI: Reserving"):
            after = "acpi_reserve_initial_tables"
        elif message.startswith("smpboot: Allowing"):
            after = "io_apic_init_mappings"
        parsed = memblock_requests([message])
        if not parsed:
            continue
        request = parsed[0]
        if request.caller in _MODELLED:
            after = _MODELLED[request.caller] or after
            if request.caller == "start_kernel":
                command_line_copies += 1
                if command_line_copies > 2:
                    after = "print_unknown_bootoptions"
        else:
            found.append(DriverRequest(after, request.size, request.align, request.caller, request.min_addr, request.max_addr,
                                       request.nid, request.function.removeprefix("memblock_")))
    return tuple(found)


# -- the platform --------------------------------------------------------------------------------------------

def _platform(recording: Recording, messages: Sequence[str]) -> Platform:
    tables = tuple(AcpiTable(m[1], int(m[2], 16), int(m[3], 16))
                   for m in matching(messages, r"^ACPI: (\S{4}) 0x([0-9A-F]{16}) ([0-9A-F]{6})\b"))
    cpus = next(matching(messages, r"^smpboot: Allowing (\d+) CPUs, (\d+) hotplug"), None)
    srat = tuple(SratMemory(int(m[1]), int(m[3], 16), int(m[4], 16) + 1, int(m[2]), bool(m[5])) for m in matching(
        messages, r"^ACPI: SRAT: Node (\d+) PXM (\d+) \[mem (0x[0-9a-f]+)-(0x[0-9a-f]+)\]( hotplug)?"))
    affinity = list(matching(messages, r"^SRAT: PXM \d+ -> APIC (0x[0-9a-f]+) -> Node (\d+)"))
    cpu_to_node = tuple(int(m[2]) for m in affinity)
    online = next(matching(messages, r"^smp: Brought up \d+ nodes?, (\d+) CPU"), None)
    platform = Platform(
        initrd=_initrd(messages), acpi_tables=tables, nr_cpus=int(cpus[1]) if cpus else 1,
        hotplug_cpus=int(cpus[2]) if cpus else 0, online_limit=int(online[1]) if online else 0, srat=srat,
        cpu_to_node=cpu_to_node, apic_ids=tuple(int(m[1], 16) for m in affinity))
    if any(table.name == "SLIT" for table in tables):
        platform = platform.replace(distances=_distances(recording.command, max([a.nid for a in srat] + list(cpu_to_node)) + 1))
    meminfo = recording.sections.get("/proc/meminfo", "")
    # The log says so only where early parameters are shown; /proc/meminfo has the line wherever the CPU has such pages.
    return platform.replace(gbpages="DirectMap1G" in meminfo or any(matching(messages, r"^Using GB pages for direct mapping")))


def _initrd(messages: Sequence[str]) -> tuple[int, int] | None:
    """Where the boot loader put the RAM disk. Its last byte is logged only when it is moved; else it ends with its
    page.
    """
    for pattern in (r"^Move RAMDISK from \[mem (0x[0-9a-f]+)-(0x[0-9a-f]+)\]", r"^RAMDISK: \[mem (0x[0-9a-f]+)-(0x[0-9a-f]+)\]"):
        match = next(matching(messages, pattern), None)
        if match:
            return int(match[1], 16), int(match[2], 16) + 1 - int(match[1], 16)
    return None


def _distances(command: str, nodes: int) -> tuple[tuple[int, ...], ...]:
    """The SLIT as the command that started the machine says; what it does not say is 10 at home and 20 elsewhere."""
    table = [[10 if a == b else 20 for b in range(nodes)] for a in range(nodes)]
    for match in re.finditer(r"dist,src=(\d+),dst=(\d+),val=(\d+)", command.replace("\\", "")):
        a, b, value = map(int, match.groups())
        if a < nodes and b < nodes:
            table[a][b] = value
            if f"dist,src={b},dst={a}," not in command.replace("\\", ""):
                table[b][a] = value
    return tuple(map(tuple, table))
