"""Path statistics: how many paths of a residual network have which length, and what each length carries.

A residual network of L units is an ensemble of paths (Veit et al. 2016, arXiv 1605.06431): every unit is
passed either through its shortcut or through its branch F, and multiplying out P2's Eq. 5,

    ∂ε/∂x_0 = ∂ε/∂x_L · Π_l (∂h_l + ∂F_l),

gives 2^L terms. A path that takes k branches has length k.
"""

from __future__ import annotations

import math

from kilolayer.networks.description import Network
from kilolayer.theory.mean_field import MeanFieldTheory
from kilolayer.theory.population_dynamics import add_populations, scale_population

Lengths = tuple[float, ...]
"""One value for each path length, from the shortest length on."""

MAX_LENGTH = 40
"""Longer paths carry next to no gradient, and every length costs a vector-Jacobian product at each unit."""
IMAGES = 8
"""Images of the population: lengths need fewer than sizes do."""


def path_length_shares(units: int, shortest: int = 0) -> Lengths:
    """The share of all paths that has length k, for k = 0 … `units`.

    With both ways open at each of n = `units` − `shortest` units the lengths are binomial:

        share(k) = C(n, k − shortest) / 2^n

    Args:
        units: the number of residual units L.
        shortest: the number of units without a shortcut, which every path passes through F. A plain
            network (`shortest` = L) has a single path.

    Returns:
        `units` + 1 shares that sum to 1.

    Source: Veit et al. 2016, Sec. 5.

    >>> [round(share, 4) for share in path_length_shares(2)]
    [0.25, 0.5, 0.25]
    >>> path_length_shares(3, shortest=3)
    (0.0, 0.0, 0.0, 1.0)
    """
    free = units - shortest
    shares = [math.exp(_log_binomial(free, k) - free * math.log(2)) for k in range(free + 1)]
    return (*[0.0] * shortest, *shares)


def predict_path_norms(network: Network, longest: int = MAX_LENGTH) -> Lengths:
    """The gradient that all paths of one length carry together, at initialisation, by mean-field theory.

    With G_k the sum of the gradients of all paths of length k, one pass from the last unit to the first gives

        E‖G_k‖²  ←  E‖∂hᵀ G_k‖² + E‖∂Fᵀ G_{k−1}‖²,        G_0 = ∂ε/∂x_L.

    The squares add because the weights of different branches are independent, so that the gradients of
    different paths are uncorrelated.

    Args:
        network: a description; nothing is built.
        longest: lengths above this one are left out.

    Returns:
        √(E‖G_k‖² / Σ_k E‖G_k‖²) for k = shortest, shortest + 1, …: without a unit, squares sum to 1.

    Raises:
        NoReading: a layer of the network has no mean-field rule (see `no_prediction_reason`).

    >>> from kilolayer.networks import describe
    >>> norms = predict_path_norms(describe("preact_resnet8_cifar"))
    >>> len(norms), round(sum(norm**2 for norm in norms), 6)
    (4, 1.0)
    """
    theory = MeanFieldTheory(network, batch_size=IMAGES)
    by_length = [theory.final_gradient]
    for unit in reversed(theory.unit_backwards):
        by_shortcut = [unit.shortcut(gradient) for gradient in by_length]
        by_branch = [unit.branch(gradient) for gradient in by_length[:longest]]
        if not by_shortcut[0].values.any():
            by_length = by_branch
            continue
        middle = [
            add_populations(direct, longer)
            for direct, longer in zip(by_shortcut[1:], by_branch, strict=False)
        ]
        by_length = [by_shortcut[0], *middle, *by_branch[len(middle) :]]
        largest = max(gradient.second_moment for gradient in by_length)  # all of them could overflow
        by_length = [scale_population(gradient, largest**-0.5) for gradient in by_length]
    squares = [gradient.second_moment for gradient in by_length]
    return tuple(math.sqrt(square / sum(squares)) for square in squares)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
