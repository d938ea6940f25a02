"""Demand paging: a process touches a fresh mapping, and every fault goes through the kernel on the live machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mmsim.constants import (
    _PAGE_SPECIAL,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from mmsim.draw import (
    Ask,
    Call,
    CallGraph,
    Entry,
    Frame,
    Ledger,
    Legend,
    Node,
    Operation,
    Operations,
    Scene,
    TreeView,
    figure,
)
from mmsim.draw.params import OperationList
from mmsim.ftrace.graph import FunctionGraph
from mmsim.paging.address import level_name
from mmsim.paging.mmu import Mmu
from mmsim.paging.pte import kind, pte_pfn, pte_write
from mmsim.paging.tlbflush import TlbFlush
from mmsim.paging.walk import error_code_names
from mmsim.process.populate import Access, Outcome, Touch
from mmsim.reference import toy16
from mmsim.units import KIB, MIB, PAGE_SIZE, format_bytes

__all__ = ["AREA", "LENGTH", "Live", "State", "demand_paging"]

#: Where the mapping lies: on a boundary of 2 MiB, so that the first page needs new tables and its neighbour none.
AREA, LENGTH = 0x7FFFF7400000, 8 * MIB
DEFAULT = """\
read 0            # never touched
write 0           # now for real
write 4K          # its neighbour
read 4K           # again
write 2M          # another 2 MiB
write 16M         # outside of the mapping
"""
VERBS = {
    "read": "offset:size -- read a byte, so far behind the start of the mapping",
    "write": "offset:size -- write a byte",
    "fetch": "offset:size -- execute",
    "mprotect": "rights:none|r|rw|rx -- change what the mapping allows",
}
_ACCESS = {"read": Access.READ, "write": Access.WRITE, "fetch": Access.EXEC}
_RIGHTS = {"none": PROT_NONE, "r": PROT_READ, "rw": PROT_READ | PROT_WRITE, "rx": PROT_READ | PROT_EXEC}
#: Helpers of the kernel that one can do without to follow its path.
_HIDDEN = frozenset({
    "IS_ALIGNED", "vma_is_anonymous", "vma_is_accessible", "vma_set_page_prot", "maybe_mkwrite", "find_mergeable_anon_vma", "round_down",
    "round_up", "anon_vma_chain_link", "add_mm_counter", "__get_locked_pte", "prepare_alloc_pages", "alloc_flags_nofragment",
    "mlock_future_check", "find_vma_prev", "may_expand_vm", "accountable_mapping", "vm_stat_account", "is_data_mapping",
    "find_vma_intersection",
})
_MOST_CALLS = 14
_MOST_OPERATIONS = 24
_MOST_PAGES = 10


@dataclass(frozen=True, slots=True)
class State:
    """What a frame shows of the process: tables as (level, frame, address), entries as (address, word), and counts."""

    tables: tuple[tuple[int, int, int], ...]
    pages: tuple[tuple[int, int], ...]
    vmpte: int
    rss: int
    minflt: int
    loads: int


class Live:
    """A machine of 16 MiB with one process on a CPU with a TLB, and a private mapping of 8 MiB that nobody touched yet.

    ``calls`` are the kernel's functions that the last step went through, as the function tracer saw them.
    """

    def __init__(self) -> None:
        self.machine = toy16()
        self.cpu = Mmu(self.machine.contents)
        self.machine.user.tlb = TlbFlush([self.cpu], self.machine.init_mm)
        self.process = self.machine.spawn("demo")
        self.process.cpu = 0
        with FunctionGraph(self.machine.trace, max_depth=3, hide=_HIDDEN) as graph:
            self.process.mmap(AREA, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        self.calls: list[Call] = []
        self._keep(graph)

    def _keep(self, graph: FunctionGraph, failed: bool = False) -> None:
        found = [Call(call.depth, f"{call.function.name}()", state="lit", tip=call.function.file) for call in graph.walk()]
        self.calls = found[:_MOST_CALLS]
        if failed and self.calls:
            self.calls[-1] = replace(self.calls[-1], state="failed")

    def touch(self, offset: int, access: Access) -> Touch:
        """Access the byte that lies ``offset`` bytes behind the start of the mapping."""
        with FunctionGraph(self.machine.trace, max_depth=7, hide=_HIDDEN, graph_function=("exc_page_fault",)) as graph:
            touch = self.process.touch(AREA + offset, access)
        self._keep(graph, touch.outcome is not Outcome.OK)
        return touch

    def mprotect(self, rights: str) -> int:
        """Change the rights of the whole mapping."""
        with FunctionGraph(self.machine.trace, max_depth=4, hide=_HIDDEN) as graph:
            result = self.process.mprotect(AREA, LENGTH, _RIGHTS[rights])
        self._keep(graph)
        return result

    def state(self) -> State:
        """The process as it is now."""
        space = self.process.page_tables
        return State(tuple(space.tables()), tuple((leaf.addr, leaf.word) for leaf in space.leaves()), space.pgtables_bytes,
                     sum(self.process.mm.rss) * PAGE_SIZE, self.process.minflt, self.cpu.loads)


def _place(offset: int) -> str:
    """Where a byte lies in the mapping."""
    return f"+{format_bytes(offset) if offset else 0}"


def _page_words(word: int) -> str:
    """What an entry maps, in short."""
    if word & _PAGE_SPECIAL:
        return "the zero page, read-only"
    hidden = "hidden" if kind(word) == "protnone" else "writable" if pte_write(word) else "read-only"
    return f"frame {pte_pfn(word):#x}, {hidden}"


def _tree(state: State, before: State | None) -> Node:
    """The tables below the PGD and the pages below them; what is new is marked."""
    old_tables = {pfn for _, pfn, _ in before.tables} if before else set()
    old_pages = dict(before.pages) if before else {}

    def node(level: int, pfn: int, addr: int) -> Node:
        size = 1 << 12 + 9 * level
        inside = [one for one in state.tables if one[0] == level - 1 and addr <= one[2] < addr + size]
        children = [node(*one) for one in inside]
        if level == 1:
            found = [(at, word) for at, word in state.pages if addr <= at < addr + size]
            for at, word in found[:_MOST_PAGES]:
                changed = before is not None and old_pages.get(at) != word
                role = "moving" if changed else "free" if word & _PAGE_SPECIAL else "anon"
                children.append(Node(f"page{at:x}", f"{_place(at - AREA)}: {_page_words(word)}", role, tip=f"{word:#x}"))
            if len(found) > _MOST_PAGES:
                children.append(Node(f"more{addr:x}", f"and {len(found) - _MOST_PAGES} more"))
        new = before is not None and pfn not in old_tables
        return Node(f"{level}:{pfn:x}", f"{level_name(level)} table, frame {pfn:#x}", "moving" if new else "table", children)

    tops = [one for one in state.tables if one[0] == 3]
    return Node("pgd", "PGD", "table", [node(*one) for one in tops])


@figure(
    "Demand paging",
    alt="The kernel's functions that a page fault went through, beside the tables and pages of the process after it, with VmPTE, RSS and "
        "the number of faults.",
    params=[Operations("ops", DEFAULT, VERBS, label="accesses")],
)
def demand_paging(ops: OperationList, width: float) -> Iterator[Frame]:
    """Runs a process of :mod:`mmsim.process` on a machine; the path is what :mod:`mmsim.ftrace` recorded of it."""
    live = Live()
    states, paths, says = [live.state()], [live.calls], [
        f"mmap() made an area of {format_bytes(LENGTH)}. There is no table for it, no entry, no frame: VmPTE is 0, RSS is 0."]
    asks: dict[int, Ask] = {}
    done: list[Operation] = []
    for operation in ops:
        if len(done) >= _MOST_OPERATIONS:
            operation.fail(f"more than {_MOST_OPERATIONS} steps: the rest is left out")
            continue
        before = states[-1]
        says.append(_run(live, operation))
        states.append(live.state())
        paths.append(live.calls)
        done.append(operation)
        if operation.verb == "write" and len(asks) < 2 and states[-1].vmpte + states[-1].rss > before.vmpte + before.rss:
            rss, vmpte = (states[-1].rss - before.rss) // KIB, (states[-1].vmpte - before.vmpte) // KIB
            asks[len(states) - 2] = Ask(f"Next: {operation.text}. By how much do RSS and VmPTE grow together?", rss + vmpte,
                                        f"RSS by {rss}, VmPTE by {vmpte}.", unit="KiB")

    def shot(number: int, say: str, ask: Ask | None = None) -> Frame:
        state, before = states[number], states[number - 1] if number else None
        scene = Scene(width)
        path = CallGraph(paths[number] or [Call(0, "no call: the kernel does not notice")])
        title = "The kernel's path" if paths[number] else "The processor alone"
        scene.row([("path", path, title, 1), ("tree", TreeView(_tree(state, before), indented=True), "Tables and pages", 1)])
        was = before or state
        scene.add(Ledger([
            Entry("VmPTE, KiB", state.vmpte // KIB, (state.vmpte - was.vmpte) // KIB),
            Entry("RSS, KiB", state.rss // KIB, (state.rss - was.rss) // KIB),
            Entry("minor faults", state.minflt, state.minflt - was.minflt),
            Entry("words read by walks", state.loads, state.loads - was.loads),
        ]), "ledger")
        scene.add(Legend({"table": "a table", "free": "the zero page", "anon": "a page of the process", "moving": "new in this step"}),
                  "legend", gap=10)
        return Frame(scene, say, ask=ask)

    if len(says) > 1:
        yield shot(1, f"The first access to a new mapping. {says[1]}")
    for number, say in enumerate(says):
        yield shot(number, say, asks.get(number))


def _run(live: Live, operation: Operation) -> str:
    """One step, in a sentence."""
    before = live.state()
    if operation.verb == "mprotect":
        live.mprotect(operation["rights"])
        return f"mprotect({operation['rights']}): the area and the entries that are there change; no page is touched."
    access, offset = _ACCESS[operation.verb], operation["offset"]
    touch = live.touch(offset, access)
    what = f"{operation.verb.capitalize()} at {_place(offset)}"
    if touch.outcome is not Outcome.OK:
        if touch.code == "SI_KERNEL":
            return f"{what}: the address is not canonical. No page fault, but #GP; the program gets {touch.outcome.name}."
        why = "there is no area" if touch.code == "SEGV_MAPERR" else "the area does not allow it"
        code = f"error code {touch.error_code:#x} ({error_code_names(touch.error_code)})"
        return f"{what}: {code}, and {why}. The program gets {touch.outcome.name}, {touch.code}."
    now = live.state()
    if not touch.faults:
        loads = now.loads - before.loads
        return f"{what}: no fault. The TLB had it." if not loads else f"{what}: no fault, a walk of {loads} word{'s' if loads > 1 else ''}."
    counts = (("VmPTE", before.vmpte, now.vmpte), ("RSS", before.rss, now.rss))
    grown = [f"{name} {(after - was) // KIB:+} KiB" for name, was, after in counts if after != was]
    return f"{what}: error code {touch.error_code:#x}; the kernel gives {_given(touch.faults)}. {', '.join(grown) or 'Nothing grows'}."


def _given(faults: tuple[str, ...]) -> str:
    names = {"zero page": "the zero page", "new page": "a page of zeros", "copy of the zero page": "a page of its own",
             "copy": "a copy", "reuse": "the right to write", "spurious": "nothing new"}
    return ", then ".join(names.get(one, one) for one in faults)
