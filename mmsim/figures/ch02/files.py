"""Who calls whom: the kernel's source files, joined by the calls that were observed while the simulated machine worked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache

from mmsim.draw import Ask, Choice, Frame, Scene, figure, text_width
from mmsim.ftrace.graph import Call, FunctionGraph
from mmsim.ftrace.kfunc import ELSEWHERE
from mmsim.reference import toy16
from mmsim.replay.graphs import graph_of

__all__ = ["WORKLOADS", "call_edges", "last_files", "who_calls_whom"]

#: What the figure can run, and the events of :mod:`mmsim.replay.graphs` that it is made of.
WORKLOADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "faults": ("page faults", ("anon_read", "anon_write", "zero_then_write", "cow_copy", "cow_reuse", "file_minor", "filew_minor_cow",
                               "shmem_write", "stack_grow", "segv_unmapped")),
    "areas": ("areas come and go", ("mmap_anon", "mmap_file", "mmap_shared_anon", "munmap64", "munmap_split", "mprotect_split",
                                    "mremap_move", "brk_grow", "brk_shrink")),
    "processes": ("fork and exit", ("fork", "exit")),
    "kernel": ("kmalloc() and vmalloc()", ()),
}
_MOST = 9


def _kernel() -> FunctionGraph:
    """Objects and ranges of the kernel's own, made and given back."""
    machine = toy16()
    slub, vmalloc = machine.slub, machine.vmalloc
    with FunctionGraph(machine.trace) as graph:
        objects = [slub.kmalloc(size) for size in (64, 200, 4096, 20_000)]
        area = vmalloc.vmalloc(40_000)
        for one in objects:
            slub.kfree(one)
        vmalloc.vfree(area)
    return graph


def _file(call: Call, caller: str) -> str:
    """Its C file. What stands in a header is compiled into whoever calls it; lib/ only prints the trace."""
    file = call.function.file
    return file if file.endswith(".c") and not file.startswith("lib/") else caller


def _graphs(workload: str) -> list[FunctionGraph]:
    events = WORKLOADS[workload][1]
    return [graph_of(event, leave_out=ELSEWHERE.keys()) for event in events] if events else [_kernel()]


def _count(call: Call, caller: str, edges: Counter[tuple[str, str]]) -> None:
    file = _file(call, caller)
    if file != caller and caller:
        edges[caller, file] += 1
    for one in call.inner:
        if isinstance(one, Call):
            _count(one, file, edges)


@cache
def call_edges(workload: str) -> dict[tuple[str, str], int]:
    """(caller's file, callee's file) and the number of calls from one file to another, with inlined functions counted too."""
    edges: Counter[tuple[str, str]] = Counter()
    names = list(WORKLOADS) if workload == "all" else [workload]
    for name in names:
        for graph in _graphs(name):
            for root in graph.roots:
                if isinstance(root, Call):
                    _count(root, "", edges)
    return dict(edges)


def _short(file: str) -> str:
    """Without the folder where it is mm/, else with its last part."""
    return file.removeprefix("mm/") if file.startswith("mm/") else file.rsplit("/", 1)[-1]


