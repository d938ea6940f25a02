"""Bits: a word and its fields, highest bit at the left; on a phone the fields stand below each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsim.draw.scene import Scene

__all__ = ["Field", "Bits"]


@dataclass(frozen=True, slots=True)
class Field:
    """The bits ``high`` down to ``low`` of the word."""

    name: str
    high: int
    low: int
    role: str = ""
    tip: str = ""
    mark: str = ""


class Bits:
    """``value`` as a row of fields with their contents in hexadecimal; ``width`` is the number of bits of the word."""

    def __init__(self, value: int, fields: Sequence[Field], bits: int = 64, name: str = ""):
        self.value, self.fields, self.bits, self.name = value, sorted(fields, key=lambda field: -field.high), bits, name

    def draw(self, scene: Scene, key: str, x: float, y: float, width: float) -> float:
        """Draw the word; a field's keys begin with ``key/<field>``."""
        top = y
        if self.name:
            scene.text(f"{key}.name", x, top + 12, f"{self.name} = {self.value:#x}", "mono", width=width)
            top += 22
        parts = [(f, (self.value >> f.low) & ((1 << (f.high - f.low + 1)) - 1)) for f in self.fields]
        if width < 480:
            for field, content in parts:
                name = f"{key}/{field.name}"
                span = f"{field.high}" if field.high == field.low else f"{field.high}:{field.low}"
                scene.text(f"{name}.span", x + 44, top + 15, span, "code", "muted", "end")
                scene.box(name, x + 52, top, 96, 21, f"{content:#x}", field.role, field.tip, cls=field.mark)
                scene.text(f"{name}.name", x + 158, top + 15, field.name, "small", width=width - 158, tip=field.tip)
                top += 26
            scene.height = max(scene.height, round(top, 1))
            return top - y
        # A field needs room for its number: small ones get more than their share of bits.
        weights = [max((f.high - f.low + 1) / self.bits, 0.07) for f in self.fields]
        total = sum(weights)
        left = x
        for (field, content), weight in zip(parts, weights, strict=True):
            name = f"{key}/{field.name}"
            wide = width * weight / total
            scene.text(f"{name}.high", left + 2, top + 11, str(field.high), "small", "muted")
            if field.low != field.high and wide > 44:
                scene.text(f"{name}.low", left + wide - 2, top + 11, str(field.low), "small", "muted", "end")
            scene.box(
                name, left, top + 16, wide, 26, f"{content:#x}", field.role, field.tip or field.name, cls=field.mark
            )
            scene.text(
                f"{name}.name",
                left + wide / 2,
                top + 57,
                field.name,
                "small",
                anchor="middle",
                width=wide - 4,
                tip=field.tip,
            )
            left += wide
        scene.height = max(scene.height, round(top + 63, 1))
        return top + 63 - y
