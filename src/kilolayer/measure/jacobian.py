"""Singular values of the Jacobian J_l = ∂x_L/∂x_l through the depth, by randomised methods (P2, Eq. 5 and 8).

A gradient at x_L is multiplied by J_lᵀ on its way to x_l. Where shortcuts and f are identities and F adds
nothing, J_l is the identity and all its singular values are 1; shortcuts of factor λ give λ^(L−l).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kilolayer.chart import Chart, Series
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.jacobian_products import JacobianProducts
from kilolayer.measure.lanczos import lanczos_singular_values, weighted_quantile
from kilolayer.measure.scalars import positive_or_none
from kilolayer.measure.series import stage_starts, unit_series
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.theory.mean_field import no_prediction_reason, predict_propagation

IMAGES = 4
"""Images of the batch that take part; the Jacobian is that of all of them together."""
PROBES, STEPS, POINTS, LEADING = 4, 12, 5, 3
SHARES = (0.1, 0.5, 0.9)
NEGLIGIBLE = 1e-2
"""A direction with a singular value below this one is all but lost."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of ∂x_L/∂x_l for l = `place`."""

    place: int
    leading: tuple[float, ...]
    """The largest singular values, in descending order."""
    quantiles: tuple[float, ...]
    """`quantiles[i]` is the value up to which the share `SHARES[i]` of all singular values lies."""


@dataclass(frozen=True)
class Jacobian:
    """Size and spectrum of J_l = ∂x_L/∂x_l for every unit, of `images` images at once."""

    network: str
    units: tuple[str, ...]
    images: int
    mode: str
    """"batch" or "running": the statistics that BN uses."""
    growth: tuple[float, ...]
    """√(‖J_l‖²_F / n_L) for l = 0 … L, where x_L has n_L numbers: the root mean square factor by which a
    random gradient at x_L grows on its way to x_l."""
    spectra: tuple[Spectrum, ...]
    """The singular values at some of the units."""
    predicted: tuple[float, ...] | None = None
    """The mean-field prediction of `growth`, at initialisation; None where there is none."""
    direct: tuple[float, ...] | None = None
    """The same for the shortcuts alone."""
    stages: tuple[float, ...] = ()
    """The positions of x_0 … x_L, counted from 1, at which x_l takes another shape."""

    def finding(self) -> str:
        largest, half = self.spectra[0].leading[0], self.spectra[0].quantiles[1]
        return (
            f"a random gradient at x_L is {self.growth[0]:.3g} times as large when it reaches x_0; the "
            f"largest singular value of ∂x_L/∂x_0 is {largest:.3g} and half of them lie below {half:.3g}"
            + (", so most directions are lost" if half < NEGLIGIBLE else "")
        )

    def charts(self) -> tuple[Chart, ...]:
        return _growth_chart(self), _spectrum_chart(self)

    def summary(self) -> tuple[tuple[str, str], ...]:
        first, predicted = self.spectra[0], self.predicted
        return (
            ("largest singular value of ∂x_L/∂x_0", f"{first.leading[0]:.4g}"),
            ("median singular value of ∂x_L/∂x_0", f"{first.quantiles[1]:.4g}"),
            ("growth of a random gradient from x_L to x_0", f"{self.growth[0]:.4g}"),
            ("… predicted", f"{predicted[0]:.4g}" if predicted else "no prediction"),
            *((("… through the shortcuts alone", f"{self.direct[0]:.4g}"),) if self.direct else ()),
            ("BN's statistics", self.mode),
        )


