"""The example of "How to write a figure" in the book's appendix: short, complete, and with one of everything."""

from __future__ import annotations

from collections.abc import Iterator

from mmsim.draw import Ask, Frame, FrameBoard, Legend, Range, Run, Scene, figure

__all__ = ["splitting"]


@figure(
    "Splitting a block",
    alt="Sixteen page frames in one free block, which is halved, the upper half "
    "staying free, until a block of the wanted order is left.",
    params=[Range("order", 0, 4, default=1, help="the order asked for")],
)
def splitting(order: int, width: float) -> Iterator[Frame]:
    """How an allocation cuts a larger free block down to the order that is asked for."""
    blocks = {0: 4}                        # first frame -> order; all are free

    def shot(say: str, given: int = -1, ask: Ask | None = None) -> Frame:
        scene = Scene(width)
        runs = [
            Run(pfn, 1 << size, "anon" if pfn == given else "free", str(size))
            for pfn, size in blocks.items()
        ]
        columns = 8 if scene.narrow else 16
        scene.add(FrameBoard(runs, 16, columns=columns), "board", "16 frames")
        scene.add(Legend(["free", "anon"]), "legend")
        return Frame(scene, say, ask=ask)

    why = f"Every cut takes one from the order: from 4 down to {order}."
    yield shot(
        "One block of order 4 is free: sixteen frames that belong together.",
        ask=Ask("How many times is it halved?", 4 - order, why),
    )
    while blocks[0] > order:
        blocks[0] -= 1
        half = 1 << blocks[0]
        blocks[half] = blocks[0]
        yield shot(f"The upper half, from frame {half} on, is free at order {blocks[0]}.")
    yield shot(f"The lower half is of order {order}: it is handed out.", given=0)
