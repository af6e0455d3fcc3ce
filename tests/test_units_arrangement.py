"""Where BN and ReLU stand: the five rows of P2, Fig. 4, layer by layer."""

import pytest
import torch
from torch.nn import functional

from kilolayer.errors import InputError
from kilolayer.units import (
    ARRANGEMENTS,
    FULL_PREACT,
    ORIGINAL,
    Arrangement,
    Basic,
    Bottleneck,
    OneLayer,
    Unit,
    build_unit,
    layout,
)

# F, then what follows the addition, as P2's Fig. 4 (a)–(e) draws them for two layers …
FIG_4 = {
    "original": ("conv BN ReLU conv BN", "ReLU"),
    "bn_after_addition": ("conv BN ReLU conv", "BN ReLU"),
    "relu_before_addition": ("conv BN ReLU conv BN ReLU", ""),
    "relu_only_preactivation": ("ReLU conv BN ReLU conv BN", ""),
    "full_preactivation": ("BN ReLU conv BN ReLU conv", ""),
}
# … and the same for the bottleneck (ResNet-164, Table 2) and the one-layer skip (Table 3).
BOTTLENECKS = {
    "original": ("conv BN ReLU conv BN ReLU conv BN", "ReLU"),
    "bn_after_addition": ("conv BN ReLU conv BN ReLU conv", "BN ReLU"),
    "relu_before_addition": ("conv BN ReLU conv BN ReLU conv BN ReLU", ""),
    "relu_only_preactivation": ("ReLU conv BN ReLU conv BN ReLU conv BN", ""),
    "full_preactivation": ("BN ReLU conv BN ReLU conv BN ReLU conv", ""),
}
ONE_LAYERS = {
    "original": ("conv BN", "ReLU"),
    "full_preactivation": ("BN ReLU conv", ""),
}
KINDS = {"Conv2d": "conv", "BatchNorm2d": "BN", "ReLU": "ReLU"}


def layers(sequence):
    return " ".join(KINDS[type(module).__name__] for module in sequence)


@pytest.mark.parametrize(
    ("branch", "table"), [(Basic(), FIG_4), (Bottleneck(), BOTTLENECKS), (OneLayer(), ONE_LAYERS)]
)
def test_layers_stand_where_the_paper_draws_them(branch, table):
    for name, (F, f) in table.items():
        unit = Unit(branch, arrangement=ARRANGEMENTS[name])
        built = build_unit(layout(unit, branch.out_channels(4), 4))
        assert (layers(built.F), layers(built.f)) == (F, f), name
        assert layers(built.h) == layers(built.p) == ""


def test_the_first_five_arrangements_are_the_rows_of_fig_4():
    assert list(ARRANGEMENTS)[:5] == list(FIG_4)


def normed(x, unit, name):
    bn = unit.F.get_submodule(name)
    return functional.batch_norm(x, None, None, bn.weight, bn.bias, training=True)


def test_original_unit_is_the_equation_written_by_hand():
    """P1, Fig. 2: x' = ReLU(x + BN(W₂ ReLU(BN(W₁ x))))."""
    unit = build_unit(layout(Unit(), 4, 4))
    x = torch.randn(2, 4, 8, 8)
    inner = functional.conv2d(x, unit.F.conv1.weight, padding=1)
    inner = functional.conv2d(normed(inner, unit, "bn1").relu(), unit.F.conv2.weight, padding=1)
    torch.testing.assert_close(unit(x), (x + normed(inner, unit, "bn2")).relu())


def test_full_preactivation_is_the_equation_written_by_hand():
    """P2, Fig. 1 (b) and Eq. (9): x' = x + W₂ ReLU(BN(W₁ ReLU(BN(x))))."""
    unit = build_unit(layout(Unit(arrangement=FULL_PREACT), 4, 4))
    x = torch.randn(2, 4, 8, 8)
    inner = functional.conv2d(normed(x, unit, "bn1").relu(), unit.F.conv1.weight, padding=1)
    inner = functional.conv2d(normed(inner, unit, "bn2").relu(), unit.F.conv2.weight, padding=1)
    torch.testing.assert_close(unit(x), x + inner)


@pytest.mark.parametrize(("on", "strides"), [("1x1", (2, 1, 1)), ("3x3", (1, 2, 1))])
def test_the_stride_stands_on_the_named_convolution(on, strides):
    convs = Bottleneck(stride_on=on).convs(8, 4, 2)
    assert tuple(conv.stride for conv in convs) == strides


def test_wide_units_drop_between_their_convolutions():
    """Wide residual networks, Fig. 1 (d): BN ReLU conv BN ReLU dropout conv."""
    unit = Unit(Basic(widen=2, dropout=0.3), arrangement=FULL_PREACT)
    kinds = [type(spec).__name__ for spec in layout(unit, 8, 4).F]
    assert kinds == ["BatchNorm", "ReLU", "Conv", "BatchNorm", "ReLU", "DropoutOp", "Conv"]


@pytest.mark.parametrize("field", ["before", "between", "after", "f"])
def test_an_arrangement_holds_nothing_but_bn_and_relu(field):
    with pytest.raises(
        InputError, match=rf"Arrangement\.{field} holds 'GELU'; allowed: 'BN', 'ReLU', or .* Activation"
    ):
        Arrangement(**{field: ("GELU",)})


def test_original_differs_from_full_preactivation_in_place_only():
    """P2's point: the same layers, moved."""
    a, e = (layout(Unit(arrangement=arrangement), 4, 4) for arrangement in (ORIGINAL, FULL_PREACT))
    assert sorted(map(str, (*a.F, *a.f))) == sorted(map(str, (*e.F, *e.f)))
    assert a.parameters == e.parameters
