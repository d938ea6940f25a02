"""What stands in the frames: 512 words each, made when somebody first writes.

Page tables lie here, and so does the data of processes: the walk reads words at physical addresses, a copy-on-write copies
them. A frame without an entry holds zeros. A machine has one of these; the allocator neither reads nor clears it, so
whoever takes a frame for its contents zeroes or drops what the last user left (``__GFP_ZERO``).
"""

from __future__ import annotations

import sys
from array import array

from mmsim.errors import InputError
from mmsim.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["FrameContents", "WORDS"]

#: Words of 8 bytes in a frame.
WORDS = PAGE_SIZE // 8
_ZEROS = bytes(PAGE_SIZE)


class FrameContents:
    """The bytes of all frames below ``max_pfn``.

    >>> ram = FrameContents(16)
    >>> ram.write(0x2ffe, b"page")                  # across a frame's end
    >>> ram.read(0x2ffe, 4), ram.read_word(0x3000), sorted(ram.frames)
    (b'page', 25959, [2, 3])
    """

    __slots__ = ("max_pfn", "frames")

    def __init__(self, max_pfn: int):
        self.max_pfn = max_pfn
        #: The words of each frame that anybody wrote to, by PFN.
        self.frames: dict[int, array[int]] = {}

    def words(self, pfn: int) -> array[int]:
        """The words of a frame, to read and write. Raise InputError for a frame that the machine has not."""
        words = self.frames.get(pfn)
        if words is None:
            if not 0 <= pfn < self.max_pfn:
                raise InputError(f"there is no frame {pfn:#x}; the machine has {self.max_pfn:#x}")
            words = self.frames[pfn] = array("Q", _ZEROS)
        return words

    def zero(self, pfn: int) -> array[int]:
        """Make a frame all zeros and return its words (5.17: clear_page())."""
        self.frames.pop(pfn, None)
        return self.words(pfn)

    def drop(self, pfn: int) -> None:
        """Forget a frame's contents: it reads as zeros and costs nothing."""
        self.frames.pop(pfn, None)

    def copy(self, to: int, source: int) -> None:
        """Copy a whole frame (5.17: copy_page())."""
        words = self.frames.get(source)
        if words is None:
            self.drop(to)
        else:
            self.words(to)[:] = words

    def same(self, one: int, other: int) -> bool:
        """Whether two frames hold the same bytes."""
        zeros = array("Q", _ZEROS)
        return self.frames.get(one, zeros) == self.frames.get(other, zeros)

    def read_word(self, addr: int) -> int:
        """The word of 8 bytes at a physical address (a multiple of 8)."""
        words = self.frames.get(addr >> PAGE_SHIFT)
        return words[addr >> 3 & WORDS - 1] if words is not None else 0

    def write_word(self, addr: int, value: int) -> None:
        """Write a word of 8 bytes."""
        self.words(addr >> PAGE_SHIFT)[addr >> 3 & WORDS - 1] = value

    def _bytes(self, pfn: int) -> bytearray:
        """The frame as bytes in the machine's order, least significant first."""
        words = self.frames.get(pfn)
        if words is None:
            return bytearray(PAGE_SIZE)
        if sys.byteorder == "big":
            words = array("Q", words)
            words.byteswap()
        return bytearray(words.tobytes())

    def read(self, addr: int, size: int) -> bytes:
        """Bytes at a physical address. Cost: a copy of each frame touched."""
        found = b""
        while size > 0:
            offset = addr & PAGE_SIZE - 1
            part = self._bytes(addr >> PAGE_SHIFT)[offset:offset + size]
            found += bytes(part)
            addr, size = addr + len(part), size - len(part)
        return found

    def write(self, addr: int, data: bytes) -> None:
        """Write bytes at a physical address."""
        while data:
            offset, pfn = addr & PAGE_SIZE - 1, addr >> PAGE_SHIFT
            part = data[:PAGE_SIZE - offset]
            frame = self._bytes(pfn)
            frame[offset:offset + len(part)] = part
            words = array("Q", bytes(frame))
            if sys.byteorder == "big":
                words.byteswap()
            self.words(pfn)[:] = words
            addr, data = addr + len(part), data[len(part):]

    def __repr__(self) -> str:
        return f"<FrameContents: {len(self.frames)} of {self.max_pfn} frames were written to>"
