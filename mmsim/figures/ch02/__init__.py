"""The figures of chapter 2, Working with the kernel: one module a subject."""

from mmsim.figures.ch02.boot_command import boot_command, managed_kib, outcome
from mmsim.figures.ch02.files import call_edges, last_files, who_calls_whom
from mmsim.figures.ch02.one_fault import SHOWN, one_fault
from mmsim.figures.ch02.own_kernel import LANDMARKS, OwnKernel, own_kernel, record_script
from mmsim.figures.ch02.recorded import beside, model_lines, read_graph, recorded_text, shipped_events
from mmsim.figures.ch02.source_map import area_of, largest, lines_of, source_treemap

__all__ = [
    "LANDMARKS", "OwnKernel", "SHOWN", "area_of", "beside", "boot_command", "call_edges", "largest", "last_files", "lines_of",
    "managed_kib", "model_lines", "one_fault", "outcome", "own_kernel", "read_graph", "record_script", "recorded_text", "shipped_events",
    "source_treemap", "who_calls_whom",
]  # fmt: skip
