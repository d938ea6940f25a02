"""Which function of the kernel a function of the model stands for.

Every mechanism says so in its docstring: ``5.17: mm/memory.c, do_wp_page()``. That line is the map; there is no second
list that could differ from it. A function without such a line, or a generator, is one of the model's own and is not in any
trace.

    >>> from mmsim.process.brk import do_brk_flags
    >>> kernel_function(do_brk_flags.__code__)
    KernelFunction(name='do_brk_flags', file='mm/mmap.c')
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from types import CodeType
from typing import NamedTuple

__all__ = ["ELSEWHERE", "INLINED_AT_HOME", "KernelFunction", "kernel_function", "kernel_function_of"]

#: Functions that callers in other files are seen to call, and callers in the same file are not: the compiler made a copy part of
#: each of those.
INLINED_AT_HOME = frozenset({"can_do_mlock", "mlock_future_check", "vm_stat_account"})
#: Functions that the model calls at another moment than the kernel, and why. What they call does not belong there either.
ELSEWHERE = {
    "__mmdrop": "the kernel still runs on the tables of a process that exits: the next task gives the PGD back",
    "vma_wants_writenotify": "the kernel asks when an area changes and keeps the answer in vm_page_prot; the model asks for each entry",
}

_CITATION = re.compile(r"5\.17: (.*?)(?:\.(?=\s|\)|$)|$)", re.DOTALL)
_WORD = re.compile(r"(?P<file>[\w./-]+\.[chS])\b|(?P<name>\w+)\(\)")


class KernelFunction(NamedTuple):
    """A function of 5.17 and the file that it is in."""

    name: str
    file: str


def kernel_function_of(name: str, docstring: str) -> KernelFunction | None:
    """Read the citation in a docstring. Where it names several functions, the one that is called as the model's function
    is (with or without leading underscores), else the first: the others are what it runs through.

    >>> kernel_function_of("free", "Give it back (5.17: mm/slub.c, kfree(); mm/slab.h, slab_free_hook()).")
    KernelFunction(name='kfree', file='mm/slub.c')
    """
    citation = _CITATION.search(docstring)
    if citation is None:
        return None
    file, found = "", []
    for word in _WORD.finditer(citation[1]):
        if word["file"]:
            file = word["file"]
        else:
            found.append(KernelFunction(word["name"], file))
    same = [function for function in found if function.name.lstrip("_") == name.lstrip("_")]
    return next(iter(same or found), None)


@cache
def kernel_function(code: CodeType) -> KernelFunction | None:
    """The kernel's function that this code stands for, or None."""
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE) or not code.co_consts:
        return None
    docstring = code.co_consts[0]
    return kernel_function_of(code.co_name, docstring) if isinstance(docstring, str) else None
