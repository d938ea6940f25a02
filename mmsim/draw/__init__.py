"""Figures: parameters in, frames out. How to write one.

A figure is a generator function. It gets its parameters and the width to lay out for (720 on a screen, 344 on a phone),
draws a scene, and yields a frame for every step, with the sentence that says what just happened::

    from mmsim.draw import Ask, Frame, FrameBoard, Legend, Range, Run, Scene, figure

    @figure(
        "Splitting a block",
        alt="One free block of 16 frames is halved until a block of the wanted order is left.",
        params=[Range("order", 0, 4, default=1, help="what is asked for")],
    )
    def splitting(order, width):
        blocks = {0: 4}                                         # first frame -> order
        def shot(say, hot=None, ask=None):
            scene = Scene(width)
            runs = [Run(pfn, 1 << size, "moving" if pfn == hot else "free", str(size)) for pfn, size in blocks.items()]
            scene.add(FrameBoard(runs, 16, columns=16), key="board", caption="16 frames")
            scene.add(Legend(["free", "moving"]), key="legend")
            return Frame(scene, say, ask=ask)
        yield shot("One block of order 4 is free.", ask=Ask("How often is it halved?", 4 - order, f"From 4 down to {order}."))
        while blocks[0] > order:
            blocks[0] -= 1
            blocks[1 << blocks[0]] = blocks[0]                   # the upper half goes back
            yield shot(f"The upper half, order {blocks[0]}, goes back to its free list.", hot=1 << blocks[0])

    splitting(order=0)                                           # in a notebook cell: shows it

Rules that make it good
    - Pure: the same parameters give the same frames. Run the mechanism, read its state, draw plain data.
    - ``say`` stands alone (it is spoken, printed and compared by tests); it does not depend on the width.
    - Keys name things, not places: a block drawn under the same key glides when it moves. Idioms derive their keys
      from the data (``board/0x240``).
    - The first frame must teach without a click. At most 400 frames; 10-40 are read.
    - Colour only by role (:mod:`mmsim.draw.theme`); unknown class names raise.
    - Lay out with ``scene.add(idiom, key, caption)`` and ``scene.row([(key, idiom, caption, weight), ...])`` (side by side, below
      each other on a phone); ``scene.narrow`` tells which it is. Single shapes: ``scene.box``, ``text``, ``line``, ``arrow``,
      ``path``, ``rect``, ``circle``, ``paragraph``, ``note``; ``scene.y`` is the cursor.
    - Bad input raises :class:`~mmsim.errors.InputError` (or the kernel's Errno): the sentence is shown in the figure.
      A figure with an operation list takes :class:`Operations`; where the kernel refuses a line: ``op.fail(error)``.
    - An axis that must not jump: make one :class:`Axis` from all spans of all frames and use it in each.
    - Two on a page: ``splitting(order=3).named("fig-splitting-2")``.
    - Look: ``open("x.svg", "w").write(splitting().svg(frame=2, width=344))``.

In a notebook
    The first cell ends with ``setup()``; after that a figure in a cell of its own (``splitting(order=0)``) is stepped, and recomputed
    by the kernel, as on the page. ``splitting`` alone shows the defaults. What a test compares is ``repr``: title, parameters, sentences.

Prose drives it
    ``[halve it twice](#fig-splitting@3)`` shows frame 3, ``(#fig-splitting@2?order=0)`` also sets a parameter. The id is ``fig-`` and
    the function's name with hyphens; frames count from 1.

Idioms (plain data in, each in the module of its name): FrameBoard(Run), AddressBar(Bar, Span, Axis), RegionList(Region),
FreeLists, TreeView(Node), Tape(Item), Tank(Level), Timeline(Lane, Moment), CallGraph(Call), FlowChart(Step, Way), TextPane,
Ledger(Entry), Bits(Field), Legend.

What travels
    ``payload()`` is ``{mm: 1, id, name, title, alt, params: [...], values: {name: text}, frames: [{say, event?, ask?, more?}],
    layouts: {wide: {width, steps}, narrow: {width, steps}}, error?, note?, problems?: {param: [{line, text}]}}``; the steps are
    those of :mod:`mmsim.draw.film`. ``compute(name, values)`` gives it as JSON text and never raises.
"""

from mmsim.draw.addressbar import AddressBar, Axis, Bar, Span, short_size
from mmsim.draw.bits import Bits, Field
from mmsim.draw.callgraph import Call, CallGraph
from mmsim.draw.figure import BoundFigure, Figure, compute, figure, figures
from mmsim.draw.flowchart import FlowChart, Step, Way
from mmsim.draw.frame import Ask, Frame
from mmsim.draw.frameboard import FrameBoard, Run, runs_of
from mmsim.draw.freelists import FreeLists
from mmsim.draw.ledger import Entry, Ledger, grouped
from mmsim.draw.legend import Legend
from mmsim.draw.measure import fit_text, text_width, wrap_text
from mmsim.draw.params import Choice, Operation, Operations, Range, Seed, Text, Toggle
from mmsim.draw.regionlist import Region, RegionList
from mmsim.draw.scene import NARROW, WIDE, Scene
from mmsim.draw.tank import Level, Tank
from mmsim.draw.tape import Item, Tape
from mmsim.draw.textpane import TextPane
from mmsim.draw.timeline import Lane, Moment, Timeline
from mmsim.draw.treeview import Node, TreeView
from mmsim.draw.widget import setup

__all__ = [
    "AddressBar", "Ask", "Axis", "Bar", "Bits", "BoundFigure", "Call", "CallGraph", "Choice", "Entry", "Field", "Figure",
    "FlowChart", "Frame", "FrameBoard", "FreeLists", "Item", "Lane", "Ledger", "Legend", "Level", "Moment", "NARROW", "Node",
    "Operation", "Operations", "Range", "Region", "RegionList", "Run", "Scene", "Seed", "Span", "Step", "Tank", "Tape", "Text",
    "TextPane", "Timeline", "Toggle", "TreeView", "WIDE", "Way", "compute", "figure", "figures", "fit_text", "grouped", "runs_of",
    "setup",
    "short_size", "text_width", "wrap_text",
]  # fmt: skip
