"""A figure's redraw against matplotlib drawing the same rectangles."""

from __future__ import annotations

import io
import json

from benchmarks.measure import Row, median_ns
from mmsim.draw import Frame, FrameBoard, Run, Scene
from mmsim.draw.film import encode
from mmsim.draw.svg import to_svg

CELLS = 64


def scene(shift: int = 0) -> Scene:
    made = Scene(720)
    roles = ("free", "anon", "file", "kernel")
    runs = [Run(i * 16, 16, roles[(i + shift) % 4], str(i % 10)) for i in range(CELLS)]
    made.add(FrameBoard(runs, CELLS * 16, columns=128), "board", "frames")
    return made


def run() -> list[Row]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    def redraw() -> int:
        for shift in range(20):
            json.dumps(list(encode([Frame(scene(shift), "a frame").scene])))
        return 20

    def svg() -> int:
        for shift in range(20):
            to_svg(scene(shift), "title", "a frame")
        return 20

    def plotted() -> int:
        for shift in range(3):
            figure, axes = pyplot.subplots(figsize=(7.2, 1.5))
            for i in range(CELLS):
                axes.add_patch(Rectangle((i % 8 * 16, i // 8), 16, 1, facecolor=f"C{(i + shift) % 4}"))
                axes.text(i % 8 * 16 + 8, i // 8 + 0.5, str(i % 10))
            axes.set_xlim(0, 128)
            axes.set_ylim(0, 8)
            figure.savefig(io.BytesIO(), format="svg")
            pyplot.close(figure)
        return 3

    ours, written, other = median_ns(redraw) / 1e6, median_ns(svg) / 1e6, median_ns(plotted, 3) / 1e6
    size = len(json.dumps(list(encode([scene()]))))
    return [
        Row("drawing", f"one frame of {CELLS} labelled blocks to JSON ({size / 1000:.1f} kB)", ours, other, "matplotlib, SVG", "ms"),
        Row("drawing", "the same to an SVG file", written, other, "matplotlib, SVG", "ms"),
        Row("drawing", "the same to JSON", ours, 1.0, "the target", "ms", "≤ 1"),
    ]
