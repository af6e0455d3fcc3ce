"""How signals pass through units: P2's equations (1) to (8), measured."""

import math
from dataclasses import replace

import pytest
import torch

from kilolayer.units import (
    BASIC,
    FULL_PREACT,
    RELU_ONLY_PREACT,
    Scaled,
)
from unit_chains import UNITS, chain, silence


@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("arrangement", [FULL_PREACT, RELU_ONLY_PREACT])
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_preactivation_units_without_f_are_the_identity(unit, arrangement, length):
    """Eq. (4) and (5) with F = 0: x_L = x_l and ∂ε/∂x_l = ∂ε/∂x_L, to the last bit."""
    chained, x = chain(replace(unit, arrangement=arrangement), length)
    silence(chained)
    y = chained(x)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def residual_functions(chained, x):
    """The output of the chain, and Σ F(x_i)."""
    outputs = []
    for unit in chained:
        unit.F.register_forward_hook(lambda _module, _inputs, F: outputs.append(F))
    return chained(x), lambda: sum(outputs)


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_preactivation_units_add_up(unit):
    """Eq. (4): x_L = x_l + Σ F(x_i); Eq. (5): ∂ε/∂x_l = ∂ε/∂x_L (1 + ∂/∂x_l Σ F)."""
    chained, x = chain(replace(unit, arrangement=FULL_PREACT), 5)
    y, total = residual_functions(chained, x)
    torch.testing.assert_close(y, x + total())
    weights = torch.randn_like(y)
    (whole,) = torch.autograd.grad((y * weights).sum(), x, retain_graph=True)
    (through_F,) = torch.autograd.grad((total() * weights).sum(), x)
    torch.testing.assert_close(whole, weights + through_F)
    assert through_F.abs().max() > 1e-3


def test_original_units_do_not_add_up():
    """f = ReLU truncates the signal, so Eq. (4) holds for pre-activation only (P2, Sec. 2)."""
    chained, x = chain(BASIC, 5)
    y, total = residual_functions(chained, x)
    assert (y - x - total()).abs().max() > 0.1


@pytest.mark.parametrize(
    ("factor", "length", "remains"), [(0.9, 100, 2.66e-5), (0.5, 54, 5.55e-17), (1.1, 50, 117)]
)
def test_scaled_shortcuts_multiply(factor, length, remains):
    """Eq. (6)–(8): what the shortcuts leave of signal and gradient is Π λ_i, 0.9^100 = 2.66e-5."""
    chained, x = chain(replace(BASIC, h=Scaled(factor), arrangement=FULL_PREACT), length)
    silence(chained)
    y = chained(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert factor**length == pytest.approx(remains, rel=5e-3)
    torch.testing.assert_close(y, x * factor**length)
    torch.testing.assert_close(gradient, torch.full_like(x, factor**length))


def test_scaled_shortcuts_multiply_whatever_their_factors():
    factors = (0.5, 2.0, 0.25, 1.0, 3.0)
    units = [chain(replace(BASIC, h=Scaled(factor), arrangement=FULL_PREACT), 1)[0] for factor in factors]
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    y = x
    for unit in units:
        silence(unit)
        y = unit(y)
    torch.testing.assert_close(y, x * math.prod(factors))
