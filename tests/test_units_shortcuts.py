"""What each shortcut h computes (P1, Sec. 3.3; P2, Sec. 3.1)."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from kilolayer.units import (
    BASIC,
    FULL_PREACT,
    Dropout,
    ExclusiveGate,
    Identity,
    Scaled,
    ShortcutGate,
    Zero,
    ZeroPad,
    build_unit,
    layout,
)
from unit_chains import UNITS, chain, silence


def test_both_paths_are_scaled():
    """Table 1: y = λ x + μ F(x)."""
    chained, x = chain(replace(BASIC, h=Scaled(0.5, 0.25), arrangement=FULL_PREACT), 1)
    unit = chained[0]
    F = unit.F[:-1](x)
    torch.testing.assert_close(unit(x), 0.5 * x + 0.25 * F)


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_a_plain_unit_is_its_residual_function(unit):
    """h = 0: y = F(x)."""
    chained, x = chain(replace(unit, h=Zero(), arrangement=FULL_PREACT), 1)
    assert torch.equal(chained(x), chained[0].F(x))


@pytest.mark.parametrize(
    ("h", "equation"),
    [
        (ExclusiveGate(-1.0), lambda x, F, g: (1 - g) * x + g * F),
        (ShortcutGate(-1.0), lambda x, F, g: (1 - g) * x + F),
    ],
)
def test_gates_weigh_channel_by_channel_and_place_by_place(h, equation):
    """P2, Sec. 3.1: g(x) = σ(W_g x + b_g), one value per element of x."""
    chained, x = chain(replace(BASIC, h=h, arrangement=FULL_PREACT), 1)
    unit = chained[0]
    g = torch.sigmoid(functional.conv2d(x, unit.g.conv1.weight, unit.g.conv1.bias))
    assert g.shape == x.shape
    assert unit.g.conv1.kernel_size == (1, 1)
    torch.testing.assert_close(unit(x), equation(x, unit.F(x), g))


def gated(h, bias):
    """One gated unit with b_g = `bias`, the same unit with an identity shortcut, and an input."""
    (unit,), x = chain(replace(BASIC, h=h, arrangement=FULL_PREACT), 1)
    (bare,), _ = chain(replace(BASIC, h=Identity(), arrangement=FULL_PREACT), 1)
    assert bare.load_state_dict(unit.state_dict(), strict=False).missing_keys == []
    nn.init.constant_(unit.g.conv1.bias, bias)
    return unit, bare, x


def test_a_closed_shortcut_only_gate_leaves_an_identity_shortcut():
    """b_g → −∞: 1−g → 1, so y → x + F(x) (P2, Sec. 3.1)."""
    unit, bare, x = gated(ShortcutGate(), -100.0)
    assert torch.equal(unit(x), bare(x))


def test_a_closed_exclusive_gate_leaves_x_and_an_open_one_f():
    """b_g → −∞ suppresses F as well: y → x; b_g → +∞: y → F(x) (P2, Sec. 3.1)."""
    unit, _, x = gated(ExclusiveGate(), -100.0)
    torch.testing.assert_close(unit(x), x, rtol=0, atol=1e-12)
    unit, _, x = gated(ExclusiveGate(), 100.0)
    torch.testing.assert_close(unit(x), unit.F(x))


def test_dropout_on_the_shortcut_acts_in_training_only():
    """P2, Sec. 3.1: kept values grow by 1/(1−p), so λ is 1 on average; at test time h is the identity."""
    chained, x = chain(replace(BASIC, h=Dropout(0.75), arrangement=FULL_PREACT), 1)
    silence(chained)
    y = chained(x)
    dropped = y == 0
    assert dropped.double().mean() == pytest.approx(0.75, abs=0.15)
    torch.testing.assert_close(y[~dropped], 4 * x[~dropped])
    assert torch.equal(chained.eval()(x), x)


@pytest.mark.parametrize("h", [Scaled(0.5, 0.5), ExclusiveGate(-6.0), ShortcutGate(0.0), Dropout(0.5)])
def test_a_shape_changing_unit_may_leave_its_ablation_out(h):
    skipping = replace(BASIC, h=replace(h, at_downsample="skip"))
    for letter in "phFfg":
        assert getattr(layout(skipping, 4, 8, 2), letter) == getattr(layout(BASIC, 4, 8, 2), letter)
    applying, bare = layout(replace(BASIC, h=h), 4, 8, 2), layout(BASIC, 4, 8, 2)
    assert (applying.h, applying.g) != (bare.h, bare.g)
    assert layout(skipping, 4, 4) == layout(replace(BASIC, h=h), 4, 4)


def test_option_a_keeps_every_other_pixel_and_adds_zeros():
    """P1, Sec. 3.3 (A): no parameters."""
    unit = build_unit(layout(replace(BASIC, arrangement=FULL_PREACT, downsample=ZeroPad()), 4, 6, 2))
    silence([unit])
    x = torch.randn(1, 4, 5, 5)
    y = unit(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert not y[:, 4:].any()
    assert y.shape == (1, 6, 3, 3)