def measure_jacobian(
    analysis_input: AnalysisInput,
    *,
    images: int = IMAGES,
    probes: int = PROBES,
    steps: int = STEPS,
    points: int = POINTS,
    seed: int = 0,
) -> Jacobian:
    """Measures size and spectrum of J_l = ∂x_L/∂x_l.

        ‖J_l‖²_F = E‖J_lᵀ u‖²,    u of independent random signs          (Hutchinson 1990)

    BN uses its running statistics in a trained network, and the batch's in any other, whose running ones
    mean nothing yet.

    Args:
        analysis_input: the network and its batch.
        images: the first images of the batch take part.
        probes: random gradients for the estimate of ‖J_l‖_F.
        steps: steps of Lanczos bidiagonalisation for each spectrum.
        points: units at which spectra are taken, evenly spread.
        seed: all random vectors follow from it.

    Raises:
        InputError: the model has no units (see `UnitChain`).

    >>> from kilolayer.networks import build, describe
    >>> network = describe("preact_resnet8_cifar")
    >>> x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    >>> given = AnalysisInput(
    ...     "net", build(network), x, labels, lambda seed: build(network), lambda count: (x, labels), network
    ... )
    >>> result = measure_jacobian(given, images=1, probes=1, steps=2, points=1)
    >>> len(result.growth), result.growth[-1]  # x_0 … x_L; at x_L the Jacobian is the identity
    (4, 1.0)
    """
    chain = analysis_input.chain(training=not analysis_input.trained)
    products = JacobianProducts(chain, analysis_input.x[:images])
    random = torch.Generator().manual_seed(seed)
    indices = sorted({round(i * (len(chain) - 1) / max(1, points - 1)) for i in range(points)})
    description = analysis_input.description
    theory = (
        predict_propagation(description, batch_size=len(analysis_input.x[:images]))
        if description and not analysis_input.trained and not no_prediction_reason(description)
        else None
    )
    return Jacobian(
        network=analysis_input.name,
        units=chain.names,
        images=len(analysis_input.x[:images]),
        mode="running" if analysis_input.trained else "batch",
        growth=_growth(products, probes, random),
        spectra=tuple(_spectrum(products, index, steps, random) for index in indices),
        predicted=theory.gradient if theory else None,
        direct=theory.direct if theory else None,
        stages=_stages(chain, analysis_input.x[:images]),
    )


def _stages(chain: UnitChain, x: Tensor) -> tuple[float, ...]:
    order = chain.execution_order(x)
    return stage_starts([*order.inputs, order.outputs[-1]])


def _growth(products: JacobianProducts, probes: int, random: torch.Generator) -> tuple[float, ...]:
    """√(E‖J_lᵀu‖² / n_L), u of independent signs: E[uuᵀ] is the identity, and ‖u‖² = n_L without variance."""
    size = products.out.numel()
    signs = [_random_like(products.out, random).sign() for _ in range(probes)]
    growth = [1.0]
    for _, vectors in products.vjps(signs):
        squares = sum(float(vector.double().square().sum()) for vector in vectors)
        growth.append(math.sqrt(squares / probes / size))
    return tuple(reversed(growth))


def _spectrum(products: JacobianProducts, index: int, steps: int, random: torch.Generator) -> Spectrum:
    # J_lᵀ rather than J_l: x_L has fewer numbers than x_l, so no singular value is 0 for lack of dimensions.
    values, weights = lanczos_singular_values(
        lambda u: products.vjp(index, [u])[0],
        lambda v: products.jvp(index, [v])[0],
        _random_like(products.out, random),
        steps,
    )
    quantiles = tuple(weighted_quantile(values, weights, share) for share in SHARES)
    return Spectrum(index, tuple(values[:LEADING]), quantiles)


def _random_like(tensor: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=random, dtype=torch.float64).to(tensor)


def _growth_chart(result: Jacobian) -> Chart:
    series = [unit_series("measured", result.growth)]
    if result.predicted and result.direct:
        series.append(unit_series("mean-field theory", positive_or_none(result.predicted), "predicted"))
        series.append(unit_series("shortcuts alone", positive_or_none(result.direct), "predicted"))
    note = f"from x_L to x_0 a random gradient is multiplied by {result.growth[0]:.3g}"
    return Chart(
        "growth",
        "The growth of a random gradient on its way from x_L to x_l",
        "√(‖∂x_L/∂x_l‖²_F / n_L)",
        "residual unit, from the input",
        "growth",
        tuple(series),
        log_y=True,
        note=note + (f", {result.predicted[0]:.3g} by theory" if result.predicted else ""),
        stages=result.stages,
    )


def _spectrum_chart(result: Jacobian) -> Chart:
    positions = tuple(float(spectrum.place + 1) for spectrum in result.spectra)
    largest = Series(
        "largest", positions, positive_or_none(spectrum.leading[0] for spectrum in result.spectra)
    )
    bulk = [
        Series(
            f"{share:.0%} are smaller",
            positions,
            positive_or_none(spectrum.quantiles[i] for spectrum in result.spectra),
        )
        for i, share in enumerate(SHARES)
    ]
    leading, half = result.spectra[0].leading[0], result.spectra[0].quantiles[1]
    return Chart(
        "singular-values",
        "Singular values of ∂x_L/∂x_l",
        "∂x_L/∂x_l = 1 + ∂/∂x_l Σ F(x_i)   (P2, Eq. 5)",
        "residual unit, from the input",
        "singular value",
        (largest, *reversed(bulk)),
        log_y=True,
        note=f"at the first unit the largest is {leading:.3g}, half are below {half:.3g}",
        stages=result.stages,
    )
