"""Measures the gradient that paths of each length carry (Veit et al. 2016, arXiv 1605.06431).

`kilolayer.theory.path_statistics` says what a path is and predicts the same quantities. Most paths have a
length near L/2, but most of the gradient comes through short ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kilolayer.measure.scalars import mean_present, norm, ratio
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.theory.path_statistics import MAX_LENGTH, Lengths, path_length_shares

SAMPLES_PER_LENGTH = 3
"""Single paths drawn for each length that is sampled."""


@dataclass(frozen=True)
class PathGradients:
    """Gradients at x_0 by the number k of branches on their path; all norms are relative to ‖∂ε/∂x_0‖."""

    shortest: int
    """The number of units without a shortcut, which every path passes through F: all units of a plain
    network."""
    counts: Lengths
    """`counts[k]` is the share of all paths that has length k."""
    together: Lengths
    """`together[i]` is the norm of the summed gradients of all paths of length `shortest` + i, exactly."""
    rest: float
    """The norm of what all longer paths carry."""
    alone: tuple[tuple[int, float], ...]
    """(k, root mean square over a sample of single paths of length k of their gradients' norms)."""

    @property
    def mean_length(self) -> float:
        """Σ k·together_k² / Σ together_k²: the mean number of branches on the gradient's way."""
        squares = [value**2 for value in self.together]
        total = sum(k * square for k, square in enumerate(squares, self.shortest))
        return ratio(total, sum(squares))


def measure_path_gradients(
    chain: UnitChain,
    x: Tensor,
    labels: Tensor,
    *,
    longest: int = MAX_LENGTH,
    samples: int = SAMPLES_PER_LENGTH,
    seed: int = 0,
) -> PathGradients:
    """Measures the gradient at x_0 by path length, in one backward pass over the units.

        G_k  ←  ∂hᵀ G_k + ∂Fᵀ G_{k−1},        G_0 = ∂ε/∂x_L

    gives all paths of length k together, exactly. Single paths are sampled as by Veit et al.: the branch is
    taken at k random units and the shortcut at all others.

    Args:
        chain: the network's units.
        x: a normalised batch, (N, C, H, W).
        labels: classes, (N,).
        longest: lengths above this one are summed up in `rest`.
        samples: single paths for each of up to 12 lengths.
        seed: chooses the single paths.

    >>> from kilolayer.networks import build, describe
    >>> chain = UnitChain(build(describe("preact_resnet8_cifar")))
    >>> result = measure_path_gradients(chain, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    >>> len(result.together), result.rest < 1e-4  # lengths 0 … 3 are all paths of three units
    (4, True)
    """
    units, random = len(chain.execution_order(x).names), torch.Generator().manual_seed(seed)
    paths = _draw_paths(units, min(longest, units), samples, random)
    by_length: list[Tensor] = []
    single_paths: list[Tensor] = []
    shortest = 0
    for unit in chain.backward(x, labels):
        if not by_length:
            by_length, single_paths = [unit.output_gradient], [unit.output_gradient] * len(paths)
        else:
            by_length, single_paths = (
                [unit.to_output(gradient) for gradient in by_length],
                [unit.to_output(gradient) for gradient in single_paths],
            )
        by_shortcut = [unit.shortcut(gradient) for gradient in by_length]
        by_branch = [unit.branch(gradient) for gradient in by_length[:longest]]
        has_no_shortcut = not unit.has_shortcut or not by_shortcut[0].any()
        shortest += has_no_shortcut
        by_length = by_branch if has_no_shortcut else _add_longer_paths(by_shortcut, by_branch)
        single_paths = [
            unit.branch(gradient) if has_no_shortcut or unit.index in branches else unit.shortcut(gradient)
            for gradient, (_, branches) in zip(single_paths, paths, strict=True)
        ]
        input_gradient = unit.total(unit.output_gradient)
    size, remainder = norm(input_gradient), norm(input_gradient - torch.stack(by_length).sum(0))
    return PathGradients(
        shortest=shortest,
        counts=path_length_shares(units, shortest),
        together=tuple(ratio(norm(gradient), size) for gradient in by_length),
        rest=ratio(remainder, size),
        alone=()
        if shortest
        else _rms_by_length(paths, [ratio(norm(gradient), size) for gradient in single_paths]),
    )


def _draw_paths(
    units: int, longest: int, samples: int, random: torch.Generator
) -> list[tuple[int, frozenset[int]]]:
    """(k, the units whose branches are taken) for up to 12 lengths k, `samples` paths of each."""
    lengths = sorted({round(longest * i / 11) for i in range(12)})
    return [
        (k, frozenset(torch.randperm(units, generator=random)[:k].tolist()))
        for k in lengths
        for _ in range(samples)
    ]


def _add_longer_paths(by_shortcut: Sequence[Tensor], by_branch: Sequence[Tensor]) -> list[Tensor]:
    """G_k ← ∂hᵀ G_k + ∂Fᵀ G_{k−1}."""
    middle = [direct + longer for direct, longer in zip(by_shortcut[1:], by_branch, strict=False)]
    return [by_shortcut[0], *middle, *by_branch[len(middle) :]]


def _rms_by_length(
    paths: Sequence[tuple[int, frozenset[int]]], sizes: Sequence[float]
) -> tuple[tuple[int, float], ...]:
    squares: dict[int, list[float]] = {}
    for (k, _), size in zip(paths, sizes, strict=True):
        squares.setdefault(k, []).append(size**2)
    return tuple((k, math.sqrt(mean_present(values))) for k, values in squares.items())
