"""How the gradient travels (P2, Eq. 5), held against finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.measure.gradient import unit_gradient_norms
from kilolayer.networks import Network, ResidualNetwork, Stage, Stem, build
from kilolayer.units import BASIC, BatchNorm, ResidualUnit, Scaled, Unit
from tiny_runs import PREACT, network


def chain(unit: Unit, units: int = 6) -> ResidualNetwork:
    """Units of one shape in a row, in float64."""
    torch.manual_seed(0)
    described = Network(Stem(4), (Stage(units, 4),), unit, num_classes=3, in_chans=1, image_size=4)
    return build(described).double()


def batch(classes: int = 3, side: int = 4, size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 1, side, side, generator=generator, dtype=torch.float64)
    return x, torch.arange(size) % classes


def without_branches(model: ResidualNetwork) -> ResidualNetwork:
    """F = 0 in every unit: its last convolution has no weights."""
    for module in model.modules():
        if isinstance(module, ResidualUnit):
            last = [each for each in module.F.modules() if isinstance(each, nn.Conv2d)][-1]
            nn.init.zeros_(last.weight)
    return model


def test_past_units_that_add_nothing_the_gradient_is_the_same() -> None:
    """Eq. 5 with ∂ΣF = 0: ∂E/∂x_l = ∂E/∂x_L for every l."""
    norms = unit_gradient_norms(without_branches(chain(PREACT)), *batch())
    assert len(norms) == 6
    assert norms[0] > 0
    assert norms == pytest.approx([norms[-1]] * 6, rel=1e-12)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1])
def test_a_scaled_shortcut_scales_the_gradient_at_every_unit(factor: float) -> None:
    """Eq. 8: the shortcut's term is Π λ_i."""
    norms = unit_gradient_norms(without_branches(chain(replace(PREACT, h=Scaled(factor)))), *batch())
    assert [before / after for before, after in pairwise(norms)] == pytest.approx([factor] * 5, rel=1e-12)


@pytest.mark.parametrize("unit", [BASIC, PREACT])
def test_norms_agree_with_finite_differences(unit: Unit) -> None:
    model, (x, labels) = chain(unit, units=2), batch()
    norms = unit_gradient_norms(model, x, labels)
    units = [module for module in model.modules() if isinstance(module, ResidualUnit)]
    for norm, one in zip(norms, units, strict=True):
        assert differences(model, one, x, labels) == pytest.approx(norm, rel=1e-5)


def differences(model: ResidualNetwork, unit: ResidualUnit, x: Tensor, labels: Tensor) -> float:
    """‖∂E/∂x_l‖ from the loss when every number that enters the unit is moved up and down."""
    model = copy.deepcopy(model).train()
    place = next(i for i, each in enumerate(_units(model)) if _same(each, unit))
    shape = _input_of(model, place, x).shape
    step, total = 1e-6, 0.0
    for index in range(shape.numel()):
        moved = torch.zeros(shape.numel(), dtype=torch.float64)
        moved[index] = step
        up, down = (_loss(model, place, x, labels, sign * moved.view(shape)) for sign in (1, -1))
        total += ((up - down) / (2 * step)) ** 2
    return float(total**0.5)


def _units(model: nn.Module) -> list[ResidualUnit]:
    return [module for module in model.modules() if isinstance(module, ResidualUnit)]


def _same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _input_of(model: nn.Module, place: int, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = _units(model)[place].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    hook.remove()
    return seen[0]


@torch.no_grad()
def _loss(model: nn.Module, place: int, x: Tensor, labels: Tensor, moved: Tensor) -> float:
    hook = _units(model)[place].register_forward_pre_hook(lambda _, args: (args[0] + moved,))
    loss = functional.cross_entropy(model(x), labels)
    hook.remove()
    return loss.item()


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(training: bool) -> None:
    model, (x, labels) = chain(PREACT).train(training), batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    unit_gradient_norms(model, x, labels)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training is training for module in model.modules())
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(norm.momentum == 0.1 for norm in model.modules() if isinstance(norm, BatchNorm))
    assert x.requires_grad is False


def test_it_measures_in_training_mode_even_where_gradients_are_off() -> None:
    model, (x, labels) = chain(PREACT).eval(), batch()
    with torch.no_grad():
        norms = unit_gradient_norms(model, x, labels)
    assert norms == unit_gradient_norms(model.train(), x, labels)


def test_recomputed_units_have_the_same_gradients() -> None:
    model, (x, labels) = chain(PREACT), batch()
    plain = unit_gradient_norms(model, x, labels)
    model.set_grad_checkpointing()
    assert unit_gradient_norms(model, x, labels) == pytest.approx(plain, rel=1e-12)


def test_frozen_weights_have_gradients_at_their_units_too() -> None:
    model, (x, labels) = chain(PREACT), batch()
    expected = unit_gradient_norms(model, x, labels)
    assert unit_gradient_norms(model.requires_grad_(False), x, labels) == pytest.approx(expected, rel=1e-12)


def test_every_unit_counts_from_the_first_to_the_last() -> None:
    model = build(network(PREACT, units=3))
    x, labels = batch(10, 8)
    assert len(unit_gradient_norms(model, x.float(), labels)) == 6
