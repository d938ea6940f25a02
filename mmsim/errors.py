"""What goes wrong in a kernel, as exceptions.

A system call fails with an errno, a broken invariant is a BUG, a machine that cannot go on panics. WARN and
``bad_page`` reports are not exceptions: the kernel prints them and goes on, and so does the model
(:mod:`mmsim.klog`).
"""

from __future__ import annotations

__all__ = ["KernelError", "Errno", "KernelBug", "KernelPanic", "InvariantError", "InputError", "errno_name"]

#: The numbers of Linux on x86 (5.17: include/uapi/asm-generic/errno-base.h and errno.h). Python's own are those of the host,
#: which in a browser or on another system are different ones.
_NUMBERS = {
    "EPERM": 1, "ENOENT": 2, "ESRCH": 3, "EINTR": 4, "EIO": 5, "ENXIO": 6, "E2BIG": 7, "ENOEXEC": 8, "EBADF": 9,
    "ECHILD": 10, "EAGAIN": 11, "ENOMEM": 12, "EACCES": 13, "EFAULT": 14, "ENOTBLK": 15, "EBUSY": 16, "EEXIST": 17,
    "EXDEV": 18, "ENODEV": 19, "ENOTDIR": 20, "EISDIR": 21, "EINVAL": 22, "ENFILE": 23, "EMFILE": 24, "ENOTTY": 25,
    "ETXTBSY": 26, "EFBIG": 27, "ENOSPC": 28, "ESPIPE": 29, "EROFS": 30, "EMLINK": 31, "EPIPE": 32, "EDOM": 33,
    "ERANGE": 34, "EDEADLK": 35, "ENAMETOOLONG": 36, "ENOLCK": 37, "ENOSYS": 38, "ENOTEMPTY": 39, "ELOOP": 40,
    "ENODATA": 61, "ETIME": 62, "EPROTO": 71, "EMULTIHOP": 72, "EBADMSG": 74, "EOVERFLOW": 75, "EILSEQ": 84,
    "EOPNOTSUPP": 95, "ECONNABORTED": 103, "ECONNRESET": 104, "ENOBUFS": 105, "ETIMEDOUT": 110, "ECONNREFUSED": 111,
    "EALREADY": 114, "EINPROGRESS": 115, "ESTALE": 116, "EDQUOT": 122, "ECANCELED": 125, "EOWNERDEAD": 130,
    "ENOTRECOVERABLE": 131, "ERFKILL": 132, "EHWPOISON": 133,
}
_NAMES = {number: name for name, number in _NUMBERS.items()}


def errno_name(number: int) -> str:
    """The name of an errno value, positive or negative as the kernel returns it.

    >>> errno_name(-12)
    'ENOMEM'
    """
    return _NAMES.get(abs(number), f"errno {abs(number)}")


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
        if name not in _NUMBERS:
            raise ValueError(f"{name} is not an errno")
        self.name = name
        self.number: int = _NUMBERS[name]
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
