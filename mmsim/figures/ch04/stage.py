"""Programs for the figures of this chapter: small ones, whose system calls are written down, with the library's data apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mmsim.constants import MAP_ANONYMOUS, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE
from mmsim.draw import Span, grouped
from mmsim.malloc.allocator import Block
from mmsim.malloc.glibc.ptmalloc import Ptmalloc
from mmsim.malloc.process_program import ProcessProgram
from mmsim.malloc.program import PlainProgram, Program
from mmsim.process.task import Process
from mmsim.units import PAGE_SIZE

__all__ = ["HEAP_ROLES", "Logged", "LoggedProcess", "count", "glibc", "heap_spans", "kib", "signed_hex"]

#: What the states of blocks are drawn as.
HEAP_ROLES = {"used": "anon", "free": "free", "cached": "hot", "top": "free", "other": "kernel"}


def count(number: int, word: str) -> str:
    """A number with its noun."""
    return f"{grouped(number)} {word}{'' if number == 1 else 's'}"


def kib(size: int) -> str:
    """Bytes as KiB, whole where they are.

    >>> kib(135168), kib(1000)
    ('132 KiB', '1.0 KiB')
    """
    return f"{grouped(size >> 10)} KiB" if size % 1024 == 0 else f"{size / 1024:.1f} KiB"


def signed_hex(value: int) -> str:
    """A difference as hexadecimal, with its sign."""
    return f"{'−' if value < 0 else '+'}{abs(value):#x}"


# A mix-in calls the class that it is mixed into; both kinds of program have the same calls.
if TYPE_CHECKING:
    _Calls = PlainProgram
else:
    _Calls = object


class _Log(_Calls):
    """Notes each call that changes the address space: (name, bytes that it asked for), of brk what came of it."""

    log: list[tuple[str, int]]
    last_brk: int

    def brk(self, addr: int) -> int:
        result = super().brk(addr)
        if self.last_brk and result != self.last_brk:
            self.log.append(("brk", result - self.last_brk))
        self.last_brk = result
        return result

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        self.log.append(("mmap", length))
        return super().mmap(addr, length, prot, flags)

    def munmap(self, addr: int, length: int) -> int:
        self.log.append(("munmap", length))
        return super().munmap(addr, length)

    def mremap(self, addr: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0) -> int:
        self.log.append(("mremap", new_len))
        return super().mremap(addr, old_len, new_len, flags, new_addr)

    def madvise(self, addr: int, length: int, advice: int) -> int:
        self.log.append(("madvise", length))
        return super().madvise(addr, length, advice)


class Logged(_Log, PlainProgram):
    """A program without frames that writes its calls down."""

    def __init__(self) -> None:
        super().__init__()
        self.log, self.last_brk = [], 0


class LoggedProcess(_Log, ProcessProgram):
    """The same for a process of a machine, with frames behind its pages."""

    def __init__(self, process: Process):
        ProcessProgram.__init__(self, process)
        self.log, self.last_brk = [], 0


def glibc(program: Program, **options: object) -> Ptmalloc:
    """The library in a program, its own data between two pages that nothing may touch, as if in a mapped file.

    The areas of its chunks then merge with nothing. The log begins empty.
    """
    image = program.mmap(0, 3 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS)
    program.mprotect(image + PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE)
    libc = Ptmalloc(program, main_arena=image + PAGE_SIZE, **options)  # type: ignore[arg-type]
    if isinstance(program, _Log):
        program.log.clear()
    return libc


def heap_spans(blocks: Iterable[Block], names: dict[int, str] | None = None, hot: int = 0) -> list[Span]:
    """Blocks as spans; neighbours of one state that have no name are drawn as one."""
    names = names or {}
    spans: list[Span] = []
    before = ("", 0)
    for block in blocks:
        role, label = HEAP_ROLES[block.state], names.get(block.memory, "top" if block.state == "top" else "")
        mark = "focus" if hot and block.memory == hot else ""
        if spans and before == (block.state, block.address) and not label and not spans[-1].label and not mark:
            spans[-1] = Span(spans[-1].start, block.end, role, "", f"{kib(block.end - spans[-1].start)} {block.state}", "",
                             spans[-1].key)
        else:
            spans.append(Span(block.address, block.end, role, label, f"{label + ': ' if label else ''}{block.size} bytes {block.state}, "
                              f"at {block.address:#x}", mark, f"{block.address:x}"))
        before = (block.state, block.end)
    return spans
