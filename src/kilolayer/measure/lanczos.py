"""Singular values of a linear map of which only products are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]


def lanczos_singular_values(
    jvp: LinearMap, vjp: LinearMap, start: Tensor, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ritz values of J from `steps` steps of Golub and Kahan's bidiagonalisation, largest first.

    `forward` is v ↦ Jv, `backward` u ↦ Jᵀu, `start` a random vector of v's shape. The largest values
    converge first. The second tuple holds their weights: Σ wᵢ f(σᵢ²) estimates the mean of f(σ²) over
    all of J's singular values (stochastic Lanczos quadrature), zeros of JᵀJ among them.
    """
    rights, lefts = [start / start.norm()], list[Tensor]()
    diagonal, above = list[Tensor](), list[Tensor]()
    for _ in range(min(steps, start.numel())):
        left_vector = _orthogonalise(jvp(rights[-1]), lefts)
        diagonal.append(left_vector.norm())
        if not _exceeds_rounding(diagonal[-1], diagonal):
            break
        lefts.append(left_vector / diagonal[-1])
        right_vector = _orthogonalise(vjp(lefts[-1]), rights)
        above.append(right_vector.norm())
        if not _exceeds_rounding(above[-1], diagonal):
            break
        rights.append(right_vector / above[-1])
    size = len(diagonal)
    bidiagonal = torch.diag(torch.stack(diagonal).double().cpu())
    for index, value in enumerate(above[: size - 1]):
        bidiagonal[index, index + 1] = value
    _, values, rows = torch.linalg.svd(bidiagonal)
    return tuple(values.tolist()), tuple(rows[:, 0].square().tolist())


def weighted_quantile(values: Sequence[float], weights: Sequence[float], share: float) -> float:
    """The smallest of the `values` below or at which lies `share` of the weight."""
    total = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        total += weight
        if total >= share * (1 - 1e-9):
            return value
    return max(values)


def _orthogonalise(vector: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """`vector` less its parts along `others`; twice, since the first time leaves rounding behind."""
    for _ in range(2):
        for direction in basis:
            vector = vector - (vector * direction).sum() * direction
    return vector


def _exceeds_rounding(value: Tensor, diagonal: Sequence[Tensor]) -> bool:
    """Whether `value` is more than rounding beside the largest so far."""
    return bool(value > torch.finfo(value.dtype).eps * 10 * max(diagonal))
