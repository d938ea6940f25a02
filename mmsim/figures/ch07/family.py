"""A family of processes on a booted machine, named by letters, and what their page tables say about a few pages."""

from __future__ import annotations

from dataclasses import dataclass

from mmsim.constants import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from mmsim.errors import InputError
from mmsim.machine import Machine
from mmsim.paging.pte import pte_pfn, pte_present, pte_write
from mmsim.process.task import Process
from mmsim.process.user_memory import UserMemory
from mmsim.process.vma import Vma
from mmsim.reference import ref256
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["BASE", "Entry", "Family"]

#: Where the pages of the family lie.
BASE = 0x1000_0000
LETTERS = "ABCDEFGHIJKLM"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one process has for one page: the frame and whether it may be written."""

    pfn: int
    writable: bool


class Family:
    """``A`` maps ``pages`` private anonymous pages; forks give B, C … Without ``waiting`` no page waits in a pagevec."""

    def __init__(self, pages: int, cow_reuse: str = "page_count", waiting: bool = True):
        self.machine: Machine = ref256()
        self.machine.rules = self.machine.rules.replace(cow_reuse=cow_reuse)
        self.pages = pages
        self.table = self.machine.process_table
        root = self.table.spawn("A")
        self.members: dict[str, Process] = {"A": root}
        self.parents: dict[str, str] = {}
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        root.mmap(BASE, pages << PAGE_SHIFT, PROT_READ | PROT_WRITE, flags)
        self.user.lru.lru_add_drain()
        self.user.lru.enabled = waiting
        self._names: dict[int, str] = {}

    @property
    def user(self) -> UserMemory:
        """The machine's user pages."""
        return self.table.user

    def get(self, letter: str) -> Process:
        """A living member. Raise InputError if there is none of that name."""
        if letter not in self.members:
            raise InputError(f'there is no process "{letter}"; there are {", ".join(self.members)}')
        if not self.members[letter].alive:
            raise InputError(f"{letter} has exited")
        return self.members[letter]

    def living(self) -> list[str]:
        """The letters of those who have not exited."""
        return [letter for letter, process in self.members.items() if process.alive]

    def fork(self, letter: str) -> str:
        """A child, with the next letter."""
        process = self.get(letter)
        if len(self.members) == len(LETTERS):
            raise InputError(f"the figure has room for {len(LETTERS)} processes")
        pid = process.fork()
        if pid < 0:
            raise InputError(f"fork failed: {process.why}")
        child = LETTERS[len(self.members)]
        self.members[child] = self.table.processes[pid]
        self.parents[child] = letter
        return child

    def exit(self, letter: str) -> None:
        """The end of a process."""
        self.get(letter).exit()

    def write(self, letter: str, page: int, value: bytes = b"x") -> None:
        """One store of a process to a page."""
        self.get(letter).write(self.address(page), value)

    def read(self, letter: str, page: int) -> bytes:
        """One load of a process from a page."""
        return self.get(letter).read(self.address(page))

    def address(self, page: int) -> int:
        """Where a page of the family lies. Raise InputError for one it does not have."""
        if not 0 <= page < self.pages:
            raise InputError(f"page {page}: there are pages 0 to {self.pages - 1}")
        return BASE + page * PAGE_SIZE

    def area(self, letter: str) -> Vma:
        """The area of a member."""
        vma = self.members[letter].mm.tree.lookup(BASE)
        assert vma is not None
        return vma

    def entry(self, letter: str, page: int) -> Entry | None:
        """The page-table entry of a member, or None if nothing is mapped."""
        process = self.members[letter]
        if not process.alive:
            return None
        address = self.address(page)
        table = process.page_tables.ptes.get(address >> 21)
        word = table[address >> PAGE_SHIFT & 511] if table is not None else 0
        return Entry(pte_pfn(word), pte_write(word)) if pte_present(word) else None

    def name(self, pfn: int) -> str:
        """A short name for a frame: f0, f1 … in the order in which they were met; z is the page of zeros."""
        if pfn == self.user.zero_pfn:
            return "z"
        return self._names.setdefault(pfn, f"f{len(self._names)}")

    def knows(self, pfn: int) -> bool:
        """Whether a frame has a name already."""
        return pfn in self._names

    def waiting(self) -> set[int]:
        """The frames in a pagevec."""
        return set(self.user.lru.waiting())
