"""A laboratory of processes: write a few system calls and accesses, and see what becomes of areas, page tables and frames.

:class:`Lab` runs them from Python or from a script; :mod:`mmsim.lab.syntax` describes the language, :mod:`mmsim.lab.script` its
words.
"""

from mmsim.lab.lab import Lab, LabProcess, Step
from mmsim.lab.syntax import LabError

__all__ = ["Lab", "LabError", "LabProcess", "Step"]
