"""What goes wrong in a kernel, as exceptions.

A system call fails with an errno, a broken invariant is a BUG, a machine that cannot go on panics. WARN and
``bad_page`` reports are not exceptions: the kernel prints them and goes on, and so does the model
(:mod:`mmsim.klog`).
"""

from __future__ import annotations

import errno as _errno

__all__ = ["KernelError", "Errno", "KernelBug", "KernelPanic", "InvariantError", "InputError", "errno_name"]


def errno_name(number: int) -> str:
    """The name of an errno value, positive or negative as the kernel returns it.

    >>> errno_name(-12)
    'ENOMEM'
    """
    return _errno.errorcode.get(abs(number), f"errno {abs(number)}")


class KernelError(Exception):
    """Anything that the simulated kernel refuses to do."""


class Errno(KernelError):
    """A call that fails the way a system call does.

    ``number`` is the positive errno (12 for ENOMEM), ``name`` its symbol; ``why`` says in words what the caller
    did. Built from a name: ``Errno("EINVAL", "size is zero")``.

    >>> Errno("ENOMEM", "no block of order 10 is free").number
    12
    """

    def __init__(self, name: str, why: str = ""):
        if not hasattr(_errno, name):
            raise ValueError(f"{name} is not an errno")
        self.name = name
        self.number: int = getattr(_errno, name)
        self.why = why
        super().__init__(f"{name}: {why}" if why else name)


class KernelBug(KernelError):
    """BUG_ON() or VM_BUG_ON(): an assertion of the kernel that does not hold. The task dies; the model stops here."""


class KernelPanic(KernelError):
    """panic(): the machine cannot go on. The text is what the console would show after 'Kernel panic - not syncing: '."""


class InvariantError(AssertionError):
    """A ``check()`` found a structure of the model broken; the text says which invariant, and where."""


class InputError(ValueError):
    """Input from outside (a pasted log, a recording, a link, a form) that cannot be used; the text says why, for its author."""
