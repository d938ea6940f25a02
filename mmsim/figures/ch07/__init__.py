"""The figures of chapter 7, Virtual memory in userspace: one module a subject."""

from mmsim.figures.ch07.address_space_lab import address_space_lab
from mmsim.figures.ch07.aslr_bands import aslr_bands
from mmsim.figures.ch07.cow_family import cow_family
from mmsim.figures.ch07.measure import fork_tables, mprotect_copies
from mmsim.figures.ch07.merge_cases import merge_cases
from mmsim.figures.ch07.overcommit_gauge import overcommit_gauge
from mmsim.figures.ch07.own import OwnProcess, own_experiment, own_process
from mmsim.figures.ch07.rmap_xray import rmap_xray
from mmsim.figures.ch07.stack_gap import stack_gap

__all__ = [
    "OwnProcess", "address_space_lab", "aslr_bands", "cow_family", "fork_tables", "merge_cases", "mprotect_copies",
    "overcommit_gauge", "own_experiment", "own_process", "rmap_xray", "stack_gap",
]  # fmt: skip
