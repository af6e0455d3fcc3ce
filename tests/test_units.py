"""Every unit there is, at every shape: it builds, runs, trains, is counted and survives JSON."""

from itertools import product

import pytest
import torch

from kilolayer.units import (
    ARRANGEMENTS,
    BOTTLENECK,
    Aggregated,
    Basic,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Identity,
    OneLayer,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
    ZeroPad,
    build_unit,
    layout,
)
from kilolayer.values import from_json, to_json

BRANCHES = {
    "basic": Basic(),
    "wide": Basic(widen=2, dropout=0.3),
    "one-layer": OneLayer(),
    "bottleneck": Bottleneck(),
    "bottleneck-3x3": Bottleneck(stride_on="3x3"),
    "grouped": Aggregated(2, 8),
    "concatenated": Aggregated(2, 8, form="concatenated"),
    "split": Aggregated(2, 8, form="split", stride_on="1x1"),
}
SHORTCUTS = {
    "identity": Identity(),
    "zero": Zero(),
    "scaled": Scaled(0.5, 0.5),
    "scaled-skip": Scaled(0.5, at_downsample="skip"),
    "exclusive": ExclusiveGate(-1.0),
    "exclusive-bn": ExclusiveGate(-1.0, batch_norm=True),
    "exclusive-skip": ExclusiveGate(-1.0, at_downsample="skip"),
    "shortcut-only": ShortcutGate(-1.0),
    "dropout": Dropout(0.5),
    "dropout-skip": Dropout(0.5, at_downsample="skip"),
    "projection": Projection(),
}
DOWNSAMPLES = (ZeroPad(), ZeroPad("preactivated"), Projection())
# The width of the stage and the stride; every unit is fed what a stage of width 8 puts out.
SHAPES = ((8, 1), (8, 2), (16, 1), (16, 2))


@pytest.mark.parametrize("h", SHORTCUTS)
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_combination_is_a_unit(arrangement, branch, h):
    for downsample, (width, stride) in product(DOWNSAMPLES, SHAPES):
        unit = Unit(BRANCHES[branch], SHORTCUTS[h], ARRANGEMENTS[arrangement], downsample)
        if downsample == ZeroPad() or (width, stride) != (8, 1):
            check_unit(unit, unit.branch.out_channels(8), width, stride)
        assert from_json(to_json(unit), Unit) == unit


def check_unit(unit, channels, width, stride):
    place = layout(unit, channels, width, stride)
    built = build_unit(place)
    x = torch.randn(2, channels, 5, 5, requires_grad=True)
    y = built(x)
    side = place.output_side(5)
    assert y.shape == (2, unit.branch.out_channels(width), side, side)
    # Random weights, since the sum of a batch-normalised output is constant.
    (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.any()
    assert sum(parameter.numel() for parameter in built.parameters()) == place.parameters
    built.eval()
    assert torch.equal(built(x), built(x))


@pytest.mark.parametrize("side", [1, 2, 5, 8])
@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_both_paths_meet_at_any_size(downsample, side):
    """Every stride rounds up, on the shortcut as on F."""
    place = layout(Unit(Bottleneck(), downsample=downsample), 8, 4, 2)
    assert build_unit(place)(torch.zeros(2, 8, side, side)).shape[-1] == -(-side // 2)


@pytest.mark.parametrize("normalised", ["original", "relu_only_preactivation", "relu_before_addition"])
def test_bn_follows_the_projection_where_it_follows_the_last_convolution(normalised):
    """P2, Table 1: BN follows every weight layer of these units, so also the 1×1 shortcut's."""
    place = layout(Unit(Bottleneck(), arrangement=ARRANGEMENTS[normalised], downsample=Projection()), 8, 4)
    assert [type(spec).__name__ for spec in place.h] == ["Conv", "BatchNorm"]
    bare = layout(
        Unit(Bottleneck(), arrangement=ARRANGEMENTS["full_preactivation"], downsample=Projection()), 8, 4
    )
    assert [type(spec).__name__ for spec in bare.h] == ["Conv"]


def test_running_statistics_can_be_reset():
    """PyTorch's own reset reaches for a batch counter that these BNs do without."""
    unit = build_unit(layout(BOTTLENECK, 16, 4))
    unit(torch.randn(2, 16, 4, 4))
    unit.F.bn1.reset_running_stats()
    assert torch.equal(unit.F.bn1.running_var, torch.ones(4))
    assert not unit.F.bn1.running_mean.any()