def _trim(edges: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """On each side the files with the most calls, the others as one."""
    out: Counter[tuple[str, str]] = Counter()
    keep = [{file for file, _ in _side(edges, side)[:_MOST]} for side in (0, 1)]
    for (caller, callee), calls in edges.items():
        out[caller if caller in keep[0] else "others", callee if callee in keep[1] else "others"] += calls
    return dict(out)


def _side(edges: dict[tuple[str, str], int], side: int) -> list[tuple[str, int]]:
    """Files of one side and their calls, most first; what is not a single file comes last."""
    sums: Counter[str] = Counter()
    for edge, calls in edges.items():
        sums[edge[side]] += calls
    return sorted(sums.items(), key=lambda item: (item[0] == "others", -item[1], item[0]))


class _Ribbons:
    """Callers on the left, the files that they call on the right; a ribbon is as thick as its calls."""

    def __init__(self, edges: dict[tuple[str, str], int], caller: str, callee: str, high: float):
        self.edges, self.caller, self.callee, self.high = edges, caller, callee, high

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw it; a file's key is ``key/<side>/<file>``, a ribbon's ``key/<caller>><callee>``."""
        sides = [_side(self.edges, side) for side in (0, 1)]
        total = sum(self.edges.values())
        label = max(text_width(f"{_short(file)} {calls}", "small") for side in sides for file, calls in side) * 1.1 + 8
        least = 17.0
        tops: list[dict[str, float]] = []
        scale = (self.high - least * max(len(side) for side in sides)) / total
        for side in sides:
            at, place = y, {}
            room = self.high - sum(max(calls * scale, 3) for _, calls in side)
            gap = room / max(len(side), 1)
            for file, calls in side:
                place[file] = at + gap / 2
                at += max(calls * scale, 3) + gap
            tops.append(place)
        left, right = x + label, x + width - label
        used = [dict(top) for top in tops]
        for (caller, callee), calls in sorted(self.edges.items(), key=lambda item: (tops[0][item[0][0]], tops[1][item[0][1]])):
            thick = max(calls * scale, 1)
            a, b = used[0][caller], used[1][callee]
            used[0][caller] += thick
            used[1][callee] += thick
            lit = caller == self.caller or callee == self.callee
            some = bool(self.caller or self.callee)
            middle = (left + right) / 2
            d = (f"M{left + 8:.1f} {a:.1f}C{middle:.1f} {a:.1f} {middle:.1f} {b:.1f} {right - 8:.1f} {b:.1f}V{b + thick:.1f}"
                 f"C{middle:.1f} {b + thick:.1f} {middle:.1f} {a + thick:.1f} {left + 8:.1f} {a + thick:.1f}Z")
            tip = f"{caller} calls {callee}: {calls} times"
            scene.path(f"{key}/{caller}>{callee}", d, "moving" if lit else "level dim" if some else "level", tip, max(a, b) + thick)
        for number, (side, top, at) in enumerate(zip(sides, tops, (left, right - 8), strict=True)):
            for file, calls in side:
                tall = max(calls * scale, 3)
                hot = file == (self.callee if number else self.caller)
                scene.rect(f"{key}/{number}/{file}", at, top[file], 8, tall, "solid")
                beside = at + 12 if number else at - 4
                scene.text(f"{key}/{number}/{file}.t", beside, top[file] + tall / 2 + 4, f"{_short(file)} {calls}", "small",
                           "strong" if hot else "", "start" if number else "end", tip=file)
        scene.height = max(scene.height, round(y + self.high, 1))
        return self.high


@figure(
    "Who calls whom",
    alt="Source files of the kernel on the left and on the right, joined by ribbons as thick as the number of calls from one to the other "
        "that were observed on the simulated machine.",
    params=[Choice("workload", {name: words for name, (words, _) in WORKLOADS.items()} | {"all": "all of these"}, "all")],
)
def who_calls_whom(workload: str, width: float) -> Iterator[Frame]:
    """Runs the workload under :class:`~mmsim.ftrace.graph.FunctionGraph` and counts its calls from file to file."""
    edges = call_edges(workload)
    drawn = _trim(edges)
    callers, callees = _side(edges, 0), _side(edges, 1)
    total = sum(edges.values())

    def shot(say: str, caller: str = "", callee: str = "", ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        scene.add(_Ribbons(drawn, caller, callee, 400 if scene.narrow else 360), "files", "calls from one file to another",
                  "caller on the left, called on the right")
        return Frame(scene, say, ask=ask)

    words = "all four workloads" if workload == "all" else WORKLOADS[workload][0]
    reach = Counter(callee for _, callee in edges)
    popular = max(reach, key=lambda file: (reach[file], file))
    ends = last_files(workload)
    deepest, times = ends.most_common(1)[0]
    choices = {deepest, popular, callees[0][0], callers[0][0], "mm/memory.c", "mm/mmap.c", "mm/page_alloc.c", "mm/rmap.c"}
    yield shot(f"{total} calls from one file to another were observed in {words}: {len(callers)} files call, {len(callees)} are called.",
               ask=Ask("Follow each event's path as far down as it goes. In which file do more end than in any other?", deepest,
                       f"{times} of {ends.total()} events.", choices=sorted(choices)))
    for file, calls in callers[:5]:
        goals = {callee: number for (caller, callee), number in edges.items() if caller == file}
        first = max(goals, key=lambda goal: goals[goal])
        yield shot(f"{file} calls {len(goals)} other {'file' if len(goals) == 1 else 'files'}, {calls} times; most often {first}, "
                   f"{goals[first]} times.", caller=file)
    for file in dict.fromkeys([callees[0][0], popular, deepest]):
        more = f" The deepest path of {times} of {ends.total()} events ends here." if file == deepest else ""
        yield shot(f"{file} is called from {reach[file]} other {'file' if reach[file] == 1 else 'files'}, {dict(callees).get(file, 0)} "
                   f"times in all.{more}", callee=file)


def _deepest(call: Call, caller: str, depth: int = 0) -> tuple[int, str]:
    """How deep the deepest call from one file to another lies, counted in files, and where it leads."""
    file = _file(call, caller)
    here = depth + (file != caller)
    return max([(here, file), *(_deepest(one, file, here) for one in call.inner if isinstance(one, Call))], key=lambda found: found[0])


@cache
def last_files(workload: str) -> Counter[str]:
    """In which file the deepest path of each event ends."""
    found: Counter[str] = Counter()
    for name in list(WORKLOADS) if workload == "all" else [workload]:
        for graph in _graphs(name):
            ends = [_deepest(root, "") for root in graph.roots if isinstance(root, Call)]
            if ends:
                found[max(ends, key=lambda end: end[0])[1]] += 1
    return found
