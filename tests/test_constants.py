"""Every constant of the model that the kernel's own compiler was asked for has the compiler's value."""

import json
from pathlib import Path

import pytest

from mmsim import constants

RECORDED = json.loads((Path(__file__).parent / "golden" / "consts" / "consts-5.17.json").read_text())


def numbers(node: object, found: dict[str, int]) -> dict[str, int]:
    if isinstance(node, dict):
        for name, value in node.items():
            if isinstance(value, int):
                found[name] = value
            else:
                numbers(value, found)
    return found


KERNEL = numbers(RECORDED["values"], {})
SHARED = sorted(name for name in KERNEL if isinstance(getattr(constants, name, None), int))


def test_the_two_have_names_in_common() -> None:
    assert {"MAX_ORDER", "ZONE_NORMAL", "MIGRATE_MOVABLE"} <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_a_constant_has_the_compilers_value(name: str) -> None:
    assert getattr(constants, name) == KERNEL[name]
