"""A residual network as an ensemble of paths: each unit is passed by its shortcut or by its branch F.

Multiplying out Eq. 5 of P2, ∂ε/∂x_0 = ∂ε/∂x_L · Π(∂h_l + ∂F_l), gives 2^L terms, the paths; one that takes
k branches has length k. Most paths are of length L/2, but most of the gradient comes by short ones
(Veit et al. 2016, arXiv 1605.06431).
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
    """Gradients at x_0 by the number k of branches that they came through, for `shortest` + 0, 1, 2 …

    `together[i]`: ‖Σ of the gradients of all paths of one length‖, relative to ‖∂ε/∂x_0‖, exactly.
    `rest`: ‖∂ε/∂x_0 − Σ_k‖, likewise relative: what longer paths bring. `alone`: for some k the norm of a
    single path's gradient, over a sample of them (root mean square). `counts[k]`: which share of all paths
    is of length k. `shortest` is the number of units without a shortcut: all of a plain net's.
    """

    shortest: int
    counts: Lengths
    together: Lengths
    rest: float
    alone: tuple[tuple[int, float], ...]

    @property
    def mean_length(self) -> float:
        """Σ k·together² / Σ together²: by how many branches the gradient comes."""
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
    """Gradients at x_0 by path length.

    All paths of length k together come from one pass: G_k ← ∂hᵀ G_k + ∂Fᵀ G_{k−1} at every unit from the
    last to the first, with G_0 = ∂ε/∂x_L. Single ones are drawn as by Veit et al.: for some lengths k,
    `samples` choices of k units whose branches are taken, and of all others the shortcuts.
    """
    units, random = len(chain), torch.Generator().manual_seed(seed)
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
        has_no_shortcut = not by_shortcut[0].any()
        shortest += has_no_shortcut
        by_length = by_branch if has_no_shortcut else _add_longer_paths(by_shortcut, by_branch)
        single_paths = [
            unit.branch(gradient) if has_no_shortcut or unit.index in branches else unit.shortcut(gradient)
            for gradient, (_, branches) in zip(single_paths, paths, strict=True)
        ]
        input_gradient = unit.whole(unit.output_gradient)
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
    """(k, the units whose branches are taken) for 12 lengths k or fewer, `samples` choices of each."""
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
