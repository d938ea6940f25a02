"""Names for code addresses: what stands behind ``call_site`` in an event and "Allocated in" in a report.

The model has no machine code. A caller says who it is by a name; each name gets an address in the kernel's text, so that it can
be stored in memory like a real return address, and read back.
"""

from __future__ import annotations

__all__ = ["Symbols"]

_TEXT = 0xFFFF_FFFF_8100_0000


class Symbols:
    """Names and their addresses, handed out in the order in which they are first used.

    >>> symbols = Symbols()
    >>> symbols.name(symbols.address("copy_process"))
    'copy_process'
    """

    __slots__ = ("_addresses", "_names")

    def __init__(self) -> None:
        self._addresses: dict[str, int] = {}
        self._names: list[str] = []

    def address(self, name: str) -> int:
        """The address of a name; 0 for the empty one."""
        if not name:
            return 0
        address = self._addresses.get(name)
        if address is None:
            address = self._addresses[name] = _TEXT + 16 * len(self._names)
            self._names.append(name)
        return address

    def name(self, address: int) -> str:
        """What ``%pS`` prints for an address: its name, or the number where no name is known."""
        index, offset = divmod(address - _TEXT, 16)
        return self._names[index] if not offset and 0 <= index < len(self._names) else f"{address:#x}"
