"""Frames as differences: the first scene whole, then what each step adds, changes, removes and reorders.

A *step* is a mapping with only those entries that are needed:

- ``w``, ``h``: the size, where it changed;
- ``del``: keys that go;
- ``add``: ``[place, key, shape]``, in rising order of place: the index in the new drawing order;
- ``set``: for a key that stays, the attributes that change (``null`` removes one);
- ``order``: all keys, only if shapes that stay changed places among themselves.

``decode(encode(scenes)) == scenes``, for any scenes; site/mm-figure.js holds the same decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mmsim.draw.scene import Scene, Shape

__all__ = ["encode", "decode", "difference"]

Step = dict[str, Any]


def difference(old: Scene, new: Scene) -> Step:
    """What turns ``old`` into ``new``. Cost: linear in the shapes of both."""
    step: Step = {}
    if old.width != new.width:
        step["w"] = new.width
    if old.height != new.height:
        step["h"] = new.height
    before, after = old.shapes, new.shapes
    stays = {key for key in before if key in after and before[key]["t"] == after[key]["t"]}
    removed = [key for key in before if key not in stays]
    if removed:
        step["del"] = removed
    added = [[place, key, shape] for place, (key, shape) in enumerate(after.items()) if key not in stays]
    if added:
        step["add"] = added
    changes: dict[str, Shape] = {}
    for key in before:
        if key in stays:
            was, now = before[key], after[key]
            if was is not now and was != now:
                change = {name: value for name, value in now.items() if name not in was or was[name] != value}
                change |= {name: None for name in was if name not in now}
                changes[key] = change
    if changes:
        step["set"] = changes
    if [key for key in before if key in stays] != [key for key in after if key in stays]:
        step["order"] = list(after)
    return step


def encode(scenes: Iterable[Scene]) -> list[Step]:
    """The steps that lead from an empty scene through all of ``scenes``."""
    steps: list[Step] = []
    previous = Scene(0)
    for scene in scenes:
        steps.append(difference(previous, scene))
        previous = scene
    return steps


def decode(steps: Iterable[Step]) -> Iterator[Scene]:
    """The scenes again."""
    scene = Scene(0)
    for step in steps:
        scene = scene.copy()
        scene.width = step.get("w", scene.width)
        scene.height = step.get("h", scene.height)
        for key in step.get("del", ()):
            del scene.shapes[key]
        for key, change in step.get("set", {}).items():
            shape = {**scene.shapes[key], **change}
            scene.shapes[key] = {name: value for name, value in shape.items() if value is not None}
        if "add" in step:
            order = list(scene.shapes.items())
            for place, key, shape in step["add"]:
                order.insert(place, (key, dict(shape)))
            scene.shapes = dict(order)
        if "order" in step:
            scene.shapes = {key: scene.shapes[key] for key in step["order"]}
        yield scene
