"""The figures of `analyse shortcut` and `analyse gradient` for shortcuts of one's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from kilolayer.measure import measure_gradient, measure_shortcut_factors
from kilolayer.networks import build, cifar
from kilolayer.units import CustomLayer, Op, Shortcut, Unit
from kilolayer.units.ops import Conv, ScaleOp


class Gain(nn.Module):
    """λ∘x, with the learned λ in any shape that broadcasts."""

    def __init__(self, channels: int, shape: str) -> None:
        super().__init__()
        sizes = tuple(channels if part == "C" else 1 for part in shape.split())
        self.weight = nn.Parameter(torch.full(sizes, 0.9))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 4 and len(self.weight) > 1:
            return (x.transpose(0, 1) * self.weight).transpose(0, 1)
        return x * self.weight


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is computed from its parameter."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, 2 * self.weight, padding=self.kernel_size[0] // 2)


@dataclass(frozen=True)
class Own(Shortcut):
    """A shortcut of any layers, with a stated factor or without one."""

    ops: tuple[Op, ...] = ()
    stated: float | None = None

    def layers(self, channels: int) -> tuple[Op, ...]:
        return self.ops if channels == 16 else ()

    @property
    def factor(self) -> float | None:
        return self.stated


def unit_factor(*ops: Op, stated: float | None = None):
    """The first unit of ResNet-8 as `measure_shortcut_factors` sees it, and its shortcut."""
    torch.manual_seed(0)
    model = build(cifar(8, Unit(h=Own(ops, stated))))
    unit = measure_shortcut_factors(model, torch.randn(2, 3, 8, 8)).units[0]
    return unit, model.get_submodule(unit.name).h


@pytest.mark.parametrize("shape", ["C 1 1", "1 C 1 1", "C 1 1 1", "1 1 1", ""])
def test_a_factor_for_every_channel_is_no_matrix(shape: str) -> None:
    unit, _ = unit_factor(CustomLayer(Gain, 16, shape))
    assert unit.factor == pytest.approx(0.9)
    assert (unit.spectral, unit.predicted_spectral) == (None, None)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_the_norm_of_a_1x1_convolution_is_that_of_its_operation(groups: int) -> None:
    """The matrix of the operation on one pixel is its Jacobian, whatever the groups."""
    unit, h = unit_factor(Conv(16, 16, 1, groups=groups))
    matrix = h(torch.eye(16)[:, :, None, None]).flatten(1).T.detach()
    assert unit.spectral == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-5)
    assert (unit.predicted_spectral is None) == (groups > 1)


def test_the_weight_that_is_applied_counts_not_the_parameter() -> None:
    unit, h = unit_factor(CustomLayer(StandardisedConv, 16, 1))
    expected = 2 * float(torch.linalg.matrix_norm(h[0].weight.detach().flatten(1), 2))
    assert unit.spectral == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "ops",
    [
        (Conv(16, 16, 3),),
        (Conv(16, 16, 3, groups=16),),
        (Conv(16, 16, 1), Conv(16, 16, 1)),
        (Conv(16, 16, 1), CustomLayer(Gain, 16, "C 1 1")),
    ],
)
def test_other_shortcuts_have_no_spectral_norm(ops: tuple[Op, ...]) -> None:
    assert unit_factor(*ops)[0].spectral is None


def test_a_factor_that_the_kind_states_is_the_prediction() -> None:
    """For signal and gradient; without a statement there is none, and package layers state theirs."""
    layer = CustomLayer(Gain, 16, "C 1 1")
    assert unit_factor(layer)[0].predicted is None
    assert unit_factor(layer, stated=0.9)[0].predicted == 0.9
    assert unit_factor(ScaleOp(0.5), ScaleOp(-1.0))[0].predicted == -0.5
    model = build(cifar(14, Unit(h=Own((layer,), 0.9))))
    first = measure_gradient(model, torch.randn(2, 3, 8, 8), torch.arange(2)).units[0]
    assert first.predicted is not None


def test_a_layer_of_ones_own_can_state_its_factor() -> None:
    @dataclass(frozen=True)
    class Halved(Op):
        channels: int

        def module(self) -> nn.Module:
            return Gain(self.channels, "C 1 1")

        @property
        def expected_factor(self) -> float:
            return 0.9

    assert unit_factor(Halved(16))[0].predicted == 0.9
