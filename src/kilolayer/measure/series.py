"""Series over units for charts, and shares as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from kilolayer.chart import Series


def unit_series(
    name: str, values: Sequence[float | None], kind: Literal["measured", "predicted"] = "measured"
) -> Series:
    """A series of one value a unit, at x = 1, 2, …"""
    return Series(name, tuple(float(number) for number, _ in enumerate(values, 1)), tuple(values), kind)


def stage_starts(shapes: Sequence[object], start: float = 1.0) -> tuple[float, ...]:
    """The positions, counted from `start`, at which the shape (or stage) differs from the one before.

    >>> stage_starts([16, 16, 32, 32])
    (3.0,)
    """
    return tuple(start + index for index, (a, b) in enumerate(pairwise(shapes), 1) if a != b)


def share_text(share: float) -> str:
    """A share as "12.3 %"."""
    return f"{100 * share:.3g} %"
