"""The figures of chapter 3, Fundamentals: one module a subject."""

from mmsim.figures.ch03.demand_paging import demand_paging
from mmsim.figures.ch03.error_code_machine import error_code_machine, reachable_codes
from mmsim.figures.ch03.faults import Fault, code_table, recorded_codes, recorded_faults
from mmsim.figures.ch03.not_present import not_present
from mmsim.figures.ch03.own_process import OwnProcess, own_process
from mmsim.figures.ch03.page_table_tax import page_table_tax
from mmsim.figures.ch03.the_walk import the_walk
from mmsim.figures.ch03.tlb_reach import measure_reach, tlb_reach
from mmsim.figures.ch03.tlb_switch import tlb_switch

__all__ = [
    "Fault", "OwnProcess", "code_table", "demand_paging", "error_code_machine", "measure_reach", "not_present", "own_process",
    "page_table_tax", "reachable_codes", "recorded_codes", "recorded_faults", "the_walk", "tlb_reach", "tlb_switch",
]  # fmt: skip
