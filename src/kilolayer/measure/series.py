"""Series over units, and figures in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from kilolayer.chart import Series


def unit_series(
    name: str, values: Sequence[float | None], kind: Literal["measured", "predicted"] = "measured"
) -> Series:
    """A value for every unit, numbered from 1."""
    return Series(name, tuple(float(number) for number, _ in enumerate(values, 1)), tuple(values), kind)


def stage_starts(shapes: Sequence[object], start: float = 1.0) -> tuple[float, ...]:
    """The places, counted from `first`, whose shape (or stage) is another than that of the one before."""
    return tuple(start + index for index, (a, b) in enumerate(pairwise(shapes), 1) if a != b)


def percent_text(share: float) -> str:
    return f"{100 * share:.3g} %"
