"""Scalars of tensors, computed in float64, and of lists with missing values."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def norm(tensor: Tensor) -> float:
    """‖x‖₂ over all elements."""
    return float(tensor.double().norm())


def rms(tensor: Tensor) -> float:
    """√(mean x²) over all elements."""
    return float(tensor.double().square().mean().sqrt())


def ratio(numerator: float, denominator: float) -> float:
    """The quotient; 0 where the denominator is 0."""
    return numerator / denominator if denominator else 0.0


def cosine(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ / ‖a‖‖b‖; 0 where one of them is 0."""
    return ratio(float((a.double() * b.double()).sum()), norm(a) * norm(b))


def mean_present(values: Iterable[float | None]) -> float:
    """The mean of the values that are not None; NaN without any."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else math.nan


def product_present(values: Iterable[float | None]) -> float:
    """The product of the values that are not None; NaN without any."""
    present = [value for value in values if value is not None]
    return math.prod(present) if present else math.nan


def positive_or_none(values: Iterable[float]) -> tuple[float | None, ...]:
    """The values, with None for those that a logarithmic axis cannot show."""
    return tuple(value if 0 < value < math.inf else None for value in values)
