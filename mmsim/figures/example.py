"""The example of "How to write a figure" in the book's appendix: short, complete, and with one of everything."""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.draw import Ask, Frame, FrameBoard, Legend, Range, Run, Scene, figure

__all__ = ["splitting"]


@figure(
    "Splitting a block",
    alt="Sixteen page frames in one free block. The block is halved, and its upper half given back, until a block of the wanted order is left.",
    params=[Range("order", 0, 4, default=1, help="the order that is asked for")],
)
def splitting(order: int, width: float) -> Iterator[Frame]:
    """How an allocation cuts a larger free block down to the order that is asked for."""
    blocks = {0: 4}                                          # first frame -> order; all free

    def shot(say: str, given: int = -1, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        runs = [Run(pfn, 1 << size, "anon" if pfn == given else "free", f"order {size}" if size > 1 else str(size))
                for pfn, size in blocks.items()]
        scene.add(FrameBoard(runs, 16, columns=16 if width > 400 else 8), key="board", caption="16 page frames")
        scene.add(Legend(["free", "anon"]), key="legend")
        return Frame(scene, say, ask=ask)

    yield shot("One block of order 4 is free: sixteen frames that belong together.",
               ask=Ask("How many times is it halved?", 4 - order, f"Every cut takes one from the order: from 4 down to {order}."))
    while blocks[0] > order:
        blocks[0] -= 1
        blocks[1 << blocks[0]] = blocks[0]
        yield shot(f"The block is halved; the upper half, at frame {1 << blocks[0]}, is free as a block of order {blocks[0]}.")
    yield shot(f"The lower half is of order {order}: it is handed out.", given=0)
