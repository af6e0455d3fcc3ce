"""Numbers of tensors, in float64, and of lists with gaps."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def norm(tensor: Tensor) -> float:
    """‖·‖₂ of all elements."""
    return float(tensor.double().norm())


def rms(tensor: Tensor) -> float:
    """The root of the mean square of all elements."""
    return float(tensor.double().square().mean().sqrt())


def ratio(numerator: float, denominator: float) -> float:
    """0 of nothing is 0."""
    return numerator / denominator if denominator else 0.0


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors; 0 where one is 0."""
    return ratio(float((a.double() * b.double()).sum()), norm(a) * norm(b))


def mean_present(values: Iterable[float | None]) -> float:
    """Of those that are there; NaN of none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else math.nan


def product_present(values: Iterable[float | None]) -> float:
    """Of those that are there; NaN of none."""
    present = [value for value in values if value is not None]
    return math.prod(present) if present else math.nan


def positive_or_none(values: Iterable[float]) -> tuple[float | None, ...]:
    """What a logarithmic axis can show."""
    return tuple(value if 0 < value < math.inf else None for value in values)
