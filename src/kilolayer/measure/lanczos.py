"""Singular values of a linear map that is known by its products only.

By hand rather than by `scipy.sparse.linalg.svds`, which would bring SciPy for this alone, works on NumPy
vectors on the CPU, and returns no quadrature weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]


def lanczos_singular_values(
    jvp: LinearMap, vjp: LinearMap, start: Tensor, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ritz values of J by Golub and Kahan's bidiagonalisation, and their quadrature weights.

    Args:
        jvp: v ↦ Jv.
        vjp: u ↦ Jᵀu.
        start: a random vector of the shape of v.
        steps: how often each product is taken. The largest singular values converge first.

    Returns:
        Singular values σᵢ, largest first, and weights wᵢ, which sum to 1. Σ wᵢ g(σᵢ²) estimates the mean of
        g over the eigenvalues of JᵀJ, zeros among them (stochastic Lanczos quadrature).

    Source: Golub and Kahan 1965; Ubaru, Chen and Saad 2017.

    >>> J = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> values, weights = lanczos_singular_values(J.mv, J.T.mv, torch.ones(3), steps=3)
    >>> [round(value, 4) for value in values]
    [3.0, 2.0, 1.0]
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
    """The smallest of `values` such that the values up to it hold `share` of the weight.

    >>> weighted_quantile([1.0, 2.0, 3.0], [0.2, 0.5, 0.3], share=0.5)
    2.0
    """
    total = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        total += weight
        if total >= share * (1 - 1e-9):
            return value
    return max(values)


def _orthogonalise(vector: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """`vector` without its components along `basis`; done twice, since once leaves rounding behind."""
    for _ in range(2):
        for direction in basis:
            vector = vector - (vector * direction).sum() * direction
    return vector


def _exceeds_rounding(value: Tensor, diagonal: Sequence[Tensor]) -> bool:
    """Whether `value` is more than rounding beside the largest value so far."""
    return bool(value > torch.finfo(value.dtype).eps * 10 * max(diagonal))
