"""Who has which physical addresses: the tree of resources that /proc/iomem shows.

The firmware's map makes the first ranges, the kernel adds its own sections, then buses and devices claim theirs. A range lies
within another or beside it, never across its border; a driver claims its device's registers before it maps them, and is
refused where another one was faster.

5.17: kernel/resource.c; arch/x86/kernel/e820.c, e820__reserve_resources(). Left out: I/O ports, flags other than busy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mmsim.errors import InputError, InvariantError

__all__ = ["IomemTree", "Resource", "from_firmware"]


@dataclass(slots=True, eq=False)
class Resource:
    """Addresses ``start <= address < end`` under a name. ``busy``: nobody else may claim them (5.17: struct resource)."""

    start: int
    end: int
    name: str
    busy: bool = False
    children: list[Resource] = field(default_factory=list)

    def contains(self, other: Resource) -> bool:
        """Whether the other range lies within this one, or is the same."""
        return self.start <= other.start and other.end <= self.end

    def __str__(self) -> str:
        return f"{self.start:08x}-{self.end - 1:08x} : {self.name}"


class IomemTree:
    """The tree of one machine.

    >>> tree = IomemTree()
    >>> _ = tree.insert(0x100000, 0x10000000, "System RAM"), tree.insert(0x1000000, 0x1800000, "Kernel code")
    >>> print(tree.text(), end="")
    00100000-0fffffff : System RAM
      01000000-017fffff : Kernel code
    """

    def __init__(self) -> None:
        self.root = Resource(0, 1 << 64, "PCI mem")

    @staticmethod
    def _overlapping(parent: Resource, new: Resource) -> list[Resource]:
        return [child for child in parent.children if child.start < new.end and new.start < child.end]

    def insert(self, start: int, end: int, name: str) -> Resource | None:
        """Put a range where it belongs: within a larger one, around smaller ones; one of the same addresses gets
        below it. None if it would cross another's border. Raise InputError for an empty range. 5.17: insert_resource().
        """
        if not 0 <= start < end <= 1 << 64:
            raise InputError(f"no range from {start:#x} to {end:#x}")
        new, parent = Resource(start, end, name), self.root
        while True:
            inside = self._overlapping(parent, new)
            first = inside[0] if inside else None
            if first is None or not first.contains(new) or (first.start, first.end) == (start, end):
                break
            parent = first
        if any(not new.contains(child) for child in inside):
            return None
        new.children = inside
        parent.children = sorted([child for child in parent.children if child not in inside] + [new], key=lambda one: one.start)
        return new

    def request_region(self, start: int, end: int, name: str, busy: bool = True) -> Resource | None:
        """Claim addresses for a driver, within the ranges that nobody claims as busy. None: -EBUSY (5.17: __request_region())."""
        if not 0 <= start < end <= 1 << 64:
            raise InputError(f"no range from {start:#x} to {end:#x}")
        new, parent = Resource(start, end, name, busy), self.root
        while True:
            inside = self._overlapping(parent, new)
            if not inside:
                break
            if len(inside) > 1 or inside[0].busy or not inside[0].contains(new):
                return None
            parent = inside[0]
        parent.children = sorted([*parent.children, new], key=lambda one: one.start)
        return new

    def release_region(self, start: int, end: int) -> bool:
        """Give a claim of exactly these addresses back; False, "Trying to free nonexistent resource", if there is none
        (5.17: __release_region()).
        """
        parent = self.root
        while True:
            found = next((child for child in parent.children if child.start <= start and end <= child.end), None)
            if found is None:
                return False
            if found.busy and (found.start, found.end) == (start, end):
                parent.children.remove(found)
                return True
            parent = found

    def fill(self, start: int, end: int, name: str) -> None:
        """Give a name to what of a range belongs to nobody (5.17: reserve_region_with_split())."""
        at = start
        for child in self._overlapping(self.root, Resource(start, end, name)):
            if at < child.start:
                self.insert(at, child.start, name)
            at = max(at, child.end)
        if at < end:
            self.insert(at, end, name)

    def walk(self) -> Iterator[tuple[int, Resource]]:
        """Every range in order, each before those within it, with how deep it lies."""
        def below(parent: Resource, depth: int) -> Iterator[tuple[int, Resource]]:
            for child in parent.children:
                yield depth, child
                yield from below(child, depth + 1)
        return below(self.root, 0)

    def find(self, addr: int) -> list[Resource]:
        """The ranges that an address lies in, the widest first."""
        return [found for _, found in self.walk() if found.start <= addr < found.end]

    def text(self) -> str:
        """The text of /proc/iomem for root: up to five levels deep (5.17: r_show())."""
        return "".join(f"{'  ' * depth}{found}\n" for depth, found in self.walk() if depth < 5)

    def check(self) -> None:
        """Verify that children lie within their parents, in order and apart. Raise InvariantError."""
        def below(parent: Resource) -> None:
            end = parent.start
            for child in parent.children:
                if child.start < end or child.end > parent.end or child.end <= child.start:
                    raise InvariantError(f"{child} does not lie in its place in {parent}")
                end = child.end
                below(child)
        below(self.root)


def from_firmware(entries: Iterable[tuple[int, int, str]], sections: Iterable[tuple[int, int, str]],
                  devices: Iterable[tuple[int, int, str]], buffers: Iterable[tuple[int, int]]) -> IomemTree:
    """The tree as the boot leaves it: the firmware's ranges, the kernel's sections in them, buses and devices, and at last
    around the ends of RAM what devices shall not get, as far as it is still nobody's. Raise InputError for a device that crosses
    a border.
    """
    tree = IomemTree()
    for start, end, name in [*entries, *sections]:
        tree.insert(start, end, name)
    for start, end, name in devices:
        if tree.request_region(start, end, name, busy=False) is None:
            raise InputError(f"{name} at {start:#x} crosses a border of another range")
    for start, end in buffers:
        tree.fill(start, end, "RAM buffer")
    return tree
