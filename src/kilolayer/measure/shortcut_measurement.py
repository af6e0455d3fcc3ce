"""How much of the signal a shortcut lets pass: λ, gates and 1×1 convolutions (P2, Sec. 3, Eq. 6–8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kilolayer.measure.scalars import norm, ratio
from kilolayer.measure.shortcut_factors import ShortcutFactors, UnitFactor
from kilolayer.measure.unit_chain import UnitChain, UnitPass
from kilolayer.theory.shortcut_products import ShortcutTheory
from kilolayer.units import GatedUnit, ResidualUnit
from kilolayer.units.modules import PadChannelsModule, ScaleModule, ZeroModule

SCALING_LAYERS = (ScaleModule, PadChannelsModule, ZeroModule, nn.Dropout)
"""Layers of a shortcut on whose factor the description alone decides."""

__all__ = ["ShortcutFactors", "UnitFactor", "measure_shortcut_factors"]


@torch.no_grad()
def measure_shortcut_factors(
    model: nn.Module, x: Tensor, *, network: str = "", units: Sequence[str] = (), training: bool = True
) -> ShortcutFactors:
    """Measures every shortcut on the batch `x` (N, C, H, W), one unit at a time.

    `units` names the units of a model that is not ours. The model is left as it was. Raises `InputError`
    where it has no units.
    """
    chain = UnitChain(model, units, training=training)
    with ShortcutTheory().recording(chain.execution_order(x).units) as theory:
        found = tuple(_factor(unit, theory.openness(unit.module)) for unit in chain.forward(x))
    return ShortcutFactors(network or type(model).__name__, found)


def _factor(unit: UnitPass, openness: Tensor | None) -> UnitFactor:
    matrix = _shortcut_matrix(unit) if openness is None else None
    return UnitFactor(
        name=unit.name,
        stage=unit.stage,
        factor=_projection_factor(unit.h, unit.x) if unit.keeps_shape else None,
        gain=0.0 if unit.h is None else ratio(norm(unit.h), norm(unit.x)),
        openness=None if openness is None else openness.double().mean().item(),
        openness_std=None if openness is None else openness.double().std().item(),
        spectral=None if matrix is None else float(torch.linalg.matrix_norm(matrix, 2)),
        predicted=_predicted_factor(unit) if unit.keeps_shape else None,
        predicted_spectral=None if matrix is None else _random_spectral(matrix),
    )


def _shortcut_matrix(unit: UnitPass) -> Tensor | None:
    """W of a shortcut that goes through one 1×1 convolution (or linear layer) and no other."""
    if len(unit.h_weights) != 1 or unit.h_weights[0].shape[2:].numel() != 1:
        return None
    return unit.h_weights[0].detach().flatten(1).double()


def _random_spectral(matrix: Tensor) -> float:
    rows, columns = matrix.shape
    deviation = float(matrix.norm()) / math.sqrt(rows * columns)
    return deviation * (math.sqrt(rows) + math.sqrt(columns))


def _predicted_factor(unit: UnitPass) -> float | None:
    """λ as the unit is described; None where h is no multiple of x, or the unit is not ours."""
    module = unit.module
    if unit.h_is_input:
        return 1.0
    if not isinstance(module, ResidualUnit) or unit.h is None:
        return None
    if not all(isinstance(layer, SCALING_LAYERS) for layer in module.h):
        return None
    scales = math.prod(layer.factor for layer in module.h if isinstance(layer, ScaleModule))
    if unit.h.ndim == 0:
        return 0.0
    if isinstance(module, GatedUnit):
        bias = [*module.g.parameters()][-1].detach().double()
        return scales * float(torch.sigmoid(-bias).mean())
    return scales


def _projection_factor(h: Tensor | None, x: Tensor) -> float:
    if h is None:
        return 0.0
    x = x.double()
    return ratio(float((h.double() * x).sum()), float((x * x).sum()))
