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
from kilolayer.networks import Network
from kilolayer.theory.mean_field import MeanFieldTheory
from kilolayer.theory.population_dynamics import add_populations

Lengths = tuple[float, ...]
MAX_LENGTH, SAMPLES = 40, 3


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


def path_length_shares(units: int, shortest: int = 0) -> Lengths:
    """Shares of all paths by length k = 0 … `units`: C(n, k) / 2^n where every unit has both ways.

    `shortest` units are passed by their branch alone: a plain net has one path, through all of them.
    """
    free = units - shortest
    shares = [math.exp(_log_binomial(free, k) - free * math.log(2)) for k in range(free + 1)]
    return (*[0.0] * shortest, *shares)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def measure_path_gradients(
    chain: UnitChain,
    x: Tensor,
    labels: Tensor,
    *,
    longest: int = MAX_LENGTH,
    samples: int = SAMPLES,
    seed: int = 0,
) -> PathGradients:
    """Gradients at x_0 by path length.

    All paths of length k together come from one pass: G_k ← ∂hᵀ G_k + ∂Fᵀ G_{k−1} at every unit from the
    last to the first, with G_0 = ∂ε/∂x_L. Single ones are drawn as by Veit et al.: for some lengths k,
    `samples` choices of k units whose branches are taken, and of all others the shortcuts.
    """
    units, random = len(chain), torch.Generator().manual_seed(seed)
    drawn = _draw_paths(units, min(longest, units), samples, random)
    together: list[Tensor] = []
    alone: list[Tensor] = []
    shortest = 0
    for unit in chain.backward(x, labels):
        if not together:
            together, alone = [unit.output_gradient], [unit.output_gradient] * len(drawn)
        else:
            together, alone = (
                [unit.to_output(each) for each in together],
                [unit.to_output(each) for each in alone],
            )
        straight = [unit.shortcut(each) for each in together]
        bent = [unit.branch(each) for each in together[:longest]]
        forced = not straight[0].any()
        shortest += forced
        together = bent if forced else _add_longer_paths(straight, bent)
        alone = [
            unit.branch(each) if forced or unit.index in taken else unit.shortcut(each)
            for each, (_, taken) in zip(alone, drawn, strict=True)
        ]
        whole = unit.whole(unit.output_gradient)
    size, left = norm(whole), norm(whole - torch.stack(together).sum(0))
    return PathGradients(
        shortest=shortest,
        counts=path_length_shares(units, shortest),
        together=tuple(ratio(norm(each), size) for each in together),
        rest=ratio(left, size),
        alone=() if shortest else _rms_by_length(drawn, [ratio(norm(each), size) for each in alone]),
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


def _add_longer_paths(straight: Sequence[Tensor], bent: Sequence[Tensor]) -> list[Tensor]:
    """G_k ← ∂hᵀ G_k + ∂Fᵀ G_{k−1}."""
    middle = [one + other for one, other in zip(straight[1:], bent, strict=False)]
    return [straight[0], *middle, *bent[len(middle) :]]


def _rms_by_length(
    paths: Sequence[tuple[int, frozenset[int]]], sizes: Sequence[float]
) -> tuple[tuple[int, float], ...]:
    squares: dict[int, list[float]] = {}
    for (k, _), size in zip(paths, sizes, strict=True):
        squares.setdefault(k, []).append(size**2)
    return tuple((k, math.sqrt(mean_present(found))) for k, found in squares.items())


def predict_path_norms(network: Network, longest: int = MAX_LENGTH) -> Lengths:
    """`PathGradients.together` at initialisation by mean-field theory: E‖G_k‖² ← E‖∂hᵀG_k‖² + E‖∂FᵀG_{k−1}‖².

    Weights of different branches are independent, so that different paths' gradients are uncorrelated.
    """
    theory = MeanFieldTheory(network)
    together = [theory.final_gradient]
    for step in reversed(theory.unit_backwards):
        straight = [step.shortcut(each) for each in together]
        bent = [step.branch(each) for each in together[:longest]]
        if not straight[0].values.any():
            together = bent
            continue
        middle = [
            add_populations(one, other, are_squares=True)
            for one, other in zip(straight[1:], bent, strict=False)
        ]
        together = [straight[0], *middle, *bent[len(middle) :]]
    squares = [float(each.values.mean()) for each in together]
    return tuple(math.sqrt(square / sum(squares)) for square in squares)
