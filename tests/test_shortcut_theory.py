"""The factor of a shortcut, layer by layer: what is stated, what is recorded, and where there is none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from kilolayer.measure.layer_responses import measure_layer_responses
from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.networks.module_state import ModuleState
from kilolayer.theory.shortcut_products import ShortcutTheory
from kilolayer.units import BASIC, BOTTLENECK, FULL_PREACT, CustomLayer, Projection, Shortcut, Unit
from kilolayer.units.ops import ScaleOp


def units_of(unit: Unit) -> list[nn.Module]:
    torch.manual_seed(0)
    model = build(Network(Stem(8), (Stage(1, 8), Stage(2, 16, 2)), unit, num_classes=4, image_size=8))
    return [model.get_submodule(name) for name in ("stage1.0", "stage2.0", "stage2.1")]


def gain(unit: nn.Module, channels: int) -> float:
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with ShortcutTheory().recording([unit]) as theory, torch.no_grad():
        unit(x)
    factor = theory.factor(unit)
    assert factor is not None
    return factor.gain


@pytest.mark.parametrize("training", [True, False])
def test_bn_divides_by_the_deviation_that_it_uses(training: bool) -> None:
    """In training that of the batch, whatever it has gathered; in evaluation the running one."""
    unit = units_of(replace(BASIC, h=Projection()))[0].train(training)
    gains = []
    for variance in (1.0, 4.0):
        for norm in (module for module in unit.h if isinstance(module, nn.BatchNorm2d)):  # type: ignore[attr-defined, union-attr]
            norm.running_var.fill_(variance)  # type: ignore[union-attr]
        gains.append(gain(unit, 8))
    assert gains[0] == pytest.approx(gains[1] * (1 if training else 2), rel=1e-4)


def test_a_projection_that_changes_the_shape_has_no_factor() -> None:
    """Also with a BN behind its convolution."""
    _, changes, _ = units_of(replace(BASIC, h=Projection()))
    with ShortcutTheory().recording([changes]) as theory, torch.no_grad():
        changes(torch.randn(2, 8, 8, 8))
    assert theory.factor(changes) is None


class Halved(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


@dataclass(frozen=True)
class Partly(Shortcut):
    """One layer that theory knows and one that it does not: the stated factor holds, of whatever sign."""

    def layers(self, channels: int) -> tuple[object, ...]:  # type: ignore[override]
        return ScaleOp(-0.5), CustomLayer(Halved, channels)

    @property
    def factor(self) -> float:
        return -0.25


def test_where_theory_does_not_know_every_layer_the_stated_factor_holds() -> None:
    assert gain(units_of(replace(BASIC, h=Partly()))[0], 8) == 0.25


def test_spatial_layers_are_the_3x3_convolutions() -> None:
    """P1's Fig. 7 shows the outputs of 3×3 layers: of a bottleneck one in three."""
    network = Network(Stem(8), (Stage(2, 8),), replace(BOTTLENECK, arrangement=FULL_PREACT), image_size=8)
    found = measure_layer_responses(build(network), torch.randn(4, 3, 8, 8))
    assert {layer.kernel for layer in found.layers} == {1, 3}
    assert {layer.kernel for layer in found.spatial_layers()} == {3}


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = [1]


def test_a_restored_module_has_what_it_had_and_no_more() -> None:
    module = Counting()
    state = ModuleState.of(module)
    module.seen.append(2)
    module.later = "since"  # type: ignore[assignment]
    with state.restored():
        assert module.seen == [1]
        assert "later" not in vars(module)
        module.within = "here"  # type: ignore[assignment]
    assert module.seen == [1, 2]
    assert module.later == "since"
    assert "within" not in vars(module)
