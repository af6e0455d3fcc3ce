"""The factor by which each shortcut scales the signal: λ, gates, 1×1 convolutions (P2, Sec. 3, Eq. 6–8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from kilolayer.chart import Chart, Series
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.scalars import mean_present, norm, product_present, ratio
from kilolayer.measure.series import stage_starts, unit_series
from kilolayer.measure.unit_chain import UnitChain, UnitPass
from kilolayer.theory.shortcut_products import ShortcutTheory
from kilolayer.units import GatedUnit, ResidualUnit

OptionalValues = list[float | None]

UNCHANGED, VANISHED = 1e-3, 1e-2
"""A product within `UNCHANGED` of 1 is 1 up to rounding; below `VANISHED`, or above its inverse, no signal
is left."""


@dataclass(frozen=True)
class UnitFactor:
    """The shortcut h of one unit, measured on a batch, beside the identity."""

    name: str
    stage: int
    factor: float | None
    """⟨h(x), x⟩ / ⟨x, x⟩, which is λ where h(x) = λx; None where the shape changes."""
    gain: float
    """‖h(x)‖ / ‖x‖."""
    openness: float | None
    """The mean of 1−g over elements; None without a gate."""
    openness_std: float | None
    """The standard deviation of 1−g over elements."""
    spectral: float | None
    """‖W‖₂, the largest singular value of a 1×1 convolution or linear layer that is the shortcut's only
    weight, the largest of its groups; None for any other shortcut."""
    predicted: float | None
    """`factor` from the description: λ, 1 for an identity, and σ(−b_g) for a gate, which holds for an input
    without a preferred direction. None where there is no prediction."""
    predicted_spectral: float | None
    """s(√n + √m), the largest singular value of an m×n matrix of independent entries with W's deviation s;
    None for a convolution with groups."""


@dataclass(frozen=True)
class ShortcutFactors:
    """The effective factor of every shortcut of a network on a batch.

    Products run from a unit to the last unit and leave out units that change the shape.
    """

    heading: ClassVar[str] = "Shortcut"

    network: str
    units: tuple[UnitFactor, ...]

    def charts(self) -> tuple[Chart, ...]:
        result = [self._product_chart(), self._factor_chart()]
        if self._has_values("openness"):
            result.insert(0, self._gate_chart())
        if self._has_values("spectral"):
            result.append(self._spectral_chart())
        return tuple(result)

    def summary(self) -> tuple[tuple[str, str], ...]:
        predicted = product_present(self._values("predicted"))
        rows = [
            ("product of the factors, first unit to last", _number_text(self.product)),
            ("… predicted", "no prediction" if math.isnan(predicted) else _number_text(predicted)),
            ("mean factor", _number_text(mean_present(self._values("factor")))),
            ("mean gain ‖h(x)‖ / ‖x‖", _number_text(mean_present(self._values("gain")))),
        ]
        if self._has_values("openness"):
            rows.append(("mean openness 1−g", _number_text(mean_present(self._values("openness")))))
        if self._has_values("spectral"):
            largest = max(value for value in self._values("spectral") if value is not None)
            rows.append(("largest spectral norm of a 1×1 shortcut", _number_text(largest)))
            rows.append(
                ("product of the spectral norms", _number_text(product_present(self._values("spectral"))))
            )
        return tuple(rows)

    def finding(self) -> str:
        if math.isnan(self.product):
            return "every shortcut changes the shape, so no factor can be measured"
        verdict = (
            "the signal passes unchanged, as with identity shortcuts"
            if abs(self.product - 1) < UNCHANGED
            else "the signal all but vanishes on the way (P2, Eq. 7)"
            if self.product < VANISHED
            else "the signal explodes on the way (P2, Eq. 7)"
            if self.product > 1 / VANISHED
            else "the signal is scaled on the way (P2, Eq. 7)"
        )
        factor = _number_text(self.product)
        return f"from the first unit to the last the shortcuts multiply by {factor}: {verdict}"

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """The product and the mean of the factors, and of gates and 1×1 convolutions where there are any."""
        rows = [
            ("product of the factors", self.product),
            ("mean factor", mean_present(self._values("factor"))),
        ]
        names = {"openness": "mean openness 1−g", "spectral": "mean spectral norm"}
        rows += [
            (label, mean_present(self._values(name)))
            for name, label in names.items()
            if self._has_values(name)
        ]
        return tuple(rows)

    @property
    def product(self) -> float:
        """|Π λ_i| of the measured factors, from the first unit to the last; NaN without a factor."""
        return abs(product_present(self._values("factor")))

    def _values(self, name: str) -> OptionalValues:
        return [getattr(unit, name) for unit in self.units]

    def _has_values(self, name: str) -> bool:
        return any(value is not None for value in self._values(name))

    @property
    def _stage_starts(self) -> tuple[float, ...]:
        return stage_starts([unit.stage for unit in self.units])

    def _product_chart(self) -> Chart:
        series = [
            _running_product("product of the factors", self._values("factor")),
            _running_product("product of the factors", self._values("predicted"), "predicted"),
        ]
        if self._has_values("spectral"):
            series.append(
                _running_product("product of the 1×1 convolutions' norms", self._values("spectral"))
            )
        return Chart(
            "product",
            "The share of x_l that the shortcuts carry to the last unit",
            "x_L = (Π λ_i) x_l + Σ F̂(x_i)   (P2, Eq. 7)",
            "residual unit l, from the input",
            "|Π λ_i| from l on",
            tuple(series),
            log_y=True,
            note=f"from the first unit to the last: {_number_text(self.product)}",
            stages=self._stage_starts,
        )

    def _factor_chart(self) -> Chart:
        return Chart(
            "factor",
            "The effective factor of every shortcut",
            "λ_l = ⟨h(x_l), x_l⟩ / ⟨x_l, x_l⟩",
            "residual unit l, from the input",
            "factor",
            (
                unit_series("factor", self._values("factor")),
                unit_series("factor", self._values("predicted"), "predicted"),
                unit_series("gain ‖h(x)‖ / ‖x‖", self._values("gain")),
            ),
            note=f"mean factor {_number_text(mean_present(self._values('factor')))}",
            stages=self._stage_starts,
        )

    def _gate_chart(self) -> Chart:
        return Chart(
            "openness",
            "How open the gates leave the shortcut",
            "1 − g(x),  g = σ(W_g x + b_g)   (P2, Sec. 3.1)",
            "residual unit l, from the input",
            "1 − g",
            (
                unit_series("mean of 1−g", self._values("openness")),
                unit_series("mean of 1−g", self._values("predicted"), "predicted"),
                unit_series("standard deviation of 1−g", self._values("openness_std")),
            ),
            note=f"mean over units {_number_text(mean_present(self._values('openness')))}",
            stages=self._stage_starts,
        )

    def _spectral_chart(self) -> Chart:
        return Chart(
            "spectral",
            "The largest singular value of every 1×1 shortcut",
            "‖W_s‖₂; at random s(√n + √m)",
            "residual unit l, from the input",
            "spectral norm",
            (
                unit_series("spectral norm", self._values("spectral")),
                unit_series("spectral norm", self._values("predicted_spectral"), "predicted"),
            ),
            note="predicted: a matrix of independent entries with the deviation of W",
            stages=self._stage_starts,
        )


def _running_product(name: str, values: OptionalValues, kind: str = "measured") -> Series:
    """|Π| from each unit to the last. Units without a value count as 1 and get no point."""
    factors = [1.0 if value is None else abs(value) for value in values]
    products = [*accumulate(reversed(factors), lambda a, b: a * b)][::-1]
    visible = [None if value is None else product for value, product in zip(values, products, strict=True)]
    return unit_series(name, visible, "predicted" if kind == "predicted" else "measured")


def _number_text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


@torch.no_grad()
def measure_shortcut_factors(
    model: nn.Module, x: Tensor, *, network: str = "", units: Sequence[str] = (), training: bool = True
) -> ShortcutFactors:
    """Measures the factor of every shortcut on a batch, one unit at a time.

        λ_l = ⟨h(x_l), x_l⟩ / ⟨x_l, x_l⟩,        x_L = (Π λ_i) x_l + Σ F̂(x_i)          (P2, Eq. 7)

    Args:
        model: any module; it is left as it was.
        x: a normalised batch, (N, C, H, W).
        network: the name to show; by default the class's.
        units: the names of its units in a foreign model (see `find_residual_units`).
        training: BN uses the batch's statistics; off, its running ones.

    Raises:
        InputError: the model has no units (see `UnitChain`).

    >>> from kilolayer.networks import build, describe
    >>> from kilolayer.units import Scaled
    >>> network = describe("preact_resnet14_cifar", unit={"h": Scaled(0.5)})
    >>> result = measure_shortcut_factors(build(network), torch.randn(2, 3, 32, 32))
    >>> round(result.product, 4)  # 0.5 in each of the four units that keep their shape
    0.0625
    """
    chain = UnitChain(model, units, training=training)
    with ShortcutTheory().recording(chain.execution_order(x).units) as theory:
        factors = tuple(_factor(unit, theory.openness(unit.module)) for unit in chain.forward(x))
    return ShortcutFactors(network or type(model).__name__, factors)


def shortcut_factors_of(analysis_input: AnalysisInput) -> ShortcutFactors:
    """The analysis of an `AnalysisInput`, as the registry runs it."""
    return measure_shortcut_factors(
        analysis_input.model, analysis_input.x, network=analysis_input.name, units=analysis_input.units
    )


def _factor(unit: UnitPass, openness: Tensor | None) -> UnitFactor:
    matrices = _shortcut_matrices(unit) if openness is None else None
    return UnitFactor(
        name=unit.name,
        stage=unit.stage,
        factor=_projection_factor(unit.h, unit.x) if unit.keeps_shape else None,
        gain=0.0 if unit.h is None else ratio(norm(unit.h), norm(unit.x)),
        openness=None if openness is None else openness.double().mean().item(),
        openness_std=None if openness is None else openness.double().std().item(),
        spectral=None if matrices is None else float(torch.linalg.matrix_norm(matrices, 2).max()),
        predicted=_predict_factor(unit) if unit.keeps_shape else None,
        predicted_spectral=_random_spectral(matrices[0])
        if matrices is not None and len(matrices) == 1
        else None,
    )


def _shortcut_matrices(unit: UnitPass) -> Tensor | None:
    """W, by groups, of a shortcut whose only weight is a 1×1 convolution's or linear layer's; else None."""
    matrices = unit.h_weights[0].matrices if len(unit.h_weights) == 1 else None
    return None if matrices is None else matrices.double()


def _random_spectral(matrix: Tensor) -> float:
    rows, columns = matrix.shape
    deviation = float(matrix.norm()) / math.sqrt(rows * columns)
    return deviation * (math.sqrt(rows) + math.sqrt(columns))


def _predict_factor(unit: UnitPass) -> float | None:
    """λ as the unit is described; None where the description states none, or the unit is not Kilolayer's."""
    module = unit.module
    if unit.h_is_input:
        return 1.0
    if not isinstance(module, ResidualUnit) or unit.h is None or module.shortcut_factor is None:
        return None
    if isinstance(module, GatedUnit):
        bias = [*module.g.parameters()][-1].detach().double()
        return module.shortcut_factor * float(torch.sigmoid(-bias).mean())
    return module.shortcut_factor


def _projection_factor(h: Tensor | None, x: Tensor) -> float:
    if h is None:
        return 0.0
    x = x.double()
    return ratio(float((h.double() * x).sum()), float((x * x).sum()))
